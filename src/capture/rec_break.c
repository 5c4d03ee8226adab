/* Graph breaks while recording: code that is not understood, called between two stretches of the program. */
#include "capture/cpython/compat.h"

#include <string.h>

#include "capture/ccalls.h"
#include "capture/eval_impl.h"
#include "capture/rec.h"
#include "capture/rec_given.h"
#include "capture/replay_break.h"
#include "capture/vars.h"

/* --- whether there can be a break here --- */

bool fl_rec_argument_value(void *rec, PyObject *object, uint32_t *out_value) {
  fl_rec *r = rec;
  uint32_t which;
  if (!fl_ptrmap_get(&r->covered, object, &which) || which == UINT32_MAX || !(which & FL_ARG_CONTAINER)) return false;
  which &= ~FL_ARG_CONTAINER;
  r->trace->containers = true;
  for (uint32_t v = 0; v < r->trace->values.len; v++)
    if (r->trace->values.data[v].kind == FL_TVAL_ARGUMENT && r->trace->values.data[v].index == which)
      return *out_value = v, true;
  *out_value = fl_rec_object_value(r, FL_TVAL_ARGUMENT, which);
  return *out_value != FL_NO_TVAL;
}

bool fl_rec_made(void *rec, PyObject *o) {
  fl_rec *r = rec;
  if (!fl_rec_is_fresh(r, o))
    return PyTuple_Check(o) || PyFrozenSet_Check(o) || PySlice_Check(o) || PyRange_Check(o) || PyMethod_Check(o) ||
           PyCFunction_Check(o);
  if (r->made && !fl_ptrmap_set(r->made, o, 0)) fl_rec_give_up(r, "out of memory", "while recording");
  return true;
}

/* Something mutable that this call made: code that is not known might keep or change it. */
static const char *own_object(fl_rec *r, PyObject *o, int depth) {
  if (fl_tensor_check(o) || fl_back_is_plain(o) || fl_rec_unknown_entry(r, o)) return NULL;
  if (PyExceptionInstance_Check(o) && !fl_ptrmap_get(&r->known, o, NULL)) return Py_TYPE(o)->tp_name;
  if (PyMethod_Check(o)) {
    const char *f = own_object(r, PyMethod_GET_FUNCTION(o), depth + 1);
    return f ? f : own_object(r, PyMethod_GET_SELF(o), depth + 1);
  }
  if (PyCFunction_Check(o) && PyCFunction_GET_SELF(o)) return own_object(r, PyCFunction_GET_SELF(o), depth + 1);
  if (PyFunction_Check(o) && !PyFunction_GET_CLOSURE(o) && !PyFunction_GET_DEFAULTS(o)) return NULL;
  if (PySlice_Check(o) || PyRange_Check(o)) return NULL;
  if (PyTuple_Check(o) && depth < FL_BREAK_DEPTH) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(o); i++) {
      const char *why = own_object(r, PyTuple_GET_ITEM(o, i), depth + 1);
      if (why) return why;
    }
    return NULL;
  }
  return fl_rec_is_fresh(r, o) || PyTuple_Check(o) ? Py_TYPE(o)->tp_name : NULL;
}

/* A new object of a class of the program: showing it runs the class's own code, which might keep or change it. */
static const char *own_instance(fl_rec *r, PyObject *o, int depth) {
  const char *why = NULL;
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  if (depth > FL_BREAK_DEPTH) return "nested too deeply";
  if (PyList_CheckExact(o) || PyTuple_Check(o)) {
    for (Py_ssize_t i = 0; !why && i < PySequence_Fast_GET_SIZE(o); i++)
      why = own_instance(r, PySequence_Fast_GET_ITEM(o, i), depth + 1);
    return why;
  }
  while (!why && fl_rec_is_dict(o) && PyDict_Next(o, &pos, &k, &v)) why = own_instance(r, v, depth + 1);
  if (PyExceptionInstance_Check(o) && !(Py_TYPE(o)->tp_flags & Py_TPFLAGS_HEAPTYPE))
    return own_instance(r, ((PyBaseExceptionObject *)o)->args, depth + 1);
  if (why || fl_rec_is_dict(o) || fl_back_is_plain(o) || fl_tensor_check(o) || !fl_rec_is_fresh(r, o)) return why;
  return Py_TYPE(o)->tp_name;
}

static bool same_state(fl_rec *r) {
  fl_torch_state now;
  if (!fl_eval_here || fl_torch_state_read(&now) < 0 || fl_grad_enabled() != 0) return PyErr_Clear(), false;
  return fl_contexts_account(fl_eval_here, &now, &r->trace->state);
}

/* Generators handle exceptions of their own. */
static bool is_handling(void) {
  PyObject *exc = PyErr_GetHandledException();
  bool is = exc && exc != Py_None;
  Py_XDECREF(exc);
  return is;
}

static const char *why_not_here(fl_rec *r) {
  fl_eval_state *st = fl_eval_here;
  if (!st || st->r != r || st->paused || !st->top) return "not called from an evaluated frame";
  const char *vars = fl_vars_why_no_break(st);
  if (vars) return vars;
  if ((vars = fl_contexts_why_no_break(st))) return vars;
  if (st->locks) return "a lock is held";
  if (st->other_state) return "torch state was changed";
  if (st->handled && fl_cpy_handled(PyThreadState_Get()) != st->handled) return "an exception is being handled";
  for (fl_eval_frame *e = st->top; e; e = e->below) {
    PyObject *func = fl_cpy_func(e->f);
    bool generator = fl_cpy_kind(e->f) == FL_FRAME_GEN;
    if (e->depth < 0 || !e->callable || (!generator && fl_cpy_kind(e->f) != FL_FRAME_PLAIN))
      return "under code in C, or a generator that it drives";
    if (generator && is_handling()) return "an exception is being handled around a generator";
    if (!func || !PyFunction_Check(func) || (PyCodeObject *)PyFunction_GET_CODE(func) != fl_cpy_code(e->f) ||
        !(fl_cpy_code(e->f)->co_flags & CO_OPTIMIZED))
      return "in a class body or module";
  }
  return NULL;
}

/* --- describing --- */

static PyObject *frame_tuple(fl_rec *r, const fl_eval_frame *e, fl_break_frame *out) {
  PyCodeObject *code = fl_cpy_code(e->f);
  int n = code->co_nlocalsplus;
  PyObject *t = PyTuple_New(FL_FRAME_SLOTS + n + e->depth), **locals = fl_cpy_locals(e->f);
  PyObject *generator = fl_cpy_frame_generator(e->f);
  if (!t) return NULL;
  PyObject *called = e->callable && !generator && !fl_rec_is_fresh(r, e->callable) ? e->callable : fl_cpy_func(e->f);
  *out = (fl_break_frame){code, called, n, e->depth, e->next, e->other, e->wants, generator != NULL};
  PyTuple_SET_ITEM(t, 0, Py_NewRef(fl_cpy_func(e->f)));
  PyTuple_SET_ITEM(t, 1, Py_NewRef(generator ? generator : fl_back_none()));
  for (int i = 0; i < n + e->depth; i++) {
    PyObject *v = i < n ? locals[i] : e->stack[i - n];
    PyTuple_SET_ITEM(t, FL_FRAME_SLOTS + i, Py_NewRef(v ? v : fl_back_none()));
  }
  if (!fl_rec_keep(r, (PyObject *)code) || !fl_rec_keep(r, called)) Py_CLEAR(t);
  return t;
}

static PyObject *tuple_of(PyObject *const *items, size_t n) {
  PyObject *t = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; t && i < n; i++) PyTuple_SET_ITEM(t, (Py_ssize_t)i, Py_NewRef(items[i]));
  return t;
}

/* (tokens, effects' values, callable, arguments, frames ...); new reference, or NULL. */
static PyObject *state_tuple(fl_rec *r, fl_break *b, PyObject *all, PyObject *callable, PyObject *const *args,
                             size_t n_args) {
  int n = 0, i = 0;
  for (fl_eval_frame *e = fl_eval_here->top; e; e = e->below) n++;
  PyObject *t = PyTuple_New(FL_STATE_FRAMES + n);
  b->n_frames = n;
  b->frames = fl_arena_alloc(&r->trace->arena, ((size_t)n + 1) * sizeof *b->frames);
  if (!t || !b->frames) goto fail;
  size_t n_effects = b->writes.list.len;
  PyTuple_SET_ITEM(t, FL_STATE_TOKENS, fl_vars_tokens(fl_eval_here));
  PyTuple_SET_ITEM(t, FL_STATE_RAISED, fl_raised_items());
  PyTuple_SET_ITEM(t, FL_STATE_MODES, fl_contexts_items(fl_eval_here));
  PyTuple_SET_ITEM(t, FL_STATE_EFFECTS, n_effects ? PyTuple_GetSlice(all, 1, PyTuple_GET_SIZE(all)) : PyTuple_New(0));
  PyTuple_SET_ITEM(t, FL_STATE_CALLABLE, Py_NewRef(callable));
  PyTuple_SET_ITEM(t, FL_STATE_ARGS, tuple_of(args, n_args));
  for (fl_eval_frame *e = fl_eval_here->top; e; e = e->below, i++)
    PyTuple_SET_ITEM(t, FL_STATE_FRAMES + n - 1 - i, frame_tuple(r, e, &b->frames[n - 1 - i]));
  for (int k = 0; k < FL_STATE_FRAMES + n; k++)
    if (!PyTuple_GET_ITEM(t, k)) goto fail;
  return t;
fail:
  Py_XDECREF(t);
  PyErr_Clear();
  fl_rec_give_up(r, "out of memory", "while recording");
  return NULL;
}

/* Tuples of ours are not to be taken for objects of the program that had their addresses. */
static void ours(fl_rec *r, PyObject *state) {
  bool ok = fl_ptrmap_set(&r->fresh, state, 0);
  for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(state); i++)
    if (i != FL_STATE_CALLABLE) ok = fl_ptrmap_set(&r->fresh, PyTuple_GET_ITEM(state, i), 0);
  if (!ok) fl_rec_give_up(r, "out of memory", "while recording");
}

/* Takes it: frames alone hold what they hold, so that it goes when they let go of it. Others may lie there then. */
static void not_ours(fl_rec *r, PyObject *state) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(state); i++)
    if (i != FL_STATE_CALLABLE) fl_rec_gone(r, PyTuple_GET_ITEM(state, i));
  fl_rec_gone(r, state);
  Py_DECREF(state);
}

/* What is in a tuple, or in a container that the call made; new reference, or NULL. */
static PyObject *items_of(fl_rec *r, PyObject *o) {
  if (PyTuple_Check(o)) return Py_NewRef(o);
  bool own = (PyList_CheckExact(o) || fl_rec_is_dict(o) || PySet_Check(o)) && fl_rec_is_fresh(r, o);
  return own ? fl_guards_snapshot(o) : NULL;
}

/* Tensors that unknown code sees: what is written to them later, others may see. */
static void escape(fl_rec *r, fl_break *b, PyObject *o, bool argument, int depth) {
  uint32_t v;
  if (fl_tensor_check(o) && fl_rec_find(r, o, &v)) {
    uint8_t *kind = &r->storage_kind.data[r->trace->values.data[v].storage];
    if (*kind == FL_TVAL_RESULT) *kind = FL_TVAL_GIVEN;
    if (*kind == FL_TVAL_WEIGHT && argument) fl_rec_watch_weights(r, r->trace->values.data[v].storage);
    if (argument && (r->trace->values.data[v].kind == FL_TVAL_RESULT || r->trace->values.data[v].kind == FL_TVAL_GIVEN))
      b->tensors[b->n_tensors++] = v;
  }
  PyObject *items = depth < FL_BREAK_DEPTH ? items_of(r, o) : NULL;
  for (Py_ssize_t i = 0; items && i < PyTuple_GET_SIZE(items); i++)
    escape(r, b, PyTuple_GET_ITEM(items, i), argument, depth + 1);
  Py_XDECREF(items);
}

static size_t count_items(fl_rec *r, PyObject *o, int depth) {
  size_t n = 1;
  PyObject *items = depth < FL_BREAK_DEPTH ? items_of(r, o) : NULL;
  for (Py_ssize_t i = 0; items && i < PyTuple_GET_SIZE(items); i++)
    n += count_items(r, PyTuple_GET_ITEM(items, i), depth + 1);
  Py_XDECREF(items);
  return n;
}

/* What a context variable holds: containers of the call's own are looked at when unknown code returns. */
static const char *own_kept(fl_rec *r, PyObject *o, int depth) {
  PyObject *items = depth < FL_BREAK_DEPTH ? items_of(r, o) : NULL;
  if (!items) return own_object(r, o, 0);
  const char *why = PyODict_Check(o) ? Py_TYPE(o)->tp_name : NULL;
  for (Py_ssize_t i = 0; !why && i < PyTuple_GET_SIZE(items); i++)
    why = own_kept(r, PyTuple_GET_ITEM(items, i), depth + 1);
  Py_DECREF(items);
  return why;
}

/* Whether context variables hold anything that unknown code might keep or change unseen. */
static const char *own_in_vars(fl_rec *r) {
  PyObject *tokens = fl_vars_tokens(fl_eval_here), *var, *value;
  const char *why = NULL;
  if (!tokens) return PyErr_Clear(), "out of memory";
  for (Py_ssize_t i = 0; !why && i < PyTuple_GET_SIZE(tokens); i++)
    why = fl_vars_token(tokens, PyTuple_GET_ITEM(tokens, i), &var, &value) ? own_kept(r, value, 0) : "a token";
  Py_DECREF(tokens);
  return why;
}

static bool note_escapes(fl_rec *r, fl_break *b, PyObject *state, bool shows) {
  PyObject *args = PyTuple_GET_ITEM(state, FL_STATE_ARGS), *effects = PyTuple_GET_ITEM(state, FL_STATE_EFFECTS),
           *callable = PyTuple_GET_ITEM(state, FL_STATE_CALLABLE), *tokens = PyTuple_GET_ITEM(state, FL_STATE_TOKENS);
  size_t n = count_items(r, args, 0) + 2;
  PyObject *var, *value;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tokens); i++)
    if (fl_vars_token(tokens, PyTuple_GET_ITEM(tokens, i), &var, &value)) n += count_items(r, value, 0);
  b->tensors = fl_arena_alloc(&r->trace->arena, n * sizeof *b->tensors);
  if (!b->tensors) return false;
  escape(r, b, effects, false, 0);
  if (shows) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tokens); i++)
    if (fl_vars_token(tokens, PyTuple_GET_ITEM(tokens, i), &var, &value)) escape(r, b, value, true, 0);
  escape(r, b, args, true, 0);
  PyObject *self = PyCFunction_Check(callable) ? PyCFunction_GET_SELF(callable)
                   : PyMethod_Check(callable)  ? PyMethod_GET_SELF(callable)
                                               : NULL;
  if (self) escape(r, b, self, true, 0);
  return true;
}

/* Makes the break of a call about to be made. False after giving up. */
static bool describe(fl_rec *r, fl_break *b, PyObject *callable, PyObject *const *args, size_t n_args, bool shows,
                     const char **why, const char **detail) {
  char text[200] = "";
  for (size_t i = 0; i < n_args; i++)
    if ((*detail = shows ? own_instance(r, args[i], 0) : own_object(r, args[i], 0)))
      return *why = "it is given an object made by the call", false;
  if (!shows && (*detail = own_object(r, callable, 0))) return *why = "it is an object made by the call", false;
  if ((*detail = own_in_vars(r))) return *why = "an object made by the call is in a context variable", false;
  r->writes = &b->writes;
  PyObject *all = fl_rec_settle_writes(r, Py_None), *state;
  if (!all) return false;
  for (Py_ssize_t i = 1; b->writes.list.len && i < PyTuple_GET_SIZE(all); i++)
    if ((*detail = own_object(r, PyTuple_GET_ITEM(all, i), 0))) {
      Py_DECREF(all);
      return *why = "an object made by the call was kept before it", false;
    }
  fl_rec_find_witnesses(r);
  PyObject *autocast = fl_contexts_set_aside(fl_eval_here);
  bool armed = fl_guards_arm(r->guards, fl_rec_is_written, r, text, sizeof text);
  fl_autocast_set_again(autocast);
  if (!armed) {
    Py_DECREF(all);
    return fl_rec_give_up(r, "state read by the call changed during it", text), false;
  }
  state = state_tuple(r, b, all, callable, args, n_args);
  if (state) ours(r, state);
  if (b->writes.list.len && state) fl_rec_keep(r, all);
  Py_DECREF(all);
  if (r->gave_up) return Py_XDECREF(state), false;
  fl_ptrmap made = {0};
  fl_result_asker ask = fl_rec_asker(r, true);
  ask.tokens = PyTuple_GET_ITEM(state, FL_STATE_TOKENS);
  ask.modes = PyTuple_GET_ITEM(state, FL_STATE_MODES);
  ask.raised = PyTuple_GET_ITEM(state, FL_STATE_RAISED);
  if (PyTuple_GET_SIZE(ask.raised)) r->trace->handles |= PyTuple_GET_ITEM(ask.raised, 0) != Py_None;
  r->made = &made;
  *why = fl_result_make(&b->state, &r->trace->arena, state, &ask, detail);
  r->made = NULL;
  bool ok = !*why && !r->gave_up && note_escapes(r, b, state, shows);
  /* Objects made by the call that no frame holds are gone: unknown code may put others where they were. */
  if (ok) {
    fl_ptrmap_release(&r->fresh);
    r->fresh = made;
  } else
    fl_ptrmap_release(&made);
  if (*why) *why = "what a frame holds cannot be made anew";
  not_ours(r, state);
  return ok;
}

static bool may_be_written(fl_rec *r, PyObject *value) {
  bool argument = (PyList_Check(value) || PyDict_Check(value)) && fl_ptrmap_get(&r->covered, value, NULL);
  return !argument && !own_object(r, value, 0);
}

bool fl_rec_can_break(fl_rec *r) {
  const char *detail;
  fl_break b = {0};
  fl_result recipe;
  if (!r || r->gave_up || r->paused || r->effects || r->random || r->rewrites) return false;
  if (!fl_rec_may_settle(r, may_be_written)) return false;
  if (why_not_here(r) || !fl_rec_hide(r)) return false;
  bool ok = same_state(r) && fl_back_none() && fl_ptrmap_set(&r->known, fl_back_none(), 0);
  fl_rec_show(r);
  PyObject *state = ok ? state_tuple(r, &b, Py_None, Py_None, NULL, 0) : NULL;
  if (!state) return false;
  ours(r, state);
  fl_result_asker ask = fl_rec_asker(r, true);
  ask.tokens = PyTuple_GET_ITEM(state, FL_STATE_TOKENS);
  ask.modes = PyTuple_GET_ITEM(state, FL_STATE_MODES);
  ask.raised = PyTuple_GET_ITEM(state, FL_STATE_RAISED);
  ok = !fl_result_make(&recipe, &r->trace->arena, state, &ask, &detail);
  fl_result_release(&recipe);
  not_ours(r, state);
  return ok && !r->gave_up;
}

/* --- the call --- */

static fl_break *begin(fl_rec *r, PyObject *callable, PyObject *const *args, size_t n_args, bool shows,
                       const char **why, const char **detail) {
  fl_trace *t = r->trace;
  if ((*why = why_not_here(r))) return NULL;
  if (!fl_back_none() || !fl_ptrmap_set(&r->known, fl_back_none(), 0)) return *why = "out of memory", NULL;
  if (fl_dispatch_pop() < 0) return PyErr_Clear(), *why = "torch's dispatch modes were changed", NULL;
  bool same = same_state(r);
  if (fl_dispatch_push(r->mode) < 0) PyErr_Clear();
  if (!same) return *why = "torch's global state is another one than at the call's begin", NULL;
  fl_rec_look_at_results(r);
  fl_break *b = fl_arena_alloc(&t->arena, sizeof *b);
  if (!b || !FL_PUSH(&t->breaks, b)) return fl_rec_give_up(r, "out of memory", "while recording"), NULL;
  fl_rec_decide(r);
  b->at = (uint32_t)t->steps.len;
  fl_rec_end_stretch(r);
  return describe(r, b, callable, args, n_args, shows, why, detail) ? b : NULL;
}

void fl_rec_end_stretch(fl_rec *r) {
  fl_trace *t = r->trace;
  size_t n = t->breaks.len;
  /* The newest break may be the one that ends the stretch. */
  fl_break *last = n && r->guards == &t->breaks.data[n - 1]->guards ? t->breaks.data[n - 1]
                   : n > 1                                          ? t->breaks.data[n - 2]
                                                                    : NULL;
  *(last ? &last->dirty : &t->dirty) = r->effects || r->random || r->rewrites;
  r->any_effects |= r->effects;
  r->any_random |= r->random;
}

static void begin_stretch(fl_rec *r, fl_break *b) {
  for (size_t i = 0; i < r->pending.len; i++) {
    fl_pending *p = &r->pending.data[i];
    if (p->original) fl_rec_keep(r, p->original); /* known by their addresses */
    Py_DECREF(p->obj);
    Py_XDECREF(p->key);
    Py_XDECREF(p->original);
    Py_XDECREF(p->container);
  }
  r->pending.len = r->draws.len = 0;
  r->guards = &b->guards;
  r->writes = &r->trace->writes;
  r->effects = r->random = r->rewrites = false;
  r->first_storage = r->storage_head.len;
}

static bool take(fl_rec *r, fl_break *b, PyObject *result, const char *why) {
  if (!why) why = fl_back_arguments_why_not(r->trace, r->args, r->n_args, r->kwnames, r->inputs);
  if (why) return fl_rec_give_up(r, "changed by unknown code", why), false;
  bool ok = fl_rec_take_given(r, &b->back, result, (uint32_t)r->trace->breaks.len - 1, 0);
  b->recorded = Py_NewRef(result);
  return ok || (fl_rec_give_up(r, "what unknown code gave", Py_TYPE(result)->tp_name), false);
}

static bool change_modes(fl_rec *r, bool push) {
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  bool ok = (push ? fl_dispatch_push(r->mode) : fl_dispatch_pop()) == 0;
  if (!ok) fl_rec_give_up(r, "torch's dispatch modes were changed", "");
  PyErr_Restore(type, value, tb);
  return ok;
}

bool fl_rec_hide(fl_rec *r) { return r && !r->gave_up && !r->paused && change_modes(r, false); }
void fl_rec_show(fl_rec *r) { change_modes(r, true); }

bool fl_rec_leave(fl_rec *r) { return r && !r->paused && fl_dispatch_take_off(r->mode); }

void fl_rec_return(fl_rec *r) { change_modes(r, true); }

/* Outside the recording: nothing is seen of what happens. */
static PyObject *call_outside(fl_rec *r, fl_break *b, PyObject *callable, PyObject *const *args, size_t nargsf,
                              PyObject *kwnames) {
  PyObject *type, *value, *tb, *result = NULL, *tokens = fl_vars_tokens(fl_eval_here);
  fl_vars_watch vars = {0};
  if (!tokens || fl_vars_watch_begin(&vars, tokens) < 0 || fl_dispatch_pop() < 0) {
    Py_XDECREF(tokens);
    (void)fl_vars_watch_end(&vars);
    return NULL;
  }
  PyObject *modes = fl_contexts_now(fl_eval_here);
  PyErr_Clear();
  fl_eval_pause(1);
  result = PyObject_Vectorcall(callable, args, nargsf, kwnames);
  fl_eval_pause(0);
  const char *vars_why = fl_vars_watch_end(&vars);
  Py_DECREF(tokens);
  PyErr_Fetch(&type, &value, &tb);
  const char *modes_why = fl_contexts_after_break(fl_eval_here, modes);
  if (!modes_why && !same_state(r)) modes_why = "torch's global state";
  Py_XDECREF(modes);
  if (!result)
    fl_rec_give_up(r, "unknown code raised", b->detail);
  else
    take(r, b, result, vars_why ? vars_why : modes_why);
  if (!fl_eval_rehook()) fl_rec_give_up(r, "another frame hook or a tracer was set", b->detail);
  if (fl_dispatch_push(r->mode) < 0) {
    PyErr_Clear();
    fl_rec_give_up(r, "torch's dispatch modes were changed", "");
  }
  PyErr_Restore(type, value, tb);
  return result;
}

/* Copying neither keeps nor changes what it is given (but for a class's own code: own_instance). */
static bool is_copying(PyObject *callable) {
  static PyObject *functions[2];
  static const char *const names[] = {"deepcopy", "copy"};
  if (!PyFunction_Check(callable)) return false;
  for (int i = 0; i < 2; i++) {
    PyObject *module = functions[i] ? NULL : PyImport_ImportModule("copy");
    if (module) functions[i] = PyObject_GetAttrString(module, names[i]);
    Py_XDECREF(module);
    PyErr_Clear();
    if (callable == functions[i]) return true;
  }
  return false;
}

PyObject *fl_rec_opaque(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames,
                        bool shows, const char *reason, const char *detail) {
  size_t n_pos = (size_t)PyVectorcall_NARGS(nargsf), n_kw = kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0;
  const char *why = NULL, *what = NULL, *file = NULL;
  fl_rec_not_compared(r);
  if (r->gave_up || r->paused) return PyObject_Vectorcall(callable, args, nargsf, kwnames);
  shows |= is_copying(callable);
  fl_break *b = begin(r, callable, args, n_pos + n_kw, shows, &why, &what);
  if (!b || r->gave_up) {
    char text[300];
    if (strchr(detail, '(')) why = NULL; /* told before */
    snprintf(text, sizeof text, "%.140s%s%.60s%s%.60s%s", detail, why ? " (" : "", why ? why : "",
             why && what ? ": " : "", why && what ? what : "", why ? ")" : "");
    fl_rec_give_up(r, reason, text);
    return PyObject_Vectorcall(callable, args, nargsf, kwnames);
  }
  b->n_pos = n_pos;
  b->kwnames = kwnames;
  if (kwnames) fl_rec_keep(r, kwnames);
  b->reason = fl_rec_intern(r, reason);
  b->detail = fl_rec_intern(r, detail);
  if (fl_eval_user_line(&file, &b->line) == 0 && file) b->file = fl_rec_intern(r, file);
  bool ends = fl_rec_ends_at(r, b);
  if (ends) fl_rec_keep_finals(r, b);
  PyObject *result = call_outside(r, b, callable, args, nargsf, kwnames);
  begin_stretch(r, b);
  if (ends && result && !r->gave_up) fl_rec_stop(r);
  return result;
}

bool fl_rec_must_be_opaque(fl_rec *r, PyObject *callable, const char **reason, const char **detail) {
  const fl_opaque_set *s = r->opaque;
  if (r->gave_up || r->paused) return false;
  if (PyMethod_Check(callable) && PyFunction_Check(PyMethod_GET_FUNCTION(callable)))
    callable = PyMethod_GET_FUNCTION(callable);
  if (fl_eval_is_torch_compiled(callable)) {
    *reason = "torch.compile";
    *detail = PyUnicode_AsUTF8(((PyFunctionObject *)callable)->func_qualname);
    return true;
  }
  if (!s) return false;
  for (size_t i = 0; i < s->len; i++)
    if (s->data[i].callable == callable) {
      *reason = s->data[i].reason;
      *detail = s->data[i].detail;
      return true;
    }
  return false;
}
