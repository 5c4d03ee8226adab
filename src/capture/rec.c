#include "capture/cpython/compat.h"
#include "capture/rec.h"

#include <string.h>

#include "capture/eval.h"
#include "capture/replay_break.h"

static _Thread_local fl_rec *current;

fl_rec *fl_rec_current(void) { return current; }
void fl_rec_current_set(fl_rec *r) { current = r; }

static inline bool off(const fl_rec *r) { return !r || r->gave_up || r->paused; }

static int oom(fl_rec *r) {
  fl_rec_give_up(r, "out of memory", "while recording");
  return 0;
}

/* --- giving up --- */

void fl_rec_give_up(fl_rec *r, const char *reason, const char *detail) {
  if (!r || r->gave_up || r->paused) return;
  r->gave_up = true;
  const char *file = NULL;
  int line = 0;
  if (fl_eval_user_line(&file, &line) < 0) file = NULL;
  r->why.reason = fl_strdup(reason);
  r->why.detail = fl_strdup(detail ? detail : "");
  r->why.file = file ? fl_strdup(file) : NULL;
  r->why.line = line;
  r->why.blame = Py_XNewRef(fl_eval_blame());
}

void fl_rec_uses_autocast(fl_rec *r) {
  if (!off(r)) r->trace->autocast = true;
}

bool fl_rec_gave_up(const fl_rec *r) { return r && r->gave_up; }

/* --- memory of the trace --- */

const char *fl_rec_intern(fl_rec *r, const char *s) {
  if (r->last_copy && !strcmp(r->last_copy, s)) return r->last_copy;
  const char *copy = fl_arena_strdup(&r->trace->arena, s);
  if (!copy) oom(r);
  r->last_copy = copy;
  return copy;
}

bool fl_rec_keep(fl_rec *r, PyObject *o) {
  if (PyList_Append(r->trace->keep, o) == 0) return true;
  PyErr_Clear();
  oom(r);
  return false;
}

/* --- tensors --- */

static fl_live *live_entry(fl_rec *r, PyObject *tensor) {
  uint32_t at;
  if (!fl_ptrmap_get(&r->live_of, tensor, &at)) return NULL;
  fl_live *l = &r->live.data[at];
  return PyWeakref_GET_OBJECT(l->weak) == tensor ? l : NULL;
}

bool fl_rec_find(fl_rec *r, PyObject *tensor, uint32_t *out_value) {
  fl_live *l = live_entry(r, tensor);
  if (l) *out_value = l->value;
  return l != NULL;
}

static bool track(fl_rec *r, PyObject *tensor, uint32_t value) {
  uint32_t storage = r->trace->values.data[value].storage;
  fl_live *known = live_entry(r, tensor);
  if (known) {
    known->value = value;
    return true;
  }
  fl_live l = {tensor, PyWeakref_NewRef(tensor, NULL), value, r->storage_head.data[storage]};
  if (!l.weak) PyErr_Clear();
  if (!l.weak || !FL_PUSH(&r->live, l)) {
    Py_XDECREF(l.weak);
    return oom(r), false;
  }
  r->storage_head.data[storage] = (uint32_t)r->live.len - 1;
  return fl_ptrmap_set(&r->live_of, tensor, (uint32_t)r->live.len - 1) || (oom(r), false);
}

static uint32_t add_value(fl_rec *r, const fl_tval *v, PyObject *tensor) {
  fl_trace *t = r->trace;
  fl_tval n = *v;
  if (n.storage == UINT32_MAX) {
    n.storage = (uint32_t)r->storage_head.len;
    fl_base base = {FL_NO_TVAL, NULL};
    if (!FL_PUSH(&r->storage_head, UINT32_MAX) || !FL_PUSH(&r->storage_kind, (uint8_t)n.kind) ||
        !FL_PUSH(&r->storage_base, base))
      return oom(r), FL_NO_TVAL;
  }
  if (!FL_PUSH(&t->values, n)) return oom(r), FL_NO_TVAL;
  uint32_t id = (uint32_t)t->values.len - 1;
  return track(r, tensor, id) ? id : FL_NO_TVAL;
}

/* A live result or input whose memory overlaps. Weights may share memory with each other. */
static bool shares_memory(fl_rec *r, const fl_tensor_meta *m, fl_tval_kind kind) {
  const char *lo, *hi, *a, *b;
  if (!fl_tensor_extent(m, &lo, &hi)) return false;
  for (size_t i = 0; i < r->live.len; i++) {
    fl_live *l = &r->live.data[i];
    PyObject *o = PyWeakref_GET_OBJECT(l->weak);
    if (o == Py_None || r->storage_kind.data[r->trace->values.data[l->value].storage] == kind) continue;
    fl_tensor_meta have;
    fl_tensor_read(o, &have);
    if (fl_tensor_extent(&have, &a, &b) && a < hi && lo < b) return true;
  }
  return false;
}

uint32_t fl_rec_value_of(fl_rec *r, PyObject *tensor, const fl_schema *schema) {
  uint32_t value, index;
  if (fl_rec_find(r, tensor, &value)) return value;
  const char *why = fl_weights_add(&r->trace->weights, tensor, false, &index);
  if (why) {
    fl_rec_give_up(r, "a tensor that cannot be followed", why);
    return FL_NO_TVAL;
  }
  fl_weight *w = &r->trace->weights.list.data[index];
  if (schema && shares_memory(r, &w->meta, FL_TVAL_WEIGHT)) {
    fl_rec_give_up(r, "a tensor made without an operator", schema->name);
    return FL_NO_TVAL;
  }
  fl_tval v = {FL_TVAL_WEIGHT, index, w->meta, FL_NO_TVAL, FL_NO_TVAL, UINT32_MAX, false, NULL};
  return add_value(r, &v, tensor);
}

uint32_t fl_rec_own(fl_rec *r, PyObject *tensor) {
  uint32_t index;
  const char *why = fl_weights_add(&r->trace->weights, tensor, true, &index);
  if (why) {
    fl_rec_give_up(r, "a tensor that cannot be followed", why);
    return FL_NO_TVAL;
  }
  fl_tval v = {FL_TVAL_WEIGHT, index, r->trace->weights.list.data[index].meta, FL_NO_TVAL, FL_NO_TVAL, UINT32_MAX,
               false,          NULL};
  return add_value(r, &v, tensor);
}

uint32_t fl_rec_given(fl_rec *r, PyObject *tensor, uint32_t at) {
  fl_tval v = {FL_TVAL_GIVEN, at, {0}, FL_NO_TVAL, FL_NO_TVAL, UINT32_MAX, false, NULL};
  const char *lo, *hi, *a, *b;
  fl_tensor_read(tensor, &v.meta);
  if (fl_tensor_extent(&v.meta, &lo, &hi))
    for (size_t i = 0; i < r->live.len; i++) {
      fl_tensor_meta have;
      PyObject *o = PyWeakref_GET_OBJECT(r->live.data[i].weak);
      uint32_t storage = r->trace->values.data[r->live.data[i].value].storage;
      if (o == Py_None || storage == v.storage) continue;
      fl_tensor_read(o, &have);
      if (!fl_tensor_extent(&have, &a, &b) || a >= hi || lo >= b) continue;
      if (v.storage != UINT32_MAX) {
        fl_rec_give_up(r, "a tensor that shares memory with several others", "");
        return FL_NO_TVAL;
      }
      v.storage = storage;
      if (r->storage_kind.data[storage] == FL_TVAL_RESULT) r->storage_kind.data[storage] = FL_TVAL_GIVEN;
    }
  v.meta.data = NULL;
  return add_value(r, &v, tensor);
}

uint32_t fl_rec_object_value(fl_rec *r, fl_tval_kind kind, uint32_t index) {
  fl_tval v = {kind, index, {0}, FL_NO_TVAL, FL_NO_TVAL, (uint32_t)r->storage_head.len, false, NULL};
  fl_base base = {FL_NO_TVAL, NULL};
  if (!FL_PUSH(&r->storage_head, UINT32_MAX) || !FL_PUSH(&r->storage_kind, (uint8_t)kind) ||
      !FL_PUSH(&r->storage_base, base) || !FL_PUSH(&r->trace->values, v))
    return oom(r), FL_NO_TVAL;
  return (uint32_t)r->trace->values.len - 1;
}

uint32_t fl_rec_result(fl_rec *r, PyObject *tensor, uint32_t node, uint32_t view_of, uint32_t alias_of) {
  fl_tval v = {FL_TVAL_RESULT, node, {0}, view_of, alias_of, UINT32_MAX, false, NULL};
  fl_tensor_read(tensor, &v.meta);
  const char *data = v.meta.data;
  v.meta.data = NULL;
  if (alias_of != FL_NO_TVAL) v.storage = r->trace->values.data[alias_of].storage;
  uint32_t id = add_value(r, &v, tensor);
  if (id == FL_NO_TVAL || view_of != FL_NO_TVAL) return id;
  /* New memory, or written in place while nobody else looks on: all there is of it. */
  r->storage_base.data[r->trace->values.data[id].storage] = (fl_base){id, data};
  return id;
}

int fl_rec_aliases(fl_rec *r, uint32_t value) {
  int n = 0;
  uint32_t at = r->storage_head.data[r->trace->values.data[value].storage];
  for (; at != UINT32_MAX; at = r->live.data[at].next) {
    fl_live *l = &r->live.data[at];
    if (l->value != value && PyWeakref_GET_OBJECT(l->weak) != Py_None && live_entry(r, l->object) == l) n++;
  }
  return n;
}

/* --- reads --- */

enum { FRESH, GONE }; /* in r->fresh; GONE: another object lies there now */

static bool skip(fl_rec *r, PyObject *o) { return fl_rec_is_fresh(r, o) || fl_ptrmap_get(&r->covered, o, NULL); }

/* An argument met on another way than as that argument: the next call may give another one there. */
static bool is_argument(fl_rec *r, PyObject *value, int depth) {
  if (!PyTuple_Check(value)) return fl_ptrmap_get(&r->covered, value, NULL);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value) && depth < 8; i++)
    if (is_argument(r, PyTuple_GET_ITEM(value, i), depth + 1)) return true;
  return false;
}

void fl_rec_note_known(fl_rec *r, PyObject *value) {
  if (!value || fl_ptrmap_get(&r->known, value, NULL)) return;
  if (is_argument(r, value, 0)) fl_rec_give_up(r, "an argument is reached on another way too", Py_TYPE(value)->tp_name);
  if (!fl_ptrmap_set(&r->known, value, 0)) oom(r);
  /* Nothing reports what is taken out of a tuple, or of a bound method. */
  if (PyMethod_Check(value)) {
    fl_rec_note_known(r, PyMethod_GET_FUNCTION(value));
    fl_rec_note_known(r, PyMethod_GET_SELF(value));
  }
  for (Py_ssize_t i = 0; PyTuple_Check(value) && i < PyTuple_GET_SIZE(value); i++)
    fl_rec_note_known(r, PyTuple_GET_ITEM(value, i));
}

void fl_rec_compared(fl_rec *r, PyObject *a, PyObject *b) {
  uint32_t v;
  if (off(r) || a == b || Py_TYPE(a) != Py_TYPE(b)) return;
  bool x = fl_ptrmap_get(&r->covered, a, NULL), y = fl_ptrmap_get(&r->covered, b, NULL);
  if (x == y) return;
  PyObject *other = x ? b : a;
  if (fl_rec_is_fresh(r, other)) return;
  if (fl_rec_find(r, other, &v) &&
      (r->trace->values.data[v].kind == FL_TVAL_RESULT || r->trace->values.data[v].kind == FL_TVAL_GIVEN))
    return;
  fl_rec_give_up(r, "an argument compared by identity", Py_TYPE(other)->tp_name);
}

bool fl_rec_knows(fl_rec *r, PyObject *o) { return off(r) || fl_ptrmap_get(&r->known, o, NULL); }

bool fl_rec_is_passing(fl_rec *r, PyObject *o) {
  return !off(r) && (fl_ptrmap_get(&r->covered, o, NULL) || (fl_tensor_check(o) && !fl_ptrmap_get(&r->known, o, NULL)));
}

static int done(fl_rec *r, int rc, bool changed, PyObject *key) {
  if (rc < 0) return oom(r);
  const char *s = changed && key && PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
  if (changed) fl_rec_give_up(r, "state changed during the call", s ? s : "");
  return 0;
}

int fl_rec_read_item(fl_rec *r, PyObject *dict, PyObject *key, PyObject *value) {
  bool changed = false;
  if (off(r) || !PyDict_Check(dict) || skip(r, dict)) return 0;
  if (dict == fl_compiling_dict() && PyUnicode_CheckExact(key) &&
      PyUnicode_CompareWithASCIIString(key, "_is_compiling_flag") == 0)
    return r->asked_compiling = true, 0;
  if (r->pending.len && fl_rec_written(r, dict, key)) return 0;
  if (value && r->trace->breaks.len && fl_rec_reads_place(r, dict, key, value)) return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_item(r->guards, dict, key, value, &changed);
  return done(r, rc, changed, key);
}

/* Attributes of a tensor among the arguments: the next call's tensor is another object, so it must have none. */
static void read_input_attrs(fl_rec *r, PyObject *tensor, uint32_t index) {
  PyObject **d = _PyObject_GetDictPtr(tensor);
  if (d && *d && PyDict_GET_SIZE(*d)) {
    fl_rec_give_up(r, "attributes of an argument", "a tensor argument carries Python attributes");
    return;
  }
  r->trace->args.inputs[index].attrs_read = true;
  if (d && *d && !fl_ptrmap_set(&r->covered, *d, UINT32_MAX)) oom(r);
}

int fl_rec_read_instance(fl_rec *r, PyObject *obj) {
  uint32_t value;
  if (off(r)) return 0;
  if (fl_tensor_check(obj) && fl_rec_find(r, obj, &value)) {
    fl_tval *v = &r->trace->values.data[value];
    if ((v->kind == FL_TVAL_RESULT || v->kind == FL_TVAL_GIVEN) && v->storage < r->storage_kind.len) return 0;
    if (v->kind == FL_TVAL_INPUT) return read_input_attrs(r, obj, v->index), 0;
  }
  if (skip(r, obj) || PyModule_Check(obj) || PyType_Check(obj)) return 0;
  if (!PyTuple_Check(obj)) fl_rec_note_known(r, obj); /* the call's own tuples are not reported as new */
  int rc = fl_guards_add_instance(r->guards, obj);
  /* A dictionary made for an old object lies where a new object may have been: it is as old as its object. */
  PyObject **d = _PyObject_GetDictPtr(obj);
  if (d && *d && fl_rec_is_fresh(r, *d) && !fl_ptrmap_set(&r->fresh, *d, GONE)) oom(r);
  return done(r, rc, false, NULL);
}

bool fl_rec_made_tensor(fl_rec *r, PyObject *tensor) {
  uint32_t v;
  if (off(r) || !fl_tensor_check(tensor) || !fl_rec_find(r, tensor, &v)) return false;
  return r->storage_kind.data[r->trace->values.data[v].storage] == FL_TVAL_RESULT;
}

int fl_rec_read_type(fl_rec *r, PyTypeObject *type, PyObject *name, PyObject *value) {
  bool changed = false;
  if (off(r) || (type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE) || !(type->tp_flags & Py_TPFLAGS_HEAPTYPE) ||
      fl_rec_is_fresh(r, (PyObject *)type))
    return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_type(r->guards, type, name, value, &changed);
  return done(r, rc, changed, name);
}

int fl_rec_read_cell(fl_rec *r, PyObject *cell, PyObject *value) {
  bool changed = false;
  if (off(r) || skip(r, cell)) return 0;
  if (r->pending.len && fl_rec_written(r, cell, NULL)) return 0;
  fl_rec_note_known(r, value);
  int rc = fl_guards_add_cell(r->guards, cell, value, &changed);
  return done(r, rc, changed, NULL);
}

int fl_rec_read_function(fl_rec *r, PyObject *function) {
  if (off(r) || !PyFunction_Check(function) || skip(r, function)) return 0;
  PyFunctionObject *f = (PyFunctionObject *)function;
  PyObject *lists[] = {f->func_defaults, f->func_closure};
  for (int i = 0; i < 2; i++)
    for (Py_ssize_t j = 0; lists[i] && j < PyTuple_GET_SIZE(lists[i]); j++)
      fl_rec_note_known(r, PyTuple_GET_ITEM(lists[i], j));
  fl_rec_note_known(r, function);
  return done(r, fl_guards_add_function(r->guards, function), false, NULL);
}

/* Metadata of a tensor: what the guards on arguments and weights check already. */
static bool is_tensor_metadata(PyObject *descr) {
  static const char *const names[] = {
      "shape",     "dtype",     "device",        "layout",       "ndim",      "is_cuda",   "is_cpu",
      "is_sparse", "is_nested", "is_quantized",  "is_meta",      "is_mkldnn", "is_mps",    "is_xpu",
      "is_xla",    "is_leaf",   "names",         "itemsize",     "nbytes",    "T",         "mT",
      "H",         "mH",        "data",          "real",         "imag",      "is_vulkan", "is_ipu",
      "is_maia",   "is_mtia",   "is_sparse_csr", "requires_grad"};
  PyObject *name = PyObject_TypeCheck(descr, &PyGetSetDescr_Type) ? ((PyDescrObject *)descr)->d_name : NULL;
  for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
    if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) return true;
  return false;
}

static bool is_named(PyObject *descr, const char *wanted) {
  PyObject *name = PyObject_TypeCheck(descr, &PyGetSetDescr_Type) ? ((PyDescrObject *)descr)->d_name : NULL;
  return name && PyUnicode_CompareWithASCIIString(name, wanted) == 0;
}

/* What vmap made of tensors of the call: its metadata follows from theirs. */
static bool made_by_transform(fl_rec *r, PyObject *tensor) {
  fl_torch_state now;
  if (fl_ptrmap_get(&r->known, tensor, NULL) || fl_torch_state_read(&now) < 0) return PyErr_Clear(), false;
  return now.functorch && fl_tensor_is_wrapped(tensor);
}

/* True when an attribute of a tensor needs no guard of its own. */
static bool tensor_attr_covered(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value) {
  uint32_t v;
  if (!fl_rec_find(r, obj, &v)) {
    if (fl_tensor_check(value)) return true; /* .T, .data: operators, recorded as such */
    if (made_by_transform(r, obj)) return true;
    v = fl_rec_value_of(r, obj, NULL); /* from now on its metadata is checked with the weights' */
    if (v == FL_NO_TVAL) return true;
  }
  fl_tval_kind kind = r->trace->values.data[v].kind;
  if (kind == FL_TVAL_RESULT || fl_tensor_check(value)) return true;
  if (kind == FL_TVAL_WEIGHT) return is_tensor_metadata(descr) && !is_named(descr, "requires_grad");
  if (!is_tensor_metadata(descr) && (value != Py_None || is_named(descr, "grad")))
    fl_rec_give_up(r, "attributes of an argument", "beyond a tensor's metadata");
  return true;
}

int fl_rec_read_descr(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value) {
  if (off(r)) return 0;
  if (fl_tensor_check(obj)) {
    if (!value || tensor_attr_covered(r, descr, obj, value)) return 0;
  } else if (skip(r, obj))
    return 0;
  fl_rec_note_known(r, value);
  return done(r, fl_guards_add_descr(r->guards, descr, obj, value), false, NULL);
}

static bool is_deque(PyObject *o) {
  for (PyTypeObject *t = Py_TYPE(o); t; t = t->tp_base)
    if (!strcmp(t->tp_name, "collections.deque")) return true;
  return false;
}

int fl_rec_read_contents(fl_rec *r, PyObject *c) {
  if (off(r) || skip(r, c)) return 0;
  if (!PyList_Check(c) && !PyDict_Check(c) && !PySet_Check(c) && !PyByteArray_Check(c) && !is_deque(c)) return 0;
  if (r->pending.len && fl_rec_reads_written(r, c)) return 0;
  if (PyList_Check(c))
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(c); i++) fl_rec_note_known(r, PyList_GET_ITEM(c, i));
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  while (PyDict_Check(c) && PyDict_Next(c, &pos, &k, &v)) fl_rec_note_known(r, v);
  return done(r, fl_guards_add_contents(r->guards, c), false, NULL);
}

int fl_rec_read_query(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                      PyObject *result) {
  if (off(r) || !result || fl_torch_state_covers(callable)) return 0;
  fl_rec_note_known(r, result);
  int rc = fl_guards_add_query(r->guards, callable, args, nargs, kwnames, result);
  return done(r, rc, false, NULL);
}

/* --- objects and writes --- */

int fl_rec_fresh(fl_rec *r, PyObject *obj) {
  if (off(r)) return 0;
  return fl_ptrmap_set(&r->fresh, obj, FRESH) ? 0 : oom(r);
}

void fl_rec_gone(fl_rec *r, PyObject *obj) {
  if (!fl_ptrmap_set(&r->fresh, obj, GONE)) oom(r);
}

bool fl_rec_is_fresh(fl_rec *r, PyObject *obj) {
  uint32_t state;
  return r && fl_ptrmap_get(&r->fresh, obj, &state) && state == FRESH;
}

/* --- module paths --- */

static void name_modules(fl_rec *r, PyObject *module, const char *path, int depth) {
  PyObject **d = _PyObject_GetDictPtr(module);
  PyObject *children = d && *d ? PyDict_GetItemString(*d, "_modules") : NULL;
  if (depth > 64 || fl_ptrmap_get(&r->module_index, module, NULL)) return;
  const char *name = fl_arena_strdup(&r->trace->arena, path);
  if (!name || !FL_PUSH(&r->module_names, name) ||
      !fl_ptrmap_set(&r->module_index, module, (uint32_t)r->module_names.len - 1)) {
    oom(r);
    return;
  }
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  while (children && PyDict_Check(children) && PyDict_Next(children, &pos, &k, &v)) {
    char sub[512];
    const char *s = PyUnicode_Check(k) ? PyUnicode_AsUTF8(k) : NULL;
    if (!s || v == Py_None) continue;
    snprintf(sub, sizeof sub, "%s%s%s", path, *path ? "." : "", s);
    name_modules(r, v, sub, depth + 1);
  }
  PyErr_Clear();
}

static void on_frame(fl_rec *r, PyObject *code, PyObject *first_arg, int entering) {
  uint32_t at;
  if (!r || r->gave_up || !r->module_names.len || !first_arg || !fl_ptrmap_get(&r->module_index, first_arg, &at))
    return;
  if (!entering)
    r->module_stack.len -= r->module_stack.len > 0;
  else if (!FL_PUSH(&r->module_stack, r->module_names.data[at]))
    oom(r);
}

const char *fl_rec_module(const fl_rec *r) {
  const char *s = r->module_stack.len ? r->module_stack.data[r->module_stack.len - 1] : NULL;
  return s && *s ? s : NULL;
}

/* --- begin and end --- */

/* Arguments matched by identity. */
static void know_objects(fl_rec *r, const fl_spec *s) {
  if (s->kind == FL_SPEC_OBJECT) fl_rec_note_known(r, s->object);
  if (s->items)
    for (int i = 0; i < s->n; i++) know_objects(r, &s->items[i]);
}

fl_rec *fl_rec_begin(PyObject *target, PyObject *const *args, size_t n_pos, PyObject *kwnames, bool records,
                     const fl_entry *at, const char **why_not) {
  *why_not = NULL;
  fl_rec *r = fl_calloc(1, sizeof *r);
  /* Made before any object of the call, at whose address it might lie otherwise. */
  if (!r || !fl_back_none() || !(r->trace = fl_trace_new())) {
    fl_free(r);
    PyErr_NoMemory();
    return NULL;
  }
  fl_trace *t = r->trace;
  r->guards = &t->guards;
  r->writes = &t->writes;
  r->args = args;
  r->n_args = n_pos;
  r->kwnames = kwnames;
  if (fl_torch_state_read(&t->state) < 0) goto fail;
  if (!(*why_not = fl_torch_state_why_not(&t->state)))
    *why_not = fl_argspec_make(&t->args, &t->arena, args, n_pos, kwnames, r->inputs, &r->covered, records);
  for (int i = 0; !*why_not && i < t->args.n_inputs; i++) {
    fl_tval v = {FL_TVAL_INPUT, (uint32_t)i, t->args.inputs[i].meta, FL_NO_TVAL, FL_NO_TVAL, UINT32_MAX, false, NULL};
    v.meta.data = NULL;
    if (add_value(r, &v, r->inputs[i]) == FL_NO_TVAL) *why_not = "out of memory";
  }
  if (*why_not || !(r->mode = fl_rec_mode_new())) goto fail;
  r->first_storage = at ? r->storage_head.len : 0;
  if (at && !fl_rec_enter(r, at)) *why_not = "what unknown code gave";
  if (*why_not) goto fail;
  for (int i = 0; i < t->args.n_pos + t->args.n_kw; i++) know_objects(r, &t->args.args[i]);
  name_modules(r, PyMethod_Check(target) ? PyMethod_GET_SELF(target) : target, "", 0);
  fl_eval_on_frame(on_frame);
  return r;
fail:
  fl_rec_free(r);
  return NULL;
}

static bool ask_tensor(void *ctx, PyObject *tensor, uint32_t *out_value) {
  fl_rec *r = ctx;
  if (fl_rec_find(r, tensor, out_value)) {
    fl_tval_kind kind = r->trace->values.data[*out_value].kind;
    if (kind != FL_TVAL_RESULT && kind != FL_TVAL_GIVEN) return true;
    int rg = fl_tensor_requires_grad(tensor);
    if (rg < 0) PyErr_Clear();
    return rg == 0;
  }
  /* A parameter given back that no operator used: the same object again. */
  uint32_t index;
  if (!fl_ptrmap_get(&r->known, tensor, NULL) || fl_weights_add(&r->trace->weights, tensor, false, &index))
    return false;
  fl_tval v = {FL_TVAL_WEIGHT, index, r->trace->weights.list.data[index].meta, FL_NO_TVAL, FL_NO_TVAL, UINT32_MAX,
               false,          NULL};
  *out_value = add_value(r, &v, tensor);
  return *out_value != FL_NO_TVAL;
}

static bool ask_argument(void *ctx, PyObject *object) { return fl_ptrmap_get(&((fl_rec *)ctx)->covered, object, NULL); }

static bool ask_known(void *ctx, PyObject *object) {
  fl_rec *r = ctx;
  return fl_ptrmap_get(&r->known, object, NULL) && !fl_rec_is_fresh(r, object);
}

fl_result_asker fl_rec_asker(fl_rec *r, bool frames) {
  fl_result_asker ask = {.ctx = r, .tensor = ask_tensor, .known = ask_known, .argument = ask_argument};
  ask.unknown = fl_rec_unknown_value;
  if (frames) {
    ask.argument_value = fl_rec_argument_value;
    ask.made = fl_rec_made;
  }
  return ask;
}

bool fl_rec_is_written(void *ctx, PyObject *container, PyObject *key) { return fl_rec_written(ctx, container, key); }

/* Modules count their training steps in a buffer beside the running statistics, whose own versions do not tell. */
void fl_rec_find_witnesses(fl_rec *r) {
  static const char *const stats[] = {"running_mean", "running_var"};
  fl_trace *t = r->trace;
  bool changed = false;
  for (size_t i = 0, n = r->guards->dict.len; i < n; i++) {
    PyObject *dict = r->guards->dict.data[i].dict, *counter = PyDict_GetItemString(dict, "num_batches_tracked");
    if (!counter || !fl_tensor_is_plain(counter)) continue;
    for (size_t k = 0; k < sizeof stats / sizeof *stats; k++) {
      PyObject *x = PyDict_GetItemString(r->guards->dict.data[i].expected, stats[k]), *key;
      uint32_t v;
      if (!x || !fl_tensor_check(x) || !fl_rec_find(r, x, &v) || t->values.data[v].kind != FL_TVAL_WEIGHT) continue;
      if (!(key = PyUnicode_InternFromString("num_batches_tracked")) ||
          fl_guards_add_item(r->guards, dict, key, counter, &changed) < 0 ||
          !fl_weights_witness(&t->weights, t->values.data[v].index, counter))
        fl_rec_give_up(r, "out of memory", "");
      Py_XDECREF(key);
    }
  }
  PyErr_Clear();
}

static fl_trace *take_trace(fl_rec *r) {
  fl_trace *t = r->trace;
  bool broken = t->breaks.len || t->entry;
  t->effects = r->effects || r->any_effects;
  t->random = r->random || r->any_random;
  for (size_t i = 0; broken && t->effects && i < t->steps.len; i++)
    if (!t->steps.data[i].eager_reason) t->steps.data[i].eager_reason = "the call writes to tensors that outlive it";
  fl_rec_end_stretch(r);
  r->trace = NULL;
  return t;
}

fl_trace *fl_rec_end(fl_rec *r, PyObject *result) {
  fl_trace *t = r->trace;
  if (r->ended) return take_trace(r);
  char why[200] = "";
  const char *detail = NULL, *bad = NULL;
  fl_rec_not_compared(r);
  PyObject *all = r->gave_up ? NULL : fl_rec_settle_writes(r, result);
  if (!r->gave_up) fl_rec_decide(r);
  if (!r->gave_up) fl_rec_find_witnesses(r);
  if (!r->gave_up && !fl_guards_arm(r->guards, fl_rec_is_written, r, why, sizeof why))
    fl_rec_give_up(r, "state read by the call changed during it", why);
  if (!r->gave_up) {
    fl_result_asker ask = fl_rec_asker(r, false);
    bad = fl_result_make(&t->result, &t->arena, all, &ask, &detail);
    if (bad) fl_rec_give_up(r, bad, detail);
  }
  if (!r->gave_up && !fl_weights_check(&t->weights))
    fl_rec_give_up(r, "state read by the call changed during it", "a weight");
  if (!r->gave_up && !t->breaks.len) fl_rec_find_sources(r, all);
  Py_XDECREF(all);
  if (r->gave_up) return NULL;
  return take_trace(r);
}

void fl_rec_free(fl_rec *r) {
  if (!r) return;
  for (size_t i = 0; i < r->live.len; i++) Py_DECREF(r->live.data[i].weak);
  for (size_t i = 0; i < r->pending.len; i++) {
    Py_DECREF(r->pending.data[i].obj);
    Py_XDECREF(r->pending.data[i].key);
    Py_XDECREF(r->pending.data[i].original);
    Py_XDECREF(r->pending.data[i].container);
  }
  fl_ptrmap *maps[] = {&r->live_of, &r->fresh, &r->covered, &r->known, &r->module_index, &r->unknown_of, &r->drawn};
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) fl_ptrmap_release(maps[i]);
  for (size_t i = 0; i < r->finals.len; i++) Py_DECREF(r->finals.data[i].tensor);
  fl_free(r->finals.data);
  fl_free(r->live.data);
  fl_free(r->storage_head.data);
  fl_free(r->storage_kind.data);
  fl_free(r->storage_base.data);
  fl_free(r->pending.data);
  fl_free(r->decisions.data);
  fl_free(r->draws.data);
  fl_free(r->module_names.data);
  fl_free(r->module_stack.data);
  fl_free(r->why.reason);
  fl_free(r->why.detail);
  fl_free(r->why.file);
  Py_XDECREF(r->why.blame);
  fl_free(r->unknown.data);
  Py_XDECREF(r->mode);
  Py_XDECREF(r->raised);
  fl_trace_release(r->trace);
  fl_free(r);
}
