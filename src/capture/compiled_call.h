/* One call of a compiled callable, for the files that serve it: compiled.c finds a trace, compiled_record.c makes one. */
#ifndef FL_CAPTURE_COMPILED_CALL_H
#define FL_CAPTURE_COMPILED_CALL_H

#include "capture/compiled.h"

typedef struct fl_call {
  fl_compiled *c;
  PyObject *const *args;
  size_t nargs;
  PyObject *kwnames;
  PyObject *around;   /* autocast as the caller has it, set aside; owned, or NULL */
  PyObject *way;      /* the state of it that traces are told apart by */
  PyObject *function; /* what is recorded in the target's place; borrowed, or NULL */
  fl_torch_state state;
  bool state_known;
  fl_trace *stale;  /* its arguments fit, its guards did not */
  bool put_off;     /* what could not be recorded this time will be recorded another way in the next call */
  bool wants_grad;  /* an argument requires grad while grad mode is on */
  fl_clock *clock;  /* while it is recorded */
  const char *miss; /* why the last trace did not fit: static, or `why` */
  char why[200];
} fl_call;

static inline PyObject *fl_call_recorded(const fl_call *k) { return k->function ? k->function : k->c->target; }

/* compiled.c */
PyObject *fl_call_target(fl_call *k); /* in the caller's autocast again */
/* The original's answer, counted as native for this reason; under no_grad unless `keep_grad`. */
PyObject *fl_call_native(fl_call *k, const char *reason, bool keep_grad);
void fl_compiled_move_to_front(fl_compiled *c, size_t i);

/* compiled_record.c */
/* Arguments of this kind were recorded before in vain. Sets c->native_reason. */
bool fl_call_gave_up_before(fl_call *k);
/* Runs the call for real while recording it; the trace, built and verified, is the callable's newest. Grad mode is off.
 * NULL with an exception. */
PyObject *fl_call_record(fl_call *k);

/* The call, or the rest of one, as it was evaluated once. */
typedef struct fl_attempt {
  fl_rec *rec;
  fl_trace *trace;     /* NULL when it cannot be replayed: `rec` has the reason */
  PyObject *result;    /* NULL when it raised */
  PyObject *generator; /* the generators' state before it */
} fl_attempt;
typedef PyObject *(*fl_attempt_fn)(void *ctx, fl_rec *r, int *out_native);

/* Evaluates `call` for a->rec. Exceptions are left set. */
void fl_attempt_evaluate(fl_attempt *a, fl_attempt_fn call, void *ctx);
/* Builds and verifies the trace; false when out of memory. */
bool fl_attempt_build(fl_call *k, fl_attempt *a);
void fl_attempt_drop(fl_attempt *a);
/* What could not be recorded lies in a callable that can be a break of its own: later recordings leave it out. */
bool fl_attempt_leave_out(fl_compiled *c, fl_rec *r);
/* The trace, or NULL with the reason in `r`: one that captured nothing is worth nothing; */
fl_trace *fl_attempt_refuse_empty(fl_rec *r, fl_trace *t);
/* and one that changes what its own guards rely on fits no second time by itself: a counter, a growing cache. A few
 * states are worth a trace each. */
fl_trace *fl_attempt_refuse_counters(fl_trace *const *others, size_t n_others, fl_rec *r, fl_trace *t);

/* and one whose operators do not give what was recorded (rerun.h). Once built. */
fl_trace *fl_attempt_refuse_unfaithful(fl_rec *r, fl_trace *t);

/* compiled_branch.c: fl_grow_fn; ctx is the fl_call. */
struct fl_exit;
PyObject *fl_call_grow(void *ctx, struct fl_exit *e, bool *out_done);

#endif
