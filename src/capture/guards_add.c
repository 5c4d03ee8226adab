/* Guards: writing down what was read, and what the call itself changed. */
#include "capture/argspec.h"
#include "capture/cpython/compat.h"
#include "capture/guards.h"

int fl_guards_add_item(fl_guards *g, PyObject *dict, PyObject *key, PyObject *value, bool *changed) {
  uint32_t at;
  if (!fl_ptrmap_get(&g->dicts, dict, &at)) {
    fl_dict_guard n = {.dict = dict, .expected = PyDict_New()};
    at = (uint32_t)g->dict.len;
    if (!n.expected || fl_cpy_watch_dict(dict) < 0 || !FL_PUSH(&g->dict, n)) {
      PyErr_Clear();
      Py_XDECREF(n.expected);
      return -1;
    }
    Py_INCREF(dict);
    if (!fl_ptrmap_set(&g->dicts, dict, at)) return -1;
  }
  PyObject *expected = g->dict.data[at].expected, *want = value ? value : fl_guards_absent();
  PyObject *old = PyDict_SetDefault(expected, key, want);
  if (!old) {
    PyErr_Clear();
    return -1;
  }
  if (old != want && (old == fl_guards_absent() || want == fl_guards_absent() || !fl_const_equal(old, want)))
    *changed = true;
  return 0;
}

int fl_guards_add_instance(fl_guards *g, PyObject *obj) {
  if (fl_ptrmap_get(&g->insts, obj, NULL)) return 0;
  PyObject **slot = _PyObject_GetDictPtr(obj);
  fl_inst_guard n = {obj, Py_TYPE(obj), slot, slot ? *slot : NULL};
  if (!FL_PUSH(&g->inst, n)) return -1;
  Py_INCREF(obj);
  Py_INCREF(n.type);
  Py_XINCREF(n.dict);
  return fl_ptrmap_set(&g->insts, obj, 0) ? 0 : -1;
}

int fl_guards_add_type(fl_guards *g, PyTypeObject *type, PyObject *name, PyObject *value, bool *changed) {
  uint32_t at;
  if (!fl_ptrmap_get(&g->types, type, &at)) {
    fl_type_guard n = {.type = type, .expected = PyDict_New()};
    at = (uint32_t)g->type.len;
    if (!n.expected || !FL_PUSH(&g->type, n)) {
      PyErr_Clear();
      Py_XDECREF(n.expected);
      return -1;
    }
    Py_INCREF(type);
    if (!fl_ptrmap_set(&g->types, type, at)) return -1;
  }
  PyObject *want = value ? value : fl_guards_absent();
  PyObject *old = PyDict_SetDefault(g->type.data[at].expected, name, want);
  if (!old) {
    PyErr_Clear();
    return -1;
  }
  if (old != want) *changed = true;
  return 0;
}

int fl_guards_add_function(fl_guards *g, PyObject *func) {
  if (fl_ptrmap_get(&g->funcs, func, NULL)) return 0;
  PyFunctionObject *f = (PyFunctionObject *)func;
  fl_func_guard n = {func, f->func_code, f->func_defaults, f->func_kwdefaults, f->func_closure};
  if (!FL_PUSH(&g->func, n)) return -1;
  Py_INCREF(func);
  Py_XINCREF(n.code);
  Py_XINCREF(n.defaults);
  Py_XINCREF(n.kwdefaults);
  Py_XINCREF(n.closure);
  if (!fl_ptrmap_set(&g->funcs, func, 0)) return -1;
  return n.kwdefaults && PyDict_CheckExact(n.kwdefaults) ? fl_guards_add_contents(g, n.kwdefaults) : 0;
}

int fl_guards_add_cell(fl_guards *g, PyObject *cell, PyObject *value, bool *changed) {
  uint32_t at;
  if (fl_ptrmap_get(&g->cells, cell, &at)) {
    if (g->cell.data[at].value != value) *changed = true;
    return 0;
  }
  fl_cell_guard n = {cell, value};
  if (!FL_PUSH(&g->cell, n)) return -1;
  Py_INCREF(cell);
  Py_XINCREF(value);
  return fl_ptrmap_set(&g->cells, cell, (uint32_t)g->cell.len - 1) ? 0 : -1;
}

PyObject *fl_guards_snapshot(PyObject *o) {
  PyObject *snap = PyList_Check(o) ? PyList_AsTuple(o) : fl_guards_members(o);
  if (!snap) PyErr_Clear();
  return snap;
}

int fl_guards_add_contents(fl_guards *g, PyObject *o) {
  if (fl_ptrmap_get(&g->conts, o, NULL)) return 0;
  PyObject *snap = fl_guards_snapshot(o);
  int rc = snap ? fl_guards_add_snapshot(g, o, snap) : -1;
  Py_XDECREF(snap);
  return rc;
}

int fl_guards_add_snapshot(fl_guards *g, PyObject *o, PyObject *snap) {
  if (fl_ptrmap_get(&g->conts, o, NULL)) return 0;
  if (PyDict_Check(o) && fl_cpy_watch_dict(o) < 0) {
    PyErr_Clear();
    return -1;
  }
  bool ok;
  if (PyList_Check(o)) {
    fl_list_guard n = {o, snap};
    ok = FL_PUSH(&g->list, n);
  } else {
    fl_cont_guard n = {o, snap, 0};
    ok = FL_PUSH(&g->cont, n);
  }
  if (!ok) return -1;
  Py_INCREF(o);
  Py_INCREF(snap);
  return fl_ptrmap_set(&g->conts, o, 0) ? 0 : -1;
}

int fl_guards_add_descr(fl_guards *g, PyObject *descr, PyObject *obj, PyObject *value) {
  for (size_t i = g->descr.len; i-- > 0 && i + 64 > g->descr.len;)
    if (g->descr.data[i].descr == descr && g->descr.data[i].obj == obj) return 0;
  fl_descr_guard n = {descr, obj, value};
  if (!FL_PUSH(&g->descr, n)) return -1;
  Py_INCREF(descr);
  Py_INCREF(obj);
  Py_XINCREF(value);
  return 0;
}

static bool same_call(const fl_query_guard *q, PyObject *callable, PyObject *const *args, size_t n, PyObject *kwnames) {
  if (q->callable != callable || (size_t)PyTuple_GET_SIZE(q->args) != n || q->kwnames != kwnames) return false;
  for (size_t i = 0; i < n; i++)
    if (PyTuple_GET_ITEM(q->args, (Py_ssize_t)i) != args[i]) return false;
  return true;
}

static int push_query(fl_guards *g, PyObject *callable, PyObject *const *args, size_t n, PyObject *kwnames,
                      PyObject *value, bool cached, bool elements) {
  PyObject *t = PyTuple_New((Py_ssize_t)n);
  if (!t) {
    PyErr_Clear();
    return -1;
  }
  for (size_t i = 0; i < n; i++) PyTuple_SET_ITEM(t, (Py_ssize_t)i, Py_NewRef(args[i]));
  fl_query_guard q = {
      .callable = callable, .args = t, .kwnames = kwnames, .value = value, .cached = cached, .elements = elements};
  if (!FL_PUSH(&g->query, q)) {
    Py_DECREF(t);
    return -1;
  }
  Py_INCREF(callable);
  Py_XINCREF(kwnames);
  Py_INCREF(value);
  return 0;
}

static size_t n_args(size_t nargs, PyObject *kwnames) {
  return nargs + (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0);
}

int fl_guards_add_query(fl_guards *g, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                        PyObject *value) {
  size_t n = n_args(nargs, kwnames);
  for (size_t i = 0; i < g->query.len; i++)
    if (same_call(&g->query.data[i], callable, args, n, kwnames)) return 0;
  return push_query(g, callable, args, n, kwnames, value, false, false);
}

int fl_guards_add_cached(fl_guards *g, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                         PyObject *value, bool elements) {
  return push_query(g, callable, args, n_args(nargs, kwnames), kwnames, value, true, elements);
}

/* --- what the call itself changes --- */

bool fl_guards_item(const fl_guards *g, PyObject *dict, PyObject *key, PyObject **out_value) {
  for (size_t i = 0; i < g->dict.len; i++) {
    if (g->dict.data[i].dict != dict) continue;
    PyObject *v = PyDict_GetItemWithError(g->dict.data[i].expected, key);
    if (!v && PyErr_Occurred()) PyErr_Clear();
    *out_value = v == fl_guards_absent() ? NULL : v;
    return v != NULL;
  }
  return false;
}

bool fl_guards_has(const fl_guards *g, PyObject *container) {
  return fl_ptrmap_get(&g->conts, container, NULL) || fl_ptrmap_get(&g->cells, container, NULL);
}

static bool holds(PyObject *tuple, PyObject *o) {
  for (Py_ssize_t i = 0; tuple && i < PyTuple_GET_SIZE(tuple); i++) {
    PyObject *x = PyTuple_GET_ITEM(tuple, i);
    if (x == o || (PyTuple_CheckExact(x) && holds(x, o))) return true;
  }
  return false;
}

static bool is_requires_grad(PyObject *descr) {
  return PyObject_TypeCheck(descr, &PyGetSetDescr_Type) &&
         PyUnicode_CompareWithASCIIString(((PyDescrObject *)descr)->d_name, "requires_grad") == 0;
}

static bool matters_elsewhere(const fl_guards *g, PyObject *dict, PyObject *key, PyObject *o) {
  for (size_t i = 0; i < g->dict.len; i++) {
    Py_ssize_t pos = 0;
    PyObject *k, *v;
    while (PyDict_Next(g->dict.data[i].expected, &pos, &k, &v))
      if ((v == o || (PyTuple_CheckExact(v) && holds(v, o))) &&
          (g->dict.data[i].dict != dict || !fl_const_equal(k, key)))
        return true;
  }
  for (size_t i = 0; i < g->inst.len; i++)
    if (g->inst.data[i].obj == o && g->inst.data[i].dict) return true;
  for (size_t i = 0; i < g->func.len; i++)
    if (holds(g->func.data[i].defaults, o)) return true;
  for (size_t i = 0; i < g->cell.len; i++)
    if (g->cell.data[i].value == o) return true;
  for (size_t i = 0; i < g->list.len; i++)
    if (holds(g->list.data[i].snapshot, o)) return true;
  for (size_t i = 0; i < g->cont.len; i++)
    if (g->cont.data[i].obj == dict || holds(g->cont.data[i].snapshot, o)) return true;
  for (size_t i = 0; i < g->type.len; i++) {
    Py_ssize_t pos = 0;
    PyObject *k, *v;
    while (PyDict_Next(g->type.data[i].expected, &pos, &k, &v))
      if (v == o) return true;
  }
  for (size_t i = 0; i < g->descr.len; i++) {
    const fl_descr_guard *d = &g->descr.data[i];
    if (d->value == o || (d->obj == o && !is_requires_grad(d->descr))) return true;
  }
  for (size_t i = 0; i < g->query.len; i++)
    if (g->query.data[i].value == o || holds(g->query.data[i].args, o)) return true;
  return false;
}

bool fl_guards_forget_tensor(fl_guards *g, PyObject *dict, PyObject *key, PyObject *o) {
  if (matters_elsewhere(g, dict, key, o)) return false;
  g->watched = false;
  for (size_t i = 0; i < g->dict.len; i++)
    if (g->dict.data[i].dict == dict && PyDict_DelItem(g->dict.data[i].expected, key) < 0) PyErr_Clear();
  for (size_t i = g->inst.len; i-- > 0;) {
    if (g->inst.data[i].obj != o) continue;
    fl_inst_guard last = g->inst.data[i];
    g->inst.data[i] = g->inst.data[--g->inst.len];
    Py_DECREF(last.obj);
    Py_DECREF(last.type);
  }
  for (size_t i = g->descr.len; i-- > 0;) {
    if (g->descr.data[i].obj != o) continue;
    fl_descr_guard last = g->descr.data[i];
    g->descr.data[i] = g->descr.data[--g->descr.len];
    Py_DECREF(last.descr);
    Py_DECREF(last.obj);
    Py_DECREF(last.value);
  }
  return true;
}
