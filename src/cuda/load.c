#include "cuda/load.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

typedef enum library { LIB_driver, LIB_cublaslt, LIB_cudnn, LIB_nvrtc, LIB_COUNT } library;

/* Names newest first: the one that is open already wins, whichever it is. */
static const struct {
  const char *title;
  const char *names[4];
} libraries[LIB_COUNT] = {
    {"the CUDA driver", {"libcuda.so.1"}},
    {"cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12"}},
    {"cuDNN", {"libcudnn.so.9"}},
    {"NVRTC", {"libnvrtc.so.13", "libnvrtc.so.12"}},
};

enum { OUT_OF_MEMORY = 2, MIN_DRIVER = 12000, MIN_CUBLASLT = 120000, MIN_CUDNN = 90000 };

static const struct {
  const char *name;
  library lib;
  size_t offset;
} symbols[] = {
#define FL_CUDA_SYM(library, result, name, params) {#name, LIB_##library, offsetof(fl_cuda_api, name)},
#include "cuda/symbols.def"
#undef FL_CUDA_SYM
};

static struct {
  pthread_mutex_t lock;
  bool tried;
  fl_cuda_api api;
  fl_code code; /* FL_OK = loaded */
  char why[512];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *open_in(const char *folder, const char *name) {
  char path[1024];
  int n = snprintf(path, sizeof path, "%s/%s", folder, name);
  return n > 0 && (size_t)n < sizeof path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_library(library lib, const char *const *folders) {
  const char *const *names = libraries[lib].names;
  for (int i = 0; i < 4 && names[i]; i++) {
    void *h = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (h) return h;
  }
  for (int i = 0; i < 4 && names[i]; i++) {
    for (const char *const *f = folders; f && *f; f++) {
      void *h = open_in(*f, names[i]);
      if (h) return h;
    }
    void *h = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (h) return h;
  }
  return NULL;
}

static fl_status resolve(fl_cuda_api *api, const char *const *folders) {
  void *handles[LIB_COUNT];
  for (int lib = 0; lib < LIB_COUNT; lib++) {
    handles[lib] = open_library((library)lib, folders);
    if (!handles[lib])
      return fl_fail(FL_UNSUPPORTED, "CUDA: %s (%s) was not found on this machine", libraries[lib].title,
                     libraries[lib].names[0]);
  }
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void *p = dlsym(handles[symbols[i].lib], symbols[i].name);
    if (!p)
      return fl_fail(FL_UNSUPPORTED, "CUDA: %s has no function %s", libraries[symbols[i].lib].title, symbols[i].name);
    memcpy((char *)api + symbols[i].offset, &p, sizeof p);
  }
  return NULL;
}

static fl_status check_versions(fl_cuda_api *api) {
  int r = api->cuInit(0);
  if (r) {
    const char *name = NULL;
    api->cuGetErrorName(r, &name);
    return fl_fail(FL_UNSUPPORTED, "CUDA: the driver gives %s: no usable NVIDIA GPU", name ? name : "an unknown error");
  }
  api->cuDriverGetVersion(&api->driver_version);
  api->cuDeviceGetCount(&api->device_count);
  api->cublaslt_version = api->cublasLtGetVersion();
  api->cudnn_version = api->cudnnGetVersion();
  api->nvrtcVersion(&api->nvrtc_major, &api->nvrtc_minor);
  if (api->device_count < 1) return fl_fail(FL_UNSUPPORTED, "CUDA: the driver sees no device");
  if (api->driver_version < MIN_DRIVER)
    return fl_fail(FL_UNSUPPORTED, "CUDA: driver version %d; must be %d or newer", api->driver_version, MIN_DRIVER);
  if (api->cublaslt_version < MIN_CUBLASLT)
    return fl_fail(FL_UNSUPPORTED, "CUDA: cuBLASLt version %zu; must be %d or newer", api->cublaslt_version,
                   MIN_CUBLASLT);
  if (api->cudnn_version < MIN_CUDNN)
    return fl_fail(FL_UNSUPPORTED, "CUDA: cuDNN version %zu; must be %d or newer", api->cudnn_version, MIN_CUDNN);
  return NULL;
}

static void load_once(const char *const *folders) {
  fl_status s = resolve(&state.api, folders);
  if (!s) s = check_versions(&state.api);
  state.code = fl_status_code(s);
  snprintf(state.why, sizeof state.why, "%s", fl_status_message(s));
  fl_status_free(s);
  state.tried = true;
}

fl_status fl_cuda_load(const char *const *folders, const fl_cuda_api **out_api) {
  pthread_mutex_lock(&state.lock);
  if (!state.tried) load_once(folders);
  pthread_mutex_unlock(&state.lock);
  if (state.code) return fl_fail(state.code, "%s", state.why);
  *out_api = &state.api;
  return NULL;
}

fl_status fl_cuda_check(int result, const char *what) {
  if (!result) return NULL;
  const char *name = NULL, *text = NULL;
  if (state.api.cuGetErrorName) {
    state.api.cuGetErrorName(result, &name);
    state.api.cuGetErrorString(result, &text);
  }
  return fl_fail(result == OUT_OF_MEMORY ? FL_OOM : FL_INTERNAL, "CUDA: %s: %s (%s)", what,
                 name ? name : "unknown error", text ? text : "no text");
}
