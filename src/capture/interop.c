#include "capture/cpython/compat.h"
#include "capture/interop.h"

#include <string.h>

#include "capture/peek.h"

/* DLPack 1.3, the part used here (github.com/dmlc/dlpack). */
typedef struct dl_tensor {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} dl_tensor;

typedef struct dl_api {
  struct {
    uint32_t major, minor;
  } version;
  struct dl_api *prev;
  int (*allocator)(dl_tensor *, void **, void *, void (*)(void *, const char *, const char *));
  int (*from_object)(void *, void **);
  int (*to_object)(void *, void **);
  int (*borrow)(void *, dl_tensor *);
  int (*stream)(int, int32_t, void **);
} dl_api;

enum { DL_INT, DL_UINT, DL_FLOAT, DL_BFLOAT = 4, DL_COMPLEX, DL_BOOL };
enum { MAX_DEVICES = 64 };

static struct {
  dl_api *dl;
  PyTypeObject *tensor, *parameter, *buffer;
  PyObject *empty, *empty_strided, *empty_kwnames, *dtypes[FL_DTYPE_COUNT];
  PyObject *device_type, *cuda_kwnames, *cuda_devices[MAX_DEVICES];
  PyGetSetDef *requires_grad, *version;
  PyObject *is_conj, *is_neg, *is_wrapped;
  PyObject *set_grad, *grad_on, *inference_on, *autocast_on, *default_dtype, *function_depth, *dispatch_depth;
  PyObject *function_on, *deterministic, *functorch_peek, *tracing, *is_tracing;
  PyObject *push, *pop, *threads, *tf32_matmul, *tf32_conv, *cuda_device;
  PyObject *storage_name, *id_name, *hold_name,
      *let_go; /* let_go: NULL in a torch without weak references to storages */
} T;

static PyObject *path(PyObject *from, const char *dotted) {
  PyObject *o = Py_NewRef(from);
  char part[64];
  while (o && *dotted) {
    size_t n = strcspn(dotted, ".");
    memcpy(part, dotted, n);
    part[n] = 0;
    dotted += n + (dotted[n] == '.');
    PyObject *next = PyObject_GetAttrString(o, part);
    Py_DECREF(o);
    o = next;
  }
  return o;
}

static PyGetSetDef *getset_of(PyObject *base, const char *name) {
  PyObject *d = PyDict_GetItemString(fl_cpy_type_dict((PyTypeObject *)base), name);
  if (!d || Py_TYPE(d) != &PyGetSetDescr_Type) {
    PyErr_Format(PyExc_ImportError, "framelift: torch.Tensor.%s is not the getset it used to be", name);
    return NULL;
  }
  return ((PyGetSetDescrObject *)d)->d_getset;
}

static int init_dlpack(void) {
  PyObject *capsule = PyObject_GetAttrString((PyObject *)T.tensor, "__dlpack_c_exchange_api__");
  if (!capsule) {
    PyErr_SetString(PyExc_ImportError, "framelift needs torch 2.10 or newer (the DLPack C exchange API)");
    return -1;
  }
  T.dl = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  while (T.dl && T.dl->version.major != 1) T.dl = T.dl->prev;
  if (!T.dl || !T.dl->borrow) {
    PyErr_SetString(PyExc_ImportError, "framelift: torch's DLPack exchange API has an unknown version");
    return -1;
  }
  return 0; /* the capsule stays referenced: its table must live */
}

static int init_dtypes(PyObject *torch) {
  static const char *const names[FL_DTYPE_COUNT] = {"float32", "float64", "float16", "bfloat16", "int64",
                                                    "int32",   "int16",   "int8",    "uint8",    "bool"};
  for (int i = 0; i < FL_DTYPE_COUNT; i++)
    if (!(T.dtypes[i] = PyObject_GetAttrString(torch, names[i]))) return -1;
  return 0;
}

static int init_storages(PyObject *torch) {
  T.let_go = path(torch, "UntypedStorage._free_weak_ref");
  if (!T.let_go) PyErr_Clear();
  T.storage_name = PyUnicode_InternFromString("untyped_storage");
  T.id_name = PyUnicode_InternFromString("_cdata");
  T.hold_name = PyUnicode_InternFromString("_weak_ref");
  return T.storage_name && T.id_name && T.hold_name ? 0 : -1;
}

int fl_interop_init(void) {
  if (T.dl) return 0;
  PyObject *torch = PyImport_ImportModule("torch");
  if (!torch) return -1;
  PyObject *base = NULL, *buffer = NULL;
  static const struct {
    PyObject **to;
    const char *from;
  } table[] = {
      {(PyObject **)&T.tensor, "Tensor"},
      {(PyObject **)&T.parameter, "nn.Parameter"},
      {&T.empty, "empty"},
      {&T.empty_strided, "empty_strided"},
      {&T.device_type, "device"},
      {&T.is_conj, "_C.TensorBase.is_conj"},
      {&T.is_neg, "_C.TensorBase.is_neg"},
      {&T.is_wrapped, "_C._functorch.is_functorch_wrapped_tensor"},
      {&T.set_grad, "_C._set_grad_enabled"},
      {&T.grad_on, "is_grad_enabled"},
      {&T.inference_on, "is_inference_mode_enabled"},
      {&T.autocast_on, "_C._is_any_autocast_enabled"},
      {&T.default_dtype, "get_default_dtype"},
      {&T.function_depth, "_C._len_torch_function_stack"},
      {&T.dispatch_depth, "_C._len_torch_dispatch_stack"},
      {&T.function_on, "_C._is_torch_function_enabled"},
      {&T.deterministic, "_C._get_deterministic_algorithms"},
      {&T.functorch_peek, "_C._functorch.peek_interpreter_stack"},
      {&T.tracing, "_C._get_tracing_state"},
      {&T.is_tracing, "_C._is_tracing"},
      {&T.push, "_C._push_on_torch_dispatch_stack"},
      {&T.pop, "_C._pop_torch_dispatch_stack"},
      {&T.threads, "get_num_threads"},
      {&T.tf32_matmul, "_C._get_cublas_allow_tf32"},
      {&T.tf32_conv, "_C._get_cudnn_allow_tf32"},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (!(*table[i].to = path(torch, table[i].from))) goto fail;
  T.cuda_device = path(torch, "_C._cuda_getDevice"); /* only where PyTorch has CUDA */
  if (!T.cuda_device) PyErr_Clear();
  buffer = path(torch, "nn.Buffer");
  if (!buffer) PyErr_Clear();
  T.buffer = (PyTypeObject *)buffer;
  if (!(T.empty_kwnames = Py_BuildValue("(s)", "dtype"))) goto fail;
  if (!(T.cuda_kwnames = Py_BuildValue("(ss)", "dtype", "device"))) goto fail;
  if (!(base = path(torch, "_C.TensorBase"))) goto fail;
  if (!(T.requires_grad = getset_of(base, "requires_grad")) || !(T.version = getset_of(base, "_version"))) goto fail;
  if (init_dtypes(torch) < 0 || init_dlpack() < 0 || init_storages(torch) < 0) goto fail;
  Py_DECREF(base);
  Py_DECREF(torch);
  return 0;
fail:
  T.dl = NULL;
  Py_XDECREF(base);
  Py_DECREF(torch);
  return -1;
}

bool fl_tensor_check(PyObject *o) {
  PyTypeObject *t = Py_TYPE(o);
  return t == T.tensor || t == T.parameter || PyType_IsSubtype(t, T.tensor);
}

bool fl_tensor_is_plain(PyObject *o) {
  PyTypeObject *t = Py_TYPE(o);
  return t == T.tensor || t == T.parameter || (T.buffer && t == T.buffer);
}

static bool engine_dtype(const dl_tensor *d, fl_dtype *out) {
  if (d->dtype.lanes != 1) return false;
  unsigned key = d->dtype.code * 256u + d->dtype.bits;
  switch (key) {
  case DL_FLOAT * 256 + 32: *out = FL_F32; return true;
  case DL_FLOAT * 256 + 64: *out = FL_F64; return true;
  case DL_FLOAT * 256 + 16: *out = FL_F16; return true;
  case DL_BFLOAT * 256 + 16: *out = FL_BF16; return true;
  case DL_INT * 256 + 64: *out = FL_I64; return true;
  case DL_INT * 256 + 32: *out = FL_I32; return true;
  case DL_INT * 256 + 16: *out = FL_I16; return true;
  case DL_INT * 256 + 8: *out = FL_I8; return true;
  case DL_UINT * 256 + 8: *out = FL_U8; return true;
  case DL_BOOL * 256 + 8: *out = FL_BOOL; return true;
  }
  return false;
}

void fl_tensor_read(PyObject *tensor, fl_tensor_meta *out) {
  dl_tensor d;
  memset(out, 0, sizeof *out);
  if (T.dl->borrow(tensor, &d) != 0) {
    PyErr_Clear();
    out->why_not = "not a dense strided tensor";
    return;
  }
  out->has_data = true;
  out->data = d.data ? (char *)d.data + d.byte_offset : NULL;
  out->device_type = d.device.type;
  out->device_id = d.device.id;
  out->dtype_key = (uint32_t)d.dtype.code << 24 | (uint32_t)d.dtype.bits << 16 | d.dtype.lanes;
  out->item_size = ((size_t)d.dtype.bits * d.dtype.lanes + 7) / 8;
  out->ndim = d.ndim;
  if (d.ndim > FL_MAX_RANK) {
    out->why_not = "more than 8 dimensions";
    return;
  }
  out->type.rank = d.ndim;
  for (int i = 0; i < d.ndim; i++) {
    out->type.dims[i] = d.shape[i];
    out->strides[i] = d.strides[i];
  }
  if (!engine_dtype(&d, &out->type.dtype))
    out->why_not = "an element type the engine does not have";
  else if (d.device.type != FL_DEVICE_CPU && d.device.type != FL_DEVICE_CUDA)
    out->why_not = "neither on the CPU nor on a CUDA device";
  else
    out->ok = true;
}

bool fl_tensor_meta_equal(const fl_tensor_meta *a, const fl_tensor_meta *b) {
  if (a->has_data != b->has_data || a->dtype_key != b->dtype_key || a->device_type != b->device_type ||
      a->device_id != b->device_id || a->ndim != b->ndim)
    return false;
  if (a->ndim > FL_MAX_RANK) return false;
  size_t n = (size_t)a->ndim * sizeof(int64_t);
  return !memcmp(a->type.dims, b->type.dims, n) && !memcmp(a->strides, b->strides, n);
}

bool fl_tensor_extent(const fl_tensor_meta *m, const char **lo, const char **hi) {
  if (!m->has_data || !m->data || m->ndim > FL_MAX_RANK) return false;
  int64_t min = 0, max = 0;
  for (int i = 0; i < m->ndim; i++) {
    if (m->type.dims[i] == 0) return false;
    int64_t span = (m->type.dims[i] - 1) * m->strides[i];
    if (span < 0)
      min += span;
    else
      max += span;
  }
  *lo = (const char *)m->data + min * (int64_t)m->item_size;
  *hi = (const char *)m->data + (max + 1) * (int64_t)m->item_size;
  return true;
}

int fl_tensor_requires_grad(PyObject *tensor) {
  PyObject *r = T.requires_grad->get(tensor, T.requires_grad->closure);
  if (!r) return -1;
  Py_DECREF(r);
  return r == Py_True;
}

static int call_true(PyObject *callable, PyObject *arg) {
  PyObject *r = arg ? PyObject_Vectorcall(callable, &arg, 1, NULL) : PyObject_CallNoArgs(callable);
  if (!r) return -1;
  int v = PyObject_IsTrue(r);
  Py_DECREF(r);
  return v;
}

bool fl_tensor_is_wrapped(PyObject *o) {
  int v = call_true(T.is_wrapped, o);
  if (v < 0) PyErr_Clear();
  return v > 0;
}

int fl_tensor_is_lazy(PyObject *tensor) {
  int v = call_true(T.is_neg, tensor);
  return v ? v : call_true(T.is_conj, tensor);
}

bool fl_tensor_version(PyObject *tensor, int64_t *out) {
  PyObject *r = T.version->get(tensor, T.version->closure);
  if (!r) {
    PyErr_Clear();
    return false;
  }
  *out = PyLong_AsLongLong(r);
  Py_DECREF(r);
  return true;
}

/* --- storages: a weak reference keeps their number from being given again --- */

static uint64_t storage_number(PyObject *tensor, bool hold) {
  PyObject *s = T.let_go ? PyObject_CallMethodNoArgs(tensor, T.storage_name) : NULL;
  PyObject *n = !s ? NULL : hold ? PyObject_CallMethodNoArgs(s, T.hold_name) : PyObject_GetAttr(s, T.id_name);
  uint64_t out = n ? PyLong_AsUnsignedLongLong(n) : 0;
  if (PyErr_Occurred()) {
    PyErr_Clear();
    out = 0;
  }
  Py_XDECREF(n);
  Py_XDECREF(s);
  return out;
}

uint64_t fl_tensor_storage(PyObject *tensor) { return storage_number(tensor, false); }
uint64_t fl_storage_hold(PyObject *tensor) { return storage_number(tensor, true); }

void fl_storage_let_go(uint64_t storage) {
  PyObject *type, *value, *tb;
  if (!storage) return;
  PyErr_Fetch(&type, &value, &tb);
  PyObject *n = PyLong_FromUnsignedLongLong(storage), *r = n ? PyObject_CallOneArg(T.let_go, n) : NULL;
  Py_XDECREF(r);
  Py_XDECREF(n);
  PyErr_Restore(type, value, tb);
}

static PyObject *int_tuple(const int64_t *v, int n) {
  PyObject *t = PyTuple_New(n);
  for (int i = 0; t && i < n; i++) {
    PyObject *x = PyLong_FromLongLong(v[i]);
    if (!x)
      Py_CLEAR(t);
    else
      PyTuple_SET_ITEM(t, i, x);
  }
  return t;
}

/* Exactly, also where a dimension of one makes the stride meaningless. */
static bool as_empty_gives(const fl_type *type, const int64_t *strides) {
  int64_t want = 1;
  for (int i = type->rank - 1; i >= 0; i--) {
    if (strides[i] != want) return false;
    want *= type->dims[i] > 1 ? type->dims[i] : 1;
  }
  return true;
}

/* torch.device("cuda", id). Borrowed; NULL with an exception. */
static PyObject *cuda_device(int id) {
  if (id < 0 || id >= MAX_DEVICES) return PyErr_Format(PyExc_RuntimeError, "framelift: CUDA device %d", id);
  if (!T.cuda_devices[id]) T.cuda_devices[id] = PyObject_CallFunction(T.device_type, "si", "cuda", id);
  return T.cuda_devices[id];
}

PyObject *fl_tensor_new(const fl_tensor_meta *like) {
  const fl_type *type = &like->type;
  PyObject *size = int_tuple(type->dims, type->rank), *st = NULL, *r = NULL;
  if (!size) return NULL;
  PyObject *dtype = T.dtypes[type->dtype], *names = T.empty_kwnames, *device = NULL;
  bool cuda = like->device_type == FL_DEVICE_CUDA;
  if (cuda) names = T.cuda_kwnames;
  if (cuda && !(device = cuda_device(like->device_id))) {
    Py_DECREF(size);
    return NULL;
  }
  if (as_empty_gives(type, like->strides)) {
    PyObject *args[] = {size, dtype, device};
    r = PyObject_Vectorcall(T.empty, args, 1, names);
  } else if ((st = int_tuple(like->strides, type->rank))) {
    PyObject *args[] = {size, st, dtype, device};
    r = PyObject_Vectorcall(T.empty_strided, args, 2, names);
  }
  Py_XDECREF(st);
  Py_DECREF(size);
  return r;
}

void *fl_torch_stream(int device_type, int device_id) {
  void *stream = NULL;
  if (T.dl->stream && T.dl->stream(device_type, device_id, &stream) != 0) {
    PyErr_Clear();
    stream = NULL;
  }
  return stream;
}

void *fl_tensor_data(PyObject *tensor) {
  dl_tensor d;
  if (T.dl->borrow(tensor, &d) != 0) {
    PyErr_Clear();
    return NULL;
  }
  return d.data ? (char *)d.data + d.byte_offset : NULL;
}

bool fl_torch_dtype(PyObject *o, fl_dtype *out) {
  for (int i = 0; i < FL_DTYPE_COUNT; i++)
    if (T.dtypes[i] == o) {
      *out = (fl_dtype)i;
      return true;
    }
  return false;
}

PyObject *fl_torch_dtype_object(fl_dtype dtype) { return T.dtypes[dtype]; }

static int call_int(PyObject *callable, int *out) {
  PyObject *r = PyObject_CallNoArgs(callable);
  if (!r) return -1;
  *out = (int)PyLong_AsLong(r);
  Py_DECREF(r);
  return PyErr_Occurred() ? -1 : 0;
}

static int call_flag(PyObject *callable, bool *out) {
  int v = call_true(callable, NULL);
  *out = v > 0;
  return v < 0 ? -1 : 0;
}

static int state_by_calls(fl_torch_state *s) {
  memset(s, 0, sizeof *s);
  if (call_flag(T.inference_on, &s->inference) < 0 || call_flag(T.autocast_on, &s->autocast) < 0 ||
      call_flag(T.function_on, &s->torch_function) < 0 || call_flag(T.deterministic, &s->deterministic) < 0 ||
      call_int(T.function_depth, &s->function_modes) < 0 || call_int(T.dispatch_depth, &s->dispatch_modes) < 0)
    return -1;
  PyObject *d = PyObject_CallNoArgs(T.default_dtype);
  PyObject *f = d ? PyObject_CallNoArgs(T.functorch_peek) : NULL;
  PyObject *t = f ? PyObject_CallNoArgs(T.tracing) : NULL;
  s->default_dtype = d;
  s->functorch = f && f != Py_None;
  s->tracing = t && t != Py_None;
  Py_XDECREF(d);
  Py_XDECREF(f);
  Py_XDECREF(t);
  return t ? 0 : -1;
}

int fl_torch_state_read(fl_torch_state *s) {
  enum { STATES = 4 };
  static struct {
    fl_print print;
    fl_torch_state state;
  } known[STATES]; /* most recent first */
  static int n;
  fl_print now;
  if (!fl_peek_print(&now)) return state_by_calls(s);
  for (int i = 0; i < n; i++)
    if (fl_print_equal(&now, &known[i].print)) return *s = known[i].state, 0;
  int rc = state_by_calls(s);
  if (rc < 0) return rc;
  n = n < STATES ? n + 1 : n;
  memmove(&known[1], &known[0], (size_t)(n - 1) * sizeof *known);
  known[0].print = now;
  known[0].state = *s;
  return 0;
}

const char *fl_torch_state_why_not(const fl_torch_state *s) {
  if (s->autocast) return "autocast is on";
  if (s->functorch) return "inside a functorch transform";
  if (s->tracing) return "torch.jit is tracing";
  if (s->function_modes) return "a torch function mode is active";
  if (s->dispatch_modes) return "a torch dispatch mode is active";
  if (!s->torch_function) return "torch functions are disabled";
  return NULL;
}

bool fl_torch_state_equal(const fl_torch_state *a, const fl_torch_state *b) {
  return a->inference == b->inference && a->deterministic == b->deterministic && a->default_dtype == b->default_dtype;
}

int fl_grad_enabled(void) {
  int on = fl_peek_grad();
  return on >= 0 ? on : call_true(T.grad_on, NULL);
}

int fl_grad_set(bool enabled) {
  PyObject *arg = enabled ? Py_True : Py_False;
  PyObject *r = PyObject_Vectorcall(T.set_grad, &arg, 1, NULL);
  Py_XDECREF(r);
  return r ? 0 : -1;
}

int fl_torch_threads(void) {
  int n = 1;
  if (call_int(T.threads, &n) < 0) PyErr_Clear();
  return n > 0 ? n : 1;
}

static int current_cuda_device(void) {
  int device = 0;
  if (T.cuda_device && call_int(T.cuda_device, &device) < 0) {
    PyErr_Clear();
    device = 0;
  }
  return device;
}

int fl_torch_cuda_state(void) {
  int matmul = call_true(T.tf32_matmul, NULL), conv = call_true(T.tf32_conv, NULL);
  if (matmul < 0 || conv < 0)
    PyErr_Clear(); /* set in torch's old way and in its new one: what is not allowed is right */
  return (matmul > 0 ? FL_TF32_MATMUL : 0) | (conv > 0 ? FL_TF32_CONV : 0) |
         current_cuda_device() << FL_CUDA_DEVICE_SHIFT;
}

bool fl_torch_state_covers(PyObject *c) {
  PyObject *const known[] = {T.grad_on,        T.inference_on,   T.autocast_on,  T.default_dtype,
                             T.function_depth, T.dispatch_depth, T.function_on,  T.functorch_peek,
                             T.tracing,        T.is_tracing,     T.deterministic};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if (c == known[i]) return true;
    /* Builtin functions reached under two names are two objects with one definition. */
    if (PyCFunction_Check(c) && PyCFunction_Check(known[i]) &&
        ((PyCFunctionObject *)c)->m_ml == ((PyCFunctionObject *)known[i])->m_ml)
      return true;
  }
  return false;
}

int fl_dispatch_push(PyObject *mode) {
  PyObject *r = PyObject_CallOneArg(T.push, mode);
  Py_XDECREF(r);
  return r ? 0 : -1;
}

bool fl_dispatch_take_off(PyObject *mode) {
  PyObject *top = PyObject_CallOneArg(T.pop, Py_None);
  bool ours = top == mode;
  if (top && !ours && fl_dispatch_push(top) < 0) PyErr_Clear();
  if (!top) PyErr_Clear();
  Py_XDECREF(top);
  return ours;
}

int fl_dispatch_pop(void) {
  PyObject *r = PyObject_CallOneArg(T.pop, Py_None);
  Py_XDECREF(r);
  return r ? 0 : -1;
}
