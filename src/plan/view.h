/* Strides of views: how an operator that moves no element changes where elements are found. Pure. */
#ifndef FL_PLAN_VIEW_H
#define FL_PLAN_VIEW_H

#include "graph/op.h"

/* Strides of a reshape of (from, strides) to `to`, of equally many elements. False if it needs a copy. */
bool fl_view_reshape(const fl_type *from, const int64_t *strides, const fl_type *to, int64_t *out_strides);
void fl_view_permute(const int64_t *strides, const int64_t *perm, int rank, int64_t *out_strides);
void fl_view_expand(const fl_type *from, const int64_t *strides, const fl_type *to, int64_t *out_strides);
/* Equal but for axes of one element, whose strides mean nothing. */
bool fl_strides_equal(const fl_type *t, const int64_t *a, const int64_t *b);
/* Dense strides of `t` whose axes lie in memory in the order of `like`; contiguous where `like` repeats elements. */
void fl_strides_like(const fl_type *t, const int64_t *like, int64_t *out_strides);

#endif
