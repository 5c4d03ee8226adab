/* The engine's own files: contexts, which run a program (context.c), and the init program (init.c). */
#ifndef FL_RT_ENGINE_IMPL_H
#define FL_RT_ENGINE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "rt/constants.h"
#include "rt/engine.h"
#include "rt/programs.h"

/* A program made ready: each step with its tensors, addresses filled in but for those the caller gives. */
typedef struct fl_ready_step {
  void (*run)(const fl_run_args *args);
  const fl_step *step;
  fl_run_args args;
} fl_ready_step;

typedef struct fl_patch { /* tensors[tensor].data = table[index] + offset */
  uint32_t tensor, index;
  size_t offset;
} fl_patch;

typedef struct fl_patches {
  fl_patch *data;
  size_t len;
} fl_patches;

typedef struct fl_context {
  struct fl_context *next; /* in the engine's list of free ones */
  fl_ready_step *steps;
  size_t n_steps;
  fl_tensor *tensors; /* in the order of the steps' operands */
  fl_patches inputs, outputs, weights, blocks;
  char *arena;
  fl_queue *queue;
  fl_constant_set *set;  /* whose blocks the tensors hold; NULL: of none */
  uint64_t weights_seen; /* engine's weight version that the tensors hold */
  bool fresh;            /* never run; of a backend that records no programs */
  fl_programs programs;  /* of a staged backend */
} fl_context;

struct fl_engine {
  fl_plan *plan;
  const fl_backend *backend;
  fl_pool *pool;
  char *local; /* constants that are not in blocks */
  _Atomic(const void *) *weights;
  uint64_t *stamps; /* of the weights, under `updates` */
  uint32_t n_weights;
  _Atomic uint64_t weight_version;
  atomic_bool ready;       /* constants hold what the init program makes */
  pthread_mutex_t lock;    /* of the two below */
  fl_context *free;        /* contexts */
  fl_constant_set *set;    /* that runs are to use; NULL before there is one */
  pthread_mutex_t updates; /* held by whoever runs the init program */
};

/* --- context.c --- */

/* One of a program's steps, with the addresses that are known; blocks are those of `set`, retained. */
FL_MUST_USE fl_status fl_context_create(const fl_engine *e, const fl_step *steps, size_t n, size_t arena_bytes,
                                        fl_constant_set *set, fl_context **out);
void fl_context_destroy(const fl_engine *e, fl_context *c); /* takes; NULL allowed. Waits for its work */
/* One that nobody uses, or a new one, with the engine's weights and blocks as they are now. */
FL_MUST_USE fl_status fl_context_borrow(fl_engine *e, fl_context **out);
void fl_context_give_back(fl_engine *e, fl_context *c);
/* Addresses of weights as they are now: true if one is another. */
bool fl_context_patch_weights(fl_engine *e, fl_context *c);
/* From now on contexts are to use this set (retained), and free ones let go of the one before. */
void fl_engine_use(fl_engine *e, fl_constant_set *set);

/* What is not a pack. */
static inline void fl_step_run(const fl_backend *backend, const fl_ready_step *s) {
  if (s->run)
    s->run(&s->args);
  else
    backend->copy(&s->args);
}

/* --- init.c --- */

/* The constants are there: made now, if nobody has made them. */
FL_MUST_USE fl_status fl_engine_make_ready(fl_engine *e);
/* The program is about to be run for the first time, with addresses of its own that are of no use: engine.c. */
FL_MUST_USE fl_status fl_engine_prepare_run(fl_engine *e);

#endif
