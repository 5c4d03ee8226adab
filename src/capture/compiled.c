#include "capture/cpython/compat.h"
#include "capture/compiled.h"

#include <string.h>
#include <time.h>

#include "capture/device.h"
#include "capture/eval.h"
#include "capture/fx.h"
#include "capture/replay_break.h"

/* --- finding a trace --- */

static void count_miss(fl_compiled *c, const char *guard) {
  PyObject *key = PyUnicode_DecodeUTF8(guard, (Py_ssize_t)strlen(guard), "replace");
  PyObject *old = key && PyDict_GET_SIZE(c->misses) < 200 ? PyDict_GetItemWithError(c->misses, key) : NULL;
  PyObject *n = PyLong_FromLongLong(old ? PyLong_AsLongLong(old) + 1 : 1);
  if (key && n && (old || PyDict_GET_SIZE(c->misses) < 200)) PyDict_SetItem(c->misses, key, n);
  Py_XDECREF(key);
  Py_XDECREF(n);
  PyErr_Clear();
}

typedef struct call {
  fl_compiled *c;
  PyObject *const *args;
  size_t nargs;
  PyObject *kwnames;
  fl_torch_state state;
  bool state_known;
  fl_trace *stale; /* its arguments fit, its guards did not */
  bool left_out;   /* what could not be recorded will be a break when recorded again */
  bool wants_grad; /* an argument requires grad while grad mode is on */
  char why[200];
} call;

static int know_state(call *k) {
  if (k->state_known) return 0;
  k->state_known = true;
  return fl_torch_state_read(&k->state);
}

static bool any_requires_grad(const fl_argspec *s) {
  for (int i = 0; i < s->n_inputs; i++)
    if (s->inputs[i].requires_grad) return true;
  return false;
}

/* Tensors that earlier calls left behind, as inputs after the arguments'. Each must be an object of its own. */
static bool find_sources(call *k, const fl_trace *t, PyObject **inputs) {
  size_t n = (size_t)t->args.n_inputs, n_weights = t->weights.list.len;
  for (size_t i = 0; i < t->writes.sources.len; i++, n++) {
    PyObject *o = inputs[n] = fl_source_find(&t->writes.sources.data[i]);
    bool ok = o != NULL;
    for (size_t j = 0; ok && j < n; j++) ok = inputs[j] != o;
    for (size_t j = 0; ok && j < n_weights; j++) ok = t->weights.list.data[j].tensor != o;
    if (ok) continue;
    const char *s =
        PyUnicode_Check(t->writes.sources.data[i].key) ? PyUnicode_AsUTF8(t->writes.sources.data[i].key) : "";
    if (!s) PyErr_Clear();
    snprintf(k->why, sizeof k->why, "state left by a call: %.80s", s ? s : "?");
    return false;
  }
  return true;
}

/* 1 fits, 0 does not, -1 exception. */
static int fits(call *k, fl_trace *t, PyObject **inputs) {
  const char *why = NULL;
  void *data[FL_MAX_INPUTS];
  if (!fl_argspec_match(&t->args, k->args, k->nargs, k->kwnames, inputs, data, &why)) {
    if (why == fl_argspec_other_object) k->c->records = true;
    snprintf(k->why, sizeof k->why, "%s", why);
    return 0;
  }
  if (know_state(k) < 0) return -1;
  if (any_requires_grad(&t->args) && !k->state.inference) {
    int grad = fl_grad_enabled();
    if (grad) return k->wants_grad = grad > 0, grad < 0 ? -1 : 0;
  }
  if ((why = fl_torch_state_why_not(&k->state)) || !fl_torch_state_equal(&k->state, &t->state)) {
    snprintf(k->why, sizeof k->why, "global state: %s", why ? why : "inference mode, default dtype or determinism");
    return 0;
  }
  if (t->cuda_state >= 0 && fl_torch_cuda_state() != t->cuda_state) {
    snprintf(k->why, sizeof k->why, "global state: TF32 or current device of GPUs");
    return 0;
  }
  if (!find_sources(k, t, inputs)) {
    k->stale = t;
    return 0;
  }
  if (fl_guards_check(&t->guards, k->why, sizeof k->why)) {
    if (fl_weights_check(&t->weights)) return 1;
    snprintf(k->why, sizeof k->why, "weight: dtype, sizes, strides or device");
  }
  k->stale = t;
  return 0;
}

static void move_to_front(fl_compiled *c, size_t i) {
  fl_trace *t = c->traces.data[i];
  memmove(c->traces.data + 1, c->traces.data, i * sizeof *c->traces.data);
  c->traces.data[0] = t;
}

/* Retained trace, or NULL. `from` goes on after the last one found. */
static fl_trace *find(call *k, size_t *from, PyObject **inputs) {
  fl_compiled *c = k->c;
  for (size_t i = *from; i < c->traces.len; i++) {
    fl_trace *t = c->traces.data[i];
    k->why[0] = 0;
    fl_trace_retain(t); /* guards may run Python code, which may reset us */
    int fit = fits(k, t, inputs);
    bool still = i < c->traces.len && c->traces.data[i] == t;
    if (fit == 1) {
      if (still) move_to_front(c, i);
      *from = i + 1;
      return t;
    }
    if (k->stale == t && !still) k->stale = NULL;
    fl_trace_release(t);
    if (fit < 0 || k->wants_grad || !still) return NULL;
    count_miss(c, k->why);
  }
  return NULL;
}

fl_trace *fl_compiled_find(fl_compiled *c, PyObject *const *args, size_t nargs, PyObject *kwnames, PyObject **inputs) {
  call k = {.c = c, .args = args, .nargs = nargs, .kwnames = kwnames};
  size_t from = 0;
  fl_trace *t = find(&k, &from, inputs);
  if (t) fl_trace_release(t); /* the list holds it */
  return t;
}

/* --- native calls --- */

static PyObject *under_no_grad(call *k, PyObject *(*fn)(call *)) {
  int grad = k->state.inference ? 0 : fl_grad_enabled();
  if (grad < 0 || (grad && fl_grad_set(false) < 0)) return NULL;
  PyObject *r = fn(k);
  if (!grad) return r;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (fl_grad_set(true) < 0) PyErr_Clear();
  PyErr_Restore(type, value, tb);
  return r;
}

static PyObject *call_target(call *k) { return PyObject_Vectorcall(k->c->target, k->args, k->nargs, k->kwnames); }

static PyObject *native(call *k, const char *reason, bool keep_grad) {
  fl_compiled *c = k->c;
  if (reason != c->native_reason) snprintf(c->native_reason, sizeof c->native_reason, "%s", reason);
  if (c->fallback_error) return PyErr_Format(PyExc_RuntimeError, "framelift: %s", c->native_reason);
  c->native++;
  return keep_grad ? call_target(k) : under_no_grad(k, call_target);
}

static PyObject *native_with_grad(call *k) {
  fl_compiled *c = k->c;
  if (!c->warned && !c->fallback_error) {
    c->warned = true;
    if (PyErr_WarnEx(PyExc_UserWarning,
                     "framelift: an argument requires grad while grad mode is on; this call runs natively "
                     "(compile is for inference)",
                     1) < 0)
      return NULL;
  }
  return native(k, "an argument requires grad while grad mode is on", true);
}

/* A tensor among these that requires grad; what cannot be told does not. */
static bool requires_grad(PyObject *const *items, size_t n, int depth) {
  for (size_t i = 0; i < n && depth < 16; i++) {
    PyObject *o = items[i], *k, *v;
    Py_ssize_t pos = 0;
    if (fl_tensor_check(o)) {
      int rg = fl_tensor_requires_grad(o);
      if (rg < 0) PyErr_Clear();
      if (rg > 0) return true;
    } else if (PyTuple_Check(o) || PyList_Check(o)) {
      if (requires_grad(PySequence_Fast_ITEMS(o), (size_t)PySequence_Fast_GET_SIZE(o), depth + 1)) return true;
    } else {
      PyObject *d = fl_argspec_is_record(o) ? *_PyObject_GetDictPtr(o) : o;
      while (PyDict_Check(d) && PyDict_Next(d, &pos, &k, &v))
        if (requires_grad(&v, 1, depth + 1)) return true;
    }
  }
  return false;
}

/* --- giving up --- */

static void note_give_up(fl_compiled *c, fl_rec *r) {
  const fl_reason *w = &r->why;
  snprintf(c->native_reason, sizeof c->native_reason, "%s%s%s", w->reason ? w->reason : "out of memory",
           w->detail && *w->detail ? ": " : "", w->detail ? w->detail : "");
  fl_give_up g = {.reason = fl_strdup(w->reason ? w->reason : "out of memory"),
                  .detail = fl_strdup(w->detail ? w->detail : ""),
                  .file = w->file ? fl_strdup(w->file) : NULL,
                  .line = w->line,
                  .count = 1,
                  .holder = r->trace};
  fl_guards_release(&g.holder->guards); /* before another thread can find it */
  fl_weights_release(&g.holder->weights);
  if (!FL_PUSH(&c->give_ups, g)) {
    fl_free(g.reason);
    fl_free(g.detail);
    fl_free(g.file);
    return;
  }
  r->trace = NULL;
}

static bool is_opaque(const fl_compiled *c, PyObject *callable) {
  for (size_t i = 0; i < c->opaque.len; i++)
    if (c->opaque.data[i].callable == callable) return true;
  return false;
}

/* What could not be recorded lies in a callable that can be a break of its own: the next call is recorded so. */
static bool leave_out(fl_compiled *c, fl_rec *r) {
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
  snprintf(c->native_reason, sizeof c->native_reason, "%s%s%s", e.reason, *e.detail ? ": " : "", e.detail);
  return true;
}

/* A trace that captured nothing is worth nothing. */
static fl_trace *refuse_empty(fl_rec *r, fl_trace *t) {
  if (!t || t->nodes.len || !t->breaks.len) return t;
  fl_rec_give_up(r, t->breaks.data[0]->reason, t->breaks.data[0]->detail);
  Py_CLEAR(r->why.blame);
  r->trace = t;
  return NULL;
}

static bool gave_up_before(call *k) {
  fl_compiled *c = k->c;
  PyObject *inputs[FL_MAX_INPUTS];
  void *data[FL_MAX_INPUTS];
  const char *why;
  for (size_t i = 0; i < c->give_ups.len; i++) {
    fl_give_up *g = &c->give_ups.data[i];
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
  return f;
}

/* The generators' state; they go on from `set_to` where it is given. */
static PyObject *generator_state(PyObject *set_to) {
  PyObject *out = fl_generators_get();
  if (out && set_to && fl_generators_set(set_to) < 0) Py_CLEAR(out);
  return out;
}

/* Verification runs random operators again: from the state the recording began with, and unseen afterwards. */
static int verify(fl_rec *r, fl_trace *t, PyObject *generator, const fl_build_options *o) {
  PyObject **finals = collect_finals(r, t), *after = NULL;
  if (!finals) return PyErr_NoMemory(), -1;
  int rc = 0;
  if (t->random && !(after = generator_state(generator))) rc = -1;
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  if (rc == 0) rc = fl_trace_verify(t, r->inputs, finals, o);
  clock_gettime(CLOCK_MONOTONIC, &end);
  t->build_ms[3] = (double)(end.tv_sec - start.tv_sec) * 1e3 + (double)(end.tv_nsec - start.tv_nsec) * 1e-6;
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

/* A trace that changes what its own guards rely on fits no second time by itself: a counter, a growing cache. A few
 * states are worth a trace each. */
static fl_trace *refuse_counters(const fl_compiled *c, fl_rec *r, fl_trace *t) {
  const fl_effects *mine = t ? first_writes(t) : NULL;
  for (size_t i = 0; t && i < mine->list.len; i++) {
    const fl_effect *e = &mine->list.data[i];
    int n = 0;
    for (size_t k = 0; e->changes && k < c->traces.len; k++) {
      const fl_effects *w = first_writes(c->traces.data[k]);
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

static void finish(call *k, fl_rec *r, PyObject *result, PyObject *generator) {
  fl_compiled *c = k->c;
  fl_trace *t = refuse_empty(r, refuse_counters(c, r, fl_rec_end(r, result)));
  if (!t) {
    if (!(k->left_out = leave_out(c, r))) note_give_up(c, r);
    return;
  }
  fl_build_options o = {!c->backend_eager, c->verify, c->precision, c->tactic_ms, c->pool, 0};
  bool ok = fl_trace_build(t, &o) && (!c->verify || verify(r, t, generator, &o) == 0);
  ok = ok && (!c->segment_backend || ask_backend(c, r, t) == 0);
  if (PyErr_Occurred()) PyErr_Clear();
  for (size_t i = 0; i < t->breaks.len; i++) Py_CLEAR(t->breaks.data[i]->recorded);
  while (ok && c->traces.len >= FL_MAX_TRACES) evict(c, k->stale);
  ok = ok && FL_PUSH(&c->traces, t);
  if (!ok) {
    fl_rec_give_up(r, "out of memory", "while building");
    r->trace = t;
    note_give_up(c, r);
    return;
  }
  move_to_front(c, c->traces.len - 1);
  c->recorded++;
}

static PyObject *record_inside(call *k, fl_rec *r) {
  fl_compiled *c = k->c;
  int was_native = 0, flag = c->says_compiling ? fl_compiling(true) : 1;
  PyObject *generator = flag < 0 ? NULL : generator_state(NULL), *result = NULL;
  if (!generator || fl_dispatch_push(r->mode) < 0) {
    if (flag == 0) (void)fl_compiling(false);
    Py_XDECREF(generator);
    return NULL;
  }
  r->says_compiling = flag == 0;
  fl_rec_current_set(r);
  result = fl_eval_call(r, c->target, k->args, k->nargs, k->kwnames, &was_native);
  fl_rec_current_set(NULL);
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (fl_dispatch_pop() < 0 || (flag == 0 && fl_compiling(false) < 0)) PyErr_Clear();
  if (result) {
    fl_torch_state after;
    if (fl_torch_state_read(&after) < 0 || fl_grad_enabled() != 0 || !fl_torch_state_equal(&after, &k->state) ||
        fl_torch_state_why_not(&after))
      fl_rec_give_up(r, "torch's global state changed by the call", "");
    PyErr_Clear();
    if (was_native)
      fl_rec_give_up(r, "not evaluated",
                     fl_eval_supported() ? "a profiler, tracer or debugger is attached" : fl_eval_why_not());
    finish(k, r, result, generator);
  }
  Py_DECREF(generator);
  PyErr_Restore(type, value, tb);
  return result;
}

/* It raised on the way that it takes when told that it is being compiled, where eager may not, and all it did can be
 * taken back. Then it has been, and there is no exception any more. */
static bool fails_when_compiled(const call *k, fl_rec *r) {
  PyObject *type, *value, *tb;
  if (!r->trace || r->trace->breaks.len) return false; /* unknown code has run */
  if (!k->c->says_compiling || !r->asked_compiling || r->effects || r->random ||
      !PyErr_ExceptionMatches(PyExc_Exception))
    return false;
  PyErr_Fetch(&type, &value, &tb);
  bool followed = !r->gave_up || r->raised == value;
  if (followed && fl_rec_take_back(r)) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return true;
  }
  PyErr_Restore(type, value, tb);
  return false;
}

/* Libraries go other ways when told that they are being compiled, some of them to other answers: what was recorded so is
 * compared with a plain call, whose answer then is the one given. True when they differ, or the plain call raises: the
 * newest trace is gone. Where a second call would do something a second time, nothing is compared. */
static bool answers_otherwise(call *k, fl_rec *r, PyObject **result) {
  fl_compiled *c = k->c;
  if (!c->says_compiling || !r->asked_compiling || !c->verify || r->effects || r->random || !c->traces.len)
    return false;
  fl_trace *t = c->traces.data[0];
  if (t->writes.list.len || t->breaks.len) return false;
  PyObject *plain = call_target(k);
  bool same = plain && fl_answers_agree(c->pool, c->precision, *result, plain);
  PyErr_Clear();
  Py_SETREF(*result, plain);
  if (same) return false;
  Py_CLEAR(*result);
  memmove(c->traces.data, c->traces.data + 1, (c->traces.len - 1) * sizeof *c->traces.data);
  c->traces.len--;
  c->recorded--;
  fl_trace_release(t);
  return true;
}

static PyObject *record(call *k) {
  fl_compiled *c = k->c;
  const char *why_not = NULL;
  fl_rec *r = fl_rec_begin(c->target, k->args, k->nargs, k->kwnames, c->records, &why_not);
  if (!r) return why_not ? native(k, why_not, false) : NULL;
  int before = c->recorded;
  c->recordings++;
  r->opaque = &c->opaque;
  PyObject *result = record_inside(k, r);
  if (!result && fails_when_compiled(k, r)) {
    fl_rec_free(r);
    c->says_compiling = false;
    return record(k);
  }
  if (result && c->recorded > before && answers_otherwise(k, r, &result)) {
    fl_rec_free(r);
    c->says_compiling = false;
    return record(k);
  }
  if (result && r->gave_up) {
    c->native++;
    if (c->fallback_error && !k->left_out) {
      Py_CLEAR(result);
      PyErr_Format(PyExc_RuntimeError, "framelift: %s", c->native_reason);
    }
  }
  fl_rec_free(r);
  return result;
}

/* --- the call --- */

static PyObject *replay(call *k, fl_trace *t, PyObject **inputs, const char **miss) {
  int grad = t->eager_parts && !k->state.inference ? fl_grad_enabled() : 0;
  if (grad < 0 || (grad > 0 && fl_grad_set(false) < 0)) return NULL;
  fl_call_args args = {k->args, k->nargs, k->kwnames};
  PyObject *out = fl_trace_run(t, inputs, &args, miss, true);
  if (grad > 0) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (fl_grad_set(true) < 0) PyErr_Clear();
    PyErr_Restore(type, value, tb);
  }
  return out;
}

/* A trace's answer; NULL with an exception, or NULL without when none fits. */
static PyObject *try_traces(call *k) {
  PyObject *inputs[FL_MAX_INPUTS];
  size_t from = 0;
  const char *miss;
  fl_trace *t;
  while ((t = find(k, &from, inputs))) {
    PyObject *out = replay(k, t, inputs, &miss);
    bool again = t->writes.list.len && !t->effects && !t->random;
    if (out) {
      t->hits++;
      k->c->replayed++;
    }
    fl_trace_release(t);
    if (out) return out;
    if (PyErr_Occurred()) {
      /* What eager does before it raises is still to be done. */
      if (!again || miss || !PyErr_ExceptionMatches(PyExc_Exception)) return NULL;
      PyErr_Clear();
      return native(k, "an operator raised", false);
    }
    count_miss(k->c, miss ? miss : "?");
  }
  return NULL;
}

static PyObject *record_locked(call *k) {
  fl_compiled *c = k->c;
  if (!PyThread_acquire_lock(c->lock, NOWAIT_LOCK)) {
    Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(c->lock, WAIT_LOCK);
    Py_END_ALLOW_THREADS PyObject *out = try_traces(k); /* another thread may have recorded what we need */
    if (out || PyErr_Occurred()) {
      PyThread_release_lock(c->lock);
      return out;
    }
  }
  PyObject *out = under_no_grad(k, record);
  PyThread_release_lock(c->lock);
  return out;
}

PyObject *fl_compiled_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  fl_compiled *c = (fl_compiled *)self;
  call k = {.c = c, .args = args, .nargs = (size_t)PyVectorcall_NARGS(nargsf), .kwnames = kwnames};
  if (fl_rec_current()) return call_target(&k); /* part of an outer recording */
  c->calls++;
  PyObject *out = try_traces(&k);
  if (out || PyErr_Occurred()) return out;
  if (k.wants_grad) return native_with_grad(&k);
  if (know_state(&k) < 0) return NULL;
  int grad = k.state.inference ? 0 : fl_grad_enabled();
  if (grad < 0) return NULL;
  if (grad && requires_grad(args, k.nargs + (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0), 0))
    return native_with_grad(&k);
  const char *why = fl_torch_state_why_not(&k.state);
  if (why) return native(&k, why, false);
  if (gave_up_before(&k)) return native(&k, c->native_reason, false);
  if (c->traces.len >= FL_MAX_TRACES && !k.stale) return native(&k, "8 traces were recorded and none fits", false);
  if (c->give_ups.len >= 4) return native(&k, c->native_reason, false);
  if (c->recordings >= FL_MAX_RECORDINGS) return native(&k, "32 recordings were made and none fits", false);
  if (!fl_eval_supported()) return native(&k, fl_eval_why_not(), false);
  if (fl_device_is_capturing()) return native(&k, "a CUDA graph is being captured", false);
  return record_locked(&k);
}
