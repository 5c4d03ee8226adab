/* numpy's functions of numbers, as programs use them for constants: np.sqrt(self.width). Arrays are unknown code's business. */
#include "capture/cpython/compat.h"

#include <math.h>
#include <string.h>

#include "capture/ccalls.h"
#include "capture/eval_impl.h"

/* One of numpy's own functions that work element by element; NULL unless numpy is loaded. */
static bool is_ufunc(PyObject *callable) {
  static PyTypeObject *type;
  static PyObject *numpy;
  if (strcmp(Py_TYPE(callable)->tp_name, "numpy.ufunc") != 0) return false;
  if (!numpy) {
    PyObject *name = PyUnicode_FromString("numpy");
    numpy = name ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    type = numpy ? (PyTypeObject *)PyObject_GetAttrString(numpy, "ufunc") : NULL;
  }
  if (!type || !Py_IS_TYPE(callable, type)) return PyErr_Clear(), false;
  PyObject *name = PyObject_GetAttr(callable, fl_n.__name__), *own = name ? PyObject_GetAttr(numpy, name) : NULL;
  PyErr_Clear();
  Py_XDECREF(name);
  Py_XDECREF(own);
  return own == callable;
}

static bool is_number(PyObject *o) {
  return PyFloat_CheckExact(o) || PyLong_CheckExact(o) || PyBool_Check(o) || fl_ccall_is_numpy_number(o);
}

bool fl_numpy_computes(PyObject *callable, PyObject *const *args, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!is_number(args[i])) return false;
  return n > 0 && is_ufunc(callable);
}

PyObject *fl_numpy_computed(fl_rec *r, PyObject *v) {
  double x = v ? PyFloat_AsDouble(v) : 0;
  bool known = v && is_number(v) && !PyErr_Occurred() && isfinite(x);
  if (v) PyErr_Clear();
  /* A warning, or what the program has asked for in its place, is not repeated by a replay. */
  if (v && !known) fl_rec_give_up(r, "unknown C callable", "numpy.ufunc that gives no finite number");
  return v;
}
