#include "capture/around.h"

#include "capture/modes.h"

enum { MOST = 4 }; /* states around calls of one callable */

PyObject *fl_around_now(void) {
  PyObject *now = fl_autocast_now();
  if (now && !fl_autocast_any(now)) Py_CLEAR(now);
  PyErr_Clear();
  return now;
}

/* The function that switches autocast on for the devices of this state around a call of the target. */
static PyObject *make_function(PyObject *target, PyObject *state) {
  PyObject *states = PyTuple_GET_ITEM(state, 2);
  PyObject *on = PyList_New(0), *module = PyImport_ImportModule("framelift.around"), *names = NULL, *function = NULL;
  bool ok = on && module;
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(states); i++) {
    PyObject *s = PyTuple_GET_ITEM(states, i);
    if (PyTuple_GET_ITEM(s, 1) == Py_True) ok = PyList_Append(on, PyTuple_GET_ITEM(s, 0)) == 0;
  }
  if (ok && (names = PyList_AsTuple(on)))
    function = PyObject_CallMethod(module, "autocast", "OOO", target, names, PyTuple_GET_ITEM(state, 0));
  Py_XDECREF(on);
  Py_XDECREF(module);
  Py_XDECREF(names);
  return function;
}

static bool found(const fl_around *a, fl_around *out) {
  *out = *a;
  Py_INCREF(out->function);
  return true;
}

bool fl_around_find(fl_arounds *list, PyObject *target, PyObject *now, fl_around *out) {
  PyObject *function = NULL;
  for (size_t i = 0; i < list->len; i++)
    if (PyObject_RichCompareBool(list->data[i].state, now, Py_EQ) > 0) return found(&list->data[i], out);
  if (list->len < MOST && (function = make_function(target, now))) {
    fl_around new = {now, function};
    if (FL_PUSH(list, new)) return Py_INCREF(now), found(&new, out);
  }
  PyErr_Clear();
  Py_XDECREF(function);
  return false;
}

int fl_around_set_aside(PyObject *now) {
  if (fl_autocast_switch(now, false) == 0) return 0;
  fl_around_put_back(now);
  return -1;
}

void fl_around_put_back(PyObject *now) {
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (fl_autocast_switch(now, true) < 0) PyErr_Clear();
  PyErr_Restore(type, value, tb);
}

PyObject *fl_around_text(PyObject *state) {
  PyObject *states = PyTuple_GET_ITEM(state, 2), *text = PyUnicode_FromString("");
  for (Py_ssize_t i = 0; text && i < PyTuple_GET_SIZE(states); i++) {
    PyObject *s = PyTuple_GET_ITEM(states, i);
    if (PyTuple_GET_ITEM(s, 1) != Py_True) continue;
    const char *between = PyUnicode_GET_LENGTH(text) ? ", " : "";
    Py_SETREF(text, PyUnicode_FromFormat("%U%s%U %S", text, between, PyTuple_GET_ITEM(s, 0), PyTuple_GET_ITEM(s, 2)));
  }
  return text;
}

int fl_arounds_traverse(const fl_arounds *list, visitproc visit, void *arg) {
  for (size_t i = 0; i < list->len; i++) Py_VISIT(list->data[i].function);
  return 0;
}

void fl_arounds_release(fl_arounds *list) {
  fl_arounds gone = *list;
  *list = (fl_arounds){0};
  for (size_t i = 0; i < gone.len; i++) {
    Py_DECREF(gone.data[i].state);
    Py_DECREF(gone.data[i].function);
  }
  fl_free(gone.data);
}
