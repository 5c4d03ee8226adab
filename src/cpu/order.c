#include "cpu/order.h"

#include <math.h>
#include <string.h>

int64_t fl_order_key(double v) {
  int64_t bits;
  if (v == 0) v = 0; /* of either sign */
  if (isnan(v)) return INT64_MAX;
  memcpy(&bits, &v, sizeof bits);
  return bits < 0 ? bits ^ INT64_MAX : bits;
}

static inline bool before(const fl_pair *a, const fl_pair *b, bool falling) {
  return falling ? a->key > b->key : a->key < b->key;
}

/* --- stable --- */

void fl_order_sort(fl_pair *x, int64_t n, bool descending, fl_pair *spare) {
  enum { RUN = 16 };
  for (int64_t lo = 0; lo < n; lo += RUN)
    for (int64_t i = lo + 1; i < n && i < lo + RUN; i++) {
      fl_pair v = x[i];
      int64_t k = i;
      for (; k > lo && before(&v, &x[k - 1], descending); k--) x[k] = x[k - 1];
      x[k] = v;
    }
  fl_pair *from = x, *to = spare;
  for (int64_t width = RUN; width < n; width *= 2) {
    for (int64_t lo = 0; lo < n; lo += 2 * width) {
      int64_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
      for (int64_t a = lo, b = mid, o = lo; o < hi; o++)
        to[o] = b == hi || (a < mid && !before(&from[b], &from[a], descending)) ? from[a++] : from[b++];
    }
    fl_pair *swap = from;
    from = to;
    to = swap;
  }
  if (from != x) memcpy(x, from, (size_t)n * sizeof *x);
}

/* --- libstdc++'s heap, selection and sort; names are its own --- */

typedef struct order {
  bool falling;
} order;

static inline bool comp(const order *o, const fl_pair *a, const fl_pair *b) { return before(a, b, o->falling); }

static inline void swap(fl_pair *a, fl_pair *b) {
  fl_pair t = *a;
  *a = *b;
  *b = t;
}

static void push_heap(const order *o, fl_pair *first, int64_t hole, int64_t top, fl_pair value) {
  for (int64_t parent = (hole - 1) / 2; hole > top && comp(o, &first[parent], &value); parent = (hole - 1) / 2) {
    first[hole] = first[parent];
    hole = parent;
  }
  first[hole] = value;
}

static void adjust_heap(const order *o, fl_pair *first, int64_t hole, int64_t len, fl_pair value) {
  int64_t top = hole, child = hole;
  while (child < (len - 1) / 2) {
    child = 2 * (child + 1);
    if (comp(o, &first[child], &first[child - 1])) child--;
    first[hole] = first[child];
    hole = child;
  }
  if (len % 2 == 0 && child == (len - 2) / 2) {
    child = 2 * (child + 1);
    first[hole] = first[child - 1];
    hole = child - 1;
  }
  push_heap(o, first, hole, top, value);
}

static void pop_heap(const order *o, fl_pair *first, fl_pair *last, fl_pair *result) {
  fl_pair value = *result;
  *result = *first;
  adjust_heap(o, first, 0, last - first, value);
}

static void heap_select(const order *o, fl_pair *first, fl_pair *middle, fl_pair *last) {
  int64_t len = middle - first;
  for (int64_t parent = (len - 2) / 2; len >= 2 && parent >= 0; parent--)
    adjust_heap(o, first, parent, len, first[parent]);
  for (fl_pair *i = middle; i < last; i++)
    if (comp(o, i, first)) pop_heap(o, first, middle, i);
}

static void partial_sort(const order *o, fl_pair *first, fl_pair *middle, fl_pair *last) {
  heap_select(o, first, middle, last);
  for (fl_pair *end = middle; end - first > 1;) {
    end--;
    pop_heap(o, first, end, end);
  }
}

static void linear_insert(const order *o, fl_pair *last) {
  fl_pair value = *last;
  for (fl_pair *next = last - 1; comp(o, &value, next); next--) {
    *last = *next;
    last = next;
  }
  *last = value;
}

static void insertion_sort(const order *o, fl_pair *first, fl_pair *last) {
  for (fl_pair *i = first + 1; first != last && i < last; i++) {
    if (!comp(o, i, first)) {
      linear_insert(o, i);
      continue;
    }
    fl_pair value = *i;
    memmove(first + 1, first, (size_t)(i - first) * sizeof *first);
    *first = value;
  }
}

static void median_to_first(const order *o, fl_pair *result, fl_pair *a, fl_pair *b, fl_pair *c) {
  if (comp(o, a, b))
    swap(result, comp(o, b, c) ? b : comp(o, a, c) ? c : a);
  else
    swap(result, comp(o, a, c) ? a : comp(o, b, c) ? c : b);
}

static fl_pair *partition_pivot(const order *o, fl_pair *first, fl_pair *last) {
  fl_pair *pivot = first;
  median_to_first(o, first, first + 1, first + (last - first) / 2, last - 1);
  for (first++;; first++) {
    while (comp(o, first, pivot)) first++;
    last--;
    while (comp(o, pivot, last)) last--;
    if (!(first < last)) return first;
    swap(first, last);
  }
}

static int64_t depth_of(int64_t n) { return 2 * (63 - __builtin_clzll((unsigned long long)n)); }

static void nth_element(const order *o, fl_pair *first, fl_pair *nth, fl_pair *last) {
  if (first == last || nth == last) return;
  for (int64_t depth = depth_of(last - first); last - first > 3; depth--) {
    if (depth == 0) {
      heap_select(o, first, nth + 1, last);
      swap(first, nth);
      return;
    }
    fl_pair *cut = partition_pivot(o, first, last);
    if (cut <= nth)
      first = cut;
    else
      last = cut;
  }
  insertion_sort(o, first, last);
}

enum { THRESHOLD = 16 };

static void introsort_loop(const order *o, fl_pair *first, fl_pair *last, int64_t depth) {
  for (; last - first > THRESHOLD; depth--) {
    if (depth == 0) {
      partial_sort(o, first, last, last);
      return;
    }
    fl_pair *cut = partition_pivot(o, first, last);
    introsort_loop(o, cut, last, depth - 1);
    last = cut;
  }
}

static void sort(const order *o, fl_pair *first, fl_pair *last) {
  if (first == last) return;
  introsort_loop(o, first, last, depth_of(last - first));
  if (last - first <= THRESHOLD) {
    insertion_sort(o, first, last);
    return;
  }
  insertion_sort(o, first, first + THRESHOLD);
  for (fl_pair *i = first + THRESHOLD; i < last; i++) linear_insert(o, i);
}

void fl_order_top(fl_pair *x, int64_t n, int64_t k, bool largest, bool sorted) {
  order o = {largest};
  if (k * 64 <= n) {
    partial_sort(&o, x, x + k, x + n);
    return;
  }
  nth_element(&o, x, x + k - 1, x + n);
  if (sorted) sort(&o, x, x + k - 1);
}
