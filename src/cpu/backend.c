#include "cpu/backend.h"

#include <string.h>
#include <sys/mman.h>

typedef struct cpu_queue {
  fl_queue base;
  int fault;
} cpu_queue;

/* Huge pages make first use faster and spare TLB misses; the kernel may decline. */
static void *allocate(const fl_backend *b, size_t bytes) {
  enum { HUGE_PAGE = 2 << 20 };
  char *p = fl_malloc_aligned(bytes ? bytes : 64);
  if (p && bytes >= 2 * HUGE_PAGE) {
    uintptr_t begin = ((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)p + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
  }
  return p;
}

static void release(const fl_backend *b, void *block) { fl_free_aligned(block); }

/* Whole pages of it go back to the system; whoever reads them again finds zeros. */
static void discard(const fl_backend *b, void *part, size_t bytes) {
  enum { PAGE = 4096 };
  uintptr_t begin = ((uintptr_t)part + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
  uintptr_t end = ((uintptr_t)part + bytes) & ~(uintptr_t)(PAGE - 1);
  if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static fl_status upload(const fl_backend *b, void *dst, const void *src, size_t bytes) {
  memcpy(dst, src, bytes);
  return NULL;
}

static void copy(const fl_run_args *a) { fl_copy_strided(a->out, a->in, a->pool); }

static fl_status queue_create(const fl_backend *b, fl_pool *pool, fl_queue **out) {
  cpu_queue *q = fl_calloc(1, sizeof *q);
  if (!q) return fl_oom();
  q->base = (fl_queue){.pool = pool, .fault = &q->fault};
  *out = &q->base;
  return NULL;
}

static void queue_destroy(fl_queue *q) { fl_free(q); }

static fl_status run(fl_queue *base, const fl_work *work) {
  cpu_queue *q = (cpu_queue *)base;
  q->fault = 0;
  fl_pool_hold(base->pool);
  work->walk(work->arg);
  fl_pool_release(base->pool);
  if (!__atomic_load_n(&q->fault, __ATOMIC_RELAXED)) return NULL;
  return fl_fail(FL_INVALID,
                 "engine: an index was out of range, an integer was divided by zero, or a number was not finite in a "
                 "convolution that mixes neighbours");
}

const fl_backend fl_backend_cpu = {.name = "cpu",
                                   .immediate = true,
                                   .candidates = fl_kernel_candidates,
                                   .why_not = fl_kernel_why_not,
                                   .kernel = fl_kernel_get,
                                   .copy = copy,
                                   .allocate = allocate,
                                   .release = release,
                                   .discard = discard,
                                   .upload = upload,
                                   .queue_create = queue_create,
                                   .queue_destroy = queue_destroy,
                                   .run = run};
