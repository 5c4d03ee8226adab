#include "passes/pass_test.h"

/* A row that is masked throughout is NaN. */
#define HIDES ", %20: literal f32[] = [-inf], %21: literal f32[] = [nan], %22: literal f32[] = [0]"
#define QKV   "%0: f32[2,4,7,8], %1: f32[2,4,9,8], %2: f32[2,4,9,6]"

FL_TEST(plain) {
  CHECK_PASS("attention",
             "graph(" QKV ", %3: literal f32[] = [0.5]) { %4 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9]"
             "  %5 = mul(%4, %3) : f32[2,4,7,9] %6 = softmax(%5) axis=3 : f32[2,4,7,9]"
             "  %7 = matmul(%6, %2) : f32[2,4,7,6] return %7 }",
             "graph(" QKV ") { %7 = attention(%0, %1, %2) scale=0.5 : f32[2,4,7,6] return %7 }");
}

FL_TEST(masks_and_factors) {
  CHECK_PASS(
      "attention",
      "graph(" QKV ", %3: f32[2,1,1,9], %4: f32[7,9], %5: literal f32[] = [4], %6: literal f32[] = [0.5]) {"
      "  %7 = mul(%0, %6) : f32[2,4,7,8] %8 = matmul(%7, %1) trans_b=1 : f32[2,4,7,9] %9 = add(%8, %3) : f32[2,4,7,9]"
      "  %10 = div(%9, %5) : f32[2,4,7,9] %11 = add(%4, %10) : f32[2,4,7,9] %12 = softmax(%11) axis=3 : f32[2,4,7,9]"
      "  %13 = matmul(%12, %2) : f32[2,4,7,6] return %13 }",
      "graph(" QKV ", %3: f32[2,1,1,9], %4: f32[7,9], %5: literal f32[] = [0.25]" HIDES ") {"
      "  %6 = mul(%3, %5) : f32[2,1,1,9] %7 = add(%4, %6) : f32[2,1,7,9]"
      "  %13 = attention(%0, %1, %2, %7) scale=0.125 : f32[2,4,7,6] %14 = amax(%7) axes=[3] keepdim=1 : f32[2,1,7,1]"
      "  %15 = eq(%14, %20) : bool[2,1,7,1] %16 = where(%15, %21, %22) : f32[2,1,7,1]"
      "  %17 = add(%13, %16) : f32[2,4,7,6] return %17 }");
}

FL_TEST(masked_fill) {
  CHECK_PASS("attention",
             "graph(" QKV ", %3: bool[1,1,7,9], %4: literal f32[] = [-inf]) {"
             "  %5 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9] %6 = where(%3, %5, %4) : f32[2,4,7,9]"
             "  %7 = softmax(%6) axis=3 : f32[2,4,7,9] %8 = matmul(%7, %2) : f32[2,4,7,6] return %8 }",
             "graph(" QKV ", %3: bool[1,1,7,9], %4: literal f32[] = [0], %5: literal f32[] = [-inf]" HIDES ") {"
             "  %6 = where(%3, %4, %5) : f32[1,1,7,9] %7 = attention(%0, %1, %2, %6) scale=1 : f32[2,4,7,6]"
             "  %8 = amax(%6) axes=[3] keepdim=1 : f32[1,1,7,1] %9 = eq(%8, %20) : bool[1,1,7,1]"
             "  %10 = where(%9, %21, %22) : f32[1,1,7,1] %11 = add(%7, %10) : f32[2,4,7,6] return %11 }");
  CHECK_PASS(
      "attention",
      "graph(" QKV ", %3: bool[1,1,7,9], %4: literal f32[] = [-1e38]) {"
      "  %5 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9] %6 = where(%3, %4, %5) : f32[2,4,7,9]"
      "  %7 = softmax(%6) axis=3 : f32[2,4,7,9] %8 = matmul(%7, %2) : f32[2,4,7,6] return %8 }",
      "graph(" QKV ", %3: bool[1,1,7,9], %4: literal f32[] = [0], %5: literal f32[] = [-1e38]) {"
      "  %6 = where(%3, %5, %4) : f32[1,1,7,9] %7 = attention(%0, %1, %2, %6) scale=1 : f32[2,4,7,6] return %7 }");
  /* Numbers and bools say that no row is masked throughout. */
  CHECK_PASS("attention",
             "graph(" QKV ", %3: bool[2,1,7,9], %4: literal f32[] = [1], %5: literal f32[] = [-3e38]) {"
             "  %6 = cast(%3) dtype=f32 : f32[2,1,7,9] %7 = sub(%4, %6) : f32[2,1,7,9] %8 = mul(%7, %5) : f32[2,1,7,9]"
             "  %9 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9] %10 = add(%9, %8) : f32[2,4,7,9]"
             "  %11 = softmax(%10) axis=3 : f32[2,4,7,9] %12 = matmul(%11, %2) : f32[2,4,7,6] return %12 }",
             "graph(" QKV ", %3: bool[2,1,7,9], %4: literal f32[] = [1], %5: literal f32[] = [-3e38]) {"
             "  %6 = cast(%3) dtype=f32 : f32[2,1,7,9] %7 = sub(%4, %6) : f32[2,1,7,9] %8 = mul(%7, %5) : f32[2,1,7,9]"
             "  %12 = attention(%0, %1, %2, %8) scale=1 : f32[2,4,7,6] return %12 }");
  /* A score may survive -100. */
  CHECK_UNCHANGED("attention",
                  "graph(" QKV ", %3: bool[1,1,7,9], %4: literal f32[] = [-100]) {"
                  "  %5 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9] %6 = where(%3, %5, %4) : f32[2,4,7,9]"
                  "  %7 = softmax(%6) axis=3 : f32[2,4,7,9] %8 = matmul(%7, %2) : f32[2,4,7,6] return %8 }");
}

FL_TEST(three_axes) {
  CHECK_PASS("attention",
             "graph(%0: f32[8,7,8], %1: f32[8,8,9], %2: f32[8,9,6], %3: f32[8,1,9]) { %4 = matmul(%0, %1) : f32[8,7,9]"
             "  %5 = add(%4, %3) : f32[8,7,9] %6 = softmax(%5) axis=2 : f32[8,7,9] %7 = matmul(%6, %2) : f32[8,7,6]"
             "  return %7 }",
             "graph(%0: f32[8,7,8], %1: f32[8,8,9], %2: f32[8,9,6], %3: f32[8,1,9]" HIDES ") {"
             "  %4 = permute(%1) perm=[0,2,1] : f32[8,9,8] %5 = reshape(%0) dims=[1,8,7,8] : f32[1,8,7,8]"
             "  %6 = reshape(%4) dims=[1,8,9,8] : f32[1,8,9,8] %7 = reshape(%2) dims=[1,8,9,6] : f32[1,8,9,6]"
             "  %8 = attention(%5, %6, %7, %3) scale=1 : f32[1,8,7,6]"
             "  %10 = amax(%3) axes=[2] keepdim=1 : f32[8,1,1] %11 = eq(%10, %20) : bool[8,1,1]"
             "  %12 = where(%11, %21, %22) : f32[8,1,1] %13 = add(%8, %12) : f32[1,8,7,6]"
             "  %9 = reshape(%13) dims=[8,7,6] : f32[8,7,6] return %9 }");
}

FL_TEST(declined) {
  /* Wrong axis; probabilities used elsewhere; an activation in between. */
  CHECK_UNCHANGED("attention",
                  "graph(" QKV ") { %4 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9]"
                  "  %6 = softmax(%4) axis=2 : f32[2,4,7,9] %7 = matmul(%6, %2) : f32[2,4,7,6] return %7 }");
  CHECK_UNCHANGED("attention",
                  "graph(" QKV ") { %4 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9]"
                  "  %6 = softmax(%4) axis=3 : f32[2,4,7,9] %7 = matmul(%6, %2) : f32[2,4,7,6] return %7, %6 }");
  CHECK_UNCHANGED("attention",
                  "graph(" QKV ") { %4 = matmul(%0, %1) trans_b=1 : f32[2,4,7,9] %5 = tanh(%4) : f32[2,4,7,9]"
                  "  %6 = softmax(%5) axis=3 : f32[2,4,7,9] %7 = matmul(%6, %2) : f32[2,4,7,6] return %7 }");
}

FL_TEST(repeated_heads) {
  CHECK_PASS("attention",
             "graph(%0: f32[2,8,7,6], %1: f32[2,4,9,6], %2: f32[2,4,9,6]) {"
             "  %3 = reshape(%1) dims=[2,4,1,9,6] : f32[2,4,1,9,6] %4 = expand(%3) dims=[2,4,2,9,6] : f32[2,4,2,9,6]"
             "  %5 = reshape(%4) dims=[2,8,9,6] : f32[2,8,9,6] %6 = reshape(%2) dims=[2,4,1,9,6] : f32[2,4,1,9,6]"
             "  %7 = expand(%6) dims=[2,4,2,9,6] : f32[2,4,2,9,6] %8 = reshape(%7) dims=[2,8,9,6] : f32[2,8,9,6]"
             "  %9 = attention(%0, %5, %8) scale=1 causal=1 : f32[2,8,7,6] return %9 }",
             "graph(%0: f32[2,8,7,6], %1: f32[2,4,9,6], %2: f32[2,4,9,6]) {"
             "  %9 = attention(%0, %1, %2) scale=1 causal=1 : f32[2,8,7,6] return %9 }");
  /* [G, r] the other way round: heads are interleaved otherwise. */
  CHECK_UNCHANGED(
      "attention",
      "graph(%0: f32[2,8,7,6], %1: f32[2,4,9,6]) {"
      "  %3 = reshape(%1) dims=[2,1,4,9,6] : f32[2,1,4,9,6] %4 = expand(%3) dims=[2,2,4,9,6] : f32[2,2,4,9,6]"
      "  %5 = reshape(%4) dims=[2,8,9,6] : f32[2,8,9,6]"
      "  %9 = attention(%0, %5, %5) scale=1 : f32[2,8,7,6] return %9 }");
}

FL_TEST(masks_that_hide_nothing) {
  CHECK_PASS("attention",
             "graph(%0: f32[2,8,7,6], %1: f32[2,8,9,6], %2: literal f32[] = [0], %3: literal bool[1] = [1]) {"
             "  %4 = expand(%2) dims=[2,8,7,9] : f32[2,8,7,9] %5 = attention(%0, %1, %1, %4) scale=1 : f32[2,8,7,6]"
             "  %6 = expand(%3) dims=[7,9] : bool[7,9] %7 = attention(%5, %1, %1, %6) scale=1 causal=1 : f32[2,8,7,6]"
             "  return %7 }",
             "graph(%0: f32[2,8,7,6], %1: f32[2,8,9,6], %2: literal f32[] = [0], %3: literal bool[1] = [1]) {"
             "  %5 = attention(%0, %1, %1) scale=1 : f32[2,8,7,6]"
             "  %7 = attention(%5, %1, %1) scale=1 causal=1 : f32[2,8,7,6] return %7 }");
  CHECK_UNCHANGED(
      "attention",
      "graph(%0: f32[2,8,7,6], %1: f32[2,8,9,6], %2: literal f32[] = [1], %3: literal bool[1] = [0],"
      "      %8: literal f32[9] = [0,0,0,0,0,0,0,0,1]) {"
      "  %4 = expand(%2) dims=[2,8,7,9] : f32[2,8,7,9] %5 = attention(%0, %1, %1, %4) scale=1 : f32[2,8,7,6]"
      "  %6 = expand(%3) dims=[7,9] : bool[7,9] %7 = attention(%5, %1, %1, %6) scale=1 : f32[2,8,7,6]"
      "  %9 = attention(%7, %1, %1, %8) scale=1 : f32[2,8,7,6] return %9 }");
}

FL_TEST_MAIN(FL_RUN(plain) FL_RUN(masks_and_factors) FL_RUN(masked_fill) FL_RUN(three_axes) FL_RUN(declined)
                 FL_RUN(repeated_heads) FL_RUN(masks_that_hide_nothing))
