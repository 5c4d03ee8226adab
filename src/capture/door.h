/* optimize() as a context manager, and disable(): what the frame hook does where nothing is being recorded. */
#ifndef FL_CAPTURE_DOOR_H
#define FL_CAPTURE_DOOR_H

#include <Python.h>
#include <stdbool.h>

#include "capture/cpython/compat.h"

/* While a handler is set on this thread, each new frame of a function outside torch and the standard library that has a
 * tensor among its arguments, and each call of an nn.Module with one, is shown to handler(function or module), which
 * gives a callable to be called in its place, or None. Not while such a call runs, nor while grad mode is on.
 * `handler` NULL or None: none. Returns the handler before (new reference, None for none), or NULL with RuntimeError. */
PyObject *fl_door_set(PyObject *handler);

/* The code of the wrappers that disable() makes, and of nn.Module.__call__. Held for the life of the process. */
void fl_door_setup(PyObject *disabled, PyObject *module_call);
bool fl_door_is_disabled(PyCodeObject *code);

int fl_door_holds(void); /* 1 when this thread holds the frame hook for its handler, else 0 */
/* A frame on a thread that evaluates nothing: under ceval's contract. */
PyObject *fl_door_frame(PyThreadState *ts, fl_frame *f, int throwflag);

#endif
