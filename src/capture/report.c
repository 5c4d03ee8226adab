/* What framelift made of a callable, as Python data for explain() and the tools. */
#include <string.h>
#include <time.h>

#include "capture/compiled.h"
#include "capture/fx.h"
#include "rt/constants.h"

/* Steals `value`; 0 or -1. */
static int put(PyObject *dict, const char *key, PyObject *value) {
  int rc = value ? PyDict_SetItemString(dict, key, value) : -1;
  Py_XDECREF(value);
  return rc;
}

static int add(PyObject *list, PyObject *value) {
  int rc = value ? PyList_Append(list, value) : -1;
  Py_XDECREF(value);
  return rc;
}

static PyObject *text(const char *s) {
  return s ? PyUnicode_DecodeUTF8(s, (Py_ssize_t)strlen(s), "replace") : Py_NewRef(Py_None);
}

static PyObject *guards_of(const fl_trace *t) {
  PyObject *d = PyDict_New();
  size_t n;
  const char *name;
  for (int i = 0; d && (name = fl_guards_count(&t->guards, i, &n)); i++)
    if (n && put(d, name, PyLong_FromSize_t(n)) < 0) Py_CLEAR(d);
  return d;
}

static PyObject *op_counts(const fl_trace *t, const fl_seg_part *p) {
  PyObject *d = PyDict_New();
  for (int i = 0; d && i < p->n_nodes; i++) {
    const char *name = t->nodes.data[p->nodes[i]].schema->name;
    PyObject *old = PyDict_GetItemString(d, name);
    if (put(d, name, PyLong_FromLong(old ? PyLong_AsLong(old) + 1 : 1)) < 0) Py_CLEAR(d);
  }
  return d;
}

static PyObject *device_of(const fl_segment *s) {
  if (!s->backend) return Py_NewRef(Py_None);
  if (fl_device_is_cpu(s->device)) return PyUnicode_FromString(s->backend->name);
  return PyUnicode_FromFormat("%s:%d", s->backend->name, s->device.id);
}

/* What an engine holds of its device's memory, in bytes, and how many contexts and programs hold it. What another engine
 * that this report has told of holds too is "shared" alone. */
static PyObject *memory_of(fl_engine *e, uint64_t report) {
  static const char *const kinds[FL_CONST_KINDS] = {"computed", "literals", "joined", "copied", "packed"};
  fl_engine_memory m = fl_engine_memory_of(e, report);
  PyObject *d = PyDict_New();
  if (!d) return NULL;
  bool ok = put(d, "contexts", PyLong_FromLong(m.contexts)) == 0 && put(d, "arena", PyLong_FromSize_t(m.arenas)) == 0 &&
            put(d, "stages", PyLong_FromSize_t(m.stages)) == 0 &&
            put(d, "workspaces", PyLong_FromSize_t(m.workspaces)) == 0 &&
            put(d, "programs", PyLong_FromLong(m.programs)) == 0 &&
            put(d, "graphs", PyLong_FromSize_t(m.programs_bytes)) == 0 &&
            put(d, "shared", PyLong_FromSize_t(m.shared)) == 0;
  for (int i = 0; ok && i < FL_CONST_KINDS; i++) ok = put(d, kinds[i], PyLong_FromSize_t(m.constants[i])) == 0;
  if (!ok) Py_CLEAR(d);
  return d;
}

static PyObject *part_of(const fl_trace *t, const fl_segment *s, const fl_seg_part *p, uint64_t report) {
  const fl_plan *plan = p->engine ? fl_engine_plan(p->engine) : NULL;
  PyObject *d = PyDict_New();
  if (!d) return NULL;
  if (put(d, "kind", text(p->kind == FL_PART_ENGINE ? "engine" : "eager")) < 0 ||
      put(d, "operators", PyLong_FromLong(p->n_nodes)) < 0 || put(d, "ops", op_counts(t, p)) < 0 ||
      put(d, "reason", text(p->reason)) < 0 || put(d, "nodes", PyLong_FromLong(p->engine_nodes)) < 0 ||
      put(d, "steps", PyLong_FromSize_t(plan ? plan->run.len : 0)) < 0 ||
      put(d, "arena_bytes", PyLong_FromSize_t(plan ? plan->arena_bytes : 0)) < 0 ||
      put(d, "arena_least_bytes", PyLong_FromSize_t(plan ? plan->arena_floor_bytes : 0)) < 0 ||
      put(d, "memory", plan ? memory_of(p->engine, report) : PyDict_New()) < 0 ||
      put(d, "device", plan ? device_of(s) : Py_NewRef(Py_None)) < 0 ||
      put(d, "precision", text(plan && s->precision != FL_F32 ? fl_dtype_name(s->precision) : NULL)) < 0 ||
      put(d, "const_bytes", PyLong_FromSize_t(plan ? plan->const_bytes : 0)) < 0)
    Py_CLEAR(d);
  return d;
}

static PyObject *eager_entry(const fl_tnode *n, const char *reason) {
  PyObject *d = PyDict_New();
  if (!d) return NULL;
  if (put(d, "op", text(n->schema->name)) < 0 || put(d, "reason", text(reason)) < 0 ||
      put(d, "file", text(n->file)) < 0 || put(d, "line", PyLong_FromLong(n->line)) < 0 ||
      put(d, "module", text(n->module)) < 0 || put(d, "count", PyLong_FromLong(1)) < 0)
    Py_CLEAR(d);
  return d;
}

static bool same_text(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }

/* Whether a node runs in an eager part; those in none are dead. */
static bool runs_eagerly(const fl_segment *s, uint32_t node) {
  for (int i = 0; i < s->n_parts; i++)
    for (int k = 0; s->parts[i].kind == FL_PART_EAGER && k < s->parts[i].n_nodes; k++)
      if (s->parts[i].nodes[k] == node) return true;
  return false;
}

typedef const char *(*reason_fn)(const fl_trace *t, const fl_tstep *st, uint32_t node);

static const char *why_eager(const fl_trace *t, const fl_tstep *st, uint32_t i) {
  return runs_eagerly(st->segment, st->first + i) ? st->segment->reasons[i] : NULL;
}

static const char *why_exact(const fl_trace *t, const fl_tstep *st, uint32_t i) {
  const fl_segment *s = st->segment;
  return s->exact && s->exact[i] && !s->reasons[i] ? "its result in low precision is not float32's" : NULL;
}

/* Operators for which there is a reason, one entry for each (operator, reason, line). */
static PyObject *nodes_with(const fl_trace *t, const fl_tstep *st, reason_fn why) {
  PyObject *list = PyList_New(0);
  uint32_t *first = fl_malloc((st->n + 1) * sizeof *first), n = 0;
  if (!first) Py_CLEAR(list);
  for (uint32_t i = 0; list && i < st->n; i++) {
    const fl_tnode *node = &t->nodes.data[st->first + i];
    uint32_t k = 0;
    const char *reason = why(t, st, i);
    if (!reason) continue;
    for (; k < n; k++) {
      const fl_tnode *o = &t->nodes.data[st->first + first[k]];
      if (o->schema == node->schema && o->line == node->line && same_text(o->file, node->file) &&
          same_text(reason, why(t, st, first[k])))
        break;
    }
    if (k == n) {
      first[n++] = i;
      if (add(list, eager_entry(node, reason)) < 0) Py_CLEAR(list);
    } else {
      PyObject *d = PyList_GET_ITEM(list, k);
      if (put(d, "count", PyLong_FromLong(PyLong_AsLong(PyDict_GetItemString(d, "count")) + 1)) < 0) Py_CLEAR(list);
    }
  }
  fl_free(first);
  return list;
}

static PyObject *segment_of(const fl_trace *t, const fl_tstep *st, uint64_t report) {
  const fl_segment *s = st->segment;
  PyObject *d = PyDict_New(), *parts = PyList_New(0);
  int lowered = 0, dead = s->lowered ? s->lowered->n_dead : 0;
  for (int i = 0; parts && i < s->n_parts; i++) {
    if (s->parts[i].kind == FL_PART_ENGINE) lowered += s->parts[i].n_nodes;
    if (add(parts, part_of(t, s, &s->parts[i], report)) < 0) Py_CLEAR(parts);
  }
  if (!d || !parts || put(d, "parts", Py_NewRef(parts)) < 0 ||
      put(d, "operators", PyLong_FromUnsignedLong(st->n)) < 0 || put(d, "lowered", PyLong_FromLong(lowered)) < 0 ||
      put(d, "dead", PyLong_FromLong(dead)) < 0 || put(d, "eager", nodes_with(t, st, why_eager)) < 0 ||
      put(d, "exact", nodes_with(t, st, why_exact)) < 0)
    Py_CLEAR(d);
  if (d && s->fx && put(d, "backend", Py_NewRef(s->fx->info)) < 0) Py_CLEAR(d);
  if (d && t->verified &&
      put(d, "verify", Py_BuildValue("{sdsd}", "cosine", (double)t->cosine, "max_rel_err", (double)t->max_rel)) < 0)
    Py_CLEAR(d);
  Py_XDECREF(parts);
  return d;
}

static PyObject *break_of(const fl_trace *t, const fl_tstep *st) {
  const fl_tnode *n = &t->nodes.data[st->first];
  return Py_BuildValue("{szszszsi}", "reason",
                       st->kind == FL_TSTEP_SCALAR ? "a value out of a tensor decides how the program goes on"
                                                   : "the shape of a result depends on data",
                       "detail", n->schema->name, "file", n->file, "line", n->line);
}

static PyObject *trace_of(const fl_trace *t, uint64_t report);

/* Breaks that stand alike have the same branches: they are listed with the first of them. */
static PyObject *branches_of(const fl_break *b, uint64_t report) {
  PyObject *list = PyList_New(0);
  for (size_t i = 0; list && b->site && b->site->b == b && i < b->site->branches.len; i++)
    if (add(list, trace_of(b->site->branches.data[i], report)) < 0) Py_CLEAR(list);
  return list;
}

static PyObject *opaque_of(const fl_break *b, uint64_t report) {
  const char *why = b->site && b->site->b == b && b->site->why[0] ? b->site->why : NULL;
  return Py_BuildValue("{szszszsisKsKszsNsz}", "reason", b->reason, "detail", b->detail, "file", b->file, "line",
                       b->line, "count", (unsigned long long)b->count, "exits", (unsigned long long)b->exits,
                       "exit_reason", b->exits ? b->exit_why : NULL, "branches", branches_of(b, report),
                       "branch_reason", why);
}

/* Stages that took time, in order, and their sum. */
static PyObject *times_of(const fl_stage_times *times) {
  PyObject *d = PyDict_New();
  for (int i = 0; d && i < FL_STAGES; i++)
    if (times->ms[i] > 0 && put(d, fl_stage_name((fl_stage)i), PyFloat_FromDouble(times->ms[i])) < 0) Py_CLEAR(d);
  if (d && fl_stages_total(times) > 0 && put(d, "total", PyFloat_FromDouble(fl_stages_total(times))) < 0) Py_CLEAR(d);
  return d;
}

static PyObject *trace_of(const fl_trace *t, uint64_t report) {
  PyObject *d = PyDict_New(), *segments = PyList_New(0), *breaks = PyList_New(0), *checks = PyList_New(0);
  bool ok = d && segments && breaks && checks;
  for (size_t i = 0, k = 0; ok && i <= t->steps.len; i++) {
    for (; ok && k < t->breaks.len && t->breaks.data[k]->at == i; k++)
      ok = add(breaks, opaque_of(t->breaks.data[k], report)) == 0;
    if (i == t->steps.len) break;
    const fl_tstep *st = &t->steps.data[i];
    if (st->kind != FL_TSTEP_SEGMENT)
      ok = add(st->late ? checks : breaks, break_of(t, st)) == 0;
    else if (st->segment)
      ok = add(segments, segment_of(t, st, report)) == 0;
  }
  ok = ok && put(d, "guards", guards_of(t)) == 0 &&
       put(d, "autocast", t->around ? fl_around_text(t->around) : Py_NewRef(Py_None)) == 0 &&
       put(d, "weights", PyLong_FromSize_t(t->weights.list.len)) == 0 &&
       put(d, "inputs", PyLong_FromLong(t->args.n_inputs)) == 0 &&
       put(d, "effects", PyLong_FromSize_t(t->writes.list.len)) == 0 &&
       put(d, "sources", PyLong_FromSize_t(t->writes.sources.len)) == 0 &&
       put(d, "rebound", PyLong_FromUnsignedLongLong(t->rebound)) == 0 &&
       put(d, "hits", PyLong_FromUnsignedLongLong(t->hits)) == 0 && put(d, "first_call_ms", times_of(&t->times)) == 0 &&
       put(d, "ready_ms", times_of(&t->ready_times)) == 0 && put(d, "segments", Py_NewRef(segments)) == 0 &&
       put(d, "breaks", Py_NewRef(breaks)) == 0 && put(d, "checks", Py_NewRef(checks)) == 0;
  Py_XDECREF(segments);
  Py_XDECREF(breaks);
  Py_XDECREF(checks);
  if (!ok) Py_CLEAR(d);
  return d;
}

static PyObject *give_ups_of(const fl_compiled *c) {
  PyObject *list = PyList_New(0);
  for (size_t i = 0; list && i < c->give_ups.len; i++) {
    const fl_give_up *g = &c->give_ups.data[i];
    if (add(list, Py_BuildValue("{szszszsisK}", "reason", g->reason, "detail", g->detail, "file", g->file, "line",
                                g->line, "count", (unsigned long long)g->count)) < 0)
      Py_CLEAR(list);
  }
  return list;
}

static PyObject *misses_of(const fl_compiled *c) {
  PyObject *list = PyList_New(0);
  for (size_t i = 0; list && i < c->misses.len; i++) {
    const fl_miss *m = &c->misses.data[i];
    PyObject *guard = PyUnicode_DecodeUTF8(m->text, (Py_ssize_t)strlen(m->text), "replace");
    if (add(list, guard ? Py_BuildValue("{sNsK}", "guard", guard, "count", (unsigned long long)m->count) : NULL) < 0)
      Py_CLEAR(list);
  }
  return list;
}

static PyObject *target_name(PyObject *target) {
  PyObject *q = PyFunction_Check(target) ? Py_NewRef(((PyFunctionObject *)target)->func_qualname) : NULL;
  if (!q && PyMethod_Check(target)) q = PyObject_GetAttrString(target, "__qualname__");
  if (!q) PyErr_Clear();
  return q ? q : text(Py_TYPE(target)->tp_name);
}

/* What is told of a trace is that its engines are right. Operators may have to run for that: not where a mode sees them. */
static void make_trace_ready(fl_compiled *c, fl_trace *t) {
  fl_torch_state state;
  if (!t->later || fl_rec_current()) return;
  if (fl_torch_state_read(&state) == 0 && !fl_torch_state_why_not(&state) && fl_weights_check(&t->weights))
    (void)fl_compiled_make_ready(c, t);
  PyErr_Clear();
}

/* Some may turn out to be refused, and are the callable's no more. */
static void make_ready(fl_compiled *c) {
  for (size_t i = 0; i < c->traces.len;) {
    fl_trace *t = c->traces.data[i];
    fl_trace_retain(t);
    make_trace_ready(c, t);
    i += !t->unfaithful;
    fl_trace_release(t);
  }
}

PyObject *fl_report(fl_compiled *c) {
  PyObject *d = PyDict_New(), *traces = PyList_New(0);
  bool ok = d && traces;
  const uint64_t report = fl_constants_report(); /* what traces share is told of once */
  make_ready(c);
  for (size_t i = 0; ok && i < c->traces.len; i++) {
    fl_trace *t = c->traces.data[i];
    fl_trace_retain(t); /* collecting garbage may let other threads reset the callable */
    ok = add(traces, trace_of(t, report)) == 0;
    fl_trace_release(t);
  }
  ok = ok && put(d, "target", target_name(c->target)) == 0 &&
       put(d, "calls", PyLong_FromUnsignedLongLong(c->calls)) == 0 &&
       put(d, "recorded", PyLong_FromLong(c->recorded)) == 0 &&
       put(d, "replayed", PyLong_FromUnsignedLongLong(c->replayed)) == 0 &&
       put(d, "native", PyLong_FromUnsignedLongLong(c->native)) == 0 &&
       put(d, "native_reason", text(c->native_reason[0] ? c->native_reason : NULL)) == 0 &&
       put(d, "threads", PyLong_FromLong(c->threads)) == 0 && put(d, "give_ups", give_ups_of(c)) == 0 &&
       put(d, "misses", misses_of(c)) == 0 && put(d, "traces", Py_NewRef(traces)) == 0;
  Py_XDECREF(traces);
  if (!ok) Py_CLEAR(d);
  return d;
}

PyObject *fl_report_segments(fl_compiled *c) {
  PyObject *traces = PyList_New(0);
  make_ready(c);
  for (size_t i = 0; traces && i < c->traces.len; i++) {
    fl_trace *t = c->traces.data[i];
    fl_trace_retain(t);
    PyObject *list = PyList_New(0);
    for (size_t k = 0; list && k < t->steps.len; k++)
      if (t->steps.data[k].kind == FL_TSTEP_SEGMENT && add(list, fl_fx_data(t, &t->steps.data[k])) < 0) Py_CLEAR(list);
    fl_trace_release(t);
    if (add(traces, list) < 0) Py_CLEAR(traces);
  }
  return traces;
}

/* --- text of plans and graphs --- */

static PyObject *joined(fl_compiled *c, fl_status (*print)(fl_seg_part *, const fl_part *, char **)) {
  PyObject *all = PyUnicode_FromString("");
  make_ready(c);
  for (size_t i = 0; all && i < c->traces.len; i++) {
    fl_trace *t = c->traces.data[i];
    for (size_t k = 0; all && k < t->steps.len; k++) {
      fl_segment *s = t->steps.data[k].segment;
      for (int p = 0; all && s && s->lowered && p < s->n_parts; p++) {
        if (!s->parts[p].engine) continue;
        char *out = NULL;
        fl_status st = print(&s->parts[p], &s->lowered->parts.data[p], &out);
        PyObject *head =
            PyUnicode_FromFormat("trace %zu, step %zu, part %d\n%s\n", i, k, p, st ? fl_status_message(st) : out);
        fl_status_free(st);
        fl_free(out);
        PyUnicode_AppendAndDel(&all, head);
      }
    }
  }
  return all;
}

static fl_status print_plan(fl_seg_part *p, const fl_part *from, char **out) {
  return fl_plan_print(fl_engine_plan(p->engine), out);
}
static fl_status print_graph(fl_seg_part *p, const fl_part *from, char **out) {
  return fl_graph_print(from->graph, out);
}

PyObject *fl_report_plans(fl_compiled *c) { return joined(c, print_plan); }
PyObject *fl_report_graphs(fl_compiled *c) { return joined(c, print_graph); }

/* --- measuring --- */

typedef struct flat_call {
  PyObject **args, *kwnames;
  size_t n_pos;
} flat_call;

static int flatten(flat_call *f, PyObject *args, PyObject *kwargs) {
  size_t n_kw = kwargs && kwargs != Py_None ? (size_t)PyDict_GET_SIZE(kwargs) : 0, i = 0;
  f->n_pos = (size_t)PyTuple_GET_SIZE(args);
  f->args = fl_calloc(f->n_pos + n_kw + 1, sizeof *f->args);
  f->kwnames = n_kw ? PyTuple_New((Py_ssize_t)n_kw) : NULL;
  if (!f->args || (n_kw && !f->kwnames)) return PyErr_NoMemory(), -1;
  for (; i < f->n_pos; i++) f->args[i] = PyTuple_GET_ITEM(args, (Py_ssize_t)i);
  PyObject *k, *v;
  Py_ssize_t pos = 0, at = 0;
  while (n_kw && PyDict_Next(kwargs, &pos, &k, &v)) {
    PyTuple_SET_ITEM(f->kwnames, at++, Py_NewRef(k));
    f->args[i++] = v;
  }
  return 0;
}

static void unflatten(flat_call *f) {
  fl_free(f->args);
  Py_XDECREF(f->kwnames);
}

/* Retained, or NULL with an exception. */
static fl_trace *fitting(fl_compiled *c, flat_call *f, PyObject *args, PyObject *kwargs, PyObject **inputs) {
  if (flatten(f, args, kwargs) < 0) return NULL;
  fl_trace *t = fl_compiled_find(c, f->args, f->n_pos, f->kwnames, inputs);
  if (t) fl_trace_retain(t);
  bool ready = t && fl_compiled_make_ready(c, t);
  if (t && !ready) PyErr_SetString(PyExc_RuntimeError, "framelift: another thread is recording");
  if (t && (!ready || t->unfaithful)) {
    fl_trace_release(t);
    t = NULL;
  }
  if (!t && !PyErr_Occurred())
    PyErr_SetString(PyExc_ValueError, "framelift: no trace fits these arguments; call it with them first");
  return t;
}

static int profile_part(fl_trace *t, const fl_segment *s, fl_seg_part *p, PyObject **values, PyObject *list) {
  const fl_plan *plan = fl_engine_plan(p->engine);
  double *us = fl_calloc(plan->run.len + 1, sizeof *us);
  const void **in = fl_calloc((size_t)p->n_in + 1, sizeof *in);
  void **out = fl_calloc((size_t)p->n_out + 1, sizeof *out);
  char *print = NULL;
  fl_status st = us && in && out ? NULL : fl_oom();
  if (!st && !fl_device_enter(s->backend, s->device)) st = fl_fail(FL_UNSUPPORTED, "a CUDA graph is being captured");
  for (int i = 0; !st && i < p->n_in; i++) in[i] = fl_tensor_data(values[p->in[i]]);
  for (int i = 0; !st && i < p->n_out; i++)
    if (!(out[i] = s->backend->allocate(s->backend, fl_type_bytes(&plan->outputs[i].type) + 1))) st = fl_oom();
  if (!st) st = fl_engine_profile(p->engine, in, out, us);
  int rc = 0;
  for (size_t i = 0; !st && rc == 0 && i < plan->run.len; i++) {
    const fl_step *step = &plan->run.data[i];
    const char *name = step->kind == FL_STEP_KERNEL ? plan->backend->kernel(step->kernel)->name
                       : step->kind == FL_STEP_COPY ? "copy"
                                                    : "pack";
    rc = add(list, Py_BuildValue("(sd)", name, us[i]));
  }
  if (st) PyErr_Format(PyExc_RuntimeError, "framelift: %s", fl_status_message(st));
  rc = st ? -1 : rc;
  fl_status_free(st);
  for (int i = 0; out && i < p->n_out; i++) s->backend->release(s->backend, out[i]);
  fl_free(us);
  fl_free(in);
  fl_free(out);
  fl_free(print);
  return rc;
}

PyObject *fl_report_profile(fl_compiled *c, PyObject *args, PyObject *kwargs) {
  flat_call f = {0};
  PyObject *inputs[FL_MAX_INPUTS], *list = PyList_New(0), **values = NULL;
  fl_trace *t = list ? fitting(c, &f, args, kwargs, inputs) : NULL;
  if (t && t->breaks.len) {
    PyErr_SetString(PyExc_ValueError, "framelift: a call with graph breaks cannot be profiled");
    fl_trace_release(t);
    t = NULL;
  }
  int rc = t && (values = fl_calloc(t->values.len + 1, sizeof *values)) ? 0 : -1;
  for (size_t i = 0; rc == 0 && i < t->borrowed.len; i++) {
    const fl_tval *x = &t->values.data[t->borrowed.data[i]];
    values[t->borrowed.data[i]] =
        Py_NewRef(x->kind == FL_TVAL_INPUT ? inputs[x->index] : t->weights.list.data[x->index].tensor);
  }
  for (size_t i = 0; rc == 0 && i < t->steps.len; i++) {
    fl_tstep *st = &t->steps.data[i];
    rc = st->segment ? fl_segment_run(t, st, values, false, true) : fl_decision_run(t, st, values, NULL);
    for (int k = 0; rc == 0 && st->segment && k < st->segment->n_parts; k++)
      if (st->segment->parts[k].engine) rc = profile_part(t, st->segment, &st->segment->parts[k], values, list);
  }
  for (size_t i = 0; values && i < t->values.len; i++) Py_XDECREF(values[i]);
  fl_free(values);
  fl_trace_release(t);
  unflatten(&f);
  if (rc < 0) Py_CLEAR(list);
  if (rc < 0 && !PyErr_Occurred()) PyErr_NoMemory();
  return list;
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* n calls as Python makes them, but for the engines. Only where the trace is all engines, so that no other thread and no
 * program comes in between. */
static double idle_calls(fl_compiled *c, fl_trace *t, const flat_call *f, long n) {
  double start = now_us(), end = start;
  if (t->eager_parts || t->writes.list.len) return -1;
  fl_trace_retain(t);
  t->idle = true;
  for (long i = 0; i < n; i++) {
    PyObject *out = PyObject_Vectorcall((PyObject *)c, f->args, f->n_pos, f->kwnames);
    Py_XDECREF(out);
    if (!out) break;
  }
  end = now_us();
  t->idle = false;
  fl_trace_release(t);
  return PyErr_Occurred() ? -1 : end - start;
}

PyObject *fl_report_overhead(fl_compiled *c, PyObject *args, PyObject *kwargs, long n) {
  flat_call f = {0};
  PyObject *inputs[FL_MAX_INPUTS];
  fl_trace *t = fitting(c, &f, args, kwargs, inputs), *first = t;
  double start = now_us(), guards, calls = -1;
  for (long i = 0; t && i < n; i++) t = fl_compiled_find(c, f.args, f.n_pos, f.kwnames, inputs);
  guards = now_us() - start;
  if (t && t == first) calls = idle_calls(c, t, &f, n);
  fl_trace_release(first);
  unflatten(&f);
  if (!t || PyErr_Occurred()) return NULL;
  double by = n > 0 ? (double)n : 1;
  return calls < 0 ? Py_BuildValue("(dO)", guards / by, Py_None) : Py_BuildValue("(dd)", guards / by, calls / by);
}
