#include "rt/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/stages.h"
#include "rt/programs.h"

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

typedef struct context {
  struct context *next; /* in the engine's list of free ones */
  ready_step *steps;
  size_t n_steps;
  fl_tensor *tensors; /* in the order of the steps' operands */
  patches inputs, outputs, weights;
  char *arena;
  fl_queue *queue;
  uint64_t weights_seen; /* engine's weight version that the tensors hold */
  bool fresh;            /* never run; of a backend that records no programs */
  fl_programs programs;  /* of a staged backend */
} context;

struct fl_engine {
  fl_plan *plan;
  const fl_backend *backend;
  fl_pool *pool;
  char *constants;
  _Atomic(const void *) *weights;
  uint32_t n_weights;
  _Atomic uint64_t weight_version;
  atomic_bool ready;       /* constants hold what the init program makes */
  pthread_mutex_t lock;    /* of the free list */
  pthread_mutex_t updates; /* held by whoever runs the init program */
  context *free;
};

/* --- contexts --- */

static void context_destroy(const fl_engine *e, context *c) {
  if (!c) return;
  e->backend->queue_destroy(c->queue); /* waits for its work */
  fl_programs_destroy(&c->programs);
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

static fl_status fill_context(const fl_engine *e, context *c, const fl_step *steps, size_t n, size_t arena_bytes) {
  c->n_steps = n;
  c->fresh = true;
  FL_TRY(e->backend->queue_create(e->backend, e->pool, &c->queue));
  c->arena = e->backend->allocate(e->backend, arena_bytes);
  if (!c->arena) return fl_oom();
  FL_TRY(alloc_tables(e, c, steps, n));
  ready_program(e, c, steps, n);
  if (!e->backend->staged || steps != e->plan->run.data) return NULL;
  return fl_programs_init(&c->programs, e->plan);
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

static void patch_stages(context *c) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)fl_programs_stage(&c->programs, (int)p->index) + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const patch *p = &c->outputs.data[i];
    int stage = c->programs.plan->n_inputs + (int)p->index;
    c->tensors[p->tensor].data = (char *)fl_programs_stage(&c->programs, stage) + p->offset;
  }
}

enum { NOWHERE = 64 };

/* As aligned as stages are, of which there are none yet: for a walk that computes nothing. */
static void patch_nowhere(context *c) {
  for (size_t i = 0; i < c->inputs.len + c->outputs.len; i++) {
    const patch *p = i < c->inputs.len ? &c->inputs.data[i] : &c->outputs.data[i - c->inputs.len];
    c->tensors[p->tensor].data = (char *)(uintptr_t)NOWHERE + p->offset;
  }
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

/* Where the call finds its inputs and outputs, in which program; and whether that must be walked. */
static fl_status address(context *c, const void *const *inputs, void *const *outputs, bool marked, fl_work *work,
                         bool **out_fresh) {
  *out_fresh = &c->fresh;
  work->changed = c->fresh || marked;
  if (!c->programs.plan) {
    patch_addresses(c, inputs, outputs);
    return NULL;
  }
  fl_program *program;
  if (marked && fl_programs_aligned(&c->programs, inputs, outputs)) {
    patch_addresses(c, inputs, outputs); /* recorded for this once */
    return NULL;
  }
  FL_TRY(fl_programs_choose(&c->programs, c->queue, inputs, outputs, work, &program));
  *out_fresh = &program->fresh;
  work->changed = program->fresh || marked;
  if (!work->changed) return NULL;
  if (work->variant)
    patch_addresses(c, inputs, outputs);
  else
    patch_stages(c);
  return NULL;
}

static fl_status make_ready(fl_engine *e);

static fl_status run(fl_engine *e, const void *const *inputs, void *const *outputs, void (*steps)(void *), double *us) {
  context *c;
  FL_TRY(make_ready(e));
  FL_TRY(borrow_context(e, &c));
  walk w = {e->backend, c, us};
  bool marked = us && !e->backend->immediate, *fresh;
  fl_work work = {.walk = steps, .arg = &w};
  if (patch_weights(e, c)) {
    c->fresh = true;
    fl_programs_refresh(&c->programs);
  }
  fl_status s = address(c, inputs, outputs, marked, &work, &fresh);
  if (!s) {
    *fresh = true;
    s = marked ? e->backend->profile(c->queue, &work, (int)c->n_steps, us) : e->backend->run(c->queue, &work);
    *fresh = s != NULL || marked; /* a queue's own program is not the one that was profiled */
  }
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

/* The engine's first run begins to be prepared before there are constants: what it compiles takes longer than they do. */
static fl_status prepare_run(fl_engine *e) {
  context *c;
  FL_TRY(borrow_context(e, &c));
  walk w = {e->backend, c, NULL};
  fl_work work = {.walk = walk_steps, .arg = &w, .changed = true};
  patch_weights(e, c);
  patch_nowhere(c);
  e->backend->prepare(c->queue, &work);
  give_back_context(e, c);
  return NULL;
}

static fl_status run_work(fl_engine *e, context *c, const fl_work *work, bool first) {
  if (first && e->backend->prepare) {
    e->backend->prepare(c->queue, work);
    FL_TRY(prepare_run(e));
  }
  return e->backend->run(c->queue, work);
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
    s = run_work(e, w.c, &work, !changed);
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
  fl_status s = atomic_load_explicit(&e->ready, memory_order_relaxed) ? run_init(e, changed) : NULL;
  fl_free(changed);
  return s;
}

fl_status fl_engine_update(fl_engine *e, const uint32_t *slots, const void *const *data, int n) {
  pthread_mutex_lock(&e->updates);
  fl_status s = update(e, slots, data, n);
  pthread_mutex_unlock(&e->updates);
  return s;
}

/* --- the constants, made when they are first needed --- */

static fl_status make_constants(fl_engine *e) {
  const fl_plan *p = e->plan;
  if (!e->constants) e->constants = e->backend->allocate(e->backend, p->const_bytes);
  if (!e->constants) return fl_oom();
  if (p->literal_bytes) FL_TRY(e->backend->upload(e->backend, e->constants, p->literals, p->literal_bytes));
  FL_TRY(run_init(e, NULL));
  atomic_store_explicit(&e->ready, true, memory_order_release);
  return NULL;
}

static fl_status make_ready(fl_engine *e) {
  if (atomic_load_explicit(&e->ready, memory_order_acquire)) return NULL;
  fl_stage before = fl_stage_enter(FL_STAGE_weights);
  pthread_mutex_lock(&e->updates);
  fl_status s = atomic_load_explicit(&e->ready, memory_order_relaxed) ? NULL : make_constants(e);
  pthread_mutex_unlock(&e->updates);
  fl_stage_enter(before);
  return s;
}

/* --- life --- */

static fl_status fill_engine(fl_engine *e, const void *const *weights, uint32_t n_weights) {
  const fl_plan *p = e->plan;
  if (n_weights < p->n_weights)
    return fl_fail(FL_INVALID, "engine: %u weights given, the plan uses %u slots", n_weights, p->n_weights);
  e->weights = fl_calloc(p->n_weights + 1u, sizeof *e->weights);
  if (!e->weights) return fl_oom();
  for (uint32_t i = 0; i < p->n_weights; i++) atomic_init(&e->weights[i], weights[i]);
  atomic_init(&e->weight_version, 1);
  return e->backend->immediate ? NULL : make_ready(e);
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

static void add_memory(const fl_engine *e, const context *c, fl_engine_memory *m) {
  fl_queue_memory q = {0};
  if (e->backend->memory) e->backend->memory(c->queue, &q);
  m->contexts++;
  m->programs += q.programs;
  m->arenas += e->plan->arena_bytes;
  m->stages += fl_programs_bytes(&c->programs);
  m->workspaces += q.workspace_bytes;
  m->programs_bytes += q.program_bytes;
}

fl_engine_memory fl_engine_memory_of(fl_engine *e) {
  fl_engine_memory m = {.constants = e->constants ? e->plan->const_bytes : 0};
  pthread_mutex_lock(&e->lock);
  for (const context *c = e->free; c; c = c->next) add_memory(e, c, &m);
  pthread_mutex_unlock(&e->lock);
  return m;
}

const fl_plan *fl_engine_plan(const fl_engine *e) { return e->plan; }
