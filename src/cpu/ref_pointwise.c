/* Pointwise groups, any dtype and strides: the program is interpreted for a block of elements at a time. Every register
 * of a float type holds doubles and is rounded to its type after each instruction, all others hold int64_t. */
#include <limits.h>

#include "cpu/ref.h"

enum { BLOCK = 64 };

typedef union cell {
  double f[BLOCK];
  int64_t i[BLOCK];
} cell;

typedef struct params {
  fl_pw_program program;
} params;

typedef struct job {
  const fl_run_args *args;
  const fl_pw_program *pr;
} job;

static double round_to(fl_dtype t, double v) {
  switch (t) {
  case FL_F32: return (float)v;
  case FL_F16: return fl_f16_to_f32(fl_f32_to_f16((float)v));
  case FL_BF16: return fl_bf16_to_f32(fl_f32_to_bf16((float)v));
  default: return v;
  }
}

/* Steps at which a rounding decides the result are rounded as PyTorch's own type rounds. */
static double in_type(fl_dtype t, double v) { return t == FL_F64 ? v : (double)(float)v; }

static double floor_div_f(fl_dtype t, double a, double b) {
  if (b == 0) return a / b;
  double mod = fmod(a, b), div = in_type(t, in_type(t, a - mod) / b);
  if (mod != 0 && (b < 0) != (mod < 0)) div -= 1;
  if (div == 0) return copysign(0.0, a / b);
  double r = floor(div);
  return div - r > 0.5 ? r + 1 : r;
}

static double rem_f(double a, double b) {
  double mod = fmod(a, b);
  return mod != 0 && (b < 0) != (mod < 0) ? mod + b : mod;
}

static double softplus(double x, double beta, double threshold) {
  return x * beta > threshold ? x : log1p(exp(x * beta)) / beta;
}

static double gelu_tanh(double x) {
  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

/* hi wins where lo > hi; NaN stays. */
static double clamp_f(double x, double lo, double hi) {
  if (x < lo) x = lo;
  return x > hi ? hi : x;
}
static double max_f(double a, double b) { return a != a || a > b ? a : b; }
static double min_f(double a, double b) { return a != a || a < b ? a : b; }
static double hardsigmoid(double x) { return clamp_f(x + 3, 0, 6) / 6; }

static double unary_f(const fl_pw_instr *in, double x) {
  switch (in->op) {
  case FL_OP_NEG: return -x;
  case FL_OP_ABS: return fabs(x);
  case FL_OP_EXP: return exp(x);
  case FL_OP_EXPM1: return expm1(x);
  case FL_OP_LOG: return log(x);
  case FL_OP_LOG1P: return log1p(x);
  case FL_OP_SQRT: return sqrt(x);
  case FL_OP_RSQRT: return 1 / sqrt(x);
  case FL_OP_RECIPROCAL: return 1 / x;
  case FL_OP_SIN: return sin(x);
  case FL_OP_COS: return cos(x);
  case FL_OP_TANH: return tanh(x);
  case FL_OP_SIGMOID: return 1 / (1 + exp(-x));
  case FL_OP_ERF: return erf(x);
  case FL_OP_RELU: return x < 0 ? 0 : x;
  case FL_OP_GELU: return 0.5 * x * (1 + erf(x * 0.7071067811865476));
  case FL_OP_GELU_TANH: return gelu_tanh(x);
  case FL_OP_SILU: return x / (1 + exp(-x));
  case FL_OP_MISH: return x * tanh(log1p(exp(x)));
  case FL_OP_SOFTPLUS: return softplus(x, in->a, in->b);
  case FL_OP_ELU: return x < 0 ? in->a * expm1(x) : x;
  case FL_OP_LEAKY_RELU: return x > 0 ? x : x * in->a;
  case FL_OP_HARDSWISH: return x * hardsigmoid(x);
  case FL_OP_HARDSIGMOID: return hardsigmoid(x);
  case FL_OP_CLAMP: return clamp_f(x, in->a, in->b);
  case FL_OP_FLOOR: return floor(x);
  case FL_OP_CEIL: return ceil(x);
  case FL_OP_ROUND: return rint(x);
  case FL_OP_TRUNC: return trunc(x);
  default: return (0 < x) - (x < 0); /* SIGN */
  }
}

static double binary_f(fl_op op, fl_dtype t, double a, double b) {
  switch (op) {
  case FL_OP_ADD: return a + b;
  case FL_OP_SUB: return a - b;
  case FL_OP_MUL: return a * b;
  case FL_OP_DIV: return a / b;
  case FL_OP_FLOOR_DIV: return floor_div_f(t, a, b);
  case FL_OP_TRUNC_DIV: return trunc(in_type(t, a / b));
  case FL_OP_REM: return rem_f(a, b);
  case FL_OP_POW: return pow(a, b);
  case FL_OP_MAXIMUM: return max_f(a, b);
  default: return min_f(a, b); /* MINIMUM */
  }
}

/* Integer arithmetic wraps, as PyTorch's does in practice; unsigned avoids the undefined overflow. */
static int64_t wrap_add(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }
static int64_t wrap_sub(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); }
static int64_t wrap_mul(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }

static int64_t pow_i(int64_t a, int64_t b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
  int64_t r = 1;
  for (; b; b >>= 1, a = wrap_mul(a, a))
    if (b & 1) r = wrap_mul(r, a);
  return r;
}

static int64_t div_i(fl_op op, int64_t a, int64_t b, int *fault) {
  if (b == 0) {
    if (fault) __atomic_store_n(fault, 1, __ATOMIC_RELAXED);
    return 0;
  }
  if (b == -1) return op == FL_OP_REM ? 0 : wrap_sub(0, a);
  int64_t q = a / b, r = a % b;
  bool other_sign = r != 0 && (r < 0) != (b < 0);
  if (op == FL_OP_REM) return other_sign ? r + b : r;
  return op == FL_OP_FLOOR_DIV && other_sign ? q - 1 : q;
}

static int64_t unary_i(const fl_pw_instr *in, int64_t x) {
  switch (in->op) {
  case FL_OP_NEG: return wrap_sub(0, x);
  case FL_OP_ABS: return x < 0 ? wrap_sub(0, x) : x;
  case FL_OP_RELU: return x < 0 ? 0 : x;
  case FL_OP_CLAMP: return (double)x < in->a ? fl_ref_ftoi(in->a) : (double)x > in->b ? fl_ref_ftoi(in->b) : x;
  case FL_OP_SIGN: return (0 < x) - (x < 0);
  case FL_OP_NOT: return in->dtype == FL_BOOL ? !x : ~x;
  default: return x; /* FLOOR, CEIL, ROUND, TRUNC */
  }
}

static int64_t binary_i(fl_op op, int64_t a, int64_t b, int *fault) {
  switch (op) {
  case FL_OP_ADD: return wrap_add(a, b);
  case FL_OP_SUB: return wrap_sub(a, b);
  case FL_OP_MUL: return wrap_mul(a, b);
  case FL_OP_POW: return pow_i(a, b);
  case FL_OP_MAXIMUM: return a > b ? a : b;
  case FL_OP_MINIMUM: return a < b ? a : b;
  case FL_OP_AND: return a & b;
  case FL_OP_OR: return a | b;
  case FL_OP_XOR: return a ^ b;
  default: return div_i(op, a, b, fault);
  }
}

#define COMPARE(field)                                                                                                 \
  switch (op) {                                                                                                        \
  case FL_OP_EQ: return a->field[k] == b->field[k];                                                                    \
  case FL_OP_NE: return a->field[k] != b->field[k];                                                                    \
  case FL_OP_LT: return a->field[k] < b->field[k];                                                                     \
  case FL_OP_LE: return a->field[k] <= b->field[k];                                                                    \
  case FL_OP_GT: return a->field[k] > b->field[k];                                                                     \
  default: return a->field[k] >= b->field[k];                                                                          \
  }
static bool compare_f(fl_op op, const cell *a, const cell *b, int k) { COMPARE(f) }
static bool compare_i(fl_op op, const cell *a, const cell *b, int k) { COMPARE(i) }

static bool is_compare(fl_op op) { return op >= FL_OP_EQ && op <= FL_OP_GE; }

/* Integers of less than 64 bits wrap. */
static int64_t wrap_to(fl_dtype t, int64_t v) {
  char c[8];
  fl_ref_seti(c, t, 0, v);
  return fl_ref_geti(c, t, 0);
}

static void cast_block(cell *r, const cell *x, fl_dtype from, fl_dtype to, int n) {
  bool ff = fl_dtype_is_float(from), tf = fl_dtype_is_float(to);
  for (int k = 0; k < n; k++) {
    if (tf) r->f[k] = round_to(to, ff ? x->f[k] : (double)x->i[k]);
    else if (!ff) r->i[k] = wrap_to(to, x->i[k]);
    else {
      char c[8];
      fl_ref_setf(c, to, 0, x->f[k]);
      r->i[k] = fl_ref_geti(c, to, 0);
    }
  }
}

static void exec_block(const fl_pw_instr *in, fl_dtype src, cell *r, cell *const s[3], int n, int *fault) {
  bool f = fl_dtype_is_float(src);
  if (in->op == FL_OP_CAST) cast_block(r, s[0], src, in->dtype, n);
  else if (in->op == FL_OP_ISNAN)
    for (int k = 0; k < n; k++) r->i[k] = f && s[0]->f[k] != s[0]->f[k];
  else if (in->op == FL_OP_WHERE)
    for (int k = 0; k < n; k++) r->i[k] = s[0]->i[k] ? s[1]->i[k] : s[2]->i[k]; /* whole cells: floats too */
  else if (is_compare(in->op))
    for (int k = 0; k < n; k++) r->i[k] = f ? compare_f(in->op, s[0], s[1], k) : compare_i(in->op, s[0], s[1], k);
  else if (f)
    for (int k = 0; k < n; k++)
      r->f[k] = round_to(in->dtype, s[1] ? binary_f(in->op, in->dtype, s[0]->f[k], s[1]->f[k]) : unary_f(in, s[0]->f[k]));
  else
    for (int k = 0; k < n; k++)
      r->i[k] = wrap_to(in->dtype, s[1] ? binary_i(in->op, s[0]->i[k], s[1]->i[k], fault) : unary_i(in, s[0]->i[k]));
}

/* A bool input is normalized to 0 or 1 by the load, so that AND of two trues is true. */
static void load_block(cell *r, const fl_tensor *t, fl_dtype dtype, const int64_t *offsets, int n) {
  for (int k = 0; k < n; k++) {
    if (fl_dtype_is_float(dtype)) r->f[k] = fl_ref_getf(t->data, dtype, offsets[k]);
    else r->i[k] = fl_ref_geti(t->data, dtype, offsets[k]);
  }
}

static void run_blocks(void *arg, int64_t begin, int64_t end, int thread) {
  const job *j = arg;
  const fl_pw_program *pr = j->pr;
  const fl_type *shape = &j->args->out[0].type;
  cell regs[FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS];
  int64_t coords[BLOCK][FL_MAX_RANK], offsets[BLOCK];
  for (int64_t at = begin * BLOCK, last = end * BLOCK, total = fl_type_numel(shape); at < last; at += BLOCK) {
    int n = (int)(total - at < BLOCK ? total - at : BLOCK);
    fl_ref_unravel(at, shape, coords[0]);
    for (int k = 1; k < n; k++) {
      memcpy(coords[k], coords[k - 1], sizeof coords[k]);
      fl_ref_next(shape, coords[k]);
    }
    for (int i = 0; i < pr->n_inputs; i++) {
      const fl_tensor *t = &j->args->in[i];
      int skip = shape->rank - t->type.rank; /* inputs align at the last dimension, dims of 1 repeat */
      for (int k = 0; k < n; k++) {
        offsets[k] = 0;
        for (int d = 0; d < t->type.rank; d++)
          if (t->type.dims[d] != 1) offsets[k] += coords[k][d + skip] * t->strides[d];
      }
      load_block(&regs[i], t, pr->in_dtype[i], offsets, n);
    }
    for (int q = 0; q < pr->n_instrs; q++) {
      const fl_pw_instr *in = &pr->instrs[q];
      cell *s[3] = {0};
      for (int a = 0; a < 3; a++)
        if (in->src[a] >= 0) s[a] = &regs[in->src[a]];
      /* WHERE's first operand is bool; the type that matters is that of the values. */
      int typed = in->src[0];
      fl_dtype src = typed < pr->n_inputs ? pr->in_dtype[typed] : pr->instrs[typed - pr->n_inputs].dtype;
      exec_block(in, src, &regs[pr->n_inputs + q], s, n, j->args->fault);
    }
    for (int o = 0; o < pr->n_outputs; o++) {
      const fl_tensor *t = &j->args->out[o];
      const cell *r = &regs[pr->outputs[o]];
      for (int k = 0; k < n; k++) {
        int64_t off = fl_ref_offset(coords[k], t->strides, t->type.rank);
        if (fl_dtype_is_float(t->type.dtype)) fl_ref_setf(t->data, t->type.dtype, off, r->f[k]);
        else fl_ref_seti(t->data, t->type.dtype, off, r->i[k]);
      }
    }
  }
}

static bool float_only(fl_op op) {
  switch (op) {
  case FL_OP_NEG: case FL_OP_ABS: case FL_OP_RELU: case FL_OP_CLAMP: case FL_OP_FLOOR: case FL_OP_CEIL:
  case FL_OP_ROUND: case FL_OP_TRUNC: case FL_OP_SIGN: case FL_OP_NOT: case FL_OP_ISNAN: case FL_OP_CAST:
  case FL_OP_ADD: case FL_OP_SUB: case FL_OP_MUL: case FL_OP_FLOOR_DIV: case FL_OP_TRUNC_DIV: case FL_OP_REM:
  case FL_OP_POW: case FL_OP_MAXIMUM: case FL_OP_MINIMUM: case FL_OP_EQ: case FL_OP_NE: case FL_OP_LT:
  case FL_OP_LE: case FL_OP_GT: case FL_OP_GE: case FL_OP_AND: case FL_OP_OR: case FL_OP_XOR: case FL_OP_WHERE:
    return false;
  default: return true;
  }
}

static const char *check_program(const fl_pw_program *pr) {
  if (pr->n_inputs < 0 || pr->n_inputs > FL_PW_MAX_INPUTS || pr->n_instrs < 0 || pr->n_instrs > FL_PW_MAX_INSTRS ||
      pr->n_outputs < 1 || pr->n_outputs > FL_PW_MAX_OUTPUTS)
    return "program counts are out of range";
  for (int q = 0; q < pr->n_instrs; q++) {
    const fl_pw_instr *in = &pr->instrs[q];
    int first = in->src[0];
    for (int a = 0; a < 3; a++)
      if (in->src[a] >= pr->n_inputs + q) return "an instruction reads a register that is not yet written";
    if (first < 0) return "an instruction lacks its operand";
    fl_dtype src = first < pr->n_inputs ? pr->in_dtype[first] : pr->instrs[first - pr->n_inputs].dtype;
    bool f = fl_dtype_is_float(src);
    if (!f && float_only(in->op)) return "the operator is for floats only";
    if (f && (in->op == FL_OP_NOT || in->op == FL_OP_AND || in->op == FL_OP_OR || in->op == FL_OP_XOR))
      return "the operator is for bool and integers only";
  }
  for (int o = 0; o < pr->n_outputs; o++)
    if (pr->outputs[o] < 0 || pr->outputs[o] >= pr->n_inputs + pr->n_instrs) return "no such register to yield";
  return NULL;
}

static const char *plan_pointwise(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!p->program) return "no program";
  if (p->program->n_inputs != p->n_in || p->program->n_outputs != p->n_out) return "program and operands disagree";
  const char *why = check_program(p->program);
  if (why) return why;
  for (int o = 1; o < p->n_out; o++)
    if (!fl_dims_equal(&p->out[0], &p->out[o])) return "outputs of different shapes";
  params *q = fl_arena_memdup(arena, p->program, sizeof *p->program);
  if (!q) return "out of memory";
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.5 + (double)fl_type_numel(&p->out[0]) * (p->n_in + 2 * p->program->n_instrs + p->n_out) * 0.005;
  return NULL;
}

static void run_pointwise(const fl_run_args *args) {
  const params *q = args->params;
  job j = {args, &q->program};
  int64_t blocks = (fl_type_numel(&args->out[0].type) + BLOCK - 1) / BLOCK;
  fl_parallel(args->pool, blocks, 16, run_blocks, &j);
}

const fl_kernel fl_kernel_pointwise_ref = {"pointwise_ref", FL_OP_POINTWISE, FL_ISA_PORTABLE, plan_pointwise, NULL,
                                           run_pointwise};
