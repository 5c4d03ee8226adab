/* What one fl_parallel call costs, and how fast a step of some work is against one thread. */
#include <stdio.h>
#include <time.h>

#include "base/pool.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static float cells[1 << 16];

static void touch(void *arg, int64_t begin, int64_t end, int thread) {
  int rounds = *(int *)arg;
  for (int r = 0; r < rounds; r++)
    for (int64_t i = begin; i < end; i++) cells[i] = cells[i] * 0.5f + 1;
}

static double best_of(fl_pool *pool, int64_t count, int rounds) {
  double best = 1e30;
  for (int i = 0; i < 20; i++) {
    double t = now();
    fl_pool_hold(pool);
    for (int k = 0; k < 200; k++) fl_parallel(pool, count, count / 16, touch, &rounds);
    fl_pool_release(pool);
    t = (now() - t) / 200;
    if (t < best) best = t;
  }
  return best;
}

int main(void) {
  fl_pool *pool = NULL;
  fl_status s = fl_pool_create(fl_pool_default_threads(), &pool);
  if (s) return puts(fl_status_message(s)), 1;
  printf("threads %d\n", fl_pool_threads(pool));
  for (int rounds = 0; rounds <= 16; rounds = rounds ? rounds * 4 : 1)
    printf("rounds %2d: one thread %8.2f us, pool %8.2f us\n", rounds, best_of(NULL, 1 << 14, rounds),
           best_of(pool, 1 << 14, rounds));
  fl_pool_destroy(pool);
  return 0;
}
