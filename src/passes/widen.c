#include "passes/passes.h"
#include "passes/rewrite.h"

/* Operators on 16-bit floats that do arithmetic in long loops are computed in f32 and rounded once, where the graph asks for
 * it (fl_graph.wide): the CPU has fast kernels of most of them for f32 alone. Operands that are constant are widened once, when an
 * engine is made; the other casts join what is pointwise around them. */
static bool is_half(const fl_graph *g, fl_vid v) {
  if (v == FL_NO_VALUE) return false;
  fl_dtype t = fl_rw_type(g, v)->dtype;
  return t == FL_F16 || t == FL_BF16;
}

static bool is_arithmetic(fl_op op) {
  switch (op) {
  case FL_OP_MATMUL:
  case FL_OP_GROUPED_MATMUL:
  case FL_OP_CONV2D:
  case FL_OP_CONV_TRANSPOSE2D:
  case FL_OP_ATTENTION:
  case FL_OP_MAX_POOL2D:
  case FL_OP_AVG_POOL2D:
  case FL_OP_ADAPTIVE_AVG_POOL2D:
  case FL_OP_RESIZE2D:
  case FL_OP_SUM:
  case FL_OP_MEAN:
  case FL_OP_PROD:
  case FL_OP_AMAX:
  case FL_OP_AMIN:
  case FL_OP_VAR:
  case FL_OP_ARGMAX:
  case FL_OP_ARGMIN:
  case FL_OP_SOFTMAX:
  case FL_OP_LOG_SOFTMAX:
  case FL_OP_LAYER_NORM:
  case FL_OP_RMS_NORM:
  case FL_OP_GROUP_NORM:
  case FL_OP_BATCH_NORM: return true;
  default: return false;
  }
}

/* Kernels take it as it is: products, and attention of heads of even size, whose mask may be of another type. */
static bool has_kernel(const fl_graph *g, const fl_node *n) {
  if (!g->bf16_products || (n->op != FL_OP_MATMUL && n->op != FL_OP_ATTENTION)) return false;
  int operands = n->op == FL_OP_ATTENTION ? 3 : n->n_inputs;
  for (int i = 0; i < operands; i++)
    if (n->inputs[i] != FL_NO_VALUE && fl_rw_type(g, n->inputs[i])->dtype != FL_BF16) return false;
  const fl_type *q = fl_rw_type(g, n->inputs[0]);
  return fl_rw_type(g, n->outputs[0])->dtype == FL_BF16 && (n->op == FL_OP_MATMUL || q->dims[q->rank - 1] % 2 == 0);
}

/* A constant that was rounded only to be an operand is taken as it was before. */
static fl_status widened(fl_graph *g, fl_nid before, fl_vid v, fl_vid *out) {
  const fl_node *made = fl_graph_is_const(g, v) ? fl_rw_made_by(g, v, FL_OP_CAST) : NULL;
  if (!made || fl_rw_type(g, made->inputs[0])->dtype != FL_F32) return fl_rw_cast(g, before, v, FL_F32, out);
  *out = made->inputs[0];
  return NULL;
}

static fl_status visit(fl_graph *g, fl_nid id, bool *changed) {
  const fl_node *n = fl_rw_node(g, id);
  fl_op op = n->op;
  if (!is_arithmetic(op) || !is_half(g, n->inputs[0]) || has_kernel(g, n)) return NULL;
  fl_dtype half = fl_rw_type(g, n->outputs[0])->dtype;
  fl_attrs attrs = n->attrs;
  fl_vid inputs[8], result;
  int count = n->n_inputs;
  if (count > (int)(sizeof inputs / sizeof *inputs)) return NULL;
  for (int i = 0; i < count; i++) {
    inputs[i] = fl_rw_node(g, id)->inputs[i];
    if (is_half(g, inputs[i])) FL_TRY(widened(g, id, inputs[i], &inputs[i]));
  }
  FL_TRY(fl_rw_add(g, id, op, inputs, count, &attrs, &result));
  if (half == FL_F16 || half == FL_BF16) FL_TRY(fl_rw_cast(g, id, result, half, &result));
  *changed = true;
  fl_rw_replace(g, id, result);
  return NULL;
}

fl_status fl_pass_widen(fl_graph *g) {
  bool changed = false;
  return g->wide ? fl_rw_walk(g, visit, &changed) : NULL;
}
