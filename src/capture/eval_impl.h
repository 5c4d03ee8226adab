/* Private to the evaluator: what its files share.
 *
 * Every function takes the recording `r` first; NULL means that nothing is reported and the plain CPython call is made.
 * Reports never fail the program: running out of memory in one gives up the recording. */
#ifndef FL_CAPTURE_EVAL_IMPL_H
#define FL_CAPTURE_EVAL_IMPL_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "capture/cpython/compat.h"
#include "capture/eval.h"
#include "capture/record.h"

/* --- hook.c --- */

/* A frame under evaluation, and where it would go on if the call it is in were answered. */
typedef struct fl_eval_frame {
  struct fl_eval_frame *below;
  struct _PyInterpreterFrame *f;
  PyObject *callable; /* borrowed: what the frame below called, whose answer is this frame's; NULL: entered otherwise */
  PyObject **stack;   /* its operand stack */
  int depth;          /* operands below the answer of the call under way; -1: in no call */
  int next;           /* the code unit after that call */
  fl_cpy_wants wants; /* and what becomes of the answer there */
  int other;          /* ITEM: the code unit after the loop */
} fl_eval_frame;

enum { FL_MODES = 4 };

/* Inference modes and autocast that a call has entered (eval_contexts.c). */
typedef struct fl_contexts {
  PyObject
      *open; /* list of (autocast's state at its entry, weak reference to its guard) of inference modes, in order */
  PyObject *touched; /* dict: device whose autocast the call has set -> (device, enabled, dtype) before */
  PyObject *before;  /* autocast's state before the first change; NULL: there was none */
  bool odd;          /* not to be followed */
  unsigned on;       /* bit: the device (FL_AUTOCAST_DEVICES) for which the call has it on */
} fl_contexts;

typedef struct fl_eval_state {
  struct fl_eval_state *outer; /* of this thread; calls of fl_eval_call may nest */
  fl_rec *r;
  int paused;        /* > 0: frames run natively and report nothing */
  int frames;        /* evaluated frames alive: each holds C stack */
  char *stack_floor; /* below this address no frame is evaluated any more */
  PyObject *vars;    /* context variables set in this call and their values before it (absent: not set); NULL */
  PyObject *sets;    /* list of (variable, token) of those not reset yet, in order; NULL */
  bool odd_vars;     /* they were not reset last set first */
  unsigned long long state_changes; /* C calls that changed torch's global state so far in this call */
  fl_contexts contexts;
  int locks;                    /* held by evaluated code now */
  bool other_state;             /* state was changed that cannot be compared */
  PyObject *handled;            /* the exception being handled when the call began; borrowed */
  fl_eval_frame *top;           /* innermost evaluated frame */
  bool number;                  /* an integer is being taken out of a tensor: the answer of the call itself */
  bool tail;                    /* the call about to be made gives the answer its frame waits for */
  PyObject *calling, *callable; /* a function about to be entered, and the callable whose answer its frame gives */
  PyObject *entry;              /* the same for the frame just entered */
  PyObject *driving;            /* a generator whose next item the frame waits for; borrowed */
  bool direct;                  /* evaluated code is about to enter a function itself */
  PyObject *hash; /* __hash__ of tensors, called for a cache's key until another frame is entered; borrowed */
  PyObject *modes[FL_MODES]; /* borrowed: __torch_function__ of the function modes that were pushed, as functions */
  int n_modes;
} fl_eval_state;
/* From here on this thread's frames are evaluated and reported to `r`, until fl_eval_end. False where that is not possible. */
bool fl_eval_begin(fl_eval_state *st, fl_rec *r);
void fl_eval_end(fl_eval_state *st);

/* Frames made anew (fl_cpy_resume) that are evaluated from where they stand, with fl_eval_stand_run. */
typedef struct fl_eval_standing {
  fl_eval_state st;
  fl_eval_frame *frames;
  bool stands; /* fl_eval_stand was called and could; else ceval runs them */
} fl_eval_standing;
bool fl_eval_stand(fl_eval_standing *e, fl_rec *r, const fl_cpy_state *frames, PyObject *const *callables, int n);
PyObject *fl_eval_stand_run(void *standing, PyThreadState *ts, fl_frame *f, int at, int throwflag);
void fl_eval_stand_end(fl_eval_standing *e);
extern _Thread_local fl_eval_state *fl_eval_here; /* NULL: nothing is evaluated on this thread */
void fl_eval_count_handed_over(void);
/* Keeps the frame hook installed for this thread (door.c). 0, or -1 when another hook or a tracer is there. */
int fl_eval_hold(bool on);
bool fl_eval_is_library(const char *file); /* torch's, the standard library's, or frozen */
bool fl_eval_stack_low(void);
bool fl_eval_rehook(void); /* after foreign code: the frame hook is in its place (again). False: another one is */
/* Runs the frame, and all below it, without the hook where only this thread's door needs it. */
struct _PyInterpreterFrame;
PyObject *fl_eval_unhooked(PyThreadState *ts, struct _PyInterpreterFrame *f, int throwflag);

/* Runs a report; out of memory in it ends the recording, not the program. */
static inline void fl_tell(fl_rec *r, int rc) {
  if (rc < 0) {
    PyErr_Clear();
    fl_rec_give_up(r, "out of memory", "recording");
  }
}

/* --- names.c: interned strings --- */
/* clang-format off */
#define FL_NAMES(X) \
  X(__getattr__) X(__getattribute__) X(__setattr__) X(__delattr__) X(__get__) X(__set__) X(__delete__) X(__call__) \
  X(__new__) X(__init__) X(__iter__) X(__next__) X(__len__) X(__bool__) X(__contains__) X(__getitem__) \
  X(__setitem__) X(__delitem__) X(__class_getitem__) X(__eq__) X(__ne__) X(__lt__) X(__le__) X(__gt__) X(__ge__) \
  X(__hash__) X(__neg__) X(__pos__) X(__invert__) X(__index__) X(__float__) X(__int__) X(__str__) X(__repr__) \
  X(__format__) X(__enter__) X(__exit__) X(__name__) X(__path__) X(__spec__) X(__dict__) X(__import__) \
  X(__build_class__) X(__annotations__) X(__match_args__) X(__missing__) X(__instancecheck__) X(__subclasscheck__) \
  X(__class__) X(__module__) X(__qualname__) X(__reversed__) X(__length_hint__) X(__reduce__) X(__wrapped__) \
  X(__self__) X(__bases__) X(_op) X(name) X(get) X(func) X(args) X(keywords) X(join) X(__add__) X(__sub__) \
  X(__mul__) X(__matmul__) X(__truediv__) X(__floordiv__) X(__mod__) X(__pow__) X(__lshift__) X(__rshift__) \
  X(__and__) X(__or__) X(__xor__) X(__radd__) X(__rsub__) X(__rmul__) X(__rmatmul__) X(__rtruediv__) \
  X(__rfloordiv__) X(__rmod__) X(__rpow__) X(__rlshift__) X(__rrshift__) X(__rand__) X(__ror__) X(__rxor__) \
  X(__iadd__) X(__isub__) X(__imul__) X(__imatmul__) X(__itruediv__) X(__ifloordiv__) X(__imod__) X(__ipow__) \
  X(__ilshift__) X(__irshift__) X(__iand__) X(__ior__) X(__ixor__) X(_backward_cls) X(forward) X(setup_context) \
  X(needs_input_grad) X(requires_grad) X(__torch_function__) X(generate_vmap_rule) X(vmap) X(view_as) X(detach_) X(dirty_tensors)
/* clang-format on */
typedef struct fl_names {
#define X(n) PyObject *n;
  FL_NAMES(X)
#undef X
} fl_names;
extern fl_names fl_n;
int fl_names_init(void);

/* --- eval_attr.c --- */
int fl_attr_init(void);
/* getattr(obj, name): new reference, or NULL with the program's exception. */
PyObject *fl_attr_get(fl_rec *r, PyObject *obj, PyObject *name);
/* The same without AttributeError: 1 found, 0 absent (*out NULL, no exception), -1 another exception. */
int fl_attr_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out);
/* For LOAD_METHOD: 1 = *out is a function to be called with obj first, 0 = *out is the attribute, -1 exception. */
int fl_attr_method(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out);
/* setattr, or delattr when value is NULL. 0 or -1. */
int fl_attr_set(fl_rec *r, PyObject *obj, PyObject *name, PyObject *value);
/* object.__getattribute__ and object.__setattr__ whatever the type says. */
PyObject *fl_attr_generic_get(fl_rec *r, PyObject *obj, PyObject *name);
int fl_attr_generic_set(fl_rec *r, PyObject *obj, PyObject *name, PyObject *value);
PyObject *fl_attr_type_get(fl_rec *r, PyObject *type, PyObject *name);
PyObject *fl_attr_module_get(fl_rec *r, PyObject *module, PyObject *name); /* type.__getattribute__ */
/* `name` on the type of obj, bound (special method lookup); NULL without exception when absent. */
PyObject *fl_attr_special(fl_rec *r, PyObject *obj, PyObject *name);
/* Reports that a C slot of obj's type stood for this special method. */
void fl_attr_saw_slot(fl_rec *r, PyTypeObject *tp, PyObject *name);

/* --- eval_call.c --- */
int fl_call_init(void);
bool fl_call_is_by_class(PyTypeObject *tp); /* its objects are called by a __call__ that its classes define */
PyObject *fl_call(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames);
PyObject *fl_call_ex(fl_rec *r, PyObject *callable, PyObject *args,
                     PyObject *kwargs); /* args: tuple; kwargs: dict or NULL */
/* Calls a type's C machinery as type.__call__ does. */
PyObject *fl_call_type(fl_rec *r, PyTypeObject *type, PyObject *const *args, size_t nargsf, PyObject *kwnames);

/* --- eval_vars.c --- */
/* Around set and reset of a context variable; `arg` is its first argument, `result` what it gave or NULL. */
void fl_vars_will_change(fl_rec *r, PyObject *var);
void fl_vars_changed(fl_rec *r, PyObject *callable, PyObject *var, PyObject *arg, PyObject *result);
bool fl_vars_own(PyObject *var);                           /* it holds what the call has set it to */
const char *fl_vars_why_no_break(const fl_eval_state *st); /* NULL: those that are set can be set again at replay */
PyObject *fl_vars_tokens(const fl_eval_state *st); /* tuple of tokens of the variables that are set; new, or NULL */
/* At the end of a recorded call: context variables must be what they were. Releases what st has of them. */
void fl_call_end(fl_rec *r, fl_eval_state *st);

/* --- eval_contexts.c --- */
/* Around a C function that changes inference mode or autocast; `result` is what it gave, or NULL. */
void fl_contexts_will_change(fl_rec *r, PyObject *callable, PyObject *const *args, size_t n, bool keywords);
void fl_contexts_changed(fl_rec *r, PyObject *callable, PyObject *const *args, size_t n, PyObject *result);
/* What this function asks for is what it was when the call began. */
bool fl_contexts_untouched(PyObject *callable, PyObject *const *args, size_t n);
void fl_contexts_unrecorded(PyObject *callable); /* called, when the recording has given up */
unsigned fl_contexts_autocast_on(void);          /* contexts.on: in an operator autocast counts as off */
void fl_contexts_weight_written(void); /* of which autocast may keep a cast: the cache is not made again at replay */
const char *fl_contexts_why_no_break(const fl_eval_state *st); /* NULL: they can be entered again at replay */
/* The state is the one at the call's begin, but for the modes that the call has entered. */
struct fl_torch_state;
bool fl_contexts_account(const fl_eval_state *st, const struct fl_torch_state *now, const struct fl_torch_state *base);
PyObject *
fl_contexts_now(const fl_eval_state *st); /* autocast's state, as far as the call has changed it; new, or NULL */
/* When unknown code has returned, given fl_contexts_now of before: NULL, or what it has changed. */
const char *fl_contexts_after_break(const fl_eval_state *st, PyObject *before);
PyObject *fl_contexts_items(const fl_eval_state *st); /* the modes that stand (modes.h); new tuple, or NULL */
/* Autocast becomes what it was when the call began, for guards that ask for it, but for its nesting; what it was till then is given
 * back, to be set again and released (modes.h). NULL: nothing was to be done. */
PyObject *fl_contexts_set_aside(const fl_eval_state *st);
/* Frames stand in these. */
struct fl_modes_held;
void fl_contexts_stand(fl_rec *r, fl_eval_state *st, const struct fl_modes_held *h);
/* At the end of a recorded call: torch must be as it was. Releases what st has of them. */
void fl_contexts_end(fl_rec *r, fl_eval_state *st);

/* --- eval_given.c --- */
/* operator.<name>(args), or another function of that kind, on what unknown code gave: as an unknown call that gives the
 * answer which the frame waits for (its tail). */
PyObject *fl_call_operator(fl_rec *r, const char *name, PyObject *const *args, size_t n);
bool fl_call_is_item(PyObject *callable); /* a tensor's item */
/* The elements of all tensors of integers among args are the same on each replay; guards are added for that. */
bool fl_call_reads_known(fl_rec *r, PyObject *const *args, size_t n);
/* The integer that the call under way gives is only compared: 1 as the first of two, 2 as the second. Else 0. */
int fl_eval_only_compared(void);
bool fl_eval_draws_ahead(void);
bool fl_call_gives_float(fl_rec *r, PyObject *tensor); /* a break gives its number better than a guard on it */

/* --- eval_autograd.c --- */
/* `cls` is a class of autograd.Function's kind, and gradients are off. */
bool fl_call_is_function_class(PyObject *cls);
PyObject *fl_call_function_apply(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n); /* cls.apply(*args) */
/* `callable` is what Function.apply calls inside vmap, with a class that vmap can look into. */
bool fl_call_is_vmapped_function(fl_rec *r, PyObject *callable, PyObject *cls);
PyObject *fl_call_vmapped_function(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n);

/* --- eval_modes.c --- */
/* The program pushes this function mode: PyTorch's functions enter its __torch_function__ from now on. */
void fl_mode_pushed(fl_rec *r, PyObject *mode);
/* A frame begins that evaluated code did not enter itself: where PyTorch enters a mode, the arguments are new objects. */
void fl_mode_entered(fl_rec *r, struct _PyInterpreterFrame *f);

/* --- eval_numpy.c --- */
/* `callable` is a function of numpy's that computes a number from these, and does nothing else. */
bool fl_numpy_computes(PyObject *callable, PyObject *const *args, size_t n);
PyObject *fl_numpy_computed(fl_rec *r, PyObject *result); /* it has; gives `result` */

/* --- eval_data.c: operators on values --- */
/* What C code that gets `obj` as an argument may look at: contents of containers (nested ones too), iterators. */
void fl_data_saw(fl_rec *r, PyObject *obj);
bool fl_data_is_container(PyObject *obj); /* list, dict, set, deque ... */
void fl_data_saw_all(fl_rec *r, PyObject *const *args, size_t nargs);
PyObject *fl_data_binary(fl_rec *r, int op, PyObject *a, PyObject *b); /* op: NB_* of BINARY_OP */
PyObject *fl_data_unary(fl_rec *r, PyObject *name, unaryfunc fn, PyObject *a);
PyObject *fl_data_compare(fl_rec *r, PyObject *a, PyObject *b, int op);
int fl_data_truth(fl_rec *r, PyObject *a);
int fl_data_contains(fl_rec *r, PyObject *container, PyObject *value);
PyObject *fl_data_subscr(fl_rec *r, PyObject *container, PyObject *key);
int fl_data_store(fl_rec *r, PyObject *container, PyObject *key, PyObject *value); /* NULL deletes */
Py_ssize_t fl_data_len(fl_rec *r, PyObject *a);
PyObject *fl_data_iter(fl_rec *r, PyObject *a);
PyObject *fl_data_next(fl_rec *r, PyObject *it); /* as tp_iternext: NULL with or without StopIteration at the end */
PyObject *fl_data_convert(fl_rec *r, PyObject *value, int conversion); /* 1 str, 2 repr, 3 ascii */
PyObject *fl_data_format(fl_rec *r, PyObject *value, int conversion, PyObject *spec);
/* Writes the items so that the first is on top: top[-1] = first. 0, or -1. after < 0: no starred target. */
int fl_data_unpack(fl_rec *r, PyObject *seq, int before, int after, PyObject **top);

/* --- eval_exc.c --- */
bool fl_exc_handler(PyCodeObject *code, int offset, int *out_level, int *out_target, bool *out_lasti);
/* raise exc from cause (both taken, may be NULL). True: an exception is raised again as it was. */
bool fl_exc_raise(fl_rec *r, PyObject *exc, PyObject *cause);
int fl_exc_check_type(PyObject *right); /* of an except clause: 0 or -1 */
int fl_exc_check_star(PyObject *right);
/* except*: 0 with *match, *rest new references, or -1. */
int fl_exc_group_match(PyObject *exc, PyObject *type, PyObject **match, PyObject **rest);
void fl_exc_name(PyObject *exc_type, const char *format, PyObject *name); /* NameError and its like */
void fl_exc_unbound(PyCodeObject *code, int local);
void fl_exc_kwargs(PyObject *func, PyObject *kwargs); /* rewrites the error of merging ** arguments */

/* --- eval_match.c --- */
PyObject *fl_match_keys(fl_rec *r, PyObject *map, PyObject *keys); /* values, or None */
PyObject *fl_match_class(fl_rec *r, PyObject *subject, PyObject *type, Py_ssize_t n, PyObject *kwd); /* or NULL */

/* --- eval_import.c --- */
PyObject *fl_import_name(fl_rec *r, PyObject *builtins, PyObject *globals, PyObject *locals, PyObject *name,
                         PyObject *fromlist, PyObject *level);
/* 1 found, 0 not found (no exception), -1 */
int fl_import_from(fl_rec *r, PyObject *module, PyObject *name, PyObject **out);

#endif
