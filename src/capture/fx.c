#include "capture/fx.h"
#include "capture/modes.h"
#include "capture/replay_break.h"
#include "capture/rerun.h"

#include <string.h>

/* --- a segment as data --- */

/* Steals `o`; 0 or -1. */
static int append(PyObject *list, PyObject *o) {
  int rc = o && list ? PyList_Append(list, o) : -1;
  Py_XDECREF(o);
  return rc;
}

static PyObject *text(const char *s) {
  return s ? PyUnicode_DecodeUTF8(s, (Py_ssize_t)strlen(s), "replace") : Py_NewRef(Py_None);
}

static PyObject *argument(const fl_targ *a) {
  if (a->kind == FL_TARG_CONST) return Py_BuildValue("(iO)", 0, a->object);
  if (a->kind == FL_TARG_VALUE) return Py_BuildValue("(iI)", 1, (unsigned)a->value);
  PyObject *items = PyList_New(0);
  for (int i = 0; items && i < a->n; i++)
    if (append(items, argument(&a->items[i])) < 0) Py_CLEAR(items);
  return items ? Py_BuildValue("(iN)", a->kind == FL_TARG_LIST ? 2 : 3, items) : NULL;
}

static PyObject *node_data(const fl_tnode *n) {
  PyObject *args = PyList_New(0), *kwargs = PyDict_New(), *outs = PyList_New(0);
  bool ok = args && kwargs && outs;
  for (int i = 0; ok && i < n->n_pos; i++) ok = append(args, argument(&n->args[i])) == 0;
  for (int i = 0; ok && i < n->n_kw; i++) {
    PyObject *a = argument(&n->args[n->n_pos + i]);
    ok = a && PyDict_SetItem(kwargs, PyTuple_GET_ITEM(n->kwnames, i), a) == 0;
    Py_XDECREF(a);
  }
  for (int i = 0; ok && i < n->n_out; i++)
    ok = append(outs, n->outs[i] == FL_NO_TVAL ? Py_NewRef(Py_None) : PyLong_FromUnsignedLong(n->outs[i])) == 0;
  PyObject *out =
      ok ? Py_BuildValue("(OOOONiN)", n->schema->overload, args, kwargs, outs, text(n->file), n->line, text(n->module))
         : NULL;
  Py_XDECREF(args);
  Py_XDECREF(kwargs);
  Py_XDECREF(outs);
  return out;
}

/* What crosses the segment's border. */
typedef struct border {
  const fl_trace *t;
  bool *made, *used;
  FL_VEC(uint32_t) in, weights, out;
  bool oom;
} border;

static void see(void *ctx, uint32_t v) {
  border *b = ctx;
  if (b->made[v] || b->used[v]) return;
  b->used[v] = true;
  if (b->t->values.data[v].kind == FL_TVAL_WEIGHT)
    b->oom |= !FL_PUSH(&b->weights, v);
  else
    b->oom |= !FL_PUSH(&b->in, v);
}

static void border_release(border *b) {
  fl_free(b->made);
  fl_free(b->used);
  fl_free(b->in.data);
  fl_free(b->weights.data);
  fl_free(b->out.data);
}

static bool border_find(border *b, const fl_trace *t, const fl_tstep *step) {
  *b = (border){.t = t};
  bool *need = fl_calloc(t->values.len + 1, sizeof *need);
  b->made = fl_calloc(t->values.len + 1, sizeof *b->made);
  b->used = fl_calloc(t->values.len + 1, sizeof *b->used);
  b->oom = !need || !b->made || !b->used;
  if (!b->oom) fl_trace_needed_after(t, (uint32_t)(step - t->steps.data), need);
  for (uint32_t i = 0; !b->oom && i < step->n; i++) {
    const fl_tnode *n = &t->nodes.data[step->first + i];
    fl_tnode_each(n, see, b);
    for (int k = 0; k < n->n_out; k++)
      if (n->outs[k] != FL_NO_TVAL) b->made[n->outs[k]] = true;
  }
  for (uint32_t v = 0; !b->oom && v < t->values.len; v++)
    if (need[v] && b->made[v]) b->oom |= !FL_PUSH(&b->out, v);
  fl_free(need);
  if (b->oom) PyErr_NoMemory();
  return !b->oom;
}

static bool shares(const border *b, uint32_t v) {
  const fl_tval *x = b->t->values.data;
  for (size_t i = 0; i < b->in.len; i++)
    if (x[b->in.data[i]].storage == x[v].storage) return true;
  for (size_t i = 0; i < b->weights.len; i++)
    if (x[b->weights.data[i]].storage == x[v].storage) return true;
  return false;
}

static void note_shared(void *ctx, uint32_t v) {
  const border *b = ((void **)ctx)[0];
  if (shares(b, v)) *(bool *)((void **)ctx)[1] = true;
}

/* A backend's answer replaces the operators only where running them leaves nothing behind but their results. */
static const char *why_eager(const border *b, const fl_tstep *step) {
  bool shared = false;
  void *ctx[] = {(void *)b, &shared};
  if (b->t->effects) return step->eager_reason ? step->eager_reason : "the call writes to tensors that outlive it";
  if (step->eager_reason) return step->eager_reason;
  if (step->random) return "random";
  for (uint32_t i = 0; i < step->n; i++) {
    const fl_tnode *n = &b->t->nodes.data[step->first + i];
    if (n->schema->writes) fl_tnode_each(n, note_shared, ctx);
    if (shared) return "an operator writes to a tensor made before the segment";
  }
  return NULL;
}

static PyObject *numbers(const uint32_t *v, size_t n) {
  PyObject *list = PyList_New(0);
  for (size_t i = 0; list && i < n; i++)
    if (append(list, PyLong_FromUnsignedLong(v[i])) < 0) Py_CLEAR(list);
  return list;
}

static PyObject *data_of(const fl_trace *t, const fl_tstep *step, const border *b) {
  PyObject *nodes = PyList_New(0), *weights = PyList_New(0);
  bool ok = nodes && weights;
  for (uint32_t i = 0; ok && i < step->n; i++) ok = append(nodes, node_data(&t->nodes.data[step->first + i])) == 0;
  for (size_t i = 0; ok && i < b->weights.len; i++) {
    uint32_t v = b->weights.data[i];
    ok = append(weights, Py_BuildValue("(IO)", (unsigned)v, t->weights.list.data[t->values.data[v].index].tensor)) == 0;
  }
  PyObject *out =
      ok ? Py_BuildValue("{sOsNsOsNsz}", "nodes", nodes, "inputs", numbers(b->in.data, b->in.len), "weights", weights,
                         "outputs", numbers(b->out.data, b->out.len), "eager", why_eager(b, step))
         : NULL;
  Py_XDECREF(nodes);
  Py_XDECREF(weights);
  return out;
}

PyObject *fl_fx_data(fl_trace *t, const fl_tstep *step) {
  border b;
  PyObject *out = border_find(&b, t, step) ? data_of(t, step, &b) : NULL;
  border_release(&b);
  return out;
}

/* --- asking a backend --- */

/* Lets Python time the segment as built and as recorded operators, while the backend is asked. */
typedef struct runner {
  fl_trace *t; /* NULL once the backend has answered */
  const fl_tstep *step;
  PyObject **values;
  bool eager;
} runner;

static void runner_free(PyObject *capsule) { fl_free(PyCapsule_GetPointer(capsule, NULL)); }

static PyObject *runner_call(PyObject *capsule, PyObject *unused) {
  runner *r = PyCapsule_GetPointer(capsule, NULL);
  if (!r) return NULL;
  if (!r->t)
    return PyErr_Format(PyExc_RuntimeError, "framelift: the segment can be run only while its backend is asked");
  if (fl_segment_run(r->t, r->step, r->values, r->eager, true) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef runner_method = {"run", runner_call, METH_NOARGS, "Runs the segment on the recorded inputs."};

static PyObject *runner_new(fl_trace *t, const fl_tstep *step, PyObject **values, bool eager, runner **out) {
  runner *r = fl_malloc(sizeof *r);
  if (!r) return PyErr_NoMemory();
  *r = (runner){t, step, values, eager};
  PyObject *capsule = PyCapsule_New(r, NULL, runner_free);
  PyObject *f = capsule ? PyCFunction_New(&runner_method, capsule) : NULL;
  if (!capsule) fl_free(r);
  Py_XDECREF(capsule);
  if (f) *out = r;
  return f;
}

static PyObject *examples(const border *b, PyObject *const *values) {
  PyObject *list = PyList_New(0);
  for (size_t i = 0; list && i < b->in.len + b->weights.len; i++) {
    uint32_t v = i < b->in.len ? b->in.data[i] : b->weights.data[i - b->in.len];
    if (!values[v]) {
      PyErr_SetString(PyExc_SystemError, "framelift: a segment's input was not computed");
      Py_CLEAR(list);
    } else if (PyList_Append(list, values[v]) < 0)
      Py_CLEAR(list);
  }
  return list;
}

static PyObject *ask(fl_trace *t, const fl_tstep *step, const border *b, PyObject *backend, PyObject **values) {
  runner *built = NULL, *plain = NULL;
  PyObject *data = data_of(t, step, b), *ex = data ? examples(b, values) : NULL;
  PyObject *f = ex ? runner_new(t, step, values, false, &built) : NULL;
  PyObject *g = f ? runner_new(t, step, values, true, &plain) : NULL;
  PyObject *runs = g ? Py_BuildValue("{sOsO}", "framelift", f, "eager", g) : NULL;
  PyObject *out = runs ? PyObject_CallFunctionObjArgs(backend, data, ex, runs, NULL) : NULL;
  if (built) built->t = NULL;
  if (plain) plain->t = NULL;
  Py_XDECREF(data);
  Py_XDECREF(ex);
  Py_XDECREF(f);
  Py_XDECREF(g);
  Py_XDECREF(runs);
  if (out && (!PyTuple_Check(out) || PyTuple_GET_SIZE(out) != 2)) {
    PyErr_SetString(PyExc_TypeError, "framelift: a segment's backend must give (choice, info)");
    Py_CLEAR(out);
  }
  return out;
}

static uint32_t *copied(fl_arena *a, const uint32_t *v, size_t n, const uint32_t *w, size_t m) {
  uint32_t *out = fl_arena_alloc(a, (n + m + 1) * sizeof *out);
  if (out && n) memcpy(out, v, n * sizeof *out);
  if (out && m) memcpy(out + n, w, m * sizeof *out);
  return out;
}

static fl_fx *fx_new(fl_trace *t, const fl_tstep *step, const border *b) {
  fl_arena *a = &step->segment->arena;
  fl_fx *fx = fl_arena_alloc(a, sizeof *fx);
  if (!fx) return NULL;
  memset(fx, 0, sizeof *fx);
  fx->n_in = (int)(b->in.len + b->weights.len);
  fx->n_out = (int)b->out.len;
  fx->in = copied(a, b->in.data, b->in.len, b->weights.data, b->weights.len);
  fx->out = copied(a, b->out.data, b->out.len, NULL, 0);
  fx->drop = fl_arena_alloc(a, (b->in.len + 1) * sizeof *fx->drop);
  bool *need = fl_calloc(t->values.len + 1, sizeof *need);
  if (need) fl_trace_needed_after(t, (uint32_t)(step - t->steps.data), need);
  for (size_t i = 0; need && fx->drop && i < b->in.len; i++)
    if (t->values.data[b->in.data[i]].kind == FL_TVAL_RESULT && !need[b->in.data[i]])
      fx->drop[fx->n_drop++] = b->in.data[i];
  bool ok = need && fx->in && fx->out && fx->drop;
  fl_free(need);
  return ok ? fx : NULL;
}

static int take_answer(fl_trace *t, fl_tstep *step, const border *b, PyObject *answer) {
  PyObject *choice = PyTuple_GET_ITEM(answer, 0), *info = PyTuple_GET_ITEM(answer, 1);
  fl_segment *s = step->segment;
  if (PyList_Append(t->keep, answer) < 0) return -1;
  fl_fx *fx = fx_new(t, step, b);
  if (!fx) return PyErr_NoMemory(), -1;
  fx->info = info;
  if (choice != Py_None) {
    const char *reason = PyUnicode_Check(choice) ? "left to PyTorch by the backend" : "computed by another backend";
    if (step->eager_reason) reason = step->eager_reason;
    if (!fl_segment_make_eager(t, step, reason)) return PyErr_NoMemory(), -1;
    t->eager_parts = true;
    if (PyCallable_Check(choice)) fx->call = choice;
  }
  s->fx = fx;
  return 0;
}

int fl_fx_build(fl_trace *t, PyObject *backend, PyObject *const *inputs) {
  if (t->effects) return 0;
  PyObject **values = fl_rerun_begin(t, inputs);
  int rc = values ? 0 : -1;
  for (size_t i = 0; rc == 0 && i < t->steps.len; i++) {
    fl_tstep *step = &t->steps.data[i];
    PyObject *guard;
    fl_break_recorded(t, i, values);
    if (!fl_inference_begin(step->inference, &guard)) rc = -1;
    if (rc == 0 && step->kind == FL_TSTEP_SEGMENT && step->segment && step->n) {
      border b;
      PyObject *answer = border_find(&b, t, step) ? ask(t, step, &b, backend, values) : NULL;
      rc = answer ? take_answer(t, step, &b, answer) : -1;
      Py_XDECREF(answer);
      border_release(&b);
    }
    for (uint32_t k = 0; rc == 0 && k < step->n; k++)
      rc = fl_node_run(t, &t->nodes.data[step->first + k], values, NULL);
    fl_inference_end(guard);
  }
  fl_rerun_end(t, values);
  return rc;
}

/* --- replay --- */

static bool as_recorded(const fl_trace *t, const fl_fx *fx, PyObject *result) {
  if ((!PyTuple_Check(result) && !PyList_Check(result)) || PySequence_Fast_GET_SIZE(result) != fx->n_out) return false;
  for (int i = 0; i < fx->n_out; i++) {
    PyObject *o = PySequence_Fast_GET_ITEM(result, i);
    fl_tensor_meta m;
    if (!fl_tensor_check(o)) return false;
    fl_tensor_read(o, &m);
    if (!fl_tensor_meta_equal(&m, &t->values.data[fx->out[i]].meta)) return false;
  }
  return true;
}

int fl_fx_run(const fl_trace *t, const fl_fx *fx, PyObject **values, bool keep) {
  enum { LOCAL = 64 };
  PyObject *local[LOCAL] = {NULL}, **args = local;
  size_t n = (size_t)fx->n_in;
  if (n > LOCAL && !(args = fl_malloc(n * sizeof *args))) return 0;
  for (size_t i = 0; i < n; i++) args[i] = values[fx->in[i]];
  PyObject *result = PyObject_Vectorcall(fx->call, args, n, NULL);
  if (args != local) fl_free(args);
  if (!result) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Clear();
    return 0;
  }
  bool good = as_recorded(t, fx, result);
  for (int i = 0; good && i < fx->n_out; i++) {
    PyObject *old = values[fx->out[i]];
    values[fx->out[i]] = Py_NewRef(PySequence_Fast_GET_ITEM(result, i));
    Py_XDECREF(old);
  }
  Py_DECREF(result);
  for (int i = 0; good && !keep && i < fx->n_drop; i++) Py_CLEAR(values[fx->drop[i]]);
  return good;
}
