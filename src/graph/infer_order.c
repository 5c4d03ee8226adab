/* Ordering, counting, and writing at indexes. */
#include "graph/infer.h"

fl_status fl_infer_sort(const fl_infer_args *c) {
  int axis;
  const fl_type *x = c->in[0];
  FL_TRY(fl_infer_axis(c, x->rank, &axis));
  c->out[0] = c->out[1] = *x;
  c->out[1].dtype = FL_I64;
  if (c->op == FL_OP_SORT) return NULL;
  int64_t k = fl_attr_int(c->attrs, "k", 0);
  if (k < 0 || k > x->dims[axis])
    return FL_BREAKS(c, "k is %lld: must be in [0, %lld]", (long long)k, (long long)x->dims[axis]);
  c->out[0].dims[axis] = c->out[1].dims[axis] = k;
  return NULL;
}

fl_status fl_infer_histc(const fl_infer_args *c) {
  int64_t bins = fl_attr_int(c->attrs, "bins", 0);
  double lo = fl_attr_float(c->attrs, "lo", 0), hi = fl_attr_float(c->attrs, "hi", 0);
  FL_TRY(fl_infer_need_float(c, 0));
  if (bins < 1 || bins > (int64_t)1 << 32) return FL_BREAKS(c, "bins is %lld", (long long)bins);
  if (!(lo < hi)) return FL_BREAKS(c, "lo is %g, hi is %g: must be lo < hi", lo, hi);
  *c->out = fl_type_make(c->in[0]->dtype, 1, &bins);
  return NULL;
}

static fl_status check_mode(const fl_infer_args *c, int64_t most) {
  int64_t mode = fl_attr_int(c->attrs, "mode", 0);
  return mode >= 0 && mode <= most ? NULL : FL_BREAKS(c, "mode is %lld", (long long)mode);
}

fl_status fl_infer_scatter(const fl_infer_args *c) {
  int axis;
  const fl_type *x = c->in[0], *index = c->in[1], *src = c->in[2];
  FL_TRY(fl_infer_axis(c, x->rank, &axis));
  FL_TRY(check_mode(c, 4));
  FL_TRY(fl_infer_need_int(c, 1));
  FL_TRY(fl_infer_need_rank(c, 1, x->rank));
  FL_TRY(fl_infer_need_rank(c, 2, x->rank));
  FL_TRY(fl_infer_need_same_dtype(c, 2, 0));
  for (int d = 0; d < x->rank; d++)
    if (index->dims[d] > src->dims[d] || (d != axis && index->dims[d] > x->dims[d]))
      return FL_BREAKS(c, "the index has %lld places on axis %d", (long long)index->dims[d], d);
  *c->out = *x;
  return NULL;
}

fl_status fl_infer_index_put(const fl_infer_args *c) {
  int axis, n = c->n_in - 2;
  const fl_type *x = c->in[0];
  FL_TRY(fl_infer_axis(c, x->rank, &axis));
  FL_TRY(check_mode(c, 1));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  if (axis + n > x->rank) return FL_BREAKS(c, "%d index arrays from axis %d: operand 0 has rank %d", n, axis, x->rank);
  fl_type at = *c->in[2], space = {.dtype = x->dtype};
  for (int i = 2; i < c->n_in; i++) {
    FL_TRY(fl_infer_need_int(c, i));
    FL_TRY(fl_infer_broadcast(c, &at, c->in[i]));
  }
  if (x->rank - n + at.rank > FL_MAX_RANK) return FL_BREAKS(c, "what is written has more than %d axes", FL_MAX_RANK);
  for (int i = 0; i < axis; i++) space.dims[space.rank++] = x->dims[i];
  for (int i = 0; i < at.rank; i++) space.dims[space.rank++] = at.dims[i];
  for (int i = axis + n; i < x->rank; i++) space.dims[space.rank++] = x->dims[i];
  fl_type both = space;
  FL_TRY(fl_infer_broadcast(c, &both, c->in[1]));
  if (!fl_type_equal(&both, &space)) return FL_BREAKS(c, "the values do not fit into what is indexed");
  *c->out = *x;
  return NULL;
}

fl_status fl_infer_grouped_matmul(const fl_infer_args *c) {
  const fl_type *a = c->in[0], *b = c->in[1], *ends = c->in[2];
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_need_rank(c, 0, 2));
  FL_TRY(fl_infer_need_rank(c, 1, 3));
  FL_TRY(fl_infer_need_rank(c, 2, 1));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  FL_TRY(fl_infer_need_int(c, 2));
  if (a->dims[1] != b->dims[1] || ends->dims[0] != b->dims[0])
    return FL_BREAKS(c, "%lld columns and %lld ends: must be %lld and %lld", (long long)a->dims[1],
                     (long long)ends->dims[0], (long long)b->dims[1], (long long)b->dims[0]);
  int64_t dims[] = {a->dims[0], b->dims[2]};
  *c->out = fl_type_make(a->dtype, 2, dims);
  return NULL;
}

fl_status fl_infer_grid_sample(const fl_infer_args *c) {
  const fl_type *x = c->in[0], *grid = c->in[1];
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_need_rank(c, 1, 4));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  FL_TRY(check_mode(c, 1));
  int64_t padding = fl_attr_int(c->attrs, "padding", 0);
  if (padding < 0 || padding > 2) return FL_BREAKS(c, "padding is %lld", (long long)padding);
  if (grid->dims[0] != x->dims[0] || grid->dims[3] != 2 || x->dims[2] < 1 || x->dims[3] < 1)
    return FL_BREAKS(c, "the grid has %lld batches of places with %lld coordinates", (long long)grid->dims[0],
                     (long long)grid->dims[3]);
  int64_t dims[] = {x->dims[0], x->dims[1], grid->dims[1], grid->dims[2]};
  *c->out = fl_type_make(x->dtype, 4, dims);
  return NULL;
}

fl_status fl_infer_solve_triangular(const fl_infer_args *c) {
  const fl_type *a = c->in[0], *b = c->in[1];
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  FL_TRY(fl_infer_need_rank(c, 1, a->rank));
  if (a->rank < 2) return FL_BREAKS(c, "rank is %d: must be 2 or more", a->rank);
  for (int d = 0; d < a->rank; d++) {
    int64_t want = d == a->rank - 1 ? a->dims[a->rank - 2] : b->dims[d];
    if (a->dims[d] != want)
      return FL_BREAKS(c, "axis %d of the matrix is %lld: must be %lld", d, (long long)a->dims[d], (long long)want);
  }
  *c->out = *b;
  return NULL;
}
