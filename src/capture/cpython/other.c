#include "capture/cpython/compat.h"

#if FL_CPYTHON == 0
bool fl_cpy_known(void) { return false; }
const char *fl_cpy_why_not(void) { return "this version of Python is not known to the evaluator"; }
fl_frame_eval fl_cpy_get_hook(PyThreadState *ts) { return NULL; }
void fl_cpy_set_hook(PyThreadState *ts, fl_frame_eval fn) {}
PyObject *fl_cpy_native(PyThreadState *ts, fl_frame *f, int throwflag) { return NULL; }
bool fl_cpy_traced(PyThreadState *ts) { return true; }
bool fl_cpy_collecting(PyThreadState *ts) { return false; }
fl_frame_kind fl_cpy_kind(fl_frame *f) { return FL_FRAME_PLAIN; }
PyCodeObject *fl_cpy_code(fl_frame *f) { return NULL; }
PyObject *fl_cpy_func(fl_frame *f) { return NULL; }
PyObject **fl_cpy_locals(fl_frame *f) { return NULL; }
fl_frame *fl_cpy_top(PyThreadState *ts) { return NULL; }
fl_frame *fl_cpy_below(fl_frame *f) { return NULL; }
int fl_cpy_line(fl_frame *f) { return 0; }
PyObject *fl_cpy_eval(PyThreadState *ts, fl_frame *f, int throwflag) { return NULL; }
PyObject *fl_cpy_handled(PyThreadState *ts) { return NULL; }
PyObject *fl_cpy_resume(PyThreadState *ts, fl_cpy_state *frames, int n, PyObject *none, fl_cpy_call_fn fn, void *ctx,
                        fl_cpy_run_fn run, void *run_ctx, bool *went_on) {
  return NULL;
}
int fl_cpy_compares_next(PyCodeObject *code, int next) { return 0; }
bool fl_cpy_stores_next(PyCodeObject *code, int next) { return false; }
bool fl_cpy_generator_read(PyObject *gen, fl_cpy_generator *out) { return false; }
PyObject *fl_cpy_generator_new(PyObject *func, PyCodeObject *code) { return NULL; }
PyObject *fl_cpy_frame_generator(fl_frame *f) { return NULL; }
PyObject *fl_cpy_frame_object(fl_frame *f) { return NULL; }
PyObject *fl_cpy_generator_make(const fl_cpy_generator *g, PyObject *none) { return NULL; }
PyObject *fl_cpy_leave(PyThreadState *ts, fl_frame *f, PyObject *result) { return result; }
int fl_cpy_watch_dict(PyObject *dict) { return 0; }
#endif
