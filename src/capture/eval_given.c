/* What unknown code gave, and numbers that a tensor gives: worked with by CPython, in breaks. */
#include "capture/cpython/compat.h"

#include <string.h>

#include "capture/ccalls.h"
#include "capture/eval_impl.h"
#include "capture/interop.h"

PyObject *fl_call_operator(fl_rec *r, const char *name, PyObject *const *args, size_t n) {
  static PyObject *modules[2];
  static const char *const names[] = {"builtins", "operator"};
  bool builtin = !strcmp(name, "getattr") || !strcmp(name, "format");
  PyObject **module = &modules[!builtin], *fn, *v;
  fl_eval_here->tail = false;
  if (!*module && !(*module = PyImport_ImportModule(names[!builtin]))) return NULL;
  fn = strcmp(name, "join") ? PyObject_GetAttrString(*module, name)
                            : PyObject_GetAttrString((PyObject *)&PyUnicode_Type, "join");
  if (!fn) return NULL;
  v = fl_rec_opaque(r, fn, args, n, NULL, false, "what unknown code gave", name);
  Py_DECREF(fn);
  return v;
}

/* A number out of a tensor of floats: another one on each call, so that a trace that holds for this one alone is worth little. */
bool fl_call_gives_float(fl_rec *r, PyObject *tensor) {
  fl_tensor_meta m;
  if (!fl_ccall_is_tensor(Py_TYPE(tensor))) return false;
  fl_tensor_read(tensor, &m);
  return m.ok && fl_dtype_is_float(m.type.dtype) && fl_type_numel(&m.type) == 1 && fl_rec_can_break(r);
}

int fl_eval_only_compared(void) {
  const fl_eval_state *st = fl_eval_here;
  const fl_eval_frame *e = st && st->number ? st->top : NULL;
  bool waits = e && e->depth >= 0 && e->wants == FL_CPY_ANSWER;
  return waits ? fl_cpy_compares_next(fl_cpy_code(e->f), e->next) : 0;
}

/* The number that is about to be drawn is not used at once: it becomes a local, or random.uniform() is drawing it. */
bool fl_eval_draws_ahead(void) {
  const fl_eval_frame *e = fl_eval_here ? fl_eval_here->top : NULL;
  if (!e || e->depth < 0 || e->wants != FL_CPY_ANSWER) return false;
  PyCodeObject *code = fl_cpy_code(e->f);
  const char *file = PyUnicode_AsUTF8(code->co_filename);
  bool uniform = PyUnicode_CompareWithASCIIString(code->co_qualname, "Random.uniform") == 0;
  return fl_cpy_stores_next(code, e->next) || (uniform && file && fl_eval_is_library(file));
}

bool fl_call_reads_known(fl_rec *r, PyObject *const *args, size_t n) {
  for (size_t i = 0; i < n; i++) {
    fl_tensor_meta m;
    if (!fl_ccall_is_tensor(Py_TYPE(args[i]))) continue;
    fl_tensor_read(args[i], &m);
    if (!(m.ok && fl_dtype_is_float(m.type.dtype)) && !fl_rec_read_elements(r, args[i])) return false;
  }
  return true;
}

bool fl_call_is_item(PyObject *callable) {
  PyObject *name = PyCFunction_Check(callable)                         ? NULL
                   : PyObject_TypeCheck(callable, &PyMethodDescr_Type) ? ((PyDescrObject *)callable)->d_name
                                                                       : NULL;
  if (PyCFunction_Check(callable)) return !strcmp(((PyCFunctionObject *)callable)->m_ml->ml_name, "item");
  return name && PyUnicode_CompareWithASCIIString(name, "item") == 0;
}
