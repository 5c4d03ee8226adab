/* Graph passes: each rewrites a graph into an equal, cheaper one. */
#ifndef FL_PASSES_PASSES_H
#define FL_PASSES_PASSES_H

#include "graph/graph.h"

#define FL_PASS(name) FL_MUST_USE fl_status fl_pass_##name(fl_graph *g);
#include "passes/passes.def"
#undef FL_PASS

/* All of passes.def in order. With verify, fl_graph_verify runs after each and its error names the pass. */
FL_MUST_USE fl_status fl_passes_run(fl_graph *g, bool verify);
/* One pass by name (tests, tools); FL_INVALID for an unknown name. */
FL_MUST_USE fl_status fl_pass_run(fl_graph *g, const char *name);

#endif
