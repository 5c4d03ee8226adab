/* framelift._C's functions of the evaluator alone: for its conformance runs and tests. */
#include "python/mod_eval.h"

#include "capture/eval.h"

static PyObject *evaluate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  if (nargs < 1) {
    PyErr_SetString(PyExc_TypeError, "_evaluate() needs a callable");
    return NULL;
  }
  return fl_eval_call(NULL, args[0], args + 1, (size_t)(nargs - 1), kwnames, NULL);
}

static PyObject *eval_counts(PyObject *self, PyObject *args) {
  int reset = 0;
  fl_eval_counts c;
  if (!PyArg_ParseTuple(args, "|p", &reset)) return NULL;
  fl_eval_counts_get(&c, reset);
  return Py_BuildValue("KK", c.evaluated, c.handed_over);
}

static PyObject *eval_supported(PyObject *self, PyObject *unused) {
  return Py_BuildValue("Os", fl_eval_supported() ? Py_True : Py_False, fl_eval_why_not());
}

static PyObject *eval_user_line(PyObject *self, PyObject *unused) {
  const char *file;
  int line;
  if (fl_eval_user_line(&file, &line) < 0) Py_RETURN_NONE;
  return Py_BuildValue("si", file, line);
}

static PyMethodDef methods[] = {
    {"_evaluate", (PyCFunction)(void (*)(void))evaluate, METH_FASTCALL | METH_KEYWORDS,
     "_evaluate(callable, *args, **kwargs): the call, with every Python frame under it evaluated by framelift."},
    {"_eval_counts", eval_counts, METH_VARARGS,
     "_eval_counts(reset=False) -> (frames evaluated, frames handed to CPython) on this thread."},
    {"_eval_supported", eval_supported, METH_NOARGS, "_eval_supported() -> (bool, reason)."},
    {"_eval_user_line", eval_user_line, METH_NOARGS,
     "_eval_user_line() -> (file, line) of the innermost user frame being evaluated, or None."},
    {NULL, NULL, 0, NULL}};

int fl_mod_eval_add(PyObject *module) {
  if (fl_eval_init() < 0) return -1;
  return PyModule_AddFunctions(module, methods);
}
