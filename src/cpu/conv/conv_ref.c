/* The portable reference of CONV2D: any float type, strides, groups and dilation, sums in double. */
#include "cpu/act_ref.h"
#include "cpu/conv/conv.h"
#include "cpu/ref.h"

typedef struct params {
  fl_conv c;
  fl_act act;
  double lo, hi;
} params;

static const char *plan(const fl_problem *p, fl_arena *arena, fl_kernel_plan *out) {
  if (!fl_dtype_is_float(p->in[FL_CONV_X].type.dtype)) return "the operator is for floats only";
  if (p->in[FL_CONV_X].type.rank != 4) return "the input must have four axes";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->c = fl_conv_of(p);
  q->act = (fl_act)fl_attr_int(p->attrs, "act", FL_ACT_NONE);
  q->lo = fl_attr_float(p->attrs, "act_lo", 0);
  q->hi = fl_attr_float(p->attrs, "act_hi", 0);
  out->params = q;
  out->params_bytes = sizeof *q;
  out->cost_us = 0.3 + (fl_conv_mults(&q->c) + 4 * (double)fl_type_numel(&p->out[0])) * 0.003;
  return NULL;
}

static double window(const fl_run_args *r, const int64_t *at) {
  const fl_conv *c = &((const params *)r->params)->c;
  const fl_tensor *x = &r->in[FL_CONV_X], *w = &r->in[FL_CONV_W];
  const int64_t first = at[1] / c->og * c->cg;
  double sum = 0;
  for (int64_t i = 0; i < c->kh; i++)
    for (int64_t j = 0; j < c->kw; j++) {
      const int64_t h = at[2] * c->sh - c->top + i * c->dh, v = at[3] * c->sw - c->left + j * c->dw;
      if (h < 0 || h >= c->h || v < 0 || v >= c->w) continue;
      int64_t xi = at[0] * x->strides[0] + first * x->strides[1] + h * x->strides[2] + v * x->strides[3];
      int64_t wi = at[1] * w->strides[0] + i * w->strides[2] + j * w->strides[3];
      for (int64_t k = 0; k < c->cg; k++, xi += x->strides[1], wi += w->strides[1])
        sum += fl_ref_getf(x->data, x->type.dtype, xi) * fl_ref_getf(w->data, w->type.dtype, wi);
    }
  return sum;
}

static void range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *r = arg;
  const params *q = r->params;
  const fl_tensor *out = &r->out[0], *bias = &r->in[FL_CONV_BIAS], *add = &r->in[FL_CONV_RESIDUAL];
  int64_t at[FL_MAX_RANK];
  fl_ref_unravel(begin, &out->type, at);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&out->type, at)) {
    double v = window(r, at);
    if (q->c.has_bias) v += fl_ref_getf(bias->data, bias->type.dtype, at[1] * bias->strides[0]);
    if (q->c.has_residual) v += fl_ref_getf(add->data, add->type.dtype, fl_ref_offset(at, add->strides, 4));
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(at, out->strides, 4), fl_act_ref(v, q->act, q->lo, q->hi));
  }
}

static void run(const fl_run_args *args) {
  fl_run_args r = *args;
  fl_parallel(args->pool, fl_type_numel(&args->out[0].type), 32, range, &r);
}

const fl_kernel fl_kernel_conv2d_ref = {"conv2d_ref", FL_OP_CONV2D, FL_ISA_PORTABLE, plan, NULL, run};
