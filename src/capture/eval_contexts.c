/* Inference mode and autocast while a call is recorded: what it has entered and not left yet. */
#include "capture/cpython/compat.h"

#include <string.h>

#include "capture/eval_impl.h"
#include "capture/argspec.h"
#include "capture/interop.h"
#include "capture/modes.h"
#include "capture/schema.h"

static const char *name_of(PyObject *callable) {
  return PyCFunction_Check(callable) ? ((PyCFunctionObject *)callable)->m_ml->ml_name : "";
}

/* The device whose autocast a setter sets, or that a getter asks for: new reference, or NULL. */
static PyObject *device_of(PyObject *callable, PyObject *const *args, size_t n) {
  const char *name = name_of(callable);
  if (n && PyUnicode_CheckExact(args[0])) return Py_NewRef(args[0]);
  if (strstr(name, "_cpu_")) return PyUnicode_FromString("cpu");
  return !strcmp(name, "set_autocast_enabled") ? PyUnicode_FromString("cuda") : NULL;
}

static int begin(fl_contexts *m) {
  if (m->before) return 0;
  PyObject *none = PyTuple_New(0);
  if (!m->touched) m->touched = PyDict_New();
  if (!m->open) m->open = PyList_New(0);
  if (none && m->touched && m->open) m->before = fl_autocast_read(none);
  Py_XDECREF(none);
  return m->before ? 0 : -1;
}

/* Notes what autocast is on the device before the call changes it. */
static int touch(fl_contexts *m, PyObject *device) {
  int known = PyDict_Contains(m->touched, device);
  if (known) return known < 0 ? -1 : 0;
  PyObject *devices = PyTuple_Pack(1, device), *now = devices ? fl_autocast_read(devices) : NULL;
  int rc = now ? PyDict_SetItem(m->touched, device, PyTuple_GET_ITEM(PyTuple_GET_ITEM(now, 2), 0)) : -1;
  Py_XDECREF(devices);
  Py_XDECREF(now);
  return rc;
}

static PyObject *state_now(const fl_contexts *m) { return fl_autocast_read(m->touched); }

void fl_contexts_will_change(fl_rec *r, PyObject *callable, PyObject *const *args, size_t n, bool keywords) {
  fl_contexts *m = &fl_eval_here->contexts;
  PyObject *device = device_of(callable, args, n);
  m->odd |= keywords || (!device && PyErr_Occurred());
  PyErr_Clear();
  bool sets =
      !strncmp(name_of(callable), "set_autocast_", 13) && strcmp(name_of(callable), "set_autocast_cache_enabled");
  m->odd |= sets && !device;
  int rc = begin(m);
  if (rc == 0 && strstr(name_of(callable), "autocast")) {
    fl_rec_uses_autocast(r);
    if (fl_autocast_nesting(m->before)) fl_rec_give_up(r, "inside an autocast that may keep casts of weights", "");
  }
  if (rc == 0 && sets && device) rc = touch(m, device);
  if (rc < 0) {
    m->odd = true; /* the call itself will raise what is to be raised */
    PyErr_Clear();
  }
  Py_XDECREF(device);
}

static int entered(fl_contexts *m, PyObject *guard) {
  PyObject *state = state_now(m), *weak = state ? PyWeakref_NewRef(guard, NULL) : NULL;
  PyObject *pair = weak ? PyTuple_Pack(2, state, weak) : NULL;
  int rc = pair ? PyList_Append(m->open, pair) : -1;
  Py_XDECREF(state);
  Py_XDECREF(weak);
  Py_XDECREF(pair);
  return rc;
}

static PyObject *guard_at(const fl_contexts *m, Py_ssize_t i) {
  return PyWeakref_GET_OBJECT(PyTuple_GET_ITEM(PyList_GET_ITEM(m->open, i), 1));
}

static int left(fl_contexts *m, PyObject *guard) {
  Py_ssize_t n = PyList_GET_SIZE(m->open);
  if (n && guard_at(m, n - 1) == guard) return PyList_SetSlice(m->open, n - 1, n, NULL);
  for (Py_ssize_t i = 0; i < n; i++) m->odd |= guard_at(m, i) == guard;
  return 0;
}

/* Which devices it is on for now. */
static int note_on(fl_contexts *m) {
  PyObject *now = fl_autocast_now();
  m->on = 0;
  for (int i = 0; now && i < FL_AUTOCAST_DEVICES; i++)
    m->on |= (unsigned)(PyTuple_GET_ITEM(PyTuple_GET_ITEM(PyTuple_GET_ITEM(now, 2), i), 1) == Py_True) << i;
  int rc = now ? 0 : -1;
  Py_XDECREF(now);
  return rc;
}

static bool switches(PyObject *callable) {
  const char *name = name_of(callable);
  return !strncmp(name, "set_autocast_", 13) && strstr(name, "enabled");
}

void fl_contexts_unrecorded(PyObject *callable) {
  if (switches(callable) && note_on(&fl_eval_here->contexts) < 0) PyErr_Clear();
}

unsigned fl_contexts_autocast_on(void) { return fl_eval_here ? fl_eval_here->contexts.on : 0; }

void fl_contexts_changed(fl_rec *r, PyObject *callable, PyObject *const *args, size_t n, PyObject *result) {
  fl_contexts *m = &fl_eval_here->contexts;
  const char *name = name_of(callable);
  int rc = 0;
  if (!m->before) return;
  if (result && fl_inference_is_guard(result)) { /* making it enters it, and __enter__ does nothing more */
    fl_tell(r, fl_rec_fresh(r, result));
    rc = entered(m, result);
  } else if (n && fl_inference_is_guard(args[0]) && !strcmp(name, "__exit__")) {
    rc = left(m, args[0]);
    m->odd |= !result;
  } else if (result && switches(callable)) {
    rc = note_on(m);
  }
  fl_tell(r, rc);
}

/* Whether autocast on a device that was touched (NULL: its cache) is what it was before. */
static bool is_before(const fl_contexts *m, PyObject *device) {
  PyObject *devices = device ? PyTuple_Pack(1, device) : PyTuple_New(0),
           *now = devices ? fl_autocast_read(devices) : NULL;
  PyObject *is = !now ? NULL : device ? PyTuple_GET_ITEM(PyTuple_GET_ITEM(now, 2), 0) : PyTuple_GET_ITEM(now, 1);
  PyObject *was = device ? PyDict_GetItemWithError(m->touched, device) : PyTuple_GET_ITEM(m->before, 1);
  int same = is && was ? PyObject_RichCompareBool(is, was, Py_EQ) : 0;
  Py_XDECREF(devices);
  Py_XDECREF(now);
  PyErr_Clear();
  return same > 0;
}

bool fl_contexts_untouched(PyObject *callable, PyObject *const *args, size_t n) {
  const fl_contexts *m = &fl_eval_here->contexts;
  const char *name = name_of(callable);
  if (!strcmp(name, "is_autocast_cache_enabled")) return !m->before || is_before(m, NULL);
  if ((strcmp(name, "is_autocast_enabled") && strcmp(name, "get_autocast_dtype")) || n != 1) return false;
  if (!PyUnicode_CheckExact(args[0])) return false;
  int known = m->touched ? PyDict_Contains(m->touched, args[0]) : 0;
  if (known < 0) PyErr_Clear();
  return known == 0 || (known > 0 && is_before(m, args[0]));
}

void fl_contexts_weight_written(void) {
  fl_contexts *m = &fl_eval_here->contexts;
  PyObject *now = m->before ? state_now(m) : NULL;
  m->odd |= now && fl_autocast_nesting(now) > 0; /* in an operator autocast counts as off */
  Py_XDECREF(now);
  PyErr_Clear();
}

const char *fl_contexts_why_no_break(const fl_eval_state *st) {
  const fl_contexts *m = &st->contexts;
  bool odd = m->odd;
  for (Py_ssize_t i = 0; m->open && i < PyList_GET_SIZE(m->open); i++) odd |= guard_at(m, i) == Py_None;
  return odd ? "torch's modes cannot be entered again" : NULL;
}

bool fl_contexts_account(const fl_eval_state *st, const fl_torch_state *now, const fl_torch_state *base) {
  fl_torch_state rest = *now;
  const fl_contexts *m = &st->contexts;
  PyObject *autocast = m->before ? state_now(m) : NULL;
  PyErr_Clear();
  if (!m->before) return fl_torch_state_equal(now, base) && !fl_torch_state_why_not(now);
  bool any = autocast && fl_autocast_any(autocast), inference = base->inference, ok = autocast && now->autocast == any;
  Py_XDECREF(autocast);
  if (PyList_GET_SIZE(m->open)) inference = true; /* without it gradients would be on */
  rest.autocast = false;
  ok = ok && now->inference == inference;
  rest.inference = base->inference;
  return ok && fl_torch_state_equal(&rest, base) && !fl_torch_state_why_not(&rest);
}

/* Of one device in a state: borrowed, NULL where it is not told. */
static PyObject *entry_of(PyObject *state, PyObject *device) {
  PyObject *states = PyTuple_GET_ITEM(state, 2);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); i++)
    if (fl_const_equal(PyTuple_GET_ITEM(PyTuple_GET_ITEM(states, i), 0), device)) return PyTuple_GET_ITEM(states, i);
  return NULL;
}

static PyObject *pair_state(const fl_contexts *m, Py_ssize_t i) {
  return PyTuple_GET_ITEM(PyList_GET_ITEM(m->open, i), 0);
}

/* Whether the call has it otherwise than it was before, now or where it entered a mode that stands; device NULL: the cache. */
static int differs(const fl_contexts *m, PyObject *now, PyObject *device, PyObject *was) {
  for (Py_ssize_t i = -1; i < PyList_GET_SIZE(m->open); i++) {
    PyObject *state = i < 0 ? now : pair_state(m, i),
             *is = device ? entry_of(state, device) : PyTuple_GET_ITEM(state, 1);
    int same = is ? PyObject_RichCompareBool(is, was, Py_EQ) : 1;
    if (same <= 0) return same < 0 ? -1 : 1;
  }
  return 0;
}

/* What the call has changed and not changed back: (whether the cache, list of devices); new, or NULL. What unknown code does to the rest
 * stays as it is. */
static PyObject *changed_devices(const fl_contexts *m, PyObject *now, bool *out_cache) {
  PyObject *list = PyList_New(0), *device, *was;
  Py_ssize_t pos = 0;
  int cache = list ? differs(m, now, NULL, PyTuple_GET_ITEM(m->before, 1)) : -1, rc = cache < 0 ? -1 : 0;
  *out_cache = cache > 0;
  while (rc == 0 && PyDict_Next(m->touched, &pos, &device, &was))
    if ((rc = differs(m, now, device, was)) > 0) rc = PyList_Append(list, device);
  if (rc < 0) Py_CLEAR(list);
  return list;
}

/* Of the state, these devices, with the nesting counted from `from`; new reference. */
static PyObject *relative(const fl_contexts *m, PyObject *state, PyObject *devices, bool cache, long *from) {
  long nesting = fl_autocast_nesting(state);
  PyObject *by = PyLong_FromLong(nesting - *from), *states = PyTuple_New(PyList_GET_SIZE(devices)), *out = NULL;
  for (Py_ssize_t i = 0; states && i < PyTuple_GET_SIZE(states); i++) {
    PyObject *entry = entry_of(state, PyList_GET_ITEM(devices, i)); /* touched later: as it was before */
    if (!entry) entry = PyDict_GetItemWithError(m->touched, PyList_GET_ITEM(devices, i));
    PyTuple_SET_ITEM(states, i, Py_XNewRef(entry));
  }
  if (by && states) out = PyTuple_Pack(3, by, cache ? PyTuple_GET_ITEM(state, 1) : Py_None, states);
  Py_XDECREF(by);
  Py_XDECREF(states);
  *from = nesting;
  return out;
}

/* What the touched devices, the nesting and the cache were before: as state_now gives it. */
static PyObject *state_before(const fl_contexts *m) {
  PyObject *states = PyDict_Values(m->touched), *tuple = states ? PyList_AsTuple(states) : NULL;
  PyObject *out = tuple ? PyTuple_Pack(3, PyTuple_GET_ITEM(m->before, 0), PyTuple_GET_ITEM(m->before, 1), tuple) : NULL;
  Py_XDECREF(states);
  Py_XDECREF(tuple);
  return out;
}

PyObject *fl_contexts_now(const fl_eval_state *st) {
  return st->contexts.before ? state_now(&st->contexts) : Py_NewRef(Py_None);
}

const char *fl_contexts_after_break(const fl_eval_state *st, PyObject *before) {
  PyObject *now = before ? fl_contexts_now(st) : NULL;
  int same = now ? PyObject_RichCompareBool(now, before, Py_EQ) : -1;
  /* Casts of weights that unknown code has left in autocast's cache would be taken for weights. */
  bool forgot = !st->contexts.before || fl_autocast_forget() == 0;
  Py_XDECREF(now);
  PyErr_Clear();
  return same > 0 && forgot ? fl_contexts_why_no_break(st) : "torch's global state";
}

PyObject *fl_contexts_items(const fl_eval_state *st) {
  const fl_contexts *m = &st->contexts;
  if (!m->before) return PyTuple_New(0);
  Py_ssize_t n = PyList_GET_SIZE(m->open);
  long nesting = fl_autocast_nesting(m->before);
  bool cache = false;
  PyObject *now = state_now(m), *devices = now ? changed_devices(m, now, &cache) : NULL, *out = NULL;
  bool none = devices && !n && !cache && !PyList_GET_SIZE(devices) && fl_autocast_nesting(now) == nesting;
  if (devices) out = PyTuple_New(none ? 0 : 2 * n + 1);
  bool ok = out != NULL;
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(out); i++) {
    PyObject *item = i % 2 ? Py_NewRef(guard_at(m, i / 2))
                           : relative(m, i < 2 * n ? pair_state(m, i / 2) : now, devices, cache, &nesting);
    ok = item != NULL;
    PyTuple_SET_ITEM(out, i, item);
  }
  Py_XDECREF(now);
  Py_XDECREF(devices);
  if (!ok) Py_CLEAR(out);
  return out;
}

PyObject *fl_contexts_set_aside(const fl_eval_state *st) {
  const fl_contexts *m = &st->contexts;
  PyObject *now = m->before ? state_now(m) : NULL, *before = now ? state_before(m) : NULL;
  if (before && fl_autocast_write(before, 0) < 0) Py_CLEAR(now);
  Py_XDECREF(before);
  PyErr_Clear();
  return now;
}

/* The call's rest is recorded: frames stand with these modes, and this was the state before them. */
static int stand(fl_contexts *m, const fl_modes_held *h) {
  PyObject *states = PyTuple_GET_ITEM(h->before, 2);
  long nesting = fl_autocast_nesting(h->before);
  if (begin(m) < 0) return -1;
  PyObject *cache = PyTuple_GET_ITEM(h->before, 1), *was = cache == Py_None ? PyTuple_GET_ITEM(m->before, 1) : cache;
  PyObject *before = PyTuple_Pack(3, PyTuple_GET_ITEM(h->before, 0), was, PyTuple_GET_ITEM(m->before, 2));
  if (!before) return -1;
  Py_SETREF(m->before, before);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); i++) {
    PyObject *s = PyTuple_GET_ITEM(states, i);
    if (PyDict_SetItem(m->touched, PyTuple_GET_ITEM(s, 0), s) < 0) return -1;
  }
  for (Py_ssize_t i = 0; i + 1 < PyTuple_GET_SIZE(h->items); i += 2) {
    PyObject *s = PyTuple_GET_ITEM(h->items, i), *by, *state, *weak, *pair;
    nesting += fl_autocast_nesting(s);
    by = PyLong_FromLong(nesting);
    state = by ? PyTuple_Pack(3, by, cache == Py_None ? was : PyTuple_GET_ITEM(s, 1), PyTuple_GET_ITEM(s, 2)) : NULL;
    weak = state ? PyWeakref_NewRef(PyTuple_GET_ITEM(h->items, i + 1), NULL) : NULL;
    pair = weak ? PyTuple_Pack(2, state, weak) : NULL;
    int rc = pair ? PyList_Append(m->open, pair) : -1;
    Py_XDECREF(by);
    Py_XDECREF(state);
    Py_XDECREF(weak);
    Py_XDECREF(pair);
    if (rc < 0) return -1;
  }
  return note_on(m);
}

void fl_contexts_stand(fl_rec *r, fl_eval_state *st, const fl_modes_held *h) {
  if (!h->before || !h->items) return;
  st->state_changes++;
  fl_tell(r, stand(&st->contexts, h));
}

void fl_contexts_end(fl_rec *r, fl_eval_state *st) {
  fl_contexts *m = &st->contexts;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (m->before && !fl_rec_gave_up(r)) {
    PyObject *now = state_now(m), *before = now ? state_before(m) : NULL;
    bool same = before && PyObject_RichCompareBool(now, before, Py_EQ) > 0 && !PyList_GET_SIZE(m->open);
    if (!same) fl_rec_give_up(r, "torch's global state changed by the call", "inference mode or autocast");
    Py_XDECREF(now);
    Py_XDECREF(before);
  }
  PyErr_Clear();
  m->on = 0;
  Py_CLEAR(m->open);
  Py_CLEAR(m->touched);
  Py_CLEAR(m->before);
  PyErr_Restore(type, value, tb);
}
