/* CUDA kernels without a GPU, for tests: compiled for the host by g++, with sanitizers, and run thread by thread.
 *
 * The backend plans as CUDA's does and runs its kernels' sources (prelude.cu, src/cuda/kernels and what codegen writes)
 * between emulator_before.hpp and emulator_after.hpp. Emulated: blocks and threads, barriers and shuffles, shared
 * memory, cp.async, ldmatrix, mma, and conversions of f16. While a kernel runs under AddressSanitizer, of the
 * backend's memory only its operands can be touched.
 *
 * Not emulated: threads that truly run at once (races show only where the order of threads matters), the memory model,
 * a GPU's fast approximations, limits of registers and shared memory, early launches, attention on tensor cores, and
 * libraries: matrix products, and convolutions that are not ours, run a thread an element. AddressSanitizer forgets a
 * thread's stack where it waits. Thread rule: one thread. */
#ifndef FL_CUDA_EMULATOR_CASE_H
#define FL_CUDA_EMULATOR_CASE_H

#include <stdbool.h>

#include "base/test.h"
#include "cpu/backend.h"

enum { FL_EMULATOR_SKIPPED = 77 }; /* exit status of a test that cannot run here (CMakeLists.txt) */

/* Why nothing can be emulated here, or NULL. */
const char *fl_emulator_why_not(void);
const fl_backend *fl_emulator_backend(void);
/* Convolutions: by conv_own.c where it has a kernel (at first), or always a thread an element. */
void fl_emulator_own_convs(bool own);

typedef struct fl_emulator_stats {
  int kernels, compiled, launches, own_convs;
} fl_emulator_stats;
fl_emulator_stats fl_emulator_stats_of(void);
/* "12 kernels (3 compiled now), ..." and checks; the exit status. */
int fl_emulator_summary(const char *what, int checks, int failed);

/* A test's main: `run` with a pool and whether all of its cases were asked for ("all"), and the summary of `what`; or why it is
 * skipped. */
static inline int fl_emulator_main(int argc, char **argv, const char *what, void (*run)(fl_pool *pool, bool all)) {
  const char *why = fl_emulator_why_not();
  fl_pool *pool = NULL;
  if (why) {
    printf("skipped: %s\n", why);
    return FL_EMULATOR_SKIPPED;
  }
  FL_CHECK_OK(fl_pool_create(1, &pool));
  run(pool, argc > 1 && !strcmp(argv[1], "all"));
  fl_pool_destroy(pool);
  return fl_emulator_summary(what, fl_test_checks_, fl_test_failed_);
}

#endif
