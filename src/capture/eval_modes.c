/* Function modes: Python of the program's that PyTorch's functions enter by themselves. A mode that the call pushes is part of
 * what it does, and so are the frames of its __torch_function__, which come back through the frame hook. */
#include "capture/cpython/compat.h"

#include "capture/eval_impl.h"

void fl_mode_pushed(fl_rec *r, PyObject *mode) {
  fl_eval_state *st = fl_eval_here;
  PyObject *method = mode ? fl_attr_get(r, mode, fl_n.__torch_function__) : NULL, *func = NULL;
  if (!method) PyErr_Clear();
  if (method && PyMethod_Check(method)) func = PyMethod_GET_FUNCTION(method);
  bool known = false;
  for (int i = 0; i < st->n_modes; i++) known |= st->modes[i] == func;
  /* The mode, which lives as long as it is pushed, leads to the function. */
  if (!func || !PyFunction_Check(func) || (!known && st->n_modes == FL_MODES))
    fl_rec_give_up(r, "a torch function mode", mode ? Py_TYPE(mode)->tp_name : "?");
  else if (!known)
    st->modes[st->n_modes++] = func;
  Py_XDECREF(method);
}

void fl_mode_entered(fl_rec *r, fl_frame *f) {
  enum { KWARGS = 4 }; /* self, func, types, args, kwargs */
  fl_eval_state *st = fl_eval_here;
  PyCodeObject *code = fl_cpy_code(f);
  PyObject *func = fl_cpy_func(f);
  for (int i = 0; func && i < st->n_modes; i++) {
    if (st->modes[i] != func || code->co_argcount <= KWARGS) continue;
    PyObject *kwargs = fl_cpy_locals(f)[KWARGS];
    /* The frame holds it, and who called it. */
    if (kwargs && PyDict_CheckExact(kwargs) && Py_REFCNT(kwargs) == 2) fl_tell(r, fl_rec_fresh(r, kwargs));
  }
}
