#include "cuda/device.h"

#include <pthread.h>
#include <string.h>

#include "cuda/graph.h"

enum { ATTR_MULTIPROCESSORS = 16, ATTR_L2 = 38, ATTR_MAJOR = 75, ATTR_MINOR = 76 };

static struct {
  pthread_mutex_t lock;
  bool open[FL_CUDA_MAX_DEVICES];
  fl_cuda_device devices[FL_CUDA_MAX_DEVICES];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static fl_status open_device(fl_cuda_device *d, int ordinal) {
  int id, major = 0, minor = 0;
  FL_TRY(fl_cuda_load(NULL, &d->api));
  if (ordinal < 0 || ordinal >= FL_CUDA_MAX_DEVICES || ordinal >= d->api->device_count)
    return fl_fail(FL_UNSUPPORTED, "CUDA: device %d of %d, at most %d", ordinal, d->api->device_count,
                   FL_CUDA_MAX_DEVICES);
  d->ordinal = ordinal;
  FL_TRY(fl_cuda_check(d->api->cuDeviceGet(&id, ordinal), "device"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&major, ATTR_MAJOR, id), "compute capability"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&minor, ATTR_MINOR, id), "compute capability"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&d->multiprocessors, ATTR_MULTIPROCESSORS, id), "processors"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetAttribute(&d->l2_bytes, ATTR_L2, id), "cache"));
  FL_TRY(fl_cuda_check(d->api->cuDeviceGetName(d->name, sizeof d->name, id), "name"));
  d->arch = 10 * major + minor;
  if (d->arch < 70)
    return fl_fail(FL_UNSUPPORTED, "CUDA: the device has compute capability %d.%d; must be 7.0 or newer", major, minor);
  FL_TRY(fl_cuda_check(d->api->cuDevicePrimaryCtxRetain(&d->context, id), "context"));
  FL_TRY(fl_cuda_check(d->api->cuCtxPushCurrent_v2(d->context), "context"));
  int lt = d->api->cublasLtCreate(&d->lt);
  d->api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
  return lt ? fl_fail(FL_UNSUPPORTED, "CUDA: cuBLASLt cannot be used (status %d)", lt) : NULL;
}

fl_status fl_cuda_device_open(int ordinal, const fl_cuda_device **out) {
  int slot = ordinal < 0 || ordinal >= FL_CUDA_MAX_DEVICES ? 0 : ordinal;
  fl_cuda_device opened = {0};
  fl_status s = NULL;
  pthread_mutex_lock(&state.lock);
  if (!state.open[slot] || slot != ordinal) s = open_device(&opened, ordinal);
  if (!s && !state.open[slot]) {
    state.devices[slot] = opened;
    state.open[slot] = true;
  }
  pthread_mutex_unlock(&state.lock);
  *out = &state.devices[slot];
  return s;
}

static const fl_cuda_api *enter(const fl_backend *b) {
  const fl_cuda_device *d = fl_cuda_device_of(b);
  d->api->cuCtxPushCurrent_v2(d->context);
  return d->api;
}

static void leave(const fl_cuda_api *api) { api->cuCtxPopCurrent_v2(&(fl_cu_context){0}); }

static const fl_cuda_memory *memory;

void fl_cuda_memory_set(const fl_cuda_memory *m) { memory = m; }

void *fl_cuda_allocate(const fl_backend *b, size_t bytes) {
  if (memory) return memory->allocate(fl_cuda_device_of(b)->ordinal, bytes);
  fl_cu_ptr p = 0;
  const fl_cuda_api *api = enter(b);
  int r = api->cuMemAlloc_v2(&p, bytes ? bytes : 64);
  leave(api);
  return r ? NULL : (void *)(uintptr_t)p;
}

void fl_cuda_release(const fl_backend *b, void *block) {
  if (!block) return;
  if (memory) {
    memory->release(fl_cuda_device_of(b)->ordinal, block);
    return;
  }
  const fl_cuda_api *api = enter(b);
  api->cuMemFree_v2((fl_cu_ptr)(uintptr_t)block);
  leave(api);
}

/* Copies of pageable memory on the caller's stream: synchronous after the wait. */
fl_status fl_cuda_upload(const fl_backend *b, void *dst, const void *src, size_t bytes) {
  const fl_cuda_api *api = enter(b);
  int r = bytes ? api->cuMemcpyHtoDAsync_v2((fl_cu_ptr)(uintptr_t)dst, src, bytes, fl_cuda_stream_get()) : 0;
  if (!r) r = api->cuStreamSynchronize(fl_cuda_stream_get());
  leave(api);
  return fl_cuda_check(r, "copy to the device");
}

fl_status fl_cuda_download(const fl_backend *b, void *dst, const void *src, size_t bytes) {
  const fl_cuda_api *api = enter(b);
  int r = bytes ? api->cuMemcpyDtoHAsync_v2(dst, (fl_cu_ptr)(uintptr_t)src, bytes, fl_cuda_stream_get()) : 0;
  if (!r) r = api->cuStreamSynchronize(fl_cuda_stream_get());
  leave(api);
  return fl_cuda_check(r, "copy from the device");
}
