#include "passes/pass_test.h"

FL_TEST(erf_form) {
  CHECK_PASS("activations",
             "graph(%0: f32[2], %1: literal f32[] = [0.5], %2: literal f32[] = [1.41421354], %3: literal f32[] = [1]) {"
             "  %4 = mul(%0, %1) : f32[2] %5 = div(%0, %2) : f32[2] %6 = erf(%5) : f32[2] %7 = add(%6, %3) : f32[2]"
             "  %8 = mul(%4, %7) : f32[2] return %8 }",
             "graph(%0: f32[2]) { %1 = gelu(%0) : f32[2] return %1 }");
}

#define NUMBERS                                                                                                        \
  "%1: literal f32[] = [0.5], %2: literal f32[] = [0.044714998], %3: literal f32[] = [0.797884583], %4: literal "      \
  "f32[] = [1]"

FL_TEST(tanh_forms) {
  CHECK_PASS("activations",
             "graph(%0: f32[2], " NUMBERS
             ") { %5 = mul(%0, %1) : f32[2] %6 = mul(%0, %0) : f32[2] %7 = mul(%6, %0) : f32[2]"
             "  %8 = mul(%7, %2) : f32[2] %9 = add(%0, %8) : f32[2] %10 = mul(%9, %3) : f32[2] %11 = tanh(%10) : f32[2]"
             "  %12 = add(%11, %4) : f32[2] %13 = mul(%5, %12) : f32[2] return %13 }",
             "graph(%0: f32[2]) { %1 = gelu_tanh(%0) : f32[2] return %1 }");
  CHECK_PASS("activations",
             "graph(%0: f32[2], " NUMBERS
             ") { %5 = mul(%0, %3) : f32[2] %6 = mul(%0, %2) : f32[2] %7 = mul(%6, %0) : f32[2]"
             "  %8 = add(%7, %4) : f32[2] %9 = mul(%5, %8) : f32[2] %10 = tanh(%9) : f32[2] %11 = add(%10, %4) : f32[2]"
             "  %12 = mul(%11, %0) : f32[2] %13 = mul(%12, %1) : f32[2] return %13 }",
             "graph(%0: f32[2]) { %1 = gelu_tanh(%0) : f32[2] return %1 }");
}

/* Numbers as 16-bit floats hold them. */
FL_TEST(rounded_numbers) {
  CHECK_PASS(
      "activations",
      "graph(%0: f16[2], %1: literal f16[] = [0.5], %2: literal f16[] = [0.0447082519], %3: literal f16[] = "
      "[0.797851562], %4: literal f16[] = [1]) { %5 = mul(%0, %1) : f16[2] %6 = mul(%0, %0) : f16[2]"
      "  %7 = mul(%6, %0) : f16[2] %8 = mul(%7, %2) : f16[2] %9 = add(%0, %8) : f16[2] %10 = mul(%9, %3) : f16[2]"
      "  %11 = tanh(%10) : f16[2] %12 = add(%11, %4) : f16[2] %13 = mul(%5, %12) : f16[2] return %13 }",
      "graph(%0: f16[2]) { %1 = gelu_tanh(%0) : f16[2] return %1 }");
}

/* Another number; another x. */
FL_TEST(declined) {
  CHECK_UNCHANGED(
      "activations",
      "graph(%0: f32[2], %1: literal f32[] = [0.5], %2: literal f32[] = [1.5], %3: literal f32[] = [1]) {"
      "  %4 = mul(%0, %1) : f32[2] %5 = div(%0, %2) : f32[2] %6 = erf(%5) : f32[2] %7 = add(%6, %3) : f32[2]"
      "  %8 = mul(%4, %7) : f32[2] return %8 }");
  CHECK_UNCHANGED(
      "activations",
      "graph(%0: f32[2], %9: f32[2], %1: literal f32[] = [0.5], %2: literal f32[] = [1.41421354],"
      " %3: literal f32[] = [1]) {"
      "  %4 = mul(%0, %1) : f32[2] %5 = div(%9, %2) : f32[2] %6 = erf(%5) : f32[2] %7 = add(%6, %3) : f32[2]"
      "  %8 = mul(%4, %7) : f32[2] return %8 }");
}

FL_TEST_MAIN(FL_RUN(erf_form) FL_RUN(tanh_forms) FL_RUN(rounded_numbers) FL_RUN(declined))
