/* Kernels: the functions that compute a plan's steps, and how the builder talks to them.
 *
 * A kernel is one row of kernels.def: (name, operator, ISA). Rows for one operator are tried best first, the
 * portable reference last; one that declines says why. Planning happens once per step and does all the thinking;
 * running only computes: no allocation, no failure, no lock. */
#ifndef FL_CPU_KERNEL_H
#define FL_CPU_KERNEL_H

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/dtype.h"
#include "base/pool.h"
#include "graph/op.h"

#define FL_MAX_OPERANDS 20

/* What a kernel asks of an operand. The builder inserts a copy where it does not hold already. */
typedef enum fl_layout {
  FL_LAYOUT_ANY,  /* any strides, 0 and negative ones excepted where the kernel's operator broadcasts */
  FL_LAYOUT_ROWS, /* elements along the last dimension adjacent; other strides free */
  FL_LAYOUT_CONTIGUOUS,
  FL_LAYOUT_CHANNELS_LAST /* rank 4: NHWC order, dense */
} fl_layout;

/* One step to be served. Types are final; strides are those the operands have now, before any copy. */
typedef struct fl_problem {
  fl_op op;
  const fl_attrs *attrs;
  const fl_pw_program *program; /* FL_OP_POINTWISE */
  int n_in, n_out;
  bool absent[FL_MAX_OPERANDS];
  fl_tensor in[FL_MAX_OPERANDS];  /* data is NULL */
  bool constant[FL_MAX_OPERANDS]; /* known before the first run: may be packed */
  fl_type out[FL_PW_MAX_OUTPUTS];
  int threads;
  bool tf32;                        /* products of f32 may be rounded to TF32 on the way, where a GPU has it */
  const struct fl_backend *backend; /* whose kernel is asked; NULL on the CPU is fine */
} fl_problem;

/* How a kernel will serve it. */
typedef struct fl_kernel_plan {
  fl_layout in_layout[FL_MAX_OPERANDS];
  size_t packed_bytes[FL_MAX_OPERANDS]; /* not 0: the operand is replaced by pack()'s result of this size */
  int64_t out_strides[FL_PW_MAX_OUTPUTS][FL_MAX_RANK]; /* axes in any order, dense or with gaps after rows; filled
                                                          contiguous beforehand */
  bool strided_out;     /* result 0 may also be a part of a larger tensor whose axes lie in the order of out_strides */
  int in_place;         /* operand that output 0 may overwrite when both have the same strides, or -1 (the default) */
  size_t scratch_bytes; /* for one run, all threads together; 64-byte aligned */
  bool wants_spare;     /* what it needs is known later: it is told what lies idle of the arena while it runs */
  const void *params;   /* the kernel's own constants: plain data without pointers, from the arena */
  size_t params_bytes;
  bool pack_scales;    /* packing can multiply the weights of a product or convolution, operand 1, on the way */
  int64_t pack_pieces; /* into how many parts packing is divided; a kernel that packs sets it */
  int64_t
      pack_form[2]; /* what decides what is packed, beside the kernel, the operand's type and strides, and scale: equal
                           forms of equal operands give equal bytes, whatever else the problems are */
  double cost_us;   /* the kernel's own estimate of a run on one core at 50 GFLOP/s and 10 GB/s; 0 = unknown */
} fl_kernel_plan;

typedef struct fl_run_args {
  const void *params;
  const fl_tensor *in; /* packed operands: data is the packed block, type and strides those of the original */
  const fl_tensor *out;
  void *scratch;
  void *spare; /* of a plan that wants it: memory that nothing else needs meanwhile, 256-byte aligned */
  size_t spare_bytes;
  fl_pool *pool;
  int *fault; /* may be NULL. A kernel stores 1 where eager would raise (index out of range, integer division
                           by zero) or answers what the kernel cannot (numbers that are not finite), from any of its threads; it never reads or writes out of bounds. The runner zeroes
                           it before the first step, and turns it into FL_INVALID after the last. */
  struct fl_queue *queue; /* what a device's kernels put their work on; NULL on the CPU is fine */
} fl_run_args;

static inline void fl_set_fault(int *fault) {
  if (fault) __atomic_store_n(fault, 1, __ATOMIC_RELAXED);
}

/* Packing of one constant operand. */
typedef struct fl_pack_args {
  const fl_problem *problem;
  const void *params;
  int operand;
  const fl_tensor *src; /* as the caller holds it: any strides */
  const float *scale; /* where the plan says pack_scales: multiplies the weights of each result channel; NULL = by 1 */
  void *dst;
} fl_pack_args;

typedef struct fl_kernel {
  const char *name; /* "conv2d_winograd_f4_avx512" */
  fl_op op;
  fl_isa isa;
  /* NULL when the kernel can serve the problem and has filled `plan` (params from `arena`); else why not, in static
   * storage. "out of memory" is a reason too. Pure: no state but the arena. */
  const char *(*plan)(const fl_problem *problem, fl_arena *arena, fl_kernel_plan *plan);
  /* Packs parts [begin, end) of the plan's pack_pieces. NULL if none is packed. */
  void (*pack)(const fl_pack_args *args, int64_t begin, int64_t end);
  void (*run)(const fl_run_args *args);
} fl_kernel;

/* The table, in the order of kernels.def. */
int fl_kernel_count(void);
const fl_kernel *fl_kernel_get(int id);
int fl_kernel_find(const char *name); /* -1 when there is none */

/* Kernels that accept `problem` at the ISA in force, best first, the reference last. Returns how many of `max`. */
int fl_kernel_candidates(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max);
/* NULL if some kernel accepts; else the reference's reason. */
const char *fl_kernel_why_not(const fl_problem *problem);

/* Strided copy between tensors of the same dtype and dims, in parallel: used by the builder's layout changes. */
void fl_copy_strided(const fl_tensor *dst, const fl_tensor *src, fl_pool *pool);

#endif
