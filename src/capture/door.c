#include "capture/door.h"

#include "base/alloc.h"
#include "capture/eval.h"
#include "capture/eval_impl.h"
#include "capture/interop.h"

static _Thread_local PyObject *handler;
static _Thread_local int busy; /* > 0: frames run natively */
static PyObject *disabled_code, *module_call_code;

void fl_door_setup(PyObject *disabled, PyObject *module_call) {
  Py_XSETREF(disabled_code, Py_NewRef(disabled));
  Py_XSETREF(module_call_code, Py_NewRef(module_call));
}

bool fl_door_is_disabled(PyCodeObject *code) { return (PyObject *)code == disabled_code; }

int fl_door_holds(void) { return handler != NULL; }

PyObject *fl_door_set(PyObject *next) {
  PyObject *before = handler;
  if (next == Py_None) next = NULL;
  if (next && !before && fl_eval_hold(true) < 0) {
    PyErr_SetString(PyExc_RuntimeError,
                    "optimize: another frame evaluation hook, or a profiler or debugger, is attached");
    return NULL;
  }
  if (!next && before) fl_eval_hold(false);
  handler = Py_XNewRef(next);
  return before ? before : Py_NewRef(Py_None);
}

/* --- a frame as a call --- */

static bool has_tensor(PyObject *const *items, Py_ssize_t n, int depth) {
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *o = items[i], *k, *v;
    Py_ssize_t pos = 0;
    if (!o) continue;
    if (fl_tensor_check(o)) return true;
    if (depth >= 3) continue;
    if (PyTuple_CheckExact(o) || PyList_CheckExact(o)) {
      if (has_tensor(PySequence_Fast_ITEMS(o), PySequence_Fast_GET_SIZE(o), depth + 1)) return true;
    } else {
      while (PyDict_CheckExact(o) && PyDict_Next(o, &pos, &k, &v))
        if (has_tensor(&v, 1, depth + 1)) return true;
    }
  }
  return false;
}

/* The arguments lie in the first locals: positional ones, keyword-only ones, the * tuple, the ** dict. */
typedef struct layout {
  int n_pos, n_kwonly;
  PyObject *rest, *kwargs; /* borrowed, or NULL */
  int total;
} layout;

static layout layout_of(PyCodeObject *code, PyObject **locals) {
  layout l = {.n_pos = code->co_argcount, .n_kwonly = code->co_kwonlyargcount};
  l.total = l.n_pos + l.n_kwonly;
  if (code->co_flags & CO_VARARGS) l.rest = locals[l.total++];
  if (code->co_flags & CO_VARKEYWORDS) l.kwargs = locals[l.total++];
  return l;
}

static PyObject *keywords(PyCodeObject *code, PyObject **locals, const layout *l) {
  PyObject *kw = l->kwargs ? PyDict_Copy(l->kwargs) : PyDict_New();
  for (int i = 0; kw && i < l->n_kwonly; i++)
    if (PyDict_SetItem(kw, PyTuple_GET_ITEM(code->co_localsplusnames, l->n_pos + i), locals[l->n_pos + i]) < 0)
      Py_CLEAR(kw);
  return kw;
}

/* Calls `target` with the frame's arguments from the one numbered `skip` on. */
static PyObject *call(PyObject *target, PyCodeObject *code, PyObject **locals, int skip) {
  layout l = layout_of(code, locals);
  Py_ssize_t more = l.rest ? PyTuple_GET_SIZE(l.rest) : 0, at = 0;
  PyObject *args = PyTuple_New(l.n_pos - skip + more), *kw = args ? keywords(code, locals, &l) : NULL, *out = NULL;
  for (int i = skip; kw && i < l.n_pos; i++) PyTuple_SET_ITEM(args, at++, Py_NewRef(locals[i]));
  for (Py_ssize_t i = 0; kw && i < more; i++) PyTuple_SET_ITEM(args, at++, Py_NewRef(PyTuple_GET_ITEM(l.rest, i)));
  if (kw) out = PyObject_Call(target, args, kw);
  Py_XDECREF(args);
  Py_XDECREF(kw);
  return out;
}

static bool arguments_bound(PyCodeObject *code, PyObject **locals) {
  int n = layout_of(code, locals).total;
  for (int i = 0; i < n; i++)
    if (!locals[i]) return false;
  return true;
}

/* What the handler is asked about: a function or a module, borrowed; NULL when this frame is not for it. */
static PyObject *subject(fl_frame *f, PyCodeObject *code, int *out_skip) {
  PyObject **locals = fl_cpy_locals(f);
  const char *file = PyUnicode_AsUTF8(code->co_filename);
  bool module = (PyObject *)code == module_call_code;
  if (!file) PyErr_Clear();
  if (!file || (!module && fl_eval_is_library(file))) return NULL;
  if ((code->co_flags & (CO_OPTIMIZED | CO_NEWLOCALS)) != (CO_OPTIMIZED | CO_NEWLOCALS)) return NULL;
  if (!arguments_bound(code, locals) || !has_tensor(locals, layout_of(code, locals).total, 0)) return NULL;
  *out_skip = module;
  return module ? locals[0] : fl_cpy_func(f);
}

PyObject *fl_door_frame(PyThreadState *ts, fl_frame *f, int throwflag) {
  PyCodeObject *code = fl_cpy_code(f);
  int skip = 0;
  if (!handler) return fl_cpy_native(ts, f, throwflag);
  if (fl_eval_stack_low()) return fl_eval_unhooked(ts, f, throwflag);
  bool disabled = fl_door_is_disabled(code);
  if (busy || disabled || throwflag || fl_cpy_traced(ts) || fl_cpy_kind(f) != FL_FRAME_PLAIN) {
    busy += disabled;
    PyObject *out = fl_cpy_native(ts, f, throwflag);
    busy -= disabled;
    return out;
  }
  PyObject *about = subject(f, code, &skip), *asked = about ? Py_NewRef(handler) : NULL, *target = NULL, *out = NULL;
  busy++;
  int grad = about ? fl_grad_enabled() : 1;
  if (grad == 0) target = PyObject_CallOneArg(asked, about);
  if (target && target != Py_None) out = call(target, code, fl_cpy_locals(f), skip);
  busy--;
  bool native = grad > 0 || target == Py_None;
  Py_XDECREF(asked);
  Py_XDECREF(target);
  return native ? fl_cpy_native(ts, f, throwflag) : fl_cpy_leave(ts, f, out);
}
