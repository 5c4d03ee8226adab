#include "capture/bodies.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/cpu.h"
#include "capture/watch.h"

enum { WORD = sizeof(uint64_t), OWN = FL_BODY_OWN, USUAL = 12 };

/* Of `own`: which word a field of the body is; OWN or more where it is none of them. */
static unsigned own_word(unsigned offset) {
  const fl_impl_layout *l = &fl_impl_at;
  return offset < l->first || (offset - l->first) % WORD ? OWN : (offset - l->first) / WORD;
}

bool fl_bodies_can(const fl_impl_snapshot *s) {
  const fl_impl_layout *l = &fl_impl_at;
  return s->ok && l->version % WORD == 0 && l->length % WORD == 0 && l->length >= (OWN + 4) * WORD &&
         own_word(l->storage) < OWN && own_word(l->counter) < OWN;
}

/* As in the versions of PyTorch so far. */
static bool is_usual(void) { return fl_impl_at.length == (OWN + USUAL) * WORD; }

/* Of a vector, four words in a row mean nothing: strides of axes that it does not have. */
static bool vectors_are_short(void) {
  const fl_impl_layout *l = &fl_impl_at;
  unsigned unused = l->first + (OWN + 4) * WORD;
  return is_usual() && l->shapes && l->rank >= l->first && l->strides + WORD <= unused && l->strides < l->offset &&
         unused + 4 * WORD <= l->offset;
}

static size_t rank_of(const fl_impl_snapshot *s) {
  size_t rank;
  memcpy(&rank, (const char *)&s->bytes + (fl_impl_at.rank - fl_impl_at.first), sizeof rank);
  return rank;
}

/* --- the list --- */

/* The latest ones are the likeliest. */
static bool find_alike(fl_bodies *b, const fl_alike *a, size_t *out) {
  enum { LATEST = 64 };
  size_t last = b->alike.len > LATEST ? b->alike.len - LATEST : 0;
  for (size_t i = b->alike.len; i-- > last;)
    if (!memcmp(&b->alike.data[i], a, sizeof *a)) return *out = i, true;
  *out = b->alike.len;
  return FL_PUSH(&b->alike, *a);
}

bool fl_bodies_add(fl_bodies *b, PyObject *tensor, const fl_impl_snapshot *s) {
  const fl_impl_layout *l = &fl_impl_at;
  fl_alike rest = {{0}};
  /* With the version comes what lies beside it in its word, which nobody writes. */
  fl_body x = {.place = (const char *)tensor + l->impl,
               .body = s->body,
               .data = (uint64_t)(uintptr_t)s->data,
               .version = fl_word(s->counter + l->version)};
  if ((uint32_t)x.version != s->version) return false;
  memcpy(x.own, s->bytes.word, sizeof x.own);
  memcpy(rest.word, s->bytes.word + OWN, l->length - sizeof x.own);
  if (!find_alike(b, &rest, &x.alike)) return false;
  return vectors_are_short() && rank_of(s) <= 1 ? FL_PUSH(&b->vectors, x) : FL_PUSH(&b->list, x);
}

static int by_address(const void *a, const void *b) {
  uintptr_t x = (uintptr_t)((const fl_body *)a)->body, y = (uintptr_t)((const fl_body *)b)->body;
  return (x > y) - (x < y);
}

void fl_bodies_sort(fl_bodies *b) {
  if (b->list.len) qsort(b->list.data, b->list.len, sizeof *b->list.data, by_address);
  if (b->vectors.len) qsort(b->vectors.data, b->vectors.len, sizeof *b->vectors.data, by_address);
}

void fl_bodies_clear(fl_bodies *b) { b->list.len = b->vectors.len = b->alike.len = 0; }

void fl_bodies_release(fl_bodies *b) {
  fl_free(b->list.data);
  fl_free(b->vectors.data);
  fl_free(b->alike.data);
  *b = (fl_bodies){0};
}

/* --- the pass --- */

/* What the body points to, which may be read once the body is known to be the same. Not 0: it has changed. */
static inline uint64_t beyond(const fl_body *x, unsigned storage, unsigned counter) {
  const fl_impl_layout *l = &fl_impl_at;
  return (fl_word((const char *)(uintptr_t)x->own[storage] + l->data) ^ x->data) |
         (fl_word((const char *)(uintptr_t)x->own[counter] + l->version) ^ x->version);
}

static inline bool is_there(const fl_body *x) { return fl_word(x->place) == (uint64_t)(uintptr_t)x->body; }

#if defined(__x86_64__)
#define AVX2    __attribute__((target("avx2")))
#define FOUR(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))

#define DIFFER(at, want) _mm256_xor_si256(FOUR(at), FOUR(want))
#define ALSO(d, more)    ((d) = _mm256_or_si256(d, more))

/* `n` words, at least four: the last four may overlap those before. */
AVX2 static inline __m256i rest_differs(const char *at, const uint64_t *want, size_t n) {
  __m256i d = DIFFER(at + (n - 4) * WORD, want + n - 4);
  for (size_t k = 0; k + 4 < n; k += 4) ALSO(d, DIFFER(at + k * WORD, want + k));
  return d;
}

AVX2 static inline __m256i usual_differs(const char *at, const uint64_t *want, bool vector) {
  __m256i d = DIFFER(at, want);
  if (!vector) ALSO(d, DIFFER(at + 4 * WORD, want + 4));
  return ALSO(d, DIFFER(at + 8 * WORD, want + 8));
}

/* Constants for `n` and `vector` make this several functions. */
AVX2 static inline __attribute__((always_inline)) bool list_same_avx2(const fl_bodies *b, const fl_body *x, size_t len,
                                                                      size_t n, bool vector) {
  const fl_impl_layout *l = &fl_impl_at;
  const unsigned storage = own_word(l->storage), counter = own_word(l->counter), first = l->first;
  const fl_alike *alike = b->alike.data;
  uint64_t differ = 0;
  for (const fl_body *end = x + len; x < end; x++) {
    if (!is_there(x)) return false;
    const char *at = x->body + first, *rest = at + OWN * WORD;
    const uint64_t *want = alike[x->alike].word;
    __m256i d = n == USUAL ? usual_differs(rest, want, vector) : rest_differs(rest, want, n);
    ALSO(d, DIFFER(at, x->own));
    ALSO(d, DIFFER(at + 4 * WORD, x->own + 4));
    if (!_mm256_testz_si256(d, d)) return false;
    differ |= beyond(x, storage, counter);
  }
  return !differ;
}

AVX2 static bool bodies_same_avx2(const fl_bodies *b) {
  if (!is_usual()) return list_same_avx2(b, b->list.data, b->list.len, fl_impl_at.length / WORD - OWN, false);
  return list_same_avx2(b, b->list.data, b->list.len, USUAL, false) &&
         list_same_avx2(b, b->vectors.data, b->vectors.len, USUAL, true);
}
#endif

static bool list_same(const fl_bodies *b, const fl_body *x, size_t len) {
  const fl_impl_layout *l = &fl_impl_at;
  const unsigned storage = own_word(l->storage), counter = own_word(l->counter);
  uint64_t differ = 0;
  for (const fl_body *end = x + len; x < end; x++) {
    const char *at = x->body + l->first;
    if (!is_there(x) || memcmp(at, x->own, sizeof x->own) ||
        memcmp(at + sizeof x->own, b->alike.data[x->alike].word, l->length - sizeof x->own))
      return false;
    differ |= beyond(x, storage, counter);
  }
  return !differ;
}

bool fl_bodies_same(const fl_bodies *b) {
#if defined(__x86_64__)
  if (fl_cpu_isa() >= FL_ISA_AVX2) return bodies_same_avx2(b);
#endif
  return list_same(b, b->list.data, b->list.len) && list_same(b, b->vectors.data, b->vectors.len);
}
