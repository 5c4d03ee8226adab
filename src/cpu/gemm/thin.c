/* MATMUL of a few rows by one matrix, f32. What takes time is reading the matrix: packing it would make no run faster, and
 * cost a copy of it, or, where it is not constant, more than the product. */
#include <string.h>

#include "cpu/gemm/thin.h"

enum { A, B, BIAS, RESIDUAL };

typedef struct thin_params {
  int isa, m;
  bool trans_b, has_bias, has_residual;
  int64_t n, k;
  fl_epilogue epilogue;
} thin_params;

static const char *why_not(const fl_problem *p, bool trans_b) {
  const fl_type *a = &p->in[A].type, *b = &p->in[B].type;
  if (a->dtype != FL_F32 || b->dtype != FL_F32) return "f32 only";
  if (a->rank < 2 || b->rank < 2) return "rank below 2";
  int64_t matrices = 1, m = 1;
  for (int d = 0; d < b->rank - 2; d++) matrices *= b->dims[d];
  for (int d = 0; d < p->out[0].rank - 1; d++) m *= p->out[0].dims[d];
  if (matrices != 1) return "more than one matrix";
  if (m < 1 || m > FL_THIN_ROWS) return "not a few rows";
  const int k_axis = b->rank - (trans_b ? 1 : 2);
  if (b->dims[k_axis] > 1 && p->in[B].strides[k_axis] != 1) return "columns are not adjacent in memory";
  return NULL;
}

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const bool trans_b = fl_attr_int(p->attrs, "trans_b", 0) != 0;
  const char *why = why_not(p, trans_b);
  if (why) return why;
  thin_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  const fl_type *out = &p->out[0], *a = &p->in[A].type;
  *q = (thin_params){.isa = isa, .trans_b = trans_b, .n = out->dims[out->rank - 1], .k = a->dims[a->rank - 1]};
  q->m = 1;
  for (int d = 0; d < out->rank - 1; d++) q->m *= (int)out->dims[d];
  q->has_bias = p->n_in > BIAS && !p->absent[BIAS];
  q->has_residual = p->n_in > RESIDUAL && !p->absent[RESIDUAL];
  q->epilogue = fl_epilogue_of(p->attrs);
  plan->in_layout[A] = FL_LAYOUT_ROWS;
  if (q->has_bias) plan->in_layout[BIAS] = FL_LAYOUT_CONTIGUOUS;
  if (q->has_residual) {
    plan->in_layout[RESIDUAL] = FL_LAYOUT_CONTIGUOUS;
    plan->in_place = RESIDUAL;
  }
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const double kn = (double)q->k * (double)q->n;
  plan->cost_us = (2e-3 * q->m * kn / 50 + 4e-4 * kn) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

typedef struct run_state {
  const thin_params *q;
  fl_thin t;
} run_state;

static void tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const fl_thin *t = &s->t;
  const thin_params *q = s->q;
  (q->isa >= FL_ISA_AVX512 ? fl_thin_avx512 : fl_thin_avx2)(t, begin, end);
  if (q->epilogue.act == FL_ACT_NONE) return;
  for (int i = 0; i < t->m; i++) fl_gemm_of(q->isa)->act(t->c + i * t->ldc + begin, end - begin, q->epilogue);
}

static void run(const fl_run_args *args) {
  const thin_params *q = args->params;
  const fl_tensor *a = &args->in[A], *b = &args->in[B];
  run_state s = {.q = q,
                 .t = {.w = b->data,
                       .bias = q->has_bias ? args->in[BIAS].data : NULL,
                       .residual = q->has_residual ? args->in[RESIDUAL].data : NULL,
                       .c = args->out[0].data,
                       .k = q->k,
                       .sn = b->strides[b->type.rank - (q->trans_b ? 2 : 1)],
                       .ldc = q->n,
                       .m = q->m}};
  for (int i = 0; i < q->m; i++) {
    const float *row = a->data;
    for (int64_t d = a->type.rank - 2, left = i; d >= 0; left /= a->type.dims[d], d--)
      row += left % a->type.dims[d] * a->strides[d];
    s.t.x[i] = row;
  }
  /* Chunks of some 64 KB of weights at least, and of whole cache lines of the result. */
  const int64_t line = 16, least = 16384 / (q->k + 1);
  fl_parallel(args->pool, q->n, least / line * line + line, tasks, &s);
}

#define KERNEL(suffix, isa_)                                                                                           \
  static const char *plan_##suffix(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {                       \
    return plan_isa(p, arena, plan, isa_);                                                                             \
  }                                                                                                                    \
  const fl_kernel fl_kernel_matmul_thin_##suffix = {                                                                   \
      .name = "matmul_thin_" #suffix, .op = FL_OP_MATMUL, .isa = isa_, .plan = plan_##suffix, .run = run};

KERNEL(avx512, FL_ISA_AVX512)
KERNEL(avx2, FL_ISA_AVX2)
