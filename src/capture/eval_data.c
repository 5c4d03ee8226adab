/* Operators, iteration, subscripts, truth: the plain CPython call, after reporting what it looks into. */
#include "capture/cpython/compat.h"
#include "capture/ccalls.h"
#include "capture/compiled.h"
#include "capture/eval_impl.h"

/* --- what C code may look into --- */

static bool is_plain_value(PyObject *o) {
  return o == Py_None || PyUnicode_CheckExact(o) || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyBool_Check(o) ||
         PyBytes_CheckExact(o);
}

/* A container whose contents are mutable: list, dict, set, deque and what derives from them. */
bool fl_data_is_container(PyObject *o) {
  if (PyList_Check(o) || PyDict_Check(o) || PyAnySet_Check(o) || PyByteArray_Check(o)) return true;
  PyTypeObject *solid = fl_ccall_solid(Py_TYPE(o));
  return solid->tp_iter && solid->tp_as_sequence && solid->tp_as_sequence->sq_ass_item && fl_ccall_known_type(solid);
}

enum { MAX_DEPTH = 6 };

/* Shows what another object holds. */
static bool is_view(PyObject *o) {
  PyTypeObject *tp = Py_TYPE(o);
  return PyType_IsSubtype(tp, &PyDictKeys_Type) || PyType_IsSubtype(tp, &PyDictItems_Type) ||
         PyType_IsSubtype(tp, &PyDictValues_Type) || tp == &PyMemoryView_Type;
}

static void saw_view(fl_rec *r, PyObject *o) {
  if (is_view(o) && !fl_rec_is_fresh(r, o))
    fl_rec_give_up(r, "view of a container from outside the call", Py_TYPE(o)->tp_name);
}

static void saw(fl_rec *r, PyObject *o, int depth) {
  fl_rec_uses(r, o);
  if (is_plain_value(o) || PyType_Check(o)) return;
  if (depth > MAX_DEPTH) {
    if (PyTuple_Check(o) ? PyTuple_GET_SIZE(o) > 0 : fl_data_is_container(o))
      fl_rec_give_up(r, "containers nested too deeply", Py_TYPE(o)->tp_name);
    return;
  }
  PyTypeObject *tp = Py_TYPE(o);
  if (PyTuple_Check(o)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(o); i++) saw(r, PyTuple_GET_ITEM(o, i), depth + 1);
  } else if (PyList_Check(o)) {
    fl_tell(r, fl_rec_read_contents(r, o));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++) saw(r, PyList_GET_ITEM(o, i), depth + 1);
  } else if (PyDict_Check(o)) {
    PyObject *key, *v;
    Py_ssize_t pos = 0;
    fl_tell(r, fl_rec_read_contents(r, o));
    while (PyDict_Next(o, &pos, &key, &v)) saw(r, v, depth + 1);
  } else if (fl_data_is_container(o)) {
    fl_tell(r, fl_rec_read_contents(r, o));
  } else if (fl_ccall_is_tensor(tp)) {
    return;
  } else if (PyIter_Check(o)) {
    if (!fl_rec_is_fresh(r, o)) fl_rec_give_up(r, "iterator from outside the call", tp->tp_name);
  } else if (is_view(o)) {
    saw_view(r, o);
  } else if (tp == &PyDictProxy_Type) {
    /* One made in this call was looked into when it was made. */
    if (!fl_rec_is_fresh(r, o)) fl_rec_give_up(r, "view of a namespace", tp->tp_name);
  } else if (fl_compiled_target(o)) {
    saw(r, fl_compiled_target(o), depth);
  } else if (!fl_ccall_known_type(tp)) {
    fl_rec_give_up(r, "object of an unknown C type", tp->tp_name);
  }
}

void fl_data_saw(fl_rec *r, PyObject *obj) { saw(r, obj, 0); }

/* An operand whose type stands for this special method. A tensor's operators reach the dispatcher, unless the method is
 * replaced. */
static void operand(fl_rec *r, PyObject *o, PyObject *method) {
  if (is_plain_value(o)) return;
  if (fl_ccall_is_tensor(Py_TYPE(o))) {
    fl_attr_saw_slot(r, Py_TYPE(o), method);
    return;
  }
  if (fl_ccall_is_python_class(Py_TYPE(o))) {
    fl_tell(r, fl_rec_read_instance(r, o));
    fl_attr_saw_slot(r, Py_TYPE(o), method);
  }
  saw(r, o, 0);
}

/* --- operators --- */

/* clang-format off */
#define BINARY_OPS(X) \
  X(PyNumber_Add, add) X(PyNumber_And, and) X(PyNumber_FloorDivide, floordiv) X(PyNumber_Lshift, lshift) \
  X(PyNumber_MatrixMultiply, matmul) X(PyNumber_Multiply, mul) X(PyNumber_Remainder, mod) X(PyNumber_Or, or) \
  X(power, pow) X(PyNumber_Rshift, rshift) X(PyNumber_Subtract, sub) X(PyNumber_TrueDivide, truediv) \
  X(PyNumber_Xor, xor)
#define INPLACE_OPS(X) \
  X(PyNumber_InPlaceAdd, add) X(PyNumber_InPlaceAnd, and) X(PyNumber_InPlaceFloorDivide, floordiv) \
  X(PyNumber_InPlaceLshift, lshift) X(PyNumber_InPlaceMatrixMultiply, matmul) X(PyNumber_InPlaceMultiply, mul) \
  X(PyNumber_InPlaceRemainder, mod) X(PyNumber_InPlaceOr, or) X(inplace_power, pow) \
  X(PyNumber_InPlaceRshift, rshift) X(PyNumber_InPlaceSubtract, sub) X(PyNumber_InPlaceTrueDivide, truediv) \
  X(PyNumber_InPlaceXor, xor)
/* clang-format on */
enum { OPS = 13 };

static const char *const operator_names[2 * OPS] = {
    "add",    "and_", "floordiv", "lshift", "matmul",  "mul",  "mod",       "or_",     "pow",
    "rshift", "sub",  "truediv",  "xor",    "iadd",    "iand", "ifloordiv", "ilshift", "imatmul",
    "imul",   "imod", "ior",      "ipow",   "irshift", "isub", "itruediv",  "ixor"};

static PyObject *power(PyObject *a, PyObject *b) { return PyNumber_Power(a, b, Py_None); }
static PyObject *inplace_power(PyObject *a, PyObject *b) { return PyNumber_InPlacePower(a, b, Py_None); }

typedef struct binary_row {
  binaryfunc fn;
  PyObject **left, **right, **inplace;
} binary_row;
static const binary_row binary[2 * OPS] = {
#define X(fn, n) {fn, &fl_n.__##n##__, &fl_n.__r##n##__, NULL},
    BINARY_OPS(X)
#undef X
#define X(fn, n) {fn, &fl_n.__##n##__, &fl_n.__r##n##__, &fl_n.__i##n##__},
        INPLACE_OPS(X)
#undef X
};

static void uses(fl_rec *r, PyObject *a, PyObject *b) {
  if (!r) return;
  fl_rec_uses(r, a);
  fl_rec_uses(r, b);
}

PyObject *fl_data_binary(fl_rec *r, int op, PyObject *a, PyObject *b) {
  if (op < 0 || op >= 2 * OPS) return PyErr_Format(PyExc_SystemError, "binary operator %d", op);
  const binary_row *row = &binary[op];
  if (r && fl_eval_here->tail) return fl_call_operator(r, operator_names[op], (PyObject *[]){a, b}, 2);
  if (fl_rec_draws_from(r, a, b)) {
    PyObject *number = row->fn(a, b);
    fl_rec_drawn(r, number);
    return number;
  }
  uses(r, a, b);
  if (!r || (is_plain_value(a) && is_plain_value(b))) return row->fn(a, b);
  if (row->inplace) operand(r, a, *row->inplace);
  operand(r, a, *row->left);
  operand(r, b, *row->right);
  if (row->inplace && fl_data_is_container(a)) fl_tell(r, fl_rec_write(r, FL_WRITE_METHOD, a, *row->inplace, NULL));
  PyObject *v = row->fn(a, b);
  if (v && v != a && v != b && Py_REFCNT(v) == 1 && fl_data_is_container(v)) fl_tell(r, fl_rec_fresh(r, v));
  return v;
}

PyObject *fl_data_unary(fl_rec *r, PyObject *name, unaryfunc fn, PyObject *a) {
  if (r) {
    fl_rec_uses(r, a);
    operand(r, a, name);
  }
  return fn(a);
}

PyObject *fl_data_compare(fl_rec *r, PyObject *a, PyObject *b, int op) {
  static const char *const operators[6] = {"lt", "le", "eq", "ne", "gt", "ge"};
  if (r && fl_eval_here->tail) return fl_call_operator(r, operators[op], (PyObject *[]){a, b}, 2);
  uses(r, a, b);
  if (r && !(is_plain_value(a) && is_plain_value(b))) {
    PyObject *const names[6] = {fl_n.__lt__, fl_n.__le__, fl_n.__eq__, fl_n.__ne__, fl_n.__gt__, fl_n.__ge__};
    static const int swapped[6] = {Py_GT, Py_GE, Py_EQ, Py_NE, Py_LT, Py_LE};
    operand(r, a, names[op]);
    operand(r, b, names[swapped[op]]);
  }
  PyObject *v = PyObject_RichCompare(a, b, op);
  if (r && v) fl_rec_decides(r, a, b, op, v);
  return v;
}

int fl_data_truth(fl_rec *r, PyObject *a) {
  if (a == Py_True) return 1;
  if (a == Py_False || a == Py_None) return 0;
  if (r) fl_rec_uses(r, a);
  if (!r || is_plain_value(a) || PyTuple_CheckExact(a)) return PyObject_IsTrue(a);
  PyTypeObject *tp = Py_TYPE(a);
  saw_view(r, a);
  if (fl_ccall_is_tensor(tp)) {
    fl_attr_saw_slot(r, tp, fl_n.__bool__);
  } else if (fl_ccall_is_python_class(tp)) {
    fl_tell(r, fl_rec_read_instance(r, a));
    fl_attr_saw_slot(r, tp, fl_n.__bool__);
    fl_attr_saw_slot(r, tp, fl_n.__len__);
  }
  if (fl_data_is_container(a)) {
    fl_tell(r, fl_rec_read_contents(r, a));
  } else if ((tp->tp_as_number && tp->tp_as_number->nb_bool) || (tp->tp_as_sequence && tp->tp_as_sequence->sq_length) ||
             (tp->tp_as_mapping && tp->tp_as_mapping->mp_length)) {
    if (!fl_ccall_known_type(tp)) fl_rec_give_up(r, "object of an unknown C type", tp->tp_name);
  }
  return PyObject_IsTrue(a);
}

/* --- items --- */

/* Keys whose hash and equality run no code of the program. */
static bool is_plain_key(PyObject *key) {
  if (is_plain_value(key) || PyType_Check(key) || PyFunction_Check(key)) return true;
  if (PyTuple_CheckExact(key)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
      if (!is_plain_key(PyTuple_GET_ITEM(key, i))) return false;
    return true;
  }
  return Py_TYPE(key)->tp_hash == PyBaseObject_Type.tp_hash;
}

/* One item of a dict was looked up: exactly that when it can be told, else all of it. */
static PyObject *saw_item(fl_rec *r, PyObject *dict, PyObject *key) {
  if (!is_plain_key(key)) {
    fl_tell(r, fl_rec_read_contents(r, dict));
    return NULL;
  }
  PyObject *v = PyDict_GetItemWithError(dict, key);
  if (!v && PyErr_Occurred()) {
    PyErr_Clear();
    return NULL;
  }
  fl_tell(r, fl_rec_read_item(r, dict, key, v));
  return v;
}

int fl_data_contains(fl_rec *r, PyObject *container, PyObject *value) {
  uses(r, container, value);
  if (r) {
    PySequenceMethods *seq = Py_TYPE(container)->tp_as_sequence;
    if (PyDict_Check(container) && seq && seq->sq_contains == PyDict_Type.tp_as_sequence->sq_contains) {
      saw_item(r, container, value);
    } else {
      operand(r, container, fl_n.__contains__);
      if (fl_ccall_is_python_class(Py_TYPE(container))) fl_attr_saw_slot(r, Py_TYPE(container), fl_n.__iter__);
      if (!is_plain_value(value)) operand(r, value, fl_n.__eq__);
      if (PyList_Check(container) || PyTuple_Check(container))
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(container); i++)
          fl_rec_compared(r, PySequence_Fast_GET_ITEM(container, i), value);
    }
  }
  return PySequence_Contains(container, value);
}

/* A defaultdict makes and keeps what is missing. */
static void saw_missing(fl_rec *r, PyObject *dict, PyObject *key) {
  PyObject *missing = _PyType_Lookup(Py_TYPE(dict), fl_n.__missing__), *factory;
  fl_tell(r, fl_rec_read_type(r, Py_TYPE(dict), fl_n.__missing__, missing));
  if (!missing || PyFunction_Check(missing)) return;
  fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, dict, key, Py_None));
  factory = PyObject_GetAttrString(dict, "default_factory");
  if (!factory)
    PyErr_Clear();
  else if (factory != Py_None)
    fl_ccall_callback(r, factory);
  Py_XDECREF(factory);
}

PyObject *fl_data_subscr(fl_rec *r, PyObject *container, PyObject *key) {
  if (r && fl_eval_here->tail) return fl_call_operator(r, "getitem", (PyObject *[]){container, key}, 2);
  if (r && !PyTuple_CheckExact(container)) fl_rec_uses(r, container);
  if (r) fl_rec_uses(r, key);
  if (!r || PyTuple_CheckExact(container) || PyUnicode_CheckExact(container)) return PyObject_GetItem(container, key);
  PyMappingMethods *map = Py_TYPE(container)->tp_as_mapping;
  if (PyDict_Check(container) && map && map->mp_subscript == PyDict_Type.tp_as_mapping->mp_subscript) {
    PyObject *v = saw_item(r, container, key);
    if (v) return Py_NewRef(v);
    if (!PyDict_CheckExact(container)) saw_missing(r, container, key);
    v = PyObject_GetItem(container, key);
    if (v && !PyDict_CheckExact(container) && Py_REFCNT(v) == 2 && fl_data_is_container(v))
      fl_tell(r, fl_rec_fresh(r, v));
    return v;
  }
  if (PyType_Check(container)) {
    PyObject *cgi = _PyType_Lookup((PyTypeObject *)container, fl_n.__class_getitem__);
    fl_tell(r, fl_rec_read_type(r, (PyTypeObject *)container, fl_n.__class_getitem__, cgi));
    fl_attr_saw_slot(r, Py_TYPE(container), fl_n.__getitem__);
    return PyObject_GetItem(container, key);
  }
  if (PyList_CheckExact(container) && PyLong_CheckExact(key)) {
    fl_tell(r, fl_rec_read_contents(r, container));
    return PyObject_GetItem(container, key);
  }
  operand(r, container, fl_n.__getitem__);
  if (!is_plain_value(key) && !PySlice_Check(key)) fl_data_saw(r, key);
  PyObject *v = PyObject_GetItem(container, key);
  if (v && PySlice_Check(key) && fl_data_is_container(v) && Py_REFCNT(v) == 1) fl_tell(r, fl_rec_fresh(r, v));
  return v;
}

static objobjargproc slot_ass_subscript(PyTypeObject *tp) {
  return tp->tp_as_mapping ? tp->tp_as_mapping->mp_ass_subscript : NULL;
}

int fl_data_store(fl_rec *r, PyObject *container, PyObject *key, PyObject *value) {
  uses(r, container, key);
  if (r) {
    if (value && !PyList_Check(container) && !PyDict_Check(container)) fl_rec_uses(r, value);
    PyTypeObject *tp = Py_TYPE(container), *solid = fl_ccall_solid(tp);
    PyObject *name = value ? fl_n.__setitem__ : fl_n.__delitem__;
    if (fl_ccall_is_tensor(tp)) {
      fl_attr_saw_slot(r, tp, name);
      if (!is_plain_value(key)) fl_data_saw(r, key);
    } else if (fl_ccall_is_python_class(tp) && slot_ass_subscript(tp) != slot_ass_subscript(solid)) {
      fl_attr_saw_slot(r, tp, name);
      PyObject *own = _PyType_Lookup(tp, name);
      if (own && !PyFunction_Check(own)) fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, container, key, value));
    } else {
      if (!fl_ccall_known_type(tp)) fl_rec_give_up(r, "item of an unknown C type", tp->tp_name);
      fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, container, key, value));
    }
  }
  return value ? PyObject_SetItem(container, key, value) : PyObject_DelItem(container, key);
}

Py_ssize_t fl_data_len(fl_rec *r, PyObject *a) {
  if (r && !PyTuple_CheckExact(a)) fl_rec_uses(r, a);
  if (r && !PyTuple_CheckExact(a)) {
    if (fl_data_is_container(a))
      fl_tell(r, fl_rec_read_contents(r, a));
    else
      operand(r, a, fl_n.__len__);
    if (fl_ccall_is_python_class(Py_TYPE(a)) && !fl_ccall_is_tensor(Py_TYPE(a)))
      fl_attr_saw_slot(r, Py_TYPE(a), fl_n.__len__);
  }
  return PyObject_Size(a);
}

/* --- iteration --- */

PyObject *fl_data_iter(fl_rec *r, PyObject *a) {
  if (!r) return PyObject_GetIter(a);
  if (!PyTuple_CheckExact(a)) fl_rec_uses(r, a);
  PyTypeObject *tp = Py_TYPE(a);
  saw_view(r, a);
  if (fl_ccall_is_tensor(tp)) {
    fl_attr_saw_slot(r, tp, fl_n.__iter__);
  } else if (fl_ccall_is_python_class(tp)) {
    fl_tell(r, fl_rec_read_instance(r, a));
    fl_attr_saw_slot(r, tp, fl_n.__iter__);
    if (!tp->tp_iter) fl_attr_saw_slot(r, tp, fl_n.__getitem__);
  }
  if (fl_data_is_container(a))
    fl_tell(r, fl_rec_read_contents(r, a));
  else if (!PyTuple_Check(a) && !fl_ccall_known_type(tp))
    fl_rec_give_up(r, "object of an unknown C type", tp->tp_name);
  PyObject *it = PyObject_GetIter(a);
  if (it && it != a && Py_REFCNT(it) == 1) fl_tell(r, fl_rec_fresh(r, it));
  return it;
}

PyObject *fl_data_next(fl_rec *r, PyObject *it) {
  PyTypeObject *tp = Py_TYPE(it);
  if (r) {
    if (fl_ccall_is_python_class(tp))
      fl_attr_saw_slot(r, tp, fl_n.__next__);
    else if (!fl_rec_is_fresh(r, it))
      fl_rec_give_up(r, "iterator from outside the call", tp->tp_name);
  }
  return tp->tp_iternext(it);
}

PyObject *fl_data_convert(fl_rec *r, PyObject *value, int conversion) {
  if (r) fl_rec_uses(r, value);
  if (r && !is_plain_value(value)) operand(r, value, conversion == 1 ? fl_n.__str__ : fl_n.__repr__);
  return conversion == 1 ? PyObject_Str(value) : conversion == 2 ? PyObject_Repr(value) : PyObject_ASCII(value);
}

PyObject *fl_data_format(fl_rec *r, PyObject *value, int conversion, PyObject *spec) {
  PyObject *shown, *v;
  if (r && fl_eval_here->tail) return fl_call_operator(r, "format", (PyObject *[]){value, spec}, spec ? 2 : 1);
  if (r && spec) fl_rec_uses(r, spec);
  if (r && !conversion) fl_rec_uses(r, value);
  if (r && !conversion && !is_plain_value(value)) operand(r, value, fl_n.__format__);
  shown = conversion ? fl_data_convert(r, value, conversion) : Py_NewRef(value);
  if (!shown) return NULL;
  if (PyUnicode_CheckExact(shown) && !spec) return shown;
  v = PyObject_Format(shown, spec);
  Py_DECREF(shown);
  return v;
}

/* --- unpacking --- */

/* The values of a starred target and what follows it, from the rest of the iterator. */
static int unpack_star(PyObject *it, int before, int after, PyObject **top, fl_rec *r) {
  PyObject *rest = PySequence_List(it);
  if (!rest) return -1;
  Py_ssize_t n = PyList_GET_SIZE(rest);
  if (n < after) {
    PyErr_Format(PyExc_ValueError, "not enough values to unpack (expected at least %d, got %zd)", before + after,
                 before + n);
    Py_DECREF(rest);
    return -1;
  }
  PyObject **at = top - before;
  *--at = rest;
  for (int j = after; j > 0; j--) *--at = Py_NewRef(PyList_GET_ITEM(rest, n - j));
  if (PyList_SetSlice(rest, n - after, n, NULL) < 0) PyErr_Clear();
  if (r) fl_tell(r, fl_rec_fresh(r, rest));
  return 0;
}

static int unpack_exact_end(fl_rec *r, PyObject *it, int before) {
  PyObject *more = fl_data_next(r, it);
  if (!more) {
    if (!PyErr_Occurred()) return 0;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return -1;
    PyErr_Clear();
    return 0;
  }
  Py_DECREF(more);
  PyErr_Format(PyExc_ValueError, "too many values to unpack (expected %d)", before);
  return -1;
}

static int unpack_iterator(fl_rec *r, PyObject *it, int before, int after, PyObject **top) {
  int i = 0, rc;
  for (; i < before; i++) {
    PyObject *v = fl_data_next(r, it);
    if (!v) {
      if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_StopIteration)) goto fail;
        PyErr_Clear();
      }
      if (after < 0)
        PyErr_Format(PyExc_ValueError, "not enough values to unpack (expected %d, got %d)", before, i);
      else
        PyErr_Format(PyExc_ValueError, "not enough values to unpack (expected at least %d, got %d)", before + after, i);
      goto fail;
    }
    top[-1 - i] = v;
  }
  rc = after < 0 ? unpack_exact_end(r, it, before) : unpack_star(it, before, after, top, r);
  if (rc == 0) return 0;
fail:
  while (i > 0) Py_DECREF(top[-i--]);
  return -1;
}

int fl_data_unpack(fl_rec *r, PyObject *seq, int before, int after, PyObject **top) {
  if (r && !PyTuple_CheckExact(seq)) fl_rec_uses(r, seq);
  if (after < 0 && (PyTuple_CheckExact(seq) || PyList_CheckExact(seq)) && PySequence_Fast_GET_SIZE(seq) == before) {
    if (r && PyList_CheckExact(seq)) fl_tell(r, fl_rec_read_contents(r, seq));
    for (int i = 0; i < before; i++) top[-1 - i] = Py_NewRef(PySequence_Fast_GET_ITEM(seq, i));
    return 0;
  }
  PyObject *it = fl_data_iter(r, seq);
  if (!it) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) && !Py_TYPE(seq)->tp_iter && !PySequence_Check(seq))
      PyErr_Format(PyExc_TypeError, "cannot unpack non-iterable %.200s object", Py_TYPE(seq)->tp_name);
    return -1;
  }
  int rc = unpack_iterator(r, it, before, after, top);
  Py_DECREF(it);
  return rc;
}
