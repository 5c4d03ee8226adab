#include "capture/torch_memory.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "base/alloc.h"

/* PyTorch's C interface for compiled models (torch/csrc/inductor/aoti_torch/c/shim.h): plain C, no GIL, errors as numbers. */
typedef void *tensor;

static struct {
  int32_t (*empty)(int64_t ndim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device_type,
                   int32_t device_index, tensor *out);
  int32_t (*data)(tensor t, void **out);
  int32_t (*destroy)(tensor t);
  int32_t (*cuda)(void);
  int32_t (*u8)(void);
} shim;

typedef struct block {
  struct block *next;
  void *data;
  tensor owner;
} block;

enum { BUCKETS = 512 };
static struct {
  pthread_mutex_t lock;
  block *buckets[BUCKETS];
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

static block **bucket_of(const void *data) { return &table.buckets[(uintptr_t)data / 512 % BUCKETS]; }

/* PyTorch's caching allocator takes memory from the driver in units of UNIT and hands out what is left of them as well (above
 * SMALL, which has units of its own). What stays would keep the rest of a unit, however large, from going back to the driver
 * once eager's tensors there are gone: whole units do not fit into what is left of others. */
enum { SMALL = 1 << 20, UNIT = 2 << 20 };

static void *allocate(int ordinal, size_t bytes) {
  int64_t size = bytes ? (int64_t)bytes : 1, stride = 1;
  if (size > SMALL) size = (size + UNIT - 1) / UNIT * UNIT;
  block *b = fl_calloc(1, sizeof *b);
  if (!b) return NULL;
  if (shim.empty(1, &size, &stride, shim.u8(), shim.cuda(), ordinal, &b->owner)) {
    fl_free(b);
    return NULL;
  }
  if (shim.data(b->owner, &b->data) || !b->data) {
    shim.destroy(b->owner);
    fl_free(b);
    return NULL;
  }
  void *data = b->data;
  pthread_mutex_lock(&table.lock);
  b->next = *bucket_of(data);
  *bucket_of(data) = b;
  pthread_mutex_unlock(&table.lock);
  return data;
}

static void release(int ordinal, void *data) {
  pthread_mutex_lock(&table.lock);
  block **at = bucket_of(data), *b;
  while (*at && (*at)->data != data) at = &(*at)->next;
  b = *at;
  if (b) *at = b->next;
  pthread_mutex_unlock(&table.lock);
  if (b) shim.destroy(b->owner);
  fl_free(b);
}

const fl_cuda_memory *fl_torch_memory(void) {
  static const fl_cuda_memory memory = {allocate, release};
  void *lib = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (!lib) return NULL;
  const struct {
    void *to;
    const char *name;
  } symbols[] = {{&shim.empty, "aoti_torch_empty_strided"},
                 {&shim.data, "aoti_torch_get_data_ptr"},
                 {&shim.destroy, "aoti_torch_delete_tensor_object"},
                 {&shim.cuda, "aoti_torch_device_type_cuda"},
                 {&shim.u8, "aoti_torch_dtype_uint8"}};
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void *p = dlsym(lib, symbols[i].name);
    if (!p) return NULL;
    memcpy(symbols[i].to, &p, sizeof p);
  }
  return &memory; /* the library stays open: it is torch's */
}
