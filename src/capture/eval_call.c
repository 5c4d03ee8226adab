/* Calls. Python functions come back through the frame hook; here is what C callables, types and callable objects need
 * reported. */
#include "capture/cpython/compat.h"

#include <string.h>

#include "capture/ccalls.h"
#include "capture/compiled.h"
#include "capture/eval_call.h"

static ternaryfunc slot_call; /* CPython's tp_call of classes with __call__ */
static newfunc slot_new;      /* and its tp_new and tp_init of classes with their own */
static initproc slot_init;

int fl_call_init(void) {
  PyObject *ns = PyDict_New(), *run, *cls;
  if (!ns || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) return -1;
  run = PyRun_String("class P:\n def __call__(self): pass\n def __new__(cls): pass\n def __init__(self): pass\n",
                     Py_file_input, ns, ns);
  cls = run ? PyDict_GetItemString(ns, "P") : NULL;
  if (cls) {
    slot_call = ((PyTypeObject *)cls)->tp_call;
    slot_new = ((PyTypeObject *)cls)->tp_new;
    slot_init = ((PyTypeObject *)cls)->tp_init;
  }
  Py_XDECREF(run);
  Py_DECREF(ns);
  return cls ? 0 : -1;
}

bool fl_call_is_by_class(PyTypeObject *tp) { return tp->tp_call == slot_call; }

/* Takes fl_eval_here->tail. */
static fl_call_args make_args(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  size_t npos = (size_t)PyVectorcall_NARGS(nargsf);
  bool tail = fl_eval_here && fl_eval_here->tail;
  if (tail) fl_eval_here->tail = false;
  return (fl_call_args){callable, args, nargsf, npos, kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0, kwnames, tail};
}

/* The next frame of this function answers for `callable` as it is. */
static PyObject *enter(const fl_call_args *c, PyObject *func, PyObject *callable) {
  fl_eval_state *st = fl_eval_here;
  st->calling = c->tail ? func : NULL;
  st->callable = callable;
  st->direct = true;
  PyObject *v = fl_call_natively(c);
  st->direct = false;
  st->calling = NULL;
  return v;
}

static PyObject *opaque(fl_rec *r, const fl_call_args *c, bool shows, const char *reason, const char *detail) {
  if (!c->tail) {
    fl_rec_give_up(r, reason, detail);
    return fl_call_natively(c);
  }
  return fl_rec_opaque(r, c->callable, c->args, c->nargsf, c->kwnames, shows, reason, detail);
}

static bool any_unknown(fl_rec *r, const fl_call_args *c, bool plain) {
  for (size_t i = 0; i < c->npos + c->nkw; i++)
    if (fl_rec_is_unknown(r, c->args[i], plain)) return true;
  return fl_rec_is_unknown(r, c->callable, false);
}

static void uses_args(fl_rec *r, const fl_call_args *c) {
  for (size_t i = 0; i < c->npos + c->nkw; i++) fl_rec_uses(r, c->args[i]);
}

/* A new object of C code that nobody else holds. */
static void mark_result(fl_rec *r, PyObject *v) {
  if (!v || Py_REFCNT(v) != 1 || PyUnicode_Check(v) || PyLong_Check(v) || PyFloat_Check(v)) return;
  fl_tell(r, fl_rec_fresh(r, v));
}

/* As above, lists in lists. */
static void mark_lists(fl_rec *r, PyObject *v) {
  if (!v || !PyList_Check(v)) return;
  fl_tell(r, fl_rec_fresh(r, v));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(v); i++) mark_lists(r, PyList_GET_ITEM(v, i));
}

static PyObject *number(const fl_call_args *c, bool taken) {
  fl_eval_here->number = taken;
  PyObject *v = fl_call_natively(c);
  fl_eval_here->number = false;
  return v;
}

/* --- C functions and methods --- */

static void report_mutation(fl_rec *r, const fl_call_args *c, PyObject *self, PyObject *callable) {
  PyObject *obj = self ? self : c->npos ? c->args[0] : NULL;
  PyObject *name = obj ? PyObject_GetAttr(callable, fl_n.__name__) : NULL;
  if (obj) fl_tell(r, fl_rec_write(r, FL_WRITE_METHOD, obj, name, NULL));
  Py_XDECREF(name);
  PyErr_Clear();
}

static PyObject *call_query(fl_rec *r, const fl_call_args *c) {
  uses_args(r, c);
  PyObject *v = fl_call_natively(c);
  if (v) fl_tell(r, fl_rec_read_query(r, c->callable, c->args, c->npos, c->kwnames, v));
  return v;
}

/* What abstract classes say of a class: registering another one changes it. */
static PyObject *call_abc(fl_rec *r, const fl_call_args *c) {
  static PyObject *subclass_check;
  if (!subclass_check) {
    PyObject *module = PyImport_ImportModule("_abc");
    subclass_check = module ? PyObject_GetAttrString(module, "_abc_subclasscheck") : NULL;
    Py_XDECREF(module);
    if (!subclass_check) return NULL;
  }
  PyObject *v = fl_call_natively(c);
  if (!v || c->npos != 2 || c->nkw) return v;
  PyObject *pair[2] = {c->args[0], (PyObject *)Py_TYPE(c->args[1])};
  fl_tell(r, fl_rec_read_query(r, subclass_check, pair, 2, NULL, v));
  return v;
}

/* How many locks evaluated code holds. */
static void note_lock(fl_rec *r, const fl_call_args *c, PyObject *result) {
  PyObject *name = result ? PyObject_GetAttr(c->callable, fl_n.__name__) : NULL;
  const char *s = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
  if (s && (!strcmp(s, "release") || !strcmp(s, "__exit__")))
    fl_eval_here->locks--;
  else if (s && result != Py_False)
    fl_eval_here->locks++;
  Py_XDECREF(name);
  if (result) PyErr_Clear();
}

static PyObject *call_context(fl_rec *r, const fl_call_args *c) {
  fl_eval_here->state_changes++;
  fl_contexts_will_change(r, c->callable, c->args, c->npos, c->nkw != 0);
  PyObject *v = fl_call_natively(c);
  fl_contexts_changed(r, c->callable, c->args, c->npos, v);
  return v;
}

static PyObject *call_c(fl_rec *r, const fl_call_args *c) {
  char name[200];
  PyObject *self, *v;
  bool done;
  fl_cc cls = fl_ccall_class(c->callable, &self);
  bool opaque_anyway = cls == FL_CC_UNKNOWN || cls == FL_CC_SHOWS || cls == FL_CC_LEAK || cls == FL_CC_DRAWS;
  bool computes = cls == FL_CC_PURE || cls == FL_CC_TORCH || cls == FL_CC_READS;
  if (cls == FL_CC_ISINSTANCE && c->npos == 2 && fl_rec_is_unknown(r, c->args[0], true)) {
    fl_call_saw_class_check(r, c->args[1], fl_n.__instancecheck__); /* its type is known */
    return fl_call_natively(c);
  }
  if (!opaque_anyway && c->tail && ((self && fl_rec_is_unknown(r, self, computes)) || any_unknown(r, c, computes)))
    return opaque(r, c, false, "an object that unknown code gave", fl_ccall_name(c->callable, name, sizeof name));
  if (self && !opaque_anyway) fl_rec_uses(r, self);
  switch (cls) {
  case FL_CC_READS: {
    size_t first = self || !c->npos ? 0 : 1;
    if (!fl_call_reads_known(r, c->args + first, c->npos + c->nkw - first)) goto leak;
  } /* fall through */
  case FL_CC_PURE:
  case FL_CC_TORCH:
    bool item = cls == FL_CC_TORCH && fl_call_is_item(c->callable) && c->npos == (self ? 0 : 1) && c->tail && !c->nkw;
    if (item && fl_call_gives_float(r, self ? self : c->args[0]))
      return opaque(r, c, true, "a number out of a tensor", "item");
    if (self) fl_data_saw(r, self);
    fl_call_saw_args(r, c, 0);
    size_t first = fl_rec_nodes(r);
    v = number(c, item);
    if (cls != FL_CC_PURE) fl_rec_called(r, c->callable, first);
    mark_result(r, v);
    return v;
  case FL_CC_PLAIN:
    v = fl_call_natively(c);
    mark_result(r, v);
    return v;
  case FL_CC_ID:
    if (c->npos) fl_rec_identified(r, c->args[0]);
    return fl_call_natively(c);
  case FL_CC_ABC: return call_abc(r, c);
  case FL_CC_QUERY: return call_query(r, c);
  case FL_CC_STATEQ: {
    bool changed = fl_eval_here->state_changes && (c->nkw || !fl_contexts_untouched(c->callable, c->args, c->npos));
    return changed ? fl_call_natively(c) : call_query(r, c);
  }
  case FL_CC_MODES: {
    bool hidden = fl_rec_hide(r);
    v = fl_call_natively(c);
    if (hidden) fl_rec_show(r);
    return v;
  }
  case FL_CC_MODE_PUSH: fl_mode_pushed(r, c->npos ? c->args[0] : NULL); /* fall through */
  case FL_CC_STATE: fl_eval_here->state_changes++; return fl_call_natively(c);
  case FL_CC_CONTEXT: return call_context(r, c);
  case FL_CC_MUTATES:
  case FL_CC_STORES:
    report_mutation(r, c, self, c->callable);
    if (cls == FL_CC_MUTATES) fl_call_saw_args(r, c, self ? 0 : 1);
    if (cls == FL_CC_STORES && !(self ? PyList_Check(self) : c->npos && PyList_Check(c->args[0]))) uses_args(r, c);
    return fl_call_natively(c);
  case FL_CC_VAR_SET: {
    PyObject *var = self ? self : c->npos ? c->args[0] : NULL;
    size_t at = self ? 0 : 1;
    fl_vars_will_change(r, var);
    v = fl_call_natively(c);
    fl_vars_changed(r, c->callable, var, c->npos > at ? c->args[at] : NULL, v);
    return v;
  }
  case FL_CC_VAR_GET: {
    PyObject *var = self ? self : c->npos ? c->args[0] : NULL;
    return fl_vars_own(var) ? fl_call_natively(c) : call_query(r, c);
  }
  case FL_CC_FLAGS:
    /* What the call gives back must require no gradient: of its own tensors nobody else learns. */
    if (!fl_rec_made_tensor(r, self ? self : c->npos ? c->args[0] : Py_None)) goto leak;
    return fl_call_natively(c);
  case FL_CC_ELEMENTS:
    if (fl_rec_read_elements(r, self ? self : c->npos ? c->args[0] : Py_None)) {
      v = fl_call_natively(c);
      mark_lists(r, v);
      return v;
    }
    /* fall through */
  case FL_CC_LEAK:
  leak:
    return opaque(r, c, false, "data leaves the tensor", fl_ccall_name(c->callable, name, sizeof name));
  case FL_CC_DRAWS:
    if (c->tail && !c->nkw && c->npos == (self ? 0 : 1) && fl_eval_draws_ahead() &&
        fl_rec_may_draw(r, self ? self : c->args[0])) {
      v = fl_call_natively(c);
      if (v) fl_rec_draw(r, c->callable, self ? NULL : c->args[0], v);
      return v;
    }
    return opaque(r, c, true, "unknown C function", fl_ccall_name(c->callable, name, sizeof name));
  case FL_CC_FUNCTION_APPLY:
    if (!c->nkw && fl_call_is_function_class(self)) return fl_call_function_apply(r, self, c->args, c->npos);
    /* fall through */
  case FL_CC_UNKNOWN:
  case FL_CC_SHOWS:
    return opaque(r, c, cls == FL_CC_SHOWS, "unknown C function", fl_ccall_name(c->callable, name, sizeof name));
  case FL_CC_LOCK:
    v = fl_call_natively(c);
    note_lock(r, c, v);
    return v;
  case FL_CC_STATE_OTHER:
    fl_eval_here->state_changes++;
    fl_eval_here->other_state = true;
    return fl_call_natively(c);
  default:
    if (cls != FL_CC_ISINSTANCE && cls != FL_CC_ISSUBCLASS) uses_args(r, c);
    v = fl_call_builtin(r, cls, c, self, &done);
    if (done) return v;
    fl_rec_give_up(r, "unknown C function", fl_ccall_name(c->callable, name, sizeof name));
    return fl_call_natively(c);
  }
}

/* No cache has an answer for a tensor that this call made, but one that it got in this call: what is found, and what runs, is
 * the same in each call. What it keeps of it nobody else finds. */
static bool is_given_own(fl_rec *r, const fl_call_args *c) {
  for (size_t i = 0; i < c->npos + c->nkw; i++)
    if (fl_ccall_is_tensor(Py_TYPE(c->args[i])) && fl_rec_made_lately(r, c->args[i])) return true;
  return false;
}

/* What frames it enters are evaluated, but for the ids that it asks of tensors itself. */
static PyObject *call_cached_own(fl_rec *r, const fl_call_args *c) {
  uses_args(r, c);
  for (size_t i = 0; i < c->npos + c->nkw; i++)
    if (fl_ccall_is_tensor(Py_TYPE(c->args[i])))
      fl_eval_here->hash = _PyType_Lookup(Py_TYPE(c->args[i]), fl_n.__hash__);
  PyObject *v = fl_call_natively(c);
  fl_eval_here->hash = NULL;
  return v;
}

/* Sizes, and the like: equal is as good as the same. */
static bool is_plain(PyObject *o, int depth) {
  if (!PyTuple_Check(o))
    return o == Py_None || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o);
  bool plain = depth < 4 && (PyTuple_CheckExact(o) || !_PyObject_GetDictPtr(o));
  for (Py_ssize_t i = 0; plain && i < PyTuple_GET_SIZE(o); i++) plain = is_plain(PyTuple_GET_ITEM(o, i), depth + 1);
  return plain;
}

/* Another one in each call, or one that has no place of its own. */
static bool is_passing_tensor(fl_rec *r, PyObject *o) {
  return fl_ccall_is_tensor(Py_TYPE(o)) && fl_rec_is_passing(r, o);
}

/* A cached function's result is state of its own: asked again on a replay, where it comes from the cache. What makes it runs
 * once, not in each call: unseen, so that the trace neither does it again nor takes the result for the call's own. */
static PyObject *call_cached(fl_rec *r, const fl_call_args *c) {
  bool own = is_given_own(r, c);
  if (!fl_rec_may_cache(r, c->callable, own))
    fl_rec_give_up(r, "cached function", "of tensors from here and elsewhere");
  if (own) return call_cached_own(r, c);
  for (size_t i = 0; i < c->npos + c->nkw; i++)
    if ((fl_rec_is_fresh(r, c->args[i]) && !is_plain(c->args[i], 0)) || is_passing_tensor(r, c->args[i])) {
      fl_rec_give_up(r, "cached function", Py_TYPE(c->args[i])->tp_name);
      break;
    }
  if (fl_rec_gave_up(r) || !fl_rec_leave(r)) return call_query(r, c);
  fl_eval_pause(1);
  PyObject *v = fl_call_natively(c), *type, *value, *tb;
  fl_eval_pause(0);
  PyErr_Fetch(&type, &value, &tb);
  fl_rec_return(r);
  if (!v || fl_rec_is_own(r, v)) fl_rec_give_up(r, "cached function", v ? Py_TYPE(v)->tp_name : "it raised");
  PyErr_Restore(type, value, tb);
  uses_args(r, c);
  if (v) fl_tell(r, fl_rec_read_cached(r, c->callable, c->args, c->npos, c->kwnames, v));
  return v;
}

/* What the call's own weak references refer to it has itself. Another's object must be held by something else that was
 * read, for a trace would keep it alive. */
static PyObject *call_weakref(fl_rec *r, const fl_call_args *c) {
  if (fl_rec_is_fresh(r, c->callable)) return fl_call_natively(c);
  PyObject *o = PyWeakref_GET_OBJECT(c->callable);
  if (o != Py_None && !fl_rec_knows(r, o))
    fl_rec_give_up(r, "a weak reference to what nothing else leads to", Py_TYPE(o)->tp_name);
  return call_query(r, c);
}

/* --- types --- */

static PyObject *args_tuple(PyObject *const *args, size_t n) {
  PyObject *t = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; t && i < n; i++) PyTuple_SET_ITEM(t, (Py_ssize_t)i, Py_NewRef(args[i]));
  return t;
}

static PyObject *args_dict(const fl_call_args *c) {
  PyObject *d = PyDict_New();
  for (size_t i = 0; d && i < c->nkw; i++)
    if (PyDict_SetItem(d, PyTuple_GET_ITEM(c->kwnames, (Py_ssize_t)i), c->args[c->npos + i]) < 0) Py_CLEAR(d);
  return d;
}

/* type.__call__ for classes made by class statements: the object must be known as new before __init__ writes to it. */
static PyObject *construct(fl_rec *r, PyTypeObject *type, const fl_call_args *c) {
  PyObject *args = args_tuple(c->args, c->npos), *kwargs = c->nkw ? args_dict(c) : NULL, *obj = NULL;
  if (!args || (c->nkw && !kwargs)) goto done;
  obj = type->tp_new(type, args, kwargs);
  obj = _Py_CheckFunctionResult(PyThreadState_Get(), (PyObject *)type, obj, NULL);
  if (!obj || !PyObject_TypeCheck(obj, type)) goto done;
  if (type->tp_new != slot_new && !PyTuple_Check(obj)) fl_tell(r, fl_rec_fresh(r, obj));
  if (Py_TYPE(obj)->tp_init && Py_TYPE(obj)->tp_init(obj, args, kwargs) < 0) Py_CLEAR(obj);
done:
  Py_XDECREF(args);
  Py_XDECREF(kwargs);
  return obj;
}

PyObject *fl_call_type(fl_rec *r, PyTypeObject *type, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  fl_call_args c = make_args((PyObject *)type, args, nargsf, kwnames);
  PyObject *v;
  if (!r) return fl_call_natively(&c);
  if (type == &PyType_Type && c.npos == 1 && c.nkw == 0 && !fl_rec_is_unknown(r, args[0], false)) {
    fl_tell(r, fl_rec_read_instance(r, args[0]));
    return Py_NewRef((PyObject *)Py_TYPE(args[0]));
  }
  if (type == &PyFloat_Type && c.npos == 1 && c.tail && !c.nkw && fl_call_gives_float(r, args[0]))
    return opaque(r, &c, true, "a number out of a tensor", "float");
  if (fl_ccall_type_class(type) != FL_CC_TYPE || any_unknown(r, &c, !fl_ccall_is_python_class(type)))
    return opaque(r, &c, false, "unknown C type", type->tp_name);
  fl_attr_saw_slot(r, type, fl_n.__new__);
  fl_attr_saw_slot(r, type, fl_n.__init__);
  bool python = fl_ccall_is_python_class(type);
  bool looks = type->tp_init != slot_init && type->tp_init != PyBaseObject_Type.tp_init;
  if (looks || (type->tp_new != slot_new && type->tp_new != PyBaseObject_Type.tp_new)) fl_call_saw_args(r, &c, 0);
  if (python && type->tp_new) return construct(r, type, &c);
  v = number(&c, type == &PyLong_Type && c.npos == 1 && !c.nkw && c.tail && fl_ccall_is_tensor(Py_TYPE(args[0])));
  if (v && !PyTuple_CheckExact(v)) mark_result(r, v);
  return v;
}

static PyObject *call_type(fl_rec *r, const fl_call_args *c) {
  PyTypeObject *type = (PyTypeObject *)c->callable, *meta = Py_TYPE(c->callable);
  if (meta->tp_call == slot_call) {
    fl_attr_saw_slot(r, meta, fl_n.__call__);
    return fl_call_natively(c);
  }
  if (meta->tp_call != PyType_Type.tp_call) {
    fl_cc cls = fl_ccall_type_class(type);
    if (cls == FL_CC_CONTEXT) return call_context(r, c);
    if (cls != FL_CC_TYPE) fl_rec_give_up(r, "unknown C type", type->tp_name);
    return fl_call_natively(c);
  }
  fl_eval_here->tail = c->tail;
  return fl_call_type(r, type, c->args, c->nargsf, c->kwnames);
}

/* --- callable objects --- */

static PyObject *call_partial(fl_rec *r, const fl_call_args *c) {
  PyObject *func = fl_attr_get(r, c->callable, fl_n.func), *pre = fl_attr_get(r, c->callable, fl_n.args);
  PyObject *kw = fl_attr_get(r, c->callable, fl_n.keywords), *own = args_tuple(c->args, c->npos), *args = NULL;
  PyObject *kwargs = NULL, *extra = args_dict(c), *v = NULL;
  if (!func || !pre || !kw || !own || !extra) goto done;
  if (!(args = PySequence_Concat(pre, own)) || !(kwargs = PyDict_Copy(kw))) goto done;
  fl_tell(r, fl_rec_read_contents(r, kw));
  if (PyDict_Update(kwargs, extra) < 0) goto done;
  fl_eval_here->tail = c->tail;
  v = fl_call_ex(r, func, args, PyDict_GET_SIZE(kwargs) ? kwargs : NULL);
done:
  Py_XDECREF(func);
  Py_XDECREF(pre);
  Py_XDECREF(kw);
  Py_XDECREF(own);
  Py_XDECREF(extra);
  Py_XDECREF(args);
  Py_XDECREF(kwargs);
  return v;
}

/* A bound method of something that is no Python function. */
static PyObject *call_bound(fl_rec *r, const fl_call_args *c) {
  PyObject *small[8], **args = small, *v;
  size_t n = c->npos + c->nkw;
  if (n + 1 > 8 && !(args = PyMem_Malloc((n + 1) * sizeof *args))) return PyErr_NoMemory();
  args[0] = PyMethod_GET_SELF(c->callable);
  for (size_t i = 0; i < n; i++) args[i + 1] = c->args[i];
  fl_eval_here->tail = c->tail;
  v = fl_call(r, PyMethod_GET_FUNCTION(c->callable), args, c->npos + 1, c->kwnames);
  if (args != small) PyMem_Free(args);
  return v;
}

static PyObject *call_object(fl_rec *r, const fl_call_args *c) {
  PyTypeObject *tp = Py_TYPE(c->callable);
  if (tp->tp_call == slot_call) {
    if (c->npos && !c->nkw && fl_call_is_vmapped_function(r, c->callable, c->args[0]))
      return fl_call_vmapped_function(r, c->args[0], c->args + 1, c->npos - 1);
    fl_tell(r, fl_rec_read_instance(r, c->callable));
    fl_attr_saw_slot(r, tp, fl_n.__call__);
    PyObject *call = _PyType_Lookup(tp, fl_n.__call__);
    if (call && PyFunction_Check(call)) return enter(c, call, c->callable);
    if (call && Py_TYPE(call)->tp_call) fl_ccall_callback(r, call);
    return fl_call_natively(c);
  }
  if (fl_ccall_is_partial(c->callable)) return call_partial(r, c);
  if (fl_ccall_is_cached(c->callable)) return call_cached(r, c);
  if (PyWeakref_CheckRefExact(c->callable)) return call_weakref(r, c);
  if (tp == &PyStaticMethod_Type) {
    PyObject *func = PyObject_GetAttrString(c->callable, "__func__"), *v;
    if (!func) return NULL;
    fl_eval_here->tail = c->tail;
    v = fl_call(r, func, c->args, c->nargsf, c->kwnames);
    Py_DECREF(func);
    return v;
  }
  PyObject *target = fl_compiled_target(c->callable);
  if (target && fl_compiled_is_as_its_target(c->callable) && fl_grad_enabled() == 0) {
    fl_eval_here->tail = c->tail;
    return fl_call(r, target, c->args, c->nargsf, c->kwnames);
  }
  if (!c->nkw && !any_unknown(r, c, true) && fl_numpy_computes(c->callable, c->args, c->npos))
    return fl_numpy_computed(r, fl_call_natively(c));
  return tp->tp_call ? opaque(r, c, false, "unknown C callable", tp->tp_name) : fl_call_natively(c);
}

PyObject *fl_call(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
  PyTypeObject *tp = Py_TYPE(callable);
  if (!r) {
    PyObject *v = PyObject_Vectorcall(callable, args, nargsf, kwnames);
    if (v && fl_eval_here && fl_eval_here->r && PyCFunction_Check(callable)) fl_contexts_unrecorded(callable);
    return v;
  }
  const char *reason, *detail;
  fl_call_args c = make_args(callable, args, nargsf, kwnames);
  if (fl_rec_must_be_opaque(r, callable, &reason, &detail)) return opaque(r, &c, false, reason, detail);
  if (tp == &PyFunction_Type) return enter(&c, callable, callable);
  if (fl_rec_is_unknown(r, callable, false))
    return opaque(r, &c, false, "an object that unknown code gave", Py_TYPE(callable)->tp_name);
  if (tp == &PyMethod_Type) {
    PyObject *func = PyMethod_GET_FUNCTION(callable);
    return PyFunction_Check(func) ? enter(&c, func, func) : call_bound(r, &c);
  }
  if (PyCFunction_Check(callable) || tp == &PyMethodDescr_Type || tp == &PyWrapperDescr_Type ||
      tp == &_PyMethodWrapper_Type || tp == &PyClassMethodDescr_Type)
    return call_c(r, &c);
  return PyType_Check(callable) ? call_type(r, &c) : call_object(r, &c);
}

static bool only_strings(PyObject *dict) {
  PyObject *key, *v;
  Py_ssize_t pos = 0;
  while (PyDict_Next(dict, &pos, &key, &v))
    if (!PyUnicode_Check(key)) return false;
  return true;
}

PyObject *fl_call_ex(fl_rec *r, PyObject *callable, PyObject *args, PyObject *kwargs) {
  if (!r || (kwargs && !only_strings(kwargs))) return PyObject_Call(callable, args, kwargs);
  Py_ssize_t npos = PyTuple_GET_SIZE(args), nkw = kwargs ? PyDict_GET_SIZE(kwargs) : 0, at = 0, pos = 0;
  PyObject *small[16], **flat = small, *names = nkw ? PyTuple_New(nkw) : NULL, *key, *value, *v = NULL;
  if ((nkw && !names) || (npos + nkw > 16 && !(flat = PyMem_Malloc((size_t)(npos + nkw) * sizeof *flat)))) {
    Py_XDECREF(names);
    return PyErr_NoMemory();
  }
  for (; at < npos; at++) flat[at] = Py_NewRef(PyTuple_GET_ITEM(args, at));
  while (nkw && PyDict_Next(kwargs, &pos, &key, &value)) {
    PyTuple_SET_ITEM(names, at - npos, Py_NewRef(key));
    flat[at++] = Py_NewRef(value);
  }
  v = fl_call(r, callable, flat, (size_t)npos, names);
  while (at > 0) Py_DECREF(flat[--at]);
  if (flat != small) PyMem_Free(flat);
  Py_XDECREF(names);
  return v;
}
