/* Frames made anew, standing where they stood while they waited for a call's answer.
 *
 * CPython itself makes and disposes of each frame: its function is called with None for every parameter, and the one-shot
 * frame hook puts locals, operands and instruction pointer right before anything is executed. Outer frames come first, so
 * that tracebacks and sys._getframe show what they would have shown. */
#include "capture/cpython/py311.h"
#include "capture/cpython/py312.h"

#if FL_CPYTHON

typedef struct resume {
  const fl_cpy_state *frames;
  int n, at;
  PyObject *none, *func; /* what is called to get a frame; borrowed */
  fl_cpy_call_fn fn;
  void *ctx;
  bool go_on, armed;
} resume;

static _Thread_local resume *here;
static fl_frame_eval previous; /* while armed; the GIL protects it */

static PyObject *enter(PyThreadState *ts, resume *s);

static void fill(resume *s, fl_frame *f, const fl_cpy_state *c) {
  for (int i = 0; i < c->n_locals + c->depth; i++) {
    PyObject *old = i < c->n_locals ? f->localsplus[i] : NULL;
    f->localsplus[i] = c->slots[i] == s->none ? NULL : Py_NewRef(c->slots[i]);
    Py_XDECREF(old);
  }
  f->stacktop = c->n_locals + c->depth;
}

/* Gives a frame that nobody wants any more, with `result` as its answer, back to its owner. */
static PyObject *leave(PyThreadState *ts, fl_frame *f, PyObject *result);
static void stand(PyThreadState *ts, fl_frame *f, int next);
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below);
static fl_frame *current(PyThreadState *ts);
static void set_current(PyThreadState *ts, fl_frame *f);

static PyObject *hook(PyThreadState *ts, fl_frame *f, int throwflag) {
  resume *s = here;
  if (!s || !s->armed || throwflag || fl_cpy_func(f) != s->func)
    return previous ? previous(ts, f, throwflag) : fl_cpy_native(ts, f, throwflag);
  const fl_cpy_state *c = &s->frames[s->at];
  fl_frame *below = current(ts);
  s->armed = false;
  fl_cpy_set_hook(ts, previous);
  fill(s, f, c);
  stand(ts, f, c->next);
  link_frame(ts, f, below);
  PyObject *v;
  if (s->at + 1 < s->n) {
    s->at++;
    v = enter(ts, s);
  } else {
    v = s->fn(s->ctx, &s->go_on);
  }
  set_current(ts, below);
  if (!s->go_on) return leave(ts, f, v);
  if (v) f->localsplus[f->stacktop++] = v;
  return fl_cpy_native(ts, f, v == NULL);
}

/* The frame's function; one like it where it was given other code meanwhile. New reference. */
static PyObject *function_of(const fl_cpy_state *c) {
  PyFunctionObject *f = (PyFunctionObject *)c->func;
  if (f->func_code == (PyObject *)c->code) return Py_NewRef(c->func);
  PyObject *made = PyFunction_NewWithQualName((PyObject *)c->code, f->func_globals, f->func_qualname);
  if (made) Py_XSETREF(((PyFunctionObject *)made)->func_closure, Py_XNewRef(f->func_closure));
  return made;
}

static PyObject *enter(PyThreadState *ts, resume *s) {
  PyObject *func = function_of(&s->frames[s->at]);
  if (!func) return NULL;
  PyCodeObject *code = (PyCodeObject *)s->frames[s->at].code;
  int npos = code->co_argcount, nkw = code->co_kwonlyargcount;
  PyObject *small[32], **args = small, *names = NULL, *kwnames = NULL, *v = NULL;
  if (npos + nkw > 32 && !(args = PyMem_Malloc((size_t)(npos + nkw) * sizeof *args))) {
    Py_DECREF(func);
    return PyErr_NoMemory();
  }
  for (int i = 0; i < npos + nkw; i++) args[i] = Py_None;
  if (nkw && (names = PyCode_GetVarnames(code))) kwnames = PyTuple_GetSlice(names, npos, npos + nkw);
  if (!nkw || kwnames) {
    resume *outer = here;
    here = s;
    s->armed = true;
    s->func = func;
    previous = fl_cpy_get_hook(ts);
    fl_cpy_set_hook(ts, hook);
    v = PyObject_Vectorcall(func, args, (size_t)npos, kwnames);
    if (s->armed) fl_cpy_set_hook(ts, previous); /* no frame was made */
    s->armed = false;
    here = outer;
  }
  Py_XDECREF(names);
  Py_XDECREF(kwnames);
  if (args != small) PyMem_Free(args);
  Py_DECREF(func);
  return v;
}

PyObject *fl_cpy_resume(PyThreadState *ts, const fl_cpy_state *frames, int n, PyObject *none, fl_cpy_call_fn fn,
                        void *ctx, bool *went_on) {
  resume s = {.frames = frames, .n = n, .none = none, .fn = fn, .ctx = ctx};
  PyObject *v = enter(ts, &s);
  *went_on = s.go_on || !v;
  return v;
}

#if FL_CPYTHON == 311
bool fl_cpy_can_resume(void) { return true; }
PyObject *fl_cpy_handled(PyThreadState *ts) { return ts->exc_info->exc_value; }
static fl_frame *current(PyThreadState *ts) { return ts->cframe->current_frame; }
static void set_current(PyThreadState *ts, fl_frame *f) { ts->cframe->current_frame = f; }
static void stand(PyThreadState *ts, fl_frame *f, int next) { f->prev_instr = _PyCode_CODE(f->f_code) + next - 1; }
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below) {
  f->previous = below;
  f->is_entry = true;
  ts->cframe->current_frame = f;
}
static PyObject *leave(PyThreadState *ts, fl_frame *f, PyObject *result) { return result; } /* the caller clears it */
#else
bool fl_cpy_can_resume(void) { return false; }
PyObject *fl_cpy_handled(PyThreadState *ts) { return ts->exc_info->exc_value; }
static fl_frame *current(PyThreadState *ts) { return FRAME_TOP(ts); }
static void set_current(PyThreadState *ts, fl_frame *f) { FRAME_TOP(ts) = f; }
static void stand(PyThreadState *ts, fl_frame *f, int next) {
  FRAME_AT(f) = _PyCode_CODE(FRAME_CODE(f)) + next - FL_NEXT_IS;
}
static void link_frame(PyThreadState *ts, fl_frame *f, fl_frame *below) {
  f->previous = below;
  FRAME_TOP(ts) = f;
}
static PyObject *leave(PyThreadState *ts, fl_frame *f, PyObject *result) { return result; }
#endif
#endif
