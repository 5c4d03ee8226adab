#include "rt/engine_impl.h"

#include <string.h>
#include <time.h>

/* --- running --- */

/* Addresses of the program's inputs and outputs. */
static void patch_addresses(fl_context *c, const void *const *inputs, void *const *outputs) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const fl_patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)(uintptr_t)inputs[p->index] + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const fl_patch *p = &c->outputs.data[i];
    c->tensors[p->tensor].data = (char *)outputs[p->index] + p->offset;
  }
}

static void patch_stages(fl_context *c) {
  for (size_t i = 0; i < c->inputs.len; i++) {
    const fl_patch *p = &c->inputs.data[i];
    c->tensors[p->tensor].data = (char *)fl_programs_stage(&c->programs, (int)p->index) + p->offset;
  }
  for (size_t i = 0; i < c->outputs.len; i++) {
    const fl_patch *p = &c->outputs.data[i];
    int stage = c->programs.plan->n_inputs + (int)p->index;
    c->tensors[p->tensor].data = (char *)fl_programs_stage(&c->programs, stage) + p->offset;
  }
}

enum { NOWHERE = 64 };

/* As aligned as stages are, of which there are none yet: for a walk that computes nothing. */
static void patch_nowhere(fl_context *c) {
  for (size_t i = 0; i < c->inputs.len + c->outputs.len; i++) {
    const fl_patch *p = i < c->inputs.len ? &c->inputs.data[i] : &c->outputs.data[i - c->inputs.len];
    c->tensors[p->tensor].data = (char *)(uintptr_t)NOWHERE + p->offset;
  }
}

typedef struct walk {
  const fl_backend *backend;
  fl_context *c;
  double *us; /* of profiling */
} walk;

static void walk_steps(void *arg) {
  const walk *w = arg;
  for (size_t i = 0; i < w->c->n_steps; i++) fl_step_run(w->backend, &w->c->steps[i]);
}

/* Where the call finds its inputs and outputs, in which program; and whether that must be walked. */
static fl_status address(fl_context *c, const void *const *inputs, void *const *outputs, bool marked, fl_work *work,
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

static fl_status run(fl_engine *e, const void *const *inputs, void *const *outputs, void (*steps)(void *), double *us) {
  fl_context *c;
  FL_TRY(fl_engine_make_ready(e));
  FL_TRY(fl_context_borrow(e, &c));
  walk w = {e->backend, c, us};
  bool marked = us && !e->backend->immediate, *fresh;
  fl_work work = {.walk = steps, .arg = &w};
  fl_status s = address(c, inputs, outputs, marked, &work, &fresh);
  if (!s) {
    *fresh = true;
    s = marked ? e->backend->profile(c->queue, &work, (int)c->n_steps, us) : e->backend->run(c->queue, &work);
    *fresh = s != NULL || marked; /* a queue's own program is not the one that was profiled */
  }
  fl_context_give_back(e, c);
  return s;
}

fl_status fl_engine_prepare_run(fl_engine *e) {
  fl_context *c;
  FL_TRY(fl_context_borrow(e, &c));
  walk w = {e->backend, c, NULL};
  fl_work work = {.walk = walk_steps, .arg = &w, .changed = true};
  patch_nowhere(c);
  e->backend->prepare(c->queue, &work);
  fl_context_give_back(e, c);
  return NULL;
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
    fl_step_run(w->backend, &w->c->steps[i]);
    double after = now_us();
    w->us[i] += after - before;
    before = after;
  }
}

static void walk_marked(void *arg) {
  const walk *w = arg;
  w->backend->mark(w->c->queue, 0);
  for (size_t i = 0; i < w->c->n_steps; i++) {
    fl_step_run(w->backend, &w->c->steps[i]);
    w->backend->mark(w->c->queue, (int)i + 1);
  }
}

fl_status fl_engine_profile(fl_engine *e, const void *const *inputs, void *const *outputs, double *us) {
  return run(e, inputs, outputs, e->backend->immediate ? walk_timed : walk_marked, us);
}

/* --- life --- */

static fl_status fill_engine(fl_engine *e, const void *const *weights, const uint64_t *stamps, uint32_t n_weights) {
  const fl_plan *p = e->plan;
  if (n_weights < p->n_weights)
    return fl_fail(FL_INVALID, "engine: %u weights given, the plan uses %u slots", n_weights, p->n_weights);
  e->weights = fl_calloc(p->n_weights + 1u, sizeof *e->weights);
  e->stamps = fl_calloc(p->n_weights + 1u, sizeof *e->stamps);
  if (!e->weights || !e->stamps) return fl_oom();
  for (uint32_t i = 0; i < p->n_weights; i++) atomic_init(&e->weights[i], weights[i]);
  for (uint32_t i = 0; i < p->n_weights && stamps; i++) e->stamps[i] = stamps[i];
  atomic_init(&e->weight_version, 1);
  return e->backend->immediate ? NULL : fl_engine_make_ready(e);
}

fl_status fl_engine_create(fl_plan *plan, const void *const *weights, const uint64_t *stamps, uint32_t n_weights,
                           fl_pool *pool, fl_engine **out) {
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
  fl_status s = fill_engine(e, weights, stamps, n_weights);
  if (s)
    fl_engine_destroy(e);
  else
    *out = e;
  return s;
}

void fl_engine_destroy(fl_engine *e) {
  if (!e) return;
  for (fl_context *c = e->free, *next; c; c = next) {
    next = c->next;
    fl_context_destroy(e, c);
  }
  pthread_mutex_destroy(&e->lock);
  pthread_mutex_destroy(&e->updates);
  e->backend->release(e->backend, e->local);
  fl_constant_set_release(e->set);
  fl_free(e->weights);
  fl_free(e->stamps);
  fl_plan_destroy(e->plan);
  fl_free(e);
}

static void add_memory(const fl_engine *e, const fl_context *c, fl_engine_memory *m) {
  fl_queue_memory q = {0};
  if (e->backend->memory) e->backend->memory(c->queue, &q);
  m->contexts++;
  m->programs += q.programs;
  m->arenas += e->plan->arena_bytes;
  m->stages += fl_programs_bytes(&c->programs);
  m->workspaces += q.workspace_bytes;
  m->programs_bytes += q.program_bytes;
}

/* What is there, and not counted in this report yet. */
static void add_constants(const fl_engine *e, const fl_constant_set *set, uint64_t report, fl_engine_memory *m) {
  const fl_plan *p = e->plan;
  for (int kind = 0; kind < FL_CONST_KINDS; kind++) m->constants[kind] = p->local_kind_bytes[kind];
  for (size_t i = 0; i < p->blocks.len; i++) {
    const fl_const_block *b = &p->blocks.data[i];
    *(fl_constant_count(set->blocks[i], report) ? &m->constants[b->kind] : &m->shared) += b->bytes;
  }
}

fl_engine_memory fl_engine_memory_of(fl_engine *e, uint64_t report) {
  fl_engine_memory m = {0};
  pthread_mutex_lock(&e->lock);
  if (atomic_load_explicit(&e->ready, memory_order_acquire)) add_constants(e, e->set, report, &m);
  for (const fl_context *c = e->free; c; c = c->next) add_memory(e, c, &m);
  pthread_mutex_unlock(&e->lock);
  return m;
}

const fl_plan *fl_engine_plan(const fl_engine *e) { return e->plan; }
