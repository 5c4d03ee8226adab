/* What is known about C callables (ccalls.def), by identity: a C function is found by its PyMethodDef, a slot wrapper by its
 * descriptor, a getset or member by its definition, a type by itself. */
#ifndef FL_CAPTURE_CCALLS_H
#define FL_CAPTURE_CCALLS_H

#include <Python.h>
#include <stdbool.h>

#include "capture/record.h"

typedef enum fl_cc {
  FL_CC_UNKNOWN,     /* gives the recording up */
  FL_CC_PURE,        /* depends on its arguments and their contents alone */
  FL_CC_PLAIN,       /* depends on which objects its arguments are, or on nothing */
  FL_CC_ID,          /* tells which object its argument is */
  FL_CC_ABC,         /* asks an abstract class about an object */
  FL_CC_QUERY,       /* reads state: asked again on a replay */
  FL_CC_STATEQ,      /* reads torch state that the recorder guards at entry, and that the call itself may change */
  FL_CC_MODES,       /* tells of dispatch modes: the recorder's own is not to be seen */
  FL_CC_STATE,       /* changes that state */
  FL_CC_MODE_PUSH,   /* from here on an object in Python is asked about each operator */
  FL_CC_CONTEXT,     /* changes inference mode or autocast: modes.h */
  FL_CC_MUTATES,     /* changes its first argument, after looking into the others */
  FL_CC_STORES,      /* changes its first argument, keeping the others as they are */
  FL_CC_TORCH,       /* reaches PyTorch's dispatcher, or tells a tensor's metadata */
  FL_CC_READS,       /* the same, but looks into the integer tensors after its first argument by itself */
  FL_CC_ELEMENTS,    /* gives out a tensor's elements as Python objects */
  FL_CC_FLAGS,       /* changes what a tensor is for autograd */
  FL_CC_LEAK,        /* gives out a tensor's data */
  FL_CC_SHOWS,       /* unknown, but it neither keeps nor changes what it is given: output, clocks */
  FL_CC_DRAWS,       /* the same, but all it does is to draw a number from a generator */
  FL_CC_LOCK,        /* takes or releases a lock */
  FL_CC_STATE_OTHER, /* changes torch state that cannot be compared */
  FL_CC_TYPE,        /* a type in C whose construction and slots are pure */
  FL_CC_TENSOR,      /* a type of tensors */
  FL_CC_OPAQUE,      /* a type in C whose instances are only passed around */
  /* those the evaluator does itself, step by step */
  FL_CC_GETATTR,
  FL_CC_HASATTR,
  FL_CC_SETATTR,
  FL_CC_DELATTR,
  FL_CC_OBJ_GETATTR,
  FL_CC_OBJ_SETATTR,
  FL_CC_OBJ_DELATTR,
  FL_CC_TYPE_GETATTR,
  FL_CC_MODULE_GETATTR,
  FL_CC_DESCR_GET, /* of an attribute in C */
  FL_CC_ISINSTANCE,
  FL_CC_ISSUBCLASS,
  FL_CC_ITER,
  FL_CC_NEXT,
  FL_CC_LEN,
  FL_CC_TYPE_CALL,
  FL_CC_TP_NEW,
  FL_CC_DICT_GET,
  FL_CC_DICT_GETITEM,
  FL_CC_DICT_CONTAINS,
  FL_CC_SETITEM,
  FL_CC_DELITEM,
  FL_CC_VARS,
  FL_CC_VAR_GET,
  FL_CC_VAR_SET,
  FL_CC_FUNCTION_APPLY /* autograd.Function.apply */
} fl_cc;

/* Once, at the first recording (the GIL is held): resolves the table. 0, or -1 with an exception. */
int fl_ccalls_init(void);

/* Class of a C callable; *self (borrowed) is what a bound one is bound to, else NULL. */
fl_cc fl_ccall_class(PyObject *callable, PyObject **self);
/* "module.name" for messages, into buf; returns buf. */
const char *fl_ccall_name(PyObject *callable, char *buf, size_t size);

/* copyreg keeps the names of a class's slots in the class when they are first asked for, as they are by each copy: does that now,
 * so that it is no effect of the program's. -1 with an exception. */
int fl_ccall_find_slots(PyTypeObject *tp);

/* Types: the nearest base that is not made by a class statement; its class; known at all; tensors. */
PyTypeObject *fl_ccall_solid(PyTypeObject *tp);
fl_cc fl_ccall_type_class(PyTypeObject *tp);
bool fl_ccall_known_type(PyTypeObject *tp);
bool fl_ccall_is_tensor(PyTypeObject *tp);
bool fl_ccall_is_python_class(PyTypeObject *tp); /* made by a class statement */
bool fl_ccall_is_cached(PyObject *obj);          /* functools.lru_cache's wrapper */
bool fl_ccall_is_torch_ops(PyTypeObject *tp);    /* torch.ops, its namespaces and operators, which fill themselves in */
bool fl_ccall_is_lazy_code(PyObject *code);      /* torch's own code of that kind; its C++ enters it too */
bool fl_ccall_is_import_code(PyObject *code); /* importlib's, called with the name of a module that is to be loaded */
bool fl_ccall_is_partial(PyObject *obj);
bool fl_ccall_is_numpy_number(PyObject *obj); /* one of numpy's scalars */

/* C code is given `callable` and may call it: gives up unless what it runs is seen or pure. */
void fl_ccall_callback(fl_rec *r, PyObject *callable);
/* The same of what a class has for a special method, which may be a callable object. */
void fl_ccall_slot(fl_rec *r, PyObject *value);
/* Gets, or is about to set, a C attribute (getset or member) of obj; false: that changes nothing. */
PyObject *fl_ccall_getset(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *type);
bool fl_ccall_setset(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value);

#endif
