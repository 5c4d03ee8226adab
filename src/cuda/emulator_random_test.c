/* Random graphs on emulated kernels against the naive evaluator: a few, or hundreds ("all"); "seeds FROM TO" runs these. */
#include <stdlib.h>

#include "cuda/emulator_case.h"
#include "rt/compile.h"
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
  const fl_plan_options options = {
      .threads = 1, .backend = fl_emulator_backend(), .out_strides = (const int64_t(*)[FL_MAX_RANK])w->out_strides};
  fl_compile_nodes nodes;
  fl_engine *e = NULL;
  world again;
  srand((unsigned)seed);
  make_world(&again, images);
  FL_CHECK_OK(fl_engine_compile(again.g, &options, weights_of(w), NULL, w->n_slots, &nodes, &e));
  free_world(&again, w->g->values.len);
  return e;
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
  fl_engine_destroy(e);
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
