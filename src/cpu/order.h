/* Ordering of (key, index) pairs as PyTorch's CPU kernels do it, ties included. */
#ifndef FL_CPU_ORDER_H
#define FL_CPU_ORDER_H

#include <stdbool.h>
#include <stdint.h>

/* A float's key is its value in order, an integer's itself: keys compare as integers. Whatever is not a number is the
 * greatest of all, and equal to its like. */
typedef struct fl_pair {
  int64_t key, index;
} fl_pair;

int64_t fl_order_key(double v);

/* Ascending, or descending; pairs of equal keys stay in order. `spare` has n places too. */
void fl_order_sort(fl_pair *x, int64_t n, bool descending, fl_pair *spare);

/* The k largest (smallest) of n first, as torch.topk picks and orders them: by the algorithms of libstdc++ under its
 * std::partial_sort, or std::nth_element and std::sort, on which the order of equal keys depends. 1 <= k <= n. */
void fl_order_top(fl_pair *x, int64_t n, int64_t k, bool largest, bool sorted);

#endif
