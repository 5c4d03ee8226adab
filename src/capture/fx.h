/* Segments for other backends: a segment as Python data, and the callable that a backend made of it. */
#ifndef FL_CAPTURE_FX_H
#define FL_CAPTURE_FX_H

#include "capture/segment.h"

typedef struct fl_fx {
  PyObject *call; /* kept by the trace; NULL: as the parts say */
  PyObject *info; /* what the backend says of itself for reports; kept by the trace */
  uint32_t *in, *out, *drop;
  int n_in, n_out, n_drop;
} fl_fx;

/* The segment as data, a dict:
 *   nodes    [(OpOverload, [argument], {name: argument}, [value or None], file, line, module)]
 *            argument: (0, object), (1, value), (2, [argument]) a list, (3, [argument]) a tuple
 *   inputs   [value]; weights [(value, tensor)]; outputs [value]; eager: why only PyTorch may run it, or None
 * New reference; NULL with an exception. */
PyObject *fl_fx_data(fl_trace *t, const fl_tstep *step);

/* Offers each segment of a built trace to backend(data, example inputs, {"framelift": run, "eager": run}), which gives
 * (choice, info): choice None keeps the segment as built, "eager" makes it eager, a callable takes the inputs and
 * weights and gives the outputs. Runs the trace on these inputs to get the example inputs: a trace with effects is left
 * as it is. 0, or -1 with an exception. */
int fl_fx_build(fl_trace *t, PyObject *backend, PyObject *const *inputs);

/* 1: done. 0: the callable failed or gave something else than recorded, nothing is stored, and the operators must run.
 * -1 with an exception that is no Exception (KeyboardInterrupt ...). */
int fl_fx_run(const fl_trace *t, const fl_fx *fx, PyObject **values, bool keep);

#endif
