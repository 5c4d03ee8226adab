/* Private to graph/infer*.c: what the rules of ops.def share. */
#ifndef FL_GRAPH_INFER_H
#define FL_GRAPH_INFER_H

#include "graph/graph.h"

typedef struct fl_infer_args {
  fl_op op;
  const char *name;
  const fl_type *const *in; /* NULL = absent; n_in is max_inputs where that is bounded */
  int n_in;
  const fl_attrs *attrs; /* normalized */
  const fl_pw_program *program;
  fl_type *out;
} fl_infer_args;

/* Fails with "conv2d: <message>". */
#define FL_BREAKS(c, ...) fl_infer_breaks(c, __VA_ARGS__)
FL_NONNULL_RESULT fl_status fl_infer_breaks(const fl_infer_args *c, const char *fmt, ...) FL_PRINTF(2, 3);

fl_status fl_infer_need_rank(const fl_infer_args *c, int operand, int rank);
fl_status fl_infer_need_float(const fl_infer_args *c, int operand);
fl_status fl_infer_need_int(const fl_infer_args *c, int operand);
fl_status fl_infer_need_same_dtype(const fl_infer_args *c, int operand, int as);
fl_status fl_infer_need_vector(const fl_infer_args *c, int operand, int64_t len); /* absent passes */
/* The list attribute, which must have `count` elements, each >= least. */
fl_status fl_infer_list(const fl_infer_args *c, const char *key, int count, int64_t least, const int64_t **out);
fl_status fl_infer_axis(const fl_infer_args *c, int rank, int *out_axis);
/* NumPy's broadcast of `b` into `io`, dims alone. */
fl_status fl_infer_broadcast(const fl_infer_args *c, fl_type *io, const fl_type *b);

#define FL_OP(e, name, lo, hi, outs, attrs, infer, flags) fl_status fl_infer_##infer(const fl_infer_args *c);
#include "graph/ops.def"
#undef FL_OP

#endif
