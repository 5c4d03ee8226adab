#include "capture/cpython/compat.h"
#include "capture/rec.h"

#include <string.h>

#include "capture/eval.h"
#include "capture/replay_break.h"
#include "capture/shared.h"

static _Thread_local fl_rec *current;

fl_rec *fl_rec_current(void) { return current; }
void fl_rec_current_set(fl_rec *r) { current = r; }

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
  if (!fl_rec_is_off(r)) r->trace->autocast = true;
}

bool fl_rec_gave_up(const fl_rec *r) { return r && r->gave_up; }

/* --- memory of the trace --- */

const char *fl_rec_intern(fl_rec *r, const char *s) {
  if (r->last_copy && !strcmp(r->last_copy, s)) return r->last_copy;
  const char *copy = fl_arena_strdup(&r->trace->arena, s);
  if (!copy) fl_rec_oom(r);
  r->last_copy = copy;
  return copy;
}

bool fl_rec_keep(fl_rec *r, PyObject *o) {
  if (PyList_Append(r->trace->keep, o) == 0) return true;
  PyErr_Clear();
  fl_rec_oom(r);
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
    return fl_rec_oom(r), false;
  }
  r->storage_head.data[storage] = (uint32_t)r->live.len - 1;
  return fl_ptrmap_set(&r->live_of, tensor, (uint32_t)r->live.len - 1) || (fl_rec_oom(r), false);
}

static uint32_t add_value(fl_rec *r, const fl_tval *v, PyObject *tensor) {
  fl_trace *t = r->trace;
  fl_tval n = *v;
  if (n.storage == UINT32_MAX) {
    n.storage = (uint32_t)r->storage_head.len;
    fl_base base = {FL_NO_TVAL, NULL};
    if (!FL_PUSH(&r->storage_head, UINT32_MAX) || !FL_PUSH(&r->storage_kind, (uint8_t)n.kind) ||
        !FL_PUSH(&r->storage_base, base))
      return fl_rec_oom(r), FL_NO_TVAL;
  }
  if (!FL_PUSH(&t->values, n)) return fl_rec_oom(r), FL_NO_TVAL;
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
    return fl_rec_oom(r), FL_NO_TVAL;
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

/* --- module paths --- */

static void name_modules(fl_rec *r, PyObject *module, const char *path, int depth) {
  PyObject **d = _PyObject_GetDictPtr(module);
  PyObject *children = d && *d ? PyDict_GetItemString(*d, "_modules") : NULL;
  if (depth > 64 || fl_ptrmap_get(&r->module_index, module, NULL)) return;
  const char *name = fl_arena_strdup(&r->trace->arena, path);
  if (!name || !FL_PUSH(&r->module_names, name) ||
      !fl_ptrmap_set(&r->module_index, module, (uint32_t)r->module_names.len - 1)) {
    fl_rec_oom(r);
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
    fl_rec_oom(r);
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
  fl_shared_forget();
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
  r->elements = fl_rec_hash_inputs(r);
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
  if (frames || !r->trace->entry) ask.argument_value = fl_rec_argument_value;
  if (frames) ask.made = fl_rec_made;
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

static bool note_writes(fl_ptrmap *m, const fl_effects *e) {
  bool ok = true;
  for (size_t i = 0; ok && i < e->list.len; i++) {
    PyObject *o = e->list.data[i].obj, **d = o ? _PyObject_GetDictPtr(o) : NULL;
    if (o) ok = fl_ptrmap_set(m, o, 0) && (!d || !*d || fl_ptrmap_set(m, *d, 0));
  }
  return ok;
}

static bool note_reads(fl_ptrmap *m, const fl_guards *g) {
  bool ok = true;
  for (size_t i = 0; ok && i < g->dict.len; i++) ok = fl_ptrmap_set(m, g->dict.data[i].dict, 0);
  for (size_t i = 0; ok && i < g->list.len; i++) ok = fl_ptrmap_set(m, g->list.data[i].list, 0);
  for (size_t i = 0; ok && i < g->cont.len; i++) ok = fl_ptrmap_set(m, g->cont.data[i].obj, 0);
  return ok;
}

/* Of a call that writes to containers, an argument may not be one that it has on another way: what it reads on the one way it
 * may have written on the other. */
static bool note_elsewhere(fl_trace *t) {
  fl_ptrmap *m = &t->args.elsewhere;
  bool writes = t->writes.list.len, ok = true;
  for (size_t i = 0; i < t->breaks.len; i++) writes |= t->breaks.data[i]->writes.list.len > 0;
  if (!writes) return true;
  ok = note_reads(m, &t->guards) && note_writes(m, &t->writes);
  for (size_t i = 0; ok && i < t->breaks.len; i++)
    ok = note_reads(m, &t->breaks.data[i]->guards) && note_writes(m, &t->breaks.data[i]->writes);
  return ok;
}

static fl_trace *take_trace(fl_rec *r) {
  fl_trace *t = r->trace;
  bool broken = t->breaks.len || t->entry;
  t->effects = r->effects || r->any_effects;
  t->random = r->random || r->any_random;
  for (size_t i = 0; broken && t->effects && i < t->steps.len; i++)
    if (!t->steps.data[i].eager_reason) t->steps.data[i].eager_reason = "the call writes to tensors that outlive it";
  fl_rec_end_stretch(r);
  fl_rec_settle_cached(r, t);
  if (!note_elsewhere(t)) return fl_rec_oom(r), NULL;
  r->trace = NULL;
  return t;
}

fl_trace *fl_rec_end(fl_rec *r, PyObject *result) {
  fl_trace *t = r->trace;
  if (r->ended) return take_trace(r);
  char why[200] = "";
  const char *detail = NULL, *bad = NULL;
  fl_rec_not_compared(r);
  fl_rec_look_at_results(r);
  fl_rec_look_at_inputs(r);
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
  fl_free(r->caches.data);
  fl_free(r->module_names.data);
  fl_free(r->module_stack.data);
  fl_free(r->why.reason);
  fl_free(r->why.detail);
  fl_free(r->why.file);
  Py_XDECREF(r->why.blame);
  fl_free(r->unknown.data);
  Py_XDECREF(r->mode);
  fl_trace_release(r->trace);
  fl_free(r);
}
