/* Recording the rest of a call that has left its trace, from the frames as they stand there. */
#include "capture/cpython/compat.h"
#include "capture/compiled_call.h"

#include <string.h>

#include "capture/branch.h"
#include "capture/device.h"
#include "capture/eval.h"
#include "capture/modes.h"

static void note_why(fl_site *s, const fl_reason *w) {
  snprintf(s->why, sizeof s->why, "%s%s%s", w->reason ? w->reason : "out of memory",
           w->detail && *w->detail ? ": " : "", w->detail ? w->detail : "");
  s->give_ups++;
}

/* The trace becomes a branch, or the reason why it cannot is noted. */
static void keep(fl_call *k, fl_attempt *a, fl_site *s, fl_trace *root) {
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  a->trace = fl_attempt_refuse_counters(s->branches.data, s->branches.len, a->rec, a->trace);
  a->trace = fl_attempt_refuse_empty(a->rec, a->trace);
  if (!a->trace) {
    if (!fl_attempt_leave_out(k->c, a->rec)) note_why(s, &a->rec->why);
  } else {
    a->trace->root = root;
    fl_trace_retain(a->trace);
    bool built = fl_attempt_build(k, a);
    if (!built || a->trace->unfaithful || !FL_PUSH(&s->branches, a->trace)) {
      bool refused = built && !fl_attempt_refuse_unfaithful(a->rec, a->trace);
      note_why(s, refused ? &a->rec->why : &(fl_reason){0});
      if (refused) a->rec->trace = NULL;
      fl_trace_release(a->trace);
    }
    k->c->extents.moves = 0;
  }
  PyErr_Restore(type, value, tb);
}

static const char *why_not_now(fl_call *k) {
  if (fl_rec_current()) return "part of an outer recording";
  if (!fl_eval_supported()) return fl_eval_why_not();
  if (fl_device_is_capturing()) return "a CUDA graph is being captured";
  return fl_grad_enabled() ? "grad mode is on" : NULL;
}

static PyObject *rest_of_call(void *ctx, fl_rec *r, int *out_native) { return fl_exit_evaluate(ctx, r, out_native); }

/* *kept: the branch that was made (a new reference), or NULL. */
static PyObject *grow(fl_call *k, fl_exit *e, PyObject **args, bool *out_done, fl_trace **kept) {
  fl_compiled *c = k->c;
  const fl_break *b = e->b;
  fl_site *s = b->site;
  fl_trace *root = fl_trace_root(s->t);
  const char *why_not = NULL;
  size_t n_objects, n = fl_exit_arguments(e, args, args + b->n_holes, &n_objects);
  fl_entry entry = {args + b->n_holes, n_objects, e->back};
  fl_attempt a = {.rec = fl_rec_begin(fl_call_recorded(k), args, n, NULL, c->records, &entry, &why_not)};
  s->recordings++;
  root->n_branches++;
  if (k->around && fl_autocast_forget() < 0) PyErr_Clear(); /* casts of weights would be taken for weights */
  if (!a.rec) {
    note_why(s, &(fl_reason){.reason = (char *)(why_not ? why_not : "out of memory")});
    return PyErr_Clear(), NULL;
  }
  a.rec->opaque = &c->opaque;
  *out_done = true;
  fl_attempt_evaluate(&a, rest_of_call, e);
  if (a.result) keep(k, &a, s, root);
  PyObject *result = Py_XNewRef(a.result);
  *kept = a.trace;
  a.trace = NULL;
  fl_attempt_drop(&a);
  return result;
}

PyObject *fl_call_grow(void *ctx, fl_exit *e, bool *out_done) {
  fl_call *k = ctx;
  fl_clock clock;
  PyObject *out = NULL;
  fl_trace *t = NULL;
  if (!fl_site_may_grow(e->b) || why_not_now(k)) return PyErr_Clear(), NULL;
  if (!PyThread_acquire_lock(k->c->lock, NOWAIT_LOCK)) return NULL; /* another thread, or this one, is recording */
  PyObject **args = fl_calloc(2 * (size_t)e->b->n_holes + 1, sizeof *args);
  k->clock = &clock;
  fl_clock_start(&clock, FL_STAGE_record);
  if (args) out = grow(k, e, args, out_done, &t);
  fl_clock_stop(&clock);
  if (t) t->times = clock.times;
  fl_trace_release(t);
  PyThread_release_lock(k->c->lock);
  fl_free(args);
  return out;
}
