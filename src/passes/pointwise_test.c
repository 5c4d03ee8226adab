#include "passes/pass_test.h"

FL_TEST(chain) {
  CHECK_PASS(
      "pointwise",
      "graph(%0: f32[2,3], %1: literal f32[] = [2]) { %2 = mul(%0, %1) : f32[2,3] %3 = exp(%2) : f32[2,3]"
      "  %4 = clamp(%3) lo=0 hi=6 : f32[2,3] return %4 }",
      "graph(%0: f32[2,3], %1: literal f32[] = [2]) {"
      "  %2 = pointwise(%0, %1) {r2 = mul f32 r0 r1; r3 = exp f32 r2; r4 = clamp f32 r3 lo=0 hi=6; yield r4} : f32[2,3]"
      "  return %2 }");
}

FL_TEST(single_node_becomes_group) {
  CHECK_PASS("pointwise", "graph(%0: f32[2]) { %1 = neg(%0) : f32[2] return %1 }",
             "graph(%0: f32[2]) { %1 = pointwise(%0) {r1 = neg f32 r0; yield r1} : f32[2] return %1 }");
}

FL_TEST(diamond_is_one_group) {
  CHECK_PASS("pointwise",
             "graph(%0: f32[4]) { %1 = exp(%0) : f32[4] %2 = neg(%1) : f32[4] %3 = add(%1, %2) : f32[4] return %3 }",
             "graph(%0: f32[4]) { %1 = pointwise(%0) {r1 = exp f32 r0; r2 = neg f32 r1; r3 = add f32 r1 r2; yield r3} :"
             " f32[4] return %1 }");
}

FL_TEST(shared_values_stay_outside) {
  CHECK_PASS(
      "pointwise",
      "graph(%0: f32[4]) { %1 = exp(%0) : f32[4] %2 = neg(%1) : f32[4] %3 = softmax(%1) axis=0 : f32[4]"
      "  return %2, %3 }",
      "graph(%0: f32[4]) { %1 = pointwise(%0) {r1 = exp f32 r0; yield r1} : f32[4]"
      "  %2 = pointwise(%1) {r1 = neg f32 r0; yield r1} : f32[4] %3 = softmax(%1) axis=0 : f32[4] return %2, %3 }");
  CHECK_PASS("pointwise", "graph(%0: f32[4]) { %1 = exp(%0) : f32[4] %2 = neg(%1) : f32[4] return %2, %1 }",
             "graph(%0: f32[4]) { %1 = pointwise(%0) {r1 = exp f32 r0; yield r1} : f32[4]"
             "  %2 = pointwise(%1) {r1 = neg f32 r0; yield r1} : f32[4] return %2, %1 }");
}

/* A bound that is computed from a flag: a single element joins, one for each row does not. */
FL_TEST(single_elements_join) {
  CHECK_PASS("pointwise",
             "graph(%0: f32[4,5], %1: f32[]) { %2 = neg(%1) : f32[] %3 = maximum(%0, %2) : f32[4,5]"
             "  %4 = minimum(%3, %1) : f32[4,5] return %4 }",
             "graph(%0: f32[4,5], %1: f32[]) {"
             "  %2 = pointwise(%1, %0) {r2 = neg f32 r0; r3 = maximum f32 r1 r2; r4 = minimum f32 r3 r0; yield r4} :"
             " f32[4,5] return %2 }");
}

FL_TEST(smaller_operand_stays_input) {
  CHECK_PASS("pointwise",
             "graph(%0: f32[4,1], %1: f32[4,5]) { %2 = exp(%0) : f32[4,1] %3 = mul(%1, %2) : f32[4,5]"
             "  %4 = cast(%3) dtype=i32 : i32[4,5] return %4 }",
             "graph(%0: f32[4,1], %1: f32[4,5]) { %2 = pointwise(%0) {r1 = exp f32 r0; yield r1} : f32[4,1]"
             "  %3 = pointwise(%1, %2) {r2 = mul f32 r0 r1; r3 = cast i32 r2; yield r3} : i32[4,5] return %3 }");
}

FL_TEST(constants_stay_apart) {
  CHECK_PASS("pointwise",
             "graph(%0: f32[4], %1: weight 0 f32[4]) { %2 = exp(%1) : f32[4] %3 = neg(%2) : f32[4]"
             "  %4 = mul(%0, %3) : f32[4] return %4 }",
             "graph(%0: f32[4], %1: weight 0 f32[4]) {"
             "  %2 = pointwise(%1) {r1 = exp f32 r0; r2 = neg f32 r1; yield r2} : f32[4]"
             "  %3 = pointwise(%0, %2) {r2 = mul f32 r0 r1; yield r2} : f32[4] return %3 }");
}

/* 200 additions of different inputs and a chain of 200 more: groups stay within the program's limits. */
FL_TEST(limits) {
  fl_graph *g = NULL;
  fl_type t = fl_type_make(FL_F32, 1, (int64_t[]){4});
  fl_vid v, x;
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &t, NULL, &v));
  for (int i = 0; i < 200; i++) {
    FL_CHECK_OK(fl_graph_input(g, &t, NULL, &x));
    FL_CHECK_OK(fl_graph_op(g, FL_OP_ADD, (fl_vid[]){v, x}, 2, NULL, &v));
  }
  for (int i = 0; i < 200; i++) FL_CHECK_OK(fl_graph_op(g, FL_OP_NEG, &v, 1, NULL, &v));
  FL_CHECK_OK(fl_graph_output(g, v));
  FL_CHECK_OK(fl_pass_run(g, "pointwise"));
  FL_CHECK_OK(fl_graph_verify(g));
  int groups = fl_graph_count_op(g, FL_OP_POINTWISE);
  FL_CHECK_MSG(groups == fl_graph_node_count(g) && groups >= 14 && groups <= 18, "%d groups", groups);
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(chain) FL_RUN(single_node_becomes_group) FL_RUN(diamond_is_one_group)
                 FL_RUN(shared_values_stay_outside) FL_RUN(single_elements_join) FL_RUN(smaller_operand_stays_input)
                     FL_RUN(constants_stay_apart) FL_RUN(limits))
