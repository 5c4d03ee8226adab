/* What the opcode loops of all versions share: helpers of instructions, and the words that the handlers are written in.
 *
 * Included once by each loopNNN.c after its pyNNN.h, which defines FRAME_CODE, FRAME_FUNC and FRAME_AT. */

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
  PyObject *closure = FRAME_FUNC(f)->func_closure;
  int offset = FRAME_CODE(f)->co_nlocalsplus - n;
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

/* Joins the n topmost operands. */
static PyObject *build_string(fl_rec *r, fl_eval_state *st, fl_eval_frame *here, PyObject **base, Py_ssize_t next,
                              PyObject **sp, int n) {
  PyObject *empty = PyUnicode_New(0, 0), *s, *const *items = sp - n;
  bool given = false;
  if (!empty) return NULL;
  for (int i = 0; r && i < n; i++) given |= fl_rec_is_unknown(r, items[i], true);
  if (given) {
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) PyTuple_SET_ITEM(tuple, i, Py_NewRef(items[i]));
    here->depth = (int)(sp - base) - n;
    here->next = (int)next;
    s = tuple ? fl_call_operator(r, "join", (PyObject *[]){empty, tuple}, 2) : NULL;
    here->depth = -1;
    Py_XDECREF(tuple);
  } else
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
    if (FRAME_CODE(f)->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE)) return Py_NewRef(obj);
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

/* A context manager's bound __enter__, and its __exit__ in *exit. */
static PyObject *with_methods(fl_rec *r, PyObject *manager, PyObject **exit) {
  PyObject *enter = fl_attr_special(r, manager, fl_n.__enter__);
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
  return enter;
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
/* From here until CALLED() this frame waits for a call's answer, which takes the place of n operands. */
#define IN_CALL(n)                                                                                                     \
  do {                                                                                                                 \
    here.depth = (int)(sp - base) - (int)(n);                                                                          \
    here.next = (int)(ip - first);                                                                                     \
    st->tail = true;                                                                                                   \
  } while (0)
/* What unknown code gave is worked with as unknown code works with it. */
#define GIVEN(v, plain) (r && fl_rec_is_unknown(r, (v), (plain)))
#define GIVEN_ONE(a, b)                                                                                                \
  ((GIVEN(a, true) || GIVEN(b, true)) && !fl_data_is_container(a) && !fl_data_is_container(b))
#define CALLED()                                                                                                       \
  do {                                                                                                                 \
    here.depth = -1;                                                                                                   \
    here.wants = FL_CPY_ANSWER;                                                                                        \
    st->tail = false;                                                                                                  \
  } while (0)
/* The loop's next item, where a generator gives it, is an answer; the loop ends at `unit`. */
#define IN_LOOP(unit)                                                                                                  \
  do {                                                                                                                 \
    if (r && PyGen_CheckExact(TOP())) {                                                                                \
      IN_CALL(0);                                                                                                      \
      st->tail = false;                                                                                                \
      here.wants = FL_CPY_ITEM;                                                                                        \
      here.other = (int)(unit);                                                                                        \
      st->driving = TOP();                                                                                             \
    }                                                                                                                  \
  } while (0)
#define NEXT_DONE()                                                                                                    \
  do {                                                                                                                 \
    CALLED();                                                                                                          \
    st->driving = NULL;                                                                                                \
    if (r && fl_rec_gave_up(r)) r = NULL;                                                                              \
  } while (0)
/* The truth of the top operand, where unknown code gave it, takes its place; the frame then goes on at `unit`. */
#define TRUTH_OF_GIVEN(unit)                                                                                           \
  do {                                                                                                                 \
    if (GIVEN(TOP(), true)) {                                                                                          \
      IN_CALL(1);                                                                                                      \
      here.next = (int)(unit);                                                                                         \
      PyObject *truth_ = fl_call_operator(r, "truth", &TOP(), 1);                                                      \
      CALLED();                                                                                                        \
      if (!truth_) goto error;                                                                                         \
      SET_TOP_STEAL(truth_);                                                                                           \
    }                                                                                                                  \
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
#define UNBOUND(i)                                                                                                     \
  do {                                                                                                                 \
    fl_exc_unbound(code, (i));                                                                                         \
    goto error;                                                                                                        \
  } while (0)
