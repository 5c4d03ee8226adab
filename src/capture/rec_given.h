/* What unknown code gave to a call that is recorded: values of the call's own of which nothing is known beforehand. */
#ifndef FL_CAPTURE_REC_GIVEN_H
#define FL_CAPTURE_REC_GIVEN_H

#include "capture/rec.h"

enum { FL_BREAK_DEPTH = 8 }; /* of tuples and containers that are looked into */

static inline bool fl_rec_is_dict(PyObject *o) { return PyDict_CheckExact(o) || PyODict_CheckExact(o); }

fl_unknown *fl_rec_unknown_entry(fl_rec *r, PyObject *o); /* NULL: it is none */
/* Describes `o`, which unknown code gave before step `at` and one reference holds, with a value for what the call goes on with. False:
 * given up. */
bool fl_rec_take_given(fl_rec *r, fl_back *out, PyObject *o, uint32_t at, int depth);
/* Unknown code may write to the memory of these weights without counting a version. */
void fl_rec_watch_weights(fl_rec *r, uint32_t storage);

#endif
