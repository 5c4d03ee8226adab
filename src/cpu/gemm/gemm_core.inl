/* The inner loops of gemm.h, instantiated by gemm_avx512.c, gemm_avx2.c and gemm_avx512_bf16.c, and borrowed by
 * conv/direct_core.inl and conv/grouped_core.inl. Files that include it include vmath first and define MR, the rows of the
 * tallest tile. That of bf16 defines DOT, too: c + a b, where a and b are pairs. */

#include "cpu/gemm/gemm.h"
#include "cpu/transpose.inl"

#ifdef DOT
#define HALF 1
#else
#define DOT(a, b, c) vf_fma(a, b, c)
#define HALF         0
#endif
#define NR         (2 * VL)
#define B_PREFETCH (NR * 16) /* floats ahead */
#define CHAIN      192       /* products added one after the other, at most: rounding errors grow with the length */

static __attribute__((unused)) void act_row(float *x, int64_t n, fl_epilogue e) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) vf_store(x + i, vf_act(vf_load(x + i), e.act, e.lo, e.hi));
  if (i < n) {
    const vm m = vm_first((int)(n - i));
    vf_store_mask(x + i, m, vf_act(vf_load_mask(x + i, m), e.act, e.lo, e.hi));
  }
}

static __attribute__((unused)) void copy_row(float *dst, const float *src, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) vf_store(dst + i, vf_load(src + i));
  if (i < n) {
    const vm m = vm_first((int)(n - i));
    vf_store_mask(dst + i, m, vf_load_mask(src + i, m));
  }
}

/* One panel, block by block through registers: read along rows of src, columns of the panel. */
static __attribute__((unused)) void pack_columns(float *dst, const float *src, int64_t sn, int64_t columns, int64_t kc,
                                                 const float *scale) {
  for (int64_t k = 0; k < kc; k += VL) {
    const int64_t rows = kc - k < VL ? kc - k : VL;
    for (int64_t j = 0; j < NR; j += VL) {
      const vm m = vm_first((int)rows);
      vf r[VL];
      for (int i = 0; i < VL; i++) r[i] = j + i < columns ? vf_load_mask(src + (j + i) * sn + k, m) : vf_zero();
      if (scale)
        for (int i = 0; i < VL && j + i < columns; i++) r[i] = vf_mul(r[i], vf_set1(scale[j + i]));
      vf_transpose(r);
      for (int i = 0; i < VL; i++)
        if (i < rows) vf_store(dst + (k + i) * NR + j, r[i]);
    }
  }
}

/* acc[mr][nv] = A B over kc. Constant mr and nv, so that acc lives in registers. */
FL_INLINE void multiply(const int mr, const int nv, vf acc[][2], const float *a, const float *b, int64_t kc) {
#pragma GCC unroll 14
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < nv; j++) acc[i][j] = vf_zero();
#pragma GCC unroll 2
  for (int64_t k = 0; k < kc; k++, b += NR) {
    _mm_prefetch((const char *)(b + B_PREFETCH), _MM_HINT_T0);
    if (nv > 1 && VL > 8) _mm_prefetch((const char *)(b + B_PREFETCH + VL), _MM_HINT_T0);
    vf bv[2];
    for (int j = 0; j < nv; j++) bv[j] = vf_load(b + j * VL);
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++) {
      const vf av = vf_set1(a[i * FL_GEMM_AS + k]);
      for (int j = 0; j < nv; j++) acc[i][j] = DOT(av, bv[j], acc[i][j]);
    }
  }
}

#if HALF
/* Rows of sums, without register tiles: all that is done to a result of a bf16 product, or sums left for the next block. */
static void finish(int mr, int columns, const fl_gemm_strip *s, const float (*sums)[NR], int64_t col) {
  const fl_epilogue e = s->epilogue;
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < columns; j += VL) {
      const vm m = vm_first(columns - j < VL ? columns - j : VL);
      float *c = s->c + i * s->sums + col + j;
      const int64_t at = i * s->ldc + col + j;
      vf v = vf_load(sums[i] + j);
      if (s->accumulate) v = vf_add(v, vf_load_mask(c, m));
      if (s->bias) v = vf_add(v, vf_load_mask(s->bias + col + j, m));
      if (s->half_residual) v = vf_add(v, half_load(s->half_residual + at, m));
      if (s->half)
        half_store(s->half + at, m, vf_act(v, e.act, e.lo, e.hi));
      else
        vf_store_mask(c, m, v);
    }
}

FL_INLINE void store_tile(const int mr, const int nv, const bool masked, const fl_gemm_strip *s, vf acc[][2],
                          int64_t col, int last) {
  float sums[MR][NR];
#pragma GCC unroll 14
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < nv; j++) vf_store(sums[i] + j * VL, acc[i][j]);
  finish(mr, (nv - 1) * VL + last, s, sums, col);
}
#else
/* Finishes and stores a tile of columns [col, col + nv VL), the last vector cut to `last` lanes if masked. */
FL_INLINE void store_tile(const int mr, const int nv, const bool masked, const fl_gemm_strip *s, vf acc[][2],
                          int64_t col, int last) {
  const vm m = vm_first(masked ? last : VL);
  vf bias[2] = {vf_zero(), vf_zero()}, lo = vf_set1(s->epilogue.lo), hi = vf_set1(s->epilogue.hi);
  const fl_act act = s->epilogue.act;
  if (s->bias)
    for (int j = 0; j < nv; j++)
      bias[j] = masked && j == nv - 1 ? vf_load_mask(s->bias + col + j * VL, m) : vf_load(s->bias + col + j * VL);
#pragma GCC unroll 14
  for (int i = 0; i < mr; i++) {
    float *c = s->c + i * s->ldc + col;
    const float *r = s->residual ? s->residual + i * s->ldc + col : NULL;
    for (int j = 0; j < nv; j++) {
      const bool cut = masked && j == nv - 1;
      vf v = acc[i][j];
      if (s->accumulate) v = vf_add(v, cut ? vf_load_mask(c + j * VL, m) : vf_load(c + j * VL));
      v = vf_add(v, bias[j]);
      if (r) v = vf_add(v, cut ? vf_load_mask(r + j * VL, m) : vf_load(r + j * VL));
      if (act == FL_ACT_RELU) v = vf_relu(v);
      if (act == FL_ACT_CLAMP) v = vf_clamp(v, lo, hi);
      if (cut)
        vf_store_mask(c + j * VL, m, v);
      else
        vf_store(c + j * VL, v);
    }
  }
}

#endif

/* `cut`: what is summed is summed in two halves. */
FL_INLINE void tile(const int mr, const int nv, const bool masked, const bool cut, const fl_gemm_strip *s,
                    const float *b, int64_t col, int last) {
  vf acc[MR][2], kept[MR][2];
  if (cut) {
    const int64_t n = s->kc / 2;
    multiply(mr, nv, acc, s->a, b, n);
    for (int i = 0; i < mr; i++)
      for (int j = 0; j < nv; j++) kept[i][j] = acc[i][j];
    multiply(mr, nv, acc, s->a + n, b + n * NR, s->kc - n);
    for (int i = 0; i < mr; i++)
      for (int j = 0; j < nv; j++) acc[i][j] = vf_add(acc[i][j], kept[i][j]);
  } else {
    multiply(mr, nv, acc, s->a, b, s->kc);
  }
  store_tile(mr, nv, masked, s, acc, col, last);
}

/* One row alone: four panels at a time, since two sums cannot keep the multipliers busy. */
FL_INLINE void four_panels(const fl_gemm_strip *s, const float *b, int64_t col) {
  vf acc[4][1][2];
  const int64_t panel = s->kc * NR;
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++) acc[p][0][0] = acc[p][0][1] = vf_zero();
  for (int64_t k = 0; k < s->kc; k++, b += NR) {
    const vf av = vf_set1(s->a[k]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      acc[p][0][0] = DOT(av, vf_load(b + p * panel), acc[p][0][0]);
      acc[p][0][1] = DOT(av, vf_load(b + p * panel + VL), acc[p][0][1]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++) store_tile(1, 2, false, s, acc[p], col + p * NR, VL);
}

FL_INLINE void strip(const int mr, const bool cut, const fl_gemm_strip *s) {
  const float *b = s->b;
  int64_t col = 0;
  if (mr == 1)
    for (; col + 4 * NR <= s->n; col += 4 * NR, b += 4 * s->kc * NR) four_panels(s, b, col);
  for (; col + NR <= s->n; col += NR, b += s->kc * NR) tile(mr, 2, false, cut, s, b, col, VL);
  const int rest = (int)(s->n - col);
  if (rest > VL)
    tile(mr, 2, true, cut, s, b, col, rest - VL);
  else if (rest > 0)
    tile(mr, 1, true, cut, s, b, col, rest);
  if (!HALF && s->epilogue.act > FL_ACT_CLAMP)
    for (int i = 0; i < mr; i++) act_row(s->c + i * s->ldc, s->n, s->epilogue);
}

/* Long sums have code of their own: the other is not to pay for it. */
#define STRIP(mr)                                                                                                      \
  static __attribute__((noinline)) void cut_##mr(const fl_gemm_strip *s) { strip(mr, true, s); }                       \
  static void strip_##mr(const fl_gemm_strip *s) {                                                                     \
    if (__builtin_expect(!HALF && s->kc > CHAIN, 0)) return cut_##mr(s);                                               \
    strip(mr, false, s);                                                                                               \
  }
