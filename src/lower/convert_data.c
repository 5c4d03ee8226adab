/* Joining, padding and indexing: operators that move elements. */
#include <string.h>

#include "lower/convert.h"

/* The promoted tensors of a list; the empty 1-D tensors that cat lets pass are left out. */
static fl_vid *promoted(fl_cv *c, int *n) {
  fl_vid *xs = fl_cv_args(c, "tensors", n);
  fl_promotion p = {0};
  for (int i = 0; i < *n; i++) fl_promote_value(c, &p, xs[i]);
  int kept = 0;
  for (int i = 0; i < *n; i++) {
    fl_type t = fl_cv_type(c, xs[i]);
    if (t.rank == 1 && t.dims[0] == 0) continue;
    xs[kept++] = fl_cv_cast(c, xs[i], fl_promotion_dtype(&p));
  }
  *n = kept;
  if (!kept) fl_cv_decline(c, "nothing to join");
  return xs;
}

void fl_convert_cat(fl_cv *c) {
  int n;
  fl_vid *xs = promoted(c, &n);
  if (!fl_cv_ok(c)) return;
  fl_cv_result(c, 0, fl_cv_cat(c, xs, n, fl_cv_axis(c, "dim", 0, fl_cv_type(c, xs[0]).rank)));
}

void fl_convert_stack(fl_cv *c) {
  int n;
  fl_vid *xs = promoted(c, &n);
  if (!fl_cv_ok(c)) return;
  int axis = fl_cv_axis(c, "dim", 0, fl_cv_type(c, xs[0]).rank + 1);
  for (int i = 0; i < n; i++) xs[i] = fl_cv_unsqueeze(c, xs[i], axis);
  fl_cv_result(c, 0, fl_cv_cat(c, xs, n, axis));
}

/* hstack: axis 1, but 0 for vectors; vstack: rows. */
void fl_convert_hvstack(fl_cv *c) {
  int n;
  bool vertical = c->param;
  fl_vid *xs = promoted(c, &n);
  for (int i = 0; i < n && fl_cv_ok(c); i++) {
    if (fl_cv_type(c, xs[i]).rank == 0) xs[i] = fl_cv_unsqueeze(c, xs[i], 0);
    if (vertical && fl_cv_type(c, xs[i]).rank == 1) xs[i] = fl_cv_unsqueeze(c, xs[i], 0);
  }
  if (fl_cv_ok(c)) fl_cv_result(c, 0, fl_cv_cat(c, xs, n, vertical || fl_cv_type(c, xs[0]).rank == 1 ? 0 : 1));
}

void fl_convert_roll(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int64_t shifts[FL_MAX_RANK], axes[FL_MAX_RANK];
  int n = fl_cv_ints(c, "shifts", shifts, FL_MAX_RANK), m = fl_cv_ints(c, "dims", axes, FL_MAX_RANK);
  if (m != n) fl_cv_decline(c, "rolls the flattened tensor");
  if (!fl_cv_ok(c) || t.rank == 0) return;
  for (int i = 0; i < n; i++) {
    int axis = fl_cv_wrap_axis(c, axes[i], t.rank);
    int64_t size = t.dims[axis], cut = size ? ((-shifts[i]) % size + size) % size : 0;
    if (cut == 0) continue;
    fl_vid parts[] = {fl_cv_slice(c, x, axis, cut, size, 1), fl_cv_slice(c, x, axis, 0, cut, 1)};
    x = fl_cv_cat(c, parts, 2, axis);
  }
  fl_cv_result(c, 0, x);
}

void fl_convert_flip(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank, count = 0;
  int64_t dims[FL_MAX_RANK], axes[FL_MAX_RANK];
  int n = fl_cv_ints(c, "dims", dims, FL_MAX_RANK);
  bool in[FL_MAX_RANK] = {false};
  for (int i = 0; i < n; i++) in[fl_cv_wrap_axis(c, dims[i], rank)] = true;
  for (int i = 0; i < rank; i++)
    if (in[i]) axes[count++] = i;
  if (count) {
    fl_attrs attrs = {0};
    fl_attr_set_list(&attrs, "axes", axes, count);
    x = fl_cv_op(c, FL_OP_FLIP, &x, 1, &attrs);
  }
  fl_cv_result(c, 0, x);
}

void fl_convert_embedding(fl_cv *c) {
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_EMBEDDING, fl_cv_arg(c, "weight"), fl_cv_arg(c, "indices")));
}

/* gather and index_select */
void fl_convert_select_along(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), index = fl_cv_arg(c, "index");
  int rank = fl_cv_type(c, x).rank;
  if (rank == 0 || (c->param == FL_OP_INDEX_SELECT && fl_cv_type(c, index).rank != 1))
    fl_cv_decline(c, "a tensor or an index of rank 0");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', fl_cv_axis(c, "dim", 0, rank));
  fl_cv_result(c, 0, fl_cv_op(c, (fl_op)c->param, (fl_vid[]){x, index}, 2, &attrs));
}

/* gather along an axis, the others broadcast; without an axis from the flattened tensor. */
void fl_convert_take_along(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), index = fl_cv_arg(c, "indices");
  fl_type t = fl_cv_type(c, x), at = fl_cv_type(c, index);
  if (!fl_cv_has(c, "dim") || t.rank == 0 || t.rank != at.rank) fl_cv_decline(c, "indexes the flattened tensor");
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  if (!fl_cv_ok(c)) return;
  for (int i = 0; i < t.rank; i++) {
    if (i == axis) continue;
    if (t.dims[i] == 1) t.dims[i] = at.dims[i];
    at.dims[i] = t.dims[i];
  }
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_vid inputs[] = {fl_cv_expand(c, x, t.rank, t.dims), fl_cv_expand(c, index, at.rank, at.dims)};
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_GATHER, inputs, 2, &attrs));
}

/* Vector i lies along axis i of the grid; "xy" exchanges the first two. */
void fl_convert_meshgrid(fl_cv *c) {
  int n;
  fl_vid *xs = fl_cv_args(c, "tensors", &n);
  bool xy = !strcmp(fl_cv_string(c, "indexing", "ij"), "xy");
  fl_type out = fl_cv_out(c, 0);
  if (out.rank != n || n > FL_MAX_RANK) fl_cv_decline(c, "%d vectors for rank %d", n, out.rank);
  for (int i = 0; i < n && fl_cv_ok(c); i++) {
    int axis = xy && i < 2 && n > 1 ? 1 - i : i;
    int64_t dims[FL_MAX_RANK];
    for (int k = 0; k < n; k++) dims[k] = k == axis ? out.dims[k] : 1;
    fl_cv_result(c, i, fl_cv_expand(c, fl_cv_reshape(c, xs[i], n, dims), n, out.dims));
  }
}

void fl_convert_index(fl_cv *c) {
  fl_vid inputs[FL_MAX_RANK + 1] = {fl_cv_arg(c, "self")};
  int count, n = 0, axis = -1;
  fl_vid *indices = fl_cv_args(c, "indices", &count);
  for (int i = 0; i < count && fl_cv_ok(c); i++) {
    if (indices[i] == FL_NO_VALUE) continue;
    fl_dtype dtype = fl_cv_type(c, indices[i]).dtype;
    if (dtype == FL_BOOL || dtype == FL_U8)
      fl_cv_decline(c, "indexes by a mask, the result's size depends on values");
    else if (n == FL_MAX_RANK)
      fl_cv_decline(c, "more than %d indexes", FL_MAX_RANK);
    else if (axis >= 0 && i != axis + n)
      fl_cv_decline(c, "indexes of axes that are not adjacent");
    else {
      if (axis < 0) axis = i;
      inputs[++n] = indices[i];
    }
  }
  if (n == 0) fl_cv_decline(c, "no index");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_INDEX, inputs, n + 1, &attrs));
}

/* tril, and triu when param is 1 */
void fl_convert_tri(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "diagonal", 'i', fl_cv_int(c, "diagonal", 0));
  fl_attr_set_int(&attrs, "upper", 'b', c->param);
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_TRI, &x, 1, &attrs));
}

void fl_convert_cumsum(fl_cv *c) {
  fl_vid x = fl_cv_cast(c, fl_cv_arg(c, "self"), fl_cv_out(c, 0).dtype);
  int rank = fl_cv_type(c, x).rank;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', fl_cv_axis(c, "dim", 0, rank));
  fl_cv_result(c, 0, rank == 0 ? x : fl_cv_op(c, FL_OP_CUMSUM, &x, 1, &attrs));
}

/* Each element minus the one before it, n times; prepend and append lengthen the axis first. */
void fl_convert_diff(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), parts[3];
  int rank = fl_cv_type(c, x).rank, count = 0, axis = fl_cv_axis(c, "dim", -1, rank);
  int64_t n = fl_cv_int(c, "n", 1);
  fl_dtype dtype = fl_cv_type(c, x).dtype;
  if (dtype == FL_BOOL) fl_cv_decline(c, "differences of bool");
  if (rank == 0 || n < 1 || n > FL_MAX_RANK) fl_cv_decline(c, "%lld differences of rank %d", (long long)n, rank);
  if (!fl_cv_ok(c)) return;
  if (fl_cv_has(c, "prepend")) parts[count++] = fl_cv_cast(c, fl_cv_arg(c, "prepend"), dtype);
  parts[count++] = x;
  if (fl_cv_has(c, "append")) parts[count++] = fl_cv_cast(c, fl_cv_arg(c, "append"), dtype);
  if (count > 1) x = fl_cv_cat(c, parts, count, axis);
  for (; n > 0 && fl_cv_ok(c); n--) {
    int64_t size = fl_cv_type(c, x).dims[axis];
    if (size < 1) return fl_cv_decline(c, "an empty axis");
    fl_vid next = fl_cv_slice(c, x, axis, 1, size, 1);
    x = fl_cv_binary(c, FL_OP_SUB, next, fl_cv_slice(c, x, axis, 0, size - 1, 1));
  }
  fl_cv_result(c, 0, x);
}
