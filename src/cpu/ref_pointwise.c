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

static double gelu_tanh(double x) { return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

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
    fl_set_fault(fault);
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

/* Integers of less than 64 bits wrap. */
static int64_t wrap_to(fl_dtype t, int64_t v) {
  char c[8];
  fl_ref_seti(c, t, 0, v);
  return fl_ref_geti(c, t, 0);
}

static void cast_block(cell *r, const cell *x, fl_dtype from, fl_dtype to, int n) {
  bool ff = fl_dtype_is_float(from), tf = fl_dtype_is_float(to);
  if (!ff && (to == FL_I64 || to == FL_F32 || to == FL_BOOL)) { /* the frequent ones */
    for (int k = 0; k < n; k++) {
      if (to == FL_F32)
        r->f[k] = (float)x->i[k];
      else
        r->i[k] = to == FL_BOOL ? x->i[k] != 0 : x->i[k];
    }
    return;
  }
  for (int k = 0; k < n; k++) {
    if (tf)
      r->f[k] = round_to(to, ff ? x->f[k] : (double)x->i[k]);
    else if (!ff)
      r->i[k] = wrap_to(to, x->i[k]);
    else {
      char c[8];
      fl_ref_setf(c, to, 0, x->f[k]);
      r->i[k] = fl_ref_geti(c, to, 0);
    }
  }
}

#define EACH(expr)                                                                                                     \
  for (int k = 0; k < n; k++) expr

/* Arithmetic of floats: the frequent operators in loops of their own. */
static void exec_floats(const fl_pw_instr *in, cell *r, cell *const s[3], int n) {
  const double *x = s[0]->f, *y = s[1] ? s[1]->f : NULL;
  switch (in->op) {
  case FL_OP_ADD: EACH(r->f[k] = x[k] + y[k]); break;
  case FL_OP_SUB: EACH(r->f[k] = x[k] - y[k]); break;
  case FL_OP_MUL: EACH(r->f[k] = x[k] * y[k]); break;
  case FL_OP_DIV: EACH(r->f[k] = x[k] / y[k]); break;
  default: EACH(r->f[k] = y ? binary_f(in->op, in->dtype, x[k], y[k]) : unary_f(in, x[k])); break;
  }
  if (in->dtype == FL_F32)
    EACH(r->f[k] = (float)r->f[k]);
  else if (in->dtype != FL_F64)
    EACH(r->f[k] = round_to(in->dtype, r->f[k]));
}

static void exec_integers(const fl_pw_instr *in, cell *r, cell *const s[3], int n, int *fault) {
  const int64_t *x = s[0]->i, *y = s[1] ? s[1]->i : NULL;
  switch (in->op) {
  case FL_OP_ADD: EACH(r->i[k] = wrap_add(x[k], y[k])); break;
  case FL_OP_SUB: EACH(r->i[k] = wrap_sub(x[k], y[k])); break;
  case FL_OP_MUL: EACH(r->i[k] = wrap_mul(x[k], y[k])); break;
  case FL_OP_AND: EACH(r->i[k] = x[k] & y[k]); break;
  case FL_OP_OR: EACH(r->i[k] = x[k] | y[k]); break;
  default: EACH(r->i[k] = y ? binary_i(in->op, x[k], y[k], fault) : unary_i(in, x[k])); break;
  }
  if (in->dtype == FL_BOOL)
    EACH(r->i[k] = r->i[k] != 0);
  else if (in->dtype != FL_I64)
    EACH(r->i[k] = wrap_to(in->dtype, r->i[k]));
}

#define COMPARE(field)                                                                                                 \
  switch (op) {                                                                                                        \
  case FL_OP_EQ: EACH(r->i[k] = a->field[k] == b->field[k]); break;                                                    \
  case FL_OP_NE: EACH(r->i[k] = a->field[k] != b->field[k]); break;                                                    \
  case FL_OP_LT: EACH(r->i[k] = a->field[k] < b->field[k]); break;                                                     \
  case FL_OP_LE: EACH(r->i[k] = a->field[k] <= b->field[k]); break;                                                    \
  case FL_OP_GT: EACH(r->i[k] = a->field[k] > b->field[k]); break;                                                     \
  default: EACH(r->i[k] = a->field[k] >= b->field[k]); break;                                                          \
  }
static void compare_floats(fl_op op, cell *r, const cell *a, const cell *b, int n) { COMPARE(f) }
static void compare_integers(fl_op op, cell *r, const cell *a, const cell *b, int n) { COMPARE(i) }

static void exec_block(const fl_pw_instr *in, fl_dtype src, cell *r, cell *const s[3], int n, int *fault) {
  bool f = fl_dtype_is_float(src), compare = in->op >= FL_OP_EQ && in->op <= FL_OP_GE;
  if (in->op == FL_OP_CAST)
    cast_block(r, s[0], src, in->dtype, n);
  else if (in->op == FL_OP_ISNAN)
    EACH(r->i[k] = f && s[0]->f[k] != s[0]->f[k]);
  else if (in->op == FL_OP_WHERE)
    EACH(r->i[k] = s[0]->i[k] ? s[1]->i[k] : s[2]->i[k]); /* whole cells: floats too */
  else if (compare && f)
    compare_floats(in->op, r, s[0], s[1], n);
  else if (compare)
    compare_integers(in->op, r, s[0], s[1], n);
  else if (f)
    exec_floats(in, r, s, n);
  else
    exec_integers(in, r, s, n, fault);
}

/* --- elements in and out --- */

/* An operand's strides along the output's axes: it aligns at the last one, and axes of one element repeat. */
static void align(const fl_tensor *t, const fl_type *shape, int64_t *strides) {
  for (int d = 0, k = t->type.rank - shape->rank; d < shape->rank; d++, k++)
    strides[d] = k < 0 || t->type.dims[k] == 1 ? 0 : t->strides[k];
}

/* Offsets of n elements from coordinates `at`. */
static void walk(const fl_type *shape, const int64_t *at, const int64_t *strides, int64_t *offsets, int n) {
  int64_t c[FL_MAX_RANK], o = fl_ref_offset(at, strides, shape->rank);
  memcpy(c, at, sizeof c);
  for (int k = 0; k < n; k++) {
    offsets[k] = o;
    for (int d = shape->rank - 1; d >= 0; d--) {
      o += strides[d];
      if (++c[d] < shape->dims[d]) break;
      o -= strides[d] * shape->dims[d];
      c[d] = 0;
    }
  }
}

/* A bool becomes 0 or 1, so that AND of two trues is true. */
static void load_block(cell *r, const void *p, fl_dtype t, const int64_t *at, int n) {
  switch (t) {
  case FL_F32: EACH(r->f[k] = ((const float *)p)[at[k]]); break;
  case FL_F64: EACH(r->f[k] = ((const double *)p)[at[k]]); break;
  case FL_I64: EACH(r->i[k] = ((const int64_t *)p)[at[k]]); break;
  case FL_I32: EACH(r->i[k] = ((const int32_t *)p)[at[k]]); break;
  case FL_BOOL: EACH(r->i[k] = ((const uint8_t *)p)[at[k]] != 0); break;
  case FL_F16:
  case FL_BF16: EACH(r->f[k] = fl_ref_getf(p, t, at[k])); break;
  default: EACH(r->i[k] = fl_ref_geti(p, t, at[k])); break;
  }
}

static void store_block(const cell *r, void *p, fl_dtype t, const int64_t *at, int n) {
  switch (t) {
  case FL_F32: EACH(((float *)p)[at[k]] = (float)r->f[k]); break;
  case FL_F64: EACH(((double *)p)[at[k]] = r->f[k]); break;
  case FL_I64: EACH(((int64_t *)p)[at[k]] = r->i[k]); break;
  case FL_BOOL: EACH(((uint8_t *)p)[at[k]] = r->i[k] != 0); break;
  case FL_F16:
  case FL_BF16: EACH(fl_ref_setf(p, t, at[k], r->f[k])); break;
  default: EACH(fl_ref_seti(p, t, at[k], r->i[k])); break;
  }
}

static fl_dtype register_type(const fl_pw_program *pr, int r) {
  return r < pr->n_inputs ? pr->in_dtype[r] : pr->instrs[r - pr->n_inputs].dtype;
}

static void run_blocks(void *arg, int64_t begin, int64_t end, int thread) {
  const job *j = arg;
  const fl_pw_program *pr = j->pr;
  const fl_type *shape = &j->args->out[0].type;
  cell regs[FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS];
  int64_t strides[FL_PW_MAX_INPUTS][FL_MAX_RANK], offsets[BLOCK], c[FL_MAX_RANK] = {0};
  for (int i = 0; i < pr->n_inputs; i++) align(&j->args->in[i], shape, strides[i]);
  for (int64_t at = begin * BLOCK, last = end * BLOCK, total = fl_type_numel(shape); at < last; at += BLOCK) {
    int n = (int)(total - at < BLOCK ? total - at : BLOCK);
    fl_ref_unravel(at, shape, c);
    for (int i = 0; i < pr->n_inputs; i++) {
      walk(shape, c, strides[i], offsets, n);
      load_block(&regs[i], j->args->in[i].data, pr->in_dtype[i], offsets, n);
    }
    for (int q = 0; q < pr->n_instrs; q++) {
      const fl_pw_instr *in = &pr->instrs[q];
      cell *s[3] = {0};
      for (int a = 0; a < 3; a++)
        if (in->src[a] >= 0) s[a] = &regs[in->src[a]];
      exec_block(in, register_type(pr, in->src[0]), &regs[pr->n_inputs + q], s, n, j->args->fault);
    }
    for (int o = 0; o < pr->n_outputs; o++) {
      const fl_tensor *t = &j->args->out[o];
      walk(shape, c, t->strides, offsets, n);
      store_block(&regs[pr->outputs[o]], t->data, t->type.dtype, offsets, n);
    }
  }
}

static bool float_only(fl_op op) {
  switch (op) {
  case FL_OP_NEG:
  case FL_OP_ABS:
  case FL_OP_RELU:
  case FL_OP_CLAMP:
  case FL_OP_FLOOR:
  case FL_OP_CEIL:
  case FL_OP_ROUND:
  case FL_OP_TRUNC:
  case FL_OP_SIGN:
  case FL_OP_NOT:
  case FL_OP_ISNAN:
  case FL_OP_CAST:
  case FL_OP_ADD:
  case FL_OP_SUB:
  case FL_OP_MUL:
  case FL_OP_FLOOR_DIV:
  case FL_OP_TRUNC_DIV:
  case FL_OP_REM:
  case FL_OP_POW:
  case FL_OP_MAXIMUM:
  case FL_OP_MINIMUM:
  case FL_OP_EQ:
  case FL_OP_NE:
  case FL_OP_LT:
  case FL_OP_LE:
  case FL_OP_GT:
  case FL_OP_GE:
  case FL_OP_AND:
  case FL_OP_OR:
  case FL_OP_XOR:
  case FL_OP_WHERE: return false;
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
    bool f = fl_dtype_is_float(register_type(pr, first));
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
  plan->cost_us = 0.5 + (double)fl_type_numel(&p->out[0]) * (p->n_in + 2 * p->program->n_instrs + p->n_out) * 0.0015;
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
