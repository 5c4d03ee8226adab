#include "passes/pass_test.h"

FL_TEST(nodes) {
  CHECK_PASS("cse",
             "graph(%0: f32[4], %1: f32[4]) { %2 = add(%0, %1) : f32[4] %3 = add(%1, %0) : f32[4]"
             "  %4 = sub(%0, %1) : f32[4] %5 = sub(%1, %0) : f32[4] %6 = exp(%2) : f32[4] %7 = exp(%3) : f32[4]"
             "  return %6, %7, %4, %5 }",
             "graph(%0: f32[4], %1: f32[4]) { %2 = add(%0, %1) : f32[4] %4 = sub(%0, %1) : f32[4]"
             "  %5 = sub(%1, %0) : f32[4] %6 = exp(%2) : f32[4] return %6, %6, %4, %5 }");
}

FL_TEST(attributes_differ) {
  CHECK_UNCHANGED("cse", "graph(%0: f32[4,4]) { %1 = softmax(%0) axis=0 : f32[4,4] %2 = softmax(%0) axis=1 : f32[4,4]"
                         "  %3 = clamp(%0) lo=0 hi=1 : f32[4,4] %4 = clamp(%0) lo=-0 hi=1 : f32[4,4]"
                         "  return %1, %2, %3, %4 }");
}

FL_TEST(constants) {
  CHECK_PASS(
      "cse",
      "graph(%0: f32[2], %1: weight 0 f32[2], %2: weight 0 f32[2], %3: literal f32[] = [1], %4: literal f32[] = [1],"
      " %5: literal f32[1] = [1], %6: weight 1 f32[2]) { %7 = add(%1, %3) : f32[2] %8 = add(%2, %4) : f32[2]"
      "  %9 = add(%0, %5) : f32[2] %10 = add(%0, %6) : f32[2] return %7, %8, %9, %10 }",
      "graph(%0: f32[2], %1: weight 0 f32[2], %3: literal f32[] = [1], %5: literal f32[1] = [1], %6: weight 1 f32[2])"
      "{ %7 = add(%1, %3) : f32[2] %9 = add(%0, %5) : f32[2] %10 = add(%0, %6) : f32[2] return %7, %7, %9, %10 }");
  CHECK_UNCHANGED("cse", "graph(%1: weight 0 f32[2,2], %2: weight 0 f32[2,2] strides=[1,2]) { %3 = neg(%1) : f32[2,2]"
                         "  %4 = neg(%2) : f32[2,2] return %3, %4 }");
}

FL_TEST(dead_nodes_go) {
  CHECK_PASS("dce", "graph(%0: f32[4]) { %1 = exp(%0) : f32[4] %2 = neg(%1) : f32[4] %3 = neg(%0) : f32[4] return %3 }",
             "graph(%0: f32[4]) { %3 = neg(%0) : f32[4] return %3 }");
}

FL_TEST(by_name) {
  fl_graph *g = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[4]) { return %0 }", &g));
  FL_CHECK_FAILS(fl_pass_run(g, "no_such"), FL_INVALID, "no_such");
  FL_CHECK_OK(fl_passes_run(g, true));
  fl_graph_destroy(g);
}

/* Operators that look at what they are given stay, with what they are made from. */
FL_TEST(checks_stay) {
  CHECK_PASS(
      "dce",
      "graph(%0: f32[4], %1: i64[2], %2: weight 0 f32[9,4], %8: literal i64[] = [2], %9: literal i64[] = [0]) {"
      "  %3 = neg(%1) : i64[2] %4 = embedding(%2, %3) : f32[2,4] %5 = neg(%4) : f32[2,4] %6 = rem(%1, %3) : i64[2]"
      "  %7 = rem(%0, %0) : f32[4] %10 = floor_div(%1, %8) : i64[2] %11 = floor_div(%1, %9) : i64[2]"
      "  %12 = index_select(%0, %1) axis=0 : f32[2] %13 = gather(%0, %1) axis=0 : f32[2]"
      "  %14 = index(%0, %1) axis=0 : f32[2] return %0 }",
      "graph(%0: f32[4], %1: i64[2], %2: weight 0 f32[9,4], %8: literal i64[] = [2], %9: literal i64[] = [0]) {"
      "  %3 = neg(%1) : i64[2] %4 = embedding(%2, %3) : f32[2,4] %6 = rem(%1, %3) : i64[2]"
      "  %11 = floor_div(%1, %9) : i64[2] %12 = index_select(%0, %1) axis=0 : f32[2]"
      "  %13 = gather(%0, %1) axis=0 : f32[2] %14 = index(%0, %1) axis=0 : f32[2] return %0 }");
  /* as part of a group too */
  CHECK_PASS(NULL, "graph(%0: f32[4], %1: i64[2]) { %2 = rem(%1, %1) : i64[2] %3 = neg(%2) : i64[2] return %0 }",
             "graph(%0: f32[4], %1: i64[2]) { %2 = pointwise(%1) {r1 = rem i64 r0 r0; yield r1} : i64[2] return %0 }");
}

FL_TEST_MAIN(FL_RUN(checks_stay) FL_RUN(nodes) FL_RUN(attributes_differ) FL_RUN(constants) FL_RUN(dead_nodes_go)
                 FL_RUN(by_name))
