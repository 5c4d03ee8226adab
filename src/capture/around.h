/* Calls within an autocast that the caller has entered.
 *
 * What is recorded is the call as if it entered autocast itself: a function (python/framelift/around.py) that switches
 * autocast on, calls the target, and switches it off. So the casts are part of the trace, and what is known of code that
 * enters autocast holds. For the call's length the caller's own autocast is set aside. */
#ifndef FL_CAPTURE_AROUND_H
#define FL_CAPTURE_AROUND_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"

/* One state of autocast around calls of a compiled callable. */
typedef struct fl_around {
  PyObject *state;    /* as fl_around_now gives it: by this a trace's calls are told from others */
  PyObject *function; /* what is recorded in the target's place */
} fl_around;
typedef FL_VEC(fl_around) fl_arounds;

/* Autocast's state now (modes.h) of the devices that are told apart; NULL, without an exception, where it is on for another
 * device or cannot be told. */
PyObject *fl_around_now(void);
/* The entry for it, made where it is new, its function a new reference. False, without an exception, when there are too many. */
bool fl_around_find(fl_arounds *list, PyObject *target, PyObject *now, fl_around *out);
/* As if the caller had not entered it; casts are kept. 0, or -1 with an exception and autocast as it was. */
int fl_around_set_aside(PyObject *now);
void fl_around_put_back(PyObject *now); /* an exception stays as it is */
/* "cpu bfloat16", of an entry's state; new string, or NULL. */
PyObject *fl_around_text(PyObject *state);
int fl_arounds_traverse(const fl_arounds *list, visitproc visit, void *arg);
void fl_arounds_release(fl_arounds *list);

#endif
