/* Memory that the call's own tensors share with weights of a trace.
 *
 * A recording is given up where an argument shares memory with a weight. In later calls that matters where unknown code sees the
 * argument, or gives tensors: what is written by way of numpy or DLPack counts no version of the weight, and what engines have
 * computed of it would be out of date. The contents of such weights are compared from then on. */
#ifndef FL_CAPTURE_APART_H
#define FL_CAPTURE_APART_H

#include "capture/trace.h"

/* Watches the weights that share memory with the tensor, of n traces, their roots and all branches. False where one cannot be
 * watched (on a GPU), or when out of memory; the others are all the same. */
bool fl_tensor_watch_shared(PyObject *tensor, fl_trace *const *in, size_t n);
/* Where the unwatched weights of some traces lie, so that most tensors are seen to be apart at once. Zeroed: not known yet. */
typedef struct fl_extents {
  FL_VEC(fl_extent) list; /* in order, apart from each other */
  uint64_t moves;         /* fl_weights_moves as of then */
} fl_extents;
/* The same for all inputs of `t`. Asked of traces with breaks, and of branches. `known`: of the traces `in`; NULL where there are
 * few. To be zeroed when these become others, unless they become fewer. */
bool fl_inputs_watch_shared(const fl_trace *t, PyObject *const *inputs, fl_trace *const *in, size_t n,
                            fl_extents *known);
/* What is watched in one of root and branches, since unknown code has seen it, is watched in all. To be called when `t` joins
 * them. False when out of memory. */
bool fl_weights_watch_alike(fl_trace *t);

#endif
