/* Breaks at replay: the frames stand as they stood, the unknown code runs inside them, and what follows is checked. */
#include "capture/cpython/compat.h"
#include "capture/replay_break.h"

#include <string.h>

#include "capture/apart.h"
#include "capture/branch.h"
#include "capture/vars.h"

PyObject *fl_back_none(void) {
  static PyObject *none;
  if (!none) none = PyCapsule_New(&none, "framelift.nothing", NULL);
  return none;
}

PyObject *fl_back_item(const fl_spec *s, PyObject *o, int i) {
  if (s->kind == FL_SPEC_RECORD) {
    if (i == 1) return o;
    PyObject **d = _PyObject_GetDictPtr(o);
    return d ? *d : NULL;
  }
  if (s->kind == FL_SPEC_DICT || s->kind == FL_SPEC_ITEMS) {
    PyObject *v = PyDict_Check(o) && i < PyTuple_GET_SIZE(s->object)
                      ? PyDict_GetItemWithError(o, PyTuple_GET_ITEM(s->object, i))
                      : NULL;
    if (!v) PyErr_Clear();
    return v;
  }
  if (s->kind == FL_SPEC_TUPLE) return PyTuple_Check(o) && i < PyTuple_GET_SIZE(o) ? PyTuple_GET_ITEM(o, i) : NULL;
  return PyList_Check(o) && i < PyList_GET_SIZE(o) ? PyList_GET_ITEM(o, i) : NULL;
}

const char *fl_back_tensor_why_not(PyObject *o) {
  fl_tensor_meta m;
  PyObject **d = _PyObject_GetDictPtr(o);
  if (!fl_tensor_is_plain(o)) return "a tensor subclass";
  if (d && *d && PyDict_GET_SIZE(*d)) return "it carries Python attributes";
  fl_tensor_read(o, &m);
  if (!m.has_data || m.ndim > FL_MAX_RANK) return "not a dense strided tensor";
  int rg = fl_tensor_requires_grad(o), lazy = fl_tensor_is_lazy(o);
  if (rg < 0 || lazy < 0) PyErr_Clear();
  if (rg) return "it requires grad";
  return lazy ? "lazily conjugated or negated" : NULL;
}

const char *fl_back_arguments_why_not(const fl_trace *t, PyObject *const *args, size_t n_args, PyObject *kwnames,
                                      PyObject *const *inputs) {
  PyObject *now[FL_MAX_INPUTS];
  void *data[FL_MAX_INPUTS];
  const char *why = NULL;
  if (!fl_argspec_match(&t->args, args, n_args, kwnames, now, data, &why)) return why;
  for (int i = 0; i < t->args.n_inputs; i++)
    if (now[i] != inputs[i]) return "argument: another tensor";
  return NULL;
}

/* --- what unknown code gave --- */

static void put(PyObject **values, uint32_t v, PyObject *o) {
  PyObject *old = values[v];
  values[v] = Py_NewRef(o);
  Py_XDECREF(old);
}

static const char *match(const fl_trace *t, const fl_back *b, PyObject *o, PyObject **values, bool recorded);

static const char *match_items(const fl_trace *t, const fl_back *b, PyObject *const *items, Py_ssize_t n,
                               PyObject **values, bool recorded) {
  const char *why = n == b->n ? NULL : "its length";
  for (int i = 0; !why && i < b->n; i++) why = match(t, &b->items[i], items[i], values, recorded);
  return why;
}

static const char *match_dict(const fl_trace *t, const fl_back *b, PyObject *o, PyObject **values, bool recorded) {
  Py_ssize_t pos = 0, i = 0;
  PyObject *k, *v;
  if (PyDict_GET_SIZE(o) != b->n) return "its keys";
  for (; PyDict_Next(o, &pos, &k, &v); i++) {
    if (!fl_const_equal(k, PyTuple_GET_ITEM(b->object, i))) return "its keys";
    const char *why = match(t, &b->items[i], v, values, recorded);
    if (why) return why;
  }
  return NULL;
}

static const char *match_tensor(const fl_trace *t, const fl_back *b, PyObject *o, PyObject **values, bool recorded) {
  fl_tensor_meta m;
  if (!fl_tensor_check(o)) return "its type";
  for (size_t v = 0; !recorded && v < t->values.len; v++)
    if (values[v] == o) return "a tensor that was there before";
  const char *why = fl_back_tensor_why_not(o);
  if (why || recorded) return put(values, b->value, o), recorded ? NULL : why;
  if (Py_REFCNT(o) != 1) return "a tensor that others hold";
  fl_tensor_read(o, &m);
  if (!fl_tensor_meta_equal(&m, &t->values.data[b->value].meta)) return "sizes, dtype, strides or device of a tensor";
  if (!fl_tensor_watch_shared(o, (fl_trace *[]){(fl_trace *)t}, 1)) return "a tensor that shares memory with a weight";
  put(values, b->value, o);
  return NULL;
}

/* NULL, or what differs. With `recorded` it is what was recorded itself, which others hold by now. */
static const char *match(const fl_trace *t, const fl_back *b, PyObject *o, PyObject **values, bool recorded) {
  bool alone = recorded || Py_REFCNT(o) == 1;
  switch (b->kind) {
  case FL_BACK_TENSOR: return match_tensor(t, b, o, values, recorded);
  case FL_BACK_SAME: return recorded || values[b->value] == o ? NULL : "another object";
  case FL_BACK_CONST: return fl_const_equal(b->object, o) ? NULL : "its value";
  case FL_BACK_OBJECT:
    if (!recorded && Py_TYPE(o) != Py_TYPE(b->object)) return "its type";
    if (!alone && !b->shared && !fl_back_is_plain(o)) return "an object that others hold";
    if (b->used && !fl_const_equal(b->object, o)) return "its value";
    put(values, b->value, o);
    return NULL;
  case FL_BACK_TUPLE:
    if (!PyTuple_CheckExact(o)) return "its type";
    return match_items(t, b, &PyTuple_GET_ITEM(o, 0), PyTuple_GET_SIZE(o), values, recorded);
  case FL_BACK_LIST:
    if (!PyList_CheckExact(o) || !alone) return "its type";
    return match_items(t, b, ((PyListObject *)o)->ob_item, PyList_GET_SIZE(o), values, recorded);
  case FL_BACK_DICT:
    if (!(b->ordered ? PyODict_CheckExact(o) : PyDict_CheckExact(o)) || !alone) return "its type";
    return match_dict(t, b, o, values, recorded);
  }
  return "its type";
}

const char *fl_entry_match(const fl_trace *t, const fl_entry *e, PyObject **values) {
  const char *why = (int)e->n_objects + 1 == t->n_entry ? NULL : "another number of objects";
  for (size_t i = 0; !why && i < e->n_objects; i++) why = match(t, &t->entry[i], e->objects[i], values, false);
  return why ? why : match(t, &t->entry[t->n_entry - 1], e->back, values, false);
}

void fl_break_recorded(const fl_trace *t, size_t at, PyObject **values) {
  for (int i = 0; at == 0 && t->entered && i < t->n_entry; i++)
    match(t, &t->entry[i], PyTuple_GET_ITEM(t->entered, i), values, true);
  for (size_t i = 0; i < t->breaks.len; i++) {
    const fl_break *b = t->breaks.data[i];
    if (b->at == at && b->recorded) match(t, &b->back, b->recorded, values, true);
  }
}

typedef struct inside {
  fl_run *run;
  fl_break *b;
  PyObject *state;      /* owned */
  bool left;            /* the call leaves the trace here */
  fl_torch_state torch; /* with the frames standing */
  const fl_cpy_state *frames;
  PyObject *autocast; /* likewise; owned */
  bool keeps;         /* modes stand, and unknown code has changed them */
} inside;

/* --- after the call --- */

static const char *tensors_why_not(const fl_run *run, const fl_break *b) {
  for (int i = 0; i < b->n_tensors; i++) {
    fl_tensor_meta m;
    PyObject *o = run->values[b->tensors[i]];
    if (!o) return "a tensor is gone";
    const char *why = fl_back_tensor_why_not(o);
    if (why) return why;
    fl_tensor_read(o, &m);
    if (!fl_tensor_meta_equal(&m, &run->t->values.data[b->tensors[i]].meta)) return "a tensor changed its shape";
  }
  return NULL;
}

/* Torch's state beneath the frames: what it was when they stood. */
static bool same_state(const fl_torch_state *a, const fl_torch_state *b) {
  return fl_torch_state_equal(a, b) && a->autocast == b->autocast && a->functorch == b->functorch &&
         a->torch_function == b->torch_function && a->tracing == b->tracing && a->function_modes == b->function_modes &&
         a->dispatch_modes == b->dispatch_modes;
}

/* Autocast's state now, of what the modes that stand have set; new, or NULL: there are none. */
static PyObject *modes_now(const fl_run *run) {
  PyObject *devices = run->modes.before ? fl_autocast_devices(run->modes.before) : NULL;
  PyObject *now = devices ? fl_autocast_read(devices) : NULL;
  Py_XDECREF(devices);
  return now;
}

static bool same_modes(const fl_run *run, PyObject *before) {
  if (!run->modes.before) return true;
  PyObject *now = modes_now(run);
  int same = now && before ? PyObject_RichCompareBool(now, before, Py_EQ) : 0;
  Py_XDECREF(now);
  if (same < 0) PyErr_Clear();
  return same > 0;
}

static const char *after(inside *in, PyObject *back, char *buf, size_t size) {
  fl_run *run = in->run;
  fl_break *b = in->b;
  fl_trace *t = run->t;
  if (t->open && b == t->breaks.data[t->breaks.len - 1]) return "the trace ends there";
  fl_torch_state now;
  const char *why = match(t, &b->back, back, run->values, false);
  if (why) return snprintf(buf, size, "what it gave: %s", why), buf;
  if (fl_torch_state_read(&now) < 0 || fl_grad_enabled() != 0) {
    in->keeps |= run->modes.before != NULL;
    return PyErr_Clear(), "torch's global state";
  }
  if (!same_state(&now, &in->torch) || !same_modes(run, in->autocast)) {
    in->keeps |= run->modes.before != NULL;
    return "torch's global state";
  }
  if (t->cuda_state >= 0 && fl_torch_cuda_state() != t->cuda_state)
    return "global state: TF32 or current device of GPUs";
  why = fl_back_arguments_why_not(t, run->call->args, run->call->n_args, run->call->kwnames, run->inputs);
  if (why || (why = tensors_why_not(run, b))) return why;
  if (!fl_weights_check(&t->weights)) return "weight: dtype, sizes, strides or device";
  for (size_t i = 0; i < b->places.len; i++) {
    const fl_place *p = &b->places.data[i];
    PyObject *o = PyDict_GetItemWithError(p->dict, p->key);
    if (!o) PyErr_Clear();
    if (!o || o != run->values[p->value]) return "a place that held a tensor of the call";
  }
  PyObject *autocast = modes_now(run);
  bool holds = !autocast || fl_autocast_write(run->modes.before, 0) == 0;
  holds = holds && fl_guards_check(&b->guards, buf, size);
  fl_autocast_set_again(autocast);
  return holds ? NULL : buf;
}

/* --- the call inside the frames --- */

static PyObject *call(inside *in) {
  PyObject *args = PyTuple_GET_ITEM(in->state, FL_STATE_ARGS);
  return PyObject_Vectorcall(PyTuple_GET_ITEM(in->state, FL_STATE_CALLABLE), &PyTuple_GET_ITEM(args, 0), in->b->n_pos,
                             in->b->kwnames);
}

static void count_exit(fl_break *b, const char *why) {
  b->exits++;
  snprintf(b->exit_why, sizeof b->exit_why, "%s", why);
}

static PyObject *in_frames(void *ctx, bool *go_on) {
  inside *in = ctx;
  fl_break *b = in->b;
  char buf[160] = "";
  fl_vars_watch vars;
  bool watched = fl_vars_watch_begin(&vars, in->run->tokens) == 0 && fl_torch_state_read(&in->torch) == 0;
  fl_raised_stand(&in->run->raised, &b->state, fl_break_raised(b), in->frames);
  in->autocast = modes_now(in->run);
  PyErr_Clear();
  PyObject *back = call(in);
  const char *changed = fl_vars_watch_end(&vars);
  if (!watched) changed = "out of memory";
  const char *why = !back ? "it raised" : changed ? changed : after(in, back, buf, sizeof buf);
  Py_CLEAR(in->autocast);
  if (back && (changed = fl_raised_why_not(&in->run->raised))) {
    why = changed;
    in->keeps = true;
  }
  if (why) count_exit(b, why);
  if (why && (!back || in->keeps || !fl_site_is_open(b))) {
    Py_CLEAR(in->state); /* the frames hold what they need, and reset what is set */
    Py_CLEAR(in->run->tokens);
    fl_modes_pass_on(&in->run->modes);
    fl_raised_pass_on(&in->run->raised);
    return *go_on = true, back;
  }
  Py_XSETREF(in->run->last_back, back);
  in->run->last = b;
  in->left = why != NULL;
  fl_raised_leave(&in->run->raised);
  return Py_NewRef(Py_None);
}

void fl_break_states(const fl_break *b, PyObject *const *items, fl_cpy_state *out) {
  for (int i = 0; i < b->n_frames; i++) {
    const fl_break_frame *f = &b->frames[i];
    out[i] = (fl_cpy_state){.func = PyTuple_GET_ITEM(items[i], 0),
                            .code = f->code,
                            .slots = &PyTuple_GET_ITEM(items[i], FL_FRAME_SLOTS),
                            .gen = f->generator ? PyTuple_GET_ITEM(items[i], 1) : NULL,
                            .other = f->other,
                            .n_locals = f->n_locals,
                            .depth = f->depth,
                            .next = f->next,
                            .wants = f->wants,
                            .named = fl_break_raised(b)->n != 0};
  }
}

/* As fl_break_run; takes in->state. */
static int run_frames(inside *in, PyObject **out) {
  enum { LOCAL = 32 };
  fl_break *b = in->b;
  fl_cpy_state local[LOCAL], *frames = local;
  bool went_on = false;
  if (b->n_frames > LOCAL && !(frames = fl_malloc((size_t)b->n_frames * sizeof *frames))) {
    Py_CLEAR(in->state);
    fl_raised_leave(&in->run->raised);
    fl_modes_leave(&in->run->modes);
    return PyErr_NoMemory(), -1;
  }
  in->frames = frames;
  fl_break_states(b, &PyTuple_GET_ITEM(in->state, FL_STATE_FRAMES), frames);
  PyObject *v =
      fl_cpy_resume(PyThreadState_Get(), frames, b->n_frames, fl_back_none(), in_frames, in, NULL, NULL, &went_on);
  if (frames != local) fl_free(frames);
  Py_CLEAR(in->state);
  *out = NULL;
  fl_raised_leave(&in->run->raised);
  fl_modes_leave(&in->run->modes);
  if (went_on) return *out = v, 1;
  Py_DECREF(v);
  if (!in->left) return 0;
  return fl_exit_take(in->run->exit, in->run, b) ? 1 : -1;
}

static void reset_vars(fl_run *run) {
  if (run->tokens) fl_vars_reset(run->tokens);
  Py_CLEAR(run->tokens);
}

const fl_result_node *fl_break_raised(const fl_break *b) {
  return &b->state.nodes.data[b->state.nodes.data[b->state.root].items[FL_STATE_RAISED]];
}

int fl_break_hold_modes(const fl_break *b, fl_modes_held *h) {
  const fl_result_node *nodes = b->state.nodes.data, *modes = &nodes[nodes[b->state.root].items[FL_STATE_MODES]];
  return modes->n ? fl_modes_hold(h, nodes[modes->items[modes->n - 1]].object) : 0;
}

/* Sets the context variables and enters the modes that are set there. NULL with an exception. */
static PyObject *build_state(fl_run *run, const fl_break *b) {
  reset_vars(run);
  if (fl_break_hold_modes(b, &run->modes) < 0) return NULL;
  PyObject *state = fl_result_build(&b->state, run->values);
  if (!state) return fl_modes_leave(&run->modes), NULL;
  run->tokens = Py_NewRef(PyTuple_GET_ITEM(state, FL_STATE_TOKENS));
  if (fl_break_raised(b)->n) run->raised.items = Py_NewRef(PyTuple_GET_ITEM(state, FL_STATE_RAISED));
  if (run->modes.before) run->modes.items = Py_NewRef(PyTuple_GET_ITEM(state, FL_STATE_MODES));
  return state;
}

int fl_break_run(fl_run *run, fl_break *b, PyObject **out) {
  inside in = {.run = run, .b = b, .state = build_state(run, b)};
  if (!in.state) return -1;
  b->count++;
  if (fl_effects_apply(&b->writes, &PyTuple_GET_ITEM(PyTuple_GET_ITEM(in.state, FL_STATE_EFFECTS), 0), run->values) <
      0) {
    Py_CLEAR(in.state);
    fl_raised_leave(&run->raised);
    fl_modes_leave(&run->modes);
    return -1;
  }
  return run_frames(&in, out);
}

bool fl_break_leave(fl_run *run, const char *why) {
  count_exit(run->last, why);
  return fl_exit_take(run->exit, run, run->last);
}

void fl_run_end(fl_run *run) {
  reset_vars(run);
  Py_CLEAR(run->last_back);
}
