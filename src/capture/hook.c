/* The frame hook (PEP 523): installed while some thread evaluates, and passing straight on for every other thread. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "capture/ccalls.h"
#include "capture/cpython/compat.h"
#include "capture/door.h"
#include "capture/eval_impl.h"

_Thread_local fl_eval_state *fl_eval_here;
static _Thread_local fl_eval_counts counts;
static _Thread_local char *thread_floor;
static fl_eval_frame_fn on_frame;
static int installed;          /* calls of fl_eval_call under way in all threads; the GIL protects both */
static fl_frame_eval previous; /* what to put back */
static bool ready;
static char *stdlib_dir, *torch_dir;

/* Each evaluated Python call takes some of the C stack, which plain Python calls do not: leave this much of it. */
enum { STACK_RESERVE = 768 * 1024 };

static char *find_floor(void) {
  pthread_attr_t attr;
  void *low = NULL;
  size_t size = 0;
  if (pthread_getattr_np(pthread_self(), &attr) != 0) return NULL;
  pthread_attr_getstack(&attr, &low, &size);
  pthread_attr_destroy(&attr);
  size_t reserve = size / 3 < STACK_RESERVE ? size / 3 : STACK_RESERVE;
  return low ? (char *)low + reserve : NULL;
}

void fl_eval_count_handed_over(void) { counts.handed_over++; }

static PyObject *hook(PyThreadState *ts, fl_frame *f, int throwflag);

static PyObject *run_natively(PyThreadState *ts, fl_frame *f, int throwflag, const char *why) {
  fl_eval_state *st = fl_eval_here;
  PyCodeObject *code = fl_cpy_code(f);
  if (st->r && !fl_rec_gave_up(st->r)) fl_rec_give_up(st->r, why, PyUnicode_AsUTF8(code->co_qualname));
  counts.handed_over++;
  return fl_cpy_native(ts, f, throwflag);
}

/* The C stack is nearly used up: this call and all below it run in ceval alone, which needs none of it. */
static PyObject *run_unhooked(PyThreadState *ts, fl_frame *f, int throwflag) {
  bool alone = installed == 1 + fl_door_holds() && fl_cpy_get_hook(ts) == hook;
  if (alone) fl_cpy_set_hook(ts, NULL);
  fl_eval_here->paused++;
  PyObject *res = run_natively(ts, f, throwflag, "recursion too deep");
  fl_eval_here->paused--;
  if (alone) fl_cpy_set_hook(ts, hook);
  return res;
}

PyObject *fl_eval_unhooked(PyThreadState *ts, fl_frame *f, int throwflag) {
  bool alone = installed == fl_door_holds() && fl_cpy_get_hook(ts) == hook;
  if (alone) fl_cpy_set_hook(ts, NULL);
  PyObject *res = fl_cpy_native(ts, f, throwflag);
  if (alone) fl_cpy_set_hook(ts, hook);
  return res;
}

bool fl_eval_stack_low(void) {
  char here;
  if (!thread_floor) thread_floor = find_floor();
  return &here < thread_floor;
}

bool fl_eval_is_torch_compiled(PyObject *callable) {
  static PyObject *mark;
  if (!PyFunction_Check(callable) || !((PyFunctionObject *)callable)->func_dict) return false;
  if (!mark && !(mark = PyUnicode_InternFromString("_torchdynamo_inline"))) return PyErr_Clear(), false;
  return PyDict_GetItemWithError(((PyFunctionObject *)callable)->func_dict, mark) != NULL;
}

/* It gives frames to an evaluator of its own. */
static PyObject *run_torch_compiled(PyThreadState *ts, fl_frame *f, int throwflag, fl_rec *r) {
  fl_eval_state *st = fl_eval_here;
  if (r) fl_rec_give_up(r, "torch.compile", "");
  bool left = fl_rec_leave(st->r);
  st->paused++;
  PyObject *v = fl_cpy_native(ts, f, throwflag);
  st->paused--;
  if (left) fl_rec_return(st->r);
  return v;
}

/* A function given to disable(): the program asked that nothing in it be evaluated. */
static PyObject *run_disabled(PyThreadState *ts, fl_frame *f, int throwflag) {
  fl_eval_state *st = fl_eval_here;
  PyObject *func = fl_cpy_func(f);
  const char *name = func && PyFunction_Check(func) ? PyUnicode_AsUTF8(((PyFunctionObject *)func)->func_qualname) : "?";
  if (!name) PyErr_Clear();
  if (st->r && !fl_rec_gave_up(st->r)) fl_rec_give_up(st->r, "a disabled function", name ? name : "?");
  counts.handed_over++;
  st->paused++;
  PyObject *res = fl_cpy_native(ts, f, throwflag);
  st->paused--;
  return res;
}

/* `self` of a method's frame at its entry; borrowed, or NULL. */
static PyObject *frame_self(fl_frame *f, PyCodeObject *code) {
  if (code->co_argcount == 0 || code->co_nlocalsplus == 0) return NULL;
  PyObject *name = PyTuple_GET_ITEM(code->co_localsplusnames, 0);
  return PyUnicode_CompareWithASCIIString(name, "self") == 0 ? fl_cpy_locals(f)[0] : NULL;
}

/* The dict of ** arguments was made for this frame, which begins. */
static void note_kwargs(fl_rec *r, fl_frame *f) {
  PyCodeObject *code = fl_cpy_code(f);
  int at = code->co_argcount + code->co_kwonlyargcount + !!(code->co_flags & CO_VARARGS);
  if ((code->co_flags & CO_VARKEYWORDS) && fl_cpy_locals(f)[at]) fl_tell(r, fl_rec_fresh(r, fl_cpy_locals(f)[at]));
}

static PyObject *evaluate(PyThreadState *ts, fl_frame *f, int throwflag, fl_rec *r, PyObject *entry) {
  fl_eval_state *st = fl_eval_here;
  PyCodeObject *code = fl_cpy_code(f);
  PyObject *self = NULL, *res;
  bool tell = false;
  if (r) {
    PyObject *func = fl_cpy_func(f);
    if (func) fl_tell(r, fl_rec_read_function(r, func));
    if (on_frame && (self = Py_XNewRef(frame_self(f, code)))) tell = true;
    if (fl_cpy_kind(f) == FL_FRAME_PLAIN) note_kwargs(r, f);
  }
  counts.evaluated++;
  st->frames++;
  if (tell) on_frame(r, (PyObject *)code, self, 1);
  st->entry = entry;
  res = fl_cpy_eval(ts, f, throwflag);
  st->entry = NULL;
  if (tell) on_frame(r, (PyObject *)code, self, 0);
  Py_XDECREF(self);
  st->frames--;
  return res;
}

/* A module is loaded, by importlib.import_module and the like: unreported (eval_import.c). */
static PyObject *run_import(PyThreadState *ts, fl_frame *f, int throwflag, fl_rec *r) {
  PyObject *name = Py_XNewRef(fl_cpy_locals(f)[0]), *modules = PyImport_GetModuleDict();
  fl_eval_here->r = NULL;
  PyObject *v = fl_cpy_native(ts, f, throwflag);
  fl_eval_here->r = r;
  if (v && name && PyUnicode_CheckExact(name)) {
    fl_tell(r, fl_rec_read_item(r, modules, name, PyDict_GetItemWithError(modules, name)));
    PyErr_Clear();
  }
  Py_XDECREF(name);
  return v;
}

static PyObject *hook(PyThreadState *ts, fl_frame *f, int throwflag) {
  fl_eval_state *st = fl_eval_here;
  char here;
  if (!st) return fl_door_frame(ts, f, throwflag);
  if (st->paused) return fl_cpy_native(ts, f, throwflag);
  if (fl_cpy_traced(ts)) return run_natively(ts, f, throwflag, "profiler or debugger");
  if (&here < st->stack_floor) return run_unhooked(ts, f, throwflag);
  if (fl_door_is_disabled(fl_cpy_code(f))) return run_disabled(ts, f, throwflag);
  fl_rec *r = st->r && !fl_rec_gave_up(st->r) ? st->r : NULL;
  bool hashes = st->hash && st->hash == fl_cpy_func(f);
  if (!hashes) st->hash = NULL;
  if (r && (hashes || fl_cpy_collecting(ts) || fl_ccall_is_lazy_code((PyObject *)fl_cpy_code(f)))) {
    st->paused++;
    PyObject *v = fl_cpy_native(ts, f, throwflag);
    st->paused--;
    return v;
  }
  if (fl_cpy_func(f) && fl_eval_is_torch_compiled(fl_cpy_func(f))) return run_torch_compiled(ts, f, throwflag, r);
  if (r && fl_ccall_is_import_code((PyObject *)fl_cpy_code(f))) return run_import(ts, f, throwflag, r);
  PyObject *entry = st->calling && st->calling == fl_cpy_func(f) ? st->callable : NULL;
  fl_frame_kind kind = fl_cpy_kind(f);
  bool direct = st->direct;
  PyObject *driving = st->driving;
  st->calling = st->driving = NULL;
  st->direct = st->number = false;
  if (r && !direct && st->n_modes && kind == FL_FRAME_PLAIN) fl_mode_entered(r, f);
  switch (kind) {
  case FL_FRAME_ASYNC: return run_natively(ts, f, throwflag, "async");
  case FL_FRAME_MAKES_GEN: {
    if (r && fl_cpy_func(f)) fl_tell(r, fl_rec_read_function(r, fl_cpy_func(f)));
    if (r) note_kwargs(r, f);
    PyObject *gen = fl_cpy_native(ts, f, throwflag);
    if (r && gen) fl_tell(r, fl_rec_fresh(r, gen));
    return gen;
  }
  case FL_FRAME_PLAIN:
    if (throwflag) return run_natively(ts, f, throwflag, "thrown into");
    break;
  case FL_FRAME_GEN: break;
  }
  if (kind == FL_FRAME_GEN) entry = driving && !throwflag && driving == fl_cpy_frame_generator(f) ? driving : NULL;
  return evaluate(ts, f, throwflag, r, entry);
}

static void release_hook(PyThreadState *ts) {
  if (--installed > 0) return;
  /* Another hook put over ours meanwhile stays: ours passes on, should it come back. */
  if (fl_cpy_get_hook(ts) == hook) fl_cpy_set_hook(ts, previous);
}

bool fl_eval_rehook(void) {
  PyThreadState *ts = PyThreadState_Get();
  fl_frame_eval now = fl_cpy_get_hook(ts);
  if (!now) fl_cpy_set_hook(ts, hook);
  return (!now || now == hook) && !fl_cpy_traced(ts);
}

int fl_eval_hold(bool on) {
  PyThreadState *ts = PyThreadState_Get();
  if (!on) return release_hook(ts), 0;
  fl_frame_eval now = ready ? fl_cpy_get_hook(ts) : NULL;
  if (!ready || fl_cpy_traced(ts) || (now && now != hook)) return -1;
  if (installed++ == 0) previous = NULL;
  if (now != hook) fl_cpy_set_hook(ts, hook);
  return 0;
}

void fl_eval_prepare(void) {
  if (ready && fl_ccalls_init() < 0) PyErr_Clear();
  if (!thread_floor) thread_floor = find_floor();
}

bool fl_eval_begin(fl_eval_state *st, fl_rec *r) {
  PyThreadState *ts = PyThreadState_Get();
  fl_frame_eval now = ready ? fl_cpy_get_hook(ts) : NULL;
  bool other_hook = now && now != hook;
  if (!ready || fl_cpy_traced(ts) || other_hook || (r && fl_ccalls_init() < 0)) return PyErr_Clear(), false;
  if (!thread_floor) thread_floor = find_floor();
  *st = (fl_eval_state){.outer = fl_eval_here, .r = r, .stack_floor = thread_floor, .handled = fl_cpy_handled(ts)};
  if (installed++ == 0) previous = now == hook ? NULL : now;
  if (now != hook) fl_cpy_set_hook(ts, hook);
  fl_eval_here = st;
  return true;
}

void fl_eval_end(fl_eval_state *st) {
  if (st->r) fl_contexts_end(st->r, st);
  if (st->r) fl_call_end(st->r, st);
  fl_eval_here = st->outer;
  release_hook(PyThreadState_Get());
}

PyObject *fl_eval_call(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames,
                       int *out_native) {
  fl_eval_state st;
  if (out_native) *out_native = 0;
  if (!fl_eval_begin(&st, r)) {
    if (out_native) *out_native = 1;
    return PyObject_Vectorcall(callable, args, nargsf, kwnames);
  }
  st.tail = true;
  PyObject *res = fl_call(r, callable, args, nargsf, kwnames);
  fl_eval_end(&st);
  return res;
}

/* --- frames that stand already --- */

static void tell_frame(fl_rec *r, fl_frame *f, int entering) {
  PyObject *self = r && on_frame ? frame_self(f, fl_cpy_code(f)) : NULL;
  if (self) on_frame(r, (PyObject *)fl_cpy_code(f), self, entering);
}

bool fl_eval_stand(fl_eval_standing *e, fl_rec *r, const fl_cpy_state *frames, PyObject *const *callables, int n) {
  if (!(e->frames = fl_calloc((size_t)n + 1, sizeof *e->frames))) return false;
  if (!fl_eval_begin(&e->st, r)) {
    fl_free(e->frames);
    return false;
  }
  for (int i = 0; i < n; i++) {
    const fl_cpy_state *c = &frames[i];
    e->frames[i] = (fl_eval_frame){i ? &e->frames[i - 1] : NULL,
                                   c->frame,
                                   callables[i],
                                   fl_cpy_locals(c->frame) + c->n_locals,
                                   c->depth,
                                   c->next,
                                   c->wants,
                                   c->other};
    tell_frame(r, c->frame, 1);
  }
  return e->stands = true;
}

PyObject *fl_eval_stand_run(void *ctx, PyThreadState *ts, fl_frame *f, int at, int throwflag) {
  fl_eval_standing *e = ctx;
  if (!e->stands) return fl_cpy_native(ts, f, throwflag);
  fl_eval_state *st = &e->st;
  PyObject *self = Py_XNewRef(frame_self(f, fl_cpy_code(f))), *code = Py_NewRef((PyObject *)fl_cpy_code(f)), *res;
  st->top = e->frames[at].below;
  st->tail = false;
  if (throwflag) {
    res = run_natively(ts, f, throwflag, "thrown into");
  } else {
    counts.evaluated++;
    st->frames++;
    st->entry = e->frames[at].callable;
    res = fl_cpy_eval(ts, f, 0);
    st->entry = NULL;
    st->frames--;
  }
  if (st->r && on_frame && self) on_frame(st->r, code, self, 0);
  Py_XDECREF(self);
  Py_DECREF(code);
  return res;
}

void fl_eval_stand_end(fl_eval_standing *e) {
  if (!e->stands) return;
  fl_eval_end(&e->st);
  fl_free(e->frames);
  e->stands = false;
}

void fl_eval_pause(int on) {
  if (fl_eval_here) fl_eval_here->paused += on ? 1 : -1;
}

void fl_eval_counts_get(fl_eval_counts *out, int reset) {
  *out = counts;
  if (reset) counts = (fl_eval_counts){0};
}

void fl_eval_on_frame(fl_eval_frame_fn fn) { on_frame = fn; }

int fl_eval_supported(void) { return fl_cpy_known(); }
const char *fl_eval_why_not(void) { return fl_cpy_why_not(); }

/* New string with the directory of a module's file, or NULL. */
static char *module_dir(const char *name) {
  PyObject *module = PyImport_ImportModule(name);
  PyObject *file = module ? PyModule_GetFilenameObject(module) : NULL;
  const char *path = file ? PyUnicode_AsUTF8(file) : NULL, *slash = path ? strrchr(path, '/') : NULL;
  char *dir = slash ? strndup(path, (size_t)(slash + 1 - path)) : NULL;
  Py_XDECREF(file);
  Py_XDECREF(module);
  PyErr_Clear();
  return dir;
}

static bool is_library_file(const char *file) {
  if (file[0] == '<') return strncmp(file, "<frozen", 7) == 0;
  if (torch_dir && strncmp(file, torch_dir, strlen(torch_dir)) == 0) return true;
  return stdlib_dir && strncmp(file, stdlib_dir, strlen(stdlib_dir)) == 0 && !strstr(file, "/site-packages/");
}

bool fl_eval_is_library(const char *file) {
  if (!torch_dir && PyDict_GetItemString(PyImport_GetModuleDict(), "torch")) torch_dir = module_dir("torch");
  return is_library_file(file);
}

int fl_eval_user_line(const char **out_file, int *out_line) {
  if (!fl_eval_here || fl_eval_here->frames == 0) return -1;
  if (!torch_dir && PyDict_GetItemString(PyImport_GetModuleDict(), "torch")) torch_dir = module_dir("torch");
  fl_frame *top = fl_cpy_top(PyThreadState_Get()), *user = top;
  while (user) {
    const char *file = PyUnicode_AsUTF8(fl_cpy_code(user)->co_filename);
    if (file && !is_library_file(file)) break;
    user = fl_cpy_below(user);
  }
  if (!user) user = top;
  if (!user) return -1;
  *out_file = PyUnicode_AsUTF8(fl_cpy_code(user)->co_filename);
  *out_line = fl_cpy_line(user);
  return *out_file ? 0 : -1;
}

static bool is_library_frame(const fl_eval_frame *e) {
  const char *file = PyUnicode_AsUTF8(fl_cpy_code(e->f)->co_filename);
  return file && fl_eval_is_library(file);
}

/* The outermost call into a library from the program's own code that this lies in; without such code, the innermost call of an
 * object: functions of a library may be everything's. */
PyObject *fl_eval_blame(void) {
  PyObject *best = NULL, *object = NULL;
  fl_eval_frame *e = fl_eval_here ? fl_eval_here->top : NULL;
  for (; e && e->below; e = e->below) {
    bool library = is_library_frame(e), usable = e->callable && !PyGen_CheckExact(e->callable) && e->below->depth >= 0;
    if (!library && best) return best;
    if (usable) best = e->callable;
    if (usable && !object && !PyFunction_Check(best)) object = best;
    if (!library && best) return best;
  }
  return e && !is_library_frame(e) ? best : object;
}

int fl_eval_init(void) {
  if (ready || !fl_cpy_known()) return 0;
  if (fl_names_init() < 0 || fl_attr_init() < 0 || fl_call_init() < 0) {
    if (!PyErr_ExceptionMatches(PyExc_ImportError))
      PyErr_SetString(PyExc_ImportError, "framelift: the bytecode evaluator cannot be set up");
    return -1;
  }
  stdlib_dir = module_dir("os");
  ready = true;
  return 0;
}
