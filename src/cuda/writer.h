/* A kernel being written: what its source begins with, and what it is given when it is launched.
 *
 * Numbers are part of the source, which is compiled for them; arguments are not, so that other shapes share the kernel. A
 * kernel's last parameter is PARAMETERS, the arguments; in its text they have the names of numbers. */
#ifndef FL_CUDA_WRITER_H
#define FL_CUDA_WRITER_H

#include "cuda/ops.h"

enum { FL_CUDA_MAX_ARGS = 24 };

typedef struct fl_cuda_writer {
  fl_text text, names;
  void *args[FL_CUDA_MAX_ARGS];
  int n_args;
} fl_cuda_writer;

void fl_cuda_write_pointer(fl_cuda_writer *w, const void *p); /* before the arguments */
void fl_cuda_write_number(fl_cuda_writer *w, const char *name, int64_t v);
void fl_cuda_write_argument(fl_cuda_writer *w, const char *name, int64_t v); /* |v| < 2^31 */
/* "act(float)", the activation as a function. None, relu and clamp are one function of the arguments LO and HI, which are
 * numbers of the kernel's parameters: write "ACT(v)". */
void fl_cuda_write_act(fl_cuda_writer *w, fl_dtype dtype, fl_act act, double lo, double hi);
/* Launches, or while preparing notes the source: what was written and then `body`. Empties the writer. */
void fl_cuda_write_launch(fl_cuda_writer *w, const fl_run_args *a, const char *body, int64_t grid, int block,
                          size_t shared_bytes);

#endif
