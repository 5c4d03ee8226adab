/* The inner loops of thin.h, instantiated by thin_avx512.c and thin_avx2.c. */

#include "cpu/gemm/thin.h"

FL_INLINE void store(const int m, const int nw, const fl_thin *t, int64_t n, vf acc[FL_THIN_ROWS][8]) {
  for (int i = 0; i < m; i++)
    for (int j = 0; j < nw; j++) {
      const int64_t at = i * t->ldc + n + j;
      float v = vf_sum(acc[i][j]);
      if (t->bias) v += t->bias[n + j];
      if (t->residual) v += t->residual[at];
      t->c[at] = v;
    }
}

/* Results [n, n + nw). Constant m and nw, so that acc lives in registers. */
FL_INLINE void dots(const int m, const int nw, const fl_thin *t, int64_t n) {
  vf acc[FL_THIN_ROWS][8], x[FL_THIN_ROWS];
  const float *w = t->w + n * t->sn;
#pragma GCC unroll 4
  for (int i = 0; i < m; i++)
    for (int j = 0; j < nw; j++) acc[i][j] = vf_zero();
  int64_t k = 0;
  for (; k + VL <= t->k; k += VL) {
    for (int i = 0; i < m; i++) x[i] = vf_load(t->x[i] + k);
#pragma GCC unroll 8
    for (int j = 0; j < nw; j++) {
      const vf v = vf_load(w + j * t->sn + k);
      for (int i = 0; i < m; i++) acc[i][j] = vf_fma(x[i], v, acc[i][j]);
    }
  }
  if (k < t->k) {
    const vm cut = vm_first((int)(t->k - k));
    for (int i = 0; i < m; i++) x[i] = vf_load_mask(t->x[i] + k, cut);
#pragma GCC unroll 8
    for (int j = 0; j < nw; j++) {
      const vf v = vf_load_mask(w + j * t->sn + k, cut);
      for (int i = 0; i < m; i++) acc[i][j] = vf_fma(x[i], v, acc[i][j]);
    }
  }
  store(m, nw, t, n, acc);
}

FL_INLINE void rows(const int m, const int nw, const fl_thin *t, int64_t n0, int64_t n1) {
  for (; n0 + nw <= n1; n0 += nw) dots(m, nw, t, n0);
  for (; n0 < n1; n0++) dots(m, 1, t, n0);
}

/* As many weights at once as there are registers for sums. */
static void range(const fl_thin *t, int64_t n0, int64_t n1) {
  switch (t->m) {
  case 1: rows(1, 8, t, n0, n1); break;
  case 2: rows(2, 4, t, n0, n1); break;
  case 3: rows(3, VL > 8 ? 4 : 2, t, n0, n1); break;
  default: rows(4, VL > 8 ? 4 : 2, t, n0, n1); break;
  }
}
