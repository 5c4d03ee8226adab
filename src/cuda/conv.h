/* Convolutions: what the files of conv2d's kernel share. */
#ifndef FL_CUDA_CONV_H
#define FL_CUDA_CONV_H

#include "cuda/ops.h"

/* Ways to compute one, as the timing cache numbers them. */
enum {
  FL_CONV_OWN = 0, /* conv_own.c's */
  FL_CONV_GEMM = 1,
  FL_CONV_FUSED = 2, /* engines of cuDNN: bias, residual and activation in the same operation */
  FL_CONV_PLAIN = 6, /* where there is none: in a kernel after it */
  FL_CONV_WAYS = 9,
  FL_CONV_DIRECT = -1 /* a thread an element: what always works */
};

typedef struct fl_cuda_conv {
  fl_dtype dtype;
  int64_t n, c, h, w, o, oh, ow, kh, kw, sh, sw, dh, dw, top, left, bottom, right;
  int64_t groups, cg, og; /* channels of one group */
  int64_t m;              /* pixels of the result */
  int64_t xs[4];          /* strides of x; weights and residual are channels-last, dense */
  int64_t yp;             /* from pixel to pixel of y, whose channels are adjacent */
  bool even;              /* the pixels of y are evenly apart; else only a thread an element will do */
  bool bias, residual;
  bool in_place; /* y lies where the residual does */
  fl_act act;
  double lo, hi;
  int align; /* bytes, at most 16, to which all operands are aligned */
} fl_cuda_conv;

fl_cuda_conv fl_cuda_conv_of(const fl_run_args *a, const fl_cuda_params *q);
/* A matrix product of x [m, c] and w [o, c]: a window of one element, and pixels evenly apart. */
bool fl_cuda_conv_is_plain(const fl_cuda_conv *c);

/* conv_own.c: is there a kernel of our own for it that may be the fastest? Launching while the queue is preparing compiles. */
bool fl_cuda_conv_is_ours(const fl_cuda_conv *c, int arch);
void fl_cuda_conv_own(const fl_run_args *a, const fl_cuda_conv *c);
/* y = act(y + bias + residual), for what a library did not do. Null operands are left out. */
void fl_cuda_conv_finish(const fl_run_args *a, const fl_cuda_conv *c);

/* conv.c: chooses among the ways to compute the convolutions that the queue's walk has met, by timing. */
void fl_cuda_conv_decide(fl_cuda_queue *q);
/* For tests: what is prepared from now on is computed in this way where there is one, not in the fastest; FL_CONV_WAYS: as
 * usual. */
void fl_cuda_conv_force(int way);

#endif
