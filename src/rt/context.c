#include <string.h>

#include "rt/engine_impl.h"

/* --- making one --- */

void fl_context_destroy(const fl_engine *e, fl_context *c) {
  if (!c) return;
  e->backend->queue_destroy(c->queue); /* waits for its work */
  fl_programs_destroy(&c->programs);
  fl_free(c->steps);
  fl_free(c->tensors);
  fl_free(c->inputs.data);
  e->backend->release(e->backend, c->arena);
  fl_constant_set_release(c->set);
  fl_free(c);
}

static fl_patches *patches_of(fl_context *c, fl_space space) {
  return space == FL_SPACE_INPUT    ? &c->inputs
         : space == FL_SPACE_OUTPUT ? &c->outputs
         : space == FL_SPACE_WEIGHT ? &c->weights
                                    : &c->blocks;
}

/* Tensors of all steps lie one after the other; `next` is the first free one. */
static void ready_operands(const fl_engine *e, fl_context *c, const fl_operand *o, int n, uint32_t *next) {
  for (int i = 0; i < n; i++, o++) {
    fl_tensor *t = &c->tensors[*next];
    uint32_t block = o->space == FL_SPACE_CONST ? fl_plan_block_at(e->plan, o->offset) : FL_NO_BLOCK;
    fl_patch patch = {*next, o->index, o->offset};
    t->type = o->type;
    memcpy(t->strides, o->strides, sizeof t->strides);
    ++*next;
    if (o->space == FL_SPACE_NONE) continue;
    if (o->space == FL_SPACE_ARENA)
      t->data = c->arena + o->offset;
    else if (o->space == FL_SPACE_CONST && block == FL_NO_BLOCK)
      t->data = e->local + o->offset;
    else {
      fl_patches *list = patches_of(c, o->space);
      if (block != FL_NO_BLOCK) {
        patch.index = block;
        patch.offset -= e->plan->blocks.data[block].offset;
      }
      list->data[list->len++] = patch;
    }
  }
}

static void ready_program(const fl_engine *e, fl_context *c, const fl_step *steps, size_t n) {
  uint32_t next = 0;
  for (size_t i = 0; i < n; i++) {
    const fl_step *s = &steps[i];
    fl_ready_step *r = &c->steps[i];
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

/* Patches of the four kinds share one block: as many as there are operands of each kind. */
static fl_status alloc_tables(const fl_engine *e, fl_context *c, const fl_step *steps, size_t n) {
  size_t tensors = 0, count[FL_SPACE_ARENA + 1] = {0};
  for (size_t i = 0; i < n; i++)
    for (int k = 0; k < steps[i].n_in + steps[i].n_out; k++, tensors++)
      count[e->plan->operands.data[steps[i].operands + (uint32_t)k].space]++;
  size_t patches = count[FL_SPACE_INPUT] + count[FL_SPACE_OUTPUT] + count[FL_SPACE_WEIGHT] + count[FL_SPACE_CONST];
  c->steps = fl_calloc(n + 1, sizeof *c->steps);
  c->tensors = fl_calloc(tensors + 1, sizeof *c->tensors);
  c->inputs.data = fl_calloc(patches + 1, sizeof *c->inputs.data);
  if (!c->steps || !c->tensors || !c->inputs.data) return fl_oom();
  c->outputs.data = c->inputs.data + count[FL_SPACE_INPUT];
  c->weights.data = c->outputs.data + count[FL_SPACE_OUTPUT];
  c->blocks.data = c->weights.data + count[FL_SPACE_WEIGHT];
  return NULL;
}

/* --- what changes: blocks and weights --- */

/* Takes the set. True if a block has another place. */
static bool patch_blocks(const fl_engine *e, fl_context *c, fl_constant_set *set) {
  bool moved = false;
  if (c->set && e->backend->settle) e->backend->settle(c->queue);
  fl_constant_set_release(c->set);
  c->set = set;
  for (size_t i = 0; i < c->blocks.len; i++) {
    const fl_patch *p = &c->blocks.data[i];
    char *to = fl_constant_data(set->blocks[p->index]) + p->offset;
    moved |= c->tensors[p->tensor].data != to;
    c->tensors[p->tensor].data = to;
  }
  return moved;
}

bool fl_context_patch_weights(fl_engine *e, fl_context *c) {
  uint64_t version = atomic_load_explicit(&e->weight_version, memory_order_acquire);
  if (c->weights_seen == version) return false;
  c->weights_seen = version;
  bool moved = false;
  for (size_t i = 0; i < c->weights.len; i++) {
    const fl_patch *p = &c->weights.data[i];
    const char *at = atomic_load_explicit(&e->weights[p->index], memory_order_relaxed);
    char *to = (char *)(uintptr_t)at + p->offset;
    moved |= c->tensors[p->tensor].data != to;
    c->tensors[p->tensor].data = to;
  }
  return moved;
}

static fl_status fill_context(const fl_engine *e, fl_context *c, const fl_step *steps, size_t n, size_t arena_bytes,
                              fl_constant_set *set) {
  c->n_steps = n;
  c->fresh = true;
  FL_TRY(e->backend->queue_create(e->backend, e->pool, &c->queue));
  c->arena = e->backend->allocate(e->backend, arena_bytes);
  if (!c->arena) return fl_oom();
  FL_TRY(alloc_tables(e, c, steps, n));
  ready_program(e, c, steps, n);
  patch_blocks(e, c, fl_constant_set_retain(set));
  if (!e->backend->staged || steps != e->plan->run.data) return NULL;
  return fl_programs_init(&c->programs, e->plan);
}

fl_status fl_context_create(const fl_engine *e, const fl_step *steps, size_t n, size_t arena_bytes,
                            fl_constant_set *set, fl_context **out) {
  fl_context *c = fl_calloc(1, sizeof *c);
  if (!c) return fl_oom();
  fl_status s = fill_context(e, c, steps, n, arena_bytes, set);
  if (s)
    fl_context_destroy(e, c);
  else
    *out = c;
  return s;
}

/* --- the free ones --- */

fl_status fl_context_borrow(fl_engine *e, fl_context **out) {
  pthread_mutex_lock(&e->lock);
  fl_context *c = e->free;
  fl_constant_set *set = c && c->set == e->set ? NULL : fl_constant_set_retain(e->set);
  if (c) e->free = c->next;
  pthread_mutex_unlock(&e->lock);
  fl_status s = NULL;
  if (!c) {
    s = fl_context_create(e, e->plan->run.data, e->plan->run.len, e->plan->arena_bytes, set, &c);
    fl_constant_set_release(set);
    set = NULL;
  }
  if (s) return s;
  bool moved = set && patch_blocks(e, c, set);
  if (fl_context_patch_weights(e, c) || moved) {
    c->fresh = true;
    fl_programs_refresh(&c->programs);
  }
  *out = c;
  return NULL;
}

/* It goes on holding no set that the engine has left behind, where its work is known to be done. */
void fl_context_give_back(fl_engine *e, fl_context *c) {
  fl_constant_set *old = NULL;
  pthread_mutex_lock(&e->lock);
  if (c->set != e->set && e->backend->immediate) {
    old = c->set;
    c->set = NULL;
  }
  c->next = e->free;
  e->free = c;
  pthread_mutex_unlock(&e->lock);
  fl_constant_set_release(old);
}

void fl_engine_use(fl_engine *e, fl_constant_set *set) {
  pthread_mutex_lock(&e->lock);
  fl_constant_set *old = e->set;
  e->set = fl_constant_set_retain(set);
  for (fl_context *c = e->free; c; c = c->next) {
    if (c->set == set || !c->set) continue;
    if (e->backend->settle) e->backend->settle(c->queue);
    fl_constant_set_release(c->set);
    c->set = NULL;
  }
  pthread_mutex_unlock(&e->lock);
  fl_constant_set_release(old);
}
