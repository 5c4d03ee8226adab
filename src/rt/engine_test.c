#include <pthread.h>
#include <stdatomic.h>

#include "rt/compile.h"
#include "rt/random_test.h"

/* --- random graphs --- */

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
  return fl_engine_create(plan, weights_of(w), NULL, w->n_slots, pool, out);
}

/* As planned here, or through the passes. They rewrite the graph, so they are given one made anew from the seed. */
static fl_status make_compiled(const world *w, int seed, bool images, fl_pool *pool, fl_engine **out) {
  world again;
  fl_compile_nodes nodes;
  srand((unsigned)seed);
  make_world(&again, images);
  size_t n_values = again.g->values.len;
  fl_plan_options options = {
      .threads = fl_pool_threads(pool), .pool = pool, .out_strides = (const int64_t(*)[FL_MAX_RANK])w->out_strides};
  fl_status s = fl_engine_compile(again.g, &options, weights_of(w), NULL, w->n_slots, &nodes, out);
  FL_CHECK(nodes.before == fl_graph_node_count(w->g));
  free_world(&again, n_values);
  return s;
}

/* Runs an engine of the world; then with other inputs; then with other weights, not all. */
static void check_engine(world *w, fl_engine *e, int seed) {
  int wrong = count_wrong(w, e), n_changed = 0;
  for (int i = 0; i < w->n_inputs; i++) fill(w, i);
  naive_run(&w->naive);
  wrong += count_wrong(w, e);
  uint32_t slots[MAX_GIVEN];
  const void *data[MAX_GIVEN];
  for (int i = w->n_inputs; i < w->n_given; i += 2) {
    fill(w, i);
    slots[n_changed] = (uint32_t)(i - w->n_inputs);
    data[n_changed++] = w->memory[i];
  }
  naive_run(&w->naive);
  FL_CHECK_OK(fl_engine_update(e, slots, data, NULL, n_changed));
  wrong += count_wrong(w, e);
  FL_CHECK_MSG(wrong == 0, "seed %d: %d wrong", seed, wrong);
  if (wrong) explain(w, fl_engine_plan(e), seed);
}

static void check_world(int seed, bool images, bool passes, fl_pool *pool, double budget_ms) {
  srand((unsigned)seed);
  world w;
  fl_engine *e = NULL;
  make_world(&w, images);
  naive_run(&w.naive);
  FL_CHECK_OK(passes ? make_compiled(&w, seed, images, pool, &e) : make_engine(&w, pool, budget_ms, &e));
  if (e) check_engine(&w, e, seed);
  fl_engine_destroy(e);
  free_world(&w, w.g->values.len);
}

FL_TEST(random_graphs) {
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  for (int seed = 1; seed <= 1000 && fl_test_failed_ < 3; seed++)
    check_world(seed, false, false, seed % 2 ? pool : NULL, 0);
  for (int seed = 1; seed <= 200 && fl_test_failed_ < 3; seed++)
    check_world(seed, true, false, seed % 2 ? pool : NULL, 0);
  for (int seed = 1; seed <= 50 && fl_test_failed_ < 3; seed++) check_world(seed, seed % 2, false, pool, 5);
  fl_pool_destroy(pool);
}

FL_TEST(random_graphs_through_the_passes) {
  for (int seed = 1; seed <= 1000 && fl_test_failed_ < 3; seed++) check_world(seed, false, true, NULL, 0);
  for (int seed = 1; seed <= 300 && fl_test_failed_ < 3; seed++) check_world(seed, true, true, NULL, 0);
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
    make_world(&w, false);
    naive_run(&w.naive);
    stress s = {.w = &w};
    FL_CHECK_OK(make_engine(&w, pool, 0, &s.e));
    for (int i = 0; i < 6; i++) FL_CHECK(!pthread_create(&threads[i], NULL, run_often, &s));
    for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
    FL_CHECK(s.wrong == 0);
    fl_engine_destroy(s.e);
    free_world(&w, w.g->values.len);
  }
  fl_pool_destroy(pool);
}

/* --- memory --- */

FL_TEST(every_allocation_may_fail) {
  for (int seed = 1; seed <= 6; seed++) {
    srand((unsigned)seed);
    world w;
    make_world(&w, false);
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
    free_world(&w, w.g->values.len);
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
  FL_CHECK_OK(fl_engine_create(plan, weights, NULL, n_weights, NULL, &e));
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
  FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){1, 77}, (const void *[]){moved, moved}, NULL, 2));
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
  FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0}, (const void *[]){moved}, NULL, 1));
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
  /* Also where nothing uses what was indexed. */
  e = engine_of("graph(%0: f32[2,2], %1: i64[1]) {\n"
                "  %2 = embedding(%0, %1) : f32[1,2]\n  %3 = rem(%1, %1) : i64[1]\n  %4 = neg(%0) : f32[2,2]\n"
                "  return %4\n}\n",
                NULL, 0);
  float z[4];
  FL_CHECK_FAILS(fl_engine_run(e, (const void *[]){table, index}, (void *[]){z}), FL_INVALID, "out of range");
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){table, good}, (void *[]){z}));
  good[0] = 0;
  FL_CHECK_FAILS(fl_engine_run(e, (const void *[]){table, good}, (void *[]){z}), FL_INVALID, "divided by zero");
  FL_CHECK(z[3] == -4);
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
  FL_CHECK_FAILS(fl_engine_create(plan, NULL, NULL, 3, NULL, &e), FL_INVALID, "3 weights given");
  fl_graph_destroy(g);
  FL_CHECK(fl_alloc_live() == live);
}

/* --- concatenations that grow --- */

static fl_engine *engine_on(const char *text, const fl_backend *backend, int *out_copies) {
  fl_graph *g = NULL;
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  fl_plan_options options = {.threads = 1, .backend = backend};
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &plan));
  *out_copies = 0;
  for (size_t i = 0; i < plan->run.len; i++) *out_copies += plan->run.data[i].kind == FL_STEP_COPY;
  FL_CHECK_OK(fl_engine_create(plan, NULL, NULL, 0, NULL, &e));
  fl_graph_destroy(g);
  return e;
}

/* The same with every concatenation in a block of its own, and where a beginning lies in the block of what follows. */
static void check_growing(const char *text, int n_out, int copies_apart, int copies_shared) {
  fl_backend shared = fl_backend_cpu;
  int copies[2];
  float x[24], y[2][3][256] = {{{0}}};
  shared.immediate = false; /* as on a device: kernels there read operands with gaps as fast as dense ones */
  for (int i = 0; i < 24; i++) x[i] = (float)(i % 7) - 2.5f;
  for (int k = 0; k < 2; k++) {
    fl_engine *e = engine_on(text, k ? &shared : &fl_backend_cpu, &copies[k]);
    for (int run = 0; e && run < 2; run++)
      FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y[k][0], y[k][1], y[k][2]}));
    fl_engine_destroy(e);
  }
  for (int i = 0; i < n_out; i++) FL_CHECK(!memcmp(y[0][i], y[1][i], sizeof y[0][i]));
  FL_CHECK_MSG(copies[0] == copies_apart && copies[1] == copies_shared, "%d and %d copies in\n%s", copies[0], copies[1],
               text);
}

FL_TEST(beginnings_of_concatenations_are_copied_once) {
  check_growing("graph(%0: f32[2,3,4]) {\n  %1 = neg(%0) : f32[2,3,4]\n  %2 = exp(%1) : f32[2,3,4]\n"
                "  %3 = cat(%1, %2) axis=1 : f32[2,6,4]\n  %4 = exp(%3) : f32[2,6,4]\n"
                "  %5 = add(%3, %4) : f32[2,6,4]\n  %6 = cat(%1, %2, %5) axis=1 : f32[2,12,4]\n"
                "  %7 = tanh(%6) : f32[2,12,4]\n  %8 = cat(%1, %2, %5, %7) axis=1 : f32[2,24,4]\n"
                "  %9 = abs(%8) : f32[2,24,4]\n  return %9\n}\n",
                1, 2 + 3 + 4, 4);
  /* A beginning that is a result is copied out of the block; along another axis or in another order it is none. */
  check_growing(
      "graph(%0: f32[2,3,4]) {\n  %1 = neg(%0) : f32[2,3,4]\n  %2 = exp(%1) : f32[2,3,4]\n"
      "  %3 = cat(%1, %2) axis=1 : f32[2,6,4]\n  %4 = cat(%2, %1) axis=1 : f32[2,6,4]\n"
      "  %5 = cat(%1, %2, %2) axis=2 : f32[2,3,12]\n  %6 = cat(%1, %2, %0) axis=1 : f32[2,9,4]\n"
      "  %7 = add(%3, %4) : f32[2,6,4]\n  %8 = abs(%5) : f32[2,3,12]\n  %9 = cat(%6, %7) axis=1 : f32[2,15,4]\n"
      "  return %3, %8, %9\n}\n",
      3, 2 + 2 + 3 + 3 + 1, 3 + 2 + 3 + 1 + 1);
  /* What follows has no more elements: an operator in place must not reach what is still read. */
  check_growing("graph(%0: f32[2,3,4]) {\n  %1 = neg(%0) : f32[2,3,4]\n  %2 = slice(%0) axis=1 start=0 stop=0 step=1 : "
                "f32[2,0,4]\n  %3 = cat(%1, %1) axis=1 : f32[2,6,4]\n  %4 = exp(%3) : f32[2,6,4]\n"
                "  %5 = cat(%1, %1, %2) axis=1 : f32[2,6,4]\n  %6 = add(%4, %5) : f32[2,6,4]\n  return %6\n}\n",
                1, 4, 2);
  /* The longer one first; two that go on differently. */
  check_growing("graph(%0: f32[2,3,4]) {\n  %1 = neg(%0) : f32[2,3,4]\n  %2 = exp(%1) : f32[2,3,4]\n"
                "  %3 = cat(%1, %2, %0) axis=1 : f32[2,9,4]\n  %4 = tanh(%3) : f32[2,9,4]\n"
                "  %5 = cat(%1, %2) axis=1 : f32[2,6,4]\n  %6 = exp(%5) : f32[2,6,4]\n"
                "  %7 = cat(%1, %2, %6) axis=1 : f32[2,12,4]\n  %8 = abs(%7) : f32[2,12,4]\n  return %4, %8, %6\n}\n",
                3, 3 + 2 + 3, 3 + 2 + 1);
}

/* --- a staged backend: what a device does, on the CPU. A walk records each step with its addresses; runs replay that --- */

typedef struct recorded {
  fl_run_args args;
  fl_tensor tensors[4];
} recorded;

typedef struct recorder {
  fl_queue base;
  recorded programs[FL_QUEUE_VARIANTS];
  int variant, walks, copies; /* of the last work: variant and copies; walks of all */
  bool known[FL_QUEUE_VARIANTS];
  bool prepared;
} recorder;

static struct {
  const fl_kernel *real;
  fl_kernel kernel;
  fl_backend table;
  recorder *last;
  int blocks; /* of memory */
} staged;

static void record_step(const fl_run_args *a) {
  recorder *q = (recorder *)a->queue;
  recorded *r = &q->programs[q->variant];
  r->args = *a;
  r->tensors[0] = a->in[0];
  r->tensors[1] = a->in[1];
  r->tensors[2] = a->out[0];
  r->args.in = r->tensors;
  r->args.out = r->tensors + 2;
}

static const fl_kernel *staged_kernel(int id) {
  staged.real = fl_kernel_get(id);
  staged.kernel = *staged.real;
  staged.kernel.run = record_step;
  return &staged.kernel;
}

static fl_status staged_create(const fl_backend *b, fl_pool *pool, fl_queue **out) {
  recorder *q = fl_calloc(1, sizeof *q);
  if (!q) return fl_oom();
  *out = &q->base;
  staged.last = q;
  return NULL;
}

static void staged_prepare(fl_queue *base, const fl_work *work) {
  recorder *q = (recorder *)base;
  work->walk(work->arg);
  q->prepared = true;
}

static void staged_destroy(fl_queue *q) { fl_free(q); }

static void staged_forget(fl_queue *q, int variant) { ((recorder *)q)->known[variant] = false; }

static void *staged_allocate(const fl_backend *b, size_t bytes) {
  void *block = fl_backend_cpu.allocate(b, bytes);
  staged.blocks += block != NULL;
  return block;
}

static void staged_release(const fl_backend *b, void *block) {
  staged.blocks -= block != NULL;
  fl_backend_cpu.release(b, block);
}

static fl_status staged_run(fl_queue *base, const fl_work *work) {
  recorder *q = (recorder *)base;
  q->variant = work->variant;
  q->copies = work->n_before + work->n_after;
  if (work->changed) {
    work->walk(work->arg);
    q->walks++;
    q->known[work->variant] = true;
  }
  FL_CHECK(q->known[work->variant]);
  for (int i = 0; i < work->n_before; i++) memcpy(work->before[i].to, work->before[i].from, work->before[i].bytes);
  staged.real->run(&q->programs[work->variant].args);
  for (int i = 0; i < work->n_after; i++) memcpy(work->after[i].to, work->after[i].from, work->after[i].bytes);
  return NULL;
}

static fl_engine *staged_engine_of(const char *text, const float *weight) {
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  staged.table = fl_backend_cpu;
  staged.table.immediate = false;
  staged.table.staged = true;
  staged.table.kernel = staged_kernel;
  staged.table.queue_create = staged_create;
  staged.table.queue_destroy = staged_destroy;
  staged.table.run = staged_run;
  staged.table.forget = staged_forget;
  staged.table.allocate = staged_allocate;
  staged.table.release = staged_release;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  fl_plan_options options = {.threads = 1, .backend = &staged.table};
  FL_CHECK_OK(fl_engine_compile(g, &options, (const void *[]){weight}, NULL, 1, NULL, &e));
  fl_graph_destroy(g);
  return e;
}

static fl_engine *staged_engine(const float *weight) {
  return staged_engine_of("graph(%0: f32[4], %1: weight 0 f32[4]) {\n  %2 = mul(%0, %1) : f32[4]\n  return %2\n}\n",
                          weight);
}

/* One call; gives the variant that served it. */
static int call_staged(fl_engine *e, float *x, float *y, float by) {
  for (int i = 0; i < 4; i++) x[i] += 1;
  y[3] = 0;
  FL_CHECK_OK(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
  for (int i = 0; i < 4; i++) FL_CHECK_MSG(y[i] == x[i] * by, "%g, not %g", (double)y[i], (double)(x[i] * by));
  FL_CHECK(staged.last->copies == (staged.last->variant ? 0 : 2));
  return staged.last->variant;
}

FL_TEST(addresses_that_come_again_are_used_themselves) {
  enum { N = 8 };
  _Alignas(64) static float x[N][16], y[N][16], weight[4] = {2, 2, 2, 2}, moved[4] = {3, 3, 3, 3};
  fl_engine *e = staged_engine(weight);
  if (!e) return;
  FL_CHECK(call_staged(e, x[0], y[0], 2) == 0);
  int own = call_staged(e, x[0], y[0], 2), walks = staged.last->walks; /* seen before: recorded */
  FL_CHECK(own > 0 && walks == 2);
  FL_CHECK(call_staged(e, x[0], y[0], 2) == own && staged.last->walks == walks);
  FL_CHECK(call_staged(e, x[1], y[0], 2) == 0); /* others, and back: nothing is recorded anew */
  FL_CHECK(call_staged(e, x[0], y[0], 2) == own);
  int other = call_staged(e, x[1], y[0], 2);
  FL_CHECK(other > 0 && other != own);
  FL_CHECK(call_staged(e, x[0], y[0], 2) == own && call_staged(e, x[1], y[0], 2) == other);
  FL_CHECK(staged.last->walks == 4); /* that of the stages twice: it had been forgotten */
  FL_CHECK_OK(
      fl_engine_update(e, (uint32_t[]){0}, (const void *[]){moved}, NULL, 1)); /* a weight moved: each once more */
  FL_CHECK(call_staged(e, x[0], y[0], 3) == own && call_staged(e, x[1], y[0], 3) == other);
  FL_CHECK(call_staged(e, x[2], y[2], 3) == 0 && call_staged(e, x[0], y[0], 3) == own);
  FL_CHECK(staged.last->walks == 7);
  for (int i = 0; i < 4; i++) moved[i] = 5; /* new contents at the same place */
  FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0}, (const void *[]){moved}, NULL, 1));
  FL_CHECK(call_staged(e, x[0], y[0], 5) == own && staged.last->walks == 7);
  fl_engine_destroy(e);
}

/* Memory that is not aligned as stages are always goes through them; and recordings are not made without end. */
FL_TEST(addresses_that_do_not_fit_go_through_stages) {
  enum { N = 40 };
  _Alignas(64) static float x[N][16], y[N][16], weight[4] = {2, 2, 2, 2};
  fl_engine *e = staged_engine(weight);
  if (!e) return;
  for (int i = 0; i < 3; i++) FL_CHECK(call_staged(e, x[0] + 1, y[0], 2) == 0);
  for (int i = 0; i < 3; i++) FL_CHECK(call_staged(e, x[0], y[0] + 2, 2) == 0);
  for (int i = 0; i < N; i++) FL_CHECK(call_staged(e, x[i], y[i], 2) == 0); /* ever new ones */
  FL_CHECK(staged.last->walks == 1);
  for (int round = 0; round < N; round++) /* pairs that come again but more of them than are kept */
    for (int i = 0; i < 7; i++) call_staged(e, x[i], y[i], 2);
  FL_CHECK_MSG(staged.last->walks <= 1 + 16 + 5, "%d walks", staged.last->walks); /* stages are remade a few times */
  fl_engine_destroy(e);
}

/* Stages go when two calls in a row have not used them, then after twice as many; so do programs for addresses that do not come
 * any more. */
FL_TEST(what_goes_unused_is_forgotten) {
  _Alignas(64) static float x[4][16], y[16], weight[4] = {2, 2, 2, 2};
  fl_engine *e = staged_engine(weight);
  if (!e) return;
  FL_CHECK(call_staged(e, x[0], y, 2) == 0);
  int blocks = staged.blocks, own = call_staged(e, x[0], y, 2);
  FL_CHECK(own > 0 && staged.blocks == blocks && call_staged(e, x[0], y, 2) == own);
  FL_CHECK(staged.blocks == blocks - 2 && !staged.last->known[0]);
  FL_CHECK(call_staged(e, x[1], y, 2) == 0 && staged.blocks == blocks); /* made anew, and kept for four calls */
  int other = call_staged(e, x[1], y, 2);
  for (int i = 0; i < 2; i++) FL_CHECK(call_staged(e, x[0], y, 2) == own && staged.blocks == blocks);
  FL_CHECK(call_staged(e, x[0], y, 2) == own && staged.blocks == blocks - 2);
  FL_CHECK(other > 0 && staged.last->known[other]);
  for (int i = 0; i < 100; i++) FL_CHECK(call_staged(e, x[0], y, 2) == own);
  FL_CHECK(!staged.last->known[other] && staged.last->known[own]);
  FL_CHECK(call_staged(e, x[1], y, 2) == other); /* seen before: recorded at once */
  for (int i = 0; i < 100; i++) FL_CHECK(call_staged(e, x[0], y, 2) == own);
  FL_CHECK(staged.last->known[other]); /* kept for 128 calls now */
  fl_engine_destroy(e);
  FL_CHECK(staged.blocks == 0);
}

/* Large results: a recording for each of the first few addresses, and stages for ever new ones after these. */
FL_TEST(large_stages_are_avoided) {
  enum { ROWS = 1 << 20, N = 6 };
  _Alignas(64) static float x[4];
  float *y[N];
  fl_engine *e = staged_engine_of("graph(%0: f32[4], %1: weight 0 f32[1048576,4]) {\n  %2 = mul(%0, %1) : "
                                  "f32[1048576,4]\n  return %2\n}\n",
                                  y[0] = fl_malloc_aligned(ROWS * sizeof x));
  for (int64_t i = 0; i < 4 * ROWS; i++) y[0][i] = 2;
  for (int i = 1; i < N; i++) y[i] = fl_malloc_aligned(ROWS * sizeof x);
  FL_CHECK(e && call_staged(e, x, y[1], 2) > 0);
  int blocks = staged.blocks; /* with the context's own */
  for (int round = 0; e && round < 2; round++)
    for (int i = 1; i < N - 1; i++) FL_CHECK(call_staged(e, x, y[i], 2) > 0 && staged.blocks == blocks);
  FL_CHECK(staged.last->walks == N - 2);
  if (e) FL_CHECK(call_staged(e, x, y[N - 1], 2) == 0 && staged.blocks == blocks + 2);
  fl_engine_destroy(e);
  for (int i = 0; i < N; i++) fl_free_aligned(y[i]);
}

/* Where there is no memory for stages, the call fails and the next one tries again. */
FL_TEST(stages_may_not_fit) {
  _Alignas(64) static float x[16], y[16], weight[4] = {2, 2, 2, 2};
  fl_engine *e = staged_engine(weight);
  if (!e) return;
  FL_CHECK(call_staged(e, x, y, 2) == 0 && call_staged(e, x, y, 2) > 0 && call_staged(e, x, y, 2) > 0);
  for (int at = 1; at <= 2; at++) {
    fl_alloc_fail_at(at);
    FL_CHECK_FAILS(fl_engine_run(e, (const void *[]){x + 1}, (void *[]){y}), FL_OOM, "");
    fl_alloc_fail_at(0);
  }
  FL_CHECK(call_staged(e, x + 1, y, 2) == 0);
  fl_engine_destroy(e);
  FL_CHECK(staged.blocks == 0);
}

/* The run's program is walked before there are constants, with the stages that it will have, and nothing is computed. */
FL_TEST(the_first_run_is_prepared_while_constants_are_made) {
  _Alignas(64) static float x[16], y[16], weight[4] = {2, 2, 2, 2};
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  fl_engine_destroy(staged_engine(weight));
  staged.table.prepare = staged_prepare;
  FL_CHECK_OK(fl_graph_parse("graph(%0: f32[4], %1: weight 0 f32[4]) {\n  %2 = mul(%1, %1) : f32[4]\n"
                             "  %3 = mul(%0, %2) : f32[4]\n  return %3\n}\n",
                             &g));
  fl_plan_options options = {.threads = 1, .backend = &staged.table};
  FL_CHECK_OK(fl_engine_compile(g, &options, (const void *[]){weight}, NULL, 1, NULL, &e));
  fl_graph_destroy(g);
  if (!e) return;
  const recorder *q = staged.last;
  FL_CHECK(q->prepared && q->walks == 0);
  FL_CHECK(call_staged(e, x, y, 4) == 0);
  FL_CHECK(staged.last == q && q->walks == 1);
  fl_engine_destroy(e);
}

FL_TEST_MAIN(FL_RUN(random_graphs) FL_RUN(random_graphs_through_the_passes) FL_RUN(many_threads_run_one_engine)
                 FL_RUN(every_allocation_may_fail) FL_RUN(updates_run_only_what_depends)
                     FL_RUN(weights_used_as_they_are_follow_their_place) FL_RUN(bad_indexes_are_reported)
                         FL_RUN(profile_adds_up) FL_RUN(too_few_weights_fail)
                             FL_RUN(beginnings_of_concatenations_are_copied_once)
                                 FL_RUN(addresses_that_come_again_are_used_themselves)
                                     FL_RUN(addresses_that_do_not_fit_go_through_stages)
                                         FL_RUN(what_goes_unused_is_forgotten) FL_RUN(large_stages_are_avoided)
                                             FL_RUN(stages_may_not_fit)
                                                 FL_RUN(the_first_run_is_prepared_while_constants_are_made))
