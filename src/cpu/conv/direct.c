#include "cpu/conv/direct.h"

#include <string.h>

#define MAX_CHANNELS 8

typedef struct direct_params {
  int isa;
  fl_conv c;
  fl_gemm_b shape;
  fl_epilogue epilogue;
  bool padded;  /* the image is copied into scratch with its padding; else read where it is */
  int64_t h, w; /* of the padded image */
} direct_params;

static const fl_direct_isa *direct_of(int isa) { return isa >= FL_ISA_AVX512 ? &fl_direct_avx512 : &fl_direct_avx2; }

static const char *why_not(const fl_problem *p, const fl_conv *c, int isa) {
  const char *why = fl_conv_why_not_f32(p);
  if (why) return why;
  if (c->groups != 1) return "more than one group";
  if (c->c > MAX_CHANNELS) return "many input channels";
  if (!fl_is_contiguous(&p->in[FL_CONV_X].type, p->in[FL_CONV_X].strides)) return "the input is not contiguous";
  if (c->sw != 1 && c->sw != 2 && c->sw != 4) return "stride is not 1, 2 or 4";
  if (c->dw != 1) return "dilation along the row";
  if (c->has_residual) return "residual";
  if (c->ow < direct_of(isa)->mr) return "rows are short";
  if (!p->constant[FL_CONV_W]) return "weights are not constant";
  return NULL;
}

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  if (p->in[FL_CONV_X].type.rank != 4) return "the input must have four axes";
  const fl_conv c = fl_conv_of(p);
  const char *why = why_not(p, &c, isa);
  if (why) return why;
  direct_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  *q = (direct_params){.isa = isa, .c = c, .epilogue = fl_epilogue_of(p->attrs)};
  q->shape = fl_gemm_b_make(fl_gemm_of(isa), c.c * c.kh * c.kw, c.o);
  if (q->shape.blocks != 1 || !q->shape.k) return "the window is large";
  q->h = (c.oh - 1) * c.sh + (c.kh - 1) * c.dh + 1;
  q->w = (c.ow - 1) * c.sw + c.kw;
  q->padded = c.top || c.left || q->h > c.h || q->w > c.w;
  if (q->padded) plan->scratch_bytes = (size_t)(c.c * q->h * q->w) * sizeof(float);
  plan->packed_bytes[FL_CONV_W] = fl_gemm_b_bytes(&q->shape);
  plan->pack_pieces = fl_gemm_panels(fl_gemm_of(isa), &q->shape);
  plan->in_layout[FL_CONV_X] = FL_LAYOUT_CONTIGUOUS;
  fl_conv_plan_nhwc(p, &c, plan);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const double copied = q->padded ? (double)c.n * (double)(c.c * q->h * q->w) : 0;
  plan->cost_us = (2e-3 / 50 * fl_conv_mults(&c) + 2e-4 * copied) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const direct_params *q = a->params;
  const fl_tensor *w = a->src;
  const fl_gemm_src s = {.data = w->data,
                         .scale = a->scale,
                         .sn = w->strides[0],
                         .dims = {q->c.c, q->c.kh, q->c.kw},
                         .strides = {w->strides[1], w->strides[2], w->strides[3]}};
  fl_gemm_pack(fl_gemm_of(q->isa), &q->shape, a->dst, &s, begin, end);
}

typedef struct run_state {
  const direct_params *q;
  const fl_run_args *args;
  const float *image; /* of this round, as the caller holds it */
  float *padded;
  fl_direct d; /* x and out.c at the first row */
} run_state;

static int64_t clip(int64_t v, int64_t hi) { return v < 0 ? 0 : v > hi ? hi : v; }

/* Row i of the padded image, counted through all channels. */
static void pad_rows(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const fl_conv *c = &s->q->c;
  const int64_t w = s->q->w, left = clip(c->left, w), n = clip(c->w, w - left);
  for (int64_t i = begin; i < end; i++) {
    const int64_t channel = i / s->q->h, h = i % s->q->h - c->top;
    float *dst = s->padded + i * w;
    if (h < 0 || h >= c->h) {
      memset(dst, 0, (size_t)w * sizeof *dst);
      continue;
    }
    memset(dst, 0, (size_t)left * sizeof *dst);
    fl_gemm_of(s->q->isa)->copy(dst + left, s->image + (channel * c->h + h) * c->w, n);
    memset(dst + left + n, 0, (size_t)(w - left - n) * sizeof *dst);
  }
}

static void rows(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const fl_conv *c = &s->q->c;
  const int64_t width = s->q->padded ? s->q->w : c->w;
  for (int64_t i = begin; i < end; i++) {
    fl_direct d = s->d;
    d.x += i * c->sh * width;
    d.out.c += i * c->ow * c->o;
    direct_of(s->q->isa)->row(&d);
  }
}

static void run(const fl_run_args *args) {
  const direct_params *q = args->params;
  const fl_conv *c = &q->c;
  const int64_t h = q->padded ? q->h : c->h, w = q->padded ? q->w : c->w;
  run_state s = {.q = q, .args = args, .padded = args->scratch};
  s.d = (fl_direct){
      .channels = c->c,
      .kh = c->kh,
      .kw = c->kw,
      .stride = c->sw,
      .channel_step = h * w,
      .window_step = c->dh * w,
      .b = args->in[FL_CONV_W].data,
      .pixels = c->ow,
      .out = {
          .ldc = c->o, .n = c->o, .bias = c->has_bias ? args->in[FL_CONV_BIAS].data : NULL, .epilogue = q->epilogue}};
  for (int64_t n = 0; n < c->n; n++) {
    s.image = (const float *)args->in[FL_CONV_X].data + n * c->c * c->h * c->w;
    s.d.x = q->padded ? s.padded : s.image;
    s.d.out.c = (float *)args->out[0].data + n * c->oh * c->ow * c->o;
    if (q->padded) fl_parallel(args->pool, c->c * q->h, 16, pad_rows, &s);
    fl_parallel(args->pool, c->oh, 1, rows, &s);
  }
}

FL_CONV_KERNEL(direct, avx512, FL_ISA_AVX512)
FL_CONV_KERNEL(direct, avx2, FL_ISA_AVX2)
