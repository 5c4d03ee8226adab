#include "base/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"

#define CACHE_LINE 64

enum {
  IDLE_SPIN_US = 20,  /* of a worker between two calls */
  HELD_SPIN_US = 500, /* of a worker while a plan is running */
  JOIN_SPIN_US = 30,  /* of the caller waiting for the last chunks of others */
  CHUNKS_PER_THREAD = 4
};

/* state: number of workers inside the job, and two flags. */
enum { OPEN = 1 << 16, CALLER_SLEEPS = 1 << 17, INSIDE = OPEN - 1 };

typedef struct range {
  _Alignas(CACHE_LINE) _Atomic int64_t next; /* in units of `grain` */
  int64_t end, chunk;
} range;

typedef struct worker {
  struct fl_pool *pool;
  int thread;
  pthread_t handle;
} worker;

struct fl_pool {
  int threads, started;
  unsigned generation;
  worker *workers; /* threads - 1 of them; worker i is thread i + 1 */
  range *ranges;   /* one for each thread */
  fl_range_fn fn;  /* the job: written by the caller while the state is 0, read by those inside */
  void *arg;
  int64_t count, grain;
  _Alignas(CACHE_LINE) _Atomic int busy; /* some thread is the caller */
  _Alignas(CACHE_LINE) _Atomic uint32_t state;
  _Alignas(CACHE_LINE) _Atomic uint32_t epoch; /* changes when there may be work */
  _Atomic int sleepers, holds;
  _Atomic bool stop;
};

/* Threads do not survive fork: pools of an older generation run on their caller. */
static _Atomic unsigned process_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static void in_child(void) { atomic_fetch_add(&process_generation, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

static _Thread_local struct {
  const fl_pool *pool;
  int thread;
} inside;

static inline void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* --- chunks --- */

static void run_chunks_of(fl_pool *p, range *r, int thread) {
  for (;;) {
    int64_t first = atomic_fetch_add_explicit(&r->next, r->chunk, memory_order_relaxed);
    if (first >= r->end) return;
    int64_t last = first + r->chunk < r->end ? first + r->chunk : r->end;
    int64_t begin = first * p->grain, end = last * p->grain;
    p->fn(p->arg, begin, end < p->count ? end : p->count, thread);
  }
}

/* A thread starts on its own range, the same one in every step of equal shape, so that what it wrote is still in its
 * cache; then it helps the others, so that nobody waits for a thread that has no core. */
static void run_chunks(fl_pool *p, int thread) {
  inside.pool = p;
  inside.thread = thread;
  for (int i = 0; i < p->threads; i++) {
    range *r = &p->ranges[(thread + i) % p->threads];
    if (atomic_load_explicit(&r->next, memory_order_relaxed) < r->end) run_chunks_of(p, r, thread);
  }
  inside.pool = NULL;
}

static void share_out(fl_pool *p, int64_t units) {
  int64_t begin = 0;
  for (int t = 0; t < p->threads; t++) {
    int64_t n = units / p->threads + (t < units % p->threads);
    atomic_store_explicit(&p->ranges[t].next, begin, memory_order_relaxed);
    p->ranges[t].end = begin += n;
    p->ranges[t].chunk = n > CHUNKS_PER_THREAD ? n / CHUNKS_PER_THREAD : 1;
  }
}

/* --- workers --- */

/* Returns when the epoch is no longer `seen`: spins first, then sleeps. */
static void wait_for_epoch(fl_pool *p, uint32_t seen) {
  int64_t began = 0;
  for (unsigned i = 1; atomic_load_explicit(&p->epoch, memory_order_acquire) == seen; i++) {
    pause_core();
    if (i % 64) continue;
    int64_t now = now_us();
    if (!began) began = now;
    int budget = atomic_load_explicit(&p->holds, memory_order_relaxed) ? HELD_SPIN_US : IDLE_SPIN_US;
    if (now - began < budget) continue;
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->epoch) == seen) futex_wait(&p->epoch, seen);
    atomic_fetch_sub(&p->sleepers, 1);
  }
}

static bool enter(fl_pool *p) {
  uint32_t s = atomic_load_explicit(&p->state, memory_order_relaxed);
  while (s & OPEN)
    if (atomic_compare_exchange_weak_explicit(&p->state, &s, s + 1, memory_order_acquire, memory_order_relaxed))
      return true;
  return false;
}

static void leave(fl_pool *p) {
  uint32_t s = atomic_fetch_sub_explicit(&p->state, 1, memory_order_release) - 1;
  if (!(s & INSIDE) && (s & CALLER_SLEEPS)) futex_wake(&p->state, 1);
}

static void *work(void *arg) {
  worker *w = arg;
  fl_pool *p = w->pool;
  uint32_t seen = 0;
  for (;;) {
    wait_for_epoch(p, seen);
    seen = atomic_load_explicit(&p->epoch, memory_order_acquire);
    if (atomic_load_explicit(&p->stop, memory_order_relaxed)) return NULL;
    if (!enter(p)) continue;
    run_chunks(p, w->thread);
    leave(p);
  }
}

static void announce(fl_pool *p) {
  atomic_fetch_add(&p->epoch, 1);
  if (atomic_load(&p->sleepers)) futex_wake(&p->epoch, INT_MAX);
}

/* --- the caller --- */

/* Nobody enters any more; waits for those inside. */
static void close_job(fl_pool *p) {
  uint32_t s = atomic_fetch_and_explicit(&p->state, ~(uint32_t)OPEN, memory_order_acquire);
  int64_t began = 0;
  for (unsigned i = 1; s & INSIDE; i++, s = atomic_load_explicit(&p->state, memory_order_acquire)) {
    pause_core();
    if (i % 64) continue;
    int64_t now = now_us();
    if (!began) began = now;
    if (now - began < JOIN_SPIN_US) continue;
    s = atomic_fetch_or_explicit(&p->state, CALLER_SLEEPS, memory_order_acquire) | CALLER_SLEEPS;
    if (s & INSIDE) futex_wait(&p->state, s);
  }
  atomic_store_explicit(&p->state, 0, memory_order_relaxed);
}

static bool is_of_this_process(const fl_pool *p) {
  return p->generation == atomic_load_explicit(&process_generation, memory_order_relaxed);
}

void fl_parallel(fl_pool *p, int64_t count, int64_t grain, fl_range_fn fn, void *arg) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  int64_t units = (count - 1) / grain + 1;
  if (p && inside.pool == p) {
    fn(arg, 0, count, inside.thread);
    return;
  }
  if (!p || p->threads == 1 || units == 1 || !is_of_this_process(p) ||
      atomic_exchange_explicit(&p->busy, 1, memory_order_acquire)) {
    fn(arg, 0, count, 0);
    return;
  }
  p->fn = fn;
  p->arg = arg;
  p->count = count;
  p->grain = grain;
  share_out(p, units);
  atomic_store_explicit(&p->state, OPEN, memory_order_release);
  announce(p);
  run_chunks(p, 0);
  close_job(p);
  atomic_store_explicit(&p->busy, 0, memory_order_release);
}

void fl_pool_hold(fl_pool *p) {
  if (!p || p->threads == 1 || !is_of_this_process(p)) return;
  atomic_fetch_add_explicit(&p->holds, 1, memory_order_relaxed);
  if (atomic_load_explicit(&p->sleepers, memory_order_relaxed)) announce(p);
}

void fl_pool_release(fl_pool *p) {
  if (!p || p->threads == 1 || !is_of_this_process(p)) return;
  atomic_fetch_sub_explicit(&p->holds, 1, memory_order_relaxed);
}

/* --- life --- */

static int start_workers(fl_pool *p) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the host's own threads */
  int error = 0;
  for (; p->started < p->threads - 1 && !error; p->started += !error) {
    worker *w = &p->workers[p->started];
    *w = (worker){.pool = p, .thread = p->started + 1};
    error = pthread_create(&w->handle, NULL, work, w);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return error;
}

static fl_status alloc_pool(int threads, fl_pool **out) {
  fl_pool *p = fl_malloc_aligned(sizeof *p);
  if (!p) return fl_oom();
  *p = (fl_pool){.threads = threads, .generation = atomic_load(&process_generation)};
  p->workers = fl_calloc((size_t)threads, sizeof *p->workers);
  p->ranges = fl_malloc_aligned((size_t)threads * sizeof *p->ranges);
  *out = p;
  if (p->workers && p->ranges) return NULL;
  fl_pool_destroy(p);
  return fl_oom();
}

fl_status fl_pool_create(int threads, fl_pool **out_pool) {
  if (threads < 1 || threads >= INSIDE)
    return fl_fail(FL_INVALID, "pool: %d threads; must be 1 to %d", threads, INSIDE - 1);
  pthread_once(&fork_once, watch_forks);
  fl_pool *p = NULL;
  FL_TRY(alloc_pool(threads, &p));
  int error = start_workers(p);
  if (error) {
    int started = p->started;
    fl_pool_destroy(p);
    return fl_fail(FL_OOM, "pool: thread %d of %d could not be started (error %d)", started + 1, threads, error);
  }
  *out_pool = p;
  return NULL;
}

void fl_pool_destroy(fl_pool *p) {
  if (!p) return;
  if (is_of_this_process(p) && p->started) {
    atomic_store(&p->stop, true);
    announce(p);
    for (int i = 0; i < p->started; i++) pthread_join(p->workers[i].handle, NULL);
  }
  fl_free_aligned(p->ranges);
  fl_free(p->workers);
  fl_free_aligned(p);
}

int fl_pool_threads(const fl_pool *p) { return p ? p->threads : 1; }
