/* What the evaluator needs of CPython's private parts, one implementation per layout (py311.c; py312.c for 3.12 and 3.13).
 *
 * FL_CPYTHON is the version this build knows (311, 312, 313), or 0: then everything runs natively and fl_eval_why_not() says so.
 * Nothing outside this directory includes CPython's internal headers or tests PY_VERSION_HEX. */
#ifndef FL_CAPTURE_CPYTHON_COMPAT_H
#define FL_CAPTURE_CPYTHON_COMPAT_H

#include <Python.h>
#include <stdbool.h>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000 && !defined(PYPY_VERSION) && !defined(Py_GIL_DISABLED)
#define FL_CPYTHON (300 + (PY_VERSION_HEX >> 16 & 0xFF))
#else
#define FL_CPYTHON 0
#endif

/* Exported functions whose declarations 3.13 moved to its internal headers, or renamed. */
#if PY_VERSION_HEX >= 0x030D0000
PyAPI_FUNC(int) _PyObject_GetMethod(PyObject *obj, PyObject *name, PyObject **method);
PyAPI_FUNC(PyObject *) _Py_CheckFunctionResult(PyThreadState *ts, PyObject *callable, PyObject *res, const char *where);
PyAPI_FUNC(void) _PyTraceback_Add(const char *function, const char *file, int line);
PyAPI_FUNC(int) _PySet_Update(PyObject *set, PyObject *iterable);
PyAPI_FUNC(int) _PyDict_MergeEx(PyObject *dict, PyObject *other, int override);
#define _PyObject_LookupAttr  PyObject_GetOptionalAttr
#define _PyMethodWrapper_Type (*fl_cpy_method_wrapper())
PyTypeObject *fl_cpy_method_wrapper(void);
#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* PyWeakref_GET_OBJECT: the borrowed one is meant */
#endif

struct _PyInterpreterFrame;
typedef struct _PyInterpreterFrame fl_frame;
typedef PyObject *(*fl_frame_eval)(PyThreadState *ts, fl_frame *f, int throwflag);

/* Whether this version is known, and the sentence that says why not. */
bool fl_cpy_known(void);
const char *fl_cpy_why_not(void);

/* The frame evaluation function of the interpreter (PEP 523); NULL stands for ceval. */
fl_frame_eval fl_cpy_get_hook(PyThreadState *ts);
void fl_cpy_set_hook(PyThreadState *ts, fl_frame_eval fn);
PyObject *fl_cpy_native(PyThreadState *ts, fl_frame *f, int throwflag); /* ceval itself */

/* A tracer, profiler or monitoring tool is attached to this thread. */
bool fl_cpy_traced(PyThreadState *ts);
/* The garbage collector is running: what it calls (finalizers, gc.callbacks) is no part of the program's own flow. */
bool fl_cpy_collecting(PyThreadState *ts);

typedef enum fl_frame_kind {
  FL_FRAME_PLAIN,     /* a function, class body or module */
  FL_FRAME_MAKES_GEN, /* first entry of a generator function: makes the generator and returns it */
  FL_FRAME_GEN,       /* a generator is resumed */
  FL_FRAME_ASYNC      /* coroutines and asynchronous generators, first entry or resumed */
} fl_frame_kind;
fl_frame_kind fl_cpy_kind(fl_frame *f);
PyCodeObject *fl_cpy_code(fl_frame *f); /* borrowed */
PyObject *fl_cpy_func(fl_frame *f);     /* borrowed */
PyObject **fl_cpy_locals(fl_frame *f);  /* its fast locals */
/* Frames of this thread, innermost first; NULL at the end. Line of the instruction being executed. */
fl_frame *fl_cpy_top(PyThreadState *ts);
fl_frame *fl_cpy_below(fl_frame *f);
int fl_cpy_line(fl_frame *f);

PyObject *fl_cpy_frame_object(fl_frame *f);  /* borrowed, or NULL: none was asked for yet */
PyObject *fl_cpy_handled(PyThreadState *ts); /* the exception being handled, borrowed, or NULL */

/* What becomes of a call's answer when its frame goes on. */
typedef enum fl_cpy_wants {
  FL_CPY_ANSWER,
  FL_CPY_NULL,  /* NULL lies on it: 3.13's methods to be called */
  FL_CPY_TRUTH, /* True or False takes its place: 3.13's comparisons */
  FL_CPY_ITEM,  /* of a generator, in a loop over it, which ends where the generator does */
  FL_CPY_NEXT   /* next() of a generator: StopIteration where it ends */
} fl_cpy_wants;

/* A frame as it was while it waited for a call's answer. */
typedef struct fl_cpy_state {
  PyObject *func; /* borrowed, like the slots and the code */
  PyCodeObject *code;
  PyObject *const *slots; /* its locals, then its operand stack; `none` stands for NULL */
  PyObject *gen;          /* the generator whose frame it is, made by fl_cpy_generator_new; borrowed. NULL: none */
  int n_locals, depth, next;
  int other; /* ITEM: the code unit after the loop */
  fl_cpy_wants wants;
  bool named;      /* its frame object is wanted */
  fl_frame *frame; /* once it stands */
} fl_cpy_state;
/* The call that the innermost frame waits for: its answer (new reference, or NULL with an exception). *go_on: the frames run
 * on from there, natively; else they are left. */
typedef PyObject *(*fl_cpy_call_fn)(void *ctx, bool *go_on);
/* Runs the frame numbered `at` to its end, as ceval would. */
typedef PyObject *(*fl_cpy_run_fn)(void *ctx, PyThreadState *ts, fl_frame *f, int at, int throwflag);
/* Makes frames (outermost first) that stand as they stood, calls fn inside the innermost, and, if it says so, runs them to
 * their end by `run` (NULL: ceval): then *went_on is true and the answer is the outermost frame's. Else the answer is fn's. */
PyObject *fl_cpy_resume(PyThreadState *ts, fl_cpy_state *frames, int n, PyObject *none, fl_cpy_call_fn fn, void *ctx,
                        fl_cpy_run_fn run, void *run_ctx, bool *went_on);

/* The call's answer, put on the stack before the code unit `next`, is taken by a comparison and by nothing else: 1 with a local
 * or a constant, 2 with what lies below it. Else 0. */
int fl_cpy_compares_next(PyCodeObject *code, int next);
bool fl_cpy_stores_next(PyCodeObject *code, int next); /* it becomes a local, or is dropped */

/* A generator between two of its steps; all borrowed. */
typedef struct fl_cpy_generator {
  PyObject *func;
  PyCodeObject *code;
  PyObject *const *slots; /* locals, then operands */
  int n, at, state;       /* slots; the code unit it waits at; whether it has begun, and what it waits for */
} fl_cpy_generator;
/* False when it is none, runs now, is at its end, or has something to do when it is closed there. */
bool fl_cpy_generator_read(PyObject *gen, fl_cpy_generator *out);
/* One like it, with these slots (`none` stands for NULL). New reference, or NULL with an exception. */
PyObject *fl_cpy_generator_make(const fl_cpy_generator *g, PyObject *none);

/* One that has not begun, for a frame that is to stand. New reference, or NULL with an exception. */
PyObject *fl_cpy_generator_new(PyObject *func, PyCodeObject *code);
PyObject *fl_cpy_frame_generator(fl_frame *f); /* the generator that has this frame; borrowed, or NULL */

/* For a frame that the hook was given and that is not to run, whatever it holds: disposes of it as its version wants, and is
 * what the hook then answers: `result` (taken), or NULL with an exception. */
PyObject *fl_cpy_leave(PyThreadState *ts, fl_frame *f, PyObject *result);

/* A type's own dictionary, borrowed. From 3.12 on tp_dict of CPython's own static types is NULL. */
static inline PyObject *fl_cpy_type_dict(PyTypeObject *tp) {
#if PY_VERSION_HEX >= 0x030C0000
  PyObject *d = PyType_GetDict(tp);
  Py_XDECREF(d);
  return d;
#else
  return tp->tp_dict;
#endif
}

/* Makes every store to this dictionary change its version: in 3.13.0 those to values that lie in their object do not.
 * 0 or -1. */
int fl_cpy_watch_dict(PyObject *dict);

/* Evaluates the frame under ceval's own contract (reference ownership, who clears it). */
PyObject *fl_cpy_eval(PyThreadState *ts, fl_frame *f, int throwflag);

#endif
