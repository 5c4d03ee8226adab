#include "capture/exact.h"

#include <math.h>

typedef struct run {
  const fl_trace *t;
  const fl_seg_part *part;
  PyObject *const *ref;
  PyObject **values;
  uint32_t *uses; /* operands still to be read, by value */
  fl_dtype wide;
  fl_nudge nudge;
} run;

static bool is_narrow(fl_dtype dtype, fl_dtype wide) {
  return fl_dtype_is_float(dtype) && fl_dtype_size(dtype) < fl_dtype_size(wide);
}

static fl_dtype dtype_of(PyObject *tensor) {
  fl_tensor_meta m;
  fl_tensor_read(tensor, &m);
  return m.ok ? m.type.dtype : FL_BOOL;
}

PyObject *fl_exact_widen(PyObject *tensor, fl_dtype wide) {
  if (!is_narrow(dtype_of(tensor), wide)) return Py_NewRef(tensor);
  return PyObject_CallMethod(tensor, wide == FL_F32 ? "float" : "double", NULL);
}

static PyObject *nudged(PyObject *tensor, fl_dtype wide, fl_nudge nudge) {
  if (dtype_of(tensor) != FL_F32) return fl_exact_widen(tensor, wide);
  PyObject *to = nudge == FL_NUDGE_OUT ? PyNumber_Add(tensor, tensor)
                 : nudge == FL_NUDGE_IN
                     ? PyObject_CallMethod(tensor, "new_zeros", "(())")
                     : PyObject_CallMethod(tensor, "new_full", "(()d)",
                                           nudge == FL_NUDGE_UP ? (double)INFINITY : -(double)INFINITY);
  PyObject *next = to ? PyObject_CallMethod(tensor, "nextafter", "O", to) : NULL;
  PyObject *out = next ? fl_exact_widen(next, wide) : NULL;
  Py_XDECREF(to);
  Py_XDECREF(next);
  return out;
}

/* Not the tensor itself: the part may write to it. */
static PyObject *copied(PyObject *tensor, fl_dtype wide, fl_nudge nudge) {
  PyObject *out = nudge ? nudged(tensor, wide, nudge) : fl_exact_widen(tensor, wide);
  if (out != tensor) return out;
  Py_SETREF(out, PyObject_CallMethod(tensor, "clone", NULL));
  return out;
}

/* Borrowed; made on first use from the value as it was. */
static PyObject *value(run *r, uint32_t v) {
  const fl_tval *x = &r->t->values.data[v];
  if (r->values[v]) return r->values[v];
  if (x->kind == FL_TVAL_WEIGHT)
    r->values[v] = fl_exact_widen(r->t->weights.list.data[x->index].tensor, r->wide);
  else if (r->ref[v])
    r->values[v] = copied(r->ref[v], r->wide, r->nudge);
  return r->values[v];
}

static PyObject *argument(run *r, const fl_targ *a) {
  fl_dtype dtype;
  if (a->kind == FL_TARG_CONST)
    return Py_NewRef(fl_torch_dtype(a->object, &dtype) && is_narrow(dtype, r->wide) ? fl_torch_dtype_object(r->wide)
                                                                                    : a->object);
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
  return (r->values[v] = fl_exact_widen(o, r->wide)) != NULL;
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

/* Adds `by` for each operand; where nothing is left to read it, the value goes. */
static void count_uses(run *r, const fl_targ *a, int n, int by) {
  for (int i = 0; i < n; i++) {
    if (a[i].kind == FL_TARG_LIST || a[i].kind == FL_TARG_TUPLE) count_uses(r, a[i].items, a[i].n, by);
    if (a[i].kind != FL_TARG_VALUE) continue;
    r->uses[a[i].value] += (uint32_t)by;
    if (!r->uses[a[i].value]) Py_CLEAR(r->values[a[i].value]);
  }
}

static bool run_nodes(run *r) {
  const fl_seg_part *p = r->part;
  bool ok = true;
  for (int i = 0; i < p->n_out; i++) r->uses[p->out[i]] = 1;
  for (int i = 0; i < p->n_nodes; i++) {
    const fl_tnode *n = &r->t->nodes.data[p->nodes[i]];
    count_uses(r, n->args, n->n_pos + n->n_kw, 1);
  }
  for (int i = 0; ok && i < p->n_in; i++) ok = value(r, p->in[i]) != NULL;
  r->ref = r->values; /* all else the part makes itself */
  for (int i = 0; ok && i < p->n_nodes; i++) {
    const fl_tnode *n = &r->t->nodes.data[p->nodes[i]];
    ok = run_node(r, n);
    count_uses(r, n->args, n->n_pos + n->n_kw, -1);
  }
  return ok;
}

PyObject **fl_exact_run(const fl_trace *t, const fl_seg_part *p, PyObject *const *ref, fl_dtype wide, fl_nudge nudge) {
  run r = {t, p, ref, fl_calloc(t->values.len + 1, sizeof(PyObject *)), NULL, wide, nudge};
  r.uses = fl_calloc(t->values.len + 1, sizeof *r.uses);
  bool ok = r.values && r.uses && !t->random && run_nodes(&r);
  fl_free(r.uses);
  PyErr_Clear();
  if (ok) return r.values;
  fl_exact_free(t, r.values);
  return NULL;
}

void fl_exact_free(const fl_trace *t, PyObject **values) {
  for (size_t i = 0; values && i < t->values.len; i++) Py_XDECREF(values[i]);
  fl_free(values);
}
