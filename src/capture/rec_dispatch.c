/* An ATen operator of the recorded call: it is run and written down. */
#include <string.h>

#include "capture/device.h"
#include "capture/eval_impl.h"
#include "capture/modes.h"
#include "capture/rec_autocast.h"
#include "capture/rec.h"

#define MAX_TENSORS 512

/* One operator being recorded. */
typedef struct op_call {
  fl_rec *r;
  const fl_schema *schema;
  PyObject *args, *kwargs; /* kwargs may be NULL */
  int n_tensors;           /* tensors among the arguments, and where they lie */
  struct {
    PyObject *object;
    uint32_t value;
    const char *lo, *hi;
  } tensors[MAX_TENSORS];
  PyObject *written; /* what it writes, where others share that memory and values can say so */
  fl_base base;      /* of that memory */
} op_call;

static PyObject *arg_of(const op_call *c, int i) {
  const fl_schema_arg *a = &c->schema->args[i];
  if (!a->kwarg_only && i < PyTuple_GET_SIZE(c->args)) return PyTuple_GET_ITEM(c->args, i);
  PyObject *v = c->kwargs ? PyDict_GetItemWithError(c->kwargs, a->name) : NULL;
  return v ? v : a->def;
}

static PyObject *arg_named(const op_call *c, const char *name) {
  int i = fl_schema_find(c->schema, name);
  return i < 0 ? NULL : arg_of(c, i);
}

/* --- arguments --- */

static bool note_tensor(op_call *c, PyObject *o, uint32_t value) {
  if (c->n_tensors == MAX_TENSORS)
    return fl_rec_give_up(c->r, "an operator with too many tensors", c->schema->name), false;
  fl_tensor_meta m;
  int i = c->n_tensors++;
  c->tensors[i].object = o;
  c->tensors[i].value = value;
  c->tensors[i].lo = c->tensors[i].hi = NULL;
  fl_tensor_read(o, &m);
  if (!fl_tensor_extent(&m, &c->tensors[i].lo, &c->tensors[i].hi)) c->tensors[i].lo = NULL;
  return true;
}

static bool take_arg(op_call *c, PyObject *o, fl_targ *out);

static bool take_items(op_call *c, PyObject *o, fl_targ *out) {
  Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
  out->kind = PyList_Check(o) ? FL_TARG_LIST : FL_TARG_TUPLE;
  out->n = (int)n;
  out->items = fl_arena_alloc(&c->r->trace->arena, ((size_t)n + 1) * sizeof *out->items);
  if (!out->items) return fl_rec_give_up(c->r, "out of memory", ""), false;
  for (Py_ssize_t i = 0; i < n; i++)
    if (!take_arg(c, PySequence_Fast_GET_ITEM(o, i), &out->items[i])) return false;
  return true;
}

static bool has_tensor(PyObject *o) {
  if (!PyList_Check(o) && !PyTuple_Check(o)) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++) {
    PyObject *x = PySequence_Fast_GET_ITEM(o, i);
    if (fl_tensor_check(x) || has_tensor(x)) return true;
  }
  return false;
}

static bool take_arg(op_call *c, PyObject *o, fl_targ *out) {
  if (fl_tensor_check(o)) {
    out->kind = FL_TARG_VALUE;
    out->value = fl_rec_value_of(c->r, o, c->schema);
    if (out->value != FL_NO_TVAL) fl_rec_look_at_result(c->r, o, out->value);
    return out->value != FL_NO_TVAL && note_tensor(c, o, out->value);
  }
  if (has_tensor(o)) return take_items(c, o, out);
  out->kind = FL_TARG_CONST;
  out->object = o;
  return fl_rec_keep(c->r, o);
}

static bool take_args(op_call *c, fl_tnode *n) {
  fl_rec *r = c->r;
  n->n_pos = (int)PyTuple_GET_SIZE(c->args);
  n->n_kw = c->kwargs ? (int)PyDict_GET_SIZE(c->kwargs) : 0;
  n->args = fl_arena_alloc(&r->trace->arena, (size_t)(n->n_pos + n->n_kw + 1) * sizeof *n->args);
  if (!n->args) return fl_rec_give_up(r, "out of memory", ""), false;
  for (int i = 0; i < n->n_pos; i++)
    if (!take_arg(c, PyTuple_GET_ITEM(c->args, i), &n->args[i])) return false;
  if (!n->n_kw) return true;
  PyObject *names = PyTuple_New(n->n_kw), *k, *v;
  Py_ssize_t pos = 0, i = 0;
  if (!names) return PyErr_Clear(), fl_rec_give_up(r, "out of memory", ""), false;
  bool ok = true;
  while (PyDict_Next(c->kwargs, &pos, &k, &v)) {
    ok = ok && take_arg(c, v, &n->args[n->n_pos + i]);
    PyTuple_SET_ITEM(names, i++, Py_NewRef(k));
  }
  n->kwnames = names;
  ok = fl_rec_keep(r, names) && ok;
  Py_DECREF(names);
  return ok;
}

/* --- steps --- */

static bool inference_now(void) {
  int on = fl_inference_enabled();
  if (on < 0) PyErr_Clear();
  return on > 0;
}

/* A tensor that the call made in inference mode while it is out of it now, or the other way round. */
static bool of_other_mode(fl_rec *r, PyObject *tensor) {
  r->changes_inference |= inference_now() != r->trace->state.inference;
  if (!r->changes_inference) return false;
  int inference = fl_tensor_is_inference(tensor);
  if (inference < 0) PyErr_Clear();
  return inference != inference_now();
}

static fl_tstep *add_step(fl_rec *r, fl_tstep_kind kind) {
  fl_tstep s = {.kind = kind, .first = (uint32_t)r->trace->nodes.len, .inference = inference_now()};
  r->changes_inference |= s.inference != r->trace->state.inference;
  if (!FL_PUSH(&r->trace->steps, s)) return fl_rec_give_up(r, "out of memory", ""), NULL;
  return &r->trace->steps.data[r->trace->steps.len - 1];
}

static fl_tstep *segment(fl_rec *r) {
  fl_trace *t = r->trace;
  bool begins = t->breaks.len && t->breaks.data[t->breaks.len - 1]->at == t->steps.len;
  fl_tstep *last = t->steps.len ? &t->steps.data[t->steps.len - 1] : NULL;
  if (!begins && last && last->kind == FL_TSTEP_SEGMENT && last->inference == inference_now()) return last;
  return add_step(r, FL_TSTEP_SEGMENT);
}

/* All operators so far and to come in this segment share memory as in eager: only eager keeps that right. */
static void run_eagerly(fl_rec *r, const char *reason) {
  fl_trace *t = r->trace;
  segment(r);
  for (size_t i = 0; i < t->steps.len; i++)
    if (!t->steps.data[i].eager_reason) t->steps.data[i].eager_reason = reason;
}

/* --- what an operator does besides computing --- */

static bool given_back(PyObject *result, PyObject *tensor) {
  if (result == tensor) return true;
  if (!PyTuple_Check(result) && !PyList_Check(result)) return false;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(result); i++)
    if (PySequence_Fast_GET_ITEM(result, i) == tensor) return true;
  return false;
}

static void note_write(op_call *c, PyObject *tensor, PyObject *result) {
  fl_rec *r = c->r;
  uint32_t v;
  if (!tensor || !fl_tensor_check(tensor) || !fl_rec_find(r, tensor, &v)) return;
  uint8_t kind = r->storage_kind.data[r->trace->values.data[v].storage];
  r->rewrites |= r->trace->values.data[v].storage < r->first_storage;
  if (kind == FL_TVAL_WEIGHT) {
    /* A tensor no guard has seen may be one the program makes anew on every call. */
    if (r->trace->values.data[v].kind == FL_TVAL_WEIGHT && !fl_ptrmap_get(&r->known, tensor, NULL)) {
      fl_rec_give_up(r, "writes to a tensor of unknown origin", c->schema->name);
      return;
    }
    int rg = fl_tensor_requires_grad(tensor);
    if (rg < 0) PyErr_Clear();
    if (rg > 0) fl_contexts_weight_written();
    r->trace->writes_weights = true;
    r->effects = true;
    run_eagerly(r, "writes to a buffer or parameter");
  } else if (kind == FL_TVAL_INPUT) {
    r->effects = true;
    run_eagerly(r, "writes to an argument");
  } else if (kind == FL_TVAL_GIVEN) {
    r->effects = true;
    run_eagerly(r, "writes to memory that unknown code has seen");
  } else if (of_other_mode(r, tensor))
    run_eagerly(r, "writes to a tensor made in or out of inference mode");
  else if (!given_back(result, tensor))
    run_eagerly(r, "changes a tensor without giving it back");
  else if (!fl_rec_aliases(r, v))
    return;
  else if (!c->written && fl_rec_view_write(r, tensor, &c->base))
    c->written = tensor;
  else
    run_eagerly(r, "writes to memory that other tensors share");
}

static void watch(op_call *c, PyObject *tensor) {
  uint32_t v;
  if (!tensor || !fl_tensor_check(tensor) || !fl_rec_find(c->r, tensor, &v)) return;
  const fl_tval *x = &c->r->trace->values.data[v];
  if (x->kind == FL_TVAL_WEIGHT && !fl_weights_watch(&c->r->trace->weights, x->index))
    fl_rec_give_up(c->r, "out of memory", "");
}

static void note_writes(op_call *c, PyObject *result) {
  const fl_schema *s = c->schema;
  for (int i = 0; s->writes && i < s->n_args; i++) {
    PyObject *o = s->args[i].writes ? arg_of(c, i) : NULL;
    if (o && (PyList_Check(o) || PyTuple_Check(o))) {
      for (Py_ssize_t j = 0; j < PySequence_Fast_GET_SIZE(o); j++)
        note_write(c, PySequence_Fast_GET_ITEM(o, j), result);
    } else
      note_write(c, o, result);
  }
  if (!s->norm) return;
  watch(c, arg_named(c, "running_mean"));
  watch(c, arg_named(c, "running_var"));
  PyObject *training = arg_named(c, "training"), *stats = arg_named(c, "use_input_stats");
  if (training != Py_True && stats != Py_True) return;
  note_write(c, arg_named(c, "running_mean"), result);
  note_write(c, arg_named(c, "running_var"), result);
}

static bool is_zero(PyObject *o) { return o && ((PyFloat_Check(o) && PyFloat_AS_DOUBLE(o) == 0) || o == Py_False); }

static bool is_random(const op_call *c) {
  static const char *const off_when_zero[] = {"dropout_p", "p", "dropout", "train", "training"};
  if (!c->schema->seeded) return false;
  for (size_t i = 0; i < sizeof off_when_zero / sizeof *off_when_zero; i++)
    if (is_zero(arg_named(c, off_when_zero[i]))) return false;
  return true;
}

static bool has_mask(const op_call *c) {
  PyObject *list = arg_named(c, "indices");
  for (Py_ssize_t i = 0; list && PyList_Check(list) && i < PyList_GET_SIZE(list); i++) {
    fl_tensor_meta m;
    if (!fl_tensor_check(PyList_GET_ITEM(list, i))) continue;
    fl_tensor_read(PyList_GET_ITEM(list, i), &m);
    if (!m.ok || m.type.dtype == FL_BOOL || m.type.dtype == FL_U8) return true;
  }
  return false;
}

/* The shape of the result may depend on what tensors hold. */
static bool is_dynamic(const op_call *c) {
  PyObject *size = arg_named(c, "output_size"); /* repeat_interleave's */
  PyObject *classes = strcmp(c->schema->name, "aten.one_hot.default") ? NULL : arg_named(c, "num_classes");
  if (classes && PyLong_CheckExact(classes) && PyLong_AsLong(classes) > 0) return false; /* -1: as many as there are */
  return c->schema->dynamic_shape && (!c->schema->is_index || has_mask(c)) && (!size || size == Py_None);
}

/* The same elements on each replay, and so the same shape of the result. */
static bool all_fixed(op_call *c) {
  if (is_random(c) || c->schema->writes) return false;
  for (int i = 0; i < c->n_tensors; i++)
    if (!fl_rec_fix(c->r, c->tensors[i].object, false)) return false;
  return true;
}

/* The same shape on each replay: the masks are known. */
static bool masks_fixed(op_call *c) {
  PyObject *list = arg_named(c, "indices");
  if (!c->schema->is_index || !list || !PyList_Check(list)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
    PyObject *o = PyList_GET_ITEM(list, i);
    fl_tensor_meta m = {0};
    if (!fl_tensor_check(o)) continue;
    fl_tensor_read(o, &m);
    bool mask = !m.ok || m.type.dtype == FL_BOOL || m.type.dtype == FL_U8;
    if (mask && !fl_rec_fix(c->r, o, false)) return false;
  }
  return true;
}

/* The same shape on each replay: how often elements are repeated is known. */
static bool counts_fixed(op_call *c) {
  PyObject *counts = strncmp(c->schema->name, "aten.repeat_interleave.", 23) ? NULL : arg_named(c, "repeats");
  return counts && fl_tensor_check(counts) && fl_rec_fix_counts(c->r, counts);
}

/* --- results --- */

static int count_results(PyObject *o) {
  if (!PyTuple_Check(o) && !PyList_Check(o)) return 1;
  int n = 0;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++) n += count_results(PySequence_Fast_GET_ITEM(o, i));
  return n;
}

static void take_result(op_call *c, PyObject *o, uint32_t node, uint32_t *outs, int *at) {
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++)
      take_result(c, PySequence_Fast_GET_ITEM(o, i), node, outs, at);
    return;
  }
  uint32_t *out = &outs[(*at)++];
  *out = FL_NO_TVAL;
  if (!fl_tensor_check(o)) return;
  fl_tensor_meta m;
  const char *lo, *hi;
  for (int i = 0; i < c->n_tensors; i++)
    if (c->tensors[i].object == o) {
      *out = fl_rec_result(c->r, o, node, FL_NO_TVAL, c->tensors[i].value);
      return;
    }
  uint32_t of = FL_NO_TVAL;
  fl_tensor_read(o, &m);
  if (fl_tensor_extent(&m, &lo, &hi))
    for (int i = 0; i < c->n_tensors && of == FL_NO_TVAL; i++)
      if (c->tensors[i].lo && c->tensors[i].lo < hi && lo < c->tensors[i].hi) of = c->tensors[i].value;
  *out = fl_rec_result(c->r, o, node, of, of);
  /* A view of a tensor made in the other mode is one of that mode. */
  if (*out != FL_NO_TVAL && of != FL_NO_TVAL && of_other_mode(c->r, o) &&
      c->r->storage_kind.data[c->r->trace->values.data[*out].storage] == FL_TVAL_RESULT)
    c->r->trace->nodes.data[node].pin = "a view of a tensor made in or out of inference mode";
}

/* Keeps the elements of results that are the same on each replay. False where one of them is not small and dense. */
static bool keep_fixed(op_call *c, PyObject *o, const uint32_t *outs, int *at) {
  enum { MOST_BYTES = 1 << 16 };
  if (PyTuple_Check(o) || PyList_Check(o)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++)
      if (!keep_fixed(c, PySequence_Fast_GET_ITEM(o, i), outs, at)) return false;
    return true;
  }
  uint32_t out = outs[(*at)++];
  if (out == FL_NO_TVAL) return !fl_tensor_check(o);
  fl_tval *v = &c->r->trace->values.data[out];
  size_t bytes = fl_type_bytes(&v->meta.type);
  bool small = v->meta.ok && v->meta.device_type == FL_DEVICE_CPU && bytes <= MOST_BYTES &&
               fl_is_contiguous(&v->meta.type, v->meta.strides) && v->alias_of == FL_NO_TVAL;
  if (small) v->fixed = fl_arena_memdup(&c->r->trace->arena, bytes ? fl_tensor_data(o) : "", bytes);
  return small && v->fixed;
}

/* All that is not a tensor or None among the results. */
static bool has_scalar(PyObject *o) {
  if (!PyTuple_Check(o) && !PyList_Check(o)) return o != Py_None && !fl_tensor_check(o);
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++)
    if (has_scalar(PySequence_Fast_GET_ITEM(o, i))) return true;
  return false;
}

static bool is_argument(const op_call *c, PyObject *o) {
  for (int i = 0; i < c->n_tensors; i++)
    if (c->tensors[i].object == o) return true;
  return false;
}

/* --- what may not run before decisions are certain --- */

/* May a tensor be written to whatever was decided? Not where the caller sees it, or a decision waits to read it. */
static bool writes_freely(const op_call *c, PyObject *o) {
  fl_rec *r = c->r;
  uint32_t v;
  if (!o || o == Py_None) return true;
  if (!fl_tensor_check(o) || !fl_rec_find(r, o, &v)) return false;
  uint32_t storage = r->trace->values.data[v].storage;
  if (r->storage_kind.data[storage] != FL_TVAL_RESULT || storage < r->first_storage) return false;
  for (size_t i = 0; i < r->decisions.len; i++) {
    const fl_tnode *n = &r->decisions.data[i].node;
    for (int a = 0; a < n->n_pos + n->n_kw; a++)
      if (n->args[a].kind == FL_TARG_VALUE && r->trace->values.data[n->args[a].value].storage == storage) return false;
  }
  return true;
}

static bool is_random(const op_call *c);

/* An index out of range is an exception of the CPU's, which then counts as another answer; a GPU reports it later. Integers that
 * are the same on each replay are in range. */
static bool may_fault(const op_call *c) {
  if (c->schema->total) return false;
  for (int i = 0; i < c->n_tensors; i++) {
    fl_tensor_meta m;
    fl_tensor_read(c->tensors[i].object, &m);
    if (!m.ok) return true;
    if (fl_device_is_cpu(fl_device_of(&m)) || !fl_dtype_is_int(m.type.dtype)) continue;
    if (!fl_rec_fix(c->r, c->tensors[i].object, false)) return true;
  }
  return false;
}

static bool needs_certainty(const op_call *c, PyObject *result, bool dynamic) {
  const fl_schema *s = c->schema;
  if (dynamic || result == Py_None || is_random(c) || may_fault(c)) return true;
  if (s->norm && (arg_named(c, "training") == Py_True || arg_named(c, "use_input_stats") == Py_True)) return true;
  for (int i = 0; s->writes && i < s->n_args; i++) {
    PyObject *o = s->args[i].writes ? arg_of(c, i) : NULL;
    if (o && (PyList_Check(o) || PyTuple_Check(o))) {
      for (Py_ssize_t j = 0; j < PySequence_Fast_GET_SIZE(o); j++)
        if (!writes_freely(c, PySequence_Fast_GET_ITEM(o, j))) return true;
    } else if (!writes_freely(c, o))
      return true;
  }
  return false;
}

static void record_decision(fl_rec *r, fl_tnode *n, PyObject *answer) {
  n->n_out = count_results(answer);
  n->outs = fl_arena_alloc(&r->trace->arena, ((size_t)n->n_out + 1) * sizeof *n->outs);
  if (!n->outs) {
    fl_rec_give_up(r, "out of memory", "");
    return;
  }
  for (int i = 0; i < n->n_out; i++) n->outs[i] = FL_NO_TVAL;
  int compared = PyLong_CheckExact(answer) && !n->schema->outside ? fl_eval_only_compared() : 0;
  if (compared) {
    fl_rec_await(r, n, answer, compared == 2);
    return;
  }
  fl_decision d = {.node = *n, .answer = answer};
  if (!n->schema->outside && fl_rec_put_off(r, &d)) return;
  fl_rec_decide(r);
  fl_rec_add_decision(r, &d, false);
}

static bool is_view_of(const op_call *c, PyObject *result, int i) {
  fl_tensor_meta m;
  const char *lo, *hi;
  if (!fl_tensor_check(result)) return PyTuple_Check(result) || PyList_Check(result);
  fl_tensor_read(result, &m);
  return fl_tensor_extent(&m, &lo, &hi) && c->tensors[i].lo < hi && lo < c->tensors[i].hi;
}

/* Arithmetic in place, which composites in C++ end with. Most of what writes in place fills. */
static bool reads_what_it_writes(const char *name) {
  static const char *const list[] = {"add_", "sub_", "mul_", "div_", "relu_", "clamp_", "addmm_", "addcmul_"};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    if (!strncmp(name, "aten.", 5) && !strncmp(name + 5, list[i], strlen(list[i])) && name[5 + strlen(list[i])] == '.')
      return true;
  return false;
}

/* Reads memory that no operator has filled. */
static void look_at_new_memory(const op_call *c, PyObject *result) {
  const char *name = c->schema->name;
  bool in_place = reads_what_it_writes(name);
  if ((c->schema->writes && !in_place) || strstr(name, "_like") || strstr(name, ".new_")) return;
  for (int i = 0; i < c->n_tensors; i++) {
    bool written = in_place && c->tensors[i].object == arg_of(c, 0);
    if (c->tensors[i].lo && fl_rec_is_unfilled(c->r, c->tensors[i].object, c->tensors[i].value, written) &&
        (written || !is_view_of(c, result, i)))
      fl_rec_give_up(c->r, fl_rec_filled_unseen, name);
  }
}

/* A tensor whose memory becomes another one's, or a file's that others look into. */
static bool moves_memory(const char *name) {
  static const char *const list[] = {"aten.set_.", "aten.set_data.", "aten.from_file."};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    if (!strncmp(name, list[i], strlen(list[i]))) return true;
  return false;
}

static void record(op_call *c, fl_tnode *n, PyObject *result) {
  fl_rec *r = c->r;
  fl_rec_not_compared(r);
  bool scalar = has_scalar(result);
  if (scalar && (c->schema->metadata || (!c->n_tensors && !c->schema->outside))) return;
  if (scalar && c->n_tensors == 1 && !c->schema->writes && fl_rec_fix_numbers(r, c->tensors[0].object)) return;
  /* dropout in eval mode, contiguous() of a contiguous tensor: the tensor itself. */
  if (!c->schema->writes && !c->schema->norm && fl_tensor_check(result) && is_argument(c, result)) return;
  bool dynamic = is_dynamic(c), sized = dynamic && (counts_fixed(c) || masks_fixed(c)), fixed = dynamic && all_fixed(c);
  dynamic = dynamic && !sized;
  if (r->decisions.len && needs_certainty(c, result, dynamic && !fixed)) fl_rec_decide(r);
  note_writes(c, result);
  look_at_new_memory(c, result);
  if (moves_memory(c->schema->name)) fl_rec_give_up(r, "memory that cannot be followed", c->schema->name);
  PyObject *generator = arg_named(c, "generator");
  if (generator && generator != Py_None) {
    fl_rec_give_up(r, "a random generator of the program's own", c->schema->name);
    return;
  }
  if (is_random(c)) {
    n->pin = "random";
    r->random = true;
  }
  if (scalar)
    n->pin = "its answer decides how the program goes on";
  else if (dynamic)
    n->pin = "the shape of its result depends on data";
  else if (result == Py_None && !n->pin)
    n->pin = "it gives nothing back but may raise";
  if (r->gave_up) return;
  dynamic = dynamic && !fixed;
  if ((scalar || dynamic) && (r->effects || r->random || r->rewrites)) {
    fl_rec_give_up(r, "a decision after an effect", c->schema->name);
    return;
  }
  if (scalar) {
    record_decision(r, n, result);
    return;
  }
  fl_tstep *s = dynamic ? add_step(r, FL_TSTEP_SHAPE) : segment(r);
  if (!s) return;
  s->n++;
  s->random |= r->random && n->pin;
  uint32_t id = (uint32_t)r->trace->nodes.len;
  n->n_out = count_results(result);
  n->outs = fl_arena_alloc(&r->trace->arena, ((size_t)n->n_out + 1) * sizeof *n->outs);
  if (!n->outs || !FL_PUSH(&r->trace->nodes, *n)) {
    fl_rec_give_up(r, "out of memory", "");
    return;
  }
  int at = 0;
  take_result(c, result, id, n->outs, &at);
  if (c->schema->outside && !c->schema->writes && !is_random(c))
    fl_rec_keep_results(r, result, &r->trace->nodes.data[id]);
  at = 0;
  if (fixed && !c->schema->outside && !r->gave_up && keep_fixed(c, result, n->outs, &at))
    r->trace->nodes.data[id].pin = NULL;
  if (c->written && !r->gave_up) fl_rec_view_written(r, c->written, c->base, n);
}

/* Each replay gets its own copy of a constant, as each call made its own tensor. */
static bool copy_constant(op_call *c, fl_tnode *n, PyObject *o) {
  static const fl_schema *clone;
  fl_rec *r = c->r;
  r->paused++;
  if (!clone) {
    PyObject *torch = PyImport_ImportModule("torch"), *x = torch;
    static const char *const names[] = {"ops", "aten", "clone", "default"};
    for (int i = 0; x && i < 4; i++) {
      PyObject *next = PyObject_GetAttrString(x, names[i]);
      Py_DECREF(x);
      x = next;
    }
    clone = x ? fl_schema_get(x) : NULL;
    Py_XDECREF(x);
  }
  PyObject *copy = clone ? PyObject_CallOneArg(clone->op, o) : NULL;
  r->paused--;
  if (!copy) {
    PyErr_Clear();
    fl_rec_give_up(r, "out of memory", "");
    return false;
  }
  n->schema = clone;
  n->n_pos = 1;
  n->n_kw = 0;
  n->kwnames = NULL;
  n->args = fl_arena_alloc(&r->trace->arena, sizeof *n->args);
  if (n->args) {
    n->args[0].kind = FL_TARG_VALUE;
    n->args[0].value = fl_rec_own(r, copy);
  } else
    fl_rec_give_up(r, "out of memory", "");
  Py_DECREF(copy);
  return !r->gave_up;
}

/* A tensor made from Python values. */
static bool lift(op_call *c, fl_tnode *n) {
  PyObject *o = PyTuple_GET_SIZE(c->args) == 1 ? PyTuple_GET_ITEM(c->args, 0) : NULL;
  uint32_t v;
  if (!o || !fl_tensor_check(o) || fl_rec_find(c->r, o, &v)) return true;
  return copy_constant(c, n, o);
}

/* A tensor made from a number alone: of `x + 1` under vmap, which makes a tensor of the 1, the mode sees `to(1, dtype)`. */
static bool of_a_number(const op_call *c, PyObject *result) {
  PyObject *first = PyTuple_GET_SIZE(c->args) ? PyTuple_GET_ITEM(c->args, 0) : NULL;
  bool number = first && (PyLong_Check(first) || PyFloat_Check(first));
  return number && !c->n_tensors && !c->schema->seeded && !strcmp(c->schema->args[0].utf8, "self") &&
         fl_tensor_check(result);
}

PyObject *fl_rec_operator(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs) {
  op_call c = {.r = r, .schema = s, .args = args, .kwargs = kwargs};
  fl_tnode n = {.schema = s, .module = fl_rec_module(r)};
  const char *file;
  if (fl_eval_user_line(&file, &n.line) == 0 && file) n.file = fl_rec_intern(r, file);
  bool ok = s->lifts ? lift(&c, &n) : true;
  if (ok && n.schema == s) ok = take_args(&c, &n);
  fl_rec_expect_casts(r, s);
  r->paused++;
  PyObject *result = fl_rec_call_operator(r, s, args, kwargs);
  r->paused--;
  if (!result)
    fl_rec_give_up(r, "an operator raised", s->name);
  else if (ok && !r->gave_up && (!of_a_number(&c, result) || copy_constant(&c, &n, result)))
    record(&c, &n, result);
  return result;
}
