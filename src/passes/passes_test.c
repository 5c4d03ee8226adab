#include "passes/pass_test.h"
#include "passes/random_test.h"

/* One block of a transformer encoder as it is recorded under no_grad: view, addmm, view around each linear layer,
 * bmm on flattened heads. (batch 1, 7 tokens, 2 heads of 4, hidden 16) */
static const char *const block =
    "graph(%0: f32[1,7,8], %1: f32[1,1,1,7], %2: weight 0 f32[8,8], %3: weight 1 f32[8], %4: weight 2 f32[8,8],"
    " %5: weight 3 f32[8], %6: weight 4 f32[8,8], %7: weight 5 f32[8], %8: weight 6 f32[8,8], %9: weight 7 f32[8],"
    " %10: weight 8 f32[16,8], %11: weight 9 f32[16], %12: weight 10 f32[8,16], %13: weight 11 f32[8],"
    " %14: weight 12 f32[8], %15: weight 13 f32[8], %16: literal f32[] = [2]) {"
    "  %20 = permute(%2) perm=[1,0] : f32[8,8] %21 = reshape(%0) dims=[7,8] : f32[7,8]"
    "  %22 = matmul(%21, %20, %3) : f32[7,8] %23 = reshape(%22) dims=[1,7,8] : f32[1,7,8]"
    "  %24 = reshape(%23) dims=[1,7,2,4] : f32[1,7,2,4] %25 = permute(%24) perm=[0,2,1,3] : f32[1,2,7,4]"
    "  %30 = permute(%4) perm=[1,0] : f32[8,8] %31 = reshape(%0) dims=[7,8] : f32[7,8]"
    "  %32 = matmul(%31, %30, %5) : f32[7,8] %33 = reshape(%32) dims=[1,7,8] : f32[1,7,8]"
    "  %34 = reshape(%33) dims=[1,7,2,4] : f32[1,7,2,4] %35 = permute(%34) perm=[0,2,1,3] : f32[1,2,7,4]"
    "  %40 = permute(%6) perm=[1,0] : f32[8,8] %41 = reshape(%0) dims=[7,8] : f32[7,8]"
    "  %42 = matmul(%41, %40, %7) : f32[7,8] %43 = reshape(%42) dims=[1,7,8] : f32[1,7,8]"
    "  %44 = reshape(%43) dims=[1,7,2,4] : f32[1,7,2,4] %45 = permute(%44) perm=[0,2,1,3] : f32[1,2,7,4]"
    "  %50 = permute(%35) perm=[0,1,3,2] : f32[1,2,4,7] %51 = expand(%25) dims=[1,2,7,4] : f32[1,2,7,4]"
    "  %52 = reshape(%51) dims=[2,7,4] : f32[2,7,4] %53 = reshape(%50) dims=[2,4,7] : f32[2,4,7]"
    "  %54 = matmul(%52, %53) : f32[2,7,7] %55 = reshape(%54) dims=[1,2,7,7] : f32[1,2,7,7]"
    "  %56 = div(%55, %16) : f32[1,2,7,7] %57 = add(%56, %1) : f32[1,2,7,7] %58 = softmax(%57) axis=3 : f32[1,2,7,7]"
    "  %60 = reshape(%58) dims=[2,7,7] : f32[2,7,7] %61 = reshape(%45) dims=[2,7,4] : f32[2,7,4]"
    "  %62 = matmul(%60, %61) : f32[2,7,4] %63 = reshape(%62) dims=[1,2,7,4] : f32[1,2,7,4]"
    "  %64 = permute(%63) perm=[0,2,1,3] : f32[1,7,2,4] %65 = reshape(%64) dims=[1,7,8] : f32[1,7,8]"
    "  %70 = permute(%8) perm=[1,0] : f32[8,8] %71 = reshape(%65) dims=[7,8] : f32[7,8]"
    "  %72 = matmul(%71, %70, %9) : f32[7,8] %73 = reshape(%72) dims=[1,7,8] : f32[1,7,8]"
    "  %74 = add(%73, %0) : f32[1,7,8] %75 = layer_norm(%74, %14, %15) axes=1 eps=1e-12 : f32[1,7,8]"
    "  %80 = permute(%10) perm=[1,0] : f32[8,16] %81 = reshape(%75) dims=[7,8] : f32[7,8]"
    "  %82 = matmul(%81, %80, %11) : f32[7,16] %83 = reshape(%82) dims=[1,7,16] : f32[1,7,16]"
    "  %84 = gelu(%83) : f32[1,7,16] %85 = permute(%12) perm=[1,0] : f32[16,8]"
    "  %86 = reshape(%84) dims=[7,16] : f32[7,16] %87 = matmul(%86, %85, %13) : f32[7,8]"
    "  %88 = reshape(%87) dims=[1,7,8] : f32[1,7,8] %89 = add(%88, %75) : f32[1,7,8] return %89 }";

FL_TEST(encoder_block) {
  CHECK_PASS(
      NULL, block,
      "graph(%0: f32[1,7,8], %1: f32[1,1,1,7], %2: weight 0 f32[8,8], %3: weight 1 f32[8], %4: weight 2 f32[8,8],"
      " %5: weight 3 f32[8], %6: weight 4 f32[8,8], %7: weight 5 f32[8], %8: weight 6 f32[8,8], %9: weight 7 f32[8],"
      " %10: weight 8 f32[16,8], %11: weight 9 f32[16], %12: weight 10 f32[8,16], %13: weight 11 f32[8],"
      " %14: weight 12 f32[8], %15: weight 13 f32[8], %50: literal f32[] = [-inf], %51: literal f32[] = [nan],"
      " %52: literal f32[] = [0]) {"
      "  %20 = cat(%2, %4, %6) axis=0 : f32[24,8] %21 = cat(%3, %5, %7) axis=0 : f32[24]"
      "  %22 = matmul(%0, %20, %21) trans_b=1 : f32[1,7,24] %23 = slice(%22) axis=2 start=0 stop=8 step=1 : f32[1,7,8]"
      "  %24 = slice(%22) axis=2 start=8 stop=16 step=1 : f32[1,7,8]"
      "  %25 = slice(%22) axis=2 start=16 stop=24 step=1 : f32[1,7,8]"
      "  %26 = reshape(%23) dims=[1,7,2,4] : f32[1,7,2,4] %27 = permute(%26) perm=[0,2,1,3] : f32[1,2,7,4]"
      "  %28 = reshape(%24) dims=[1,7,2,4] : f32[1,7,2,4] %30 = reshape(%25) dims=[1,7,2,4] : f32[1,7,2,4]"
      "  %31 = permute(%30) perm=[0,2,1,3] : f32[1,2,7,4] %29 = permute(%28) perm=[0,2,1,3] : f32[1,2,7,4]"
      "  %32 = attention(%27, %29, %31, %1) scale=0.5 : f32[1,2,7,4]"
      "  %53 = amax(%1) axes=[3] keepdim=1 : f32[1,1,1,1] %54 = pointwise(%53, %50, %51, %52, %32)"
      "  {r5 = eq bool r0 r1; r6 = where f32 r5 r2 r3; r7 = add f32 r4 r6; yield r7} : f32[1,2,7,4]"
      "  %33 = permute(%54) perm=[0,2,1,3] : f32[1,7,2,4] %34 = reshape(%33) dims=[7,8] : f32[7,8]"
      "  %39 = reshape(%0) dims=[7,8] : f32[7,8] %35 = matmul(%34, %8, %9, %39) trans_b=1 : f32[7,8]"
      "  %40 = reshape(%35) dims=[1,7,8] : f32[1,7,8] %36 = layer_norm(%40, %14, %15) axes=1 eps=1e-12 : f32[1,7,8]"
      "  %37 = matmul(%36, %10, %11) trans_b=1 act=gelu : f32[1,7,16]"
      "  %38 = matmul(%37, %12, %13, %36) trans_b=1 : f32[1,7,8] return %38 }");
}

/* The Nth allocation fails, for every N: no crash, no leak, nothing but FL_OOM. */
FL_TEST(memory_failures) {
  int64_t live = fl_alloc_live(), nth = 1;
  for (bool done = false; !done && nth < 5000; nth++) {
    fl_graph *g = NULL;
    fl_alloc_fail_at(nth);
    fl_status s = fl_graph_parse(block, &g);
    if (!s) s = fl_passes_run(g, true);
    fl_alloc_fail_at(0);
    FL_CHECK(!s || fl_status_code(s) == FL_OOM);
    done = !s;
    fl_status_free(s);
    fl_graph_destroy(g);
    FL_CHECK(fl_alloc_live() == live);
  }
  FL_CHECK_MSG(nth > 100 && nth < 5000, "%d allocations", (int)nth);
}

FL_TEST(random_graphs_stay_well_formed) {
  int before = 0, after = 0;
  for (int seed = 1; seed <= 300; seed++) {
    random_state = (uint64_t)seed;
    fl_graph *g = random_graph(60, false);
    fl_type types[3];
    before += fl_graph_node_count(g);
    for (int i = 0; i < 3; i++) types[i] = g->values.data[g->outputs.data[i]].type;
    FL_CHECK_OK(fl_passes_run(g, true));
    for (int i = 0; i < 3; i++) FL_CHECK(fl_type_equal(&types[i], &g->values.data[g->outputs.data[i]].type));
    FL_CHECK(fl_graph_count_op(g, FL_OP_BATCH_NORM) == 0);
    after += fl_graph_node_count(g);
    fl_graph_destroy(g);
  }
  FL_CHECK_MSG(after < before / 2, "%d nodes of %d", after, before);
}

/* Many nodes that share operands: a scan per node would take minutes here. The bound is on growth, not on time. */
FL_TEST(large_graph) {
  random_state = 7;
  fl_graph *g = random_graph(20000, false);
  FL_CHECK(fl_graph_node_count(g) >= 20000);
  for (fl_vid v = 0; v < g->values.len; v += 50) FL_CHECK_OK(fl_graph_output(g, v));
  FL_CHECK_OK(fl_passes_run(g, false));
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(encoder_block) FL_RUN(memory_failures) FL_RUN(random_graphs_stay_well_formed) FL_RUN(large_graph))
