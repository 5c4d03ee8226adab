/* Depthwise convolution of NHWC images: one filter for each channel, channels side by side in a vector. */
#ifndef FL_CPU_CONV_DEPTHWISE_H
#define FL_CPU_CONV_DEPTHWISE_H

#include "cpu/conv/conv.h"
#include "cpu/gemm/gemm.h"

typedef struct fl_depthwise {
  fl_conv c;
  int64_t c_padded;             /* channels of the packed weights, a multiple of the vector length */
  const float *x;               /* NHWC */
  const float *w;               /* [kh][kw][c_padded] */
  const float *bias, *residual; /* or NULL; residual as the result */
  float *y;
  fl_epilogue epilogue;
} fl_depthwise;

/* Channels [c0, c1) of row `oh` of image `n`; c0 is a multiple of the vector length. */
typedef void (*fl_depthwise_row)(const fl_depthwise *d, int64_t n, int64_t oh, int64_t c0, int64_t c1);

void fl_depthwise_row_avx512(const fl_depthwise *d, int64_t n, int64_t oh, int64_t c0, int64_t c1);
void fl_depthwise_row_avx2(const fl_depthwise *d, int64_t n, int64_t oh, int64_t c0, int64_t c1);

#endif
