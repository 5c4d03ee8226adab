/* Unary, binary, comparison and logical operators. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "lower/convert.h"

static fl_vid with_floats(fl_cv *c, fl_op op, fl_vid x, const char *key_a, double a, const char *key_b, double b) {
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, key_a, a);
  if (key_b) fl_attr_set_float(&attrs, key_b, b);
  return fl_cv_op(c, op, &x, 1, &attrs);
}

static fl_vid scalar_like(fl_cv *c, fl_vid x, double v) { return fl_cv_scalar(c, fl_cv_type(c, x).dtype, v); }

static fl_vid compare(fl_cv *c, fl_op op, fl_vid x, double v) { return fl_cv_binary(c, op, x, scalar_like(c, x, v)); }

static fl_vid clamp(fl_cv *c, fl_vid x, double lo, double hi) {
  if (isnan(lo) || isnan(hi)) fl_cv_decline(c, "a bound is NaN");
  if (fl_dtype_is_float(fl_cv_type(c, x).dtype)) return with_floats(c, FL_OP_CLAMP, x, "lo", lo, "hi", hi);
  if (lo > -INFINITY) x = fl_cv_binary(c, FL_OP_MAXIMUM, x, scalar_like(c, x, lo));
  if (hi < INFINITY) x = fl_cv_binary(c, FL_OP_MINIMUM, x, scalar_like(c, x, hi));
  return x;
}

/* --- one input --- */

/* Keeps the type of integers. */
void fl_convert_unary(fl_cv *c) { fl_cv_result(c, 0, fl_cv_unary(c, (fl_op)c->param, fl_cv_arg(c, "self"))); }

/* Integers become floats. */
void fl_convert_unary_float(fl_cv *c) {
  fl_cv_result(c, 0, fl_cv_unary(c, (fl_op)c->param, fl_cv_floating(c, fl_cv_arg(c, "self"))));
}

/* Rounding integers changes nothing. */
void fl_convert_round(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  if (fl_cv_int(c, "decimals", 0)) fl_cv_decline(c, "decimals is not 0");
  fl_cv_result(c, 0, fl_dtype_is_float(fl_cv_type(c, x).dtype) ? fl_cv_unary(c, (fl_op)c->param, x) : x);
}

void fl_convert_square(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_MUL, x, x));
}

void fl_convert_exp2(fl_cv *c) {
  fl_vid x = fl_cv_floating(c, fl_cv_arg(c, "self"));
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_POW, scalar_like(c, x, 2), x));
}

/* Logarithm to the base `param`. */
void fl_convert_log_base(fl_cv *c) {
  fl_vid x = fl_cv_wide(c, fl_cv_floating(c, fl_cv_arg(c, "self")));
  fl_cv_result(c, 0, fl_cv_mul_scalar(c, fl_cv_unary(c, FL_OP_LOG, x), 1 / log(c->param)));
}

void fl_convert_tan(fl_cv *c) {
  fl_vid x = fl_cv_wide(c, fl_cv_floating(c, fl_cv_arg(c, "self")));
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_DIV, fl_cv_unary(c, FL_OP_SIN, x), fl_cv_unary(c, FL_OP_COS, x)));
}

void fl_convert_frac(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_SUB, x, fl_cv_unary(c, FL_OP_TRUNC, x)));
}

void fl_convert_isinf(fl_cv *c) {
  fl_vid x = fl_cv_floating(c, fl_cv_arg(c, "self"));
  fl_cv_result(c, 0, compare(c, (fl_op)c->param, fl_cv_unary(c, FL_OP_ABS, x), INFINITY));
}

void fl_convert_isnan(fl_cv *c) {
  fl_cv_result(c, 0, fl_cv_unary(c, FL_OP_ISNAN, fl_cv_floating(c, fl_cv_arg(c, "self"))));
}

void fl_convert_nan_to_num(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_dtype dtype = fl_cv_type(c, x).dtype;
  double max = dtype == FL_F64 ? DBL_MAX : dtype == FL_F16 ? 65504 : dtype == FL_BF16 ? 0x1.FEp127 : FLT_MAX;
  fl_vid out = fl_cv_where(c, fl_cv_unary(c, FL_OP_ISNAN, x), scalar_like(c, x, fl_cv_float(c, "nan", 0)), x);
  out = fl_cv_where(c, compare(c, FL_OP_EQ, x, INFINITY), scalar_like(c, x, fl_cv_float(c, "posinf", max)), out);
  out = fl_cv_where(c, compare(c, FL_OP_EQ, x, -INFINITY), scalar_like(c, x, fl_cv_float(c, "neginf", -max)), out);
  fl_cv_result(c, 0, out);
}

void fl_convert_logical_not(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, fl_cv_type(c, x).dtype == FL_BOOL ? fl_cv_unary(c, FL_OP_NOT, x) : compare(c, FL_OP_EQ, x, 0));
}

/* --- activations --- */

void fl_convert_gelu(fl_cv *c) {
  const char *approximate = fl_cv_string(c, "approximate", "none");
  fl_op op = !strcmp(approximate, "tanh") ? FL_OP_GELU_TANH : FL_OP_GELU;
  fl_cv_result(c, 0, fl_cv_unary(c, op, fl_cv_arg(c, "self")));
}

void fl_convert_hardtanh(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, clamp(c, x, fl_cv_float(c, "min_val", -1), fl_cv_float(c, "max_val", 1)));
}

void fl_convert_relu6(fl_cv *c) { fl_cv_result(c, 0, clamp(c, fl_cv_arg(c, "self"), 0, 6)); }

void fl_convert_leaky_relu(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_cv_result(c, 0, with_floats(c, FL_OP_LEAKY_RELU, x, "slope", fl_cv_float(c, "negative_slope", 0.01), NULL, 0));
}

void fl_convert_elu(fl_cv *c) {
  fl_vid x = fl_cv_wide(c, fl_cv_arg(c, "self"));
  if (fl_cv_float(c, "input_scale", 1) != 1) fl_cv_decline(c, "input_scale is not 1");
  x = with_floats(c, FL_OP_ELU, x, "alpha", fl_cv_float(c, "alpha", 1), NULL, 0);
  fl_cv_result(c, 0, fl_cv_mul_scalar(c, x, fl_cv_float(c, "scale", 1)));
}

void fl_convert_selu(fl_cv *c) {
  fl_vid x = with_floats(c, FL_OP_ELU, fl_cv_wide(c, fl_cv_arg(c, "self")), "alpha", 1.6732632423543772848170429916717,
                         NULL, 0);
  fl_cv_result(c, 0, fl_cv_mul_scalar(c, x, 1.0507009873554804934193349852946));
}

void fl_convert_celu(fl_cv *c) {
  double alpha = fl_cv_float(c, "alpha", 1);
  if (alpha == 0) fl_cv_decline(c, "alpha is 0");
  fl_vid x = fl_cv_mul_scalar(c, fl_cv_wide(c, fl_cv_arg(c, "self")), 1 / alpha);
  fl_cv_result(c, 0, fl_cv_mul_scalar(c, with_floats(c, FL_OP_ELU, x, "alpha", 1, NULL, 0), alpha));
}

void fl_convert_softplus(fl_cv *c) {
  double beta = fl_cv_float(c, "beta", 1), threshold = fl_cv_float(c, "threshold", 20);
  fl_cv_result(c, 0, with_floats(c, FL_OP_SOFTPLUS, fl_cv_arg(c, "self"), "beta", beta, "threshold", threshold));
}

/* log(sigmoid(x)) = -softplus(-x) */
void fl_convert_log_sigmoid(fl_cv *c) {
  fl_vid x = fl_cv_unary(c, FL_OP_NEG, fl_cv_arg(c, "self"));
  /* Where exp(-x) is nothing beside x. */
  x = with_floats(c, FL_OP_SOFTPLUS, x, "beta", 1, "threshold", fl_cv_type(c, x).dtype == FL_F64 ? 40 : 20);
  fl_cv_result(c, 0, fl_cv_unary(c, FL_OP_NEG, x));
}

void fl_convert_threshold(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_vid below = compare(c, FL_OP_LE, x, fl_cv_float(c, "threshold", 0));
  fl_cv_result(c, 0, fl_cv_where(c, below, scalar_like(c, x, fl_cv_float(c, "value", 0)), x));
}

/* hardshrink keeps what is outside [-lambd, lambd]; softshrink (param 1) moves it by lambd. NaN stays. */
void fl_convert_shrink(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  double lambd = fl_cv_float(c, "lambd", 0.5);
  if (c->param) x = fl_cv_wide(c, x);
  fl_vid inside = compare(c, FL_OP_LE, fl_cv_unary(c, FL_OP_ABS, x), lambd), outside = x;
  if (c->param) outside = fl_cv_binary(c, FL_OP_SUB, x, fl_cv_mul_scalar(c, fl_cv_unary(c, FL_OP_SIGN, x), lambd));
  fl_cv_result(c, 0, fl_cv_where(c, inside, scalar_like(c, x, 0), outside));
}

/* log(x / (1 - x)), with x kept within [eps, 1 - eps] */
void fl_convert_logit(fl_cv *c) {
  fl_vid x = fl_cv_floating(c, fl_cv_arg(c, "self"));
  double eps = fl_cv_float(c, "eps", -1);
  if (eps >= 0) x = clamp(c, x, eps, 1 - eps);
  fl_vid rest = fl_cv_binary(c, FL_OP_SUB, scalar_like(c, x, 1), x);
  fl_cv_result(c, 0, fl_cv_unary(c, FL_OP_LOG, fl_cv_binary(c, FL_OP_DIV, x, rest)));
}

void fl_convert_glu(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", -1, t.rank);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  int64_t n = t.dims[axis];
  x = fl_cv_wide(c, x);
  fl_vid gate = fl_cv_unary(c, FL_OP_SIGMOID, fl_cv_slice(c, x, axis, n / 2, n, 1));
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_MUL, fl_cv_slice(c, x, axis, 0, n / 2, 1), gate));
}

/* One slope, or one for each channel (axis 1). */
void fl_convert_prelu(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), w = fl_cv_arg(c, "weight");
  fl_type t = fl_cv_type(c, x), wt = fl_cv_type(c, w);
  if (!fl_cv_ok(c)) return;
  if (wt.rank == 1 && t.rank > 1) {
    int64_t dims[FL_MAX_RANK];
    for (int i = 0; i < t.rank; i++) dims[i] = i == 1 ? wt.dims[0] : 1;
    w = fl_cv_reshape(c, w, t.rank, dims);
  }
  fl_vid scaled = fl_cv_binary(c, FL_OP_MUL, x, w);
  fl_cv_result(c, 0, fl_cv_where(c, compare(c, FL_OP_GT, x, 0), x, scaled));
}

/* --- two inputs --- */

/* On the CPU PyTorch rounds it to the element type, elsewhere to f32. */
static double alpha_of(fl_cv *c, fl_dtype dtype) {
  double alpha = fl_cv_float(c, "alpha", 1);
  unsigned char rounded[8];
  if (!c->cpu || !fl_dtype_is_float(dtype)) return alpha;
  fl_element_set(dtype, rounded, 0, alpha);
  return fl_element_get(dtype, rounded, 0);
}

/* `self op alpha * other`; on bool, add is or. */
static void additive(fl_cv *c, fl_op op) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "other", &a, &b);
  double alpha = alpha_of(c, fl_cv_type(c, a).dtype);
  if (fl_cv_type(c, a).dtype == FL_BOOL && fl_cv_ok(c)) {
    if (op != FL_OP_ADD || alpha != 1) fl_cv_decline(c, "arithmetic on bool");
    op = FL_OP_OR;
  }
  if (alpha != 1) a = fl_cv_wide(c, a), b = fl_cv_mul_scalar(c, fl_cv_wide(c, b), alpha);
  fl_cv_result(c, 0, fl_cv_binary(c, op, a, b));
}

void fl_convert_add(fl_cv *c) { additive(c, FL_OP_ADD); }
void fl_convert_sub(fl_cv *c) { additive(c, FL_OP_SUB); }

void fl_convert_rsub(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "other", &a, &b);
  double alpha = alpha_of(c, fl_cv_type(c, a).dtype);
  if (alpha != 1) a = fl_cv_mul_scalar(c, fl_cv_wide(c, a), alpha), b = fl_cv_wide(c, b);
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_SUB, b, a));
}

/* `other` is a number, or on the CPU a tensor of one element: PyTorch takes it as it was, whatever its type, and rounds
 * 16-bit floats only after the operation. */
static bool by_one(fl_cv *c) {
  if (!fl_cv_is_tensor(c, "other")) return true;
  fl_type t = fl_cv_type(c, fl_cv_arg(c, "other"));
  return c->cpu && fl_type_numel(&t) == 1;
}

static void factors(fl_cv *c, fl_vid *a, fl_vid *b) {
  fl_cv_operands(c, "self", "other", a, b);
  fl_dtype dtype = fl_cv_type(c, *a).dtype;
  if ((dtype != FL_F16 && dtype != FL_BF16) || !fl_cv_is_tensor(c, "other") || !by_one(c)) return;
  fl_vid other = fl_cv_arg(c, "other");
  if (fl_cv_type(c, other).dtype == dtype) return;
  *a = fl_cv_wide(c, *a);
  *b = fl_cv_cast(c, other, FL_F32);
}

void fl_convert_mul(fl_cv *c) {
  fl_vid a, b;
  factors(c, &a, &b);
  fl_cv_result(c, 0, fl_cv_binary(c, fl_cv_type(c, a).dtype == FL_BOOL ? FL_OP_AND : FL_OP_MUL, a, b));
}

static fl_vid true_div(fl_cv *c, fl_vid a, fl_vid b) {
  return fl_cv_binary(c, FL_OP_DIV, fl_cv_floating(c, a), fl_cv_floating(c, b));
}

static bool rounds_at_each_step(fl_cv *c, fl_vid a) {
  fl_dtype dtype = fl_cv_type(c, a).dtype;
  return (dtype == FL_F16 || dtype == FL_BF16) && !by_one(c);
}

static fl_vid floor_div(fl_cv *c, fl_vid a, fl_vid b) {
  if (rounds_at_each_step(c, a)) fl_cv_decline(c, "16-bit floats, rounded at each step");
  return fl_cv_binary(c, FL_OP_FLOOR_DIV, a, b);
}

static fl_vid trunc_div(fl_cv *c, fl_vid a, fl_vid b) {
  if (rounds_at_each_step(c, a)) return fl_cv_unary(c, FL_OP_TRUNC, fl_cv_binary(c, FL_OP_DIV, a, b));
  return fl_cv_binary(c, FL_OP_TRUNC_DIV, a, b);
}

void fl_convert_floor_divide(fl_cv *c) {
  fl_vid a, b;
  factors(c, &a, &b);
  fl_cv_result(c, 0, floor_div(c, a, b));
}

void fl_convert_div(fl_cv *c) {
  fl_vid a, b;
  factors(c, &a, &b);
  const char *mode = fl_cv_string(c, "rounding_mode", "");
  if (!strcmp(mode, "floor"))
    a = floor_div(c, a, b);
  else if (!strcmp(mode, "trunc"))
    a = trunc_div(c, a, b);
  else
    a = true_div(c, a, b);
  fl_cv_result(c, 0, a);
}

/* Promotes, then applies `param`. */
void fl_convert_binary(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "other", &a, &b);
  fl_cv_result(c, 0, fl_cv_binary(c, (fl_op)c->param, a, b));
}

/* fmax, fmin: a number wins over NaN. */
void fl_convert_fmax(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "other", &a, &b);
  fl_vid r = fl_cv_binary(c, (fl_op)c->param, a, b);
  if (fl_dtype_is_float(fl_cv_type(c, a).dtype)) {
    r = fl_cv_where(c, fl_cv_unary(c, FL_OP_ISNAN, b), a, r);
    r = fl_cv_where(c, fl_cv_unary(c, FL_OP_ISNAN, a), b, r);
  }
  fl_cv_result(c, 0, r);
}

/* The outer product of two vectors. */
void fl_convert_outer(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "vec2", &a, &b);
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_MUL, fl_cv_unsqueeze(c, a, fl_cv_type(c, a).rank), b));
}

void fl_convert_fmod(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "other", &a, &b);
  if (fl_dtype_is_float(fl_cv_type(c, a).dtype)) fl_cv_decline(c, "floating point fmod");
  fl_vid whole = fl_cv_binary(c, FL_OP_MUL, fl_cv_binary(c, FL_OP_TRUNC_DIV, a, b), b);
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_SUB, a, whole));
}

static fl_vid power(fl_cv *c, fl_vid x, double exponent) {
  bool is_float = fl_dtype_is_float(fl_cv_type(c, x).dtype);
  if (exponent == 1) return x;
  if (exponent == 2) return fl_cv_binary(c, FL_OP_MUL, x, x);
  if (exponent == 3) return fl_cv_binary(c, FL_OP_MUL, fl_cv_binary(c, FL_OP_MUL, x, x), x);
  if (is_float && exponent == 0.5) return fl_cv_unary(c, FL_OP_SQRT, x);
  if (is_float && exponent == -0.5) return fl_cv_unary(c, FL_OP_RSQRT, x);
  if (is_float && exponent == -1) return fl_cv_unary(c, FL_OP_RECIPROCAL, x);
  return fl_cv_binary(c, FL_OP_POW, x, scalar_like(c, x, exponent));
}

/* A power, not a root: of -inf and -0 it is positive. */
static fl_vid half_root(fl_cv *c, fl_vid x, double exponent) {
  fl_vid below = compare(c, FL_OP_EQ, x, -INFINITY);
  x = fl_cv_binary(c, FL_OP_ADD, x, scalar_like(c, x, 0));
  return fl_cv_where(c, below, scalar_like(c, x, exponent > 0 ? INFINITY : 0), power(c, x, exponent));
}

void fl_convert_pow(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "exponent", &a, &b);
  if (fl_cv_type(c, a).dtype == FL_BOOL && fl_cv_ok(c)) fl_cv_decline(c, "arithmetic on bool");
  if (fl_cv_is_tensor(c, "exponent"))
    fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_POW, a, b));
  else {
    double exponent = fl_cv_float(c, "exponent", 1);
    bool half = c->cpu && fl_cv_type(c, a).dtype == FL_F16;
    if (half && exponent == 3) a = fl_cv_wide(c, a);
    if (half && (exponent == 0.5 || exponent == -0.5)) {
      fl_cv_result(c, 0, half_root(c, a, exponent));
      return;
    }
    fl_cv_result(c, 0, power(c, a, exponent));
  }
}

/* and, or, xor of truth values */
void fl_convert_logical(fl_cv *c) {
  fl_vid a = fl_cv_cast(c, fl_cv_arg(c, "self"), FL_BOOL), b = fl_cv_cast(c, fl_cv_arg(c, "other"), FL_BOOL);
  fl_cv_result(c, 0, fl_cv_binary(c, (fl_op)c->param, a, b));
}

/* --- three inputs --- */

void fl_convert_where(fl_cv *c) {
  fl_vid a, b, cond = fl_cv_cast(c, fl_cv_arg(c, "condition"), FL_BOOL);
  fl_cv_operands(c, "self", "other", &a, &b);
  fl_cv_result(c, 0, fl_cv_where(c, cond, a, b));
}

void fl_convert_masked_fill(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), mask = fl_cv_cast(c, fl_cv_arg(c, "mask"), FL_BOOL);
  fl_cv_result(c, 0, fl_cv_where(c, mask, fl_cv_operand(c, "value", fl_cv_type(c, x).dtype), x));
}

void fl_convert_clamp(fl_cv *c) {
  const char *lo = fl_cv_has(c, "min") ? "min" : NULL, *hi = fl_cv_has(c, "max") ? "max" : NULL;
  fl_promotion p = {0};
  fl_promote_arg(c, &p, "self");
  if (lo) fl_promote_arg(c, &p, lo);
  if (hi) fl_promote_arg(c, &p, hi);
  fl_dtype dtype = fl_promotion_dtype(&p);
  fl_vid x = fl_cv_operand(c, "self", dtype);
  if ((lo && fl_cv_is_tensor(c, lo)) || (hi && fl_cv_is_tensor(c, hi))) {
    if (lo) x = fl_cv_binary(c, FL_OP_MAXIMUM, x, fl_cv_operand(c, lo, dtype));
    if (hi) x = fl_cv_binary(c, FL_OP_MINIMUM, x, fl_cv_operand(c, hi, dtype));
  } else {
    x = clamp(c, x, lo ? fl_cv_float(c, lo, 0) : -INFINITY, hi ? fl_cv_float(c, hi, 0) : INFINITY);
  }
  fl_cv_result(c, 0, x);
}

/* self + value * tensor1 {*,/} tensor2 */
void fl_convert_addc(fl_cv *c) {
  fl_promotion p = {0};
  fl_promote_arg(c, &p, "self");
  fl_promote_arg(c, &p, "tensor1");
  fl_promote_arg(c, &p, "tensor2");
  fl_dtype dtype = fl_promotion_dtype(&p);
  fl_vid a = fl_cv_wide(c, fl_cv_operand(c, "tensor1", dtype)), b = fl_cv_wide(c, fl_cv_operand(c, "tensor2", dtype));
  fl_vid product = fl_cv_mul_scalar(c, fl_cv_binary(c, (fl_op)c->param, a, b), fl_cv_float(c, "value", 1));
  fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_ADD, fl_cv_wide(c, fl_cv_operand(c, "self", dtype)), product));
}

/* Like PyTorch from the nearer end, so that weight 1 gives `end` exactly. */
void fl_convert_lerp(fl_cv *c) {
  fl_vid a = fl_cv_wide(c, fl_cv_arg(c, "self")), b = fl_cv_wide(c, fl_cv_arg(c, "end"));
  fl_vid span = fl_cv_binary(c, FL_OP_SUB, b, a);
  if (fl_cv_is_tensor(c, "weight")) {
    fl_vid w = fl_cv_wide(c, fl_cv_arg(c, "weight")), one = scalar_like(c, w, 1);
    fl_vid rest = fl_cv_binary(c, FL_OP_MUL, span, fl_cv_binary(c, FL_OP_SUB, one, w));
    fl_vid from_a = fl_cv_binary(c, FL_OP_ADD, a, fl_cv_binary(c, FL_OP_MUL, w, span));
    fl_vid near_a = fl_cv_binary(c, FL_OP_LT, fl_cv_unary(c, FL_OP_ABS, w), scalar_like(c, w, 0.5));
    fl_cv_result(c, 0, fl_cv_where(c, near_a, from_a, fl_cv_binary(c, FL_OP_SUB, b, rest)));
    return;
  }
  double w = fl_cv_float(c, "weight", 0);
  if (fabs(w) < 0.5)
    fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_ADD, a, fl_cv_mul_scalar(c, span, w)));
  else
    fl_cv_result(c, 0, fl_cv_binary(c, FL_OP_SUB, b, fl_cv_mul_scalar(c, span, 1 - w)));
}
