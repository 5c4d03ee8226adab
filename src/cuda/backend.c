#include <pthread.h>
#include <string.h>

#include "cuda/graph.h"
#include "cuda/ops.h"

#define FL_CUDA_KERNEL(name, op_, implementation)                                                                      \
  {"cuda_" #name, FL_OP_##op_, FL_ISA_PORTABLE, fl_cuda_plan_##implementation, NULL, fl_cuda_run_##implementation},
static const fl_kernel kernels[] = {
#include "cuda/kernels.def"
};
#undef FL_CUDA_KERNEL

enum { ROWS = sizeof kernels / sizeof *kernels };

static const fl_kernel *kernel(int id) { return id < 0 || id >= ROWS ? NULL : &kernels[id]; }

static int try_rows(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max,
                    const char **why) {
  int n = 0;
  for (int i = 0; i < ROWS && n < max; i++) {
    if (kernels[i].op != problem->op) continue;
    memset(&plans[n], 0, sizeof plans[n]);
    plans[n].in_place = -1;
    for (int o = 0; o < problem->n_out; o++) fl_strides_contiguous(&problem->out[o], plans[n].out_strides[o]);
    const char *reason = kernels[i].plan(problem, arena, &plans[n]);
    if (reason)
      *why = reason;
    else
      ids[n++] = i;
  }
  return n;
}

static int candidates(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max) {
  const char *why = NULL;
  return try_rows(problem, arena, ids, plans, max, &why);
}

static const char *why_not(const fl_problem *problem) {
  const char *why = "no CUDA kernel for this operator";
  fl_kernel_plan plan;
  fl_arena arena;
  int id;
  fl_arena_init(&arena);
  int n = try_rows(problem, &arena, &id, &plan, 1, &why);
  fl_arena_release(&arena);
  return n ? NULL : why;
}

const fl_backend fl_cuda_table = {.name = "cuda",
                                  .staged = true,
                                  .candidates = candidates,
                                  .why_not = why_not,
                                  .kernel = kernel,
                                  .copy = fl_cuda_copy,
                                  .allocate = fl_cuda_allocate,
                                  .release = fl_cuda_release,
                                  .upload = fl_cuda_upload,
                                  .queue_create = fl_cuda_queue_create,
                                  .queue_destroy = fl_cuda_queue_destroy,
                                  .settle = fl_cuda_settle,
                                  .prepare = fl_cuda_prepare,
                                  .run = fl_cuda_run,
                                  .forget = fl_cuda_forget,
                                  .memory = fl_cuda_queue_memory,
                                  .profile = fl_cuda_profile,
                                  .mark = fl_cuda_mark};

fl_status fl_cuda_backend(int ordinal, const fl_backend **out) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static fl_backend tables[FL_CUDA_MAX_DEVICES];
  const fl_cuda_device *device;
  FL_TRY(fl_cuda_device_open(ordinal, &device));
  pthread_mutex_lock(&lock);
  if (!tables[ordinal].device) {
    tables[ordinal] = fl_cuda_table;
    tables[ordinal].device = device;
  }
  pthread_mutex_unlock(&lock);
  *out = &tables[ordinal];
  return NULL;
}
