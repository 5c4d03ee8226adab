/* Lines of the timing cache; with a GPU: a problem whose fastest candidate is known. */
#include "cuda/tactic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/test.h"

FL_TEST(lines_are_read_as_written) {
  fl_cuda_tactic_entry e = {.hash = {0x0123456789abcdef, 7}, .n = 8, .choice = 3, .us = 12.5f}, got = {0};
  char line[128];
  fl_cuda_tactic_print(&e, line, sizeof line);
  FL_CHECK(!strcmp(line, "0123456789abcdef0000000000000007 8 3 12.500 .\n"));
  FL_CHECK(fl_cuda_tactic_parse(line, &got));
  FL_CHECK(got.hash[0] == e.hash[0] && got.hash[1] == 7 && got.n == 8 && got.choice == 3 && got.us == 12.5f);
}

FL_TEST(lines_that_are_not_whole_are_refused) {
  static const char *const bad[] = {"",
                                    "hello",
                                    "0123456789abcdef0000000000000007",
                                    "0123456789abcdef0000000000000007 8 3 12.5",
                                    "0123456789abcdef0000000000000007 8 8 12.5 .",
                                    "0123456789abcdef0000000000000007 8 -2 12.5 .",
                                    "0123456789abcdef0000000000000007 1 0 12.5 .",
                                    "0123456789abcdef0000000000000007 8 3 nan .",
                                    "0123456789abcdef0000000000000007 8 3 -1 .",
                                    "x123456789abcdef0000000000000007 8 3 1 ."};
  fl_cuda_tactic_entry e;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    FL_CHECK_MSG(!fl_cuda_tactic_parse(bad[i], &e), "\"%s\" was taken", bad[i]);
}

/* --- on the GPU --- */

typedef struct work {
  const fl_cuda_api *api;
  int launches, failing;
  void *seen[64];
} work;

/* Candidate 1 moves the least. Candidates from `failing` on cannot be run. */
static int move(void *arg, int i, void *const *buffers, fl_cu_stream stream) {
  static const size_t megabytes[3] = {64, 1, 32};
  work *w = arg;
  if (w->launches < 64) w->seen[w->launches] = buffers[1];
  w->launches++;
  if (i >= w->failing) return 1;
  return w->api->cuMemsetD8Async((fl_cu_ptr)(uintptr_t)buffers[0], 1, megabytes[i] << 20, stream);
}

FL_TEST(the_fastest_is_found_once) {
  const fl_cuda_device *d;
  char folder[] = "/tmp/framelift-tactic-XXXXXX";
  fl_status s = fl_cuda_device_open(0, &d);
  if (s) {
    printf("no GPU: %s\n", fl_status_message(s));
    fl_status_free(s);
    return;
  }
  if (mkdtemp(folder)) setenv("FRAMELIFT_CACHE_DIR", folder, 1);
  d->api->cuCtxPushCurrent_v2(d->context);
  work w = {.api = d->api, .failing = 3};
  fl_cuda_tactic t = {.key = "test move", .n = 3, .launch = move, .arg = &w};
  t.buffers[0].bytes = 64 << 20;
  t.buffers[1].bytes = 8 << 20;
  t.buffers[1].cold = true;
  float us;
  FL_CHECK(fl_cuda_tactic_choose(d, &t, &us) == 1 && us > 0 && us < 50);
  printf("1 MB set in %.2f us, %d launches\n", (double)us, w.launches);
  bool moved = false;
  for (int i = 1; i < 64 && i < w.launches; i++) moved |= w.seen[i] != w.seen[0];
  FL_CHECK(moved); /* cold operands lie elsewhere each time */
  int launches = w.launches;
  FL_CHECK(fl_cuda_tactic_choose(d, &t, NULL) == 1 && w.launches == launches);
  t.key = "test move, others fail";
  w.failing = 1;
  FL_CHECK(fl_cuda_tactic_choose(d, &t, NULL) == 0);
  t.key = "test move, all fail";
  w.failing = 0;
  FL_CHECK(fl_cuda_tactic_choose(d, &t, NULL) == -1);
  fl_cuda_tactic_stats stats = fl_cuda_tactic_get_stats();
  FL_CHECK(stats.timed == 3 && stats.known == 1);
  fl_cuda_tactic_release(d);
  d->api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
}

FL_TEST_MAIN(FL_RUN(lines_are_read_as_written) FL_RUN(lines_that_are_not_whole_are_refused)
                 FL_RUN(the_fastest_is_found_once))
