/* The portable reference of CONV_TRANSPOSE2D: any float type, strides, groups and dilation, sums in double. Each result
 * gathers the inputs whose windows reach it. */
#include "cpu/ref.h"

enum { X, W, BIAS };

typedef struct params {
  int64_t stride[2], pad[2], dilation[2], groups;
  bool has_bias;
} params;

static void read_pair(const fl_problem *p, const char *key, int64_t *dst) {
  int n;
  const int64_t *v = fl_attr_list(p->attrs, key, &n);
  for (int i = 0; i < 2 && i < n; i++) dst[i] = v[i];
}

static const char *plan(const fl_problem *p, fl_arena *arena, fl_kernel_plan *out) {
  if (!fl_dtype_is_float(p->in[X].type.dtype)) return "the operator is for floats only";
  if (p->in[X].type.rank != 4) return "the input must have four axes";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  *q = (params){.stride = {1, 1}, .dilation = {1, 1}, .groups = fl_attr_int(p->attrs, "groups", 1)};
  read_pair(p, "stride", q->stride);
  read_pair(p, "pad", q->pad);
  read_pair(p, "dilation", q->dilation);
  q->has_bias = p->n_in > BIAS && !p->absent[BIAS];
  out->params = q;
  out->params_bytes = sizeof *q;
  out->cost_us = 0.3 + (double)fl_type_numel(&p->in[X].type) * (double)fl_type_numel(&p->in[W].type) /
                           ((double)p->in[X].type.dims[1] + 1) * 0.003;
  return NULL;
}

/* The input index whose window element k falls on result index `at`, or -1. */
static int64_t source(const params *q, int axis, int64_t at, int64_t k, int64_t size) {
  const int64_t v = at + q->pad[axis] - k * q->dilation[axis];
  if (v < 0 || v % q->stride[axis] || v / q->stride[axis] >= size) return -1;
  return v / q->stride[axis];
}

static double element(const fl_run_args *r, const int64_t *at) {
  const params *q = r->params;
  const fl_tensor *x = &r->in[X], *w = &r->in[W];
  const int64_t og = w->type.dims[1], ig = x->type.dims[1] / q->groups, group = at[1] / og;
  double sum = 0;
  for (int64_t i = 0; i < w->type.dims[2]; i++) {
    const int64_t h = source(q, 0, at[2], i, x->type.dims[2]);
    for (int64_t j = 0; h >= 0 && j < w->type.dims[3]; j++) {
      const int64_t v = source(q, 1, at[3], j, x->type.dims[3]);
      if (v < 0) continue;
      const int64_t xi = at[0] * x->strides[0] + h * x->strides[2] + v * x->strides[3];
      const int64_t wi = at[1] % og * w->strides[1] + i * w->strides[2] + j * w->strides[3];
      for (int64_t c = group * ig; c < (group + 1) * ig; c++)
        sum += fl_ref_getf(x->data, x->type.dtype, xi + c * x->strides[1]) *
               fl_ref_getf(w->data, w->type.dtype, wi + c * w->strides[0]);
    }
  }
  if (q->has_bias) sum += fl_ref_getf(r->in[BIAS].data, r->in[BIAS].type.dtype, at[1] * r->in[BIAS].strides[0]);
  return sum;
}

static void range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *r = arg;
  const fl_tensor *out = &r->out[0];
  int64_t at[FL_MAX_RANK];
  fl_ref_unravel(begin, &out->type, at);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&out->type, at))
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(at, out->strides, 4), element(r, at));
}

static void run(const fl_run_args *args) {
  fl_run_args r = *args;
  fl_parallel(args->pool, fl_type_numel(&args->out[0].type), 32, range, &r);
}

const fl_kernel fl_kernel_conv_transpose2d_ref = {
    "conv_transpose2d_ref", FL_OP_CONV_TRANSPOSE2D, FL_ISA_PORTABLE, plan, NULL, run};
