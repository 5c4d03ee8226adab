/* Context variables that a call has set and not yet reset when it comes to a break. They are set for unknown code as they
 * were when the call was recorded, and what they hold must be as it was when that code returns. */
#ifndef FL_CAPTURE_VARS_H
#define FL_CAPTURE_VARS_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"

/* Of a token that was not used yet: its variable, and what it was set to, given the tokens that are open, in order.
 * Borrowed; false when it is none of these. */
bool fl_vars_token(PyObject *tokens, PyObject *token, PyObject **out_var, PyObject **out_value);

/* Undoes one, or all, the last one first. An exception stays as it is. */
void fl_vars_undo(PyObject *token);
void fl_vars_reset(PyObject *tokens);

typedef struct fl_kept { /* owned */
  PyObject *object, *snapshot;
  Py_ssize_t refs;
} fl_kept;
typedef struct fl_vars_watch {
  FL_VEC(fl_kept) kept;    /* containers the variables hold */
  PyObject *vars, *values; /* lists */
} fl_vars_watch;

/* Notes what these variables hold. 0, or -1 with an exception. */
int fl_vars_watch_begin(fl_vars_watch *w, PyObject *tokens);
/* NULL, or what unknown code has done to it. Releases. */
const char *fl_vars_watch_end(fl_vars_watch *w);

#endif
