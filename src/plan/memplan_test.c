#include <stdlib.h>

#include "base/test.h"
#include "plan/plan.h"

static size_t room(size_t n) { return (n + 63) / 64 * 64; }

/* What fl_memplan_floor gives, step by step. */
static size_t lower_bound(const fl_interval *b, int n, int steps) {
  size_t most = 0;
  for (int s = 0; s < steps; s++) {
    size_t sum = 0;
    for (int i = 0; i < n; i++)
      if (b[i].first <= s && s <= b[i].last) sum += room(b[i].bytes);
    if (sum > most) most = sum;
  }
  return most;
}

static int conflicts(const fl_interval *b, int n, size_t total) {
  int bad = 0;
  for (int i = 0; i < n; i++) {
    bad += b[i].offset % 64 != 0 || b[i].offset + b[i].bytes > total;
    for (int j = 0; j < i; j++) {
      bool together = b[i].first <= b[j].last && b[j].first <= b[i].last;
      bool overlap = b[i].offset < b[j].offset + b[j].bytes && b[j].offset < b[i].offset + b[i].bytes;
      bad += together && overlap && b[i].bytes && b[j].bytes;
    }
  }
  return bad;
}

/* Nothing alive in the step lies in the gap, and no block of the placed ones could show a larger one behind itself. */
static void check_gap(const fl_interval *b, int n, size_t total, int step) {
  fl_gap g = fl_memplan_gap(b, n, total, step);
  FL_CHECK(g.offset % 256 == 0 && (g.bytes == 0 || g.offset + g.bytes <= total));
  size_t alive = 0, highest = 0;
  for (int i = 0; i < n; i++) {
    if (!b[i].bytes || b[i].first > step || step > b[i].last) continue;
    size_t end = b[i].offset + room(b[i].bytes);
    alive += room(b[i].bytes);
    if (end > highest) highest = end;
    FL_CHECK(g.bytes == 0 || end <= g.offset || b[i].offset >= g.offset + g.bytes);
  }
  size_t behind = (highest + 255) / 256 * 256;
  FL_CHECK(behind >= total || g.bytes >= total - behind);
  FL_CHECK(g.bytes + alive <= total);
}

FL_TEST(nothing) {
  size_t total = 1;
  FL_CHECK_OK(fl_memplan(NULL, 0, &total));
  FL_CHECK(total == 0);
}

FL_TEST(a_chain_needs_two_buffers) {
  fl_interval b[10];
  for (int i = 0; i < 10; i++) b[i] = (fl_interval){.first = i, .last = i + 1, .bytes = 1000};
  size_t total;
  FL_CHECK_OK(fl_memplan(b, 10, &total));
  FL_CHECK(total == 2 * room(1000));
  FL_CHECK(conflicts(b, 10, total) == 0);
}

FL_TEST(a_hole_is_filled_by_the_best_fit) {
  /* A and C live throughout; B's and D's places are free in step 2, and E fits D's better. */
  fl_interval b[] = {{0, 2, 6400, 0}, {0, 1, 3200, 0}, {0, 2, 1600, 0}, {0, 1, 800, 0}, {2, 2, 640, 0}};
  size_t total;
  FL_CHECK_OK(fl_memplan(b, 5, &total));
  FL_CHECK(total == 6400 + 3200 + 1600 + room(800));
  FL_CHECK(conflicts(b, 5, total) == 0);
}

FL_TEST(what_lies_idle_in_a_step) {
  fl_interval b[] = {{0, 9, 1000, 0}, {0, 1, 8000, 0}, {2, 9, 600, 0}, {3, 3, 0, 0}};
  size_t total;
  FL_CHECK_OK(fl_memplan(b, 4, &total));
  FL_CHECK(total == 8000 + 1024 && fl_memplan_floor(b, 4) == total);
  FL_CHECK(b[1].offset == 0 && b[0].offset == 8000 && b[2].offset == 0);
  FL_CHECK(fl_memplan_gap(b, 4, total, 0).bytes == 0);
  fl_gap g = fl_memplan_gap(b, 4, total, 3);
  FL_CHECK(g.offset == 768 && g.bytes == 8000 - 768);
  g = fl_memplan_gap(b, 4, total, 20);
  FL_CHECK(g.offset == 0 && g.bytes == total);
  g = fl_memplan_gap(NULL, 0, 0, 0);
  FL_CHECK(g.offset == 0 && g.bytes == 0 && fl_memplan_floor(NULL, 0) == 0);
}

FL_TEST(random_blocks_never_overlap) {
  srand(1);
  double sum_ratio = 0;
  for (int round = 0; round < 400; round++) {
    fl_interval b[60];
    int n = rand() % 60 + 1, steps = rand() % 40 + 1;
    for (int i = 0; i < n; i++) {
      int first = rand() % steps, last = first + rand() % 6;
      size_t bytes = rand() % 10 ? (size_t)(rand() % 5000) : 0;
      b[i] = (fl_interval){first, last < steps ? last : steps - 1, bytes, 99};
    }
    size_t total = 0, least = lower_bound(b, n, steps);
    FL_CHECK_OK(fl_memplan(b, n, &total));
    FL_CHECK(conflicts(b, n, total) == 0);
    FL_CHECK(total >= least && total <= 2 * least && fl_memplan_floor(b, n) == least);
    for (int s = 0; s < steps; s++) check_gap(b, n, total, s);
    sum_ratio += least ? (double)total / (double)least : 1;
  }
  FL_CHECK_MSG(sum_ratio / 400 < 1.1, "mean over the lower bound %.3f", sum_ratio / 400);
}

FL_TEST(impossible_sizes_fail) {
  fl_interval b[] = {{0, 0, SIZE_MAX - 10, 0}, {0, 0, 100, 0}};
  size_t total;
  FL_CHECK_FAILS(fl_memplan(b, 2, &total), FL_OOM, "block 0");
  fl_interval c[] = {{0, 0, 100, 0}};
  fl_alloc_fail_at(1);
  FL_CHECK_FAILS(fl_memplan(c, 1, &total), FL_OOM, "");
  fl_alloc_fail_at(0);
}

FL_TEST_MAIN(FL_RUN(nothing) FL_RUN(a_chain_needs_two_buffers) FL_RUN(a_hole_is_filled_by_the_best_fit)
                 FL_RUN(what_lies_idle_in_a_step) FL_RUN(random_blocks_never_overlap) FL_RUN(impossible_sizes_fail))
