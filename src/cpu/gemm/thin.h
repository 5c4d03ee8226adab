/* Products of a few rows: y[i][n] = x[i] . w[n], where the weights are read once, from where the caller has them. */
#ifndef FL_CPU_GEMM_THIN_H
#define FL_CPU_GEMM_THIN_H

#include "cpu/gemm/gemm.h"

enum { FL_THIN_ROWS = 4 }; /* at most */

typedef struct fl_thin {
  const float *x[FL_THIN_ROWS]; /* k adjacent floats each */
  const float *w;               /* result n: k adjacent floats at w + n sn */
  const float *bias, *residual; /* or NULL; residual has c's shape, and may be c */
  float *c;                     /* rows ldc apart */
  int64_t k, sn, ldc;
  int m;
} fl_thin;

/* Results [n0, n1) of all rows, without activation. */
typedef void (*fl_thin_range)(const fl_thin *t, int64_t n0, int64_t n1);
extern const fl_thin_range fl_thin_avx512, fl_thin_avx2;

#endif
