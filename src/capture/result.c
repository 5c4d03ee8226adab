/* Results and the state of frames described as recipes; result_build.c makes them anew. */
#include "capture/cpython/compat.h"
#include "capture/result.h"

#include <string.h>

#include "capture/ccalls.h"
#include "capture/eval_impl.h"
#include "capture/interop.h"
#include "capture/modes.h"
#include "capture/ptrmap.h"
#include "capture/raised.h"
#include "capture/replay_break.h"
#include "capture/vars.h"

static const char OOM[] = "out of memory";

typedef struct maker {
  fl_result *out;
  fl_arena *arena;
  const fl_result_asker *ask;
  fl_ptrmap seen; /* object -> node */
  fl_ptrmap open; /* objects being described: met again means a cycle */
  const char *detail;
  fl_ptrmap own;   /* made by us: what an iterator has left */
  PyObject *temps; /* objects of our own that `seen` knows by their address */
  int depth;
} maker;

static const char *describe(maker *m, PyObject *o, uint32_t *out);

static const char *add(maker *m, PyObject *o, const fl_result_node *n, uint32_t *out) {
  if (n->object && PyList_Append(m->out->keep, n->object) < 0) {
    PyErr_Clear();
    return OOM;
  }
  if (!FL_PUSH(&m->out->nodes, *n)) return OOM;
  *out = (uint32_t)m->out->nodes.len - 1;
  return fl_ptrmap_set(&m->seen, o, *out) ? NULL : OOM;
}

static bool is_atom(PyObject *o) {
  return o == Py_None || o == Py_Ellipsis || o == Py_NotImplemented || PyBool_Check(o) || PyLong_CheckExact(o) ||
         PyFloat_CheckExact(o) || PyComplex_CheckExact(o) || PyUnicode_CheckExact(o) || PyBytes_CheckExact(o) ||
         (PyType_Check(o) && !(((PyTypeObject *)o)->tp_flags & Py_TPFLAGS_HEAPTYPE));
}

/* Immutable objects of torch: the same one again is as good as an equal one. */
static bool is_torch_atom(PyObject *o) {
  static const char *const names[] = {"torch.dtype", "torch.device", "torch.layout", "torch.memory_format",
                                      "torch.Size"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(Py_TYPE(o)->tp_name, names[i])) return true;
  return false;
}

bool fl_result_plain_class(PyTypeObject *t, PyTypeObject *base) {
  for (; t && t != base; t = t->tp_base) {
    if (!fl_ccall_is_python_class(t) || !fl_cpy_type_dict(t)) return false;
    PyObject *slots = PyDict_GetItemString(fl_cpy_type_dict(t), "__slots__");
    if (slots && !(PyTuple_Check(slots) && PyTuple_GET_SIZE(slots) == 0)) return false;
    if (PyDict_GetItemString(fl_cpy_type_dict(t), "__del__")) return false;
  }
  return t == base;
}

static const char *describe_all(maker *m, fl_result_node *n, PyObject *const *items, Py_ssize_t count,
                                PyObject *attrs) {
  Py_ssize_t n_attrs = attrs ? PyDict_GET_SIZE(attrs) : 0;
  n->n = (int)count;
  n->n_attrs = (int)n_attrs;
  n->items = fl_arena_alloc(m->arena, (size_t)(count + 2 * n_attrs + 1) * sizeof *n->items);
  if (!n->items) return OOM;
  const char *why = NULL;
  for (Py_ssize_t i = 0; i < count && !why; i++) why = describe(m, items[i], &n->items[i]);
  Py_ssize_t pos = 0, at = count;
  PyObject *k, *v;
  while (!why && attrs && PyDict_Next(attrs, &pos, &k, &v)) {
    why = describe(m, k, &n->items[at++]);
    if (!why) why = describe(m, v, &n->items[at++]);
  }
  return why;
}

static PyObject *instance_dict(PyObject *o) {
  PyObject **d = _PyObject_GetDictPtr(o);
  return d ? *d : NULL;
}

/* Keys and values alternately, in the container's own order. New reference. */
static PyObject *pairs_of(PyObject *o) {
  PyObject *items =
      PyODict_Check(o) ? PyObject_CallMethod((PyObject *)&PyODict_Type, "items", "O", o) : PyDict_Items(o);
  PyObject *list = items ? PySequence_List(items) : NULL;
  Py_XDECREF(items);
  Py_ssize_t n = list ? PyList_GET_SIZE(list) : 0;
  PyObject *flat = list ? PyTuple_New(2 * n) : NULL;
  for (Py_ssize_t i = 0; flat && i < n; i++) {
    PyObject *pair = PyList_GET_ITEM(list, i);
    PyTuple_SET_ITEM(flat, 2 * i, Py_NewRef(PyTuple_GET_ITEM(pair, 0)));
    PyTuple_SET_ITEM(flat, 2 * i + 1, Py_NewRef(PyTuple_GET_ITEM(pair, 1)));
  }
  Py_XDECREF(list);
  return flat;
}

static bool is_structseq(PyTypeObject *t) {
  return PyType_IsSubtype(t, &PyTuple_Type) && fl_cpy_type_dict(t) &&
         PyDict_GetItemString(fl_cpy_type_dict(t), "n_sequence_fields");
}

/* --- what only frames hold --- */

static const char *describe_items(maker *m, fl_result_node *n, PyObject *const *items, int count, PyObject *o,
                                  uint32_t *out) {
  const char *why = describe_all(m, n, items, count, NULL);
  return why ? why : add(m, o, n, out);
}

static const char *describe_function(maker *m, PyObject *o, uint32_t *out) {
  PyFunctionObject *f = (PyFunctionObject *)o;
  fl_result_node n = {.kind = FL_RESULT_FUNCTION};
  PyObject *parts[] = {f->func_defaults, f->func_kwdefaults, f->func_closure, f->func_annotations};
  m->detail = "function with attributes";
  if (f->func_dict && PyDict_GET_SIZE(f->func_dict)) return "a result of a kind that cannot be made again";
  for (int i = 0; i < 4; i++)
    if (!parts[i]) parts[i] = Py_None;
  if (!(n.object = PyTuple_Pack(4, f->func_code, f->func_globals, f->func_qualname,
                                f->func_module ? f->func_module : Py_None)))
    return OOM;
  const char *why = describe_items(m, &n, parts, 4, o, out);
  Py_DECREF(n.object);
  return why;
}

static bool is_resumable(PyTypeObject *t) {
  static const char *const names[] = {"list_iterator",
                                      "list_reverseiterator",
                                      "tuple_iterator",
                                      "str_ascii_iterator",
                                      "str_iterator",
                                      "range_iterator",
                                      "longrange_iterator",
                                      "dict_keyiterator",
                                      "dict_valueiterator",
                                      "dict_itemiterator",
                                      "set_iterator",
                                      "enumerate",
                                      "zip",
                                      "map",
                                      "filter",
                                      "reversed",
                                      "odict_iterator",
                                      "slice",
                                      "range",
                                      "functools.partial",
                                      "torch.Size"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(t->tp_name, names[i])) return true;
  return false;
}

/* By what __reduce__ says of it. */
static const char *describe_call(maker *m, PyObject *o, uint32_t *out) {
  PyObject *r = PyObject_CallMethod(o, "__reduce__", NULL), *args = NULL;
  Py_ssize_t n_parts = r && PyTuple_Check(r) ? PyTuple_GET_SIZE(r) : 0;
  const char *why = "a result of a kind that cannot be made again";
  m->detail = Py_TYPE(o)->tp_name;
  if (r && !m->temps) m->temps = PyList_New(0);
  if (n_parts >= 2 && n_parts <= 3 && m->temps && PyList_Append(m->temps, r) == 0) {
    PyObject *state = n_parts == 3 && PyTuple_GET_ITEM(r, 2) != Py_None ? PyTuple_GET_ITEM(r, 2) : NULL;
    PyObject *tail = state ? PyTuple_Pack(1, state) : PyTuple_New(0);
    args = tail ? PySequence_Concat(PyTuple_GET_ITEM(r, 1), tail) : NULL;
    Py_XDECREF(tail);
    fl_result_node n = {.kind = FL_RESULT_CALL, .index = state != NULL, .object = PyTuple_GET_ITEM(r, 0)};
    for (Py_ssize_t i = 0; args && i < PyTuple_GET_SIZE(args); i++) {
      /* A list that these tuples alone hold was made just now; an iterator's own iterator belongs to it. */
      PyObject *a = PyTuple_GET_ITEM(args, i);
      bool own = PyList_CheckExact(a) ? Py_REFCNT(a) == 1 + (args != PyTuple_GET_ITEM(r, 1)) : PyIter_Check(a);
      if (own && !fl_ptrmap_set(&m->own, a, 0)) {
        Py_CLEAR(args);
        break;
      }
    }
    if (args && PyList_Append(m->temps, args) == 0)
      why = describe_items(m, &n, &PyTuple_GET_ITEM(args, 0), (int)PyTuple_GET_SIZE(args), o, out);
  }
  Py_XDECREF(args);
  Py_XDECREF(r);
  PyErr_Clear();
  return why;
}

static const char *describe_token(maker *m, PyObject *o, uint32_t *out) {
  fl_result_node n = {.kind = FL_RESULT_TOKEN};
  PyObject *value;
  m->detail = "a token of a context variable";
  if (!fl_vars_token(m->ask->tokens, o, &n.object, &value)) return "a result of a kind that cannot be made again";
  return describe_items(m, &n, &value, 1, o, out);
}

/* contextlib.ExitStack keeps what it will leave in one. */
static const char *describe_deque(maker *m, PyObject *o, uint32_t *out) {
  PyObject *items = PySequence_List(o), *most = items ? PyObject_GetAttrString(o, "maxlen") : NULL;
  PyObject *args = most ? PyTuple_Pack(2, items, most) : NULL;
  if (args && !m->temps) m->temps = PyList_New(0);
  const char *why = OOM;
  fl_result_node n = {.kind = FL_RESULT_CALL, .object = (PyObject *)Py_TYPE(o)};
  if (args && m->temps && PyList_Append(m->temps, args) == 0 && fl_ptrmap_set(&m->own, items, 0))
    why = describe_items(m, &n, &PyTuple_GET_ITEM(args, 0), 2, o, out);
  Py_XDECREF(items);
  Py_XDECREF(most);
  Py_XDECREF(args);
  PyErr_Clear();
  return why;
}

/* One of the modes that stand, or a guard of inference mode that is left. */
static bool is_mode(const maker *m, PyObject *o, bool *stands) {
  PyObject *modes = m->ask->modes;
  *stands = false;
  for (Py_ssize_t i = 0; modes && !*stands && i < PyTuple_GET_SIZE(modes); i++)
    *stands = PyTuple_GET_ITEM(modes, i) == o;
  return modes && (*stands || (fl_inference_is_guard(o) && m->ask->made(m->ask->ctx, o)));
}

static const char *describe_mode(maker *m, PyObject *o, bool stands, uint32_t *out) {
  fl_result_node n = {.kind = FL_RESULT_GUARD, .index = stands};
  if (PyTuple_Check(o)) {
    n = (fl_result_node){.kind = FL_RESULT_AUTOCAST, .object = o};
  } else if (stands && !m->ask->made(m->ask->ctx, o)) {
    m->detail = "inference mode";
    return "a result of a kind that cannot be made again";
  }
  return add(m, o, &n, out);
}

static const char *describe_generator(maker *m, PyObject *o, const fl_cpy_generator *g, uint32_t *out) {
  fl_result_node n = {.kind = FL_RESULT_GENERATOR};
  PyObject *none = fl_back_none(), *items = PyTuple_New(1 + g->n);
  n.object = items && none ? Py_BuildValue("(Oii)", g->code, g->at, g->state) : NULL;
  if (n.object) {
    PyTuple_SET_ITEM(items, 0, Py_NewRef(g->func));
    for (int i = 0; i < g->n; i++) PyTuple_SET_ITEM(items, 1 + i, Py_NewRef(g->slots[i] ? g->slots[i] : none));
  }
  const char *why = n.object ? describe_items(m, &n, &PyTuple_GET_ITEM(items, 0), 1 + g->n, o, out) : OOM;
  Py_XDECREF(n.object);
  Py_XDECREF(items);
  PyErr_Clear();
  return why;
}

static bool is_raised(const maker *m, PyObject *o) {
  PyObject *raised = m->ask->raised;
  for (Py_ssize_t i = 0; raised && i < PyTuple_GET_SIZE(raised); i++)
    if (PyTuple_GET_ITEM(raised, i) == o) return o != Py_None;
  return false;
}

static const char *describe_traceback(maker *m, PyObject *o, uint32_t *out) {
  if (fl_ptrmap_get(&m->seen, o, out)) return NULL;
  PyObject *next = (PyObject *)((PyTracebackObject *)o)->tb_next;
  fl_result_node n = {.kind = FL_RESULT_TRACEBACK, .n = 1};
  n.items = fl_arena_alloc(m->arena, sizeof *n.items);
  const char *why = !n.items || m->depth > 64 ? OOM : NULL;
  m->depth++;
  if (!why) why = next ? describe_traceback(m, next, n.items) : describe(m, Py_None, n.items);
  m->depth--;
  n.object = why ? NULL : fl_raised_place(o);
  if (!why) why = n.object ? add(m, o, &n, out) : OOM;
  Py_XDECREF(n.object);
  PyErr_Clear();
  return why;
}

static const char *describe_exception(maker *m, PyObject *o, uint32_t *out) {
  PyObject *tb = ((PyBaseExceptionObject *)o)->traceback, *parts = NULL;
  bool ok = !m->ask->known(m->ask->ctx, o) && (is_raised(m, o) || !tb) && (parts = fl_raised_parts(o));
  fl_result_node n = {.kind = FL_RESULT_EXCEPTION, .object = (PyObject *)Py_TYPE(o)};
  const char *why = "a result of a kind that cannot be made again";
  uint32_t at;
  m->detail = Py_TYPE(o)->tp_name;
  if (ok) {
    (void)m->ask->made(m->ask->ctx, o);
    why = tb ? describe_traceback(m, tb, &at) : NULL;
    if (!why) why = describe_all(m, &n, &PyTuple_GET_ITEM(parts, 0), PyTuple_GET_SIZE(parts), instance_dict(o));
    if (!why) why = add(m, o, &n, out);
  }
  Py_XDECREF(parts);
  return why;
}

/* The function of a generator that runs now, in one of the evaluated frames; borrowed, or NULL. */
static PyObject *running(PyObject *o) {
  for (const fl_eval_frame *e = PyGen_CheckExact(o) ? fl_eval_here->top : NULL; e; e = e->below)
    if (fl_cpy_frame_generator(e->f) == o) return fl_cpy_func(e->f);
  return NULL;
}

/* *out_why as describe; false when it is of no such kind. */
static bool describe_frames_own(maker *m, PyObject *o, uint32_t *out, const char **out_why) {
  fl_result_node n = {.kind = FL_RESULT_METHOD};
  fl_cpy_generator gen;
  PyObject *func;
  if (PyCell_Check(o)) {
    PyObject *held = PyCell_GET(o);
    n.kind = FL_RESULT_CELL;
    *out_why = describe_items(m, &n, &held, held != NULL, o, out);
  } else if (PyFunction_Check(o)) {
    *out_why = describe_function(m, o, out);
  } else if (PyMethod_Check(o)) {
    PyObject *parts[] = {PyMethod_GET_FUNCTION(o), PyMethod_GET_SELF(o)};
    *out_why = describe_items(m, &n, parts, 2, o, out);
  } else if (PyCFunction_Check(o) && PyCFunction_GET_SELF(o) && !PyModule_Check(PyCFunction_GET_SELF(o))) {
    PyObject *self = PyCFunction_GET_SELF(o);
    n.kind = FL_RESULT_BUILTIN;
    n.object = o;
    *out_why = describe_items(m, &n, &self, 1, o, out);
  } else if (!strcmp(Py_TYPE(o)->tp_name, "collections.deque")) {
    *out_why = describe_deque(m, o, out);
  } else if (is_resumable(Py_TYPE(o))) {
    *out_why = describe_call(m, o, out);
  } else if ((func = running(o))) {
    n = (fl_result_node){.kind = FL_RESULT_RUNNING, .object = PyFunction_GET_CODE(func)};
    *out_why = describe_items(m, &n, &func, 1, o, out);
  } else if (fl_cpy_generator_read(o, &gen)) {
    *out_why = describe_generator(m, o, &gen, out);
  } else {
    return false;
  }
  return true;
}

/* Objects of CPython's own that live as long as the process, and code. */
static bool is_frames_atom(PyObject *o) {
  PyTypeObject *t = Py_TYPE(o);
  return t == &PyMethodDescr_Type || t == &PyWrapperDescr_Type || t == &PyClassMethodDescr_Type || PyCode_Check(o) ||
         PyModule_Check(o) ||
         (PyCFunction_Check(o) && (!PyCFunction_GET_SELF(o) || PyModule_Check(PyCFunction_GET_SELF(o))));
}

static const char *describe_made(maker *m, PyObject *o, uint32_t *out) {
  PyTypeObject *t = Py_TYPE(o);
  fl_result_node n = {.object = (PyObject *)t};
  PyObject *tmp = NULL, *attrs = NULL, *const *items = NULL;
  Py_ssize_t count = 0;
  const char *own_why;
  if (m->ask->made && PyExceptionInstance_Check(o)) return describe_exception(m, o, out);
  if (m->ask->made && PyTraceBack_Check(o) && is_raised(m, o)) return describe_traceback(m, o, out);
  if (m->ask->made && !fl_ptrmap_get(&m->own, o, NULL) && !m->ask->made(m->ask->ctx, o)) {
    if (PyFunction_Check(o)) return n.kind = FL_RESULT_CONST, n.object = o, add(m, o, &n, out); /* of a classmethod */
    m->detail = t->tp_name;
    return "a result of a kind that cannot be made again";
  }
  if (m->ask->made && describe_frames_own(m, o, out, &own_why)) return own_why;
  if (PyTuple_CheckExact(o) || is_structseq(t) || (PyTuple_Check(o) && fl_result_plain_class(t, &PyTuple_Type))) {
    n.kind = PyTuple_CheckExact(o) ? FL_RESULT_TUPLE : is_structseq(t) ? FL_RESULT_STRUCT : FL_RESULT_NAMED;
    items = &PyTuple_GET_ITEM(o, 0);
    count = PyTuple_GET_SIZE(o);
    if (n.kind == FL_RESULT_NAMED) attrs = instance_dict(o);
  } else if (PyList_CheckExact(o)) {
    n.kind = FL_RESULT_LIST;
    count = PyList_GET_SIZE(o);
    items = ((PyListObject *)o)->ob_item;
  } else if (PyAnySet_CheckExact(o)) {
    n.kind = FL_RESULT_SET;
    tmp = PySequence_Tuple(o);
  } else if (PyDict_CheckExact(o) || PyODict_CheckExact(o) ||
             (PyODict_Check(o) && fl_result_plain_class(t, &PyODict_Type)) ||
             (PyDict_Check(o) && fl_result_plain_class(t, &PyDict_Type))) {
    n.kind = FL_RESULT_DICT;
    tmp = pairs_of(o);
    attrs = instance_dict(o);
  } else if (fl_result_plain_class(t, &PyBaseObject_Type) && t->tp_dictoffset) {
    n.kind = FL_RESULT_OBJECT;
    attrs = instance_dict(o);
  } else {
    m->detail = t->tp_name;
    return "a result of a kind that cannot be made again";
  }
  if (n.kind == FL_RESULT_SET || n.kind == FL_RESULT_DICT) {
    if (!tmp) {
      PyErr_Clear();
      return OOM;
    }
    items = &PyTuple_GET_ITEM(tmp, 0);
    count = PyTuple_GET_SIZE(tmp);
  }
  const char *why = describe_all(m, &n, items, count, attrs);
  Py_XDECREF(tmp);
  return why ? why : add(m, o, &n, out);
}

static const char *describe(maker *m, PyObject *o, uint32_t *out) {
  if (fl_ptrmap_get(&m->seen, o, out)) return NULL;
  fl_result_node value = {.kind = FL_RESULT_VALUE};
  if (m->ask->unknown && m->ask->unknown(m->ask->ctx, o, &value.index)) return add(m, o, &value, out);
  if (m->ask->tokens && PyContextToken_CheckExact(o)) return describe_token(m, o, out);
  bool stands;
  if (is_mode(m, o, &stands)) return describe_mode(m, o, stands, out);
  if (fl_tensor_check(o)) {
    fl_result_node n = {.kind = FL_RESULT_VALUE};
    if (m->ask->tensor(m->ask->ctx, o, &n.index)) return add(m, o, &n, out);
    m->detail = "a tensor that requires grad, or that no recorded operator made";
    return "a result of a kind that cannot be made again";
  }
  if (is_atom(o) || is_torch_atom(o) || fl_ccall_is_numpy_number(o) || (m->ask->made && is_frames_atom(o)) ||
      (!is_raised(m, o) && m->ask->known(m->ask->ctx, o))) {
    fl_result_node n = {.kind = FL_RESULT_CONST, .object = o};
    return add(m, o, &n, out);
  }
  /* Of plain tuples nobody asks which one it is. */
  bool itself = m->ask->made ? !PyTuple_Check(o) : !PyTuple_CheckExact(o);
  if (itself && m->ask->argument(m->ask->ctx, o)) {
    if (m->ask->argument_value && m->ask->argument_value(m->ask->ctx, o, &value.index)) return add(m, o, &value, out);
    m->detail = "an argument's own container";
    return "a result of a kind that cannot be made again";
  }
  if (fl_ptrmap_get(&m->open, o, NULL) || m->depth > 64) {
    m->detail = "it contains itself";
    return "a result of a kind that cannot be made again";
  }
  if (!fl_ptrmap_set(&m->open, o, 0)) return OOM;
  m->depth++;
  const char *why = describe_made(m, o, out);
  m->depth--;
  return why;
}

const char *fl_result_make(fl_result *out, fl_arena *arena, PyObject *result, const fl_result_asker *ask,
                           const char **detail) {
  memset(out, 0, sizeof *out);
  if (!(out->keep = PyList_New(0))) {
    PyErr_Clear();
    return OOM;
  }
  maker m = {.out = out, .arena = arena, .ask = ask};
  const char *why = describe(&m, result, &out->root);
  *detail = m.detail;
  fl_ptrmap_release(&m.seen);
  fl_ptrmap_release(&m.open);
  fl_ptrmap_release(&m.own);
  Py_XDECREF(m.temps);
  if (PyErr_Occurred()) PyErr_Clear();
  return why;
}
