#include "capture/device.h"

#include <stdio.h>

#include "base/alloc.h"
#include "capture/torch_memory.h"
#include "cuda/device.h"

/* Where the wheels put CUDA's libraries, for the loader: a NULL-terminated list that is kept. */
static const char *const *library_folders(void) {
  PyObject *module = PyImport_ImportModule("framelift.libraries");
  PyObject *list = module ? PyObject_CallMethod(module, "folders", NULL) : NULL;
  Py_ssize_t n = list && PyList_Check(list) ? PyList_GET_SIZE(list) : 0, made = 0;
  const char **out = fl_calloc((size_t)n + 1, sizeof *out);
  for (Py_ssize_t i = 0; out && i < n; i++) {
    const char *s = PyUnicode_Check(PyList_GET_ITEM(list, i)) ? PyUnicode_AsUTF8(PyList_GET_ITEM(list, i)) : NULL;
    if (s && (out[made] = fl_strdup(s))) made++;
  }
  PyErr_Clear();
  Py_XDECREF(list);
  Py_XDECREF(module);
  return out;
}

static fl_status open_cuda(int id, const fl_backend **out) {
  static bool tried;
  const fl_cuda_api *api;
  if (!tried) {
    tried = true;
    FL_TRY(fl_cuda_load(library_folders(), &api));
    fl_cuda_memory_set(fl_torch_memory());
  }
  return fl_cuda_backend(id, out);
}

const fl_backend *fl_device_backend(fl_device d, const char **why) {
  static char reasons[FL_CUDA_MAX_DEVICES][400];
  const fl_backend *out = NULL;
  if (fl_device_is_cpu(d)) return &fl_backend_cpu;
  if (d.type != FL_DEVICE_CUDA || d.id < 0 || d.id >= FL_CUDA_MAX_DEVICES) {
    *why = "no engine for this device";
    return NULL;
  }
  fl_status s = reasons[d.id][0] ? NULL : open_cuda(d.id, &out);
  if (s) snprintf(reasons[d.id], sizeof reasons[d.id], "%s", fl_status_message(s));
  fl_status_free(s);
  if (!out) *why = reasons[d.id];
  return out;
}

bool fl_device_enter(const fl_backend *b, fl_device d) {
  if (fl_device_is_cpu(d)) return true;
  void *stream = fl_torch_stream(d.type, d.id);
  if (fl_cuda_is_capturing(b, stream)) return false;
  fl_cuda_stream_set(stream);
  return true;
}

/* torch.cuda, once it has been initialized: before, no tensor is there and no stream captures. New reference or NULL. */
static PyObject *cuda_in_use(void) {
  PyObject *modules = PyImport_GetModuleDict(), *cuda = PyDict_GetItemString(modules, "torch.cuda");
  PyObject *on = cuda ? PyObject_CallMethod(cuda, "is_initialized", NULL) : NULL;
  bool used = on && PyObject_IsTrue(on) > 0;
  Py_XDECREF(on);
  PyErr_Clear();
  return used ? Py_NewRef(cuda) : NULL;
}

bool fl_device_is_capturing(void) {
  PyObject *cuda = cuda_in_use();
  PyObject *r = cuda ? PyObject_CallMethod(cuda, "is_current_stream_capturing", NULL) : NULL;
  bool capturing = r && PyObject_IsTrue(r) > 0;
  Py_XDECREF(r);
  Py_XDECREF(cuda);
  PyErr_Clear();
  return capturing;
}

/* In the relaxed mode, so that a capture by another thread is not broken; PyTorch refuses where one of its own is under way. */
void fl_device_trim(const fl_backend *b, fl_device d) {
  PyObject *cuda = fl_device_is_cpu(d) ? NULL : cuda_in_use();
  if (!cuda) return;
  const fl_cuda_api *api = fl_cuda_device_of(b)->api;
  int mode = fl_cuda_capture_mode(api, FL_CUDA_RELAXED);
  PyObject *r = PyObject_CallMethod(cuda, "empty_cache", NULL);
  fl_cuda_capture_mode(api, mode);
  PyErr_Clear();
  Py_XDECREF(r);
  Py_DECREF(cuda);
}

/* --- generators --- */

static PyObject *cpu_generator(void) {
  PyObject *torch = PyImport_ImportModule("torch");
  PyObject *g = torch ? PyObject_GetAttrString(torch, "default_generator") : NULL;
  Py_XDECREF(torch);
  return g;
}

PyObject *fl_generators_get(void) {
  PyObject *g = cpu_generator(), *cuda = g ? cuda_in_use() : NULL;
  PyObject *host = g ? PyObject_CallMethod(g, "get_state", NULL) : NULL;
  PyObject *device = !host ? NULL : cuda ? PyObject_CallMethod(cuda, "get_rng_state_all", NULL) : Py_NewRef(Py_None);
  PyObject *out = device ? PyTuple_Pack(2, host, device) : NULL;
  Py_XDECREF(host);
  Py_XDECREF(device);
  Py_XDECREF(cuda);
  Py_XDECREF(g);
  return out;
}

int fl_generators_set(PyObject *state) {
  PyObject *g = cpu_generator(), *device = PyTuple_GET_ITEM(state, 1);
  PyObject *r = g ? PyObject_CallMethod(g, "set_state", "O", PyTuple_GET_ITEM(state, 0)) : NULL;
  if (r && device != Py_None) {
    PyObject *cuda = PyImport_ImportModule("torch.cuda");
    Py_SETREF(r, cuda ? PyObject_CallMethod(cuda, "set_rng_state_all", "O", device) : NULL);
    Py_XDECREF(cuda);
  }
  Py_XDECREF(g);
  Py_XDECREF(r);
  return r ? 0 : -1;
}
