/* Imports. Importing a module for the first time runs unreported: on a replay it is loaded already, which the guard on
 * sys.modules makes sure of. */
#include "capture/cpython/compat.h"
#include "capture/eval_impl.h"

static void saw_module(fl_rec *r, PyObject *module, PyObject *name, long level) {
  PyObject *modules = PyImport_GetModuleDict();
  if (level == 0) {
    fl_tell(r, fl_rec_read_item(r, modules, name, PyDict_GetItemWithError(modules, name)));
  }
  PyObject *own = PyModule_Check(module) ? PyDict_GetItemWithError(PyModule_GetDict(module), fl_n.__name__) : NULL;
  if (own && PyUnicode_CheckExact(own))
    fl_tell(r, fl_rec_read_item(r, modules, own, PyDict_GetItemWithError(modules, own)));
  PyErr_Clear();
}

PyObject *fl_import_name(fl_rec *r, PyObject *builtins, PyObject *globals, PyObject *locals, PyObject *name,
                         PyObject *fromlist, PyObject *level) {
  PyObject *import = PyObject_GetItem(builtins, fl_n.__import__), *v;
  if (!import) {
    if (PyErr_ExceptionMatches(PyExc_KeyError)) PyErr_SetString(PyExc_ImportError, "__import__ not found");
    return NULL;
  }
  PyObject *args[5] = {name, globals, locals ? locals : Py_None, fromlist, level};
  if (!r || !PyCFunction_Check(import)) {
    v = PyObject_Vectorcall(import, args, 5, NULL);
  } else {
    fl_tell(r, fl_rec_read_item(r, builtins, fl_n.__import__, import));
    fl_eval_here->r = NULL;
    v = PyObject_Vectorcall(import, args, 5, NULL);
    fl_eval_here->r = r;
    if (v) saw_module(r, v, name, PyLong_AsLong(level));
  }
  Py_DECREF(import);
  return v;
}

int fl_import_from(fl_rec *r, PyObject *module, PyObject *name, PyObject **out) {
  int found = fl_attr_find(r, module, name, out);
  if (found) return found;
  PyObject *package = PyObject_GetAttr(module, fl_n.__name__), *full;
  if (!package || !PyUnicode_Check(package)) {
    PyErr_Clear();
    Py_XDECREF(package);
    return 0;
  }
  full = PyUnicode_FromFormat("%U.%U", package, name);
  Py_DECREF(package);
  if (!full) return -1;
  *out = PyImport_GetModule(full);
  if (r && *out) fl_tell(r, fl_rec_read_item(r, PyImport_GetModuleDict(), full, *out));
  Py_DECREF(full);
  return *out ? 1 : PyErr_Occurred() ? -1 : 0;
}
