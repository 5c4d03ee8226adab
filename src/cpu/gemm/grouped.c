/* GROUPED_MATMUL: rows sorted by group, each group times a matrix of its own (mixtures of experts). Constant matrices
 * are packed when the plan is built, others into scratch, one after the other, as their group has rows. */
#include <string.h>

#include "cpu/gemm/gemm.h"
#include "cpu/ref.h"

enum { A, B, ENDS };

typedef struct grouped_params {
  int isa;
  bool packed;
  fl_gemm_b shape;
  int64_t groups, block; /* floats of one packed matrix */
} grouped_params;

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const fl_type *b = &p->in[B].type;
  if (p->in[A].type.dtype != FL_F32 || b->dtype != FL_F32) return "f32 only";
  grouped_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->isa = isa;
  q->groups = b->dims[0];
  q->shape = fl_gemm_b_make(fl_gemm_of(isa), b->dims[1], b->dims[2]);
  size_t bytes = fl_gemm_b_bytes(&q->shape), all;
  if (bytes == SIZE_MAX) return "B is too large";
  bytes = (bytes + 63) & ~(size_t)63;
  if (__builtin_mul_overflow(bytes, (size_t)q->groups, &all)) return "B is too large";
  q->block = (int64_t)(bytes / sizeof(float));
  q->packed = p->constant[B];
  if (q->packed)
    plan->packed_bytes[B] = all ? all : sizeof(float), plan->pack_pieces = q->groups;
  else
    plan->scratch_bytes = bytes;
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 1 + 2e-3 * (double)p->out[0].dims[0] * (double)b->dims[1] * (double)b->dims[2] / 50;
  return NULL;
}

typedef struct packing {
  const fl_gemm_isa *isa;
  const grouped_params *q;
  const fl_tensor *b;
  int64_t group;
  float *dst;
} packing;

static void pack_panels(void *arg, int64_t begin, int64_t end, int thread) {
  const packing *j = arg;
  const fl_gemm_src src = {.data = (const float *)j->b->data + j->group * j->b->strides[0],
                           .sn = j->b->strides[2],
                           .dims = {1, 1, j->q->shape.k ? j->q->shape.k : 1},
                           .strides = {0, 0, j->b->strides[1]}};
  fl_gemm_pack(j->isa, &j->q->shape, j->dst, &src, begin, end);
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const grouped_params *q = a->params;
  const fl_gemm_isa *isa = fl_gemm_of(q->isa);
  for (; begin < end; begin++) {
    packing j = {isa, q, a->src, begin, (float *)a->dst + begin * q->block};
    pack_panels(&j, 0, fl_gemm_panels(isa, &q->shape), 0);
  }
}

static void run(const fl_run_args *args) {
  const grouped_params *q = args->params;
  const fl_tensor *a = &args->in[A], *ends = &args->in[ENDS];
  const fl_rows rows = fl_rows_make(a, 0);
  const int64_t n = q->shape.n, total = a->type.dims[0];
  fl_gemm g = {.isa = fl_gemm_of(q->isa),
               .shape = q->shape,
               .fetch = fl_rows_fetch,
               .ctx = &rows,
               .ldc = n,
               .c = args->out[0].data};
  int64_t start = 0;
  for (int64_t e = 0; e < q->groups; e++) {
    int64_t end = fl_ref_geti(ends->data, ends->type.dtype, e * ends->strides[0]);
    if (end < start || end > total) {
      fl_set_fault(args->fault);
      end = end < start ? start : total;
    }
    if (end == start) continue;
    packing j = {g.isa, q, &args->in[B], e, args->scratch};
    if (!q->packed) fl_parallel(args->pool, fl_gemm_panels(g.isa, &q->shape), 1, pack_panels, &j);
    g.b = q->packed ? (const float *)args->in[B].data + e * q->block : j.dst;
    g.offset = start * a->strides[0];
    g.m = end - start;
    fl_gemm_run(&g, args->pool);
    g.c += g.m * n;
    start = end;
  }
  memset(g.c, 0, (size_t)((total - start) * n) * sizeof *g.c);
}

#define KERNEL(suffix, isa_)                                                                                           \
  static const char *plan_##suffix(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {                       \
    return plan_isa(p, arena, plan, isa_);                                                                             \
  }                                                                                                                    \
  const fl_kernel fl_kernel_grouped_matmul_##suffix = {.name = "grouped_matmul_" #suffix,                              \
                                                       .op = FL_OP_GROUPED_MATMUL,                                     \
                                                       .isa = isa_,                                                    \
                                                       .plan = plan_##suffix,                                          \
                                                       .pack = pack,                                                   \
                                                       .run = run};

KERNEL(avx512, FL_ISA_AVX512)
KERNEL(avx2, FL_ISA_AVX2)

/* --- the reference --- */

static const char *plan_ref(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!fl_dtype_is_float(p->in[A].type.dtype)) return "the operator is for floats only";
  const fl_type *b = &p->in[B].type;
  plan->cost_us = 1 + 4e-3 * (double)p->out[0].dims[0] * (double)b->dims[1] * (double)b->dims[2];
  return NULL;
}

static void product(const fl_run_args *args, int64_t row, int64_t group) {
  const fl_tensor *a = &args->in[A], *b = &args->in[B], *out = &args->out[0];
  const fl_dtype t = a->type.dtype;
  for (int64_t n = 0; n < b->type.dims[2]; n++) {
    double sum = 0;
    for (int64_t k = 0; k < b->type.dims[1] && group >= 0; k++)
      sum += fl_ref_getf(a->data, t, row * a->strides[0] + k * a->strides[1]) *
             fl_ref_getf(b->data, t, group * b->strides[0] + k * b->strides[1] + n * b->strides[2]);
    fl_ref_setf(out->data, t, row * out->strides[0] + n * out->strides[1], sum);
  }
}

static void run_ref(const fl_run_args *args) {
  const fl_tensor *ends = &args->in[ENDS];
  const int64_t total = args->in[A].type.dims[0];
  int64_t row = 0;
  for (int64_t e = 0; e < ends->type.dims[0]; e++) {
    int64_t end = fl_ref_geti(ends->data, ends->type.dtype, e * ends->strides[0]);
    if (end < row || end > total) fl_set_fault(args->fault);
    for (; row < end && row < total; row++) product(args, row, e);
  }
  for (; row < total; row++) product(args, row, -1);
}

const fl_kernel fl_kernel_grouped_matmul_ref = {
    .name = "grouped_matmul_ref", .op = FL_OP_GROUPED_MATMUL, .isa = FL_ISA_PORTABLE, .plan = plan_ref, .run = run_ref};
