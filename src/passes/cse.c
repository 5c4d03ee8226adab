#include <string.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* Open addressing over ids + 1; 0 is free. Never more than half full. */
typedef struct table {
  uint32_t *slots;
  size_t mask;
} table;

static fl_status table_make(table *t, size_t count) {
  size_t size = 16;
  while (size < 2 * count + 2) size *= 2;
  t->slots = fl_calloc(size, sizeof *t->slots);
  t->mask = size - 1;
  return t->slots ? NULL : fl_oom();
}

static uint64_t mix(uint64_t h, uint64_t v) {
  h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
  h *= 0xff51afd7ed558ccdu;
  return h ^ h >> 32;
}

static uint64_t mix_bytes(uint64_t h, const void *data, size_t n) {
  for (size_t i = 0; i < n; i++) h = mix(h, ((const unsigned char *)data)[i]);
  return h;
}

/* --- constants: the same literal, the same view of the same weight --- */

static uint64_t hash_leaf(const fl_value *v) {
  uint64_t h = mix(v->kind, v->type.dtype);
  for (int i = 0; i < v->type.rank; i++) h = mix(h, (uint64_t)v->type.dims[i]);
  if (v->kind == FL_VALUE_WEIGHT) return mix(h, v->slot);
  size_t bytes = fl_type_bytes(&v->type);
  return mix_bytes(h, v->data, bytes < 256 ? bytes : 256);
}

static bool leaf_equal(const fl_value *a, const fl_value *b) {
  if (a->kind != b->kind || !fl_type_equal(&a->type, &b->type)) return false;
  if (a->kind == FL_VALUE_LITERAL)
    return !memcmp(a->data, b->data, fl_type_bytes(&a->type)) && !memcmp(&a->number, &b->number, sizeof a->number);
  return a->slot == b->slot && a->data == b->data &&
         !memcmp(a->strides, b->strides, (size_t)a->type.rank * sizeof *a->strides);
}

static void merge_leaf(fl_graph *g, table *t, fl_vid v) {
  const fl_value *x = &g->values.data[v];
  for (size_t at = hash_leaf(x) & t->mask;; at = (at + 1) & t->mask) {
    if (!t->slots[at]) {
      t->slots[at] = v + 1;
      return;
    }
    if (leaf_equal(&g->values.data[t->slots[at] - 1], x)) {
      fl_graph_replace_uses(g, v, t->slots[at] - 1);
      return;
    }
  }
}

static fl_status merge_leaves(fl_graph *g) {
  table t;
  FL_TRY(table_make(&t, g->values.len));
  for (fl_vid v = 0; v < g->values.len; v++) {
    fl_value_kind kind = g->values.data[v].kind;
    if (kind == FL_VALUE_WEIGHT || kind == FL_VALUE_LITERAL) merge_leaf(g, &t, v);
  }
  fl_free(t.slots);
  return NULL;
}

/* --- nodes --- */

static bool commutes(const fl_node *n) { return fl_op_get(n->op)->flags & FL_OPF_COMMUTATIVE; }

static uint64_t hash_node(const fl_node *n) {
  uint64_t h = mix(0, n->op);
  if (commutes(n))
    h = mix(h, (uint64_t)n->inputs[0] + n->inputs[1]);
  else
    for (int i = 0; i < n->n_inputs; i++) h = mix(h, n->inputs[i]);
  for (int i = 0; i < n->attrs.count; i++) {
    const fl_attr *a = &n->attrs.items[i];
    for (int k = 0; k < a->count; k++) h = mix(h, (uint64_t)a->v.list[k]);
    if (a->kind != 'I') h = mix(h, (uint64_t)a->v.i);
  }
  return n->program ? mix(h, (uint64_t)n->program->n_instrs) : h;
}

static bool inputs_equal(const fl_node *a, const fl_node *b) {
  if (a->n_inputs != b->n_inputs) return false;
  if (!memcmp(a->inputs, b->inputs, (size_t)a->n_inputs * sizeof *a->inputs)) return true;
  return commutes(a) && a->inputs[0] == b->inputs[1] && a->inputs[1] == b->inputs[0];
}

static bool node_equal(const fl_node *a, const fl_node *b) {
  if (a->op != b->op || !inputs_equal(a, b) || !fl_attrs_equal(&a->attrs, &b->attrs)) return false;
  return !a->program || fl_pw_equal(a->program, b->program);
}

static void merge_node(fl_graph *g, table *t, fl_nid id) {
  const fl_node *n = &g->nodes.data[id];
  for (size_t at = hash_node(n) & t->mask;; at = (at + 1) & t->mask) {
    if (!t->slots[at]) {
      t->slots[at] = id + 1;
      return;
    }
    const fl_node *first = &g->nodes.data[t->slots[at] - 1];
    if (!node_equal(first, n)) continue;
    for (int i = 0; i < n->n_outputs; i++) fl_graph_replace_uses(g, n->outputs[i], first->outputs[i]);
    fl_graph_remove(g, id);
    return;
  }
}

/* Forwards: operands are already those of the first of their kind, so equal means the same ids. */
fl_status fl_pass_cse(fl_graph *g) {
  table t;
  FL_TRY(merge_leaves(g));
  FL_TRY(table_make(&t, (size_t)fl_graph_node_count(g)));
  for (fl_nid id = g->first, next; id != FL_NO_NODE; id = next) {
    next = g->nodes.data[id].next;
    merge_node(g, &t, id);
  }
  fl_free(t.slots);
  return NULL;
}
