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
  const fl_watch *x = w->data;
  uint64_t a = 0, b = 0;
  size_t i = 0;
  /* Two chains; vectors would only gather what is loaded word by word anyway. */
  for (; i + 2 <= w->len; i += 2) {
    uint64_t one = fl_word(x[i].at), two = fl_word(x[i + 1].at);
    a |= one ^ x[i].want;
    b |= two ^ x[i + 1].want;
    __asm__("" : "+r"(a), "+r"(b));
  }
  if (i < w->len) a |= fl_word(x[i].at) ^ x[i].want;
  return !(a | b);
}

/* Two words beside each other. */
typedef struct fl_watch_pair {
  const char *at;
  uint64_t want[2];
} fl_watch_pair;
typedef FL_VEC(fl_watch_pair) fl_watch_pairs;

static inline bool fl_watch_pairs_same(const fl_watch_pairs *w) {
  uint64_t a = 0, b = 0;
  for (const fl_watch_pair *x = w->data, *end = x + w->len; x < end; x++) {
    a |= fl_word(x->at) ^ x->want[0];
    b |= fl_word(x->at + sizeof a) ^ x->want[1];
    __asm__("" : "+r"(a), "+r"(b));
  }
  return !(a | b);
}

#endif
