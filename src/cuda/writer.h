/* A kernel being written: what its source begins with, and what it is given when it is launched.
 *
 * Numbers are part of the source, which is compiled for them; arguments are not, so that other shapes share the kernel. A
 * kernel's last parameter is PARAMETERS, the arguments; in its text they have the names of numbers. */
#ifndef FL_CUDA_WRITER_H
#define FL_CUDA_WRITER_H

#include "cuda/nvrtc.h"
#include "cuda/ops.h"

enum { FL_CUDA_MAX_ARGS = FL_CUDA_MAX_PARAMS };

struct fl_cuda_writer {
  fl_text text, names, body; /* body: what names PARAMETERS and comes after them */
  void *args[FL_CUDA_MAX_ARGS];
  int n_args;
  bool small; /* I is int */
};

void fl_cuda_write_pointer(fl_cuda_writer *w, const void *p); /* before the arguments */
void fl_cuda_write_number(fl_cuda_writer *w, const char *name, int64_t v);
void fl_cuda_write_argument(fl_cuda_writer *w, const char *name, int64_t v); /* |v| < 2^31 */
void fl_cuda_write_long(fl_cuda_writer *w, const char *name, int64_t v);
void fl_cuda_write_float(fl_cuda_writer *w, const char *name, double v); /* an argument */
void fl_cuda_write_double(fl_cuda_writer *w, const char *name, double v);
/* OVER_name(n), n / v as an int for 0 <= n < 2^31: of an argument, or of a number. */
void fl_cuda_write_quotient(fl_cuda_writer *w, const char *name, int64_t v, bool number);
/* "act(float)", the activation as a function. None, relu and clamp are one function of the arguments LO and HI, which are
 * numbers of the kernel's parameters: write "ACT(v)". */
void fl_cuda_write_act(fl_cuda_writer *w, fl_dtype dtype, fl_act act, double lo, double hi);

/* Indices, sizes and offsets are of the types I and U, unsigned: of 32 bits where `most`, which no index or offset exceeds, allows
 * that (threads beyond the last one count on: FL_CUDA_BEYOND covers them). Sizes are arguments then; in 64 bits they are numbers,
 * since divisions would take too long. Comes before what follows here. */
enum { FL_CUDA_BEYOND = 256 * 16 };
void fl_cuda_write_index(fl_cuda_writer *w, int64_t most);
void fl_cuda_write_size(fl_cuda_writer *w, const char *name, int64_t v);
void fl_cuda_write_divisor(fl_cuda_writer *w, const char *name, int64_t v); /* and OVER_name(n), n / name for n >= 0 */
/* Puts the size into the text: an argument without a name, or a number, also where there are no more parameters. */
void fl_cuda_put_size(fl_cuda_writer *w, fl_text *t, int64_t v);
/* "n / v" for the text n, as an expression of type U. */
void fl_cuda_put_quotient(fl_cuda_writer *w, fl_text *t, const char *n, int64_t v);

/* Axes that one index, the text `i`, counts, the last one fastest. */
typedef struct fl_cuda_counted {
  const char *i;
  int n;
  const int64_t *dims;
} fl_cuda_counted;
/* "const U q1 = ...;" and so on: how often the index has been through all axes from 1, 2, ... on. */
void fl_cuda_put_rounds(fl_cuda_writer *w, fl_text *t, const fl_cuda_counted *c);
/* After the rounds: the offset of the index's element, an expression of type I. Where the last axis has the stride `last`, that is
 * a number; 0: it is an argument whatever it is. */
void fl_cuda_put_offset(fl_cuda_writer *w, fl_text *t, const fl_cuda_counted *c, const int64_t *strides, int64_t last);
/* A function name(I) of type pack<I, 2>, of the index of n axes: offsets by the strides `in` and `out`. */
void fl_cuda_write_function(fl_cuda_writer *w, const char *name, int n, const int64_t *dims, const int64_t *in,
                            const int64_t *out, int64_t last);
/* The magic number of `over` (prelude.cu), for d < 2^31. */
int64_t fl_cuda_magic(int64_t d);

/* Launches, or while preparing notes the source: what was written and then `body`. Empties the writer. */
void fl_cuda_write_launch(fl_cuda_writer *w, const fl_run_args *a, const char *body, int64_t grid, int block,
                          size_t shared_bytes);

#endif
