/* Attention, one query row at a time: its scores lie in the thread's scratch as doubles. A row whose keys are all
 * masked gives zeros, as PyTorch's kernels do. */
#include "cpu/ref.h"

typedef struct params {
  double scale;
  bool causal, has_mask;
} params;

static int pool_bound(const fl_problem *p) { return p->threads > 1 ? p->threads : 1; }

static const char *plan_attention(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  for (int i = 0; i < 3; i++)
    if (p->in[i].type.rank != 4 || !fl_dtype_is_float(p->in[i].type.dtype))
      return "q, k, v must be floats of four axes";
  const fl_type *q = &p->in[0].type, *k = &p->in[1].type, *v = &p->in[2].type;
  if (k->dims[1] == 0 ? q->dims[1] != 0 : q->dims[1] % k->dims[1] != 0) return "key heads must divide query heads";
  if (k->dims[2] != v->dims[2] || k->dims[1] != v->dims[1] || k->dims[3] != q->dims[3] || k->dims[0] != q->dims[0])
    return "q, k, v do not fit together";
  params *a = fl_arena_alloc(arena, sizeof *a);
  if (!a) return "out of memory";
  a->has_mask = p->n_in > 3 && !p->absent[3];
  if (a->has_mask && p->in[3].type.dtype != FL_BOOL && !fl_dtype_is_float(p->in[3].type.dtype))
    return "the mask must be bool or float";
  a->scale = fl_attr_float(p->attrs, "scale", 1 / sqrt((double)(q->dims[3] ? q->dims[3] : 1)));
  a->causal = fl_attr_int(p->attrs, "causal", 0) != 0;
  plan->params = a;
  plan->params_bytes = sizeof *a;
  plan->scratch_bytes = (size_t)pool_bound(p) * (size_t)k->dims[2] * sizeof(double);
  plan->cost_us = 0.3 + (double)fl_type_numel(q) * (double)k->dims[2] * 0.02;
  return NULL;
}

/* The mask's offset for (b, h, i, j): it aligns at the last axis, dims of 1 repeat. */
static int64_t mask_offset(const fl_tensor *m, const int64_t at[4]) {
  int64_t o = 0;
  for (int d = 0; d < m->type.rank; d++)
    if (m->type.dims[d] != 1) o += at[4 - m->type.rank + d] * m->strides[d];
  return o;
}

static double score(const fl_run_args *a, int64_t b, int64_t h, int64_t i, int64_t j) {
  const params *pr = a->params;
  const fl_tensor *q = &a->in[0], *k = &a->in[1], *m = &a->in[3];
  if (pr->causal && j > i) return -INFINITY;
  int64_t g = h / (q->type.dims[1] / k->type.dims[1]);
  int64_t qo = b * q->strides[0] + h * q->strides[1] + i * q->strides[2];
  int64_t ko = b * k->strides[0] + g * k->strides[1] + j * k->strides[2];
  double dot = 0;
  for (int64_t d = 0; d < q->type.dims[3]; d++)
    dot += fl_ref_getf(q->data, q->type.dtype, qo + d * q->strides[3]) *
           fl_ref_getf(k->data, k->type.dtype, ko + d * k->strides[3]);
  dot *= pr->scale;
  if (!pr->has_mask) return dot;
  int64_t mo = mask_offset(m, (int64_t[]){b, h, i, j});
  if (m->type.dtype == FL_BOOL) return fl_ref_geti(m->data, FL_BOOL, mo) ? dot : -INFINITY;
  return dot + fl_ref_getf(m->data, m->type.dtype, mo);
}

static void attention_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const fl_tensor *q = &a->in[0], *v = &a->in[2], *out = &a->out[0];
  int64_t H = q->type.dims[1], S = q->type.dims[2], T = v->type.dims[2], E = v->type.dims[3];
  for (int64_t r = begin; r < end; r++) {
    int64_t i = r % S, h = r / S % H, b = r / S / H, g = h / (H / v->type.dims[1]);
    double max = -INFINITY, sum = 0, *s = (double *)a->scratch + thread * T;
    for (int64_t j = 0; j < T; j++) {
      s[j] = score(a, b, h, i, j);
      max = max != max || max > s[j] ? max : s[j];
    }
    for (int64_t j = 0; j < T; j++) {
      s[j] = max == -INFINITY ? 0 : exp(s[j] - max);
      sum += s[j];
    }
    for (int64_t e = 0; e < E; e++) {
      double acc = 0;
      int64_t vo = b * v->strides[0] + g * v->strides[1] + e * v->strides[3];
      for (int64_t j = 0; j < T; j++) acc += s[j] * fl_ref_getf(v->data, v->type.dtype, vo + j * v->strides[2]);
      int64_t oo = b * out->strides[0] + h * out->strides[1] + i * out->strides[2] + e * out->strides[3];
      fl_ref_setf(out->data, out->type.dtype, oo, sum == 0 ? 0 : acc / sum);
    }
  }
}

static void run_attention(const fl_run_args *a) {
  const int64_t *d = a->in[0].type.dims;
  if (a->in[1].type.dims[1]) fl_parallel(a->pool, d[0] * d[1] * d[2], 1, attention_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_attention_ref = {"attention_ref", FL_OP_ATTENTION, FL_ISA_PORTABLE, plan_attention, NULL,
                                           run_attention};
