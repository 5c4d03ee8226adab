#include "passes/pass_test.h"

FL_TEST(of_two) {
  CHECK_PASS("short_sums", "graph(%0: f32[3,2,5]) { %1 = sum(%0) axes=[1] keepdim=0 : f32[3,5] return %1 }",
             "graph(%0: f32[3,2,5]) { %1 = slice(%0) axis=1 start=0 stop=1 step=1 : f32[3,1,5]"
             " %2 = slice(%0) axis=1 start=1 stop=2 step=1 : f32[3,1,5] %3 = add(%1, %2) : f32[3,1,5]"
             " %4 = reshape(%3) dims=[3,5] : f32[3,5] return %4 }");
}

/* 16-bit floats are added in f32; the product is one of 16-bit floats still. */
FL_TEST(weighted) {
  CHECK_PASS("short_sums",
             "graph(%0: f16[3,2,5,7], %1: f16[2,5,1]) { %2 = mul(%0, %1) : f16[3,2,5,7]"
             " %3 = sum(%2) axes=[1] keepdim=1 : f16[3,1,5,7] return %3 }",
             "graph(%0: f16[3,2,5,7], %1: f16[2,5,1]) { %2 = slice(%0) axis=1 start=0 stop=1 step=1 : f16[3,1,5,7]"
             " %3 = slice(%1) axis=0 start=0 stop=1 step=1 : f16[1,5,1] %4 = mul(%2, %3) : f16[3,1,5,7]"
             " %5 = cast(%4) dtype=f32 : f32[3,1,5,7]"
             " %6 = slice(%0) axis=1 start=1 stop=2 step=1 : f16[3,1,5,7]"
             " %7 = slice(%1) axis=0 start=1 stop=2 step=1 : f16[1,5,1] %8 = mul(%6, %7) : f16[3,1,5,7]"
             " %9 = cast(%8) dtype=f32 : f32[3,1,5,7] %10 = add(%5, %9) : f32[3,1,5,7]"
             " %11 = cast(%10) dtype=f16 : f16[3,1,5,7] return %11 }");
}

/* A factor without the axis, or of one element along it, is every term's. */
FL_TEST(a_factor_that_is_shared) {
  CHECK_PASS("short_sums",
             "graph(%0: f32[2,5], %1: f32[5]) { %2 = mul(%0, %1) : f32[2,5] %3 = sum(%2) axes=[0] keepdim=0 : f32[5]"
             " return %3 }",
             "graph(%0: f32[2,5], %1: f32[5]) { %2 = slice(%0) axis=0 start=0 stop=1 step=1 : f32[1,5]"
             " %3 = mul(%2, %1) : f32[1,5] %4 = slice(%0) axis=0 start=1 stop=2 step=1 : f32[1,5]"
             " %5 = mul(%4, %1) : f32[1,5] %6 = add(%3, %5) : f32[1,5] %7 = reshape(%6) dims=[5] : f32[5]"
             " return %7 }");
}

/* A product that is wanted besides stays whole. */
FL_TEST(a_product_of_two_uses) {
  CHECK_PASS("short_sums",
             "graph(%0: f32[2,5]) { %1 = mul(%0, %0) : f32[2,5] %2 = sum(%1) axes=[0] keepdim=0 : f32[5]"
             " return %1, %2 }",
             "graph(%0: f32[2,5]) { %1 = mul(%0, %0) : f32[2,5] %2 = slice(%1) axis=0 start=0 stop=1 step=1 : f32[1,5]"
             " %3 = slice(%1) axis=0 start=1 stop=2 step=1 : f32[1,5] %4 = add(%2, %3) : f32[1,5]"
             " %5 = reshape(%4) dims=[5] : f32[5] return %1, %5 }");
}

/* Of many; along the last axis; over two axes; of integers. */
FL_TEST(declined) {
  CHECK_UNCHANGED("short_sums", "graph(%0: f32[2,5,3], %1: i64[2,5]) { %2 = sum(%0) axes=[1] keepdim=0 : f32[2,3]"
                                " %3 = sum(%0) axes=[2] keepdim=0 : f32[2,5] %4 = sum(%0) axes=[0,1] keepdim=0 : f32[3]"
                                " %5 = sum(%1) axes=[0] keepdim=0 : i64[5] return %2, %3, %4, %5 }");
}

FL_TEST_MAIN(FL_RUN(of_two) FL_RUN(weighted) FL_RUN(a_factor_that_is_shared) FL_RUN(a_product_of_two_uses)
                 FL_RUN(declined))
