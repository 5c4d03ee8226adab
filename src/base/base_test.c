#include "base/alloc.h"
#include "base/dtype.h"
#include "base/test.h"

FL_TEST(status) {
  FL_CHECK(fl_status_code(NULL) == FL_OK && !*fl_status_message(NULL));
  fl_status s = fl_fail(FL_INVALID, "conv2d: groups %d: must divide %d", 3, 8);
  FL_CHECK(fl_status_code(s) == FL_INVALID);
  FL_CHECK(!strcmp(fl_status_message(s), "conv2d: groups 3: must divide 8"));
  s = fl_annotate(s, "node %%%d", 7);
  FL_CHECK(fl_status_code(s) == FL_INVALID);
  FL_CHECK(!strcmp(fl_status_message(s), "node %7: conv2d: groups 3: must divide 8"));
  fl_status_free(s);
  FL_CHECK(fl_annotate(NULL, "x") == NULL);
  FL_CHECK_FAILS(fl_fail(FL_OK, "never success"), FL_INTERNAL, "never");
  FL_CHECK(!strcmp(fl_code_name(FL_UNSUPPORTED), "unsupported"));
}

FL_TEST(status_without_memory) {
  int64_t live = fl_alloc_live();
  fl_alloc_fail_at(1);
  FL_CHECK_FAILS(fl_fail(FL_IO, "x"), FL_OOM, "memory");
  for (int nth = 1; nth <= 2; nth++) {
    fl_status s = fl_fail(FL_IO, "x");
    fl_alloc_fail_at(nth);
    FL_CHECK_FAILS(fl_annotate(s, "y"), FL_OOM, "memory");
  }
  fl_alloc_fail_at(0);
  FL_CHECK_FAILS(fl_annotate(fl_oom(), "y"), FL_OOM, "out of memory");
  FL_CHECK(fl_alloc_live() == live);
}

FL_TEST(heap) {
  int64_t live = fl_alloc_live();
  char *p = fl_strdup("abc");
  FL_CHECK(p && !strcmp(p, "abc") && fl_alloc_live() == live + 1);
  p = fl_realloc(p, 1000);
  FL_CHECK(p && !strcmp(p, "abc") && fl_alloc_live() == live + 1);
  fl_free(p);
  fl_free(NULL);
  void *zero = fl_malloc(0);
  FL_CHECK(zero != NULL);
  fl_free(zero);
  FL_CHECK(fl_calloc(SIZE_MAX, 2) == NULL);
  FL_CHECK(fl_malloc_aligned(SIZE_MAX) == NULL);
  for (size_t size = 0; size < 200; size += 33) {
    void *q = fl_malloc_aligned(size);
    FL_CHECK(q && (uintptr_t)q % 64 == 0);
    memset(q, 1, size);
    fl_free_aligned(q);
  }
  fl_alloc_fail_at(2);
  void *first = fl_malloc(1), *second = fl_malloc(1), *third = fl_malloc(1);
  FL_CHECK(first && !second && third);
  fl_free(first);
  fl_free(third);
  FL_CHECK(fl_alloc_live() == live);
}

FL_TEST(vec) {
  FL_VEC(int) v = {0};
  for (int i = 0; i < 100; i++) FL_CHECK(FL_PUSH(&v, i * i));
  FL_CHECK(v.len == 100 && v.cap >= 100 && v.data[0] == 0 && v.data[99] == 99 * 99);
  v.len = v.cap;
  fl_alloc_fail_at(1);
  FL_CHECK(!FL_PUSH(&v, 1));
  FL_CHECK(v.len == v.cap);
  fl_free(v.data);
}

FL_TEST(arena) {
  int64_t live = fl_alloc_live();
  fl_arena a;
  fl_arena_init(&a);
  unsigned char *small = fl_arena_alloc(&a, 3), *big = fl_arena_alloc(&a, 3 << 20);
  FL_CHECK(small && big && (uintptr_t)small % 16 == 0 && (uintptr_t)big % 16 == 0);
  memset(big, 0xff, 3 << 20);
  for (int i = 0; i < 10000; i++) {
    unsigned char *p = fl_arena_alloc(&a, (size_t)(i % 97));
    FL_CHECK(p && (uintptr_t)p % 16 == 0);
    for (int k = 0; k < i % 97; k++)
      if (p[k]) FL_CHECK(!"arena memory is zeroed");
    memset(p, 0xee, (size_t)(i % 97));
  }
  FL_CHECK(fl_alloc_live() - live < 12);
  FL_CHECK(!strcmp(fl_arena_strdup(&a, "text"), "text"));
  FL_CHECK(fl_arena_alloc(&a, SIZE_MAX) == NULL);
  fl_arena_release(&a);
  fl_alloc_fail_at(1);
  FL_CHECK(fl_arena_alloc(&a, 1) == NULL);
  fl_arena_release(&a);
  FL_CHECK(fl_alloc_live() == live);
}

FL_TEST(dtypes) {
  for (int i = 0; i < FL_DTYPE_COUNT; i++) {
    fl_dtype back;
    FL_CHECK(fl_dtype_parse(fl_dtype_name((fl_dtype)i), &back) && (int)back == i);
    FL_CHECK(fl_dtype_size((fl_dtype)i) > 0);
  }
  FL_CHECK(!strcmp(fl_dtype_name(FL_DTYPE_COUNT), "?") && fl_dtype_size(FL_DTYPE_COUNT) == 0);
  FL_CHECK(fl_dtype_is_float(FL_BF16) && !fl_dtype_is_float(FL_I32));
  FL_CHECK(fl_dtype_is_int(FL_U8) && fl_dtype_is_int(FL_I64) && !fl_dtype_is_int(FL_BOOL));
}

FL_TEST(types) {
  fl_type t = fl_type_make(FL_F32, 4, (int64_t[]){2, 3, 4, 5}), u = t;
  char buf[64];
  FL_CHECK(!strcmp(fl_type_str(&t, buf, sizeof buf), "f32[2,3,4,5]"));
  FL_CHECK(!strcmp(fl_type_str(&t, buf, 7), "f32[2,"));
  FL_CHECK(fl_type_numel(&t) == 120 && fl_type_bytes(&t) == 480);
  u.dtype = FL_I32;
  FL_CHECK(!fl_type_equal(&t, &u) && fl_dims_equal(&t, &u));
  u.dims[3] = 6;
  FL_CHECK(!fl_dims_equal(&t, &u));
  fl_type scalar = fl_type_make(FL_BOOL, 0, NULL);
  FL_CHECK(fl_type_numel(&scalar) == 1 && fl_type_bytes(&scalar) == 1);
  FL_CHECK(!strcmp(fl_type_str(&scalar, buf, sizeof buf), "bool[]"));
  fl_type huge = fl_type_make(FL_F32, 3, (int64_t[]){INT64_MAX, 4, 4});
  FL_CHECK(fl_type_numel(&huge) == INT64_MAX && fl_type_bytes(&huge) == SIZE_MAX);
  huge.dims[1] = 0;
  FL_CHECK(fl_type_numel(&huge) == 0);
}

FL_TEST(strides) {
  fl_type t = fl_type_make(FL_F32, 4, (int64_t[]){2, 3, 4, 5});
  int64_t s[FL_MAX_RANK], nhwc[FL_MAX_RANK];
  fl_strides_contiguous(&t, s);
  fl_strides_channels_last(&t, nhwc);
  FL_CHECK(s[0] == 60 && s[1] == 20 && s[2] == 5 && s[3] == 1);
  FL_CHECK(nhwc[0] == 60 && nhwc[1] == 1 && nhwc[2] == 15 && nhwc[3] == 3);
  FL_CHECK(fl_is_contiguous(&t, s) && !fl_is_channels_last(&t, s) && fl_is_dense(&t, s));
  FL_CHECK(!fl_is_contiguous(&t, nhwc) && fl_is_channels_last(&t, nhwc) && fl_is_dense(&t, nhwc));
  FL_CHECK(fl_is_dense(&t, (int64_t[]){3, 1, 30, 6}));
  FL_CHECK(!fl_is_dense(&t, (int64_t[]){120, 40, 10, 2}) && !fl_is_dense(&t, (int64_t[]){0, 20, 5, 1}));
  fl_type one = fl_type_make(FL_F32, 4, (int64_t[]){1, 3, 1, 5});
  FL_CHECK(fl_is_contiguous(&one, (int64_t[]){77, 5, 0, 1}) && fl_is_dense(&one, (int64_t[]){77, 5, 0, 1}));
  FL_CHECK(fl_is_channels_last(&one, (int64_t[]){0, 1, 99, 3}) && fl_is_dense(&one, (int64_t[]){0, 1, 99, 3}));
  fl_type nlc = fl_type_make(FL_F32, 3, (int64_t[]){2, 3, 4});
  fl_strides_channels_last(&nlc, nhwc);
  FL_CHECK(nhwc[0] == 12 && nhwc[1] == 1 && nhwc[2] == 3);
  fl_type none = fl_type_make(FL_F32, 2, (int64_t[]){0, 3});
  FL_CHECK(fl_is_contiguous(&none, (int64_t[]){9, 9}));
}

FL_TEST_MAIN(FL_RUN(status) FL_RUN(status_without_memory) FL_RUN(heap) FL_RUN(vec) FL_RUN(arena) FL_RUN(dtypes)
                 FL_RUN(types) FL_RUN(strides))
