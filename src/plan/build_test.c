/* The shape of plans: steps, copies, bytes. Their results are checked with the engine. Plans are made of the portable
 * kernels, which take operands as they come and need no scratch memory, but where packing is looked at. */
#include "base/test.h"
#include "plan/plan.h"

static fl_plan *plan_of(const char *text, const int64_t (*out_strides)[FL_MAX_RANK]) {
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  fl_plan_options options = {.threads = 1, .out_strides = out_strides};
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  fl_graph_destroy(g);
  return p;
}

static int count(const fl_step *steps, size_t n, fl_step_kind kind) {
  int found = 0;
  for (size_t i = 0; i < n; i++) found += steps[i].kind == kind;
  return found;
}

static int run_count(const fl_plan *p, fl_step_kind kind) { return count(p->run.data, p->run.len, kind); }
static int init_count(const fl_plan *p, fl_step_kind kind) { return count(p->init.data, p->init.len, kind); }

FL_TEST(a_chain_needs_no_more_than_two_buffers_and_ends_in_the_output) {
  fl_plan *p = plan_of("graph(%0: f32[1000]) {\n"
                       "  %1 = cumsum(%0) axis=0 : f32[1000]\n  %2 = cumsum(%1) axis=0 : f32[1000]\n"
                       "  %3 = cumsum(%2) axis=0 : f32[1000]\n  %4 = cumsum(%3) axis=0 : f32[1000]\n"
                       "  %5 = cumsum(%4) axis=0 : f32[1000]\n  return %5\n}\n",
                       NULL);
  FL_CHECK(p->run.len == 5 && p->init.len == 0);
  FL_CHECK(p->arena_bytes == 2 * 4032 && p->arena_unshared_bytes == 4 * 4032);
  const fl_step *last = &p->run.data[4];
  const fl_operand *out = &p->operands.data[last->operands + 1];
  FL_CHECK(out->space == FL_SPACE_OUTPUT && out->index == 0 && out->offset == 0);
  FL_CHECK(p->operands.data[p->run.data[0].operands].space == FL_SPACE_INPUT);
  fl_plan_destroy(p);
}

FL_TEST(views_cost_nothing) {
  fl_plan *p = plan_of("graph(%0: f32[2,6,4]) {\n"
                       "  %1 = reshape(%0) dims=[2,3,2,4] : f32[2,3,2,4]\n"
                       "  %2 = permute(%1) perm=[0,2,1,3] : f32[2,2,3,4]\n"
                       "  %3 = slice(%2) axis=1 start=1 stop=2 step=1 : f32[2,1,3,4]\n"
                       "  %4 = expand(%3) dims=[2,5,3,4] : f32[2,5,3,4]\n"
                       "  %5 = neg(%4) : f32[2,5,3,4]\n  return %5\n}\n",
                       NULL);
  FL_CHECK(p->run.len == 1 && p->arena_bytes == 0);
  const fl_operand *in = &p->operands.data[p->run.data[0].operands];
  FL_CHECK(in->space == FL_SPACE_INPUT && in->offset == 16);
  FL_CHECK(in->strides[0] == 24 && in->strides[1] == 0 && in->strides[2] == 8 && in->strides[3] == 1);
  fl_plan_destroy(p);
}

/* A backend whose kernels take operands as they come. */
static fl_plan *plan_for_a_device(const char *text) {
  fl_backend device = fl_backend_cpu;
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  fl_plan_options options = {.threads = 1, .backend = &device};
  device.immediate = false;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  fl_graph_destroy(g);
  return p;
}

FL_TEST(concatenations_that_begin_alike_share_their_parts) {
  static const char text[] = "graph(%0: f32[2,3], %1: f32[2,4], %2: f32[2,5]) {\n"
                             "  %3 = cat(%0, %1) axis=1 : f32[2,7]\n  %4 = cumsum(%3) axis=1 : f32[2,7]\n"
                             "  %5 = cat(%0, %1, %2) axis=1 : f32[2,12]\n  %6 = cumsum(%5) axis=1 : f32[2,12]\n"
                             "  %7 = cat(%0, %2) axis=1 : f32[2,8]\n  %8 = cumsum(%7) axis=1 : f32[2,8]\n"
                             "  return %4, %6, %8\n}\n";
  fl_plan *p = plan_for_a_device(text);
  FL_CHECK(run_count(p, FL_STEP_COPY) == 5); /* three parts, and the two of the one that begins otherwise */
  const fl_step *first = &p->run.data[2], *second = &p->run.data[4];
  FL_CHECK(first->kind == FL_STEP_KERNEL && second->kind == FL_STEP_KERNEL);
  const fl_operand *a = &p->operands.data[first->operands], *b = &p->operands.data[second->operands];
  FL_CHECK(a->offset == b->offset && a->strides[0] == 12 && b->strides[0] == 12 && a->type.dims[1] == 7);
  fl_plan_destroy(p);
  p = plan_of(text, NULL); /* on the host each has its own memory */
  FL_CHECK(run_count(p, FL_STEP_COPY) == 7);
  fl_plan_destroy(p);
}

FL_TEST(channels_are_shuffled_where_they_lie) {
  fl_plan *p = plan_for_a_device("graph(%0: f32[2,6,5,7] strides=[210,1,42,6]) {\n"
                                 "  %1 = reshape(%0) dims=[2,2,3,5,7] : f32[2,2,3,5,7]\n"
                                 "  %2 = permute(%1) perm=[0,2,1,3,4] : f32[2,3,2,5,7]\n"
                                 "  %3 = reshape(%2) dims=[2,6,5,7] : f32[2,6,5,7]\n"
                                 "  %4 = slice(%3) axis=1 start=3 stop=6 step=1 : f32[2,3,5,7]\n"
                                 "  %5 = cumsum(%4) axis=1 : f32[2,3,5,7]\n  return %5\n}\n");
  FL_CHECK(p->run.len == 2 && run_count(p, FL_STEP_COPY) == 1);
  const fl_operand *to = &p->operands.data[p->run.data[0].operands + 1],
                   *x = &p->operands.data[p->run.data[1].operands];
  FL_CHECK(to->type.rank == 5 && to->strides[1] == 2 && to->strides[2] == 1 && to->strides[4] == 6);
  FL_CHECK(x->strides[1] == 1 && x->strides[3] == 6 && x->offset == to->offset + 3 * sizeof(float));
  fl_plan_destroy(p);
}

FL_TEST(one_copy_serves_all_who_need_it) {
  fl_plan *p = plan_of("graph(%0: f32[4,6]) {\n"
                       "  %1 = permute(%0) perm=[1,0] : f32[6,4]\n"
                       "  %2 = reshape(%1) dims=[24] : f32[24]\n  %3 = neg(%2) : f32[24]\n"
                       "  %4 = reshape(%1) dims=[3,8] : f32[3,8]\n  %5 = neg(%4) : f32[3,8]\n"
                       "  return %3, %5\n}\n",
                       NULL);
  FL_CHECK(run_count(p, FL_STEP_COPY) == 1 && run_count(p, FL_STEP_KERNEL) == 2);
  fl_plan_destroy(p);
}

FL_TEST(outputs_never_alias) {
  fl_plan *p = plan_of("graph(%0: f32[4,6], %1: weight 0 f32[3]) {\n"
                       "  %2 = neg(%0) : f32[4,6]\n"
                       "  %3 = reshape(%2) dims=[24] : f32[24]\n"
                       "  %4 = slice(%0) axis=0 start=1 stop=2 step=1 : f32[1,6]\n"
                       "  return %2, %3, %2, %4, %0, %1\n}\n",
                       NULL);
  FL_CHECK(run_count(p, FL_STEP_COPY) == 5 && run_count(p, FL_STEP_KERNEL) == 1);
  FL_CHECK(p->arena_bytes == 0 && p->n_outputs == 6 && p->n_weights == 1);
  fl_plan_destroy(p);
}

FL_TEST(outputs_have_the_strides_asked_for) {
  static const char text[] = "graph(%0: f32[1,8,4,4]) {\n"
                             "  %1 = softmax(%0) axis=1 : f32[1,8,4,4]\n  return %1\n}\n";
  const int64_t channels_last[1][FL_MAX_RANK] = {{128, 1, 32, 8}}, holes[1][FL_MAX_RANK] = {{256, 32, 8, 2}};
  fl_plan *p = plan_of(text, channels_last);
  FL_CHECK(p->outputs[0].strides[1] == 1 && p->outputs[0].strides[2] == 32);
  const fl_step *last = &p->run.data[p->run.len - 1];
  const fl_operand *out = &p->operands.data[last->operands + 1];
  FL_CHECK(out->space == FL_SPACE_OUTPUT && fl_is_channels_last(&out->type, out->strides));
  fl_plan_destroy(p);
  fl_graph *g = NULL;
  fl_plan_options options = {.threads = 1, .out_strides = holes};
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_FAILS(fl_plan_build(g, &options, &p), FL_INVALID, "output 0 are not dense");
  fl_graph_destroy(g);
}

FL_TEST(constants_are_computed_before_the_first_run) {
  fl_plan *p = plan_of("graph(%0: f32[2], %1: weight 0 f32[2], %2: weight 3 f32[2], %3: literal f32[] = [2]) {\n"
                       "  %4 = mul(%1, %3) : f32[2]\n"
                       "  %5 = add(%4, %2) : f32[2]\n"
                       "  %6 = add(%0, %5) : f32[2]\n  return %6\n}\n",
                       NULL);
  FL_CHECK(p->init.len == 2 && p->run.len == 1 && p->n_weights == 4);
  FL_CHECK(p->literal_bytes == 64 && *(const float *)p->literals == 2);
  FL_CHECK(p->const_bytes == 128 && p->init_arena_bytes == 64); /* mul's result is needed by init alone */
  FL_CHECK(p->init.data[0].n_deps == 2 && p->init.data[1].n_deps == 2);
  FL_CHECK(p->deps.data[p->init.data[1].deps] == 0 && p->deps.data[p->init.data[1].deps + 1] == 3);
  fl_plan_destroy(p);
}

FL_TEST(equal_packs_are_made_once) {
  fl_plan *p = plan_of("graph(%0: f32[8,16], %1: weight 0 f32[16,32], %2: weight 1 f32[16,32]) {\n"
                       "  %3 = cumsum(%0) axis=1 : f32[8,16]\n  %4 = cumsum(%3) axis=1 : f32[8,16]\n"
                       "  %5 = matmul(%3, %1) : f32[8,32]\n"
                       "  %6 = matmul(%4, %1) : f32[8,32]\n"
                       "  %7 = matmul(%4, %2) : f32[8,32]\n"
                       "  return %5, %6, %7\n}\n",
                       NULL);
  FL_CHECK(run_count(p, FL_STEP_KERNEL) == 5);
  if (fl_cpu_isa() >= FL_ISA_AVX2) {
    FL_CHECK(init_count(p, FL_STEP_PACK) == 2 && p->init.len == 2);
    const fl_operand *a = &p->operands.data[p->run.data[2].operands + 1];
    const fl_operand *b = &p->operands.data[p->run.data[3].operands + 1];
    FL_CHECK(a->space == FL_SPACE_CONST && b->space == FL_SPACE_CONST && a->offset == b->offset);
  }
  fl_plan_destroy(p);
}

#define SCALED(more, outputs) SCALED_BY("mul(%1, %4)", more, outputs)
#define SCALED_BY(mul, more, outputs)                                                                                  \
  "graph(%0: f32[1,8,9,9], %1: weight 0 f32[16,8,3,3], %2: weight 1 f32[16]) {\n"                                      \
  "  %3 = rsqrt(%2) : f32[16]\n"                                                                                       \
  "  %4 = reshape(%3) dims=[16,1,1,1] : f32[16,1,1,1]\n"                                                               \
  "  %5 = " mul " : f32[16,8,3,3]\n"                                                                                   \
  "  %6 = conv2d(%0, %5, _, _) stride=[1,1] dilation=[1,1] pad=[0,0,0,0] groups=1 : f32[1,16,7,7]\n" more              \
  "  return " outputs "\n}\n"

static void check_scaled_pack(const char *text) {
  fl_plan *p = plan_of(text, NULL);
  FL_CHECK(p->init.len == 2 && init_count(p, FL_STEP_KERNEL) == 1 && p->init_arena_bytes == 64);
  const fl_step *pack = &p->init.data[1];
  const fl_operand *o = &p->operands.data[pack->operands];
  FL_CHECK(pack->kind == FL_STEP_PACK && pack->n_in == 2 && pack->n_deps == 2);
  FL_CHECK(o[0].space == FL_SPACE_WEIGHT && o[0].index == 0 && o[1].space == FL_SPACE_ARENA);
  FL_CHECK(o[2].space == FL_SPACE_CONST && p->init.data[0].n_deps == 2); /* the scale is not kept */
  fl_plan_destroy(p);
}

FL_TEST(weights_are_scaled_while_they_are_packed) {
  if (fl_cpu_isa() < FL_ISA_AVX2) return;
  check_scaled_pack(SCALED("", "%6"));
  check_scaled_pack(SCALED_BY("pointwise(%1, %4) {r2 = mul f32 r0 r1; yield r2}", "", "%6"));
}

FL_TEST(weights_that_others_read_too_are_scaled_first) {
  fl_plan *p = plan_of(SCALED("  %7 = cumsum(%5) axis=0 : f32[16,8,3,3]\n", "%6, %7"), NULL);
  FL_CHECK(init_count(p, FL_STEP_KERNEL) == 3 && init_count(p, FL_STEP_PACK) == (fl_cpu_isa() >= FL_ISA_AVX2));
  for (size_t i = 0; i < p->init.len; i++) FL_CHECK(p->init.data[i].kind != FL_STEP_PACK || p->init.data[i].n_in == 1);
  fl_plan_destroy(p);
}

FL_TEST(kernels_that_do_not_pack_get_scaled_weights) {
  fl_plan *p = plan_of(SCALED("", "%6"), NULL);
  FL_CHECK(init_count(p, FL_STEP_KERNEL) == 2 && p->init.len == 2 && p->run.len == 1);
  FL_CHECK(p->operands.data[p->run.data[0].operands + 1].space == FL_SPACE_CONST);
  fl_plan_destroy(p);
}

FL_TEST(results_take_the_place_of_what_dies) {
#define TEXT(outputs)                                                                                                  \
  "graph(%0: f32[64,64], %1: weight 0 f32[64,64]) {\n"                                                                 \
  "  %2 = cumsum(%0) axis=1 : f32[64,64]\n"                                                                            \
  "  %3 = cumsum(%2) axis=0 : f32[64,64]\n"                                                                            \
  "  %4 = matmul(%2, %1, _, %3) : f32[64,64]\n"                                                                        \
  "  %5 = cumsum(%4) axis=0 : f32[64,64]\n  return " outputs "\n}\n"
  if (fl_cpu_isa() < FL_ISA_AVX2) return;
  fl_plan *p = plan_of(TEXT("%5"), NULL);
  const fl_operand *o = &p->operands.data[p->run.data[2].operands];
  FL_CHECK(p->run.data[2].problem->op == FL_OP_MATMUL && p->run.data[2].n_in == 4);
  FL_CHECK(o[4].space == FL_SPACE_ARENA && o[3].offset == o[4].offset);
  fl_plan_destroy(p);
  p = plan_of(TEXT("%5, %3"), NULL);
  o = &p->operands.data[p->run.data[2].operands];
  FL_CHECK(o[3].space == FL_SPACE_OUTPUT && o[4].space == FL_SPACE_ARENA);
  fl_plan_destroy(p);
}

FL_TEST(any_number_of_operands_is_concatenated) {
  char text[4096];
  int n = snprintf(text, sizeof text, "graph(%%0: f32[2,3]) {\n  %%1 = neg(%%0) : f32[2,3]\n  %%2 = cat(%%1");
  for (int i = 1; i < 40; i++) n += snprintf(text + n, sizeof text - (size_t)n, ", %%1");
  snprintf(text + n, sizeof text - (size_t)n, ") axis=1 : f32[2,120]\n  return %%2\n}\n");
  fl_plan *p = plan_of(text, NULL);
  FL_CHECK(run_count(p, FL_STEP_COPY) == 40 && run_count(p, FL_STEP_KERNEL) == 1);
  const fl_operand *last = &p->operands.data[p->run.data[40].operands + 1];
  FL_CHECK(last->space == FL_SPACE_OUTPUT && last->offset == 39 * 3 * 4 && last->strides[0] == 120);
  fl_plan_destroy(p);
}

FL_TEST(nothing_is_computed_for_no_elements) {
  fl_plan *p = plan_of("graph(%0: f32[0,3]) {\n"
                       "  %1 = neg(%0) : f32[0,3]\n  %2 = permute(%1) perm=[1,0] : f32[3,0]\n"
                       "  return %2, %0\n}\n",
                       NULL);
  FL_CHECK(p->run.len == 0 && p->arena_bytes == 0 && p->n_outputs == 2);
  fl_plan_destroy(p);
}

FL_TEST(what_no_kernel_serves_is_named) {
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[2,2]) {\n  %1 = softmax(%0) axis=1 : f32[2,2]\n  return %1\n}\n", &g));
  FL_CHECK(fl_plan_supports(NULL, g, &g->nodes.data[g->first]) == NULL);
  for (int i = 0; i < 2; i++) g->values.data[i].type.dtype = FL_I64; /* which inference would not let through */
  const char *why = fl_plan_supports(NULL, g, &g->nodes.data[g->first]);
  FL_CHECK(why != NULL);
  FL_CHECK_FAILS(fl_plan_build(g, &(fl_plan_options){.threads = 1}, &p), FL_UNSUPPORTED, why ? why : "");
  FL_CHECK_FAILS(fl_plan_build(g, &(fl_plan_options){.threads = 1}, &p), FL_UNSUPPORTED, "softmax (node 0)");
  fl_graph_destroy(g);
}

FL_TEST(plans_print) {
  fl_plan *p = plan_of("graph(%0: f32[2,3], %1: weight 0 f32[3,2] strides=[1,3]) {\n"
                       "  %2 = permute(%0) perm=[1,0] : f32[3,2]\n"
                       "  %3 = reshape(%1) dims=[6] : f32[6]\n  %4 = reshape(%3) dims=[3,2] : f32[3,2]\n"
                       "  %5 = cat(%2, %4) axis=0 : f32[6,2]\n  return %5\n}\n",
                       NULL);
  char *text = NULL;
  FL_CHECK_OK(fl_plan_print(p, &text));
  FL_CHECK_MSG(!strcmp(text, "plan: 1 inputs, 1 outputs, 1 weights, arena 0 bytes (0 unshared), constants 64 bytes\n"
                             "init:\n"
                             "  copy(weight 0 f32[3,2] strides=[1,3]) -> const+0 f32[3,2] weights 0\n"
                             "run:\n"
                             "  copy(input 0 f32[3,2] strides=[1,3]) -> output 0 f32[3,2]\n"
                             "  copy(const+0 f32[3,2]) -> output 0+24 f32[3,2]\n"),
               "%s", text);
  fl_free(text);
  fl_plan_destroy(p);
}

#define PORTABLE fl_cpu_force_isa(FL_ISA_PORTABLE);
#define BEST     fl_cpu_force_isa(FL_ISA_AVX512);

FL_TEST_MAIN(PORTABLE FL_RUN(a_chain_needs_no_more_than_two_buffers_and_ends_in_the_output) FL_RUN(views_cost_nothing)
                 FL_RUN(concatenations_that_begin_alike_share_their_parts) FL_RUN(channels_are_shuffled_where_they_lie)
                     FL_RUN(one_copy_serves_all_who_need_it) FL_RUN(outputs_never_alias)
                         FL_RUN(outputs_have_the_strides_asked_for) FL_RUN(constants_are_computed_before_the_first_run)
                             FL_RUN(any_number_of_operands_is_concatenated) FL_RUN(nothing_is_computed_for_no_elements)
                                 FL_RUN(what_no_kernel_serves_is_named)
                                     FL_RUN(kernels_that_do_not_pack_get_scaled_weights) FL_RUN(plans_print)
                                         BEST FL_RUN(equal_packs_are_made_once)
                                             FL_RUN(weights_are_scaled_while_they_are_packed)
                                                 FL_RUN(weights_that_others_read_too_are_scaled_first)
                                                     FL_RUN(results_take_the_place_of_what_dies))
