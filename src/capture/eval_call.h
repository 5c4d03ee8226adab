/* One call, as the evaluator's parts hand it on. */
#ifndef FL_CAPTURE_EVAL_CALL_H
#define FL_CAPTURE_EVAL_CALL_H

#include "capture/ccalls.h"
#include "capture/eval_impl.h"

typedef struct fl_call_args { /* vectorcall's way */
  PyObject *callable;
  PyObject *const *args;
  size_t nargsf, npos, nkw;
  PyObject *kwnames;
  bool tail; /* its answer is what the calling frame waits for */
} fl_call_args;

static inline PyObject *fl_call_natively(const fl_call_args *c) {
  return PyObject_Vectorcall(c->callable, c->args, c->nargsf, c->kwnames);
}

/* Arguments from `from` on, which C code may look into or call. */
void fl_call_saw_args(fl_rec *r, const fl_call_args *c, size_t from);
/* isinstance and issubclass look into the class, or tuple of classes: its own check (named `method`) may be Python's, which the
 * hook sees. */
void fl_call_saw_class_check(fl_rec *r, PyObject *cls, PyObject *method);
/* The C functions of a class that needs more than a report (`self` of a method, else NULL). *done tells whether it was one. */
PyObject *fl_call_builtin(fl_rec *r, fl_cc cls, const fl_call_args *c, PyObject *self, bool *done);

#endif
