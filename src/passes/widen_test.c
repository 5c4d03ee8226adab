#include "passes/pass_test.h"

/* The pass on a graph that asks for it. */
static void check_as(const char *in, const char *out, bool bf16_products) {
  fl_graph *g = NULL, *want = NULL;
  char *got_text = NULL, *want_text = NULL;
  FL_CHECK_OK(fl_graph_parse(in, &g));
  FL_CHECK_OK(fl_graph_parse(out, &want));
  if (g && want) {
    g->wide = true;
    g->bf16_products = bf16_products;
    FL_CHECK_OK(fl_pass_run(g, "widen"));
    FL_CHECK_OK(fl_graph_verify(g));
    FL_CHECK_OK(fl_graph_print(g, &got_text));
    FL_CHECK_OK(fl_graph_print(want, &want_text));
    FL_CHECK_MSG(got_text && want_text && !strcmp(got_text, want_text), "%s\nwanted\n%s", got_text, want_text);
  }
  fl_free(got_text);
  fl_free(want_text);
  fl_graph_destroy(g);
  fl_graph_destroy(want);
}

static void check(const char *in, const char *out) { check_as(in, out, false); }

FL_TEST(products_are_rounded_once) {
  check("graph(%0: f16[7,3], %1: weight 0 f16[5,3], %2: weight 1 f16[5]) {"
        "  %3 = matmul(%0, %1, %2) trans_b=1 act=relu : f16[7,5] return %3 }",
        "graph(%0: f16[7,3], %1: weight 0 f16[5,3], %2: weight 1 f16[5]) {"
        "  %3 = cast(%0) dtype=f32 : f32[7,3] %4 = cast(%1) dtype=f32 : f32[5,3] %5 = cast(%2) dtype=f32 : f32[5]"
        "  %6 = matmul(%3, %4, %5) trans_b=1 act=relu : f32[7,5] %7 = cast(%6) dtype=f16 : f16[7,5] return %7 }");
}

/* Where the processor has products of bf16 they stay; those of f16, and other operators, do not. */
FL_TEST(products_of_bf16) {
  check_as(
      "graph(%0: bf16[7,3], %1: weight 0 bf16[5,3]) { %2 = matmul(%0, %1) trans_b=1 : bf16[7,5]"
      "  %3 = softmax(%2) axis=1 : bf16[7,5] return %3 }",
      "graph(%0: bf16[7,3], %1: weight 0 bf16[5,3]) { %2 = matmul(%0, %1) trans_b=1 : bf16[7,5]"
      "  %3 = cast(%2) dtype=f32 : f32[7,5] %4 = softmax(%3) axis=1 : f32[7,5] %5 = cast(%4) dtype=bf16 : bf16[7,5]"
      "  return %5 }",
      true);
  check_as("graph(%0: f16[7,3], %1: f16[3,5]) { %2 = matmul(%0, %1) : f16[7,5] return %2 }",
           "graph(%0: f16[7,3], %1: f16[3,5]) { %2 = cast(%0) dtype=f32 : f32[7,3] %3 = cast(%1) dtype=f32 : f32[3,5]"
           "  %4 = matmul(%2, %3) : f32[7,5] %5 = cast(%4) dtype=f16 : f16[7,5] return %5 }",
           true);
}

/* Attention stays where the size of a head is even. */
FL_TEST(attention_of_bf16) {
  check_as("graph(%0: bf16[1,2,5,8], %1: bool[5,5]) { %2 = attention(%0, %0, %0, %1) scale=0.5 causal=0 : "
           "bf16[1,2,5,8] return %2 }",
           "graph(%0: bf16[1,2,5,8], %1: bool[5,5]) { %2 = attention(%0, %0, %0, %1) scale=0.5 causal=0 : "
           "bf16[1,2,5,8] return %2 }",
           true);
  check_as("graph(%0: bf16[1,2,5,7]) { %1 = attention(%0, %0, %0) scale=0.5 causal=0 : bf16[1,2,5,7] return %1 }",
           "graph(%0: bf16[1,2,5,7]) { %1 = cast(%0) dtype=f32 : f32[1,2,5,7] %2 = cast(%0) dtype=f32 : f32[1,2,5,7]"
           "  %3 = cast(%0) dtype=f32 : f32[1,2,5,7] %4 = attention(%1, %2, %3) scale=0.5 causal=0 : f32[1,2,5,7]"
           "  %5 = cast(%4) dtype=bf16 : bf16[1,2,5,7] return %5 }",
           true);
}

FL_TEST(constants_as_they_were) {
  check("graph(%0: f16[7,3], %1: weight 0 f32[5,3]) { %2 = mul(%1, %1) : f32[5,3] %3 = cast(%2) dtype=f16 : f16[5,3]"
        "  %4 = matmul(%0, %3) trans_b=1 : f16[7,5] return %4 }",
        "graph(%0: f16[7,3], %1: weight 0 f32[5,3]) { %2 = mul(%1, %1) : f32[5,3] %3 = cast(%0) dtype=f32 : f32[7,3]"
        "  %4 = matmul(%3, %2) trans_b=1 : f32[7,5] %5 = cast(%4) dtype=f16 : f16[7,5] return %5 }");
}

FL_TEST(results_that_are_no_floats_stay) {
  check("graph(%0: bf16[7,3]) { %1 = argmax(%0) axes=[1] keepdim=0 : i64[7] return %1 }",
        "graph(%0: bf16[7,3]) { %1 = cast(%0) dtype=f32 : f32[7,3]"
        "  %2 = argmax(%1) axes=[1] keepdim=0 : i64[7] return %2 }");
}

/* Pointwise operators, movement, and what is f32 already. */
static const char kept[] =
    "graph(%0: f16[7,3], %1: f32[7,3]) { %2 = add(%0, %0) : f16[7,3] %3 = softmax(%1) axis=1 : f32[7,3]"
    "  %4 = pad(%2) pads=[0,0,1,0] value=0.0 : f16[7,4] return %3, %4 }";
FL_TEST(the_rest_stays) { check(kept, kept); }
FL_TEST(nothing_happens_unasked) {
  CHECK_UNCHANGED("widen", "graph(%0: f16[7,3]) { %1 = softmax(%0) axis=1 : f16[7,3] return %1 }");
}

FL_TEST_MAIN(FL_RUN(products_are_rounded_once) FL_RUN(products_of_bf16) FL_RUN(attention_of_bf16)
                 FL_RUN(constants_as_they_were) FL_RUN(results_that_are_no_floats_stay) FL_RUN(the_rest_stays)
                     FL_RUN(nothing_happens_unasked))
