/* The portable reference of MATMUL: any float type, any strides, sums in double. */
#include "cpu/act_ref.h"
#include "cpu/ref.h"

enum { A, B, BIAS, RESIDUAL };

typedef struct params {
  bool trans_b, has_bias, has_residual;
  fl_act act;
  double lo, hi;
} params;

static const char *plan(const fl_problem *p, fl_arena *arena, fl_kernel_plan *out) {
  if (!fl_dtype_is_float(p->in[A].type.dtype)) return "the operator is for floats only";
  if (p->in[A].type.rank < 2 || p->in[B].type.rank < 2) return "operands must have two axes or more";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->trans_b = fl_attr_int(p->attrs, "trans_b", 0) != 0;
  q->has_bias = p->n_in > BIAS && !p->absent[BIAS];
  q->has_residual = p->n_in > RESIDUAL && !p->absent[RESIDUAL];
  q->act = (fl_act)fl_attr_int(p->attrs, "act", FL_ACT_NONE);
  q->lo = fl_attr_float(p->attrs, "act_lo", 0);
  q->hi = fl_attr_float(p->attrs, "act_hi", 0);
  out->params = q;
  out->params_bytes = sizeof *q;
  const fl_type *a = &p->in[A].type;
  out->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * (double)(a->dims[a->rank - 1] + 4) * 0.003;
  return NULL;
}

/* Offset of the matrix of `t` that belongs to result coordinates `c`. */
static int64_t matrix_offset(const fl_tensor *t, const int64_t *c, int out_rank) {
  int64_t o = 0;
  for (int d = t->type.rank - 3, e = out_rank - 3; d >= 0; d--, e--)
    if (t->type.dims[d] != 1) o += c[e] * t->strides[d];
  return o;
}

static double element(const fl_run_args *r, const int64_t *c) {
  const params *q = r->params;
  const fl_tensor *a = &r->in[A], *b = &r->in[B], *out = &r->out[0];
  const int rank = out->type.rank, ra = a->type.rank, rb = b->type.rank;
  const fl_dtype t = a->type.dtype;
  const int64_t sk = b->strides[rb - (q->trans_b ? 1 : 2)], sn = b->strides[rb - (q->trans_b ? 2 : 1)];
  int64_t ai = matrix_offset(a, c, rank) + c[rank - 2] * a->strides[ra - 2];
  int64_t bi = matrix_offset(b, c, rank) + c[rank - 1] * sn;
  double sum = 0;
  for (int64_t k = 0; k < a->type.dims[ra - 1]; k++, ai += a->strides[ra - 1], bi += sk)
    sum += fl_ref_getf(a->data, t, ai) * fl_ref_getf(b->data, t, bi);
  if (q->has_bias) sum += fl_ref_getf(r->in[BIAS].data, r->in[BIAS].type.dtype, c[rank - 1] * r->in[BIAS].strides[0]);
  if (q->has_residual) sum += fl_ref_getf(r->in[RESIDUAL].data, t, fl_ref_offset(c, r->in[RESIDUAL].strides, rank));
  return fl_act_ref(sum, q->act, q->lo, q->hi);
}

static void range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *r = arg;
  const fl_tensor *out = &r->out[0];
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin, &out->type, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&out->type, c))
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(c, out->strides, out->type.rank), element(r, c));
}

static void run(const fl_run_args *args) {
  fl_run_args r = *args;
  fl_parallel(args->pool, fl_type_numel(&args->out[0].type), 64, range, &r);
}

const fl_kernel fl_kernel_matmul_ref = {"matmul_ref", FL_OP_MATMUL, FL_ISA_PORTABLE, plan, NULL, run};
