/* Writes to tensors made in the call while other tensors look at the same memory, made functional.
 *
 * What `v.add_(1)` does to a view `v` of `base`, and to every other view of it, is said by values alone: base' is
 * base with v's new elements in their places (as_strided_scatter), and each tensor still alive becomes a view of base'
 * (as_strided). These nodes stand behind the operator that wrote. They are right on either side: the operator run by
 * PyTorch has written base's own memory by then, where the same elements are put again. */
#include "capture/cpython/compat.h"
#include "capture/rec.h"

static const fl_schema *aten(const char *name) {
  PyObject *x = PyImport_ImportModule("torch");
  const char *path[] = {"ops", "aten", name, "default"};
  for (int i = 0; x && i < 4; i++) Py_SETREF(x, PyObject_GetAttrString(x, path[i]));
  const fl_schema *s = x ? fl_schema_get(x) : NULL;
  Py_XDECREF(x);
  if (!s) PyErr_Clear();
  return s;
}

/* Where the elements of one tensor lie in the base. */
typedef struct place {
  fl_tensor_meta meta;
  int64_t offset;
} place;

static bool place_of(const fl_rec *r, uint32_t storage, PyObject *tensor, place *out) {
  const fl_base *base = &r->storage_base.data[storage];
  const fl_tensor_meta *b = &r->trace->values.data[base->value].meta;
  const char *lo, *hi;
  fl_tensor_read(tensor, &out->meta);
  if (!out->meta.ok || out->meta.type.dtype != b->type.dtype || !fl_tensor_extent(&out->meta, &lo, &hi)) return false;
  if (lo < base->data || hi > base->data + fl_type_bytes(&b->type)) return false;
  out->offset = (lo - base->data) / (int64_t)b->item_size;
  return (lo - base->data) % (int64_t)b->item_size == 0;
}

static bool starts_storage(fl_rec *r, PyObject *tensor, int64_t offset) {
  r->paused++;
  PyObject *n = PyObject_CallMethod(tensor, "storage_offset", NULL);
  r->paused--;
  bool ok = n && PyLong_AsLongLong(n) == offset;
  Py_XDECREF(n);
  if (PyErr_Occurred()) PyErr_Clear();
  return ok;
}

/* The next live tensor of a storage, from entry `at` on. */
static fl_live *next_live(const fl_rec *r, uint32_t *at) {
  while (*at != UINT32_MAX) {
    fl_live *l = &r->live.data[*at];
    *at = l->next;
    if (PyWeakref_GET_OBJECT(l->weak) == l->object) return l;
  }
  return NULL;
}

bool fl_rec_view_write(fl_rec *r, PyObject *tensor, fl_base *out_base) {
  uint32_t v;
  place p;
  if (!fl_rec_find(r, tensor, &v)) return false;
  uint32_t storage = r->trace->values.data[v].storage;
  const fl_base *base = &r->storage_base.data[storage];
  if (base->value == FL_NO_TVAL || !base->data) return false;
  const fl_tensor_meta *b = &r->trace->values.data[base->value].meta;
  if (!b->ok || !fl_is_dense(&b->type, b->strides)) return false;
  if (!place_of(r, storage, tensor, &p) || !starts_storage(r, tensor, p.offset)) return false;
  for (int d = 0; d < p.meta.type.rank; d++)
    if (p.meta.strides[d] == 0 && p.meta.type.dims[d] > 1) return false;
  fl_live *l;
  for (uint32_t at = r->storage_head.data[storage]; (l = next_live(r, &at));)
    if (!place_of(r, storage, l->object, &p)) return false;
  r->trace->values.data[base->value].whole = true;
  *out_base = *base;
  return true;
}

/* --- the nodes --- */

static PyObject *int_list(const int64_t *v, int n) {
  PyObject *list = PyList_New(n);
  for (int i = 0; list && i < n; i++) {
    PyObject *o = PyLong_FromLongLong(v[i]);
    if (!o) Py_CLEAR(list);
    if (o) PyList_SET_ITEM(list, i, o);
  }
  return list;
}

static bool set_const(fl_rec *r, fl_targ *a, PyObject *o) { /* takes o */
  a->kind = FL_TARG_CONST;
  a->object = o;
  bool ok = o && fl_rec_keep(r, o);
  Py_XDECREF(o);
  PyErr_Clear();
  return ok;
}

/* op(x, [src,] size, stride, offset), one result: its value is *out, held by no tensor. */
static bool add_node(fl_rec *r, const fl_tnode *by, const char *op, uint32_t x, uint32_t src, const place *p,
                     const fl_tval *result, uint32_t *out) {
  fl_trace *t = r->trace;
  int lead = src == FL_NO_TVAL ? 1 : 2;
  fl_tnode n = {.schema = aten(op), .file = by->file, .line = by->line, .module = by->module, .n_out = 1};
  n.n_pos = lead + 3;
  n.args = fl_arena_alloc(&t->arena, (size_t)n.n_pos * sizeof *n.args);
  n.outs = fl_arena_alloc(&t->arena, sizeof *n.outs);
  if (!n.schema || !n.args || !n.outs) return false;
  n.args[0] = (fl_targ){.kind = FL_TARG_VALUE, .value = x};
  if (lead == 2) n.args[1] = (fl_targ){.kind = FL_TARG_VALUE, .value = src};
  if (!set_const(r, &n.args[lead], int_list(p->meta.type.dims, p->meta.type.rank)) ||
      !set_const(r, &n.args[lead + 1], int_list(p->meta.strides, p->meta.type.rank)) ||
      !set_const(r, &n.args[lead + 2], PyLong_FromLongLong(p->offset)))
    return false;
  fl_tval v = *result;
  v.kind = FL_TVAL_RESULT;
  v.index = (uint32_t)t->nodes.len;
  v.meta.data = NULL;
  *out = n.outs[0] = (uint32_t)t->values.len;
  if (!FL_PUSH(&t->values, v) || !FL_PUSH(&t->nodes, n)) return false;
  t->steps.data[t->steps.len - 1].n++;
  return true;
}

static bool same_place(const place *a, const fl_tensor_meta *b) {
  return a->offset == 0 && fl_tensor_meta_equal(&a->meta, b);
}

static bool rename_all(fl_rec *r, PyObject *written, fl_base base, const fl_tnode *by) {
  place p;
  uint32_t v, fresh;
  fl_tval was = r->trace->values.data[base.value];
  r->storage_base.data[was.storage] = base; /* not the operator's result, as where nothing else looks on */
  if (!fl_rec_find(r, written, &v) || !place_of(r, was.storage, written, &p)) return false;
  if (same_place(&p, &was.meta)) {
    fresh = v;
  } else {
    fl_tval result = {
        .meta = was.meta, .view_of = FL_NO_TVAL, .alias_of = FL_NO_TVAL, .storage = was.storage, .whole = true};
    if (!add_node(r, by, "as_strided_scatter", base.value, v, &p, &result, &fresh)) return false;
  }
  r->storage_base.data[was.storage].value = fresh;
  bool held = fresh == v; /* one tensor is the base, all others are views of it */
  fl_live *l;
  for (uint32_t at = r->storage_head.data[was.storage]; (l = next_live(r, &at));) {
    if (l->value == fresh) continue;
    if (!place_of(r, was.storage, l->object, &p)) return false;
    fl_tval view = {.meta = p.meta, .view_of = fresh, .alias_of = fresh, .storage = was.storage};
    if (!held && same_place(&p, &was.meta))
      l->value = fresh, held = true;
    else if (!add_node(r, by, "as_strided", fresh, FL_NO_TVAL, &p, &view, &l->value))
      return false;
  }
  return true;
}

void fl_rec_view_written(fl_rec *r, PyObject *tensor, fl_base base, const fl_tnode *by) {
  if (!rename_all(r, tensor, base, by)) fl_rec_give_up(r, "out of memory", "while recording");
}
