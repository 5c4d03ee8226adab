#include "passes/pass_test.h"

/* The pass with this precision, and with the operator of this origin left alone; then dce. */
static char *lowered(const char *text, fl_dtype compute, const bool *exact, uint32_t n_exact) {
  fl_graph *g = NULL;
  char *out = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  if (!g) return NULL;
  g->compute = compute;
  g->exact = exact;
  g->n_exact = n_exact;
  uint32_t origin = 0;
  for (fl_nid n = g->first; n != FL_NO_NODE; n = g->nodes.data[n].next) g->nodes.data[n].origin = origin++;
  FL_CHECK_OK(fl_pass_run(g, "precision"));
  FL_CHECK_OK(fl_graph_verify(g));
  FL_CHECK_OK(fl_pass_run(g, "dce"));
  FL_CHECK_OK(fl_graph_print(g, &out));
  fl_graph_destroy(g);
  return out;
}

static void check(const char *in, fl_dtype compute, const bool *exact, uint32_t n_exact, const char *out) {
  fl_graph *g = NULL;
  char *want = NULL, *got = lowered(in, compute, exact, n_exact);
  FL_CHECK_OK(fl_graph_parse(out, &g));
  if (g) FL_CHECK_OK(fl_graph_print(g, &want));
  FL_CHECK_MSG(got && want && !strcmp(got, want), "%s\nwanted\n%s", got ? got : "?", want ? want : "?");
  fl_free(got);
  fl_free(want);
  fl_graph_destroy(g);
}

FL_TEST(products_and_what_follows_them) {
  check("graph(%0: f32[4,8], %1: weight 0 f32[8,8]) { %2 = matmul(%0, %1, _, _) : f32[4,8] %3 = relu(%2) : f32[4,8]"
        " %4 = exp(%3) : f32[4,8] return %4 }",
        FL_F16, NULL, 0,
        "graph(%0: f32[4,8], %1: weight 0 f32[8,8], %90: literal f32[] = [inf], %91: literal f32[] = [inf]) {\n"
        " %10 = clamp(%0) lo=-65504 hi=65504 : f32[4,8]\n"
        " %11 = abs(%0) : f32[4,8]\n"
        " %12 = eq(%11, %90) : bool[4,8]\n"
        " %13 = where(%12, %0, %10) : f32[4,8]\n"
        " %14 = cast(%13) dtype=f16 : f16[4,8]\n"
        " %20 = clamp(%1) lo=-65504 hi=65504 : f32[8,8]\n"
        " %21 = abs(%1) : f32[8,8]\n"
        " %22 = eq(%21, %91) : bool[8,8]\n"
        " %23 = where(%22, %1, %20) : f32[8,8]\n"
        " %24 = cast(%23) dtype=f16 : f16[8,8]\n"
        " %2 = matmul(%14, %24, _, _) : f16[4,8]\n"
        " %3 = relu(%2) : f16[4,8]\n"
        " %5 = cast(%3) dtype=f32 : f32[4,8]\n"
        " %6 = exp(%5) : f32[4,8]\n"
        " return %6\n}");
}

FL_TEST(nothing_without_a_product) {
  static const char text[] =
      "graph(%0: f32[4], %1: f32[4]) { %2 = add(%0, %1) : f32[4] %3 = relu(%2) : f32[4] return %3 }";
  check(text, FL_F16, NULL, 0, text);
  check(text, FL_F32, NULL, 0, text);
}

FL_TEST(pinned_operators_stay) {
  static const char text[] =
      "graph(%0: f32[4,8], %1: weight 0 f32[8,8]) { %2 = matmul(%0, %1, _, _) : f32[4,8] return %2 }";
  check(text, FL_F16, (bool[]){true}, 1, text);
}

FL_TEST(integers_pass_through) {
  char *text = lowered("graph(%0: f32[4,8], %1: weight 0 f32[8,8], %2: i64[4,8]) { %3 = matmul(%0, %1, _, _) : f32[4,8]"
                       " %4 = argmax(%3) axes=[1] keepdim=0 : i64[4] %5 = lt(%3, %0) : bool[4,8] return %4, %5, %2 }",
                       FL_BF16, NULL, 0);
  FL_CHECK(text && strstr(text, "argmax") && strstr(text, "bf16[4,8]") && !strstr(text, "dtype=f32"));
  fl_free(text);
}

FL_TEST(a_value_in_both_types_is_computed_once) {
  char *text =
      lowered("graph(%0: f32[4,8], %1: weight 0 f32[8,8]) { %2 = matmul(%0, %1, _, _) : f32[4,8]"
              " %3 = exp(%2) : f32[4,8] %4 = relu(%2) : f32[4,8] %5 = log(%2) : f32[4,8] return %3, %4, %5, %2 }",
              FL_F16, NULL, 0);
  const char *first = text ? strstr(text, "matmul(") : NULL;
  FL_CHECK_MSG(first && !strstr(first + 1, "matmul(") && strstr(text, ": f16[4,8]\n") && strstr(text, "relu"), "%s",
               text ? text : "?");
  fl_free(text);
}

FL_TEST(squares_keep_their_range) {
  char *text = lowered("graph(%0: f32[4,8], %1: weight 0 f32[8,8]) { %2 = matmul(%0, %1, _, _) : f32[4,8]"
                       " %3 = mul(%2, %2) : f32[4,8] %4 = mul(%2, %0) : f32[4,8] return %3, %4 }",
                       FL_F16, NULL, 0);
  const char *square = text ? strstr(text, " = mul(") : NULL, *product = square ? strstr(square + 1, " = mul(") : NULL;
  FL_CHECK(product && !strncmp(strchr(square, ':'), ": f32[4,8]", 10) &&
           !strncmp(strchr(product, ':'), ": f16[4,8]", 10));
  fl_free(text);
}

FL_TEST_MAIN(FL_RUN(products_and_what_follows_them) FL_RUN(nothing_without_a_product) FL_RUN(pinned_operators_stay)
                 FL_RUN(integers_pass_through) FL_RUN(a_value_in_both_types_is_computed_once)
                     FL_RUN(squares_keep_their_range))
