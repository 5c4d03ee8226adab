#include "capture/stamps.h"

#include <stdlib.h>
#include <string.h>

#include "capture/ptrmap.h"
#include "capture/weights.h"

static uint64_t last_stamp; /* 0 is none */

/* --- families --- */

fl_family *fl_family_new(void) {
  fl_family *f = fl_calloc(1, sizeof *f);
  if (f) f->refs = 1;
  return f;
}

fl_family *fl_family_retain(fl_family *f) {
  f->refs++;
  return f;
}

void fl_family_release(fl_family *f) {
  if (f && --f->refs == 0) fl_free(f);
}

void fl_family_join(fl_family *f, fl_weights *w) {
  if (w->family) return;
  w->family = fl_family_retain(f);
  w->next_kin = f->first;
  f->first = w;
}

void fl_family_leave(fl_weights *w) {
  fl_family *f = w->family;
  if (!f) return;
  fl_weights **at = &f->first;
  while (*at != w) at = &(*at)->next_kin;
  *at = w->next_kin;
  w->family = NULL;
  fl_family_release(f);
}

void fl_family_touch(fl_family *f, const fl_weights *but) {
  for (fl_weights *w = f->first; w; w = w->next_kin)
    if (w != but) fl_weights_touch(w);
}

/* --- which weights can be named --- */

/* Where others lie in the same memory, what is written by way of these need not show. */
typedef struct place {
  fl_extent at;
  uint32_t weight;
} place;

/* alone[i]: no other weight shares its memory. False when out of memory. */
static bool find_alone(const fl_weights *w, bool *alone) {
  place *places = fl_malloc((w->list.len + 1) * sizeof *places);
  size_t n = 0;
  if (!places) return false;
  for (uint32_t i = 0; i < w->list.len; i++) {
    place *p = &places[n];
    alone[i] = true;
    p->weight = i;
    n += fl_tensor_extent(&w->list.data[i].meta, &p->at.lo, &p->at.hi);
  }
  qsort(places, n, sizeof *places, fl_extent_order);
  for (size_t i = 1, reaches = 0; i < n; i++) { /* `reaches`: the one before that goes furthest */
    if (places[i].at.lo < places[reaches].at.hi) alone[places[i].weight] = alone[places[reaches].weight] = false;
    if (places[i].at.hi > places[reaches].at.hi) reaches = i;
  }
  fl_free(places);
  return true;
}

/* Other processes may write to shared memory between a look at it and the making of constants. */
static bool tells_of_changes(const fl_weight *x) {
  if (x->own || x->shared || fl_weight_is_read(x)) return false;
  return x->copy ? fl_weight_holds_copy(x) : x->storage != 0 && !x->unversioned;
}

/* --- the same in another trace --- */

static bool same_witness(const fl_weights *wa, const fl_weight *a, const fl_weights *wb, const fl_weight *b) {
  if (a->witness < 0 || b->witness < 0) return a->witness == b->witness;
  const fl_witness *x = &wa->witnesses.data[a->witness], *y = &wb->witnesses.data[b->witness];
  return x->tensor == y->tensor && x->storage && x->storage == y->storage && x->version == y->version;
}

/* `b` has a stamp, so that what it says of itself is what it was stamped for. */
static bool holds_the_same(const fl_weights *wa, const fl_weight *a, const fl_weights *wb, const fl_weight *b) {
  if (!b->stamp || a->tensor != b->tensor || !fl_tensor_meta_equal(&a->meta, &b->meta) ||
      a->meta.data != b->meta.data || !a->copy != !b->copy)
    return false;
  if (a->copy) return !memcmp(a->copy, b->copy, fl_type_bytes(&a->meta.type));
  return a->storage == b->storage && a->version == b->version && a->unversioned == b->unversioned &&
         a->shared == b->shared && !memcmp(a->sample.word, b->sample.word, sizeof a->sample.word) &&
         same_witness(wa, a, wb, b);
}

/* Traces of one program mostly list their weights alike; else they are looked up. */
typedef struct lookup {
  const fl_weights *in;
  fl_ptrmap map;
  bool mapped;
} lookup;

static const fl_weight *find(lookup *l, uint32_t i, const PyObject *tensor) {
  const fl_weights *w = l->in;
  if (i < w->list.len && w->list.data[i].tensor == tensor) return &w->list.data[i];
  for (uint32_t k = 0; !l->mapped && k < w->list.len; k++)
    if (!fl_ptrmap_set(&l->map, w->list.data[k].tensor, k)) break;
  l->mapped = true;
  return fl_ptrmap_get(&l->map, tensor, &i) ? &w->list.data[i] : NULL;
}

static bool is_wanted(const fl_weight *x, bool named) { return named && !x->stamp; }

static void take_from(fl_weights *w, const fl_weights *kin, const bool *named) {
  lookup l = {.in = kin};
  for (uint32_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    const fl_weight *same = is_wanted(x, named[i]) ? find(&l, i, x->tensor) : NULL;
    if (!same || !holds_the_same(w, x, kin, same)) continue;
    x->stamp = same->stamp;
    w->taken = true;
  }
  fl_ptrmap_release(&l.map);
}

void fl_weights_stamp(fl_weights *w) {
  if (!w->unstamped || !w->family) return;
  bool *named = fl_calloc(w->list.len + 1, sizeof *named);
  if (!named || !find_alone(w, named)) {
    fl_free(named);
    return;
  }
  for (uint32_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    if (x->stamp) continue;
    named[i] = named[i] && tells_of_changes(x);
  }
  for (const fl_weights *kin = w->family->first; kin; kin = kin->next_kin)
    if (kin != w) take_from(w, kin, named);
  for (uint32_t i = 0; i < w->list.len; i++)
    if (is_wanted(&w->list.data[i], named[i])) w->list.data[i].stamp = ++last_stamp;
  w->unstamped = false;
  fl_free(named);
}

/* --- apart from others for a while --- */

bool fl_weights_unshare(fl_weights *w, fl_unshared *out) {
  if (!w->taken || !(out->stamps = fl_malloc((w->list.len + 1) * sizeof *out->stamps))) return false;
  out->first = last_stamp + 1;
  w->epoch++;
  for (size_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    out->stamps[i] = x->stamp;
    x->epoch = w->epoch;
    ++last_stamp;
    if (x->stamp) x->stamp = last_stamp;
  }
  w->taken = false;
  return true;
}

/* But for those that have changed since. */
void fl_weights_share_again(fl_weights *w, fl_unshared *back) {
  w->epoch++;
  for (size_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    x->epoch = w->epoch;
    if (x->stamp == back->first + i) x->stamp = back->stamps[i];
  }
  w->taken = true;
  fl_unshared_free(back);
}

void fl_unshared_free(fl_unshared *u) {
  fl_free(u->stamps);
  u->stamps = NULL;
}
