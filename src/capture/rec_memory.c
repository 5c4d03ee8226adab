/* What operators leave in memory: tensors that C++ fills without one, and copies of what other libraries' operators gave. */
#include <string.h>

#include "capture/rec.h"
#include "capture/shared.h"

/* --- memory that no operator has filled --- */

const char fl_rec_filled_unseen[] = "a tensor made without an operator";

/* A tensor without elements that has been given some. */
static bool has_grown(const fl_rec *r, const fl_tnode *n) {
  const fl_tval *values = r->trace->values.data;
  return n->schema->writes && n->n_pos && n->args[0].kind == FL_TARG_VALUE &&
         !fl_type_numel(&values[n->args[0].value].meta.type);
}

bool fl_rec_is_unfilled(const fl_rec *r, PyObject *tensor, uint32_t value, int64_t writes) {
  const fl_tval *values = r->trace->values.data;
  uint32_t base = r->storage_base.data[values[value].storage].value;
  int64_t version;
  if (base == FL_NO_TVAL || values[base].kind != FL_TVAL_RESULT) return false;
  const fl_tnode *n = &r->trace->nodes.data[values[base].index];
  return n->schema->unfilled && (!n->schema->writes || has_grown(r, n)) && fl_tensor_version(tensor, &version) &&
         version == writes;
}

/* A C function that gives new memory to whoever asks for it. */
static bool gives_memory(PyObject *callable) {
  PyObject *name = PyObject_GetAttrString(callable, "__name__");
  const char *s = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
  bool gives = !s || strstr(s, "empty") || !strcmp(s, "new");
  Py_XDECREF(name);
  PyErr_Clear();
  return gives;
}

static bool is_alive_unfilled(const fl_rec *r, uint32_t value) {
  uint32_t at = r->storage_head.data[r->trace->values.data[value].storage];
  for (; at != UINT32_MAX; at = r->live.data[at].next) {
    const fl_live *l = &r->live.data[at];
    if (PyWeakref_GET_OBJECT(l->weak) != l->object) continue;
    const fl_type *type = &r->trace->values.data[l->value].meta.type;
    if (fl_type_numel(type) && fl_rec_is_unfilled(r, l->object, l->value, 0)) return true;
  }
  return false;
}

size_t fl_rec_nodes(const fl_rec *r) { return fl_rec_is_off(r) ? 0 : r->trace->nodes.len; }

void fl_rec_called(fl_rec *r, PyObject *callable, size_t first) {
  if (fl_rec_is_off(r)) return;
  for (size_t i = first; i < r->trace->nodes.len; i++) {
    const fl_tnode *n = &r->trace->nodes.data[i];
    if (!n->schema->unfilled || n->schema->writes || n->n_out != 1 || n->outs[0] == FL_NO_TVAL) continue;
    if (!is_alive_unfilled(r, n->outs[0]) || gives_memory(callable)) continue;
    fl_rec_give_up(r, fl_rec_filled_unseen, n->schema->name);
    return;
  }
}

/* --- copies --- */

static void copy_results(fl_rec *r, PyObject *o, fl_tnode *n, int *at, bool *ok) {
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; *ok && i < PySequence_Fast_GET_SIZE(o); i++)
      copy_results(r, PySequence_Fast_GET_ITEM(o, i), n, at, ok);
    return;
  }
  enum { MOST_BYTES = 64 << 20 };
  uint32_t out = n->outs[(*at)++];
  if (out == FL_NO_TVAL) return;
  const fl_tval *v = &r->trace->values.data[out];
  r->copied += v->meta.ok ? fl_type_bytes(&v->meta.type) : 0;
  *ok = v->meta.ok && v->alias_of == FL_NO_TVAL && r->copied <= MOST_BYTES &&
        (n->recorded[*at - 1] = PyObject_CallMethod(o, "clone", NULL));
}

/* What another library's operator gives may depend on what it has kept from other calls. */
void fl_rec_keep_results(fl_rec *r, PyObject *result, fl_tnode *n) {
  int at = 0;
  bool ok = true;
  if (r->gave_up || !(n->recorded = fl_calloc((size_t)n->n_out + 1, sizeof *n->recorded))) return;
  r->paused++;
  copy_results(r, result, n, &at, &ok);
  r->paused--;
  if (!ok) fl_tnode_forget(n);
  PyErr_Clear();
}

/* Elements that were written since, without an operator. What cannot be compared at no cost was not. */
static bool was_written(const fl_rec *r, PyObject *tensor, uint32_t value) {
  const fl_tval *v = &r->trace->values.data[value];
  const fl_tnode *n = v->kind == FL_TVAL_RESULT ? &r->trace->nodes.data[v->index] : NULL;
  fl_tensor_meta now, then;
  if (!n || !n->recorded || r->storage_kind.data[v->storage] != FL_TVAL_RESULT) return false;
  for (int i = 0; i < n->n_out; i++) {
    if (n->outs[i] != value || !n->recorded[i]) continue;
    fl_tensor_read(tensor, &now);
    fl_tensor_read(n->recorded[i], &then);
    return fl_tensor_meta_equal(&now, &then) && now.device_type == FL_DEVICE_CPU &&
           fl_is_dense(&now.type, now.strides) && memcmp(now.data, then.data, fl_type_bytes(&now.type));
  }
  return false;
}

/* The fault is that of who wrote, not of who reads. */
static void note_written(fl_rec *r, uint32_t value) {
  const fl_tval *v = &r->trace->values.data[value];
  fl_rec_give_up(r, "memory written without an operator", r->trace->nodes.data[v->index].schema->name);
  Py_CLEAR(r->why.blame);
}

void fl_rec_look_at_result(fl_rec *r, PyObject *tensor, uint32_t value) {
  if (was_written(r, tensor, value)) note_written(r, value);
}

void fl_rec_look_at_results(fl_rec *r) {
  for (size_t i = 0; r->copied && !r->gave_up && i < r->live.len; i++) {
    const fl_live *l = &r->live.data[i];
    if (PyWeakref_GET_OBJECT(l->weak) == l->object) fl_rec_look_at_result(r, l->object, l->value);
  }
}

uint64_t fl_rec_hash_inputs(const fl_rec *r) {
  uint64_t hash = 0;
  for (int i = 0; i < r->trace->args.n_inputs; i++) {
    fl_tensor_meta m;
    fl_tensor_read(r->inputs[i], &m);
    hash = fl_memory_hash(&m, hash);
  }
  return hash;
}

void fl_rec_look_at_inputs(fl_rec *r) {
  if (r->gave_up || r->effects || r->any_effects || r->trace->breaks.len || fl_rec_hash_inputs(r) == r->elements)
    return;
  fl_rec_give_up(r, "memory written without an operator", "an argument's");
  Py_CLEAR(r->why.blame);
}
