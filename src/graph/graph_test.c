#include "graph/graph.h"

#include "base/test.h"

static const char *const texts[] = {
    "graph(%0: f32[1,3,8,8], %1: weight 0 f32[4,3,3,3], %2: literal f32[] = [1.5]) {\n"
    "  %3 = conv2d(%0, %1) stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 act=relu : f32[1,4,8,8]\n"
    "  %4 = mul(%3, %2) : f32[1,4,8,8]\n"
    "  return %4\n"
    "}\n",
    "graph(%0: f32[2,3] strides=[1,2], %1: i64[2], %2: weight 7 f32[2,3] strides=[1,2], %3: literal i64[2] = "
    "[9223372036854775807,-9223372036854775808], %4: literal bf16[2] = [inf,-0.5], %5: literal bool[] = [1]) {\n"
    "  %6, %7 = pointwise(%0, %2) {r2 = add f32 r0 r1; r3 = clamp f32 r2 lo=0 hi=inf; r4 = cast i64 r2; yield r3 r4} : "
    "f32[2,3], i64[2,3]\n"
    "  %8 = matmul(%6, %2, _, %9) trans_b=1 act=clamp act_lo=0 act_hi=6 : f32[2,2]\n"
    "  return %8\n"
    "}\n",
    "graph(%0: i64[2], %1: literal i64[2] = [9223372036854775807,-9223372036854775808], %2: literal f64[] = "
    "[0.10000000000000001]) {\n"
    "  %3 = add(%0, %1) : i64[2]\n"
    "  %4 = cast(%3) dtype=f64 : f64[2]\n"
    "  %5 = add(%4, %2) : f64[2]\n"
    "  %6 = elu(%5) alpha=0.1 : f64[2]\n"
    "  %7 = group_norm(%8, _, %9) groups=1 eps=1e-05 : f64[2]\n"
    "  return %6, %0\n"
    "}\n",
    "graph() {\n"
    "  %0 = iota() dims=[3] axis=0 start=0.5 step=1 dtype=f32 : f32[3]\n"
    "  %1, %2 = pointwise(%0) {r1 = clamp f32 r0 lo=-inf hi=6; r2 = cast i64 r1; yield r1 r2} : f32[3], i64[3]\n"
    "  return %1, %2, %1\n"
    "}\n",
    "graph(%0: f32[3,4] strides=[1,3], %1: weight 7 f32[6,4] strides=[1,6], %2: weight 3 f32[3,6]) {\n"
    "  %3 = matmul(%0, %1, _, %2) trans_b=1 act=clamp act_lo=0 act_hi=6 : f32[3,6]\n"
    "  return %3\n"
    "}\n",
};

FL_TEST(round_trip) {
  int good = 0;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    fl_graph *g = NULL;
    char *out = NULL;
    fl_status s = fl_graph_parse(texts[i], &g);
    if (strstr(texts[i], "%9")) { /* names a value that is not there */
      FL_CHECK_FAILS(s, FL_INVALID, "is not defined");
      continue;
    }
    FL_CHECK_OK(s);
    FL_CHECK_OK(fl_graph_verify(g));
    FL_CHECK_OK(fl_graph_print(g, &out));
    FL_CHECK_MSG(!strcmp(out, texts[i]), "\n%s", out);
    fl_free(out);
    fl_graph_destroy(g);
    good++;
  }
  FL_CHECK(good == 3);
}

FL_TEST(refused_texts) {
  static const struct {
    const char *text, *why;
  } bad[] = {
      {"", "line 1: expected \"graph\", found end of text"},
      {"graph(%0: f32[2]) {\n %1 = relu(%0) : f32[3]\n return %1 }", "line 2: result is f32[2]"},
      {"graph(%0: f32[2]) { %0 = relu(%0) : f32[2] return %0 }", "%0 is defined twice"},
      {"graph(%0: f32[2]) { %1 = unknown(%0) : f32[2] return %1 }", "unknown operator unknown"},
      {"graph(%0: f32[2]) { %1 = relu(%0) axis=1 : f32[2] return %1 }", "relu has no attribute axis"},
      {"graph(%0: f31[2]) { return %0 }", "unknown dtype f31"},
      {"graph(%0: f32[1,1,1,1,1,1,1,1,1]) { return %0 }", "a shorter list"},
      {"graph(%0: f32[-1]) { return %0 }", "dims[0] is -1"},
      {"graph(%99999999999: f32[1]) { return %0 }", "too large"},
      {"graph(%0: literal f32[1000000000] = [1]) { return %0 }", "as many elements"},
      {"graph(%0: literal f32[2] = [1]) { return %0 }", "expected \",\""},
      {"graph(%0: f32[2]) { %1 = pointwise(%0) {r1 = add f32 r0 r0 yield r1} : f32[2] return %1 }", "expected \"=\""},
      {"graph(%0: f32[2]) { %1 = pointwise(%0) {r2 = neg f32 r0; yield r1} : f32[2] return %1 }", "in order"},
      {"graph(%0: f32[2]) { %1 = pointwise(%0) {r1 = neg f16 r0; yield r1} : f32[2] return %1 }", "must be f32"},
      {"graph(%0: f32[2]) { return %0 } x", "end of text"},
  };
  int64_t live = fl_alloc_live();
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    fl_graph *g;
    FL_CHECK_FAILS(fl_graph_parse(bad[i].text, &g), FL_INVALID, bad[i].why);
  }
  FL_CHECK(fl_alloc_live() == live);
}

static fl_graph *chain(int n, fl_vid *out_x, fl_vid *ids) {
  fl_graph *g = NULL;
  fl_type t = fl_type_make(FL_F32, 1, (int64_t[]){4});
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &t, NULL, out_x));
  fl_vid v = *out_x;
  for (int i = 0; i < n; i++) {
    FL_CHECK_OK(fl_graph_op(g, FL_OP_RELU, &v, 1, NULL, &v));
    ids[i] = v;
  }
  FL_CHECK_OK(fl_graph_output(g, v));
  return g;
}

FL_TEST(editing) {
  fl_vid x, v[4], sum;
  fl_graph *g = chain(4, &x, v);
  fl_nid last = fl_graph_producer(g, v[3]);
  FL_CHECK(fl_graph_use_count(g, v[3]) == 1 && fl_graph_sole_user(g, v[3]) == FL_NO_NODE);
  FL_CHECK(fl_graph_sole_user(g, v[2]) == last && fl_graph_producer(g, x) == FL_NO_NODE);
  FL_CHECK_OK(fl_graph_add(g, last, FL_OP_ADD, (fl_vid[]){v[2], v[2]}, 2, NULL, NULL, &sum));
  FL_CHECK(fl_graph_use_count(g, v[2]) == 3 && fl_graph_node_count(g) == 5);
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_replace_uses(g, v[3], sum);
  FL_CHECK(g->outputs.data[0] == sum && fl_graph_use_count(g, v[3]) == 0 && fl_graph_use_count(g, sum) == 1);
  fl_graph_remove(g, last);
  FL_CHECK(fl_graph_node_count(g) == 4 && fl_graph_count_op(g, FL_OP_RELU) == 3 && fl_graph_use_count(g, v[2]) == 2);
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_set_input(g, fl_graph_producer(g, sum), 1, x);
  FL_CHECK(fl_graph_use_count(g, x) == 2 && fl_graph_use_count(g, v[2]) == 1);
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_move_before(g, fl_graph_producer(g, v[0]), FL_NO_NODE);
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "before its definition");
  fl_graph_move_before(g, fl_graph_producer(g, v[0]), fl_graph_producer(g, v[1]));
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST(constants) {
  fl_graph *g = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[4], %1: weight 0 f32[4], %2: literal f32[2] = [3,3]) {\n"
                             "  %3 = neg(%1) : f32[4]\n  %4 = exp(%3) : f32[4]\n  %5 = add(%4, %0) : f32[4]\n"
                             "  %6 = neg(%2) : f32[2]\n  return %5, %4, %6 }",
                             &g));
  fl_vid neg = g->nodes.data[g->first].outputs[0], w = g->nodes.data[g->first].inputs[0];
  double scalar;
  FL_CHECK(fl_graph_is_const(g, w) && fl_graph_is_const(g, neg) && fl_graph_is_const(g, g->outputs.data[1]));
  FL_CHECK(!fl_graph_is_const(g, g->outputs.data[0]) && !fl_graph_is_const(g, g->inputs.data[0]));
  FL_CHECK(!fl_graph_scalar_value(g, w, &scalar) && fl_graph_scalar_value(g, 2, &scalar) && scalar == 3);
  fl_graph_replace_uses(g, neg, g->inputs.data[0]);
  FL_CHECK(!fl_graph_is_const(g, g->outputs.data[1]));
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST(verifier_finds) {
  fl_vid x, v[3];
  fl_graph *g = chain(3, &x, v);
  fl_node *n = &g->nodes.data[fl_graph_producer(g, v[1])];
  g->values.data[v[1]].type.dims[0] = 5;
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "node 1 (relu): result 0 is f32[5]: must be f32[4]");
  g->values.data[v[1]].type.dims[0] = 4;
  n->inputs[0] = x; /* behind the back of the index */
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "a use that is none");
  n->inputs[0] = 1000;
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "no value %1000");
  n->inputs[0] = v[0];
  n->op = FL_OP_SOFTMAX;
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "attribute axis is missing");
  n->op = FL_OP_RELU;
  g->values.data[v[1]].constant = true;
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "constant flag");
  g->values.data[v[1]].constant = false;
  g->n_live++;
  FL_CHECK_FAILS(fl_graph_verify(g), FL_INTERNAL, "3 nodes, counted 4");
  g->n_live--;
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST(single_pointwise_program) {
  fl_graph *g = NULL;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[4]) {\n  %1 = clamp(%0) lo=0 hi=6 : f32[4]\n  %2 = gt(%1, %0) : bool[4]\n"
                             "  %3 = softmax(%1) axis=0 : f32[4]\n  return %2, %3 }",
                             &g));
  fl_pw_program p;
  FL_CHECK(fl_pw_from_node(g, &g->nodes.data[0], &p));
  FL_CHECK(p.n_inputs == 1 && p.n_instrs == 1 && p.outputs[0] == 1 && p.instrs[0].a == 0 && p.instrs[0].b == 6);
  FL_CHECK_OK(fl_pw_check(&p));
  FL_CHECK(fl_pw_from_node(g, &g->nodes.data[1], &p));
  FL_CHECK(p.n_inputs == 2 && p.in_dtype[1] == FL_F32 && p.instrs[0].dtype == FL_BOOL && p.instrs[0].src[1] == 1);
  FL_CHECK_OK(fl_pw_check(&p));
  FL_CHECK(!fl_pw_from_node(g, &g->nodes.data[2], &p));
  fl_graph_destroy(g);
}

FL_TEST(memory_failures) {
  int64_t live = fl_alloc_live();
  int64_t nth = 1;
  for (bool done = false; !done && nth < 1000; nth++) {
    fl_graph *g = NULL;
    char *out = NULL;
    fl_alloc_fail_at(nth);
    fl_status s = fl_graph_parse(texts[3], &g);
    if (!s) s = fl_graph_verify(g);
    if (!s) s = fl_graph_print(g, &out);
    fl_alloc_fail_at(0);
    FL_CHECK(!s || fl_status_code(s) == FL_OOM);
    done = !s;
    fl_free(out);
    fl_status_free(s);
    fl_graph_destroy(g);
    FL_CHECK(fl_alloc_live() == live);
  }
  FL_CHECK(nth > 8 && nth < 1000);
}

FL_TEST(many_nodes) {
  enum { N = 20000 };
  static fl_vid ids[N];
  fl_vid x;
  fl_graph *g = chain(N, &x, ids);
  for (int i = 0; i < N - 1; i++) { /* every value gets all uses of the one before: quadratic if uses were searched */
    fl_graph_replace_uses(g, ids[i], x);
    fl_graph_remove(g, fl_graph_producer(g, ids[i]));
  }
  FL_CHECK(fl_graph_node_count(g) == 1 && fl_graph_use_count(g, x) == 1);
  FL_CHECK_OK(fl_graph_verify(g));
  fl_graph_destroy(g);
}

FL_TEST_MAIN(FL_RUN(round_trip) FL_RUN(refused_texts) FL_RUN(editing) FL_RUN(constants) FL_RUN(verifier_finds)
                 FL_RUN(single_pointwise_program) FL_RUN(memory_failures) FL_RUN(many_nodes))
