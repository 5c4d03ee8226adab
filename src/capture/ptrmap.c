#include "capture/ptrmap.h"

#include "base/alloc.h"

static size_t slot_of(const fl_ptrmap *m, const void *key) {
  uint64_t h = (uint64_t)(uintptr_t)key * 0x9E3779B97F4A7C15ull;
  size_t i = (size_t)(h >> 32) & (m->cap - 1);
  while (m->keys[i] && m->keys[i] != key) i = (i + 1) & (m->cap - 1);
  return i;
}

void fl_ptrmap_release(fl_ptrmap *m) {
  fl_free(m->keys);
  fl_free(m->values);
  *m = (fl_ptrmap){0};
}

bool fl_ptrmap_get(const fl_ptrmap *m, const void *key, uint32_t *out) {
  if (!m->cap) return false;
  size_t i = slot_of(m, key);
  if (!m->keys[i]) return false;
  if (out) *out = m->values[i];
  return true;
}

static bool grow(fl_ptrmap *m) {
  fl_ptrmap n = {.cap = m->cap ? m->cap * 2 : 256};
  n.keys = fl_calloc(n.cap, sizeof *n.keys);
  n.values = fl_calloc(n.cap, sizeof *n.values);
  if (!n.keys || !n.values) {
    fl_ptrmap_release(&n);
    return false;
  }
  for (size_t i = 0; i < m->cap; i++) {
    if (!m->keys[i]) continue;
    size_t j = slot_of(&n, m->keys[i]);
    n.keys[j] = m->keys[i];
    n.values[j] = m->values[i];
  }
  n.len = m->len;
  fl_ptrmap_release(m);
  *m = n;
  return true;
}

bool fl_ptrmap_set(fl_ptrmap *m, const void *key, uint32_t value) {
  if ((m->len + 1) * 2 > m->cap && !grow(m)) return false;
  size_t i = slot_of(m, key);
  if (!m->keys[i]) {
    m->keys[i] = key;
    m->len++;
  }
  m->values[i] = value;
  return true;
}
