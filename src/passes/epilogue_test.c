#include "passes/pass_test.h"

#define CONV "stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 "

FL_TEST(residual_block) {
  CHECK_PASS("epilogue",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[4,4,1,1], %2: weight 1 f32[4]) {"
             "  %3 = conv2d(%0, %1, %2) " CONV ": f32[1,4,8,8] %4 = relu(%3) : f32[1,4,8,8]"
             "  %5 = conv2d(%4, %1) " CONV ": f32[1,4,8,8] %6 = conv2d(%0, %1) " CONV ": f32[1,4,8,8]"
             "  %7 = add(%5, %6) : f32[1,4,8,8] %8 = relu(%7) : f32[1,4,8,8] return %8 }",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[4,4,1,1], %2: weight 1 f32[4]) {"
             "  %3 = conv2d(%0, %1, %2) " CONV "act=relu : f32[1,4,8,8] %6 = conv2d(%0, %1) " CONV ": f32[1,4,8,8]"
             "  %5 = conv2d(%3, %1, _, %6) " CONV "act=relu : f32[1,4,8,8] return %5 }");
}

FL_TEST(clamp_bounds) {
  CHECK_PASS(
      "epilogue",
      "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) : f32[2,3] %3 = clamp(%2) lo=0 hi=6 : f32[2,3] return "
      "%3 }",
      "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) act=clamp act_lo=0 act_hi=6 : f32[2,3] return %2 }");
}

FL_TEST(bias) {
  CHECK_PASS("epilogue",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[4,4,1,1], %2: weight 1 f32[4,1,1]) {"
             "  %3 = conv2d(%0, %1) " CONV ": f32[1,4,8,8] %4 = add(%2, %3) : f32[1,4,8,8] return %4 }",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[4,4,1,1], %2: weight 1 f32[4,1,1]) {"
             "  %3 = reshape(%2) dims=[4] : f32[4] %4 = conv2d(%0, %1, %3) " CONV ": f32[1,4,8,8] return %4 }");
  CHECK_PASS(
      "epilogue",
      "graph(%0: f32[2,3], %1: f32[3,5], %2: weight 0 f32[5], %3: weight 1 f32[1,5]) {"
      "  %4 = matmul(%0, %1, %2) : f32[2,5] %5 = add(%4, %3) : f32[2,5] return %5 }",
      "graph(%0: f32[2,3], %1: f32[3,5], %2: weight 0 f32[5], %3: weight 1 f32[1,5]) {"
      "  %4 = reshape(%3) dims=[5] : f32[5] %5 = add(%2, %4) : f32[5] %6 = matmul(%0, %1, %5) : f32[2,5] return %6 }");
  /* Along the wrong axis; not constant. */
  CHECK_UNCHANGED("epilogue",
                  "graph(%0: f32[1,4,4,4], %1: weight 0 f32[4,4,1,1], %2: weight 1 f32[4], %3: f32[4,1,1]) {"
                  "  %4 = conv2d(%0, %1) " CONV ": f32[1,4,4,4] %5 = add(%4, %2) : f32[1,4,4,4]"
                  "  %6 = conv2d(%5, %1) " CONV ": f32[1,4,4,4] %7 = add(%6, %3) : f32[1,4,4,4] return %7 }");
}

FL_TEST(across_a_reshape) {
  CHECK_PASS("epilogue",
             "graph(%0: f32[14,3], %1: weight 0 f32[3,5], %2: weight 1 f32[5], %3: f32[2,7,5]) {"
             "  %4 = matmul(%0, %1) : f32[14,5] %5 = reshape(%4) dims=[2,7,5] : f32[2,7,5]"
             "  %6 = add(%5, %2) : f32[2,7,5] %7 = add(%3, %6) : f32[2,7,5] %8 = gelu(%7) : f32[2,7,5] return %8 }",
             "graph(%0: f32[14,3], %1: weight 0 f32[3,5], %2: weight 1 f32[5], %3: f32[2,7,5]) {"
             "  %4 = reshape(%3) dims=[14,5] : f32[14,5] %5 = matmul(%0, %1, %2, %4) act=gelu : f32[14,5]"
             "  %6 = reshape(%5) dims=[2,7,5] : f32[2,7,5] return %6 }");
}

FL_TEST(stays) {
  /* Used twice; after the activation; leaky_relu is none of the activations; both operands are the product. */
  CHECK_UNCHANGED("epilogue",
                  "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) : f32[2,3] %3 = relu(%2) : f32[2,3]"
                  "  return %3, %2 }");
  CHECK_UNCHANGED("epilogue", "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) act=relu : f32[2,3]"
                              "  %3 = add(%2, %0) : f32[2,3] return %3 }");
  CHECK_UNCHANGED("epilogue", "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) : f32[2,3]"
                              "  %3 = leaky_relu(%2) slope=0.1 : f32[2,3] return %3 }");
  CHECK_UNCHANGED("epilogue", "graph(%0: f32[2,3], %1: f32[3,3]) { %2 = matmul(%0, %1) : f32[2,3]"
                              "  %3 = add(%2, %2) : f32[2,3] return %3 }");
  CHECK_UNCHANGED("epilogue", "graph(%0: f32[2,3], %1: f32[3,3], %2: f32[4,2,3]) { %3 = matmul(%0, %1) : f32[2,3]"
                              "  %4 = add(%3, %2) : f32[4,2,3] return %4 }");
}

FL_TEST_MAIN(FL_RUN(residual_block) FL_RUN(clamp_bounds) FL_RUN(bias) FL_RUN(across_a_reshape) FL_RUN(stays))
