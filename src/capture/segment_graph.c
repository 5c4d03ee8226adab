/* From a recorded segment to the plain data that lowering reads. */
#include <string.h>

#include "capture/segment.h"

typedef struct builder {
  fl_trace *t;
  fl_aten_graph *g;
  const fl_tstep *step;
  fl_device device;
  uint32_t *of; /* value of the trace -> value of the graph */
  uint32_t *values, *slots;
  uint32_t n_slots;
} builder;

static fl_status add_value(builder *b, uint32_t tval, fl_aten_kind kind, uint32_t index, uint32_t *out) {
  const fl_tval *v = &b->t->values.data[tval];
  bool here = fl_device_equal(fl_device_of(&v->meta), b->device);
  fl_aten_value n = {.kind = kind,
                     .tensor_ok = v->meta.ok && here,
                     .why_not = v->meta.ok && !here ? "on another device" : v->meta.why_not,
                     .type = v->meta.type,
                     .index = index,
                     .whole = v->whole,
                     .fixed = kind == FL_ATEN_RESULT ? v->fixed : NULL,
                     .alias_of = FL_ATEN_NONE};
  memcpy(n.strides, v->meta.strides, sizeof n.strides);
  if (kind == FL_ATEN_WEIGHT) n.data = b->t->weights.list.data[v->index].meta.data;
  if (v->alias_of != FL_NO_TVAL && b->of[v->alias_of] != FL_ATEN_NONE) n.alias_of = b->of[v->alias_of];
  if (!FL_PUSH(&b->g->values, n)) return fl_oom();
  *out = (uint32_t)b->g->values.len - 1;
  b->of[tval] = *out;
  b->values[*out] = tval;
  return NULL;
}

static fl_status use_value(builder *b, uint32_t tval, uint32_t *out) {
  const fl_tval *v = &b->t->values.data[tval];
  if ((*out = b->of[tval]) != FL_ATEN_NONE) return NULL;
  if (v->kind == FL_TVAL_WEIGHT && !fl_weight_is_read(&b->t->weights.list.data[v->index])) {
    FL_TRY(add_value(b, tval, FL_ATEN_WEIGHT, b->n_slots, out));
    b->slots[b->n_slots++] = v->index;
    return FL_PUSH(&b->g->weights, *out) ? NULL : fl_oom();
  }
  FL_TRY(add_value(b, tval, FL_ATEN_INPUT, (uint32_t)b->g->inputs.len, out));
  return FL_PUSH(&b->g->inputs, *out) ? NULL : fl_oom();
}

static fl_status other(builder *b, PyObject *o, fl_arg *out) {
  PyObject *s = PyObject_Str(o);
  const char *u = s ? PyUnicode_AsUTF8(s) : NULL;
  if (!u) PyErr_Clear();
  out->kind = PyUnicode_Check(o) ? FL_ARG_STRING : FL_ARG_OTHER;
  out->v.s = fl_arena_strdup(&b->g->arena, u ? u : "?");
  Py_XDECREF(s);
  return out->v.s ? NULL : fl_oom();
}

static bool int_of(PyObject *o, int64_t *out) {
  if (!PyLong_Check(o)) return false;
  int overflow;
  *out = PyLong_AsLongLongAndOverflow(o, &overflow);
  return !overflow;
}

/* A list of numbers. False when it holds something else. */
static bool numbers(builder *b, PyObject *list, const fl_schema_arg *sa, fl_arg *out) {
  Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
  bool floats = sa->is_floats;
  for (Py_ssize_t i = 0; i < n; i++) floats |= PyFloat_Check(PySequence_Fast_GET_ITEM(list, i));
  out->count = (int)n;
  out->kind = floats ? FL_ARG_FLOATS : FL_ARG_INTS;
  int64_t *ints = fl_arena_alloc(&b->g->arena, ((size_t)n + 1) * sizeof *ints);
  double *reals = fl_arena_alloc(&b->g->arena, ((size_t)n + 1) * sizeof *reals);
  if (!ints || !reals) return false;
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *o = PySequence_Fast_GET_ITEM(list, i);
    if (PyFloat_Check(o))
      reals[i] = PyFloat_AS_DOUBLE(o);
    else if (int_of(o, &ints[i]))
      reals[i] = (double)ints[i];
    else
      return false;
  }
  if (floats)
    out->v.floats = reals;
  else
    out->v.ints = ints;
  return true;
}

static fl_status convert_const(builder *b, PyObject *o, const fl_schema_arg *sa, fl_arg *out) {
  fl_dtype dtype;
  int64_t i;
  out->kind = FL_ARG_NONE;
  if (!o || o == Py_None) return NULL;
  if (PyBool_Check(o)) return out->kind = FL_ARG_BOOL, out->v.i = o == Py_True, NULL;
  if (PyFloat_Check(o)) return out->kind = FL_ARG_FLOAT, out->v.f = PyFloat_AS_DOUBLE(o), NULL;
  if (int_of(o, &i)) {
    if (sa->is_float) return out->kind = FL_ARG_FLOAT, out->v.f = (double)i, NULL;
    return out->kind = FL_ARG_INT, out->v.i = i, NULL;
  }
  if (fl_torch_dtype(o, &dtype)) return out->kind = FL_ARG_DTYPE, out->v.dtype = dtype, NULL;
  if (PyList_Check(o) || PyTuple_Check(o)) {
    if (sa->is_tensors) {
      out->kind = FL_ARG_TENSORS;
      out->count = (int)PySequence_Fast_GET_SIZE(o);
      out->v.values = fl_arena_alloc(&b->g->arena, ((size_t)out->count + 1) * sizeof(uint32_t));
      if (!out->v.values) return fl_oom();
      for (int k = 0; k < out->count; k++) out->v.values[k] = FL_ATEN_NONE;
      return NULL;
    }
    if (numbers(b, o, sa, out)) return NULL;
  }
  return other(b, o, out);
}

static fl_status convert(builder *b, const fl_targ *a, const fl_schema_arg *sa, fl_arg *out) {
  if (a->kind == FL_TARG_CONST) return convert_const(b, a->object, sa, out);
  if (a->kind == FL_TARG_VALUE) return out->kind = FL_ARG_TENSOR, use_value(b, a->value, &out->v.value);
  out->kind = FL_ARG_TENSORS;
  out->count = a->n;
  if (!(out->v.values = fl_arena_alloc(&b->g->arena, ((size_t)a->n + 1) * sizeof(uint32_t)))) return fl_oom();
  for (int i = 0; i < a->n; i++) {
    out->v.values[i] = FL_ATEN_NONE;
    if (a->items[i].kind == FL_TARG_VALUE)
      FL_TRY(use_value(b, a->items[i].value, &out->v.values[i]));
    else if (a->items[i].kind != FL_TARG_CONST || a->items[i].object != Py_None)
      return fl_fail(FL_UNSUPPORTED, "an argument that mixes tensors and other things");
  }
  return NULL;
}

static const fl_targ *given(const fl_tnode *n, int i) {
  const fl_schema_arg *sa = &n->schema->args[i];
  if (!sa->kwarg_only && i < n->n_pos) return &n->args[i];
  for (int k = 0; k < n->n_kw; k++) {
    PyObject *name = PyTuple_GET_ITEM(n->kwnames, k);
    if (name == sa->name || PyUnicode_Compare(name, sa->name) == 0) return &n->args[n->n_pos + k];
  }
  return NULL;
}

static fl_status add_node(builder *b, uint32_t id) {
  fl_trace *t = b->t;
  const fl_tnode *n = &t->nodes.data[id];
  const fl_schema *s = n->schema;
  fl_aten_node out = {.op = s->name,
                      .n_args = s->n_args,
                      .n_outputs = n->n_out,
                      .file = n->file,
                      .line = n->line,
                      .module = n->module,
                      .pin_eager = b->step->eager_reason ? b->step->eager_reason : n->pin};
  out.args = fl_arena_alloc(&b->g->arena, ((size_t)s->n_args + 1) * sizeof *out.args);
  out.outputs = fl_arena_alloc(&b->g->arena, ((size_t)n->n_out + 1) * sizeof *out.outputs);
  if (!out.args || !out.outputs) return fl_oom();
  for (int i = 0; i < s->n_args; i++) {
    const fl_targ *a = given(n, i);
    out.args[i].name = s->args[i].utf8;
    if (a)
      FL_TRY(convert(b, a, &s->args[i], &out.args[i]));
    else
      FL_TRY(convert_const(b, s->args[i].def, &s->args[i], &out.args[i]));
  }
  for (int i = 0; i < n->n_out; i++) {
    out.outputs[i] = FL_ATEN_NONE;
    if (n->outs[i] == FL_NO_TVAL) continue;
    FL_TRY(add_value(b, n->outs[i], FL_ATEN_RESULT, id - b->step->first, &out.outputs[i]));
  }
  return FL_PUSH(&b->g->nodes, out) ? NULL : fl_oom();
}

/* Results of the segment that later steps or the call's result need. */
static fl_status add_outputs(builder *b) {
  fl_trace *t = b->t;
  bool *need = fl_calloc(t->values.len + 1, sizeof *need);
  if (!need) return fl_oom();
  fl_trace_needed_after(t, (uint32_t)(b->step - t->steps.data), need);
  bool ok = true;
  for (size_t v = 0; v < t->values.len && ok; v++) {
    const fl_tval *x = &t->values.data[v];
    if (!need[v] || x->kind != FL_TVAL_RESULT || x->index < b->step->first || x->index >= b->step->first + b->step->n)
      continue;
    ok = b->of[v] == FL_ATEN_NONE || FL_PUSH(&b->g->outputs, b->of[v]);
  }
  fl_free(need);
  return ok ? NULL : fl_oom();
}

fl_device fl_segment_device(const fl_trace *t, uint32_t step) {
  enum { MAX_SEEN = 16 };
  const fl_tstep *s = &t->steps.data[step];
  fl_device seen[MAX_SEEN] = {{FL_DEVICE_CPU, 0}};
  int count[MAX_SEEN] = {0}, n = 1, best = 0;
  for (uint32_t i = 0; i < s->n; i++) {
    const fl_tnode *node = &t->nodes.data[s->first + i];
    const fl_tensor_meta *m = node->n_out && node->outs[0] != FL_NO_TVAL ? &t->values.data[node->outs[0]].meta : NULL;
    if (!m || !m->ok) continue;
    int k = 0;
    while (k < n && !fl_device_equal(seen[k], fl_device_of(m))) k++;
    if (k == MAX_SEEN) continue;
    if (k == n) seen[n++] = fl_device_of(m);
    if (++count[k] > count[best]) best = k;
  }
  return seen[best];
}

fl_status fl_segment_graph(fl_trace *t, uint32_t step, fl_device device, fl_aten_graph **out, uint32_t **out_values,
                           uint32_t **out_slots, uint32_t *out_n_slots) {
  builder b = {.t = t, .step = &t->steps.data[step], .device = device};
  size_t n = (t->values.len + 1) * sizeof(uint32_t);
  b.of = fl_malloc(n);
  b.values = fl_malloc(n);
  b.slots = fl_malloc(n);
  fl_status s = b.of && b.values && b.slots ? fl_aten_graph_create(&b.g) : fl_oom();
  if (!s) memset(b.of, 0xff, n);
  for (uint32_t i = 0; !s && i < b.step->n; i++)
    s = fl_annotate(add_node(&b, b.step->first + i), "%s", t->nodes.data[b.step->first + i].schema->name);
  if (!s) s = add_outputs(&b);
  fl_free(b.of);
  if (s) {
    fl_aten_graph_destroy(b.g);
    fl_free(b.values);
    fl_free(b.slots);
    return s;
  }
  *out = b.g;
  *out_values = b.values;
  *out_slots = b.slots;
  *out_n_slots = b.n_slots;
  return NULL;
}
