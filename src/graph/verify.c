#include <string.h>

#include "graph/graph.h"

#define BROKEN(...) fl_fail(FL_INTERNAL, __VA_ARGS__)

static fl_status check_operands(const fl_graph *g, const fl_node *n, const unsigned char *defined) {
  for (int i = 0; i < n->n_inputs; i++) {
    fl_vid v = n->inputs[i];
    if (v == FL_NO_VALUE) continue;
    if (v >= g->values.len) return BROKEN("operand %d: no value %%%u", i, v);
    if (!defined[v]) return BROKEN("operand %d: %%%u is used before its definition", i, v);
  }
  return NULL;
}

static fl_status check_results(const fl_graph *g, fl_nid id, const fl_type *want, bool constant) {
  const fl_node *n = &g->nodes.data[id];
  for (int i = 0; i < n->n_outputs; i++) {
    if (n->outputs[i] >= g->values.len) return BROKEN("result %d: no value %%%u", i, n->outputs[i]);
    const fl_value *v = &g->values.data[n->outputs[i]];
    if (v->kind != FL_VALUE_RESULT || v->node != id || v->index != i)
      return BROKEN("result %d: %%%u names another producer", i, n->outputs[i]);
    char have[128], need[128];
    if (!fl_type_equal(&v->type, &want[i]))
      return BROKEN("result %d is %s: must be %s", i, fl_type_str(&v->type, have, sizeof have),
                    fl_type_str(&want[i], need, sizeof need));
    if (v->constant != constant) return BROKEN("result %d: constant flag is %d", i, v->constant);
  }
  return NULL;
}

static fl_status check_types(const fl_graph *g, fl_nid id) {
  const fl_node *n = &g->nodes.data[id];
  const fl_op_info *info = fl_op_get(n->op);
  if (n->n_outputs != (n->op == FL_OP_POINTWISE && n->program ? n->program->n_outputs : info->outputs) ||
      n->n_outputs > FL_PW_MAX_OUTPUTS)
    return BROKEN("has %d results", n->n_outputs);
  if (info->max_inputs >= 0 && n->n_inputs != info->max_inputs) return BROKEN("has %d operands", n->n_inputs);
  fl_attrs normal;
  FL_TRY(fl_attrs_normalize(n->op, &n->attrs, &normal));
  if (!fl_attrs_equal(&normal, &n->attrs)) return BROKEN("attributes are not in normal form");
  const fl_type **types = fl_malloc((size_t)n->n_inputs * sizeof *types);
  if (!types) return fl_oom();
  bool constant = true;
  for (int i = 0; i < n->n_inputs; i++) {
    const fl_value *v = n->inputs[i] == FL_NO_VALUE ? NULL : &g->values.data[n->inputs[i]];
    types[i] = v ? &v->type : NULL;
    constant &= !v || v->constant;
  }
  fl_type want[FL_PW_MAX_OUTPUTS];
  fl_status s = fl_infer(n->op, types, n->n_inputs, &n->attrs, n->program, want);
  fl_free(types);
  return s ? s : check_results(g, id, want, constant);
}

/* Walks the list of each value and counts; together with the operands' own records that proves the index. */
static fl_status check_uses(const fl_graph *g) {
  size_t linked = 0, held = 0;
  for (fl_vid v = 0; v < g->values.len; v++) {
    int n = 0;
    uint32_t prev = FL_NO_USE;
    for (uint32_t u = g->values.data[v].first_use; u != FL_NO_USE; prev = u, u = g->uses.data[u].next, n++) {
      if (u >= g->uses.len || n >= g->values.data[v].n_uses) return BROKEN("value %%%u: broken list of uses", v);
      const fl_use *use = &g->uses.data[u];
      if (use->node >= g->nodes.len || use->prev != prev) return BROKEN("value %%%u: broken list of uses", v);
      const fl_node *node = &g->nodes.data[use->node];
      uint32_t operand = u - node->first_use;
      if (node->dead || operand >= (uint32_t)node->n_inputs || node->inputs[operand] != v)
        return BROKEN("value %%%u: a use that is none", v);
    }
    if (n != g->values.data[v].n_uses) return BROKEN("value %%%u: %d uses, counted %d", v, n, g->values.data[v].n_uses);
    linked += (size_t)n;
  }
  for (fl_nid id = g->first; id != FL_NO_NODE; id = g->nodes.data[id].next)
    for (int i = 0; i < g->nodes.data[id].n_inputs; i++) held += g->nodes.data[id].inputs[i] != FL_NO_VALUE;
  return held == linked ? NULL : BROKEN("%zu operands, %zu uses", held, linked);
}

static fl_status check_outputs(const fl_graph *g, const unsigned char *defined) {
  size_t counted = 0;
  for (size_t i = 0; i < g->outputs.len; i++) {
    fl_vid v = g->outputs.data[i];
    if (v >= g->values.len || !defined[v]) return BROKEN("output %zu: %%%u is not defined", i, v);
  }
  for (fl_vid v = 0; v < g->values.len; v++) counted += (size_t)g->values.data[v].n_output_uses;
  return counted == g->outputs.len ? NULL : BROKEN("%zu outputs, counted %zu", g->outputs.len, counted);
}

static fl_status check_leaves(const fl_graph *g, unsigned char *defined) {
  for (fl_vid v = 0; v < g->values.len; v++) {
    const fl_value *x = &g->values.data[v];
    if (x->kind == FL_VALUE_RESULT) continue;
    defined[v] = 1;
    if (x->constant != (x->kind != FL_VALUE_INPUT)) return BROKEN("value %%%u: constant flag is %d", v, x->constant);
    if (x->kind == FL_VALUE_LITERAL && !x->data) return BROKEN("value %%%u: literal without data", v);
    if (x->kind == FL_VALUE_INPUT && ((size_t)x->index >= g->inputs.len || g->inputs.data[x->index] != v))
      return BROKEN("value %%%u: not at its place in inputs", v);
  }
  return NULL;
}

static fl_status check_nodes(const fl_graph *g, unsigned char *defined) {
  size_t count = 0;
  fl_nid prev = FL_NO_NODE;
  for (fl_nid id = g->first; id != FL_NO_NODE; prev = id, id = g->nodes.data[id].next) {
    if (id >= g->nodes.len || ++count > g->nodes.len) return BROKEN("broken list of nodes");
    const fl_node *n = &g->nodes.data[id];
    if (n->prev != prev || n->dead || (unsigned)n->op >= FL_OP_COUNT)
      return BROKEN("node %u: broken list of nodes", id);
    fl_status s = check_operands(g, n, defined);
    if (!s) s = check_types(g, id);
    if (s && fl_status_code(s) == FL_INVALID) { /* of inference: here it is our own fault */
      fl_status mine = BROKEN("%s", fl_status_message(s));
      fl_status_free(s);
      s = mine;
    }
    if (s) return fl_annotate(s, "node %u (%s)", id, fl_op_get(n->op)->name);
    for (int i = 0; i < n->n_outputs; i++) {
      if (defined[n->outputs[i]]) return BROKEN("node %u: %%%u is defined twice", id, n->outputs[i]);
      defined[n->outputs[i]] = 1;
    }
  }
  if (g->last != prev || count != (size_t)g->n_live) return BROKEN("%zu nodes, counted %d", count, g->n_live);
  return NULL;
}

fl_status fl_graph_verify(const fl_graph *g) {
  unsigned char *defined = fl_calloc(g->values.len, 1);
  if (!defined) return fl_oom();
  fl_status s = check_leaves(g, defined);
  if (!s) s = check_nodes(g, defined);
  if (!s) s = check_outputs(g, defined);
  fl_free(defined);
  return s ? s : check_uses(g);
}
