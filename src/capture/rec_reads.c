/* What a recording reads: guards on it, unless the call itself has made it; and what becomes known by it. */
#include <string.h>

#include "capture/cpython/compat.h"
#include "capture/eval.h"
#include "capture/rec.h"

enum { FRESH, GONE }; /* in r->fresh; GONE: another object lies there now */

static bool skip(fl_rec *r, PyObject *o) { return fl_rec_is_fresh(r, o) || fl_ptrmap_get(&r->covered, o, NULL); }

/* An argument met on another way than as that argument: the next call may give another one there. */
static bool is_argument(fl_rec *r, PyObject *value, int depth) {
  if (!PyTuple_Check(value)) return fl_ptrmap_get(&r->covered, value, NULL);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value) && depth < 8; i++)
    if (is_argument(r, PyTuple_GET_ITEM(value, i), depth + 1)) return true;
  return false;
}

void fl_rec_note_known(fl_rec *r, PyObject *value) {
  if (!value || fl_ptrmap_get(&r->known, value, NULL)) return;
  if (is_argument(r, value, 0)) fl_rec_give_up(r, "an argument is reached on another way too", Py_TYPE(value)->tp_name);
  if (!fl_ptrmap_set(&r->known, value, 0)) fl_rec_oom(r);
  /* Nothing reports what is taken out of a tuple, or of a bound method. */
  if (PyMethod_Check(value)) {
    fl_rec_note_known(r, PyMethod_GET_FUNCTION(value));
    fl_rec_note_known(r, PyMethod_GET_SELF(value));
  }
  for (Py_ssize_t i = 0; PyTuple_Check(value) && i < PyTuple_GET_SIZE(value); i++)
    fl_rec_note_known(r, PyTuple_GET_ITEM(value, i));
}

void fl_rec_compared(fl_rec *r, PyObject *a, PyObject *b) {
  uint32_t v;
  if (fl_rec_is_off(r) || a == b || Py_TYPE(a) != Py_TYPE(b)) return;
  bool x = fl_ptrmap_get(&r->covered, a, NULL), y = fl_ptrmap_get(&r->covered, b, NULL);
  if (x == y) return;
  PyObject *other = x ? b : a;
  if (fl_rec_is_fresh(r, other)) return;
  if (fl_rec_find(r, other, &v) &&
      (r->trace->values.data[v].kind == FL_TVAL_RESULT || r->trace->values.data[v].kind == FL_TVAL_GIVEN))
    return;
  fl_rec_give_up(r, "an argument compared by identity", Py_TYPE(other)->tp_name);
}

bool fl_rec_knows(fl_rec *r, PyObject *o) { return fl_rec_is_off(r) || fl_ptrmap_get(&r->known, o, NULL); }

bool fl_rec_is_passing(fl_rec *r, PyObject *o) {
  return !fl_rec_is_off(r) &&
         (fl_ptrmap_get(&r->covered, o, NULL) || (fl_tensor_check(o) && !fl_ptrmap_get(&r->known, o, NULL)));
}

static int done(fl_rec *r, int rc, bool changed, PyObject *key) {
  if (rc < 0) return fl_rec_oom(r);
  const char *s = changed && key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
  if (changed) fl_rec_give_up(r, "state changed during the call", s ? s : "");
  return 0;
}

/* What argspec.c has left unmatched. */
static void read_argument(fl_rec *r, PyObject *value, PyObject *key) {
  uint32_t what;
  if (!value || !fl_ptrmap_get(&r->covered, value, &what) || what != FL_ARG_UNREAD) return;
  const char *s = key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : "";
  fl_rec_give_up(r, "attributes of an argument", s ? s : "");
}

int fl_rec_read_item(fl_rec *r, PyObject *dict, PyObject *key, PyObject *value) {
  bool changed = false;
  if (!fl_rec_is_off(r)) read_argument(r, value, key);
  if (fl_rec_is_off(r) || !PyDict_Check(dict) || skip(r, dict)) return 0;
  if (r->pending.len && fl_rec_written(r, dict, key)) return 0;
  if (value && r->trace->breaks.len && fl_rec_reads_place(r, dict, key, value)) return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_item(r->guards, dict, key, value, &changed);
  return done(r, rc, changed, key);
}

/* Attributes of a tensor among the arguments: the next call's tensor is another object, so it must have none. */
static void read_input_attrs(fl_rec *r, PyObject *tensor, uint32_t index) {
  PyObject **d = _PyObject_GetDictPtr(tensor);
  if (d && *d && PyDict_GET_SIZE(*d)) {
    fl_rec_give_up(r, "attributes of an argument", "a tensor argument carries Python attributes");
    return;
  }
  r->trace->args.inputs[index].attrs_read = true;
  if (d && *d && !fl_ptrmap_set(&r->covered, *d, UINT32_MAX)) fl_rec_oom(r);
}

int fl_rec_read_instance(fl_rec *r, PyObject *obj) {
  uint32_t value;
  if (fl_rec_is_off(r)) return 0;
  if (fl_tensor_check(obj) && fl_rec_find(r, obj, &value)) {
    fl_tval *v = &r->trace->values.data[value];
    if ((v->kind == FL_TVAL_RESULT || v->kind == FL_TVAL_GIVEN) && v->storage < r->storage_kind.len) return 0;
    if (v->kind == FL_TVAL_INPUT) return read_input_attrs(r, obj, v->index), 0;
  }
  if (skip(r, obj) || PyModule_Check(obj) || PyType_Check(obj)) return 0;
  if (!PyTuple_Check(obj)) fl_rec_note_known(r, obj); /* the call's own tuples are not reported as new */
  int rc = fl_guards_add_instance(r->guards, obj);
  /* A dictionary made for an old object lies where a new object may have been: it is as old as its object. */
  PyObject **d = _PyObject_GetDictPtr(obj);
  if (d && *d && fl_rec_is_fresh(r, *d) && !fl_ptrmap_set(&r->fresh, *d, GONE)) fl_rec_oom(r);
  return done(r, rc, false, NULL);
}

bool fl_rec_made_tensor(fl_rec *r, PyObject *tensor) {
  uint32_t v;
  if (fl_rec_is_off(r) || !fl_tensor_check(tensor) || !fl_rec_find(r, tensor, &v)) return false;
  return r->storage_kind.data[r->trace->values.data[v].storage] == FL_TVAL_RESULT;
}

bool fl_rec_is_own(fl_rec *r, PyObject *obj) {
  if (!fl_tensor_check(obj)) return fl_rec_is_fresh(r, obj);
  bool made = fl_rec_made_tensor(r, obj);
  if (!made && fl_rec_is_fresh(r, obj)) fl_rec_gone(r, obj);
  return made;
}

bool fl_rec_made_lately(fl_rec *r, PyObject *tensor) {
  uint32_t v;
  return fl_rec_made_tensor(r, tensor) && fl_rec_find(r, tensor, &v) &&
         r->trace->values.data[v].storage >= r->first_storage;
}

bool fl_rec_may_cache(fl_rec *r, PyObject *callable, bool own) {
  if (fl_rec_is_off(r)) return true;
  for (size_t i = 0; i < r->caches.len; i++)
    if (r->caches.data[i].callable == callable) return r->caches.data[i].own == own;
  fl_cache c = {callable, own};
  return fl_rec_keep(r, callable) && FL_PUSH(&r->caches, c);
}

int fl_rec_read_type(fl_rec *r, PyTypeObject *type, PyObject *name, PyObject *value) {
  bool changed = false;
  if (fl_rec_is_off(r) || (type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE) || !(type->tp_flags & Py_TPFLAGS_HEAPTYPE) ||
      fl_rec_is_fresh(r, (PyObject *)type))
    return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_type(r->guards, type, name, value, &changed);
  return done(r, rc, changed, name);
}

int fl_rec_read_cell(fl_rec *r, PyObject *cell, PyObject *value) {
  bool changed = false;
  if (fl_rec_is_off(r) || skip(r, cell)) return 0;
  if (r->pending.len && fl_rec_written(r, cell, NULL)) return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_cell(r->guards, cell, value, &changed);
  return done(r, rc, changed, NULL);
}

int fl_rec_read_function(fl_rec *r, PyObject *function) {
  if (fl_rec_is_off(r) || !PyFunction_Check(function) || skip(r, function)) return 0;
  PyFunctionObject *f = (PyFunctionObject *)function;
  PyObject *lists[] = {f->func_defaults, f->func_closure};
  for (int i = 0; i < 2; i++)
    for (Py_ssize_t j = 0; lists[i] && j < PyTuple_GET_SIZE(lists[i]); j++)
      fl_rec_note_known(r, PyTuple_GET_ITEM(lists[i], j));
  fl_rec_note_known(r, function);
  return done(r, fl_guards_add_function(r->guards, function), false, NULL);
}

/* Metadata of a tensor: what the guards on arguments and weights check already. */
static bool is_tensor_metadata(PyObject *descr) {
  static const char *const names[] = {
      "shape",     "dtype",     "device",        "layout",       "ndim",      "is_cuda",   "is_cpu",
      "is_sparse", "is_nested", "is_quantized",  "is_meta",      "is_mkldnn", "is_mps",    "is_xpu",
      "is_xla",    "is_leaf",   "names",         "itemsize",     "nbytes",    "T",         "mT",
      "H",         "mH",        "data",          "real",         "imag",      "is_vulkan", "is_ipu",
      "is_maia",   "is_mtia",   "is_sparse_csr", "requires_grad"};
  PyObject *name = PyObject_TypeCheck(descr, &PyGetSetDescr_Type) ? ((PyDescrObject *)descr)->d_name : NULL;
  for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
    if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) return true;
  return false;
}

static bool is_named(PyObject *descr, const char *wanted) {
  PyObject *name = PyObject_TypeCheck(descr, &PyGetSetDescr_Type) ? ((PyDescrObject *)descr)->d_name : NULL;
  return name && PyUnicode_CompareWithASCIIString(name, wanted) == 0;
}

/* What vmap made of tensors of the call: its metadata follows from theirs. */
static bool made_by_transform(fl_rec *r, PyObject *tensor) {
  fl_torch_state now;
  if (fl_ptrmap_get(&r->known, tensor, NULL) || fl_torch_state_read(&now) < 0) return PyErr_Clear(), false;
  return now.functorch && fl_tensor_is_wrapped(tensor);
}

/* True when an attribute of a tensor needs no guard of its own. */
static bool tensor_attr_covered(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value) {
  uint32_t v;
  if (!fl_rec_find(r, obj, &v)) {
    if (fl_tensor_check(value)) return true; /* .T, .data: operators, recorded as such */
    if (made_by_transform(r, obj)) return true;
    v = fl_rec_value_of(r, obj, NULL); /* from now on its metadata is checked with the weights' */
    if (v == FL_NO_TVAL) return true;
  }
  fl_tval_kind kind = r->trace->values.data[v].kind;
  if (kind == FL_TVAL_RESULT || fl_tensor_check(value)) return true;
  if (kind == FL_TVAL_WEIGHT) return is_tensor_metadata(descr) && !is_named(descr, "requires_grad");
  if (!is_tensor_metadata(descr) && (value != Py_None || is_named(descr, "grad")))
    fl_rec_give_up(r, "attributes of an argument", "beyond a tensor's metadata");
  return true;
}

int fl_rec_read_descr(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value) {
  if (fl_rec_is_off(r)) return 0;
  if (fl_tensor_check(obj)) {
    if (!value || tensor_attr_covered(r, descr, obj, value)) return 0;
  } else if (skip(r, obj))
    return 0;
  fl_rec_note_known(r, value);
  return done(r, fl_guards_add_descr(r->guards, descr, obj, value), false, NULL);
}

static bool is_deque(PyObject *o) {
  for (PyTypeObject *t = Py_TYPE(o); t; t = t->tp_base)
    if (!strcmp(t->tp_name, "collections.deque")) return true;
  return false;
}

int fl_rec_read_contents(fl_rec *r, PyObject *c) {
  Py_ssize_t at = 0;
  PyObject *name, *value;
  if (fl_rec_is_off(r)) return 0;
  if (skip(r, c)) {
    while (PyDict_Check(c) && PyDict_Next(c, &at, &name, &value)) read_argument(r, value, name);
    return 0;
  }
  if (!PyList_Check(c) && !PyDict_Check(c) && !PySet_Check(c) && !PyByteArray_Check(c) && !is_deque(c)) return 0;
  if (r->pending.len && fl_rec_reads_written(r, c)) return 0;
  if (PyList_Check(c))
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(c); i++) fl_rec_note_known(r, PyList_GET_ITEM(c, i));
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  while (PyDict_Check(c) && PyDict_Next(c, &pos, &k, &v)) fl_rec_note_known(r, v);
  return done(r, fl_guards_add_contents(r->guards, c), false, NULL);
}

int fl_rec_read_query(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                      PyObject *result) {
  if (fl_rec_is_off(r) || !result || fl_torch_state_covers(callable)) return 0;
  fl_rec_note_known(r, result);
  int rc = fl_guards_add_query(r->guards, callable, args, nargs, kwnames, result);
  return done(r, rc, false, NULL);
}

int fl_rec_read_cached(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                       PyObject *result) {
  uint32_t v;
  bool first = !fl_rec_is_off(r) && fl_tensor_check(result) && !fl_rec_knows(r, result) && !fl_rec_find(r, result, &v);
  if (fl_rec_is_off(r) || !result) return 0;
  fl_rec_note_known(r, result);
  return done(r, fl_guards_add_cached(r->guards, callable, args, nargs, kwnames, result, first), false, NULL);
}

typedef struct kept_storages {
  const fl_trace *t;
  uint32_t storage;
  bool found;
} kept_storages;

static void note_storage(void *ctx, uint32_t value) {
  kept_storages *k = ctx;
  k->found |= k->t->values.data[value].storage == k->storage;
}

static bool is_kept(fl_rec *r, const fl_trace *t, PyObject *tensor) {
  kept_storages k = {.t = t};
  uint32_t v;
  if (!fl_rec_find(r, tensor, &v)) return false;
  k.storage = t->values.data[v].storage;
  fl_trace_each_kept(t, note_storage, &k);
  return k.found;
}

void fl_rec_settle_cached(fl_rec *r, fl_trace *t) {
  bool never = t->effects || t->writes_weights || t->identified;
  for (size_t k = 0; k <= t->breaks.len; k++) {
    const fl_guards *g = k ? &t->breaks.data[k - 1]->guards : &t->guards;
    for (size_t i = 0; i < g->query.len; i++) {
      fl_query_guard *q = &g->query.data[i];
      if (!q->elements) continue;
      q->leaves = is_kept(r, t, q->value);
      q->elements = !never && (!q->leaves || (!t->breaks.len && !t->entry));
    }
  }
}

/* --- objects and writes --- */

int fl_rec_fresh(fl_rec *r, PyObject *obj) {
  if (fl_rec_is_off(r)) return 0;
  return fl_ptrmap_set(&r->fresh, obj, FRESH) ? 0 : fl_rec_oom(r);
}

void fl_rec_gone(fl_rec *r, PyObject *obj) {
  if (!fl_ptrmap_set(&r->fresh, obj, GONE)) fl_rec_oom(r);
}

bool fl_rec_is_fresh(fl_rec *r, PyObject *obj) {
  uint32_t state;
  return r && fl_ptrmap_get(&r->fresh, obj, &state) && state == FRESH;
}
