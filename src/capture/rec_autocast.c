#include "capture/rec_autocast.h"

#include <string.h>

#include "capture/eval_impl.h"
#include "capture/interop.h"
#include "capture/modes.h"

static struct {
  PyObject *exclude, *is_excluded, *key[FL_AUTOCAST_DEVICES], *composite;
} A;

static bool ready(void) {
  static const char *const names[] = {"AutocastCUDA", "AutocastCPU"};
  if (A.composite) return true;
  PyObject *torch = PyImport_ImportModule("torch._C");
  PyObject *keys = torch ? PyObject_GetAttrString(torch, "DispatchKey") : NULL;
  if (keys) A.exclude = PyObject_GetAttrString(torch, "_dispatch_tls_set_dispatch_key_excluded");
  if (A.exclude) A.is_excluded = PyObject_GetAttrString(torch, "_dispatch_tls_is_dispatch_key_excluded");
  for (int i = 0; A.is_excluded && i < FL_AUTOCAST_DEVICES; i++) A.key[i] = PyObject_GetAttrString(keys, names[i]);
  if (!PyErr_Occurred()) A.composite = PyObject_GetAttrString(keys, "CompositeImplicitAutograd");
  Py_XDECREF(keys);
  Py_XDECREF(torch);
  return A.composite != NULL;
}

static int exclude(unsigned devices, bool excluded) {
  for (int i = 0; i < FL_AUTOCAST_DEVICES; i++) {
    if (!(devices >> i & 1)) continue;
    PyObject *o = PyObject_CallFunctionObjArgs(A.exclude, A.key[i], excluded ? Py_True : Py_False, NULL);
    if (!o) return -1;
    Py_DECREF(o);
  }
  return 0;
}

/* Of these, the devices for which it is off here: what a tensor does by itself (detach) comes to a mode without that. */
static int excluded_of(unsigned devices, unsigned *out) {
  *out = 0;
  for (int i = 0; i < FL_AUTOCAST_DEVICES; i++) {
    if (!(devices >> i & 1)) continue;
    PyObject *o = PyObject_CallOneArg(A.is_excluded, A.key[i]);
    if (!o) return -1;
    if (o == Py_True) *out |= 1u << i;
    Py_DECREF(o);
  }
  return 0;
}

/* The devices for which autocast is on and passes this operator on. */
static unsigned passed_on(fl_rec *r, const fl_schema *s) {
  unsigned on = fl_contexts_autocast_on() & ~s->autocast;
  if (!on || ready()) return on;
  PyErr_Clear();
  fl_rec_give_up(r, "autocast cannot be told in an operator", s->name);
  return 0;
}

/* What `call` gives with autocast on for these devices. */
static PyObject *with_autocast(unsigned devices, PyObject *callable, PyObject *args, PyObject *kwargs) {
  if (excluded_of(devices, &devices) < 0 || exclude(devices, false) < 0) return NULL;
  PyObject *result = PyObject_Call(callable, args, kwargs), *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (exclude(devices, true) < 0) PyErr_Clear();
  PyErr_Restore(type, value, tb);
  return result;
}

/* Kernels that are no composites and call operators that autocast casts for: a replay, which is out of autocast, gives another
 * answer. */
static bool casts_within(const fl_schema *s) {
  return strstr(s->name, "_transformer_encoder_layer_fwd") || strstr(s->name, "_native_multi_head_attention");
}

void fl_rec_expect_casts(fl_rec *r, const fl_schema *s) {
  if (passed_on(r, s) && casts_within(s)) fl_rec_give_up(r, "autocast casts within this operator", s->name);
}

PyObject *fl_rec_call_operator(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs) {
  unsigned devices = passed_on(r, s);
  return devices ? with_autocast(devices, s->op, args, kwargs) : PyObject_Call(s->op, args, kwargs);
}

/* A recording that has given up follows the program no longer, but is still where it was: within the autocast it had entered, where
 * there is any. */
PyObject *fl_rec_call_unrecorded(fl_rec *r, PyObject *overload, PyObject *args, PyObject *kwargs) {
  if (!r || !r->gave_up || r->paused || !fl_contexts_autocast_on() || !fl_autocast_is_nested())
    return PyObject_Call(overload, args, kwargs);
  const fl_schema *s = fl_schema_get(overload);
  unsigned devices = s ? passed_on(r, s) : 0;
  PyErr_Clear();
  return devices ? with_autocast(devices, s->op, args, kwargs) : PyObject_Call(overload, args, kwargs);
}

/* The operator's own composition, which calls its parts by the dispatcher: they come to the mode. */
static PyObject *call_parts(fl_rec *r, const fl_schema *s, unsigned devices, PyObject *args, PyObject *kwargs) {
  PyObject *function = PyObject_GetAttrString(s->overload, "_op_dk"), *key = PyTuple_Pack(1, A.composite);
  PyObject *all = key ? PySequence_Concat(key, args) : NULL, *result = NULL;
  if (function && all && fl_dispatch_push(r->mode) == 0) {
    result = with_autocast(devices, function, all, kwargs);
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (fl_dispatch_pop() < 0) PyErr_Clear();
    PyErr_Restore(type, value, tb);
  }
  Py_XDECREF(function);
  Py_XDECREF(key);
  Py_XDECREF(all);
  return result;
}

bool fl_rec_in_parts(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs, PyObject **out) {
  unsigned devices = s->composite && fl_inference_enabled() > 0 ? passed_on(r, s) : 0;
  if (!devices) return false;
  *out = call_parts(r, s, devices, args, kwargs);
  return true;
}
