#include "capture/exact.h"

typedef struct run {
  const fl_trace *t;
  const fl_seg_part *part;
  PyObject *const *ref;
  PyObject **values;
  bool nudge;
} run;

static bool is_float32(PyObject *tensor) {
  fl_tensor_meta m;
  fl_tensor_read(tensor, &m);
  return m.ok && m.type.dtype == FL_F32;
}

/* New reference; anything but float32 as it is. */
static PyObject *widened(PyObject *tensor) {
  return is_float32(tensor) ? PyObject_CallMethod(tensor, "double", NULL) : Py_NewRef(tensor);
}

static PyObject *nudged(PyObject *tensor) {
  if (!is_float32(tensor)) return Py_NewRef(tensor);
  PyObject *further = PyNumber_Add(tensor, tensor);
  PyObject *next = further ? PyObject_CallMethod(tensor, "nextafter", "O", further) : NULL;
  PyObject *out = next ? widened(next) : NULL;
  Py_XDECREF(further);
  Py_XDECREF(next);
  return out;
}

/* Borrowed; made on first use from the value in float32. */
static PyObject *value(run *r, uint32_t v) {
  const fl_tval *x = &r->t->values.data[v];
  if (r->values[v]) return r->values[v];
  PyObject *from = x->kind == FL_TVAL_WEIGHT ? r->t->weights.list.data[x->index].tensor : r->ref[v];
  if (from) r->values[v] = r->nudge && x->kind != FL_TVAL_WEIGHT ? nudged(from) : widened(from);
  return r->values[v];
}

static PyObject *argument(run *r, const fl_targ *a) {
  fl_dtype dtype;
  if (a->kind == FL_TARG_CONST)
    return Py_NewRef(fl_torch_dtype(a->object, &dtype) && dtype == FL_F32 ? fl_torch_dtype_object(FL_F64) : a->object);
  if (a->kind == FL_TARG_VALUE) return Py_XNewRef(value(r, a->value));
  PyObject *o = a->kind == FL_TARG_LIST ? PyList_New(a->n) : PyTuple_New(a->n);
  for (int i = 0; o && i < a->n; i++) {
    PyObject *x = argument(r, &a->items[i]);
    if (!x)
      Py_CLEAR(o);
    else if (a->kind == FL_TARG_LIST)
      PyList_SET_ITEM(o, i, x);
    else
      PyTuple_SET_ITEM(o, i, x);
  }
  return o;
}

static bool store(run *r, const fl_tnode *n, PyObject *o, int *at) {
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++)
      if (!store(r, n, PySequence_Fast_GET_ITEM(o, i), at)) return false;
    return true;
  }
  uint32_t v = *at < n->n_out ? n->outs[*at] : FL_NO_TVAL;
  ++*at;
  if (v == FL_NO_TVAL || !fl_tensor_check(o)) return true;
  Py_XDECREF(r->values[v]);
  return (r->values[v] = widened(o)) != NULL;
}

static bool run_node(run *r, const fl_tnode *n) {
  enum { MOST = 64 };
  PyObject *args[MOST] = {NULL}, *result = NULL;
  int total = n->n_pos + n->n_kw, made = 0, at = 0;
  if (total > MOST) return false;
  while (made < total && (args[made] = argument(r, &n->args[made]))) made++;
  if (made == total) result = PyObject_Vectorcall(n->schema->op, args, (size_t)n->n_pos, n->kwnames);
  for (int i = 0; i < made; i++) Py_DECREF(args[i]);
  bool ok = result && store(r, n, result, &at);
  Py_XDECREF(result);
  return ok;
}

PyObject **fl_exact_run(const fl_trace *t, const fl_seg_part *p, PyObject *const *ref, bool nudge) {
  run r = {t, p, ref, fl_calloc(t->values.len + 1, sizeof(PyObject *)), nudge};
  bool ok = r.values && !t->random;
  for (int i = 0; ok && i < p->n_in; i++) ok = value(&r, p->in[i]) != NULL;
  r.ref = r.values; /* all else the part makes itself */
  for (int i = 0; ok && i < p->n_nodes; i++) ok = run_node(&r, &t->nodes.data[p->nodes[i]]);
  PyErr_Clear();
  if (ok) return r.values;
  fl_exact_free(t, r.values);
  return NULL;
}

void fl_exact_free(const fl_trace *t, PyObject **values) {
  for (size_t i = 0; values && i < t->values.len; i++) Py_XDECREF(values[i]);
  fl_free(values);
}
