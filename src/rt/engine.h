/* The engine: a plan, its constants, and what runs it.
 *
 * Any number of threads may run one engine at once: each run borrows an execution context (arena) from the engine.
 * Weight updates take a lock against each other only; as in eager, changing weights while a call is running gives
 * that call a mixture. */
#ifndef FL_RT_ENGINE_H
#define FL_RT_ENGINE_H

#include "plan/plan.h"

typedef struct fl_engine fl_engine;

/* Takes the plan (also on failure). `weights` (at least plan->n_weights of them) holds, for each slot, the tensor's current data pointer; borrowed until
 * replaced by fl_engine_update. `stamps` (copied) names what each holds, for what engines share (constants.h): 0, or NULL for all: not
 * to be shared. The init program runs at once on a device, else in the first run. `pool` is borrowed and must outlive the engine. */
FL_MUST_USE fl_status fl_engine_create(fl_plan *plan, const void *const *weights, const uint64_t *stamps,
                                       uint32_t n_weights, fl_pool *pool, fl_engine **out);
void fl_engine_destroy(fl_engine *e); /* takes; NULL allowed */
const fl_plan *fl_engine_plan(const fl_engine *e);

/* What an engine holds now, of the backend's memory; contexts that calls are using are left out. Weights that the plan reads in
 * place are the caller's. */
typedef struct fl_engine_memory {
  int contexts, programs;
  size_t arenas, stages, workspaces, programs_bytes;
  size_t constants[FL_CONST_KINDS];
  size_t shared; /* constants that were counted in this report already, for another engine */
} fl_engine_memory;
/* `report`: a number that fl_constants_report (constants.h) gave, the same for all engines that are told of together. */
fl_engine_memory fl_engine_memory_of(fl_engine *e, uint64_t report);

/* Computes outputs from inputs. inputs[i] and outputs[i] are the data pointers of tensors with exactly the types and
 * strides of plan->inputs[i] and plan->outputs[i]; outputs do not overlap inputs or each other. Fails with FL_OOM (the
 * first run, or the first on a new context), or with FL_INVALID where eager would raise (an index out of range, among the weights
 * too): outputs are then undefined. */
FL_MUST_USE fl_status fl_engine_run(fl_engine *e, const void *const *inputs, void *const *outputs);

/* Weights in `slots` have new contents or a new place: sets pointers and stamps (as above; NULL: 0), and runs the init steps that
 * depend on them and whose results are not there already. What other engines hold too is left to them as it is; else it is
 * made anew in its place. Slots that the plan does not use are ignored. After a failure the same slots, at least, are
 * to be given again before the next run. */
FL_MUST_USE fl_status fl_engine_update(fl_engine *e, const uint32_t *slots, const void *const *data,
                                       const uint64_t *stamps, int n);

/* Like fl_engine_run, and adds each step's wall time in microseconds to us[plan->run.len]. */
FL_MUST_USE fl_status fl_engine_profile(fl_engine *e, const void *const *inputs, void *const *outputs, double *us);

#endif
