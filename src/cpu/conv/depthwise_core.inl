/* The loops of depthwise.h, instantiated by depthwise_avx512.c and depthwise_avx2.c, which include vmath first and define
 * T, the output pixels computed side by side, and ROW, the name of the entry. */

#include "cpu/conv/depthwise.h"

#define MAX_COLUMNS ((T - 1) * 2 + 7)

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where T pixels of one output row are computed. */
typedef struct spot {
  const float *x;        /* top left corner of the first pixel's window, channel 0; may lie outside the image */
  float *y;              /* first pixel, channel 0 */
  const float *r;        /* of the residual, or NULL */
  int64_t kh0, kh1;      /* window rows inside the image */
  int count;             /* pixels stored, at most T */
  vm valid[MAX_COLUMNS]; /* of each input column: inside the image? */
} spot;

FL_INLINE vf finish(vf v, const fl_epilogue *e) {
  if (e->act == FL_ACT_RELU) return vf_relu(v);
  if (e->act == FL_ACT_CLAMP) return vf_clamp(v, vf_set1(e->lo), vf_set1(e->hi));
  return v;
}

/* T pixels of one channel vector. Unless `masked`, all columns, pixels and lanes are there. */
FL_INLINE void pixels(const int kw, const int stride, const bool masked, const fl_depthwise *d, const spot *s,
                      int64_t c, vm lanes) {
  vf acc[T];
  const vf bias = !d->bias ? vf_zero() : masked ? vf_load_mask(d->bias + c, lanes) : vf_load(d->bias + c);
  for (int t = 0; t < T; t++) acc[t] = bias;
  for (int64_t kh = s->kh0; kh < s->kh1; kh++) {
    const float *x = s->x + kh * d->c.dh * d->c.w * d->c.c + c, *w = d->w + kh * kw * d->c_padded + c;
    vf wv[7];
#pragma GCC unroll 7
    for (int j = 0; j < kw; j++) wv[j] = vf_load(w + j * d->c_padded);
#pragma GCC unroll 20
    for (int col = 0; col < (T - 1) * stride + kw; col++, x += d->c.c) {
      const vf xv = masked ? vf_load_mask(x, vm_and(lanes, s->valid[col])) : vf_load(x);
#pragma GCC unroll 7
      for (int j = 0; j < kw; j++)
        if (col >= j && (col - j) % stride == 0 && (col - j) / stride < T)
          acc[(col - j) / stride] = vf_fma(xv, wv[j], acc[(col - j) / stride]);
    }
  }
  for (int t = 0; t < T; t++) {
    if (masked && t >= s->count) break;
    const int64_t at = t * d->c.c + c;
    if (s->r) acc[t] = vf_add(acc[t], masked ? vf_load_mask(s->r + at, lanes) : vf_load(s->r + at));
    acc[t] = finish(acc[t], &d->epilogue);
    if (masked)
      vf_store_mask(s->y + at, lanes, acc[t]);
    else
      vf_store(s->y + at, acc[t]);
  }
}

FL_INLINE void block(const int kw, const int stride, bool edge, const fl_depthwise *d, const spot *s, int64_t c0,
                     int64_t c1) {
  int64_t c = c0;
  if (!edge)
    for (; c + VL <= c1; c += VL) pixels(kw, stride, false, d, s, c, vm_first(VL));
  for (; c < c1; c += VL) pixels(kw, stride, true, d, s, c, vm_first((int)min64(VL, c1 - c)));
}

/* Any window, stride and dilation: one pixel at a time. */
static void any_pixel(const fl_depthwise *d, const spot *s, int64_t iw, int64_t c, vm lanes) {
  const fl_conv *g = &d->c;
  vf acc = d->bias ? vf_load_mask(d->bias + c, lanes) : vf_zero();
  for (int64_t kh = s->kh0; kh < s->kh1; kh++)
    for (int64_t j = 0; j < g->kw; j++) {
      const int64_t v = iw + j * g->dw;
      if (v < 0 || v >= g->w) continue;
      const vf xv = vf_load_mask(s->x + (kh * g->dh * g->w + j * g->dw) * g->c + c, lanes);
      acc = vf_fma(xv, vf_load(d->w + (kh * g->kw + j) * d->c_padded + c), acc);
    }
  if (s->r) acc = vf_add(acc, vf_load_mask(s->r + c, lanes));
  vf_store_mask(s->y + c, lanes, finish(acc, &d->epilogue));
}

static void activate(const fl_depthwise *d, float *y, int64_t n) {
  int64_t i = 0;
  const fl_epilogue e = d->epilogue;
  for (; i < n; i += VL) {
    const vm m = vm_first((int)min64(VL, n - i));
    vf_store_mask(y + i, m, vf_act(vf_load_mask(y + i, m), e.act, e.lo, e.hi));
  }
}

void ROW(const fl_depthwise *d, int64_t n, int64_t oh, int64_t c0, int64_t c1) {
  const fl_conv *g = &d->c;
  const int64_t ih = oh * g->sh - g->top;
  const bool special = g->dw == 1 && (g->kw == 3 || g->kw == 5 || g->kw == 7) && (g->sw == 1 || g->sw == 2);
  const int step = special ? T : 1, columns = special ? (int)((T - 1) * g->sw + g->kw) : 0;
  const vm none = vm_first(0), all = vm_first(VL);
  spot s = {.kh0 = 0, .kh1 = g->kh};
  while (s.kh0 < s.kh1 && ih + s.kh0 * g->dh < 0) s.kh0++;
  while (s.kh0 < s.kh1 && ih + (s.kh1 - 1) * g->dh >= g->h) s.kh1--;
  for (int64_t ow = 0; ow < g->ow; ow += step) {
    const int64_t iw = ow * g->sw - g->left, at = ((n * g->oh + oh) * g->ow + ow) * g->c;
    s.x = d->x + ((n * g->h + ih) * g->w + iw) * g->c;
    s.y = d->y + at;
    s.r = d->residual ? d->residual + at : NULL;
    s.count = (int)min64(step, g->ow - ow);
    const bool edge = iw < 0 || iw + columns > g->w || s.count < step;
    if (special)
      for (int i = 0; i < columns; i++) s.valid[i] = iw + i >= 0 && iw + i < g->w ? all : none;
    switch (special ? g->kw * 2 + g->sw - 1 : 0) {
    case 6: block(3, 1, edge, d, &s, c0, c1); break;
    case 7: block(3, 2, edge, d, &s, c0, c1); break;
    case 10: block(5, 1, edge, d, &s, c0, c1); break;
    case 11: block(5, 2, edge, d, &s, c0, c1); break;
    case 14: block(7, 1, edge, d, &s, c0, c1); break;
    case 15: block(7, 2, edge, d, &s, c0, c1); break;
    default:
      for (int64_t c = c0; c < c1; c += VL) any_pixel(d, &s, iw, c, vm_first((int)min64(VL, c1 - c)));
    }
    if (d->epilogue.act > FL_ACT_CLAMP)
      for (int t = 0; t < s.count; t++) activate(d, s.y + t * g->c + c0, c1 - c0);
  }
}
