/* Pointwise groups of floats and bool on vectors; the body of pointwise_avx512.c and pointwise_avx2.c.
 *
 * A small machine runs the program tile by tile, with its registers in L1: one handler call per instruction and tile.
 * Registers hold f32; a bool is 0.0 or 1.0, a 16-bit float an f32 that was rounded to it, as every operator on 16-bit
 * floats rounds its result. Inputs that lie in the output's order are read where they are, results
 * that are outputs are written where they go; all else passes through slots in scratch. */
#include <stdlib.h>
#include <string.h>

#include "cpu/half.inl"
#include "cpu/kernel.h"
#include "cpu/vmath_more.inl"

enum { TILE = 512, TILE_MAX = 1024, TILE_ONE = 4096, PLACES = 2 * FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS + 8 };

typedef enum how {
  DIRECT,   /* f32 in the output's order */
  SCALAR,   /* one element */
  PERIODIC, /* repeats with every tile */
  RUNS      /* anything else: gathered for every tile */
} how;

/* Operands are places: inputs, then outputs, then slots. */
typedef struct code {
  uint8_t op, dst, src[3], n_src;
  float a, b;
} code;

typedef struct params {
  int32_t n_in, n_out, n_code, n_slots, rank, tile;
  int64_t total, grain;
  int64_t dims[FL_MAX_RANK];
  int64_t strides[FL_PW_MAX_INPUTS][FL_MAX_RANK];
  uint8_t how[FL_PW_MAX_INPUTS], in_type[FL_PW_MAX_INPUTS], in_slot[FL_PW_MAX_INPUTS];
  uint8_t out_type[FL_PW_MAX_OUTPUTS], out_slot[FL_PW_MAX_OUTPUTS]; /* slot of an output that is no f32 */
  code code[2 * FL_PW_MAX_INSTRS + FL_PW_MAX_OUTPUTS];
} params;

/* --- handlers --- */

enum { MOV = FL_OP_WHERE + 1, ROUND_F16, ROUND_BF16, HANDLERS };

typedef void (*handler)(float *d, const float *x, const float *y, const float *z, int n, float a, float b);

#define TRUTH(m)   vf_select(m, vf_set1(1.0f), vf_zero())
#define FLIPPED(m) vf_select(m, vf_zero(), vf_set1(1.0f))

#define EACH1(NAME, EXPR)                                                                                              \
  static void do_##NAME(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {        \
    int k = 0;                                                                                                         \
    for (; k + VL <= n; k += VL) {                                                                                     \
      vf x = vf_load(px + k);                                                                                          \
      vf_store(d + k, EXPR);                                                                                           \
    }                                                                                                                  \
    if (k < n) {                                                                                                       \
      vm m_ = vm_first(n - k);                                                                                         \
      vf x = vf_load_mask(px + k, m_);                                                                                 \
      vf_store_mask(d + k, m_, EXPR);                                                                                  \
    }                                                                                                                  \
  }
#define EACH2(NAME, EXPR)                                                                                              \
  static void do_##NAME(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {        \
    int k = 0;                                                                                                         \
    for (; k + VL <= n; k += VL) {                                                                                     \
      vf x = vf_load(px + k), y = vf_load(py + k);                                                                     \
      vf_store(d + k, EXPR);                                                                                           \
    }                                                                                                                  \
    if (k < n) {                                                                                                       \
      vm m_ = vm_first(n - k);                                                                                         \
      vf x = vf_load_mask(px + k, m_), y = vf_load_mask(py + k, m_);                                                   \
      vf_store_mask(d + k, m_, EXPR);                                                                                  \
    }                                                                                                                  \
  }
#define SCALARS(NAME, EXPR)                                                                                            \
  static void do_##NAME(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {        \
    for (int k = 0; k < n; k++) {                                                                                      \
      float x = px[k], y = py[k];                                                                                      \
      d[k] = EXPR;                                                                                                     \
    }                                                                                                                  \
  }

EACH1(MOV, x)
EACH1(NEG, vf_neg(x))
EACH1(ABS, vf_abs(x))
EACH1(EXP, vf_exp(x))
EACH1(EXPM1, vf_expm1(x))
EACH1(LOG, vf_log(x))
EACH1(LOG1P, vf_log1p(x))
EACH1(SQRT, vf_sqrt(x))
EACH1(RSQRT, vf_div(vf_set1(1.0f), vf_sqrt(x)))
EACH1(RECIPROCAL, vf_div(vf_set1(1.0f), x))
EACH1(SIN, vf_sin(x))
EACH1(COS, vf_cos(x))
EACH1(TANH, vf_tanh(x))
EACH1(SIGMOID, vf_sigmoid(x))
EACH1(ERF, vf_erf(x))
EACH1(RELU, vf_relu(x))
EACH1(GELU, vf_gelu(x))
EACH1(GELU_TANH, vf_gelu_tanh(x))
EACH1(SILU, vf_silu(x))
EACH1(MISH, vf_mul(x, vf_tanh(vf_softplus(x, 1.0f, 20.0f))))
EACH1(SOFTPLUS, vf_softplus(x, a, b))
EACH1(ELU, vf_select(vf_lt(x, vf_zero()), vf_mul(vf_set1(a), vf_expm1(x)), x))
EACH1(LEAKY_RELU, vf_select(vf_lt(vf_zero(), x), x, vf_mul(x, vf_set1(a))))
EACH1(HARDSWISH, vf_hardswish(x))
EACH1(HARDSIGMOID, vf_hardsigmoid(x))
EACH1(CLAMP, vf_min(vf_set1(b), vf_max(vf_set1(a), x)))
EACH1(FLOOR, vf_floor(x))
EACH1(CEIL, vf_ceil(x))
EACH1(ROUND, vf_round(x))
EACH1(TRUNC, vf_trunc(x))
EACH1(SIGN, vf_sub(TRUTH(vf_lt(vf_zero(), x)), TRUTH(vf_lt(x, vf_zero()))))
EACH1(NOT, vf_sub(vf_set1(1.0f), x))
EACH1(ISNAN, TRUTH(vf_isnan(x)))
EACH1(CAST, FLIPPED(vf_eq(x, vf_zero()))) /* to bool; to f32 is MOV */
EACH2(ADD, vf_add(x, y))
EACH2(SUB, vf_sub(x, y))
EACH2(MUL, vf_mul(x, y))
EACH2(DIV, vf_div(x, y))
EACH2(TRUNC_DIV, vf_trunc(vf_div(x, y)))
EACH2(MAXIMUM, vf_select(vf_isnan(x), x, vf_max(x, y)))
EACH2(MINIMUM, vf_select(vf_isnan(x), x, vf_min(x, y)))
EACH2(EQ, TRUTH(vf_eq(x, y)))
EACH2(NE, FLIPPED(vf_eq(x, y)))
EACH2(LT, TRUTH(vf_lt(x, y)))
EACH2(LE, TRUTH(vf_le(x, y)))
EACH2(GT, TRUTH(vf_lt(y, x)))
EACH2(GE, TRUTH(vf_le(y, x)))
EACH2(AND, vf_mul(x, y))
EACH2(OR, vf_max(x, y))
EACH2(XOR, FLIPPED(vf_eq(x, y)))
SCALARS(FLOOR_DIV, scalar_floor_div(x, y))
SCALARS(REM, scalar_rem(x, y))

static void do_WHERE(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {
  int k = 0;
  for (; k + VL <= n; k += VL)
    vf_store(d + k, vf_select(vf_eq(vf_load(px + k), vf_zero()), vf_load(pz + k), vf_load(py + k)));
  if (k < n) {
    vm m = vm_first(n - k);
    vf yes = vf_load_mask(py + k, m), no = vf_load_mask(pz + k, m);
    vf_store_mask(d + k, m, vf_select(vf_eq(vf_load_mask(px + k, m), vf_zero()), no, yes));
  }
}

static void do_ROUND_F16(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {
  f16_round(d, px, n);
}

static void do_ROUND_BF16(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {
  bf16_round(d, px, n);
}

/* Exponents are nearly always one number, and a small one. */
static void do_POW(float *d, const float *px, const float *py, const float *pz, int n, float a, float b) {
  float e = n ? py[0] : 0;
  bool same = true;
  for (int k = 0; k < n; k++) same = same && py[k] == e;
  if (same && e == 2.0f)
    for (int k = 0; k < n; k++) d[k] = px[k] * px[k];
  else if (same && e == 3.0f)
    for (int k = 0; k < n; k++) d[k] = px[k] * px[k] * px[k];
  else if (same && e == -1.0f)
    for (int k = 0; k < n; k++) d[k] = 1.0f / px[k];
  else
    for (int k = 0; k < n; k++) d[k] = powf(px[k], py[k]);
}

#define H(op) [FL_OP_##op] = do_##op
static const handler handlers[HANDLERS] = {H(NEG),
                                           H(ABS),
                                           H(EXP),
                                           H(EXPM1),
                                           H(LOG),
                                           H(LOG1P),
                                           H(SQRT),
                                           H(RSQRT),
                                           H(RECIPROCAL),
                                           H(SIN),
                                           H(COS),
                                           H(TANH),
                                           H(SIGMOID),
                                           H(ERF),
                                           H(RELU),
                                           H(GELU),
                                           H(GELU_TANH),
                                           H(SILU),
                                           H(MISH),
                                           H(SOFTPLUS),
                                           H(ELU),
                                           H(LEAKY_RELU),
                                           H(HARDSWISH),
                                           H(HARDSIGMOID),
                                           H(CLAMP),
                                           H(FLOOR),
                                           H(CEIL),
                                           H(ROUND),
                                           H(TRUNC),
                                           H(SIGN),
                                           H(NOT),
                                           H(ISNAN),
                                           H(CAST),
                                           H(ADD),
                                           H(SUB),
                                           H(MUL),
                                           H(DIV),
                                           H(FLOOR_DIV),
                                           H(TRUNC_DIV),
                                           H(REM),
                                           H(POW),
                                           H(MAXIMUM),
                                           H(MINIMUM),
                                           H(EQ),
                                           H(NE),
                                           H(LT),
                                           H(LE),
                                           H(GT),
                                           H(GE),
                                           H(AND),
                                           H(OR),
                                           H(XOR),
                                           H(WHERE),
                                           [MOV] = do_MOV,
                                           [ROUND_F16] = do_ROUND_F16,
                                           [ROUND_BF16] = do_ROUND_BF16};

/* Nanoseconds per element, roughly. */
static double op_cost(fl_op op) {
  switch (op) {
  case FL_OP_EXP:
  case FL_OP_LOG:
  case FL_OP_TANH:
  case FL_OP_SIGMOID:
  case FL_OP_SILU:
  case FL_OP_ERF:
  case FL_OP_GELU:
  case FL_OP_GELU_TANH:
  case FL_OP_SIN:
  case FL_OP_COS: return 0.4;
  case FL_OP_EXPM1:
  case FL_OP_LOG1P:
  case FL_OP_MISH:
  case FL_OP_SOFTPLUS:
  case FL_OP_ELU: return 0.8;
  case FL_OP_DIV:
  case FL_OP_SQRT:
  case FL_OP_RSQRT:
  case FL_OP_RECIPROCAL:
  case FL_OP_TRUNC_DIV: return 0.15;
  case FL_OP_FLOOR_DIV:
  case FL_OP_REM:
  case FL_OP_POW: return 10;
  default: return 0.05;
  }
}

/* --- planning --- */

static bool is_bool_op(fl_op op) { return op == FL_OP_AND || op == FL_OP_OR || op == FL_OP_XOR || op == FL_OP_NOT; }

static bool is_known(fl_dtype t) { return t == FL_F32 || t == FL_BOOL || t == FL_F16 || t == FL_BF16; }

static const char *check(const fl_problem *p) {
  const fl_pw_program *pr = p->program;
  if (!pr || pr->n_inputs != p->n_in || pr->n_outputs != p->n_out) return "program and operands disagree";
  fl_dtype t[FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS];
  for (int i = 0; i < pr->n_inputs; i++) {
    t[i] = pr->in_dtype[i];
    if (!is_known(t[i])) return "an input is neither bool nor a float of at most 32 bits";
  }
  for (int q = 0; q < pr->n_instrs; q++) {
    const fl_pw_instr *in = &pr->instrs[q];
    t[pr->n_inputs + q] = in->dtype;
    if (!is_known(in->dtype)) return "an intermediate result is neither bool nor a float of at most 32 bits";
    if ((int)in->op >= MOV || !handlers[in->op]) return "no such pointwise operator";
    for (int a = 0; a < 3; a++)
      if (in->src[a] >= pr->n_inputs + q) return "an instruction reads a register that is not yet written";
    if (in->src[0] < 0) return "an instruction lacks its operand";
    bool compare = in->op >= FL_OP_EQ && in->op <= FL_OP_GE,
         free = compare || in->op == FL_OP_CAST || in->op == FL_OP_WHERE;
    bool on_bool = t[in->src[0]] == FL_BOOL;
    if (!free && on_bool != is_bool_op(in->op)) return "arithmetic on bool, or logic on floats";
  }
  for (int o = 0; o < p->n_out; o++) {
    if (!fl_dims_equal(&p->out[0], &p->out[o])) return "outputs of different shapes";
    if (pr->outputs[o] < 0 || pr->outputs[o] >= pr->n_inputs + pr->n_instrs) return "no such register to yield";
  }
  return NULL;
}

/* The input's stride along output axis d: 0 where it broadcasts. */
static int64_t stride_along(const fl_problem *p, int i, int d) {
  const fl_tensor *x = &p->in[i];
  int k = d - (p->out[0].rank - x->type.rank);
  return k < 0 || x->type.dims[k] == 1 ? 0 : x->strides[k];
}

/* The outputs take the order of the first input of their shape that is dense. */
static void choose_order(const fl_problem *p, fl_kernel_plan *plan) {
  for (int i = 0; i < p->n_in; i++)
    if (fl_dims_equal(&p->in[i].type, &p->out[0]) && fl_is_dense(&p->in[i].type, p->in[i].strides)) {
      for (int o = 0; o < p->n_out; o++) {
        /* Axes of one element may have any stride in the input; give them one that fits. */
        memcpy(plan->out_strides[o], p->in[i].strides, sizeof plan->out_strides[o]);
        for (int d = 0; d < p->out[0].rank; d++)
          if (p->out[0].dims[d] == 1) plan->out_strides[o][d] = 1;
      }
      return;
    }
}

/* Loop axes: the output's in memory order, those of one element dropped, neighbours merged where all inputs agree. */
static void arrange(const fl_problem *p, const int64_t *out_strides, params *q) {
  int order[FL_MAX_RANK], n = 0;
  for (int d = 0; d < p->out[0].rank; d++) {
    if (p->out[0].dims[d] == 1) continue;
    int at = n++;
    for (; at > 0 && out_strides[order[at - 1]] < out_strides[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  for (int k = 0; k < n; k++) {
    int64_t dim = p->out[0].dims[order[k]];
    bool merge = q->rank > 0;
    for (int i = 0; i < p->n_in && merge; i++) merge = q->strides[i][q->rank - 1] == stride_along(p, i, order[k]) * dim;
    int at = merge ? q->rank - 1 : q->rank++;
    q->dims[at] = merge ? q->dims[at] * dim : dim;
    for (int i = 0; i < p->n_in; i++) q->strides[i][at] = stride_along(p, i, order[k]);
  }
  if (q->rank == 0) q->dims[q->rank++] = 1;
}

static how classify(const params *q, int i, int64_t *period) {
  int64_t expect = 1, dense = q->rank;
  bool any = false;
  *period = 1;
  for (int d = q->rank - 1; d >= 0; d--) {
    any = any || q->strides[i][d] != 0;
    if (dense == d + 1 && q->strides[i][d] == expect) dense = d, *period = expect *= q->dims[d];
  }
  if (!any) return SCALAR;
  if (dense == 0) return q->in_type[i] == FL_F32 ? DIRECT : RUNS;
  for (int d = 0; d < dense; d++)
    if (q->strides[i][d] != 0) {
      int64_t below = 1;
      for (int e = d; e < q->rank; e++) below *= q->dims[e];
      *period = below;
      break;
    }
  return PERIODIC;
}

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

/* Tiles are whole multiples of the periods where these are short, and of the vector. */
static void choose_tile(const fl_problem *p, params *q) {
  int64_t period[FL_PW_MAX_INPUTS], common = VL;
  bool all_direct = true;
  for (int i = 0; i < p->n_in; i++) {
    q->in_type[i] = (uint8_t)p->in[i].type.dtype;
    q->how[i] = classify(q, i, &period[i]);
    all_direct = all_direct && q->how[i] == DIRECT;
    if (q->how[i] != PERIODIC) continue;
    int64_t both = period[i] > TILE_MAX ? TILE_MAX + 1 : common / gcd(common, period[i]) * period[i];
    if (both <= TILE_MAX)
      common = both;
    else
      q->how[i] = RUNS;
  }
  q->tile = (int32_t)(common > TILE ? common : TILE / common * common);
  if (all_direct && q->n_code == 1) q->tile = TILE_ONE;
}

/* The handler that rounds what `in` made, or 0: selections and the like only hand on what was rounded already. */
static int rounding(const fl_pw_instr *in) {
  switch (in->op) {
  case FL_OP_NEG:
  case FL_OP_ABS:
  case FL_OP_RELU:
  case FL_OP_MAXIMUM:
  case FL_OP_MINIMUM:
  case FL_OP_WHERE: return 0;
  default: return in->dtype == FL_F16 ? ROUND_F16 : in->dtype == FL_BF16 ? ROUND_BF16 : 0;
  }
}

/* What `in` does: casts between floats move, and round where the result is short. */
static void encode(params *q, const fl_pw_instr *in, code c) {
  int then = rounding(in);
  bool moves = in->op == FL_OP_CAST && in->dtype != FL_BOOL;
  c.op = (uint8_t)(!moves ? (int)in->op : then ? then : MOV);
  c.a = (float)in->a, c.b = (float)in->b;
  q->code[q->n_code++] = c;
  if (then && !moves) q->code[q->n_code++] = (code){.op = (uint8_t)then, .dst = c.dst, .src = {c.dst}, .n_src = 1};
}

/* Linear scan: slots of registers are reused after their last reader. */
static const char *assign_places(const fl_problem *p, params *q) {
  const fl_pw_program *pr = p->program;
  int n = pr->n_inputs, regs = n + pr->n_instrs, first_slot = n + p->n_out;
  int place[FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS], last[FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS] = {0};
  uint8_t taken[PLACES] = {0};
  for (int r = 0; r < pr->n_instrs; r++)
    for (int a = 0; a < 3; a++)
      if (pr->instrs[r].src[a] >= 0) last[pr->instrs[r].src[a]] = r;
  for (int i = 0; i < n; i++) {
    place[i] = i;
    if (q->how[i] != DIRECT) q->in_slot[i] = (uint8_t)(first_slot + q->n_slots), taken[first_slot + q->n_slots++] = 1;
  }
  for (int r = n; r < regs; r++) place[r] = -1;
  for (int o = 0; o < p->n_out; o++) {
    int r = pr->outputs[o];
    q->out_type[o] = (uint8_t)p->out[o].dtype;
    last[r] = pr->n_instrs; /* kept to the end */
    if (r >= n && place[r] < 0 && q->out_type[o] == FL_F32) place[r] = n + o;
  }
  for (int k = 0; k < pr->n_instrs; k++) {
    const fl_pw_instr *in = &pr->instrs[k];
    code c = {0};
    for (int a = 0; a < 3; a++) {
      int s = in->src[a];
      if (s < 0) continue;
      c.src[a] = (uint8_t)place[s];
      c.n_src = (uint8_t)(a + 1);
      if (s >= n && last[s] == k && place[s] >= first_slot) taken[place[s]] = 0;
    }
    if (place[n + k] < 0) {
      int s = first_slot;
      while (s < PLACES && taken[s]) s++;
      if (s >= PLACES) return "too many live registers";
      taken[s] = 1;
      place[n + k] = s;
      if (s - first_slot + 1 > q->n_slots) q->n_slots = s - first_slot + 1;
      if (last[n + k] < k) taken[s] = 0; /* nobody reads it */
    }
    c.dst = (uint8_t)place[n + k];
    encode(q, in, c);
  }
  for (int o = 0; o < p->n_out; o++) {
    int at = place[pr->outputs[o]];
    q->out_slot[o] = (uint8_t)at;
    if (q->out_type[o] == FL_F32 && at != n + o)
      q->code[q->n_code++] = (code){.op = MOV, .dst = (uint8_t)(n + o), .src = {(uint8_t)at}, .n_src = 1};
  }
  return NULL;
}

/* Output 0 may overwrite an input that nobody reads after the output is written. */
static int overwritable(const fl_problem *p, const params *q) {
  const fl_pw_program *pr = p->program;
  for (int i = 0; i < p->n_in; i++) {
    if (q->how[i] != DIRECT || q->out_type[0] != FL_F32 || p->n_out > 1) continue;
    int writer = -1, reader = -1;
    for (int k = 0; k < q->n_code; k++) {
      if (q->code[k].dst == pr->n_inputs && writer < 0) writer = k;
      for (int a = 0; a < q->code[k].n_src; a++)
        if (q->code[k].src[a] == i) reader = k;
    }
    if (reader <= writer) return i;
  }
  return -1;
}

static const char *plan_pointwise(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = check(p);
  if (why) return why;
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  choose_order(p, plan);
  arrange(p, plan->out_strides[0], q);
  q->n_in = p->n_in, q->n_out = p->n_out, q->total = fl_type_numel(&p->out[0]);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  if (q->total == 0) return NULL;
  q->n_code = p->program->n_instrs;
  choose_tile(p, q);
  q->n_code = 0;
  if ((why = assign_places(p, q))) return why;
  plan->in_place = overwritable(p, q);
  plan->scratch_bytes =
      (size_t)(p->threads > 1 ? p->threads : 1) * (size_t)q->n_slots * (size_t)q->tile * sizeof(float);
  double each = 0;
  for (int k = 0; k < p->program->n_instrs; k++) each += op_cost(p->program->instrs[k].op);
  for (int i = 0; i < p->n_in; i++) each += q->how[i] == DIRECT ? 0.1 : q->how[i] == RUNS ? 0.2 : 0.02;
  each += 0.15 * p->n_out;
  q->grain = 1 + (int64_t)(4000 / (each * q->tile));
  plan->cost_us = 0.1 + (double)q->total * each * 1e-3;
  return NULL;
}

/* --- running --- */

static void load_halves(float *d, const uint16_t *s, bool bf16, int64_t stride, int64_t n) {
  if (stride == 1)
    bf16 ? bf16_load(d, s, n) : f16_load(d, s, n);
  else if (stride == 0) {
    float one = bf16 ? fl_bf16_to_f32(*s) : fl_f16_to_f32(*s);
    for (int64_t k = 0; k < n; k++) d[k] = one;
  } else
    for (int64_t k = 0; k < n; k++) d[k] = bf16 ? fl_bf16_to_f32(s[k * stride]) : fl_f16_to_f32(s[k * stride]);
}

/* n elements of a row of x from `at` with this stride. */
static void load_row(float *d, const fl_tensor *x, int64_t at, int64_t stride, int64_t n) {
  const float *f = (const float *)x->data + at;
  const uint8_t *b = (const uint8_t *)x->data + at;
  fl_dtype t = x->type.dtype;
  if (t == FL_F16 || t == FL_BF16)
    load_halves(d, (const uint16_t *)x->data + at, t == FL_BF16, stride, n);
  else if (t == FL_BOOL)
    for (int64_t k = 0; k < n; k++) d[k] = b[k * stride] ? 1.0f : 0.0f;
  else if (stride == 1)
    memcpy(d, f, (size_t)n * sizeof *d);
  else if (stride == 0)
    for (int64_t k = 0; k < n; k++) d[k] = *f;
  else
    for (int64_t k = 0; k < n; k++) d[k] = f[k * stride];
}

/* n elements in loop order from flat index `flat`. */
static void load_runs(float *d, const params *q, int i, const fl_tensor *x, int64_t flat, int64_t n) {
  int64_t c[FL_MAX_RANK], at = 0;
  int inner = q->rank - 1;
  for (int a = inner; a >= 0; a--) {
    c[a] = flat % q->dims[a];
    flat /= q->dims[a];
    at += c[a] * q->strides[i][a];
  }
  while (n > 0) {
    int64_t run = q->dims[inner] - c[inner] < n ? q->dims[inner] - c[inner] : n, s = q->strides[i][inner];
    load_row(d, x, at, s, run);
    d += run, n -= run;
    at -= c[inner] * s;
    c[inner] = 0;
    for (int a = inner - 1; a >= 0 && n > 0; a--) {
      at += q->strides[i][a];
      if (++c[a] < q->dims[a]) break;
      at -= q->dims[a] * q->strides[i][a];
      c[a] = 0;
    }
  }
}

static void store_row(const fl_tensor *x, int64_t at, const float *s, int n) {
  uint8_t *b = (uint8_t *)x->data + at;
  uint16_t *h = (uint16_t *)x->data + at;
  if (x->type.dtype == FL_F16)
    f16_store(h, s, n);
  else if (x->type.dtype == FL_BF16)
    bf16_store(h, s, n);
  else
    for (int k = 0; k < n; k++) b[k] = s[k] != 0.0f;
}

static void run_tiles(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *args = arg;
  const params *q = args->params;
  float *slots = (float *)args->scratch + (int64_t)thread * q->n_slots * q->tile, *place[PLACES] = {0};
  int first_slot = q->n_in + q->n_out;
  for (int s = 0; s < q->n_slots; s++) place[first_slot + s] = slots + (int64_t)s * q->tile;
  for (int i = 0; i < q->n_in; i++) {
    if (q->how[i] == DIRECT) continue;
    place[i] = place[q->in_slot[i]];
    if (q->how[i] == SCALAR || q->how[i] == PERIODIC) {
      int64_t n = q->total < q->tile ? q->total : q->tile;
      if (q->how[i] == SCALAR)
        load_row(place[i], &args->in[i], 0, 0, n);
      else
        load_runs(place[i], q, i, &args->in[i], 0, n);
    }
  }
  for (int64_t t = begin; t < end; t++) {
    int64_t at = t * q->tile;
    int n = (int)(q->total - at < q->tile ? q->total - at : q->tile);
    for (int i = 0; i < q->n_in; i++) {
      if (q->how[i] == DIRECT)
        place[i] = (float *)args->in[i].data + at;
      else if (q->how[i] == RUNS)
        load_runs(place[i], q, i, &args->in[i], at, n);
    }
    for (int o = 0; o < q->n_out; o++)
      if (q->out_type[o] == FL_F32) place[q->n_in + o] = (float *)args->out[o].data + at;
    for (int k = 0; k < q->n_code; k++) {
      const code *c = &q->code[k];
      handlers[c->op](place[c->dst], place[c->src[0]], place[c->src[1]], place[c->src[2]], n, c->a, c->b);
    }
    for (int o = 0; o < q->n_out; o++)
      if (q->out_type[o] != FL_F32) store_row(&args->out[o], at, place[q->out_slot[o]], n);
  }
}

static void run_pointwise(const fl_run_args *args) {
  const params *q = args->params;
  if (q->total == 0) return;
  fl_parallel(args->pool, (q->total + q->tile - 1) / q->tile, q->grain, run_tiles, (void *)(uintptr_t)args);
}

const fl_kernel FL_NAMED(pointwise) = {FL_NAME("pointwise"), FL_OP_POINTWISE, FL_ISA_HERE, plan_pointwise, NULL,
                                       run_pointwise};
