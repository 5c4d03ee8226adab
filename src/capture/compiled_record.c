/* Recording a call: evaluating it, building what is kept. */
#include "capture/cpython/compat.h"
#include "capture/compiled_call.h"

#include <string.h>

#include "capture/apart.h"
#include "capture/branch.h"
#include "capture/eval.h"
#include "capture/modes.h"
#include "capture/fx.h"
#include "capture/later.h"
#include "rt/constants.h"

/* --- giving up --- */

/* True if `holder` has been taken. */
static bool give_up(fl_compiled *c, const fl_reason *w, fl_trace *holder) {
  snprintf(c->native_reason, sizeof c->native_reason, "%s%s%s", w->reason ? w->reason : "out of memory",
           w->detail && *w->detail ? ": " : "", w->detail ? w->detail : "");
  fl_give_up g = {.reason = fl_strdup(w->reason ? w->reason : "out of memory"),
                  .detail = fl_strdup(w->detail ? w->detail : ""),
                  .file = w->file ? fl_strdup(w->file) : NULL,
                  .line = w->line,
                  .count = 1,
                  .holder = holder};
  if (FL_PUSH(&c->give_ups, g)) return true;
  fl_free(g.reason);
  fl_free(g.detail);
  fl_free(g.file);
  return false;
}

/* Of a trace that only tells which arguments are meant. */
static void let_go(fl_trace *t) {
  fl_guards_release(&t->guards);
  fl_weights_release(&t->weights);
  for (size_t i = 0; i < t->nodes.len; i++) fl_tnode_forget(&t->nodes.data[i]);
  for (size_t i = 0; i < t->steps.len; i++) {
    fl_segment_destroy(t->steps.data[i].segment);
    t->steps.data[i].segment = NULL;
  }
}

static void note_give_up(fl_compiled *c, fl_rec *r) {
  let_go(r->trace); /* before another thread can find it */
  if (give_up(c, &r->why, r->trace)) r->trace = NULL;
}

static fl_reason why_unfaithful(const fl_trace *t) {
  if (t->unfaithful_at >= t->nodes.len) return (fl_reason){.reason = (char *)t->unfaithful};
  const fl_tnode *n = &t->nodes.data[t->unfaithful_at];
  return (fl_reason){(char *)t->unfaithful, (char *)n->schema->name, (char *)n->file, n->line, NULL};
}

fl_trace *fl_attempt_refuse_unfaithful(fl_rec *r, fl_trace *t) {
  if (!t->unfaithful) return t;
  const fl_reason w = why_unfaithful(t);
  r->gave_up = false; /* a trace that ends before its call has said so */
  fl_rec_give_up(r, w.reason, w.detail);
  fl_free(r->why.file);
  r->why.file = w.file ? fl_strdup(w.file) : NULL;
  r->why.line = w.line;
  Py_CLEAR(r->why.blame);
  r->trace = t;
  return NULL;
}

void fl_compiled_refuse(fl_compiled *c, fl_trace *t) {
  const fl_reason w = why_unfaithful(t);
  for (size_t i = 0; i < c->traces.len; i++) {
    if (c->traces.data[i] != t) continue;
    c->traces.len--;
    memmove(c->traces.data + i, c->traces.data + i + 1, (c->traces.len - i) * sizeof *c->traces.data);
    if (!t->running) let_go(t);
    if (!give_up(c, &w, t)) fl_trace_release(t);
    return;
  }
}

static bool is_opaque(const fl_compiled *c, PyObject *callable) {
  for (size_t i = 0; i < c->opaque.len; i++)
    if (c->opaque.data[i].callable == callable) return true;
  return false;
}

bool fl_attempt_leave_out(fl_compiled *c, fl_rec *r) {
  const fl_reason *w = &r->why;
  if (!w->blame || c->opaque.len >= FL_MAX_OPAQUE || is_opaque(c, w->blame)) return false;
  char detail[300];
  PyObject *name = PyObject_GetAttrString(w->blame, "__qualname__");
  const char *s = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : Py_TYPE(w->blame)->tp_name;
  snprintf(detail, sizeof detail, "%.80s: %.200s", s ? s : "?", w->detail ? w->detail : "");
  Py_XDECREF(name);
  PyErr_Clear();
  fl_opaque_entry e = {w->blame, fl_strdup(w->reason ? w->reason : ""), fl_strdup(detail)};
  if (!e.reason || !e.detail || !FL_PUSH(&c->opaque, e)) {
    fl_free(e.reason);
    fl_free(e.detail);
    return false;
  }
  Py_INCREF(e.callable);
  return true;
}

fl_trace *fl_attempt_refuse_empty(fl_rec *r, fl_trace *t) {
  if (!t || t->nodes.len || !t->breaks.len) return t;
  fl_rec_give_up(r, t->breaks.data[0]->reason, t->breaks.data[0]->detail);
  Py_CLEAR(r->why.blame);
  r->trace = t;
  return NULL;
}

bool fl_call_gave_up_before(fl_call *k) {
  fl_compiled *c = k->c;
  PyObject *inputs[FL_MAX_INPUTS];
  void *data[FL_MAX_INPUTS];
  const char *why;
  for (size_t i = 0; i < c->give_ups.len; i++) {
    fl_give_up *g = &c->give_ups.data[i];
    if (g->holder->around != k->way) continue;
    if (!fl_argspec_match(&g->holder->args, k->args, k->nargs, k->kwnames, inputs, data, &why)) continue;
    g->count++;
    snprintf(c->native_reason, sizeof c->native_reason, "%s%s%s", g->reason, *g->detail ? ": " : "", g->detail);
    return true;
  }
  return false;
}

/* --- recording --- */

static PyObject **collect_finals(fl_rec *r, fl_trace *t) {
  PyObject **f = fl_calloc(t->values.len + 1, sizeof *f);
  for (size_t i = 0; f && i < t->result.nodes.len; i++) {
    const fl_result_node *n = &t->result.nodes.data[i];
    if (n->kind != FL_RESULT_VALUE || t->values.data[n->index].kind != FL_TVAL_RESULT) continue;
    for (size_t k = r->live.len; k-- > 0;)
      if (r->live.data[k].value == n->index && PyWeakref_GET_OBJECT(r->live.data[k].weak) != Py_None) {
        f[n->index] = Py_NewRef(PyWeakref_GET_OBJECT(r->live.data[k].weak));
        break;
      }
  }
  for (size_t i = 0; f && i < r->finals.len; i++)
    if (!f[r->finals.data[i].value]) f[r->finals.data[i].value] = Py_NewRef(r->finals.data[i].tensor);
  return f;
}

/* The generators' state; they go on from `set_to` where it is given. */
static PyObject *generator_state(PyObject *set_to) {
  PyObject *out = fl_generators_get();
  if (out && set_to && fl_generators_set(set_to) < 0) Py_CLEAR(out);
  return out;
}

/* Verification runs random operators again: from the state the recording began with, and unseen afterwards. */
static int verify(fl_rec *r, fl_trace *t, PyObject *generator, const fl_build_options *o, bool may_wait) {
  PyObject **finals = collect_finals(r, t), *after = NULL;
  if (!finals) return PyErr_NoMemory(), -1;
  int rc = 0;
  if (t->random && !(after = generator_state(generator))) rc = -1;
  fl_stage before = fl_stage_enter(FL_STAGE_verify);
  if (rc == 0 && !(may_wait && fl_later_take(t, r->inputs, finals, o))) rc = fl_trace_verify(t, r->inputs, finals, o);
  fl_stage_enter(before);
  if (after) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyObject *x = generator_state(after);
    Py_XDECREF(x);
    PyErr_Clear();
    PyErr_Restore(type, value, tb);
  }
  Py_XDECREF(after);
  for (size_t i = 0; i < t->values.len; i++) Py_XDECREF(finals[i]);
  fl_free(finals);
  return rc;
}

/* Backends may draw random numbers, and so do random operators on the way to a segment. */
static int ask_backend(fl_compiled *c, fl_rec *r, fl_trace *t) {
  PyObject *before = generator_state(NULL);
  int rc = before ? fl_fx_build(t, c->segment_backend, r->inputs) : -1;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  PyObject *x = before ? generator_state(before) : NULL;
  Py_XDECREF(x);
  Py_XDECREF(before);
  PyErr_Clear();
  PyErr_Restore(type, value, tb);
  return rc;
}

static bool same_place(const fl_effect *a, const fl_effect *b) {
  return b->changes && a->kind == b->kind && a->obj == b->obj && (a->key == b->key || fl_const_equal(a->key, b->key));
}

/* Those of the first stretch, whose guards are checked at entry. */
static const fl_effects *first_writes(const fl_trace *t) {
  return t->breaks.len ? &t->breaks.data[0]->writes : &t->writes;
}

fl_trace *fl_attempt_refuse_counters(fl_trace *const *others, size_t n_others, fl_rec *r, fl_trace *t) {
  const fl_effects *mine = t ? first_writes(t) : NULL;
  for (size_t i = 0; t && i < mine->list.len; i++) {
    const fl_effect *e = &mine->list.data[i];
    int n = 0;
    for (size_t k = 0; e->changes && k < n_others; k++) {
      const fl_effects *w = first_writes(others[k]);
      for (size_t j = 0; j < w->list.len; j++) n += same_place(e, &w->list.data[j]);
    }
    if (n < FL_MAX_STATES) continue;
    char detail[160];
    const char *s = e->key && PyUnicode_Check(e->key) ? PyUnicode_AsUTF8(e->key) : "";
    if (!s) PyErr_Clear();
    snprintf(detail, sizeof detail, "%.60s %.80s", Py_TYPE(e->obj)->tp_name, s ? s : "");
    fl_rec_give_up(r, "each call changes what the next one reads", detail);
    r->trace = t;
    return NULL;
  }
  return t;
}

/* Makes room: this trace goes, or the one that was used longest ago. Releasing may run Python code, and other threads: last. */
static void evict(fl_compiled *c, const fl_trace *stale) {
  size_t at = 0;
  while (at + 1 < c->traces.len && c->traces.data[at] != stale) at++;
  fl_trace *gone = c->traces.data[at];
  c->traces.len--;
  memmove(c->traces.data + at, c->traces.data + at + 1, (c->traces.len - at) * sizeof *c->traces.data);
  fl_trace_release(gone);
}

/* Beside what the newest one makes of the weights, which is there for any number of traces. */
static size_t bytes_held(const fl_compiled *c) {
  const uint64_t report = fl_constants_report();
  size_t bytes = 0;
  for (size_t i = 0; i < c->traces.len; i++) bytes += fl_trace_bytes(c->traces.data[i], report, i > 0);
  return bytes;
}

void fl_compiled_trim(fl_compiled *c, size_t room, const fl_trace *stale) {
  while (c->traces.len + room > FL_MAX_TRACES) evict(c, stale);
  while (c->traces.len + room > FL_MIN_TRACES && bytes_held(c) > FL_TRACES_BYTES) evict(c, stale);
}

/* --- attempts --- */

typedef fl_attempt attempt;

void fl_attempt_drop(fl_attempt *a) {
  fl_trace_release(a->trace);
  if (a->rec) fl_rec_free(a->rec);
  Py_CLEAR(a->result);
  Py_CLEAR(a->generator);
  *a = (attempt){0};
}

/* What of torch's state a recording must find again as it was. */
static void check_state(fl_rec *r) {
  fl_torch_state after;
  if (fl_torch_state_read(&after) < 0 || fl_grad_enabled() != 0 || !fl_torch_state_equal(&after, &r->trace->state) ||
      fl_torch_state_why_not(&after))
    fl_rec_give_up(r, "torch's global state changed by the call", "");
  PyErr_Clear();
}

void fl_attempt_evaluate(fl_attempt *a, fl_attempt_fn call, void *ctx) {
  fl_rec *r = a->rec;
  int was_native = 0;
  a->generator = generator_state(NULL);
  if (!a->generator || fl_dispatch_push(r->mode) < 0) return;
  fl_rec_current_set(r);
  a->result = call(ctx, r, &was_native);
  fl_rec_current_set(NULL);
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (fl_dispatch_pop() < 0) PyErr_Clear();
  if (a->result) {
    check_state(r);
    if (was_native)
      fl_rec_give_up(r, "not evaluated",
                     fl_eval_supported() ? "a profiler, tracer or debugger is attached" : fl_eval_why_not());
    a->trace = fl_rec_end(r, a->result);
  }
  PyErr_Restore(type, value, tb);
}

static PyObject *whole_call(void *ctx, fl_rec *r, int *out_native) {
  const fl_call *k = ctx;
  return fl_eval_call(r, fl_call_recorded(k), k->args, k->nargs, k->kwnames, out_native);
}

/* The call may write to its arguments in ways that count no version: weights of earlier traces that lie there are watched. */
static void watch_arguments(const fl_compiled *c, const fl_rec *r) {
  for (size_t i = 0; i < r->live.len; i++) {
    PyObject *tensor = PyWeakref_GET_OBJECT(r->live.data[i].weak);
    if (tensor != Py_None) (void)fl_tensor_watch_shared(tensor, c->traces.data, c->traces.len);
  }
}

/* 1, with the call evaluated; 0 when it cannot be recorded, and *why_not says why; -1 with an exception, nothing done. */
static int try(fl_call *k, attempt *a, const char **why_not) {
  *a = (attempt){0};
  if (k->around && fl_autocast_forget() < 0) return -1; /* casts of weights would be taken for weights */
  a->rec = fl_rec_begin(fl_call_recorded(k), k->args, k->nargs, k->kwnames, k->c->records, NULL, why_not);
  if (!a->rec) return *why_not ? 0 : -1;
  a->rec->opaque = &k->c->opaque;
  a->rec->trace->around = k->way;
  watch_arguments(k->c, a->rec);
  fl_attempt_evaluate(a, whole_call, k);
  return 1;
}

/* --- what is kept --- */

enum { MOST_TACTIC_MS = 200 };

/* As asked for; else what does not make the first call much longer. */
static double tactic_ms(const fl_call *k) {
  const double *ms = k->clock->times.ms, share = 0.1 * ms[FL_STAGE_record];
  if (k->c->tactic_ms >= 0) return k->c->tactic_ms;
  return share < MOST_TACTIC_MS ? share : MOST_TACTIC_MS;
}

bool fl_attempt_build(fl_call *k, fl_attempt *a) {
  fl_compiled *c = k->c;
  fl_trace *t = a->trace;
  fl_stage before = fl_stage_enter(FL_STAGE_lower);
  fl_build_options o = {!c->backend_eager, c->verify, c->precision, tactic_ms(k), c->pool, a->generator, 0};
  fl_family_join(c->family, &t->weights);
  bool ok = fl_trace_build(t, &o) && (!c->verify || verify(a->rec, t, a->generator, &o, !c->segment_backend) == 0);
  if (c->segment_backend) fl_stage_enter(FL_STAGE_backend);
  ok = ok && (!c->segment_backend || t->unfaithful || ask_backend(c, a->rec, t) == 0);
  fl_stage_enter(before);
  PyErr_Clear();
  for (size_t i = 0; i < t->breaks.len; i++) Py_CLEAR(t->breaks.data[i]->recorded);
  for (size_t i = 0; i < t->nodes.len; i++) fl_tnode_forget(&t->nodes.data[i]);
  Py_CLEAR(t->entered);
  return ok && fl_sites_find(t) && fl_weights_watch_alike(t);
}

static bool add_trace(fl_call *k, fl_trace *t) {
  fl_compiled *c = k->c;
  fl_compiled_trim(c, 1, k->stale);
  if (!FL_PUSH(&c->traces, t)) return false;
  fl_trace_retain(t);
  c->extents.moves = 0;
  fl_compiled_move_to_front(c, c->traces.len - 1);
  c->recorded++;
  return true;
}

/* The trace becomes the callable's newest; or the reason why it cannot is noted. */
static void keep(fl_call *k, attempt *a) {
  fl_compiled *c = k->c;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  a->trace = fl_attempt_refuse_counters(c->traces.data, c->traces.len, a->rec, a->trace);
  a->trace = fl_attempt_refuse_empty(a->rec, a->trace);
  if (!a->trace) {
    k->put_off = fl_attempt_leave_out(c, a->rec);
    if (k->put_off) {
      const fl_opaque_entry *e = &c->opaque.data[c->opaque.len - 1];
      snprintf(c->native_reason, sizeof c->native_reason, "%s%s%s", e->reason, *e->detail ? ": " : "", e->detail);
    } else
      note_give_up(c, a->rec);
  } else if (fl_attempt_build(k, a)) {
    a->trace = fl_attempt_refuse_unfaithful(a->rec, a->trace);
    if (a->trace)
      (void)add_trace(k, a->trace);
    else
      note_give_up(c, a->rec);
  } else {
    fl_rec_give_up(a->rec, "out of memory", "while building");
    a->rec->trace = a->trace;
    a->trace = NULL;
    note_give_up(c, a->rec);
  }
  PyErr_Restore(type, value, tb);
}

/* The answer, or NULL with an exception. *kept: the trace that was made (a new reference), or NULL. */
static PyObject *record(fl_call *k, fl_trace **kept) {
  fl_compiled *c = k->c;
  attempt a;
  const char *why_not = NULL;
  int tried = try(k, &a, &why_not);
  if (tried <= 0) return tried < 0 ? NULL : fl_call_native(k, why_not, false);
  if (a.result) keep(k, &a);
  bool native = a.result && (!a.trace || k->put_off);
  PyObject *result = Py_XNewRef(a.result);
  if (!native && a.trace) {
    fl_trace_retain(a.trace);
    *kept = a.trace;
  }
  fl_attempt_drop(&a);
  c->native += native;
  if (native && c->fallback_error && !k->put_off) {
    Py_CLEAR(result);
    PyErr_Format(PyExc_RuntimeError, "framelift: %s", c->native_reason);
  }
  return result;
}

PyObject *fl_call_record(fl_call *k) {
  fl_clock clock;
  fl_trace *t = NULL;
  k->c->recordings++;
  k->clock = &clock;
  fl_clock_start(&clock, FL_STAGE_record);
  PyObject *result = record(k, &t);
  fl_clock_stop(&clock);
  if (t) t->times = clock.times;
  fl_trace_release(t);
  return result;
}
