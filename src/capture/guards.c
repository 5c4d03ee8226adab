#include "capture/guards.h"

#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include "capture/argspec.h"
#include "capture/cpython/compat.h"
#include "capture/rebind.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* ma_version_tag, until CPython 3.14 removes it */
#endif

static PyObject absent_object; /* its address alone means "no such key" */
#define ABSENT (&absent_object)

PyObject *fl_guards_absent(void) {
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

PyObject *fl_guards_members(PyObject *o) {
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
  PyObject *now = fl_guards_members(g->obj);
  bool same = snapshot_equal(now, g->snapshot);
  Py_XDECREF(now);
  if (!same) say(why, size, "container", g->obj, NULL);
  return same;
}

static bool has_version(const fl_cont_guard *g) {
  /* An OrderedDict's order can change without its version. */
  return PyDict_Check(g->obj) && (PyDict_CheckExact(g->obj) || PyDict_GET_SIZE(g->obj) <= 1);
}

static inline bool check_cont(fl_cont_guard *g, char *why, size_t size) {
  if (!has_version(g)) return cont_precise(g, why, size);
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

static bool has_attributes(PyObject *tensor) {
  PyObject **d = _PyObject_GetDictPtr(tensor);
  return d && *d && PyDict_GET_SIZE(*d);
}

static bool same_elements(PyObject *have, PyObject *want) {
  if (!fl_tensor_check(have) || has_attributes(have) || has_attributes(want) || !fl_rebind_is_alike(want, have))
    return false;
  PyObject *equal = PyObject_CallMethod(want, "equal", "O", have);
  if (!equal) PyErr_Clear();
  Py_XDECREF(equal);
  return equal == Py_True;
}

static bool check_query(fl_query_guard *g, char *why, size_t size) {
  Py_ssize_t kw = g->kwnames ? PyTuple_GET_SIZE(g->kwnames) : 0, n = PyTuple_GET_SIZE(g->args);
  PyObject **args = n ? &PyTuple_GET_ITEM(g->args, 0) : NULL;
  PyObject *have = PyObject_Vectorcall(g->callable, args, (size_t)(n - kw), g->kwnames);
  Py_CLEAR(g->now);
  if (g->elements && have && have != g->value && same_elements(have, g->value)) {
    if (g->leaves)
      g->now = have;
    else
      Py_DECREF(have);
    return true;
  }
  if (same_answer(have, g->value)) return true;
  say(why, size, "query", g->callable, NULL);
  return false;
}

/* --- the words that say nothing has changed --- */

/* The field of a C object that the descriptor reads, or NULL where it does more. *constant: it never changes. */
static const void *field_of(const fl_descr_guard *g, bool *constant) {
  static const struct {
    const char *name;
    size_t offset;
  } of_functions[] = {{"__code__", offsetof(PyFunctionObject, func_code)},
                      {"__defaults__", offsetof(PyFunctionObject, func_defaults)},
                      {"__kwdefaults__", offsetof(PyFunctionObject, func_kwdefaults)}};
  *constant = PyCode_Check(g->obj);
  if (Py_TYPE(g->descr) == &PyMemberDescr_Type) {
    const PyMemberDef *m = ((PyMemberDescrObject *)g->descr)->d_member;
    return m->type == T_OBJECT || m->type == T_OBJECT_EX ? (const char *)g->obj + m->offset : NULL;
  }
  if (Py_TYPE(g->descr) != &PyGetSetDescr_Type || !PyFunction_Check(g->obj)) return NULL;
  for (size_t i = 0; i < sizeof of_functions / sizeof *of_functions; i++)
    if (PyUnicode_CompareWithASCIIString(((PyDescrObject *)g->descr)->d_name, of_functions[i].name) == 0)
      return (const char *)g->obj + of_functions[i].offset;
  return NULL;
}

enum {
#define FL_GUARD(kind, name) KIND_##kind,
#include "capture/guards.def"
#undef FL_GUARD
  INDEX_BITS = 24
};

static bool check_one(fl_guards *g, uint32_t which, char *why, size_t size) {
  uint32_t i = which & ((1u << INDEX_BITS) - 1);
  switch (which >> INDEX_BITS) {
#define FL_GUARD(kind, name)                                                                                           \
  case KIND_##kind: return check_##kind(&g->kind.data[i], why, size);
#include "capture/guards.def"
#undef FL_GUARD
  }
  return false;
}

typedef struct owned_word {
  fl_watch word;
  uint32_t which;
} owned_word;

/* Makes the lists. `which` is the guard that words or `other` are added for. */
typedef struct watcher {
  fl_guards *g;
  uint32_t which;
  FL_VEC(owned_word) words;
  bool ok;
} watcher;

static void word(watcher *w, const void *at, uint64_t want) {
  owned_word x = {{at, want}, w->which};
  w->ok = w->ok && FL_PUSH(&w->words, x);
}

static void pointer(watcher *w, const void *at, const void *want) { word(w, at, (uint64_t)(uintptr_t)want); }

static void other(watcher *w) { w->ok = w->ok && FL_PUSH(&w->g->others, w->which); }

static void watch_dict(watcher *w, const fl_dict_guard *x) {
  word(w, &((PyDictObject *)x->dict)->ma_version_tag, x->version);
}

static void watch_inst(watcher *w, const fl_inst_guard *x) {
  pointer(w, &x->obj->ob_type, x->type);
  if (x->slot) pointer(w, x->slot, x->dict);
}

static void watch_type(watcher *w, const fl_type_guard *x) {
  (void)x; /* half a word */
  other(w);
}

static void watch_func(watcher *w, const fl_func_guard *x) {
  const PyFunctionObject *f = (const PyFunctionObject *)x->func;
  pointer(w, &f->func_code, x->code);
  pointer(w, &f->func_defaults, x->defaults);
  pointer(w, &f->func_kwdefaults, x->kwdefaults);
  pointer(w, &f->func_closure, x->closure);
}

static void watch_cell(watcher *w, const fl_cell_guard *x) { pointer(w, &((PyCellObject *)x->cell)->ob_ref, x->value); }

static void watch_list(watcher *w, const fl_list_guard *x) {
  (void)x;
  other(w);
}

static void watch_cont(watcher *w, const fl_cont_guard *x) {
  if (has_version(x))
    word(w, &((PyDictObject *)x->obj)->ma_version_tag, x->version);
  else
    other(w);
}

static void watch_descr(watcher *w, const fl_descr_guard *x) {
  bool constant;
  const void *at = field_of(x, &constant);
  if (constant) return;
  if (at)
    pointer(w, at, x->value);
  else
    other(w);
}

static void watch_query(watcher *w, const fl_query_guard *x) {
  (void)x;
  other(w);
}

static int by_address(const void *a, const void *b) {
  uintptr_t x = (uintptr_t)((const owned_word *)a)->word.at, y = (uintptr_t)((const owned_word *)b)->word.at;
  return (x > y) - (x < y);
}

/* In the order of memory, in which they are read with the fewest misses. */
static void take_words(watcher *w) {
  if (w->words.len) qsort(w->words.data, w->words.len, sizeof *w->words.data, by_address);
  for (size_t i = 0; i < w->words.len && w->ok; i++)
    w->ok = FL_PUSH(&w->g->words, w->words.data[i].word) && FL_PUSH(&w->g->whose, w->words.data[i].which);
  fl_free(w->words.data);
}

/* Versions are those with which the guards were last found to hold; what is not as wanted is looked at. */
static bool watch(fl_guards *g) {
  watcher w = {.g = g, .ok = sizeof(void *) == sizeof(uint64_t)};
  g->words.len = g->whose.len = g->others.len = 0;
#define FL_GUARD(kind, name)                                                                                           \
  for (uint32_t i = 0; i < g->kind.len; i++) {                                                                         \
    w.which = (uint32_t)KIND_##kind << INDEX_BITS | i;                                                                 \
    w.ok = w.ok && i >> INDEX_BITS == 0;                                                                               \
    watch_##kind(&w, &g->kind.data[i]);                                                                                \
  }
#include "capture/guards.def"
#undef FL_GUARD
  take_words(&w);
  return w.ok;
}

/* --- all of them --- */

/* Those of words that differ; a guard that holds all the same has its word from now on. */
static bool check_changed(fl_guards *g, char *why, size_t size) {
  for (size_t i = 0; i < g->words.len; i++) {
    uint64_t now = fl_word(g->words.data[i].at);
    if (now == g->words.data[i].want) continue;
    if (!check_one(g, g->whose.data[i], why, size)) return false;
    g->words.data[i].want = now;
  }
  return true;
}

static bool check_all(fl_guards *g, char *why, size_t size) {
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++)                                                                             \
    if (!check_##kind(&g->kind.data[i], why, size)) return false;
#include "capture/guards.def"
#undef FL_GUARD
  return true;
}

bool fl_guards_check(fl_guards *g, char *why, size_t size) {
  if (!g->watched) {
    if (!check_all(g, why, size)) return false;
    g->watched = watch(g); /* out of memory: again next time */
    return true;
  }
  if (!fl_watch_same(&g->words) && !check_changed(g, why, size)) return false;
  for (size_t i = 0; i < g->others.len; i++)
    if (!check_one(g, g->others.data[i], why, size)) return false;
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
#undef ARM
  for (size_t i = 0; i < g->query.len && ok; i++)
    ok = g->query.data[i].cached || check_query(&g->query.data[i], why, size);
  return ok;
}
