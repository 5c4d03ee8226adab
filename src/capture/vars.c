#include "capture/vars.h"

#include "capture/guards.h"

enum { MAX_DEPTH = 8, MAX_KEPT = 256 };

static PyObject *var_of(PyObject *token) { /* borrowed: the token holds it */
  PyObject *var = PyObject_GetAttrString(token, "var");
  if (!var) PyErr_Clear();
  Py_XDECREF(var);
  return var;
}

/* What the variable held before this token's set; borrowed, NULL when it held nothing. */
static PyObject *old_value(PyObject *token) {
  PyObject *v = PyObject_GetAttrString(token, "old_value");
  if (!v) PyErr_Clear();
  Py_XDECREF(v);
  return v;
}

bool fl_vars_token(PyObject *tokens, PyObject *token, PyObject **out_var, PyObject **out_value) {
  Py_ssize_t n = PyTuple_GET_SIZE(tokens), i = 0;
  while (i < n && PyTuple_GET_ITEM(tokens, i) != token) i++;
  if (i == n || !(*out_var = var_of(token))) return false;
  for (i++; i < n; i++)
    if (var_of(PyTuple_GET_ITEM(tokens, i)) == *out_var)
      return (*out_value = old_value(PyTuple_GET_ITEM(tokens, i))) != NULL;
  PyObject *now = NULL;
  if (PyContextVar_Get(*out_var, NULL, &now) < 0) PyErr_Clear();
  Py_XDECREF(now); /* the context holds it */
  return (*out_value = now) != NULL;
}

void fl_vars_undo(PyObject *token) {
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  PyObject *var = var_of(token);
  if (!var || PyContextVar_Reset(var, token) < 0) PyErr_Clear();
  PyErr_Restore(type, value, tb);
}

void fl_vars_reset(PyObject *tokens) {
  for (Py_ssize_t i = PyTuple_GET_SIZE(tokens); i-- > 0;) fl_vars_undo(PyTuple_GET_ITEM(tokens, i));
}

static bool is_container(PyObject *o) {
  return PyDict_CheckExact(o) || PyList_CheckExact(o) || PySet_Check(o) || PyTuple_CheckExact(o);
}

static int keep(fl_vars_watch *w, PyObject *o, int depth) {
  if (!is_container(o) || depth > MAX_DEPTH || w->kept.len >= MAX_KEPT) return 0;
  for (size_t i = 0; i < w->kept.len; i++)
    if (w->kept.data[i].object == o) return 0;
  PyObject *snap = PyTuple_CheckExact(o) ? Py_NewRef(o) : fl_guards_snapshot(o);
  fl_kept k = {o, snap, 0};
  if (!snap || !FL_PUSH(&w->kept, k)) {
    Py_XDECREF(snap);
    return PyErr_NoMemory(), -1;
  }
  Py_INCREF(o);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(snap); i++)
    if (keep(w, PyTuple_GET_ITEM(snap, i), depth + 1) < 0) return -1;
  return 0;
}

static int begin(fl_vars_watch *w, PyObject *tokens) {
  PyObject *var, *value;
  if (!(w->vars = PyList_New(0)) || !(w->values = PyList_New(0))) return -1;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tokens); i++) {
    if (!fl_vars_token(tokens, PyTuple_GET_ITEM(tokens, i), &var, &value)) continue;
    if (PyList_Append(w->vars, var) < 0 || PyList_Append(w->values, value) < 0 || keep(w, value, 0) < 0) return -1;
  }
  return 0;
}

int fl_vars_watch_begin(fl_vars_watch *w, PyObject *tokens) {
  *w = (fl_vars_watch){0};
  if (!PyTuple_GET_SIZE(tokens)) return 0;
  if (begin(w, tokens) < 0) {
    (void)fl_vars_watch_end(w);
    return -1;
  }
  for (size_t i = 0; i < w->kept.len; i++) w->kept.data[i].refs = Py_REFCNT(w->kept.data[i].object);
  return 0;
}

static bool same(const fl_kept *k) {
  if (PyTuple_CheckExact(k->object)) return true;
  if (Py_REFCNT(k->object) != k->refs) return false;
  PyObject *now = fl_guards_snapshot(k->object);
  bool ok = now && PyTuple_GET_SIZE(now) == PyTuple_GET_SIZE(k->snapshot);
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(now); i++)
    ok = PyTuple_GET_ITEM(now, i) == PyTuple_GET_ITEM(k->snapshot, i);
  Py_XDECREF(now);
  return ok;
}

const char *fl_vars_watch_end(fl_vars_watch *w) {
  const char *why = NULL;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  /* The last value of a variable is what it holds. */
  for (Py_ssize_t i = w->values ? PyList_GET_SIZE(w->values) : 0; !why && i-- > 0;) {
    PyObject *var = PyList_GET_ITEM(w->vars, i), *now = NULL;
    bool hidden = false;
    for (Py_ssize_t k = i + 1; k < PyList_GET_SIZE(w->vars); k++) hidden |= PyList_GET_ITEM(w->vars, k) == var;
    if (hidden) continue;
    if (PyContextVar_Get(var, NULL, &now) < 0) PyErr_Clear();
    if (now != PyList_GET_ITEM(w->values, i)) why = "a context variable";
    Py_XDECREF(now);
  }
  for (size_t i = 0; !why && i < w->kept.len; i++)
    if (!same(&w->kept.data[i])) why = "what a context variable holds";
  for (size_t i = 0; i < w->kept.len; i++) {
    Py_DECREF(w->kept.data[i].object);
    Py_DECREF(w->kept.data[i].snapshot);
  }
  fl_free(w->kept.data);
  Py_CLEAR(w->vars);
  Py_CLEAR(w->values);
  *w = (fl_vars_watch){0};
  PyErr_Restore(type, value, tb);
  return why;
}
