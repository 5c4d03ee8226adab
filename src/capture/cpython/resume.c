/* Frames made anew, standing where they stood while they waited for a call's answer.
 *
 * CPython itself makes and disposes of each frame: its function is called with None for every parameter, and the one-shot
 * frame hook puts locals, operands and instruction pointer right before anything is executed. Outer frames come first, so
 * that tracebacks and sys._getframe show what they would have shown. */
#include "capture/cpython/py311.h"
#include "capture/cpython/py312.h"
#include "capture/eval_impl.h"

#include <string.h>

#if FL_CPYTHON

typedef struct resume {
  fl_cpy_state *frames;
  int n, at;
  PyObject *none, *func; /* what is called to get a frame; borrowed */
  PySendResult sent;     /* what became of the generator above */
  fl_cpy_call_fn fn;
  void *ctx;
  fl_cpy_run_fn run;
  void *run_ctx;
  bool go_on, armed;
} resume;

static _Thread_local resume *here;
static fl_frame_eval previous; /* while armed; the GIL protects it */

static PyObject *enter(PyThreadState *ts, resume *s);

#if FL_CPYTHON == 313
enum { AT_REST = 0 };
#else
enum { AT_REST = 1 }; /* a frame at rest points this far before the unit to come */
#endif

static void fill(resume *s, fl_frame *f, const fl_cpy_state *c) {
  for (int i = 0; i < c->n_locals + c->depth; i++) {
    PyObject *old = i < c->n_locals ? f->localsplus[i] : NULL;
    f->localsplus[i] = c->slots[i] == s->none ? NULL : Py_NewRef(c->slots[i]);
    Py_XDECREF(old);
  }
  f->stacktop = c->n_locals + c->depth;
}

static fl_frame *current(PyThreadState *ts);
static void set_current(PyThreadState *ts, fl_frame *f);
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below);
/* Makes the frame one that executes the call before the unit `next`. */
static void stand(fl_frame *f, int next);
/* Makes it one that goes on behind the call. */
static void step(fl_frame *f, int next);

/* A generator has ended with this value (taken). */
static PyObject *stop(PyObject *v) {
  PyObject *exc = v == Py_None ? NULL : PyObject_CallOneArg(PyExc_StopIteration, v);
  if (v == Py_None) PyErr_SetNone(PyExc_StopIteration);
  if (exc) PyErr_SetObject(PyExc_StopIteration, exc);
  Py_XDECREF(exc);
  Py_DECREF(v);
  return NULL;
}

/* Runs the frame to its end, with the call's answer (taken), or the exception where it has none. */
static PyObject *go_on(PyThreadState *ts, resume *s, fl_frame *f, int at, PyObject *v) {
  const fl_cpy_state *c = &s->frames[at];
  bool over = v && at + 1 < s->n && s->frames[at + 1].gen && s->sent == PYGEN_RETURN;
  if (v && c->wants == FL_CPY_TRUTH) {
    int truth = PyObject_IsTrue(v);
    Py_DECREF(v);
    v = truth < 0 ? NULL : Py_NewRef(truth ? Py_True : Py_False);
  }
  set_current(ts, f->previous);
  if (over && c->wants == FL_CPY_ITEM) {
    PyObject *iterator = f->localsplus[--f->stacktop];
    Py_DECREF(iterator);
    Py_DECREF(v);
    FRAME_AT(f) = _PyCode_CODE(FRAME_CODE(f)) + c->other - AT_REST;
    return s->run ? s->run(s->run_ctx, ts, f, at, 0) : fl_cpy_native(ts, f, 0);
  }
  if (over) v = stop(v);
  if (!v) return s->run ? s->run(s->run_ctx, ts, f, at, 1) : fl_cpy_native(ts, f, 1);
  f->localsplus[f->stacktop++] = v;
  if (c->wants == FL_CPY_NULL) f->localsplus[f->stacktop++] = NULL;
  step(f, c->next);
  return s->run ? s->run(s->run_ctx, ts, f, at, 0) : fl_cpy_native(ts, f, 0);
}

static bool is_ours(const resume *s, fl_frame *f) {
  PyObject *gen = s->frames[s->at].gen;
  return gen ? fl_cpy_frame_generator(f) == gen : fl_cpy_func(f) == s->func;
}

static PyObject *hook(PyThreadState *ts, fl_frame *f, int throwflag) {
  resume *s = here;
  if (!s || !s->armed || throwflag || !is_ours(s, f))
    return previous ? previous(ts, f, throwflag) : fl_cpy_native(ts, f, throwflag);
  int at = s->at;
  fl_cpy_state *c = &s->frames[at];
  fl_frame *below = current(ts);
  c->frame = f;
  s->armed = false;
  fl_cpy_set_hook(ts, previous);
  while (c->gen && f->stacktop > c->n_locals) { /* what was sent */
    PyObject *sent = f->localsplus[--f->stacktop];
    Py_XDECREF(sent);
  }
  fill(s, f, c);
  stand(f, c->next);
  link_frame(ts, f, below);
  if (c->named) (void)PyEval_GetFrame(); /* makes it */
  PyObject *v;
  if (s->at + 1 < s->n) {
    s->at++;
    v = enter(ts, s);
  } else {
    v = s->fn(s->ctx, &s->go_on);
  }
  if (s->go_on) return go_on(ts, s, f, at, v);
  set_current(ts, below);
  return fl_cpy_leave(ts, f, v);
}

/* The frame's function; one like it where it was given other code meanwhile. New reference. */
static PyObject *function_of(const fl_cpy_state *c) {
  PyFunctionObject *f = (PyFunctionObject *)c->func;
  if (f->func_code == (PyObject *)c->code) return Py_NewRef(c->func);
  PyObject *made = PyFunction_NewWithQualName((PyObject *)c->code, f->func_globals, f->func_qualname);
  if (made) Py_XSETREF(((PyFunctionObject *)made)->func_closure, Py_XNewRef(f->func_closure));
  return made;
}

/* Calls it with None for every parameter. */
static PyObject *call_with_none(PyObject *func, PyCodeObject *code) {
  int npos = code->co_argcount, nkw = code->co_kwonlyargcount;
  PyObject *small[32], **args = small, *names = NULL, *kwnames = NULL, *v = NULL;
  if (npos + nkw > 32 && !(args = PyMem_Malloc((size_t)(npos + nkw) * sizeof *args))) return PyErr_NoMemory();
  for (int i = 0; i < npos + nkw; i++) args[i] = Py_None;
  if (nkw && (names = PyCode_GetVarnames(code))) kwnames = PyTuple_GetSlice(names, npos, npos + nkw);
  if (!nkw || kwnames) v = PyObject_Vectorcall(func, args, (size_t)npos, kwnames);
  Py_XDECREF(names);
  Py_XDECREF(kwnames);
  if (args != small) PyMem_Free(args);
  return v;
}

static PyObject *enter(PyThreadState *ts, resume *s) {
  PyObject *func = function_of(&s->frames[s->at]);
  if (!func) return NULL;
  resume *outer = here;
  here = s;
  s->armed = true;
  s->func = func;
  previous = fl_cpy_get_hook(ts);
  fl_cpy_set_hook(ts, hook);
  PyObject *gen = Py_XNewRef(s->frames[s->at].gen), *v = NULL;
  PySendResult sent = PYGEN_NEXT;
  if (gen)
    sent = PyIter_Send(gen, Py_None, &v);
  else
    v = call_with_none(func, s->frames[s->at].code);
  if (s->armed) fl_cpy_set_hook(ts, previous); /* no frame was made */
  s->armed = false;
  here = outer;
  s->sent = sent;
  Py_XDECREF(gen);
  Py_DECREF(func);
  return v;
}

PyObject *fl_cpy_resume(PyThreadState *ts, fl_cpy_state *frames, int n, PyObject *none, fl_cpy_call_fn fn, void *ctx,
                        fl_cpy_run_fn run, void *run_ctx, bool *went_on) {
  resume s = {.frames = frames, .n = n, .none = none, .fn = fn, .ctx = ctx, .run = run, .run_ctx = run_ctx};
  PyObject *v = enter(ts, &s);
  *went_on = s.go_on || !v;
  return v;
}

/* --- generators --- */

/* One that is let go of is closed: nothing of the program may run then. From 3.12 on handlers of CPython's own are around
 * each generator, which turn StopIteration into another error or into a `yield from`'s value, and let others pass. */
static bool closes_quietly(PyCodeObject *code, int at) {
  int level, target;
  bool lasti;
#if FL_CPYTHON == 311
  return !fl_exc_handler(code, at, &level, &target, &lasti);
#else
  for (int depth = 0; depth < 32 && fl_exc_handler(code, at, &level, &target, &lasti); depth++) {
    const _Py_CODEUNIT *u = _PyCode_CODE(code) + target;
    if (u->op.code == CALL_INTRINSIC_1) return u->op.arg == INTRINSIC_STOPITERATION_ERROR;
    if (u->op.code != CLEANUP_THROW) return false;
    at = target;
  }
  return true;
#endif
}

bool fl_cpy_generator_read(PyObject *gen, fl_cpy_generator *out) {
  if (!PyGen_CheckExact(gen)) return false;
  PyGenObject *g = (PyGenObject *)gen;
  PyObject *handled = g->gi_exc_state.exc_value;
  if (g->gi_frame_state >= FRAME_EXECUTING || (handled && handled != Py_None)) return false;
  fl_frame *f = (fl_frame *)g->gi_iframe;
  PyCodeObject *code = FRAME_CODE(f);
  PyObject *func = (PyObject *)FRAME_FUNC(f);
  if (!func || !PyFunction_Check(func) || (PyCodeObject *)PyFunction_GET_CODE(func) != code) return false;
  int at = (int)(FRAME_AT(f) - _PyCode_CODE(code));
  *out = (fl_cpy_generator){func, code, f->localsplus, f->stacktop, at, g->gi_frame_state};
  return closes_quietly(code, at) && (at == 0 || closes_quietly(code, at - 1)); /* 3.13's place is the next unit */
}

PyObject *fl_cpy_generator_make(const fl_cpy_generator *g, PyObject *none) {
  PyObject *gen = fl_cpy_generator_new(g->func, g->code);
  if (!gen) return NULL;
  fl_frame *f = (fl_frame *)((PyGenObject *)gen)->gi_iframe;
  for (int i = 0; i < g->n; i++) {
    PyObject *old = i < f->stacktop ? f->localsplus[i] : NULL;
    f->localsplus[i] = g->slots[i] == none ? NULL : Py_NewRef(g->slots[i]);
    if (i >= f->stacktop) f->stacktop = i + 1;
    Py_XDECREF(old);
  }
  FRAME_AT(f) = _PyCode_CODE(g->code) + g->at;
  ((PyGenObject *)gen)->gi_frame_state = (int8_t)g->state;
  return gen;
}

PyObject *fl_cpy_generator_new(PyObject *func, PyCodeObject *code) {
  PyObject *gen = call_with_none(func, code);
  if (!gen || (PyGen_CheckExact(gen) && FRAME_CODE((fl_frame *)((PyGenObject *)gen)->gi_iframe) == code)) return gen;
  Py_DECREF(gen);
  return PyErr_Format(PyExc_SystemError, "framelift: a generator cannot be made again");
}

PyObject *fl_cpy_frame_generator(fl_frame *f) {
  return f->owner == FRAME_OWNED_BY_GENERATOR ? (PyObject *)_PyFrame_GetGenerator(f) : NULL;
}

PyObject *fl_cpy_frame_object(fl_frame *f) { return (PyObject *)f->frame_obj; }

PyObject *fl_cpy_handled(PyThreadState *ts) {
  PyObject *exc = ts->exc_info->exc_value;
  return exc == Py_None ? NULL : exc; /* what an except clause leaves behind where there was none before */
}

#if FL_CPYTHON == 311
static fl_frame *current(PyThreadState *ts) { return ts->cframe->current_frame; }
static void set_current(PyThreadState *ts, fl_frame *f) { ts->cframe->current_frame = f; }
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below) {
  f->previous = below;
  f->is_entry = true;
  ts->cframe->current_frame = f;
}
#else
static fl_frame *current(PyThreadState *ts) { return FRAME_TOP(ts); }
static void set_current(PyThreadState *ts, fl_frame *f) { FRAME_TOP(ts) = f; }
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below) {
  f->previous = below;
  FRAME_TOP(ts) = f;
}
#endif

/* The last unit of the call, a cache or the instruction itself, is what the frame executes; up to 3.12 that is also what a
 * frame between the call and the next instruction points at. */
static void stand(fl_frame *f, int next) { FRAME_AT(f) = _PyCode_CODE(FRAME_CODE(f)) + next - 1; }
#if FL_CPYTHON == 313
static void step(fl_frame *f, int next) { FRAME_AT(f) = _PyCode_CODE(FRAME_CODE(f)) + next; }
#else
static void step(fl_frame *f, int next) {}
#endif

int fl_cpy_compares_next(PyCodeObject *code, int next) {
  PyObject *bytes = PyCode_GetCode(code); /* without what was specialised or instrumented */
  int n = bytes ? (int)PyBytes_GET_SIZE(bytes) / 2 : 0;
  const unsigned char *units = bytes ? (const unsigned char *)PyBytes_AS_STRING(bytes) : NULL;
  bool loads = next < n && (units[2 * next] == LOAD_FAST || units[2 * next] == LOAD_CONST);
  next += loads;
  bool compares = next < n && units[2 * next] == COMPARE_OP;
  Py_XDECREF(bytes);
  if (!bytes) PyErr_Clear();
  return compares ? loads ? 1 : 2 : 0;
}

bool fl_cpy_stores_next(PyCodeObject *code, int next) {
  PyObject *bytes = PyCode_GetCode(code);
  bool within = bytes && next < (int)PyBytes_GET_SIZE(bytes) / 2;
  int op = within ? (unsigned char)PyBytes_AS_STRING(bytes)[2 * next] : -1;
  Py_XDECREF(bytes);
  if (!bytes) PyErr_Clear();
#if FL_CPYTHON == 313
  if (op == STORE_FAST_LOAD_FAST || op == STORE_FAST_STORE_FAST) return true;
#endif
  return op == STORE_FAST || op == POP_TOP;
}

#if FL_CPYTHON == 311
PyObject *fl_cpy_leave(PyThreadState *ts, fl_frame *f, PyObject *result) { return result; } /* the caller clears it */
#elif FL_CPYTHON == 313
PyObject *fl_cpy_leave(PyThreadState *ts, fl_frame *f, PyObject *result) {
  _PyEval_FrameClearAndPop(ts, f);
  return result;
}
#else
/* Some instruction of the code that returns, or -1: all of its ways raise. */
static int a_return(PyCodeObject *code, int *out_opcode) {
  PyObject *bytes = PyCode_GetCode(code); /* without what was specialised or instrumented */
  int n = bytes ? (int)PyBytes_GET_SIZE(bytes) / 2 : 0, at = -1;
  const unsigned char *units = bytes ? (const unsigned char *)PyBytes_AS_STRING(bytes) : NULL;
  for (int i = code->_co_firsttraceable + 1; at < 0 && i < n; i++)
    if (units[2 * i] == RETURN_VALUE || units[2 * i] == RETURN_CONST) at = i, *out_opcode = units[2 * i];
  Py_XDECREF(bytes);
  if (!bytes) PyErr_Clear();
  return at;
}

/* ceval alone can dispose of it: by executing one of its returns, or else by an exception where the code begins, which no
 * handler covers and no traceback shows. */
PyObject *fl_cpy_leave(PyThreadState *ts, fl_frame *f, PyObject *result) {
  PyCodeObject *code = FRAME_CODE(f);
  int opcode = 0, at = result ? a_return(code, &opcode) : -1, n_locals = code->co_nlocalsplus;
  PyObject *returned;
  while (f->stacktop > n_locals) {
    PyObject *operand = f->localsplus[--f->stacktop];
    Py_XDECREF(operand);
  }
  if (at < 0) {
    if (result) PyErr_SetNone(PyExc_StopIteration);
    f->prev_instr = _PyCode_CODE(code) - 1;
    fl_cpy_native(ts, f, 1);
    if (result) PyErr_Clear();
    return result;
  }
  if (opcode == RETURN_VALUE) f->localsplus[f->stacktop++] = Py_NewRef(result);
  f->prev_instr = _PyCode_CODE(code) + at - 1;
  returned = fl_cpy_native(ts, f, 0);
  if (!returned) Py_CLEAR(result); /* no room on the C stack */
  Py_XDECREF(returned);
  return result;
}
#endif
#endif
