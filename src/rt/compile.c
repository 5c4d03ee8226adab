#include "rt/compile.h"

#include "base/stages.h"
#include "passes/passes.h"

static fl_status compile(fl_graph *g, const fl_plan_options *options, const void *const *weights,
                         const uint64_t *stamps, uint32_t n_weights, fl_compile_nodes *nodes, fl_engine **out) {
  fl_plan *plan = NULL;
  fl_stage_enter(FL_STAGE_optimize);
  FL_TRY(fl_passes_run(g, false));
  nodes->after = fl_graph_node_count(g);
  fl_stage_enter(FL_STAGE_plan);
  FL_TRY(fl_plan_build(g, options, &plan));
  fl_stage_enter(FL_STAGE_weights);
  return fl_engine_create(plan, weights, stamps, n_weights, options->pool, out);
}

fl_status fl_engine_compile(fl_graph *g, const fl_plan_options *options, const void *const *weights,
                            const uint64_t *stamps, uint32_t n_weights, fl_compile_nodes *nodes, fl_engine **out) {
  fl_compile_nodes unasked;
  if (!nodes) nodes = &unasked;
  *nodes = (fl_compile_nodes){.before = fl_graph_node_count(g)};
  fl_stage before = fl_stage_enter(FL_STAGE_optimize);
  fl_status s = compile(g, options, weights, stamps, n_weights, nodes, out);
  fl_stage_enter(before);
  return s;
}
