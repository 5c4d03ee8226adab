/* One pool of threads for all CPU work.
 *
 * The caller is always one of the workers. Workers that have nothing to do spin for a few microseconds,
 * so that the steps of one plan follow each other quickly, and then sleep on a futex: between two calls
 * no core is kept busy, and PyTorch's own threads are not disturbed.
 * Default size: min(affinity mask, cgroup quota rounded up, FRAMELIFT_NUM_THREADS if set). */
#ifndef FL_BASE_POOL_H
#define FL_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct fl_pool fl_pool;

/* Threads this process may use: see above. At least 1. */
int fl_pool_default_threads(void);

/* New pool of `threads` workers, the caller included (1 = no thread is started). */
FL_MUST_USE fl_status fl_pool_create(int threads, fl_pool **out_pool);
void fl_pool_destroy(fl_pool *pool);      /* takes; NULL allowed */
int fl_pool_threads(const fl_pool *pool); /* 1 for NULL */

/* Runs fn(arg, begin, end, thread) over [0, count) in chunks of at least `grain`, handed out dynamically;
 * each beginning at a multiple of `grain`; returns when all is done. `thread` is 0..threads-1 and no two chunks with the same number run at once,
 * so it may index scratch memory. Not re-entrant: a call made inside fn, or while another thread uses
 * the pool, runs on the calling thread alone (thread = the caller's own number inside fn, else 0).
 * A NULL pool runs on the caller. */
typedef void (*fl_range_fn)(void *arg, int64_t begin, int64_t end, int thread);
void fl_parallel(fl_pool *pool, int64_t count, int64_t grain, fl_range_fn fn, void *arg);

/* Around a run of many short fl_parallel calls: wakes the workers and lets them spin between the calls. Nests. */
void fl_pool_hold(fl_pool *pool);
void fl_pool_release(fl_pool *pool);

#endif
