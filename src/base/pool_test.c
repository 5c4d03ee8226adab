#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/pool.h"
#include "base/test.h"

enum { MAX_COUNT = 5000, MAX_THREADS = 8 };

typedef struct tally {
  int64_t grain, count;
  int threads;
  _Atomic int hits[MAX_COUNT];
  _Atomic int inside[MAX_THREADS];
  _Atomic int bad;
} tally;

static void tally_range(void *arg, int64_t begin, int64_t end, int thread) {
  tally *t = arg;
  if (thread < 0 || thread >= t->threads || begin % t->grain || begin >= end || end > t->count) t->bad++;
  if (end - begin < t->grain && end != t->count) t->bad++;
  if (t->inside[thread]++) t->bad++;
  for (int64_t i = begin; i < end; i++) t->hits[i]++;
  t->inside[thread]--;
}

static bool each_once(fl_pool *pool, int64_t count, int64_t grain) {
  tally *t = calloc(1, sizeof *t);
  t->grain = grain;
  t->count = count;
  t->threads = fl_pool_threads(pool);
  fl_parallel(pool, count, grain, tally_range, t);
  int wrong = 0;
  for (int64_t i = 0; i < MAX_COUNT; i++) wrong += t->hits[i] != (i < count);
  bool right = wrong == 0 && t->bad == 0;
  free(t);
  return right;
}

static void check_each_once(fl_pool *pool, int64_t count, int64_t grain) {
  FL_CHECK_MSG(each_once(pool, count, grain), "count %lld grain %lld", (long long)count, (long long)grain);
}

FL_TEST(each_index_once) {
  for (int threads = 1; threads <= 4; threads++) {
    fl_pool *pool = NULL;
    FL_CHECK_OK(fl_pool_create(threads, &pool));
    FL_CHECK(fl_pool_threads(pool) == threads);
    for (int64_t count = 0; count < 40; count++)
      for (int64_t grain = 1; grain < 8; grain++) check_each_once(pool, count, grain);
    for (int i = 0; i < 300; i++) check_each_once(pool, rand() % MAX_COUNT, 1 + rand() % 100);
    fl_pool_destroy(pool);
  }
  check_each_once(NULL, 100, 3);
  FL_CHECK(fl_pool_threads(NULL) == 1);
}

typedef struct nest {
  fl_pool *pool;
  _Atomic int bad, inner;
} nest;

typedef struct inner {
  nest *n;
  int outer_thread;
} inner;

static void inner_range(void *arg, int64_t begin, int64_t end, int thread) {
  inner *i = arg;
  if (begin != 0 || end != 100 || thread != i->outer_thread) i->n->bad++;
  i->n->inner++;
}

static void outer_range(void *arg, int64_t begin, int64_t end, int thread) {
  inner i = {arg, thread};
  for (; begin < end; begin++) fl_parallel(i.n->pool, 100, 1, inner_range, &i);
}

FL_TEST(nested_calls_run_on_their_caller) {
  nest n = {0};
  FL_CHECK_OK(fl_pool_create(3, &n.pool));
  for (int i = 0; i < 100; i++) fl_parallel(n.pool, 20, 1, outer_range, &n);
  FL_CHECK(n.bad == 0);
  FL_CHECK(n.inner == 2000);
  fl_pool_destroy(n.pool);
}

static void *many_calls(void *arg) {
  for (int i = 0; i < 300; i++)
    if (!each_once(arg, 200, 1)) return "wrong";
  return NULL;
}

FL_TEST(many_callers) {
  fl_pool *pool = NULL;
  pthread_t threads[4];
  FL_CHECK_OK(fl_pool_create(3, &pool));
  for (int i = 0; i < 4; i++) FL_CHECK(!pthread_create(&threads[i], NULL, many_calls, pool));
  for (int i = 0; i < 4; i++) {
    void *what = "not joined";
    FL_CHECK(!pthread_join(threads[i], &what) && !what);
  }
  fl_pool_destroy(pool);
}

FL_TEST(sleeping_workers_wake) {
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  for (int i = 0; i < 50; i++) {
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    if (i % 2) fl_pool_hold(pool);
    check_each_once(pool, 1000, 1);
    if (i % 2) fl_pool_release(pool);
  }
  fl_pool_destroy(pool);
}

FL_TEST(child_of_fork_runs_alone) {
#ifndef __SANITIZE_THREAD__ /* which cannot start threads after a fork */
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  check_each_once(pool, 1000, 1);
  pid_t child = fork();
  if (child == 0) {
    fl_test_failed_ = 0;
    alarm(20); /* a hang must not outlive the test */
    fl_pool_hold(pool);
    check_each_once(pool, 1000, 1);
    fl_pool_release(pool);
    fl_pool_destroy(pool);
    FL_CHECK_OK(fl_pool_create(2, &pool));
    check_each_once(pool, 1000, 1);
    fl_pool_destroy(pool);
    _exit(fl_test_failed_ != 0);
  }
  int how = -1;
  FL_CHECK(child > 0 && waitpid(child, &how, 0) == child);
  FL_CHECK(WIFEXITED(how) && WEXITSTATUS(how) == 0);
  check_each_once(pool, 1000, 1);
  fl_pool_destroy(pool);
#endif
}

FL_TEST(create_fails_cleanly) {
  fl_pool *pool = NULL;
  FL_CHECK_FAILS(fl_pool_create(0, &pool), FL_INVALID, "0 threads");
  int64_t live = fl_alloc_live();
  for (int nth = 1; nth <= 3; nth++) {
    fl_alloc_fail_at(nth);
    FL_CHECK_FAILS(fl_pool_create(2, &pool), FL_OOM, "");
    fl_alloc_fail_at(0);
    FL_CHECK(fl_alloc_live() == live);
  }
}

FL_TEST(default_size) {
  int n = fl_pool_default_threads();
  FL_CHECK(n >= 1);
  setenv("FRAMELIFT_NUM_THREADS", "1", 1);
  FL_CHECK(fl_pool_default_threads() == 1);
  setenv("FRAMELIFT_NUM_THREADS", "100000", 1);
  FL_CHECK(fl_pool_default_threads() == n);
  unsetenv("FRAMELIFT_NUM_THREADS");
}

FL_TEST(isa_levels) {
  fl_isa best = fl_cpu_force_isa(FL_ISA_AVX512_BF16);
  for (int i = 0; i <= (int)best; i++) {
    FL_CHECK(fl_cpu_force_isa((fl_isa)i) == (fl_isa)i);
    FL_CHECK(fl_cpu_isa() == (fl_isa)i);
  }
  FL_CHECK(!strcmp(fl_isa_name(FL_ISA_AVX512), "avx512"));
  FL_CHECK(!strcmp(fl_isa_name(FL_ISA_COUNT), "?"));
  FL_CHECK(fl_cpu_l1d() >= 8 << 10 && fl_cpu_l2() >= fl_cpu_l1d() && fl_cpu_l3() > 0);
}

FL_TEST_MAIN(FL_RUN(each_index_once) FL_RUN(nested_calls_run_on_their_caller) FL_RUN(many_callers)
                 FL_RUN(sleeping_workers_wake) FL_RUN(child_of_fork_runs_alone) FL_RUN(create_fails_cleanly)
                     FL_RUN(default_size) FL_RUN(isa_levels))
