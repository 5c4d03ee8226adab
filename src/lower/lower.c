#include "lower/lower.h"

#include <string.h>

#include "lower/convert.h"
#include "lower/partition.h"

/* What lowering knows while it decides. Arrays by value or node live in `arena`. */
typedef struct state {
  const fl_aten_graph *aten;
  const fl_lower_options *options;
  fl_lowered *out;
  fl_arena arena;
  fl_graph *trial; /* one graph of everything, in which each converter is tried */
  bool *needed;    /* by value: somebody reads it, or it leaves */
  bool *leaves;    /* by value: the program needs it after the segment */
  bool *constant;  /* by value: from weights alone */
  fl_vid *values;  /* by value: its place in the graph being built */
  bool *live;      /* by node */
  bool *inplace;   /* by node: the overload writes its first argument */
  fl_pnode *pnodes;
} state;

static size_t n_nodes(const state *s) { return s->aten->nodes.len; }
static const fl_aten_node *node_at(const state *s, size_t i) { return &s->aten->nodes.data[i]; }
static const fl_aten_value *value_at(const state *s, uint32_t v) { return &s->aten->values.data[v]; }

/* --- the tensor arguments of a node, one after the other --- */

typedef struct arg_iter {
  const fl_aten_node *node;
  int arg, item;
} arg_iter;

static bool next_arg(arg_iter *it, uint32_t *out_value) {
  while (it->arg < it->node->n_args) {
    const fl_arg *a = &it->node->args[it->arg];
    int count = a->kind == FL_ARG_TENSOR ? 1 : a->kind == FL_ARG_TENSORS ? a->count : 0;
    if (it->item >= count) {
      it->arg++;
      it->item = 0;
      continue;
    }
    *out_value = a->kind == FL_ARG_TENSOR ? a->v.value : a->v.values[it->item];
    it->item++;
    if (*out_value != FL_ATEN_NONE) return true;
  }
  return false;
}

#define FOR_EACH_ARG(n, v)                                                                                             \
  uint32_t v;                                                                                                          \
  for (arg_iter it_ = {(n), 0, 0}; next_arg(&it_, &v);)

/* --- what is needed --- */

static bool allocate(state *s) {
  size_t nv = s->aten->values.len + 1, nn = n_nodes(s) + 1;
  return (s->needed = fl_arena_alloc(&s->arena, nv)) && (s->leaves = fl_arena_alloc(&s->arena, nv)) &&
         (s->constant = fl_arena_alloc(&s->arena, nv)) &&
         (s->values = fl_arena_alloc(&s->arena, nv * sizeof *s->values)) && (s->live = fl_arena_alloc(&s->arena, nn)) &&
         (s->inplace = fl_arena_alloc(&s->arena, nn)) &&
         (s->pnodes = fl_arena_alloc(&s->arena, nn * sizeof *s->pnodes)) &&
         (s->out->reports = fl_arena_alloc(&s->out->arena, nn * sizeof *s->out->reports));
}

static fl_status check_ids(const state *s) {
  size_t nv = s->aten->values.len;
  for (uint32_t v = 0; v < nv; v++) {
    const fl_aten_value *value = value_at(s, v);
    bool known = value->alias_of == FL_ATEN_NONE || value->alias_of < nv;
    if (!known || (value->kind == FL_ATEN_RESULT && value->index >= n_nodes(s)))
      return fl_fail(FL_INVALID, "value %u names value %u and operator %u", v, value->alias_of, value->index);
  }
  for (size_t i = 0; i < n_nodes(s); i++) {
    FOR_EACH_ARG(node_at(s, i), v)
    if (v >= nv) return fl_fail(FL_INVALID, "%s: argument value %u of %zu", node_at(s, i)->op, v, nv);
    for (int k = 0; k < node_at(s, i)->n_outputs; k++)
      if (node_at(s, i)->outputs[k] != FL_ATEN_NONE && node_at(s, i)->outputs[k] >= nv)
        return fl_fail(FL_INVALID, "%s: result value %u of %zu", node_at(s, i)->op, node_at(s, i)->outputs[k], nv);
  }
  for (size_t i = 0; i < s->aten->outputs.len; i++)
    if (s->aten->outputs.data[i] >= nv)
      return fl_fail(FL_INVALID, "segment output value %u of %zu", s->aten->outputs.data[i], nv);
  return NULL;
}

static bool may_raise(const state *s, const fl_aten_node *n) {
  uint32_t v = n->n_outputs ? n->outputs[0] : FL_ATEN_NONE;
  return fl_converter_may_raise(n->op, v == FL_ATEN_NONE ? FL_I64 : value_at(s, v)->type.dtype);
}

static void find_live(state *s) {
  for (size_t i = 0; i < s->aten->outputs.len; i++)
    s->needed[s->aten->outputs.data[i]] = s->leaves[s->aten->outputs.data[i]] = true;
  for (size_t i = n_nodes(s); i-- > 0;) {
    const fl_aten_node *n = node_at(s, i);
    bool live = n->pin_eager != NULL || may_raise(s, n);
    for (int k = 0; k < n->n_outputs; k++) live |= n->outputs[k] != FL_ATEN_NONE && s->needed[n->outputs[k]];
    s->live[i] = live;
    if (!live) {
      s->out->reports[i].reason = "nobody needs its result";
      s->out->n_dead++;
      continue;
    }
    FOR_EACH_ARG(n, v) s->needed[v] = true;
  }
}

/* --- what converts --- */

static fl_cv make_cv(state *s, fl_graph *g, size_t i) {
  return (fl_cv){.g = g,
                 .aten = s->aten,
                 .node = node_at(s, i),
                 .origin = (uint32_t)i,
                 .needed = s->needed,
                 .values = s->values,
                 .cpu = s->options && s->options->cpu,
                 .texts = &s->out->arena};
}

static fl_status add_input(state *s, fl_graph *g, uint32_t v) {
  const fl_aten_value *value = value_at(s, v);
  return value->tensor_ok ? fl_graph_input(g, &value->type, value->strides, &s->values[v]) : NULL;
}

static bool is_heavy(fl_op op) {
  return op == FL_OP_MATMUL || op == FL_OP_CONV2D || op == FL_OP_CONV_TRANSPOSE2D || op == FL_OP_ATTENTION ||
         op == FL_OP_GROUPED_MATMUL;
}

static const char *unsupported(const state *s, size_t first) {
  for (size_t k = first; s->options && s->options->supports && k < s->trial->nodes.len; k++) {
    const char *why = s->options->supports(s->options->ctx, s->trial, &s->trial->nodes.data[k]);
    if (why) return why;
  }
  return NULL;
}

static bool shares_memory(const state *s, const fl_aten_node *n) {
  for (int k = 0; k < n->n_outputs; k++)
    if (n->outputs[k] != FL_ATEN_NONE && value_at(s, n->outputs[k])->alias_of != FL_ATEN_NONE) return true;
  return false;
}

static void accept(state *s, size_t i, size_t first) {
  const fl_aten_node *n = node_at(s, i);
  fl_pnode *p = &s->pnodes[i];
  bool ignored, constant = true, fixed = fl_aten_is_fixed(s->aten, n);
  const fl_converter *row = fl_converter_find(n->op, &ignored);
  FOR_EACH_ARG(n, v) constant &= s->constant[v] || fixed;
  bool needed = false; /* else a part must have it for its error's sake */
  for (int k = 0; k < n->n_outputs; k++) {
    if (n->outputs[k] == FL_ATEN_NONE) continue;
    s->constant[n->outputs[k]] = constant;
    needed |= s->needed[n->outputs[k]];
  }
  p->kind = FL_PNODE_ENGINE;
  p->free = (constant && needed) || (row && row->view && shares_memory(s, n));
  for (size_t k = first; k < s->trial->nodes.len; k++) p->heavy |= is_heavy(s->trial->nodes.data[k].op);
}

static fl_status try_node(state *s, size_t i) {
  const fl_aten_node *n = node_at(s, i);
  fl_cv cv = make_cv(s, s->trial, i);
  size_t first = s->trial->nodes.len;
  const char *reason = n->pin_eager;
  fl_converter_find(n->op, &s->inplace[i]);
  if (!reason && !fl_cv_convert(&cv)) {
    if (cv.status) return fl_annotate(cv.status, "lowering %s", n->op);
    reason = cv.reason;
  }
  if (!reason) reason = unsupported(s, first);
  if (!reason) {
    accept(s, i, first);
    return NULL;
  }
  s->out->reports[i].reason = reason;
  s->pnodes[i].kind = FL_PNODE_EAGER;
  s->pnodes[i].ordered = n->pin_eager != NULL;
  for (int k = 0; k < n->n_outputs; k++)
    if (n->outputs[k] != FL_ATEN_NONE) FL_TRY(add_input(s, s->trial, n->outputs[k]));
  return NULL;
}

static void forget_places(state *s) {
  for (size_t v = 0; v < s->aten->values.len; v++) s->values[v] = FL_NO_VALUE;
}

static fl_status try_all(state *s) {
  forget_places(s);
  FL_TRY(fl_graph_create(&s->trial));
  for (uint32_t v = 0; v < s->aten->values.len; v++) {
    s->constant[v] = value_at(s, v)->kind == FL_ATEN_WEIGHT;
    if (value_at(s, v)->kind == FL_ATEN_INPUT) FL_TRY(add_input(s, s->trial, v));
  }
  for (size_t i = 0; i < n_nodes(s); i++)
    if (s->live[i]) FL_TRY(try_node(s, i));
  return NULL;
}

/* --- memory that values share --- */

/* Up through views that the engine would copy; an in-place operator's result is memory of its own there. */
static uint32_t view_root(const state *s, uint32_t v) {
  for (size_t left = s->aten->values.len; left; left--) {
    const fl_aten_value *value = value_at(s, v);
    if (value->kind != FL_ATEN_RESULT || value->alias_of == FL_ATEN_NONE) return v;
    bool ignored;
    const fl_converter *row = fl_converter_find(node_at(s, value->index)->op, &ignored);
    if (!row || !row->view) return v;
    v = value->alias_of;
  }
  return v;
}

static uint32_t memory_root(const state *s, uint32_t v) {
  for (size_t left = s->aten->values.len; left && value_at(s, v)->alias_of != FL_ATEN_NONE; left--)
    v = value_at(s, v)->alias_of;
  return v;
}

/* A result that shares memory with something else the program keeps must go on doing so: its view stays eager. */
static fl_status pin_shared_outputs(state *s) {
  uint32_t *leaving = fl_arena_alloc(&s->arena, (s->aten->values.len + 1) * sizeof *leaving);
  if (!leaving) return fl_oom();
  for (size_t i = 0; i < s->aten->outputs.len; i++) leaving[view_root(s, s->aten->outputs.data[i])]++;
  for (size_t i = 0; i < s->aten->outputs.len; i++) {
    uint32_t v = s->aten->outputs.data[i], root = view_root(s, v);
    const fl_aten_value *value = value_at(s, v);
    if (root == v || value->kind != FL_ATEN_RESULT || !s->pnodes[value->index].free) continue;
    if (value_at(s, root)->kind == FL_ATEN_RESULT && leaving[root] < 2) continue;
    s->pnodes[value->index].kind = FL_PNODE_EAGER;
    s->pnodes[value->index].free = false;
    s->out->reports[value->index].reason = "its result shares memory with a value the program keeps";
  }
  return NULL;
}

static bool touches(const state *s, const fl_aten_node *n, uint32_t root) {
  FOR_EACH_ARG(n, v) if (memory_root(s, v) == root) return true;
  for (int k = 0; k < n->n_outputs; k++)
    if (n->outputs[k] != FL_ATEN_NONE && memory_root(s, n->outputs[k]) == root) return true;
  return false;
}

typedef FL_VEC(uint32_t) id_list;

/* Orders every node that touches `root` against the eager node m that writes it. */
static bool order_around(const state *s, id_list *after, size_t m, uint32_t root) {
  for (size_t i = 0; i < n_nodes(s); i++) {
    if (i == m || !s->live[i] || !touches(s, node_at(s, i), root)) continue;
    if (!(i < m ? FL_PUSH(&after[m], (uint32_t)i) : FL_PUSH(&after[i], (uint32_t)m))) return false;
  }
  return true;
}

/* An eager in-place operator writes its first arguments; one with effects may write whatever the caller owns. */
static bool order_writes(state *s, id_list *after) {
  for (size_t m = 0; m < n_nodes(s); m++) {
    if (!s->live[m] || s->pnodes[m].kind != FL_PNODE_EAGER) continue;
    const fl_aten_node *n = node_at(s, m);
    const char *dot = strrchr(n->op, '.');
    bool inplace = s->inplace[m] || (dot && dot > n->op && dot[-1] == '_' && dot[-2] != '_');
    FOR_EACH_ARG(n, v) {
      uint32_t root = memory_root(s, v);
      bool owned = value_at(s, root)->kind != FL_ATEN_RESULT;
      if (!(inplace && it_.arg == 0) && !(n->pin_eager && owned)) continue;
      if (!order_around(s, after, m, root)) return false;
    }
  }
  return true;
}

static fl_status link_memory(state *s) {
  id_list *after = fl_calloc(n_nodes(s) + 1, sizeof *after);
  bool ok = after && order_writes(s, after);
  for (size_t i = 0; after && i < n_nodes(s); i++) {
    s->pnodes[i].n_after = (int)after[i].len;
    if (ok && after[i].len)
      ok = (s->pnodes[i].after = fl_arena_memdup(&s->arena, after[i].data, after[i].len * sizeof *after[i].data));
    fl_free(after[i].data);
  }
  fl_free(after);
  return ok ? NULL : fl_oom();
}

static fl_status link_nodes(state *s) {
  for (size_t i = 0; i < n_nodes(s); i++) {
    const fl_aten_node *n = node_at(s, i);
    if (!s->live[i]) continue;
    int count = 0;
    FOR_EACH_ARG(n, counted) count += value_at(s, counted)->kind == FL_ATEN_RESULT;
    uint32_t *deps = fl_arena_alloc(&s->arena, (size_t)(count + 1) * sizeof *deps);
    if (!deps) return fl_oom();
    s->pnodes[i].deps = deps;
    FOR_EACH_ARG(n, v)
    if (value_at(s, v)->kind == FL_ATEN_RESULT) {
      uint32_t maker = value_at(s, v)->index;
      if (maker >= i) return fl_fail(FL_INVALID, "%s (operator %zu) reads a value made later", n->op, i);
      deps[s->pnodes[i].n_deps++] = maker;
    }
    for (int k = 0; k < n->n_outputs; k++)
      s->pnodes[i].output |= n->outputs[k] != FL_ATEN_NONE && s->leaves[n->outputs[k]];
  }
  return NULL;
}

/* --- parts --- */

typedef struct marks {
  bool *made; /* by value: made in this part */
  bool *read; /* by value: already among the inputs */
} marks;

static fl_status find_inputs(state *s, fl_part *part, marks *m) {
  FL_VEC(uint32_t) inputs = {0};
  bool ok = true;
  for (int i = 0; i < part->n_nodes && ok; i++) {
    const fl_aten_node *n = node_at(s, part->nodes[i]);
    FOR_EACH_ARG(n, v) {
      if (m->made[v] || m->read[v] || value_at(s, v)->kind == FL_ATEN_WEIGHT) continue;
      m->read[v] = true;
      ok = ok && FL_PUSH(&inputs, v);
    }
    for (int k = 0; k < n->n_outputs; k++)
      if (n->outputs[k] != FL_ATEN_NONE) m->made[n->outputs[k]] = true;
  }
  part->n_inputs = (int)inputs.len;
  part->inputs =
      ok ? fl_arena_memdup(&s->out->arena, inputs.data ? inputs.data : &(uint32_t){0}, inputs.len * sizeof *inputs.data)
         : NULL;
  fl_free(inputs.data);
  return part->inputs ? NULL : fl_oom();
}

/* `wanted`, by value: parts after this one read it, or it leaves. */
static fl_status find_outputs(state *s, fl_part *part, const bool *wanted) {
  int max = 0;
  for (int i = 0; i < part->n_nodes; i++) max += node_at(s, part->nodes[i])->n_outputs;
  part->outputs = fl_arena_alloc(&s->out->arena, (size_t)(max + 1) * sizeof *part->outputs);
  if (!part->outputs) return fl_oom();
  for (int i = 0; i < part->n_nodes; i++) {
    uint32_t node = part->nodes[i];
    const fl_aten_node *n = node_at(s, node);
    if (s->pnodes[node].free && !s->pnodes[node].output) continue;
    for (int k = 0; k < n->n_outputs; k++)
      if (n->outputs[k] != FL_ATEN_NONE && wanted[n->outputs[k]]) part->outputs[part->n_outputs++] = n->outputs[k];
  }
  return NULL;
}

static fl_status add_parts(state *s, const fl_partition *partition) {
  size_t nv = s->aten->values.len + 1;
  bool *wanted = fl_arena_alloc(&s->arena, nv);
  if (!wanted) return fl_oom();
  memcpy(wanted, s->leaves, nv);
  for (int p = 0; p < partition->n_parts; p++) {
    const fl_ppart *from = &partition->parts[p];
    fl_part part = {
        .kind = from->engine ? FL_PART_ENGINE : FL_PART_EAGER, .nodes = from->nodes, .n_nodes = from->n_nodes};
    marks m = {fl_arena_alloc(&s->arena, nv), fl_arena_alloc(&s->arena, nv)};
    if (!m.made || !m.read) return fl_oom();
    FL_TRY(find_inputs(s, &part, &m));
    for (int i = 0; i < part.n_inputs; i++) wanted[part.inputs[i]] = true;
    if (!FL_PUSH(&s->out->parts, part)) return fl_oom();
  }
  for (size_t p = 0; p < s->out->parts.len; p++) FL_TRY(find_outputs(s, &s->out->parts.data[p], wanted));
  return NULL;
}

static fl_status build_graph(state *s, fl_part *part) {
  forget_places(s);
  FL_TRY(fl_graph_create(&part->graph));
  for (int i = 0; i < part->n_inputs; i++) FL_TRY(add_input(s, part->graph, part->inputs[i]));
  for (int i = 0; i < part->n_nodes; i++) {
    fl_cv cv = make_cv(s, part->graph, part->nodes[i]);
    if (fl_cv_convert(&cv)) continue;
    if (cv.status) return fl_annotate(cv.status, "lowering %s", cv.node->op);
    return fl_fail(FL_INTERNAL, "lowering %s: declined the second time: %s", cv.node->op, cv.reason);
  }
  for (int i = 0; i < part->n_outputs; i++) FL_TRY(fl_graph_output(part->graph, s->values[part->outputs[i]]));
  return NULL;
}

static void report(state *s) {
  for (size_t p = 0; p < s->out->parts.len; p++) {
    const fl_part *part = &s->out->parts.data[p];
    for (int i = 0; part->kind == FL_PART_ENGINE && i < part->n_nodes; i++)
      s->out->reports[part->nodes[i]] = (fl_node_report){true, NULL};
  }
  for (size_t i = 0; i < n_nodes(s); i++) {
    fl_node_report *r = &s->out->reports[i];
    s->out->n_lowered += r->lowered;
    if (!r->lowered && !r->reason)
      r->reason = s->pnodes[i].free ? "only eager operators use it, where it is free"
                                    : "too little work between eager operators to be worth a switch";
  }
}

static fl_status lower(state *s) {
  if (!allocate(s)) return fl_oom();
  s->out->n_reports = (int)n_nodes(s);
  FL_TRY(check_ids(s));
  find_live(s);
  FL_TRY(try_all(s));
  FL_TRY(pin_shared_outputs(s));
  FL_TRY(link_nodes(s));
  FL_TRY(link_memory(s));
  fl_partition partition;
  int min_nodes = s->options ? s->options->min_engine_nodes : 0;
  FL_TRY(fl_partition_make(s->pnodes, (int)n_nodes(s), min_nodes, &s->out->arena, &partition));
  FL_TRY(add_parts(s, &partition));
  for (size_t p = 0; p < s->out->parts.len; p++)
    if (s->out->parts.data[p].kind == FL_PART_ENGINE) FL_TRY(build_graph(s, &s->out->parts.data[p]));
  report(s);
  return NULL;
}

fl_status fl_lower(const fl_aten_graph *aten, const fl_lower_options *options, fl_lowered **out) {
  fl_lowered *l = fl_calloc(1, sizeof *l);
  if (!l) return fl_oom();
  fl_arena_init(&l->arena);
  state s = {.aten = aten, .options = options, .out = l};
  fl_arena_init(&s.arena);
  fl_status status = lower(&s);
  fl_graph_destroy(s.trial);
  fl_arena_release(&s.arena);
  if (status)
    fl_lowered_destroy(l);
  else
    *out = l;
  return status;
}

void fl_lowered_destroy(fl_lowered *l) {
  if (!l) return;
  for (size_t p = 0; p < l->parts.len; p++) fl_graph_destroy(l->parts.data[p].graph);
  fl_free(l->parts.data);
  fl_arena_release(&l->arena);
  fl_free(l);
}
