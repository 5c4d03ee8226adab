#include "rt/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

/* A program made ready: each step with its tensors, addresses filled in but for those the caller gives. */
typedef struct ready_step {
  void (*run)(const fl_run_args *args);
  const fl_step *step;
  fl_run_args args;
} ready_step;

typedef struct patch { /* tensors[tensor].data = table[index] + offset */
  uint32_t tensor, index;
  size_t offset;
} patch;

typedef struct patches {
  patch *data;
  size_t len;
} patches;

/* A program of a staged backend that was recorded with the caller's own addresses, for when they come again. */
typedef struct direct {
  const void **at; /* of inputs, then outputs; NULL = free */
  uint64_t used;
  bool fresh; /* to be recorded, or recorded anew since weights moved */
} direct;

enum { SEEN = 8, MAX_RECORDINGS = 16, DIRECT_ALIGN = 64 };

typedef struct context {
  struct context *next; /* in the engine's list of free ones */
  ready_step *steps;
  size_t n_steps;
  fl_tensor *tensors; /* in the order of the steps' operands */
  patches inputs, outputs, weights;
  char *arena;
  fl_queue *queue;
  uint64_t weights_seen; /* engine's weight version that the tensors hold */
  bool fresh;            /* never run */
  fl_transfer
      *transfers; /* of a staged backend: inputs, then outputs; the block is the side that the caller does not give */
  int n_stages;
  direct variants[FL_QUEUE_VARIANTS]; /* the first is unused: that program reads and writes the stages */
  uint64_t seen[SEEN], calls;         /* addresses of the last calls that used the stages, as hashes */
  int recordings;
} context;

struct fl_engine {
  fl_plan *plan;
  const fl_backend *backend;
  fl_pool *pool;
  char *constants;
  _Atomic(const void *) *weights;
  uint32_t n_weights;
  _Atomic uint64_t weight_version;
  pthread_mutex_t lock;    /* of the free list */
  pthread_mutex_t updates; /* held by whoever runs the init program */
  context *free;
};

/* --- contexts --- */

static void *stage_of(const context *c, const fl_plan *p, int i) {
  return i < p->n_inputs ? c->transfers[i].to : (void *)(uintptr_t)c->transfers[i].from;
}

static void context_destroy(const fl_engine *e, context *c) {
  if (!c) return;
  e->backend->queue_destroy(c->queue); /* waits for its work */
  for (int i = 0; i < c->n_stages; i++) e->backend->release(e->backend, stage_of(c, e->plan, i));
  for (int i = 0; i < FL_QUEUE_VARIANTS; i++) fl_free(c->variants[i].at);
  fl_free(c->transfers);
  fl_free(c->steps);
  fl_free(c->tensors);
  fl_free(c->inputs.data);
  e->backend->release(e->backend, c->arena);
  fl_free(c);
}

static patches *patches_of(context *c, fl_space space) {
  return space == FL_SPACE_INPUT    ? &c->inputs
         : space == FL_SPACE_OUTPUT ? &c->outputs
         : space == FL_SPACE_WEIGHT ? &c->weights
                                    : NULL;
}

/* Tensors of all steps lie one after the other; `next` is the first free one. */
static void ready_operands(const fl_engine *e, context *c, const fl_operand *o, int n, uint32_t *next) {
  for (int i = 0; i < n; i++, o++) {
    fl_tensor *t = &c->tensors[*next];
    t->type = o->type;
    memcpy(t->strides, o->strides, sizeof t->strides);
    if (o->space == FL_SPACE_CONST)
      t->data = e->constants + o->offset;
    else if (o->space == FL_SPACE_ARENA)
      t->data = c->arena + o->offset;
    patches *list = patches_of(c, o->space);
    if (list) list->data[list->len++] = (patch){*next, o->index, o->offset};
    ++*next;
  }
}

static void ready_program(const fl_engine *e, context *c, const fl_step *steps, size_t n) {
  uint32_t next = 0;
  for (size_t i = 0; i < n; i++) {
    const fl_step *s = &steps[i];
    ready_step *r = &c->steps[i];
    r->step = s;
    r->run = s->kind == FL_STEP_KERNEL ? e->backend->kernel(s->kernel)->run : NULL;
    r->args =
        (fl_run_args){.params = s->params,
                      .in = &c->tensors[next],
                      .out = &c->tensors[next + (uint32_t)s->n_in],
                      .scratch = s->kind == FL_STEP_KERNEL && s->scratch != SIZE_MAX ? c->arena + s->scratch : NULL,
                      .spare = c->arena + s->spare,
                      .spare_bytes = s->spare_bytes,
                      .pool = e->pool,
                      .fault = c->queue->fault,
                      .queue = c->queue};
    ready_operands(e, c, e->plan->operands.data + s->operands, s->n_in + s->n_out, &next);
  }
}

/* Patches of the three kinds share one block: as many as there are operands of each kind. */
static fl_status alloc_tables(const fl_engine *e, context *c, const fl_step *steps, size_t n) {
  size_t tensors = 0, count[FL_SPACE_ARENA + 1] = {0};
  for (size_t i = 0; i < n; i++)
    for (int k = 0; k < steps[i].n_in + steps[i].n_out; k++, tensors++)
      count[e->plan->operands.data[steps[i].operands + (uint32_t)k].space]++;
  c->steps = fl_calloc(n + 1, sizeof *c->steps);
  c->tensors = fl_calloc(tensors + 1, sizeof *c->tensors);
  c->inputs.data =
      fl_calloc(count[FL_SPACE_INPUT] + count[FL_SPACE_OUTPUT] + count[FL_SPACE_WEIGHT] + 1, sizeof *c->inputs.data);
  if (!c->steps || !c->tensors || !c->inputs.data) return fl_oom();
  c->outputs.data = c->inputs.data + count[FL_SPACE_INPUT];
  c->weights.data = c->outputs.data + count[FL_SPACE_OUTPUT];
  return NULL;
}

static size_t span_bytes(const fl_operand *o) {
  int64_t last = 0;
  if (fl_type_numel(&o->type) == 0) return 0;
  for (int i = 0; i < o->type.rank; i++) last += (o->type.dims[i] - 1) * o->strides[i];
  return (size_t)(last + 1) * fl_dtype_size(o->type.dtype);
}

/* Blocks that stand for the caller's tensors, whose places are then the same in every call. */
static fl_status make_stages(const fl_engine *e, context *c) {
  const fl_plan *p = e->plan;
  int n = p->n_inputs + p->n_outputs;
  c->transfers = fl_calloc((size_t)n + 1, sizeof *c->transfers);
  if (!c->transfers) return fl_oom();
  for (int i = 0; i < n; i++) {
    bool in = i < p->n_inputs;
    size_t bytes = span_bytes(in ? &p->inputs[i] : &p->outputs[i - p->n_inputs]);
    void *block = e->backend->allocate(e->backend, bytes);
    if (!block) return fl_oom();
    c->transfers[i] = in ? (fl_transfer){.to = block, .bytes = bytes} : (fl_transfer){.from = block, .bytes = bytes};
    c->n_stages = i + 1;
  }
  return NULL;
}

static fl_status fill_context(const fl_engine *e, context *c, const fl_step *steps, size_t n, size_t arena_bytes) {
  c->n_steps = n;
  c->fresh = true;
  FL_TRY(e->backend->queue_create(e->backend, e->pool, &c->queue));
  c->arena = e->backend->allocate(e->backend, arena_bytes);
  if (!c->arena) return fl_oom();
  FL_TRY(alloc_tables(e, c, steps, n));
  ready_program(e, c, steps, n);
  if (!e->backend->staged || steps != e->plan->run.data) return NULL;
  return make_stages(e, c);
}

static fl_status context_create(const fl_engine *e, const fl_step *steps, size_t n, size_t arena_bytes, context **out) {
  context *c = fl_calloc(1, sizeof *c);
  if (!c) return fl_oom();
  fl_status s = fill_context(e, c, steps, n, arena_bytes);
  if (s)
    context_destroy(e, c);
  else
    *out = c;
  return s;
}

static fl_status borrow_context(fl_engine *e, context **out) {
  pthread_mutex_lock(&e->lock);
  context *c = e->free;
  if (c) e->free = c->next;
  pthread_mutex_unlock(&e->lock);
  *out = c;
  return c ? NULL : context_create(e, e->plan->run.data, e->plan->run.len, e->plan->arena_bytes, out);
}

static void give_back_context(fl_engine *e, context *c) {
  pthread_mutex_lock(&e->lock);
  c->next = e->free;
  e->free = c;
  pthread_mutex_unlock(&e->lock);
}

/* --- running --- */

/* True if a weight has another place. */
static bool patch_weights(fl_engine *e, context *c) {
  uint64_t version = atomic_load_explicit(&e->weight_version, memory_order_acquire);
  if (c->weights_seen == version) return false;
  c->weights_seen = version;
  bool moved = false;
  for (size_t i = 0; i < c->weights.len; i++) {
    const patch *p = &c->weights.data[i];
    const char *at = atomic_load_explicit(&e->weights[p->index], memory_order_relaxed);
    char *to = (char *)(uintptr_t)at + p->offset;
    moved |= c->tensors[p->tensor].data != to;
    c->tensors[p->tensor].data = to;
  }
  return moved;
}

/* Addresses of the program's inputs and outputs. */
static void patch_addresses(context *c, const void *const *inputs, void *const *outputs) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)(uintptr_t)inputs[p->index] + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const patch *p = &c->outputs.data[i];
    c->tensors[p->tensor].data = (char *)outputs[p->index] + p->offset;
  }
}

static void patch_stages(const fl_plan *plan, context *c) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)stage_of(c, plan, (int)p->index) + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const patch *p = &c->outputs.data[i];
    c->tensors[p->tensor].data = (char *)stage_of(c, plan, plan->n_inputs + (int)p->index) + p->offset;
  }
}

/* --- programs for the caller's own addresses ---
 * A recording costs about as much as a thousand copies, so that one is made for addresses that have come before only, and
 * not for ever new ones. Programs may count on the alignment that stages have. */

static const void *address_of(const fl_plan *plan, const void *const *inputs, void *const *outputs, int i) {
  return i < plan->n_inputs ? inputs[i] : outputs[i - plan->n_inputs];
}

static int find_direct(const context *c, const fl_plan *plan, const void *const *inputs, void *const *outputs) {
  for (int v = 1; v < FL_QUEUE_VARIANTS; v++) {
    int i = 0;
    if (!c->variants[v].at) continue;
    while (i < c->n_stages && c->variants[v].at[i] == address_of(plan, inputs, outputs, i)) i++;
    if (i == c->n_stages) return v;
  }
  return 0;
}

/* False for what must go through the stages: memory that is not aligned as they are. */
static bool hash_addresses(const context *c, const fl_plan *plan, const void *const *inputs, void *const *outputs,
                           uint64_t *out) {
  *out = 0xcbf29ce484222325;
  for (int i = 0; i < c->n_stages; i++) {
    uintptr_t at = (uintptr_t)address_of(plan, inputs, outputs, i);
    if (at % DIRECT_ALIGN) return false;
    *out = (*out ^ at) * 0x100000001b3;
  }
  return true;
}

static bool was_seen(context *c, uint64_t hash) {
  for (int i = 0; i < SEEN; i++)
    if (c->seen[i] == hash) return true;
  c->seen[c->calls % SEEN] = hash;
  return false;
}

/* The program least used, for these addresses. 0 when out of memory. */
static int take_direct(context *c, const fl_plan *plan, const void *const *inputs, void *const *outputs) {
  int v = 1;
  for (int i = 2; i < FL_QUEUE_VARIANTS; i++)
    if (c->variants[i].used < c->variants[v].used) v = i;
  direct *d = &c->variants[v];
  if (!d->at) d->at = fl_malloc((size_t)c->n_stages * sizeof *d->at);
  if (!d->at) return 0;
  for (int i = 0; i < c->n_stages; i++) d->at[i] = address_of(plan, inputs, outputs, i);
  d->fresh = true;
  c->recordings++;
  return v;
}

static int choose_variant(context *c, const fl_plan *plan, const void *const *inputs, void *const *outputs) {
  uint64_t hash;
  if (!c->n_stages) return 0;
  c->calls++;
  int v = find_direct(c, plan, inputs, outputs);
  if (!v && c->recordings < MAX_RECORDINGS && hash_addresses(c, plan, inputs, outputs, &hash) && was_seen(c, hash))
    v = take_direct(c, plan, inputs, outputs);
  c->variants[v].used = c->calls;
  return v;
}

/* Makes the context's tensors, if the program is to be recorded, and the work's copies fit the call. */
static void address(const fl_plan *plan, context *c, const void *const *inputs, void *const *outputs, fl_work *work) {
  if (!c->n_stages || (work->variant && work->changed))
    patch_addresses(c, inputs, outputs);
  else if (work->changed)
    patch_stages(plan, c);
  if (!c->n_stages || work->variant) return;
  for (int i = 0; i < plan->n_inputs; i++) c->transfers[i].from = inputs[i];
  for (int i = 0; i < plan->n_outputs; i++) c->transfers[plan->n_inputs + i].to = outputs[i];
  work->before = c->transfers;
  work->n_before = plan->n_inputs;
  work->after = c->transfers + plan->n_inputs;
  work->n_after = plan->n_outputs;
}

/* What is not a pack. */
static inline void run_step(const fl_backend *backend, const ready_step *s) {
  if (s->run)
    s->run(&s->args);
  else
    backend->copy(&s->args);
}

typedef struct walk {
  const fl_backend *backend;
  context *c;
  double *us; /* of profiling */
} walk;

static void walk_steps(void *arg) {
  const walk *w = arg;
  for (size_t i = 0; i < w->c->n_steps; i++) run_step(w->backend, &w->c->steps[i]);
}

static bool *fresh_of(context *c, int variant) { return variant ? &c->variants[variant].fresh : &c->fresh; }

static fl_status run(fl_engine *e, const void *const *inputs, void *const *outputs, void (*steps)(void *), double *us) {
  context *c;
  FL_TRY(borrow_context(e, &c));
  walk w = {e->backend, c, us};
  bool marked = us && !e->backend->immediate;
  fl_work work = {.walk = steps, .arg = &w, .variant = marked ? 0 : choose_variant(c, e->plan, inputs, outputs)};
  if (patch_weights(e, c))
    for (int v = 0; v < FL_QUEUE_VARIANTS; v++) *fresh_of(c, v) = true;
  bool *fresh = fresh_of(c, work.variant);
  work.changed = *fresh || marked;
  address(e->plan, c, inputs, outputs, &work);
  *fresh = true;
  fl_status s = marked ? e->backend->profile(c->queue, &work, (int)c->n_steps, us) : e->backend->run(c->queue, &work);
  *fresh = s != NULL || marked; /* a queue's own program is not the one that was profiled */
  give_back_context(e, c);
  return s;
}

fl_status fl_engine_run(fl_engine *e, const void *const *inputs, void *const *outputs) {
  return run(e, inputs, outputs, walk_steps, NULL);
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void walk_timed(void *arg) {
  const walk *w = arg;
  double before = now_us();
  for (size_t i = 0; i < w->c->n_steps; i++) {
    run_step(w->backend, &w->c->steps[i]);
    double after = now_us();
    w->us[i] += after - before;
    before = after;
  }
}

static void walk_marked(void *arg) {
  const walk *w = arg;
  w->backend->mark(w->c->queue, 0);
  for (size_t i = 0; i < w->c->n_steps; i++) {
    run_step(w->backend, &w->c->steps[i]);
    w->backend->mark(w->c->queue, (int)i + 1);
  }
}

fl_status fl_engine_profile(fl_engine *e, const void *const *inputs, void *const *outputs, double *us) {
  return run(e, inputs, outputs, e->backend->immediate ? walk_timed : walk_marked, us);
}

/* --- the init program --- */

static bool depends_on(const fl_plan *p, const fl_step *s, const bool *changed) {
  for (int i = 0; i < s->n_deps; i++)
    if (changed[p->deps.data[s->deps + (uint32_t)i]]) return true;
  return false;
}

static bool is_selected(const fl_engine *e, const fl_step *s, const bool *changed) {
  return !changed || depends_on(e->plan, s, changed);
}

typedef struct pack {
  const ready_step *step;
  int64_t first; /* of its pieces, counted through all packs that run at once */
} pack;

typedef struct init_walk {
  const fl_engine *e;
  context *c;
  const bool *changed;
  pack *packs;
  int64_t n_packs, n_pieces;
} init_walk;

static void run_pack(const fl_backend *backend, const ready_step *s, int64_t begin, int64_t end) {
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
    run_pack(w->e->backend, p->step, begin - p->first, last - p->first);
    begin = last;
  }
}

/* Packs do not read each other's results: neighbours run at once, all their pieces in parallel. */
static void finish_packs(init_walk *w) {
  fl_parallel(w->e->pool, w->n_pieces, 1, run_pieces, w);
  w->n_packs = w->n_pieces = 0;
}

static void walk_selected(void *arg) {
  init_walk *w = arg;
  for (size_t i = 0; i < w->c->n_steps; i++) {
    ready_step *s = &w->c->steps[i];
    if (!is_selected(w->e, s->step, w->changed)) continue;
    if (s->step->kind == FL_STEP_PACK) {
      w->packs[w->n_packs++] = (pack){s, w->n_pieces};
      w->n_pieces += s->step->pack_pieces;
      continue;
    }
    finish_packs(w);
    run_step(w->e->backend, s);
  }
  finish_packs(w);
}

/* Runs the init steps that depend on a changed slot, or all of them when `changed` is NULL. */
static fl_status run_init(fl_engine *e, const bool *changed) {
  const fl_plan *p = e->plan;
  bool any = false;
  for (size_t i = 0; i < p->init.len && !any; i++) any = is_selected(e, &p->init.data[i], changed);
  if (!any) return NULL;
  init_walk w = {.e = e, .changed = changed, .packs = fl_malloc(p->init.len * sizeof *w.packs)};
  fl_status s = w.packs ? context_create(e, p->init.data, p->init.len, p->init_arena_bytes, &w.c) : fl_oom();
  if (!s) {
    patch_weights(e, w.c);
    fl_work work = {.walk = walk_selected, .arg = &w, .changed = true, .wait = true};
    s = e->backend->run(w.c->queue, &work);
  }
  fl_free(w.packs);
  context_destroy(e, w.c);
  return s;
}

static fl_status update(fl_engine *e, const uint32_t *slots, const void *const *data, int n) {
  const fl_plan *p = e->plan;
  bool *changed = fl_calloc(p->n_weights + 1u, sizeof *changed);
  if (!changed) return fl_oom();
  for (int i = 0; i < n; i++) {
    if (slots[i] >= p->n_weights) continue;
    changed[slots[i]] = true;
    atomic_store_explicit(&e->weights[slots[i]], data[i], memory_order_relaxed);
  }
  atomic_fetch_add_explicit(&e->weight_version, 1, memory_order_release);
  fl_status s = run_init(e, changed);
  fl_free(changed);
  return s;
}

fl_status fl_engine_update(fl_engine *e, const uint32_t *slots, const void *const *data, int n) {
  pthread_mutex_lock(&e->updates);
  fl_status s = update(e, slots, data, n);
  pthread_mutex_unlock(&e->updates);
  return s;
}

/* --- life --- */

static fl_status fill_engine(fl_engine *e, const void *const *weights, uint32_t n_weights) {
  const fl_plan *p = e->plan;
  if (n_weights < p->n_weights)
    return fl_fail(FL_INVALID, "engine: %u weights given, the plan uses %u slots", n_weights, p->n_weights);
  e->constants = e->backend->allocate(e->backend, p->const_bytes);
  e->weights = fl_calloc(p->n_weights + 1u, sizeof *e->weights);
  if (!e->constants || !e->weights) return fl_oom();
  for (uint32_t i = 0; i < p->n_weights; i++) atomic_init(&e->weights[i], weights[i]);
  if (p->literal_bytes) FL_TRY(e->backend->upload(e->backend, e->constants, p->literals, p->literal_bytes));
  atomic_init(&e->weight_version, 1);
  return run_init(e, NULL);
}

fl_status fl_engine_create(fl_plan *plan, const void *const *weights, uint32_t n_weights, fl_pool *pool,
                           fl_engine **out) {
  fl_engine *e = fl_calloc(1, sizeof *e);
  if (!e) {
    fl_plan_destroy(plan);
    return fl_oom();
  }
  e->plan = plan;
  e->backend = plan->backend;
  e->pool = pool;
  pthread_mutex_init(&e->lock, NULL);
  pthread_mutex_init(&e->updates, NULL);
  fl_status s = fill_engine(e, weights, n_weights);
  if (s)
    fl_engine_destroy(e);
  else
    *out = e;
  return s;
}

void fl_engine_destroy(fl_engine *e) {
  if (!e) return;
  for (context *c = e->free, *next; c; c = next) {
    next = c->next;
    context_destroy(e, c);
  }
  pthread_mutex_destroy(&e->lock);
  pthread_mutex_destroy(&e->updates);
  e->backend->release(e->backend, e->constants);
  fl_free(e->weights);
  fl_plan_destroy(e->plan);
  fl_free(e);
}

const fl_plan *fl_engine_plan(const fl_engine *e) { return e->plan; }
