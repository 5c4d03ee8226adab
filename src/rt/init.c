/* The init program: makes the engine's constants, all of them or what has changed, but for blocks that are there already. */
#include <string.h>

#include "base/stages.h"
#include "rt/engine_impl.h"

/* What is made at once. */
typedef struct making {
  fl_engine *e;
  const bool *changed;   /* by weight slot; NULL: everything is made, for the first time */
  fl_constant_set *next; /* the blocks as they will be */
  bool *made;            /* by block: made now, and not found or kept */
  bool *needed;          /* by step of the init program */
  uint64_t *stamps;      /* room for those of one block */
} making;

/* --- which blocks --- */

static bool depends_on(const bool *changed, const uint32_t *slots, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (changed[slots[i]]) return true;
  return false;
}

/* False if what it is made of may not be shared. */
static bool key_of(const making *m, const fl_const_block *b, fl_constant_key *out) {
  for (uint32_t i = 0; i < b->n_slots; i++)
    if (!(m->stamps[i] = m->e->stamps[b->slots[i]])) return false;
  *out = (fl_constant_key){m->e->backend, b->recipe, b->recipe_bytes, m->stamps, b->n_slots};
  return true;
}

/* One that is kept, that is listed, or that nobody else uses and will be written to; else none yet. */
static fl_constant *choose_block(making *m, uint32_t i) {
  const fl_const_block *b = &m->e->plan->blocks.data[i];
  fl_constant *now = m->changed ? m->e->set->blocks[i] : NULL;
  fl_constant_key key;
  if (m->changed && !depends_on(m->changed, b->slots, b->n_slots)) return fl_constant_retain(now);
  fl_constant *found = key_of(m, b, &key) ? fl_constant_find(&key) : NULL;
  if (found) return found;
  m->made[i] = true;
  return now && fl_constant_withdraw(now) ? fl_constant_retain(now) : NULL;
}

static bool allocate_blocks(making *m) {
  const fl_plan *p = m->e->plan;
  size_t *bytes = fl_calloc(p->blocks.len + 1, sizeof *bytes);
  fl_constant **made = fl_calloc(p->blocks.len + 1, sizeof *made);
  uint32_t n = 0, at = 0;
  for (size_t i = 0; bytes && i < p->blocks.len; i++)
    if (!m->next->blocks[i]) bytes[n++] = p->blocks.data[i].bytes;
  /* Later on some will go before others: in a slab of its own each frees memory, unless parts of a slab can be given back. */
  const bool together = !m->changed || m->e->backend->discard;
  const bool ok = bytes && made && fl_constants_allocate(m->e->backend, bytes, n, together, made);
  for (size_t i = 0; ok && i < p->blocks.len; i++)
    if (!m->next->blocks[i]) m->next->blocks[i] = made[at++];
  fl_free(bytes);
  fl_free(made);
  return ok;
}

static fl_status choose_blocks(making *m) {
  for (uint32_t i = 0; i < m->next->n; i++) m->next->blocks[i] = choose_block(m, i);
  return allocate_blocks(m) ? NULL : fl_oom();
}

/* --- which steps --- */

static bool is_outdated(const making *m, const fl_step *s) {
  return !m->changed || depends_on(m->changed, m->e->plan->deps.data + s->deps, (size_t)s->n_deps);
}

static bool makes_what_is_wanted(const making *m, const fl_step *s) {
  const fl_plan *p = m->e->plan;
  const fl_operand *out = p->operands.data + s->operands + s->n_in;
  bool wanted = s->sink && is_outdated(m, s);
  for (int i = 0; i < s->n_out && !wanted; i++) {
    if (out[i].space != FL_SPACE_CONST) continue;
    uint32_t block = fl_plan_block_at(p, out[i].offset);
    wanted = block == FL_NO_BLOCK ? is_outdated(m, s) : m->made[block];
  }
  return wanted;
}

/* False if there is none. */
static bool choose_steps(making *m) {
  const fl_plan *p = m->e->plan;
  bool any = false;
  for (size_t i = p->init.len; i-- > 0;) {
    const fl_step *s = &p->init.data[i];
    m->needed[i] |= makes_what_is_wanted(m, s);
    any |= m->needed[i];
    for (int k = 0; m->needed[i] && k < s->n_needs; k++) m->needed[p->deps.data[s->needs + (uint32_t)k]] = true;
  }
  return any;
}

/* --- running them --- */

typedef struct pack {
  const fl_ready_step *step;
  int64_t first; /* of its pieces, counted through all packs that run at once */
} pack;

typedef struct init_walk {
  const making *m;
  fl_context *c;
  pack *packs;
  int64_t n_packs, n_pieces;
} init_walk;

static void run_pack(const fl_backend *backend, const fl_ready_step *s, int64_t begin, int64_t end) {
  const fl_step *p = s->step;
  const fl_tensor *in = s->args.in;
  fl_pack_args args = {p->problem, p->params, p->pack_operand, in, p->n_in > 1 ? in[1].data : NULL, s->args.out->data};
  backend->kernel(p->kernel)->pack(&args, begin, end);
}

static void run_pieces(void *arg, int64_t begin, int64_t end, int thread) {
  const init_walk *w = arg;
  int64_t lo = 0, hi = w->n_packs; /* packs[lo] has piece `begin` */
  while (hi - lo > 1) *(w->packs[(lo + hi) / 2].first <= begin ? &lo : &hi) = (lo + hi) / 2;
  for (; begin < end; lo++) {
    const pack *p = &w->packs[lo];
    int64_t last = p->first + p->step->step->pack_pieces;
    if (last > end) last = end;
    run_pack(w->m->e->backend, p->step, begin - p->first, last - p->first);
    begin = last;
  }
}

/* Packs do not read each other's results: neighbours run at once, all their pieces in parallel. */
static void finish_packs(init_walk *w) {
  fl_parallel(w->m->e->pool, w->n_pieces, 1, run_pieces, w);
  w->n_packs = w->n_pieces = 0;
}

static void walk_needed(void *arg) {
  init_walk *w = arg;
  for (size_t i = 0; i < w->c->n_steps; i++) {
    fl_ready_step *s = &w->c->steps[i];
    if (!w->m->needed[i]) continue;
    if (s->step->kind == FL_STEP_PACK) {
      w->packs[w->n_packs++] = (pack){s, w->n_pieces};
      w->n_pieces += s->step->pack_pieces;
      continue;
    }
    finish_packs(w);
    fl_step_run(w->m->e->backend, s);
  }
  finish_packs(w);
}

/* The engine's first run begins to be prepared before there are constants: what it compiles takes longer than they do. */
static fl_status run_work(fl_engine *e, fl_context *c, const fl_work *work, bool first) {
  if (first && e->backend->prepare) {
    e->backend->prepare(c->queue, work);
    FL_TRY(fl_engine_prepare_run(e));
  }
  return e->backend->run(c->queue, work);
}

static fl_status run_needed(making *m) {
  fl_engine *e = m->e;
  const fl_plan *p = e->plan;
  init_walk w = {.m = m, .packs = fl_malloc((p->init.len + 1) * sizeof *w.packs)};
  fl_status s =
      w.packs ? fl_context_create(e, p->init.data, p->init.len, p->init_arena_bytes, m->next, &w.c) : fl_oom();
  if (!s) {
    fl_context_patch_weights(e, w.c);
    fl_work work = {.walk = walk_needed, .arg = &w, .changed = true, .wait = true};
    s = run_work(e, w.c, &work, !m->changed);
  }
  fl_free(w.packs);
  fl_context_destroy(e, w.c);
  return s;
}

/* --- all of it --- */

/* Others may have made the same meanwhile: theirs is taken then. Contexts may see the set already, so that it stays as it
 * is; NULL when out of memory, which leaves blocks unlisted. */
static fl_constant_set *publish(const making *m) {
  const fl_plan *p = m->e->plan;
  fl_constant_set *out = fl_constant_set_new(m->next->n);
  fl_constant_key key;
  for (uint32_t i = 0; out && i < out->n; i++) {
    out->blocks[i] = fl_constant_retain(m->next->blocks[i]);
    if (m->made[i] && key_of(m, &p->blocks.data[i], &key)) out->blocks[i] = fl_constant_publish(out->blocks[i], &key);
  }
  return out;
}

static bool same_set(const fl_constant_set *a, const fl_constant_set *b) {
  return a && !memcmp(a->blocks, b->blocks, b->n * sizeof *b->blocks);
}

static fl_status make(making *m) {
  fl_engine *e = m->e;
  FL_TRY(choose_blocks(m));
  if (!m->changed) fl_engine_use(e, m->next); /* the run is prepared with it */
  if (choose_steps(m)) FL_TRY(run_needed(m));
  fl_constant_set *final = publish(m);
  if (!final) final = fl_constant_set_retain(m->next);
  if (!same_set(e->set, final)) fl_engine_use(e, final);
  fl_constant_set_release(final);
  return NULL;
}

static fl_status make_changed(fl_engine *e, const bool *changed) {
  const fl_plan *p = e->plan;
  making m = {.e = e, .changed = changed, .next = fl_constant_set_new((uint32_t)p->blocks.len)};
  m.stamps = fl_malloc((p->n_weights + 1) * sizeof *m.stamps);
  m.made = fl_calloc(p->blocks.len + 1, sizeof *m.made);
  m.needed = fl_calloc(p->init.len + 1, sizeof *m.needed);
  fl_status s = m.next && m.stamps && m.made && m.needed ? make(&m) : fl_oom();
  fl_constant_set_release(m.next);
  fl_free(m.stamps);
  fl_free(m.made);
  fl_free(m.needed);
  return s;
}

static fl_status make_constants(fl_engine *e) {
  const fl_plan *p = e->plan;
  if (!e->local) e->local = e->backend->allocate(e->backend, p->local_bytes);
  if (!e->local) return fl_oom();
  if (p->literal_bytes) FL_TRY(e->backend->upload(e->backend, e->local, p->literals, p->literal_bytes));
  FL_TRY(make_changed(e, NULL));
  atomic_store_explicit(&e->ready, true, memory_order_release);
  return NULL;
}

fl_status fl_engine_make_ready(fl_engine *e) {
  if (atomic_load_explicit(&e->ready, memory_order_acquire)) return NULL;
  fl_stage before = fl_stage_enter(FL_STAGE_weights);
  pthread_mutex_lock(&e->updates);
  fl_status s = atomic_load_explicit(&e->ready, memory_order_relaxed) ? NULL : make_constants(e);
  pthread_mutex_unlock(&e->updates);
  fl_stage_enter(before);
  return s;
}

static fl_status update(fl_engine *e, const uint32_t *slots, const void *const *data, const uint64_t *stamps, int n) {
  const fl_plan *p = e->plan;
  bool *changed = fl_calloc(p->n_weights + 1u, sizeof *changed);
  if (!changed) return fl_oom();
  for (int i = 0; i < n; i++) {
    if (slots[i] >= p->n_weights) continue;
    changed[slots[i]] = true;
    e->stamps[slots[i]] = stamps ? stamps[i] : 0;
    atomic_store_explicit(&e->weights[slots[i]], data[i], memory_order_relaxed);
  }
  atomic_fetch_add_explicit(&e->weight_version, 1, memory_order_release);
  fl_status s = atomic_load_explicit(&e->ready, memory_order_relaxed) ? make_changed(e, changed) : NULL;
  fl_free(changed);
  return s;
}

fl_status fl_engine_update(fl_engine *e, const uint32_t *slots, const void *const *data, const uint64_t *stamps,
                           int n) {
  pthread_mutex_lock(&e->updates);
  fl_status s = update(e, slots, data, stamps, n);
  pthread_mutex_unlock(&e->updates);
  return s;
}
