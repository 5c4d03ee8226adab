#include "passes/passes.h"
#include "passes/rewrite.h"

/* Bias, residual and activation are taken into the product that feeds them, one at a time: the fused product takes the
 * place of the node that was absorbed, so that a residual computed in between is there. Between product and user may
 * lie one reshape (linear layers arrive as view, addmm, view): the epilogue crosses it, and the reshape follows. */
typedef struct site {
  fl_nid product;
  fl_vid result;  /* of the product */
  fl_vid seen_as; /* what the user reads: the result, or a reshape of it */
  fl_nid user;
} site;

enum { BIAS = 2, RESIDUAL = 3 };

static bool is_product(fl_op op) { return op == FL_OP_MATMUL || op == FL_OP_CONV2D; }

static bool find_site(const fl_graph *g, fl_nid product, site *out) {
  fl_vid v = fl_rw_node(g, product)->outputs[0];
  *out = (site){product, v, v, fl_graph_sole_user(g, v)};
  if (out->user == FL_NO_NODE) return false;
  const fl_node *u = fl_rw_node(g, out->user);
  if (u->op != FL_OP_RESHAPE) return true;
  out->seen_as = u->outputs[0];
  out->user = fl_graph_sole_user(g, out->seen_as);
  return out->user != FL_NO_NODE;
}

static fl_act act_of(fl_op op) {
  switch (op) {
  case FL_OP_RELU: return FL_ACT_RELU;
  case FL_OP_CLAMP: return FL_ACT_CLAMP;
  case FL_OP_GELU: return FL_ACT_GELU;
  case FL_OP_GELU_TANH: return FL_ACT_GELU_TANH;
  case FL_OP_SILU: return FL_ACT_SILU;
  case FL_OP_SIGMOID: return FL_ACT_SIGMOID;
  case FL_OP_TANH: return FL_ACT_TANH;
  case FL_OP_HARDSWISH: return FL_ACT_HARDSWISH;
  case FL_OP_HARDSIGMOID: return FL_ACT_HARDSIGMOID;
  default: return FL_ACT_NONE;
  }
}

/* The axis of output channels. */
static int channel_axis(const fl_graph *g, const site *at) {
  return fl_rw_node(g, at->product)->op == FL_OP_CONV2D ? 1 : fl_rw_type(g, at->result)->rank - 1;
}

/* `other` is one constant per output channel of the product, as seen by the user. */
static bool is_bias(const fl_graph *g, const site *at, fl_vid other) {
  const fl_type *result = fl_rw_type(g, at->result), *seen = fl_rw_type(g, at->seen_as);
  int axis = channel_axis(g, at), from_end = result->rank - 1 - axis, seen_axis = seen->rank - 1 - from_end;
  if (!fl_graph_is_const(g, other)) return false;
  if (fl_rw_node(g, at->product)->op == FL_OP_CONV2D) { /* channels come second: the axis before must be kept */
    if (seen->rank < 2 || seen->dims[0] != result->dims[0]) return false;
    seen_axis = 1;
  }
  if (seen_axis < 0 || seen->dims[seen_axis] != result->dims[axis]) return false;
  return fl_rw_is_vector(g, other, seen->rank, seen_axis, result->dims[axis]);
}

/* Puts the product, with these operands and attributes, in the place of the user. */
static fl_status put_product(fl_graph *g, const site *at, const fl_vid *inputs, const fl_attrs *attrs) {
  fl_vid v;
  const fl_node *u = fl_rw_node(g, at->user);
  fl_type seen = *fl_rw_type(g, u->outputs[0]);
  g->origin = fl_rw_node(g, at->product)->origin;
  FL_TRY(fl_rw_add(g, at->user, fl_rw_node(g, at->product)->op, inputs, 4, attrs, &v));
  FL_TRY(fl_rw_reshape(g, at->user, v, seen.rank, seen.dims, &v));
  fl_rw_replace(g, at->user, v);
  return NULL;
}

static fl_status absorb_bias(fl_graph *g, const site *at, fl_vid bias) {
  const fl_node *p = fl_rw_node(g, at->product);
  fl_vid in[4] = {p->inputs[0], p->inputs[1], p->inputs[2], p->inputs[3]};
  fl_attrs attrs = p->attrs;
  int64_t channels = fl_rw_type(g, at->result)->dims[channel_axis(g, at)];
  FL_TRY(fl_rw_reshape(g, at->user, bias, 1, &channels, &bias));
  if (in[BIAS] == FL_NO_VALUE)
    in[BIAS] = bias;
  else
    FL_TRY(fl_rw_binary(g, at->user, FL_OP_ADD, in[BIAS], bias, &in[BIAS]));
  return put_product(g, at, in, &attrs);
}

static fl_status absorb_residual(fl_graph *g, const site *at, fl_vid residual) {
  const fl_node *p = fl_rw_node(g, at->product);
  fl_vid in[4] = {p->inputs[0], p->inputs[1], p->inputs[2]};
  fl_attrs attrs = p->attrs;
  fl_type t = *fl_rw_type(g, at->result);
  FL_TRY(fl_rw_reshape(g, at->user, residual, t.rank, t.dims, &in[RESIDUAL]));
  return put_product(g, at, in, &attrs);
}

static fl_status absorb_act(fl_graph *g, const site *at, fl_act act) {
  const fl_node *p = fl_rw_node(g, at->product), *u = fl_rw_node(g, at->user);
  fl_vid in[4] = {p->inputs[0], p->inputs[1], p->inputs[2], p->inputs[3]};
  fl_attrs attrs = p->attrs;
  fl_attr_set_int(&attrs, "act", 'a', act);
  if (act == FL_ACT_CLAMP) {
    fl_attr_set_float(&attrs, "act_lo", fl_attr_float(&u->attrs, "lo", 0));
    fl_attr_set_float(&attrs, "act_hi", fl_attr_float(&u->attrs, "hi", 0));
  }
  return put_product(g, at, in, &attrs);
}

static fl_status absorb(fl_graph *g, const site *at, bool *changed) {
  const fl_node *p = fl_rw_node(g, at->product), *u = fl_rw_node(g, at->user);
  if (fl_attr_int(&p->attrs, "act", 0) != FL_ACT_NONE || !fl_dtype_is_float(fl_rw_type(g, at->result)->dtype))
    return NULL;
  *changed = true;
  if (act_of(u->op) != FL_ACT_NONE) return absorb_act(g, at, act_of(u->op));
  if (u->op == FL_OP_ADD) {
    fl_vid other = u->inputs[u->inputs[0] == at->seen_as];
    if (is_bias(g, at, other)) return absorb_bias(g, at, other);
    /* A constant of the full size is a residual too; one that is broadcast is not. */
    if (p->inputs[RESIDUAL] == FL_NO_VALUE && fl_type_equal(fl_rw_type(g, other), fl_rw_type(g, at->seen_as)))
      return absorb_residual(g, at, other);
  }
  *changed = false;
  return NULL;
}

/* The product moves forward to the node it has absorbed, where the walk meets it again. */
static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  site at;
  return is_product(fl_rw_node(g, n)->op) && find_site(g, n, &at) ? absorb(g, &at, changed) : NULL;
}

fl_status fl_pass_epilogue(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
