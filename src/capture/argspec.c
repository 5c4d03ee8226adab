#include "capture/argspec.h"

#include "capture/cpython/compat.h"

#include <string.h>

#include "capture/result.h"

bool fl_const_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (!a || !b || Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_CheckExact(a)) {
    /* Bit for bit: 0.0 and -0.0 differ, NaN equals itself. */
    double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return !memcmp(&x, &y, sizeof x);
  }
  if (PyComplex_CheckExact(a)) {
    Py_complex x = PyComplex_AsCComplex(a), y = PyComplex_AsCComplex(b);
    return !memcmp(&x, &y, sizeof x);
  }
  if (PyTuple_CheckExact(a)) {
    if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++)
      if (!fl_const_equal(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
    return true;
  }
  if (!PyLong_CheckExact(a) && !PyUnicode_CheckExact(a) && !PyBytes_CheckExact(a)) return false;
  int r = PyObject_RichCompareBool(a, b, Py_EQ);
  if (r < 0) PyErr_Clear();
  return r > 0;
}

static bool is_const(PyObject *o) {
  return o == Py_None || PyBool_Check(o) || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o) ||
         PyBytes_CheckExact(o) || PyComplex_CheckExact(o);
}

static bool is_dict(PyObject *o) { return PyDict_CheckExact(o) || PyODict_CheckExact(o); }

typedef struct maker {
  fl_argspec *spec;
  fl_arena *arena;
  PyObject **inputs;
  fl_ptrmap *covered;
  bool records;
  int depth, n_containers;
} maker;

const char fl_argspec_other_object[] = "argument: another object";

/* Named tuples: nothing but their items. */
static bool is_tuple(PyObject *o) {
  return PyTuple_CheckExact(o) || (PyTuple_Check(o) && !Py_TYPE(o)->tp_dictoffset && !_PyObject_GetDictPtr(o) &&
                                   Py_TYPE(o)->tp_getattro == PyObject_GenericGetAttr &&
                                   PyObject_HasAttrString((PyObject *)Py_TYPE(o), "_fields"));
}

/* collections.UserDict and what is derived from it (a tokenizer's BatchEncoding): its items are in the attribute `data`. */
static bool is_user_dict(PyObject *o) {
  static PyTypeObject *type;
  PyTypeObject *t = Py_TYPE(o);
  if (!type) {
    PyObject *module = PyImport_ImportModule("collections"), *found = NULL;
    if (module) found = PyObject_GetAttrString(module, "UserDict");
    Py_XDECREF(module);
    if (!found || !PyType_Check(found)) return PyErr_Clear(), false;
    type = (PyTypeObject *)found;
  }
  if (!PyObject_TypeCheck(o, type) || !fl_result_plain_class(t, &PyBaseObject_Type)) return false;
  PyObject *get = PyDict_GetItemString(fl_cpy_type_dict(&PyBaseObject_Type), "__getattribute__"), **d;
  static PyObject *name;
  if (!name && !(name = PyUnicode_InternFromString("__getattribute__"))) return PyErr_Clear(), false;
  return _PyType_Lookup(t, name) == get && (d = _PyObject_GetDictPtr(o)) && *d && PyDict_CheckExact(*d);
}

/* A dict's subclass with attributes, as transformers' ModelOutput. */
static bool is_dict_record(PyObject *o) {
  PyTypeObject *t = Py_TYPE(o);
  return PyDict_Check(o) && t->tp_getattro == PyObject_GenericGetAttr && t->tp_dictoffset && !is_dict(o) &&
         fl_result_plain_class(t, PyODict_Check(o) ? &PyODict_Type : &PyDict_Type);
}

bool fl_argspec_is_record(PyObject *o) {
  static PyObject *fields;
  PyTypeObject *t = Py_TYPE(o);
  if (is_user_dict(o)) return true;
  if (is_dict_record(o)) {
    PyObject **dict = _PyObject_GetDictPtr(o);
    return dict && *dict && PyDict_CheckExact(*dict);
  }
  if (!fields && !(fields = PyUnicode_InternFromString("__dataclass_fields__"))) return PyErr_Clear(), false;
  bool namespace = !strcmp(t->tp_name, "types.SimpleNamespace");
  if (t->tp_getattro != PyObject_GenericGetAttr || (!namespace && !_PyType_Lookup(t, fields))) return false;
  if (!namespace && !fl_result_plain_class(t, &PyBaseObject_Type)) return false;
  PyObject **d = _PyObject_GetDictPtr(o);
  return d && *d && PyDict_CheckExact(*d);
}

static const char OOM[] = "out of memory";

static const char *hold(maker *m, PyObject *o) {
  if (PyList_Append(m->spec->keep, o) == 0) return NULL;
  PyErr_Clear();
  return OOM;
}

static const char *make(maker *m, PyObject *o, fl_spec *out);

/* Containers that can be told apart: each an object of its own, as in the calls that match. */
static const char *cover(maker *m, PyObject *o) {
  if (!PyTuple_Check(o) && fl_ptrmap_get(m->covered, o, NULL)) return "one container given twice";
  uint32_t which = PyTuple_Check(o) ? UINT32_MAX : FL_ARG_CONTAINER | (uint32_t)m->n_containers++;
  if (m->n_containers > FL_MAX_CONTAINERS) return "more than 64 containers in the arguments";
  return fl_ptrmap_set(m->covered, o, which) ? NULL : OOM;
}

static const char *make_tensor(maker *m, PyObject *o, fl_spec *out) {
  for (int i = 0; i < m->spec->n_inputs; i++)
    if (m->inputs[i] == o) {
      out->kind = FL_SPEC_SAME;
      out->index = (uint32_t)i;
      return NULL;
    }
  if (m->spec->n_inputs == FL_MAX_INPUTS) return "more than 256 tensors in the arguments";
  if (!fl_tensor_is_plain(o)) return "an argument is a tensor subclass";
  fl_input *in = &m->spec->inputs[m->spec->n_inputs];
  fl_tensor_read(o, &in->meta);
  if (!in->meta.has_data) return "an argument is not a dense strided tensor";
  if (in->meta.ndim > FL_MAX_RANK) return "an argument has more than 8 dimensions";
  if (fl_tensor_is_lazy(o)) {
    PyErr_Clear();
    return "an argument is a lazily conjugated or negated tensor";
  }
  int rg = fl_tensor_requires_grad(o);
  if (rg < 0) PyErr_Clear();
  in->requires_grad = rg > 0;
  fl_impl_shape_take(o, in->meta.ndim, in->meta.item_size, &in->seen);
  in->type = Py_TYPE(o);
  out->kind = FL_SPEC_TENSOR;
  out->index = (uint32_t)m->spec->n_inputs;
  m->inputs[m->spec->n_inputs++] = o;
  return fl_ptrmap_set(m->covered, o, out->index) ? NULL : OOM;
}

/* In its own order, which of an OrderedDict may differ from its table's. New tuple, or NULL without an exception. */
static PyObject *keys_of(PyObject *o) {
  PyObject *it = (PyODict_Check(o) ? PyODict_Type : PyDict_Type).tp_iter(o), *keys = it ? PySequence_Tuple(it) : NULL;
  Py_XDECREF(it);
  if (!keys) PyErr_Clear();
  return keys;
}

/* Of a dict: keys in order, and values. */
static const char *make_pairs(maker *m, PyObject *o, fl_spec *out) {
  PyObject *keys = keys_of(o);
  Py_ssize_t n = keys ? PyTuple_GET_SIZE(keys) : 0;
  out->object = keys;
  out->n = (int)n;
  out->items = fl_arena_alloc(m->arena, ((size_t)n + 1) * sizeof *out->items);
  const char *why = keys && out->items ? hold(m, keys) : OOM;
  for (Py_ssize_t i = 0; !why && i < n; i++) {
    PyObject *k = PyTuple_GET_ITEM(keys, i), *v = is_const(k) ? PyDict_GetItemWithError(o, k) : NULL;
    why = v ? make(m, v, &out->items[i]) : "a dict argument with unusual keys";
  }
  Py_XDECREF(keys);
  return why;
}

/* Of a list or tuple. */
static const char *make_sequence(maker *m, PyObject *o, fl_spec *out) {
  Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
  const char *why = NULL;
  out->n = (int)n;
  out->items = fl_arena_alloc(m->arena, ((size_t)n + 1) * sizeof *out->items);
  if (!out->items) return OOM;
  for (Py_ssize_t i = 0; i < n && !why; i++) why = make(m, PySequence_Fast_GET_ITEM(o, i), &out->items[i]);
  return why;
}

static const char *make_items(maker *m, PyObject *o, fl_spec *out) {
  if (m->depth >= 32) return "arguments nested too deeply";
  const char *why = cover(m, o);
  m->depth++;
  if (!why) why = PyDict_Check(o) ? make_pairs(m, o, out) : make_sequence(m, o, out);
  m->depth--;
  return why;
}

/* Attributes of a user's dictionary: its items are matched, and constants. What else there is (a tokenizer's encodings) is another object
 * in each call, and mostly of no interest. */
static const char *make_attrs(maker *m, PyObject *dict, fl_spec *out) {
  Py_ssize_t pos = 0, n = PyDict_GET_SIZE(dict), i = 0;
  PyObject *keys = PyTuple_New(n), *k, *v;
  *out = (fl_spec){.kind = FL_SPEC_DICT, .object = keys, .type = Py_TYPE(dict), .n = (int)n};
  out->items = fl_arena_alloc(m->arena, ((size_t)n + 1) * sizeof *out->items);
  const char *why = keys && out->items ? cover(m, dict) : OOM;
  while (!why && PyDict_Next(dict, &pos, &k, &v)) {
    PyTuple_SET_ITEM(keys, i, Py_NewRef(k));
    fl_spec *item = &out->items[i++];
    bool data = PyUnicode_Check(k) && PyUnicode_CompareWithASCIIString(k, "data") == 0;
    if (!PyUnicode_CheckExact(k)) return Py_DECREF(keys), "a dict argument with unusual keys";
    if (data || is_const(v)) {
      why = make(m, v, item);
    } else {
      *item = (fl_spec){.kind = FL_SPEC_UNREAD};
      if (!fl_ptrmap_get(m->covered, v, NULL) && !fl_ptrmap_set(m->covered, v, FL_ARG_UNREAD)) why = OOM;
    }
  }
  if (!why) why = hold(m, keys);
  Py_XDECREF(keys);
  return why;
}

/* Its type is held, and its attributes are matched as the dictionary that they are. */
static const char *make_record(maker *m, PyObject *o, fl_spec *out) {
  out->kind = FL_SPEC_RECORD;
  out->n = 1 + is_dict_record(o);
  out->items = fl_arena_alloc(m->arena, 2 * sizeof *out->items);
  if (!out->items) return OOM;
  if (m->depth >= 32) return "arguments nested too deeply";
  const char *why = cover(m, o);
  m->depth++;
  PyObject *dict = *_PyObject_GetDictPtr(o);
  if (!why) why = is_user_dict(o) ? make_attrs(m, dict, out->items) : make(m, dict, out->items);
  if (!why && out->n == 2) {
    out->items[1] = (fl_spec){.kind = FL_SPEC_ITEMS, .type = Py_TYPE(o)};
    why = make_pairs(m, o, &out->items[1]);
  }
  m->depth--;
  return why;
}

static const char *make(maker *m, PyObject *o, fl_spec *out) {
  out->type = Py_TYPE(o);
  if (fl_tensor_check(o)) return make_tensor(m, o, out);
  if ((out->type->tp_flags & Py_TPFLAGS_HEAPTYPE) && hold(m, (PyObject *)out->type)) return OOM;
  if (m->records ? fl_argspec_is_record(o) : is_user_dict(o)) return make_record(m, o, out);
  if (is_tuple(o)) return out->kind = FL_SPEC_TUPLE, make_items(m, o, out);
  if (PyList_CheckExact(o)) return out->kind = FL_SPEC_LIST, make_items(m, o, out);
  if (is_dict(o)) return out->kind = FL_SPEC_DICT, make_items(m, o, out);
  out->kind = is_const(o) ? FL_SPEC_CONST : FL_SPEC_OBJECT;
  out->object = o;
  return hold(m, o);
}

const char *fl_argspec_make(fl_argspec *out, fl_arena *arena, PyObject *const *args, size_t n_pos, PyObject *kwnames,
                            PyObject **inputs, fl_ptrmap *covered, bool records) {
  size_t n_kw = kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0;
  memset(out, 0, sizeof *out);
  out->n_pos = (int)n_pos;
  out->n_kw = (int)n_kw;
  out->kwnames = n_kw ? Py_NewRef(kwnames) : NULL;
  out->keep = PyList_New(0);
  out->args = fl_arena_alloc(arena, (n_pos + n_kw + 1) * sizeof *out->args);
  out->inputs = fl_arena_alloc(arena, FL_MAX_INPUTS * sizeof *out->inputs);
  if (!out->keep || !out->args || !out->inputs) {
    PyErr_Clear();
    return OOM;
  }
  maker m = {.spec = out, .arena = arena, .inputs = inputs, .covered = covered, .records = records};
  for (size_t i = 0; i < n_pos + n_kw; i++) {
    const char *why = make(&m, args[i], &out->args[i]);
    if (why) return why;
  }
  return NULL;
}

void fl_argspec_release(fl_argspec *s) {
  Py_CLEAR(s->keep);
  Py_CLEAR(s->kwnames);
  fl_ptrmap_release(&s->elsewhere);
}

typedef struct matcher {
  const fl_argspec *spec;
  PyObject **inputs;
  void **data;
  int n_inputs;
  const char *why;
  PyObject *containers[FL_MAX_CONTAINERS];
  int n_containers;
} matcher;

static bool own_object(matcher *m, PyObject *o) {
  for (int i = 0; i < m->n_containers; i++)
    if (m->containers[i] == o) return m->why = "argument: one container given twice", false;
  if (m->n_containers == FL_MAX_CONTAINERS) return false;
  if (m->spec->elsewhere.len && fl_ptrmap_get(&m->spec->elsewhere, o, NULL))
    return m->why = "argument: a container that the program has elsewhere", false;
  m->containers[m->n_containers++] = o;
  return true;
}

static bool no_attrs(PyObject *o) {
  PyObject **d = _PyObject_GetDictPtr(o);
  return !d || !*d || PyDict_GET_SIZE(*d) == 0;
}

/* By the public ways; a tensor that fits becomes the one that others are compared with. */
static bool match_meta(matcher *m, fl_input *in, PyObject *o, void **out_data) {
  fl_tensor_meta meta;
  fl_tensor_read(o, &meta);
  if (!fl_tensor_meta_equal(&meta, &in->meta)) {
    m->why = meta.ndim != in->meta.ndim || memcmp(meta.type.dims, in->meta.type.dims, sizeof meta.type.dims)
                 ? "argument: sizes"
             : meta.dtype_key != in->meta.dtype_key ? "argument: dtype"
                                                    : "argument: strides or device";
    return false;
  }
  int lazy = fl_tensor_is_lazy(o);
  if (lazy < 0) PyErr_Clear();
  if (lazy) return m->why = "argument: conjugate or negative bit", false;
  fl_impl_shape_take(o, meta.ndim, meta.item_size, &in->seen);
  *out_data = meta.data;
  return true;
}

static bool match_tensor(matcher *m, const fl_spec *s, PyObject *o) {
  fl_input *in = &m->spec->inputs[s->index];
  bool autograd = true;
  if (Py_TYPE(o) != in->type) return m->why = "argument: type", false;
  for (int i = 0; i < m->n_inputs; i++)
    if (m->inputs[i] == o) return m->why = "argument: one object given twice", false;
  void **data = &m->data[m->n_inputs];
  if (!fl_impl_like(o, &in->seen, &autograd, data)) {
    if (fl_impl_other_sizes(o, &in->seen)) return m->why = "argument: sizes", false;
    if (!match_meta(m, in, o, data)) return false;
  }
  int rg = autograd ? fl_tensor_requires_grad(o) : 0;
  if (rg < 0) PyErr_Clear();
  if (rg != in->requires_grad) return m->why = "argument: requires_grad", false;
  if (in->attrs_read && !no_attrs(o)) return m->why = "argument: Python attributes of a tensor", false;
  if (in->content && memcmp(*data, in->content, in->content_bytes) != 0)
    return m->why = "argument: elements that the program looks at", false;
  m->inputs[m->n_inputs++] = o;
  return true;
}

static bool match(matcher *m, const fl_spec *s, PyObject *o);

static bool match_items(matcher *m, const fl_spec *s, PyObject *o) {
  PyObject *keys = PyDict_GET_SIZE(o) == s->n ? keys_of(o) : NULL;
  bool same = keys && fl_const_equal(keys, s->object);
  Py_XDECREF(keys);
  if (!same) return m->why = "argument: keys of a dict", false;
  for (int i = 0; same && i < s->n; i++) {
    PyObject *v = PyDict_GetItemWithError(o, PyTuple_GET_ITEM(s->object, i));
    same = v && match(m, &s->items[i], v);
  }
  return same;
}

static bool match_dict(matcher *m, const fl_spec *s, PyObject *o) {
  if (Py_TYPE(o) != s->type || PyDict_GET_SIZE(o) != s->n) return m->why = "argument: keys of a dict", false;
  if (!own_object(m, o)) return false;
  Py_ssize_t pos = 0, i = 0;
  PyObject *k, *v;
  /* An OrderedDict's own order may differ from its table's after move_to_end. */
  if (PyODict_CheckExact(o) && s->n > 1) return match_items(m, s, o);
  while (PyDict_Next(o, &pos, &k, &v)) {
    if (i >= s->n || !fl_const_equal(k, PyTuple_GET_ITEM(s->object, i)))
      return m->why = "argument: keys of a dict", false;
    if (!match(m, &s->items[i++], v)) return false;
  }
  return true;
}

static bool match(matcher *m, const fl_spec *s, PyObject *o) {
  switch (s->kind) {
  case FL_SPEC_TENSOR: return fl_tensor_check(o) ? match_tensor(m, s, o) : (m->why = "argument: type", false);
  case FL_SPEC_SAME: return m->inputs[s->index] == o || (m->why = "argument: no longer one object twice", false);
  case FL_SPEC_CONST: return fl_const_equal(o, s->object) || (m->why = "argument: value of a constant", false);
  case FL_SPEC_UNREAD: return true;
  case FL_SPEC_OBJECT: return o == s->object || (m->why = fl_argspec_other_object, false);
  case FL_SPEC_DICT: return match_dict(m, s, o);
  case FL_SPEC_RECORD:
    if (Py_TYPE(o) != s->type || !fl_argspec_is_record(o)) return m->why = fl_argspec_other_object, false;
    if (!own_object(m, o) || !match(m, s->items, *_PyObject_GetDictPtr(o))) return false;
    return s->n < 2 || match(m, &s->items[1], o);
  case FL_SPEC_ITEMS: return match_items(m, s, o);
  case FL_SPEC_TUPLE:
  case FL_SPEC_LIST:
    if (Py_TYPE(o) != s->type || PySequence_Fast_GET_SIZE(o) != s->n) return m->why = "argument: length", false;
    if (s->kind == FL_SPEC_LIST && !own_object(m, o)) return false;
    for (int i = 0; i < s->n; i++)
      if (!match(m, &s->items[i], PySequence_Fast_GET_ITEM(o, i))) return false;
    return true;
  }
  return false;
}

bool fl_argspec_match(const fl_argspec *s, PyObject *const *args, size_t n_pos, PyObject *kwnames, PyObject **inputs,
                      void **data, const char **why) {
  int n_kw = kwnames ? (int)PyTuple_GET_SIZE(kwnames) : 0;
  if ((int)n_pos != s->n_pos || n_kw != s->n_kw || (n_kw && !fl_const_equal(kwnames, s->kwnames))) {
    *why = "argument: number or names";
    return false;
  }
  matcher m; /* `containers` is not cleared */
  m.spec = s;
  m.inputs = inputs;
  m.data = data;
  m.n_inputs = m.n_containers = 0;
  m.why = NULL;
  for (int i = 0; i < s->n_pos + s->n_kw; i++)
    if (!match(&m, &s->args[i], args[i])) {
      *why = m.why ? m.why : "argument";
      return false;
    }
  return true;
}
