#include "passes/pass_test.h"

#define X "%0: f32[2,7,8], %1: weight 0 f32[8], %2: weight 1 f32[8]"

FL_TEST(rms) {
  CHECK_PASS("norms",
             "graph(" X ", %3: literal f32[] = [0.0009765625]) { %4 = mul(%0, %0) : f32[2,7,8]"
             "  %5 = mean(%4) axes=[2] keepdim=1 : f32[2,7,1] %6 = add(%5, %3) : f32[2,7,1] %7 = rsqrt(%6) : f32[2,7,1]"
             "  %8 = mul(%0, %7) : f32[2,7,8] %9 = mul(%1, %8) : f32[2,7,8] return %9 }",
             "graph(%0: f32[2,7,8], %1: weight 0 f32[8]) { %9 = rms_norm(%0, %1) axes=1 eps=0.0009765625 : f32[2,7,8] "
             "return %9 }");
}

FL_TEST(layer) {
  CHECK_PASS(
      "norms",
      "graph(" X ", %3: literal f32[] = [0.0009765625]) { %4 = mean(%0) axes=[2] keepdim=1 : f32[2,7,1]"
      "  %5 = sub(%0, %4) : f32[2,7,8] %6 = mul(%5, %5) : f32[2,7,8] %7 = mean(%6) axes=[2] keepdim=1 : f32[2,7,1]"
      "  %8 = add(%7, %3) : f32[2,7,1] %9 = sqrt(%8) : f32[2,7,1] %10 = div(%5, %9) : f32[2,7,8]"
      "  %11 = mul(%10, %1) : f32[2,7,8] %12 = add(%2, %11) : f32[2,7,8] return %12 }",
      "graph(" X ") { %12 = layer_norm(%0, %1, %2) axes=1 eps=0.0009765625 : f32[2,7,8] return %12 }");
  CHECK_PASS(
      "norms",
      "graph(%0: f32[2,7,8], %3: literal f32[] = [0.0009765625]) { %4 = mean(%0) axes=[1,2] keepdim=1 : f32[2,1,1]"
      "  %5 = sub(%0, %4) : f32[2,7,8] %7 = var(%0) axes=[1,2] keepdim=1 correction=0 : f32[2,1,1]"
      "  %8 = add(%7, %3) : f32[2,1,1] %9 = rsqrt(%8) : f32[2,1,1] %10 = mul(%9, %5) : f32[2,7,8] return %10 }",
      "graph(%0: f32[2,7,8]) { %12 = layer_norm(%0) axes=2 eps=0.0009765625 : f32[2,7,8] return %12 }");
}

/* As T5 and Llama write it in 16 bits. */
FL_TEST(rms_with_casts) {
  CHECK_PASS("norms",
             "graph(%0: f16[2,7,8], %1: weight 0 f16[8], %3: literal f32[] = [0.0009765625]) {"
             "  %2 = cast(%0) dtype=f32 : f32[2,7,8] %4 = mul(%2, %2) : f32[2,7,8]"
             "  %5 = mean(%4) axes=[2] keepdim=1 : f32[2,7,1] %6 = add(%5, %3) : f32[2,7,1] %7 = rsqrt(%6) : f32[2,7,1]"
             "  %8 = mul(%2, %7) : f32[2,7,8] %9 = cast(%8) dtype=f16 : f16[2,7,8] %10 = mul(%1, %9) : f16[2,7,8]"
             "  return %10 }",
             "graph(%0: f16[2,7,8], %1: weight 0 f16[8]) { %9 = rms_norm(%0, %1) axes=1 eps=0.0009765625 : f16[2,7,8] "
             "return %9 }");
}

/* The result stays in 32 bits; of another type than what came in; a weight of 32 bits in between. */
FL_TEST(casts_declined) {
  CHECK_UNCHANGED("norms", "graph(%0: f16[2,8], %1: weight 0 f32[8]) { %2 = cast(%0) dtype=f32 : f32[2,8]"
                           "  %3 = rms_norm(%2) axes=1 eps=0.5 : f32[2,8] %4 = cast(%3) dtype=bf16 : bf16[2,8]"
                           "  %5 = rms_norm(%2, %1) axes=1 eps=0.5 : f32[2,8] %6 = cast(%5) dtype=f16 : f16[2,8]"
                           "  return %3, %4, %6 }");
}

FL_TEST(declined) {
  /* Not the last axis; the unbiased variance; the square of something else. */
  CHECK_UNCHANGED("norms", "graph(%0: f32[2,7,8], %3: literal f32[] = [0.0009765625]) { %4 = mul(%0, %0) : f32[2,7,8]"
                           "  %5 = mean(%4) axes=[1] keepdim=1 : f32[2,1,8] %6 = add(%5, %3) : f32[2,1,8]"
                           "  %7 = rsqrt(%6) : f32[2,1,8] %8 = mul(%0, %7) : f32[2,7,8] return %8 }");
  CHECK_UNCHANGED(
      "norms",
      "graph(%0: f32[2,7,8], %3: literal f32[] = [0.0009765625]) { %4 = mean(%0) axes=[2] keepdim=1 : f32[2,7,1]"
      "  %5 = sub(%0, %4) : f32[2,7,8] %7 = var(%0) axes=[2] keepdim=1 correction=1 : f32[2,7,1]"
      "  %8 = add(%7, %3) : f32[2,7,1] %9 = rsqrt(%8) : f32[2,7,1] %10 = mul(%5, %9) : f32[2,7,8]"
      "  return %10 }");
  CHECK_UNCHANGED(
      "norms",
      "graph(%0: f32[2,7,8], %1: f32[2,7,8], %3: literal f32[] = [0.0009765625]) { %4 = mul(%0, %1) : f32[2,7,8]"
      "  %5 = mean(%4) axes=[2] keepdim=1 : f32[2,7,1] %6 = add(%5, %3) : f32[2,7,1]"
      "  %7 = rsqrt(%6) : f32[2,7,1] %8 = mul(%0, %7) : f32[2,7,8] return %8 }");
  /* The product with an activation of the weight's dims is no weight; one used twice keeps its value. */
  CHECK_UNCHANGED("norms", "graph(%0: f32[2,8], %1: f32[8]) { %2 = rms_norm(%0) axes=1 eps=0 : f32[2,8]"
                           "  %3 = mul(%2, %1) : f32[2,8] return %3 }");
  CHECK_UNCHANGED("norms", "graph(%0: f32[2,8], %1: weight 0 f32[8]) { %2 = rms_norm(%0) axes=1 eps=0 : f32[2,8]"
                           "  %3 = mul(%2, %1) : f32[2,8] return %3, %2 }");
}

FL_TEST_MAIN(FL_RUN(rms) FL_RUN(layer) FL_RUN(rms_with_casts) FL_RUN(casts_declined) FL_RUN(declined))
