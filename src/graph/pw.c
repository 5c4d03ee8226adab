#include <string.h>

#include "graph/graph.h"

static bool takes_floats_only(fl_op op) {
  switch (op) {
  case FL_OP_NEG:
  case FL_OP_ABS:
  case FL_OP_RELU:
  case FL_OP_CLAMP:
  case FL_OP_SIGN:
  case FL_OP_NOT:
  case FL_OP_CAST: return false;
  default: return fl_op_get(op)->max_inputs == 1 || op == FL_OP_DIV;
  }
}

static bool is_logical(fl_op op) { return op == FL_OP_NOT || op == FL_OP_AND || op == FL_OP_OR || op == FL_OP_XOR; }

static bool gives_bool(fl_op op) {
  switch (op) {
  case FL_OP_ISNAN:
  case FL_OP_EQ:
  case FL_OP_NE:
  case FL_OP_LT:
  case FL_OP_LE:
  case FL_OP_GT:
  case FL_OP_GE: return true;
  default: return false;
  }
}

fl_status fl_pw_dtype(fl_op op, const fl_dtype *in, int n_in, fl_dtype cast, fl_dtype *out) {
  const fl_op_info *info = fl_op_get(op);
  if (!(info->flags & FL_OPF_POINTWISE)) return fl_fail(FL_INVALID, "%s: is not pointwise", info->name);
  if (n_in != info->max_inputs)
    return fl_fail(FL_INVALID, "%s: has %d operands: must have %d", info->name, n_in, info->max_inputs);
  int first = op == FL_OP_WHERE ? 1 : 0;
  if (op == FL_OP_WHERE && in[0] != FL_BOOL)
    return fl_fail(FL_INVALID, "where: operand 0 is %s: must be bool", fl_dtype_name(in[0]));
  for (int i = first + 1; i < n_in; i++)
    if (in[i] != in[first])
      return fl_fail(FL_INVALID, "%s: operand %d is %s: must be %s as operand %d", info->name, i, fl_dtype_name(in[i]),
                     fl_dtype_name(in[first]), first);
  if (takes_floats_only(op) && !fl_dtype_is_float(in[0]))
    return fl_fail(FL_INVALID, "%s: operand 0 is %s: must be a float", info->name, fl_dtype_name(in[0]));
  if (is_logical(op) && fl_dtype_is_float(in[0]))
    return fl_fail(FL_INVALID, "%s: operand 0 is %s: must be bool or an integer", info->name, fl_dtype_name(in[0]));
  if (op == FL_OP_CAST && (unsigned)cast >= FL_DTYPE_COUNT) return fl_fail(FL_INVALID, "cast: unknown dtype");
  *out = op == FL_OP_CAST ? cast : gives_bool(op) ? FL_BOOL : in[first];
  return NULL;
}

fl_dtype fl_pw_register_dtype(const fl_pw_program *p, int reg) {
  return reg < p->n_inputs ? p->in_dtype[reg] : p->instrs[reg - p->n_inputs].dtype;
}

static fl_status check_instr(const fl_pw_program *p, int i) {
  const fl_pw_instr *in = &p->instrs[i];
  if ((unsigned)in->op >= FL_OP_COUNT) return fl_fail(FL_INVALID, "unknown operator %d", (int)in->op);
  int n = 0;
  fl_dtype dtypes[3], result;
  for (; n < 3 && in->src[n] >= 0; n++) {
    if (in->src[n] >= p->n_inputs + i) return fl_fail(FL_INVALID, "register r%d is read before it is set", in->src[n]);
    dtypes[n] = fl_pw_register_dtype(p, in->src[n]);
  }
  FL_TRY(fl_pw_dtype(in->op, dtypes, n, in->dtype, &result));
  if (result != in->dtype)
    return fl_fail(FL_INVALID, "%s: result is %s: must be %s", fl_op_get(in->op)->name, fl_dtype_name(in->dtype),
                   fl_dtype_name(result));
  return NULL;
}

fl_status fl_pw_check(const fl_pw_program *p) {
  if (p->n_inputs < 1 || p->n_inputs > FL_PW_MAX_INPUTS || p->n_instrs < 0 || p->n_instrs > FL_PW_MAX_INSTRS ||
      p->n_outputs < 1 || p->n_outputs > FL_PW_MAX_OUTPUTS)
    return fl_fail(FL_INVALID, "pointwise: %d inputs, %d instructions, %d outputs: must be 1..%d, 0..%d, 1..%d",
                   p->n_inputs, p->n_instrs, p->n_outputs, FL_PW_MAX_INPUTS, FL_PW_MAX_INSTRS, FL_PW_MAX_OUTPUTS);
  for (int i = 0; i < p->n_inputs; i++)
    if ((unsigned)p->in_dtype[i] >= FL_DTYPE_COUNT) return fl_fail(FL_INVALID, "pointwise: input %d: unknown dtype", i);
  for (int i = 0; i < p->n_instrs; i++) {
    fl_status s = check_instr(p, i);
    if (s) return fl_annotate(s, "pointwise: instruction %d", i);
  }
  for (int i = 0; i < p->n_outputs; i++)
    if (p->outputs[i] < 0 || p->outputs[i] >= p->n_inputs + p->n_instrs)
      return fl_fail(FL_INVALID, "pointwise: output %d: no register r%d", i, p->outputs[i]);
  return NULL;
}

static bool instr_equal(const fl_pw_instr *a, const fl_pw_instr *b) {
  return a->op == b->op && a->dtype == b->dtype && !memcmp(a->src, b->src, sizeof a->src) &&
         !memcmp(&a->a, &b->a, sizeof a->a) && !memcmp(&a->b, &b->b, sizeof a->b);
}

bool fl_pw_equal(const fl_pw_program *a, const fl_pw_program *b) {
  if (a->n_inputs != b->n_inputs || a->n_instrs != b->n_instrs || a->n_outputs != b->n_outputs) return false;
  for (int i = 0; i < a->n_inputs; i++)
    if (a->in_dtype[i] != b->in_dtype[i]) return false;
  for (int i = 0; i < a->n_instrs; i++)
    if (!instr_equal(&a->instrs[i], &b->instrs[i])) return false;
  return !memcmp(a->outputs, b->outputs, (size_t)a->n_outputs * sizeof *a->outputs);
}

/* Float attributes in the order of the row: first to a, second to b. */
static void instr_floats(const fl_node *n, fl_pw_instr *in) {
  double *slot[2] = {&in->a, &in->b};
  int k = 0;
  for (int i = 0; i < n->attrs.count && k < 2; i++)
    if (n->attrs.items[i].kind == 'f') *slot[k++] = n->attrs.items[i].v.f;
}

bool fl_pw_from_node(const fl_graph *g, const fl_node *n, fl_pw_program *out) {
  if (n->op == FL_OP_POINTWISE) {
    *out = *n->program;
    return true;
  }
  if (!(fl_op_get(n->op)->flags & FL_OPF_POINTWISE)) return false;
  memset(out, 0, sizeof *out);
  out->n_inputs = n->n_inputs;
  out->n_instrs = out->n_outputs = 1;
  fl_pw_instr *in = &out->instrs[0];
  *in = (fl_pw_instr){.op = n->op, .dtype = g->values.data[n->outputs[0]].type.dtype, .src = {-1, -1, -1}};
  for (int i = 0; i < n->n_inputs; i++) {
    out->in_dtype[i] = g->values.data[n->inputs[i]].type.dtype;
    in->src[i] = (int16_t)i;
  }
  instr_floats(n, in);
  out->outputs[0] = (int16_t)n->n_inputs;
  return true;
}
