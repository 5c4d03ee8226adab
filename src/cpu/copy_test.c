#include <stdlib.h>

#include "base/alloc.h"
#include "base/test.h"
#include "cpu/kernel.h"

static size_t offset_of(const fl_tensor *t, int64_t flat) {
  int64_t at = 0;
  for (int i = t->type.rank - 1; i >= 0; i--) {
    at += flat % t->type.dims[i] * t->strides[i];
    flat /= t->type.dims[i];
  }
  return (size_t)at * fl_dtype_size(t->type.dtype);
}

static size_t span(const fl_tensor *t) {
  int64_t last = 0;
  if (!fl_type_numel(&t->type)) return 1;
  for (int i = 0; i < t->type.rank; i++)
    if (t->strides[i] > 0) last += (t->type.dims[i] - 1) * t->strides[i];
  return (size_t)(last + 1) * fl_dtype_size(t->type.dtype);
}

/* Strides dense in a random order of axes; `gap` > 1 leaves holes. */
static void random_strides(fl_tensor *t, int gap) {
  int order[FL_MAX_RANK];
  for (int i = 0; i < t->type.rank; i++) {
    int j = rand() % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  int64_t step = gap;
  for (int i = 0; i < t->type.rank; i++) {
    t->strides[order[i]] = step;
    step *= t->type.dims[order[i]];
  }
}

static void check_copy(fl_tensor *dst, fl_tensor *src, fl_pool *pool) {
  size_t elem = fl_dtype_size(src->type.dtype), src_bytes = span(src), dst_bytes = span(dst);
  unsigned char *s = malloc(src_bytes), *d = malloc(dst_bytes), *expect = malloc(dst_bytes);
  for (size_t i = 0; i < src_bytes; i++) s[i] = (unsigned char)rand();
  memset(d, 0xee, dst_bytes);
  memset(expect, 0xee, dst_bytes);
  src->data = s;
  dst->data = d;
  int64_t n = fl_type_numel(&src->type);
  for (int64_t i = 0; i < n; i++) memcpy(expect + offset_of(dst, i), s + offset_of(src, i), elem);
  fl_copy_strided(dst, src, pool);
  char text[64];
  FL_CHECK_MSG(!memcmp(expect, d, dst_bytes), "%s", fl_type_str(&src->type, text, sizeof text));
  free(s);
  free(d);
  free(expect);
}

FL_TEST(random_copies) {
  static const fl_dtype dtypes[] = {FL_F32, FL_F64, FL_BF16, FL_U8};
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  srand(2);
  for (int round = 0; round < 1500; round++) {
    fl_tensor a = {.type = {.dtype = dtypes[rand() % 4], .rank = rand() % 6}};
    for (int i = 0; i < a.type.rank; i++) a.type.dims[i] = rand() % 8 ? 1 + rand() % 9 : rand() % 90;
    if (fl_type_numel(&a.type) > 200000) continue;
    fl_tensor b = a;
    random_strides(&a, 1 + rand() % 2);
    random_strides(&b, rand() % 4 ? 1 : 2);
    if (rand() % 4 == 0 && a.type.rank) a.strides[rand() % a.type.rank] = 0; /* a broadcast source */
    check_copy(&b, &a, rand() % 2 ? pool : NULL);
  }
  fl_pool_destroy(pool);
}

FL_TEST(images) {
  int64_t sizes[][4] = {{1, 3, 65, 67}, {2, 64, 33, 17}, {1, 255, 7, 7}, {3, 1, 100, 100}};
  for (int i = 0; i < 4; i++) {
    fl_tensor a = {.type = fl_type_make(FL_F32, 4, sizes[i])}, b = a;
    fl_strides_contiguous(&a.type, a.strides);
    fl_strides_channels_last(&b.type, b.strides);
    check_copy(&b, &a, NULL);
    check_copy(&a, &b, NULL);
  }
}

FL_TEST_MAIN(FL_RUN(random_copies) FL_RUN(images))
