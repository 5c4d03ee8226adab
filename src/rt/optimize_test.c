/* Passes change the graph, not the answer: random graphs are run as they are and optimized, each by an engine of its
 * own, on the same inputs and weights, and again after the weights have changed. */
#include <math.h>
#include <stdlib.h>

#include "passes/passes.h"
#include "passes/random_test.h"
#include "rt/engine.h"

enum { MAX_VALUES = 4096, OUTPUTS = 3 };

typedef struct world {
  fl_graph *g;
  const void *inputs[2];
  const void *weights[MAX_VALUES];
  float *owned[MAX_VALUES];
  int64_t sizes[MAX_VALUES];
  int n_owned;
} world;

static float *new_data(world *w, const fl_type *t) {
  int64_t n = fl_type_numel(t);
  w->sizes[w->n_owned] = n;
  return w->owned[w->n_owned++] = malloc(((size_t)n + 1) * sizeof(float));
}

/* Positive, so that any of them will do as a variance; small, so that long chains of products stay in range. */
static void fill(world *w) {
  for (int i = 0; i < w->n_owned; i++)
    for (int64_t k = 0; k < w->sizes[i]; k++) w->owned[i][k] = 0.25f + 0.5f * (float)pick(1000) / 1000;
}

static void make_world(world *w, fl_graph *g) {
  *w = (world){.g = g};
  for (int i = 0; i < 2; i++) w->inputs[i] = new_data(w, &g->values.data[g->inputs.data[i]].type);
  for (fl_vid v = 0; v < g->values.len; v++)
    if (g->values.data[v].kind == FL_VALUE_WEIGHT && g->values.data[v].slot < MAX_VALUES)
      w->weights[g->values.data[v].slot] = new_data(w, &g->values.data[v].type);
  fill(w);
}

static fl_graph *copy_of(const fl_graph *g) {
  char *text = NULL;
  fl_graph *copy = NULL;
  FL_CHECK_OK(fl_graph_print(g, &text));
  FL_CHECK_OK(fl_graph_parse(text, &copy));
  fl_free(text);
  return copy;
}

static fl_engine *engine_of(const world *w, fl_graph *g) {
  fl_plan_options options = {.threads = 1};
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  FL_CHECK_OK(fl_plan_build(g, &options, &plan));
  if (plan) FL_CHECK_OK(fl_engine_create(plan, w->weights, NULL, plan->n_weights, NULL, &e));
  return e;
}

static void run(fl_engine *e, const world *w, float **outputs) {
  for (int i = 0; i < OUTPUTS; i++)
    outputs[i] = calloc((size_t)fl_type_numel(&w->g->values.data[w->g->outputs.data[i]].type) + 1, sizeof(float));
  if (e) FL_CHECK_OK(fl_engine_run(e, w->inputs, (void *const *)outputs));
}

/* Largest difference as a part of the largest value (what cancels to almost 0 is rounding noise of values near 1);
 * 0 where either overflowed. */
static double difference(const float *a, const float *b, int64_t n) {
  double scale = 0.05, worst = 0;
  for (int64_t i = 0; i < n; i++) {
    if (!(fabs(a[i]) < 1e6) || !(fabs(b[i]) < 1e6)) return 0;
    if (fabs(a[i]) > scale) scale = fabs(a[i]);
    if (fabs(a[i] - b[i]) > worst) worst = fabs(a[i] - b[i]);
  }
  return worst / scale;
}

static void explain(int seed, int output, double difference_is, const fl_graph *before, const fl_graph *after) {
  char *a = NULL, *b = NULL;
  FL_CHECK_OK(fl_graph_print(before, &a));
  FL_CHECK_OK(fl_graph_print(after, &b));
  fprintf(stderr, "seed %d, output %d differs by %g\n%s%s", seed, output, difference_is, a, b);
  fl_free(a);
  fl_free(b);
}

static int compare(int seed, const world *w, fl_engine *plain, fl_engine *fast, const fl_graph *optimized) {
  float *a[OUTPUTS], *b[OUTPUTS];
  int finite = 0;
  run(plain, w, a);
  run(fast, w, b);
  for (int i = 0; i < OUTPUTS; i++) {
    int64_t n = fl_type_numel(&w->g->values.data[w->g->outputs.data[i]].type);
    double d = difference(a[i], b[i], n);
    FL_CHECK(d < 1e-3);
    if (!(d < 1e-3)) explain(seed, i, d, w->g, optimized);
    for (int64_t k = 0; k < n; k++) finite += fabs(a[i][k]) < 1e6;
    free(a[i]);
    free(b[i]);
  }
  return finite;
}

static int found[FL_OP_COUNT]; /* what passes made, over all seeds */

static int check_seed(int seed) {
  static world w;
  random_state = (uint64_t)seed;
  fl_graph *g = random_graph(30, true), *optimized = copy_of(g);
  make_world(&w, g);
  FL_CHECK_OK(fl_passes_run(optimized, true));
  for (int op = 0; op < FL_OP_COUNT; op++) found[op] += fl_graph_count_op(optimized, (fl_op)op);
  fl_engine *plain = engine_of(&w, g), *fast = engine_of(&w, optimized);
  int finite = compare(seed, &w, plain, fast, optimized);
  fill(&w);
  uint32_t slots[MAX_VALUES];
  for (uint32_t i = 0; i < random_slots; i++) slots[i] = i;
  if (plain) FL_CHECK_OK(fl_engine_update(plain, slots, w.weights, NULL, (int)fl_engine_plan(plain)->n_weights));
  if (fast) FL_CHECK_OK(fl_engine_update(fast, slots, w.weights, NULL, (int)fl_engine_plan(fast)->n_weights));
  finite += compare(seed, &w, plain, fast, optimized);
  fl_engine_destroy(plain);
  fl_engine_destroy(fast);
  fl_graph_destroy(g);
  fl_graph_destroy(optimized);
  for (int i = 0; i < w.n_owned; i++) free(w.owned[i]);
  return finite;
}

FL_TEST(same_answers) {
  const char *many = getenv("FL_TEST_SEEDS");
  int finite = 0, seeds = many ? atoi(many) : 150;
  for (int seed = 1; seed <= seeds; seed++) finite += check_seed(seed);
  FL_CHECK(found[FL_OP_ATTENTION] > seeds / 40 && found[FL_OP_CONV2D] > seeds / 20);
  FL_CHECK(found[FL_OP_LAYER_NORM] > seeds / 20 && found[FL_OP_RMS_NORM] > seeds / 20);
  FL_CHECK(found[FL_OP_POINTWISE] > seeds && !found[FL_OP_BATCH_NORM] && !found[FL_OP_ADD]);
  FL_CHECK_MSG(finite > 20 * seeds, "%d numbers were compared", finite);
}

FL_TEST_MAIN(FL_RUN(same_answers))
