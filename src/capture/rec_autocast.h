/* Operators that are recorded while autocast is on.
 *
 * A dispatch mode is entered below autocast, and for what it calls autocast is off. So an operator that autocast itself casts for comes with
 * its arguments cast, as it should. But of one that it passes on, what the operator calls in its turn is cast for in eager. */
#ifndef FL_CAPTURE_REC_AUTOCAST_H
#define FL_CAPTURE_REC_AUTOCAST_H

#include "capture/rec.h"

/* Inference mode shows composites whole, where autocast casts for their parts: true if the parts have been recorded in its place,
 * *out being the result, NULL with an exception. */
bool fl_rec_in_parts(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs, PyObject **out);
/* Before the operator is called: the recording ends where autocast casts for what its kernel calls. */
void fl_rec_expect_casts(fl_rec *r, const fl_schema *s);
/* The operator's result, as autocast has it. */
PyObject *fl_rec_call_operator(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs);
/* The same of one that is not recorded. */
PyObject *fl_rec_call_unrecorded(fl_rec *r, PyObject *overload, PyObject *args, PyObject *kwargs);

#endif
