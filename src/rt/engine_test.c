#include "rt/engine.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/test.h"
#include "rt/naive_test.h"

/* --- random graphs --- */

enum { MAX_GIVEN = 12, MAX_OUT = 4, MAX_NODES = 14 };

typedef struct world {
  fl_graph *g;
  fl_vid given[MAX_GIVEN]; /* inputs and weights */
  float *memory[MAX_GIVEN];
  int n_given, n_inputs;
  uint32_t n_slots;
  int64_t out_strides[MAX_OUT][FL_MAX_RANK];
  naive naive;
} world;

static int pick(int n) { return rand() % n; }

static size_t span(const fl_type *t, const int64_t *strides) {
  int64_t last = 0;
  for (int i = 0; i < t->rank; i++) last += (t->dims[i] - 1) * strides[i];
  return (size_t)last + 1;
}

static void random_strides(const fl_type *t, int gap, int64_t *strides) {
  int order[FL_MAX_RANK];
  for (int i = 0; i < t->rank; i++) {
    int j = pick(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  int64_t step = gap;
  for (int i = 0; i < t->rank; i++) {
    strides[order[i]] = step;
    step *= t->dims[order[i]];
  }
}

static void fill(world *w, int i) {
  const fl_value *v = &w->g->values.data[w->given[i]];
  size_t n = span(&v->type, v->strides);
  for (size_t k = 0; k < n; k++) w->memory[i][k] = (float)(pick(2001) - 1000) / 1000;
  int64_t numel = fl_type_numel(&v->type), at[FL_MAX_RANK];
  double *d = w->naive.values[w->given[i]];
  for (int64_t k = 0; k < numel; k++) {
    int64_t offset = 0;
    naive_unravel(&v->type, k, at);
    for (int a = 0; a < v->type.rank; a++) offset += at[a] * v->strides[a];
    d[k] = w->memory[i][offset];
  }
}

static void add_given(world *w, bool weight) {
  fl_type t = {.dtype = FL_F32, .rank = pick(4)};
  int64_t strides[FL_MAX_RANK] = {0};
  static const int64_t sizes[] = {1, 2, 4, 4, 6};
  for (int i = 0; i < t.rank; i++) t.dims[i] = sizes[pick(5)];
  random_strides(&t, 1 + (pick(4) == 0), strides);
  fl_vid v;
  if (weight)
    FL_CHECK_OK(fl_graph_weight(w->g, &t, strides, w->n_slots++, NULL, &v));
  else
    FL_CHECK_OK(fl_graph_input(w->g, &t, strides, &v));
  w->memory[w->n_given] = malloc(span(&t, strides) * sizeof(float));
  w->given[w->n_given++] = v;
  w->n_inputs += !weight;
}

static bool try_view(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_attrs a = {0};
  int64_t list[FL_MAX_RANK];
  int axis = t.rank ? pick(t.rank) : 0;
  switch (pick(4)) {
  case 0:
    for (int i = 0; i < t.rank; i++) {
      int j = pick(i + 1);
      list[i] = list[j];
      list[j] = i;
    }
    fl_attr_set_list(&a, "perm", list, t.rank);
    return !fl_graph_op(g, FL_OP_PERMUTE, &v, 1, &a, out);
  case 1:
    if (!t.rank || t.dims[axis] < 2) return false;
    fl_attr_set_int(&a, "axis", 'i', axis);
    fl_attr_set_int(&a, "start", 'i', pick((int)t.dims[axis]));
    fl_attr_set_int(&a, "stop", 'i', t.dims[axis]);
    fl_attr_set_int(&a, "step", 'i', 1 + pick(2));
    return !fl_graph_op(g, FL_OP_SLICE, &v, 1, &a, out);
  case 2:
    if (t.rank > 4) return false;
    list[0] = 1 + pick(3);
    for (int i = 0; i < t.rank; i++) list[i + 1] = t.dims[i] == 1 ? 1 + pick(4) : t.dims[i];
    fl_attr_set_list(&a, "dims", list, t.rank + 1);
    return !fl_graph_op(g, FL_OP_EXPAND, &v, 1, &a, out);
  default:
    list[0] = fl_type_numel(&t);
    if (pick(2) && list[0] % 2 == 0) {
      list[0] /= 2;
      list[1] = 2;
      fl_attr_set_list(&a, "dims", list, 2);
    } else
      fl_attr_set_list(&a, "dims", list, 1);
    return !fl_graph_op(g, FL_OP_RESHAPE, &v, 1, &a, out);
  }
}

/* With a residual if some value fits. */
static bool try_matmul(fl_graph *g, const fl_vid *ab, fl_vid *out) {
  fl_vid v[4] = {ab[0], ab[1], FL_NO_VALUE, FL_NO_VALUE};
  const fl_type *in[2] = {&g->values.data[v[0]].type, &g->values.data[v[1]].type};
  fl_attrs a = {0};
  fl_type t;
  fl_attr_set_int(&a, "trans_b", 'b', pick(2));
  fl_attr_set_int(&a, "act", 'a', pick(2) ? FL_ACT_RELU : FL_ACT_NONE);
  fl_status s = fl_infer(FL_OP_MATMUL, in, 2, &a, NULL, &t);
  for (fl_vid r = 0; !s && r < g->values.len; r++)
    if (fl_type_equal(&g->values.data[r].type, &t)) v[3] = r;
  if (!s) s = fl_graph_op(g, FL_OP_MATMUL, v, v[3] == FL_NO_VALUE ? 2 : 4, &a, out);
  bool made = !s;
  fl_status_free(s);
  return made;
}

static bool try_node(fl_graph *g, fl_vid *out) {
  static const fl_op binary[] = {FL_OP_ADD, FL_OP_SUB, FL_OP_MUL, FL_OP_MAXIMUM};
  static const fl_op unary[] = {FL_OP_NEG, FL_OP_RELU, FL_OP_TANH};
  fl_vid v[3];
  fl_attrs a = {0};
  fl_status s = NULL;
  for (int i = 0; i < 3; i++) v[i] = (fl_vid)pick((int)g->values.len);
  const fl_type *t = &g->values.data[v[0]].type;
  switch (pick(8)) {
  case 0:
  case 1: s = fl_graph_op(g, unary[pick(3)], v, 1, NULL, out); break;
  case 2:
  case 3: s = fl_graph_op(g, binary[pick(4)], v, 2, NULL, out); break;
  case 4: return try_matmul(g, v, out);
  case 5:
    if (!t->rank) return false;
    fl_attr_set_int(&a, "axis", 'i', pick(t->rank));
    if (pick(2)) v[1] = v[0];
    s = fl_graph_op(g, FL_OP_CAT, v, pick(2) ? 2 : 3, &a, out);
    break;
  case 6:
    if (!t->rank) return false;
    fl_attr_set_list(&a, "axes", (int64_t[]){pick(t->rank)}, 1);
    fl_attr_set_int(&a, "keepdim", 'b', 1);
    s = fl_graph_op(g, FL_OP_SUM, v, 1, &a, out);
    break;
  default: return try_view(g, v[0], out);
  }
  bool made = !s;
  fl_status_free(s);
  return made;
}

static void make_world(world *w) {
  *w = (world){0};
  FL_CHECK_OK(fl_graph_create(&w->g));
  for (int i = 0; i < 4; i++) add_given(w, false);
  for (int i = 0; i < 3; i++) add_given(w, true);
  fl_vid v;
  FL_CHECK_OK(fl_graph_scalar(w->g, FL_F32, 0.75, &v));
  for (int made = 0, tries = 0; made < MAX_NODES && tries < 400; tries++) {
    if (fl_type_numel(&w->g->values.data[w->g->values.len - 1].type) > 3000) break;
    made += try_node(w->g, &v);
  }
  int n_out = 1 + pick(MAX_OUT);
  for (int i = 0; i < n_out; i++) {
    v = (fl_vid)(w->g->values.len - 1 - (size_t)pick(i < 2 ? 3 : (int)w->g->values.len));
    random_strides(&w->g->values.data[v].type, 1, w->out_strides[i]);
    FL_CHECK_OK(fl_graph_output(w->g, v));
  }
  w->naive = (naive){w->g, calloc(w->g->values.len, sizeof(double *))};
  for (fl_vid i = 0; i < w->g->values.len; i++) {
    const fl_value *value = &w->g->values.data[i];
    if (value->kind != FL_VALUE_RESULT)
      w->naive.values[i] = calloc((size_t)fl_type_numel(&value->type) + 1, sizeof(double));
    if (value->kind == FL_VALUE_LITERAL) w->naive.values[i][0] = 0.75;
  }
  for (int i = 0; i < w->n_given; i++) fill(w, i);
}

static void free_world(world *w) {
  for (fl_vid i = 0; i < w->g->values.len; i++) free(w->naive.values[i]);
  free(w->naive.values);
  for (int i = 0; i < w->n_given; i++) free(w->memory[i]);
  fl_graph_destroy(w->g);
}

/* Inputs stand first among the given, in the order of the graph's. */
static const void *const *inputs_of(const world *w) { return (const void *const *)w->memory; }
static const void *const *weights_of(const world *w) { return (const void *const *)w->memory + w->n_inputs; }

/* Runs the engine on fresh output memory; the number of elements that are not the naive evaluator's. */
static int count_wrong(const world *w, fl_engine *e) {
  float *outputs[MAX_OUT];
  int wrong = 0;
  for (size_t i = 0; i < w->g->outputs.len; i++) {
    size_t bytes = fl_type_bytes(&w->g->values.data[w->g->outputs.data[i]].type);
    outputs[i] = malloc(bytes + 1);
    memset(outputs[i], 0xff, bytes);
  }
  fl_status s = fl_engine_run(e, inputs_of(w), (void *const *)outputs);
  wrong += s != NULL;
  fl_status_free(s);
  for (size_t i = 0; i < w->g->outputs.len; i++) {
    const fl_type *t = &w->g->values.data[w->g->outputs.data[i]].type;
    const double *expect = w->naive.values[w->g->outputs.data[i]];
    int64_t n = fl_type_numel(t), at[FL_MAX_RANK];
    double scale = 1;
    for (int64_t k = 0; k < n; k++) scale = fabs(expect[k]) > scale ? fabs(expect[k]) : scale;
    for (int64_t k = 0; k < n; k++) {
      int64_t offset = 0;
      naive_unravel(t, k, at);
      for (int a = 0; a < t->rank; a++) offset += at[a] * w->out_strides[i][a];
      wrong += !(fabs(outputs[i][offset] - expect[k]) <= 1e-4 * scale);
    }
    free(outputs[i]);
  }
  return wrong;
}

static void explain(const world *w, const fl_plan *p, int seed) {
  char *graph = NULL, *plan = NULL;
  FL_CHECK_OK(fl_graph_print(w->g, &graph));
  FL_CHECK_OK(fl_plan_print(p, &plan));
  fprintf(stderr, "seed %d\n%s%s", seed, graph, plan);
  fl_free(graph);
  fl_free(plan);
}

static fl_status make_engine(const world *w, fl_pool *pool, double budget_ms, fl_engine **out) {
  fl_plan_options options = {.threads = fl_pool_threads(pool),
                             .pool = pool,
                             .tactic_budget_ms = budget_ms,
                             .out_strides = (const int64_t(*)[FL_MAX_RANK])w->out_strides};
  fl_plan *plan;
  FL_TRY(fl_plan_build(w->g, &options, &plan));
  return fl_engine_create(plan, weights_of(w), w->n_slots, pool, out);
}

static void check_world(int seed, fl_pool *pool, double budget_ms) {
  srand((unsigned)seed);
  world w;
  fl_engine *e = NULL;
  make_world(&w);
  naive_run(&w.naive);
  FL_CHECK_OK(make_engine(&w, pool, budget_ms, &e));
  if (e) {
    int wrong = count_wrong(&w, e);
    for (int i = 0; i < w.n_inputs; i++) fill(&w, i);
    naive_run(&w.naive);
    wrong += count_wrong(&w, e);
    uint32_t slots[2] = {0, 2}; /* and the one between keeps its value */
    const void *data[2] = {w.memory[w.n_inputs], w.memory[w.n_inputs + 2]};
    fill(&w, w.n_inputs);
    fill(&w, w.n_inputs + 2);
    naive_run(&w.naive);
    FL_CHECK_OK(fl_engine_update(e, slots, data, 2));
    wrong += count_wrong(&w, e);
    FL_CHECK_MSG(wrong == 0, "seed %d: %d wrong", seed, wrong);
    if (wrong) explain(&w, fl_engine_plan(e), seed);
  }
  fl_engine_destroy(e);
  free_world(&w);
}

FL_TEST(random_graphs) {
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  for (int seed = 1; seed <= 1500 && fl_test_failed_ < 3; seed++) check_world(seed, seed % 2 ? pool : NULL, 0);
  for (int seed = 1501; seed <= 1550 && fl_test_failed_ < 3; seed++) check_world(seed, pool, 5);
  fl_pool_destroy(pool);
}

/* --- many threads, one engine --- */

typedef struct stress {
  const world *w;
  fl_engine *e;
  _Atomic int wrong;
} stress;

static void *run_often(void *arg) {
  stress *s = arg;
  for (int i = 0; i < 60; i++) s->wrong += count_wrong(s->w, s->e);
  return NULL;
}

FL_TEST(many_threads_run_one_engine) {
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  for (int seed = 1; seed <= 8; seed++) {
    srand((unsigned)seed);
    world w;
    pthread_t threads[6];
    make_world(&w);
    naive_run(&w.naive);
    stress s = {.w = &w};
    FL_CHECK_OK(make_engine(&w, pool, 0, &s.e));
    for (int i = 0; i < 6; i++) FL_CHECK(!pthread_create(&threads[i], NULL, run_often, &s));
    for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
    FL_CHECK(s.wrong == 0);
    fl_engine_destroy(s.e);
    free_world(&w);
  }
  fl_pool_destroy(pool);
}

/* --- memory --- */

FL_TEST(every_allocation_may_fail) {
  for (int seed = 1; seed <= 6; seed++) {
    srand((unsigned)seed);
    world w;
    make_world(&w);
    naive_run(&w.naive);
    int64_t live = fl_alloc_live();
    bool done = false;
    for (int64_t nth = 1; !done && nth < 5000; nth++) {
      fl_engine *e = NULL;
      fl_alloc_fail_at(nth);
      fl_status s = make_engine(&w, NULL, 0, &e);
      fl_alloc_fail_at(0);
      done = !s;
      FL_CHECK_MSG(!s || fl_status_code(s) == FL_OOM, "request %d: %s", (int)nth, fl_status_message(s));
      if (done) FL_CHECK(count_wrong(&w, e) == 0);
      fl_status_free(s);
      fl_engine_destroy(e);
      FL_CHECK(fl_alloc_live() == live);
    }
    FL_CHECK(done);
    free_world(&w);
  }
}

/* --- one by one --- */

static fl_engine *engine_of(const char *text, const void *const *weights, uint32_t n_weights) {
  fl_graph *g = NULL;
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &(fl_plan_options){.threads = 1}, &plan));
  fl_graph_destroy(g); /* the plan does not need it */
  FL_CHECK_OK(fl_engine_create(plan, weights, n_weights, NULL, &e));
  return e;
}

FL_TEST(updates_run_only_what_depends) {
  float w0[4] = {1, 2, 3, 4}, w1[4] = {10, 20, 30, 40}, x[4] = {1, 1, 1, 1}, y[4];
  const void *weights[] = {w0, w1};
  fl_engine *e = engine_of("graph(%0: f32[4], %1: weight 0 f32[4], %2: weight 1 f32[4]) {\n"
                           "  %3 = neg(%1) : f32[4]\n"
                           "  %4 = neg(%2) : f32[4]\n"
                           "  %5 = add(%3, %4) : f32[4]\n"
                           "  %6 = add(%0, %5) : f32[4]\n"
                           "  return %6\n"
                           "}\n",
                           weights, 2);
  const fl_plan *p = fl_engine_plan(e);
  FL_CHECK(p->init.len == 3 && p->run.len == 1);
  FL_CHECK(p->const_bytes == 64);
  /* neg's results are not kept, so both are made again whichever weight changes */
  for (size_t i = 0; i < p->init.len; i++) FL_CHECK(p->init.data[i].n_deps == 2);
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
  FL_CHECK(y[0] == -10 && y[3] == -43);
  float moved[4] = {5, 5, 5, 5};
  FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){1, 77}, (const void *[]){moved, moved}, 2));
  w0[0] = 100; /* nobody told */
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
  FL_CHECK(y[3] == -8);
  fl_engine_destroy(e);
}

FL_TEST(weights_used_as_they_are_follow_their_place) {
  float w0[2] = {1, 2}, moved[2] = {7, 8}, x[2] = {1, 1}, y[2];
  const void *weights[] = {w0};
  fl_engine *e = engine_of("graph(%0: f32[2], %1: weight 0 f32[2]) {\n"
                           "  %2 = add(%0, %1) : f32[2]\n  return %2\n}\n",
                           weights, 1);
  FL_CHECK(fl_engine_plan(e)->init.len == 0 && fl_engine_plan(e)->const_bytes == 0);
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
  FL_CHECK(y[0] == 2 && y[1] == 3);
  FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0}, (const void *[]){moved}, 1));
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
  FL_CHECK(y[0] == 8 && y[1] == 9);
  fl_engine_destroy(e);
}

FL_TEST(bad_indexes_are_reported) {
  int64_t index[1] = {5}, good[1] = {1};
  float table[4] = {1, 2, 3, 4}, y[2];
  fl_engine *e = engine_of("graph(%0: f32[2,2], %1: i64[1]) {\n"
                           "  %2 = embedding(%0, %1) : f32[1,2]\n  return %2\n}\n",
                           NULL, 0);
  FL_CHECK_FAILS(fl_engine_run(e, (const void *[]){table, index}, (void *[]){y}), FL_INVALID, "out of range");
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){table, good}, (void *[]){y}));
  FL_CHECK(y[0] == 3 && y[1] == 4);
  fl_engine_destroy(e);
}

FL_TEST(profile_adds_up) {
  float x[64] = {0}, y[64];
  double us[2] = {0, 0};
  fl_engine *e = engine_of("graph(%0: f32[64]) {\n"
                           "  %1 = softmax(%0) axis=0 : f32[64]\n  %2 = neg(%1) : f32[64]\n  return %2\n}\n",
                           NULL, 0);
  FL_CHECK(fl_engine_plan(e)->run.len == 2);
  FL_CHECK_OK(fl_engine_profile(e, (const void *[]){x}, (void *[]){y}, us));
  FL_CHECK(us[0] > 0 && us[1] > 0 && fabsf(y[0] + 1.f / 64) < 1e-6f);
  fl_engine_destroy(e);
}

FL_TEST(too_few_weights_fail) {
  fl_graph *g = NULL;
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  int64_t live = fl_alloc_live();
  FL_CHECK_OK(fl_graph_parse("graph(%0: weight 3 f32[2]) {\n  %1 = neg(%0) : f32[2]\n  return %1\n}\n", &g));
  FL_CHECK_OK(fl_plan_build(g, &(fl_plan_options){.threads = 1}, &plan));
  FL_CHECK_FAILS(fl_engine_create(plan, NULL, 3, NULL, &e), FL_INVALID, "3 weights given");
  fl_graph_destroy(g);
  FL_CHECK(fl_alloc_live() == live);
}

FL_TEST_MAIN(FL_RUN(random_graphs) FL_RUN(many_threads_run_one_engine) FL_RUN(every_allocation_may_fail)
                 FL_RUN(updates_run_only_what_depends) FL_RUN(weights_used_as_they_are_follow_their_place)
                     FL_RUN(bad_indexes_are_reported) FL_RUN(profile_adds_up) FL_RUN(too_few_weights_fail))
