/* Winograd convolution F(m x m, 3x3), m = 4 or 2, stride 1, NHWC: the image is cut into tiles of m x m results; a tile's
 * (m + 2)^2 inputs are transformed, multiplied by the transformed weights position by position (a matrix product over
 * channels for each), and transformed back. 4 multiplications for each result and channel instead of 9 (m = 4: 2.25).
 *
 * Lavin and Gray 2015, "Fast algorithms for convolutional neural networks". For m = 4 the interpolation points are
 * 0, +-5/8, +-3/2, infinity, whose rounding errors are a fifth of those of 0, +-1, +-2.
 *
 * An input that is infinite or no number makes every result of its tiles no number, also those whose window it is not in;
 * and sums of large ones may overflow on the way. Such results are not what eager computes: they are a fault. */
#ifndef FL_CPU_CONV_WINOGRAD_H
#define FL_CPU_CONV_WINOGRAD_H

#include "cpu/conv/conv.h"
#include "cpu/gemm/gemm.h"

#define FL_WINOGRAD_MAX   36 /* positions */
#define FL_WINOGRAD_LANES 32 /* weights transformed at once */

typedef struct fl_winograd {
  int m; /* results of a tile per side */
  fl_conv c;
  int64_t tiles_h, tiles_w, tiles; /* of one image; of all */
  fl_gemm_b shape;                 /* weights of one position: C x O */
  const float *x, *bias, *residual;
  float *y;
  int *
      fault; /* set to 1 where a result is infinite or no number, which its neighbours need not be: as fl_run_args.fault */
  fl_epilogue epilogue;
} fl_winograd;

typedef struct fl_winograd_isa {
  int vl;
  /* Transforms input channels [c0, c1) of one tile. Position p of channel c goes to
   * v[p position + c]; up to vl - 1 floats behind the last channel are written too. */
  void (*input)(const fl_winograd *w, int64_t tile, int64_t c0, int64_t c1, float *v, int64_t position);
  /* Transforms channels [o0, o1) of one tile's products, position p of channel o0 + i at m[p position + i], and stores
   * the results with bias, residual and activation. Reads up to vl - 1 floats behind the last. */
  void (*output)(const fl_winograd *w, int64_t tile, int64_t o0, int64_t o1, const float *m, int64_t position);
  /* Transforms 3x3 weights g[9][FL_WINOGRAD_LANES]; position p goes to u[p step .. + FL_WINOGRAD_LANES). */
  void (*weights)(int m, const float *g, float *u, int64_t step);
} fl_winograd_isa;

extern const fl_winograd_isa fl_winograd_avx512, fl_winograd_avx2;

#endif
