/* CPython 3.11: what a frame looks like, and how to serve the requests of other threads and signals. */
#include "capture/cpython/py311.h"

#if FL_CPYTHON == 311
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
bool fl_cpy_traced(PyThreadState *ts) { return ts->c_tracefunc || ts->c_profilefunc; }
bool fl_cpy_collecting(PyThreadState *ts) { return ts->interp->gc.collecting; }

fl_frame_kind fl_cpy_kind(fl_frame *f) {
  int flags = f->f_code->co_flags;
  if (flags & (CO_COROUTINE | CO_ASYNC_GENERATOR)) return FL_FRAME_ASYNC;
  if (f->owner == FRAME_OWNED_BY_GENERATOR) return FL_FRAME_GEN;
  return flags & CO_GENERATOR ? FL_FRAME_MAKES_GEN : FL_FRAME_PLAIN;
}

PyCodeObject *fl_cpy_code(fl_frame *f) { return f->f_code; }
PyObject *fl_cpy_func(fl_frame *f) { return (PyObject *)f->f_func; }
PyObject **fl_cpy_locals(fl_frame *f) { return f->localsplus; }
fl_frame *fl_cpy_top(PyThreadState *ts) { return ts->cframe->current_frame; }
fl_frame *fl_cpy_below(fl_frame *f) { return f->previous; }
int fl_cpy_line(fl_frame *f) {
  return PyCode_Addr2Line(f->f_code, _PyInterpreterFrame_LASTI(f) * (int)sizeof(_Py_CODEUNIT));
}
int fl_cpy_watch_dict(PyObject *dict) { return 0; }
#endif
