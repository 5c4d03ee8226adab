#include "rt/constants.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

typedef struct slab {
  const fl_backend *backend;
  char *data;
  uint32_t refs; /* blocks that lie in it */
} slab;

struct fl_constant {
  fl_constant *next; /* in its bucket */
  slab *slab;
  char *data;
  size_t bytes;
  uint32_t refs;
  bool listed;
  uint64_t hash, report;
  fl_constant_key key; /* once published: with memory of its own */
};

/* Everything that changes lies under one lock: it is taken when engines are made and changed, never in a run. */
static struct {
  pthread_mutex_t lock;
  fl_constant **buckets; /* a power of two of them */
  size_t n_buckets, n, bytes;
  uint64_t reports;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void lock(void) { pthread_mutex_lock(&table.lock); }
static void unlock(void) { pthread_mutex_unlock(&table.lock); }

/* --- keys --- */

static uint64_t mix(uint64_t h, uint64_t v) {
  h = (h ^ v) * 0x9E3779B97F4A7C15u;
  return h ^ h >> 29;
}

static uint64_t hash_of(const fl_constant_key *k) {
  uint64_t h = mix(k->recipe_bytes, (uintptr_t)k->backend), word;
  const char *at = k->recipe;
  for (size_t i = 0; i + sizeof word <= k->recipe_bytes; i += sizeof word) {
    memcpy(&word, at + i, sizeof word);
    h = mix(h, word);
  }
  for (uint32_t i = 0; i < k->n_stamps; i++) h = mix(h, k->stamps[i]);
  return h;
}

static bool same_key(const fl_constant_key *a, const fl_constant_key *b) {
  return a->backend == b->backend && a->recipe_bytes == b->recipe_bytes && a->n_stamps == b->n_stamps &&
         !memcmp(a->recipe, b->recipe, a->recipe_bytes) &&
         (!a->n_stamps || !memcmp(a->stamps, b->stamps, a->n_stamps * sizeof *a->stamps));
}

/* Recipe and stamps in one block, which is the recipe's. */
static bool copy_key(const fl_constant_key *k, fl_constant_key *out) {
  const size_t stamps = k->n_stamps * sizeof *k->stamps;
  uint64_t *memory = fl_malloc(stamps + k->recipe_bytes);
  if (!memory) return false;
  if (stamps) memcpy(memory, k->stamps, stamps);
  memcpy(memory + k->n_stamps, k->recipe, k->recipe_bytes);
  *out = *k;
  out->stamps = memory;
  out->recipe = memory + k->n_stamps;
  return true;
}

static void free_key(fl_constant_key *k) {
  fl_free((void *)(uintptr_t)k->stamps);
  *k = (fl_constant_key){0};
}

/* --- the table --- */

static fl_constant *find(const fl_constant_key *key, uint64_t hash) {
  fl_constant *c = table.n ? table.buckets[hash & (table.n_buckets - 1)] : NULL;
  while (c && (c->hash != hash || !same_key(&c->key, key))) c = c->next;
  return c;
}

static bool grow(void) {
  enum { FIRST = 64 };
  if (table.n < table.n_buckets) return true;
  size_t n = table.n_buckets ? 2 * table.n_buckets : FIRST;
  fl_constant **buckets = fl_calloc(n, sizeof *buckets);
  if (!buckets) return table.n_buckets > 0;
  for (size_t i = 0; i < table.n_buckets; i++)
    for (fl_constant *c = table.buckets[i], *next; c; c = next) {
      next = c->next;
      c->next = buckets[c->hash & (n - 1)];
      buckets[c->hash & (n - 1)] = c;
    }
  fl_free(table.buckets);
  table.buckets = buckets;
  table.n_buckets = n;
  return true;
}

static void list(fl_constant *c) {
  fl_constant **bucket = &table.buckets[c->hash & (table.n_buckets - 1)];
  c->next = *bucket;
  *bucket = c;
  c->listed = true;
  table.n++;
  table.bytes += c->bytes;
}

/* An empty table holds no memory. */
static void unlist(fl_constant *c) {
  fl_constant **at = &table.buckets[c->hash & (table.n_buckets - 1)];
  while (*at != c) at = &(*at)->next;
  *at = c->next;
  c->listed = false;
  table.bytes -= c->bytes;
  if (--table.n) return;
  fl_free(table.buckets);
  table.buckets = NULL;
  table.n_buckets = 0;
}

fl_constant *fl_constant_find(const fl_constant_key *key) {
  const uint64_t hash = hash_of(key);
  lock();
  fl_constant *c = find(key, hash);
  if (c) c->refs++;
  unlock();
  return c;
}

fl_constant *fl_constant_publish(fl_constant *c, const fl_constant_key *key) {
  fl_constant_key own;
  if (!copy_key(key, &own)) return c;
  const uint64_t hash = hash_of(key);
  lock();
  fl_constant *there = find(key, hash);
  if (there)
    there->refs++;
  else if (grow()) {
    c->key = own;
    own = (fl_constant_key){0};
    c->hash = hash;
    list(c);
  }
  unlock();
  free_key(&own);
  if (!there) return c;
  fl_constant_release(c);
  return there;
}

bool fl_constant_withdraw(fl_constant *c) {
  lock();
  const bool alone = c->refs == 1;
  if (alone && c->listed) unlist(c);
  unlock();
  if (alone) free_key(&c->key);
  return alone;
}

/* --- life --- */

static bool add_block(slab *s, char *data, size_t bytes, fl_constant **out) {
  fl_constant *c = *out = fl_calloc(1, sizeof *c);
  if (!c) return false;
  *c = (fl_constant){.slab = s, .data = data, .bytes = bytes, .refs = 1};
  s->refs++;
  return true;
}

static void free_slab(slab *s) {
  s->backend->release(s->backend, s->data);
  fl_free(s);
}

static bool allocate_slab(const fl_backend *b, const size_t *bytes, uint32_t n, fl_constant **out) {
  size_t all = 0;
  for (uint32_t i = 0; i < n; i++)
    if (!fl_add_size(all, bytes[i], &all)) return false;
  slab *s = fl_calloc(1, sizeof *s);
  if (!s) return false;
  *s = (slab){.backend = b, .data = b->allocate(b, all)};
  bool ok = s->data != NULL;
  char *at = s->data;
  for (uint32_t i = 0; ok && i < n; at += bytes[i++]) ok = add_block(s, at, bytes[i], &out[i]);
  if (ok) return true;
  for (uint32_t i = 0; i < n; i++) fl_free(out[i]);
  memset(out, 0, n * sizeof *out);
  free_slab(s);
  return false;
}

bool fl_constants_allocate(const fl_backend *b, const size_t *bytes, uint32_t n, bool together, fl_constant **out) {
  memset(out, 0, n * sizeof *out);
  if (!n) return true;
  if (together) return allocate_slab(b, bytes, n, out);
  for (uint32_t i = 0; i < n; i++) {
    if (allocate_slab(b, &bytes[i], 1, &out[i])) continue;
    for (; i > 0; i--) fl_constant_release(out[i - 1]);
    memset(out, 0, n * sizeof *out);
    return false;
  }
  return true;
}

/* The slab cannot go meanwhile: the block is still counted in it. */
static void leave_slab(const fl_constant *c) {
  slab *s = c->slab;
  lock();
  const bool others = s->refs > 1;
  unlock();
  if (others && s->backend->discard) s->backend->discard(s->backend, c->data, c->bytes);
  lock();
  const bool last = --s->refs == 0;
  unlock();
  if (last) free_slab(s);
}

fl_constant *fl_constant_retain(fl_constant *c) {
  lock();
  c->refs++;
  unlock();
  return c;
}

void fl_constant_release(fl_constant *c) {
  if (!c) return;
  lock();
  const bool last = --c->refs == 0;
  if (last && c->listed) unlist(c);
  unlock();
  if (!last) return;
  leave_slab(c);
  free_key(&c->key);
  fl_free(c);
}

char *fl_constant_data(const fl_constant *c) { return c->data; }

/* --- reports --- */

uint64_t fl_constants_report(void) {
  lock();
  const uint64_t report = ++table.reports;
  unlock();
  return report;
}

bool fl_constant_count(fl_constant *c, uint64_t report) {
  lock();
  const bool first = c->report != report;
  c->report = report;
  unlock();
  return first;
}

void fl_constants_listed(size_t *out_blocks, size_t *out_bytes) {
  lock();
  *out_blocks = table.n;
  *out_bytes = table.bytes;
  unlock();
}

/* --- sets --- */

fl_constant_set *fl_constant_set_new(uint32_t n) {
  fl_constant_set *s = fl_calloc(1, sizeof *s + n * sizeof *s->blocks);
  if (!s) return NULL;
  atomic_init(&s->refs, 1);
  s->n = n;
  return s;
}

fl_constant_set *fl_constant_set_retain(fl_constant_set *s) {
  atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
  return s;
}

void fl_constant_set_release(fl_constant_set *s) {
  if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
  for (uint32_t i = 0; i < s->n; i++) fl_constant_release(s->blocks[i]);
  fl_free(s);
}
