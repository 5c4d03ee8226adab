/* Writes to objects that existed before the call: from the report of each to the trace's effects. */
#include <string.h>

#include "capture/rec.h"

static bool same_key(PyObject *a, PyObject *b) { return a == b || fl_const_equal(a, b); }

/* --- where a write goes --- */

/* Containers that are compared and written as a whole. */
static bool is_whole(fl_write_kind kind, PyObject *obj) {
  if (PyList_CheckExact(obj)) return kind == FL_WRITE_METHOD || kind == FL_WRITE_ITEM;
  if (PyODict_CheckExact(obj)) return kind == FL_WRITE_METHOD || kind == FL_WRITE_ITEM; /* of which the order is part */
  return kind == FL_WRITE_METHOD && (PyDict_CheckExact(obj) || PySet_CheckExact(obj));
}

/* The container the place is in, borrowed; NULL when it cannot be told without running code. */
static PyObject *container_of(fl_write_kind kind, PyObject *obj, PyObject *key) {
  PyObject **d, *descr;
  switch (kind) {
  case FL_WRITE_CELL: return obj;
  case FL_WRITE_ITEM:
  case FL_WRITE_GLOBAL: return PyDict_CheckExact(obj) ? obj : NULL;
  case FL_WRITE_ATTR:
    if (!key || !PyUnicode_CheckExact(key) || PyType_Check(obj)) return NULL;
    descr = _PyType_Lookup(Py_TYPE(obj), key);
    if (descr && Py_TYPE(descr)->tp_descr_set) return NULL;
    return (d = _PyObject_GetDictPtr(obj)) ? *d : NULL;
  default: return NULL;
  }
}

/* What is in the place now; borrowed. */
static PyObject *now_in(const fl_pending *p) {
  if (p->kind == FL_WRITE_CELL) return PyCell_GET(p->obj);
  PyObject *v = PyDict_GetItemWithError(p->container, p->key);
  if (!v && PyErr_Occurred()) PyErr_Clear();
  return v;
}

/* Without a key: any write to the container. */
static fl_pending *find(fl_rec *r, PyObject *container, PyObject *key) {
  for (size_t i = 0; i < r->pending.len; i++) {
    fl_pending *p = &r->pending.data[i];
    if (p->container == container && (p->whole || !key || same_key(p->key, key))) return p;
  }
  return NULL;
}

bool fl_rec_written(fl_rec *r, PyObject *container, PyObject *key) { return find(r, container, key) != NULL; }

static void effect(fl_rec *r, PyObject *obj, PyObject *key, bool method) {
  char detail[160];
  const char *s = key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : "";
  snprintf(detail, sizeof detail, "%.60s %s%.60s", Py_TYPE(obj)->tp_name, method ? "method " : ".", s ? s : "?");
  PyErr_Clear();
  fl_rec_give_up(r, "writes to an object that existed before the call", detail);
}

/* --- reports --- */

static int push(fl_rec *r, const fl_pending *p) {
  if (!FL_PUSH(&r->pending, *p)) return fl_rec_oom(r);
  Py_INCREF(p->obj);
  Py_XINCREF(p->key);
  Py_INCREF(p->container);
  Py_XINCREF(p->original);
  return 0;
}

/* Methods that do the same whatever is in the container. */
static bool is_blind(fl_write_kind kind, PyObject *obj, PyObject *name) {
  static const char *const names[] = {"append", "extend", "__iadd__"};
  if (kind != FL_WRITE_METHOD || !PyList_CheckExact(obj) || !name || !PyUnicode_Check(name)) return false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) return true;
  return false;
}

static int write_whole(fl_rec *r, fl_write_kind kind, PyObject *obj, PyObject *key) {
  fl_pending *p = find(r, obj, NULL);
  if (p && p->whole) {
    p->looked_into |= !is_blind(kind, obj, key);
    return 0;
  }
  if (p) return effect(r, obj, key, kind == FL_WRITE_METHOD), 0;
  PyObject *snap = fl_guards_snapshot(obj);
  if (!snap) return fl_rec_oom(r);
  bool covered = fl_ptrmap_get(&r->covered, obj, NULL);
  for (Py_ssize_t i = 0; !covered && i < PyTuple_GET_SIZE(snap); i++) fl_rec_note_known(r, PyTuple_GET_ITEM(snap, i));
  fl_pending n = {.kind = kind, .obj = obj, .container = obj, .original = snap, .whole = true};
  n.looked_into = !is_blind(kind, obj, key);
  n.covered = covered;
  int rc = push(r, &n);
  Py_DECREF(snap);
  return rc;
}

/* The place must hold the same at the next call's begin: the write may be nothing but that. */
static void guard_entry(fl_rec *r, const fl_pending *p) {
  bool changed = false;
  if (p->covered) return;
  fl_rec_note_known(r, p->original);
  int rc = p->kind == FL_WRITE_CELL ? fl_guards_add_cell(r->guards, p->container, p->original, &changed)
                                    : fl_guards_add_item(r->guards, p->container, p->key, p->original, &changed);
  if (rc < 0) fl_rec_oom(r);
}

static bool is_computed(const fl_rec *r, uint32_t v) {
  fl_tval_kind kind = r->trace->values.data[v].kind;
  return kind == FL_TVAL_RESULT || kind == FL_TVAL_GIVEN;
}

static bool is_own_storage(const fl_rec *r, uint32_t v) {
  uint8_t kind = r->storage_kind.data[r->trace->values.data[v].storage];
  return kind == FL_TVAL_RESULT || kind == FL_TVAL_GIVEN || r->trace->values.data[v].kind == FL_TVAL_GIVEN;
}

int fl_rec_write(fl_rec *r, fl_write_kind kind, PyObject *obj, PyObject *key, PyObject *value) {
  if (!r || r->gave_up || r->paused || fl_rec_is_fresh(r, obj)) return 0;
  uint32_t v;
  if (fl_tensor_check(obj) && fl_rec_find(r, obj, &v) && is_computed(r, v) && kind == FL_WRITE_ATTR &&
      is_own_storage(r, v)) {
    fl_rec_give_up(r, "sets an attribute of a tensor", key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : "");
    return 0;
  }
  if (is_whole(kind, obj)) return write_whole(r, kind, obj, key);
  PyObject *container = container_of(kind, obj, key);
  if (!container) return effect(r, obj, key, kind == FL_WRITE_METHOD), 0;
  fl_pending p = {.kind = kind, .obj = obj, .key = key, .container = container}, *old = find(r, container, key);
  p.original = now_in(&p);
  if (old) {
    old->moved |= !old->whole && kind != FL_WRITE_CELL && !p.original && value;
    return 0;
  }
  p.covered = fl_ptrmap_get(&r->covered, obj, NULL) || fl_ptrmap_get(&r->covered, container, NULL);
  if (p.original == value && value) return guard_entry(r, &p), 0; /* the same object again */
  return push(r, &p);
}

bool fl_rec_reads_written(fl_rec *r, PyObject *c) {
  bool any = false;
  for (size_t i = 0; i < r->pending.len; i++) {
    fl_pending *p = &r->pending.data[i];
    if (p->container != c) continue;
    if (p->whole)
      p->looked_into = any = true;
    else if (now_in(p) != p->original || p->moved) {
      fl_rec_give_up(r, "looks into a container it has written to", Py_TYPE(c)->tp_name);
      return true;
    }
  }
  return any;
}

/* --- at the end --- */

static bool is_plain_key(PyObject *k) {
  if (k && PyTuple_CheckExact(k)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(k); i++)
      if (PyTuple_CheckExact(PyTuple_GET_ITEM(k, i)) || !is_plain_key(PyTuple_GET_ITEM(k, i))) return false;
    return true;
  }
  return !k || k == Py_None || PyUnicode_CheckExact(k) || PyLong_CheckExact(k) || PyBool_Check(k) ||
         PyFloat_CheckExact(k) || PyBytes_CheckExact(k);
}

/* Adds the effect; takes `value`. */
static void add_effect(fl_rec *r, fl_pending *p, const fl_effect *e, PyObject *value, PyObject *all) {
  p->effect = true;
  p->at = (uint32_t)r->writes->list.len;
  bool ok = value && PyList_Append(all, value) == 0 && FL_PUSH(&r->writes->list, *e);
  Py_XDECREF(value);
  PyErr_Clear();
  if (!ok || (e->obj && !fl_rec_keep(r, e->obj)) || (e->key && !fl_rec_keep(r, e->key))) fl_rec_oom(r);
}

/* A tuple of ours in the result's recipe: not to be taken for an object of the program that had its address. */
static PyObject *ours(fl_rec *r, PyObject *tuple) {
  if (tuple && !fl_ptrmap_set(&r->fresh, tuple, 0)) fl_rec_oom(r);
  return tuple;
}

static bool starts_with(PyObject *tuple, PyObject *prefix) {
  Py_ssize_t n = PyTuple_GET_SIZE(prefix);
  if (PyTuple_GET_SIZE(tuple) < n) return false;
  for (Py_ssize_t i = 0; i < n; i++)
    if (PyTuple_GET_ITEM(tuple, i) != PyTuple_GET_ITEM(prefix, i)) return false;
  return true;
}

static bool plain_members(PyObject *obj, PyObject *t) {
  Py_ssize_t step = PyDict_Check(obj) ? 2 : 1;
  for (Py_ssize_t i = 0; !PyList_Check(obj) && i < PyTuple_GET_SIZE(t); i += step)
    if (!is_plain_key(PyTuple_GET_ITEM(t, i))) return false;
  return true;
}

/* A list, dict or record of the arguments is another object in each call: the effect is on the one that is given then. What it holds
 * when the call begins is known. */
static bool is_on_argument(fl_rec *r, const fl_pending *p, fl_effect *e) {
  if (!p->covered || r->trace->entry) return false;
  if (!fl_rec_argument_value(r, p->obj, &e->argument)) return false;
  e->obj = NULL;
  e->changes = false;
  return true;
}

static void settle_whole(fl_rec *r, fl_pending *p, PyObject *all) {
  PyObject *now = fl_guards_snapshot(p->container), *value;
  if (!now) {
    fl_rec_oom(r);
    return;
  }
  Py_ssize_t n = PyTuple_GET_SIZE(p->original);
  bool longer = starts_with(now, p->original), same = longer && PyTuple_GET_SIZE(now) == n;
  bool guarded = p->looked_into || !longer || fl_guards_has(r->guards, p->obj);
  if (same && p->covered) goto done;
  fl_effect e = {.kind = PyList_Check(p->obj)   ? guarded || p->covered ? FL_EFFECT_LIST : FL_EFFECT_EXTEND
                         : PyDict_Check(p->obj) ? FL_EFFECT_DICT
                                                : FL_EFFECT_SET,
                 .obj = p->obj,
                 .changes = guarded};
  if ((p->covered && !is_on_argument(r, p, &e)) || !plain_members(p->obj, now)) {
    effect(r, p->obj, p->key, true);
    goto done;
  }
  if (!p->covered && guarded && fl_guards_add_snapshot(r->guards, p->container, p->original) < 0) fl_rec_oom(r);
  if (same) goto done;
  value = e.kind == FL_EFFECT_EXTEND ? PyTuple_GetSlice(now, n, PyTuple_GET_SIZE(now)) : Py_NewRef(now);
  add_effect(r, p, &e, ours(r, value), all);
done:
  Py_DECREF(now);
}

static void settle_place(fl_rec *r, fl_pending *p, PyObject *all) {
  PyObject *now = now_in(p), *expected;
  if (p->kind == FL_WRITE_ATTR && container_of(p->kind, p->obj, p->key) != p->container) {
    effect(r, p->obj, p->key, false);
    return;
  }
  if (now == p->original && !p->moved) {
    guard_entry(r, p);
    return;
  }
  fl_effect e = {.kind = p->kind == FL_WRITE_CELL   ? FL_EFFECT_CELL
                         : p->kind == FL_WRITE_ATTR ? FL_EFFECT_ATTR
                                                    : FL_EFFECT_ITEM,
                 .obj = p->obj,
                 .key = p->key,
                 .del = !now};
  if ((p->covered && !is_on_argument(r, p, &e)) || p->moved || !is_plain_key(p->key)) {
    effect(r, p->obj, p->key, false);
    return;
  }
  if (!now) guard_entry(r, p); /* what is deleted must be there */
  bool read = p->kind == FL_WRITE_CELL ? fl_guards_has(r->guards, p->container)
                                       : fl_guards_item(r->guards, p->container, p->key, &expected);
  e.changes = !p->covered && (read || fl_guards_has(r->guards, p->container)) && !fl_const_equal(p->original, now);
  add_effect(r, p, &e, Py_NewRef(now ? now : Py_None), all);
}

/* A list or dict of the arguments is another object on each call, which a recipe would copy. */
static bool keeps_argument(fl_rec *r, PyObject *o, int depth) {
  if ((PyList_Check(o) || PyDict_Check(o)) && fl_ptrmap_get(&r->covered, o, NULL)) return true;
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o) && depth < 64; i++)
      if (keeps_argument(r, PySequence_Fast_GET_ITEM(o, i), depth + 1)) return true;
  } else {
    PyObject **d = PyDict_Check(o) ? &o : fl_rec_is_fresh(r, o) ? _PyObject_GetDictPtr(o) : NULL;
    while (d && *d && depth < 64 && PyDict_Next(*d, &pos, &k, &v))
      if (keeps_argument(r, v, depth + 1)) return true;
  }
  return false;
}

PyObject *fl_rec_settle_writes(fl_rec *r, PyObject *result) {
  PyObject *all = PyList_New(0), *out = NULL;
  if (!all || PyList_Append(all, result) < 0) fl_rec_oom(r);
  if (!r->gave_up) fl_rec_settle_draws(r, all);
  for (size_t i = 0; i < r->pending.len && !r->gave_up; i++) {
    fl_pending *p = &r->pending.data[i];
    if (p->whole)
      settle_whole(r, p, all);
    else
      settle_place(r, p, all);
  }
  for (Py_ssize_t i = 1; !r->gave_up && i < PyList_GET_SIZE(all); i++)
    if (keeps_argument(r, PyList_GET_ITEM(all, i), 0))
      fl_rec_give_up(r, "writes to an object that existed before the call", "keeps a container of the arguments");
  if (!r->gave_up) out = PyList_GET_SIZE(all) > 1 ? ours(r, PyList_AsTuple(all)) : Py_NewRef(result);
  if (!r->gave_up && !out) fl_rec_oom(r);
  PyErr_Clear();
  Py_XDECREF(all);
  return out;
}

/* What settle_whole and settle_place would do, without doing it. */
static bool may_settle(const fl_pending *p, fl_rec_written_fn fn, fl_rec *r) {
  if (p->covered || p->moved || (!p->whole && !is_plain_key(p->key))) return false;
  if (!p->whole) {
    PyObject *now = now_in(p);
    if (p->kind == FL_WRITE_ATTR && container_of(p->kind, p->obj, p->key) != p->container) return false;
    return !now || fn(r, now);
  }
  PyObject *now = fl_guards_snapshot(p->container);
  if (!now) PyErr_Clear();
  bool ok = now && plain_members(p->obj, now);
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(now); i++) ok = fn(r, PyTuple_GET_ITEM(now, i));
  Py_XDECREF(now);
  return ok;
}

bool fl_rec_may_settle(fl_rec *r, fl_rec_written_fn fn) {
  for (size_t i = 0; i < r->pending.len; i++)
    if (!may_settle(&r->pending.data[i], fn, r)) return false;
  return true;
}

/* --- tensors found where the trace leaves others --- */

static void drop_weight(fl_trace *t, uint32_t index) {
  uint32_t last = fl_weights_remove(&t->weights, index);
  for (size_t i = 0; i < t->values.len; i++)
    if (t->values.data[i].kind == FL_TVAL_WEIGHT && t->values.data[i].index == last) t->values.data[i].index = index;
}

static void make_source(fl_rec *r, fl_pending *p, PyObject *left) {
  fl_trace *t = r->trace;
  PyObject *o = p->original;
  uint32_t v, n = (uint32_t)t->args.n_inputs + (uint32_t)t->writes.sources.len;
  bool used = fl_rec_find(r, o, &v);
  int rg = fl_tensor_requires_grad(o);
  if (rg < 0) PyErr_Clear();
  if (rg < 0 || n >= FL_MAX_INPUTS || !fl_tensor_is_plain(o) || Py_TYPE(o) != Py_TYPE(left)) return;
  if (used && (t->values.data[v].kind != FL_TVAL_WEIGHT || t->weights.list.data[t->values.data[v].index].copy)) return;
  fl_source s = {.dict = p->container, .key = p->key, .type = Py_TYPE(o), .requires_grad = rg};
  fl_tensor_read(o, &s.meta);
  if (!s.meta.has_data || s.meta.ndim > FL_MAX_RANK) return;
  if (!fl_rec_keep(r, p->container) || !fl_rec_keep(r, (PyObject *)s.type)) return;
  if (!fl_guards_forget_tensor(&t->guards, p->container, p->key, o)) return;
  if (!FL_PUSH(&t->writes.sources, s)) {
    fl_rec_oom(r);
    return;
  }
  fl_tensor_meta m;
  fl_tensor_read(left, &m);
  t->writes.list.data[p->at].changes = !fl_tensor_meta_equal(&m, &s.meta);
  r->inputs[n] = o;
  if (!used) return;
  uint32_t index = t->values.data[v].index;
  t->values.data[v].kind = FL_TVAL_INPUT;
  t->values.data[v].index = n;
  t->values.data[v].meta.data = NULL;
  drop_weight(t, index);
}

void fl_rec_find_sources(fl_rec *r, PyObject *all) {
  for (size_t i = 0; i < r->pending.len && !r->gave_up; i++) {
    fl_pending *p = &r->pending.data[i];
    if (!p->effect || p->whole || p->covered || p->kind == FL_WRITE_CELL || !p->original ||
        !fl_tensor_check(p->original))
      continue;
    PyObject *left = PyTuple_GET_ITEM(all, (Py_ssize_t)p->at + 1), *expected;
    if (fl_tensor_check(left) && fl_guards_item(r->guards, p->container, p->key, &expected) && expected == p->original)
      make_source(r, p, left);
  }
}
