#include "plan/view.h"

#include <stdlib.h>

#include "base/test.h"

static int64_t offset_of(const fl_type *t, const int64_t *strides, int64_t flat) {
  int64_t at = 0;
  for (int i = t->rank - 1; i >= 0; i--) {
    at += flat % t->dims[i] * strides[i];
    flat /= t->dims[i];
  }
  return at;
}

/* -1 where a copy is needed, else whether every element is found where it was */
static int reshape(fl_type from, const int64_t *strides, fl_type to) {
  int64_t out[FL_MAX_RANK];
  if (!fl_view_reshape(&from, strides, &to, out)) return -1;
  for (int64_t i = 0; i < fl_type_numel(&from); i++)
    if (offset_of(&from, strides, i) != offset_of(&to, out, i)) return 0;
  return 1;
}

static fl_type dims(int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  return fl_type_make(FL_F32, rank, (int64_t[]){a, b, c, d});
}

FL_TEST(reshapes) {
  FL_CHECK(reshape(dims(2, 2, 3, 0, 0), (int64_t[]){3, 1}, dims(1, 6, 0, 0, 0)) == 1);
  FL_CHECK(reshape(dims(1, 6, 0, 0, 0), (int64_t[]){2}, dims(2, 2, 3, 0, 0)) == 1);
  FL_CHECK(reshape(dims(2, 2, 3, 0, 0), (int64_t[]){1, 2}, dims(1, 6, 0, 0, 0)) == -1);
  FL_CHECK(reshape(dims(2, 2, 3, 0, 0), (int64_t[]){1, 2}, dims(4, 2, 1, 3, 1)) == 1);
  FL_CHECK(reshape(dims(3, 2, 3, 4, 0), (int64_t[]){4, 8, 1}, dims(3, 2, 3, 4, 0)) == 1);
  FL_CHECK(reshape(dims(3, 2, 3, 4, 0), (int64_t[]){4, 8, 1}, dims(2, 6, 4, 0, 0)) == -1);
  FL_CHECK(reshape(dims(2, 4, 1, 0, 0), (int64_t[]){1, 99}, dims(2, 2, 2, 0, 0)) == 1);
  FL_CHECK(reshape(dims(2, 0, 3, 0, 0), (int64_t[]){1, 7}, dims(1, 0, 0, 0, 0)) == 1);
  FL_CHECK(reshape(dims(0, 0, 0, 0, 0), NULL, dims(3, 1, 1, 1, 0)) == 1);
  FL_CHECK(reshape(dims(2, 1, 5, 0, 0), (int64_t[]){0, 0}, dims(1, 5, 0, 0, 0)) == 1); /* of an expansion */
}

/* Attention's result stored as [B, S, H, D] and seen as [B, H, S, D]: the permute and reshape that follow are views. */
FL_TEST(heads_merge_without_a_copy) {
  fl_type bhsd = dims(4, 2, 3, 5, 4), bsd = dims(3, 2, 5, 12, 0);
  int64_t stored[] = {60, 4, 12, 1}, permuted[4], merged[3];
  fl_view_permute(stored, (int64_t[]){0, 2, 1, 3}, 4, permuted);
  fl_type bshd = dims(4, 2, 5, 3, 4);
  FL_CHECK(fl_is_contiguous(&bshd, permuted));
  FL_CHECK(fl_view_reshape(&bshd, permuted, &bsd, merged));
  FL_CHECK(fl_is_contiguous(&bsd, merged));
  FL_CHECK(fl_is_dense(&bhsd, stored));
}

FL_TEST(random_reshapes) {
  srand(3);
  int views = 0;
  for (int round = 0; round < 3000; round++) {
    fl_type from = {.dtype = FL_F32, .rank = rand() % 5}, to = {.dtype = FL_F32};
    int64_t strides[FL_MAX_RANK], step = 1;
    for (int i = 0; i < from.rank; i++) from.dims[i] = 1 + rand() % 4;
    for (int i = from.rank - 1; i >= 0; i--) {
      strides[i] = step;
      step *= from.dims[i] * (rand() % 5 ? 1 : 2);
    }
    if (from.rank > 1 && rand() % 2) {
      int i = rand() % (from.rank - 1);
      int64_t s = strides[i], d = from.dims[i];
      strides[i] = strides[i + 1], from.dims[i] = from.dims[i + 1];
      strides[i + 1] = s, from.dims[i + 1] = d;
    }
    int64_t left = fl_type_numel(&from);
    while (to.rank < 6 && (left > 1 || rand() % 2)) {
      int64_t d = 1 + rand() % 6;
      if (left % d) d = 1;
      if (to.rank == 5) d = left;
      to.dims[to.rank++] = d;
      left /= d;
    }
    int how = left == 1 ? reshape(from, strides, to) : -1;
    FL_CHECK(how != 0);
    if (how < 0 && left == 1) FL_CHECK(!fl_is_contiguous(&from, strides));
    views += how == 1;
  }
  FL_CHECK(views > 1000);
}

FL_TEST(expand_repeats_by_stride_0) {
  fl_type from = dims(2, 1, 3, 0, 0), to = dims(3, 4, 2, 3, 0);
  int64_t out[3];
  fl_view_expand(&from, (int64_t[]){3, 1}, &to, out);
  FL_CHECK(out[0] == 0 && out[1] == 0 && out[2] == 1);
}

FL_TEST(strides_like) {
  fl_type t = dims(4, 2, 3, 4, 5);
  int64_t last[4], out[4];
  fl_strides_channels_last(&t, last);
  fl_strides_like(&t, last, out);
  FL_CHECK(fl_is_channels_last(&t, out));
  fl_strides_like(&t, (int64_t[]){0, 20, 5, 1}, out);
  FL_CHECK(fl_is_contiguous(&t, out));
  FL_CHECK(fl_strides_equal(&t, out, (int64_t[]){60, 20, 5, 1}));
  fl_type ones = dims(2, 1, 5, 0, 0);
  FL_CHECK(fl_strides_equal(&ones, (int64_t[]){77, 1}, (int64_t[]){0, 1}));
}

FL_TEST_MAIN(FL_RUN(reshapes) FL_RUN(heads_merge_without_a_copy) FL_RUN(random_reshapes)
                 FL_RUN(expand_repeats_by_stride_0) FL_RUN(strides_like))
