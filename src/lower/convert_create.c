/* Tensors made from nothing. Where they lie (device) was decided in recording; here only values count. */
#include "lower/convert.h"

static void filled(fl_cv *c, double v) {
  fl_type t = fl_cv_out(c, 0);
  fl_cv_result(c, 0, fl_cv_full(c, t.dtype, t.rank, t.dims, v));
}

/* zeros, ones and all their forms. `empty` may hold anything: zeros. */
void fl_convert_constant(fl_cv *c) { filled(c, c->param); }

void fl_convert_full(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  const char *name = fl_cv_has(c, "fill_value") ? "fill_value" : fl_cv_has(c, "s") ? "s" : "value";
  fl_cv_result(c, 0, fl_cv_expand(c, fl_cv_operand(c, name, t.dtype), t.rank, t.dims));
}

static fl_vid iota(fl_cv *c, fl_dtype dtype, int rank, const int64_t *dims, int axis, double start, double step) {
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "dims", dims, rank);
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_float(&attrs, "start", start);
  fl_attr_set_float(&attrs, "step", step);
  fl_attr_set_int(&attrs, "dtype", 'd', dtype);
  return fl_cv_op(c, FL_OP_IOTA, NULL, 0, &attrs);
}

void fl_convert_arange(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  fl_cv_result(c, 0, iota(c, t.dtype, t.rank, t.dims, 0, fl_cv_float(c, "start", 0), fl_cv_float(c, "step", 1)));
}

void fl_convert_linspace(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  double start = fl_cv_float(c, "start", 0), end = fl_cv_float(c, "end", 0);
  if (t.rank != 1 || !fl_dtype_is_float(t.dtype)) fl_cv_decline(c, "linspace of %s", fl_dtype_name(t.dtype));
  if (!fl_cv_ok(c)) return;
  double step = t.dims[0] > 1 ? (end - start) / (double)(t.dims[0] - 1) : 0;
  fl_cv_result(c, 0, iota(c, t.dtype, 1, t.dims, 0, start, step));
}

void fl_convert_eye(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  if (t.rank != 2) fl_cv_decline(c, "rank %d", t.rank);
  fl_vid row = iota(c, FL_I64, t.rank, t.dims, 0, 0, 1), column = iota(c, FL_I64, t.rank, t.dims, 1, 0, 1);
  fl_cv_result(c, 0, fl_cv_cast(c, fl_cv_binary(c, FL_OP_EQ, row, column), t.dtype));
}
