#include "passes/passes.h"
#include "passes/rewrite.h"

/* x / sqrt(mean(x^2) + eps) is rms_norm; with x = y - mean(y) it is layer_norm of y. The last axes only. Weight and
 * bias that follow are taken in, and so are casts around it: norms of 16-bit floats compute in 32 bits anyway. */
typedef struct match {
  fl_vid x;
  bool centered;
  int64_t axes;
  double eps;
} match;

/* v = op(x) over the last axes with keepdim; gives x and how many axes. */
static bool is_reduced(const fl_graph *g, fl_vid v, fl_op op, fl_vid *out_x, int64_t *out_axes) {
  const fl_node *n = fl_rw_made_by(g, v, op);
  int count;
  if (!n || !fl_attr_int(&n->attrs, "keepdim", 0)) return false;
  const int64_t *axes = fl_attr_list(&n->attrs, "axes", &count);
  /* They ascend, so the first tells whether they are the last ones. */
  if (axes[0] != fl_rw_type(g, n->inputs[0])->rank - count) return false;
  if (op == FL_OP_VAR && fl_attr_float(&n->attrs, "correction", 1) != 0) return false;
  *out_x = n->inputs[0];
  *out_axes = count;
  return true;
}

/* x - mean(x) over as many axes: gives x. */
static bool is_centered(const fl_graph *g, fl_vid v, int64_t axes, fl_vid *out_x) {
  const fl_node *n = fl_rw_made_by(g, v, FL_OP_SUB);
  fl_vid x;
  int64_t have;
  if (!n || !is_reduced(g, n->inputs[1], FL_OP_MEAN, &x, &have) || x != n->inputs[0] || have != axes) return false;
  *out_x = x;
  return true;
}

/* v = mean(x * x), or the variance of y where x = y - mean(y). */
static bool is_mean_square_of(const fl_graph *g, fl_vid v, fl_vid x, int64_t *out_axes) {
  fl_vid of, y;
  if (is_reduced(g, v, FL_OP_VAR, &of, out_axes)) return is_centered(g, x, *out_axes, &y) && y == of;
  if (!is_reduced(g, v, FL_OP_MEAN, &of, out_axes)) return false;
  const fl_node *square = fl_rw_made_by(g, of, FL_OP_MUL);
  return square && square->inputs[0] == x && square->inputs[1] == x;
}

static bool is_root_of(const fl_graph *g, const fl_node *root, fl_vid x, match *m) {
  const fl_node *sum = fl_rw_made_by(g, root->inputs[0], FL_OP_ADD);
  fl_vid square;
  if (!sum || !fl_rw_with_scalar(g, sum, &square, &m->eps)) return false;
  return is_mean_square_of(g, square, x, &m->axes);
}

/* n = x * rsqrt(mean square + eps), or x / sqrt(...) */
static bool find(const fl_graph *g, const fl_node *n, match *m) {
  if (n->op != FL_OP_MUL && n->op != FL_OP_DIV) return false;
  for (int i = 0; i < 2; i++) {
    bool divides = n->op == FL_OP_DIV;
    const fl_node *root = fl_rw_made_by(g, n->inputs[1 - i], divides ? FL_OP_SQRT : FL_OP_RSQRT);
    if ((divides && i) || !root || !is_root_of(g, root, n->inputs[i], m)) continue;
    m->centered = is_centered(g, n->inputs[i], m->axes, &m->x);
    if (!m->centered) m->x = n->inputs[i];
    return fl_dtype_is_float(fl_rw_type(g, m->x)->dtype);
  }
  return false;
}

static fl_status make_norm(fl_graph *g, fl_nid n, const match *m) {
  fl_attrs attrs = {0};
  fl_vid x = m->x, v;
  fl_attr_set_int(&attrs, "axes", 'i', m->axes);
  fl_attr_set_float(&attrs, "eps", m->eps);
  FL_TRY(fl_rw_add(g, n, m->centered ? FL_OP_LAYER_NORM : FL_OP_RMS_NORM, &x, 1, &attrs, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

/* The dims of a norm's weight, if v is a constant that broadcasts along just those. */
static bool fits_weight(const fl_graph *g, const fl_node *norm, fl_vid v, fl_type *out) {
  const fl_type *x = fl_rw_type(g, norm->outputs[0]), *t = fl_rw_type(g, v);
  int axes = (int)fl_attr_int(&norm->attrs, "axes", 1);
  *out = fl_type_make(x->dtype, axes, x->dims + x->rank - axes);
  if (!fl_graph_is_const(g, v) || t->rank < axes || t->rank > x->rank) return false;
  for (int i = 0; i < t->rank; i++)
    if (t->dims[i] != (i < t->rank - axes ? 1 : x->dims[x->rank - t->rank + i])) return false;
  return true;
}

/* norm * weight, then + bias: operand `at` of the norm, if it has none yet. */
static fl_status absorb(fl_graph *g, fl_nid n, const fl_node *norm, int at, fl_vid value, const fl_type *want) {
  fl_op op = norm->op;
  fl_vid in[3] = {norm->inputs[0], norm->inputs[1], op == FL_OP_LAYER_NORM ? norm->inputs[2] : FL_NO_VALUE}, v;
  fl_attrs attrs = norm->attrs;
  FL_TRY(fl_rw_reshape(g, n, value, want->rank, want->dims, &in[at]));
  FL_TRY(fl_rw_add(g, n, op, in, op == FL_OP_LAYER_NORM ? 3 : 2, &attrs, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

static bool may_absorb(const fl_node *norm, fl_op op) {
  if (op == FL_OP_ADD) return norm->op == FL_OP_LAYER_NORM && norm->inputs[2] == FL_NO_VALUE;
  return norm->inputs[1] == FL_NO_VALUE && (norm->op == FL_OP_RMS_NORM || norm->inputs[2] == FL_NO_VALUE);
}

static fl_status absorb_operand(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  for (int i = 0; i < 2; i++) {
    const fl_node *norm = fl_rw_made_by(g, p->inputs[i], FL_OP_COUNT);
    fl_type want;
    if (!norm || (norm->op != FL_OP_LAYER_NORM && norm->op != FL_OP_RMS_NORM) || !fl_rw_used_once(g, p->inputs[i]))
      continue;
    if (!may_absorb(norm, p->op) || !fits_weight(g, norm, p->inputs[1 - i], &want)) continue;
    *changed = true;
    return absorb(g, n, norm, p->op == FL_OP_MUL ? 1 : 2, p->inputs[1 - i], &want);
  }
  return NULL;
}

static bool is_plain_norm(const fl_node *n) {
  return (n->op == FL_OP_LAYER_NORM || n->op == FL_OP_RMS_NORM) && n->inputs[1] == FL_NO_VALUE &&
         (n->op == FL_OP_RMS_NORM || n->inputs[2] == FL_NO_VALUE);
}

/* A 16-bit float cast to f32, normalized and cast back. */
static fl_status absorb_casts(fl_graph *g, fl_nid n, bool *changed) {
  const fl_type *narrow = fl_rw_type(g, fl_rw_node(g, n)->outputs[0]);
  const fl_node *norm = fl_rw_made_by(g, fl_rw_node(g, n)->inputs[0], FL_OP_COUNT);
  if ((narrow->dtype != FL_F16 && narrow->dtype != FL_BF16) || !norm || !is_plain_norm(norm)) return NULL;
  const fl_node *cast = fl_rw_made_by(g, norm->inputs[0], FL_OP_CAST);
  if (!cast || fl_rw_type(g, norm->inputs[0])->dtype != FL_F32) return NULL;
  fl_vid x = cast->inputs[0], v;
  fl_attrs attrs = norm->attrs;
  if (fl_rw_type(g, x)->dtype != narrow->dtype) return NULL;
  *changed = true;
  FL_TRY(fl_rw_add(g, n, norm->op, &x, 1, &attrs, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  match m;
  if (p->op == FL_OP_CAST) return absorb_casts(g, n, changed);
  if (find(g, p, &m)) {
    *changed = true;
    return make_norm(g, n, &m);
  }
  return p->op == FL_OP_MUL || p->op == FL_OP_ADD ? absorb_operand(g, n, changed) : NULL;
}

fl_status fl_pass_norms(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
