/* The extension module framelift._C: what python/framelift calls. */
#include <Python.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "capture/engine_error.h"
#include "capture/compiled.h"
#include "rt/constants.h"
#include "capture/eval.h"
#include "capture/door.h"
#include "capture/impl.h"
#include "capture/make.h"
#include "capture/peek.h"
#include "lower/convert.h"
#include "python/mod_eval.h"

static PyObject *compile(PyObject *self, PyObject *args) {
  PyObject *target, *options;
  if (!PyArg_ParseTuple(args, "OO!:compile", &target, &PyDict_Type, &options)) return NULL;
  if (!PyCallable_Check(target)) return PyErr_Format(PyExc_TypeError, "compile: %R is not callable", target);
  return fl_compiled_new(target, options);
}

static fl_compiled *compiled_arg(PyObject *o) {
  if (PyObject_TypeCheck(o, &fl_compiled_type)) return (fl_compiled *)o;
  PyErr_Format(PyExc_TypeError, "expected a compiled callable, not %R", o);
  return NULL;
}

#define ON_COMPILED(name, expr)                                                                                        \
  static PyObject *name(PyObject *self, PyObject *o) {                                                                 \
    fl_compiled *c = compiled_arg(o);                                                                                  \
    return c ? (expr) : NULL;                                                                                          \
  }
ON_COMPILED(report, fl_report(c))
ON_COMPILED(segments, fl_report_segments(c))
ON_COMPILED(plan_text, fl_report_plans(c))
ON_COMPILED(graph_text, fl_report_graphs(c))
ON_COMPILED(reset, (fl_compiled_reset(c), Py_NewRef(Py_None)))
ON_COMPILED(refresh, (fl_compiled_refresh(c), Py_NewRef(Py_None)))

static PyObject *door_set(PyObject *self, PyObject *handler) { return fl_door_set(handler); }

static PyObject *door_setup(PyObject *self, PyObject *args) {
  PyObject *disabled, *module_call;
  if (!PyArg_ParseTuple(args, "O!O!:door_setup", &PyCode_Type, &disabled, &PyCode_Type, &module_call)) return NULL;
  fl_door_setup(disabled, module_call);
  Py_RETURN_NONE;
}

static PyObject *profile(PyObject *self, PyObject *args) {
  PyObject *c, *a, *k = NULL;
  if (!PyArg_ParseTuple(args, "O!O!|O:profile", &fl_compiled_type, &c, &PyTuple_Type, &a, &k)) return NULL;
  return fl_report_profile((fl_compiled *)c, a, k);
}

static PyObject *overhead(PyObject *self, PyObject *args) {
  PyObject *c, *a, *k = NULL;
  long n = 1000;
  if (!PyArg_ParseTuple(args, "O!O!|Ol:overhead", &fl_compiled_type, &c, &PyTuple_Type, &a, &k, &n)) return NULL;
  return fl_report_overhead((fl_compiled *)c, a, k, n);
}

static PyObject *converters(PyObject *self, PyObject *unused) {
  PyObject *list = PyList_New(0);
  const fl_converter_info *x;
  for (int i = 0; list && (x = fl_converter_get(i)); i++) {
    PyObject *row = Py_BuildValue("(sss)", x->aten, x->dtypes, x->limits);
    if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
    Py_XDECREF(row);
  }
  return list;
}

static PyObject *spoil(PyObject *self, PyObject *op) {
  static char name[80];
  if (op != Py_None && !PyUnicode_Check(op)) return PyErr_Format(PyExc_TypeError, "spoil: a string or None");
  if (op != Py_None) snprintf(name, sizeof name, "%s", PyUnicode_AsUTF8(op));
  fl_cv_spoil(op == Py_None ? NULL : name);
  Py_RETURN_NONE;
}

static PyObject *live_blocks(PyObject *self, PyObject *unused) { return PyLong_FromLongLong(fl_alloc_live()); }

static PyObject *constants(PyObject *self, PyObject *unused) {
  size_t blocks, bytes;
  fl_constants_listed(&blocks, &bytes);
  return Py_BuildValue("(nn)", (Py_ssize_t)blocks, (Py_ssize_t)bytes);
}

static PyObject *isa(PyObject *self, PyObject *unused) { return PyUnicode_FromString(fl_isa_name(fl_cpu_isa())); }
static PyObject *threads(PyObject *self, PyObject *unused) { return PyLong_FromLong(fl_torch_threads()); }

static PyMethodDef methods[] = {
    {"compile", compile, METH_VARARGS, "compile(callable, options) -> Compiled"},
    {"report", report, METH_O, "report(compiled) -> dict"},
    {"segments", segments, METH_O, "segments(compiled) -> [[dict of a segment] for each trace]"},
    {"plan_text", plan_text, METH_O, "plan_text(compiled) -> str: the engines' plans"},
    {"graph_text", graph_text, METH_O, "graph_text(compiled) -> str: the engines' graphs after the passes"},
    {"reset", reset, METH_O, "reset(compiled): forgets all traces"},
    {"refresh", refresh, METH_O, "refresh(compiled): engines read all weights again"},
    {"door_set", door_set, METH_O, "door_set(handler or None) -> the handler before, or None (door.h)"},
    {"door_setup", door_setup, METH_VARARGS, "door_setup(code of disabled wrappers, code of nn.Module.__call__)"},
    {"profile", profile, METH_VARARGS, "profile(compiled, args, kwargs) -> [(kernel, microseconds)]"},
    {"overhead", overhead, METH_VARARGS,
     "overhead(compiled, args, kwargs, n) -> (microseconds per call to find the trace, guards and weights checked; "
     "those "
     "of a whole call whose engines do not run, or None)"},
    {"converters", converters, METH_NOARGS, "converters() -> [(operator, dtypes, limits)]"},
    {"spoil", spoil, METH_O, "spoil(operator or None): tests; engines built from now on compute it wrongly"},
    {"live_blocks", live_blocks, METH_NOARGS, "live_blocks() -> blocks of C memory in use"},
    {"constants", constants, METH_NOARGS, "constants() -> (blocks that engines can share, their bytes)"},
    {"isa", isa, METH_NOARGS, "isa() -> instruction set in use"},
    {"threads", threads, METH_NOARGS, "threads() -> torch.get_num_threads()"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "framelift._C", .m_size = -1,
                                    .m_methods = methods};

/* Without PyTorch only the evaluator is there: module.Compiled is missing. 1 found, 0 not installed, -1. */
static int find_torch(void) {
  PyObject *torch = PyImport_ImportModule("torch");
  Py_XDECREF(torch);
  if (torch) return fl_interop_init() < 0 ? -1 : 1;
  if (!PyErr_ExceptionMatches(PyExc_ModuleNotFoundError)) return -1;
  PyErr_Clear();
  return 0;
}

PyMODINIT_FUNC PyInit__C(void) {
  int torch = find_torch();
  if (torch < 0 || fl_eval_init() < 0 || PyType_Ready(&fl_compiled_type) < 0) return NULL;
  if (torch) {
    fl_impl_init();
    fl_peek_init();
    fl_make_init();
  }
  PyObject *m = PyModule_Create(&module);
  if (!m) return NULL;
  if ((torch && PyModule_AddObjectRef(m, "Compiled", (PyObject *)&fl_compiled_type) < 0) || fl_mod_eval_add(m) < 0 ||
      fl_engine_error_add(m) < 0)
    Py_CLEAR(m);
  return m;
}
