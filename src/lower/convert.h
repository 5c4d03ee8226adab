/* What converters are written with.
 *
 * A converter turns one recorded operator into engine nodes: it reads arguments by schema name, adds nodes and names
 * the results. Trouble is sticky: after the first decline or failure every call here does nothing and gives harmless
 * values (FL_NO_VALUE, an f32 scalar type, 0), so that a converter reads straight on; it must check fl_cv_ok before
 * it indexes by a rank or count it was given. Nothing here is thread safe; each lowering has its own fl_cv. */
#ifndef FL_LOWER_CONVERT_H
#define FL_LOWER_CONVERT_H

#include "graph/graph.h"
#include "lower/aten.h"

typedef struct fl_cv fl_cv;
typedef void (*fl_convert_fn)(fl_cv *c);

/* Which element types the first tensor argument (result 0 where there is none) may have. */
typedef enum fl_dtypes { FL_DT_FLOAT, FL_DT_INT, FL_DT_INTEGRAL, FL_DT_BOOL, FL_DT_ANY } fl_dtypes;

/* One row of aten.def. */
typedef struct fl_converter {
  const char *aten; /* without "aten." */
  fl_convert_fn fn;
  int param; /* the converter's own: mostly the engine operator */
  fl_dtypes dtypes;
  bool view;             /* shares memory with its first argument in eager: free on both sides */
  bool indexes, divides; /* raises for an index out of range; when its result is of integers, for a division by zero */
  const char *limits;
} fl_converter;

struct fl_cv {
  fl_graph *g;
  const fl_aten_graph *aten;
  const fl_aten_node *node;
  uint32_t origin;    /* index of node */
  const bool *needed; /* by recorded value: somebody reads it */
  fl_vid *values;     /* by recorded value: its place in g, or FL_NO_VALUE */
  int param;
  bool inplace;       /* the overload is the in-place one: results have the recorded dtype */
  bool wide;          /* fl_cv_wide was asked for: results are rounded to the recorded dtype */
  bool cpu;           /* what is converted ran on the CPU */
  fl_arena *texts;    /* where reasons live */
  const char *reason; /* declined: why */
  fl_status status;   /* failed: out of memory or a bug */
};

/* Finds the row of "aten.add_.Tensor": the overload's own, else that of its functional form. NULL if there is none. */
const fl_converter *fl_converter_find(const char *op, bool *out_inplace);

/* May raise for what its tensors hold, so that it must run even where nobody needs its result. */
bool fl_converter_may_raise(const char *op, fl_dtype result);

/* Tests only: results of this operator ("aten.tanh.default") are off by a percent from now on; NULL switches it off. Static
 * storage. */
void fl_cv_spoil(const char *op);

/* Converts c->node, whose arguments have places in c->values. True: each needed result has its place. False: see
 * c->reason and c->status; nodes added so far stay in the graph. */
bool fl_cv_convert(fl_cv *c);

bool fl_cv_ok(const fl_cv *c);
void fl_cv_decline(fl_cv *c, const char *fmt, ...) FL_PRINTF(2, 3);

/* --- arguments. An absent argument is like None. --- */
bool fl_cv_has(const fl_cv *c, const char *name); /* there, and not None */
bool fl_cv_is_tensor(const fl_cv *c, const char *name);
fl_vid fl_cv_arg(fl_cv *c, const char *name);     /* a tensor; declines when it is none */
fl_vid fl_cv_arg_opt(fl_cv *c, const char *name); /* FL_NO_VALUE for None */
/* The tensors of a list; FL_NO_VALUE for None. New array in the arena of texts. */
fl_vid *fl_cv_args(fl_cv *c, const char *name, int *out_count);
int64_t fl_cv_int(fl_cv *c, const char *name, int64_t def);
double fl_cv_float(fl_cv *c, const char *name, double def);
bool fl_cv_bool(fl_cv *c, const char *name, bool def);
const char *fl_cv_string(const fl_cv *c, const char *name, const char *def);
/* A list of up to `max` integers; a single integer counts as a list of one. 0 for None. */
int fl_cv_ints(fl_cv *c, const char *name, int64_t *out, int max);
/* Exactly n integers: one is repeated; none gives `def`. */
void fl_cv_ints_n(fl_cv *c, const char *name, int n, int64_t def, int64_t *out);
/* An axis, wrapped into 0..rank-1. Scalars count as rank 1, as in PyTorch. */
int fl_cv_wrap_axis(fl_cv *c, int64_t axis, int rank);
int fl_cv_axis(fl_cv *c, const char *name, int64_t def, int rank);
/* The recorded type of result i. */
fl_type fl_cv_out(const fl_cv *c, int i);
bool fl_cv_needed(const fl_cv *c, int i); /* somebody reads result i */
fl_type fl_cv_type(const fl_cv *c, fl_vid v);

/* --- type promotion as torch.result_type --- */
typedef struct fl_promotion {
  bool has[3]; /* tensors with dimensions, tensors without, Python numbers */
  fl_dtype dtype[3];
} fl_promotion;
void fl_promote_value(fl_cv *c, fl_promotion *p, fl_vid v);
void fl_promote_arg(fl_cv *c, fl_promotion *p, const char *name); /* tensor or number */
fl_dtype fl_promotion_dtype(const fl_promotion *p);
fl_dtype fl_promote_types(fl_dtype a, fl_dtype b);
/* Argument `name`, tensor or number, as a value of `dtype`. */
fl_vid fl_cv_operand(fl_cv *c, const char *name, fl_dtype dtype);
/* Both, promoted. */
void fl_cv_operands(fl_cv *c, const char *a, const char *b, fl_vid *out_a, fl_vid *out_b);

/* --- nodes --- */
fl_vid fl_cv_op(fl_cv *c, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs);
/* All results of one that has several, into outs. */
bool fl_cv_ops(fl_cv *c, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs, fl_vid *outs);
fl_vid fl_cv_unary(fl_cv *c, fl_op op, fl_vid x);
fl_vid fl_cv_binary(fl_cv *c, fl_op op, fl_vid a, fl_vid b);
fl_vid fl_cv_where(fl_cv *c, fl_vid cond, fl_vid a, fl_vid b);
fl_vid fl_cv_cast(fl_cv *c, fl_vid x, fl_dtype dtype);
fl_vid fl_cv_floating(fl_cv *c, fl_vid x); /* integers and bool become f32 */
/* 16-bit floats become f32, and this operator's results are rounded once they are made: for operators of several steps which
 * PyTorch rounds once. */
fl_vid fl_cv_wide(fl_cv *c, fl_vid x);
fl_vid fl_cv_scalar(fl_cv *c, fl_dtype dtype, double v);
fl_vid fl_cv_full(fl_cv *c, fl_dtype dtype, int rank, const int64_t *dims, double v);
fl_vid fl_cv_mul_scalar(fl_cv *c, fl_vid x, double v); /* x itself when v is 1 */
fl_vid fl_cv_reshape(fl_cv *c, fl_vid x, int rank, const int64_t *dims);
fl_vid fl_cv_expand(fl_cv *c, fl_vid x, int rank, const int64_t *dims);
fl_vid fl_cv_permute(fl_cv *c, fl_vid x, const int *perm);
fl_vid fl_cv_transpose(fl_cv *c, fl_vid x, int a, int b);
fl_vid fl_cv_slice(fl_cv *c, fl_vid x, int axis, int64_t start, int64_t stop, int64_t step);
fl_vid fl_cv_cat(fl_cv *c, const fl_vid *xs, int n, int axis);
fl_vid fl_cv_unsqueeze(fl_cv *c, fl_vid x, int axis);
fl_vid fl_cv_squeeze(fl_cv *c, fl_vid x, int axis);
/* Axes in any order, negative ones wrapped; none = all. A scalar is reduced as one element. */
fl_vid fl_cv_reduce(fl_cv *c, fl_op op, fl_vid x, const int64_t *axes, int n, bool keepdim);
fl_vid fl_cv_variance(fl_cv *c, fl_vid x, const int64_t *axes, int n, bool keepdim, double correction);
fl_vid fl_cv_matmul(fl_cv *c, fl_vid a, fl_vid b, bool trans_b, fl_vid bias, fl_vid residual);
void fl_cv_result(fl_cv *c, int i, fl_vid v);
/* Of a resizing: the factor along spatial axis i, from the list scale_factors or the argument `name`; 0 when not asked for. */
double fl_cv_scale_factor(fl_cv *c, const char *name, int i);

#define FL_ATEN(aten, fn, param, dtypes, view, limits) void fl_convert_##fn(fl_cv *c);
#include "lower/aten.def"
#undef FL_ATEN

#endif
