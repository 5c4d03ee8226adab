/* Heap and arena memory of the library.
 *
 * All heap memory goes through these calls, so that tests can count it and make the Nth request fail
 * (fl_alloc_fail_at). Sizes are bytes. Thread rule: the heap calls are safe from any thread; an arena
 * belongs to one thread at a time. */
#ifndef FL_BASE_ALLOC_H
#define FL_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

void *fl_malloc(size_t size);               /* NULL when out of memory; size 0 gives a valid pointer */
void *fl_calloc(size_t count, size_t size); /* zeroed; NULL on overflow or out of memory */
void *fl_realloc(void *p, size_t size);
void fl_free(void *p);          /* NULL allowed */
char *fl_strdup(const char *s); /* new, or NULL */

/* 64-byte aligned blocks, for tensors and packed weights. Free with fl_free_aligned only. */
void *fl_malloc_aligned(size_t size);
void fl_free_aligned(void *p);

/* Checked sizes: false when the result does not fit. */
bool fl_mul_size(size_t a, size_t b, size_t *out);
bool fl_add_size(size_t a, size_t b, size_t *out);

/* Tests only: the nth request from now on (1 = the next) fails, once; 0 switches this off. */
void fl_alloc_fail_at(int64_t nth);
int64_t fl_alloc_live(void); /* blocks handed out and not yet freed */

/* A growing region freed as a whole. */
typedef struct fl_arena {
  struct fl_arena_block *head;
} fl_arena;

void fl_arena_init(fl_arena *a);
void fl_arena_release(fl_arena *a);
void *fl_arena_alloc(fl_arena *a, size_t size);    /* zeroed, 16-byte aligned; NULL = OOM */
char *fl_arena_strdup(fl_arena *a, const char *s); /* NULL = OOM */
void *fl_arena_memdup(fl_arena *a, const void *p, size_t size);

/* Growable arrays: FL_PUSH(&v, item) with struct {T *data; size_t len, cap;}; false = OOM.
 * fl_grow makes room for one more element of `elem` bytes. */
bool fl_grow(void **data, size_t *cap, size_t len, size_t elem);
#define FL_VEC(T)                                                                                                      \
  struct {                                                                                                             \
    T *data;                                                                                                           \
    size_t len, cap;                                                                                                   \
  }
#define FL_PUSH(v, item)                                                                                               \
  (fl_grow((void **)&(v)->data, &(v)->cap, (v)->len, sizeof *(v)->data) ? ((v)->data[(v)->len++] = (item), true)       \
                                                                        : false)

#endif
