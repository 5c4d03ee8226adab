#include "passes/pass_test.h"

/* The rows of its weights lie as they should. */
FL_TEST(an_odd_vocabulary) {
  CHECK_UNCHANGED("pad_linear", "graph(%0: f16[2,7,3], %1: weight 0 f16[1027,3], %2: weight 1 f16[1027]) {"
                                "  %3 = matmul(%0, %1, %2) trans_b=1 : f16[2,7,1027] return %3 }");
}

FL_TEST(as_rows_by_columns) {
  CHECK_PASS(
      "pad_linear",
      "graph(%0: bf16[7,3], %1: weight 0 bf16[3,1025]) { %2 = matmul(%0, %1) act=relu : bf16[7,1025] return %2 }",
      "graph(%0: bf16[7,3], %1: weight 0 bf16[3,1025]) { %2 = pad(%1) pads=[0,0,0,7] value=0.0 : bf16[3,1032]"
      "  %3 = matmul(%0, %2) act=relu : bf16[7,1032]"
      "  %4 = slice(%3) axis=1 start=0 stop=1025 step=1 : bf16[7,1025] return %4 }");
}

/* Of even width, narrow, of 32-bit floats, not constant, with a residual. */
FL_TEST(declined) {
  CHECK_UNCHANGED(
      "pad_linear",
      "graph(%0: f16[7,3], %1: weight 0 f16[3,1032], %2: weight 1 f16[3,1001], %3: f32[7,3], %4: weight 2 f32[3,1025],"
      "      %5: f16[3,1025], %6: weight 3 f16[3,1025], %7: f16[7,1025]) {"
      "  %8 = matmul(%0, %1) : f16[7,1032] %9 = matmul(%0, %2) : f16[7,1001] %10 = matmul(%3, %4) : f32[7,1025]"
      "  %11 = matmul(%0, %5) : f16[7,1025] %12 = matmul(%0, %6, _, %7) : f16[7,1025]"
      "  return %8, %9, %10, %11, %12 }");
}

FL_TEST_MAIN(FL_RUN(an_odd_vocabulary) FL_RUN(as_rows_by_columns) FL_RUN(declined))
