/* The table of ccalls.def, resolved to addresses, and what follows from it for types and attributes in C. */
#include "capture/cpython/compat.h"
#include "capture/ccalls.h"

#include <string.h>

#include "base/alloc.h"
#include "capture/eval_impl.h"

typedef struct fl_cc_slot {
  const void *key;
  fl_cc cls;
} fl_cc_slot;

static fl_cc_slot *table;
static size_t table_mask, table_len;
static destructor subtype_dealloc; /* of classes made by class statements */
static PyTypeObject *partial_type, *cached_type;
enum { TORCH_OWN = 5 };
static PyObject *ops_types[TORCH_OWN], *ops_code[TORCH_OWN], *import_code;
static bool ready;

/* The layout of bound slot wrappers is private, and has not changed since Python 2. */
typedef struct fl_method_wrapper {
  PyObject_HEAD PyWrapperDescrObject *descr;
  PyObject *self;
} fl_method_wrapper;

static size_t slot_of(const void *key) {
  size_t h = (size_t)key >> 4;
  h = (h ^ h >> 17) * 0x9E3779B97F4A7C15u;
  return (h >> 20) & table_mask;
}

static fl_cc lookup(const void *key) {
  if (!table || !key) return FL_CC_UNKNOWN;
  for (size_t i = slot_of(key); table[i].key; i = (i + 1) & table_mask)
    if (table[i].key == key) return table[i].cls;
  return FL_CC_UNKNOWN;
}

static bool insert(const void *key, fl_cc cls) {
  if (!key) return true;
  if (table_len * 2 >= table_mask) {
    size_t old_size = table ? table_mask + 1 : 0, size = old_size ? old_size * 2 : 8192;
    fl_cc_slot *old = table, *new_table = fl_calloc(size, sizeof *new_table);
    if (!new_table) return false;
    table = new_table;
    table_mask = size - 1;
    table_len = 0;
    for (size_t i = 0; i < old_size; i++)
      if (old[i].key) insert(old[i].key, old[i].cls);
    fl_free(old);
  }
  size_t i = slot_of(key);
  while (table[i].key && table[i].key != key) i = (i + 1) & table_mask;
  if (!table[i].key) table_len++;
  table[i] = (fl_cc_slot){key, cls};
  return true;
}

/* What identifies a callable, an attribute in C or a type. */
static const void *key_of(PyObject *o) {
  PyTypeObject *tp = Py_TYPE(o);
  if (PyCFunction_Check(o)) return ((PyCFunctionObject *)o)->m_ml;
  if (tp == &PyMethodDescr_Type || tp == &PyClassMethodDescr_Type) return ((PyMethodDescrObject *)o)->d_method;
  if (tp == &_PyMethodWrapper_Type) return ((fl_method_wrapper *)o)->descr;
  if (tp == &PyGetSetDescr_Type) return ((PyGetSetDescrObject *)o)->d_getset;
  if (tp == &PyMemberDescr_Type) return ((PyMemberDescrObject *)o)->d_member;
  if (tp == &PyStaticMethod_Type) return NULL;
  return o;
}

static bool in_c(PyObject *o) {
  PyTypeObject *tp = Py_TYPE(o);
  return PyCFunction_Check(o) || tp == &PyMethodDescr_Type || tp == &PyClassMethodDescr_Type ||
         tp == &PyWrapperDescr_Type || tp == &_PyMethodWrapper_Type || tp == &PyGetSetDescr_Type ||
         tp == &PyMemberDescr_Type;
}

/* --- resolving rows --- */

/* Iterator types have no name of their own: examples of them stand for a module. */
static PyObject *iterator_types(void) {
  static const char body[] =
      "def _g(): yield\n"
      "I = [iter([]), iter(()), iter({}), iter({}.items()), iter({}.values()), iter(set()),"
      " iter(''), iter('\\u20ac'), iter(b''), iter(bytearray()), iter(range(1)), iter(range(1 << 99)),"
      " reversed([]), reversed({}), reversed({}.items()), reversed({}.values()),"
      " iter(int, 1), {}.keys(), {}.items(), {}.values()]\n"
      "import collections as _c\n"
      "_o = _c.OrderedDict()\n"
      "I += [iter(_c.deque()), reversed(_c.deque()), iter(_o), _o.keys(), _o.items(), _o.values(),"
      " iter(_o.items())]\n"
      "T = list({type(i): 1 for i in I})\n";
  PyObject *ns = PyDict_New(), *run, *types;
  if (!ns || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) return NULL;
  run = PyRun_String(body, Py_file_input, ns, ns);
  types = run ? Py_XNewRef(PyDict_GetItemString(ns, "T")) : NULL;
  Py_XDECREF(run);
  Py_DECREF(ns);
  return types;
}

/* Every C attribute in a type's own namespace. */
static bool insert_namespace(PyObject *holder, fl_cc cls) {
  PyTypeObject *tp = PyType_Check(holder) ? (PyTypeObject *)holder : Py_TYPE(holder);
  PyObject *key, *v;
  Py_ssize_t pos = 0;
  while (PyDict_Next(fl_cpy_type_dict(tp), &pos, &key, &v)) {
    PyObject *o = v, *plain = NULL;
    if (Py_IS_TYPE(v, &PyStaticMethod_Type)) o = plain = PyObject_GetAttrString(v, "__func__");
    bool is_new = PyUnicode_CompareWithASCIIString(key, "__new__") == 0;
    bool ok = !o || !in_c(o) || is_new || insert(key_of(o), cls);
    Py_XDECREF(plain);
    if (!ok) return false;
  }
  return true;
}

static bool insert_module(PyObject *module, fl_cc cls) {
  PyObject *key, *v;
  Py_ssize_t pos = 0;
  while (PyDict_Next(PyModule_GetDict(module), &pos, &key, &v))
    if (PyCFunction_Check(v) && !insert(key_of(v), cls)) return false;
  return true;
}

static bool insert_types(PyObject *types, fl_cc cls, bool namespaces) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(types); i++) {
    PyObject *tp = PyList_GET_ITEM(types, i);
    if (namespaces ? !insert_namespace(tp, cls) : !insert(tp, cls)) return false;
  }
  return true;
}

/* A part of a dotted name: a type's raw attribute, so that descriptors stay descriptors. */
static PyObject *member(PyObject *holder, const char *name, size_t len) {
  PyObject *key = PyUnicode_FromStringAndSize(name, (Py_ssize_t)len), *v;
  if (!key) return NULL;
  if (PyType_Check(holder))
    v = Py_XNewRef(_PyType_Lookup((PyTypeObject *)holder, key));
  else
    v = PyObject_GetAttr(holder, key);
  Py_DECREF(key);
  PyErr_Clear();
  return v;
}

/* A name this version lacks is skipped. */
static bool insert_name(PyObject *module, const char *name, size_t len, fl_cc cls) {
  PyObject *at = Py_NewRef(module);
  const char *end = name + len;
  bool ok = true;
  while (at && name < end) {
    const char *dot = memchr(name, '.', (size_t)(end - name));
    size_t part = dot ? (size_t)(dot - name) : (size_t)(end - name);
    if (part == 1 && *name == '*') {
      ok = PyModule_Check(at) ? insert_module(at, cls) : insert_namespace(at, cls);
      Py_DECREF(at);
      return ok;
    }
    PyObject *next = member(at, name, part);
    Py_SETREF(at, next);
    name += part + (dot ? 1 : 0);
  }
  /* pybind11's methods */
  if (at && PyInstanceMethod_Check(at)) Py_SETREF(at, Py_NewRef(PyInstanceMethod_GET_FUNCTION(at)));
  if (at) ok = insert(key_of(at), cls);
  Py_XDECREF(at);
  return ok;
}

static bool insert_row(const char *module_name, fl_cc cls, const char *names) {
  if (strcmp(module_name, "framelift:iterators") == 0) {
    PyObject *types = iterator_types();
    bool ok = types && insert_types(types, cls, strchr(names, '.') != NULL);
    Py_XDECREF(types);
    return ok;
  }
  bool loads = strcmp(module_name, "numpy") != 0; /* nothing is loaded that the program does without */
  PyObject *name = PyUnicode_FromString(module_name);
  PyObject *module = !name ? NULL : loads ? PyImport_Import(name) : PyImport_GetModule(name);
  Py_XDECREF(name);
  if (!module) {
    PyErr_Clear();
    return true;
  }
  bool ok = true;
  while (ok && *names) {
    size_t len = strcspn(names, " ");
    if (len) ok = insert_name(module, names, len, cls);
    names += len;
    if (*names) names++;
  }
  Py_DECREF(module);
  return ok;
}

static int init_types(void) {
  PyObject *ns = PyDict_New(), *run;
  if (!ns || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) return -1;
  run = PyRun_String("import functools as f\nclass P: pass\npartial = f.partial\ncached = f._lru_cache_wrapper\n",
                     Py_file_input, ns, ns);
  if (run) {
    subtype_dealloc = ((PyTypeObject *)PyDict_GetItemString(ns, "P"))->tp_dealloc;
    partial_type = (PyTypeObject *)Py_NewRef(PyDict_GetItemString(ns, "partial"));
    cached_type = (PyTypeObject *)Py_NewRef(PyDict_GetItemString(ns, "cached"));
  }
  Py_XDECREF(run);
  Py_DECREF(ns);
  return run ? 0 : -1;
}

/* The classes of torch.ops, and torch's own Python that fills in what operators need, or that its C++ calls on the way to one.
 * Nothing without torch. */
static void init_torch_own(void) {
  static const struct {
    const char *module, *cls, *function;
  } rows[] = {{"torch._ops", "_Ops", "__getattr__"},
              {"torch._ops", "_OpNamespace", "__getattr__"},
              {"torch._ops", "OpOverloadPacket", "__getattr__"},
              {"torch._library.simple_registry", NULL, "find_torch_dispatch_rule"},
              {"torch._functorch.vmap", NULL, "lazy_load_decompositions"}};
  for (int i = 0; i < TORCH_OWN; i++) {
    PyObject *holder = PyImport_ImportModule(rows[i].module), *fn = NULL;
    if (holder && rows[i].cls) {
      Py_SETREF(holder, PyObject_GetAttrString(holder, rows[i].cls));
      ops_types[i] = Py_XNewRef(holder);
    }
    fn = holder ? PyObject_GetAttrString(holder, rows[i].function) : NULL;
    if (fn && PyFunction_Check(fn)) ops_code[i] = Py_NewRef(PyFunction_GET_CODE(fn));
    Py_XDECREF(fn);
    Py_XDECREF(holder);
    PyErr_Clear();
  }
}

/* The code of importlib that loads a module. */
static void init_import(void) {
  PyObject *module = PyImport_ImportModule("importlib._bootstrap");
  PyObject *fn = module ? PyObject_GetAttrString(module, "_find_and_load") : NULL;
  if (fn && PyFunction_Check(fn)) import_code = Py_NewRef(PyFunction_GET_CODE(fn));
  Py_XDECREF(fn);
  Py_XDECREF(module);
  PyErr_Clear();
}

int fl_ccalls_init(void) {
  if (ready) return 0;
  fl_eval_pause(1);
  bool ok = init_types() == 0;
#define FL_CCALLS(module, cls, names) ok = ok && insert_row(module, FL_CC_##cls, names);
#include "capture/ccalls.def"
#undef FL_CCALLS
  init_torch_own();
  init_import();
  fl_eval_pause(0);
  if (!ok) {
    if (!PyErr_Occurred()) PyErr_NoMemory();
    return -1;
  }
  ready = true;
  return 0;
}

/* --- callables --- */

/* torch.ops' own functions are made on demand; they all carry this module name. */
static bool is_torch_op(PyObject *callable) {
  PyObject *module = ((PyCFunctionObject *)callable)->m_module;
  return module && PyUnicode_Check(module) && PyUnicode_GET_LENGTH(module) > 10 &&
         strncmp(PyUnicode_AsUTF8(module), "torch._ops.", 11) == 0;
}

/* What pybind11's functions are bound to is their own record. */
static bool is_record(PyObject *bound) {
  return PyCapsule_CheckExact(bound) || !strncmp(Py_TYPE(bound)->tp_name, "pybind11_builtins.", 18);
}

fl_cc fl_ccall_class(PyObject *callable, PyObject **self) {
  *self = NULL;
  if (PyCFunction_Check(callable)) {
    PyObject *bound = PyCFunction_GET_SELF(callable);
    fl_cc cls = lookup(key_of(callable));
    if (cls == FL_CC_UNKNOWN && is_torch_op(callable)) return FL_CC_TORCH;
    if (bound && !PyModule_Check(bound) && !is_record(bound)) *self = bound;
    return cls;
  }
  if (Py_IS_TYPE(callable, &_PyMethodWrapper_Type)) *self = ((fl_method_wrapper *)callable)->self;
  return in_c(callable) ? lookup(key_of(callable)) : FL_CC_UNKNOWN;
}

const char *fl_ccall_name(PyObject *callable, char *buf, size_t size) {
  PyObject *type, *value, *tb, *module, *name;
  PyErr_Fetch(&type, &value, &tb);
  fl_eval_pause(1);
  module = PyObject_GetAttrString(callable, "__module__");
  PyErr_Clear();
  name = PyObject_GetAttrString(callable, "__qualname__");
  const char *m = module && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
  const char *n = name && PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
  if (!m && PyCFunction_Check(callable) && PyCFunction_GET_SELF(callable))
    m = Py_TYPE(PyCFunction_GET_SELF(callable))->tp_name;
  snprintf(buf, size, "%s%s%s", m ? m : "", m ? "." : "", n ? n : Py_TYPE(callable)->tp_name);
  Py_XDECREF(module);
  Py_XDECREF(name);
  fl_eval_pause(0);
  PyErr_Restore(type, value, tb);
  return buf;
}

void fl_ccall_callback(fl_rec *r, PyObject *callable) {
  PyObject *self;
  char name[200];
  if (!Py_TYPE(callable)->tp_call || PyFunction_Check(callable)) return;
  if (PyMethod_Check(callable)) {
    fl_ccall_callback(r, PyMethod_GET_FUNCTION(callable));
    return;
  }
  if (PyType_Check(callable)) {
    if (!fl_ccall_known_type((PyTypeObject *)callable))
      fl_rec_give_up(r, "unknown C type", ((PyTypeObject *)callable)->tp_name);
    return;
  }
  if (in_c(callable)) {
    fl_cc cls = fl_ccall_class(callable, &self);
    if (cls == FL_CC_PURE || cls == FL_CC_PLAIN || cls == FL_CC_TORCH || cls == FL_CC_LEN || cls == FL_CC_ISINSTANCE ||
        cls == FL_CC_ISSUBCLASS || cls == FL_CC_ITER) {
      if (self) fl_data_saw(r, self);
      return;
    }
    if ((cls == FL_CC_MUTATES || cls == FL_CC_STORES) && self && fl_rec_is_fresh(r, self)) return;
    fl_rec_give_up(r, "unknown C function", fl_ccall_name(callable, name, sizeof name));
    return;
  }
  if (fl_ccall_is_partial(callable)) {
    PyObject *func = PyObject_GetAttrString(callable, "func");
    if (func) fl_ccall_callback(r, func);
    Py_XDECREF(func);
    return;
  }
  /* A class statement may derive from a type in C that is called as C likes (ctypes' functions). */
  PyTypeObject *tp = Py_TYPE(callable);
  if (!fl_ccall_is_python_class(tp) || (!fl_call_is_by_class(tp) && fl_ccall_type_class(tp) != FL_CC_TYPE))
    fl_rec_give_up(r, "unknown C callable", tp->tp_name);
}

void fl_ccall_slot(fl_rec *r, PyObject *v) {
  PyObject *inner = v && Py_IS_TYPE(v, &PyStaticMethod_Type) ? PyObject_GetAttrString(v, "__func__") : Py_XNewRef(v);
  if (!inner) PyErr_Clear();
  if (inner && !in_c(inner) && !PyFunction_Check(inner) && !PyType_Check(inner)) fl_ccall_callback(r, inner);
  Py_XDECREF(inner);
}

/* --- types --- */

bool fl_ccall_is_python_class(PyTypeObject *tp) { return tp->tp_dealloc == subtype_dealloc; }

int fl_ccall_find_slots(PyTypeObject *tp) {
  static PyObject *find;
  if (!PyType_HasFeature(tp, Py_TPFLAGS_HEAPTYPE)) return 0;
  PyObject *own = tp->tp_dict;
  if (!own || PyDict_GetItemString(own, "__slotnames__")) return 0;
  fl_eval_pause(1);
  if (!find) {
    PyObject *module = PyImport_ImportModule("copyreg");
    find = module ? PyObject_GetAttrString(module, "_slotnames") : NULL;
    Py_XDECREF(module);
  }
  PyObject *names = find ? PyObject_CallOneArg(find, (PyObject *)tp) : NULL;
  fl_eval_pause(0);
  Py_XDECREF(names);
  return names ? 0 : -1;
}

PyTypeObject *fl_ccall_solid(PyTypeObject *tp) {
  while (tp->tp_dealloc == subtype_dealloc && tp->tp_base) tp = tp->tp_base;
  return tp;
}

/* Tuples with named members, as torch.return_types has them; they do nothing else. */
static bool is_structseq(PyTypeObject *tp) {
  return tp->tp_base == &PyTuple_Type && tp->tp_dict && PyDict_GetItemString(tp->tp_dict, "n_sequence_fields");
}

fl_cc fl_ccall_type_class(PyTypeObject *tp) {
  tp = fl_ccall_solid(tp);
  fl_cc cls = lookup(tp);
  /* Exceptions in C only add fields; builtin iterators and the like inherit nothing. */
  while (cls == FL_CC_UNKNOWN && tp->tp_base && PyType_IsSubtype(tp, (PyTypeObject *)PyExc_BaseException)) {
    tp = tp->tp_base;
    cls = lookup(tp);
  }
  if (cls == FL_CC_UNKNOWN && is_structseq(tp)) cls = lookup(&PyTuple_Type);
  return cls;
}

bool fl_ccall_known_type(PyTypeObject *tp) { return fl_ccall_type_class(tp) != FL_CC_UNKNOWN; }
bool fl_ccall_is_tensor(PyTypeObject *tp) { return fl_ccall_type_class(tp) == FL_CC_TENSOR; }
bool fl_ccall_is_cached(PyObject *obj) { return Py_TYPE(obj) == cached_type; }
bool fl_ccall_is_torch_ops(PyTypeObject *tp) {
  return (PyObject *)tp == ops_types[0] || (PyObject *)tp == ops_types[1] || (PyObject *)tp == ops_types[2];
}
bool fl_ccall_is_lazy_code(PyObject *code) {
  for (int i = 0; i < TORCH_OWN; i++)
    if (code == ops_code[i]) return true;
  return false;
}
bool fl_ccall_is_import_code(PyObject *code) { return code == import_code; }
bool fl_ccall_is_partial(PyObject *obj) { return partial_type && PyObject_TypeCheck(obj, partial_type); }

/* Known by the table, so that it can be worked with; only numpy's immutable scalars are in it. */
bool fl_ccall_is_numpy_number(PyObject *obj) {
  PyTypeObject *tp = Py_TYPE(obj);
  return !strncmp(tp->tp_name, "numpy.", 6) && lookup(tp) == FL_CC_TYPE;
}

/* --- attributes in C --- */

PyObject *fl_ccall_getset(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *type) {
  PyObject *v = Py_TYPE(descr)->tp_descr_get(descr, obj, type), *name = PyDescr_NAME(descr);
  if (!v) {
    PyObject *t, *e, *tb;
    PyErr_Fetch(&t, &e, &tb);
    if (!fl_rec_is_fresh(r, obj)) fl_tell(r, fl_rec_read_descr(r, descr, obj, NULL));
    PyErr_Restore(t, e, tb);
    return NULL;
  }
  if (fl_ccall_is_tensor(PyDescr_TYPE(descr))) {
    bool no_grad = v == Py_None && PyUnicode_CompareWithASCIIString(name, "grad") == 0;
    if (lookup(key_of(descr)) != FL_CC_TORCH && !no_grad)
      fl_rec_give_up(r, "data leaves the tensor", PyUnicode_AsUTF8(name));
    if (no_grad || PyUnicode_CompareWithASCIIString(name, "requires_grad") == 0)
      fl_tell(r, fl_rec_read_descr(r, descr, obj, v));
  } else if (PyUnicode_CompareWithASCIIString(name, "__dict__") == 0 ||
             PyUnicode_CompareWithASCIIString(name, "__class__") == 0) {
    if (!fl_rec_is_fresh(r, obj))
      fl_tell(r, fl_rec_read_instance(r, obj));
    else if (PyDict_Check(v))
      fl_tell(r, fl_rec_fresh(r, v));
  } else if (!fl_ccall_known_type(PyDescr_TYPE(descr))) {
    fl_rec_give_up(r, "attribute of an unknown C type", PyDescr_TYPE(descr)->tp_name);
  } else if (!fl_rec_is_fresh(r, obj)) {
    fl_tell(r, fl_rec_read_descr(r, descr, obj, v));
  }
  return v;
}

bool fl_ccall_setset(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value) {
  if (!PyObject_TypeCheck(obj, PyDescr_TYPE(descr)) || !fl_ccall_is_tensor(Py_TYPE(obj))) return true;
  /* Module.to() of a module that is there already sets each tensor's data to the tensor. */
  if (obj == value && PyUnicode_CompareWithASCIIString(PyDescr_NAME(descr), "data") == 0) return false;
  fl_rec_give_up(r, "tensor attribute set", PyUnicode_AsUTF8(PyDescr_NAME(descr)));
  return true;
}
