#include "passes/pass_test.h"

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
      " %14: weight 12 f32[8], %15: weight 13 f32[8]) {"
      "  %20 = cat(%2, %4, %6) axis=0 : f32[24,8] %21 = cat(%3, %5, %7) axis=0 : f32[24]"
      "  %22 = matmul(%0, %20, %21) trans_b=1 : f32[1,7,24] %23 = slice(%22) axis=2 start=0 stop=8 step=1 : f32[1,7,8]"
      "  %24 = slice(%22) axis=2 start=8 stop=16 step=1 : f32[1,7,8]"
      "  %25 = slice(%22) axis=2 start=16 stop=24 step=1 : f32[1,7,8]"
      "  %26 = reshape(%23) dims=[1,7,2,4] : f32[1,7,2,4] %27 = permute(%26) perm=[0,2,1,3] : f32[1,2,7,4]"
      "  %28 = reshape(%24) dims=[1,7,2,4] : f32[1,7,2,4] %30 = reshape(%25) dims=[1,7,2,4] : f32[1,7,2,4]"
      "  %31 = permute(%30) perm=[0,2,1,3] : f32[1,2,7,4] %29 = permute(%28) perm=[0,2,1,3] : f32[1,2,7,4]"
      "  %32 = attention(%27, %29, %31, %1) scale=0.5 : f32[1,2,7,4]"
      "  %33 = permute(%32) perm=[0,2,1,3] : f32[1,7,2,4] %34 = reshape(%33) dims=[7,8] : f32[7,8]"
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

/* --- random graphs --- */

static uint64_t random_state;
static int pick(int n) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (int)((random_state >> 33) % (uint64_t)n);
}

static fl_status random_view(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_attrs a = {0};
  int64_t list[3] = {2, 0, 1};
  int kind = pick(4);
  if (kind == 0) { /* two axes become one, and one becomes two */
    bool three = t.rank == 3;
    int64_t joined[2] = {t.dims[0] * t.dims[1], t.dims[2]}, split[3] = {1, t.dims[0], t.dims[1]};
    fl_attr_set_list(&a, "dims", three ? joined : split, three ? 2 : 3);
    return fl_graph_op(g, FL_OP_RESHAPE, &v, 1, &a, out);
  }
  if (kind == 1) {
    fl_attr_set_list(&a, "perm", t.rank == 3 ? list : (int64_t[]){1, 0}, t.rank);
    return fl_graph_op(g, FL_OP_PERMUTE, &v, 1, &a, out);
  }
  if (kind == 2) {
    fl_attr_set_list(&a, "dims", t.dims, t.rank);
    return fl_graph_op(g, FL_OP_EXPAND, &v, 1, &a, out);
  }
  int axis = pick(t.rank);
  fl_attr_set_int(&a, "axis", 'i', axis);
  fl_attr_set_int(&a, "start", 'i', 0);
  fl_attr_set_int(&a, "stop", 'i', pick(2) ? t.dims[axis] : (t.dims[axis] + 1) / 2);
  fl_attr_set_int(&a, "step", 'i', 1 + pick(2));
  return fl_graph_op(g, FL_OP_SLICE, &v, 1, &a, out);
}

static fl_status random_other(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_attrs a = {0};
  fl_vid in[5] = {v, v, v, v, v};
  switch (pick(4)) {
  case 0: fl_attr_set_int(&a, "axis", 'i', t.rank - 1); return fl_graph_op(g, FL_OP_SOFTMAX, in, 1, &a, out);
  case 1:
    fl_attr_set_list(&a, "axes", (int64_t[]){t.rank - 1}, 1);
    fl_attr_set_int(&a, "keepdim", 'b', 1);
    return fl_graph_op(g, FL_OP_MEAN, in, 1, &a, out);
  case 2:
    fl_attr_set_float(&a, "eps", 1e-5);
    for (int i = 1; i < 5; i++)
      FL_TRY(fl_graph_weight(g, &(fl_type){FL_F32, 1, {t.dims[1]}}, NULL, (uint32_t)i, NULL, &in[i]));
    return fl_graph_op(g, FL_OP_BATCH_NORM, in, 5, &a, out);
  default: {
    fl_type w = {FL_F32, 2, {t.dims[t.rank - 1], 1 + pick(4)}};
    FL_TRY(fl_graph_weight(g, &w, NULL, (uint32_t)(10 + pick(3)), NULL, &in[1]));
    return fl_graph_op(g, FL_OP_MATMUL, in, 2, NULL, out);
  }
  }
}

static fl_status random_node(fl_graph *g, fl_vid *out) {
  static const fl_op unary[] = {FL_OP_RELU, FL_OP_GELU, FL_OP_SIGMOID, FL_OP_NEG, FL_OP_EXP, FL_OP_RSQRT};
  static const fl_op binary[] = {FL_OP_ADD, FL_OP_MUL, FL_OP_SUB, FL_OP_DIV, FL_OP_POW};
  int n = (int)g->values.len;
  fl_vid in[2] = {(fl_vid)(pick(3) ? n - 1 - pick(n < 8 ? n : 8) : pick(n)), (fl_vid)pick(n)};
  switch (pick(5)) {
  case 0: return fl_graph_op(g, unary[pick(6)], in, 1, NULL, out);
  case 1:
  case 2:
    if (g->values.data[in[0]].type.rank < 2) return fl_fail(FL_INVALID, "a scalar");
    return pick(2) ? random_view(g, in[0], out) : random_other(g, in[0], out);
  case 3:
    if (pick(2)) return fl_graph_op(g, FL_OP_MATMUL, in, 2, NULL, out);
    FL_TRY(fl_graph_scalar(g, FL_F32, pick(4), &in[1])); /* fall through */
  default: return fl_graph_op(g, binary[pick(5)], in, 2, NULL, out);
  }
}

/* Most attempts break a rule, and that is all they do. */
static fl_graph *random_graph(int nodes) {
  fl_graph *g = NULL;
  fl_vid v;
  fl_type t = {FL_F32, 3, {2, 3, 4}}, w = {FL_F32, 2, {4, 4}};
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &t, NULL, &v));
  FL_CHECK_OK(fl_graph_input(g, &w, NULL, &v));
  FL_CHECK_OK(fl_graph_weight(g, &w, NULL, 0, NULL, &v));
  for (int tries = 0; fl_graph_node_count(g) < nodes && tries < 40 * nodes; tries++) fl_status_free(random_node(g, &v));
  for (int i = 0; i < 3; i++)
    FL_CHECK_OK(fl_graph_output(g, (fl_vid)(g->values.len - 1 - (size_t)pick((int)g->values.len))));
  return g;
}

FL_TEST(random_graphs_stay_well_formed) {
  int before = 0, after = 0;
  for (int seed = 1; seed <= 300; seed++) {
    random_state = (uint64_t)seed;
    fl_graph *g = random_graph(60);
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
  fl_graph *g = random_graph(20000);
  FL_CHECK(fl_graph_node_count(g) == 20000);
  for (fl_vid v = 0; v < g->values.len; v += 50) FL_CHECK_OK(fl_graph_output(g, v));
  FL_CHECK_OK(fl_passes_run(g, false));
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(encoder_block) FL_RUN(memory_failures) FL_RUN(random_graphs_stay_well_formed) FL_RUN(large_graph))
