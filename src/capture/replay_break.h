/* Breaks of a trace at replay, and what recording and replay must see alike. */
#ifndef FL_CAPTURE_REPLAY_BREAK_H
#define FL_CAPTURE_REPLAY_BREAK_H

#include "capture/cpython/compat.h"
#include "capture/modes.h"
#include "capture/raised.h"
#include "capture/trace.h"

struct fl_exit; /* branch.h */

/* A call of the compiled callable, or what a branch begins with; all borrowed. */
typedef struct fl_call_args {
  PyObject *const *args;
  size_t n_args;
  PyObject *kwnames;
  PyObject *(*grow)(void *ctx, struct fl_exit *e, bool *out_done); /* records branches; NULL: nothing is recorded */
  void *grow_ctx;
} fl_call_args;

/* The state of a break is a tuple of these. */
enum {
  FL_STATE_TOKENS,
  FL_STATE_MODES,
  FL_STATE_EFFECTS,
  FL_STATE_CALLABLE,
  FL_STATE_ARGS,
  FL_STATE_RAISED,
  FL_STATE_FRAMES
};

/* A frame's is one of its function, the generator whose frame it is (or fl_back_none), its locals and operands. */
enum { FL_FRAME_SLOTS = 2 };

/* What a branch begins with besides: objects of which nothing is known, and what unknown code gave. Borrowed. */
typedef struct fl_entry {
  PyObject *const *objects;
  size_t n_objects;
  PyObject *back;
} fl_entry;

/* One run of a trace with breaks. */
typedef struct fl_run {
  fl_trace *t;
  PyObject **values;
  PyObject *const *inputs;
  const fl_call_args *call;
  fl_break *last;        /* the newest break behind us, or NULL */
  PyObject *last_back;   /* what it gave; owned */
  PyObject *tokens;      /* of context variables that are set for the program; owned, or NULL */
  fl_raised_held raised; /* exceptions, made for frames that stand */
  fl_modes_held modes;   /* inference mode and autocast, entered for frames that stand */
  struct fl_exit *exit;  /* where the call leaves the trace, once it does */
} fl_run;

/* The break before step `at`, if it comes next: calls what it calls, checks what the next stretch relies on. 0: go on; 1: *out is
 * the call's answer (new reference, NULL with an exception), for the frames were left to CPython; or *out is NULL and the
 * call has left the trace: run->exit. -1 with an exception. */
int fl_break_run(fl_run *run, fl_break *b, PyObject **out);
/* After a failure behind the last break: the call leaves the trace there. False with an exception. */
bool fl_break_leave(fl_run *run, const char *why);
void fl_run_end(fl_run *run);
/* The modes that stand in the break, which are about to be entered. 0, or -1 with an exception. */
int fl_break_hold_modes(const fl_break *b, fl_modes_held *h);
/* The node of the exceptions that its frames handle or hold. */
const fl_result_node *fl_break_raised(const fl_break *b);
/* The break's frames, of which `frames` are the descriptions: (function, locals, operands). */
void fl_break_states(const fl_break *b, PyObject *const *frames, fl_cpy_state *out);
/* Puts what a branch begins with into values; NULL, or what differs. */
const char *fl_entry_match(const fl_trace *t, const fl_entry *e, PyObject **values);

/* At building: puts what was recorded of the breaks before step `at` into values, and what a branch began with. */
void fl_break_recorded(const fl_trace *t, size_t at, PyObject **values);

PyObject *fl_back_none(void); /* borrowed: stands for NULL in frames */
/* Item i of a container among the arguments that spec describes; borrowed, NULL when it is no longer there. */
PyObject *fl_back_item(const fl_spec *s, PyObject *container, int i);
/* NULL, or why a tensor that unknown code gave cannot be followed. */
const char *fl_back_tensor_why_not(PyObject *tensor);
/* NULL, or what of the arguments is no longer what it was; `inputs` as at the call's begin. */
const char *fl_back_arguments_why_not(const fl_trace *t, PyObject *const *args, size_t n_args, PyObject *kwnames,
                                      PyObject *const *inputs);

/* Compared by value, and held by whoever likes. */
static inline bool fl_back_is_plain(PyObject *o) {
  return PyFloat_CheckExact(o) || PyLong_CheckExact(o) || PyUnicode_CheckExact(o) || PyBytes_CheckExact(o) ||
         PyComplex_CheckExact(o);
}

#endif
