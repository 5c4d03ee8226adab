#include <math.h>
#include <string.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* softmax(q k^T * scale + mask) v, however it is written: factors before and after the mask, on q or on k, several
 * masks, masked_fill with a number that no score survives. Ranks are 3 (heads counted with the batch) or 4. */
enum { MAX_MASKS = 4, MAX_STEPS = 8 };

typedef struct mask {
  fl_vid v;      /* float: added; bool: where it is `fills`, the score becomes `fill` */
  double factor; /* of what comes after the addition */
  double fill;
  bool fills;
} mask;

typedef struct match {
  fl_vid q, k, v;
  bool k_rows; /* k is [..., T, D], not [..., D, T] */
  double scale;
  mask masks[MAX_MASKS];
  int n_masks;
} match;

static bool is_plain_matmul(const fl_node *n) {
  return n->op == FL_OP_MATMUL && n->inputs[2] == FL_NO_VALUE && n->inputs[3] == FL_NO_VALUE &&
         fl_attr_int(&n->attrs, "act", 0) == FL_ACT_NONE;
}

/* Adding it to any score gives it back, or minus infinity: float32 keeps no digit of a score beside 1e30. */
static bool is_fill(const fl_graph *g, fl_vid v, double *out) { return fl_rw_scalar(g, v, out) && *out <= -1e30; }

/* The number x is multiplied by in n, which is x * c or x / c. */
static bool factor_of(const fl_graph *g, const fl_node *n, fl_vid *out_x, double *out_factor) {
  double c;
  if ((n->op != FL_OP_MUL && n->op != FL_OP_DIV) || !fl_rw_with_scalar(g, n, out_x, &c)) return false;
  fl_rw_number(g, *out_x == n->inputs[0] ? n->inputs[1] : n->inputs[0], &c);
  *out_factor = n->op == FL_OP_MUL ? c : 1 / c;
  return isfinite(*out_factor) && *out_factor != 0;
}

/* The scores under v: its producers up to a matrix product all have its dims and no other use. */
static bool leads_to_scores(const fl_graph *g, fl_vid v, const fl_type *dims, int steps) {
  const fl_node *n = fl_rw_made_by(g, v, FL_OP_COUNT);
  fl_vid x;
  double c;
  if (!n || !steps || !fl_rw_used_once(g, v) || !fl_dims_equal(fl_rw_type(g, v), dims)) return false;
  if (is_plain_matmul(n)) return true;
  if (factor_of(g, n, &x, &c)) return leads_to_scores(g, x, dims, steps - 1);
  if (n->op != FL_OP_ADD && n->op != FL_OP_WHERE) return false;
  for (int i = n->n_inputs - 2; i < n->n_inputs; i++)
    if (leads_to_scores(g, n->inputs[i], dims, steps - 1)) return true;
  return false;
}

static bool take_mask(const fl_graph *g, const fl_node *n, int scores_at, double factor, match *m) {
  if (m->n_masks == MAX_MASKS) return false;
  mask *at = &m->masks[m->n_masks++];
  *at = (mask){.v = n->op == FL_OP_ADD ? n->inputs[1 - scores_at] : n->inputs[0], .factor = factor};
  if (fl_rw_type(g, at->v)->rank > 4) return false;
  if (n->op == FL_OP_ADD) return true;
  at->fills = scores_at == 2;
  return is_fill(g, n->inputs[3 - scores_at], &at->fill) && factor == 1;
}

/* From the softmax's operand down to the product, collecting. */
static const fl_node *find_scores(const fl_graph *g, fl_vid v, match *m) {
  fl_type dims = *fl_rw_type(g, v);
  double factor = 1, c;
  for (int steps = MAX_STEPS; steps; steps--) {
    if (!leads_to_scores(g, v, &dims, steps)) return NULL;
    const fl_node *n = fl_rw_made_by(g, v, FL_OP_COUNT);
    if (is_plain_matmul(n)) {
      m->scale = factor;
      return n;
    }
    fl_vid x;
    if (factor_of(g, n, &x, &c)) {
      factor *= c;
      v = x;
      continue;
    }
    int at = n->n_inputs - 2;
    if (!leads_to_scores(g, n->inputs[at], &dims, steps - 1)) at++;
    if (!take_mask(g, n, at, factor, m)) return NULL;
    v = n->inputs[at];
  }
  return NULL;
}

static fl_vid strip_factor(const fl_graph *g, fl_vid v, double *scale) {
  const fl_node *n = fl_rw_made_by(g, v, FL_OP_COUNT);
  fl_vid x;
  double c;
  if (!n || !factor_of(g, n, &x, &c) || !fl_type_equal(fl_rw_type(g, x), fl_rw_type(g, v))) return v;
  *scale *= c;
  return x;
}

static bool batches_equal(const fl_graph *g, const match *m) {
  const fl_type *q = fl_rw_type(g, m->q), *k = fl_rw_type(g, m->k), *v = fl_rw_type(g, m->v);
  if ((q->rank != 3 && q->rank != 4) || k->rank != q->rank || v->rank != q->rank) return false;
  size_t bytes = (size_t)(q->rank - 2) * sizeof *q->dims;
  return !memcmp(q->dims, k->dims, bytes) && !memcmp(q->dims, v->dims, bytes) && fl_dtype_is_float(q->dtype);
}

static bool find(const fl_graph *g, const fl_node *out, match *m) {
  if (!is_plain_matmul(out) || fl_attr_int(&out->attrs, "trans_b", 0)) return false;
  const fl_node *softmax = fl_rw_made_by(g, out->inputs[0], FL_OP_SOFTMAX);
  if (!softmax || !fl_rw_used_once(g, out->inputs[0])) return false;
  if (fl_attr_int(&softmax->attrs, "axis", 0) != fl_rw_type(g, out->inputs[0])->rank - 1) return false;
  *m = (match){.v = out->inputs[1]};
  const fl_node *scores = find_scores(g, softmax->inputs[0], m);
  if (!scores) return false;
  m->k_rows = fl_attr_int(&scores->attrs, "trans_b", 0);
  m->q = strip_factor(g, scores->inputs[0], &m->scale);
  m->k = strip_factor(g, scores->inputs[1], &m->scale);
  return batches_equal(g, m);
}

static fl_status make_mask(fl_graph *g, fl_nid n, const mask *a, fl_dtype dtype, fl_vid *out) {
  fl_vid zero, fill;
  *out = a->v;
  if (fl_rw_type(g, a->v)->dtype != FL_BOOL) {
    if (a->factor != 1) return fl_rw_with_number(g, n, FL_OP_MUL, a->v, a->factor, out);
    return NULL;
  }
  FL_TRY(fl_graph_scalar(g, dtype, 0, &zero));
  FL_TRY(fl_graph_scalar(g, dtype, a->fill, &fill));
  fl_vid in[3] = {a->v, a->fills ? fill : zero, a->fills ? zero : fill};
  return fl_rw_add(g, n, FL_OP_WHERE, in, 3, NULL, out);
}

static fl_status make_masks(fl_graph *g, fl_nid n, const match *m, fl_vid *out) {
  fl_dtype dtype = fl_rw_type(g, m->q)->dtype;
  *out = FL_NO_VALUE;
  for (int i = 0; i < m->n_masks; i++) {
    fl_vid v;
    FL_TRY(make_mask(g, n, &m->masks[i], dtype, &v));
    if (*out != FL_NO_VALUE) FL_TRY(fl_rw_binary(g, n, FL_OP_ADD, *out, v, &v));
    *out = v;
  }
  return NULL;
}

/* [heads, T, D] becomes [1, heads, T, D]. */
static fl_status four_axes(fl_graph *g, fl_nid n, fl_vid *v) {
  const fl_type *t = fl_rw_type(g, *v);
  if (t->rank == 4) return NULL;
  int64_t dims[4] = {1, t->dims[0], t->dims[1], t->dims[2]};
  return fl_rw_reshape(g, n, *v, 4, dims, v);
}

/* --- rows whose keys are all masked: softmax gives NaN there, the attention operator zeros --- */

typedef struct range {
  double lo, hi;
} range;
static const range anything = {-INFINITY, INFINITY};

static double rounded(fl_dtype dtype, double v) {
  unsigned char bytes[8];
  if (!fl_dtype_is_float(dtype)) return v;
  fl_element_set(dtype, bytes, 0, v);
  return fl_element_get(dtype, bytes, 0);
}

static range range_of_literal(const fl_value *x) {
  int64_t n = fl_type_numel(&x->type);
  range r = {INFINITY, -INFINITY};
  for (int64_t i = 0; i < n; i++) {
    double v = fl_element_get(x->type.dtype, x->data, i);
    if (isnan(v)) return anything;
    r = (range){fmin(r.lo, v), fmax(r.hi, v)};
  }
  return n ? r : anything;
}

static range range_of(const fl_graph *g, fl_vid v, int depth);

static range product(range a, range b) {
  double p[4] = {a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi};
  for (int i = 0; i < 4; i++)
    if (isnan(p[i])) return anything;
  return (range){fmin(fmin(p[0], p[1]), fmin(p[2], p[3])), fmax(fmax(p[0], p[1]), fmax(p[2], p[3]))};
}

static range range_of_result(const fl_graph *g, const fl_node *n, int depth) {
  range a, b;
  switch (n->op) {
  case FL_OP_RESHAPE:
  case FL_OP_EXPAND:
  case FL_OP_PERMUTE:
  case FL_OP_SLICE:
  case FL_OP_CAST: return range_of(g, n->inputs[0], depth - 1);
  case FL_OP_WHERE:
  case FL_OP_ADD:
  case FL_OP_SUB:
  case FL_OP_MUL: break;
  default: return anything;
  }
  a = range_of(g, n->inputs[n->n_inputs - 2], depth - 1);
  b = range_of(g, n->inputs[n->n_inputs - 1], depth - 1);
  if (n->op == FL_OP_WHERE) return (range){fmin(a.lo, b.lo), fmax(a.hi, b.hi)};
  if (n->op == FL_OP_ADD) return (range){a.lo + b.lo, a.hi + b.hi};
  if (n->op == FL_OP_SUB) return (range){a.lo - b.hi, a.hi - b.lo};
  return product(a, b);
}

/* What v's elements lie between, as far as the graph tells. */
static range range_of(const fl_graph *g, fl_vid v, int depth) {
  const fl_value *x = &g->values.data[v];
  const fl_node *n = fl_rw_made_by(g, v, FL_OP_COUNT);
  if (x->type.dtype == FL_BOOL) return (range){0, 1};
  if (x->kind == FL_VALUE_LITERAL) return range_of_literal(x);
  if (!n || !depth) return anything;
  range r = range_of_result(g, n, depth);
  if (isnan(r.lo) || isnan(r.hi)) return anything;
  return (range){rounded(x->type.dtype, r.lo), rounded(x->type.dtype, r.hi)};
}

static bool may_hide_rows(const fl_graph *g, fl_vid v) {
  return v != FL_NO_VALUE && range_of(g, v, 12).lo == -INFINITY;
}

/* v + (all of the mask's row is -inf ? NaN : 0) */
static fl_status hide_rows(fl_graph *g, fl_nid n, fl_vid by, fl_vid *v) {
  const fl_type *t = fl_rw_type(g, by);
  fl_dtype dtype = t->dtype;
  fl_attrs attrs = {0};
  fl_vid top, hidden, in[3];
  fl_attr_set_list(&attrs, "axes", (int64_t[]){t->rank - 1}, 1);
  fl_attr_set_int(&attrs, "keepdim", 'b', 1);
  FL_TRY(fl_rw_add(g, n, FL_OP_AMAX, &by, 1, &attrs, &top));
  FL_TRY(fl_rw_with_number(g, n, FL_OP_EQ, top, -INFINITY, &hidden));
  in[0] = hidden;
  FL_TRY(fl_graph_scalar(g, dtype, NAN, &in[1]));
  FL_TRY(fl_graph_scalar(g, dtype, 0, &in[2]));
  FL_TRY(fl_rw_add(g, n, FL_OP_WHERE, in, 3, NULL, &hidden));
  return fl_rw_binary(g, n, FL_OP_ADD, *v, hidden, v);
}

static fl_status fuse(fl_graph *g, fl_nid n, match *m) {
  static const int64_t swap3[] = {0, 2, 1}, swap4[] = {0, 1, 3, 2};
  fl_type out = *fl_rw_type(g, fl_rw_node(g, n)->outputs[0]);
  fl_vid in[4] = {m->q, m->k, m->v, FL_NO_VALUE}, v;
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "scale", m->scale);
  FL_TRY(make_masks(g, n, m, &in[3]));
  if (!m->k_rows) FL_TRY(fl_rw_permute(g, n, in[1], out.rank == 3 ? swap3 : swap4, &in[1]));
  for (int i = 0; i < 3; i++) FL_TRY(four_axes(g, n, &in[i]));
  FL_TRY(fl_rw_add(g, n, FL_OP_ATTENTION, in, 4, &attrs, &v));
  if (may_hide_rows(g, in[3]) && fl_rw_type(g, in[3])->rank > 0) FL_TRY(hide_rows(g, n, in[3], &v));
  FL_TRY(fl_rw_reshape(g, n, v, out.rank, out.dims, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

/* --- grouped queries: keys and values repeated for each query head of a group --- */

/* v is x [B, G, T, D] with each of its G heads repeated: [B, G, 1, T, D], expanded, reshaped. NO_VALUE if not. */
static fl_vid before_repetition(const fl_graph *g, fl_vid v) {
  const fl_node *r = fl_rw_made_by(g, v, FL_OP_RESHAPE);
  const fl_node *e = r ? fl_rw_made_by(g, r->inputs[0], FL_OP_EXPAND) : NULL;
  if (!e || fl_rw_type(g, e->outputs[0])->rank != 5) return FL_NO_VALUE;
  const fl_type *to = fl_rw_type(g, v), *many = fl_rw_type(g, e->outputs[0]), *one = fl_rw_type(g, e->inputs[0]);
  if (one->rank != 5 || one->dims[2] != 1 || to->rank != 4) return FL_NO_VALUE;
  for (int i = 0; i < 5; i++)
    if (i != 2 && one->dims[i] != many->dims[i]) return FL_NO_VALUE;
  bool merges =
      to->dims[0] == one->dims[0] && to->dims[1] == many->dims[1] * many->dims[2] && to->dims[2] == one->dims[3];
  return merges ? e->inputs[0] : FL_NO_VALUE;
}

static fl_status drop_repetition(fl_graph *g, fl_nid n) {
  const fl_node *a = fl_rw_node(g, n);
  fl_vid in[4] = {a->inputs[0], before_repetition(g, a->inputs[1]), before_repetition(g, a->inputs[2]), a->inputs[3]},
         v;
  if (in[1] == FL_NO_VALUE || in[2] == FL_NO_VALUE) return NULL;
  if (fl_rw_type(g, in[1])->dims[1] != fl_rw_type(g, in[2])->dims[1]) return NULL;
  fl_attrs attrs = a->attrs;
  for (int i = 1; i < 3; i++) {
    const fl_type *t = fl_rw_type(g, in[i]);
    int64_t dims[4] = {t->dims[0], t->dims[1], t->dims[3], t->dims[4]};
    const fl_node *r = fl_rw_made_by(g, in[i], FL_OP_RESHAPE);
    FL_TRY(fl_rw_reshape(g, n, r ? r->inputs[0] : in[i], 4, dims, &in[i]));
  }
  FL_TRY(fl_rw_add(g, n, FL_OP_ATTENTION, in, 4, &attrs, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  match m;
  if (fl_rw_node(g, n)->op != FL_OP_MATMUL || !find(g, fl_rw_node(g, n), &m)) return NULL;
  *changed = true;
  return fuse(g, n, &m);
}

/* --- masks that hide nothing: zeros to be added, or true everywhere. Written out they would be as large as the scores --- */

static bool hides_nothing(const fl_graph *g, fl_vid m) {
  double number;
  if (m == FL_NO_VALUE || !fl_rw_scalar(g, m, &number)) return false;
  return fl_rw_type(g, m)->dtype == FL_BOOL ? number != 0 : number == 0;
}

static fl_status drop_mask(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *a = fl_rw_node(g, n);
  if (a->op != FL_OP_ATTENTION || !hides_nothing(g, a->inputs[3])) return NULL;
  fl_vid in[4] = {a->inputs[0], a->inputs[1], a->inputs[2], FL_NO_VALUE}, v;
  fl_attrs attrs = a->attrs;
  FL_TRY(fl_rw_add(g, n, FL_OP_ATTENTION, in, 4, &attrs, &v));
  *changed = true;
  fl_rw_replace(g, n, v);
  return NULL;
}

static fl_status visit_attention(fl_graph *g, fl_nid n, bool *changed) {
  return fl_rw_node(g, n)->op == FL_OP_ATTENTION ? drop_repetition(g, n) : NULL;
}

fl_status fl_pass_attention(fl_graph *g) {
  bool changed = false;
  FL_TRY(fl_rw_walk(g, visit, &changed));
  FL_TRY(fl_rw_walk(g, drop_mask, &changed));
  return fl_rw_walk(g, visit_attention, &changed);
}
