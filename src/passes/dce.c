#include "passes/passes.h"

/* Backwards, so that one walk suffices: users are gone before their operands are looked at. */
fl_status fl_pass_dce(fl_graph *g) {
  for (fl_nid id = g->last, prev; id != FL_NO_NODE; id = prev) {
    const fl_node *n = &g->nodes.data[id];
    prev = n->prev;
    int uses = 0;
    for (int i = 0; i < n->n_outputs; i++) uses += fl_graph_use_count(g, n->outputs[i]);
    if (!uses && !fl_graph_may_raise(g, id)) fl_graph_remove(g, id);
  }
  return NULL;
}
