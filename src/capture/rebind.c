#include "capture/rebind.h"

#include <string.h>

#include "capture/cpython/compat.h"
#include "capture/segment.h"
#include "capture/shared.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* ma_version_tag, until CPython 3.14 removes it */
#endif

/* Weights, then witnesses: what the trace holds, and what lies at its places now. */
typedef struct swap {
  PyObject *old, *now; /* owned; now: NULL until a place was seen */
} swap;

typedef struct rebind {
  fl_trace *t;
  fl_ptrmap of;     /* old -> swap */
  fl_ptrmap others; /* tensors that are neither, at places */
  swap *swaps;
  size_t n;
} rebind;

/* --- places: what is wanted there, and what lies there --- */

typedef bool (*place_fn)(rebind *b, PyObject *want, PyObject *have);

static bool dict_places(rebind *b, const fl_dict_guard *g, place_fn fn) {
  Py_ssize_t pos = 0;
  PyObject *key, *want;
  while (PyDict_Next(g->expected, &pos, &key, &want)) {
    PyObject *have = PyDict_GetItemWithError(g->dict, key);
    if (!have && PyErr_Occurred()) PyErr_Clear();
    if (!fn(b, want, have)) return false;
  }
  return true;
}

static bool tuple_places(rebind *b, PyObject *want, PyObject *have, place_fn fn) {
  bool ok = have && PyTuple_GET_SIZE(want) == PyTuple_GET_SIZE(have);
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(want); i++)
    ok = fn(b, PyTuple_GET_ITEM(want, i), PyTuple_GET_ITEM(have, i));
  return ok;
}

static bool container_places(rebind *b, PyObject *snapshot, PyObject *container, place_fn fn) {
  PyObject *now = PyList_Check(container) ? PyList_AsTuple(container) : fl_guards_members(container);
  if (PyErr_Occurred()) PyErr_Clear();
  bool ok = tuple_places(b, snapshot, now, fn);
  Py_XDECREF(now);
  return ok;
}

static bool is_same_list(const fl_list_guard *g) {
  Py_ssize_t n = PyTuple_GET_SIZE(g->snapshot);
  for (Py_ssize_t i = 0; i < n && i < PyList_GET_SIZE(g->list); i++)
    if (PyList_GET_ITEM(g->list, i) != PyTuple_GET_ITEM(g->snapshot, i)) return false;
  return PyList_GET_SIZE(g->list) == n;
}

static bool is_same_dict(PyObject *d, uint64_t version) {
  return PyDict_CheckExact(d) && ((PyDictObject *)d)->ma_version_tag == version;
}

/* Calls fn for each place; with `changed`, only for those in namespaces and containers that may have changed. */
static bool each_place(rebind *b, bool changed, place_fn fn) {
  const fl_guards *g = &b->t->guards;
  bool ok = true;
  for (size_t i = 0; ok && i < g->dict.len; i++)
    if (!changed || !is_same_dict(g->dict.data[i].dict, g->dict.data[i].version))
      ok = dict_places(b, &g->dict.data[i], fn);
  for (size_t i = 0; ok && i < g->cell.len; i++)
    if (g->cell.data[i].value) ok = fn(b, g->cell.data[i].value, PyCell_GET(g->cell.data[i].cell));
  for (size_t i = 0; ok && i < g->list.len; i++)
    if (!changed || !is_same_list(&g->list.data[i]))
      ok = container_places(b, g->list.data[i].snapshot, g->list.data[i].list, fn);
  for (size_t i = 0; ok && i < g->cont.len; i++)
    if (!changed || !is_same_dict(g->cont.data[i].obj, g->cont.data[i].version))
      ok = container_places(b, g->cont.data[i].snapshot, g->cont.data[i].obj, fn);
  return ok;
}

/* Only tensors have changed. */
static bool only_tensors(rebind *b, PyObject *want, PyObject *have) {
  return want == have || (have && fl_tensor_check(want) && fl_tensor_check(have)) ||
         (!have && want == fl_guards_absent()) || (have && want != fl_guards_absent() && fl_const_equal(have, want));
}

/* All places of a weight hold the same tensor: what was tied is tied. */
static bool note_place(rebind *b, PyObject *want, PyObject *have) {
  uint32_t k;
  if (!fl_ptrmap_get(&b->of, want, &k))
    return !fl_tensor_check(want) || (want == have && fl_ptrmap_set(&b->others, want, 0));
  if (!have || (b->swaps[k].now && b->swaps[k].now != have)) return false;
  if (!b->swaps[k].now) b->swaps[k].now = Py_NewRef(have);
  return true;
}

/* --- whether the new ones will do --- */

static bool is_changed(const swap *s) { return s->now && s->now != s->old; }

/* A reading of the old tensor's attributes: it had no namespace of its own, and the new one has none. */
static bool has_no_attributes(const fl_inst_guard *g, PyObject *now) {
  PyObject **slot = _PyObject_GetDictPtr(now);
  return !g->dict && (!slot || !*slot);
}

static bool holds(PyObject *items, PyObject *o, int depth) {
  for (Py_ssize_t i = 0; items && i < PySequence_Fast_GET_SIZE(items); i++) {
    PyObject *x = PySequence_Fast_GET_ITEM(items, i);
    if (x == o || ((PyTuple_Check(x) || PyList_Check(x)) && (depth > 8 || holds(x, o, depth + 1)))) return true;
  }
  return false;
}

static bool type_holds(const fl_type_guard *g, PyObject *o) {
  Py_ssize_t pos = 0;
  PyObject *key, *want;
  while (PyDict_Next(g->expected, &pos, &key, &want))
    if (want == o) return true;
  return false;
}

/* Held in ways that are not followed. */
static bool is_held_otherwise(const fl_guards *g, PyObject *o) {
  for (size_t i = 0; i < g->type.len; i++)
    if (type_holds(&g->type.data[i], o)) return true;
  for (size_t i = 0; i < g->func.len; i++)
    if (holds(g->func.data[i].defaults, o, 0)) return true;
  for (size_t i = 0; i < g->descr.len; i++)
    if (g->descr.data[i].value == o) return true;
  for (size_t i = 0; i < g->query.len; i++)
    if (g->query.data[i].value == o || holds(g->query.data[i].args, o, 0)) return true;
  return false;
}

static bool matters_elsewhere(const fl_guards *g, const swap *s) {
  for (size_t i = 0; i < g->inst.len; i++)
    if (g->inst.data[i].obj == s->old && !has_no_attributes(&g->inst.data[i], s->now)) return true;
  return is_held_otherwise(g, s->old) || is_held_otherwise(g, s->now);
}

static bool same_offset(PyObject *old, PyObject *now) {
  PyObject *a = PyObject_CallMethod(old, "storage_offset", NULL);
  PyObject *b = a ? PyObject_CallMethod(now, "storage_offset", NULL) : NULL;
  bool same = b && fl_const_equal(a, b);
  Py_XDECREF(a);
  Py_XDECREF(b);
  return PyErr_Clear(), same;
}

static bool is_alike(PyObject *old, PyObject *now, const fl_tensor_meta *meta, bool unversioned) {
  int64_t version;
  fl_tensor_meta m;
  if (Py_TYPE(old) != Py_TYPE(now) || !fl_tensor_is_plain(now)) return false;
  fl_tensor_read(now, &m);
  int lazy = fl_tensor_is_lazy(now), grad = fl_tensor_requires_grad(now), grad_before = fl_tensor_requires_grad(old);
  if (PyErr_Occurred()) PyErr_Clear();
  return m.has_data && fl_tensor_meta_equal(&m, meta) && lazy == 0 && grad >= 0 && grad == grad_before &&
         fl_tensor_version(now, &version) != unversioned && same_offset(old, now);
}

bool fl_rebind_is_alike(PyObject *old, PyObject *now) {
  fl_tensor_meta m;
  int64_t version;
  fl_tensor_read(old, &m);
  return m.has_data && is_alike(old, now, &m, !fl_tensor_version(old, &version));
}

static bool fits(const rebind *b, size_t k) {
  const swap *s = &b->swaps[k];
  const fl_weights *w = &b->t->weights;
  fl_tensor_meta m;
  if (k >= w->list.len) {
    fl_tensor_read(s->old, &m);
    return is_alike(s->old, s->now, &m, false);
  }
  const fl_weight *x = &w->list.data[k];
  if (!is_alike(s->old, s->now, &x->meta, x->unversioned)) return false;
  fl_tensor_read(s->now, &m);
  fl_shared_forget();
  if (fl_tensor_is_shared(s->now, &m) != x->shared) return false;
  return !x->frozen || !memcmp(x->frozen, m.data, fl_type_bytes(&x->meta.type));
}

/* No other weight, and no argument: what was not tied is not tied. */
static bool is_alone(const rebind *b, size_t k, PyObject *const *inputs) {
  for (size_t i = 0; i < b->n; i++)
    if (i != k && b->swaps[i].old != b->swaps[k].old &&
        (b->swaps[i].now ? b->swaps[i].now : b->swaps[i].old) == b->swaps[k].now)
      return false;
  for (int i = 0; i < b->t->args.n_inputs; i++)
    if (inputs[i] == b->swaps[k].now) return false;
  return !fl_ptrmap_get(&b->others, b->swaps[k].now, NULL);
}

static bool may_rebind(const rebind *b, PyObject *const *inputs) {
  bool any = false;
  for (size_t k = 0; k < b->n; k++) {
    if (!is_changed(&b->swaps[k])) continue;
    if (!fits(b, k) || !is_alone(b, k, inputs) || matters_elsewhere(&b->t->guards, &b->swaps[k])) return false;
    any = true;
  }
  return any;
}

/* --- taking them --- */

static PyObject *taken(const rebind *b, PyObject *o) {
  uint32_t k;
  return fl_ptrmap_get(&b->of, o, &k) && is_changed(&b->swaps[k]) ? b->swaps[k].now : o;
}

/* The tuple with the new ones in it; NULL when out of memory. */
static PyObject *taken_tuple(const rebind *b, PyObject *tuple) {
  PyObject *out = PyTuple_New(PyTuple_GET_SIZE(tuple));
  for (Py_ssize_t i = 0; out && i < PyTuple_GET_SIZE(tuple); i++)
    PyTuple_SET_ITEM(out, i, Py_NewRef(taken(b, PyTuple_GET_ITEM(tuple, i))));
  return out;
}

/* What can fail, or run other threads, is made first. */
typedef struct ready {
  PyObject **lists, **conts; /* snapshots */
  fl_replacement *by;        /* of each swap that changes */
} ready;

static void ready_free(rebind *b, ready *r) {
  for (size_t i = 0; r->lists && i < b->t->guards.list.len; i++) Py_XDECREF(r->lists[i]);
  for (size_t i = 0; r->conts && i < b->t->guards.cont.len; i++) Py_XDECREF(r->conts[i]);
  for (size_t k = 0; r->by && k < b->n; k++) fl_replacement_free(&r->by[k]);
  fl_free(r->lists);
  fl_free(r->conts);
  fl_free(r->by);
}

static bool ready_make(rebind *b, ready *r) {
  const fl_guards *g = &b->t->guards;
  *r = (ready){fl_calloc(g->list.len + 1, sizeof *r->lists), fl_calloc(g->cont.len + 1, sizeof *r->conts),
               fl_calloc(b->n + 1, sizeof *r->by)};
  bool ok = r->lists && r->conts && r->by;
  for (size_t i = 0; ok && i < g->list.len; i++) ok = (r->lists[i] = taken_tuple(b, g->list.data[i].snapshot)) != NULL;
  for (size_t i = 0; ok && i < g->cont.len; i++) ok = (r->conts[i] = taken_tuple(b, g->cont.data[i].snapshot)) != NULL;
  for (size_t k = 0; ok && k < b->n; k++)
    if (is_changed(&b->swaps[k])) fl_replacement_take(b->swaps[k].now, &r->by[k]);
  return ok;
}

static void take_dicts(rebind *b, fl_guards *g) {
  for (size_t i = 0; i < g->dict.len; i++) {
    Py_ssize_t pos = 0;
    PyObject *key, *want;
    while (PyDict_Next(g->dict.data[i].expected, &pos, &key, &want)) {
      PyObject *now = taken(b, want);
      /* A key that is there: nothing is allocated. */
      if (now != want && PyDict_SetItem(g->dict.data[i].expected, key, now) < 0) PyErr_Clear();
    }
    g->dict.data[i].version = 0;
  }
}

static void take_guards(rebind *b, ready *r) {
  fl_guards *g = &b->t->guards;
  g->watched = false;
  take_dicts(b, g);
  for (size_t i = 0; i < g->cell.len; i++)
    if (g->cell.data[i].value) Py_SETREF(g->cell.data[i].value, Py_NewRef(taken(b, g->cell.data[i].value)));
  for (size_t i = 0; i < g->list.len; i++) Py_SETREF(g->list.data[i].snapshot, Py_NewRef(r->lists[i]));
  for (size_t i = 0; i < g->cont.len; i++) {
    Py_SETREF(g->cont.data[i].snapshot, Py_NewRef(r->conts[i]));
    g->cont.data[i].version = 0;
  }
  for (size_t i = 0; i < g->descr.len; i++) Py_SETREF(g->descr.data[i].obj, Py_NewRef(taken(b, g->descr.data[i].obj)));
  for (size_t i = 0; i < g->inst.len; i++) {
    fl_inst_guard *x = &g->inst.data[i];
    PyObject *now = taken(b, x->obj);
    if (now == x->obj) continue;
    Py_SETREF(x->obj, Py_NewRef(now));
    x->slot = _PyObject_GetDictPtr(now);
  }
}

static void take_weights(rebind *b, ready *r) {
  fl_weights *w = &b->t->weights;
  size_t n = w->list.len;
  for (size_t k = 0; k < b->n; k++) {
    if (!is_changed(&b->swaps[k])) continue;
    if (k < n)
      fl_weights_replace(w, (uint32_t)k, &r->by[k]);
    else
      fl_weights_replace_witness(w, (uint32_t)(k - n), &r->by[k]);
  }
  for (uint32_t v = 0; v < b->t->values.len; v++) {
    const fl_tval *x = &b->t->values.data[v];
    if (x->kind == FL_TVAL_WEIGHT) b->t->start[v] = w->list.data[x->index].tensor;
  }
}

/* --- the whole --- */

/* What is read only, in one stretch, and not just now: a run holds no references to weights. */
static bool can_follow(const fl_trace *t) {
  if (t->running || t->identified || t->effects || t->writes_weights || t->breaks.len || t->writes.list.len ||
      t->writes.sources.len)
    return false;
  for (size_t i = 0; i < t->steps.len; i++)
    if (t->steps.data[i].segment && t->steps.data[i].segment->fx) return false;
  return true;
}

static bool list_swaps(rebind *b) {
  const fl_weights *w = &b->t->weights;
  b->n = w->list.len + w->witnesses.len;
  b->swaps = fl_calloc(b->n + 1, sizeof *b->swaps);
  bool ok = b->swaps != NULL;
  for (size_t k = 0; ok && k < b->n; k++) {
    bool own = k < w->list.len && w->list.data[k].own;
    b->swaps[k].old = Py_NewRef(k < w->list.len ? w->list.data[k].tensor : w->witnesses.data[k - w->list.len].tensor);
    if (!own && !fl_ptrmap_get(&b->of, b->swaps[k].old, NULL)) ok = fl_ptrmap_set(&b->of, b->swaps[k].old, (uint32_t)k);
  }
  return ok;
}

/* A tensor that is both a weight and a witness has two swaps, and one address. */
static void share_addresses(rebind *b) {
  uint32_t first;
  for (size_t k = 0; k < b->n; k++)
    if (fl_ptrmap_get(&b->of, b->swaps[k].old, &first) && first != k) b->swaps[k].now = Py_XNewRef(b->swaps[first].now);
}

static bool prepare(rebind *b, PyObject *const *inputs, ready *r) {
  if (!each_place(b, true, only_tensors) || !list_swaps(b) || !each_place(b, false, note_place)) return false;
  share_addresses(b);
  return may_rebind(b, inputs) && ready_make(b, r);
}

static void rebind_free(rebind *b) {
  for (size_t k = 0; b->swaps && k < b->n; k++) {
    Py_XDECREF(b->swaps[k].old);
    Py_XDECREF(b->swaps[k].now);
  }
  fl_ptrmap_release(&b->of);
  fl_ptrmap_release(&b->others);
  fl_free(b->swaps);
}

bool fl_trace_rebind(fl_trace *t, PyObject *const *inputs) {
  rebind b = {.t = t};
  ready r = {0};
  if (!can_follow(t)) return false;
  t->running++; /* others leave it alone; who has begun to run it meanwhile needs it as it is */
  bool ok = prepare(&b, inputs, &r) && t->running == 1;
  if (ok) {
    take_weights(&b, &r);
    take_guards(&b, &r);
    t->rebound++;
  }
  t->running--;
  PyErr_Clear();
  ready_free(&b, &r);
  rebind_free(&b);
  return ok;
}

/* --- answers of cached functions --- */

static bool is_among(const fl_trace *t, PyObject *const *inputs, PyObject *tensor) {
  for (size_t i = 0; i < t->weights.list.len; i++)
    if (t->weights.list.data[i].tensor == tensor) return true;
  for (int i = 0; i < t->args.n_inputs; i++)
    if (inputs[i] == tensor) return true;
  return false;
}

static PyObject *answer_now(const fl_query_guard *q) { return q->now ? q->now : q->value; }

/* Which of them are one object is as it was, and no new one is anything else. */
static bool may_take(const fl_trace *t, PyObject *const *inputs, size_t k) {
  const fl_query_guard *q = t->guards.query.data;
  if (t->running || is_among(t, inputs, q[k].now)) return false;
  for (size_t i = 0; i < t->guards.query.len; i++)
    if ((q[i].value == q[k].value) != (answer_now(&q[i]) == q[k].now)) return false;
  return true;
}

static void put_answer(fl_trace *t, fl_query_guard *q, fl_replacement *by) {
  fl_weights *w = &t->weights;
  PyObject *old = q->value;
  uint32_t k = 0;
  while (k < w->list.len && w->list.data[k].tensor != old) k++;
  if (k < w->list.len) fl_weights_replace(w, k, by);
  q->value = q->now;
  q->now = old;
}

bool fl_trace_take_answers(fl_trace *t, PyObject *const *inputs) {
  fl_query_guard *q = t->guards.query.data;
  size_t n = t->guards.query.len, any = 0;
  for (size_t k = 0; k < n; k++) any += q[k].now != NULL;
  if (!any) return true;
  fl_replacement *by = fl_calloc(n, sizeof *by);
  bool ok = by != NULL;
  for (size_t k = 0; ok && k < n; k++)
    if (q[k].now) fl_replacement_take(q[k].now, &by[k]);
  for (size_t k = 0; ok && k < n; k++) ok = !q[k].now || may_take(t, inputs, k);
  for (size_t k = 0; ok && k < n; k++)
    if (q[k].now) put_answer(t, &q[k], &by[k]);
  for (uint32_t v = 0; ok && v < t->values.len; v++)
    if (t->values.data[v].kind == FL_TVAL_WEIGHT) t->start[v] = t->weights.list.data[t->values.data[v].index].tensor;
  for (size_t k = 0; k < n; k++) {
    if (by) fl_replacement_free(&by[k]);
    Py_CLEAR(q[k].now); /* of what was there before, if it was taken */
  }
  fl_free(by);
  return ok;
}
