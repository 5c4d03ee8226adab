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
/* "c0 * 12 + c2 * 3": where element (c0, c1, ...) of `shape` lies in `x`, which broadcasts to it. */
void fl_cg_offset(fl_text *t, const fl_tensor *x, const fl_type *shape);
/* A function `name`(i64 r): the offset of the r-th coordinate of n axes, the last one fastest. */
void fl_cg_function(fl_text *t, const char *name, int n, const int64_t *dims, const int64_t *strides);
/* "v = act(v);" for a float variable. */
void fl_cg_act(fl_text *t, const char *v, fl_act act, double lo, double hi);

/* Kernels with a thread for each output element (`grid` blocks of 256), or for `width` neighbours. Parameters: the present
 * inputs x0, x1, ..., the outputs y0, ..., the fault. */
enum { FL_CG_BLOCK = 256, FL_CG_MAX_ARGS = 2 + FL_PW_MAX_INPUTS + FL_PW_MAX_OUTPUTS };

/* How such a kernel is launched. Sizes and strides of pointwise groups of one or two loops are arguments (i64, after the fault),
 * so that other shapes share the kernel; all else is written into the source. */
typedef struct fl_cg_launch {
  int64_t grid, args[FL_CG_MAX_ARGS];
  int n_args;
} fl_cg_launch;

void fl_cg_map(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out,
               fl_cg_launch *out_launch);
/* Does fl_cg_map have a body for the operator? POINTWISE, movement, pooling, and direct products and convolutions. */
bool fl_cg_has_map(fl_op op);

/* Used by fl_cg_map: the body between signature and end (codegen_ops.c, codegen_pointwise.c). */
void fl_cg_body(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out);
void fl_cg_program(fl_text *t, const fl_pw_program *pr, const char *const *inputs);

#endif
