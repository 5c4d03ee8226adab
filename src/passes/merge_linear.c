#include <stdlib.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* Products of one input with several constant matrices (q, k, v) become one product with the matrices side by side,
 * and slices of its result. The weights are concatenated by a node over the live weights. */
enum { MAX_MEMBERS = 16 };

static bool is_candidate(const fl_graph *g, const fl_node *n) {
  return n->op == FL_OP_MATMUL && n->inputs[3] == FL_NO_VALUE && fl_attr_int(&n->attrs, "act", 0) == FL_ACT_NONE &&
         fl_rw_type(g, n->inputs[1])->rank == 2 && fl_graph_is_const(g, n->inputs[1]) &&
         !fl_graph_is_const(g, n->inputs[0]) && (n->inputs[2] == FL_NO_VALUE || fl_graph_is_const(g, n->inputs[2]));
}

static bool fits(const fl_graph *g, const fl_node *a, const fl_node *b) {
  return is_candidate(g, b) && a->inputs[0] == b->inputs[0] &&
         (a->inputs[2] == FL_NO_VALUE) == (b->inputs[2] == FL_NO_VALUE) &&
         fl_attr_int(&a->attrs, "trans_b", 0) == fl_attr_int(&b->attrs, "trans_b", 0);
}

static int by_id(const void *a, const void *b) {
  fl_nid x = *(const fl_nid *)a, y = *(const fl_nid *)b;
  return (x > y) - (x < y);
}

/* `first` and the others that read the same input and fit, but those this pass made (ids from `made`). Ids tell nothing
 * about order but are the same each time. */
static int find_members(const fl_graph *g, fl_nid first, fl_nid made, fl_nid *members) {
  int n = 0;
  fl_vid x = fl_rw_node(g, first)->inputs[0];
  for (uint32_t u = g->values.data[x].first_use; u != FL_NO_USE && n < MAX_MEMBERS; u = g->uses.data[u].next) {
    fl_nid id = g->uses.data[u].node;
    if (id != first && id < made && fits(g, fl_rw_node(g, first), fl_rw_node(g, id))) members[n++] = id;
  }
  if (n == MAX_MEMBERS) n--;
  members[n++] = first;
  qsort(members, (size_t)n, sizeof *members, by_id);
  return n;
}

static fl_status concatenate(fl_graph *g, fl_nid before, const fl_nid *members, int n, int operand, int axis,
                             fl_vid *out) {
  fl_vid parts[MAX_MEMBERS];
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  for (int i = 0; i < n; i++) parts[i] = fl_rw_node(g, members[i])->inputs[operand];
  *out = FL_NO_VALUE;
  return parts[0] == FL_NO_VALUE ? NULL : fl_rw_add(g, before, FL_OP_CAT, parts, n, &attrs, out);
}

static fl_status slice_for(fl_graph *g, fl_nid before, fl_nid member, fl_vid all, int64_t *start) {
  const fl_type *t = fl_rw_type(g, fl_rw_node(g, member)->outputs[0]);
  fl_vid v;
  int64_t first = *start;
  *start += t->dims[t->rank - 1];
  FL_TRY(fl_rw_slice(g, before, all, t->rank - 1, first, *start, &v));
  fl_graph_replace_uses(g, fl_rw_node(g, member)->outputs[0], v);
  return NULL;
}

/* Constants were hoisted and the input is there, so all of it may stand before the first member. */
static fl_status merge(fl_graph *g, fl_nid first, const fl_nid *members, int n) {
  fl_attrs attrs = fl_rw_node(g, first)->attrs;
  bool trans = fl_attr_int(&attrs, "trans_b", 0);
  fl_vid in[3] = {fl_rw_node(g, first)->inputs[0]}, all;
  int64_t start = 0;
  FL_TRY(concatenate(g, first, members, n, 1, trans ? 0 : 1, &in[1]));
  FL_TRY(concatenate(g, first, members, n, 2, 0, &in[2]));
  FL_TRY(fl_rw_add(g, first, FL_OP_MATMUL, in, 3, &attrs, &all));
  for (int i = 0; i < n; i++) FL_TRY(slice_for(g, first, members[i], all, &start));
  for (int i = 0; i < n; i++) fl_graph_remove(g, members[i]);
  return NULL;
}

static fl_status merge_at(fl_graph *g, fl_nid n, fl_nid made) {
  fl_nid members[MAX_MEMBERS];
  if (n >= made || !is_candidate(g, fl_rw_node(g, n))) return NULL;
  int count = find_members(g, n, made, members);
  g->origin = fl_rw_node(g, n)->origin;
  return count < 2 ? NULL : merge(g, n, members, count);
}

fl_status fl_pass_merge_linear(fl_graph *g) {
  fl_status s = NULL;
  fl_nid made = (fl_nid)g->nodes.len;
  uint32_t origin = g->origin;
  fl_rw_hoist_constants(g);
  for (fl_nid id = g->first; !s && id != FL_NO_NODE; id = fl_rw_node(g, id)->next)
    if (!fl_rw_node(g, id)->dead) s = merge_at(g, id, made);
  g->origin = origin;
  return s;
}
