/* The operators of a part once more, in a wider type: what both eager and the engine come near to. */
#ifndef FL_CAPTURE_EXACT_H
#define FL_CAPTURE_EXACT_H

#include "capture/segment.h"

/* Runs a part's operators from `ref`, values by number of the trace, and weights, with `wide` (float32 or float64) in place
 * of every narrower float. New array that has the part's results, to be released with fl_exact_free; NULL where they do
 * not run in that type (no exception). With `nudge` the part's float32 inputs are off by one unit in the last place. */
PyObject **fl_exact_run(const fl_trace *t, const fl_seg_part *p, PyObject *const *ref, fl_dtype wide, bool nudge);
void fl_exact_free(const fl_trace *t, PyObject **values);

/* A tensor as one of `wide`: itself, unless it is of a narrower float. New reference. */
PyObject *fl_exact_widen(PyObject *tensor, fl_dtype wide);

#endif
