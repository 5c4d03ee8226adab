/* Kernels of the CUDA backend: what backend.c puts into its table. Every plan_* is pure and needs no GPU. */
#ifndef FL_CUDA_OPS_H
#define FL_CUDA_OPS_H

#include "cuda/codegen.h"
#include "cuda/device.h"

/* The kernels accept at most what the portable reference accepts: NULL, or its reason. Fills params. */
const char *fl_cuda_plan_base(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan);

#define FL_CUDA_IMPLEMENTATION(name)                                                                                   \
  const char *fl_cuda_plan_##name(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan);                         \
  void fl_cuda_run_##name(const fl_run_args *a);
FL_CUDA_IMPLEMENTATION(map)
FL_CUDA_IMPLEMENTATION(reduce)
FL_CUDA_IMPLEMENTATION(rows)
FL_CUDA_IMPLEMENTATION(attention_flash)
FL_CUDA_IMPLEMENTATION(attention_tile)
FL_CUDA_IMPLEMENTATION(attention_row)
FL_CUDA_IMPLEMENTATION(cublaslt)
FL_CUDA_IMPLEMENTATION(conv)
FL_CUDA_IMPLEMENTATION(pool)
FL_CUDA_IMPLEMENTATION(image_mean)
#undef FL_CUDA_IMPLEMENTATION

/* Axes with their strides in an input and in the result. */
typedef struct fl_cuda_axes {
  int n;
  int64_t dims[FL_MAX_RANK + 2], in[FL_MAX_RANK + 2], out[FL_MAX_RANK + 2];
} fl_cuda_axes;
void fl_cuda_add_axis(fl_cuda_axes *a, int64_t dim, int64_t in, int64_t out);
int64_t fl_cuda_axes_count(const fl_cuda_axes *a);
/* The furthest that an element of both together lies from the first, in the input or the result. */
int64_t fl_cuda_axes_reach(const fl_cuda_axes *a, const fl_cuda_axes *b);
/* One after the other, the last one's elements adjacent, by these strides (a->in or a->out). */
bool fl_cuda_is_adjacent(const fl_cuda_axes *a, const int64_t *strides);

void fl_cuda_copy(const fl_run_args *a);
/* y = act(y), dense, of a float type: after a library call whose epilogue lacks the activation. */
void fl_cuda_act(const fl_run_args *a, fl_act act, double lo, double hi);

#endif
