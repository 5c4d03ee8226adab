/* Words of memory that have not changed: what most guards come down to.
 *
 * A list of addresses and what they held, compared in one loop without a branch. Whoever adds a word sees to it that its
 * address stays readable for as long as the words of earlier lists are unchanged. */
#ifndef FL_CAPTURE_WATCH_H
#define FL_CAPTURE_WATCH_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/alloc.h"

typedef struct fl_watch {
  const char *at;
  uint64_t want;
} fl_watch;
typedef FL_VEC(fl_watch) fl_watches;

static inline uint64_t fl_word(const void *at) {
  uint64_t w;
  memcpy(&w, at, sizeof w);
  return w;
}

/* False when out of memory. */
static inline bool fl_watch_add(fl_watches *w, const void *at, uint64_t want) {
  fl_watch x = {at, want};
  return FL_PUSH(w, x);
}

static inline bool fl_watch_same(const fl_watches *w) {
  uint64_t differ = 0;
  for (size_t i = 0; i < w->len; i++) differ |= fl_word(w->data[i].at) ^ w->data[i].want;
  return !differ;
}

#endif
