/* Random graphs on emulated kernels against the naive evaluator: a few, or hundreds ("all"); "seeds FROM TO" runs these. */
#include <stdlib.h>

#include "cuda/emulator_case.h"
#include "rt/compile.h"
#include "rt/constants.h"
#include "rt/random_test.h"

static void print_world(const world *w, const fl_plan *p) {
  char *graph = NULL, *plan = NULL;
  FL_CHECK_OK(fl_graph_print(w->g, &graph));
  FL_CHECK_OK(fl_plan_print(p, &plan));
  fprintf(stderr, "%s%s", graph, plan);
  fl_free(graph);
  fl_free(plan);
}

/* The passes change the graph that they are given: they get another of the same seed. */
static fl_engine *compile_world(const world *w, int seed, bool images) {
  const fl_plan_options options = {.threads = 1,
                                   .backend = fl_emulator_backend(),
                                   .block_bytes = 1,
                                   .out_strides = (const int64_t(*)[FL_MAX_RANK])w->out_strides};
  uint64_t stamps[MAX_GIVEN];
  fl_compile_nodes nodes;
  fl_engine *e = NULL;
  world again;
  srand((unsigned)seed);
  make_world(&again, images);
  for (uint32_t i = 0; i < w->n_slots; i++) stamps[i] = i + 1;
  FL_CHECK_OK(fl_engine_compile(again.g, &options, weights_of(w), stamps, w->n_slots, &nodes, &e));
  free_world(&again, w->g->values.len);
  return e;
}

/* Weights have other contents, in their places. */
static void change_weights(world *w, fl_engine *e) {
  uint32_t slots[MAX_GIVEN];
  uint64_t stamps[MAX_GIVEN];
  for (uint32_t i = 0; i < w->n_slots; i++) {
    fill(w, w->n_inputs + (int)i);
    slots[i] = i;
    stamps[i] = 1000 + i;
  }
  naive_run(&w->naive);
  FL_CHECK_OK(fl_engine_update(e, slots, weights_of(w), stamps, (int)w->n_slots));
}

/* One that finds all its constants there, and outlives who made them. */
static int count_wrong_of_second(world *w, fl_engine *first, int seed, bool images) {
  size_t before, after, bytes;
  fl_constants_listed(&before, &bytes);
  fl_engine *e = compile_world(w, seed, images);
  fl_constants_listed(&after, &bytes);
  FL_CHECK(before == after);
  int wrong = e ? count_wrong(w, e) : 0;
  fl_engine_destroy(first);
  wrong += e ? count_wrong(w, e) : 0;
  if (e) change_weights(w, e);
  wrong += e ? count_wrong(w, e) : 0;
  fl_engine_destroy(e);
  fl_constants_listed(&after, &bytes);
  FL_CHECK(after == 0);
  return wrong;
}

static void check_seed(int seed, bool images) {
  world w;
  srand((unsigned)seed);
  make_world(&w, images);
  naive_run(&w.naive);
  fl_engine *e = compile_world(&w, seed, images);
  int wrong = e ? count_wrong(&w, e) : 0;
  for (int i = 0; i < w.n_inputs; i++) fill(&w, i);
  naive_run(&w.naive);
  if (e) wrong += count_wrong(&w, e);
  FL_CHECK_MSG(wrong == 0, "seed %d%s: %d wrong", seed, images ? ", images" : "", wrong);
  if (wrong) print_world(&w, fl_engine_plan(e));
  wrong = e ? count_wrong_of_second(&w, e, seed, images) : 0;
  FL_CHECK_MSG(wrong == 0, "seed %d%s: %d wrong of a second engine", seed, images ? ", images" : "", wrong);
  free_world(&w, w.g->values.len);
}

static int from, to; /* seeds that were asked for; 0: none in particular */

static void run(fl_pool *unused, bool all) {
  const int first = to ? from : 1, last = to ? to : all ? 200 : 2;
  for (int seed = first; seed <= last && fl_test_failed_ < 3; seed++) {
    check_seed(seed, false);
    check_seed(seed, true);
    if (seed % 20) continue;
    printf("seed %d: %d kernels, %d failed\n", seed, fl_emulator_stats_of().kernels, fl_test_failed_);
    fflush(stdout);
  }
}

int main(int argc, char **argv) {
  if (argc > 3 && !strcmp(argv[1], "seeds")) {
    from = atoi(argv[2]);
    to = atoi(argv[3]);
  }
  return fl_emulator_main(argc, argv, "random graphs", run);
}
