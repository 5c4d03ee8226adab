/* The dispatch mode: sees every ATen operator of the recorded call. */
#include <string.h>

#include "capture/eval_impl.h"
#include "capture/rec_autocast.h"

static PyObject *dynamo_names; /* (module, function) */

/* torch.compile's callback, or the one that it had: NULL without an exception where torch.compile was never used. */
static PyObject *set_dynamo(PyObject *callback) {
  PyObject *module = PyImport_GetModule(PyTuple_GET_ITEM(dynamo_names, 0)), *previous = NULL;
  if (module) previous = PyObject_CallMethodOneArg(module, PyTuple_GET_ITEM(dynamo_names, 1), callback);
  Py_XDECREF(module);
  if (!previous) PyErr_Clear();
  return previous;
}

/* An operator that takes functions. It was called by what torch.compile would have compiled, or by the program; with the mode
 * taken off, torch.compile would go on with the functions below it, which it could not. */
static PyObject *call_with_functions(PyObject *op, PyObject *args, PyObject *kwargs) {
  if (!dynamo_names && !(dynamo_names = Py_BuildValue("(ss)", "torch._C._dynamo.eval_frame", "set_eval_frame")))
    return NULL;
  PyObject *previous = set_dynamo(Py_None), *result = PyObject_Call(op, args, kwargs), *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  if (previous && previous != Py_None) Py_XDECREF(set_dynamo(previous));
  Py_XDECREF(previous);
  PyErr_Restore(type, value, tb);
  return result;
}

static PyObject *dispatch_paused(PyObject *const *a, Py_ssize_t nargs) {
  if (nargs < 3 || !PyTuple_Check(a[2])) return PyErr_Format(PyExc_TypeError, "framelift: unexpected dispatch call");
  PyObject *kwargs = nargs > 3 && a[3] != Py_None && PyDict_Check(a[3]) && PyDict_GET_SIZE(a[3]) ? a[3] : NULL;
  fl_rec *r = fl_rec_current();
  if (fl_rec_is_off(r)) {
    bool plain = !strcmp(Py_TYPE(a[0])->tp_name, "OpOverload");
    return plain ? fl_rec_call_unrecorded(r, a[0], a[2], kwargs) : call_with_functions(a[0], a[2], kwargs);
  }
  r->paused++; /* reading a schema runs torch's Python */
  const fl_schema *s = fl_schema_get(a[0]);
  r->paused--;
  if (!s) {
    PyErr_Clear();
    fl_rec_give_up(r, "an operator that is no OpOverload", Py_TYPE(a[0])->tp_name);
    return call_with_functions(a[0], a[2], kwargs);
  }
  PyObject *result;
  return fl_rec_in_parts(r, s, a[2], kwargs, &result) ? result : fl_rec_operator(r, s, a[2], kwargs);
}

/* Python below here is torch's own, or an operator written in Python: it belongs to the operator, not to the program. */
static PyObject *dispatch(PyObject *self, PyObject *const *a, Py_ssize_t nargs) {
  fl_eval_pause(1);
  PyObject *result = dispatch_paused(a, nargs);
  fl_eval_pause(0);
  return result;
}

/* What torch asks of a mode on the stack. Seeing that there is one that minds what it compiles, torch.compile lets frames be;
 * an operator that takes functions (cond, flex_attention) comes to the mode, and ends the recording. */
static PyObject *no(PyObject *self, PyObject *ignored) { Py_RETURN_FALSE; }
static PyObject *yes(PyObject *self, void *ignored) { Py_RETURN_TRUE; }

static PyMethodDef mode_methods[] = {{"__torch_dispatch__", (PyCFunction)(void (*)(void))dispatch, METH_FASTCALL, NULL},
                                     {"is_infra_mode", no, METH_NOARGS, NULL},
                                     {"ignore_compile_internals", no, METH_NOARGS, NULL},
                                     {NULL, NULL, 0, NULL}};
static PyGetSetDef mode_fields[] = {{"supports_higher_order_operators", yes, NULL, NULL, NULL},
                                    {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject mode_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "framelift._C.RecordMode",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = mode_methods,
    .tp_getset = mode_fields,
    .tp_doc = "The dispatch mode that records ATen operators.",
};

PyObject *fl_rec_mode_new(void) {
  if (PyType_Ready(&mode_type) < 0) return NULL;
  return PyObject_New(PyObject, &mode_type);
}
