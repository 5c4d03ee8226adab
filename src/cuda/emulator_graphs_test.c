/* The graphs of cuda_test on emulated kernels against the CPU: every tenth, or all of them ("all"). */
#include "cuda/emulator_case.h"
#include "cuda/gpu_test.h"
#include "cuda/graphs_case.h"

/* Attention of 16-bit floats multiplies by what is not emulated. */
static void check(const char *text, const fl_backend *b, fl_pool *pool, bool halves) {
  char *half = with_type(text, "f16");
  check_graph(text, b, pool, "f32", 2e-5);
  if (half && halves && !strstr(text, "attention(")) check_graph(half, b, pool, "f16", 5e-3);
  fl_free(half);
  fflush(stdout);
}

static void run(fl_pool *pool, bool all) {
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i += all ? 1 : 10)
    check(graphs[i], fl_emulator_backend(), pool, all);
}

int main(int argc, char **argv) { return fl_emulator_main(argc, argv, "graphs", run); }
