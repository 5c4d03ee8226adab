#include "rt/compile.h"

#include <time.h>

#include "passes/passes.h"

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Milliseconds since *mark, which moves to now. */
static double lap(double *mark) {
  double before = *mark;
  *mark = now_ms();
  return *mark - before;
}

fl_status fl_engine_compile(fl_graph *g, const fl_plan_options *options, const void *const *weights, uint32_t n_weights,
                            fl_compile_times *times, fl_engine **out) {
  fl_compile_times unasked;
  if (!times) times = &unasked;
  *times = (fl_compile_times){.nodes_before = fl_graph_node_count(g)};
  double mark = now_ms();
  fl_plan *plan = NULL;
  FL_TRY(fl_passes_run(g, false));
  times->nodes_after = fl_graph_node_count(g);
  times->passes = lap(&mark);
  FL_TRY(fl_plan_build(g, options, &plan));
  times->plan = lap(&mark);
  FL_TRY(fl_engine_create(plan, weights, n_weights, options->pool, out));
  times->create = lap(&mark);
  return NULL;
}
