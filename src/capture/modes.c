#include "capture/modes.h"

#include "capture/interop.h"
#include "capture/peek.h"

static struct {
  PyObject *guard, *enter, *exit, *is_inference, *inference_on;
  PyObject *enabled, *dtype, *set_enabled, *set_dtype, *cache, *set_cache, *deeper, *higher, *clear;
} M;

static bool ready(void) {
  static const struct {
    PyObject **to;
    const char *from, *name;
  } table[] = {
      {&M.inference_on, "torch", "is_inference_mode_enabled"},
      {&M.enabled, "torch", "is_autocast_enabled"},
      {&M.dtype, "torch", "get_autocast_dtype"},
      {&M.set_enabled, "torch", "set_autocast_enabled"},
      {&M.set_dtype, "torch", "set_autocast_dtype"},
      {&M.cache, "torch", "is_autocast_cache_enabled"},
      {&M.set_cache, "torch", "set_autocast_cache_enabled"},
      {&M.deeper, "torch", "autocast_increment_nesting"},
      {&M.higher, "torch", "autocast_decrement_nesting"},
      {&M.clear, "torch", "clear_autocast_cache"},
      {&M.guard, "torch._C", "_InferenceMode"},
  };
  if (M.enter) return true;
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    PyObject *module = PyImport_ImportModule(table[i].from);
    if (module) Py_XSETREF(*table[i].to, PyObject_GetAttrString(module, table[i].name));
    Py_XDECREF(module);
    if (PyErr_Occurred()) return false;
  }
  PyObject *module = PyImport_ImportModule("torch._C");
  PyObject *base = module ? PyObject_GetAttrString(module, "TensorBase") : NULL;
  if (base) M.is_inference = PyObject_GetAttrString(base, "is_inference");
  Py_XDECREF(base);
  Py_XDECREF(module);
  if (M.is_inference) M.exit = PyUnicode_InternFromString("__exit__");
  if (M.exit) M.enter = PyUnicode_InternFromString("__enter__");
  return M.enter != NULL;
}

static int is_true(PyObject *answer) { /* takes */
  int truth = answer ? PyObject_IsTrue(answer) : -1;
  Py_XDECREF(answer);
  return truth;
}

static int done(PyObject *answer) { /* takes */
  Py_XDECREF(answer);
  return answer ? 0 : -1;
}

/* --- inference mode --- */

int fl_inference_enabled(void) {
  int on = fl_peek_inference();
  if (on >= 0) return on;
  return ready() ? is_true(PyObject_CallNoArgs(M.inference_on)) : -1;
}

int fl_tensor_is_inference(PyObject *tensor) {
  return ready() ? is_true(PyObject_CallOneArg(M.is_inference, tensor)) : -1;
}

bool fl_inference_is_guard(PyObject *o) { return ready() ? (PyObject *)Py_TYPE(o) == M.guard : (PyErr_Clear(), false); }

static void leave_guard(PyObject *guard) {
  if (done(PyObject_CallMethodObjArgs(guard, M.exit, Py_None, Py_None, Py_None, NULL)) < 0) PyErr_Clear();
}

PyObject *fl_inference_guard(bool on, bool open) {
  PyObject *guard = ready() ? PyObject_CallOneArg(M.guard, on ? Py_True : Py_False) : NULL;
  if (guard && done(PyObject_CallMethodNoArgs(guard, M.enter)) < 0) Py_CLEAR(guard);
  if (guard && !open) leave_guard(guard);
  return guard;
}

bool fl_inference_begin(bool on, PyObject **out_guard) {
  *out_guard = NULL;
  int now = fl_inference_enabled();
  if (now < 0 || now == on) return now >= 0;
  if (!(*out_guard = fl_inference_guard(on, true))) return false;
  if (on || fl_grad_set(false) == 0) return true; /* out of inference mode gradients are on */
  fl_inference_end(*out_guard);
  return false;
}

void fl_inference_end(PyObject *guard) {
  PyObject *type, *value, *tb;
  if (!guard) return;
  PyErr_Fetch(&type, &value, &tb);
  leave_guard(guard);
  Py_DECREF(guard);
  PyErr_Restore(type, value, tb);
}

/* --- autocast --- */

static PyObject *device_state(PyObject *device) {
  PyObject *on = PyObject_CallOneArg(M.enabled, device);
  PyObject *dtype = on ? PyObject_CallOneArg(M.dtype, device) : NULL;
  PyObject *out = dtype ? PyTuple_Pack(3, device, on, dtype) : NULL;
  Py_XDECREF(on);
  Py_XDECREF(dtype);
  return out;
}

/* It is told by changing it alone. */
static PyObject *nesting_now(void) {
  PyObject *deeper = PyObject_CallNoArgs(M.deeper);
  if (done(deeper) < 0) return NULL;
  return PyObject_CallNoArgs(M.higher);
}

bool fl_autocast_is_nested(void) {
  PyObject *nesting = ready() ? nesting_now() : NULL;
  bool nested = !nesting || PyLong_AsLong(nesting) != 0;
  Py_XDECREF(nesting);
  PyErr_Clear();
  return nested;
}

PyObject *fl_autocast_read(PyObject *devices) {
  PyObject *names = ready() ? PySequence_Tuple(devices) : NULL, *states = NULL, *nesting = NULL, *cache = NULL;
  bool ok = names && (states = PyTuple_New(PyTuple_GET_SIZE(names)));
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(names); i++) {
    PyObject *s = device_state(PyTuple_GET_ITEM(names, i));
    ok = s != NULL;
    PyTuple_SET_ITEM(states, i, s);
  }
  ok = ok && (nesting = nesting_now()) && (cache = PyObject_CallNoArgs(M.cache));
  PyObject *out = ok ? PyTuple_Pack(3, nesting, cache, states) : NULL;
  Py_XDECREF(names);
  Py_XDECREF(states);
  Py_XDECREF(nesting);
  Py_XDECREF(cache);
  return out;
}

PyObject *fl_autocast_now(void) {
  static PyObject *devices;
  if (!devices) devices = Py_BuildValue("(ss)", "cuda", "cpu");
  return devices ? fl_autocast_read(devices) : NULL;
}

static PyObject *states_of(PyObject *state) { return PyTuple_GET_ITEM(state, 2); }

PyObject *fl_autocast_devices(PyObject *state) {
  PyObject *states = states_of(state), *names = PyTuple_New(PyTuple_GET_SIZE(states));
  for (Py_ssize_t i = 0; names && i < PyTuple_GET_SIZE(states); i++)
    PyTuple_SET_ITEM(names, i, Py_NewRef(PyTuple_GET_ITEM(PyTuple_GET_ITEM(states, i), 0)));
  return names;
}

bool fl_autocast_any(PyObject *state) {
  PyObject *states = states_of(state);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); i++)
    if (PyTuple_GET_ITEM(PyTuple_GET_ITEM(states, i), 1) == Py_True) return true;
  return false;
}

/* `forget`: as when autocast is left, the casts go with the outermost. */
static int nest(long by, bool forget) {
  for (; by > 0; by--)
    if (done(PyObject_CallNoArgs(M.deeper)) < 0) return -1;
  for (; by < 0; by++) {
    PyObject *now = PyObject_CallNoArgs(M.higher);
    long left = now ? PyLong_AsLong(now) : -1;
    if (done(now) < 0) return -1;
    if (forget && left == 0 && done(PyObject_CallNoArgs(M.clear)) < 0) return -1;
  }
  return 0;
}

int fl_autocast_write(PyObject *state, long nesting) {
  PyObject *states = states_of(state);
  if (!ready()) return -1;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); i++) {
    PyObject *s = PyTuple_GET_ITEM(states, i), *device = PyTuple_GET_ITEM(s, 0);
    if (done(PyObject_CallFunctionObjArgs(M.set_enabled, device, PyTuple_GET_ITEM(s, 1), NULL)) < 0 ||
        done(PyObject_CallFunctionObjArgs(M.set_dtype, device, PyTuple_GET_ITEM(s, 2), NULL)) < 0)
      return -1;
  }
  PyObject *cache = PyTuple_GET_ITEM(state, 1);
  if (cache != Py_None && done(PyObject_CallOneArg(M.set_cache, cache)) < 0) return -1;
  return nest(nesting, true);
}

int fl_autocast_switch(PyObject *state, bool on) {
  PyObject *states = states_of(state);
  if (!ready()) return -1;
  PyObject *now = nesting_now();
  long want = on ? fl_autocast_nesting(state) : 0, is = now ? PyLong_AsLong(now) : 0;
  int rc = done(now) < 0 ? -1 : nest(want - is, false);
  for (Py_ssize_t i = 0; rc == 0 && i < PyTuple_GET_SIZE(states); i++) {
    PyObject *s = PyTuple_GET_ITEM(states, i);
    if (PyTuple_GET_ITEM(s, 1) != Py_True) continue;
    rc = done(PyObject_CallFunctionObjArgs(M.set_enabled, PyTuple_GET_ITEM(s, 0), on ? Py_True : Py_False, NULL));
  }
  return rc;
}

int fl_autocast_forget(void) { return ready() ? done(PyObject_CallNoArgs(M.clear)) : -1; }

void fl_autocast_set_again(PyObject *state) {
  PyObject *type, *value, *tb;
  if (!state) return;
  PyErr_Fetch(&type, &value, &tb);
  if (fl_autocast_write(state, 0) < 0) PyErr_Clear();
  Py_DECREF(state);
  PyErr_Restore(type, value, tb);
}

/* --- modes that a replay has entered --- */

int fl_modes_hold(fl_modes_held *h, PyObject *last) {
  PyObject *devices = fl_autocast_devices(last);
  PyObject *now = devices ? fl_autocast_read(devices) : NULL, *none = Py_None;
  if (now && PyTuple_GET_ITEM(last, 1) == Py_None)
    Py_SETREF(now, PyTuple_Pack(3, PyTuple_GET_ITEM(now, 0), none, PyTuple_GET_ITEM(now, 2)));
  *h = (fl_modes_held){.before = now};
  Py_XDECREF(devices);
  return now ? 0 : -1;
}

void fl_modes_pass_on(fl_modes_held *h) {
  Py_CLEAR(h->items);
  Py_CLEAR(h->before);
}

void fl_modes_leave(fl_modes_held *h) {
  PyObject *type, *value, *tb;
  if (!h->before) return;
  PyErr_Fetch(&type, &value, &tb);
  for (Py_ssize_t i = h->items ? PyTuple_GET_SIZE(h->items) : 0; i-- > 0;)
    if (fl_inference_is_guard(PyTuple_GET_ITEM(h->items, i))) leave_guard(PyTuple_GET_ITEM(h->items, i));
  PyObject *now = nesting_now();
  long by = now ? fl_autocast_nesting(h->before) - PyLong_AsLong(now) : 0;
  if (!now || fl_autocast_write(h->before, by) < 0) PyErr_Clear();
  Py_XDECREF(now);
  fl_modes_pass_on(h);
  PyErr_Restore(type, value, tb);
}
