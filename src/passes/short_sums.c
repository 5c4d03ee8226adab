#include "passes/passes.h"
#include "passes/rewrite.h"

/* A sum over an axis of few elements, not the last one, is written out: its terms are slices, which are views, so that the
 * additions join other pointwise operators, as does a product that only the sum needs (a weighted sum over branches, as
 * of split attention). 16-bit floats are added in f32 and rounded once, as a sum is; a product is rounded before, as it was. */
enum { MOST_TERMS = 4 };

/* The axis that is summed, or -1. */
static int short_axis(const fl_graph *g, const fl_node *n) {
  const fl_type *x = fl_rw_type(g, n->inputs[0]);
  int count, found = -1;
  const int64_t *axes = fl_attr_list(&n->attrs, "axes", &count);
  if (!fl_dtype_is_float(x->dtype) || x->dtype == FL_F64) return -1;
  for (int i = 0; i < count; i++) {
    if (x->dims[axes[i]] == 1) continue;
    if (found >= 0) return -1;
    found = (int)axes[i];
  }
  return found >= 0 && found < x->rank - 1 && x->dims[found] <= MOST_TERMS && fl_type_numel(x) ? found : -1;
}

/* Element i along an axis, which stays, of one element; all there is where the axis has but one. */
static fl_status element(fl_graph *g, fl_nid before, fl_vid v, int axis, int64_t i, fl_vid *out) {
  *out = v;
  return axis < 0 || fl_rw_type(g, v)->dims[axis] == 1 ? NULL : fl_rw_slice(g, before, v, axis, i, i + 1, out);
}

/* Term i: of a product, that of its factors' elements. */
static fl_status term(fl_graph *g, fl_nid before, fl_vid x, bool product, int axis, int64_t i, fl_vid *out) {
  if (!product) return element(g, before, x, axis, i, out);
  fl_vid factors[2];
  int rank = fl_rw_type(g, x)->rank;
  for (int k = 0; k < 2; k++) {
    fl_vid v = fl_rw_made_by(g, x, FL_OP_MUL)->inputs[k];
    FL_TRY(element(g, before, v, axis - (rank - fl_rw_type(g, v)->rank), i, &factors[k]));
  }
  return fl_rw_binary(g, before, FL_OP_MUL, factors[0], factors[1], out);
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  if (fl_rw_node(g, n)->op != FL_OP_SUM) return NULL;
  int axis = short_axis(g, fl_rw_node(g, n));
  if (axis < 0) return NULL;
  fl_vid x = fl_rw_node(g, n)->inputs[0], sum = FL_NO_VALUE, v;
  fl_type out = *fl_rw_type(g, fl_rw_node(g, n)->outputs[0]), of = *fl_rw_type(g, x);
  bool product = fl_rw_made_by(g, x, FL_OP_MUL) && fl_rw_used_once(g, x);
  for (int64_t i = 0; i < of.dims[axis]; i++) {
    FL_TRY(term(g, n, x, product, axis, i, &v));
    FL_TRY(fl_rw_cast(g, n, v, FL_F32, &v));
    if (sum != FL_NO_VALUE) FL_TRY(fl_rw_binary(g, n, FL_OP_ADD, sum, v, &v));
    sum = v;
  }
  FL_TRY(fl_rw_cast(g, n, sum, out.dtype, &sum));
  FL_TRY(fl_rw_reshape(g, n, sum, out.rank, out.dims, &sum));
  fl_rw_replace(g, n, sum);
  *changed = true;
  return NULL;
}

fl_status fl_pass_short_sums(fl_graph *g) {
  bool changed = false;
  return g->wide ? NULL
                 : fl_rw_walk(g, visit, &changed); /* a processor's reductions take neighbouring columns at once */
}
