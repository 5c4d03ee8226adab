/* A segment made runnable: engine parts and eager parts, in order. */
#ifndef FL_CAPTURE_SEGMENT_H
#define FL_CAPTURE_SEGMENT_H

#include "capture/device.h"
#include "capture/trace.h"

typedef struct fl_build_options {
  bool lower; /* false: everything eager (backend "eager") */
  bool verify;
  fl_dtype precision; /* what engines compute f32 operators in, where the device has it; FL_F32: as they are */
  double tactic_ms;
  fl_pool *pool;        /* outlives the segments */
  PyObject *generator;  /* borrowed: the generators' state before the call; NULL where it is not random */
  int min_engine_nodes; /* see fl_lower_options */
} fl_build_options;

/* Results nobody needs after a moment. */
typedef struct fl_drop {
  uint32_t *values;
  int n;
} fl_drop;

typedef struct fl_seg_part {
  fl_part_kind kind;
  uint32_t *nodes; /* of the trace */
  int n_nodes;
  uint32_t *in, *out; /* values of the trace */
  int n_in, n_out;
  fl_engine *engine;  /* ENGINE */
  uint64_t epoch;     /* of the weights it has seen */
  bool *checked;      /* input i comes from eager code: its strides are compared first */
  bool *copied;       /* output i: eager's strides are not the plan's */
  fl_drop *drops;     /* after each node (EAGER), or one after the part */
  const char *reason; /* EAGER although lowered: why */
  int engine_nodes;   /* ENGINE: graph nodes after the passes */
  float cosine, max_rel;
} fl_seg_part;

typedef struct fl_segment {
  fl_arena arena;
  fl_aten_graph *aten; /* kept for reports; weights' data only valid while building */
  fl_lowered *lowered;
  uint32_t *values; /* of `aten` -> of the trace */
  uint32_t *slots;  /* weight slot -> weight of the trace */
  uint32_t n_slots;
  fl_seg_part *parts;
  int n_parts;
  const char **reasons; /* by node of the segment: why eager, NULL when lowered */
  fl_pool *pool;
  fl_device device; /* of the engines */
  const fl_backend *backend;
  fl_dtype precision; /* f16 or bf16: engines compute f32 operators in it, but for those in `exact` */
  bool *exact;        /* by node of the segment; NULL unless precision is a low one */
  struct fl_fx *fx;   /* what another backend made of it, or NULL (fx.h) */
} fl_segment;

/* Builds all segments of a trace. Never fails the call: what cannot be lowered runs eagerly, with a reason. False when
 * out of memory (no exception). Needs the GIL; releases it while planning. */
bool fl_trace_build(fl_trace *t, const fl_build_options *options);
void fl_segment_destroy(fl_segment *s); /* takes; NULL allowed */
/* Builds the segment of a step anew, after a change of `exact` or of a node's pin. Where that fails, all of it is eager, with
 * the reason. False when out of memory. */
bool fl_segment_rebuild(fl_trace *t, uint32_t step, const fl_build_options *options);
/* Bytes of their devices that the engines of a trace and of its branches hold, but for blocks that were counted in this report
 * (rt/constants.h) already; with what is made of the weights or without. */
size_t fl_trace_bytes(const fl_trace *t, uint64_t report, bool constants);
/* One eager part with everything in it, for this reason (kept by reference). False when out of memory. */
bool fl_segment_make_eager(fl_trace *t, fl_tstep *step, const char *reason);

/* The device of most of a segment's results that engines can compute. */
fl_device fl_segment_device(const fl_trace *t, uint32_t step);
/* The recorded segment as plain data, for engines on this device. values[i] of the graph is values_out[i] of the trace. */
FL_MUST_USE fl_status fl_segment_graph(fl_trace *t, uint32_t step, fl_device device, fl_aten_graph **out,
                                       uint32_t **out_values, uint32_t **out_slots, uint32_t *out_n_slots);

/* Runs one step on values[]: inputs and weights borrowed, results owned. 0, or -1 with an exception. With `eager`,
 * engines are not used; with `keep`, nothing is dropped. */
int fl_segment_run(fl_trace *t, const fl_tstep *step, PyObject **values, bool eager, bool keep);
/* The operator of a decision, in its mode; as fl_node_run. */
int fl_decision_run(const fl_trace *t, const fl_tstep *step, PyObject **values, PyObject **out_result);
/* *miss where it comes out otherwise: then, or with an exception, -1. */
int fl_decision_compare(const fl_trace *t, const fl_tstep *step, PyObject **values, const char **miss);
int fl_node_run(const fl_trace *t, const fl_tnode *n, PyObject **values, PyObject **out_result);
/* Runs an engine part. FL_OK, or FL_INVALID when the operators must run eagerly to raise their error, -1 with an
 * exception. */
int fl_part_run(fl_trace *t, fl_segment *s, fl_seg_part *p, PyObject **values);

/* Compares the engines' answers with eager's on these inputs; parts that differ are taken out of use. Where even the operators do
 * not give what was recorded, t->unfaithful says so. `finals` holds the recorded results by value (NULL elsewhere). -1
 * with an exception. */
int fl_trace_verify(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options);

/* The same later on, on copies, for a trace of engines alone. Where the weights have changed since (`stale`), or the
 * answers differ, the operators say what is right now: `finals` then gets their results. */
int fl_trace_verify_late(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale,
                         const fl_build_options *options);

/* *miss of a run that raised after effects had begun. */
#define FL_RUN_NOT_TWICE "effects were done"

/* Runs the trace; `inputs`: the arguments' tensors, then those of its sources. New reference; NULL with an exception; NULL without one and *miss set when an answer differed. */
struct fl_call_args; /* replay_break.h */
PyObject *fl_trace_run(fl_trace *t, PyObject *const *inputs, const struct fl_call_args *call, const char **miss,
                       bool engines);
/* The same up to where the call leaves the trace (then NULL, and *exit has a break); `entry`: what a branch begins with, else
 * NULL. */
struct fl_entry;
struct fl_exit;
PyObject *fl_trace_run_to_exit(fl_trace *t, PyObject *const *inputs, const struct fl_call_args *call,
                               const struct fl_entry *entry, const char **miss, bool engines, struct fl_exit *exit);

#endif
