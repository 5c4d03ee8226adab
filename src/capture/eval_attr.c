/* Attribute lookup with every step reported.
 *
 * A type's tp_getattro tells which algorithm CPython would run. The ones Python code meets (object's, type's, module's,
 * super's, bound methods', classes with __getattr__ or __getattribute__ of their own) are walked here step by step;
 * any other is C code we do not know, and gives the recording up. */
#include <string.h>

#include "capture/cpython/compat.h"
#include "capture/ccalls.h"
#include "capture/compiled.h"
#include "capture/eval_impl.h"

/* CPython's own slot functions for classes that define __getattr__ / __getattribute__ / __setattr__ in Python. */
static getattrofunc slot_getattr_hook, slot_getattro;
static setattrofunc slot_setattro;
static descrgetfunc slot_descr_get;
static descrsetfunc slot_descr_set;

typedef struct probe_slots {
  getattrofunc get;
  setattrofunc set;
  descrgetfunc dget;
  descrsetfunc dset;
} probe_slots;

static int probe(const char *body, probe_slots *out) {
  PyObject *ns = PyDict_New(), *run, *cls;
  if (!ns || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) return -1;
  run = PyRun_String(body, Py_file_input, ns, ns);
  cls = run ? PyDict_GetItemString(ns, "P") : NULL;
  if (cls) {
    PyTypeObject *tp = (PyTypeObject *)cls;
    *out = (probe_slots){tp->tp_getattro, tp->tp_setattro, tp->tp_descr_get, tp->tp_descr_set};
  }
  Py_XDECREF(run);
  Py_DECREF(ns);
  return cls ? 0 : -1;
}

int fl_attr_init(void) {
  probe_slots p;
  if (probe("class P:\n def __getattr__(self, n): raise AttributeError\n def __setattr__(self, n, v): pass\n"
            " def __get__(self, o, t): pass\n def __set__(self, o, v): pass\n",
            &p) < 0)
    return -1;
  slot_getattr_hook = p.get;
  slot_setattro = p.set;
  slot_descr_get = p.dget;
  slot_descr_set = p.dset;
  if (probe("class P:\n def __getattribute__(self, n): raise AttributeError\nfor P in (P,):\n try: P().x\n"
            " except AttributeError: pass\n",
            &p) < 0)
    return -1;
  slot_getattro = p.get;
  return 0;
}

/* --- reports --- */

static PyObject *type_lookup(fl_rec *r, PyTypeObject *tp, PyObject *name) {
  PyObject *v = _PyType_Lookup(tp, name);
  if (r) fl_tell(r, fl_rec_read_type(r, tp, name, v));
  return v;
}

void fl_attr_saw_slot(fl_rec *r, PyTypeObject *tp, PyObject *name) {
  if (tp->tp_flags & Py_TPFLAGS_HEAPTYPE) fl_ccall_slot(r, type_lookup(r, tp, name));
}

/* --- descriptors --- */

/* Calls a descriptor's getter: the C ones we know, Python ones through their slot (and so through the frame hook). */
static PyObject *descr_get(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *type) {
  PyTypeObject *dt = Py_TYPE(descr);
  descrgetfunc get = dt->tp_descr_get;
  if (!r) return get(descr, obj, type);
  if (get == slot_descr_get) {
    type_lookup(r, dt, fl_n.__get__);
    return get(descr, obj, type);
  }
  if (obj && (dt == &PyGetSetDescr_Type || dt == &PyMemberDescr_Type)) return fl_ccall_getset(r, descr, obj, type);
  if (get == PyFunction_Type.tp_descr_get || get == PyProperty_Type.tp_descr_get ||
      get == PyMethodDescr_Type.tp_descr_get || get == PyWrapperDescr_Type.tp_descr_get ||
      get == PyClassMethod_Type.tp_descr_get || get == PyStaticMethod_Type.tp_descr_get ||
      get == PyClassMethodDescr_Type.tp_descr_get || get == PyGetSetDescr_Type.tp_descr_get ||
      get == PyMemberDescr_Type.tp_descr_get || get == PyInstanceMethod_Type.tp_descr_get ||
      get == PyMethod_Type.tp_descr_get || get == PySuper_Type.tp_descr_get || get == fl_compiled_type.tp_descr_get ||
      fl_ccall_is_cached(descr) || fl_ccall_type_class(dt) == FL_CC_TYPE) /* a named tuple's field */
    return get(descr, obj, type);
  fl_rec_give_up(r, "unknown C descriptor", dt->tp_name);
  return get(descr, obj, type);
}

/* The getter of a property in C (operator.attrgetter and the like) is a call of unknown code. */
static void saw_property(fl_rec *r, PyObject *descr) {
  if (Py_TYPE(descr)->tp_descr_get != PyProperty_Type.tp_descr_get) return;
  PyObject *fget = PyObject_GetAttrString(descr, "fget");
  if (!fget)
    PyErr_Clear();
  else if (fget != Py_None)
    fl_ccall_callback(r, fget);
  Py_XDECREF(fget);
}

/* --- object.__getattribute__ --- */

/* The instance dictionary, or NULL. Making it real for an object with inline values changes nothing one can see. */
static PyObject *instance_dict(PyObject *obj) {
  PyObject **at = _PyObject_GetDictPtr(obj);
  return at ? *at : NULL;
}

/* 1 found, 0 absent, -1. *method (optional): found an unbound method to be called with obj. */
static int generic_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out, bool *method) {
  PyTypeObject *tp = Py_TYPE(obj);
  if (r) fl_attr_saw_slot(r, tp, fl_n.__getattribute__);
  PyObject *descr = type_lookup(r, tp, name), *dict, *v;
  descrgetfunc get = descr ? Py_TYPE(descr)->tp_descr_get : NULL;
  int rc = 0;
  *out = NULL;
  Py_XINCREF(descr);
  if (descr && r) saw_property(r, descr);
  if (get && PyDescr_IsData(descr)) {
    *out = descr_get(r, descr, obj, (PyObject *)tp);
    rc = *out ? 1 : -1;
    goto done;
  }
  dict = instance_dict(obj);
  /* What a new object's own dictionary holds came from this call. */
  bool outside = r && !fl_rec_is_fresh(r, obj);
  if (outside && (dict || tp->tp_dictoffset)) fl_tell(r, fl_rec_read_instance(r, obj));
  if (dict) {
    Py_INCREF(dict);
    v = Py_XNewRef(PyDict_GetItemWithError(dict, name));
    if (outside && (v || !PyErr_Occurred())) fl_tell(r, fl_rec_read_item(r, dict, name, v));
    Py_DECREF(dict);
    if (v || PyErr_Occurred()) {
      *out = v;
      rc = v ? 1 : -1;
      goto done;
    }
  }
  if (descr && method && PyType_HasFeature(Py_TYPE(descr), Py_TPFLAGS_METHOD_DESCRIPTOR)) {
    *method = true;
    *out = Py_NewRef(descr);
    rc = 1;
  } else if (get) {
    *out = descr_get(r, descr, obj, (PyObject *)tp);
    rc = *out ? 1 : -1;
  } else if (descr) {
    *out = Py_NewRef(descr);
    rc = 1;
  } else if (r)
    fl_attr_saw_slot(r, tp, fl_n.__getattr__);
done:
  Py_XDECREF(descr);
  return rc;
}

/* An AttributeError raised by a getter counts as absent only where CPython says so: 1, 0 or -1. */
static int forgive(int rc) {
  if (rc >= 0 || !PyErr_ExceptionMatches(PyExc_AttributeError)) return rc;
  PyErr_Clear();
  return 0;
}

/* --- type.__getattribute__ --- */

static int type_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out) {
  PyTypeObject *type = (PyTypeObject *)obj, *meta = Py_TYPE(obj);
  if (r) fl_attr_saw_slot(r, meta, fl_n.__getattribute__);
  PyObject *meta_attr = Py_XNewRef(type_lookup(r, meta, name)), *attr;
  descrgetfunc get = meta_attr ? Py_TYPE(meta_attr)->tp_descr_get : NULL;
  *out = NULL;
  if (get && PyDescr_IsData(meta_attr)) {
    *out = descr_get(r, meta_attr, obj, (PyObject *)meta);
  } else if ((attr = Py_XNewRef(type_lookup(r, type, name)))) {
    *out = Py_TYPE(attr)->tp_descr_get ? descr_get(r, attr, NULL, obj) : Py_NewRef(attr);
    Py_DECREF(attr);
  } else if (get) {
    *out = descr_get(r, meta_attr, obj, (PyObject *)meta);
  } else if (meta_attr) {
    *out = Py_NewRef(meta_attr);
  } else {
    return 0;
  }
  Py_XDECREF(meta_attr);
  return *out ? 1 : -1;
}

/* --- modules --- */

static int module_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out) {
  int rc = forgive(generic_find(r, obj, name, out, NULL));
  PyObject *dict = PyModule_GetDict(obj), *hook;
  if (rc || !dict) return rc;
  hook = PyDict_GetItemWithError(dict, fl_n.__getattr__);
  if (r) fl_tell(r, fl_rec_read_item(r, dict, fl_n.__getattr__, hook));
  if (!hook) return 0;
  Py_INCREF(hook);
  *out = fl_call(r, hook, &name, 1, NULL);
  Py_DECREF(hook);
  return *out ? 1 : -1;
}

/* --- super --- */

/* A look-up along the rest of an MRO: guarded on the next class where that finds the same, else class by class. */
static void saw_super(fl_rec *r, PyObject *obj, PyObject *name) {
  PyObject *this = PyObject_GetAttrString(obj, "__thisclass__");
  PyObject *start = PyObject_GetAttrString(obj, "__self_class__");
  PyObject *mro = start && PyType_Check(start) ? ((PyTypeObject *)start)->tp_mro : NULL;
  Py_ssize_t n = mro ? PyTuple_GET_SIZE(mro) : 0, i = 0;
  PyErr_Clear();
  while (i < n && PyTuple_GET_ITEM(mro, i) != this) i++;
  for (i++; i < n; i++) {
    PyTypeObject *tp = (PyTypeObject *)PyTuple_GET_ITEM(mro, i);
    PyObject *here = PyDict_GetItemWithError(fl_cpy_type_dict(tp), name);
    if (here) {
      fl_tell(r, fl_rec_read_type(r, tp, name, here));
      break;
    }
    fl_tell(r, fl_rec_read_item(r, fl_cpy_type_dict(tp), name, NULL));
  }
  Py_XDECREF(this);
  Py_XDECREF(start);
}

/* --- the algorithm a type uses --- */

static int find_by(fl_rec *r, getattrofunc fn, PyObject *obj, PyObject *name, PyObject **out);

/* The getattrofunc behind a C __getattribute__, or NULL when it is Python's. */
static getattrofunc wrapped_getattro(PyObject *descr) {
  if (!descr || !Py_IS_TYPE(descr, &PyWrapperDescr_Type)) return NULL;
  return (getattrofunc)((PyWrapperDescrObject *)descr)->d_wrapped;
}

static PyObject *call_hook(fl_rec *r, PyObject *attr, PyObject *obj, PyObject *name) {
  descrgetfunc get = Py_TYPE(attr)->tp_descr_get;
  PyObject *bound = get ? descr_get(r, attr, obj, (PyObject *)Py_TYPE(obj)) : Py_NewRef(attr), *v;
  if (!bound) return NULL;
  v = fl_call(r, bound, &name, 1, NULL);
  Py_DECREF(bound);
  return v;
}

/* Lazy modules and torch.ops keep what their __getattr__ finds: it is made now, unreported, as an import is. */
static void settle_lazy(PyObject *obj, PyObject *name) {
  if (!PyModule_Check(obj) && !fl_ccall_is_torch_ops(Py_TYPE(obj))) return;
  fl_eval_pause(1);
  PyObject *v = PyObject_GetAttr(obj, name);
  Py_XDECREF(v);
  PyErr_Clear();
  fl_eval_pause(0);
}

/* Classes with __getattr__ or __getattribute__ in Python. */
static int hooked_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out) {
  PyTypeObject *tp = Py_TYPE(obj);
  settle_lazy(obj, name);
  PyObject *own = Py_XNewRef(type_lookup(r, tp, fl_n.__getattribute__));
  PyObject *hook = Py_XNewRef(type_lookup(r, tp, fl_n.__getattr__));
  getattrofunc plain = own ? wrapped_getattro(own) : PyObject_GenericGetAttr;
  int rc;
  if (plain) {
    rc = find_by(r, plain, obj, name, out);
  } else {
    *out = call_hook(r, own, obj, name);
    rc = *out ? 1 : -1;
  }
  if (hook && (rc == 0 || forgive(rc) == 0)) {
    *out = call_hook(r, hook, obj, name);
    rc = *out ? 1 : -1;
  }
  Py_XDECREF(own);
  Py_XDECREF(hook);
  return rc;
}

static int find_by(fl_rec *r, getattrofunc fn, PyObject *obj, PyObject *name, PyObject **out) {
  fl_rec_uses(r, obj);
  if (fn == PyObject_GenericGetAttr) return generic_find(r, obj, name, out, NULL);
  if (fn == slot_getattr_hook || fn == slot_getattro) return hooked_find(r, obj, name, out);
  if (fn == PyModule_Type.tp_getattro && PyModule_Check(obj)) return module_find(r, obj, name, out);
  if (fn == PyType_Type.tp_getattro && PyType_Check(obj)) return type_find(r, obj, name, out);
  PyObject *target = fl_compiled_target(obj);
  if (target) fl_tell(r, fl_rec_read_instance(r, target));
  if (target && fl_compiled_is_target_attr(name)) return find_by(r, Py_TYPE(target)->tp_getattro, target, name, out);
  if (fn == PySuper_Type.tp_getattro)
    saw_super(r, obj, name);
  else if (fn == PyMethod_Type.tp_getattro) {
    /* What the method's own type lacks is asked of its function. */
    if (!type_lookup(r, Py_TYPE(obj), name))
      return find_by(r, Py_TYPE(PyMethod_GET_FUNCTION(obj))->tp_getattro, PyMethod_GET_FUNCTION(obj), name, out);
  } else if (!target && !fl_ccall_known_type(Py_TYPE(obj))) {
    fl_rec_give_up(r, "attribute of an unknown C type", Py_TYPE(obj)->tp_name);
  }
  *out = fn(obj, name);
  return *out ? 1 : -1;
}

/* --- entry points --- */

PyObject *fl_attr_get(fl_rec *r, PyObject *obj, PyObject *name) {
  PyTypeObject *tp = Py_TYPE(obj);
  PyObject *v;
  if (!r || !tp->tp_getattro || !PyUnicode_CheckExact(name)) return PyObject_GetAttr(obj, name);
  if (fl_eval_here->tail) return fl_call_operator(r, "getattr", (PyObject *[]){obj, name}, 2);
  int rc = find_by(r, tp->tp_getattro, obj, name, &v);
  if (rc > 0) return v;
  if (rc < 0) return NULL;
  /* Absent, and nothing ran that must not run twice: let CPython say so in its own words. */
  fl_eval_pause(1);
  v = tp->tp_getattro == slot_getattr_hook || tp->tp_getattro == slot_getattro ? PyObject_GenericGetAttr(obj, name)
                                                                               : PyObject_GetAttr(obj, name);
  fl_eval_pause(0);
  return v;
}

int fl_attr_find(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out) {
  if (r && Py_TYPE(obj)->tp_getattro && PyUnicode_CheckExact(name))
    return forgive(find_by(r, Py_TYPE(obj)->tp_getattro, obj, name, out));
  return _PyObject_LookupAttr(obj, name, out);
}

int fl_attr_method(fl_rec *r, PyObject *obj, PyObject *name, PyObject **out) {
  *out = NULL;
  if (!r) {
    int bound = _PyObject_GetMethod(obj, name, out);
    return *out ? bound : -1;
  }
  if (Py_TYPE(obj)->tp_getattro == PyObject_GenericGetAttr && PyUnicode_CheckExact(name)) {
    fl_rec_uses(r, obj);
    bool method = false;
    int rc = generic_find(r, obj, name, out, &method);
    if (rc) return rc < 0 ? -1 : method;
  }
  *out = fl_attr_get(r, obj, name);
  return *out ? 0 : -1;
}

PyObject *fl_attr_generic_get(fl_rec *r, PyObject *obj, PyObject *name) {
  PyObject *v;
  if (!r || !PyUnicode_CheckExact(name)) return PyObject_GenericGetAttr(obj, name);
  int rc = generic_find(r, obj, name, &v, NULL);
  return rc ? v : PyObject_GenericGetAttr(obj, name);
}

PyObject *fl_attr_type_get(fl_rec *r, PyObject *type, PyObject *name) {
  PyObject *v;
  if (!r || !PyUnicode_CheckExact(name)) return PyType_Type.tp_getattro(type, name);
  int rc = type_find(r, type, name, &v);
  return rc ? v : PyType_Type.tp_getattro(type, name);
}

PyObject *fl_attr_module_get(fl_rec *r, PyObject *module, PyObject *name) {
  PyObject *v;
  return module_find(r, module, name, &v) ? v : PyModule_Type.tp_getattro(module, name);
}

PyObject *fl_attr_special(fl_rec *r, PyObject *obj, PyObject *name) {
  fl_rec_uses(r, obj);
  PyObject *descr = type_lookup(r, Py_TYPE(obj), name), *v;
  if (!descr) return NULL;
  Py_INCREF(descr);
  v = Py_TYPE(descr)->tp_descr_get ? descr_get(r, descr, obj, (PyObject *)Py_TYPE(obj)) : Py_NewRef(descr);
  Py_DECREF(descr);
  return v;
}

/* --- setting --- */

int fl_attr_generic_set(fl_rec *r, PyObject *obj, PyObject *name, PyObject *value) {
  if (!r || !PyUnicode_CheckExact(name)) return PyObject_GenericSetAttr(obj, name, value);
  PyObject *descr = type_lookup(r, Py_TYPE(obj), name);
  descrsetfunc set = descr ? Py_TYPE(descr)->tp_descr_set : NULL;
  if (set == slot_descr_set) {
    type_lookup(r, Py_TYPE(descr), value ? fl_n.__set__ : fl_n.__delete__);
  } else if (set && set == PyProperty_Type.tp_descr_set) {
    PyObject *fset = PyObject_GetAttrString(descr, value ? "fset" : "fdel");
    if (!fset)
      PyErr_Clear();
    else if (fset != Py_None)
      fl_ccall_callback(r, fset);
    Py_XDECREF(fset);
  } else {
    if (!set) {
      instance_dict(obj); /* a guard on the dictionary needs it to exist */
      fl_tell(r, fl_rec_read_instance(r, obj));
    }
    if (!set || fl_ccall_setset(r, descr, obj, value)) fl_tell(r, fl_rec_write(r, FL_WRITE_ATTR, obj, name, value));
  }
  return PyObject_GenericSetAttr(obj, name, value);
}

static int set_by_object(fl_rec *r, PyObject *obj, PyObject *name, PyObject *value) {
  PyObject *key = Py_NewRef(name);
  PyUnicode_InternInPlace(&key);
  int rc = fl_attr_generic_set(r, obj, key, value);
  Py_DECREF(key);
  return rc;
}

int fl_attr_set(fl_rec *r, PyObject *obj, PyObject *name, PyObject *value) {
  PyObject *target = r ? fl_compiled_target(obj) : NULL;
  if (target) return fl_attr_set(r, target, name, value);
  fl_rec_uses(r, obj);
  setattrofunc fn = Py_TYPE(obj)->tp_setattro;
  if (r && fn == PyObject_GenericSetAttr && PyUnicode_CheckExact(name)) {
    fl_attr_saw_slot(r, Py_TYPE(obj), value ? fl_n.__setattr__ : fl_n.__delattr__);
    return set_by_object(r, obj, name, value);
  }
  if (r && fn == slot_setattro) {
    PyObject *own = type_lookup(r, Py_TYPE(obj), value ? fl_n.__setattr__ : fl_n.__delattr__), *self;
    fl_cc cls = own ? fl_ccall_class(own, &self) : FL_CC_UNKNOWN;
    /* A class may define one of the two in Python, and have object's other one. */
    if (cls == (value ? FL_CC_OBJ_SETATTR : FL_CC_OBJ_DELATTR) && PyUnicode_CheckExact(name) && !PyType_Check(obj))
      return set_by_object(r, obj, name, value);
    if (own && !PyFunction_Check(own)) fl_ccall_callback(r, own);
  } else if (r) {
    if (fn != PyType_Type.tp_setattro && !fl_ccall_known_type(Py_TYPE(obj)))
      fl_rec_give_up(r, "attribute set on an unknown C type", Py_TYPE(obj)->tp_name);
    fl_tell(r, fl_rec_write(r, FL_WRITE_ATTR, obj, name, value));
  }
  return value ? PyObject_SetAttr(obj, name, value) : PyObject_DelAttr(obj, name);
}
