#define _GNU_SOURCE
#include "capture/make.h"

#include <dlfcn.h>
#include <string.h>

#include "capture/impl.h"

typedef struct at_tensor *handle;

static struct {
  bool ok;
  int32_t (*empty)(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, handle *);
  int32_t (*release)(handle);
  int32_t (*data)(handle, void **);
  PyObject *(*wrap)(void *); /* takes what the handle holds */
  int32_t cpu, dtypes[FL_DTYPE_COUNT];
} M;

static bool find(void *lib, const char *name, void *to) {
  void *found = lib ? dlsym(lib, name) : NULL;
  memcpy(to, &found, sizeof found);
  return found != NULL;
}

static bool find_all(void *cpu, void *python) {
  static const char *const names[FL_DTYPE_COUNT] = {"float32", "float64", "float16", "bfloat16", "int64",
                                                    "int32",   "int16",   "int8",    "uint8",    "bool"};
  int32_t (*number)(void);
  char name[48];
  if (!find(cpu, "aoti_torch_device_type_cpu", &number)) return false;
  M.cpu = number();
  for (int i = 0; i < FL_DTYPE_COUNT; i++) {
    snprintf(name, sizeof name, "aoti_torch_dtype_%s", names[i]);
    if (!find(cpu, name, &number)) return false;
    M.dtypes[i] = number();
  }
  return find(cpu, "aoti_torch_empty_strided", &M.empty) && find(cpu, "aoti_torch_delete_tensor_object", &M.release) &&
         find(cpu, "aoti_torch_get_data_ptr", &M.data) &&
         find(python, "_Z16THPVariable_WrapON2at10TensorBaseE", &M.wrap);
}

PyObject *fl_make_tensor(const fl_tensor_meta *like, void **out_data) {
  handle h = NULL;
  PyObject *o = NULL;
  if (!M.ok || like->device_type != FL_DEVICE_CPU) return NULL;
  /* The shim turns what is thrown into a number; the public function then says what it was. */
  if (M.empty(like->type.rank, like->type.dims, like->strides, M.dtypes[like->type.dtype], M.cpu, -1, &h)) return NULL;
  if (fl_impl_at.shapes) {
    if ((o = M.wrap(h))) *out_data = fl_impl_data(o, fl_dtype_size(like->type.dtype));
  } else if (M.data(h, out_data) == 0)
    o = M.wrap(h);
  M.release(h);
  if (!o) PyErr_Clear();
  return o;
}

static bool as_expected(fl_dtype dtype, int rank, const int64_t *dims, const int64_t *strides) {
  fl_tensor_meta like = {.ok = true, .device_type = FL_DEVICE_CPU, .type = fl_type_make(dtype, rank, dims)}, got;
  void *data = NULL;
  int64_t version = -1;
  memcpy(like.strides, strides, (size_t)rank * sizeof *strides);
  PyObject *o = fl_make_tensor(&like, &data);
  if (!o) return false;
  fl_tensor_read(o, &got);
  bool right = Py_REFCNT(o) == 1 && fl_tensor_is_plain(o) && got.ok && fl_type_equal(&got.type, &like.type) &&
               !memcmp(got.strides, like.strides, (size_t)rank * sizeof *strides) && got.data == data &&
               got.device_type == FL_DEVICE_CPU && fl_tensor_version(o, &version) && version == 0 &&
               fl_tensor_requires_grad(o) == 0;
  Py_DECREF(o);
  return right;
}

void fl_make_init(void) {
  void *cpu = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  void *python = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!cpu || !python || !find_all(cpu, python)) return;
  M.ok = true;
  for (int i = 0; M.ok && i < FL_DTYPE_COUNT; i++)
    for (int rank = 0; M.ok && rank <= 3; rank += 3)
      M.ok = as_expected((fl_dtype)i, rank, (int64_t[]){2, 3, 5}, (int64_t[]){15, 1, 3});
  PyErr_Clear();
}
