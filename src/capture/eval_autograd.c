/* autograd.Function.apply without gradients: it makes a context and calls forward(), which is done here so that the
 * context is known as new and the frames of forward() stand as the program's own.
 *
 * Under vmap, where the class asks for a rule to be generated, torch takes the levels of vmap off one by one, makes a class for
 * each, and calls forward() with all of them put on again: as if it had been called with the batched tensors, which is done
 * here. */
#include "capture/cpython/compat.h"

#include "capture/ccalls.h"
#include "capture/eval_impl.h"
#include "capture/interop.h"

/* Whether `method` is what Function has where a class defines no setup_context(). -1 with an exception. */
static int is_default_setup(PyObject *method) {
  static PyObject *setup;
  if (!setup) {
    PyObject *module = PyImport_ImportModule("torch.autograd.function");
    PyObject *base = module ? PyObject_GetAttrString(module, "_SingleLevelFunction") : NULL;
    setup = base ? PyObject_GetAttr(base, fl_n.setup_context) : NULL;
    Py_XDECREF(module);
    Py_XDECREF(base);
    if (!setup) return -1;
  }
  return method == setup;
}

/* For each argument whether a gradient of it could be asked for. */
static PyObject *needed(fl_rec *r, PyObject *const *args, size_t n) {
  PyObject *t = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; t && i < n; i++) {
    PyObject *v =
        fl_ccall_is_tensor(Py_TYPE(args[i])) ? fl_attr_get(r, args[i], fl_n.requires_grad) : Py_NewRef(Py_False);
    if (v)
      PyTuple_SET_ITEM(t, (Py_ssize_t)i, v);
    else
      Py_CLEAR(t);
  }
  return t;
}

static PyObject *new_context(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n) {
  PyObject *maker = fl_attr_get(r, cls, fl_n._backward_cls), *flags = needed(r, args, n), *ctx = NULL;
  if (maker && flags && PyType_Check(maker)) ctx = fl_call_type(r, (PyTypeObject *)maker, NULL, 0, NULL);
  if (ctx && PyObject_SetAttr(ctx, fl_n.needs_input_grad, flags) < 0) Py_CLEAR(ctx);
  Py_XDECREF(maker);
  Py_XDECREF(flags);
  return ctx;
}

typedef struct apply_call {
  PyObject *const *args;
  size_t n;
  PyObject *dirty; /* tuple of the arguments that forward() said it wrote to, or None */
} apply_call;

static bool among(PyObject *const *items, size_t n, const PyObject *o) {
  for (size_t i = 0; i < n; i++)
    if (items[i] == o) return true;
  return false;
}

static bool is_dirty(const apply_call *c, const PyObject *o) {
  return PyTuple_Check(c->dirty) && among(PySequence_Fast_ITEMS(c->dirty), (size_t)PyTuple_GET_SIZE(c->dirty), o);
}

/* One of the results: an argument that was not written to comes back as another tensor that shares its memory, and what
 * requires a gradient is detached. Takes and gives a reference. */
static PyObject *result_of(fl_rec *r, PyObject *v, const apply_call *c) {
  if (!fl_ccall_is_tensor(Py_TYPE(v)) || is_dirty(c, v)) return v;
  bool argument = among(c->args, c->n, v);
  PyObject *grad = argument ? Py_NewRef(Py_False) : fl_attr_get(r, v, fl_n.requires_grad), *fn = NULL, *made = NULL;
  if (grad == Py_False && !argument) {
    Py_DECREF(grad);
    return v;
  }
  if (grad && !argument) fl_rec_give_up(r, "unknown C function", "Function.apply that detaches what it gives");
  if (grad) fn = fl_attr_get(r, v, argument ? fl_n.view_as : fl_n.detach_);
  if (fn) made = fl_call(r, fn, &v, argument ? 1 : 0, NULL);
  Py_XDECREF(fn);
  Py_XDECREF(grad);
  Py_DECREF(v);
  return made;
}

static int check_dirty(const apply_call *c, PyObject *v) {
  for (Py_ssize_t i = 0; PyTuple_Check(c->dirty) && i < PyTuple_GET_SIZE(c->dirty); i++) {
    PyObject *o = PyTuple_GET_ITEM(c->dirty, i);
    bool given = PyTuple_Check(v) ? among(PySequence_Fast_ITEMS(v), (size_t)PyTuple_GET_SIZE(v), o) : v == o;
    if (given) continue;
    PyErr_SetString(PyExc_RuntimeError, "Some elements marked as dirty during the forward method were not returned as "
                                        "output. The inputs that are modified inplace must all be outputs of the "
                                        "Function.");
    return -1;
  }
  return 0;
}

/* All of them. Takes and gives a reference. */
static PyObject *results_of(fl_rec *r, PyObject *v, const apply_call *c) {
  PyObject *t = NULL;
  if (check_dirty(c, v) < 0) goto done;
  if (!PyTuple_Check(v)) return result_of(r, v, c);
  t = PyTuple_New(PyTuple_GET_SIZE(v));
  for (Py_ssize_t i = 0; t && i < PyTuple_GET_SIZE(v); i++) {
    PyObject *one = result_of(r, Py_NewRef(PyTuple_GET_ITEM(v, i)), c);
    if (one)
      PyTuple_SET_ITEM(t, i, one);
    else
      Py_CLEAR(t);
  }
  if (t) fl_tell(r, fl_rec_fresh(r, t));
done:
  Py_DECREF(v);
  return t;
}

/* setup_context(ctx, inputs, output) */
static int set_up(fl_rec *r, PyObject *setup, PyObject *ctx, PyObject *const *args, size_t n, PyObject *v) {
  PyObject *inputs = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; inputs && i < n; i++) PyTuple_SET_ITEM(inputs, (Py_ssize_t)i, Py_NewRef(args[i]));
  PyObject *given[3] = {ctx, inputs, v}, *done = inputs ? fl_call(r, setup, given, 3, NULL) : NULL;
  Py_XDECREF(inputs);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

static bool only_tensors(PyObject *v) {
  if (!PyTuple_Check(v)) return fl_ccall_is_tensor(Py_TYPE(v));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(v); i++)
    if (!fl_ccall_is_tensor(Py_TYPE(PyTuple_GET_ITEM(v, i)))) return false;
  return true;
}

static PyObject *apply(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n, bool vmapped) {
  PyObject *forward = fl_attr_get(r, cls, fl_n.forward), *setup = fl_attr_get(r, cls, fl_n.setup_context);
  PyObject *ctx = forward && setup ? new_context(r, cls, args, n) : NULL, *v = NULL;
  PyObject **all = PyMem_Malloc((n + 1) * sizeof *all);
  apply_call c = {args, n, NULL};
  int plain = ctx ? is_default_setup(setup) : -1;
  if (!all) PyErr_NoMemory();
  if (!all || plain < 0) goto done;
  all[0] = ctx;
  for (size_t i = 0; i < n; i++) all[i + 1] = args[i];
  v = fl_call(r, forward, plain ? all : all + 1, plain ? n + 1 : n, NULL);
  if (v && !plain && set_up(r, setup, ctx, args, n, v) < 0) Py_CLEAR(v);
  if (v && !(c.dirty = PyObject_GetAttr(ctx, fl_n.dirty_tensors))) Py_CLEAR(v);
  if (v && vmapped && (c.dirty != Py_None || !only_tensors(v)))
    fl_rec_give_up(r, "unknown C function", "Function.apply under vmap");
  if (v) v = results_of(r, v, &c);
done:
  PyMem_Free(all);
  Py_XDECREF(c.dirty);
  Py_XDECREF(forward);
  Py_XDECREF(setup);
  Py_XDECREF(ctx);
  return v;
}

bool fl_call_is_function_class(PyObject *cls) {
  return cls && PyType_Check(cls) && fl_ccall_is_python_class((PyTypeObject *)cls) && fl_grad_enabled() == 0;
}

PyObject *fl_call_function_apply(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n) {
  return apply(r, cls, args, n, false);
}

/* --- under vmap --- */

/* Attributes of a module of torch's; borrowed, or NULL without an exception. */
static PyObject *of_torch(PyObject **cache, const char *module_name, const char *a, const char *b) {
  if (*cache) return *cache;
  PyObject *module = PyImport_ImportModule(module_name), *o = module ? PyObject_GetAttrString(module, a) : NULL;
  if (o && b) Py_SETREF(o, PyObject_GetAttrString(o, b));
  Py_XDECREF(module);
  if (!o) PyErr_Clear();
  return *cache = o;
}

static bool attr_is(fl_rec *r, PyObject *o, PyObject *name, PyObject *wanted) {
  PyObject *v = fl_attr_get(r, o, name);
  if (!v) PyErr_Clear();
  Py_XDECREF(v);
  return v && v == wanted;
}

bool fl_call_is_vmapped_function(fl_rec *r, PyObject *callable, PyObject *cls) {
  static PyObject *call, *vmap;
  fl_torch_state now;
  if (callable != of_torch(&call, "torch._functorch.autograd_function", "custom_function_call", NULL)) return false;
  if (!fl_call_is_function_class(cls) || !of_torch(&vmap, "torch.autograd.function", "Function", "vmap")) return false;
  /* The call itself has pushed all there is of functorch, and it is known to push nothing but vmap. */
  if (fl_torch_state_read(&now) < 0) return PyErr_Clear(), false;
  if (!now.functorch || now.function_modes || !now.torch_function) return false;
  return attr_is(r, cls, fl_n.generate_vmap_rule, Py_True) && attr_is(r, cls, fl_n.vmap, vmap);
}

/* An argument as forward() gets it: containers are made anew. New reference, or NULL with an exception. */
static PyObject *rebuilt(fl_rec *r, PyObject *o, int depth) {
  enum { MAX_DEPTH = 8 };
  bool list = PyList_CheckExact(o);
  if ((!list && !PyTuple_CheckExact(o)) || depth == MAX_DEPTH) {
    if (fl_data_is_container(o) || (PyTuple_Check(o) && !PyTuple_CheckExact(o)))
      fl_rec_give_up(r, "unknown C function", "Function.apply under vmap");
    return Py_NewRef(o);
  }
  fl_data_saw(r, o);
  PyObject *t = PyTuple_New(PySequence_Fast_GET_SIZE(o));
  for (Py_ssize_t i = 0; t && i < PyTuple_GET_SIZE(t); i++) {
    PyObject *item = rebuilt(r, PySequence_Fast_GET_ITEM(o, i), depth + 1);
    if (item)
      PyTuple_SET_ITEM(t, i, item);
    else
      Py_CLEAR(t);
  }
  if (!t || !list) return t;
  PyObject *v = PySequence_List(t);
  Py_DECREF(t);
  if (v) fl_tell(r, fl_rec_fresh(r, v));
  return v;
}

PyObject *fl_call_vmapped_function(fl_rec *r, PyObject *cls, PyObject *const *args, size_t n) {
  PyObject **own = PyMem_Calloc(n + 1, sizeof *own), *v = NULL;
  size_t i = 0;
  if (!own) return PyErr_NoMemory();
  while (i < n && (own[i] = rebuilt(r, args[i], 0))) i++;
  if (i == n) v = apply(r, cls, own, n, true);
  while (i > 0) Py_DECREF(own[--i]);
  PyMem_Free(own);
  return v;
}
