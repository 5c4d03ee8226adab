#include "cuda/device.h"

#include <pthread.h>
#include <string.h>

#include "cuda/graph.h"

enum { ATTR_MULTIPROCESSORS = 16, ATTR_MAJOR = 75, ATTR_MINOR = 76 };

static struct {
  pthread_mutex_t lock;
  bool open;
  fl_cuda_device device;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static fl_status open_device(fl_cuda_device *d) {
  int ordinal, major = 0, minor = 0;
  FL_TRY(fl_cuda_load(NULL, &d->api));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGet(&ordinal, 0), "device 0"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&major, ATTR_MAJOR, ordinal), "compute capability"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&minor, ATTR_MINOR, ordinal), "compute capability"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&d->multiprocessors, ATTR_MULTIPROCESSORS, ordinal), "processors"));
  d->arch = 10 * major + minor;
  if (d->arch < 70)
    return fl_fail(FL_UNSUPPORTED, "CUDA: the device has compute capability %d.%d; must be 7.0 or newer", major, minor);
  FL_TRY(fl_cuda_check(d->api->cuDevicePrimaryCtxRetain(&d->context, ordinal), "context"));
  FL_TRY(fl_cuda_check(d->api->cuCtxPushCurrent_v2(d->context), "context"));
  int lt = d->api->cublasLtCreate(&d->lt);
  d->api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
  return lt ? fl_fail(FL_UNSUPPORTED, "CUDA: cuBLASLt cannot be used (status %d)", lt) : NULL;
}

fl_status fl_cuda_device_open(const fl_cuda_device **out) {
  fl_status s = NULL;
  pthread_mutex_lock(&state.lock);
  if (!state.open) s = open_device(&state.device);
  if (!s) state.open = true;
  pthread_mutex_unlock(&state.lock);
  *out = &state.device;
  return s;
}

/* Only after fl_cuda_device_open: the backend is given out by nothing else. */
static const fl_cuda_api *enter(void) {
  state.device.api->cuCtxPushCurrent_v2(state.device.context);
  return state.device.api;
}

static void leave(void) { state.device.api->cuCtxPopCurrent_v2(&(fl_cu_context){0}); }

void *fl_cuda_allocate(size_t bytes) {
  fl_cu_ptr p = 0;
  int r = enter()->cuMemAlloc_v2(&p, bytes ? bytes : 64);
  leave();
  return r ? NULL : (void *)(uintptr_t)p;
}

void fl_cuda_release(void *block) {
  if (!block) return;
  enter()->cuMemFree_v2((fl_cu_ptr)(uintptr_t)block);
  leave();
}

/* Copies of pageable memory on the default stream: synchronous after the wait. */
fl_status fl_cuda_upload(void *dst, const void *src, size_t bytes) {
  const fl_cuda_api *api = enter();
  int r = bytes ? api->cuMemcpyHtoDAsync_v2((fl_cu_ptr)(uintptr_t)dst, src, bytes, NULL) : 0;
  if (!r) r = api->cuStreamSynchronize(NULL);
  leave();
  return fl_cuda_check(r, "copy to the device");
}

fl_status fl_cuda_download(void *dst, const void *src, size_t bytes) {
  const fl_cuda_api *api = enter();
  int r = bytes ? api->cuMemcpyDtoHAsync_v2(dst, (fl_cu_ptr)(uintptr_t)src, bytes, NULL) : 0;
  if (!r) r = api->cuStreamSynchronize(NULL);
  leave();
  return fl_cuda_check(r, "copy from the device");
}
