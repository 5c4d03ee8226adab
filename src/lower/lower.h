/* Lowering: recorded ATen operators to engine graphs, split by what the engine supports.
 *
 * fl_lower converts each operator by the table aten.def (ATen name -> converter). A converter may decline with a
 * reason. Runs of converted operators become engine partitions; the rest stays eager, in recorded order, and a
 * cost model avoids switches that do not pay. Every decision is kept for explain(). */
#ifndef FL_LOWER_LOWER_H
#define FL_LOWER_LOWER_H

#include "base/status.h"
#include "graph/graph.h"
#include "lower/aten.h"

typedef enum fl_part_kind { FL_PART_EAGER, FL_PART_ENGINE } fl_part_kind;

typedef struct fl_part {
  fl_part_kind kind;
  uint32_t *nodes; /* recorded operators, in order */
  int n_nodes;
  uint32_t *inputs; /* values read: segment inputs, or outputs of earlier parts (never weights) */
  int n_inputs;
  uint32_t *outputs; /* values made here and needed later */
  int n_outputs;
  fl_graph
      *graph; /* ENGINE: inputs and outputs in the order above; weights by segment slot. Owned. Not yet optimized */
} fl_part;

typedef struct fl_node_report {
  bool lowered;
  const char *reason; /* why eager; NULL when lowered */
} fl_node_report;

typedef struct fl_lowered {
  fl_arena arena;
  FL_VEC(fl_part) parts;
  fl_node_report *reports; /* one for each recorded operator */
  int n_reports;
  int n_lowered, n_dead; /* n_dead: operators whose results nobody needs; neither engine nor eager */
} fl_lowered;

/* `supports` is asked for every engine node made: NULL, or a reason in static storage. */
typedef struct fl_lower_options {
  const char *(*supports)(void *ctx, const fl_graph *g, const fl_node *n);
  void *ctx;
  bool cpu;             /* what was recorded ran on the CPU: some operators round 16-bit floats elsewhere there */
  int min_engine_nodes; /* smaller islands between eager operators stay eager; 0 = default */
} fl_lower_options;

FL_MUST_USE fl_status fl_lower(const fl_aten_graph *aten, const fl_lower_options *options, fl_lowered **out);
void fl_lowered_destroy(fl_lowered *l); /* takes; NULL allowed */

/* The converter table, for `framelift ops`: row i, or NULL past the end. */
typedef struct fl_converter_info {
  const char *aten;   /* "aten.addmm.default" */
  const char *dtypes; /* "f32 f16 bf16" */
  const char *limits; /* "" or what it declines */
} fl_converter_info;
const fl_converter_info *fl_converter_get(int i);

#endif
