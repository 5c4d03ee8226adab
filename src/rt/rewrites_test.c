/* What passes make of a pattern computes the same: graphs that hold one are run as they are and optimized, by an engine of
 * the CPU each, as for a GPU (16-bit arithmetic is not widened). */
#include <math.h>
#include <stdlib.h>

#include "base/test.h"
#include "passes/passes.h"
#include "rt/engine.h"

enum { MAX_TENSORS = 8 };

#define CONV " dilation=[1,1] groups=1 "

static const struct {
  const char *text;
  fl_op gone; /* by the passes */
} cases[] = {
    {"graph(%0: f16[2,3,32,48], %1: weight 0 f16[40,3,16,16], %2: weight 1 f16[40]) {"
     " %3 = conv2d(%0, %1, %2) stride=[16,16] pad=[0,0,0,0]" CONV ": f16[2,40,2,3]"
     " %4 = reshape(%3) dims=[2,40,6] : f16[2,40,6] %5 = permute(%4) perm=[0,2,1] : f16[2,6,40] return %5 }",
     FL_OP_CONV2D},
    {"graph(%0: bf16[1,1,28,14], %1: weight 0 bf16[8,1,14,14]) {"
     " %2 = conv2d(%0, %1) stride=[14,14] pad=[0,0,0,0]" CONV ": bf16[1,8,2,1] return %2 }",
     FL_OP_CONV2D},
    {"graph(%0: f16[2,12,5,4], %1: f16[2,3,4,1,1]) { %2 = reshape(%0) dims=[2,3,4,5,4] : f16[2,3,4,5,4]"
     " %3 = mul(%2, %1) : f16[2,3,4,5,4] %4 = sum(%3) axes=[1] keepdim=0 : f16[2,4,5,4]"
     " %5 = sum(%2) axes=[1] keepdim=1 : f16[2,1,4,5,4] return %4, %5 }",
     FL_OP_SUM},
    {"graph(%0: f32[2,4,7]) { %1 = sum(%0) axes=[1] keepdim=0 : f32[2,7] return %1 }", FL_OP_SUM},
    {"graph(%0: f32[2,3,9,10], %1: weight 0 f32[4,3,3,3], %2: weight 1 f32[4]) {"
     " %3 = pad(%0) pads=[0,0,0,0,0,1,2,3] value=0.0 : f32[2,3,10,15]"
     " %4 = conv2d(%3, %1, %2) stride=[2,2] pad=[0,1,0,1]" CONV ": f32[2,4,4,8] return %4 }",
     FL_OP_PAD},
    {"graph(%0: f16[1,16,12,12], %1: weight 0 f16[16,1,3,3]) {"
     " %2 = pad(%0) pads=[0,0,0,0,0,1,0,1] value=0.0 : f16[1,16,13,13]"
     " %3 = conv2d(%2, %1) stride=[2,2] pad=[0,0,0,0] dilation=[1,1] groups=16 : f16[1,16,6,6] return %3 }",
     FL_OP_PAD},
};

static void *fill(const fl_type *t) {
  void *data = calloc((size_t)fl_type_numel(t) + 1, fl_dtype_size(t->dtype));
  for (int64_t i = 0; i < fl_type_numel(t); i++) fl_element_set(t->dtype, data, i, (rand() % 2001 - 1000) * 1e-3);
  return data;
}

static fl_engine *engine_of(fl_graph *g, const void *const *weights) {
  fl_plan_options options = {.threads = 1};
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  FL_CHECK_OK(fl_plan_build(g, &options, &plan));
  if (plan) FL_CHECK_OK(fl_engine_create(plan, weights, NULL, plan->n_weights, NULL, &e));
  return e;
}

static void run(fl_engine *e, const void *const *inputs, void **outputs) {
  const fl_plan *p = fl_engine_plan(e);
  for (int i = 0; i < p->n_outputs; i++) outputs[i] = fill(&p->outputs[i].type);
  FL_CHECK_OK(fl_engine_run(e, inputs, outputs));
}

static void compare(const fl_type *t, const void *a, const void *b, const char *text) {
  double tolerance = t->dtype == FL_F32 ? 1e-5 : t->dtype == FL_F16 ? 2e-3 : 2e-2;
  for (int64_t i = 0; i < fl_type_numel(t); i++) {
    double x = fl_element_get(t->dtype, a, i), y = fl_element_get(t->dtype, b, i);
    FL_CHECK_MSG(fabs(x - y) <= tolerance * (1 + fabs(x)), "element %d: %g, optimized %g, of\n%s", (int)i, x, y, text);
  }
}

static void check(const char *text, fl_op gone) {
  const void *inputs[MAX_TENSORS], *weights[MAX_TENSORS];
  void *want[MAX_TENSORS], *got[MAX_TENSORS];
  fl_graph *plain = NULL, *optimized = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &plain));
  FL_CHECK_OK(fl_graph_parse(text, &optimized));
  FL_CHECK(fl_graph_count_op(plain, gone) > 0);
  FL_CHECK_OK(fl_passes_run(optimized, true));
  FL_CHECK_MSG(fl_graph_count_op(optimized, gone) == 0, "%s is still in\n%s", fl_op_get(gone)->name, text);
  for (size_t i = 0; i < plain->inputs.len; i++) inputs[i] = fill(&plain->values.data[plain->inputs.data[i]].type);
  for (fl_vid v = 0; v < plain->values.len; v++)
    if (plain->values.data[v].kind == FL_VALUE_WEIGHT)
      weights[plain->values.data[v].slot] = fill(&plain->values.data[v].type);
  fl_engine *a = engine_of(plain, weights), *b = engine_of(optimized, weights);
  if (a && b) {
    const fl_plan *p = fl_engine_plan(a);
    run(a, inputs, want);
    run(b, inputs, got);
    for (int i = 0; i < p->n_outputs; i++) {
      compare(&p->outputs[i].type, want[i], got[i], text);
      free(want[i]);
      free(got[i]);
    }
    for (uint32_t i = 0; i < p->n_weights; i++) free((void *)(uintptr_t)weights[i]);
  }
  for (size_t i = 0; i < plain->inputs.len; i++) free((void *)(uintptr_t)inputs[i]);
  fl_engine_destroy(a);
  fl_engine_destroy(b);
  fl_graph_destroy(plain);
  fl_graph_destroy(optimized);
}

FL_TEST(patterns) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check(cases[i].text, cases[i].gone);
}

FL_TEST_MAIN(FL_RUN(patterns))
