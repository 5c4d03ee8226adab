/* A shared library for tests/test_kernels.py: evaluates a graph given as text. The core's own symbols stay hidden. */
#include <stdio.h>

#include "base/cpu.h"
#include "graph/graph.h"
#include "rt/engine.h"

static fl_status eval(const char *text, int threads, const void *const *inputs, void *const *outputs) {
  fl_graph *g = NULL;
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  fl_pool *pool = NULL;
  fl_status s = fl_pool_create(threads, &pool);
  if (!s) s = fl_graph_parse(text, &g);
  fl_plan_options options = {.threads = threads};
  if (!s) s = fl_plan_build(g, &options, &plan);
  if (!s) s = fl_engine_create(plan, NULL, NULL, 0, pool, &e);
  if (!s) s = fl_engine_run(e, inputs, outputs);
  fl_engine_destroy(e);
  fl_graph_destroy(g);
  fl_pool_destroy(pool);
  return s;
}

/* 0, or 1 and why in `message`. `isa` is an fl_isa; inputs and outputs are contiguous. */
__attribute__((visibility("default"))) int fl_eval_graph(const char *text, int isa, int threads,
                                                         const void *const *inputs, void *const *outputs, char *message,
                                                         size_t size);
int fl_eval_graph(const char *text, int isa, int threads, const void *const *inputs, void *const *outputs,
                  char *message, size_t size) {
  fl_isa before = fl_cpu_isa();
  fl_cpu_force_isa((fl_isa)isa);
  fl_status s = eval(text, threads, inputs, outputs);
  fl_cpu_force_isa(before);
  snprintf(message, size, "%s", fl_status_message(s));
  int failed = s != NULL;
  fl_status_free(s);
  return failed;
}
