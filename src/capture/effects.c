#include "capture/effects.h"

#include <string.h>

static int set_list(PyObject *list, PyObject *items, bool append) {
  Py_ssize_t n = PyList_GET_SIZE(list);
  return PyList_SetSlice(list, append ? n : 0, n, items);
}

static int set_dict(PyObject *dict, PyObject *pairs) {
  bool ordered = PyODict_CheckExact(dict);
  PyObject *done = ordered ? PyObject_CallMethod(dict, "clear", NULL) : NULL;
  if (ordered && !done) return -1;
  Py_XDECREF(done);
  if (!ordered) PyDict_Clear(dict);
  for (Py_ssize_t i = 0; i + 1 < PyTuple_GET_SIZE(pairs); i += 2) {
    PyObject *k = PyTuple_GET_ITEM(pairs, i), *v = PyTuple_GET_ITEM(pairs, i + 1);
    if ((ordered ? PyODict_SetItem(dict, k, v) : PyDict_SetItem(dict, k, v)) < 0) return -1;
  }
  return 0;
}

static int set_set(PyObject *set, PyObject *members) {
  if (PySet_Clear(set) < 0) return -1;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(members); i++)
    if (PySet_Add(set, PyTuple_GET_ITEM(members, i)) < 0) return -1;
  return 0;
}

/* Deleting what is not there is no error of the program: a guard has seen to it that it was there. */
static int remove_item(PyObject *dict, PyObject *key) {
  int rc = PyDict_DelItem(dict, key);
  if (rc == 0 || !PyErr_ExceptionMatches(PyExc_KeyError)) return rc;
  PyErr_Clear();
  return 0;
}

static int draw(const fl_effect *e) {
  PyObject *number = e->key ? PyObject_CallOneArg(e->obj, e->key) : PyObject_CallNoArgs(e->obj);
  Py_XDECREF(number);
  return number ? 0 : -1;
}

static int apply(const fl_effect *e, PyObject *obj, PyObject *value) {
  switch (e->kind) {
  case FL_EFFECT_ATTR: return PyObject_GenericSetAttr(obj, e->key, e->del ? NULL : value);
  case FL_EFFECT_ITEM: return e->del ? remove_item(obj, e->key) : PyDict_SetItem(obj, e->key, value);
  case FL_EFFECT_CELL: return PyCell_Set(obj, e->del ? NULL : value);
  case FL_EFFECT_EXTEND: return set_list(obj, value, true);
  case FL_EFFECT_LIST: return set_list(obj, value, false);
  case FL_EFFECT_DICT: return set_dict(obj, value);
  case FL_EFFECT_SET: return set_set(obj, value);
  case FL_EFFECT_DRAW: return draw(e);
  }
  return 0;
}

int fl_effects_apply(const fl_effects *e, PyObject *const *values, PyObject *const *arguments) {
  for (size_t i = 0; i < e->list.len; i++) {
    const fl_effect *x = &e->list.data[i];
    if (apply(x, x->obj ? x->obj : arguments[x->argument], values[i]) < 0) return -1;
  }
  return 0;
}

PyObject *fl_source_find(const fl_source *s) {
  PyObject *o = PyDict_GetItemWithError(s->dict, s->key), **d;
  fl_tensor_meta m;
  if (!o) {
    PyErr_Clear();
    return NULL;
  }
  if (Py_TYPE(o) != s->type) return NULL;
  if ((d = _PyObject_GetDictPtr(o)) && *d && PyDict_GET_SIZE(*d)) return NULL;
  fl_tensor_read(o, &m);
  int rg = fl_tensor_requires_grad(o), lazy = fl_tensor_is_lazy(o);
  if (rg < 0 || lazy < 0) PyErr_Clear();
  return fl_tensor_meta_equal(&m, &s->meta) && rg == s->requires_grad && lazy == 0 ? o : NULL;
}

void fl_effects_release(fl_effects *e) {
  fl_free(e->list.data);
  fl_free(e->sources.data);
  memset(e, 0, sizeof *e);
}
