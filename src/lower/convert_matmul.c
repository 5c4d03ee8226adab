/* Matrix products. */
#include <math.h>

#include "lower/convert.h"

void fl_convert_mm(fl_cv *c) {
  fl_vid a = fl_cv_arg(c, "self"), b = fl_cv_arg(c, "mat2");
  fl_cv_result(c, 0, fl_cv_matmul(c, a, b, false, FL_NO_VALUE, FL_NO_VALUE));
}

/* Multiplying by it rounds nothing. */
static bool is_exact(double v) {
  int exponent;
  return fabs(frexp(v, &exponent)) == 0.5 && exponent > -8 && exponent < 8;
}

/* beta * self + alpha * (a @ b); a row of self is a bias, a whole matrix a residual. */
static void add_product(fl_cv *c, const char *name_a, const char *name_b) {
  fl_vid self = fl_cv_arg(c, "self"), a = fl_cv_arg(c, name_a), b = fl_cv_arg(c, name_b);
  double beta = fl_cv_float(c, "beta", 1), alpha = fl_cv_float(c, "alpha", 1);
  fl_type t = fl_cv_type(c, self), out = fl_cv_out(c, 0);
  if (!fl_cv_ok(c)) return;
  bool half = out.dtype == FL_F16 || out.dtype == FL_BF16, exact = is_exact(alpha) && (beta == 0 || is_exact(beta));
  if (half && !exact && out.rank == 3 && (beta == 0 || beta == 1)) { /* scores: as the pass `attention` knows them */
    fl_vid v = fl_cv_mul_scalar(c, fl_cv_matmul(c, a, b, false, FL_NO_VALUE, FL_NO_VALUE), alpha);
    fl_cv_result(c, 0, beta == 0 ? v : fl_cv_binary(c, FL_OP_ADD, v, self));
    return;
  }
  if (half && !exact) {
    self = fl_cv_wide(c, self);
    a = fl_cv_wide(c, a);
    b = fl_cv_wide(c, b);
  }
  self = beta == 0 ? FL_NO_VALUE : fl_cv_mul_scalar(c, self, beta);
  a = fl_cv_mul_scalar(c, a, alpha);
  fl_vid bias = FL_NO_VALUE, residual = FL_NO_VALUE;
  int64_t columns = out.rank ? out.dims[out.rank - 1] : 0;
  if (self != FL_NO_VALUE && t.rank && t.dims[t.rank - 1] == columns && fl_type_numel(&t) == columns)
    bias = fl_cv_reshape(c, self, 1, &columns);
  else if (self != FL_NO_VALUE)
    residual = fl_cv_expand(c, self, out.rank, out.dims);
  fl_cv_result(c, 0, fl_cv_matmul(c, a, b, false, bias, residual));
}

void fl_convert_addmm(fl_cv *c) { add_product(c, "mat1", "mat2"); }
void fl_convert_baddbmm(fl_cv *c) { add_product(c, "batch1", "batch2"); }

void fl_convert_linear(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg(c, "weight"), bias = fl_cv_arg_opt(c, "bias");
  fl_type t = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  if (fl_cv_type(c, w).rank != 2) fl_cv_decline(c, "weight of rank %d", fl_cv_type(c, w).rank);
  if (t.rank == 0) fl_cv_decline(c, "input of rank 0");
  if (!fl_cv_ok(c)) return;
  if (t.rank == 1) x = fl_cv_unsqueeze(c, x, 0);
  x = fl_cv_matmul(c, x, w, true, bias, FL_NO_VALUE);
  fl_cv_result(c, 0, t.rank == 1 ? fl_cv_reshape(c, x, out.rank, out.dims) : x);
}

/* matmul of any ranks, mv, dot: vectors are a row on the left, a column on the right, and their axis goes again. */
void fl_convert_matmul(fl_cv *c) {
  const char *right = fl_cv_has(c, "other") ? "other" : fl_cv_has(c, "vec") ? "vec" : "tensor";
  fl_vid a = fl_cv_arg(c, "self"), b = fl_cv_arg(c, right);
  int rank_a = fl_cv_type(c, a).rank, rank_b = fl_cv_type(c, b).rank;
  if (rank_a == 0 || rank_b == 0) fl_cv_decline(c, "a factor of rank 0");
  if (!fl_cv_ok(c)) return;
  if (rank_a == 1) a = fl_cv_unsqueeze(c, a, 0);
  if (rank_b == 1) b = fl_cv_unsqueeze(c, b, 1);
  fl_vid v = fl_cv_matmul(c, a, b, false, FL_NO_VALUE, FL_NO_VALUE);
  fl_type out = fl_cv_out(c, 0);
  fl_cv_result(c, 0, rank_a == 1 || rank_b == 1 ? fl_cv_reshape(c, v, out.rank, out.dims) : v);
}
