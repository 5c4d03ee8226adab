#include "passes/rewrite.h"

#include <math.h>
#include <string.h>

const fl_node *fl_rw_made_by(const fl_graph *g, fl_vid v, fl_op op) {
  fl_nid id = fl_graph_producer(g, v);
  if (id == FL_NO_NODE) return NULL;
  const fl_node *n = &g->nodes.data[id];
  return op == FL_OP_COUNT || n->op == op ? n : NULL;
}

bool fl_rw_scalar(const fl_graph *g, fl_vid v, double *out) {
  fl_dtype last = fl_rw_type(g, v)->dtype;
  for (const fl_node *n; (n = fl_rw_made_by(g, v, FL_OP_COUNT)); v = n->inputs[0])
    if (n->op != FL_OP_RESHAPE && n->op != FL_OP_EXPAND && n->op != FL_OP_CAST) return false;
  if (!fl_graph_scalar_value(g, v, out)) return false;
  /* A cast rounds; the element says to what. */
  unsigned char bytes[8];
  fl_element_set(last, bytes, 0, *out);
  double rounded = fl_element_get(last, bytes, 0);
  if (!fl_dtype_is_float(last) && rounded != *out) return false;
  *out = rounded;
  return true;
}

bool fl_rw_number(const fl_graph *g, fl_vid v, double *out) {
  const fl_value *x = &g->values.data[v];
  if (x->kind != FL_VALUE_LITERAL || isnan(x->number)) return fl_rw_scalar(g, v, out);
  *out = x->number;
  return true;
}

bool fl_rw_with_scalar(const fl_graph *g, const fl_node *n, fl_vid *out_other, double *out_scalar) {
  if (n->n_inputs != 2) return false;
  *out_other = n->inputs[0];
  if (fl_rw_scalar(g, n->inputs[1], out_scalar)) return true;
  if (!(fl_op_get(n->op)->flags & FL_OPF_COMMUTATIVE)) return false;
  *out_other = n->inputs[1];
  return fl_rw_scalar(g, n->inputs[0], out_scalar);
}

bool fl_rw_is_vector(const fl_graph *g, fl_vid v, int rank, int axis, int64_t len) {
  const fl_type *t = fl_rw_type(g, v);
  int at = axis - (rank - t->rank);
  if (t->rank > rank || at < 0) return false;
  for (int i = 0; i < t->rank; i++)
    if (t->dims[i] != (i == at ? len : 1)) return false;
  return true;
}

fl_status fl_rw_add(fl_graph *g, fl_nid before, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs,
                    fl_vid *out) {
  return fl_graph_add(g, before, op, inputs, n, attrs, NULL, out);
}

fl_status fl_rw_unary(fl_graph *g, fl_nid before, fl_op op, fl_vid x, fl_vid *out) {
  return fl_rw_add(g, before, op, &x, 1, NULL, out);
}

fl_status fl_rw_binary(fl_graph *g, fl_nid before, fl_op op, fl_vid a, fl_vid b, fl_vid *out) {
  fl_vid in[2] = {a, b};
  return fl_rw_add(g, before, op, in, 2, NULL, out);
}

fl_status fl_rw_with_number(fl_graph *g, fl_nid before, fl_op op, fl_vid a, double number, fl_vid *out) {
  fl_vid b;
  FL_TRY(fl_graph_scalar(g, fl_rw_type(g, a)->dtype, number, &b));
  return fl_rw_binary(g, before, op, a, b, out);
}

fl_status fl_rw_reshape(fl_graph *g, fl_nid before, fl_vid v, int rank, const int64_t *dims, fl_vid *out) {
  const fl_type *have = fl_rw_type(g, v);
  fl_type want = fl_type_make(have->dtype, rank, dims);
  *out = v;
  if (fl_type_equal(have, &want)) return NULL;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "dims", dims, rank);
  return fl_rw_add(g, before, FL_OP_RESHAPE, &v, 1, &attrs, out);
}

fl_status fl_rw_permute(fl_graph *g, fl_nid before, fl_vid v, const int64_t *perm, fl_vid *out) {
  int rank = fl_rw_type(g, v)->rank;
  bool identity = true;
  for (int i = 0; i < rank; i++) identity &= perm[i] == i;
  *out = v;
  if (identity) return NULL;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "perm", perm, rank);
  return fl_rw_add(g, before, FL_OP_PERMUTE, &v, 1, &attrs, out);
}

fl_status fl_rw_cast(fl_graph *g, fl_nid before, fl_vid v, fl_dtype dtype, fl_vid *out) {
  fl_attrs attrs = {0};
  *out = v;
  if (fl_rw_type(g, v)->dtype == dtype) return NULL;
  fl_attr_set_int(&attrs, "dtype", 'd', dtype);
  return fl_rw_add(g, before, FL_OP_CAST, &v, 1, &attrs, out);
}

fl_status fl_rw_slice(fl_graph *g, fl_nid before, fl_vid v, int axis, int64_t start, int64_t stop, fl_vid *out) {
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_int(&attrs, "start", 'i', start);
  fl_attr_set_int(&attrs, "stop", 'i', stop);
  fl_attr_set_int(&attrs, "step", 'i', 1);
  return fl_rw_add(g, before, FL_OP_SLICE, &v, 1, &attrs, out);
}

static bool unused(const fl_graph *g, const fl_node *n) {
  for (int i = 0; i < n->n_outputs; i++)
    if (fl_graph_use_count(g, n->outputs[i])) return false;
  return true;
}

/* The depth is bounded for the stack's sake; what lies deeper falls to dce. */
static void erase(fl_graph *g, fl_nid id, int depth) {
  const fl_node *n = &g->nodes.data[id];
  fl_nid producers[FL_PW_MAX_INPUTS];
  int count = 0;
  for (int i = 0; i < n->n_inputs && count < FL_PW_MAX_INPUTS; i++) {
    fl_nid p = n->inputs[i] == FL_NO_VALUE ? FL_NO_NODE : fl_graph_producer(g, n->inputs[i]);
    if (p != FL_NO_NODE) producers[count++] = p;
  }
  fl_graph_remove(g, id);
  for (int i = 0; i < count && depth < 64; i++) {
    const fl_node *p = &g->nodes.data[producers[i]];
    if (!p->dead && unused(g, p) && !fl_graph_may_raise(g, producers[i])) erase(g, producers[i], depth + 1);
  }
}

void fl_rw_erase(fl_graph *g, fl_nid n) {
  if (!g->nodes.data[n].dead && unused(g, &g->nodes.data[n]) && !fl_graph_may_raise(g, n)) erase(g, n, 0);
}

void fl_rw_replace(fl_graph *g, fl_nid n, fl_vid with) {
  fl_graph_replace_uses(g, g->nodes.data[n].outputs[0], with);
  fl_rw_erase(g, n);
}

void fl_rw_hoist_constants(fl_graph *g) {
  fl_nid front = g->first;
  while (front != FL_NO_NODE && fl_graph_is_const(g, g->nodes.data[front].outputs[0]))
    front = g->nodes.data[front].next;
  if (front == FL_NO_NODE) return;
  for (fl_nid id = g->nodes.data[front].next, next; id != FL_NO_NODE; id = next) {
    next = g->nodes.data[id].next;
    if (fl_graph_is_const(g, g->nodes.data[id].outputs[0])) fl_graph_move_before(g, id, front);
  }
}

/* Where a node was removed, its successor is taken from what it knew then: nodes inserted by the same visit, and those
 * removed with it, lie on the same way. */
fl_status fl_rw_walk(fl_graph *g, fl_rw_visit visit, bool *changed) {
  fl_status s = NULL;
  uint32_t origin = g->origin;
  for (fl_nid id = g->first; !s && id != FL_NO_NODE; id = g->nodes.data[id].next) {
    if (g->nodes.data[id].dead || unused(g, &g->nodes.data[id])) continue;
    g->origin = g->nodes.data[id].origin;
    s = visit(g, id, changed);
  }
  g->origin = origin;
  return s;
}
