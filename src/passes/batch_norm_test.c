#include "passes/pass_test.h"

#define CONV  "stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=1 "
#define STATS "%2: weight 1 f32[6], %3: weight 2 f32[6], %4: weight 3 f32[6], %5: weight 4 f32[6]"
#define SCALE "%20 = add(%5, %10) : f32[6] %21 = rsqrt(%20) : f32[6] %22 = mul(%21, %2) : f32[6] "

FL_TEST(after_convolution) {
  CHECK_PASS("batch_norm",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[6,4,1,1], " STATS ") {"
             "  %6 = conv2d(%0, %1) " CONV ": f32[1,6,8,8] %7 = batch_norm(%6, %2, %3, %4, %5) eps=1e-5 : f32[1,6,8,8]"
             "  return %7 }",
             "graph(%0: f32[1,4,8,8], %1: weight 0 f32[6,4,1,1], " STATS ", %10: literal f32[] = [1e-5]) {" SCALE
             "  %23 = reshape(%22) dims=[6,1,1,1] : f32[6,1,1,1] %24 = mul(%1, %23) : f32[6,4,1,1]"
             "  %25 = mul(%4, %22) : f32[6] %26 = sub(%3, %25) : f32[6]"
             "  %27 = conv2d(%0, %24, %26) " CONV ": f32[1,6,8,8] return %27 }");
}

FL_TEST(with_bias_through_reshape) {
  CHECK_PASS(
      "batch_norm",
      "graph(%0: f32[1,4,1,8], %1: weight 0 f32[6,4,1,1], " STATS ", %6: weight 5 f32[6]) {"
      "  %7 = conv2d(%0, %1, %6) " CONV ": f32[1,6,1,8] %8 = reshape(%7) dims=[1,6,8] : f32[1,6,8]"
      "  %9 = batch_norm(%8, %2, %3, %4, %5) eps=1e-5 : f32[1,6,8] return %9 }",
      "graph(%0: f32[1,4,1,8], %1: weight 0 f32[6,4,1,1], " STATS ", %6: weight 5 f32[6], %10: literal f32[] = [1e-5])"
      "{" SCALE "%23 = reshape(%22) dims=[6,1,1,1] : f32[6,1,1,1] %24 = mul(%1, %23) : f32[6,4,1,1]"
      "  %25 = sub(%6, %4) : f32[6] %26 = mul(%25, %22) : f32[6] %27 = add(%26, %3) : f32[6]"
      "  %28 = conv2d(%0, %24, %27) " CONV ": f32[1,6,1,8] %29 = reshape(%28) dims=[1,6,8] : f32[1,6,8] return %29 }");
}

FL_TEST(after_linear) {
  CHECK_PASS("batch_norm",
             "graph(%0: f32[2,4], %1: weight 0 f32[4,6], " STATS ") { %6 = matmul(%0, %1) : f32[2,6]"
             "  %7 = batch_norm(%6, %2, %3, %4, %5) eps=1e-5 : f32[2,6] return %7 }",
             "graph(%0: f32[2,4], %1: weight 0 f32[4,6], " STATS ", %10: literal f32[] = [1e-5]) {" SCALE
             "  %24 = mul(%1, %22) : f32[4,6] %25 = mul(%4, %22) : f32[6] %26 = sub(%3, %25) : f32[6]"
             "  %27 = matmul(%0, %24, %26) : f32[2,6] return %27 }");
}

FL_TEST(spelled_out) {
  CHECK_PASS("batch_norm",
             "graph(%0: f32[1,6,8,8], " STATS
             ") { %6 = batch_norm(%0, %2, %3, %4, %5) eps=1e-5 : f32[1,6,8,8] return %6 }",
             "graph(%0: f32[1,6,8,8], " STATS ", %10: literal f32[] = [1e-5]) {" SCALE
             "  %23 = mul(%4, %22) : f32[6] %24 = sub(%3, %23) : f32[6] %25 = reshape(%22) dims=[6,1,1] : f32[6,1,1]"
             "  %26 = reshape(%24) dims=[6,1,1] : f32[6,1,1] %27 = mul(%0, %25) : f32[1,6,8,8]"
             "  %28 = add(%27, %26) : f32[1,6,8,8] return %28 }");
}

FL_TEST(of_half_precision_rounded_once) {
  CHECK_PASS("batch_norm",
             "graph(%0: f16[2,4], %1: weight 0 f16[4,6], %2: weight 1 f16[6], %3: weight 2 f16[6], %4: weight 3 f16[6],"
             "      %5: weight 4 f16[6]) { %6 = matmul(%0, %1) : f16[2,6]"
             "  %7 = batch_norm(%6, %2, %3, %4, %5) eps=1e-5 : f16[2,6] return %7 }",
             "graph(%0: f16[2,4], %1: weight 0 f16[4,6], %2: weight 1 f16[6], %3: weight 2 f16[6], %4: weight 3 f16[6],"
             "      %5: weight 4 f16[6], %10: literal f32[] = [1e-5]) {"
             "  %19 = cast(%5) dtype=f32 : f32[6] %20 = add(%19, %10) : f32[6] %21 = rsqrt(%20) : f32[6]"
             "  %22 = cast(%2) dtype=f32 : f32[6] %23 = mul(%21, %22) : f32[6] %24 = cast(%4) dtype=f32 : f32[6]"
             "  %25 = cast(%3) dtype=f32 : f32[6] %26 = cast(%1) dtype=f32 : f32[4,6] %27 = mul(%26, %23) : f32[4,6]"
             "  %28 = cast(%27) dtype=f16 : f16[4,6] %29 = mul(%24, %23) : f32[6] %30 = sub(%25, %29) : f32[6]"
             "  %31 = cast(%30) dtype=f16 : f16[6] %32 = matmul(%0, %28, %31) : f16[2,6] return %32 }");
}

FL_TEST(convolution_used_elsewhere) {
  fl_graph *g = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[1,4,8,8], %1: weight 0 f32[6,4,1,1], " STATS ") {"
                             "  %6 = conv2d(%0, %1) " CONV ": f32[1,6,8,8]"
                             "  %7 = batch_norm(%6, %2, %3, %4, %5) eps=1e-5 : f32[1,6,8,8] return %7, %6 }",
                             &g));
  FL_CHECK_OK(fl_pass_run(g, "batch_norm"));
  FL_CHECK_OK(fl_graph_verify(g));
  FL_CHECK(fl_graph_count_op(g, FL_OP_BATCH_NORM) == 0 && fl_graph_count_op(g, FL_OP_MUL) == 3);
  FL_CHECK(fl_graph_producer(g, g->outputs.data[1]) == 0);
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(after_convolution) FL_RUN(with_bias_through_reshape) FL_RUN(after_linear) FL_RUN(spelled_out)
                 FL_RUN(of_half_precision_rounded_once) FL_RUN(convolution_used_elsewhere))
