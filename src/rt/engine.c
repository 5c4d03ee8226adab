#include "rt/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
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

typedef struct context {
  struct context *next; /* in the engine's list of free ones */
  ready_step *steps;
  size_t n_steps;
  fl_tensor *tensors; /* in the order of the steps' operands */
  patches inputs, outputs, weights;
  char *arena;
  uint64_t weights_seen; /* engine's weight version that the tensors hold */
  int fault;
} context;

struct fl_engine {
  fl_plan *plan;
  fl_pool *pool;
  char *constants;
  _Atomic(const void *) *weights;
  uint32_t n_weights;
  _Atomic uint64_t weight_version;
  pthread_mutex_t lock;    /* of the free list */
  pthread_mutex_t updates; /* held by whoever runs the init program */
  context *free;
};

/* --- big blocks --- */

/* Huge pages make first use faster and spare TLB misses; the kernel may decline. */
static char *new_block(size_t bytes) {
  enum { HUGE_PAGE = 2 << 20 };
  char *p = fl_malloc_aligned(bytes ? bytes : 64);
  if (p && bytes >= 2 * HUGE_PAGE) {
    uintptr_t begin = ((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)p + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
  }
  return p;
}

/* --- contexts --- */

static void context_destroy(context *c) {
  if (!c) return;
  fl_free(c->steps);
  fl_free(c->tensors);
  fl_free(c->inputs.data);
  fl_free_aligned(c->arena);
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
    r->run = s->kind == FL_STEP_KERNEL ? fl_kernel_get(s->kernel)->run : NULL;
    r->args =
        (fl_run_args){.params = s->params,
                      .in = &c->tensors[next],
                      .out = &c->tensors[next + (uint32_t)s->n_in],
                      .scratch = s->kind == FL_STEP_KERNEL && s->scratch != SIZE_MAX ? c->arena + s->scratch : NULL,
                      .pool = e->pool,
                      .fault = &c->fault};
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

static fl_status context_create(const fl_engine *e, const fl_step *steps, size_t n, size_t arena_bytes, context **out) {
  context *c = fl_calloc(1, sizeof *c);
  if (!c) return fl_oom();
  c->n_steps = n;
  c->arena = new_block(arena_bytes);
  fl_status s = c->arena ? alloc_tables(e, c, steps, n) : fl_oom();
  if (s) {
    context_destroy(c);
    return s;
  }
  ready_program(e, c, steps, n);
  *out = c;
  return NULL;
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

static void patch_weights(fl_engine *e, context *c) {
  uint64_t version = atomic_load_explicit(&e->weight_version, memory_order_acquire);
  if (c->weights_seen == version) return;
  c->weights_seen = version;
  for (size_t i = 0; i < c->weights.len; i++) {
    const patch *p = &c->weights.data[i];
    const char *at = atomic_load_explicit(&e->weights[p->index], memory_order_relaxed);
    c->tensors[p->tensor].data = (char *)(uintptr_t)at + p->offset;
  }
}

static void patch_call(context *c, const void *const *inputs, void *const *outputs) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)(uintptr_t)inputs[p->index] + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const patch *p = &c->outputs.data[i];
    c->tensors[p->tensor].data = (char *)outputs[p->index] + p->offset;
  }
}

static inline void run_step(const ready_step *s) {
  if (s->run)
    s->run(&s->args);
  else if (s->step->kind == FL_STEP_COPY)
    fl_copy_strided(s->args.out, s->args.in, s->args.pool);
  else
    fl_kernel_get(s->step->kernel)
        ->pack(s->step->problem, s->args.params, s->step->pack_operand, s->args.in, s->args.out->data);
}

static fl_status verdict(const context *c) {
  if (!__atomic_load_n(&c->fault, __ATOMIC_RELAXED)) return NULL;
  return fl_fail(FL_INVALID, "engine: an index was out of range, or an integer was divided by zero");
}

fl_status fl_engine_run(fl_engine *e, const void *const *inputs, void *const *outputs) {
  context *c;
  FL_TRY(borrow_context(e, &c));
  patch_weights(e, c);
  patch_call(c, inputs, outputs);
  c->fault = 0;
  fl_pool_hold(e->pool);
  for (size_t i = 0; i < c->n_steps; i++) run_step(&c->steps[i]);
  fl_pool_release(e->pool);
  fl_status s = verdict(c);
  give_back_context(e, c);
  return s;
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

fl_status fl_engine_profile(fl_engine *e, const void *const *inputs, void *const *outputs, double *us) {
  context *c;
  FL_TRY(borrow_context(e, &c));
  patch_weights(e, c);
  patch_call(c, inputs, outputs);
  c->fault = 0;
  fl_pool_hold(e->pool);
  double before = now_us();
  for (size_t i = 0; i < c->n_steps; i++) {
    run_step(&c->steps[i]);
    double after = now_us();
    us[i] += after - before;
    before = after;
  }
  fl_pool_release(e->pool);
  fl_status s = verdict(c);
  give_back_context(e, c);
  return s;
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

static void run_packs(void *arg, int64_t begin, int64_t end, int thread) {
  ready_step *const *packs = arg;
  for (; begin < end; begin++) run_step(packs[begin]);
}

/* Packs do not read each other's results, and each is the work of one thread: neighbours run at once. */
static void run_selected(const fl_engine *e, context *c, const bool *changed, ready_step **packs) {
  int64_t n_packs = 0;
  for (size_t i = 0; i < c->n_steps; i++) {
    ready_step *s = &c->steps[i];
    if (!is_selected(e, s->step, changed)) continue;
    if (s->step->kind == FL_STEP_PACK) {
      packs[n_packs++] = s;
      continue;
    }
    fl_parallel(e->pool, n_packs, 1, run_packs, packs);
    n_packs = 0;
    run_step(s);
  }
  fl_parallel(e->pool, n_packs, 1, run_packs, packs);
}

/* Runs the init steps that depend on a changed slot, or all of them when `changed` is NULL. */
static fl_status run_init(fl_engine *e, const bool *changed) {
  const fl_plan *p = e->plan;
  bool any = false;
  for (size_t i = 0; i < p->init.len && !any; i++) any = is_selected(e, &p->init.data[i], changed);
  if (!any) return NULL;
  context *c = NULL;
  ready_step **packs = fl_malloc(p->init.len * sizeof *packs);
  fl_status s = packs ? context_create(e, p->init.data, p->init.len, p->init_arena_bytes, &c) : fl_oom();
  if (!s) {
    patch_weights(e, c);
    run_selected(e, c, changed, packs);
    s = verdict(c);
  }
  fl_free(packs);
  context_destroy(c);
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
  e->constants = new_block(p->const_bytes);
  e->weights = fl_calloc(p->n_weights + 1u, sizeof *e->weights);
  if (!e->constants || !e->weights) return fl_oom();
  for (uint32_t i = 0; i < p->n_weights; i++) atomic_init(&e->weights[i], weights[i]);
  if (p->literal_bytes) memcpy(e->constants, p->literals, p->literal_bytes);
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
    context_destroy(c);
  }
  pthread_mutex_destroy(&e->lock);
  pthread_mutex_destroy(&e->updates);
  fl_free_aligned(e->constants);
  fl_free(e->weights);
  fl_plan_destroy(e->plan);
  fl_free(e);
}

const fl_plan *fl_engine_plan(const fl_engine *e) { return e->plan; }
