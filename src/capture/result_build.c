/* Results made anew by their recipes. */
#include "capture/cpython/compat.h"
#include "capture/result.h"

#include <string.h>

#include "capture/argspec.h"
#include "capture/modes.h"
#include "capture/raised.h"
#include "capture/replay_break.h"
#include "capture/vars.h"

static PyObject *generator_from(const fl_result_node *n, PyObject **made) {
  PyObject *slots = PyTuple_New(n->n - 1), *gen = NULL;
  for (int i = 1; slots && i < n->n; i++) PyTuple_SET_ITEM(slots, i - 1, Py_NewRef(made[n->items[i]]));
  if (slots) {
    fl_cpy_generator g = {.func = made[n->items[0]],
                          .code = (PyCodeObject *)PyTuple_GET_ITEM(n->object, 0),
                          .slots = &PyTuple_GET_ITEM(slots, 0),
                          .n = n->n - 1,
                          .at = (int)PyLong_AsLong(PyTuple_GET_ITEM(n->object, 1)),
                          .state = (int)PyLong_AsLong(PyTuple_GET_ITEM(n->object, 2))};
    gen = fl_cpy_generator_make(&g, fl_back_none());
  }
  Py_XDECREF(slots);
  return gen;
}

static PyObject *exception_from(const fl_result_node *n, PyObject **made) {
  enum { MOST = 10 };
  PyObject *parts[MOST];
  for (int i = 0; i < n->n && i < MOST; i++) parts[i] = made[n->items[i]];
  return fl_raised_make((PyTypeObject *)n->object, parts, n->n);
}

static PyObject *tuple_from(PyTypeObject *t, const fl_result_node *n, PyObject **made) {
  PyObject *o = t == &PyTuple_Type ? PyTuple_New(n->n) : t->tp_alloc(t, n->n);
  for (int i = 0; o && i < n->n; i++) PyTuple_SET_ITEM(o, i, Py_NewRef(made[n->items[i]]));
  return o;
}

static int set_attrs(PyObject *o, const fl_result_node *n, PyObject **made) {
  const uint32_t *a = n->items + n->n;
  if (!n->n_attrs) return 0;
  PyObject *d = PyObject_GenericGetDict(o, NULL);
  if (!d) return -1;
  int rc = 0;
  for (int i = 0; i < n->n_attrs && rc == 0; i++) rc = PyDict_SetItem(d, made[a[2 * i]], made[a[2 * i + 1]]);
  Py_DECREF(d);
  return rc;
}

static PyObject *dict_from(PyTypeObject *t, const fl_result_node *n, PyObject **made) {
  PyObject *o;
  if (t == &PyDict_Type)
    o = PyDict_New();
  else {
    PyObject *none = PyTuple_New(0);
    o = none ? PyDict_Type.tp_new(t, none, NULL) : NULL;
    Py_XDECREF(none);
  }
  bool ordered = o && PyODict_Check(o);
  for (int i = 0; o && i < n->n; i += 2) {
    PyObject *k = made[n->items[i]], *v = made[n->items[i + 1]];
    if ((ordered ? PyODict_SetItem(o, k, v) : PyDict_SetItem(o, k, v)) < 0) Py_CLEAR(o);
  }
  return o;
}

static PyObject *function_from(const fl_result_node *n, PyObject **made) {
  PyObject *o = PyFunction_NewWithQualName(PyTuple_GET_ITEM(n->object, 0), PyTuple_GET_ITEM(n->object, 1),
                                           PyTuple_GET_ITEM(n->object, 2));
  if (!o) return NULL;
  PyFunctionObject *f = (PyFunctionObject *)o;
  PyObject **places[] = {&f->func_defaults, &f->func_kwdefaults, &f->func_closure, &f->func_annotations};
  for (int i = 0; i < 4; i++)
    if (made[n->items[i]] != Py_None) Py_XSETREF(*places[i], Py_NewRef(made[n->items[i]]));
  return o;
}

static PyObject *call_from(const fl_result_node *n, PyObject **made) {
  int n_args = n->n - (int)n->index;
  PyObject *args = PyTuple_New(n_args), *o = NULL, *done;
  for (int i = 0; args && i < n_args; i++) PyTuple_SET_ITEM(args, i, Py_NewRef(made[n->items[i]]));
  if (args) o = PyObject_CallObject(n->object, args);
  Py_XDECREF(args);
  if (!o || !n->index) return o;
  if (!(done = PyObject_CallMethod(o, "__setstate__", "O", made[n->items[n_args]]))) Py_CLEAR(o);
  Py_XDECREF(done);
  return o;
}

static PyObject *builtin_from(const fl_result_node *n, PyObject **made) {
  PyCFunctionObject *f = (PyCFunctionObject *)n->object;
  return PyCMethod_New(f->m_ml, made[n->items[0]], f->m_module, PyCFunction_GET_CLASS(n->object));
}

static PyObject *make_node(const fl_result_node *n, PyObject **made, PyObject *const *values) {
  PyTypeObject *t = (PyTypeObject *)n->object;
  PyObject *o = NULL, *tmp;
  switch (n->kind) {
  case FL_RESULT_VALUE:
    if (!values[n->index]) PyErr_SetString(PyExc_SystemError, "framelift: a result was not computed");
    return Py_XNewRef(values[n->index]);
  case FL_RESULT_CONST: return Py_NewRef(n->object);
  case FL_RESULT_TUPLE:
  case FL_RESULT_NAMED: o = tuple_from(t, n, made); break;
  case FL_RESULT_LIST:
    o = PyList_New(n->n);
    for (int i = 0; o && i < n->n; i++) PyList_SET_ITEM(o, i, Py_NewRef(made[n->items[i]]));
    return o;
  case FL_RESULT_DICT: o = dict_from(t, n, made); break;
  case FL_RESULT_OBJECT: o = t->tp_alloc(t, 0); break;
  case FL_RESULT_EXCEPTION: o = exception_from(n, made); break;
  case FL_RESULT_TRACEBACK: return fl_raised_make_place(n->object, made[n->items[0]]);
  case FL_RESULT_CELL: return PyCell_New(n->n ? made[n->items[0]] : NULL);
  case FL_RESULT_FUNCTION: return function_from(n, made);
  case FL_RESULT_METHOD: return PyMethod_New(made[n->items[0]], made[n->items[1]]);
  case FL_RESULT_BUILTIN: return builtin_from(n, made);
  case FL_RESULT_TOKEN: return PyContextVar_Set(n->object, made[n->items[0]]);
  case FL_RESULT_GUARD: return fl_inference_guard(true, n->index);
  case FL_RESULT_AUTOCAST:
    return fl_autocast_write(n->object, fl_autocast_nesting(n->object)) < 0 ? NULL : Py_NewRef(n->object);
  case FL_RESULT_CALL: return call_from(n, made);
  case FL_RESULT_GENERATOR: return generator_from(n, made);
  case FL_RESULT_RUNNING: return fl_cpy_generator_new(made[n->items[0]], (PyCodeObject *)n->object);
  case FL_RESULT_STRUCT:
    tmp = tuple_from(&PyTuple_Type, n, made);
    o = tmp ? PyObject_CallOneArg((PyObject *)t, tmp) : NULL;
    Py_XDECREF(tmp);
    return o;
  case FL_RESULT_SET:
    tmp = tuple_from(&PyTuple_Type, n, made);
    o = tmp ? (t == &PySet_Type ? PySet_New(tmp) : PyFrozenSet_New(tmp)) : NULL;
    Py_XDECREF(tmp);
    return o;
  }
  if (o && set_attrs(o, n, made) < 0) Py_CLEAR(o);
  return o;
}

/* What making it has changed. Autocast's state is put back by who knows what it was. */
static void undo(const fl_result_node *n, PyObject *made) {
  if (n->kind == FL_RESULT_TOKEN) fl_vars_undo(made);
  if (n->kind == FL_RESULT_GUARD && n->index) fl_inference_end(Py_NewRef(made));
}

PyObject *fl_result_build(const fl_result *r, PyObject *const *values) {
  const fl_result_node *root = &r->nodes.data[r->root];
  if (root->kind <= FL_RESULT_CONST) return make_node(root, NULL, values);
  PyObject *local[64], **made = local;
  size_t n = r->root + 1, done = 0;
  if (n > 64 && !(made = fl_calloc(n, sizeof *made))) return PyErr_NoMemory();
  for (; done < n; done++)
    if (!(made[done] = make_node(&r->nodes.data[done], made, values))) break;
  PyObject *out = done == n ? Py_NewRef(made[r->root]) : NULL;
  for (size_t i = done; !out && i-- > 0;) undo(&r->nodes.data[i], made[i]);
  for (size_t i = 0; i < done; i++) Py_DECREF(made[i]);
  if (made != local) fl_free(made);
  return out;
}

PyObject *fl_result_build_part(const fl_result *r, PyObject *const *values, const uint32_t *roots, int n,
                               const bool *need, fl_result_made_fn fn, void *ctx) {
  PyObject **made = fl_calloc(r->nodes.len + 1, sizeof *made), *out = PyTuple_New(n);
  bool ok = made && out;
  for (size_t i = 0; ok && i < r->nodes.len; i++) {
    if (!need[i]) continue;
    ok = (made[i] = make_node(&r->nodes.data[i], made, values)) != NULL;
    if (ok && fn) fn(ctx, &r->nodes.data[i], made[i]);
  }
  for (int i = 0; ok && i < n; i++) PyTuple_SET_ITEM(out, i, Py_NewRef(made[roots[i]]));
  for (size_t i = r->nodes.len; made && !ok && i-- > 0;)
    if (made[i]) undo(&r->nodes.data[i], made[i]);
  for (size_t i = 0; made && i < r->nodes.len; i++) Py_XDECREF(made[i]);
  fl_free(made);
  if (ok) return out;
  if (!PyErr_Occurred()) PyErr_NoMemory();
  Py_XDECREF(out);
  return NULL;
}

static bool same_object(PyObject *x, PyObject *y) {
  int same = PyObject_RichCompareBool(x, y, Py_EQ);
  if (same < 0) PyErr_Clear();
  return same > 0;
}

bool fl_result_same_node(const fl_result_node *a, const fl_result_node *b) {
  if (a->kind != b->kind || a->n != b->n || a->n_attrs != b->n_attrs) return false;
  PyObject *x = a->object, *y = b->object;
  switch (a->kind) {
  case FL_RESULT_VALUE: return true;
  case FL_RESULT_CONST:
  case FL_RESULT_GENERATOR: return fl_const_equal(x, y);
  case FL_RESULT_TRACEBACK:
  case FL_RESULT_AUTOCAST: return same_object(x, y);
  case FL_RESULT_BUILTIN:
    return ((PyCFunctionObject *)x)->m_ml == ((PyCFunctionObject *)y)->m_ml &&
           ((PyCFunctionObject *)x)->m_module == ((PyCFunctionObject *)y)->m_module &&
           PyCFunction_GET_CLASS(x) == PyCFunction_GET_CLASS(y);
  case FL_RESULT_FUNCTION:
    for (int i = 0; i < 4; i++)
      if (!fl_const_equal(PyTuple_GET_ITEM(x, i), PyTuple_GET_ITEM(y, i))) return false;
    return true;
  default: return x == y && a->index == b->index;
  }
}

void fl_result_release(fl_result *r) {
  Py_CLEAR(r->keep);
  fl_free(r->nodes.data);
  memset(r, 0, sizeof *r);
}
