#include <stdlib.h>

#include "plan/plan.h"

enum { ALIGN = 64, GAP_ALIGN = 256 };

static bool alive_together(const fl_interval *a, const fl_interval *b) {
  return a->first <= b->last && b->first <= a->last;
}

/* Largest first; equal sizes in the order of their lives, so that plans do not depend on qsort. */
static int by_size(const void *pa, const void *pb) {
  const fl_interval *a = *(fl_interval *const *)pa, *b = *(fl_interval *const *)pb;
  if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
  if (a->first != b->first) return a->first < b->first ? -1 : 1;
  return a < b ? -1 : a > b;
}

static size_t room(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* `placed` is sorted by offset. The smallest gap between blocks alive with `b` that holds it, else the end. */
static size_t best_fit(fl_interval *const *placed, int n, const fl_interval *b) {
  size_t end = 0, best = SIZE_MAX, best_gap = SIZE_MAX, need = room(b->bytes);
  for (int i = 0; i < n; i++) {
    const fl_interval *p = placed[i];
    if (!alive_together(p, b)) continue;
    if (p->offset > end && p->offset - end >= need && p->offset - end < best_gap) {
      best = end;
      best_gap = p->offset - end;
    }
    if (p->offset + room(p->bytes) > end) end = p->offset + room(p->bytes);
  }
  return best != SIZE_MAX ? best : end;
}

static void insert_by_offset(fl_interval **placed, int n, fl_interval *b) {
  int i = n;
  for (; i > 0 && placed[i - 1]->offset > b->offset; i--) placed[i] = placed[i - 1];
  placed[i] = b;
}

static fl_status check_sizes(const fl_interval *blocks, int n) {
  size_t sum = 0;
  for (int i = 0; i < n; i++)
    if (blocks[i].bytes > SIZE_MAX / 2 || !fl_add_size(sum, room(blocks[i].bytes), &sum))
      return fl_fail(FL_OOM, "memory plan: block %d of %zu bytes does not fit", i, blocks[i].bytes);
  return NULL;
}

fl_status fl_memplan(fl_interval *blocks, int n, size_t *out_total) {
  FL_TRY(check_sizes(blocks, n));
  fl_interval **order = fl_malloc(2 * (size_t)n * sizeof *order), **placed = order + n;
  if (!order) return fl_oom();
  for (int i = 0; i < n; i++) order[i] = &blocks[i];
  qsort(order, (size_t)n, sizeof *order, by_size);
  size_t total = 0;
  int n_placed = 0;
  for (int i = 0; i < n; i++) {
    fl_interval *b = order[i];
    b->offset = 0;
    if (!b->bytes) continue;
    b->offset = best_fit(placed, n_placed, b);
    insert_by_offset(placed, n_placed++, b);
    if (b->offset + room(b->bytes) > total) total = b->offset + room(b->bytes);
  }
  fl_free(order);
  *out_total = total;
  return NULL;
}

static bool is_alive(const fl_interval *b, int step) { return b->bytes && b->first <= step && step <= b->last; }

/* Only where a block begins can the sum reach its most. */
size_t fl_memplan_floor(const fl_interval *blocks, int n) {
  size_t most = 0;
  for (int i = 0; i < n; i++) {
    size_t sum = 0;
    for (int k = 0; k < n; k++)
      if (is_alive(&blocks[k], blocks[i].first)) sum += room(blocks[k].bytes);
    if (blocks[i].bytes && sum > most) most = sum;
  }
  return most;
}

static size_t aligned(size_t offset) { return (offset + GAP_ALIGN - 1) / GAP_ALIGN * GAP_ALIGN; }

/* From `at` to the next block alive in the step, or the end; a block that covers `at` leaves nothing. */
static size_t free_from(const fl_interval *blocks, int n, size_t total, int step, size_t at) {
  size_t end = total;
  for (int i = 0; i < n; i++) {
    const fl_interval *b = &blocks[i];
    if (!is_alive(b, step) || b->offset + room(b->bytes) <= at) continue;
    if (b->offset <= at) return 0;
    if (b->offset < end) end = b->offset;
  }
  return end > at ? end - at : 0;
}

fl_gap fl_memplan_gap(const fl_interval *blocks, int n, size_t total, int step) {
  fl_gap best = {0, free_from(blocks, n, total, step, 0)};
  for (int i = 0; i < n; i++) {
    if (!is_alive(&blocks[i], step)) continue;
    size_t at = aligned(blocks[i].offset + room(blocks[i].bytes));
    size_t bytes = free_from(blocks, n, total, step, at);
    if (bytes > best.bytes) best = (fl_gap){at, bytes};
  }
  return best;
}
