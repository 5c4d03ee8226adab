/* A map from object addresses to small numbers, for the length of one recording. Holds no references. */
#ifndef FL_CAPTURE_PTRMAP_H
#define FL_CAPTURE_PTRMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fl_ptrmap {
  const void **keys;
  uint32_t *values;
  size_t len, cap; /* cap is a power of two */
} fl_ptrmap;

void fl_ptrmap_release(fl_ptrmap *m);                                   /* empty again; zeroed memory is an empty map */
bool fl_ptrmap_get(const fl_ptrmap *m, const void *key, uint32_t *out); /* out may be NULL */
bool fl_ptrmap_set(fl_ptrmap *m, const void *key, uint32_t value);      /* false = out of memory */

#endif
