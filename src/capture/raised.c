#include "capture/raised.h"

#include <frameobject.h>

#include "capture/eval_impl.h"

/* --- what they are --- */

static int add(PyObject *list, PyObject *o) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++)
    if (PyList_GET_ITEM(list, i) == o) return 0;
  if (PyList_Append(list, o) < 0) return -1;
  if (PyTraceBack_Check(o)) return 0;
  PyObject *cause = ((PyBaseExceptionObject *)o)->cause, *context = ((PyBaseExceptionObject *)o)->context;
  return (cause && add(list, cause) < 0) || (context && add(list, context) < 0) ? -1 : 0;
}

/* `o`, or what is in such a tuple as __exit__ is given. */
static int add_held(PyObject *list, PyObject *o, bool inside) {
  int rc = 0;
  if (o && PyCell_Check(o)) o = PyCell_GET(o);
  if (!o) return 0;
  if (PyExceptionInstance_Check(o) || PyTraceBack_Check(o)) return add(list, o);
  for (Py_ssize_t i = 0; rc == 0 && !inside && PyTuple_CheckExact(o) && i < PyTuple_GET_SIZE(o); i++)
    rc = add_held(list, PyTuple_GET_ITEM(o, i), true);
  return rc;
}

static int add_frame(PyObject *list, const fl_eval_frame *e) {
  int n = fl_cpy_code(e->f)->co_nlocalsplus, rc = 0;
  PyObject **locals = fl_cpy_locals(e->f);
  for (int i = 0; rc == 0 && i < n + e->depth; i++) rc = add_held(list, i < n ? locals[i] : e->stack[i - n], false);
  return rc;
}

PyObject *fl_raised_items(void) {
  const fl_eval_state *st = fl_eval_here;
  PyObject *handled = fl_cpy_handled(PyThreadState_Get()), *list = PyList_New(0), *out;
  if (handled == st->handled) handled = NULL;
  int rc = list ? handled ? add(list, handled) : PyList_Append(list, Py_None) : -1;
  for (const fl_eval_frame *e = st->top; rc == 0 && e; e = e->below) rc = add_frame(list, e);
  bool none = rc == 0 && !handled && PyList_GET_SIZE(list) == 1;
  out = rc < 0 ? NULL : none ? PyTuple_New(0) : PyList_AsTuple(list);
  Py_XDECREF(list);
  return out;
}

/* The number of the evaluated frame that has this object, the outermost one's being 0; -1: it is no more. */
static int number_of(PyObject *frame) {
  int n = 0, found = -1;
  for (const fl_eval_frame *e = fl_eval_here->top; e; e = e->below) {
    if (fl_cpy_frame_object(e->f) == frame) found = n;
    n++;
  }
  return found < 0 ? -1 : n - 1 - found;
}

PyObject *fl_raised_place(PyObject *tb) {
  PyObject *frame = (PyObject *)((PyTracebackObject *)tb)->tb_frame;
  PyObject *code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
  PyObject *globals = PyObject_GetAttrString(frame, "f_globals"), *line = PyObject_GetAttrString(tb, "tb_lineno");
  PyObject *out = globals && line ? Py_BuildValue("(iOOiO)", number_of(frame), code, globals,
                                                  ((PyTracebackObject *)tb)->tb_lasti, line)
                                  : NULL;
  Py_DECREF(code);
  Py_XDECREF(globals);
  Py_XDECREF(line);
  return out;
}

PyObject *fl_raised_make_place(PyObject *place, PyObject *next) {
  PyObject *globals = PyTuple_GET_ITEM(place, 2), *out = NULL;
  PyObject *frame =
      (PyObject *)PyFrame_New(PyThreadState_Get(), (PyCodeObject *)PyTuple_GET_ITEM(place, 1), globals, NULL);
  if (frame)
    out = PyObject_CallFunction((PyObject *)&PyTraceBack_Type, "OOOO", next, frame, PyTuple_GET_ITEM(place, 3),
                                PyTuple_GET_ITEM(place, 4));
  Py_XDECREF(frame);
  return out;
}

/* Fields in C of an exception's type, besides those that all have. NULL: they are not known. */
static const char *const *fields_of(PyTypeObject *t) {
  static const char *const none[] = {NULL}, *const attribute[] = {"name", "obj", NULL}, *const name[] = {"name", NULL},
                           *const import[] = {"msg", "name", "path", NULL}, *const stop[] = {"value", NULL};
  const struct {
    PyObject *type;
    const char *const *fields;
  } known[] = {{PyExc_AttributeError, attribute},
               {PyExc_NameError, name},
               {PyExc_ImportError, import},
               {PyExc_StopIteration, stop}};
  while (t->tp_flags & Py_TPFLAGS_HEAPTYPE) t = t->tp_base;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (PyType_IsSubtype(t, (PyTypeObject *)known[i].type)) return known[i].fields;
  return t->tp_basicsize == (Py_ssize_t)sizeof(PyBaseExceptionObject) ? none : NULL;
}

/* Classes in Python that add nothing but what is in their __dict__. */
static bool is_plain(PyTypeObject *t) {
  PyTypeObject *base = t;
  while (base->tp_flags & Py_TPFLAGS_HEAPTYPE) base = base->tp_base;
  return fl_result_plain_class(t, base);
}

enum { COMMON = 5 }; /* arguments, traceback, cause, context, whether the context is shown */

PyObject *fl_raised_parts(PyObject *exc) {
  PyBaseExceptionObject *e = (PyBaseExceptionObject *)exc;
  const char *const *fields = fields_of(Py_TYPE(exc));
  int n = COMMON;
  if (!fields || !is_plain(Py_TYPE(exc)) || !e->args) return NULL;
  for (const char *const *f = fields; *f; f++) n++;
  PyObject *out = PyTuple_New(n);
  if (!out) return PyErr_Clear(), NULL;
  PyTuple_SET_ITEM(out, 0, Py_NewRef(e->args));
  PyTuple_SET_ITEM(out, 1, Py_NewRef(e->traceback ? e->traceback : Py_None));
  PyTuple_SET_ITEM(out, 2, Py_NewRef(e->cause ? e->cause : Py_None));
  PyTuple_SET_ITEM(out, 3, Py_NewRef(e->context ? e->context : Py_None));
  PyTuple_SET_ITEM(out, 4, PyBool_FromLong(e->suppress_context));
  for (int i = COMMON; i < n; i++) {
    PyObject *v = PyObject_GetAttrString(exc, fields[i - COMMON]);
    if (!v) PyErr_Clear();
    PyTuple_SET_ITEM(out, i, v ? v : Py_NewRef(Py_None));
  }
  return out;
}

PyObject *fl_raised_make(PyTypeObject *type, PyObject *const *parts, int n) {
  PyTypeObject *base = type;
  const char *const *fields = fields_of(type);
  while (base->tp_flags & Py_TPFLAGS_HEAPTYPE) base = base->tp_base;
  PyObject *exc = base->tp_new(type, parts[0], NULL);
  if (!exc) return NULL;
  (void)PyException_SetTraceback(exc, parts[1]);
  if (parts[2] != Py_None) PyException_SetCause(exc, Py_NewRef(parts[2]));
  if (parts[3] != Py_None) PyException_SetContext(exc, Py_NewRef(parts[3]));
  ((PyBaseExceptionObject *)exc)->suppress_context = parts[4] == Py_True;
  for (int i = COMMON; i < n; i++) {
    PyObject *name = PyUnicode_FromString(fields[i - COMMON]);
    int rc = name ? PyObject_GenericSetAttr(exc, name, parts[i]) : -1;
    Py_XDECREF(name);
    if (rc < 0) {
      Py_DECREF(exc);
      return NULL;
    }
  }
  return exc;
}

/* --- made for frames that stand --- */

/* The frames that stand take their places in the traceback. */
static void name_frames(PyObject *tb, const fl_result *state, const fl_result_node *n, const fl_cpy_state *frames) {
  while (tb && PyTraceBack_Check(tb) && n->kind == FL_RESULT_TRACEBACK) {
    PyTracebackObject *t = (PyTracebackObject *)tb;
    long number = PyLong_AsLong(PyTuple_GET_ITEM(n->object, 0));
    PyObject *frame = number >= 0 ? fl_cpy_frame_object(frames[number].frame) : NULL;
    if (frame) Py_SETREF(t->tb_frame, (PyFrameObject *)Py_NewRef(frame));
    tb = (PyObject *)t->tb_next;
    n = &state->nodes.data[n->items[0]];
  }
}

/* Or None, or a traceback. */
static bool is_exception(PyObject *o) { return PyExceptionInstance_Check(o); }

/* (arguments, cause, context, ..., __dict__'s items) */
static PyObject *now_of(PyObject *exc) {
  PyObject **d = _PyObject_GetDictPtr(exc), *parts = fl_raised_parts(exc),
           *flat = parts ? PySequence_List(parts) : NULL;
  PyObject *k, *v;
  Py_ssize_t pos = 0;
  int rc = flat ? 0 : -1;
  while (rc == 0 && d && *d && PyDict_Next(*d, &pos, &k, &v))
    if (!(rc = PyList_Append(flat, k))) rc = PyList_Append(flat, v);
  if (rc < 0) Py_CLEAR(flat);
  Py_XDECREF(parts);
  return flat;
}

static int stand(fl_raised_held *h, const fl_result *state, const fl_result_node *items, const fl_cpy_state *frames) {
  if (!(h->then = PyList_New(0))) return -1;
  for (int i = 0; i < items->n; i++) {
    const fl_result_node *n = &state->nodes.data[items->items[i]];
    PyObject *exc = PyTuple_GET_ITEM(h->items, i);
    if (n->kind == FL_RESULT_TRACEBACK) name_frames(exc, state, n, frames);
    if (n->kind == FL_RESULT_EXCEPTION)
      name_frames(((PyBaseExceptionObject *)exc)->traceback, state, &state->nodes.data[n->items[1]], frames);
  }
  if (PyTuple_GET_ITEM(h->items, 0) != Py_None) PyErr_SetHandledException(PyTuple_GET_ITEM(h->items, 0));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(h->items); i++) {
    PyObject *exc = PyTuple_GET_ITEM(h->items, i), *now = is_exception(exc) ? now_of(exc) : PyList_New(0);
    PyObject *pair = now ? Py_BuildValue("(nN)", Py_REFCNT(exc), now) : NULL;
    int rc = pair ? PyList_Append(h->then, pair) : -1;
    Py_XDECREF(pair);
    if (rc < 0) return -1;
  }
  /* What was noted holds some of them: their causes, their contexts. */
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(h->items); i++) {
    PyObject *refs = PyLong_FromSsize_t(Py_REFCNT(PyTuple_GET_ITEM(h->items, i))), *pair = PyList_GET_ITEM(h->then, i);
    PyObject *old = PyTuple_GET_ITEM(pair, 0);
    if (!refs) return -1;
    PyTuple_SET_ITEM(pair, 0, refs);
    Py_DECREF(old);
  }
  return 0;
}

void fl_raised_stand(fl_raised_held *h, const fl_result *state, const fl_result_node *items,
                     const fl_cpy_state *frames) {
  if (!h->items) return;
  h->failed = stand(h, state, items, frames) < 0;
  PyErr_Clear();
}

static bool is_kept(const fl_raised_held *h, Py_ssize_t i) {
  PyObject *refs = PyTuple_GET_ITEM(PyList_GET_ITEM(h->then, i), 0);
  return PyLong_AsSsize_t(refs) != Py_REFCNT(PyTuple_GET_ITEM(h->items, i));
}

static bool is_changed(const fl_raised_held *h, Py_ssize_t i) {
  PyObject *then = PyTuple_GET_ITEM(PyList_GET_ITEM(h->then, i), 1), *now = now_of(PyTuple_GET_ITEM(h->items, i));
  bool same = now && PyList_GET_SIZE(now) == PyList_GET_SIZE(then);
  for (Py_ssize_t k = 0; same && k < PyList_GET_SIZE(now); k++)
    same = PyList_GET_ITEM(now, k) == PyList_GET_ITEM(then, k);
  Py_XDECREF(now);
  PyErr_Clear();
  return !same;
}

const char *fl_raised_why_not(const fl_raised_held *h) {
  if (!h->items) return NULL;
  if (h->failed) return "out of memory";
  PyObject *handled = fl_cpy_handled(PyThreadState_Get()), *was = PyTuple_GET_ITEM(h->items, 0);
  if ((handled ? handled : Py_None) != was) return "the exception being handled";
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(h->items); i++)
    if (is_exception(PyTuple_GET_ITEM(h->items, i)) && (is_kept(h, i) || is_changed(h, i)))
      return "an exception was kept or changed";
  return NULL;
}

void fl_raised_pass_on(fl_raised_held *h) {
  Py_CLEAR(h->then);
  Py_CLEAR(h->items);
  h->failed = false;
}

void fl_raised_leave(fl_raised_held *h) {
  PyObject *type, *value, *tb;
  if (!h->items) return;
  PyErr_Fetch(&type, &value, &tb);
  if (h->then && PyTuple_GET_ITEM(h->items, 0) != Py_None) PyErr_SetHandledException(Py_None);
  /* An exception in a local of a frame that it leads to would wait for the garbage collector. */
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(h->items); i++) {
    PyObject *exc = PyTuple_GET_ITEM(h->items, i);
    if (is_exception(exc) && PyException_SetTraceback(exc, Py_None) < 0) PyErr_Clear();
  }
  fl_raised_pass_on(h);
  PyErr_Restore(type, value, tb);
}
