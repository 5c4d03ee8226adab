/* Blocks that engines share: who makes them, who writes to them, and that equal recipes make equal blocks. */
#include <pthread.h>
#include <stdatomic.h>

#include "rt/compile.h"
#include "rt/constants.h"
#include "rt/random_test.h"

static size_t listed(void) {
  size_t blocks, bytes;
  fl_constants_listed(&blocks, &bytes);
  FL_CHECK(!blocks == !bytes);
  return blocks;
}

/* --- the table --- */

static fl_constant_key key_of(const char *recipe, const uint64_t *stamps, uint32_t n) {
  return (fl_constant_key){&fl_backend_cpu, recipe, strlen(recipe), stamps, n};
}

FL_TEST(blocks_are_found_by_recipe_and_stamps) {
  uint64_t a[] = {7, 8}, b[] = {7, 9};
  fl_constant_key keys[] = {key_of("recipe one", a, 2), key_of("recipe one", b, 2), key_of("recipe two", a, 2),
                            key_of("recipe one", a, 1)};
  fl_constant *made[4];
  int64_t live = fl_alloc_live();
  FL_CHECK(fl_constants_allocate(&fl_backend_cpu, (size_t[]){64, 128, 64, 8192}, 4, true, made));
  for (int i = 0; i < 4; i++) {
    FL_CHECK(!fl_constant_find(&keys[i]));
    memset(fl_constant_data(made[i]), i, 64);
    FL_CHECK(fl_constant_publish(made[i], &keys[i]) == made[i]);
  }
  FL_CHECK(listed() == 4 && fl_constant_data(made[1]) == fl_constant_data(made[0]) + 64);
  for (int i = 0; i < 4; i++) {
    fl_constant *c = fl_constant_find(&keys[i]);
    FL_CHECK(c == made[i] && *fl_constant_data(c) == i && !fl_constant_withdraw(c));
    fl_constant_release(c);
  }
  FL_CHECK(fl_constant_withdraw(made[2]) && !fl_constant_find(&keys[2]) && listed() == 3);
  fl_constant *equal; /* made twice: the first one stays */
  FL_CHECK(fl_constants_allocate(&fl_backend_cpu, (size_t[]){64}, 1, true, &equal));
  FL_CHECK(fl_constant_publish(equal, &keys[0]) == made[0]);
  fl_constant_release(made[0]);
  for (int i = 0; i < 4; i++) fl_constant_release(made[i]);
  FL_CHECK(listed() == 0 && fl_alloc_live() == live);
}

FL_TEST(a_part_of_a_slab_may_go) {
  enum { N = 6 };
  static const size_t bytes[N] = {64, 65536, 64, 192, 16384, 64};
  fl_constant *made[N];
  int64_t live = fl_alloc_live();
  FL_CHECK(fl_constants_allocate(&fl_backend_cpu, bytes, N, true, made));
  for (int i = 0; i < N; i++) memset(fl_constant_data(made[i]), i + 1, bytes[i]);
  for (int i = 1; i < N; i += 3) fl_constant_release(made[i]);
  for (int i = 0; i < N; i++)
    for (size_t k = 0; i % 3 != 1 && k < bytes[i]; k++) FL_CHECK(fl_constant_data(made[i])[k] == i + 1);
  for (int i = 0; i < N; i++)
    if (i % 3 != 1) fl_constant_release(made[i]);
  FL_CHECK(fl_alloc_live() == live);
}

/* --- engines, on the CPU, and on something like a device: it works at once, but says that it may not have done so --- */

static fl_backend device;
static const fl_backend *backend;
static int settled;

static void settle(fl_queue *q) { settled++; }

static void use_cpu(void) { backend = &fl_backend_cpu; }

static void use_device(void) {
  device = fl_backend_cpu;
  device.immediate = false;
  device.discard = NULL;
  device.settle = settle;
  backend = &device;
}

static fl_engine *engine_of(const char *text, const void *const *weights, const uint64_t *stamps, uint32_t n) {
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  fl_plan_options options = {.backend = backend, .threads = 1, .block_bytes = 1};
  FL_CHECK_OK(fl_engine_compile(g, &options, weights, stamps, n, NULL, &e));
  fl_graph_destroy(g);
  return e;
}

static size_t held(fl_engine *e, uint64_t report, size_t *shared) {
  fl_engine_memory m = fl_engine_memory_of(e, report);
  size_t sum = 0;
  for (int i = 0; i < FL_CONST_KINDS; i++) sum += m.constants[i];
  *shared = m.shared;
  return sum;
}

enum { LENGTHS = 4, K = 24, N = 40 };

static float product_at(const float *x, const float *w, const float *scale, int row, int col) {
  float sum = 0;
  for (int k = 0; k < K; k++) sum += x[row * K + k] * (w[k * N + col] * scale[col]);
  return sum;
}

/* Wrong results of an engine of so many rows. */
static int wrong_at(fl_engine *e, int rows, const float *w, const float *scale) {
  float x[LENGTHS * 8 * K], y[LENGTHS * 8 * N];
  for (int i = 0; i < rows * K; i++) x[i] = (float)(i % 11 - 5) / 4;
  fl_status s = fl_engine_run(e, (const void *[]){x}, (void *[]){y});
  int wrong = s != NULL;
  fl_status_free(s);
  for (int i = 0; i < rows * N; i++) wrong += !(fabsf(y[i] - product_at(x, w, scale, i / N, i % N)) < 1e-4f);
  return wrong;
}

static void check_length(fl_engine *e, int rows, const float *w, const float *scale) {
  int wrong = wrong_at(e, rows, w, scale);
  FL_CHECK_MSG(wrong == 0, "%d results of %d rows", wrong, rows);
}

static fl_engine *engine_of_length(int rows, const void *const *weights, const uint64_t *stamps) {
  char text[400];
  snprintf(text, sizeof text,
           "graph(%%0: f32[%d,%d], %%1: weight 0 f32[%d,%d], %%2: weight 1 f32[%d]) {\n"
           "  %%3 = mul(%%1, %%2) : f32[%d,%d]\n  %%4 = matmul(%%0, %%3, _, _) : f32[%d,%d]\n  return %%4\n}\n",
           rows, K, K, N, N, K, N, rows, N);
  return engine_of(text, weights, stamps, 2);
}

typedef struct product {
  float w[K * N], scale[N];
} product;

static void fill_product(product *p, int seed) {
  for (int i = 0; i < K * N; i++) p->w[i] = (float)((i * 7 + seed) % 13 - 6) / 3;
  for (int i = 0; i < N; i++) p->scale[i] = 1 + (float)(i + seed) / N;
}

FL_TEST(lengths_share_what_is_packed) {
  static product p, q;
  const uint64_t stamps[] = {11, 12}, changed[] = {13};
  const void *weights[] = {p.w, p.scale};
  fl_engine *e[LENGTHS];
  size_t shared, first = 0;
  fill_product(&p, 0);
  for (int i = 0; i < LENGTHS; i++) {
    e[i] = engine_of_length(8 * (i + 1), weights, stamps);
    check_length(e[i], 8 * (i + 1), p.w, p.scale);
    FL_CHECK(listed() == 1);
  }
  uint64_t report = fl_constants_report();
  for (int i = 0; i < LENGTHS; i++) {
    size_t own = held(e[i], report, &shared);
    FL_CHECK(i ? own == 0 && shared == first : own >= sizeof p.w && shared == 0);
    if (!i) first = own;
  }
  /* Other contents for one engine: the others' stay as they are. */
  fill_product(&q, 5);
  memcpy(q.scale, p.scale, sizeof q.scale);
  FL_CHECK_OK(fl_engine_update(e[0], (uint32_t[]){0}, (const void *[]){q.w}, changed, 1));
  FL_CHECK(listed() == 2);
  check_length(e[0], 8, q.w, q.scale);
  for (int i = 1; i < LENGTHS; i++) check_length(e[i], 8 * (i + 1), p.w, p.scale);
  for (int i = 1; i < LENGTHS; i++)
    FL_CHECK_OK(fl_engine_update(e[i], (uint32_t[]){0}, (const void *[]){q.w}, changed, 1));
  for (int i = 0; i < LENGTHS; i++) check_length(e[i], 8 * (i + 1), q.w, q.scale);
  FL_CHECK(listed() == 1);
  /* And back to what nobody has any more; then what may not be shared. */
  FL_CHECK_OK(fl_engine_update(e[1], (uint32_t[]){0}, (const void *[]){p.w}, stamps, 1));
  FL_CHECK_OK(fl_engine_update(e[2], (uint32_t[]){0}, (const void *[]){p.w}, NULL, 1));
  FL_CHECK(listed() == 2);
  report = fl_constants_report();
  FL_CHECK(held(e[2], report, &shared) == first && held(e[1], report, &shared) == first && shared == 0);
  for (int i = 1; i < 3; i++) check_length(e[i], 8 * (i + 1), p.w, p.scale);
  for (int i = 0; i < LENGTHS; i++) fl_engine_destroy(e[i]);
  FL_CHECK(listed() == 0);
}

FL_TEST(what_one_engine_alone_holds_is_made_in_place) {
  static product p;
  const void *weights[] = {p.w, p.scale};
  fill_product(&p, 0);
  fl_engine *e = engine_of_length(8, weights, (uint64_t[]){1, 2});
  check_length(e, 8, p.w, p.scale);
  int64_t live = fl_alloc_live();
  for (uint64_t i = 3; i < 8; i++) {
    fill_product(&p, (int)i);
    FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0, 1}, weights, i % 2 ? (uint64_t[]){i, i} : (uint64_t[]){i, 0}, 2));
    check_length(e, 8, p.w, p.scale);
    FL_CHECK(listed() == i % 2 && fl_alloc_live() <= live);
  }
  fl_engine_destroy(e);
}

/* --- random graphs at once: weights hold one of a few sequences of numbers, which their stamps name, so that any graph may
 * find any other's blocks --- */

static float number(uint64_t stamp, size_t k) {
  uint64_t h = (stamp + 1) * 0x9E3779B97F4A7C15u ^ (k + 1) * 0xD1B54A32D192ED03u;
  h ^= h >> 31;
  return 0.5f + (float)(h % 1000) / 1000; /* positive: it may be a variance */
}

static void write_numbers(const world *w, int given, uint64_t stamp, float *memory, double *values) {
  const fl_value *v = &w->g->values.data[w->given[given]];
  int64_t at[FL_MAX_RANK];
  for (size_t k = 0; k < span(&v->type, v->strides); k++) memory[k] = number(stamp, k);
  for (int64_t k = 0; values && k < fl_type_numel(&v->type); k++) {
    int64_t offset = 0;
    naive_unravel(&v->type, k, at);
    for (int a = 0; a < v->type.rank; a++) offset += at[a] * v->strides[a];
    values[k] = memory[offset];
  }
}

static fl_engine *random_engine(const world *w, const void *const *weights, const uint64_t *stamps, fl_pool *pool) {
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  fl_plan_options options = {.backend = backend,
                             .threads = fl_pool_threads(pool),
                             .pool = pool,
                             .block_bytes = 1,
                             .out_strides = (const int64_t(*)[FL_MAX_RANK])w->out_strides};
  FL_CHECK_OK(fl_plan_build(w->g, &options, &plan));
  if (plan) FL_CHECK_OK(fl_engine_create(plan, weights, stamps, w->n_slots, pool, &e));
  return e;
}

FL_TEST(equal_recipes_make_equal_blocks) {
  enum { AT_ONCE = 24, ROUNDS = 30, SEQUENCES = 2 };
  static world w[AT_ONCE];
  fl_engine *e[AT_ONCE];
  size_t shared, all = 0, all_shared = 0;
  for (int round = 0; round < ROUNDS && fl_test_failed_ < 3; round++) {
    uint64_t report = fl_constants_report();
    for (int i = 0; i < AT_ONCE; i++) {
      uint64_t stamps[MAX_GIVEN];
      srand((unsigned)(round * AT_ONCE + i));
      make_world(&w[i], i % 4 == 3);
      for (int k = w[i].n_inputs; k < w[i].n_given; k++) {
        stamps[k - w[i].n_inputs] = 1 + (uint64_t)pick(SEQUENCES);
        write_numbers(&w[i], k, stamps[k - w[i].n_inputs], w[i].memory[k], w[i].naive.values[w[i].given[k]]);
      }
      naive_run(&w[i].naive);
      e[i] = random_engine(&w[i], weights_of(&w[i]), stamps, NULL);
      FL_CHECK_MSG(e[i] && count_wrong(&w[i], e[i]) == 0, "round %d, graph %d", round, i);
      if (e[i]) all += held(e[i], report, &shared), all_shared += shared;
    }
    for (int i = 0; i < AT_ONCE; i++) {
      if (e[i]) FL_CHECK(count_wrong(&w[i], e[i]) == 0);
      fl_engine_destroy(e[i]);
      free_world(&w[i], w[i].g->values.len);
    }
    FL_CHECK(listed() == 0);
  }
  FL_CHECK_MSG(all_shared > all / 20, "%zu of %zu bytes shared", all_shared, all);
}

/* --- engines of one graph whose weights change, each in memory of its own, in every order --- */

enum { ENGINES = 3 };

typedef struct copies {
  world w;
  fl_engine *e[ENGINES];
  float *memory[ENGINES][MAX_GIVEN];
  uint64_t stamps[ENGINES][MAX_GIVEN];
} copies;

static void put_weight(copies *c, int engine, int slot, uint64_t stamp) {
  write_numbers(&c->w, c->w.n_inputs + slot, stamp, c->memory[engine][slot], NULL);
  c->stamps[engine][slot] = stamp;
}

static void make_copies(copies *c, int seed, fl_pool *pool) {
  srand((unsigned)seed);
  make_world(&c->w, seed % 3 == 0);
  for (int i = 0; i < ENGINES; i++) {
    for (int s = 0; s < (int)c->w.n_slots; s++) {
      const fl_value *v = &c->w.g->values.data[c->w.given[c->w.n_inputs + s]];
      c->memory[i][s] = malloc(span(&v->type, v->strides) * sizeof(float));
      put_weight(c, i, s, 1);
    }
    c->e[i] = random_engine(&c->w, (const void *const *)c->memory[i], c->stamps[i], pool);
  }
}

static int count_wrong_copy(copies *c, int engine) {
  for (int s = 0; s < (int)c->w.n_slots; s++) {
    int given = c->w.n_inputs + s;
    write_numbers(&c->w, given, c->stamps[engine][s], c->w.memory[given], c->w.naive.values[c->w.given[given]]);
  }
  naive_run(&c->w.naive);
  return count_wrong(&c->w, c->e[engine]);
}

/* Some of its weights, in place or not told apart from it; now and then one that may not be shared. */
static void change_copy(copies *c, int engine) {
  uint32_t slots[MAX_GIVEN];
  const void *data[MAX_GIVEN];
  uint64_t stamps[MAX_GIVEN];
  int n = 0;
  for (uint32_t s = 0; s < c->w.n_slots; s++) {
    if (pick(2)) continue;
    put_weight(c, engine, (int)s, 1 + (uint64_t)pick(3));
    slots[n] = s;
    data[n] = c->memory[engine][s];
    stamps[n++] = pick(6) ? c->stamps[engine][s] : 0;
  }
  FL_CHECK_OK(fl_engine_update(c->e[engine], slots, data, stamps, n));
}

static void free_copies(copies *c) {
  for (int i = 0; i < ENGINES; i++) {
    fl_engine_destroy(c->e[i]);
    for (uint32_t s = 0; s < c->w.n_slots; s++) free(c->memory[i][s]);
  }
  free_world(&c->w, c->w.g->values.len);
}

FL_TEST(sets_are_let_go_when_work_is_done) {
  static product p, q;
  const void *weights[] = {p.w, p.scale}, *other[] = {q.w, q.scale};
  fill_product(&p, 0);
  fill_product(&q, 1);
  fl_engine *a = engine_of_length(8, weights, (uint64_t[]){1, 1}),
            *b = engine_of_length(16, weights, (uint64_t[]){1, 1});
  check_length(a, 8, p.w, p.scale);
  check_length(b, 16, p.w, p.scale);
  FL_CHECK(listed() == 1);
  int before = settled;
  FL_CHECK_OK(fl_engine_update(a, (uint32_t[]){0, 1}, other, (uint64_t[]){2, 2}, 2));
  FL_CHECK(listed() == 2 && settled == before + (backend->settle != NULL)); /* the free context's work */
  check_length(b, 16, p.w, p.scale);
  fl_engine_destroy(b);
  FL_CHECK(listed() == 1);
  check_length(a, 8, q.w, q.scale);
  fl_engine_destroy(a);
  FL_CHECK(listed() == 0);
}

FL_TEST(weights_change_in_every_order) {
  static copies c;
  fl_pool *pool = NULL;
  FL_CHECK_OK(fl_pool_create(2, &pool));
  for (int seed = 1; seed <= 150 && fl_test_failed_ < 3; seed++) {
    make_copies(&c, seed, seed % 2 ? pool : NULL);
    for (int step = 0; step < 30; step++) {
      int engine = pick(ENGINES);
      if (pick(2)) change_copy(&c, engine);
      FL_CHECK_MSG(count_wrong_copy(&c, engine) == 0, "seed %d, step %d, engine %d", seed, step, engine);
    }
    free_copies(&c);
    FL_CHECK(listed() == 0);
  }
  fl_pool_destroy(pool);
}

/* --- threads: each runs and changes engines of its own, which share blocks with the others' --- */

typedef struct stress {
  pthread_t thread;
  int engine, wrong;
  fl_engine *e;
} stress;

static product contents[3]; /* by stamp - 1 */

static void *change_and_run(void *arg) {
  stress *s = arg;
  product own = contents[0];
  const void *weights[] = {own.w, own.scale};
  unsigned seed = (unsigned)s->engine;
  for (int i = 0; i < 200; i++) {
    int now = rand_r(&seed) % 3;
    uint64_t stamp = (uint64_t)now + 1;
    own = contents[now];
    fl_status bad = fl_engine_update(s->e, (uint32_t[]){0, 1}, weights, (uint64_t[]){stamp, stamp}, 2);
    s->wrong += bad != NULL;
    fl_status_free(bad);
    s->wrong += wrong_at(s->e, 8 * (1 + s->engine), own.w, own.scale);
  }
  fl_engine_destroy(s->e);
  return NULL;
}

FL_TEST(threads_share_blocks) {
  stress s[LENGTHS];
  for (int i = 0; i < 3; i++) fill_product(&contents[i], 3 * i);
  for (int i = 0; i < LENGTHS; i++) {
    const void *weights[] = {contents[0].w, contents[0].scale};
    s[i] = (stress){.engine = i, .e = engine_of_length(8 * (1 + i), weights, (uint64_t[]){1, 1})};
    FL_CHECK(!pthread_create(&s[i].thread, NULL, change_and_run, &s[i]));
  }
  for (int i = 0; i < LENGTHS; i++) {
    pthread_join(s[i].thread, NULL);
    FL_CHECK(s[i].wrong == 0);
  }
  FL_CHECK(listed() == 0);
}

/* One engine is run by a thread while another engine, which holds the same blocks, is given other weights, and goes. */
typedef struct runner {
  fl_engine *e;
  int wrong;
  atomic_bool stop;
} runner;

static void *run_until_stopped(void *arg) {
  runner *r = arg;
  while (!atomic_load(&r->stop)) r->wrong += wrong_at(r->e, 16, contents[0].w, contents[0].scale);
  return NULL;
}

FL_TEST(what_others_run_with_is_left_alone) {
  pthread_t thread;
  for (int i = 0; i < 3; i++) fill_product(&contents[i], 3 * i);
  const void *weights[] = {contents[0].w, contents[0].scale}, *other[] = {contents[1].w, contents[1].scale};
  runner r = {.e = engine_of_length(16, weights, (uint64_t[]){1, 1})};
  FL_CHECK(!pthread_create(&thread, NULL, run_until_stopped, &r));
  for (int i = 0; i < 100; i++) {
    fl_engine *e = engine_of_length(8, weights, (uint64_t[]){1, 1});
    check_length(e, 8, contents[0].w, contents[0].scale);
    FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0, 1}, other, (uint64_t[]){2, 2}, 2));
    check_length(e, 8, contents[1].w, contents[1].scale);
    fl_engine_destroy(e);
  }
  atomic_store(&r.stop, true);
  pthread_join(thread, NULL);
  FL_CHECK(r.wrong == 0);
  fl_engine_destroy(r.e);
  FL_CHECK(listed() == 0);
}

/* --- memory --- */

FL_TEST(every_allocation_of_an_update_may_fail) {
  static product p, q;
  const void *weights[] = {p.w, p.scale}, *other[] = {q.w, q.scale};
  fill_product(&p, 0);
  fill_product(&q, 4);
  int64_t live = fl_alloc_live();
  for (int alone = 0; alone < 2; alone++) {
    bool done = false;
    for (int64_t nth = 1; !done && nth < 500; nth++) {
      fl_engine *e = engine_of_length(8, weights, (uint64_t[]){1, 1});
      fl_engine *second = engine_of_length(16, weights, (uint64_t[]){alone ? 5 : 1, 1});
      check_length(e, 8, p.w, p.scale);
      check_length(second, 16, p.w, p.scale);
      fl_alloc_fail_at(nth);
      fl_status s = fl_engine_update(e, (uint32_t[]){0, 1}, other, (uint64_t[]){2, 2}, 2);
      fl_alloc_fail_at(0);
      done = !s;
      FL_CHECK(!s || fl_status_code(s) == FL_OOM);
      if (s) FL_CHECK_OK(fl_engine_update(e, (uint32_t[]){0, 1}, other, (uint64_t[]){2, 2}, 2));
      fl_status_free(s);
      check_length(e, 8, q.w, q.scale);
      check_length(second, 16, p.w, p.scale);
      fl_engine_destroy(e);
      fl_engine_destroy(second);
      FL_CHECK(fl_alloc_live() == live && listed() == 0);
    }
    FL_CHECK(done);
  }
}

#define CPU    use_cpu();
#define DEVICE use_device();

FL_TEST_MAIN(CPU FL_RUN(blocks_are_found_by_recipe_and_stamps) FL_RUN(a_part_of_a_slab_may_go)
                 FL_RUN(lengths_share_what_is_packed) FL_RUN(what_one_engine_alone_holds_is_made_in_place)
                     FL_RUN(equal_recipes_make_equal_blocks) FL_RUN(sets_are_let_go_when_work_is_done)
                         FL_RUN(weights_change_in_every_order) FL_RUN(threads_share_blocks)
                             FL_RUN(what_others_run_with_is_left_alone) FL_RUN(every_allocation_of_an_update_may_fail)
                                 DEVICE FL_RUN(lengths_share_what_is_packed)
                                     FL_RUN(what_one_engine_alone_holds_is_made_in_place)
                                         FL_RUN(sets_are_let_go_when_work_is_done) FL_RUN(weights_change_in_every_order)
                                             FL_RUN(threads_share_blocks) FL_RUN(what_others_run_with_is_left_alone)
                                                 FL_RUN(every_allocation_of_an_update_may_fail))
