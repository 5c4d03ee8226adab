/* CPython 3.12 and 3.13: what a frame looks like. */
#include "capture/cpython/py312.h"

#if FL_CPYTHON == 312 || FL_CPYTHON == 313
bool fl_cpy_known(void) { return true; }
const char *fl_cpy_why_not(void) { return ""; }

fl_frame_eval fl_cpy_get_hook(PyThreadState *ts) {
  fl_frame_eval fn = _PyInterpreterState_GetEvalFrameFunc(ts->interp);
  return fn == _PyEval_EvalFrameDefault ? NULL : fn;
}
void fl_cpy_set_hook(PyThreadState *ts, fl_frame_eval fn) {
  _PyInterpreterState_SetEvalFrameFunc(ts->interp, fn ? fn : _PyEval_EvalFrameDefault);
}
PyObject *fl_cpy_native(PyThreadState *ts, fl_frame *f, int throwflag) {
  return _PyEval_EvalFrameDefault(ts, f, throwflag);
}

bool fl_cpy_traced(PyThreadState *ts) {
  if (ts->c_tracefunc || ts->c_profilefunc) return true;
  /* Tools of sys.monitoring; those of a single code object show as instructions the loop does not know. */
  for (int i = 0; i < _PY_MONITORING_UNGROUPED_EVENTS; i++)
    if (ts->interp->monitors.tools[i]) return true;
  return false;
}

bool fl_cpy_collecting(PyThreadState *ts) { return ts->interp->gc.collecting; }

fl_frame_kind fl_cpy_kind(fl_frame *f) {
  int flags = FRAME_CODE(f)->co_flags;
  if (flags & (CO_COROUTINE | CO_ASYNC_GENERATOR)) return FL_FRAME_ASYNC;
  if (f->owner == FRAME_OWNED_BY_GENERATOR) return FL_FRAME_GEN;
  return flags & CO_GENERATOR ? FL_FRAME_MAKES_GEN : FL_FRAME_PLAIN;
}

/* Entries of ceval itself are on the chain too, without code of the program. */
static fl_frame *real(fl_frame *f) {
  while (f && f->owner == FRAME_OWNED_BY_CSTACK) f = f->previous;
  return f;
}

#if FL_CPYTHON == 313
PyTypeObject *fl_cpy_method_wrapper(void) {
  static PyTypeObject *type; /* of CPython itself: lives as long as the interpreter */
  if (type) return type;
  PyObject *wrapper = PyObject_GetAttrString(Py_None, "__str__");
  if (!wrapper) {
    PyErr_Clear();
    return &PyWrapperDescr_Type;
  }
  type = Py_TYPE(wrapper);
  Py_DECREF(wrapper);
  return type;
}
#endif

int fl_cpy_watch_dict(PyObject *dict) {
  if (Py_Version >= 0x030D0000 && Py_Version < 0x030D0100 && ((PyDictObject *)dict)->ma_values) {
    /* A key that is no string takes the values out of the object, for good. */
    if (PyDict_SetItem(dict, Py_None, Py_None) < 0) return -1;
    return PyDict_DelItem(dict, Py_None);
  }
  return 0;
}

PyCodeObject *fl_cpy_code(fl_frame *f) { return FRAME_CODE(f); }
PyObject *fl_cpy_func(fl_frame *f) { return f->f_funcobj; }
PyObject **fl_cpy_locals(fl_frame *f) { return f->localsplus; }
fl_frame *fl_cpy_top(PyThreadState *ts) { return real(FRAME_TOP(ts)); }
fl_frame *fl_cpy_below(fl_frame *f) { return real(f->previous); }
int fl_cpy_line(fl_frame *f) {
  return PyCode_Addr2Line(FRAME_CODE(f), _PyInterpreterFrame_LASTI(f) * (int)sizeof(_Py_CODEUNIT));
}
#endif
