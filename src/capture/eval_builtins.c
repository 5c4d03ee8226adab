/* Builtins that the evaluator does itself, or reports more of than that they were called. */
#include "capture/cpython/compat.h"

#include "capture/compiled.h"
#include "capture/eval_call.h"

void fl_call_saw_args(fl_rec *r, const fl_call_args *c, size_t from) {
  for (size_t i = from; i < c->npos + c->nkw; i++) {
    fl_data_saw(r, c->args[i]);
    fl_ccall_callback(r, c->args[i]);
  }
}

static PyObject *do_getattr(fl_rec *r, const fl_call_args *c) {
  PyObject *v;
  if (c->npos == 2) return fl_attr_get(r, c->args[0], c->args[1]);
  int found = fl_attr_find(r, c->args[0], c->args[1], &v);
  return found ? v : Py_NewRef(c->args[2]);
}

static PyObject *do_hasattr(fl_rec *r, const fl_call_args *c) {
  PyObject *v;
  int found = fl_attr_find(r, c->args[0], c->args[1], &v);
  Py_XDECREF(v);
  return found < 0 ? NULL : Py_NewRef(found ? Py_True : Py_False);
}

void fl_call_saw_class_check(fl_rec *r, PyObject *cls, PyObject *method) {
  if (PyTuple_Check(cls)) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(cls); i++) fl_call_saw_class_check(r, PyTuple_GET_ITEM(cls, i), method);
  } else if (!Py_IS_TYPE(cls, &PyType_Type)) {
    fl_attr_saw_slot(r, Py_TYPE(cls), method);
  }
}

static PyObject *do_next(fl_rec *r, const fl_call_args *c) {
  PyObject *it = c->args[0];
  if (!PyIter_Check(it)) return fl_call_natively(c);
  fl_eval_state *st = fl_eval_here;
  if (c->tail && c->npos == 1 && PyGen_CheckExact(it) && st->top) {
    st->driving = it;
    st->top->wants = FL_CPY_NEXT;
  }
  PyObject *v = fl_data_next(r, it);
  st->driving = NULL;
  if (v) return v;
  if (c->npos < 2) {
    if (!PyErr_Occurred()) PyErr_SetNone(PyExc_StopIteration);
    return NULL;
  }
  if (PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return NULL;
    PyErr_Clear();
  }
  return Py_NewRef(c->args[1]);
}

static PyObject *do_len(fl_rec *r, const fl_call_args *c) {
  Py_ssize_t n = fl_data_len(r, c->args[0]);
  return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

/* dict.get, dict[key] and key in dict, called as methods. `self` is the dict, key the first argument. */
static PyObject *do_dict_read(fl_rec *r, const fl_call_args *c, PyObject *dict, PyObject *key) {
  PyObject *t, *v, *tb, *found;
  if (PyDict_Check(dict) && PyUnicode_CheckExact(key)) {
    found = PyDict_GetItemWithError(dict, key);
    PyErr_Fetch(&t, &v, &tb);
    fl_tell(r, fl_rec_read_item(r, dict, key, found));
    PyErr_Restore(t, v, tb);
  } else {
    fl_data_saw(r, dict);
  }
  return fl_call_natively(c);
}

static PyObject *do_tp_new(fl_rec *r, const fl_call_args *c, PyObject *self) {
  PyTypeObject *maker = self && PyType_Check(self) ? (PyTypeObject *)self : NULL;
  if (!maker || fl_ccall_type_class(maker) != FL_CC_TYPE)
    fl_rec_give_up(r, "unknown C type", maker ? maker->tp_name : "?");
  if (maker != &PyBaseObject_Type) fl_call_saw_args(r, c, 1);
  PyObject *v = fl_call_natively(c);
  if (v && (maker == &PyBaseObject_Type || !PyTuple_Check(v))) fl_tell(r, fl_rec_fresh(r, v));
  return v;
}

/* A call of a builtin without keywords, and its method's object, or the first argument. */
typedef struct builtin {
  const fl_call_args *c;
  PyObject *obj;
  PyObject *const *a; /* the arguments after the object */
  size_t n, na;       /* of all, of those */
} builtin;

/* Those that read and write attributes. */
static PyObject *do_attribute(fl_rec *r, fl_cc cls, const builtin *b, bool *done) {
  const fl_call_args *c = b->c;
  PyObject *obj = b->obj, *const *a = b->a;
  size_t n = b->n, na = b->na;
  *done = true;
  switch (cls) {
  case FL_CC_GETATTR:
    if ((n == 2 || n == 3) && PyUnicode_CheckExact(c->args[1])) return do_getattr(r, c);
    break;
  case FL_CC_HASATTR:
    if (n == 2 && PyUnicode_CheckExact(c->args[1])) return do_hasattr(r, c);
    break;
  case FL_CC_SETATTR:
    if (n == 3 && PyUnicode_CheckExact(c->args[1]))
      return fl_attr_set(r, c->args[0], c->args[1], c->args[2]) < 0 ? NULL : Py_NewRef(Py_None);
    break;
  case FL_CC_DELATTR:
    if (n == 2 && PyUnicode_CheckExact(c->args[1]))
      return fl_attr_set(r, c->args[0], c->args[1], NULL) < 0 ? NULL : Py_NewRef(Py_None);
    break;
  case FL_CC_OBJ_GETATTR:
    if (obj && na == 1 && PyUnicode_CheckExact(a[0])) return fl_attr_generic_get(r, obj, a[0]);
    break;
  case FL_CC_TYPE_GETATTR:
    if (obj && PyType_Check(obj) && na == 1 && PyUnicode_CheckExact(a[0])) return fl_attr_type_get(r, obj, a[0]);
    break;
  case FL_CC_MODULE_GETATTR:
    if (obj && PyModule_Check(obj) && na == 1 && PyUnicode_CheckExact(a[0])) return fl_attr_module_get(r, obj, a[0]);
    break;
  case FL_CC_OBJ_SETATTR:
    if (obj && !PyType_Check(obj) && na == 2 && PyUnicode_CheckExact(a[0]))
      return fl_attr_generic_set(r, obj, a[0], a[1]) < 0 ? NULL : Py_NewRef(Py_None);
    break;
  case FL_CC_OBJ_DELATTR:
    if (obj && !PyType_Check(obj) && na == 1 && PyUnicode_CheckExact(a[0]))
      return fl_attr_generic_set(r, obj, a[0], NULL) < 0 ? NULL : Py_NewRef(Py_None);
    break;
  case FL_CC_DESCR_GET:
    if (!obj || na < 1 || na > 2 || a[0] == Py_None) break;
    return fl_ccall_getset(r, obj, a[0], (PyObject *)Py_TYPE(a[0]));
  default: break;
  }
  *done = false;
  return NULL;
}

static PyObject *do_other(fl_rec *r, fl_cc cls, const builtin *b, bool *done) {
  const fl_call_args *c = b->c;
  PyObject *obj = b->obj, *const *a = b->a;
  size_t n = b->n, na = b->na;
  *done = true;
  switch (cls) {
  case FL_CC_ISINSTANCE:
  case FL_CC_ISSUBCLASS:
    if (n != 2) break;
    if (cls == FL_CC_ISINSTANCE) fl_tell(r, fl_rec_read_instance(r, c->args[0]));
    if (cls == FL_CC_ISINSTANCE && fl_compiled_target(c->args[0]))
      fl_tell(r, fl_rec_read_instance(r, fl_compiled_target(c->args[0])));
    fl_call_saw_class_check(r, c->args[1], cls == FL_CC_ISINSTANCE ? fl_n.__instancecheck__ : fl_n.__subclasscheck__);
    return fl_call_natively(c);
  case FL_CC_ITER:
    if (n == 1) return fl_data_iter(r, c->args[0]);
    break;
  case FL_CC_NEXT:
    if (n == 1 || n == 2) return do_next(r, c);
    break;
  case FL_CC_LEN:
    if (n == 1) return do_len(r, c);
    break;
  case FL_CC_DICT_GET:
  case FL_CC_DICT_GETITEM:
  case FL_CC_DICT_CONTAINS:
    if (obj && na >= 1) return do_dict_read(r, c, obj, a[0]);
    break;
  case FL_CC_SETITEM:
  case FL_CC_DELITEM:
    if (!obj || na < 1) break;
    fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, obj, a[0], cls == FL_CC_SETITEM && na > 1 ? a[1] : NULL));
    return fl_call_natively(c);
  case FL_CC_VARS:
    if (!obj) break;
    if (!fl_rec_is_fresh(r, obj)) fl_tell(r, fl_rec_read_instance(r, obj));
    if (fl_ccall_find_slots(Py_TYPE(obj)) < 0) return NULL;
    return fl_call_natively(c);
  default: break;
  }
  *done = false;
  return NULL;
}

PyObject *fl_call_builtin(fl_rec *r, fl_cc cls, const fl_call_args *c, PyObject *self, bool *done) {
  size_t off = self ? 0 : 1, n = c->npos;
  builtin b = {c, self ? self : n ? c->args[0] : NULL, c->args + off, n, n >= off ? n - off : 0};
  PyObject *v = NULL;
  *done = false;
  if (c->nkw == 0) v = do_attribute(r, cls, &b, done);
  if (c->nkw == 0 && !*done) v = do_other(r, cls, &b, done);
  if (*done) return v;
  *done = true;
  if (cls == FL_CC_TYPE_CALL && b.obj && PyType_Check(b.obj))
    return fl_call_type(r, (PyTypeObject *)b.obj, b.a, b.na, c->kwnames);
  if (cls == FL_CC_TP_NEW) return do_tp_new(r, c, self);
  *done = false;
  return NULL;
}
