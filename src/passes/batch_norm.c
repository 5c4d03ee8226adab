#include "passes/passes.h"
#include "passes/rewrite.h"

/* Inference batch norm is x * scale + shift with scale = weight / sqrt(var + eps), shift = bias - mean * scale.
 * After a convolution or linear layer whose weights are constant, both go into its weights and bias, as nodes over
 * the live weights. Elsewhere they stay one multiplication and one addition. Of 16-bit floats too both are f32, and what
 * they make of the weights is rounded once: variances may be below the least 16-bit float, and the shift is a difference. */
typedef struct affine {
  fl_vid scale, mean, bias; /* f32, or f64 */
} affine;

static fl_status full(fl_graph *g, fl_nid n, fl_vid v, fl_vid *out) {
  return fl_rw_cast(g, n, v, fl_rw_type(g, v)->dtype == FL_F64 ? FL_F64 : FL_F32, out);
}

static fl_status make_affine(fl_graph *g, fl_nid n, affine *out) {
  const fl_vid *in = fl_rw_node(g, n)->inputs;
  fl_vid v, weight, stats[2] = {in[3], in[4]}, affines[2] = {in[1], in[2]};
  FL_TRY(full(g, n, stats[1], &v));
  FL_TRY(fl_rw_with_number(g, n, FL_OP_ADD, v, fl_attr_float(&fl_rw_node(g, n)->attrs, "eps", 0), &v));
  FL_TRY(fl_rw_unary(g, n, FL_OP_RSQRT, v, &v));
  FL_TRY(full(g, n, affines[0], &weight));
  FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, v, weight, &out->scale));
  FL_TRY(full(g, n, stats[0], &out->mean));
  return full(g, n, affines[1], &out->bias);
}

/* (old - mean) * scale + bias; the old bias may be absent, and is 0 then. */
static fl_status make_shift(fl_graph *g, fl_nid n, const affine *a, fl_vid old, fl_vid *out) {
  fl_vid v;
  if (old == FL_NO_VALUE) {
    FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, a->mean, a->scale, &v));
    return fl_rw_binary(g, n, FL_OP_SUB, a->bias, v, out);
  }
  FL_TRY(full(g, n, old, &v));
  FL_TRY(fl_rw_binary(g, n, FL_OP_SUB, v, a->mean, &v));
  FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, v, a->scale, &v));
  return fl_rw_binary(g, n, FL_OP_ADD, v, a->bias, out);
}

/* What feeds the batch norm, seen through a reshape that keeps batch and channels (1-d convolutions are 2-d ones of
 * height 1), if nothing else reads it. */
static const fl_node *find_source(const fl_graph *g, fl_vid x) {
  if (!fl_rw_used_once(g, x)) return NULL;
  const fl_node *p = fl_rw_made_by(g, x, FL_OP_COUNT);
  if (!p || p->op != FL_OP_RESHAPE) return p;
  const fl_type *to = fl_rw_type(g, x), *from = fl_rw_type(g, p->inputs[0]);
  if (!fl_rw_used_once(g, p->inputs[0]) || from->rank < 2 || from->dims[0] != to->dims[0] ||
      from->dims[1] != to->dims[1])
    return NULL;
  return fl_rw_made_by(g, p->inputs[0], FL_OP_COUNT);
}

/* The axis of output channels in the source's weights, or -1 when it cannot take scale and shift. */
static int weight_axis(const fl_graph *g, const fl_node *source) {
  if (source->op == FL_OP_CONV2D) return 0;
  if (source->op == FL_OP_CONV_TRANSPOSE2D) return fl_attr_int(&source->attrs, "groups", 1) == 1 ? 1 : -1;
  if (source->op != FL_OP_MATMUL || fl_rw_type(g, source->outputs[0])->rank != 2) return -1;
  return fl_attr_int(&source->attrs, "trans_b", 0) ? 0 : 1;
}

static bool can_fold(const fl_graph *g, const fl_node *bn, const fl_node *source) {
  if (!source || weight_axis(g, source) < 0 || !fl_graph_is_const(g, source->inputs[1])) return false;
  if (source->inputs[2] != FL_NO_VALUE && !fl_graph_is_const(g, source->inputs[2])) return false;
  if (source->n_inputs > 3 && source->inputs[3] != FL_NO_VALUE) return false;
  for (int i = 1; i < 5; i++)
    if (!fl_graph_is_const(g, bn->inputs[i])) return false;
  return fl_attr_int(&source->attrs, "act", FL_ACT_NONE) == FL_ACT_NONE;
}

static fl_status scale_weights(fl_graph *g, fl_nid n, fl_vid w, int axis, fl_vid scale, fl_vid *out) {
  const fl_type *t = fl_rw_type(g, w);
  int64_t dims[FL_MAX_RANK];
  int rank = t->rank - axis;
  for (int i = 1; i < rank; i++) dims[i] = 1;
  fl_dtype dtype = t->dtype;
  dims[0] = t->dims[axis];
  FL_TRY(full(g, n, w, &w));
  FL_TRY(fl_rw_reshape(g, n, scale, rank, dims, &scale));
  FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, w, scale, out));
  return fl_rw_cast(g, n, *out, dtype, out);
}

static fl_status fold(fl_graph *g, fl_nid n, const fl_node *source, const affine *a) {
  fl_op op = source->op;
  fl_vid in[4] = {source->inputs[0], source->inputs[1], source->inputs[2], FL_NO_VALUE}, v;
  fl_attrs attrs = source->attrs;
  int n_in = source->n_inputs;
  fl_type seen = *fl_rw_type(g, fl_rw_node(g, n)->outputs[0]);
  FL_TRY(scale_weights(g, n, in[1], weight_axis(g, source), a->scale, &in[1]));
  FL_TRY(make_shift(g, n, a, in[2], &in[2]));
  FL_TRY(fl_rw_cast(g, n, in[2], seen.dtype, &in[2]));
  FL_TRY(fl_rw_add(g, n, op, in, n_in, &attrs, &v));
  FL_TRY(fl_rw_reshape(g, n, v, seen.rank, seen.dims, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

/* One value per channel against [batch, channels, ...]. */
static fl_status per_channel(fl_graph *g, fl_nid n, fl_vid v, int rank, fl_vid *out) {
  int64_t dims[FL_MAX_RANK];
  for (int i = 0; i < rank; i++) dims[i] = 1;
  dims[0] = fl_rw_type(g, v)->dims[0];
  return fl_rw_reshape(g, n, v, rank - 1, dims, out);
}

static fl_status spell_out(fl_graph *g, fl_nid n, const affine *a) {
  fl_vid x = fl_rw_node(g, n)->inputs[0], scale, shift;
  int rank = fl_rw_type(g, x)->rank;
  fl_dtype dtype = fl_rw_type(g, x)->dtype;
  FL_TRY(make_shift(g, n, a, FL_NO_VALUE, &shift));
  FL_TRY(per_channel(g, n, a->scale, rank, &scale));
  FL_TRY(per_channel(g, n, shift, rank, &shift));
  FL_TRY(full(g, n, x, &x));
  FL_TRY(fl_rw_binary(g, n, FL_OP_MUL, x, scale, &x));
  FL_TRY(fl_rw_binary(g, n, FL_OP_ADD, x, shift, &x));
  FL_TRY(fl_rw_cast(g, n, x, dtype, &x));
  fl_rw_replace(g, n, x);
  return NULL;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  affine a;
  if (fl_rw_node(g, n)->op != FL_OP_BATCH_NORM) return NULL;
  *changed = true;
  const fl_node *source = find_source(g, fl_rw_node(g, n)->inputs[0]);
  bool folds = can_fold(g, fl_rw_node(g, n), source);
  fl_nid from = folds ? fl_graph_producer(g, source->outputs[0]) : FL_NO_NODE;
  FL_TRY(make_affine(g, n, &a));
  return folds ? fold(g, n, fl_rw_node(g, from), &a) : spell_out(g, n, &a);
}

fl_status fl_pass_batch_norm(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
