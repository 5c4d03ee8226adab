/* The evaluator: runs frames of CPython bytecode in our own C, at CPython's own semantics.
 *
 * It is entered through PEP 523's hook only: CPython binds arguments and makes the real frame, the hook evaluates it in
 * place (tracebacks, sys._getframe, locals() all work) and whatever it cannot evaluate it hands to ceval, at any
 * instruction. A Python function called from evaluated code, or from C code below it, comes through the hook again.
 * Frames evaluated for a recording report to it (record.h). */
#ifndef FL_CAPTURE_EVAL_H
#define FL_CAPTURE_EVAL_H

#include <Python.h>

#include "capture/record.h"

/* Once per process. Returns 0, or -1 with ImportError set. fl_eval_supported() is false on CPython versions the
 * evaluator does not know (fl_eval_why_not() tells). */
int fl_eval_init(void);
void fl_eval_prepare(void); /* makes now what this thread's first recording would make; leaves no exception */
int fl_eval_supported(void);
const char *fl_eval_why_not(void);

/* Calls callable(*args, **kwargs) (vectorcall convention) with all Python frames of this thread evaluated by us and
 * reported to `r` (NULL: to nobody). The previous frame hook is put back before returning, whatever happens. Not
 * possible, and then simply calls natively with *out_native = 1: a profiler, tracer or debugger is attached.
 * New reference, or NULL with the program's own exception. */
PyObject *fl_eval_call(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames,
                       int *out_native);

/* While paused (on = 1, nests; on = 0 ends it) this thread's frames run natively and report nothing: for code of the
 * recorder's own that runs inside the call. */
void fl_eval_pause(int on);

/* Counters of this thread since the last reset: Python frames evaluated by us, and handed to ceval (whole or midway). */
typedef struct fl_eval_counts {
  unsigned long long evaluated, handed_over;
} fl_eval_counts;
void fl_eval_counts_get(fl_eval_counts *out, int reset);

/* The innermost evaluated frame outside torch's and the standard library's own files (falls back to the innermost):
 * *out_file is borrowed from the code object. 0, or -1 when no frame is being evaluated. */
int fl_eval_user_line(const char **out_file, int *out_line);
/* The callable, called by an evaluated frame, whose call is worth leaving to CPython as a whole when something in it cannot
 * be recorded: borrowed, or NULL. */
PyObject *fl_eval_blame(void);
/* What torch.compile returns: it gives frames to its own evaluator, also those of operators that take functions. */
bool fl_eval_is_torch_compiled(PyObject *callable);
/* The dotted path of the innermost nn.Module being called is kept by the recorder through this hook: the evaluator
 * calls it when a frame whose first argument is `self` begins and ends. May be NULL. */
typedef void (*fl_eval_frame_fn)(fl_rec *r, PyObject *code, PyObject *first_arg, int entering);
void fl_eval_on_frame(fl_eval_frame_fn fn);

#endif
