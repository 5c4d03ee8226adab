#include <string.h>

#include "passes/passes.h"

typedef fl_status (*pass_fn)(fl_graph *g);

static const struct {
  const char *name;
  pass_fn run;
} passes[] = {
#define FL_PASS(name) {#name, fl_pass_##name},
#include "passes/passes.def"
#undef FL_PASS
};

fl_status fl_passes_run(fl_graph *g, bool verify) {
  for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
    fl_status s = passes[i].run(g);
    if (!s && verify) s = fl_graph_verify(g);
    if (s) return fl_annotate(s, "pass %s", passes[i].name);
  }
  return NULL;
}

fl_status fl_pass_run(fl_graph *g, const char *name) {
  for (size_t i = 0; i < sizeof passes / sizeof *passes; i++)
    if (!strcmp(passes[i].name, name)) return passes[i].run(g);
  return fl_fail(FL_INVALID, "no pass is named %s", name);
}
