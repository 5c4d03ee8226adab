/* Instructions of pointwise programs as CUDA C. Register n is the variable rn. */
#include <stdio.h>

#include "cuda/codegen.h"

/* Of f16 and bf16, computed in float and rounded when stored: shorter forms, exact enough for them (prelude.cu). */
static const char *unary_16(fl_op op) {
  switch (op) {
  case FL_OP_SIGMOID: return "sigmoid_16(A)";
  case FL_OP_SILU: return "silu_16(A)";
  case FL_OP_GELU: return "gelu_16(A)";
  case FL_OP_GELU_TANH: return "gelu_tanh_16(A)";
  default: return NULL;
  }
}

static const char *unary_float(fl_op op, bool dbl) {
  switch (op) {
  case FL_OP_NEG: return "-A";
  case FL_OP_ABS: return dbl ? "fabs(A)" : "fabsf(A)";
  case FL_OP_EXP: return dbl ? "exp(A)" : "expf(A)";
  case FL_OP_EXPM1: return dbl ? "expm1(A)" : "expm1f(A)";
  case FL_OP_LOG: return dbl ? "log(A)" : "logf(A)";
  case FL_OP_LOG1P: return dbl ? "log1p(A)" : "log1pf(A)";
  case FL_OP_SQRT: return dbl ? "sqrt(A)" : "sqrtf(A)";
  case FL_OP_RSQRT: return dbl ? "1 / sqrt(A)" : "rsqrtf(A)";
  case FL_OP_RECIPROCAL: return "1 / A";
  case FL_OP_SIN: return dbl ? "sin(A)" : "sinf(A)";
  case FL_OP_COS: return dbl ? "cos(A)" : "cosf(A)";
  case FL_OP_TANH: return dbl ? "tanh(A)" : "tanhf(A)";
  case FL_OP_SIGMOID: return dbl ? "1 / (1 + exp(-A))" : "1 / (1 + expf(-A))";
  case FL_OP_ERF: return dbl ? "erf(A)" : "erff(A)";
  case FL_OP_RELU: return "A < 0 ? 0 : A";
  case FL_OP_GELU:
    return dbl ? "0.5 * A * (1 + erf(A * 0.7071067811865476))" : "0.5f * A * (1 + erff(A * 0.70710678f))";
  case FL_OP_GELU_TANH:
    return dbl ? "0.5 * A * (1 + tanh(0.7978845608028654 * (A + 0.044715 * A * A * A)))"
               : "0.5f * A * (1 + tanhf(0.79788456f * (A + 0.044715f * A * A * A)))";
  case FL_OP_SILU: return dbl ? "A / (1 + exp(-A))" : "A / (1 + expf(-A))";
  case FL_OP_MISH: return dbl ? "A * tanh(log1p(exp(A)))" : "A * tanhf(log1pf(expf(A)))";
  case FL_OP_SOFTPLUS: return dbl ? "A * P > Q ? A : log1p(exp(A * P)) / P" : "A * P > Q ? A : log1pf(expf(A * P)) / P";
  case FL_OP_ELU: return dbl ? "A < 0 ? P * expm1(A) : A" : "A < 0 ? P * expm1f(A) : A";
  case FL_OP_LEAKY_RELU: return "A > 0 ? A : A * P";
  case FL_OP_HARDSWISH: return "A * clamp<F>(A + 3, 0, 6) / 6";
  case FL_OP_HARDSIGMOID: return "clamp<F>(A + 3, 0, 6) / 6";
  case FL_OP_CLAMP: return "clamp<F>(A, P, Q)";
  case FL_OP_FLOOR: return dbl ? "floor(A)" : "floorf(A)";
  case FL_OP_CEIL: return dbl ? "ceil(A)" : "ceilf(A)";
  case FL_OP_ROUND: return dbl ? "rint(A)" : "rintf(A)";
  case FL_OP_TRUNC: return dbl ? "trunc(A)" : "truncf(A)";
  case FL_OP_SIGN: return "(0 < A) - (A < 0)";
  default: return NULL;
  }
}

static const char *binary_float(fl_op op, bool dbl) {
  switch (op) {
  case FL_OP_ADD: return "A + B";
  case FL_OP_SUB: return "A - B";
  case FL_OP_MUL: return "A * B";
  case FL_OP_DIV: return "A / B";
  case FL_OP_FLOOR_DIV: return "div_floor_f<F>(A, B)";
  case FL_OP_TRUNC_DIV: return dbl ? "trunc(A / B)" : "truncf(A / B)";
  case FL_OP_REM: return "rem_floor_f<F>(A, B)";
  case FL_OP_POW: return dbl ? "pow(A, B)" : "powf(A, B)";
  case FL_OP_MAXIMUM: return "max_nan<F>(A, B)";
  case FL_OP_MINIMUM: return "min_nan<F>(A, B)";
  default: return NULL;
  }
}

static const char *integer(fl_op op, bool boolean) {
  switch (op) {
  case FL_OP_NEG: return "-A";
  case FL_OP_ABS: return "A < 0 ? -A : A";
  case FL_OP_RELU: return "A < 0 ? 0 : A";
  case FL_OP_CLAMP: return "(double)A < P ? (i64)P : (double)A > Q ? (i64)Q : A";
  case FL_OP_SIGN: return "(0 < A) - (A < 0)";
  case FL_OP_NOT: return boolean ? "!A" : "~A";
  case FL_OP_FLOOR:
  case FL_OP_CEIL:
  case FL_OP_ROUND:
  case FL_OP_TRUNC: return "A";
  case FL_OP_ADD: return "A + B";
  case FL_OP_SUB: return "A - B";
  case FL_OP_MUL: return "A * B";
  case FL_OP_FLOOR_DIV: return "div_floor(A, B, fault)";
  case FL_OP_TRUNC_DIV: return "div_trunc(A, B, fault)";
  case FL_OP_REM: return "rem_floor(A, B, fault)";
  case FL_OP_POW: return "pow_int(A, B)";
  case FL_OP_MAXIMUM: return "A > B ? A : B";
  case FL_OP_MINIMUM: return "A < B ? A : B";
  case FL_OP_AND: return "A & B";
  case FL_OP_OR: return "A | B";
  case FL_OP_XOR: return "A ^ B";
  default: return NULL;
  }
}

static const char *form_of(const fl_pw_instr *in, fl_dtype src) {
  switch (in->op) {
  case FL_OP_EQ: return "A == B";
  case FL_OP_NE: return "A != B";
  case FL_OP_LT: return "A < B";
  case FL_OP_LE: return "A <= B";
  case FL_OP_GT: return "A > B";
  case FL_OP_GE: return "A >= B";
  case FL_OP_ISNAN: return "A != A";
  case FL_OP_WHERE: return "A ? B : C";
  case FL_OP_CAST: return "A";
  default: break;
  }
  if (!fl_dtype_is_float(src)) return integer(in->op, in->dtype == FL_BOOL);
  const char *form = in->dtype == FL_F16 || in->dtype == FL_BF16 ? unary_16(in->op) : NULL;
  if (!form) form = unary_float(in->op, in->dtype == FL_F64);
  return form ? form : binary_float(in->op, in->dtype == FL_F64);
}

/* What brings a value into the range and precision of its type; arithmetic of 16-bit floats stays in float. */
static const char *narrowing(const fl_pw_instr *in) {
  switch (in->dtype) {
  case FL_BOOL: return "(%s) != 0";
  case FL_I32: return "(int)(i64)(%s)";
  case FL_I16: return "(short)(i64)(%s)";
  case FL_I8: return "(signed char)(i64)(%s)";
  case FL_U8: return "(unsigned char)(i64)(%s)";
  case FL_F16: return in->op == FL_OP_CAST ? "ld(to_f16((float)(%s)))" : "%s";
  case FL_BF16: return in->op == FL_OP_CAST ? "ld(to_bf16((float)(%s)))" : "%s";
  default: return "%s";
  }
}

/* Writes the form with its letters replaced. Names of functions are in small letters, so that letters stand alone. */
static void expand(fl_text *t, const char *form, const fl_pw_instr *in, fl_dtype src) {
  for (const char *c = form; *c; c++) {
    if (*c >= 'A' && *c <= 'C')
      fl_text_add(t, "r%d", in->src[*c - 'A']);
    else if (*c == 'F')
      fl_text_add(t, "%s", fl_cg_register(in->dtype));
    else if (*c == 'P' || *c == 'Q')
      fl_cg_number(t, fl_dtype_is_float(src) ? in->dtype : FL_F64, *c == 'P' ? in->a : in->b);
    else
      fl_text_add(t, "%c", *c);
  }
}

void fl_cg_program(fl_text *t, const fl_pw_program *pr, const char *const *inputs) {
  for (int i = 0; i < pr->n_inputs; i++)
    fl_text_add(t, "  const %s r%d = %s;\n", fl_cg_register(pr->in_dtype[i]), i, inputs[i]);
  for (int q = 0; q < pr->n_instrs; q++) {
    const fl_pw_instr *in = &pr->instrs[q];
    fl_dtype src = in->op == FL_OP_WHERE ? in->dtype : fl_pw_register_dtype(pr, in->src[0]);
    const char *form = form_of(in, src), *wrap = narrowing(in), *hole = wrap;
    if (!form) {
      t->failed = true;
      return;
    }
    fl_text_add(t, "  const %s r%d = ", fl_cg_register(in->dtype), pr->n_inputs + q);
    while (*hole != '%') fl_text_add(t, "%c", *hole++);
    expand(t, form, in, src);
    fl_text_add(t, "%s;\n", hole + 2);
  }
}
