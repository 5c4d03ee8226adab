#include "lower/aten.h"

#include <string.h>

fl_status fl_aten_graph_create(fl_aten_graph **out) {
  fl_aten_graph *g = fl_calloc(1, sizeof *g);
  if (!g) return fl_oom();
  fl_arena_init(&g->arena);
  *out = g;
  return NULL;
}

void fl_aten_graph_destroy(fl_aten_graph *g) {
  if (!g) return;
  fl_free(g->values.data);
  fl_free(g->nodes.data);
  fl_free(g->inputs.data);
  fl_free(g->weights.data);
  fl_free(g->outputs.data);
  fl_arena_release(&g->arena);
  fl_free(g);
}

const fl_arg *fl_aten_arg(const fl_aten_node *n, const char *name) {
  for (int i = 0; i < n->n_args; i++)
    if (!strcmp(n->args[i].name, name)) return &n->args[i];
  return NULL;
}

bool fl_aten_is_fixed(const fl_aten_graph *g, const fl_aten_node *n) {
  bool any = false;
  for (int i = 0; i < n->n_outputs; i++) {
    if (n->outputs[i] == FL_ATEN_NONE) continue;
    const fl_aten_value *v = &g->values.data[n->outputs[i]];
    if (!v->fixed || !v->tensor_ok) return false;
    any = true;
  }
  return any && !n->pin_eager;
}
