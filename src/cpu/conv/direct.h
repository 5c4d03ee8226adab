/* Direct convolution of an NCHW image of few channels (the first layer of most networks): the result's pixels of one row
 * are the rows of the register tile, which reads the zero-padded image in place. */
#ifndef FL_CPU_CONV_DIRECT_H
#define FL_CPU_CONV_DIRECT_H

#include "cpu/conv/conv.h"
#include "cpu/gemm/gemm.h"

typedef struct fl_direct {
  const float *x;                    /* padded image */
  int64_t channels, kh, kw, stride;  /* stride along a row: 1, 2 or 4 */
  int64_t channel_step, window_step; /* floats between channels, and between the rows of the window */
  const float *b;                    /* panels of channels x kh x kw rows */
  int64_t pixels;                    /* of the row of results; at least the register tile's rows */
  fl_gemm_strip out;                 /* c, ldc, n, bias, epilogue; no residual, for tiles may overlap */
} fl_direct;

typedef struct fl_direct_isa {
  int mr;
  void (*row)(const fl_direct *d);
} fl_direct_isa;

extern const fl_direct_isa fl_direct_avx512, fl_direct_avx2;

#endif
