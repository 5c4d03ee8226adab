#include "capture/engine_error.h"
#include "capture/cpython/compat.h"
#include "capture/compiled_call.h"

#include <string.h>

#include "capture/device.h"
#include "capture/eval.h"
#include "capture/later.h"
#include "capture/rebind.h"
#include "capture/branch.h"

/* --- finding a trace --- */

enum { MAX_MISSES = 200 };

static bool is_miss(const fl_miss *m, const char *guard, bool fixed) {
  return (fixed && m->fixed == guard) || !strcmp(m->text, guard);
}

static void count_miss(fl_compiled *c, const char *guard, bool fixed) {
  for (size_t i = 0; i < c->misses.len; i++)
    if (is_miss(&c->misses.data[i], guard, fixed)) {
      c->misses.data[i].count++;
      return;
    }
  fl_miss m = {fixed ? guard : NULL, c->misses.len < MAX_MISSES ? fl_strdup(guard) : NULL, 1};
  if (m.text && !FL_PUSH(&c->misses, m)) fl_free(m.text);
}

static int know_state(fl_call *k) {
  if (k->state_known) return 0;
  k->state_known = true;
  return fl_torch_state_read(&k->state);
}

static bool any_requires_grad(const fl_argspec *s) {
  for (int i = 0; i < s->n_inputs; i++)
    if (s->inputs[i].requires_grad) return true;
  return false;
}

/* As inputs after the arguments'. Each must be an object of its own. */
bool fl_sources_find(const fl_trace *t, PyObject **inputs, char *why, size_t size) {
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
    snprintf(why, size, "state left by a call: %.80s", s ? s : "?");
    return false;
  }
  return true;
}

static bool holds(fl_call *k, fl_trace *t) {
  if (!fl_guards_check(&t->guards, k->why, sizeof k->why)) return false;
  if (fl_weights_check(&t->weights)) return true;
  k->miss = "weight: dtype, sizes, strides or device";
  return false;
}

static bool watch_shared(fl_compiled *c, const fl_trace *t, PyObject **inputs) {
  return fl_inputs_watch_shared(t, inputs, c->traces.data, c->traces.len, &c->extents);
}

/* 1 fits, 0 does not, -1 exception. */
static int fits(fl_call *k, fl_trace *t, PyObject **inputs) {
  const char *why = NULL;
  void *data[FL_MAX_INPUTS];
  if (t->around != k->way) {
    k->miss = "global state: another autocast";
    return 0;
  }
  if (!fl_argspec_match(&t->args, k->args, k->nargs, k->kwnames, inputs, data, &why)) {
    if (why == fl_argspec_other_object) k->c->records = true;
    k->miss = why;
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
  if (t->autocast && fl_autocast_is_nested()) {
    k->miss = "global state: inside an autocast that may keep casts of weights";
    return 0;
  }
  if (t->handles && fl_cpy_handled(PyThreadState_Get())) {
    k->miss = "the caller is handling an exception";
    return 0;
  }
  if (t->cuda_state >= 0 && fl_torch_cuda_state() != t->cuda_state) {
    k->miss = "global state: TF32 or current device of GPUs";
    return 0;
  }
  if (!fl_sources_find(t, inputs, k->why, sizeof k->why)) {
    k->stale = t;
    return 0;
  }
  if (!holds(k, t) && (!fl_trace_rebind(t, inputs) || !holds(k, t))) {
    k->stale = t;
    return 0;
  }
  if (!fl_trace_take_answers(t, inputs)) {
    k->miss = "a cached function's answer is another object";
    return 0;
  }
  if (!t->breaks.len || watch_shared(k->c, t, inputs)) return 1;
  k->miss = "memory: an argument shares it with a weight";
  return 0;
}

void fl_compiled_move_to_front(fl_compiled *c, size_t i) {
  fl_trace *t = c->traces.data[i];
  memmove(c->traces.data + 1, c->traces.data, i * sizeof *c->traces.data);
  c->traces.data[0] = t;
}

/* Retained trace, or NULL. `from` goes on after the last one found. */
static fl_trace *find(fl_call *k, size_t *from, PyObject **inputs) {
  fl_compiled *c = k->c;
  for (size_t i = *from; i < c->traces.len; i++) {
    fl_trace *t = c->traces.data[i];
    k->why[0] = 0;
    k->miss = k->why;
    fl_trace_retain(t); /* guards may run Python code, which may reset us */
    int fit = fits(k, t, inputs);
    bool still = i < c->traces.len && c->traces.data[i] == t;
    if (fit == 1) {
      if (still) fl_compiled_move_to_front(c, i);
      *from = i + 1;
      return t;
    }
    if (k->stale == t && !still) k->stale = NULL;
    fl_trace_release(t);
    if (fit < 0 || k->wants_grad || !still) return NULL;
    count_miss(c, k->miss, k->miss != k->why);
  }
  return NULL;
}

fl_trace *fl_compiled_find(fl_compiled *c, PyObject *const *args, size_t nargs, PyObject *kwnames, PyObject **inputs) {
  fl_call k = {.c = c, .args = args, .nargs = nargs, .kwnames = kwnames};
  size_t from = 0;
  fl_trace *t = find(&k, &from, inputs);
  if (t) fl_trace_release(t); /* the list holds it */
  return t;
}

/* --- native calls --- */

static PyObject *under_no_grad(fl_call *k, PyObject *(*fn)(fl_call *)) {
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

static void put_back_autocast(fl_call *k) {
  if (k->around) fl_around_put_back(k->around);
  Py_CLEAR(k->around);
}

PyObject *fl_call_target(fl_call *k) {
  put_back_autocast(k);
  return PyObject_Vectorcall(k->c->target, k->args, k->nargs, k->kwnames);
}

PyObject *fl_call_native(fl_call *k, const char *reason, bool keep_grad) {
  fl_compiled *c = k->c;
  if (reason != c->native_reason) snprintf(c->native_reason, sizeof c->native_reason, "%s", reason);
  if (c->fallback_error) return PyErr_Format(PyExc_RuntimeError, "framelift: %s", c->native_reason);
  c->native++;
  return keep_grad ? fl_call_target(k) : under_no_grad(k, fl_call_target);
}

static PyObject *native_with_grad(fl_call *k) {
  fl_compiled *c = k->c;
  if (!c->warned && !c->fallback_error) {
    c->warned = true;
    if (PyErr_WarnEx(PyExc_UserWarning,
                     "framelift: an argument requires grad while grad mode is on; this call runs natively "
                     "(compile is for inference)",
                     1) < 0)
      return NULL;
  }
  return fl_call_native(k, "an argument requires grad while grad mode is on", true);
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

/* --- the call --- */

bool fl_compiled_make_ready(fl_compiled *c, fl_trace *t) {
  if (!t->later) return true;
  if (!PyThread_acquire_lock(c->lock, NOWAIT_LOCK)) return false;
  if (t->later) fl_later_verify(t);
  if (t->unfaithful) fl_compiled_refuse(c, t);
  PyThread_release_lock(c->lock);
  fl_compiled_trim(c, 0, NULL);
  return true;
}

/* NULL, or why this call is no trace's. */
static const char *make_ready(fl_call *k, fl_trace *t, bool *engines) {
  *engines = fl_compiled_make_ready(k->c, t);
  if (t->unfaithful) return k->c->native_reason;
  /* Not even the operators have been verified. */
  return *engines || k->c->fallback_error ? NULL : "another thread is verifying the trace";
}

static PyObject *replay(fl_call *k, fl_trace *t, PyObject **inputs, bool engines, const char **miss) {
  int grad = (t->eager_parts || !engines) && !k->state.inference ? fl_grad_enabled() : 0;
  if (grad < 0 || (grad > 0 && fl_grad_set(false) < 0)) return NULL;
  fl_call_args args = {k->args, k->nargs, k->kwnames, fl_call_grow, k};
  PyObject *out = fl_trace_run(t, inputs, &args, miss, engines);
  if (grad > 0) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (fl_grad_set(true) < 0) PyErr_Clear();
    PyErr_Restore(type, value, tb);
  }
  return out;
}

/* A trace's answer; NULL with an exception, or NULL without when none fits. */
static PyObject *try_traces(fl_call *k) {
  PyObject *inputs[FL_MAX_INPUTS];
  size_t from = 0;
  const char *miss;
  bool engines;
  fl_trace *t;
  while ((t = find(k, &from, inputs))) {
    const char *why = make_ready(k, t, &engines);
    if (why) {
      fl_trace_release(t);
      return fl_call_native(k, why, false);
    }
    PyObject *out = replay(k, t, inputs, engines, &miss);
    bool again = !t->effects && !t->random; /* nothing was done yet */
    if (out) {
      t->hits++;
      k->c->replayed++;
    }
    fl_trace_release(t);
    if (out) return out;
    if (PyErr_Occurred()) {
      /* What eager does before it raises is still to be done, and its traceback shows the program's line. */
      if (!again || miss || !fl_error_is_of_program()) return NULL;
      PyErr_Clear();
      return fl_call_native(k, "an operator raised", false);
    }
    count_miss(k->c, miss ? miss : "?", false);
  }
  return NULL;
}

/* A program whose every call is new runs natively after some recordings, but for one call in so many, which costs it little; one
 * that comes back to what it did goes on. */
static bool may_record(const fl_compiled *c) {
  return (uint64_t)c->recordings < FL_FREE_RECORDINGS + (c->replayed + c->declined) / FL_CALLS_PER_RECORDING;
}

static PyObject *record_locked(fl_call *k) {
  fl_compiled *c = k->c;
  if (!PyThread_acquire_lock(c->lock, NOWAIT_LOCK)) {
    Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(c->lock, WAIT_LOCK);
    Py_END_ALLOW_THREADS PyObject *out = try_traces(k); /* another thread may have recorded what we need */
    if (out || PyErr_Occurred()) {
      PyThread_release_lock(c->lock);
      return out;
    }
  }
  PyObject *out = under_no_grad(k, fl_call_record);
  PyThread_release_lock(c->lock);
  return out;
}

static bool wants_grad(const fl_call *k) {
  return requires_grad(k->args, k->nargs + (k->kwnames ? (size_t)PyTuple_GET_SIZE(k->kwnames) : 0), 0);
}

/* Part of an outer recording; one that has given up goes on as plain Python, in which this call runs without grad too. */
static PyObject *call_in_recording(fl_call *k, const fl_rec *outer) {
  return !fl_rec_gave_up(outer) || wants_grad(k) ? fl_call_target(k) : under_no_grad(k, fl_call_target);
}

static PyObject *answer(fl_call *k) {
  fl_compiled *c = k->c;
  PyObject *out = try_traces(k);
  if (out || PyErr_Occurred()) return out;
  if (k->wants_grad) return native_with_grad(k);
  if (know_state(k) < 0) return NULL;
  int grad = k->state.inference ? 0 : fl_grad_enabled();
  if (grad < 0) return NULL;
  if (grad && wants_grad(k)) return native_with_grad(k);
  const char *why = fl_torch_state_why_not(&k->state);
  if (why) return fl_call_native(k, why, false);
  if (fl_call_gave_up_before(k)) return fl_call_native(k, c->native_reason, false);
  if (c->give_ups.len >= 4) return fl_call_native(k, c->native_reason, false);
  if (!fl_eval_supported()) return fl_call_native(k, fl_eval_why_not(), false);
  if (fl_device_is_capturing()) return fl_call_native(k, "a CUDA graph is being captured", false);
  if (!may_record(c)) {
    c->declined++;
    return fl_call_native(k, "too many recordings for the calls that they answered", false);
  }
  return record_locked(k);
}

/* As `answer`, within an autocast of the caller's. Natively where it is on for a device that is not known. */
static PyObject *answer_in_autocast(fl_call *k) {
  PyObject *now = fl_around_now();
  fl_around a = {0};
  if (now) (void)fl_around_find(&k->c->arounds, k->c->target, now, &a);
  if (a.function && fl_around_set_aside(now) == 0) {
    k->around = Py_NewRef(now);
    k->way = a.state;
    k->function = a.function;
    k->state_known = false;
  }
  Py_XDECREF(now);
  PyErr_Clear();
  PyObject *out = answer(k);
  Py_XDECREF(a.function);
  return out;
}

PyObject *fl_compiled_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  fl_compiled *c = (fl_compiled *)self;
  fl_call k = {.c = c, .args = args, .nargs = (size_t)PyVectorcall_NARGS(nargsf), .kwnames = kwnames};
  if (fl_rec_current()) return call_in_recording(&k, fl_rec_current());
  c->calls++;
  if (know_state(&k) < 0) return NULL;
  PyObject *out = k.state.autocast ? answer_in_autocast(&k) : answer(&k);
  put_back_autocast(&k);
  return out;
}
