/* The opcode switch of CPython 3.11.
 *
 * Works on the real frame's own locals and operand stack, so that a frame can be given to ceval before any instruction:
 * GIVE_UP does so for whatever is rare and would only repeat ceval (its error texts included). */
#define FL_PY311_OPCODES
#include "capture/cpython/py311.h"
#include "capture/eval_impl.h"

#if FL_CPYTHON == 311

/* Signals, pending calls, other threads' wish for the GIL, exceptions sent to this thread. */
static int serve_breaker(PyThreadState *ts) {
  if (PyErr_CheckSignals() < 0 || Py_MakePendingCalls() < 0) return -1;
  if (ts->async_exc) {
    PyObject *exc = ts->async_exc;
    ts->async_exc = NULL;
    ts->interp->ceval.pending.async_exc = 0;
    PyErr_SetNone(exc);
    Py_DECREF(exc);
    return -1;
  }
  /* Taking the GIL again also recomputes the breaker. */
  PyThreadState *saved = PyEval_SaveThread();
  PyEval_RestoreThread(saved);
  return 0;
}

static bool breaker(PyThreadState *ts) { return _Py_atomic_load_relaxed(&ts->interp->ceval.eval_breaker); }

/* An item of a namespace that may be any mapping: 1 found (new reference), 0 absent, -1. */
static int namespace_get(PyObject *ns, PyObject *name, PyObject **out) {
  if (PyDict_CheckExact(ns)) {
    *out = Py_XNewRef(PyDict_GetItemWithError(ns, name));
    return *out ? 1 : PyErr_Occurred() ? -1 : 0;
  }
  *out = PyObject_GetItem(ns, name);
  if (*out) return 1;
  if (!PyErr_ExceptionMatches(PyExc_KeyError)) return -1;
  PyErr_Clear();
  return 0;
}

/* Looks a global name up, reporting what it saw. New reference or NULL with NameError. */
static PyObject *load_global(fl_rec *r, fl_frame *f, PyObject *name) {
  PyObject *v;
  int found = namespace_get(f->f_globals, name, &v);
  if (found < 0) return NULL;
  if (r) fl_tell(r, fl_rec_read_item(r, f->f_globals, name, v));
  if (found) return v;
  found = namespace_get(f->f_builtins, name, &v);
  if (found < 0) return NULL;
  if (r) fl_tell(r, fl_rec_read_item(r, f->f_builtins, name, v));
  if (found) return v;
  fl_exc_name(PyExc_NameError, "name '%.200s' is not defined", name);
  return NULL;
}

static PyObject *load_name(fl_rec *r, fl_frame *f, PyObject *name) {
  PyObject *v;
  if (!f->f_locals) return PyErr_Format(PyExc_SystemError, "no locals when loading %R", name);
  int found = namespace_get(f->f_locals, name, &v);
  if (found < 0) return NULL;
  if (r) fl_tell(r, fl_rec_read_item(r, f->f_locals, name, v));
  return found ? v : load_global(r, f, name);
}

static PyObject *load_build_class(fl_rec *r, fl_frame *f) {
  PyObject *v;
  int found = namespace_get(f->f_builtins, fl_n.__build_class__, &v);
  if (found < 0) return NULL;
  if (!found)
    PyErr_SetString(PyExc_NameError, "__build_class__ not found");
  else if (r)
    fl_tell(r, fl_rec_read_item(r, f->f_builtins, fl_n.__build_class__, v));
  return v;
}

static int setup_annotations(fl_frame *f) {
  if (!f->f_locals) {
    PyErr_SetString(PyExc_SystemError, "no locals found when setting up annotations");
    return -1;
  }
  PyObject *old, *fresh;
  int found = namespace_get(f->f_locals, fl_n.__annotations__, &old), rc;
  if (found) {
    Py_XDECREF(old);
    return found < 0 ? -1 : 0;
  }
  if (!(fresh = PyDict_New())) return -1;
  rc = PyObject_SetItem(f->f_locals, fl_n.__annotations__, fresh);
  Py_DECREF(fresh);
  return rc;
}

static PyObject *make_function(fl_rec *r, fl_frame *f, PyObject *code, int flags, PyObject ***sp_io) {
  PyObject **sp = *sp_io;
  PyFunctionObject *fn = (PyFunctionObject *)PyFunction_New(code, f->f_globals);
  if (!fn) return NULL;
  if (flags & 0x08) fn->func_closure = *--sp;
  if (flags & 0x04) fn->func_annotations = *--sp;
  if (flags & 0x02) fn->func_kwdefaults = *--sp;
  if (flags & 0x01) fn->func_defaults = *--sp;
  *sp_io = sp;
  if (r) fl_tell(r, fl_rec_fresh(r, (PyObject *)fn));
  return (PyObject *)fn;
}

static int copy_free_vars(fl_frame *f, int n) {
  PyObject *closure = f->f_func->func_closure;
  int offset = f->f_code->co_nlocalsplus - n;
  for (int i = 0; i < n; i++) f->localsplus[offset + i] = Py_NewRef(PyTuple_GET_ITEM(closure, i));
  return 0;
}

static PyObject *build_map(PyObject *const *pairs, int n) {
  PyObject *map = PyDict_New();
  for (int i = 0; map && i < n; i++)
    if (PyDict_SetItem(map, pairs[2 * i], pairs[2 * i + 1]) < 0) Py_CLEAR(map);
  return map;
}

static PyObject *build_const_key_map(PyObject *keys, PyObject *const *values, int n) {
  PyObject *map = PyDict_New();
  for (int i = 0; map && i < n; i++)
    if (PyDict_SetItem(map, PyTuple_GET_ITEM(keys, i), values[i]) < 0) Py_CLEAR(map);
  return map;
}

static PyObject *build_set(PyObject *const *items, int n) {
  PyObject *set = PySet_New(NULL);
  for (int i = 0; set && i < n; i++)
    if (PySet_Add(set, items[i]) < 0) Py_CLEAR(set);
  return set;
}

static PyObject *build_string(PyObject *const *items, int n) {
  PyObject *empty = PyUnicode_New(0, 0), *s;
  if (!empty) return NULL;
  s = _PyUnicode_JoinArray(empty, items, n);
  Py_DECREF(empty);
  return s;
}

static int list_extend(fl_rec *r, PyObject *list, PyObject *items) {
  if (r) fl_data_saw(r, items);
  PyObject *none = _PyList_Extend((PyListObject *)list, items);
  if (none) {
    Py_DECREF(none);
    return 0;
  }
  if (PyErr_ExceptionMatches(PyExc_TypeError) && !Py_TYPE(items)->tp_iter && !PySequence_Check(items)) {
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "Value after * must be an iterable, not %.200s", Py_TYPE(items)->tp_name);
  }
  return -1;
}

static int dict_update(fl_rec *r, PyObject *dict, PyObject *other) {
  if (r) fl_data_saw(r, other);
  if (PyDict_Update(dict, other) == 0) return 0;
  if (PyErr_ExceptionMatches(PyExc_AttributeError))
    PyErr_Format(PyExc_TypeError, "'%.200s' object is not a mapping", Py_TYPE(other)->tp_name);
  return -1;
}

/* The callee's positional arguments of f(*args): always a tuple. Takes `args`. */
static PyObject *star_args(PyObject *func, PyObject *args) {
  if (PyTuple_CheckExact(args)) return args;
  if (!Py_TYPE(args)->tp_iter && !PySequence_Check(args)) {
    PyErr_Clear();
    PyObject *name = _PyObject_FunctionStr(func);
    if (name) {
      PyErr_Format(PyExc_TypeError, "%U argument after * must be an iterable, not %.200s", name,
                   Py_TYPE(args)->tp_name);
      Py_DECREF(name);
    }
    Py_DECREF(args);
    return NULL;
  }
  PyObject *tuple = PySequence_Tuple(args);
  Py_DECREF(args);
  return tuple;
}

static PyObject *yield_from_iter(fl_rec *r, fl_frame *f, PyObject *obj) {
  if (PyCoro_CheckExact(obj)) {
    if (f->f_code->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE)) return Py_NewRef(obj);
    PyErr_SetString(PyExc_TypeError, "cannot 'yield from' a coroutine object in a non-coroutine generator");
    return NULL;
  }
  return PyGen_CheckExact(obj) ? Py_NewRef(obj) : fl_data_iter(r, obj);
}

static PyObject *with_exit(fl_rec *r, PyObject *exit, PyObject *value) {
  PyObject *tb = PyException_GetTraceback(value), *res;
  PyObject *args[4] = {NULL, (PyObject *)Py_TYPE(value), value, tb ? tb : Py_None};
  res = fl_call(r, exit, args + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  Py_XDECREF(tb);
  return res;
}

/* __enter__() of a context manager, and its bound __exit__ in *exit. */
static PyObject *with_enter(fl_rec *r, PyObject *manager, PyObject **exit) {
  PyObject *enter = fl_attr_special(r, manager, fl_n.__enter__), *res;
  if (!enter) {
    if (!PyErr_Occurred())
      PyErr_Format(PyExc_TypeError, "'%.200s' object does not support the context manager protocol",
                   Py_TYPE(manager)->tp_name);
    return NULL;
  }
  *exit = fl_attr_special(r, manager, fl_n.__exit__);
  if (!*exit) {
    if (!PyErr_Occurred())
      PyErr_Format(PyExc_TypeError,
                   "'%.200s' object does not support the context manager protocol (missed __exit__ method)",
                   Py_TYPE(manager)->tp_name);
    Py_DECREF(enter);
    return NULL;
  }
  res = fl_call(r, enter, NULL, 0, NULL);
  Py_DECREF(enter);
  if (!res) Py_CLEAR(*exit);
  return res;
}

/* The binary and unary operators' special methods are looked up by fl_data_*. */
#define GIVE_UP() goto give_up
#define POP()     (*--sp)
#define PUSH(v)                                                                                                        \
  do {                                                                                                                 \
    PyObject *push_ = (v);                                                                                             \
    *sp++ = push_;                                                                                                     \
  } while (0)
#define TOP()    (sp[-1])
#define SECOND() (sp[-2])
#define PEEK(n)  (sp[-(int)(n)])
#define DROP()                                                                                                         \
  do {                                                                                                                 \
    PyObject *drop_ = *--sp;                                                                                           \
    Py_DECREF(drop_);                                                                                                  \
  } while (0)
#define SET_TOP_STEAL(v)                                                                                               \
  do {                                                                                                                 \
    PyObject *old_ = sp[-1];                                                                                           \
    sp[-1] = (v);                                                                                                      \
    Py_DECREF(old_);                                                                                                   \
  } while (0)
#define NAME(i) PyTuple_GET_ITEM(code->co_names, (i))
#define FRESH(v)                                                                                                       \
  do {                                                                                                                 \
    if (r) fl_tell(r, fl_rec_fresh(r, (v)));                                                                           \
  } while (0)
#define SERVE()                                                                                                        \
  do {                                                                                                                 \
    if (breaker(ts) && serve_breaker(ts) < 0) goto error;                                                              \
  } while (0)
#define CACHES(op) (ip += _PyOpcode_Caches[op])
#define UNBOUND(i)                                                                                                     \
  do {                                                                                                                 \
    fl_exc_unbound(code, (i));                                                                                         \
    goto error;                                                                                                        \
  } while (0)

PyObject *fl_cpy_eval(PyThreadState *ts, fl_frame *f, int throwflag) {
  if (Py_EnterRecursiveCall("")) return NULL;
  _PyCFrame *cframe = ts->cframe;
  fl_frame *below = cframe->current_frame;
  PyCodeObject *code = f->f_code;
  _Py_CODEUNIT *first = _PyCode_CODE(code), *ip = f->prev_instr + 1, *start = ip;
  PyObject **locals = f->localsplus, **base = locals + code->co_nlocalsplus, **sp = locals + f->stacktop;
  PyObject *kwnames = NULL, *result = NULL;
  fl_rec *r = fl_eval_here->r;
  unsigned opcode = 0, oparg = 0;
  if (r && fl_rec_gave_up(r)) r = NULL;

  f->previous = below;
  f->is_entry = true;
  f->stacktop = -1; /* as ceval: the garbage collector does not look at a running frame's stack */
  cframe->current_frame = f;
  if (throwflag) {
    opcode = _PyOpcode_Deopt[_Py_OPCODE(ip[-1])];
    goto error;
  }

  for (;;) {
    start = ip;
    opcode = _PyOpcode_Deopt[_Py_OPCODE(*ip)];
    oparg = _Py_OPARG(*ip);
    while (opcode == EXTENDED_ARG) {
      ip++;
      opcode = _PyOpcode_Deopt[_Py_OPCODE(*ip)];
      oparg = oparg << 8 | _Py_OPARG(*ip);
    }
    f->prev_instr = ip++;

    switch (opcode) {
    case NOP:
    case PRECALL: break;
    case RESUME:
      if (oparg < 2) SERVE();
      continue;

    /* --- locals, cells, constants, the stack --- */
    case LOAD_CLOSURE:
    case LOAD_FAST: {
      PyObject *v = locals[oparg];
      if (!v) UNBOUND(oparg);
      PUSH(Py_NewRef(v));
      continue;
    }
    case LOAD_CONST: PUSH(Py_NewRef(PyTuple_GET_ITEM(code->co_consts, oparg))); continue;
    case STORE_FAST: {
      PyObject *old = locals[oparg];
      locals[oparg] = POP();
      Py_XDECREF(old);
      continue;
    }
    case DELETE_FAST: {
      PyObject *old = locals[oparg];
      if (!old) UNBOUND(oparg);
      locals[oparg] = NULL;
      Py_DECREF(old);
      continue;
    }
    case MAKE_CELL: {
      PyObject *cell = PyCell_New(locals[oparg]);
      if (!cell) goto error;
      Py_XSETREF(locals[oparg], cell);
      FRESH(cell);
      continue;
    }
    case COPY_FREE_VARS: copy_free_vars(f, (int)oparg); continue;
    case LOAD_DEREF: {
      PyObject *v = PyCell_GET(locals[oparg]);
      if (!v) UNBOUND(oparg);
      if (r) fl_tell(r, fl_rec_read_cell(r, locals[oparg], v));
      PUSH(Py_NewRef(v));
      continue;
    }
    case LOAD_CLASSDEREF: {
      PyObject *v, *name = PyTuple_GET_ITEM(code->co_localsplusnames, oparg);
      int found = f->f_locals ? namespace_get(f->f_locals, name, &v) : 0;
      if (found < 0) goto error;
      if (!found) {
        v = Py_XNewRef(PyCell_GET(locals[oparg]));
        if (!v) UNBOUND(oparg);
        if (r) fl_tell(r, fl_rec_read_cell(r, locals[oparg], v));
      }
      PUSH(v);
      continue;
    }
    case STORE_DEREF: {
      PyObject *cell = locals[oparg], *old = PyCell_GET(cell), *v = POP();
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_CELL, cell, NULL, v));
      PyCell_SET(cell, v);
      Py_XDECREF(old);
      continue;
    }
    case DELETE_DEREF: {
      PyObject *cell = locals[oparg], *old = PyCell_GET(cell);
      if (!old) UNBOUND(oparg);
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_CELL, cell, NULL, NULL));
      PyCell_SET(cell, NULL);
      Py_DECREF(old);
      continue;
    }
    case POP_TOP: DROP(); continue;
    case PUSH_NULL: PUSH(NULL); continue;
    case COPY: PUSH(Py_NewRef(PEEK((int)oparg))); continue;
    case SWAP: {
      PyObject *top = TOP();
      TOP() = PEEK(oparg);
      PEEK(oparg) = top;
      continue;
    }

    /* --- names --- */
    case LOAD_GLOBAL: {
      PyObject *v = load_global(r, f, NAME(oparg >> 1));
      if (!v) goto error;
      if (oparg & 1) PUSH(NULL);
      PUSH(v);
      break;
    }
    case LOAD_NAME: {
      PyObject *v = load_name(r, f, NAME(oparg));
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case STORE_NAME: {
      PyObject *v = POP(), *ns = f->f_locals;
      int rc = -1;
      if (!ns)
        PyErr_Format(PyExc_SystemError, "no locals found when storing %R", NAME(oparg));
      else {
        if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, ns, NAME(oparg), v));
        rc = PyDict_CheckExact(ns) ? PyDict_SetItem(ns, NAME(oparg), v) : PyObject_SetItem(ns, NAME(oparg), v);
      }
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case DELETE_NAME: {
      PyObject *ns = f->f_locals, *name = NAME(oparg);
      if (!ns) {
        PyErr_Format(PyExc_SystemError, "no locals when deleting %R", name);
        goto error;
      }
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, ns, name, NULL));
      if (PyObject_DelItem(ns, name)) {
        fl_exc_name(PyExc_NameError, "name '%.200s' is not defined", name);
        goto error;
      }
      continue;
    }
    case STORE_GLOBAL: {
      PyObject *v = POP();
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_GLOBAL, f->f_globals, NAME(oparg), v));
      int rc = PyDict_SetItem(f->f_globals, NAME(oparg), v);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case DELETE_GLOBAL:
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_GLOBAL, f->f_globals, NAME(oparg), NULL));
      if (PyDict_DelItem(f->f_globals, NAME(oparg))) {
        if (PyErr_ExceptionMatches(PyExc_KeyError))
          fl_exc_name(PyExc_NameError, "name '%.200s' is not defined", NAME(oparg));
        goto error;
      }
      continue;
    case LOAD_ASSERTION_ERROR: PUSH(Py_NewRef(PyExc_AssertionError)); continue;
    case LOAD_BUILD_CLASS: {
      PyObject *v = load_build_class(r, f);
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case SETUP_ANNOTATIONS:
      if (setup_annotations(f) < 0) goto error;
      continue;
    case IMPORT_NAME: {
      PyObject *fromlist = POP(), *level = TOP();
      PyObject *v = fl_import_name(r, f->f_builtins, f->f_globals, f->f_locals, NAME(oparg), fromlist, level);
      Py_DECREF(fromlist);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case IMPORT_FROM: {
      PyObject *v;
      int found = fl_import_from(r, TOP(), NAME(oparg), &v);
      if (found < 0) goto error;
      if (!found) GIVE_UP();
      PUSH(v);
      continue;
    }

    /* --- attributes, items --- */
    case LOAD_ATTR: {
      PyObject *v = fl_attr_get(r, TOP(), NAME(oparg));
      if (!v) goto error;
      SET_TOP_STEAL(v);
      break;
    }
    case LOAD_METHOD: {
      PyObject *obj = TOP(), *m;
      int bound = fl_attr_method(r, obj, NAME(oparg), &m);
      if (bound < 0) goto error;
      if (bound) {
        TOP() = m;
        PUSH(obj);
      } else {
        TOP() = NULL;
        Py_DECREF(obj);
        PUSH(m);
      }
      break;
    }
    case STORE_ATTR: {
      PyObject *obj = POP(), *v = POP();
      int rc = fl_attr_set(r, obj, NAME(oparg), v);
      Py_DECREF(v);
      Py_DECREF(obj);
      if (rc) goto error;
      break;
    }
    case DELETE_ATTR: {
      PyObject *obj = POP();
      int rc = fl_attr_set(r, obj, NAME(oparg), NULL);
      Py_DECREF(obj);
      if (rc) goto error;
      continue;
    }
    case BINARY_SUBSCR: {
      PyObject *key = POP(), *v = fl_data_subscr(r, TOP(), key);
      Py_DECREF(key);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      break;
    }
    case STORE_SUBSCR: {
      PyObject *key = POP(), *obj = POP(), *v = POP();
      int rc = fl_data_store(r, obj, key, v);
      Py_DECREF(v);
      Py_DECREF(obj);
      Py_DECREF(key);
      if (rc) goto error;
      break;
    }
    case DELETE_SUBSCR: {
      PyObject *key = POP(), *obj = POP();
      int rc = fl_data_store(r, obj, key, NULL);
      Py_DECREF(obj);
      Py_DECREF(key);
      if (rc) goto error;
      continue;
    }

    /* --- operators --- */
    case UNARY_POSITIVE:
    case UNARY_NEGATIVE:
    case UNARY_INVERT: {
      PyObject *v = opcode == UNARY_POSITIVE   ? fl_data_unary(r, fl_n.__pos__, PyNumber_Positive, TOP())
                    : opcode == UNARY_NEGATIVE ? fl_data_unary(r, fl_n.__neg__, PyNumber_Negative, TOP())
                                               : fl_data_unary(r, fl_n.__invert__, PyNumber_Invert, TOP());
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case UNARY_NOT: {
      int truth = fl_data_truth(r, TOP());
      SET_TOP_STEAL(Py_NewRef(truth ? Py_False : Py_True));
      if (truth < 0) goto error;
      continue;
    }
    case BINARY_OP: {
      PyObject *b = POP(), *v = fl_data_binary(r, (int)oparg, TOP(), b);
      Py_DECREF(b);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      break;
    }
    case COMPARE_OP: {
      PyObject *b = POP(), *v = fl_data_compare(r, TOP(), b, (int)oparg);
      Py_DECREF(b);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      break;
    }
    case IS_OP: {
      PyObject *b = POP();
      bool is = TOP() == b;
      if (r && !is) fl_rec_compared(r, TOP(), b);
      Py_DECREF(b);
      SET_TOP_STEAL(Py_NewRef(is != (bool)oparg ? Py_True : Py_False));
      continue;
    }
    case CONTAINS_OP: {
      PyObject *container = POP();
      int in = fl_data_contains(r, container, TOP());
      Py_DECREF(container);
      SET_TOP_STEAL(Py_NewRef((in > 0) != (bool)oparg ? Py_True : Py_False));
      if (in < 0) goto error;
      continue;
    }
    case FORMAT_VALUE: {
      PyObject *spec = oparg & 4 ? POP() : NULL, *v = fl_data_format(r, TOP(), (int)(oparg & 3), spec);
      Py_XDECREF(spec);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case GET_LEN: {
      Py_ssize_t n = fl_data_len(r, TOP());
      PyObject *v = n < 0 ? NULL : PyLong_FromSsize_t(n);
      if (!v) goto error;
      PUSH(v);
      continue;
    }

    /* --- building --- */
    case BUILD_TUPLE:
    case BUILD_LIST: {
      PyObject *v = opcode == BUILD_TUPLE ? PyTuple_New(oparg) : PyList_New(oparg);
      if (!v) goto error;
      sp -= oparg;
      for (unsigned i = 0; i < oparg; i++)
        if (opcode == BUILD_TUPLE)
          PyTuple_SET_ITEM(v, i, sp[i]);
        else
          PyList_SET_ITEM(v, i, sp[i]);
      PUSH(v);
      if (opcode == BUILD_LIST) FRESH(v);
      continue;
    }
    case BUILD_SET:
    case BUILD_STRING:
    case BUILD_MAP:
    case BUILD_CONST_KEY_MAP: {
      int n = opcode == BUILD_MAP ? 2 * (int)oparg : (int)oparg + (opcode == BUILD_CONST_KEY_MAP);
      PyObject *v = opcode == BUILD_SET      ? build_set(sp - n, (int)oparg)
                    : opcode == BUILD_STRING ? build_string(sp - n, (int)oparg)
                    : opcode == BUILD_MAP    ? build_map(sp - n, (int)oparg)
                                             : build_const_key_map(TOP(), sp - n, (int)oparg);
      if (!v) goto error;
      while (n--) DROP();
      PUSH(v);
      if (opcode != BUILD_STRING) FRESH(v);
      continue;
    }
    case BUILD_SLICE: {
      PyObject *step = oparg == 3 ? POP() : NULL, *stop = POP(), *v = PySlice_New(TOP(), stop, step);
      Py_XDECREF(step);
      Py_DECREF(stop);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case LIST_TO_TUPLE: {
      PyObject *v = PyList_AsTuple(TOP());
      if (!v) goto error;
      SET_TOP_STEAL(v);
      continue;
    }
    case LIST_APPEND:
    case SET_ADD: {
      PyObject *v = POP();
      int rc = opcode == LIST_APPEND ? PyList_Append(PEEK(oparg), v) : PySet_Add(PEEK(oparg), v);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case MAP_ADD: {
      PyObject *v = POP(), *key = POP();
      int rc = PyDict_SetItem(PEEK(oparg), key, v);
      Py_DECREF(key);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case LIST_EXTEND:
    case SET_UPDATE:
    case DICT_UPDATE: {
      PyObject *items = POP();
      int rc;
      if (opcode == LIST_EXTEND)
        rc = list_extend(r, PEEK(oparg), items);
      else if (opcode == DICT_UPDATE)
        rc = dict_update(r, PEEK(oparg), items);
      else {
        if (r) fl_data_saw(r, items);
        rc = _PySet_Update(PEEK(oparg), items);
      }
      Py_DECREF(items);
      if (rc < 0) goto error;
      continue;
    }
    case DICT_MERGE: {
      PyObject *other = POP();
      if (r) fl_data_saw(r, other);
      int rc = _PyDict_MergeEx(PEEK(oparg), other, 2);
      if (rc < 0) fl_exc_kwargs(PEEK(oparg + 2), other);
      Py_DECREF(other);
      if (rc < 0) goto error;
      continue;
    }
    case MAKE_FUNCTION: {
      PyObject *fcode = POP(), *fn = make_function(r, f, fcode, (int)oparg, &sp);
      Py_DECREF(fcode);
      if (!fn) goto error;
      PUSH(fn);
      continue;
    }
    case UNPACK_SEQUENCE:
    case UNPACK_EX: {
      PyObject *seq = POP();
      bool star = opcode == UNPACK_EX;
      int before = star ? (int)(oparg & 0xFF) : (int)oparg, after = star ? (int)(oparg >> 8) : -1;
      int total = before + (star ? after + 1 : 0);
      int rc = fl_data_unpack(r, seq, before, after, sp + total);
      Py_DECREF(seq);
      if (rc < 0) goto error;
      sp += total;
      break;
    }

    /* --- jumps --- */
    case JUMP_FORWARD: ip += oparg; continue;
    case JUMP_BACKWARD:
      ip -= oparg;
      SERVE();
      continue;
    case JUMP_BACKWARD_NO_INTERRUPT: ip -= oparg; continue;
    case POP_JUMP_FORWARD_IF_FALSE:
    case POP_JUMP_FORWARD_IF_TRUE:
    case POP_JUMP_BACKWARD_IF_FALSE:
    case POP_JUMP_BACKWARD_IF_TRUE: {
      PyObject *v = POP();
      int truth = fl_data_truth(r, v);
      Py_DECREF(v);
      if (truth < 0) goto error;
      if (truth == (opcode == POP_JUMP_FORWARD_IF_TRUE || opcode == POP_JUMP_BACKWARD_IF_TRUE)) {
        if (opcode == POP_JUMP_FORWARD_IF_FALSE || opcode == POP_JUMP_FORWARD_IF_TRUE) {
          ip += oparg;
        } else {
          ip -= oparg;
          SERVE();
        }
      }
      continue;
    }
    case POP_JUMP_FORWARD_IF_NONE:
    case POP_JUMP_FORWARD_IF_NOT_NONE:
    case POP_JUMP_BACKWARD_IF_NONE:
    case POP_JUMP_BACKWARD_IF_NOT_NONE: {
      PyObject *v = POP();
      bool none = v == Py_None;
      Py_DECREF(v);
      if (none == (opcode == POP_JUMP_FORWARD_IF_NONE || opcode == POP_JUMP_BACKWARD_IF_NONE)) {
        if (opcode == POP_JUMP_FORWARD_IF_NONE || opcode == POP_JUMP_FORWARD_IF_NOT_NONE) {
          ip += oparg;
        } else {
          ip -= oparg;
          SERVE();
        }
      }
      continue;
    }
    case JUMP_IF_FALSE_OR_POP:
    case JUMP_IF_TRUE_OR_POP: {
      int truth = fl_data_truth(r, TOP());
      if (truth < 0) goto error;
      if (truth == (opcode == JUMP_IF_TRUE_OR_POP))
        ip += oparg;
      else
        DROP();
      continue;
    }
    case GET_ITER: {
      PyObject *it = fl_data_iter(r, TOP());
      SET_TOP_STEAL(it);
      if (!it) goto error;
      continue;
    }
    case FOR_ITER: {
      PyObject *v = fl_data_next(r, TOP());
      if (v) {
        PUSH(v);
        continue;
      }
      if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_StopIteration)) goto error;
        PyErr_Clear();
      }
      DROP();
      ip += oparg;
      continue;
    }

    /* --- calls --- */
    case KW_NAMES: kwnames = PyTuple_GET_ITEM(code->co_consts, oparg); continue;
    case CALL: {
      int method = PEEK(oparg + 2) != NULL, total = (int)oparg + method;
      PyObject *fn = PEEK(total + 1), **args = sp - total;
      size_t npos = (size_t)total - (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0);
      if (!method && Py_IS_TYPE(fn, &PyMethod_Type)) {
        /* The free slot below the arguments takes self, as ceval does. */
        PyObject *self = PyMethod_GET_SELF(fn), *func = PyMethod_GET_FUNCTION(fn);
        PEEK(oparg + 1) = Py_NewRef(self);
        PEEK(oparg + 2) = Py_NewRef(func);
        Py_DECREF(fn);
        fn = func;
        args--;
        total++;
        npos++;
        method = 1;
      }
      PyObject *v = fl_call(r, fn, args, npos | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
      kwnames = NULL;
      Py_DECREF(fn);
      for (int i = 0; i < total; i++) Py_DECREF(args[i]);
      sp -= oparg + 2;
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      break;
    }
    case CALL_FUNCTION_EX: {
      PyObject *kwargs = oparg & 1 ? POP() : NULL, *args = POP();
      if (r) fl_data_saw(r, args);
      args = star_args(TOP(), args);
      PyObject *v = args ? fl_call_ex(r, TOP(), args, kwargs) : NULL;
      Py_XDECREF(args);
      Py_XDECREF(kwargs);
      DROP();
      TOP() = v;
      if (!v) {
        sp--;
        goto error;
      }
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case RETURN_VALUE: result = POP(); goto leave;

    /* --- generators --- */
    case YIELD_VALUE:
      result = POP();
      _PyFrame_GetGenerator(f)->gi_frame_state = FRAME_SUSPENDED;
      goto leave;
    case GET_YIELD_FROM_ITER: {
      PyObject *it = yield_from_iter(r, f, TOP());
      if (!it) goto error;
      SET_TOP_STEAL(it);
      continue;
    }
    case SEND: {
      PyObject *v = POP(), *out;
      if (r && !PyGen_CheckExact(TOP())) fl_data_saw(r, TOP());
      PySendResult status = PyIter_Send(TOP(), v, &out);
      Py_DECREF(v);
      if (status == PYGEN_ERROR) goto error;
      if (status == PYGEN_RETURN) {
        SET_TOP_STEAL(out);
        ip += oparg;
      } else {
        PUSH(out);
      }
      continue;
    }

    /* --- exceptions, with --- */
    case RAISE_VARARGS: {
      PyObject *cause = oparg == 2 ? POP() : NULL, *exc = oparg >= 1 ? POP() : NULL;
      if (fl_exc_raise(r, exc, cause)) goto unwind;
      goto error;
    }
    case RERAISE: {
      int offset = (int)(f->prev_instr - first);
      if (oparg) f->prev_instr = first + PyLong_AsLong(PEEK(oparg + 1));
      PyObject *value = POP();
      PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(value)), value, PyException_GetTraceback(value));
      start = first + offset;
      goto unwind_at_start;
    }
    case PUSH_EXC_INFO: {
      PyObject *value = TOP(), *old = ts->exc_info->exc_value;
      TOP() = old ? old : Py_NewRef(Py_None);
      PUSH(Py_NewRef(value));
      ts->exc_info->exc_value = value;
      continue;
    }
    case POP_EXCEPT: {
      PyObject *old = ts->exc_info->exc_value;
      ts->exc_info->exc_value = POP();
      Py_XDECREF(old);
      continue;
    }
    case CHECK_EXC_MATCH: {
      PyObject *right = POP();
      int match = fl_exc_check_type(right) < 0 ? -1 : PyErr_GivenExceptionMatches(TOP(), right);
      Py_DECREF(right);
      if (match < 0) goto error;
      PUSH(Py_NewRef(match ? Py_True : Py_False));
      continue;
    }
    case CHECK_EG_MATCH: {
      PyObject *type = POP(), *match = NULL, *rest = NULL;
      int rc = fl_exc_check_star(type) < 0 ? -1 : fl_exc_group_match(TOP(), type, &match, &rest);
      Py_DECREF(type);
      if (rc < 0) goto error;
      if (match == Py_None) {
        Py_DECREF(rest);
      } else {
        PyErr_SetExcInfo(NULL, Py_NewRef(match), NULL);
        SET_TOP_STEAL(rest);
      }
      PUSH(match);
      continue;
    }
    case BEFORE_WITH: {
      PyObject *exit = NULL, *v = with_enter(r, TOP(), &exit);
      if (!v) goto error;
      SET_TOP_STEAL(exit);
      PUSH(v);
      continue;
    }
    case WITH_EXCEPT_START: {
      PyObject *v = with_exit(r, PEEK(4), TOP());
      if (!v) goto error;
      PUSH(v);
      continue;
    }

    /* --- match --- */
    case MATCH_MAPPING:
    case MATCH_SEQUENCE: {
      unsigned long flag = opcode == MATCH_MAPPING ? Py_TPFLAGS_MAPPING : Py_TPFLAGS_SEQUENCE;
      PUSH(Py_NewRef(PyType_HasFeature(Py_TYPE(TOP()), flag) ? Py_True : Py_False));
      continue;
    }
    case MATCH_KEYS: {
      PyObject *v = fl_match_keys(r, SECOND(), TOP());
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case MATCH_CLASS: {
      PyObject *names = POP(), *type = POP();
      PyObject *v = fl_match_class(r, TOP(), type, (Py_ssize_t)oparg, names);
      Py_DECREF(names);
      Py_DECREF(type);
      if (!v && PyErr_Occurred()) goto error;
      SET_TOP_STEAL(v ? v : Py_NewRef(Py_None));
      continue;
    }

    default: /* async, IMPORT_STAR, PREP_RERAISE_STAR, PRINT_EXPR, and what comes */ GIVE_UP();
    }
    CACHES(opcode);
    continue;

  error:
    kwnames = NULL;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "error return without exception set");
    if (!_PyFrame_IsIncomplete(f)) {
      PyFrameObject *frame_obj = PyEval_GetFrame();
      if (frame_obj) PyTraceBack_Here(frame_obj);
    }
  unwind:
    start = f->prev_instr;
  unwind_at_start:;
    int level, target;
    bool lasti;
    if (!fl_exc_handler(code, (int)(start - first), &level, &target, &lasti)) goto leave;
    while (sp > base + level) {
      PyObject *v = POP();
      Py_XDECREF(v);
    }
    if (lasti) {
      PyObject *at = PyLong_FromLong(_PyInterpreterFrame_LASTI(f));
      if (!at) goto unwind_at_start;
      PUSH(at);
    }
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    PyException_SetTraceback(value, tb ? tb : Py_None);
    Py_XDECREF(tb);
    Py_XDECREF(type);
    PUSH(value);
    ip = first + target;
  }

leave:
  if (opcode != YIELD_VALUE || !result)
    while (sp > base) {
      PyObject *v = POP();
      Py_XDECREF(v);
    }
  f->stacktop = (int)(sp - locals);
  cframe->current_frame = below;
  Py_LeaveRecursiveCall();
  return result;

give_up:
  fl_eval_count_handed_over();
  if (r) fl_rec_give_up(r, "instruction left to CPython", PyUnicode_AsUTF8(code->co_qualname));
  f->prev_instr = start - 1;
  f->stacktop = (int)(sp - locals);
  cframe->current_frame = below;
  Py_LeaveRecursiveCall();
  return fl_cpy_native(ts, f, 0);
}
#endif
