/* The loops of direct.h, instantiated by direct_avx512.c and direct_avx2.c, which include vmath first and define MR and
 * TABLE, the name of what is exported. */

#include "cpu/conv/direct.h"
#include "cpu/gemm/gemm_core.inl"

FL_INLINE void convolve(const int nv, const int stride, vf acc[][2], const fl_direct *d, const float *x,
                        const float *b) {
#pragma GCC unroll 14
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < nv; j++) acc[i][j] = vf_zero();
  for (int64_t c = 0; c < d->channels; c++, x += d->channel_step) {
    const float *window = x;
    for (int64_t h = 0; h < d->kh; h++, window += d->window_step)
      for (int64_t w = 0; w < d->kw; w++, b += NR) {
        const float *at = window + w;
        /* Keeps the compiler from carrying broadcast values of one step to the next, which costs more than loading. */
        __asm__("" : "+r"(at));
        vf bv[2];
        for (int j = 0; j < nv; j++) bv[j] = vf_load(b + j * VL);
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++) {
          const vf xv = vf_set1(at[i * stride]);
          for (int j = 0; j < nv; j++) acc[i][j] = vf_fma(xv, bv[j], acc[i][j]);
        }
      }
  }
}

FL_INLINE void columns(const int nv, const bool masked, const fl_direct *d, const fl_gemm_strip *s, const float *x,
                       const float *b, int64_t col, int last) {
  vf acc[MR][2];
  switch (d->stride) {
  case 1: convolve(nv, 1, acc, d, x, b); break;
  case 2: convolve(nv, 2, acc, d, x, b); break;
  default: convolve(nv, 4, acc, d, x, b);
  }
  store_tile(MR, nv, masked, s, acc, col, last);
}

static void row(const fl_direct *d) {
  const int64_t panel = d->channels * d->kh * d->kw * NR;
  fl_gemm_strip s = d->out;
  for (int64_t at = 0; at < d->pixels; at += MR) {
    /* The last tile begins early enough to be a whole one. */
    const int64_t first = at + MR <= d->pixels ? at : d->pixels - MR;
    const float *x = d->x + first * d->stride, *b = d->b;
    s.c = d->out.c + first * s.ldc;
    int64_t col = 0;
    for (; col + NR <= s.n; col += NR, b += panel) columns(2, false, d, &s, x, b, col, VL);
    const int rest = (int)(s.n - col);
    if (rest > VL)
      columns(2, true, d, &s, x, b, col, rest - VL);
    else if (rest > 0)
      columns(1, true, d, &s, x, b, col, rest);
    if (s.epilogue.act > FL_ACT_CLAMP)
      for (int i = 0; i < MR; i++) act_row(s.c + i * s.ldc, s.n, s.epilogue);
  }
}

const fl_direct_isa TABLE = {.mr = MR, .row = row};
