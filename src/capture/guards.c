#include "capture/guards.h"

#include <string.h>

#include "capture/argspec.h"
#include "capture/cpython/compat.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* ma_version_tag, until CPython 3.14 removes it */
#endif

static PyObject absent_object; /* its address alone means "no such key" */
#define ABSENT (&absent_object)

static PyObject *absent(void) {
  if (!Py_TYPE(ABSENT)) {
    Py_SET_REFCNT(ABSENT, 1 << 30);
    Py_SET_TYPE(ABSENT, &PyBaseObject_Type);
  }
  return ABSENT;
}

static uint64_t dict_version(PyObject *d) { return ((PyDictObject *)d)->ma_version_tag; }

/* What a value is called in a message: short, and without running Python. */
static void describe(PyObject *o, char *out, size_t size) {
  if (o == ABSENT)
    snprintf(out, size, "nothing");
  else if (PyUnicode_CheckExact(o)) {
    const char *s = PyUnicode_AsUTF8(o);
    if (!s) PyErr_Clear();
    snprintf(out, size, "%.40s", s ? s : "?");
  } else if (PyFunction_Check(o)) {
    const char *s = PyUnicode_AsUTF8(((PyFunctionObject *)o)->func_qualname);
    if (!s) PyErr_Clear();
    snprintf(out, size, "%.60s", s ? s : "?");
  } else if (PyCFunction_Check(o))
    snprintf(out, size, "%.60s", ((PyCFunctionObject *)o)->m_ml->ml_name);
  else if (PyType_Check(o))
    snprintf(out, size, "%.60s", ((PyTypeObject *)o)->tp_name);
  else
    snprintf(out, size, "a %.50s", Py_TYPE(o)->tp_name);
}

static void say(char *why, size_t size, const char *kind, PyObject *a, PyObject *b) {
  if (!why) return;
  char x[80], y[80];
  describe(a, x, sizeof x);
  if (b) describe(b, y, sizeof y);
  snprintf(why, size, b ? "%s: %s of %s" : "%s: %s", kind, x, b ? y : "");
}

/* --- the checks, one per row of guards.def --- */

static bool dict_precise(fl_dict_guard *g, char *why, size_t size) {
  Py_ssize_t pos = 0;
  PyObject *key, *want;
  while (PyDict_Next(g->expected, &pos, &key, &want)) {
    PyObject *have = PyDict_GetItemWithError(g->dict, key);
    if (!have && PyErr_Occurred()) PyErr_Clear();
    if (want == ABSENT ? have == NULL : have && fl_const_equal(have, want)) continue;
    say(why, size, "namespace", key, NULL);
    return false;
  }
  return true;
}

static inline bool check_dict(fl_dict_guard *g, char *why, size_t size) {
  uint64_t v = dict_version(g->dict);
  if (v == g->version) return true;
  if (!dict_precise(g, why, size)) return false;
  g->version = v;
  return true;
}

static inline bool check_inst(fl_inst_guard *g, char *why, size_t size) {
  if (Py_TYPE(g->obj) == g->type && (!g->slot || *g->slot == g->dict)) return true;
  say(why, size, "instance", (PyObject *)g->type, NULL);
  return false;
}

static bool type_precise(fl_type_guard *g, char *why, size_t size) {
  Py_ssize_t pos = 0;
  PyObject *key, *want;
  while (PyDict_Next(g->expected, &pos, &key, &want)) {
    PyObject *have = _PyType_Lookup(g->type, key);
    if (PyErr_Occurred()) PyErr_Clear();
    if (want == ABSENT ? have == NULL : have == want) continue;
    say(why, size, "type", key, (PyObject *)g->type);
    return false;
  }
  return true;
}

static inline bool check_type(fl_type_guard *g, char *why, size_t size) {
  if (g->type->tp_version_tag == g->version && g->version) return true;
  if (!type_precise(g, why, size)) return false;
  g->version = g->type->tp_version_tag;
  return true;
}

static inline bool check_func(fl_func_guard *g, char *why, size_t size) {
  PyFunctionObject *f = (PyFunctionObject *)g->func;
  if (f->func_code == g->code && f->func_defaults == g->defaults && f->func_kwdefaults == g->kwdefaults &&
      f->func_closure == g->closure)
    return true;
  say(why, size, "function", g->func, NULL);
  return false;
}

static inline bool check_cell(fl_cell_guard *g, char *why, size_t size) {
  PyObject *have = PyCell_GET(g->cell);
  if (have == g->value || (have && g->value && fl_const_equal(have, g->value))) return true;
  say(why, size, "cell", g->value ? g->value : ABSENT, NULL);
  return false;
}

static inline bool check_list(fl_list_guard *g, char *why, size_t size) {
  Py_ssize_t n = PyTuple_GET_SIZE(g->snapshot);
  if (PyList_GET_SIZE(g->list) == n && (!n || !memcmp(((PyListObject *)g->list)->ob_item,
                                                      &PyTuple_GET_ITEM(g->snapshot, 0), (size_t)n * sizeof(void *))))
    return true;
  say(why, size, "list", g->list, NULL);
  return false;
}

/* Members in iteration order; of dicts keys and values alternately. New reference, or NULL (no exception). */
static PyObject *snapshot_of(PyObject *o) {
  PyObject *t = NULL;
  if (PyDict_CheckExact(o)) {
    Py_ssize_t pos = 0, i = 0;
    PyObject *k, *v;
    t = PyTuple_New(PyDict_GET_SIZE(o) * 2);
    while (t && PyDict_Next(o, &pos, &k, &v) && i < PyTuple_GET_SIZE(t)) {
      PyTuple_SET_ITEM(t, i++, Py_NewRef(k));
      PyTuple_SET_ITEM(t, i++, Py_NewRef(v));
    }
  } else if (PyDict_Check(o)) { /* OrderedDict and the like: their own order */
    PyObject *keys = PySequence_List(o);
    Py_ssize_t n = keys ? PyList_GET_SIZE(keys) : 0;
    t = keys ? PyTuple_New(n * 2) : NULL;
    for (Py_ssize_t i = 0; t && i < n; i++) {
      PyObject *k = PyList_GET_ITEM(keys, i), *v = PyDict_GetItemWithError(o, k);
      PyTuple_SET_ITEM(t, 2 * i, Py_NewRef(k));
      PyTuple_SET_ITEM(t, 2 * i + 1, Py_NewRef(v ? v : Py_None));
    }
    Py_XDECREF(keys);
  } else {
    t = PySequence_Tuple(o);
  }
  if (PyErr_Occurred()) PyErr_Clear();
  return t;
}

static bool snapshot_equal(PyObject *a, PyObject *b) {
  if (!a || PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++)
    if (!fl_const_equal(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
  return true;
}

static bool cont_precise(fl_cont_guard *g, char *why, size_t size) {
  PyObject *now = snapshot_of(g->obj);
  bool same = snapshot_equal(now, g->snapshot);
  Py_XDECREF(now);
  if (!same) say(why, size, "container", g->obj, NULL);
  return same;
}

static inline bool check_cont(fl_cont_guard *g, char *why, size_t size) {
  /* An OrderedDict's order can change without its version. */
  if (!PyDict_Check(g->obj) || (!PyDict_CheckExact(g->obj) && PyDict_GET_SIZE(g->obj) > 1))
    return cont_precise(g, why, size);
  uint64_t v = dict_version(g->obj);
  if (v == g->version) return true;
  if (!cont_precise(g, why, size)) return false;
  g->version = v;
  return true;
}

static bool same_answer(PyObject *have, PyObject *want) {
  if (!have) PyErr_Clear();
  bool same = have && want ? fl_const_equal(have, want) : have == want;
  Py_XDECREF(have);
  return same;
}

static bool check_descr(fl_descr_guard *g, char *why, size_t size) {
  descrgetfunc get = Py_TYPE(g->descr)->tp_descr_get;
  if (get && same_answer(get(g->descr, g->obj, (PyObject *)Py_TYPE(g->obj)), g->value)) return true;
  PyObject *name =
      PyObject_TypeCheck(g->descr, &PyGetSetDescr_Type) || PyObject_TypeCheck(g->descr, &PyMemberDescr_Type)
          ? ((PyDescrObject *)g->descr)->d_name
          : g->descr;
  say(why, size, "attribute", name, g->obj);
  return false;
}

static bool check_query(fl_query_guard *g, char *why, size_t size) {
  Py_ssize_t kw = g->kwnames ? PyTuple_GET_SIZE(g->kwnames) : 0, n = PyTuple_GET_SIZE(g->args);
  PyObject **args = n ? &PyTuple_GET_ITEM(g->args, 0) : NULL;
  if (same_answer(PyObject_Vectorcall(g->callable, args, (size_t)(n - kw), g->kwnames), g->value)) return true;
  say(why, size, "query", g->callable, NULL);
  return false;
}

/* --- building --- */

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
  PyObject *expected = g->dict.data[at].expected, *want = value ? value : absent();
  PyObject *old = PyDict_SetDefault(expected, key, want);
  if (!old) {
    PyErr_Clear();
    return -1;
  }
  if (old != want && (old == ABSENT || want == ABSENT || !fl_const_equal(old, want))) *changed = true;
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
  PyObject *want = value ? value : absent();
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
  PyObject *snap = PyList_Check(o) ? PyList_AsTuple(o) : snapshot_of(o);
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

int fl_guards_add_query(fl_guards *g, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                        PyObject *value) {
  size_t n = nargs + (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0);
  for (size_t i = 0; i < g->query.len; i++)
    if (same_call(&g->query.data[i], callable, args, n, kwnames)) return 0;
  PyObject *t = PyTuple_New((Py_ssize_t)n);
  if (!t) {
    PyErr_Clear();
    return -1;
  }
  for (size_t i = 0; i < n; i++) PyTuple_SET_ITEM(t, (Py_ssize_t)i, Py_NewRef(args[i]));
  fl_query_guard q = {callable, t, kwnames, value};
  if (!FL_PUSH(&g->query, q)) {
    Py_DECREF(t);
    return -1;
  }
  Py_INCREF(callable);
  Py_XINCREF(kwnames);
  Py_INCREF(value);
  return 0;
}

/* --- all of them --- */

bool fl_guards_check(fl_guards *g, char *why, size_t size) {
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++)                                                                             \
    if (!check_##kind(&g->kind.data[i], why, size)) return false;
#include "capture/guards.def"
#undef FL_GUARD
  return true;
}

/* Whether the call wrote to keys of this dictionary; then the others are compared now, and all of them next time. */
static bool arm_dict(fl_dict_guard *g, fl_written_fn written, void *ctx, char *why, size_t size, bool *ok) {
  Py_ssize_t pos = 0;
  PyObject *key, *want;
  bool any = false;
  while (PyDict_Next(g->expected, &pos, &key, &want)) any |= written(ctx, g->dict, key);
  pos = 0;
  while (any && *ok && PyDict_Next(g->expected, &pos, &key, &want)) {
    PyObject *have = written(ctx, g->dict, key) ? want : PyDict_GetItemWithError(g->dict, key);
    if (!have && PyErr_Occurred()) PyErr_Clear();
    *ok = want == ABSENT ? have == NULL || have == want : have && fl_const_equal(have, want);
    if (!*ok) say(why, size, "namespace", key, NULL);
  }
  return any;
}

bool fl_guards_arm(fl_guards *g, fl_written_fn written, void *ctx, char *why, size_t size) {
  fl_ptrmap *maps[] = {&g->dicts, &g->insts, &g->types, &g->funcs, &g->cells, &g->conts};
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) fl_ptrmap_release(maps[i]);
  bool ok = true;
  /* Zeroed versions never match, so that everything is looked up again once. */
  for (size_t i = 0; i < g->dict.len && ok; i++)
    if (!arm_dict(&g->dict.data[i], written, ctx, why, size, &ok)) ok = check_dict(&g->dict.data[i], why, size);
  for (size_t i = 0; i < g->cell.len && ok; i++)
    ok = written(ctx, g->cell.data[i].cell, NULL) || check_cell(&g->cell.data[i], why, size);
  for (size_t i = 0; i < g->list.len && ok; i++)
    ok = written(ctx, g->list.data[i].list, NULL) || check_list(&g->list.data[i], why, size);
  for (size_t i = 0; i < g->cont.len && ok; i++)
    ok = written(ctx, g->cont.data[i].obj, NULL) || check_cont(&g->cont.data[i], why, size);
#define ARM(kind)                                                                                                      \
  for (size_t i = 0; i < g->kind.len && ok; i++) ok = check_##kind(&g->kind.data[i], why, size)
  ARM(inst);
  ARM(type);
  ARM(func);
  ARM(descr);
  ARM(query);
#undef ARM
  return ok;
}

/* --- what the call itself changes --- */

bool fl_guards_item(const fl_guards *g, PyObject *dict, PyObject *key, PyObject **out_value) {
  for (size_t i = 0; i < g->dict.len; i++) {
    if (g->dict.data[i].dict != dict) continue;
    PyObject *v = PyDict_GetItemWithError(g->dict.data[i].expected, key);
    if (!v && PyErr_Occurred()) PyErr_Clear();
    *out_value = v == ABSENT ? NULL : v;
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

#define VISIT3(a, b, c)                                                                                                \
  do {                                                                                                                 \
    Py_VISIT(a);                                                                                                       \
    Py_VISIT(b);                                                                                                       \
    Py_VISIT(c);                                                                                                       \
    return 0;                                                                                                          \
  } while (0)
static int visit_dict(const fl_dict_guard *x, visitproc visit, void *arg) { VISIT3(x->dict, x->expected, NULL); }
static int visit_inst(const fl_inst_guard *x, visitproc visit, void *arg) { VISIT3(x->obj, x->type, x->dict); }
static int visit_type(const fl_type_guard *x, visitproc visit, void *arg) { VISIT3(x->type, x->expected, NULL); }
static int visit_func(const fl_func_guard *x, visitproc visit, void *arg) {
  Py_VISIT(x->func);
  Py_VISIT(x->code);
  VISIT3(x->defaults, x->kwdefaults, x->closure);
}
static int visit_cell(const fl_cell_guard *x, visitproc visit, void *arg) { VISIT3(x->cell, x->value, NULL); }
static int visit_list(const fl_list_guard *x, visitproc visit, void *arg) { VISIT3(x->list, x->snapshot, NULL); }
static int visit_cont(const fl_cont_guard *x, visitproc visit, void *arg) { VISIT3(x->obj, x->snapshot, NULL); }
static int visit_descr(const fl_descr_guard *x, visitproc visit, void *arg) { VISIT3(x->descr, x->obj, x->value); }
static int visit_query(const fl_query_guard *x, visitproc visit, void *arg) {
  Py_VISIT(x->kwnames);
  VISIT3(x->callable, x->args, x->value);
}

int fl_guards_traverse(const fl_guards *g, visitproc visit, void *arg) {
  int rc;
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++)                                                                             \
    if ((rc = visit_##kind(&g->kind.data[i], visit, arg))) return rc;
#include "capture/guards.def"
#undef FL_GUARD
  return 0;
}

static void drop_dict(fl_dict_guard *x) { Py_DECREF(x->dict), Py_DECREF(x->expected); }
static void drop_inst(fl_inst_guard *x) { Py_DECREF(x->obj), Py_DECREF(x->type), Py_XDECREF(x->dict); }
static void drop_type(fl_type_guard *x) { Py_DECREF(x->type), Py_DECREF(x->expected); }
static void drop_func(fl_func_guard *x) {
  Py_DECREF(x->func), Py_XDECREF(x->code), Py_XDECREF(x->defaults), Py_XDECREF(x->kwdefaults), Py_XDECREF(x->closure);
}
static void drop_cell(fl_cell_guard *x) { Py_DECREF(x->cell), Py_XDECREF(x->value); }
static void drop_list(fl_list_guard *x) { Py_DECREF(x->list), Py_DECREF(x->snapshot); }
static void drop_cont(fl_cont_guard *x) { Py_DECREF(x->obj), Py_DECREF(x->snapshot); }
static void drop_descr(fl_descr_guard *x) { Py_DECREF(x->descr), Py_DECREF(x->obj), Py_XDECREF(x->value); }
static void drop_query(fl_query_guard *x) {
  Py_DECREF(x->callable), Py_DECREF(x->args), Py_XDECREF(x->kwnames), Py_DECREF(x->value);
}

void fl_guards_release(fl_guards *g) {
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++) drop_##kind(&g->kind.data[i]);                                              \
  fl_free(g->kind.data);
#include "capture/guards.def"
#undef FL_GUARD
  fl_ptrmap *maps[] = {&g->dicts, &g->insts, &g->types, &g->funcs, &g->cells, &g->conts};
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) fl_ptrmap_release(maps[i]);
  memset(g, 0, sizeof *g);
}

const char *fl_guards_count(const fl_guards *g, int i, size_t *out_count) {
  int row = 0;
#define FL_GUARD(kind, name)                                                                                           \
  if (row++ == i) return *out_count = g->kind.len, name;
#include "capture/guards.def"
#undef FL_GUARD
  return NULL;
}
