/* Comparing tensors where they lie: an engine's answer with the one recorded. */
#ifndef FL_CUDA_COMPARE_H
#define FL_CUDA_COMPARE_H

#include "cuda/device.h"

typedef struct fl_cuda_sums {
  double dot, got_squared, want_squared; /* over elements that are finite in both */
  double top, difference;                /* largest |want|, largest |got - want| */
  double holes;                          /* elements that are not finite in one of them, and differ */
} fl_cuda_sums;

/* Of n elements that lie one after the other. Works on the stream of fl_cuda_stream_set, and waits. */
FL_MUST_USE fl_status fl_cuda_compare(const fl_backend *b, fl_pool *pool, fl_dtype dtype, int64_t n, const void *got,
                                      const void *want, fl_cuda_sums *out);

#endif
