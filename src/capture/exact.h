/* The operators of a part once more, in a wider type: what both eager and the engine come near to. */
#ifndef FL_CAPTURE_EXACT_H
#define FL_CAPTURE_EXACT_H

#include "capture/segment.h"

/* Where float32 inputs are moved by one unit in the last place: away from zero, towards it, up, or down. */
typedef enum fl_nudge { FL_NUDGE_NONE, FL_NUDGE_OUT, FL_NUDGE_IN, FL_NUDGE_UP, FL_NUDGE_DOWN, FL_NUDGES } fl_nudge;

/* Runs a part's operators from `ref`, values by number of the trace, and weights, with `wide` (float32 or float64) in place
 * of every narrower float. New array that has the part's results, to be released with fl_exact_free; NULL where they do
 * not run in that type (no exception). */
PyObject **fl_exact_run(const fl_trace *t, const fl_seg_part *p, PyObject *const *ref, fl_dtype wide, fl_nudge nudge);
void fl_exact_free(const fl_trace *t, PyObject **values);

/* A tensor as one of `wide`: itself, unless it is of a narrower float. New reference. */
PyObject *fl_exact_widen(PyObject *tensor, fl_dtype wide);

#endif
