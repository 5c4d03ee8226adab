/* Running a trace: engine parts on raw pointers, eager operators through their OpOverload's builtin. */
#include <stdlib.h>
#include <string.h>

#include "capture/ask_first.h"
#include "capture/engine_error.h"
#include "capture/fx.h"
#include "capture/make.h"
#include "capture/modes.h"
#include "capture/branch.h"
#include "plan/view.h"

/* --- one operator --- */

static PyObject *arg_value(const fl_trace *t, const fl_targ *a, PyObject *const *values) {
  PyObject *o;
  switch (a->kind) {
  case FL_TARG_CONST: return Py_NewRef(a->object);
  case FL_TARG_VALUE:
    if (!values[a->value]) PyErr_SetString(PyExc_SystemError, "framelift: an operator's input was not computed");
    return Py_XNewRef(values[a->value]);
  default:
    o = a->kind == FL_TARG_LIST ? PyList_New(a->n) : PyTuple_New(a->n);
    for (int i = 0; o && i < a->n; i++) {
      PyObject *x = arg_value(t, &a->items[i], values);
      if (!x)
        Py_CLEAR(o);
      else if (a->kind == FL_TARG_LIST)
        PyList_SET_ITEM(o, i, x);
      else
        PyTuple_SET_ITEM(o, i, x);
    }
    return o;
  }
}

static void put(PyObject **values, uint32_t v, PyObject *o) {
  PyObject *old = values[v];
  values[v] = Py_NewRef(o);
  Py_XDECREF(old);
}

static void store(const fl_tnode *n, PyObject *o, int *at, PyObject **values) {
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++) store(n, PySequence_Fast_GET_ITEM(o, i), at, values);
    return;
  }
  if (*at < n->n_out && n->outs[*at] != FL_NO_TVAL && fl_tensor_check(o)) put(values, n->outs[*at], o);
  (*at)++;
}

/* --- while a trace is verified --- */

static bool has_elements(PyObject *tensor) {
  fl_tensor_meta m;
  fl_tensor_read(tensor, &m);
  return !m.ok || fl_type_numel(&m.type);
}

/* Whether all that it gives is memory it has not filled. */
static bool leaves_unfilled(const fl_tnode *n, PyObject *const *values) {
  if (!n->schema->unfilled || !n->schema->writes) return n->schema->unfilled;
  return n->n_pos && n->args[0].kind == FL_TARG_VALUE && values[n->args[0].value] &&
         !has_elements(values[n->args[0].value]);
}

/* A number that is nobody's answer, rather than what happens to lie there. */
static int spoil_result(const fl_trace *t, PyObject *result) {
  fl_tensor_meta m;
  if (!fl_tensor_check(result)) return 0;
  fl_tensor_read(result, &m);
  if (!m.ok || m.type.dtype == FL_BOOL || !fl_type_numel(&m.type)) return 0;
  PyObject *done = PyObject_CallMethod(result, "fill_", "i", m.type.dtype == FL_U8 ? abs(t->spoil) : t->spoil);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

/* What another library does besides giving results would be done a second time. */
static bool only_acts(const fl_tnode *n) {
  for (int i = 0; i < n->n_out; i++)
    if (n->outs[i] != FL_NO_TVAL) return false;
  return n->schema->outside && !n->schema->writes;
}

/* Copies, for the program writes to what it is given. */
static int store_recorded(const fl_tnode *n, PyObject **values) {
  for (int i = 0; i < n->n_out; i++) {
    PyObject *o = n->recorded[i] ? PyObject_CallMethod(n->recorded[i], "clone", NULL) : NULL;
    if (n->recorded[i] && !o) return -1;
    if (o) put(values, n->outs[i], o);
    Py_XDECREF(o);
  }
  return 0;
}

int fl_node_run(const fl_trace *t, const fl_tnode *n, PyObject **values, PyObject **out_result) {
  PyObject *local[24] = {NULL}, **args = local;
  int total = n->n_pos + n->n_kw, made = 0, at = 0;
  PyObject *result = NULL;
  if (t->spoil && n->recorded && !out_result) return store_recorded(n, values);
  if (t->spoil && only_acts(n) && !out_result) return 0;
  if (total > 24 && !(args = fl_calloc((size_t)total, sizeof *args))) return PyErr_NoMemory(), -1;
  bool spoils = t->spoil && leaves_unfilled(n, values);
  for (; made < total; made++)
    if (!(args[made] = arg_value(t, &n->args[made], values))) break;
  if (made == total) result = PyObject_Vectorcall(n->schema->op, args, (size_t)n->n_pos, n->kwnames);
  for (int i = 0; i < made; i++) Py_DECREF(args[i]);
  if (args != local) fl_free(args);
  if (result && spoils && spoil_result(t, result) < 0) Py_CLEAR(result);
  if (!result) return -1;
  store(n, result, &at, values);
  if (out_result)
    *out_result = result;
  else
    Py_DECREF(result);
  return 0;
}

static void drop(const fl_trace *t, const uint32_t *list, int n, PyObject **values) {
  for (int i = 0; i < n; i++)
    if (t->values.data[list[i]].kind == FL_TVAL_RESULT) Py_CLEAR(values[list[i]]);
}

/* --- engine parts --- */

/* FL_OK, FL_INVALID, or -1 with an exception. */
static int refresh(fl_trace *t, fl_segment *s, fl_seg_part *p) {
  uint32_t *slots = fl_malloc((s->n_slots + 1) * sizeof *slots);
  const void **data = fl_malloc((s->n_slots + 1) * sizeof *data);
  uint64_t *stamps = fl_malloc((s->n_slots + 1) * sizeof *stamps);
  int n = 0;
  fl_status st = slots && data && stamps ? NULL : fl_oom();
  fl_weights_stamp(&t->weights);
  for (uint32_t i = 0; !st && i < s->n_slots; i++) {
    const fl_weight *w = &t->weights.list.data[s->slots[i]];
    if (w->epoch <= p->epoch) continue;
    slots[n] = i;
    stamps[n] = w->stamp;
    data[n++] = w->meta.data;
  }
  if (!st && n) st = fl_engine_update(p->engine, slots, data, stamps, n);
  fl_free(slots);
  fl_free(data);
  fl_free(stamps);
  int rc = (int)fl_status_code(st);
  if (rc == FL_OOM) rc = FL_INVALID;
  if (!st)
    p->epoch = t->weights.epoch;
  else if (rc != FL_INVALID) { /* that is an index out of range among the weights: eager raises its own error */
    fl_engine_error_raise("refreshing weights", st);
    rc = -1;
  }
  fl_status_free(st);
  return rc;
}

/* Eager code before this part may give other strides, or another device, than it did when recorded. */
static bool inputs_fit(const fl_segment *s, const fl_plan *plan, const fl_seg_part *p, PyObject *const *values) {
  for (int i = 0; i < p->n_in; i++) {
    fl_tensor_meta m;
    if (!p->checked[i]) continue;
    fl_tensor_read(values[p->in[i]], &m);
    if (!m.ok || !fl_device_equal(fl_device_of(&m), s->device) || !fl_type_equal(&m.type, &plan->inputs[i].type) ||
        !fl_strides_equal(&m.type, m.strides, plan->inputs[i].strides))
      return false;
  }
  return true;
}

typedef struct run_buffers {
  const void **in;
  void **out;
  void **temp; /* outputs whose strides differ from eager's */
} run_buffers;

static int outputs_new(const fl_trace *t, fl_seg_part *p, const fl_plan *plan, PyObject **values, run_buffers *b) {
  for (int i = 0; i < p->n_out; i++) {
    const fl_tval *v = &t->values.data[p->out[i]];
    PyObject *o = fl_make_tensor(&v->meta, &b->out[i]);
    if (!o) {
      if (!(o = fl_tensor_new(&v->meta))) return -1;
      b->out[i] = fl_tensor_data(o);
    }
    Py_XDECREF(values[p->out[i]]);
    values[p->out[i]] = o;
    if (!p->copied[i]) continue;
    size_t bytes = fl_type_bytes(&plan->outputs[i].type);
    if (!(b->out[i] = b->temp[i] = fl_malloc_aligned(bytes ? bytes : 1))) return PyErr_NoMemory(), -1;
  }
  return 0;
}

static void copy_outputs(const fl_trace *t, const fl_segment *s, const fl_seg_part *p, const fl_plan *plan,
                         PyObject *const *values, const run_buffers *b) {
  for (int i = 0; i < p->n_out; i++) {
    if (!p->copied[i]) continue;
    const fl_tval *v = &t->values.data[p->out[i]];
    fl_tensor src = {.data = b->temp[i], .type = plan->outputs[i].type};
    fl_tensor dst = {.data = fl_tensor_data(values[p->out[i]]), .type = v->meta.type};
    memcpy(src.strides, plan->outputs[i].strides, sizeof src.strides);
    memcpy(dst.strides, v->meta.strides, sizeof dst.strides);
    if (fl_type_numel(&dst.type)) fl_copy_strided(&dst, &src, s->pool);
  }
}

/* What the call's guards have looked at is a dense tensor with a storage. */
static const void *input_data(const fl_plan *plan, const fl_seg_part *p, int i, PyObject *tensor) {
  if (p->checked[i] || !fl_impl_at.shapes) return fl_tensor_data(tensor);
  return fl_impl_data(tensor, fl_dtype_size(plan->inputs[i].type.dtype));
}

int fl_part_run(fl_trace *t, fl_segment *s, fl_seg_part *p, PyObject **values) {
  const fl_plan *plan = fl_engine_plan(p->engine);
  enum { LOCAL = 32 };
  const void *in[LOCAL];
  void *out[LOCAL], *temp[LOCAL], *heap = NULL;
  run_buffers b = {in, out, temp};
  if (p->n_in > LOCAL || p->n_out > LOCAL) {
    size_t n = (size_t)(p->n_in + p->n_out);
    if (!(heap = fl_calloc(3 * n, sizeof(void *)))) return PyErr_NoMemory(), -1;
    b.in = heap;
    b.out = (void **)heap + n;
    b.temp = (void **)heap + 2 * n;
  }
  memset(b.temp, 0, (size_t)p->n_out * sizeof *b.temp);
  int rc = -1;
  if (!fl_device_enter(s->backend, s->device)) {
    rc = FL_INVALID; /* the caller's CUDA graph gets the operators themselves */
    goto done;
  }
  if (p->epoch < t->weights.epoch && (rc = refresh(t, s, p)) != FL_OK) goto done;
  rc = -1;
  for (int i = 0; i < p->n_in; i++) b.in[i] = values[p->in[i]] ? input_data(plan, p, i, values[p->in[i]]) : NULL;
  if (!inputs_fit(s, plan, p, values)) {
    rc = FL_INVALID;
    goto done;
  }
  if (outputs_new(t, p, plan, values, &b) < 0) goto done;
  fl_status st = NULL;
  if (!t->idle) {
    Py_BEGIN_ALLOW_THREADS st = fl_engine_run(p->engine, b.in, b.out);
    Py_END_ALLOW_THREADS
  }
  rc = (int)fl_status_code(st);
  if (rc == FL_OOM)
    rc = FL_INVALID; /* the operators may do with less than the engine's arena; else the error is theirs */
  if (st && rc != FL_INVALID) {
    fl_engine_error_raise(NULL, st);
    rc = -1;
  }
  fl_status_free(st);
  if (rc == FL_OK) copy_outputs(t, s, p, plan, values, &b);
done:
  for (int i = 0; i < p->n_out; i++) {
    if (rc != FL_OK) Py_CLEAR(values[p->out[i]]);
    fl_free_aligned(b.temp[i]);
  }
  fl_free(heap);
  return rc;
}

/* --- segments --- */

/* What raises is not always done again by the program: the traceback shows its line anyway. */
static int run_node(fl_trace *t, const fl_tnode *n, PyObject **values) {
  if (fl_node_run(t, n, values, NULL) == 0) return 0;
  if (t->spoil) t->unfaithful_at = (uint32_t)(n - t->nodes.data);
  if (n->file && PyErr_Occurred()) _PyTraceback_Add("<replayed>", n->file, n->line);
  return -1;
}

static int run_nodes(fl_trace *t, const uint32_t *nodes, int n, const fl_drop *drops, PyObject **values, bool keep) {
  for (int i = 0; i < n; i++) {
    if (run_node(t, &t->nodes.data[nodes[i]], values) < 0) return -1;
    if (!keep && drops) drop(t, drops[i].values, drops[i].n, values);
  }
  return 0;
}

static int run_all(fl_trace *t, const fl_tstep *step, PyObject **values, bool keep) {
  for (uint32_t i = 0; i < step->n; i++) {
    const fl_tnode *n = &t->nodes.data[step->first + i];
    if (run_node(t, n, values) < 0) return -1;
    if (!keep) drop(t, n->drop, n->n_drop, values);
  }
  return 0;
}

static int run_segment(fl_trace *t, const fl_tstep *step, PyObject **values, bool eager, bool keep) {
  fl_segment *s = step->segment;
  if (eager || !s) return run_all(t, step, values, keep);
  if (s->fx && s->fx->call) {
    int done = fl_fx_run(t, s->fx, values, keep);
    if (done) return done < 0 ? -1 : 0;
  }
  for (int i = 0; i < s->n_parts; i++) {
    fl_seg_part *p = &s->parts[i];
    int rc = p->kind == FL_PART_ENGINE ? fl_part_run(t, s, p, values)
                                       : run_nodes(t, p->nodes, p->n_nodes, p->drops, values, keep);
    /* An index out of range and the like: the recorded operators raise eager's own error. */
    if (rc == FL_INVALID) rc = run_nodes(t, p->nodes, p->n_nodes, NULL, values, keep);
    if (rc < 0) return -1;
    if (!keep && p->kind == FL_PART_ENGINE) drop(t, p->drops[0].values, p->drops[0].n, values);
  }
  return 0;
}

int fl_segment_run(fl_trace *t, const fl_tstep *step, PyObject **values, bool eager, bool keep) {
  PyObject *guard;
  if (!fl_inference_begin(step->inference, &guard)) return -1;
  int rc = run_segment(t, step, values, eager, keep);
  fl_inference_end(guard);
  return rc;
}

int fl_decision_run(const fl_trace *t, const fl_tstep *step, PyObject **values, PyObject **out_result) {
  PyObject *guard = NULL;
  if (step->kind == FL_TSTEP_SHAPE && !fl_inference_begin(step->inference, &guard)) return -1;
  int rc = fl_node_run(t, &t->nodes.data[step->first], values, out_result);
  fl_inference_end(guard);
  return rc;
}

/* --- the trace --- */

static const char other_answer[] = "value: a number out of a tensor";

static bool same_shapes(const fl_trace *t, const fl_tnode *n, PyObject *const *values) {
  for (int i = 0; i < n->n_out; i++) {
    fl_tensor_meta m;
    if (n->outs[i] == FL_NO_TVAL) continue;
    if (!values[n->outs[i]]) return false;
    fl_tensor_read(values[n->outs[i]], &m);
    if (!fl_tensor_meta_equal(&m, &t->values.data[n->outs[i]].meta)) return false;
  }
  return true;
}

static int count_results(PyObject *o) {
  if (!PyTuple_Check(o) && !PyList_Check(o)) return 1;
  int n = 0;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++) n += count_results(PySequence_Fast_GET_ITEM(o, i));
  return n;
}

static bool same_answer(PyObject *a, PyObject *b) {
  if (fl_const_equal(a, b)) return true;
  if (!PyFloat_CheckExact(a) || !PyFloat_CheckExact(b)) return false;
  double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
  return x != x && y != y;
}

/* What comes of comparing the answer, in its place. */
static int compare(const fl_compare *c, PyObject **result) {
  if (!c->other) return 0;
  PyObject *v = PyObject_RichCompare(c->swapped ? c->other : *result, c->swapped ? *result : c->other, c->op);
  Py_SETREF(*result, v);
  return v ? 0 : -1;
}

int fl_decision_compare(const fl_trace *t, const fl_tstep *step, PyObject **values, const char **miss) {
  const fl_tnode *n = &t->nodes.data[step->first];
  PyObject *result = NULL;
  if (fl_decision_run(t, step, values, &result) < 0 || compare(&step->compare, &result) < 0) return -1;
  if (step->kind == FL_TSTEP_SCALAR && !same_answer(result, step->scalar)) *miss = other_answer;
  if (step->kind == FL_TSTEP_SHAPE && (count_results(result) != n->n_out || !same_shapes(t, n, values)))
    *miss = "value: a shape that depends on data";
  Py_DECREF(result);
  return *miss ? -1 : 0;
}

static int run_step(fl_trace *t, size_t i, PyObject **values, const char **miss, bool engines) {
  const fl_tstep *step = &t->steps.data[i];
  if (step->kind != FL_TSTEP_SEGMENT) return fl_decision_compare(t, step, values, miss);
  if (i && t->writes_weights && !fl_weights_check(&t->weights)) {
    PyErr_SetString(PyExc_RuntimeError, "framelift: a weight changed its shape during the call");
    return -1;
  }
  return fl_segment_run(t, step, values, !engines, false);
}

/* After a failure: the call leaves the trace at the last break, where that does nothing twice. 1, or -1. */
static int leave(fl_run *run, const char **miss) {
  const char *why = *miss;
  *miss = FL_RUN_NOT_TWICE;
  if (!why && (run->last->dirty || !fl_error_is_of_program())) return -1;
  PyErr_Clear();
  if (!fl_break_leave(run, why ? why : "an operator raised")) return -1;
  run->exit->native = !why;
  return 1;
}

/* An exception before a late decision is one of a program that might have gone on otherwise. */
static bool is_undecided(const fl_trace *t, size_t i, size_t next_break) {
  size_t end = next_break < t->breaks.len ? t->breaks.data[next_break]->at : t->steps.len;
  for (; i < end; i++)
    if (t->steps.data[i].late) return fl_error_is_of_program();
  return false;
}

/* 0: done; 1: *out is the answer already, or the call has left the trace; -1. */
static int run_steps(fl_run *run, const char **miss, bool engines, PyObject **out) {
  fl_trace *t = run->t;
  for (size_t i = 0, k = 0; i <= t->steps.len; i++) {
    for (; k < t->breaks.len && t->breaks.data[k]->at == i; k++) {
      int rc = fl_break_run(run, t->breaks.data[k], out);
      if (rc) return *miss = FL_RUN_NOT_TWICE, rc;
    }
    if (i == t->steps.len) break;
    if (run_step(t, i, run->values, miss, engines) < 0) {
      if (!*miss && is_undecided(t, i, k)) *miss = other_answer;
      if (*miss == other_answer && !run->last) fl_ask_first_begin(t);
      if (*miss) PyErr_Clear();
      return run->last ? leave(run, miss) : -1;
    }
  }
  return 0;
}

/* The call's result out of the tuple that holds it and the effects' values, which are done now. Takes `all`. */
static PyObject *finish(const fl_trace *t, PyObject *all, PyObject *const *values, const char **miss) {
  if (!all || !t->writes.list.len) return all;
  PyObject *out = Py_NewRef(PyTuple_GET_ITEM(all, 0));
  if (fl_effects_apply(&t->writes, &PyTuple_GET_ITEM(all, 1), values) < 0) {
    *miss = FL_RUN_NOT_TWICE;
    Py_CLEAR(out);
  }
  Py_DECREF(all);
  return out;
}

static void find_containers(const fl_spec *s, PyObject *o, PyObject **found, uint32_t *at) {
  if (!fl_spec_holds(s)) return;
  if (fl_spec_is_container(s)) found[(*at)++] = o;
  for (int i = 0; i < s->n; i++) {
    PyObject *item = fl_back_item(s, o, i);
    if (item) find_containers(&s->items[i], item, found, at);
  }
}

static uint32_t count_containers(const fl_spec *s) {
  uint32_t n = fl_spec_is_container(s);
  for (int i = 0; fl_spec_holds(s) && i < s->n; i++) n += count_containers(&s->items[i]);
  return n;
}

/* Containers of the arguments that frames hold, or that the call gives back or writes to. */
static int put_containers(const fl_trace *t, const fl_call_args *call, PyObject **values) {
  if (!t->containers) return 0;
  uint32_t n = 0, at = 0;
  for (int i = 0; i < t->args.n_pos + t->args.n_kw; i++) n += count_containers(&t->args.args[i]);
  PyObject **found = fl_calloc(n + 1, sizeof *found);
  if (!found) return PyErr_NoMemory(), -1;
  for (int i = 0; i < t->args.n_pos + t->args.n_kw; i++) find_containers(&t->args.args[i], call->args[i], found, &at);
  for (size_t v = 0; v < t->values.len; v++)
    if (t->values.data[v].kind == FL_TVAL_ARGUMENT) values[v] = Py_XNewRef(found[t->values.data[v].index]);
  fl_free(found);
  return 0;
}

PyObject *fl_trace_run_to_exit(fl_trace *t, PyObject *const *inputs, const fl_call_args *call, const fl_entry *entry,
                               const char **miss, bool engines, fl_exit *exit) {
  enum { LOCAL = 1024 };
  PyObject *local[LOCAL], **values = local, *out = NULL;
  size_t n = t->values.len;
  *miss = NULL;
  if (n > LOCAL && !(values = fl_malloc(n * sizeof *values))) return PyErr_NoMemory();
  memcpy(values, t->start, n * sizeof *values);
  for (size_t i = 0; i < t->inputs.len; i++)
    values[t->inputs.data[i]] = inputs[t->values.data[t->inputs.data[i]].index];
  fl_run run = {.t = t, .values = values, .inputs = inputs, .call = call, .exit = exit};
  t->running++;
  int rc = put_containers(t, call, values);
  if (rc == 0 && entry && (*miss = fl_entry_match(t, entry, values))) rc = -1;
  if (rc == 0 && fl_ask_first(t, values)) *miss = other_answer, rc = -1;
  if (rc == 0) rc = run_steps(&run, miss, engines, &out);
  if (rc == 0) out = finish(t, fl_result_build(&t->result, values), values, miss);
  fl_run_end(&run);
  for (size_t i = 0; i < t->inputs.len; i++) values[t->inputs.data[i]] = NULL;
  for (size_t i = 0; i < n; i++)
    if (values[i] != t->start[i]) Py_DECREF(values[i]);
  t->running--;
  if (values != local) fl_free(values);
  return out;
}

PyObject *fl_trace_run(fl_trace *t, PyObject *const *inputs, const fl_call_args *call, const char **miss,
                       bool engines) {
  fl_exit exit = {0};
  PyObject *out = fl_trace_run_to_exit(t, inputs, call, NULL, miss, engines, &exit);
  while (exit.b) out = fl_exit_go_on(&exit, call, engines);
  return out;
}
