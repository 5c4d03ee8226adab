/* Convolution in groups: the window of some results is copied into cache with its padding, one block of groups at a time,
 * and each result channel is a lane.
 *
 * wide: a block is one group, and an input value is broadcast to the group's result channels.
 * narrow: a group's results do not fill a vector. A block is as many groups as do, and lanes of different groups take
 * their input channel out of one vector, by a permutation. */
#ifndef FL_CPU_CONV_GROUPED_H
#define FL_CPU_CONV_GROUPED_H

#include "cpu/conv/conv.h"
#include "cpu/gemm/gemm.h"

/* One panel of a block's result channels, over a stripe of result pixels. Steps count floats. */
typedef struct fl_grouped {
  const float *x; /* the copy, where the first pixel's window begins */
  int64_t pixel_step, row_step;
  int64_t kh, kw, window_row, window_column;
  int64_t channels;     /* of one group; input and window columns side by side count as channels */
  const float *b;       /* [kh][kw][channels][panel] */
  const int32_t *lanes; /* narrow: [channels][vector], which input of the block a lane reads */
  int64_t rows, pixels; /* of the stripe */
  int64_t out_row;      /* floats between rows of the result */
  fl_gemm_strip out;    /* c, n, ldc, bias, residual, epilogue; a and b unused */
} fl_grouped;

typedef struct fl_grouped_isa {
  int vl;
  void (*wide)(const fl_grouped *g);   /* panels of 2 vl channels */
  void (*narrow)(const fl_grouped *g); /* of vl */
  /* n pixels of `channels` floats each, which lie `from` and `to` floats apart. */
  void (*copy)(float *dst, int64_t to, const float *src, int64_t from, int64_t channels, int64_t n);
} fl_grouped_isa;

extern const fl_grouped_isa fl_grouped_avx512, fl_grouped_avx2;

#endif
