#include "graph/graph.h"

#include <math.h>
#include <string.h>

fl_status fl_graph_create(fl_graph **out_graph) {
  fl_graph *g = fl_calloc(1, sizeof *g);
  if (!g) return fl_oom();
  fl_arena_init(&g->arena);
  g->first = g->last = FL_NO_NODE;
  g->origin = UINT32_MAX;
  *out_graph = g;
  return NULL;
}

void fl_graph_destroy(fl_graph *g) {
  if (!g) return;
  fl_arena_release(&g->arena);
  fl_free(g->values.data);
  fl_free(g->nodes.data);
  fl_free(g->uses.data);
  fl_free(g->inputs.data);
  fl_free(g->outputs.data);
  fl_free(g);
}

/* Room for `more` elements beyond len, so that the pushes that follow cannot fail. */
static bool reserve(void **data, size_t *cap, size_t len, size_t more, size_t elem) {
  while (*cap - len < more)
    if (!fl_grow(data, cap, *cap, elem)) return false;
  return true;
}
#define RESERVE(v, more) reserve((void **)&(v)->data, &(v)->cap, (v)->len, (more), sizeof *(v)->data)

/* --- values --- */

static fl_status check_type(const char *what, const fl_type *type) {
  if (type->rank < 0 || type->rank > FL_MAX_RANK || (unsigned)type->dtype >= FL_DTYPE_COUNT)
    return fl_fail(FL_INVALID, "%s: rank %d, dtype %d: not a type", what, type->rank, (int)type->dtype);
  for (int i = 0; i < type->rank; i++)
    if (type->dims[i] < 0) return fl_fail(FL_INVALID, "%s: dims[%d] is %lld", what, i, (long long)type->dims[i]);
  if (fl_type_bytes(type) > (size_t)INT64_MAX / 4) return fl_fail(FL_INVALID, "%s: too large", what);
  return NULL;
}

static fl_value value_make(fl_value_kind kind, const fl_type *type, const int64_t *strides) {
  fl_value v = {
      .type = *type, .kind = kind, .node = FL_NO_NODE, .slot = FL_NO_SLOT, .first_use = FL_NO_USE, .number = NAN};
  v.constant = kind == FL_VALUE_WEIGHT || kind == FL_VALUE_LITERAL;
  if (strides)
    memcpy(v.strides, strides, (size_t)type->rank * sizeof *strides);
  else
    fl_strides_contiguous(type, v.strides);
  return v;
}

fl_status fl_graph_input(fl_graph *g, const fl_type *type, const int64_t *strides, fl_vid *out) {
  FL_TRY(check_type("input", type));
  fl_value v = value_make(FL_VALUE_INPUT, type, strides);
  v.index = (int)g->inputs.len;
  if (!RESERVE(&g->values, 1) || !RESERVE(&g->inputs, 1)) return fl_oom();
  *out = (fl_vid)g->values.len;
  g->values.data[g->values.len++] = v;
  g->inputs.data[g->inputs.len++] = *out;
  return NULL;
}

fl_status fl_graph_weight(fl_graph *g, const fl_type *type, const int64_t *strides, uint32_t slot, const void *data,
                          fl_vid *out) {
  FL_TRY(check_type("weight", type));
  fl_value v = value_make(FL_VALUE_WEIGHT, type, strides);
  v.slot = slot;
  v.data = data;
  if (!FL_PUSH(&g->values, v)) return fl_oom();
  *out = (fl_vid)g->values.len - 1;
  return NULL;
}

fl_status fl_graph_literal(fl_graph *g, const fl_type *type, const void *data, fl_vid *out) {
  FL_TRY(check_type("literal", type));
  fl_value v = value_make(FL_VALUE_LITERAL, type, NULL);
  v.data = fl_arena_memdup(&g->arena, data, fl_type_bytes(type));
  if (!v.data || !FL_PUSH(&g->values, v)) return fl_oom();
  *out = (fl_vid)g->values.len - 1;
  return NULL;
}

fl_status fl_graph_scalar(fl_graph *g, fl_dtype dtype, double v, fl_vid *out) {
  unsigned char bytes[8] = {0};
  fl_type type = fl_type_make(dtype, 0, NULL);
  FL_TRY(check_type("scalar", &type));
  fl_element_set(dtype, bytes, 0, v);
  FL_TRY(fl_graph_literal(g, &type, bytes, out));
  if (dtype == FL_F16 || dtype == FL_BF16) g->values.data[*out].number = v;
  return NULL;
}

bool fl_graph_scalar_value(const fl_graph *g, fl_vid v, double *out) {
  if (v >= g->values.len || g->values.data[v].kind != FL_VALUE_LITERAL) return false;
  const fl_value *x = &g->values.data[v];
  size_t bytes = fl_type_bytes(&x->type), size = fl_dtype_size(x->type.dtype);
  if (!bytes) return false;
  const char *data = x->data;
  if (bytes > size && memcmp(data, data + size, bytes - size)) return false;
  *out = fl_element_get(x->type.dtype, data, 0);
  return true;
}

/* --- uses --- */

static void link_use(fl_graph *g, uint32_t use, fl_vid v) {
  fl_use *u = &g->uses.data[use];
  u->prev = u->next = FL_NO_USE;
  if (v == FL_NO_VALUE) return;
  fl_value *value = &g->values.data[v];
  u->next = value->first_use;
  if (u->next != FL_NO_USE) g->uses.data[u->next].prev = use;
  value->first_use = use;
  value->n_uses++;
}

static void unlink_use(fl_graph *g, uint32_t use, fl_vid v) {
  if (v == FL_NO_VALUE) return;
  fl_use *u = &g->uses.data[use];
  if (u->next != FL_NO_USE) g->uses.data[u->next].prev = u->prev;
  if (u->prev != FL_NO_USE)
    g->uses.data[u->prev].next = u->next;
  else
    g->values.data[v].first_use = u->next;
  g->values.data[v].n_uses--;
}

static bool inputs_constant(const fl_graph *g, const fl_node *n) {
  for (int i = 0; i < n->n_inputs; i++)
    if (n->inputs[i] != FL_NO_VALUE && !g->values.data[n->inputs[i]].constant) return false;
  return true;
}

/* Replacing a value by one that is constant, or is not, changes what follows from it. Rare, so a plain walk. */
static void refresh_constants(fl_graph *g, fl_nid from) {
  for (fl_nid id = from; id != FL_NO_NODE; id = g->nodes.data[id].next) {
    const fl_node *n = &g->nodes.data[id];
    bool constant = inputs_constant(g, n);
    for (int i = 0; i < n->n_outputs; i++) g->values.data[n->outputs[i]].constant = constant;
  }
}

static void set_input(fl_graph *g, fl_nid n, int operand, fl_vid v) {
  fl_node *node = &g->nodes.data[n];
  uint32_t use = node->first_use + (uint32_t)operand;
  unlink_use(g, use, node->inputs[operand]);
  node->inputs[operand] = v;
  link_use(g, use, v);
}

void fl_graph_set_input(fl_graph *g, fl_nid n, int operand, fl_vid v) {
  set_input(g, n, operand, v);
  fl_node *node = &g->nodes.data[n];
  if (node->n_outputs && g->values.data[node->outputs[0]].constant != inputs_constant(g, node)) refresh_constants(g, n);
}

void fl_graph_replace_uses(fl_graph *g, fl_vid from, fl_vid to) {
  if (from == to) return;
  while (g->values.data[from].first_use != FL_NO_USE) {
    uint32_t use = g->values.data[from].first_use;
    fl_nid n = g->uses.data[use].node;
    set_input(g, n, (int)(use - g->nodes.data[n].first_use), to);
  }
  if (g->values.data[from].n_output_uses) {
    for (size_t i = 0; i < g->outputs.len; i++)
      if (g->outputs.data[i] == from) g->outputs.data[i] = to;
    g->values.data[to].n_output_uses += g->values.data[from].n_output_uses;
    g->values.data[from].n_output_uses = 0;
  }
  if (g->values.data[from].constant != g->values.data[to].constant) refresh_constants(g, g->first);
}

int fl_graph_use_count(const fl_graph *g, fl_vid v) {
  return g->values.data[v].n_uses + g->values.data[v].n_output_uses;
}

fl_nid fl_graph_sole_user(const fl_graph *g, fl_vid v) {
  const fl_value *x = &g->values.data[v];
  return x->n_uses == 1 && !x->n_output_uses ? g->uses.data[x->first_use].node : FL_NO_NODE;
}

fl_nid fl_graph_producer(const fl_graph *g, fl_vid v) {
  return v < g->values.len && g->values.data[v].kind == FL_VALUE_RESULT ? g->values.data[v].node : FL_NO_NODE;
}

bool fl_graph_is_const(const fl_graph *g, fl_vid v) { return g->values.data[v].constant; }

static bool integer_division(const fl_graph *g, const fl_node *n) {
  double by;
  if (fl_dtype_is_float(g->values.data[n->outputs[0]].type.dtype)) return false;
  return !fl_graph_scalar_value(g, n->inputs[1], &by) || by == 0;
}

bool fl_graph_may_raise(const fl_graph *g, fl_nid id) {
  const fl_node *n = &g->nodes.data[id];
  unsigned flags = fl_op_get(n->op)->flags;
  if (flags & FL_OPF_RAISES) return !(flags & FL_OPF_POINTWISE) || integer_division(g, n);
  for (int i = 0; n->program && i < n->program->n_instrs; i++) {
    const fl_pw_instr *x = &n->program->instrs[i];
    if ((fl_op_get(x->op)->flags & FL_OPF_RAISES) && !fl_dtype_is_float(x->dtype)) return true;
  }
  return false;
}

/* --- nodes --- */

static void list_insert(fl_graph *g, fl_nid id, fl_nid before) {
  fl_node *n = &g->nodes.data[id];
  n->next = before;
  n->prev = before == FL_NO_NODE ? g->last : g->nodes.data[before].prev;
  if (n->prev == FL_NO_NODE)
    g->first = id;
  else
    g->nodes.data[n->prev].next = id;
  if (before == FL_NO_NODE)
    g->last = id;
  else
    g->nodes.data[before].prev = id;
}

static void list_remove(fl_graph *g, fl_nid id) {
  const fl_node *n = &g->nodes.data[id];
  if (n->prev == FL_NO_NODE)
    g->first = n->next;
  else
    g->nodes.data[n->prev].next = n->next;
  if (n->next == FL_NO_NODE)
    g->last = n->prev;
  else
    g->nodes.data[n->next].prev = n->prev;
}

/* Operands as types; a large operand list lies on the heap. */
static fl_status infer_results(const fl_graph *g, const fl_node *n, fl_type *out) {
  const fl_type *few[FL_PW_MAX_INPUTS], **types = few;
  if (n->n_inputs > FL_PW_MAX_INPUTS && !(types = fl_malloc((size_t)n->n_inputs * sizeof *types))) return fl_oom();
  for (int i = 0; i < n->n_inputs; i++)
    types[i] = n->inputs[i] == FL_NO_VALUE ? NULL : &g->values.data[n->inputs[i]].type;
  fl_status s = fl_infer(n->op, types, n->n_inputs, &n->attrs, n->program, out);
  if (types != few) fl_free(types);
  return s;
}

/* The node with its own copies of everything, not yet in the graph. */
static fl_status node_make(fl_graph *g, fl_op op, const fl_vid *inputs, int n_inputs, const fl_attrs *attrs,
                           const fl_pw_program *program, fl_node *n) {
  const fl_op_info *info = fl_op_get(op);
  for (int i = 0; i < n_inputs; i++)
    if (inputs[i] != FL_NO_VALUE && inputs[i] >= g->values.len)
      return fl_fail(FL_INVALID, "%s: operand %d: no value %%%u", info->name, i, inputs[i]);
  *n = (fl_node){.op = op, .origin = g->origin};
  n->n_inputs = n_inputs < info->max_inputs ? info->max_inputs : n_inputs;
  n->n_outputs = op == FL_OP_POINTWISE && program ? program->n_outputs : info->outputs;
  FL_TRY(fl_attrs_normalize(op, attrs, &n->attrs));
  n->inputs = fl_arena_alloc(&g->arena, (size_t)n->n_inputs * sizeof *n->inputs);
  n->outputs = fl_arena_alloc(&g->arena, (size_t)n->n_outputs * sizeof *n->outputs);
  if (!n->inputs || !n->outputs) return fl_oom();
  for (int i = 0; i < n->n_inputs; i++) n->inputs[i] = i < n_inputs ? inputs[i] : FL_NO_VALUE;
  if (op != FL_OP_POINTWISE || !program) return NULL;
  n->program = fl_arena_memdup(&g->arena, program, sizeof *program);
  return n->program ? NULL : fl_oom();
}

static void add_results(fl_graph *g, fl_nid id, const fl_type *types) {
  const fl_node *n = &g->nodes.data[id];
  for (int i = 0; i < n->n_outputs; i++) {
    fl_value v = value_make(FL_VALUE_RESULT, &types[i], NULL);
    v.node = id;
    v.index = i;
    v.constant = inputs_constant(g, n);
    n->outputs[i] = (fl_vid)g->values.len;
    g->values.data[g->values.len++] = v;
  }
}

fl_status fl_graph_add(fl_graph *g, fl_nid before, fl_op op, const fl_vid *inputs, int n_inputs, const fl_attrs *attrs,
                       const fl_pw_program *program, fl_vid *out_results) {
  if ((unsigned)op >= FL_OP_COUNT) return fl_fail(FL_INVALID, "unknown operator %d", (int)op);
  if (program && (program->n_outputs < 1 || program->n_outputs > FL_PW_MAX_OUTPUTS))
    return fl_fail(FL_INVALID, "%s: program has %d outputs", fl_op_get(op)->name, program->n_outputs);
  fl_node n;
  fl_type types[FL_PW_MAX_OUTPUTS];
  FL_TRY(node_make(g, op, inputs, n_inputs, attrs, program, &n));
  FL_TRY(infer_results(g, &n, types));
  if (!RESERVE(&g->values, (size_t)n.n_outputs) || !RESERVE(&g->nodes, 1) || !RESERVE(&g->uses, (size_t)n.n_inputs))
    return fl_oom();
  fl_nid id = (fl_nid)g->nodes.len;
  n.first_use = (uint32_t)g->uses.len;
  g->nodes.data[g->nodes.len++] = n;
  for (int i = 0; i < n.n_inputs; i++) {
    g->uses.data[g->uses.len] = (fl_use){.node = id};
    link_use(g, (uint32_t)g->uses.len++, n.inputs[i]);
  }
  add_results(g, id, types);
  list_insert(g, id, before);
  g->n_live++;
  for (int i = 0; i < n.n_outputs; i++) out_results[i] = n.outputs[i];
  return NULL;
}

fl_status fl_graph_op(fl_graph *g, fl_op op, const fl_vid *inputs, int n_inputs, const fl_attrs *attrs, fl_vid *out) {
  if (op == FL_OP_POINTWISE) return fl_fail(FL_INVALID, "pointwise: needs a program");
  return fl_graph_add(g, FL_NO_NODE, op, inputs, n_inputs, attrs, NULL, out);
}

fl_status fl_graph_output(fl_graph *g, fl_vid v) {
  if (v >= g->values.len) return fl_fail(FL_INVALID, "output: no value %%%u", v);
  if (!FL_PUSH(&g->outputs, v)) return fl_oom();
  g->values.data[v].n_output_uses++;
  return NULL;
}

void fl_graph_remove(fl_graph *g, fl_nid id) {
  fl_node *n = &g->nodes.data[id];
  if (n->dead) return;
  for (int i = 0; i < n->n_inputs; i++) {
    unlink_use(g, n->first_use + (uint32_t)i, n->inputs[i]);
    n->inputs[i] = FL_NO_VALUE;
  }
  list_remove(g, id);
  n->dead = true;
  g->n_live--;
}

void fl_graph_move_before(fl_graph *g, fl_nid n, fl_nid before) {
  if (n == before) return;
  list_remove(g, n);
  list_insert(g, n, before);
}

int fl_graph_node_count(const fl_graph *g) { return g->n_live; }

int fl_graph_count_op(const fl_graph *g, fl_op op) {
  int count = 0;
  for (fl_nid id = g->first; id != FL_NO_NODE; id = g->nodes.data[id].next) count += g->nodes.data[id].op == op;
  return count;
}
