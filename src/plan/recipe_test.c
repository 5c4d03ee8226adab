/* Recipes: what decides the contents of a block is in them, and nothing else. */
#include "base/test.h"
#include "plan/plan.h"

static fl_plan *plan_of(const char *text) {
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  fl_plan_options options = {.threads = 1, .block_bytes = 1};
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  fl_graph_destroy(g);
  return p;
}

static bool same(const fl_const_block *a, const fl_const_block *b) {
  return a->recipe_bytes == b->recipe_bytes && !memcmp(a->recipe, b->recipe, a->recipe_bytes);
}

/* Whether some block of b has the recipe of the first one of a. */
static bool alike(const char *a, const char *b) {
  fl_plan *p = plan_of(a), *q = plan_of(b);
  bool ok = p && q && p->blocks.len && q->blocks.len;
  FL_CHECK_MSG(ok, "no block in\n%s or in\n%s", a, b);
  bool result = false;
  for (size_t i = 0; ok && i < q->blocks.len; i++) result |= same(&p->blocks.data[0], &q->blocks.data[i]);
  fl_plan_destroy(p);
  fl_plan_destroy(q);
  return result;
}

#define ADDED(given, nodes, constant)                                                                                  \
  "graph(%0: f32[6]" given ") {\n" nodes "  %9 = add(%0, " constant ") : f32[6]\n  return %9\n}\n"
#define TWO ", %1: weight 0 f32[12], %2: weight 1 f32[6]"
static const char *sliced(int start) {
  static char texts[4][400];
  static int turn;
  char *text = texts[turn++ % 4];
  snprintf(text, sizeof texts[0],
           "graph(%%0: f32[6], %%1: weight 0 f32[12], %%2: weight 1 f32[6]) {\n"
           "  %%3 = slice(%%1) axis=0 start=%d stop=%d step=1 : f32[6]\n  %%4 = mul(%%3, %%2) : f32[6]\n"
           "  %%5 = add(%%0, %%4) : f32[6]\n  return %%5\n}\n",
           start, start + 6);
  return text;
}

FL_TEST(places_in_weights_count) {
  FL_CHECK(alike(sliced(0), sliced(0)));
  FL_CHECK(!alike(sliced(0), sliced(6)) && !alike(sliced(1), sliced(2)));
}

/* The same product of weights in the other order is the same, with the slots in the other order. */
FL_TEST(operators_count) {
  const char *mul =
      ADDED(TWO, "  %3 = slice(%1) axis=0 start=0 stop=6 step=1 : f32[6]\n  %4 = mul(%3, %2) : f32[6]\n", "%4");
  const char *add =
      ADDED(TWO, "  %3 = slice(%1) axis=0 start=0 stop=6 step=1 : f32[6]\n  %4 = add(%3, %2) : f32[6]\n", "%4");
  const char *swapped =
      ADDED(TWO, "  %3 = slice(%1) axis=0 start=0 stop=6 step=1 : f32[6]\n  %4 = mul(%2, %3) : f32[6]\n", "%4");
  const char *more = ADDED(
      TWO,
      "  %3 = slice(%1) axis=0 start=0 stop=6 step=1 : f32[6]\n  %4 = mul(%3, %2) : f32[6]\n  %5 = neg(%4) : f32[6]\n",
      "%5");
  FL_CHECK(alike(mul, sliced(0)) && alike(mul, mul) && !alike(mul, add) && alike(mul, swapped) && !alike(mul, more));
}

FL_TEST(numbers_count) {
  const char *low = ADDED(", %1: weight 0 f32[6]", "  %2 = clamp(%1) lo=-1.0 hi=1.0 : f32[6]\n", "%2");
  const char *high = ADDED(", %1: weight 0 f32[6]", "  %2 = clamp(%1) lo=-1.0 hi=2.0 : f32[6]\n", "%2");
  const char *two = ADDED(", %1: weight 0 f32[6], %2: literal f32[] = [2]", "  %3 = mul(%1, %2) : f32[6]\n", "%3");
  const char *three = ADDED(", %1: weight 0 f32[6], %2: literal f32[] = [3]", "  %3 = mul(%1, %2) : f32[6]\n", "%3");
  FL_CHECK(alike(low, low) && !alike(low, high));
  FL_CHECK(alike(two, two) && !alike(two, three));
}

FL_TEST(attributes_and_strides_count) {
  const char *across = ADDED(", %1: weight 0 f32[6,6]", "  %2 = sum(%1) axes=[0] keepdim=0 : f32[6]\n", "%2");
  const char *along = ADDED(", %1: weight 0 f32[6,6]", "  %2 = sum(%1) axes=[1] keepdim=0 : f32[6]\n", "%2");
  const char *turned =
      ADDED(", %1: weight 0 f32[6,6] strides=[1,6]", "  %2 = sum(%1) axes=[0] keepdim=0 : f32[6]\n", "%2");
  FL_CHECK(alike(across, across) && !alike(across, along) && !alike(across, turned) && !alike(along, turned));
}

/* Weights are numbered as they are met: the same one twice is not two. */
FL_TEST(which_weights_are_one_counts) {
  const char *two = ADDED(", %1: weight 0 f32[6], %2: weight 1 f32[6]", "  %3 = mul(%1, %2) : f32[6]\n", "%3");
  const char *one = ADDED(", %1: weight 0 f32[6]", "  %3 = mul(%1, %1) : f32[6]\n", "%3");
  const char *others = ADDED(", %1: weight 7 f32[6], %2: weight 3 f32[6]", "  %3 = mul(%1, %2) : f32[6]\n", "%3");
  FL_CHECK(!alike(one, two) && alike(two, others));
  fl_plan *p = plan_of(others);
  FL_CHECK(p->blocks.len == 1 && p->blocks.data[0].n_slots == 2);
  FL_CHECK(p->blocks.data[0].slots[0] == 7 && p->blocks.data[0].slots[1] == 3);
  fl_plan_destroy(p);
}

/* --- products --- */

static const char *product(int rows, const char *before) {
  static char texts[4][600];
  static int turn;
  char *text = texts[turn++ % 4];
  snprintf(text, sizeof texts[0],
           "graph(%%0: f32[%d,16], %%1: weight 2 f32[32,16], %%2: weight 0 f32[32,16]) {\n%s"
           "  %%3 = matmul(%%0, %%1, _, _) trans_b=1 : f32[%d,32]\n  return %%3\n}\n",
           rows, before, rows);
  return text;
}

FL_TEST(other_sizes_pack_the_same) {
  if (fl_cpu_isa() < FL_ISA_AVX2) return;
  FL_CHECK(alike(product(8, ""), product(9, "")) && alike(product(8, ""), product(80, "")));
  FL_CHECK(alike(product(8, ""), product(8, "  %9 = neg(%2) : f32[32,16]\n  %8 = sum(%9) axes=[0] keepdim=0 : "
                                            "f32[16]\n  %7 = add(%0, %8) : f32[8,16]\n")));
  const char *straight = "graph(%0: f32[8,16], %1: weight 2 f32[16,32]) {\n"
                         "  %3 = matmul(%0, %1, _, _) trans_b=0 : f32[8,32]\n  return %3\n}\n";
  FL_CHECK(!alike(product(8, ""), straight));
}

FL_TEST(how_weights_are_packed_counts) {
  if (fl_cpu_isa() < FL_ISA_AVX2) return;
  const char *turned = "graph(%0: f32[8,16], %1: weight 0 f32[16,16]) {\n"
                       "  %3 = matmul(%0, %1, _, _) trans_b=1 : f32[8,16]\n  return %3\n}\n";
  const char *straight = "graph(%0: f32[8,16], %1: weight 0 f32[16,16]) {\n"
                         "  %3 = matmul(%0, %1, _, _) trans_b=0 : f32[8,16]\n  return %3\n}\n";
  FL_CHECK(!alike(turned, straight) && alike(turned, turned));
}

FL_TEST(parts_of_a_join_count) {
  const char *ab = "graph(%0: f32[8], %1: weight 0 f32[4], %2: weight 1 f32[4]) {\n"
                   "  %3 = neg(%2) : f32[4]\n  %4 = cat(%1, %3) axis=0 : f32[8]\n"
                   "  %5 = add(%0, %4) : f32[8]\n  return %5\n}\n";
  const char *ba = "graph(%0: f32[8], %1: weight 0 f32[4], %2: weight 1 f32[4]) {\n"
                   "  %3 = neg(%2) : f32[4]\n  %4 = cat(%3, %1) axis=0 : f32[8]\n"
                   "  %5 = add(%0, %4) : f32[8]\n  return %5\n}\n";
  FL_CHECK(alike(ab, ab) && !alike(ab, ba));
}

/* --- small constants, needs, sinks --- */

FL_TEST(small_constants_are_the_engines_own) {
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[5000], %1: weight 0 f32[5000], %2: weight 1 f32[]) {\n"
                             "  %3 = neg(%1) : f32[5000]\n  %4 = neg(%2) : f32[]\n"
                             "  %5 = add(%0, %3) : f32[5000]\n  %6 = add(%5, %4) : f32[5000]\n  return %6\n}\n",
                             &g));
  FL_CHECK_OK(fl_plan_build(g, &(fl_plan_options){.threads = 1}, &p));
  fl_graph_destroy(g);
  FL_CHECK(p->blocks.len == 1 && p->local_bytes == 64 && p->const_bytes == 64 + 20032);
  FL_CHECK(p->blocks.data[0].offset == 64 && p->blocks.data[0].bytes == 20032);
  FL_CHECK(fl_plan_block_at(p, 0) == FL_NO_BLOCK && fl_plan_block_at(p, 64) == 0 && fl_plan_block_at(p, 900) == 0);
  fl_plan_destroy(p);
}

FL_TEST(steps_know_what_they_need) {
  fl_plan *p = plan_of("graph(%0: f32[6], %1: weight 0 f32[6], %2: weight 1 i64[1]) {\n"
                       "  %3 = rem(%2, %2) : i64[1]\n"
                       "  %4 = cumsum(%1) axis=0 : f32[6]\n  %5 = cumsum(%4) axis=0 : f32[6]\n"
                       "  %6 = add(%0, %5) : f32[6]\n  return %6\n}\n");
  FL_CHECK(p->init.len == 3);
  FL_CHECK(p->init.data[0].sink && !p->init.data[1].sink && !p->init.data[2].sink);
  FL_CHECK(p->init.data[1].n_needs == 0 && p->init.data[2].n_needs == 1);
  FL_CHECK(p->deps.data[p->init.data[2].needs] == 1);
  fl_plan_destroy(p);
}

FL_TEST_MAIN(FL_RUN(places_in_weights_count) FL_RUN(operators_count) FL_RUN(numbers_count)
                 FL_RUN(attributes_and_strides_count) FL_RUN(which_weights_are_one_counts)
                     FL_RUN(other_sizes_pack_the_same) FL_RUN(how_weights_are_packed_counts)
                         FL_RUN(parts_of_a_join_count) FL_RUN(small_constants_are_the_engines_own)
                             FL_RUN(steps_know_what_they_need))
