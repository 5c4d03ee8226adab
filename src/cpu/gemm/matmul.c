/* MATMUL of f32, or of bf16 where the processor multiplies it: constant B packed when the plan is built, any other B
 * packed into scratch on each run. */
#include <string.h>

#include "cpu/gemm/gemm.h"
#include "cpu/ref.h"

enum { A, B, BIAS, RESIDUAL };
#define SCRATCH_LIMIT (8u << 20) /* bytes of B packed at once, if more than one matrix */

typedef struct matmul_params {
  int isa;
  bool half, packed, trans_b, has_bias, has_residual;
  fl_gemm_b shape;
  int64_t m;                              /* rows of one product */
  int64_t batches;                        /* products: 1 when B is one matrix, whatever A's batch dimensions */
  int64_t b_matrices, b_at_once, bias_at; /* bf16: where in scratch the bias is f32 */
  fl_epilogue epilogue;
} matmul_params;

static const char *why_not(const fl_problem *p, bool half) {
  const fl_type *a = &p->in[A].type, *b = &p->in[B].type;
  if (half && (a->dtype != FL_BF16 || b->dtype != FL_BF16)) return "bf16 only";
  if (!half && (a->dtype != FL_F32 || b->dtype != FL_F32)) return "f32 only";
  if (a->rank < 2 || b->rank < 2) return "rank below 2";
  return NULL;
}

static int64_t batch_count(const fl_type *t) {
  int64_t n = 1;
  for (int d = 0; d < t->rank - 2; d++) n *= t->dims[d];
  return n;
}

static void describe(const fl_problem *p, int isa, matmul_params *out) {
  const fl_type *a = &p->in[A].type, *b = &p->in[B].type;
  memset(out, 0, sizeof *out);
  out->isa = isa;
  out->half = isa == FL_ISA_AVX512_BF16;
  out->trans_b = fl_attr_int(p->attrs, "trans_b", 0) != 0;
  out->b_matrices = batch_count(b);
  const int64_t k = a->dims[a->rank - 1];
  out->shape =
      fl_gemm_b_make(fl_gemm_of(isa), out->half ? k / 2 + k % 2 : k, b->dims[b->rank - (out->trans_b ? 2 : 1)]);
  out->has_bias = p->n_in > BIAS && !p->absent[BIAS];
  out->has_residual = p->n_in > RESIDUAL && !p->absent[RESIDUAL];
  out->packed = p->constant[B] && out->b_matrices == 1;
  const fl_type *c = &p->out[0];
  out->batches = out->b_matrices == 1 ? 1 : batch_count(c);
  out->m = out->b_matrices == 1 ? batch_count(c) * a->dims[a->rank - 2] : a->dims[a->rank - 2];
  out->epilogue = fl_epilogue_of(p->attrs);
}

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const char *why = why_not(p, isa == FL_ISA_AVX512_BF16);
  if (why) return why;
  matmul_params *m = fl_arena_alloc(arena, sizeof *m);
  if (!m) return "out of memory";
  describe(p, isa, m);
  const size_t b_bytes = fl_gemm_b_bytes(&m->shape);
  if (b_bytes == SIZE_MAX) return "B is too large";
  const size_t block = (b_bytes + 63) & ~(size_t)63;
  if (m->packed) {
    plan->packed_bytes[B] = b_bytes ? b_bytes : sizeof(float);
    plan->pack_scales = !m->half;
    plan->pack_pieces = fl_gemm_panels(fl_gemm_of(isa), &m->shape);
    plan->pack_form[0] = m->trans_b;
  } else {
    m->b_at_once = block && SCRATCH_LIMIT / block > 1 ? (int64_t)(SCRATCH_LIMIT / block) : 1;
    if (m->b_at_once > m->batches) m->b_at_once = m->batches > 0 ? m->batches : 1;
    plan->scratch_bytes = block * (size_t)m->b_at_once;
  }
  m->bias_at = (int64_t)plan->scratch_bytes;
  if (m->half && m->has_bias) plan->scratch_bytes += (size_t)m->shape.n * sizeof(float);
  if (m->has_bias) plan->in_layout[BIAS] = FL_LAYOUT_CONTIGUOUS;
  if (m->has_residual) {
    plan->in_layout[RESIDUAL] = FL_LAYOUT_CONTIGUOUS;
    plan->in_place = RESIDUAL;
  }
  plan->params = m;
  plan->params_bytes = sizeof *m;
  const double mnk = (double)m->batches * (double)m->m * (double)m->shape.n * (double)m->shape.k;
  const double bytes = 4.0 * (double)m->b_matrices * (double)m->shape.k * (double)m->shape.n;
  /* Of bf16, k counts pairs. */
  plan->cost_us = (2e-3 * mnk / 50 + bytes * (m->packed ? 1e-4 : 4e-4)) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

/* Panels [p0, p1) of a matrix that begins `offset` elements into b. */
static void pack_panels(const matmul_params *m, const fl_tensor *b, int64_t offset, const float *scale, float *dst,
                        int64_t p0, int64_t p1) {
  const fl_gemm_isa *isa = fl_gemm_of(m->isa);
  const int r = b->type.rank;
  const int64_t sn = b->strides[m->trans_b ? r - 2 : r - 1], sk = b->strides[m->trans_b ? r - 1 : r - 2];
  const int64_t k = b->type.dims[m->trans_b ? r - 1 : r - 2];
  if (m->half) {
    fl_gemm_pack_half(isa, &m->shape, dst, (const uint16_t *)b->data + offset, sn, sk, k, p0, p1);
    return;
  }
  const fl_gemm_src s = {.data = (const float *)b->data + offset,
                         .scale = scale,
                         .sn = sn,
                         .dims = {1, 1, k ? k : 1},
                         .strides = {0, 0, sk}};
  fl_gemm_pack(isa, &m->shape, dst, &s, p0, p1);
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  pack_panels(a->params, a->src, 0, a->scale, a->dst, begin, end);
}

typedef struct run_state {
  const matmul_params *m;
  const fl_run_args *args;
  const fl_gemm_isa *isa;
  float *packed;
  int64_t first, block; /* first product of this round; floats of one packed B */
} run_state;

/* Offset of product `batch` in a tensor that broadcasts against the result. */
static int64_t batch_offset(const fl_tensor *t, const fl_type *out, int64_t batch) {
  int64_t offset = 0;
  for (int d = out->rank - 3, i = t->type.rank - 3; d >= 0; d--, i--) {
    const int64_t at = batch % out->dims[d];
    batch /= out->dims[d];
    if (i >= 0 && t->type.dims[i] != 1) offset += at * t->strides[i];
  }
  return offset;
}

static void pack_tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const fl_tensor *b = &s->args->in[B];
  const int64_t panels = fl_gemm_panels(s->isa, &s->m->shape);
  for (int64_t i = begin; i < end; i++) {
    const int64_t which = i / panels, p = i % panels;
    const int64_t offset = s->m->b_matrices == 1 ? 0 : batch_offset(b, &s->args->out[0].type, s->first + which);
    pack_panels(s->m, b, offset, NULL, s->packed + which * s->block, p, p + 1);
  }
}

static void set_batch(const void *arg, int64_t batch, fl_gemm *g) {
  const run_state *s = arg;
  const fl_type *out = &s->args->out[0].type;
  const int64_t at = s->first + batch, result = at * s->m->m * s->m->shape.n;
  g->offset = batch_offset(&s->args->in[A], out, at);
  g->b = s->packed + batch * s->block;
  if (g->half) {
    g->half += result;
    if (g->half_residual) g->half_residual += result;
    return;
  }
  g->c += result;
  if (g->residual) g->residual += result;
}

/* Where results go, and what is added to them. */
static void set_result(const fl_run_args *args, fl_gemm *g) {
  const matmul_params *m = args->params;
  const void *bias = m->has_bias ? args->in[BIAS].data : NULL,
             *residual = m->has_residual ? args->in[RESIDUAL].data : NULL;
  if (!m->half) {
    g->c = args->out[0].data;
    g->bias = bias;
    g->residual = residual;
    return;
  }
  g->half = args->out[0].data;
  g->half_residual = residual;
  if (!bias) return;
  float *wide = (float *)((char *)args->scratch + m->bias_at);
  for (int64_t i = 0; i < m->shape.n; i++) wide[i] = fl_bf16_to_f32(((const uint16_t *)bias)[i]);
  g->bias = wide;
}

static void run(const fl_run_args *args) {
  const matmul_params *m = args->params;
  const fl_gemm_isa *isa = fl_gemm_of(m->isa);
  const fl_tensor *a = &args->in[A];
  const fl_rows rows = fl_rows_make(a, m->b_matrices == 1 ? 0 : a->type.rank - 2);
  fl_gemm g = {.isa = isa,
               .shape = m->shape,
               .b = args->in[B].data,
               .fetch = m->half ? fl_rows_fetch_half : fl_rows_fetch,
               .ctx = &rows,
               .m = m->m,
               .ldc = m->shape.n,
               .epilogue = m->epilogue};
  set_result(args, &g);
  if (m->packed) {
    fl_gemm_run(&g, args->pool);
    return;
  }
  run_state s = {.m = m, .args = args, .isa = isa, .packed = args->scratch};
  s.block = (int64_t)((fl_gemm_b_bytes(&m->shape) + 63) & ~(size_t)63) / (int64_t)sizeof(float);
  const int64_t panels = fl_gemm_panels(isa, &m->shape);
  for (s.first = 0; s.first < m->batches; s.first += m->b_at_once) {
    const int64_t n = m->batches - s.first < m->b_at_once ? m->batches - s.first : m->b_at_once;
    fl_parallel(args->pool, n * panels, 1, pack_tasks, &s);
    fl_gemm_run_batch(&g, n, set_batch, &s, args->pool);
  }
}

#define KERNEL(suffix, isa_)                                                                                           \
  static const char *plan_##suffix(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {                       \
    return plan_isa(p, arena, plan, isa_);                                                                             \
  }                                                                                                                    \
  const fl_kernel fl_kernel_matmul_##suffix = {                                                                        \
      .name = "matmul_" #suffix, .op = FL_OP_MATMUL, .isa = isa_, .plan = plan_##suffix, .pack = pack, .run = run};

KERNEL(avx512_bf16, FL_ISA_AVX512_BF16)
KERNEL(avx512, FL_ISA_AVX512)
KERNEL(avx2, FL_ISA_AVX2)
