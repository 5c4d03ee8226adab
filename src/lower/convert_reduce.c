/* Reductions and softmax. */
#include <math.h>

#include "lower/convert.h"

/* The axes of argument `dim`; none means all. */
static int reduced_axes(fl_cv *c, int64_t *axes) { return fl_cv_ints(c, "dim", axes, FL_MAX_RANK); }

static fl_vid reduce_dim(fl_cv *c, fl_op op, fl_vid x, bool keepdim) {
  int64_t axes[FL_MAX_RANK];
  int n = reduced_axes(c, axes);
  return fl_cv_reduce(c, op, x, axes, n, keepdim);
}

static bool keepdim(fl_cv *c) { return fl_cv_bool(c, "keepdim", false); }

/* In the recorded dtype: integers add up in i64, a dtype argument is followed. */
void fl_convert_sum(fl_cv *c) {
  fl_dtype dtype = fl_cv_out(c, 0).dtype;
  if (c->param == FL_OP_PROD && c->cpu && (dtype == FL_F16 || dtype == FL_BF16))
    fl_cv_decline(c, "16-bit floats, rounded at each step");
  fl_vid x = fl_cv_cast(c, fl_cv_arg(c, "self"), dtype);
  fl_cv_result(c, 0, reduce_dim(c, (fl_op)c->param, x, keepdim(c)));
}

void fl_convert_reduce(fl_cv *c) {
  fl_cv_result(c, 0, reduce_dim(c, (fl_op)c->param, fl_cv_arg(c, "self"), keepdim(c)));
}

void fl_convert_reduce_bool(fl_cv *c) {
  fl_vid x = reduce_dim(c, (fl_op)c->param, fl_cv_cast(c, fl_cv_arg(c, "self"), FL_BOOL), keepdim(c));
  fl_cv_result(c, 0, fl_cv_cast(c, x, fl_cv_out(c, 0).dtype));
}

/* max.dim, min.dim: (values, indices), each made only when needed */
void fl_convert_max_dim(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  if (fl_cv_needed(c, 0)) fl_cv_result(c, 0, reduce_dim(c, (fl_op)c->param, x, keepdim(c)));
  fl_op arg = c->param == FL_OP_AMAX ? FL_OP_ARGMAX : FL_OP_ARGMIN;
  if (fl_cv_needed(c, 1)) fl_cv_result(c, 1, reduce_dim(c, arg, x, keepdim(c)));
}

/* (smallest, largest) */
void fl_convert_aminmax(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, reduce_dim(c, FL_OP_AMIN, x, keepdim(c)));
  fl_cv_result(c, 1, reduce_dim(c, FL_OP_AMAX, x, keepdim(c)));
}

void fl_convert_count_nonzero(fl_cv *c) {
  fl_vid x = fl_cv_cast(c, fl_cv_cast(c, fl_cv_arg(c, "self"), FL_BOOL), FL_I64);
  fl_cv_result(c, 0, reduce_dim(c, FL_OP_SUM, x, false));
}

/* Without an axis: of the flattened tensor. */
void fl_convert_argmax(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  if (fl_cv_has(c, "dim")) {
    fl_cv_result(c, 0, reduce_dim(c, (fl_op)c->param, x, keepdim(c)));
    return;
  }
  x = fl_cv_reshape(c, x, 1, (int64_t[]){fl_type_numel(&t)});
  fl_cv_result(c, 0, fl_cv_reshape(c, fl_cv_reduce(c, (fl_op)c->param, x, NULL, 0, false), out.rank, out.dims));
}

/* --- variance; the overloads with `unbiased` say correction 1 or 0 --- */

static fl_vid variance(fl_cv *c, fl_vid x) {
  int64_t axes[FL_MAX_RANK];
  int n = reduced_axes(c, axes);
  if (fl_cv_has(c, "unbiased") && !fl_cv_bool(c, "unbiased", true)) return fl_cv_variance(c, x, axes, n, keepdim(c), 0);
  return fl_cv_variance(c, x, axes, n, keepdim(c), fl_cv_float(c, "correction", 1));
}

void fl_convert_var(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), v = variance(c, c->param ? fl_cv_wide(c, x) : x);
  fl_cv_result(c, 0, c->param ? fl_cv_unary(c, FL_OP_SQRT, v) : v);
}

void fl_convert_var_mean(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_convert_var(c);
  if (fl_cv_needed(c, 1)) fl_cv_result(c, 1, reduce_dim(c, FL_OP_MEAN, x, keepdim(c)));
}

/* --- vector norms --- */

static fl_vid norm(fl_cv *c, fl_vid x, double p) {
  bool keep = keepdim(c);
  if (p == 2) {
    fl_vid squares = fl_cv_binary(c, FL_OP_MUL, x, x);
    return fl_cv_unary(c, FL_OP_SQRT, reduce_dim(c, FL_OP_SUM, squares, keep));
  }
  fl_vid size = fl_cv_unary(c, FL_OP_ABS, x);
  if (p == 1) return reduce_dim(c, FL_OP_SUM, size, keep);
  if (isinf(p)) return reduce_dim(c, p > 0 ? FL_OP_AMAX : FL_OP_AMIN, size, keep);
  if (p == 0) {
    fl_vid zero = fl_cv_scalar(c, fl_cv_type(c, x).dtype, 0);
    fl_vid there = fl_cv_cast(c, fl_cv_binary(c, FL_OP_NE, x, zero), fl_cv_type(c, x).dtype);
    return reduce_dim(c, FL_OP_SUM, there, keep);
  }
  fl_dtype dtype = fl_cv_type(c, x).dtype;
  fl_vid powers = fl_cv_binary(c, FL_OP_POW, size, fl_cv_scalar(c, dtype, p));
  return fl_cv_binary(c, FL_OP_POW, reduce_dim(c, FL_OP_SUM, powers, keep), fl_cv_scalar(c, dtype, 1 / p));
}

/* param: linalg_norm, where `ord` of two axes is a norm of matrices */
void fl_convert_norm(fl_cv *c) {
  int64_t axes[FL_MAX_RANK];
  int n = fl_cv_ints(c, "dim", axes, FL_MAX_RANK);
  if (c->param && fl_cv_has(c, "ord") && (n ? n : fl_cv_type(c, fl_cv_arg(c, "self")).rank) != 1)
    fl_cv_decline(c, "a norm of matrices");
  fl_vid x = fl_cv_wide(c, fl_cv_cast(c, fl_cv_arg(c, "self"), fl_cv_out(c, 0).dtype));
  fl_cv_result(c, 0, norm(c, x, fl_cv_float(c, fl_cv_has(c, "ord") ? "ord" : "p", 2)));
}

/* v * g / |v|, where the norm is over every axis but `dim`; g has the shape of that norm. */
void fl_convert_weight_norm(fl_cv *c) {
  fl_vid v = fl_cv_wide(c, fl_cv_arg(c, "v")), g = fl_cv_wide(c, fl_cv_arg(c, "g"));
  fl_type t = fl_cv_type(c, v);
  int kept = fl_cv_axis(c, "dim", 0, t.rank), n = 0;
  int64_t axes[FL_MAX_RANK];
  for (int i = 0; i < t.rank; i++)
    if (i != kept) axes[n++] = i;
  if (n == 0) fl_cv_decline(c, "weight of rank %d", t.rank);
  fl_vid size = fl_cv_reduce(c, FL_OP_SUM, fl_cv_binary(c, FL_OP_MUL, v, v), axes, n, true);
  fl_vid scale = fl_cv_binary(c, FL_OP_DIV, g, fl_cv_unary(c, FL_OP_SQRT, size));
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_MUL, v, scale));
}

/* m + log(sum(exp(x - m))), where an infinite m must not give inf - inf. */
void fl_convert_logsumexp(fl_cv *c) {
  fl_vid x = fl_cv_floating(c, fl_cv_arg(c, "self"));
  fl_dtype dtype = fl_cv_type(c, x).dtype;
  fl_vid max = reduce_dim(c, FL_OP_AMAX, x, true);
  fl_vid infinite = fl_cv_binary(c, FL_OP_EQ, fl_cv_unary(c, FL_OP_ABS, max), fl_cv_scalar(c, dtype, INFINITY));
  max = fl_cv_where(c, infinite, fl_cv_scalar(c, dtype, 0), max);
  fl_vid sum = reduce_dim(c, FL_OP_SUM, fl_cv_unary(c, FL_OP_EXP, fl_cv_binary(c, FL_OP_SUB, x, max)), keepdim(c));
  fl_type t = fl_cv_type(c, sum);
  max = fl_cv_reshape(c, max, t.rank, t.dims);
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_ADD, fl_cv_unary(c, FL_OP_LOG, sum), max));
}

/* --- softmax --- */

static fl_vid softmax(fl_cv *c, fl_op op, fl_vid x) {
  fl_type t = fl_cv_type(c, x);
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', fl_cv_axis(c, "dim", -1, t.rank));
  if (t.rank == 0) x = fl_cv_reshape(c, x, 1, (int64_t[]){1});
  return fl_cv_reshape(c, fl_cv_op(c, op, &x, 1, &attrs), t.rank, t.dims);
}

void fl_convert_softmax(fl_cv *c) {
  fl_vid x = fl_cv_cast(c, fl_cv_arg(c, "self"), fl_cv_out(c, 0).dtype);
  fl_cv_result(c, 0, softmax(c, (fl_op)c->param, x));
}

/* Rows that are -inf throughout give 0. */
void fl_convert_safe_softmax(fl_cv *c) {
  fl_vid x = fl_cv_cast(c, fl_cv_arg(c, "self"), fl_cv_out(c, 0).dtype);
  fl_dtype dtype = fl_cv_type(c, x).dtype;
  fl_vid masked = fl_cv_binary(c, FL_OP_EQ, x, fl_cv_scalar(c, dtype, -INFINITY));
  masked = reduce_dim(c, FL_OP_ALL, masked, true);
  fl_cv_result(c, 0, fl_cv_where(c, masked, fl_cv_scalar(c, dtype, 0), softmax(c, FL_OP_SOFTMAX, x)));
}
