/* Exceptions: handler tables, raise, the checks of except clauses, and errors whose text CPython composes. */
#include "capture/eval_impl.h"

/* The exception table: entries of four varints (6 bits a byte, bit 6 = more, bit 7 = start of an entry). */
static unsigned varint(const unsigned char **p) {
  unsigned b = *(*p)++, v = b & 63;
  while (b & 64) {
    b = *(*p)++;
    v = v << 6 | (b & 63);
  }
  return v;
}

bool fl_exc_handler(PyCodeObject *code, int offset, int *out_level, int *out_target, bool *out_lasti) {
  const unsigned char *p = (const unsigned char *)PyBytes_AS_STRING(code->co_exceptiontable);
  const unsigned char *end = p + PyBytes_GET_SIZE(code->co_exceptiontable);
  while (p < end) {
    int from = (int)varint(&p), length = (int)varint(&p), target = (int)varint(&p);
    unsigned depth_lasti = varint(&p);
    if (from > offset) break;
    if (offset < from + length) {
      *out_level = (int)(depth_lasti >> 1);
      *out_lasti = depth_lasti & 1;
      *out_target = target;
      return true;
    }
  }
  return false;
}

static bool reraise(void) {
  PyObject *value = PyErr_GetHandledException();
  if (!value || value == Py_None) {
    Py_XDECREF(value);
    PyErr_SetString(PyExc_RuntimeError, "No active exception to reraise");
    return false;
  }
  PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(value)), value, PyException_GetTraceback(value));
  return true;
}

/* The instance to be raised: takes exc; NULL with an exception. */
static PyObject *instance_of(fl_rec *r, PyObject *exc) {
  if (PyExceptionInstance_Check(exc)) return exc;
  PyObject *value = NULL;
  if (PyExceptionClass_Check(exc)) {
    value = fl_call(r, exc, NULL, 0, NULL);
    if (value && !PyExceptionInstance_Check(value)) {
      PyErr_Format(PyExc_TypeError, "calling %R should have returned an instance of BaseException, not %R", exc,
                   Py_TYPE(value));
      Py_CLEAR(value);
    }
  } else {
    PyErr_SetString(PyExc_TypeError, "exceptions must derive from BaseException");
  }
  Py_DECREF(exc);
  return value;
}

/* Sets value.__cause__; takes cause. 0 or -1. */
static int set_cause(fl_rec *r, PyObject *value, PyObject *cause) {
  if (cause == Py_None) {
    Py_DECREF(cause);
    cause = NULL;
  } else if (PyExceptionClass_Check(cause)) {
    PyObject *made = fl_call(r, cause, NULL, 0, NULL);
    if (!made) {
      Py_DECREF(cause);
      return -1;
    }
    if (PY_VERSION_HEX >= 0x030D0000 && !PyExceptionInstance_Check(made)) {
      PyErr_Format(PyExc_TypeError, "calling %R should have returned an instance of BaseException, not %R", cause,
                   Py_TYPE(made));
      Py_DECREF(cause);
      Py_DECREF(made);
      return -1;
    }
    Py_DECREF(cause);
    cause = made;
  } else if (!PyExceptionInstance_Check(cause)) {
    Py_DECREF(cause);
    PyErr_SetString(PyExc_TypeError, "exception causes must derive from BaseException");
    return -1;
  }
  PyException_SetCause(value, cause);
  return 0;
}

bool fl_exc_raise(fl_rec *r, PyObject *exc, PyObject *cause) {
  if (!exc) return reraise();
  PyObject *value = instance_of(r, exc);
  if (!value) {
    Py_XDECREF(cause);
    return false;
  }
  if (!cause || set_cause(r, value, cause) == 0) PyErr_SetObject((PyObject *)Py_TYPE(value), value);
  Py_DECREF(value);
  return false;
}

static int check_classes(PyObject *right, const char *text) {
  Py_ssize_t n = PyTuple_Check(right) ? PyTuple_GET_SIZE(right) : 1;
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *cls = PyTuple_Check(right) ? PyTuple_GET_ITEM(right, i) : right;
    if (!PyExceptionClass_Check(cls)) {
      PyErr_SetString(PyExc_TypeError, text);
      return -1;
    }
  }
  return 0;
}

static const char not_exceptions[] = "catching classes that do not inherit from BaseException is not allowed";

int fl_exc_check_type(PyObject *right) { return check_classes(right, not_exceptions); }

int fl_exc_check_star(PyObject *right) {
  if (check_classes(right, not_exceptions) < 0) return -1;
  Py_ssize_t n = PyTuple_Check(right) ? PyTuple_GET_SIZE(right) : 1;
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *cls = PyTuple_Check(right) ? PyTuple_GET_ITEM(right, i) : right;
    int group = PyObject_IsSubclass(cls, PyExc_BaseExceptionGroup);
    if (group < 0) return -1;
    if (group) {
      PyErr_SetString(PyExc_TypeError, "catching ExceptionGroup with except* is not allowed. Use except instead.");
      return -1;
    }
  }
  return 0;
}

int fl_exc_group_match(PyObject *exc, PyObject *type, PyObject **match, PyObject **rest) {
  int is_group = PyObject_TypeCheck(exc, (PyTypeObject *)PyExc_BaseExceptionGroup);
  if (exc == Py_None) {
    *match = Py_NewRef(Py_None);
    *rest = Py_NewRef(Py_None);
    return 0;
  }
  if (PyErr_GivenExceptionMatches(exc, type)) {
    if (is_group) {
      *match = Py_NewRef(exc);
    } else {
      *match = PyObject_CallFunction(PyExc_BaseExceptionGroup, "s(O)", "", exc);
      if (!*match) return -1;
    }
    *rest = Py_NewRef(Py_None);
    return 0;
  }
  if (!is_group) {
    *match = Py_NewRef(Py_None);
    *rest = Py_NewRef(exc);
    return 0;
  }
  PyObject *pair = PyObject_CallMethod(exc, "split", "(O)", type);
  if (!pair) return -1;
  if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2) {
    PyErr_SetString(PyExc_TypeError, "split must return a 2-tuple");
    Py_DECREF(pair);
    return -1;
  }
  *match = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
  *rest = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
  Py_DECREF(pair);
  return 0;
}

void fl_exc_name(PyObject *exc_type, const char *format, PyObject *name) {
  const char *text = PyUnicode_AsUTF8(name);
  PyObject *type, *value, *tb;
  if (!text) return;
  PyErr_Format(exc_type, format, text);
  if (exc_type != PyExc_NameError) return;
  /* The name attribute is what suggestions are made from. */
  PyErr_Fetch(&type, &value, &tb);
  PyErr_NormalizeException(&type, &value, &tb);
  if (Py_IS_TYPE(value, (PyTypeObject *)PyExc_NameError) && PyObject_SetAttr(value, fl_n.name, name) < 0) PyErr_Clear();
  PyErr_Restore(type, value, tb);
}

void fl_exc_unbound(PyCodeObject *code, int local) {
  PyObject *name = PyTuple_GET_ITEM(code->co_localsplusnames, local);
  if (PyErr_Occurred()) return;
  if (local < code->co_nlocalsplus - code->co_nfreevars)
    fl_exc_name(PyExc_UnboundLocalError, "cannot access local variable '%s' where it is not associated with a value",
                name);
  else
    fl_exc_name(PyExc_NameError,
                "cannot access free variable '%s' where it is not associated with a value in enclosing scope", name);
}

void fl_exc_kwargs(PyObject *func, PyObject *kwargs) {
  PyObject *type, *value, *tb, *name;
  if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
    PyErr_Clear();
    name = _PyObject_FunctionStr(func);
    if (name)
      PyErr_Format(PyExc_TypeError, "%U argument after ** must be a mapping, not %.200s", name,
                   Py_TYPE(kwargs)->tp_name);
    Py_XDECREF(name);
    return;
  }
  if (!PyErr_ExceptionMatches(PyExc_KeyError)) return;
  PyErr_Fetch(&type, &value, &tb);
  /* Up to 3.11 the arguments, from 3.12 on the exception itself. */
  PyObject *keys = value && PyExceptionInstance_Check(value) ? ((PyBaseExceptionObject *)value)->args : value;
  if (!keys || !PyTuple_Check(keys) || PyTuple_GET_SIZE(keys) != 1) {
    PyErr_Restore(type, value, tb);
    return;
  }
  name = _PyObject_FunctionStr(func);
  if (name)
    PyErr_Format(PyExc_TypeError, "%U got multiple values for keyword argument '%S'", name, PyTuple_GET_ITEM(keys, 0));
  Py_XDECREF(name);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(tb);
}
