/* Context variables: what a call sets it must reset. Until it does, unknown code sees what was set, at replay too. */
#include "capture/cpython/compat.h"

#include "capture/eval_impl.h"

static PyObject *var_value(PyObject *var) { /* new reference; NULL without exception when not set */
  PyObject *v = NULL;
  if (PyContextVar_Get(var, NULL, &v) < 0) PyErr_Clear();
  return v;
}

void fl_vars_will_change(fl_rec *r, PyObject *var) {
  fl_eval_state *st = fl_eval_here;
  if (!var || !PyContextVar_CheckExact(var)) return;
  if (!st->vars && !(st->vars = PyDict_New())) goto fail;
  if (PyDict_Contains(st->vars, var)) return;
  PyObject *now = var_value(var), *pair = now ? PyTuple_Pack(1, now) : PyTuple_New(0);
  Py_XDECREF(now);
  if (!pair || PyDict_SetItem(st->vars, var, pair) < 0) goto fail;
  Py_DECREF(pair);
  return;
fail:
  fl_tell(r, -1);
}

static PyObject *open_pair(const fl_eval_state *st, Py_ssize_t i) { return PyList_GET_ITEM(st->sets, i); }
static Py_ssize_t n_open(const fl_eval_state *st) { return st->sets ? PyList_GET_SIZE(st->sets) : 0; }

static int changed(fl_eval_state *st, PyObject *callable, PyObject *var, PyObject *arg, PyObject *result) {
  Py_ssize_t n = n_open(st);
  PyObject *name = PyObject_GetAttr(callable, fl_n.__name__);
  const char *s = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : "";
  bool sets = s && !strcmp(s, "set");
  Py_XDECREF(name);
  if (!s || !name) return -1;
  if (!sets) {
    bool last = n && arg == PyTuple_GET_ITEM(open_pair(st, n - 1), 1);
    st->odd_vars |= !last;
    return last ? PyList_SetSlice(st->sets, n - 1, n, NULL) : 0;
  }
  if (!st->sets && !(st->sets = PyList_New(0))) return -1;
  PyObject *pair = PyTuple_Pack(2, var, result);
  int rc = pair ? PyList_Append(st->sets, pair) : -1;
  Py_XDECREF(pair);
  return rc;
}

void fl_vars_changed(fl_rec *r, PyObject *callable, PyObject *var, PyObject *arg, PyObject *result) {
  if (result && var && PyContextVar_CheckExact(var)) fl_tell(r, changed(fl_eval_here, callable, var, arg, result));
}

/* Was it set and that not undone? What it was set to may be what it held, now, and not in another call. */
static bool is_open(const fl_eval_state *st, PyObject *var) {
  for (Py_ssize_t i = 0; i < n_open(st); i++)
    if (PyTuple_GET_ITEM(open_pair(st, i), 0) == var) return true;
  return false;
}

bool fl_vars_own(PyObject *var) {
  const fl_eval_state *st = fl_eval_here;
  if (!var || !st->vars || PyDict_Contains(st->vars, var) <= 0) return false;
  return is_open(st, var) || st->odd_vars;
}

/* Whether it holds what it held before the call. */
static bool is_restored(PyObject *var, PyObject *before) {
  PyObject *now = var_value(var), *was = PyTuple_GET_SIZE(before) ? PyTuple_GET_ITEM(before, 0) : NULL;
  Py_XDECREF(now);
  return now == was;
}

const char *fl_vars_why_no_break(const fl_eval_state *st) {
  PyObject *var, *before;
  Py_ssize_t pos = 0;
  while (st->vars && PyDict_Next(st->vars, &pos, &var, &before))
    if (st->odd_vars || (!fl_vars_own(var) && !is_restored(var, before))) return "context variables are set";
  return NULL;
}

PyObject *fl_vars_tokens(const fl_eval_state *st) {
  Py_ssize_t n = n_open(st);
  PyObject *t = PyTuple_New(n);
  for (Py_ssize_t i = 0; t && i < n; i++) PyTuple_SET_ITEM(t, i, Py_NewRef(PyTuple_GET_ITEM(open_pair(st, i), 1)));
  return t;
}

void fl_call_end(fl_rec *r, fl_eval_state *st) {
  PyObject *var, *before, *t, *v, *tb;
  Py_ssize_t pos = 0;
  if (!st->vars) return;
  PyErr_Fetch(&t, &v, &tb);
  while (PyDict_Next(st->vars, &pos, &var, &before))
    if (is_open(st, var) || !is_restored(var, before)) fl_rec_give_up(r, "context variable changed", "ContextVar.set");
  Py_CLEAR(st->vars);
  Py_CLEAR(st->sets);
  PyErr_Restore(t, v, tb);
}
