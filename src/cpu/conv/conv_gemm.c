/* CONV2D as a matrix product: rows are output pixels, K runs over the window and the input channels. The rows of A are
 * never stored as a whole: each A tile is gathered into L1 when it is needed. */
#include <string.h>

#include "cpu/conv/conv.h"
#include "cpu/gemm/gemm.h"

typedef struct gemm_params {
  int isa;
  fl_conv c;
  bool packed; /* weights are constant; else they are packed into scratch on each run */
  /* Contiguous input, K ordered (channel, window row, window column); else NHWC and (row, column, channel). */
  bool nchw;
  fl_gemm_b shape; /* of one group */
  fl_epilogue epilogue;
} gemm_params;

/* An NCHW input is taken as it is where a pixel's few channels would not fill a vector anyway. */
#define NCHW_CHANNELS 4

static int64_t pieces(const gemm_params *q) { return q->c.groups * fl_gemm_panels(fl_gemm_of(q->isa), &q->shape); }

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const char *why = fl_conv_why_not_f32(p);
  if (why) return why;
  gemm_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  const fl_conv c = q->c = fl_conv_of(p);
  q->isa = isa;
  q->epilogue = fl_epilogue_of(p->attrs);
  q->nchw = c.c <= NCHW_CHANNELS && c.groups == 1 && c.dw == 1 &&
            fl_is_contiguous(&p->in[FL_CONV_X].type, p->in[FL_CONV_X].strides);
  plan->in_layout[FL_CONV_X] = q->nchw ? FL_LAYOUT_CONTIGUOUS : FL_LAYOUT_CHANNELS_LAST;
  q->shape = fl_gemm_b_make(fl_gemm_of(isa), c.kh * c.kw * c.cg, c.og);
  const size_t bytes = fl_gemm_b_bytes(&q->shape);
  size_t all;
  if (bytes == SIZE_MAX || !fl_mul_size(bytes, (size_t)c.groups, &all)) return "weights are too large";
  q->packed = p->constant[FL_CONV_W];
  plan->pack_pieces = pieces(q);
  plan->pack_form[0] = c.groups;
  plan->pack_form[1] = q->nchw;
  if (q->packed)
    plan->packed_bytes[FL_CONV_W] = all ? all : sizeof(float);
  else
    plan->scratch_bytes = all;
  fl_conv_plan_nhwc(p, &c, plan);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const int nr = fl_gemm_of(isa)->nr;
  const double columns = (double)((c.og + nr / 2 - 1) / (nr / 2) * (nr / 2)) / (double)(c.og ? c.og : 1);
  const double rows = (double)c.n * (double)c.oh * (double)c.ow, k = (double)q->shape.k * (double)c.groups;
  const bool runs = c.dw == 1 && c.groups == 1;
  const double pieces = (double)c.groups * (double)c.kh * (q->nchw ? (double)c.c : runs ? 1 : (double)c.kw);
  plan->cost_us = (2e-3 / 50 * fl_conv_mults(&c) * columns + rows * (1e-4 * k + 4e-3 * pieces) + 1e-4 * (double)all) *
                  (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

/* Panels [p0, p1) of one group. */
static void pack_group(const gemm_params *q, const fl_tensor *w, const float *scale, float *dst, int64_t group,
                       int64_t p0, int64_t p1) {
  const fl_conv *c = &q->c;
  const int64_t floats = (int64_t)(fl_gemm_b_bytes(&q->shape) / sizeof(float));
  fl_gemm_src s = {.data = (const float *)w->data + group * c->og * w->strides[0],
                   .scale = scale ? scale + group * c->og : NULL,
                   .sn = w->strides[0],
                   .dims = {c->kh, c->kw, c->cg},
                   .strides = {w->strides[2], w->strides[3], w->strides[1]}};
  if (q->nchw)
    s = (fl_gemm_src){.data = s.data,
                      .scale = s.scale,
                      .sn = s.sn,
                      .dims = {c->cg, c->kh, c->kw},
                      .strides = {w->strides[1], w->strides[2], w->strides[3]}};
  if (q->shape.k) fl_gemm_pack(fl_gemm_of(q->isa), &q->shape, dst + group * floats, &s, p0, p1);
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const gemm_params *q = a->params;
  const int64_t panels = fl_gemm_panels(fl_gemm_of(q->isa), &q->shape);
  for (int64_t i = begin; i < end; i++) pack_group(q, a->src, a->scale, a->dst, i / panels, i % panels, i % panels + 1);
}

static void pack_tasks(void *arg, int64_t begin, int64_t end, int thread) { pack(arg, begin, end); }

/* --- rows of A --- */

typedef struct image {
  const fl_conv *c;
  const float *x;
} image;

typedef struct pixel {
  int64_t n, h, w; /* image, and top left corner of the window in the input: may lie outside */
} pixel;

static pixel pixel_at(const fl_conv *c, int64_t row) {
  const int64_t ow = row % c->ow, oh = row / c->ow % c->oh;
  return (pixel){row / c->ow / c->oh, oh * c->sh - c->top, ow * c->sw - c->left};
}

static void zero(float *dst, int64_t n) { memset(dst, 0, (size_t)n * sizeof *dst); }
static int64_t clip(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

static void fetch_1x1(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int rows, int64_t k0,
                      int64_t kc, float *tile) {
  const image *m = ctx;
  const fl_conv *c = m->c;
  for (int i = 0; i < rows; i++, tile += FL_GEMM_AS) {
    const pixel p = pixel_at(c, row + i);
    isa->copy(tile, m->x + ((p.n * c->h + p.h) * c->w + p.w) * c->c + offset + k0, kc);
  }
}

/* One window row of an ungrouped NHWC input without dilation: the pixels lie side by side. [k, k_end) within the row. */
static void fetch_run(const image *m, const fl_gemm_isa *isa, pixel p, int64_t k, int64_t k_end, float *dst) {
  const fl_conv *c = m->c;
  const int64_t lo = clip(-p.w * c->c, k, k_end), hi = clip((c->w - p.w) * c->c, lo, k_end);
  const float *src = m->x + ((p.n * c->h + p.h) * c->w + p.w) * c->c;
  if (lo > k) zero(dst, lo - k);
  if (hi > lo) isa->copy(dst + (lo - k), src + lo, hi - lo);
  if (k_end > hi) zero(dst + (hi - k), k_end - hi);
}

static void fetch_taps(const image *m, int64_t offset, const fl_gemm_isa *isa, pixel p, int64_t k, int64_t k_end,
                       float *dst) {
  const fl_conv *c = m->c;
  while (k < k_end) {
    const int64_t v = p.w + k / c->cg * c->dw, ch = k % c->cg, n = clip(c->cg - ch, 0, k_end - k);
    if (v < 0 || v >= c->w)
      zero(dst, n);
    else
      isa->copy(dst, m->x + ((p.n * c->h + p.h) * c->w + v) * c->c + offset + ch, n);
    k += n;
    dst += n;
  }
}

static void fetch_nhwc(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int rows, int64_t k0,
                       int64_t kc, float *tile) {
  const image *m = ctx;
  const fl_conv *c = m->c;
  const int64_t per_row = c->kw * c->cg;
  const bool runs = c->dw == 1 && c->groups == 1;
  for (int i = 0; i < rows; i++, tile += FL_GEMM_AS) {
    const pixel p = pixel_at(c, row + i);
    for (int64_t k = k0; k < k0 + kc;) {
      const int64_t kh = k / per_row, at = k - kh * per_row, n = clip(per_row - at, 0, k0 + kc - k);
      pixel q = p;
      q.h += kh * c->dh;
      float *dst = tile + (k - k0);
      if (q.h < 0 || q.h >= c->h)
        zero(dst, n);
      else if (runs)
        fetch_run(m, isa, q, at, at + n, dst);
      else
        fetch_taps(m, offset, isa, q, at, at + n, dst);
      k += n;
    }
  }
}

/* Window rows of a contiguous NCHW input; a K block may begin and end within one. */
static void fetch_nchw(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int rows, int64_t k0,
                       int64_t kc, float *tile) {
  const image *m = ctx;
  const fl_conv *c = m->c;
  for (int i = 0; i < rows; i++, tile += FL_GEMM_AS) {
    const pixel p = pixel_at(c, row + i);
    int64_t kh = k0 / c->kw % c->kh, ch = k0 / c->kw / c->kh, at = k0 % c->kw;
    for (int64_t k = k0; k < k0 + kc;) {
      const int64_t n = clip(c->kw - at, 0, k0 + kc - k), h = p.h + kh * c->dh;
      float *dst = tile + (k - k0);
      const float *src = m->x + ((p.n * c->c + ch) * c->h + h) * c->w + p.w;
      if (h < 0 || h >= c->h)
        zero(dst, n);
      else {
        const int64_t lo = clip(-p.w, at, at + n), hi = clip(c->w - p.w, lo, at + n);
        for (int64_t j = at; j < lo; j++) dst[j - at] = 0;
        isa->copy(dst + (lo - at), src + lo, hi - lo);
        for (int64_t j = hi; j < at + n; j++) dst[j - at] = 0;
      }
      k += n;
      at = 0;
      if (++kh == c->kh) kh = 0, ch++;
    }
  }
}

/* --- run --- */

typedef struct group_state {
  const gemm_params *q;
  int64_t block; /* floats of one group's weights */
} group_state;

static void set_group(const void *arg, int64_t group, fl_gemm *g) {
  const group_state *s = arg;
  const int64_t column = group * s->q->c.og;
  g->offset = group * s->q->c.cg;
  g->b += group * s->block;
  g->c += column;
  if (g->bias) g->bias += column;
  if (g->residual) g->residual += column;
}

static fl_gemm_fetch fetch_of(const gemm_params *q) {
  const fl_conv *c = &q->c;
  if (q->nchw) return fetch_nchw;
  const bool inside = c->top == 0 && c->left == 0 && (c->oh - 1) * c->sh < c->h && (c->ow - 1) * c->sw < c->w;
  return c->kh == 1 && c->kw == 1 && inside ? fetch_1x1 : fetch_nhwc;
}

static void run(const fl_run_args *args) {
  const gemm_params *q = args->params;
  const fl_conv *c = &q->c;
  const image m = {.c = c, .x = args->in[FL_CONV_X].data};
  if (!q->packed) {
    fl_pack_args p = {.params = q, .src = &args->in[FL_CONV_W], .dst = args->scratch};
    fl_parallel(args->pool, pieces(q), 1, pack_tasks, &p);
  }
  const fl_gemm g = {.isa = fl_gemm_of(q->isa),
                     .shape = q->shape,
                     .b = q->packed ? args->in[FL_CONV_W].data : args->scratch,
                     .fetch = fetch_of(q),
                     .ctx = &m,
                     .c = args->out[0].data,
                     .bias = c->has_bias ? args->in[FL_CONV_BIAS].data : NULL,
                     .residual = c->has_residual ? args->in[FL_CONV_RESIDUAL].data : NULL,
                     .m = c->n * c->oh * c->ow,
                     .ldc = c->o,
                     .epilogue = q->epilogue};
  const group_state s = {.q = q, .block = (int64_t)(fl_gemm_b_bytes(&q->shape) / sizeof(float))};
  fl_gemm_run_batch(&g, c->groups, set_group, &s, args->pool);
}

FL_CONV_KERNEL(gemm, avx512, FL_ISA_AVX512)
FL_CONV_KERNEL(gemm, avx2, FL_ISA_AVX2)
