/* Where a plan is computed: the one table through which planner and engine reach kernels and their memory.
 *
 * A backend offers kernels, memory, and queues that run programs made of them. Kernels of every backend have the same form
 * (kernel.h); what differs is when `run` computes: at once on the CPU, later on a device, where it puts work on a queue. */
#ifndef FL_CPU_BACKEND_H
#define FL_CPU_BACKEND_H

#include "cpu/kernel.h"

/* Runs programs one after another, for one execution context. Backends put their own state behind it. */
typedef struct fl_queue {
  fl_pool *pool; /* borrowed */
  int *fault;    /* see fl_run_args, in the backend's memory */
} fl_queue;

typedef struct fl_transfer {
  void *to;
  const void *from;
  size_t bytes;
} fl_transfer;

enum { FL_QUEUE_VARIANTS = 5 };

typedef struct fl_work {
  void (*walk)(void *arg); /* calls `run` of each step's kernel; may be called more than once, or not at all when
                              the queue still knows the program */
  void *arg;
  int variant;  /* which of the queue's programs, below FL_QUEUE_VARIANTS: they differ in addresses. 0 if not staged */
  bool changed; /* steps or addresses differ from those of the variant's last work */
  bool wait;    /* return only when all is computed */
  const fl_transfer *before, *after; /* between the caller's tensors and their stages; only if the backend is staged */
  int n_before, n_after;
} fl_work;

/* What a queue holds of the backend's memory, for reports. */
typedef struct fl_queue_memory {
  size_t workspace_bytes;
  int programs;         /* recorded */
  size_t program_bytes; /* that they take, as far as it can be seen */
} fl_queue_memory;

typedef struct fl_backend {
  const char *name;
  const void *device; /* the backend's own: which of several devices of a kind. NULL on the CPU */
  bool immediate;     /* memory is the host's, and a kernel has computed when `run` returns: it can be timed */
  bool staged; /* programs are recorded with their addresses: the caller's tensors are copied to and from stages */

  /* As fl_kernel_candidates, fl_kernel_why_not and fl_kernel_get. */
  int (*candidates)(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max);
  const char *(*why_not)(const fl_problem *problem);
  const fl_kernel *(*kernel)(int id);
  void (*copy)(const fl_run_args *args); /* strided, in[0] to out[0], of the same type */

  void *(*allocate)(const struct fl_backend *b, size_t bytes); /* 64-byte aligned; NULL when out of memory */
  void (*release)(const struct fl_backend *b, void *block);    /* NULL allowed */
  /* A part of a block is not needed any more, though the block is. NULL: there is nothing to gain. */
  void (*discard)(const struct fl_backend *b, void *part, size_t bytes);
  /* Host to backend; done on return. */
  FL_MUST_USE fl_status (*upload)(const struct fl_backend *b, void *dst, const void *src, size_t bytes);

  FL_MUST_USE fl_status (*queue_create)(const struct fl_backend *b, fl_pool *pool, fl_queue **out);
  void (*queue_destroy)(fl_queue *q); /* takes; NULL allowed */
  void (*settle)(fl_queue *q);        /* returns when its work is done: memory that it uses may go. NULL if immediate */
  /* Begins what the work's first run takes long for (compiling), and waits for none of it; nothing is computed. NULL: there is
   * nothing to begin. */
  void (*prepare)(fl_queue *q, const fl_work *work);
  /* FL_INVALID where eager would raise. A backend that is not immediate tells that at the latest in the next call. */
  FL_MUST_USE fl_status (*run)(fl_queue *q, const fl_work *work);
  /* Of a staged backend, NULL allowed: the program of this variant is not needed any more. Returns when its work is done. */
  void (*forget)(fl_queue *q, int variant);
  void (*memory)(const fl_queue *q, fl_queue_memory *out); /* NULL: nothing to tell */
  /* Of a backend that is not immediate: runs the work once with marks, and adds the microseconds from mark i to mark i + 1
   * to us[i], for n parts. The walk calls `mark` with 0 to n. */
  FL_MUST_USE fl_status (*profile)(fl_queue *q, const fl_work *work, int n, double *us);
  void (*mark)(fl_queue *q, int i);
} fl_backend;

extern const fl_backend fl_backend_cpu;

#endif
