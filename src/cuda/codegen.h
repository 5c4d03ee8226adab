/* CUDA C for steps, as text: what is known when a plan is built (types, strides, attributes) is written into the kernel.
 * Pure: tested without a GPU. */
#ifndef FL_CUDA_CODEGEN_H
#define FL_CUDA_CODEGEN_H

#include "cpu/kernel.h"
#include "cuda/text.h"

/* What a CUDA kernel's plan keeps for its run. */
typedef struct fl_cuda_params {
  fl_op op;
  int n_in, n_out;
  bool absent[FL_MAX_OPERANDS], constant[FL_MAX_OPERANDS];
  bool tf32; /* fl_problem.tf32 */
  fl_attrs attrs;
  fl_pw_program program; /* FL_OP_POINTWISE */
} fl_cuda_params;

const char *fl_cg_storage(fl_dtype t);  /* "f16", ...: see kernels/prelude.cu */
const char *fl_cg_register(fl_dtype t); /* "float", "double" or "i64" */
void fl_cg_number(fl_text *t, fl_dtype dtype, double v);
typedef struct fl_cuda_writer fl_cuda_writer; /* writer.h */
/* "c0 * (I)n5 + c2 * (I)n6": where element (c0, c1, ...) of `shape` lies in `x`, which broadcasts to it. Into the writer's body. */
void fl_cg_offset(fl_cuda_writer *w, const fl_tensor *x, const fl_type *shape);
/* "v = act(v);" for a float variable. */
void fl_cg_act(fl_text *t, const char *v, fl_act act, double lo, double hi);

/* Kernels with a thread for each output element, or for `width` neighbours. Parameters: the present inputs x0, x1, ..., the
 * outputs y0, ..., the fault, and then sizes and strides, so that other shapes share the kernel. Returns the number of blocks, of
 * FL_CG_BLOCK threads. */
enum { FL_CG_BLOCK = 256 };
int64_t fl_cg_map(fl_cuda_writer *w, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out);
/* Does fl_cg_map have a body for the operator? POINTWISE, movement, pooling, and direct products and convolutions. */
bool fl_cg_has_map(fl_op op);

/* Used by fl_cg_map: the body between signature and end (codegen_ops.c, codegen_pointwise.c). */
void fl_cg_body(fl_cuda_writer *w, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out);
void fl_cg_program(fl_text *t, const fl_pw_program *pr, const char *const *inputs);

#endif
