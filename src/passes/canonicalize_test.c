#include "passes/pass_test.h"

#define P "canonicalize"

FL_TEST(no_op_views) {
  CHECK_PASS(P,
             "graph(%0: f32[2,3]) { %1 = cast(%0) dtype=f32 : f32[2,3] %2 = reshape(%1) dims=[2,3] : f32[2,3]"
             "  %3 = expand(%2) dims=[2,3] : f32[2,3] %4 = slice(%3) axis=1 start=0 stop=3 step=1 : f32[2,3]"
             "  %5 = pad(%4) pads=[0,0,0,0] value=7 : f32[2,3] %6 = cat(%5) axis=0 : f32[2,3]"
             "  %7 = permute(%6) perm=[0,1] : f32[2,3] %8 = neg(%7) : f32[2,3] return %8 }",
             "graph(%0: f32[2,3]) { %1 = neg(%0) : f32[2,3] return %1 }");
}

FL_TEST(views_of_views) {
  CHECK_PASS(P,
             "graph(%0: f32[2,3,4]) { %1 = reshape(%0) dims=[6,4] : f32[6,4] %2 = reshape(%1) dims=[24] : f32[24]"
             "  %3 = permute(%0) perm=[1,2,0] : f32[3,4,2] %4 = permute(%3) perm=[1,0,2] : f32[4,3,2]"
             "  %5 = slice(%0) axis=2 start=1 stop=4 step=1 : f32[2,3,3] %6 = slice(%5) axis=2 start=0 stop=3 step=2 : "
             "f32[2,3,2]"
             "  return %2, %4, %6 }",
             "graph(%0: f32[2,3,4]) { %2 = reshape(%0) dims=[24] : f32[24] %4 = permute(%0) perm=[2,1,0] : f32[4,3,2]"
             "  %6 = slice(%0) axis=2 start=1 stop=4 step=2 : f32[2,3,2] return %2, %4, %6 }");
  CHECK_PASS(P,
             "graph(%0: f32[1,3,1,4]) { %1 = permute(%0) perm=[1,0,3,2] : f32[3,1,4,1]"
             "  %2 = permute(%0) perm=[3,0,1,2] : f32[4,1,3,1] return %1, %2 }",
             "graph(%0: f32[1,3,1,4]) { %1 = reshape(%0) dims=[3,1,4,1] : f32[3,1,4,1]"
             "  %2 = permute(%0) perm=[3,0,1,2] : f32[4,1,3,1] return %1, %2 }");
  CHECK_UNCHANGED(P, "graph(%0: f32[2,9]) { %1 = slice(%0) axis=1 start=0 stop=9 step=2 : f32[2,5]"
                     "  %2 = slice(%1) axis=1 start=1 stop=4 step=1 : f32[2,3] return %2 }");
}

FL_TEST(expand_into_pointwise) {
  CHECK_PASS(P,
             "graph(%0: f32[2,3], %1: f32[1,3]) { %2 = expand(%1) dims=[2,3] : f32[2,3] %3 = add(%0, %2) : f32[2,3] "
             "return %3 }",
             "graph(%0: f32[2,3], %1: f32[1,3]) { %3 = add(%0, %1) : f32[2,3] return %3 }");
  CHECK_UNCHANGED(P, "graph(%1: f32[1,3]) { %2 = expand(%1) dims=[2,3] : f32[2,3] %3 = exp(%2) : f32[2,3] return %3 }");
}

FL_TEST(arithmetic) {
  CHECK_PASS(P,
             "graph(%0: f32[2], %1: literal f32[] = [1], %2: literal f32[] = [0], %3: literal f32[] = [8]) {"
             "  %4 = mul(%1, %0) : f32[2] %5 = sub(%4, %2) : f32[2] %6 = div(%5, %1) : f32[2] %7 = div(%6, %3) : "
             "f32[2] return %7 }",
             "graph(%0: f32[2], %1: literal f32[] = [0.125]) { %4 = mul(%0, %1) : f32[2] return %4 }");
  /* -0 + 0 is 0: the sum is not x. Nor is x - -0. */
  CHECK_UNCHANGED(P, "graph(%0: f32[2], %1: literal f32[] = [0], %2: literal f32[] = [-0], %3: literal f32[] = [3]) {"
                     "  %4 = add(%0, %1) : f32[2] %5 = sub(%4, %2) : f32[2] %6 = div(%5, %3) : f32[2] return %6 }");
  CHECK_PASS(P,
             "graph(%0: i64[2], %1: literal i64[] = [0], %2: literal i32[] = [1]) { %3 = add(%1, %0) : i64[2]"
             "  %4 = cast(%2) dtype=i64 : i64[] %5 = mul(%3, %4) : i64[2] return %5 }",
             "graph(%0: i64[2]) { return %0 }");
  /* It would change the dims. */
  CHECK_UNCHANGED(P, "graph(%0: f32[2], %1: literal f32[3,1] = [1,1,1]) { %3 = mul(%0, %1) : f32[3,2] return %3 }");
}

FL_TEST(powers) {
  CHECK_PASS(P,
             "graph(%0: f32[2], %1: literal f32[] = [2], %2: literal f32[] = [3], %3: literal f32[] = [0.5]) {"
             "  %4 = pow(%0, %1) : f32[2] %5 = pow(%0, %2) : f32[2] %6 = pow(%0, %3) : f32[2] return %4, %5, %6 }",
             "graph(%0: f32[2]) { %4 = mul(%0, %0) : f32[2] %5 = mul(%0, %0) : f32[2] %6 = mul(%5, %0) : f32[2]"
             "  %7 = sqrt(%0) : f32[2] return %4, %6, %7 }");
  CHECK_UNCHANGED(P, "graph(%0: f32[2], %1: literal f32[] = [2.5]) { %4 = pow(%0, %1) : f32[2] return %4 }");
}

FL_TEST(silu) {
  CHECK_PASS(P, "graph(%0: f32[2]) { %1 = sigmoid(%0) : f32[2] %2 = mul(%1, %0) : f32[2] return %2 }",
             "graph(%0: f32[2]) { %1 = silu(%0) : f32[2] return %1 }");
}

FL_TEST(transposed_weights) {
  CHECK_PASS(P,
             "graph(%0: f32[2,3], %1: weight 0 f32[5,3], %2: weight 1 f32[5]) { %3 = permute(%1) perm=[1,0] : f32[3,5]"
             "  %4 = matmul(%0, %3, %2) : f32[2,5] return %4 }",
             "graph(%0: f32[2,3], %1: weight 0 f32[5,3], %2: weight 1 f32[5]) {"
             "  %4 = matmul(%0, %1, %2) trans_b=1 : f32[2,5] return %4 }");
  /* k of attention, [batch, seq, heads, dim] seen as [batch, heads, dim, seq] */
  CHECK_PASS(P,
             "graph(%0: f32[1,4,7,8], %1: f32[1,9,4,8]) { %2 = permute(%1) perm=[0,2,1,3] : f32[1,4,9,8]"
             "  %3 = permute(%2) perm=[0,1,3,2] : f32[1,4,8,9] %4 = matmul(%0, %3) : f32[1,4,7,9] return %4 }",
             "graph(%0: f32[1,4,7,8], %1: f32[1,9,4,8]) { %2 = permute(%1) perm=[0,2,1,3] : f32[1,4,9,8]"
             "  %4 = matmul(%0, %2) trans_b=1 : f32[1,4,7,9] return %4 }");
  CHECK_PASS(P,
             "graph(%0: f32[2,3], %1: f32[3,5]) { %3 = permute(%1) perm=[1,0] : f32[5,3]"
             "  %4 = matmul(%0, %3) trans_b=1 : f32[2,5] return %4 }",
             "graph(%0: f32[2,3], %1: f32[3,5]) { %4 = matmul(%0, %1) : f32[2,5] return %4 }");
}

FL_TEST(linear_keeps_its_axes) {
  CHECK_PASS(
      P,
      "graph(%0: f32[2,7,3], %1: weight 0 f32[5,3], %2: weight 1 f32[5]) { %3 = reshape(%0) dims=[14,3] : f32[14,3]"
      "  %4 = permute(%1) perm=[1,0] : f32[3,5] %5 = matmul(%3, %4, %2) : f32[14,5]"
      "  %6 = reshape(%5) dims=[2,7,5] : f32[2,7,5] return %6 }",
      "graph(%0: f32[2,7,3], %1: weight 0 f32[5,3], %2: weight 1 f32[5]) {"
      "  %5 = matmul(%0, %1, %2) trans_b=1 : f32[2,7,5] return %5 }");
  /* Rows that are made of several axes are not the rows of the source. */
  CHECK_UNCHANGED(P, "graph(%0: f32[2,7,3,4], %1: weight 0 f32[5,12]) { %3 = reshape(%0) dims=[14,12] : f32[14,12]"
                     "  %5 = matmul(%3, %1) trans_b=1 : f32[14,5] return %5 }");
}

FL_TEST(batches_keep_their_axes) {
  CHECK_PASS(P,
             "graph(%0: f32[2,4,7,8], %1: f32[2,4,8,9]) { %2 = expand(%0) dims=[2,4,7,8] : f32[2,4,7,8]"
             "  %3 = reshape(%2) dims=[8,7,8] : f32[8,7,8] %4 = reshape(%1) dims=[8,8,9] : f32[8,8,9]"
             "  %5 = matmul(%3, %4) : f32[8,7,9] %6 = reshape(%5) dims=[2,4,7,9] : f32[2,4,7,9] return %6 }",
             "graph(%0: f32[2,4,7,8], %1: f32[2,4,8,9]) { %5 = matmul(%0, %1) : f32[2,4,7,9] return %5 }");
  CHECK_UNCHANGED(P, "graph(%0: f32[2,4,7,8], %1: f32[4,2,8,9]) { %3 = reshape(%0) dims=[8,7,8] : f32[8,7,8]"
                     "  %4 = reshape(%1) dims=[8,8,9] : f32[8,8,9] %5 = matmul(%3, %4) : f32[8,7,9] return %5 }");
}

FL_TEST_MAIN(FL_RUN(no_op_views) FL_RUN(views_of_views) FL_RUN(expand_into_pointwise) FL_RUN(arithmetic) FL_RUN(powers)
                 FL_RUN(silu) FL_RUN(transposed_weights) FL_RUN(linear_keeps_its_axes) FL_RUN(batches_keep_their_axes))
