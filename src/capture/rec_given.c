/* What unknown code gave to a call that is recorded, and what the program does with it. */
#include "capture/cpython/compat.h"
#include "capture/rec_given.h"

#include <string.h>

#include "capture/ccalls.h"
#include "capture/eval_impl.h"
#include "capture/replay_break.h"

fl_unknown *fl_rec_unknown_entry(fl_rec *r, PyObject *o) {
  uint32_t at;
  return r->unknown.len && fl_ptrmap_get(&r->unknown_of, o, &at) ? &r->unknown.data[at] : NULL;
}

static void uses(fl_rec *r, PyObject *o, int depth) {
  fl_unknown *u = fl_rec_unknown_entry(r, o);
  if (fl_rec_sees_drawn(r, o)) return;
  if (u && fl_back_is_plain(o))
    u->back->used = true;
  else if (u)
    fl_rec_give_up(r, "looks into what unknown code gave", Py_TYPE(o)->tp_name);
  for (Py_ssize_t i = 0; PyTuple_Check(o) && depth < FL_BREAK_DEPTH && i < PyTuple_GET_SIZE(o); i++)
    uses(r, PyTuple_GET_ITEM(o, i), depth + 1);
}

void fl_rec_uses(fl_rec *r, PyObject *value) {
  if (r && !r->gave_up && !r->paused && (r->unknown.len || r->drew)) uses(r, value, 0);
}

static bool is_unknown(fl_rec *r, PyObject *o, bool plain, int depth) {
  if (plain && fl_rec_sees_drawn(r, o)) return false;
  if (fl_rec_unknown_entry(r, o)) return plain || !fl_back_is_plain(o);
  for (Py_ssize_t i = 0; PyTuple_Check(o) && depth < FL_BREAK_DEPTH && i < PyTuple_GET_SIZE(o); i++)
    if (is_unknown(r, PyTuple_GET_ITEM(o, i), plain, depth + 1)) return true;
  return false;
}

bool fl_rec_is_unknown(fl_rec *r, PyObject *value, bool plain) {
  return r && !r->gave_up && !r->paused && (r->unknown.len || r->drew) && is_unknown(r, value, plain, 0);
}

bool fl_rec_unknown_value(void *rec, PyObject *object, uint32_t *out_value) {
  fl_unknown *u = fl_rec_unknown_entry(rec, object);
  (void)fl_rec_sees_drawn(rec, object);
  if (u) *out_value = u->value;
  return u != NULL;
}

static fl_back *note_unknown(fl_rec *r, fl_back *out, PyObject *o, uint32_t at) {
  out->kind = FL_BACK_OBJECT;
  out->object = o;
  out->value = fl_rec_object_value(r, FL_TVAL_OBJECT, at);
  fl_unknown u = {o, out->value, at, out};
  bool ok = out->value != FL_NO_TVAL && fl_rec_keep(r, o) && FL_PUSH(&r->unknown, u) &&
            fl_ptrmap_set(&r->unknown_of, o, (uint32_t)r->unknown.len - 1);
  if (!ok) fl_rec_give_up(r, "out of memory", "while recording");
  return out;
}

static bool take_items(fl_rec *r, fl_back *out, PyObject *const *items, Py_ssize_t n, uint32_t at, int depth) {
  out->n = (int)n;
  out->items = fl_arena_alloc(&r->trace->arena, ((size_t)n + 1) * sizeof *out->items);
  for (Py_ssize_t i = 0; out->items && i < n; i++)
    if (!fl_rec_take_given(r, &out->items[i], items[i], at, depth + 1)) return false;
  return out->items != NULL;
}

static bool take_dict(fl_rec *r, fl_back *out, PyObject *dict, uint32_t at, int depth) {
  Py_ssize_t n = PyDict_GET_SIZE(dict), pos = 0, i = 0;
  PyObject *names = PyTuple_New(n), *k, *v, **values = fl_calloc((size_t)n + 1, sizeof *values);
  bool ok = names && values;
  for (; ok && PyDict_Next(dict, &pos, &k, &v); values[i++] = v) {
    ok = PyUnicode_CheckExact(k);
    PyTuple_SET_ITEM(names, i, Py_NewRef(k));
  }
  ok = ok && fl_rec_keep(r, names) && take_items(r, out, values, n, at, depth);
  out->object = names;
  Py_XDECREF(names);
  fl_free(values);
  return ok;
}

/* Unknown code may write to a weight's memory without counting a version. */
void fl_rec_watch_weights(fl_rec *r, uint32_t storage) {
  fl_trace *t = r->trace;
  for (size_t i = 0; i < t->values.len; i++) {
    const fl_tval *v = &t->values.data[i];
    if (v->kind == FL_TVAL_WEIGHT && v->storage == storage && !fl_weights_watch(&t->weights, v->index))
      fl_rec_give_up(r, "out of memory", "while recording");
  }
}

static bool take_tensor(fl_rec *r, fl_back *out, PyObject *o, Py_ssize_t refs, uint32_t at) {
  if (fl_rec_find(r, o, &out->value)) return out->kind = FL_BACK_SAME, true;
  const char *why = fl_back_tensor_why_not(o);
  if (!why && Py_REFCNT(o) != refs) why = "others hold it";
  if (why) return fl_rec_give_up(r, "a tensor that unknown code gave", why), false;
  out->kind = FL_BACK_TENSOR;
  out->value = fl_rec_given(r, o, at);
  if (out->value == FL_NO_TVAL) return false;
  fl_rec_watch_weights(r, r->trace->values.data[out->value].storage);
  return true;
}

/* `o` is held once by whoever holds it: what it is held by besides makes it an object that others know. */
bool fl_rec_take_given(fl_rec *r, fl_back *out, PyObject *o, uint32_t at, int depth) {
  fl_unknown *u = fl_rec_unknown_entry(r, o);
  if (u) return out->kind = FL_BACK_SAME, out->value = u->value, true;
  if (fl_tensor_check(o)) return take_tensor(r, out, o, 1, at);
  bool alone = Py_REFCNT(o) == 1;
  if (PyTuple_CheckExact(o) && depth < FL_BREAK_DEPTH) {
    out->kind = FL_BACK_TUPLE;
    return take_items(r, out, &PyTuple_GET_ITEM(o, 0), PyTuple_GET_SIZE(o), at, depth);
  }
  if (alone && (PyList_CheckExact(o) || fl_rec_is_dict(o)) && depth < FL_BREAK_DEPTH) {
    out->kind = PyList_CheckExact(o) ? FL_BACK_LIST : FL_BACK_DICT;
    fl_rec_fresh(r, o);
    out->ordered = PyODict_CheckExact(o);
    if (fl_rec_is_dict(o)) return take_dict(r, out, o, at, depth);
    return take_items(r, out, ((PyListObject *)o)->ob_item, PyList_GET_SIZE(o), at, depth);
  }
  if (alone || !fl_ccall_known_type(Py_TYPE(o))) {
    out->shared = !alone;
    return note_unknown(r, out, o, at), !r->gave_up;
  }
  out->kind = FL_BACK_CONST;
  out->object = o;
  fl_rec_note_known(r, o);
  return fl_rec_keep(r, o);
}

bool fl_rec_enter(fl_rec *r, const fl_entry *at) {
  fl_trace *t = r->trace;
  int n = (int)at->n_objects;
  t->entry = fl_arena_alloc(&t->arena, ((size_t)n + 1) * sizeof *t->entry);
  t->entered = PyTuple_New(n + 1);
  if (!t->entry || !t->entered || !fl_back_none() || !fl_ptrmap_set(&r->known, fl_back_none(), 0))
    return PyErr_Clear(), false;
  memset(t->entry, 0, ((size_t)n + 1) * sizeof *t->entry);
  for (int i = 0; i < n; i++) { /* the frames hold them */
    note_unknown(r, &t->entry[i], at->objects[i], 0)->shared = true;
    PyTuple_SET_ITEM(t->entered, i, Py_NewRef(at->objects[i]));
  }
  bool ok = !r->gave_up && fl_rec_take_given(r, &t->entry[n], at->back, 0, 0);
  PyTuple_SET_ITEM(t->entered, n, Py_NewRef(at->back));
  t->n_entry = n + 1;
  return ok && !r->gave_up;
}

bool fl_rec_reads_place(fl_rec *r, PyObject *dict, PyObject *key, PyObject *value) {
  fl_break *b = r->trace->breaks.data[r->trace->breaks.len - 1];
  uint32_t v;
  if (!fl_tensor_check(value) || !fl_rec_find(r, value, &v)) return false;
  fl_tval_kind kind = r->trace->values.data[v].kind;
  if (kind != FL_TVAL_RESULT && kind != FL_TVAL_GIVEN) return false;
  for (size_t i = 0; i < b->places.len; i++)
    if (b->places.data[i].dict == dict && fl_const_equal(b->places.data[i].key, key)) return true;
  fl_place p = {dict, key, v};
  if (!fl_rec_keep(r, dict) || !fl_rec_keep(r, key) || !FL_PUSH(&b->places, p))
    fl_rec_give_up(r, "out of memory", "while recording");
  return true;
}
