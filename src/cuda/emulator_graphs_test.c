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

int main(int argc, char **argv) {
  const char *why = fl_emulator_why_not();
  const bool all = argc > 1 && !strcmp(argv[1], "all");
  fl_pool *pool = NULL;
  if (why) {
    printf("skipped: %s\n", why);
    return FL_EMULATOR_SKIPPED;
  }
  FL_CHECK_OK(fl_pool_create(1, &pool));
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i += all ? 1 : 10)
    check(graphs[i], fl_emulator_backend(), pool, all);
  fl_pool_destroy(pool);
  return fl_emulator_summary("graphs", fl_test_checks_, fl_test_failed_);
}
