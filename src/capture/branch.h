/* Side exits: a call that leaves its trace at a break goes on there, along a branch that was recorded from there before,
 * or it is recorded now, or CPython runs it to its end. */
#ifndef FL_CAPTURE_BRANCH_H
#define FL_CAPTURE_BRANCH_H

#include "capture/rec.h"
#include "capture/replay_break.h"

#define FL_MAX_BRANCHES       8  /* recorded from breaks that stand alike */
#define FL_MAX_ALL_BRANCHES   32 /* recorded below one trace */
#define FL_MAX_BRANCH_GIVE_UP 2  /* recordings from breaks that stand alike of which nothing came */

/* A call between two traces: it has left one at a break, and has not gone on. */
typedef struct fl_exit {
  fl_trace *t;
  fl_break *b;           /* NULL: there is no exit */
  PyObject **holes;      /* what the frames hold of the call's own: owned, b->n_holes */
  PyObject *back;        /* what unknown code gave; owned */
  bool native;           /* CPython runs the rest */
  fl_raised_held raised; /* made for them */
  fl_modes_held modes;   /* entered for frames that are made */
} fl_exit;

/* Records the rest of a call, which is then done: its answer, or NULL with an exception. *out_done false: nothing was
 * done, since it cannot be recorded now. */
typedef PyObject *(*fl_grow_fn)(void *ctx, fl_exit *e, bool *out_done);

/* Notes what its frames hold. False when out of memory. */
bool fl_break_describe(fl_trace *t, fl_break *b);
/* Whether frames stand alike in two breaks that are described, of t and of u: 1, 0, or -1 when out of memory. */
int fl_break_alike(const fl_trace *t, const fl_break *a, const fl_trace *u, const fl_break *b);
/* Once a trace or branch is kept: finds or makes the site of each break. False when out of memory. */
bool fl_sites_find(fl_trace *t);
bool fl_site_may_grow(const fl_break *b); /* another branch may be recorded from here */
/* A call that leaves here may go another way than natively. */
bool fl_site_is_open(const fl_break *b);

/* Makes an exit of the run's last break, whose answer it takes. False with MemoryError. */
bool fl_exit_take(fl_exit *e, fl_run *run, fl_break *b);
void fl_exit_drop(fl_exit *e);
/* The rest of the call; takes *e, and leaves another exit there when the branch was left too (then NULL without an
 * exception). New reference, or NULL with an exception. */
PyObject *fl_exit_go_on(fl_exit *e, const fl_call_args *call, bool engines);
/* Makes the frames and runs them to their end, by `run` (NULL: CPython). */
PyObject *fl_exit_run(fl_exit *e, fl_cpy_run_fn run, void *ctx,
                      void (*standing)(void *ctx, fl_cpy_state *frames, int n), fl_result_made_fn made);

/* A branch's arguments are the holes of which something is known; returns how many, with the others in `objects`. */
size_t fl_exit_arguments(const fl_exit *e, PyObject **args, PyObject **objects, size_t *n_objects);

/* fl_exit_run by the evaluator, reporting to `r`; *out_native: that cannot be done, and CPython ran the frames. */
PyObject *fl_exit_evaluate(fl_exit *e, fl_rec *r, int *out_native);

/* compiled.c: tensors that earlier calls left behind. */
bool fl_sources_find(const fl_trace *t, PyObject **inputs, char *why, size_t size);

#endif
