#include "lower/lower.h"

#include "base/test.h"
#include "lower/aten_text.h"

static fl_lowered *lower_text(const char *text, const fl_lower_options *options, fl_aten_graph **out_aten) {
  fl_lowered *l = NULL;
  *out_aten = aten_from_text(text);
  FL_CHECK(*out_aten != NULL);
  if (*out_aten) FL_CHECK_OK(fl_lower(*out_aten, options, &l));
  return l;
}

/* "n 2:1>1 e 1:1>2": kind, operators, inputs, outputs of each part. */
static void describe(const fl_lowered *l, char *out, size_t size) {
  out[0] = 0;
  for (size_t p = 0; l && p < l->parts.len; p++) {
    const fl_part *part = &l->parts.data[p];
    size_t len = strlen(out);
    snprintf(out + len, size - len, "%s%s %d:%d>%d", p ? " " : "", part->kind == FL_PART_ENGINE ? "n" : "e",
             part->n_nodes, part->n_inputs, part->n_outputs);
  }
}

static void check_shape(const char *text, const char *want) {
  fl_aten_graph *aten;
  fl_lowered *l = lower_text(text, NULL, &aten);
  char got[256];
  describe(l, got, sizeof got);
  FL_CHECK_MSG(!strcmp(got, want), "got \"%s\", not \"%s\" from\n%s", got, want, text);
  for (size_t p = 0; l && p < l->parts.len; p++) {
    const fl_part *part = &l->parts.data[p];
    FL_CHECK((part->graph != NULL) == (part->kind == FL_PART_ENGINE));
    if (!part->graph) continue;
    FL_CHECK_OK(fl_graph_verify(part->graph));
    FL_CHECK((int)part->graph->inputs.len == part->n_inputs && (int)part->graph->outputs.len == part->n_outputs);
    for (int i = 0; i < part->n_inputs; i++)
      FL_CHECK(fl_type_equal(&part->graph->values.data[part->graph->inputs.data[i]].type,
                             &aten->values.data[part->inputs[i]].type));
    for (int i = 0; i < part->n_outputs; i++)
      FL_CHECK(fl_type_equal(&part->graph->values.data[part->graph->outputs.data[i]].type,
                             &aten->values.data[part->outputs[i]].type));
  }
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

#define LINEAR(y, x)                                                                                                   \
  y "t = aten.t.default(self=w) : f32[8,8] of w\n" y " = aten.addmm.default(self=b, mat1=" x ", mat2=" y               \
    "t) : f32[8,8]\n"
#define HEAD      "x = input f32[8,8]\nw = weight f32[8,8]\nb = weight f32[8]\n"
#define SVD(y, x) y "u, " y ", " y "v = aten._linalg_svd.default(A=" x ") : f32[8,8], f32[8], f32[8,8]\n"

FL_TEST(whole_segment) {
  check_shape(HEAD LINEAR("y", "x") "z = aten.relu_.default(self=y) : f32[8,8] of y\nreturn z\n", "n 3:1>1");
  check_shape(HEAD "return x\n", "");
}

FL_TEST(svd_in_the_middle) {
  check_shape(HEAD LINEAR("y", "x")
                  SVD("s", "y") "z = aten.add.Tensor(self=y, other=s) : f32[8,8]\n" LINEAR("r", "z") "return r\n",
              "n 2:1>1 e 1:1>1 n 3:2>1");
}

FL_TEST(dead_operators) {
  fl_aten_graph *aten;
  fl_lowered *l =
      lower_text(HEAD "e = aten.empty.memory_format(size=[0]) : f32[0]\n"
                      "n = aten.neg.default(self=x) : f32[8,8]\nm = aten.kthvalue.default(self=n) : f32[8,8]\n"
                      "q = aten.check.default(self=x) : f32[] pin effect\n"
                      "r = aten.exp.default(self=x) : f32[8,8]\nreturn r\n",
                 NULL, &aten);
  char got[256];
  describe(l, got, sizeof got);
  /* an effect may write what the caller owns: exp reads x afterwards, as recorded */
  FL_CHECK_MSG(!strcmp(got, "e 1:1>0 n 1:1>1"), "%s", got);
  FL_CHECK(l->n_dead == 3 && l->n_lowered == 1 && l->n_reports == 5);
  FL_CHECK(!strcmp(l->reports[1].reason, "nobody needs its result"));
  FL_CHECK(!strcmp(l->reports[3].reason, "effect"));
  FL_CHECK(l->reports[4].lowered && !l->reports[4].reason);
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

/* Nobody needs its result, but it may raise. What decides is the operator, and for divisions the element type. */
FL_TEST(dead_operators_that_may_raise) {
#define WITH(op) HEAD "i = input i64[3]\n" op "r = aten.exp.default(self=x) : f32[8,8]\nreturn r\n"
  check_shape(WITH("e = aten.embedding.default(weight=w, indices=i) : f32[3,8]\n"), "n 2:2>1");
  check_shape(WITH("e = aten.remainder.Scalar(self=i, other=2) : i64[3]\n"), "n 2:2>1");
  check_shape(WITH("e = aten.remainder.Tensor(self=x, other=b) : f32[8,8]\n"), "n 1:1>1");
  check_shape(WITH("e = aten.index.Tensor(self=w, indices=[i]) : f32[3,8]\n"
                   "f = aten.neg.default(self=e) : f32[3,8]\n"),
              "n 2:2>1");
  check_shape(WITH("e, f = aten.linalg_cholesky_ex.default(self=x) : f32[8,8], f32[]\n"), "n 1:1>1 e 1:1>0");
  /* of weights alone: no part needs its result, one must have it all the same */
  check_shape(HEAD "k = weight i64[3]\ne = aten.embedding.default(weight=w, indices=k) : f32[3,8]\n"
                   "r = aten.exp.default(self=x) : f32[8,8]\nreturn r\n",
              "n 2:1>1");
#undef WITH
}

FL_TEST(weights_are_made_again) {
  /* the transposed weight is used on both sides of the eager operator, and crosses no border */
  check_shape(HEAD "t = aten.t.default(self=w) : f32[8,8] of w\nn = aten.neg.default(self=t) : f32[8,8]\n"
                   "a = aten.mm.default(self=x, mat2=n) : f32[8,8]\n" SVD(
                       "s", "a") "z = aten.mm.default(self=sv, mat2=n) : f32[8,8]\nreturn z\n",
              "n 3:1>1 e 1:1>1 n 3:1>1");
}

FL_TEST(views_never_force_a_switch) {
  check_shape(HEAD LINEAR("y", "x") "v = aten.view.default(self=y) : f32[64] of y\n"
                                    "s, i = aten.kthvalue.default(self=v) : f32[64], i64[64]\n"
                                    "g = aten.view.default(self=s) : f32[8,8] of s\n"
                                    "h, j = aten.kthvalue.default(self=g) : f32[8,8], i64[8,8]\nreturn h\n",
              "n 2:1>1 e 4:1>1");
  check_shape(HEAD LINEAR("y", "x") "v = aten.view.default(self=y) : f32[64] of y\nreturn v\n", "n 3:1>1");
}

FL_TEST(shared_memory_leaves_shared) {
  /* a view of an input, and two results of one memory, keep sharing */
  check_shape(HEAD "v = aten.view.default(self=x) : f32[64] of x\nreturn v\n", "e 1:1>1");
  check_shape(HEAD
              "y = aten.exp.default(self=x) : f32[8,8]\nv = aten.view.default(self=y) : f32[64] of y\nreturn y v\n",
              "n 1:1>1 e 1:1>1");
  check_shape(HEAD "y = aten.exp.default(self=x) : f32[8,8]\n"
                   "p, q = aten.split.Tensor(self=y, split_size=4, dim=0) : f32[4,8] of y, f32[4,8] of y\nreturn p q\n",
              "n 1:1>1 e 1:1>2");
}

FL_TEST(writes_wait_for_readers) {
  /* index_put_ overwrites x: the engine reads x before, although nothing else orders them */
  fl_aten_graph *aten;
  fl_lowered *l = lower_text(HEAD "a = aten.exp.default(self=x) : f32[8,8]\n"
                                  "y = aten.index_put_.default(self=x, indices=[None], values=b) : f32[8,8] of x\n"
                                  "c = aten.neg.default(self=b) : f32[8]\n"
                                  "d = aten.mul.Tensor(self=y, other=c) : f32[8,8]\nreturn a d y\n",
                             NULL, &aten);
  char got[256];
  describe(l, got, sizeof got);
  FL_CHECK_MSG(!strcmp(got, "n 1:1>1 e 1:1>1 n 2:1>1"), "%s", got);
  FL_CHECK(l->parts.len == 3 && l->parts.data[0].nodes[0] == 0 && l->parts.data[1].nodes[0] == 1);
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

static const char *no_exp(void *ctx, const fl_graph *g, const fl_node *n) {
  return n->op == FL_OP_EXP ? (const char *)ctx : NULL;
}

FL_TEST(backend_decides) {
  fl_aten_graph *aten;
  fl_lower_options options = {.supports = no_exp, .ctx = "no exp here"};
  fl_lowered *l = lower_text(
      HEAD LINEAR("y", "x") "e = aten.exp.default(self=y) : f32[8,8]\n" LINEAR("z", "e") "return z\n", &options, &aten);
  char got[256];
  describe(l, got, sizeof got);
  FL_CHECK_MSG(!strcmp(got, "n 2:1>1 e 1:1>1 n 2:1>1"), "%s", got);
  FL_CHECK(!strcmp(l->reports[2].reason, "no exp here"));
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

FL_TEST(origins) {
  fl_aten_graph *aten;
  fl_lowered *l = lower_text(HEAD LINEAR("y", "x") "e = aten.exp.default(self=y) : f32[8,8]\nreturn e\n", NULL, &aten);
  const fl_graph *g = l->parts.data[0].graph;
  for (fl_nid n = g->first; n != FL_NO_NODE; n = g->nodes.data[n].next) {
    fl_op want = g->nodes.data[n].origin == 0 ? FL_OP_PERMUTE : g->nodes.data[n].origin == 1 ? FL_OP_MATMUL : FL_OP_EXP;
    FL_CHECK(g->nodes.data[n].op == want);
  }
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

FL_TEST(broken_segments) {
  fl_aten_graph *aten = aten_from_text(HEAD "y = aten.exp.default(self=x) : f32[8,8]\nreturn y\n");
  fl_lowered *l = NULL;
  aten->nodes.data[0].args[0].v.value = 99;
  FL_CHECK_FAILS(fl_lower(aten, NULL, &l), FL_INVALID, "aten.exp.default");
  aten->nodes.data[0].args[0].v.value = aten->outputs.data[0];
  FL_CHECK_FAILS(fl_lower(aten, NULL, &l), FL_INTERNAL, "before it is made");
  aten->nodes.data[0].args[0].v.value = 0;
  aten->outputs.data[0] = 77;
  FL_CHECK_FAILS(fl_lower(aten, NULL, &l), FL_INVALID, "77");
  fl_aten_graph_destroy(aten);
}

FL_TEST(out_of_memory) {
  fl_aten_graph *aten =
      aten_from_text(HEAD LINEAR("y", "x") SVD("s", "y") "z = aten.add.Tensor(self=y, other=s) : f32[8,8]\n" LINEAR(
          "r", "z") "p = aten.index_put_.default(self=x, indices=[None], values=b) : f32[8,8] of x\nreturn r p\n");
  int64_t live = fl_alloc_live();
  int failures = 0;
  for (int64_t nth = 1; nth < 5000; nth++) {
    fl_lowered *l = NULL;
    fl_alloc_fail_at(nth);
    fl_status s = fl_lower(aten, NULL, &l);
    fl_alloc_fail_at(0);
    FL_CHECK_MSG(!s || fl_status_code(s) == FL_OOM, "%s", fl_status_message(s));
    failures += s != NULL;
    bool done = !s;
    fl_status_free(s);
    fl_lowered_destroy(l);
    FL_CHECK(fl_alloc_live() == live);
    if (done) break;
  }
  FL_CHECK(failures > 20);
  fl_aten_graph_destroy(aten);
}

FL_TEST_MAIN(FL_RUN(whole_segment) FL_RUN(svd_in_the_middle) FL_RUN(dead_operators)
                 FL_RUN(dead_operators_that_may_raise) FL_RUN(weights_are_made_again) FL_RUN(views_never_force_a_switch)
                     FL_RUN(shared_memory_leaves_shared) FL_RUN(writes_wait_for_readers) FL_RUN(backend_decides)
                         FL_RUN(origins) FL_RUN(broken_segments) FL_RUN(out_of_memory))
