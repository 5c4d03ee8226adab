#include "capture/shared.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

typedef struct range {
  uintptr_t lo, hi;
  bool shared;
} range;

static FL_VEC(range) ranges;

void fl_shared_forget(void) { ranges.len = 0; }

static const range *find(uintptr_t at) {
  for (size_t i = 0; i < ranges.len; i++)
    if (ranges.data[i].lo <= at && at < ranges.data[i].hi) return &ranges.data[i];
  return NULL;
}

static void read_ranges(void) {
  FILE *f = fopen("/proc/self/maps", "re");
  char line[512], access[5];
  ranges.len = 0;
  bool begins = true;
  while (f && fgets(line, sizeof line, f)) {
    range r = {0};
    unsigned long lo, hi;
    if (begins && sscanf(line, "%lx-%lx %4s", &lo, &hi, access) == 3) {
      r = (range){lo, hi, access[3] == 's'};
      if (!FL_PUSH(&ranges, r)) break;
    }
    begins = strchr(line, '\n') != NULL; /* names may be longer */
  }
  if (f) fclose(f);
}

/* PyTorch calls memory shared that it has mapped by itself, be it the process's own or not. */
static bool is_mapped(PyObject *tensor) {
  static PyObject *ask;
  if (!ask) {
    PyObject *module = PyImport_ImportModule("torch._C");
    PyObject *base = module ? PyObject_GetAttrString(module, "StorageBase") : NULL;
    ask = base ? PyObject_GetAttrString(base, "is_shared") : NULL;
    Py_XDECREF(base);
    Py_XDECREF(module);
  }
  PyObject *storage = ask ? PyObject_CallMethod(tensor, "untyped_storage", NULL) : NULL;
  PyObject *answer = storage ? PyObject_CallOneArg(ask, storage) : NULL;
  bool mapped = answer == Py_True;
  Py_XDECREF(answer);
  Py_XDECREF(storage);
  PyErr_Clear();
  return mapped;
}

bool fl_tensor_is_shared(PyObject *tensor, const fl_tensor_meta *m) {
  if (m->device_type != FL_DEVICE_CPU || !m->data || !is_mapped(tensor)) return false;
  uintptr_t at = (uintptr_t)m->data;
  if (!find(at)) read_ranges();
  const range *r = find(at);
  return !r || r->shared;
}

uint64_t fl_memory_hash(const fl_tensor_meta *m, uint64_t hash) {
  enum { PLACES = 8 };
  const char *lo, *hi;
  if (m->device_type != FL_DEVICE_CPU || !fl_tensor_extent(m, &lo, &hi)) return hash;
  size_t bytes = (size_t)(hi - lo), n = bytes < sizeof hash ? bytes : sizeof hash;
  for (size_t i = 0; i < PLACES; i++) {
    uint64_t word = 0;
    memcpy(&word, lo + (bytes - n) / (PLACES - 1) * i, n);
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}
