#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

static _Atomic int64_t fail_countdown;
static _Atomic int64_t live_blocks;

/* True when a test asked for this very request to fail. */
static bool must_fail(void) {
  if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) <= 0) return false;
  return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

static void *counted(void *p) {
  if (p) atomic_fetch_add_explicit(&live_blocks, 1, memory_order_relaxed);
  return p;
}

static void uncount(void) { atomic_fetch_sub_explicit(&live_blocks, 1, memory_order_relaxed); }

void *fl_malloc(size_t size) { return must_fail() ? NULL : counted(malloc(size ? size : 1)); }

void *fl_calloc(size_t count, size_t size) {
  size_t total;
  if (!fl_mul_size(count, size, &total) || must_fail()) return NULL;
  return counted(calloc(1, total ? total : 1));
}

void *fl_realloc(void *p, size_t size) {
  if (!p) return fl_malloc(size);
  return must_fail() ? NULL : realloc(p, size ? size : 1);
}

void fl_free(void *p) {
  if (!p) return;
  uncount();
  free(p);
}

char *fl_strdup(const char *s) {
  size_t size = strlen(s) + 1;
  char *copy = fl_malloc(size);
  if (copy) memcpy(copy, s, size);
  return copy;
}

void *fl_malloc_aligned(size_t size) {
  size_t padded;
  if (!fl_add_size(size, ALIGNMENT, &padded) || must_fail()) return NULL;
  padded &= ~(size_t)(ALIGNMENT - 1);
  return counted(aligned_alloc(ALIGNMENT, padded));
}

void fl_free_aligned(void *p) { fl_free(p); }

bool fl_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

bool fl_add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

void fl_alloc_fail_at(int64_t nth) { atomic_store(&fail_countdown, nth); }

int64_t fl_alloc_live(void) { return atomic_load(&live_blocks); }

bool fl_grow(void **data, size_t *cap, size_t len, size_t elem) {
  if (len < *cap) return true;
  size_t bytes, new_cap = *cap ? *cap : 4;
  if (*cap && !fl_mul_size(*cap, 2, &new_cap)) return false;
  if (!fl_mul_size(new_cap, elem, &bytes)) return false;
  /* memcpy: `data` is the address of a T *, whatever T is. */
  void *old;
  memcpy(&old, data, sizeof old);
  void *p = fl_realloc(old, bytes);
  if (!p) return false;
  memcpy(data, &p, sizeof p);
  *cap = new_cap;
  return true;
}

/* --- arena --- */

#define ARENA_ALIGN   16
#define ARENA_FIRST   4096
#define ARENA_LARGEST (1u << 20)

struct fl_arena_block {
  struct fl_arena_block *next;
  size_t used, cap;
  _Alignas(ARENA_ALIGN) unsigned char bytes[];
};

void fl_arena_init(fl_arena *a) { a->head = NULL; }

void fl_arena_release(fl_arena *a) {
  for (struct fl_arena_block *b = a->head, *next; b; b = next) {
    next = b->next;
    fl_free(b);
  }
  a->head = NULL;
}

static struct fl_arena_block *arena_block(size_t cap) {
  size_t total;
  if (!fl_add_size(sizeof(struct fl_arena_block), cap, &total)) return NULL;
  struct fl_arena_block *b = fl_malloc(total);
  if (b) *b = (struct fl_arena_block){.cap = cap};
  return b;
}

/* Blocks double, so that a graph of thousands of nodes takes few of them. A request larger than the next block gets
 * one of its own behind the head, which stays open for small requests. */
static struct fl_arena_block *arena_room(fl_arena *a, size_t size) {
  struct fl_arena_block *head = a->head;
  if (head && head->cap - head->used >= size) return head;
  size_t cap = head && head->cap >= ARENA_FIRST ? head->cap * 2 : ARENA_FIRST;
  if (cap > ARENA_LARGEST) cap = ARENA_LARGEST;
  bool own = size > cap;
  struct fl_arena_block *b = arena_block(own ? size : cap);
  if (!b) return NULL;
  if (own && head) {
    b->next = head->next;
    head->next = b;
  } else {
    b->next = head;
    a->head = b;
  }
  return b;
}

void *fl_arena_alloc(fl_arena *a, size_t size) {
  size_t padded;
  if (!fl_add_size(size ? size : 1, ARENA_ALIGN - 1, &padded)) return NULL;
  padded &= ~(size_t)(ARENA_ALIGN - 1);
  struct fl_arena_block *b = arena_room(a, padded);
  if (!b) return NULL;
  void *p = b->bytes + b->used;
  b->used += padded;
  return memset(p, 0, padded);
}

void *fl_arena_memdup(fl_arena *a, const void *p, size_t size) {
  void *copy = fl_arena_alloc(a, size);
  if (copy && size) memcpy(copy, p, size);
  return copy;
}

char *fl_arena_strdup(fl_arena *a, const char *s) { return fl_arena_memdup(a, s, strlen(s) + 1); }
