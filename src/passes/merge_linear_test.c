#include "passes/pass_test.h"

FL_TEST(q_k_v) {
  CHECK_PASS(
      "merge_linear",
      "graph(%0: f32[2,7,3], %1: weight 0 f32[4,3], %2: weight 1 f32[5,3], %3: weight 2 f32[4], %4: weight 3 f32[5]) {"
      "  %5 = matmul(%0, %1, %3) trans_b=1 : f32[2,7,4] %6 = exp(%5) : f32[2,7,4]"
      "  %7 = matmul(%0, %2, %4) trans_b=1 : f32[2,7,5] return %6, %7 }",
      "graph(%0: f32[2,7,3], %1: weight 0 f32[4,3], %2: weight 1 f32[5,3], %3: weight 2 f32[4], %4: weight 3 f32[5]) {"
      "  %5 = cat(%1, %2) axis=0 : f32[9,3] %6 = cat(%3, %4) axis=0 : f32[9]"
      "  %7 = matmul(%0, %5, %6) trans_b=1 : f32[2,7,9] %8 = slice(%7) axis=2 start=0 stop=4 step=1 : f32[2,7,4]"
      "  %9 = slice(%7) axis=2 start=4 stop=9 step=1 : f32[2,7,5] %10 = exp(%8) : f32[2,7,4] return %10, %9 }");
}

/* Weights that are computed, here after the first product: they come first. */
FL_TEST(computed_weights) {
  CHECK_PASS(
      "merge_linear",
      "graph(%0: f32[7,3], %1: weight 0 f32[3,4], %2: weight 1 f32[3,5]) { %3 = matmul(%0, %1) : f32[7,4]"
      "  %4 = neg(%2) : f32[3,5] %5 = matmul(%0, %4) : f32[7,5] return %3, %5 }",
      "graph(%0: f32[7,3], %1: weight 0 f32[3,4], %2: weight 1 f32[3,5]) { %3 = neg(%2) : f32[3,5]"
      "  %4 = cat(%1, %3) axis=1 : f32[3,9] %5 = matmul(%0, %4) : f32[7,9]"
      "  %6 = slice(%5) axis=1 start=0 stop=4 step=1 : f32[7,4] %7 = slice(%5) axis=1 start=4 stop=9 step=1 : f32[7,5]"
      "  return %6, %7 }");
}

FL_TEST(declined) {
  CHECK_UNCHANGED(
      "merge_linear",
      "graph(%0: f32[7,3], %1: weight 0 f32[3,4], %2: f32[3,4], %3: weight 1 f32[4], %4: weight 2 f32[4,3]) {"
      "  %5 = matmul(%0, %1) : f32[7,4] %6 = matmul(%0, %1, %3) : f32[7,4] %7 = matmul(%0, %2) : f32[7,4]"
      "  %8 = matmul(%0, %4) trans_b=1 : f32[7,4] %9 = matmul(%0, %1) act=relu : f32[7,4]"
      "  return %5, %6, %7, %8, %9 }");
}

/* More than one group can hold. */
FL_TEST(many) {
  fl_graph *g = NULL;
  fl_type x = fl_type_make(FL_F32, 2, (int64_t[]){7, 3}), w = fl_type_make(FL_F32, 2, (int64_t[]){3, 4});
  fl_vid in[2], v;
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &x, NULL, &in[0]));
  for (uint32_t i = 0; i < 40; i++) {
    FL_CHECK_OK(fl_graph_weight(g, &w, NULL, i, NULL, &in[1]));
    FL_CHECK_OK(fl_graph_op(g, FL_OP_MATMUL, in, 2, NULL, &v));
    FL_CHECK_OK(fl_graph_output(g, v));
  }
  FL_CHECK_OK(fl_pass_run(g, "merge_linear"));
  FL_CHECK_OK(fl_graph_verify(g));
  FL_CHECK(fl_graph_count_op(g, FL_OP_MATMUL) == 3 && fl_graph_count_op(g, FL_OP_SLICE) == 40);
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(q_k_v) FL_RUN(computed_weights) FL_RUN(declined) FL_RUN(many))
