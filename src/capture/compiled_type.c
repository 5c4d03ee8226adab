/* The type of compiled callables: options, reset, attributes of the target. */
#include "capture/cpython/compat.h"
#include "capture/compiled.h"
#include "capture/eval.h"

#include <structmember.h>
#include <string.h>

/* --- pools: one per number of threads, for the life of the process --- */

static fl_pool *pool_of(int threads) {
  static FL_VEC(fl_pool *) pools;
  for (size_t i = 0; i < pools.len; i++)
    if (fl_pool_threads(pools.data[i]) == threads) return pools.data[i];
  fl_pool *p = NULL;
  fl_status s = fl_pool_create(threads, &p);
  if (s || !FL_PUSH(&pools, p)) {
    if (s)
      PyErr_Format(PyExc_RuntimeError, "framelift: thread pool: %s", fl_status_message(s));
    else
      PyErr_NoMemory();
    fl_status_free(s);
    fl_pool_destroy(p);
    return NULL;
  }
  return p;
}

/* --- the type --- */

static bool option_is(PyObject *options, const char *name, const char *value) {
  PyObject *v = PyDict_GetItemString(options, name);
  return v && PyUnicode_Check(v) && PyUnicode_CompareWithASCIIString(v, value) == 0;
}

PyObject *fl_compiled_new(PyObject *target, PyObject *options) {
  PyObject *threads = PyDict_GetItemString(options, "threads"), *verify_on = PyDict_GetItemString(options, "verify");
  PyObject *tactic = PyDict_GetItemString(options, "tactic_ms");
  long n = threads && threads != Py_None ? PyLong_AsLong(threads) : 0;
  double ms = tactic && tactic != Py_None ? PyFloat_AsDouble(tactic) : -1;
  if (PyErr_Occurred()) return NULL;
  fl_pool *pool = pool_of(n > 0 ? (int)n : fl_torch_threads());
  if (!pool) return NULL;
  fl_compiled *c = PyObject_GC_New(fl_compiled, &fl_compiled_type);
  if (!c) return NULL;
  memset((char *)c + sizeof(PyObject), 0, sizeof *c - sizeof(PyObject));
  c->vectorcall = fl_compiled_call;
  c->target = Py_NewRef(target);
  c->options = Py_NewRef(options);
  c->backend_eager = option_is(options, "backend", "eager");
  c->fallback_error = option_is(options, "fallback", "error");
  c->precision = option_is(options, "precision", "fp16")   ? FL_F16
                 : option_is(options, "precision", "bf16") ? FL_BF16
                                                           : FL_F32;
  PyObject *backend = PyDict_GetItemString(options, "segment_backend");
  c->segment_backend = backend && backend != Py_None ? Py_NewRef(backend) : NULL;
  c->verify = !verify_on || PyObject_IsTrue(verify_on);
  c->tactic_ms = ms;
  c->threads = fl_pool_threads(pool);
  c->pool = pool;
  c->lock = PyThread_allocate_lock();
  c->family = fl_family_new();
  PyObject_GC_Track(c);
  fl_eval_prepare();
  if (!c->lock || !c->family) {
    Py_DECREF(c);
    return PyErr_NoMemory();
  }
  return (PyObject *)c;
}

void fl_compiled_reset(fl_compiled *c) {
  size_t n = c->traces.len, m = c->give_ups.len, n_opaque = c->opaque.len;
  fl_opaque_entry *opaque = c->opaque.data;
  fl_trace **traces = c->traces.data;
  fl_give_up *g = c->give_ups.data;
  memset(&c->traces, 0, sizeof c->traces);
  memset(&c->give_ups, 0, sizeof c->give_ups);
  memset(&c->opaque, 0, sizeof c->opaque);
  c->recordings = 0;
  c->declined = 0;
  c->native_reason[0] = 0;
  for (size_t i = 0; i < n; i++) fl_trace_release(traces[i]);
  for (size_t i = 0; i < m; i++) {
    fl_free(g[i].reason);
    fl_free(g[i].detail);
    fl_free(g[i].file);
    fl_trace_release(g[i].holder);
  }
  for (size_t i = 0; i < n_opaque; i++) {
    Py_DECREF(opaque[i].callable);
    fl_free(opaque[i].reason);
    fl_free(opaque[i].detail);
  }
  fl_free(opaque);
  fl_free(traces);
  fl_free(g);
}

/* All at once: what one makes anew is found by the others. */
void fl_compiled_refresh(fl_compiled *c) { fl_family_touch(c->family, NULL); }

static int compiled_traverse(fl_compiled *c, visitproc visit, void *arg) {
  Py_VISIT(c->target);
  Py_VISIT(c->segment_backend);
  int in_arounds = fl_arounds_traverse(&c->arounds, visit, arg);
  if (in_arounds) return in_arounds;
  Py_VISIT(c->options);
  for (size_t i = 0; i < c->opaque.len; i++) Py_VISIT(c->opaque.data[i].callable);
  for (size_t i = 0; i < c->traces.len; i++) {
    int rc = fl_trace_traverse(c->traces.data[i], visit, arg);
    if (rc) return rc;
  }
  for (size_t i = 0; i < c->give_ups.len; i++) {
    int rc = fl_trace_traverse(c->give_ups.data[i].holder, visit, arg);
    if (rc) return rc;
  }
  return 0;
}

static int compiled_clear(fl_compiled *c) {
  fl_compiled_reset(c);
  for (size_t i = 0; i < c->misses.len; i++) fl_free(c->misses.data[i].text);
  fl_free(c->misses.data);
  memset(&c->misses, 0, sizeof c->misses);
  fl_free(c->extents.list.data);
  memset(&c->extents, 0, sizeof c->extents);
  fl_arounds_release(&c->arounds);
  Py_CLEAR(c->target);
  Py_CLEAR(c->segment_backend);
  Py_CLEAR(c->options);
  return 0;
}

static void compiled_dealloc(fl_compiled *c) {
  PyObject_GC_UnTrack(c);
  if (c->weaklist) PyObject_ClearWeakRefs((PyObject *)c);
  compiled_clear(c);
  fl_family_release(c->family);
  if (c->lock) PyThread_free_lock(c->lock);
  PyObject_GC_Del(c);
}

/* Names that describe the callable are the target's; other special names are the type's own first. */
static bool own_first(PyObject *name) {
  static const char *const targets[] = {"__doc__",       "__name__", "__qualname__", "__module__", "__annotations__",
                                        "__signature__", "__dict__", "__defaults__", "__code__",   "__globals__"};
  const char *s = PyUnicode_AsUTF8(name);
  if (!s) return PyErr_Clear(), true;
  if (strncmp(s, "__", 2)) return false;
  for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
    if (!strcmp(s, targets[i])) return false;
  return true;
}

bool fl_compiled_is_target_attr(PyObject *name) { return PyUnicode_Check(name) && !own_first(name); }

static PyObject *compiled_getattro(PyObject *self, PyObject *name) {
  fl_compiled *c = (fl_compiled *)self;
  if (own_first(name)) {
    PyObject *v = PyObject_GenericGetAttr(self, name);
    if (v || !PyErr_ExceptionMatches(PyExc_AttributeError)) return v;
    PyErr_Clear();
  }
  return PyObject_GetAttr(c->target, name);
}

static int compiled_setattro(PyObject *self, PyObject *name, PyObject *value) {
  return PyObject_SetAttr(((fl_compiled *)self)->target, name, value);
}

static PyObject *compiled_repr(fl_compiled *c) { return PyUnicode_FromFormat("framelift.compile(%R)", c->target); }

static PyObject *compiled_descr_get(PyObject *self, PyObject *obj, PyObject *type) {
  if (!obj || obj == Py_None || !PyFunction_Check(((fl_compiled *)self)->target)) return Py_NewRef(self);
  return PyMethod_New(self, obj);
}

/* A copy compiles its own target anew. */
static PyObject *compiled_reduce(fl_compiled *c, PyObject *unused) {
  (void)unused;
  PyObject *module = PyImport_ImportModule("framelift._C");
  PyObject *make = module ? PyObject_GetAttrString(module, "compile") : NULL;
  PyObject *r = make ? Py_BuildValue("(O(OO))", make, c->target, c->options) : NULL;
  Py_XDECREF(make);
  Py_XDECREF(module);
  return r;
}

PyObject *fl_compiled_target(PyObject *o) {
  return Py_IS_TYPE(o, &fl_compiled_type) ? ((fl_compiled *)o)->target : NULL;
}

bool fl_compiled_is_as_its_target(PyObject *o) {
  const fl_compiled *c = (const fl_compiled *)o;
  return !c->segment_backend && !c->backend_eager && !c->fallback_error && c->verify && c->precision == FL_F32;
}

static bool is_module(PyObject *o) {
  static PyObject *module_type;
  if (!module_type) {
    PyObject *nn = PyImport_ImportModule("torch.nn");
    module_type = nn ? PyObject_GetAttrString(nn, "Module") : NULL;
    Py_XDECREF(nn);
    if (!module_type) return PyErr_Clear(), false;
  }
  return PyType_Check(module_type) && PyObject_TypeCheck(o, (PyTypeObject *)module_type);
}

/* As other objects that stand for one: isinstance() takes a compiled module for a module, so that it may be another one's
 * submodule. */
static PyObject *compiled_class(fl_compiled *c, void *unused) {
  (void)unused;
  return Py_NewRef((PyObject *)(is_module(c->target) ? Py_TYPE(c->target) : &fl_compiled_type));
}

static PyGetSetDef compiled_getset[] = {
    {"__class__", (getter)compiled_class, NULL, "the target's, where that is a module", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef compiled_methods[] = {
    {"__reduce__", (PyCFunction)compiled_reduce, METH_NOARGS, "copies and pickles compile their own target"},
    {NULL, NULL, 0, NULL}};

static PyMemberDef compiled_members[] = {
    {"__wrapped__", T_OBJECT, offsetof(fl_compiled, target), READONLY, "the original callable"},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(fl_compiled, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};

PyTypeObject fl_compiled_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "framelift._C.Compiled",
    .tp_basicsize = sizeof(fl_compiled),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(fl_compiled, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_traverse = (traverseproc)compiled_traverse,
    .tp_clear = (inquiry)compiled_clear,
    .tp_dealloc = (destructor)compiled_dealloc,
    .tp_weaklistoffset = offsetof(fl_compiled, weaklist),
    .tp_getattro = compiled_getattro,
    .tp_setattro = compiled_setattro,
    .tp_repr = (reprfunc)compiled_repr,
    .tp_descr_get = compiled_descr_get,
    .tp_methods = compiled_methods,
    .tp_members = compiled_members,
    .tp_getset = compiled_getset,
};
