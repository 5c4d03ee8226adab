#include <math.h>
#include <string.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* One rule each: looks at node n and, where it applies, replaces it and sets `changed`. */
typedef fl_rw_visit rule;

static fl_status replace(fl_graph *g, fl_nid n, fl_vid with, bool *changed) {
  *changed = true;
  fl_rw_replace(g, n, with);
  return NULL;
}

static fl_vid result(const fl_graph *g, fl_nid n) { return fl_rw_node(g, n)->outputs[0]; }

static bool same_type_as_input(const fl_graph *g, fl_nid n) {
  return fl_type_equal(fl_rw_type(g, result(g, n)), fl_rw_type(g, fl_rw_node(g, n)->inputs[0]));
}

/* --- views --- */

/* Cast, reshape, expand, slice (the dims say all of it), pad and cat of one that change nothing. */
static fl_status no_op(fl_graph *g, fl_nid n, bool *changed) {
  fl_op op = fl_rw_node(g, n)->op;
  bool view = op == FL_OP_CAST || op == FL_OP_RESHAPE || op == FL_OP_EXPAND || op == FL_OP_SLICE || op == FL_OP_PAD;
  if (op == FL_OP_CAT) view = fl_rw_node(g, n)->n_inputs == 1;
  if (!view || !same_type_as_input(g, n)) return NULL;
  return replace(g, n, fl_rw_node(g, n)->inputs[0], changed);
}

static fl_status reshape_of_reshape(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *inner = fl_rw_made_by(g, fl_rw_node(g, n)->inputs[0], FL_OP_RESHAPE);
  if (fl_rw_node(g, n)->op != FL_OP_RESHAPE || !inner) return NULL;
  fl_type t = *fl_rw_type(g, result(g, n));
  fl_vid v;
  FL_TRY(fl_rw_reshape(g, n, inner->inputs[0], t.rank, t.dims, &v));
  return replace(g, n, v, changed);
}

static fl_status expand_of_expand(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *outer = fl_rw_node(g, n), *inner = fl_rw_made_by(g, outer->inputs[0], FL_OP_EXPAND);
  if (outer->op != FL_OP_EXPAND || !inner) return NULL;
  fl_vid x = inner->inputs[0], v;
  FL_TRY(fl_rw_add(g, n, FL_OP_EXPAND, &x, 1, &outer->attrs, &v));
  return replace(g, n, v, changed);
}

/* Axes of more than one element keep their order: only ones move, and that is a reshape. */
static bool moves_ones_only(const fl_type *from, const int64_t *perm) {
  int64_t last = -1;
  for (int i = 0; i < from->rank; i++) {
    if (from->dims[perm[i]] == 1) continue;
    if (perm[i] < last) return false;
    last = perm[i];
  }
  return true;
}

static fl_status permute(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *outer = fl_rw_node(g, n);
  if (outer->op != FL_OP_PERMUTE) return NULL;
  fl_vid x = outer->inputs[0], v;
  fl_type t = *fl_rw_type(g, result(g, n));
  int64_t perm[FL_MAX_RANK];
  memcpy(perm, fl_attr_list(&outer->attrs, "perm", NULL), sizeof perm);
  const fl_node *inner = fl_rw_made_by(g, x, FL_OP_PERMUTE);
  if (inner) {
    const int64_t *first = fl_attr_list(&inner->attrs, "perm", NULL);
    for (int i = 0; i < t.rank; i++) perm[i] = first[perm[i]];
    x = inner->inputs[0];
  }
  bool reshapes = moves_ones_only(fl_rw_type(g, x), perm);
  if (!inner && !reshapes) return NULL;
  if (reshapes)
    FL_TRY(fl_rw_reshape(g, n, x, t.rank, t.dims, &v));
  else
    FL_TRY(fl_rw_permute(g, n, x, perm, &v));
  return replace(g, n, v, changed);
}

static fl_status slice_of_slice(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *outer = fl_rw_node(g, n), *inner = fl_rw_made_by(g, outer->inputs[0], FL_OP_SLICE);
  if (outer->op != FL_OP_SLICE || !inner) return NULL;
  int64_t step = fl_attr_int(&inner->attrs, "step", 1), start = fl_attr_int(&inner->attrs, "start", 0);
  if (fl_attr_int(&outer->attrs, "axis", 0) != fl_attr_int(&inner->attrs, "axis", 0) || step != 1) return NULL;
  fl_attrs attrs = outer->attrs;
  fl_attr_set_int(&attrs, "start", 'i', start + fl_attr_int(&outer->attrs, "start", 0));
  fl_attr_set_int(&attrs, "stop", 'i', start + fl_attr_int(&outer->attrs, "stop", 0));
  fl_vid x = inner->inputs[0], v;
  FL_TRY(fl_rw_add(g, n, FL_OP_SLICE, &x, 1, &attrs, &v));
  return replace(g, n, v, changed);
}

/* --- pointwise --- */

static bool is_pointwise(const fl_node *n) { return fl_op_get(n->op)->flags & FL_OPF_POINTWISE; }

/* Pointwise operators broadcast by themselves: an expanded operand is read as it was, if another gives the dims. */
static fl_status expand_into_pointwise(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  if (!is_pointwise(p)) return NULL;
  for (int i = 0; i < p->n_inputs; i++) {
    const fl_node *e = fl_rw_made_by(g, p->inputs[i], FL_OP_EXPAND);
    if (!e) continue;
    const fl_type *types[3];
    fl_type without;
    for (int k = 0; k < p->n_inputs; k++) types[k] = fl_rw_type(g, k == i ? e->inputs[0] : p->inputs[k]);
    FL_TRY(fl_infer(p->op, types, p->n_inputs, &p->attrs, NULL, &without));
    if (!fl_type_equal(&without, fl_rw_type(g, result(g, n)))) continue;
    fl_nid expand = fl_graph_producer(g, p->inputs[i]);
    fl_graph_set_input(g, n, i, e->inputs[0]);
    fl_rw_erase(g, expand);
    *changed = true;
  }
  return NULL;
}

/* Constants stand to the right of operators that commute. */
static fl_status constant_right(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  if (!(fl_op_get(p->op)->flags & FL_OPF_COMMUTATIVE) || p->n_inputs != 2) return NULL;
  fl_vid left = p->inputs[0], right = p->inputs[1];
  if (!fl_graph_is_const(g, left) || fl_graph_is_const(g, right)) return NULL;
  fl_graph_set_input(g, n, 0, right);
  fl_graph_set_input(g, n, 1, left);
  *changed = true;
  return NULL;
}

static bool is_power_of_two(double v) {
  int exponent;
  return isfinite(v) && v != 0 && fabs(frexp(v, &exponent)) == 0.5 && exponent > -100 && exponent < 100;
}

/* x * 1, x / 1, x - 0 are x, bit by bit (x + 0 is not: -0 + 0 is 0). A division by a power of two multiplies. */
static fl_status by_number(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  fl_vid x, v;
  double c;
  bool known = p->op == FL_OP_MUL || p->op == FL_OP_DIV || p->op == FL_OP_SUB || p->op == FL_OP_ADD;
  if (!known || !fl_rw_with_scalar(g, p, &x, &c) || !fl_type_equal(fl_rw_type(g, x), fl_rw_type(g, result(g, n))))
    return NULL;
  bool floats = fl_dtype_is_float(fl_rw_type(g, x)->dtype);
  bool same =
      (p->op == FL_OP_MUL || p->op == FL_OP_DIV) ? c == 1 : c == 0 && (!floats || (p->op == FL_OP_SUB) == !signbit(c));
  if (same) return replace(g, n, x, changed);
  if (p->op != FL_OP_DIV || !is_power_of_two(c) || fl_rw_type(g, x)->dtype != FL_F32) return NULL;
  FL_TRY(fl_rw_with_number(g, n, FL_OP_MUL, x, 1 / c, &v));
  return replace(g, n, v, changed);
}

/* The powers for which PyTorch itself does not call pow. */
static fl_status power(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  double e;
  if (p->op != FL_OP_POW || !fl_rw_scalar(g, p->inputs[1], &e)) return NULL;
  fl_vid x = p->inputs[0], v = x;
  if (!fl_type_equal(fl_rw_type(g, x), fl_rw_type(g, result(g, n)))) return NULL;
  bool floats = fl_dtype_is_float(fl_rw_type(g, x)->dtype);
  if (e == 2 || e == 3) FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, x, x, &v));
  if (e == 3) FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, v, x, &v));
  if (floats && e == 0.5) FL_TRY(fl_rw_unary(g, n, FL_OP_SQRT, x, &v));
  if (floats && e == -0.5) FL_TRY(fl_rw_unary(g, n, FL_OP_RSQRT, x, &v));
  if (floats && e == -1) FL_TRY(fl_rw_unary(g, n, FL_OP_RECIPROCAL, x, &v));
  return v != x || e == 1 ? replace(g, n, v, changed) : NULL;
}

/* x * sigmoid(x) */
static fl_status silu(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  for (int i = 0; p->op == FL_OP_MUL && i < 2; i++) {
    const fl_node *s = fl_rw_made_by(g, p->inputs[i], FL_OP_SIGMOID);
    if (!s || s->inputs[0] != p->inputs[1 - i]) continue;
    fl_vid v;
    FL_TRY(fl_rw_unary(g, n, FL_OP_SILU, s->inputs[0], &v));
    return replace(g, n, v, changed);
  }
  return NULL;
}

/* --- matrix products --- */

static fl_status remake_matmul(fl_graph *g, fl_nid n, fl_vid a, fl_vid b, bool trans_b, fl_vid *out) {
  const fl_node *m = fl_rw_node(g, n);
  fl_vid in[4] = {a, b, m->inputs[2], m->inputs[3]};
  fl_attrs attrs = m->attrs;
  fl_attr_set_int(&attrs, "trans_b", 'b', trans_b);
  return fl_rw_add(g, n, FL_OP_MATMUL, in, 4, &attrs, out);
}

/* A permuted b whose rows run along what was the last axis in memory is read through trans_b instead, and the
 * permutation loses its last swap: none is left of a plain transposition. */
static fl_status matmul_of_transpose(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *m = fl_rw_node(g, n);
  if (m->op != FL_OP_MATMUL) return NULL;
  fl_vid a = m->inputs[0], b, v;
  const fl_node *p = fl_rw_made_by(g, m->inputs[1], FL_OP_PERMUTE);
  int rank = fl_rw_type(g, m->inputs[1])->rank;
  if (!p) return NULL;
  int64_t perm[FL_MAX_RANK];
  memcpy(perm, fl_attr_list(&p->attrs, "perm", NULL), sizeof perm);
  if (perm[rank - 2] != rank - 1) return NULL;
  perm[rank - 2] = perm[rank - 1];
  perm[rank - 1] = rank - 1;
  bool trans = fl_attr_int(&m->attrs, "trans_b", 0);
  FL_TRY(fl_rw_permute(g, n, p->inputs[0], perm, &b));
  FL_TRY(remake_matmul(g, n, a, b, !trans, &v));
  return replace(g, n, v, changed);
}

/* Linear layers arrive as view, addmm, view. With a two-dimensional b the product works on the rows of a, however
 * they are counted: it takes a as it was, and the reshape comes after it, where it meets its inverse. */
static fl_status matmul_of_flattened(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *m = fl_rw_node(g, n);
  if (m->op != FL_OP_MATMUL || fl_rw_type(g, m->inputs[1])->rank != 2 || m->inputs[3] != FL_NO_VALUE) return NULL;
  const fl_node *r = fl_rw_made_by(g, m->inputs[0], FL_OP_RESHAPE);
  if (!r) return NULL;
  const fl_type *from = fl_rw_type(g, r->inputs[0]), *to = fl_rw_type(g, m->inputs[0]);
  if (from->rank < 2 || from->dims[from->rank - 1] != to->dims[to->rank - 1]) return NULL;
  fl_type t = *fl_rw_type(g, result(g, n));
  fl_vid v;
  FL_TRY(remake_matmul(g, n, r->inputs[0], m->inputs[1], fl_attr_int(&m->attrs, "trans_b", 0), &v));
  FL_TRY(fl_rw_reshape(g, n, v, t.rank, t.dims, &v));
  return replace(g, n, v, changed);
}

/* The operand before its batch axes were flattened into one, or NO_VALUE. */
static fl_vid before_flattening(const fl_graph *g, fl_vid v) {
  const fl_node *r = fl_rw_made_by(g, v, FL_OP_RESHAPE);
  const fl_type *to = fl_rw_type(g, v);
  if (!r || to->rank != 3) return FL_NO_VALUE;
  const fl_type *from = fl_rw_type(g, r->inputs[0]);
  if (from->rank < 4 || from->dims[from->rank - 1] != to->dims[2] || from->dims[from->rank - 2] != to->dims[1])
    return FL_NO_VALUE;
  return r->inputs[0];
}

/* Products of many matrices arrive as view to three axes, bmm, view: taken at their own axes they meet softmax. */
static fl_status matmul_of_batches(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *m = fl_rw_node(g, n);
  if (m->op != FL_OP_MATMUL || m->inputs[2] != FL_NO_VALUE || m->inputs[3] != FL_NO_VALUE) return NULL;
  fl_vid a = before_flattening(g, m->inputs[0]), b = before_flattening(g, m->inputs[1]), v;
  if (a == FL_NO_VALUE || b == FL_NO_VALUE ||
      fl_rw_type(g, m->inputs[0])->dims[0] != fl_rw_type(g, m->inputs[1])->dims[0])
    return NULL;
  const fl_type *ta = fl_rw_type(g, a), *tb = fl_rw_type(g, b);
  if (ta->rank != tb->rank || memcmp(ta->dims, tb->dims, (size_t)(ta->rank - 2) * sizeof *ta->dims)) return NULL;
  fl_type t = *fl_rw_type(g, result(g, n));
  FL_TRY(remake_matmul(g, n, a, b, fl_attr_int(&m->attrs, "trans_b", 0), &v));
  FL_TRY(fl_rw_reshape(g, n, v, t.rank, t.dims, &v));
  return replace(g, n, v, changed);
}

static const rule rules[] = {
    no_op,
    reshape_of_reshape,
    expand_of_expand,
    permute,
    slice_of_slice,
    expand_into_pointwise,
    constant_right,
    by_number,
    power,
    silu,
    matmul_of_transpose,
    matmul_of_flattened,
    matmul_of_batches,
};

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    FL_TRY(rules[i](g, n, changed));
    if (fl_rw_node(g, n)->dead) return NULL;
  }
  return NULL;
}

/* What a rule makes is looked at in the next round. Each round takes something away, so there are few; the bound
 * guards against rules that would undo each other. */
fl_status fl_pass_canonicalize(fl_graph *g) {
  bool changed = true;
  for (int round = 0; changed && round < 16; round++) {
    changed = false;
    FL_TRY(fl_rw_walk(g, visit, &changed));
  }
  return NULL;
}
