/* The operators of a part once more, with float64 in place of float32: what both eager and the engine come near to. */
#ifndef FL_CAPTURE_EXACT_H
#define FL_CAPTURE_EXACT_H

#include "capture/segment.h"

/* Runs a part's operators from `ref`, float32 values by number of the trace, and weights. New array with the results, to be
 * released with fl_exact_free; NULL where they do not run in float64 (no exception). With `nudge` the part's inputs are off
 * by one unit in the last place. */
PyObject **fl_exact_run(const fl_trace *t, const fl_seg_part *p, PyObject *const *ref, bool nudge);
void fl_exact_free(const fl_trace *t, PyObject **values);

#endif
