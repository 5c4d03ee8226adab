/* The match statement's class and mapping patterns. */
#include "capture/eval_impl.h"

PyObject *fl_match_keys(fl_rec *r, PyObject *map, PyObject *keys) {
  Py_ssize_t n = PyTuple_GET_SIZE(keys);
  PyObject *values = NULL, *seen = NULL, *get = NULL, *dummy = NULL;
  if (n == 0) return PyTuple_New(0);
  get = fl_attr_get(r, map, fl_n.get);
  seen = PySet_New(NULL);
  dummy = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
  values = PyTuple_New(n);
  if (!get || !seen || !dummy || !values) goto fail;
  if (r) fl_data_saw(r, map);
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *key = PyTuple_GET_ITEM(keys, i), *args[2] = {key, dummy}, *value;
    int dup = PySet_Contains(seen, key);
    if (dup < 0 || (!dup && PySet_Add(seen, key) < 0)) goto fail;
    if (dup) {
      PyErr_Format(PyExc_ValueError, "mapping pattern checks duplicate key (%R)", key);
      goto fail;
    }
    value = fl_call(r, get, args, 2, NULL);
    if (!value) goto fail;
    if (value == dummy) {
      Py_DECREF(value);
      Py_DECREF(values);
      values = Py_NewRef(Py_None);
      break;
    }
    PyTuple_SET_ITEM(values, i, value);
  }
  goto done;
fail:
  Py_CLEAR(values);
done:
  Py_XDECREF(get);
  Py_XDECREF(seen);
  Py_XDECREF(dummy);
  return values;
}

/* subject.name for a class pattern: NULL without an exception when it does not match. */
static PyObject *class_attr(fl_rec *r, PyObject *subject, PyObject *type, PyObject *name, PyObject *seen) {
  int dup = PySet_Contains(seen, name);
  PyObject *v;
  if (dup < 0 || (!dup && PySet_Add(seen, name) < 0)) return NULL;
  if (dup)
    return PyErr_Format(PyExc_TypeError, "%s() got multiple sub-patterns for attribute %R",
                        ((PyTypeObject *)type)->tp_name, name);
  fl_attr_find(r, subject, name, &v);
  return v;
}

/* Appends the positional sub-patterns' attributes: 1 matched, 0 not, -1. */
static int match_positional(fl_rec *r, PyObject *subject, PyObject *type, Py_ssize_t n, PyObject *seen,
                            PyObject *attrs) {
  const char *tp_name = ((PyTypeObject *)type)->tp_name;
  PyObject *match_args;
  bool match_self = false;
  int found = fl_attr_find(r, type, fl_n.__match_args__, &match_args);
  if (found < 0) return -1;
  if (!found) {
    match_args = PyTuple_New(0);
    if (!match_args) return -1;
    match_self = PyType_HasFeature((PyTypeObject *)type, _Py_TPFLAGS_MATCH_SELF);
  } else if (!PyTuple_CheckExact(match_args)) {
    PyErr_Format(PyExc_TypeError, "%s.__match_args__ must be a tuple (got %s)", tp_name, Py_TYPE(match_args)->tp_name);
    Py_DECREF(match_args);
    return -1;
  }
  Py_ssize_t allowed = match_self ? 1 : PyTuple_GET_SIZE(match_args);
  int rc = 1;
  if (allowed < n) {
    PyErr_Format(PyExc_TypeError, "%s() accepts %d positional sub-pattern%s (%d given)", tp_name, (int)allowed,
                 allowed == 1 ? "" : "s", (int)n);
    rc = -1;
  } else if (match_self) {
    rc = PyList_Append(attrs, subject) < 0 ? -1 : 1;
  }
  for (Py_ssize_t i = 0; rc == 1 && !match_self && i < n; i++) {
    PyObject *name = PyTuple_GET_ITEM(match_args, i), *v;
    if (!PyUnicode_CheckExact(name)) {
      PyErr_Format(PyExc_TypeError, "__match_args__ elements must be strings (got %s)", Py_TYPE(name)->tp_name);
      rc = -1;
      break;
    }
    v = class_attr(r, subject, type, name, seen);
    if (!v)
      rc = PyErr_Occurred() ? -1 : 0;
    else if (PyList_Append(attrs, v) < 0)
      rc = -1;
    Py_XDECREF(v);
  }
  Py_DECREF(match_args);
  return rc;
}

PyObject *fl_match_class(fl_rec *r, PyObject *subject, PyObject *type, Py_ssize_t n, PyObject *kwd) {
  if (!PyType_Check(type)) return PyErr_Format(PyExc_TypeError, "called match pattern must be a type");
  if (r) {
    fl_rec_uses(r, subject);
    fl_tell(r, fl_rec_read_instance(r, subject));
  }
  int is = PyObject_IsInstance(subject, type);
  if (is <= 0) return NULL;
  PyObject *seen = PySet_New(NULL), *attrs = PyList_New(0), *res = NULL;
  int rc = seen && attrs ? 1 : -1;
  if (rc == 1 && n > 0) rc = match_positional(r, subject, type, n, seen, attrs);
  for (Py_ssize_t i = 0; rc == 1 && i < PyTuple_GET_SIZE(kwd); i++) {
    PyObject *v = class_attr(r, subject, type, PyTuple_GET_ITEM(kwd, i), seen);
    if (!v)
      rc = PyErr_Occurred() ? -1 : 0;
    else if (PyList_Append(attrs, v) < 0)
      rc = -1;
    Py_XDECREF(v);
  }
  if (rc == 1) res = PyList_AsTuple(attrs);
  Py_XDECREF(seen);
  Py_XDECREF(attrs);
  return res;
}
