/* From a graph as lowered to an engine that runs: passes, plan, init program. */
#ifndef FL_RT_COMPILE_H
#define FL_RT_COMPILE_H

#include "rt/engine.h"

typedef struct fl_compile_nodes {
  int before, after; /* the passes */
} fl_compile_nodes;

/* Rewrites the graph (borrowed, not to be used further except for destroying it), plans it and makes the engine.
 * `options->pool` is what the engine runs on too, and must outlive it. `nodes` may be NULL; it is filled as far as
 * compilation came. Errors are those of fl_passes_run, fl_plan_build and fl_engine_create. */
FL_MUST_USE fl_status fl_engine_compile(fl_graph *g, const fl_plan_options *options, const void *const *weights,
                                        const uint64_t *stamps, uint32_t n_weights, fl_compile_nodes *nodes,
                                        fl_engine **out);

#endif
