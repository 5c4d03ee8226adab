/* Running what was recorded once more, on the recorded inputs, while a trace is built. */
#ifndef FL_CAPTURE_RERUN_H
#define FL_CAPTURE_RERUN_H

#include "capture/segment.h"

/* Numbers that memory holds which operators leave unfilled. */
enum { FL_SPOIL = 113, FL_SPOIL_OTHER = -57 };

/* A run's values by number, with inputs and weights in them. New; NULL with an exception. */
PyObject **fl_rerun_begin(const fl_trace *t, PyObject *const *inputs);
void fl_rerun_end(const fl_trace *t, PyObject **values); /* takes; NULL allowed */
/* One step; what unknown code before it gave is put in first. 0, or -1 with an exception. */
int fl_rerun_step(fl_trace *t, uint32_t i, PyObject **values, bool eager);

/* --- is the recording a faithful account of the call? ---
 *
 * C++ may fill memory without an operator, and a pointer or an alias that nobody knows of may lead to it. What was recorded
 * then does not give the recorded answer, whoever runs it. */

/* Runs all recorded operators by PyTorch, with something else in memory that they do not fill, and compares with the recorded
 * results: where they differ, t->unfaithful says so. Operators that answer differently each time are taken as they are.
 * 0, or -1 with an exception. */
int fl_rerun_check(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *o);
/* The same, and the results become those of this run. With `stale` those recorded are not to be compared with; what depends on
 * memory that no operator fills is found even so. */
int fl_rerun_answers(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale, const fl_build_options *o);

#endif
