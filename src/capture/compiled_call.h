/* One call of a compiled callable, for the files that serve it: compiled.c finds a trace, compiled_record.c makes one. */
#ifndef FL_CAPTURE_COMPILED_CALL_H
#define FL_CAPTURE_COMPILED_CALL_H

#include "capture/compiled.h"

typedef struct fl_call {
  fl_compiled *c;
  PyObject *const *args;
  size_t nargs;
  PyObject *kwnames;
  fl_torch_state state;
  bool state_known;
  fl_trace *stale; /* its arguments fit, its guards did not */
  bool put_off;    /* what could not be recorded this time will be recorded another way in the next call */
  bool wants_grad; /* an argument requires grad while grad mode is on */
  fl_clock *clock; /* while it is recorded */
  char why[200];
} fl_call;

/* compiled.c */
PyObject *fl_call_target(fl_call *k);
/* The original's answer, counted as native for this reason; under no_grad unless `keep_grad`. */
PyObject *fl_call_native(fl_call *k, const char *reason, bool keep_grad);
void fl_compiled_move_to_front(fl_compiled *c, size_t i);

/* compiled_record.c */
/* Arguments of this kind were recorded before in vain. Sets c->native_reason. */
bool fl_call_gave_up_before(fl_call *k);
/* Runs the call for real while recording it; the trace, built and verified, is the callable's newest. Grad mode is off.
 * NULL with an exception. */
PyObject *fl_call_record(fl_call *k);

#endif
