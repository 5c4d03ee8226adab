#include <string.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* A group grows from its root, the last node, towards the inputs. A producer joins when the group holds all its uses,
 * its result has the root's dims or is a single element, and it is constant exactly if the root is: constants are computed once, by the
 * init program. `order` numbers the nodes: the latest candidate is tried first, after all that could use it. */
typedef struct group {
  fl_nid nodes[FL_PW_MAX_INSTRS]; /* root first, each after its users */
  int n_nodes;
  fl_vid inputs[FL_PW_MAX_INPUTS];
  int n_inputs;
} group;

static bool is_pointwise(const fl_node *n) { return fl_op_get(n->op)->flags & FL_OPF_POINTWISE; }

static bool contains(const group *gr, fl_nid id) {
  for (int i = 0; i < gr->n_nodes; i++)
    if (gr->nodes[i] == id) return true;
  return false;
}

/* Adds what is new among the node's operands; false when that is too many. */
static bool add_inputs(group *gr, const fl_node *n) {
  for (int i = 0; i < n->n_inputs; i++) {
    int k = 0;
    while (k < gr->n_inputs && gr->inputs[k] != n->inputs[i]) k++;
    if (k < gr->n_inputs) continue;
    if (gr->n_inputs == FL_PW_MAX_INPUTS) return false;
    gr->inputs[gr->n_inputs++] = n->inputs[i];
  }
  return true;
}

static bool may_join(const fl_graph *g, const group *gr, fl_vid v) {
  const fl_node *p = fl_rw_made_by(g, v, FL_OP_COUNT);
  fl_vid root = g->nodes.data[gr->nodes[0]].outputs[0];
  if (!p || !is_pointwise(p) || g->values.data[v].n_output_uses) return false;
  if (!fl_dims_equal(fl_rw_type(g, v), fl_rw_type(g, root)) && fl_type_numel(fl_rw_type(g, v)) != 1) return false;
  if (fl_graph_is_const(g, v) != fl_graph_is_const(g, root)) return false;
  for (uint32_t u = g->values.data[v].first_use; u != FL_NO_USE; u = g->uses.data[u].next)
    if (!contains(gr, g->uses.data[u].node)) return false;
  return true;
}

/* The group with `v`'s producer in it and v no longer an input; false, unchanged, when it does not fit. */
static bool join(const fl_graph *g, group *gr, int input) {
  if (gr->n_nodes == FL_PW_MAX_INSTRS) return false;
  group grown = *gr;
  fl_nid id = fl_graph_producer(g, gr->inputs[input]);
  grown.inputs[input] = grown.inputs[--grown.n_inputs];
  grown.nodes[grown.n_nodes++] = id;
  if (!add_inputs(&grown, &g->nodes.data[id])) return false;
  *gr = grown;
  return true;
}

/* -1 when nothing can join any more. */
static int latest_candidate(const fl_graph *g, const group *gr, const uint32_t *order, const bool *refused) {
  int best = -1;
  for (int i = 0; i < gr->n_inputs; i++) {
    if (refused[i] || !may_join(g, gr, gr->inputs[i])) continue;
    if (best < 0 || order[fl_graph_producer(g, gr->inputs[i])] > order[fl_graph_producer(g, gr->inputs[best])])
      best = i;
  }
  return best;
}

static void grow(const fl_graph *g, group *gr, const uint32_t *order) {
  bool refused[FL_PW_MAX_INPUTS] = {false};
  for (int at; (at = latest_candidate(g, gr, order, refused)) >= 0;) {
    if (join(g, gr, at))
      memset(refused, 0, sizeof refused);
    else
      refused[at] = true;
  }
}

static int16_t register_of(const fl_graph *g, const group *gr, fl_vid v) {
  for (int i = 0; i < gr->n_inputs; i++)
    if (gr->inputs[i] == v) return (int16_t)i;
  for (int i = 0; i < gr->n_nodes; i++)
    if (g->nodes.data[gr->nodes[i]].outputs[0] == v) return (int16_t)(gr->n_inputs + gr->n_nodes - 1 - i);
  return -1;
}

/* Inputs in the order in which the program first reads them, so that equal groups have equal programs. */
static void sort_inputs(const fl_graph *g, group *gr) {
  group fresh = *gr;
  fresh.n_inputs = 0;
  for (int i = gr->n_nodes - 1; i >= 0; i--) {
    const fl_node *n = &g->nodes.data[gr->nodes[i]];
    for (int k = 0; k < n->n_inputs; k++) {
      bool is_input = register_of(g, gr, n->inputs[k]) < gr->n_inputs, known = false;
      for (int j = 0; j < fresh.n_inputs; j++) known |= fresh.inputs[j] == n->inputs[k];
      if (is_input && !known) fresh.inputs[fresh.n_inputs++] = n->inputs[k];
    }
  }
  *gr = fresh;
}

static void make_program(const fl_graph *g, const group *gr, fl_pw_program *out) {
  fl_pw_program one;
  memset(out, 0, sizeof *out);
  out->n_inputs = gr->n_inputs;
  for (int i = 0; i < gr->n_inputs; i++) out->in_dtype[i] = fl_rw_type(g, gr->inputs[i])->dtype;
  for (int i = gr->n_nodes - 1; i >= 0; i--) {
    const fl_node *n = &g->nodes.data[gr->nodes[i]];
    fl_pw_from_node(g, n, &one);
    fl_pw_instr *in = &out->instrs[out->n_instrs++];
    *in = one.instrs[0];
    for (int k = 0; k < n->n_inputs; k++) in->src[k] = register_of(g, gr, n->inputs[k]);
  }
  out->n_outputs = 1;
  out->outputs[0] = (int16_t)(out->n_inputs + out->n_instrs - 1);
}

static fl_status group_at(fl_graph *g, fl_nid root, const uint32_t *order) {
  group gr = {.nodes = {root}, .n_nodes = 1};
  fl_pw_program program;
  fl_vid result;
  add_inputs(&gr, &g->nodes.data[root]);
  grow(g, &gr, order);
  sort_inputs(g, &gr);
  make_program(g, &gr, &program);
  g->origin = g->nodes.data[root].origin;
  FL_TRY(fl_graph_add(g, root, FL_OP_POINTWISE, gr.inputs, gr.n_inputs, NULL, &program, &result));
  fl_graph_replace_uses(g, g->nodes.data[root].outputs[0], result);
  for (int i = 0; i < gr.n_nodes; i++) fl_graph_remove(g, gr.nodes[i]);
  return NULL;
}

fl_status fl_pass_pointwise(fl_graph *g) {
  uint32_t n = 0, origin = g->origin, *order = fl_malloc(g->nodes.len * sizeof *order);
  fl_status s = order ? NULL : fl_oom();
  if (s) return s;
  for (fl_nid id = g->first; id != FL_NO_NODE; id = g->nodes.data[id].next) order[id] = n++;
  /* Backwards: a node is a root unless a later one has taken it in. Groups take the place of their root, so the node
   * before it is only known afterwards. */
  for (fl_nid id = g->last; !s && id != FL_NO_NODE;) {
    fl_nid next = g->nodes.data[id].next;
    if (is_pointwise(&g->nodes.data[id])) {
      s = group_at(g, id, order);
      id = next == FL_NO_NODE ? g->last : g->nodes.data[next].prev;
    }
    if (id != FL_NO_NODE) id = g->nodes.data[id].prev;
  }
  fl_free(order);
  g->origin = origin;
  return s;
}
