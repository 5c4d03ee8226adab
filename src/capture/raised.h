/* Exceptions that the frames of a break handle or hold: what they are, and the same made again for frames that stand.
 *
 * One is handled alone where the call began with none being handled. Its traceback names the frames that stand; frames
 * that are no more are made of their code and globals, without locals. */
#ifndef FL_CAPTURE_RAISED_H
#define FL_CAPTURE_RAISED_H

#include <Python.h>
#include <stdbool.h>

#include "capture/cpython/compat.h"
#include "capture/result.h"

/* At recording, of the thread's evaluated frames: (the exception being handled or None, each other one, or traceback, that
 * locals and operands hold ...), empty where there are none. New tuple, or NULL. */
PyObject *fl_raised_items(void);
/* Where a traceback was: (number of the frame that stands or -1, code, globals, instruction, line). New tuple, or NULL. */
PyObject *fl_raised_place(PyObject *traceback);
/* One there, in a frame that is no more, in front of the next one or None. New reference, or NULL with an exception. */
PyObject *fl_raised_make_place(PyObject *place, PyObject *next);

/* What an exception consists of besides its __dict__, in a new tuple; NULL, without an exception: that is not known. */
PyObject *fl_raised_parts(PyObject *exc);
/* And one made of these; new reference, or NULL with an exception. */
PyObject *fl_raised_make(PyTypeObject *type, PyObject *const *parts, int n);

/* Exceptions made for frames that stand. */
typedef struct fl_raised_held {
  PyObject *items; /* as fl_raised_items; owned. NULL: there are none */
  PyObject *then;  /* list of what each was when the frames stood; owned */
  bool failed;
} fl_raised_held;
/* The frames stand, and `h->items` holds what was made: their tracebacks (of which the recipe's nodes tell) are in these frames, and the
 * first is handled. No exception is left. */
void fl_raised_stand(fl_raised_held *h, const fl_result *state, const fl_result_node *items,
                     const fl_cpy_state *frames);
/* NULL, or what the code called in the frames has done to them. */
const char *fl_raised_why_not(const fl_raised_held *h);
/* The frames are left: nothing is handled any more. An exception that is set stays as it is. */
void fl_raised_leave(fl_raised_held *h);
void fl_raised_pass_on(fl_raised_held *h); /* frames that run handle them */

#endif
