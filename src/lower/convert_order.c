/* Ordering, counting, and writing at indexes. */
#include <string.h>

#include "lower/convert.h"

/* --- sort, argsort, topk --- */

/* PyTorch's unstable sort orders equal keys as its vector code happens to. That matters where positions are used: of
 * integers, which are sorted to be grouped, any order of equals is as good, and the check of the recorded answer sees
 * where it is not; of floats it is left to PyTorch. */
static bool any_order(fl_cv *c, int positions) {
  bool stable = fl_cv_bool(c, "stable", false);
  fl_vid x = fl_cv_arg(c, "self");
  if (!fl_cv_ok(c)) return false;
  if (!stable && fl_cv_needed(c, positions) && fl_dtype_is_float(fl_cv_type(c, x).dtype)) {
    fl_cv_decline(c, "positions of equal numbers, which only a stable sort defines");
    return false;
  }
  return true;
}

static bool sorted_pair(fl_cv *c, fl_vid *pair) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', fl_cv_axis(c, "dim", -1, rank));
  fl_attr_set_int(&attrs, "descending", 'b', fl_cv_bool(c, "descending", false));
  if (rank == 0) fl_cv_decline(c, "a tensor of rank 0");
  return fl_cv_ops(c, FL_OP_SORT, &x, 1, &attrs, pair);
}

void fl_convert_sort(fl_cv *c) {
  fl_vid pair[FL_PW_MAX_OUTPUTS];
  if (!any_order(c, 1) || !sorted_pair(c, pair)) return;
  for (int i = 0; i < 2; i++) fl_cv_result(c, i, pair[i]);
}

void fl_convert_argsort(fl_cv *c) {
  fl_vid pair[FL_PW_MAX_OUTPUTS];
  if (any_order(c, 0) && sorted_pair(c, pair)) fl_cv_result(c, 0, pair[1]);
}

void fl_convert_topk(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), pair[FL_PW_MAX_OUTPUTS];
  int rank = fl_cv_type(c, x).rank;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', fl_cv_axis(c, "dim", -1, rank));
  fl_attr_set_int(&attrs, "k", 'i', fl_cv_int(c, "k", 1));
  fl_attr_set_int(&attrs, "largest", 'b', fl_cv_bool(c, "largest", true));
  fl_attr_set_int(&attrs, "sorted", 'b', fl_cv_bool(c, "sorted", true));
  if (rank == 0) fl_cv_decline(c, "a tensor of rank 0");
  if (!fl_cv_ops(c, FL_OP_TOPK, &x, 1, &attrs, pair)) return;
  for (int i = 0; i < 2; i++) fl_cv_result(c, i, pair[i]);
}

enum { SET, ADD, MUL, MAX, MIN };

static void scatter(fl_cv *c, fl_vid x, int axis, fl_vid index, fl_vid src, int mode) {
  fl_attrs attrs = {0};
  if (mode == ADD || mode == MUL) x = fl_cv_wide(c, x), src = fl_cv_wide(c, src);
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_int(&attrs, "mode", 'i', mode);
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_SCATTER, (fl_vid[]){x, index, src}, 3, &attrs));
}

/* --- counting --- */

void fl_convert_histc(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  double lo = fl_cv_float(c, "min", 0), hi = fl_cv_float(c, "max", 0);
  if (!(lo < hi)) fl_cv_decline(c, "bins between the least and the greatest element");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "bins", 'i', fl_cv_int(c, "bins", 100));
  fl_attr_set_float(&attrs, "lo", lo);
  fl_attr_set_float(&attrs, "hi", hi);
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_HISTC, &x, 1, &attrs));
}

/* Ones written into zeros, so that a class beyond the last is an index out of range. */
void fl_convert_one_hot(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type out = fl_cv_out(c, 0);
  if (fl_cv_int(c, "num_classes", -1) < 1 || out.rank < 1)
    fl_cv_decline(c, "as many classes as the greatest element tells");
  if (!fl_cv_ok(c)) return;
  x = fl_cv_unsqueeze(c, x, out.rank - 1);
  fl_type at = fl_cv_type(c, x);
  fl_vid ones = fl_cv_full(c, out.dtype, at.rank, at.dims, 1);
  scatter(c, fl_cv_full(c, out.dtype, out.rank, out.dims, 0), out.rank - 1, x, ones, SET);
}

/* How many boundaries lie below each element (param 1: searchsorted, whose arguments are named the other way). */
void fl_convert_bucketize(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), edges = fl_cv_arg(c, c->param ? "sorted_sequence" : "boundaries");
  fl_type t = fl_cv_type(c, x), e = fl_cv_type(c, edges);
  bool right = fl_cv_bool(c, "right", false) || !strcmp(fl_cv_string(c, "side", "left"), "right");
  if (e.rank != 1 || fl_cv_has(c, "sorter")) fl_cv_decline(c, "several rows of boundaries, or unsorted ones");
  if (fl_cv_ok(c) && (t.rank == FL_MAX_RANK || fl_type_numel(&t) * (e.dims[0] + 1) > 1 << 24))
    fl_cv_decline(c, "too many boundaries to look at each");
  if (!fl_cv_ok(c)) return;
  fl_promotion p = {0};
  fl_promote_value(c, &p, x);
  fl_promote_value(c, &p, edges);
  fl_dtype both = fl_promotion_dtype(&p);
  x = fl_cv_unsqueeze(c, fl_cv_cast(c, x, both), t.rank);
  fl_vid below = fl_cv_binary(c, right ? FL_OP_LE : FL_OP_LT, fl_cv_cast(c, edges, both), x);
  int64_t axis = t.rank;
  fl_vid n = fl_cv_reduce(c, FL_OP_SUM, fl_cv_cast(c, below, FL_I64), &axis, 1, false);
  /* whatever is not a number comes after all */
  if (fl_dtype_is_float(both)) {
    fl_vid nan = fl_cv_unary(c, FL_OP_ISNAN, fl_cv_reshape(c, x, t.rank, t.dims));
    n = fl_cv_where(c, nan, fl_cv_full(c, FL_I64, t.rank, t.dims, (double)e.dims[0]), n);
  }
  fl_cv_result(c, 0, fl_cv_cast(c, n, fl_cv_out(c, 0).dtype));
}

/* --- writing at indexes --- */

static int mode_of(fl_cv *c, const char *reduce) {
  static const char *const names[] = {"", "add", "multiply", "amax", "amin", "", "sum", "prod"};
  static const int modes[] = {SET, ADD, MUL, MAX, MIN, SET, ADD, MUL};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(reduce, names[i])) return modes[i];
  fl_cv_decline(c, "reduces by %s", reduce);
  return SET;
}

/* scatter, scatter_add (param ADD), scatter_reduce; the source a tensor or one number */
void fl_convert_scatter(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), index = fl_cv_arg(c, "index"), src;
  fl_type t = fl_cv_type(c, x), at = fl_cv_type(c, index);
  int axis = fl_cv_axis(c, "dim", 0, t.rank), mode = c->param ? c->param : mode_of(c, fl_cv_string(c, "reduce", ""));
  if (!fl_cv_bool(c, "include_self", true)) fl_cv_decline(c, "leaves out what is written over");
  if (t.rank == 0 || at.rank != t.rank) fl_cv_decline(c, "a tensor or an index of rank %d", at.rank);
  if (!fl_cv_ok(c)) return;
  if (fl_type_numel(&at) == 0) {
    fl_cv_result(c, 0, x);
    return;
  }
  if (fl_cv_has(c, "src")) {
    src = fl_cv_arg(c, "src");
    if (fl_cv_type(c, src).dtype != t.dtype) fl_cv_decline(c, "a source of another element type");
  } else {
    src = fl_cv_operand(c, "value", t.dtype);
    if (fl_cv_type(c, src).rank != 0) fl_cv_decline(c, "a value that is no number");
    src = fl_cv_expand(c, src, at.rank, at.dims);
  }
  scatter(c, x, axis, index, src, mode);
}

/* index_add (param ADD), index_copy, index_fill: whole slices at a vector of positions */
void fl_convert_index_write(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), index = fl_cv_arg(c, "index"), src;
  fl_type t = fl_cv_type(c, x), at = fl_cv_type(c, index);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  if (t.rank == 0 || at.rank > 1) fl_cv_decline(c, "a tensor or an index of rank %d", at.rank);
  if (!fl_cv_ok(c)) return;
  fl_type part = t;
  part.dims[axis] = at.rank ? at.dims[0] : 1;
  if (fl_cv_has(c, "source")) {
    src = fl_cv_arg(c, "source");
    fl_type given = fl_cv_type(c, src);
    if (!fl_dims_equal(&part, &given)) fl_cv_decline(c, "a source of another shape");
    src = fl_cv_mul_scalar(c, fl_cv_cast(c, src, t.dtype), fl_cv_float(c, "alpha", 1));
  } else {
    src = fl_cv_expand(c, fl_cv_operand(c, "value", t.dtype), part.rank, part.dims);
  }
  int64_t line[FL_MAX_RANK];
  for (int d = 0; d < t.rank; d++) line[d] = d == axis ? part.dims[axis] : 1;
  index = fl_cv_expand(c, fl_cv_reshape(c, index, t.rank, line), part.rank, part.dims);
  scatter(c, x, axis, index, src, c->param);
}

/* x[mask] = a value that is the same for every place */
static bool fill_mask(fl_cv *c, fl_vid x, fl_vid mask, fl_vid values) {
  fl_type t = fl_cv_type(c, x), m = fl_cv_type(c, mask), v = fl_cv_type(c, values);
  if (!fl_cv_ok(c) || fl_type_numel(&v) != 1 || m.rank > t.rank) return false;
  if (fl_cv_bool(c, "accumulate", false)) return false;
  for (int d = 0; d < t.rank; d++)
    if (d < m.rank ? m.dims[d] != t.dims[d] : false) return false;
  for (int d = m.rank; d < t.rank; d++) m.dims[d] = 1;
  values = fl_cv_reshape(c, fl_cv_cast(c, values, t.dtype), 0, NULL);
  fl_cv_result(c, 0, fl_cv_where(c, fl_cv_reshape(c, mask, t.rank, m.dims), values, x));
  return true;
}

void fl_convert_index_put(fl_cv *c) {
  fl_vid inputs[FL_MAX_RANK + 2] = {fl_cv_arg(c, "self"), fl_cv_arg(c, "values")};
  int count, n = 0, axis = -1;
  fl_vid *indices = fl_cv_args(c, "indices", &count);
  for (int i = 0; i < count && fl_cv_ok(c); i++) {
    if (indices[i] == FL_NO_VALUE) continue;
    fl_dtype dtype = fl_cv_type(c, indices[i]).dtype;
    if (dtype == FL_BOOL || dtype == FL_U8) {
      if (count == 1 && dtype == FL_BOOL && fill_mask(c, inputs[0], indices[0], inputs[1])) return;
      fl_cv_decline(c, "writes at a mask");
    } else if (n == FL_MAX_RANK)
      fl_cv_decline(c, "more than %d indexes", FL_MAX_RANK);
    else if (axis >= 0 && i != axis + n)
      fl_cv_decline(c, "indexes of axes that are not adjacent");
    else {
      if (axis < 0) axis = i;
      inputs[2 + n++] = indices[i];
    }
  }
  if (n == 0) fl_cv_decline(c, "no index");
  if (!fl_cv_ok(c)) return;
  inputs[1] = fl_cv_cast(c, inputs[1], fl_cv_type(c, inputs[0]).dtype);
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_int(&attrs, "mode", 'i', fl_cv_bool(c, "accumulate", false) ? ADD : SET);
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_INDEX_PUT, inputs, n + 2, &attrs));
}

/* --- products of groups --- */

/* transformers' own operator, and aten._grouped_mm (param 1) */
void fl_convert_grouped_mm(fl_cv *c) {
  fl_vid a = fl_cv_arg(c, c->param ? "self" : "input"), b = fl_cv_arg(c, c->param ? "mat2" : "weight");
  if (fl_cv_has(c, "bias") || fl_cv_has(c, "out_dtype")) fl_cv_decline(c, "a bias or another type of results");
  if (fl_cv_type(c, a).rank != 2 || fl_cv_type(c, b).rank != 3) fl_cv_decline(c, "groups of columns");
  fl_vid ends = fl_cv_arg(c, "offs");
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_GROUPED_MATMUL, (fl_vid[]){a, b, ends}, 3, NULL));
}
