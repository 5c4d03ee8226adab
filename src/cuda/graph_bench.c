/* What a graph costs on the GPU: graph_bench [-p] FILE...
 *
 * Each file is the text of one graph, as lowered or as optimized (`framelift explain MODEL --graph` prints those). It is
 * compiled with random weights and run on random inputs: the median of a call among calls in a row, and of one alone that is
 * waited for. -p: the time of each kind of step, weights cold as they are in a network. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bench.h"
#include "base/stages.h"
#include "cuda/device.h"
#include "cuda/nvrtc.h"
#include "cuda/tactic.h"
#include "rt/compile.h"

enum { ROUNDS = 15, IN_A_ROW = 10, MAX_LINES = 400 };

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Floats of +-0.06, integers of 0 and 1. */
static void *make_tensor(const fl_backend *b, const fl_type *t) {
  size_t bytes = fl_type_bytes(t), step = 1 << 20;
  void *device = b->allocate(b, bytes);
  unsigned char *host = fl_malloc(step);
  static uint64_t seed = 1;
  if (!device || !host) exit(1);
  for (size_t at = 0; at < bytes; at += step) {
    size_t n = bytes - at < step ? bytes - at : step;
    int64_t count = (int64_t)(n / fl_dtype_size(t->dtype));
    for (int64_t i = 0; i < count; i++) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      double r = (double)(seed >> 40) / (double)(1 << 24);
      fl_element_set(t->dtype, host, i, fl_dtype_is_float(t->dtype) ? (r - 0.5) * 0.12 : (double)(int)(r * 2));
    }
    fl_bench_check(b->upload(b, (char *)device + at, host, n));
  }
  fl_free(host);
  return device;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *v, int n) {
  qsort(v, (size_t)n, sizeof *v, by_value);
  return v[n / 2];
}

static double time_runs(fl_engine *e, const fl_cuda_device *d, const void *const *in, void *const *out, int in_a_row) {
  double ms[ROUNDS];
  for (int r = 0; r < ROUNDS; r++) {
    double began = now_ms();
    for (int i = 0; i < in_a_row; i++) fl_bench_check(fl_engine_run(e, in, out));
    fl_bench_check(fl_cuda_check(d->api->cuStreamSynchronize(NULL), "run"));
    ms[r] = (now_ms() - began) / in_a_row;
  }
  return median(ms, ROUNDS);
}

/* --- the profile --- */

typedef struct line {
  char what[200];
  double us;
  int count;
} line;

static int by_time(const void *a, const void *b) {
  double x = ((const line *)a)->us, y = ((const line *)b)->us;
  return (x < y) - (x > y);
}

static int add_type(char *text, int at, int size, const fl_type *t) {
  at += snprintf(text + at, (size_t)(size - at), " %s[", fl_dtype_name(t->dtype));
  for (int d = 0; d < t->rank && at < size - 24; d++)
    at += snprintf(text + at, (size_t)(size - at), d ? ",%d" : "%d", (int)t->dims[d]);
  return at + snprintf(text + at, (size_t)(size - at), "]");
}

static void describe(const fl_plan *p, const fl_step *s, char *text, int size) {
  int at = snprintf(text, (size_t)size, "%s", s->kind == FL_STEP_COPY ? "copy" : p->backend->kernel(s->kernel)->name);
  for (int i = 0; i < s->n_in + s->n_out && at < size - 60; i++) {
    const fl_operand *o = &p->operands.data[s->operands + (uint32_t)i];
    if (i == s->n_in) at += snprintf(text + at, (size_t)(size - at), " ->");
    if (o->space != FL_SPACE_NONE) at = add_type(text, at, size, &o->type);
  }
}

static void print_profile(const fl_plan *p, const double *us) {
  static line lines[MAX_LINES];
  char what[200];
  int n = 0;
  double sum = 0;
  for (size_t i = 0; i < p->run.len; i++) {
    int k = 0;
    describe(p, &p->run.data[i], what, sizeof what);
    while (k < n && strcmp(lines[k].what, what)) k++;
    if (k == MAX_LINES) continue;
    if (k == n) {
      lines[n] = (line){.us = 0};
      snprintf(lines[n++].what, sizeof what, "%s", what);
    }
    lines[k].us += us[i];
    lines[k].count++;
    sum += us[i];
  }
  qsort(lines, (size_t)n, sizeof *lines, by_time);
  for (int k = 0; k < n; k++)
    printf("  %8.1f us = %3d x %6.2f  %s\n", lines[k].us, lines[k].count, lines[k].us / lines[k].count, lines[k].what);
  printf("  %8.1f us in all\n", sum);
}

/* --- one file --- */

static void bench(const char *path, const fl_backend *b, const fl_cuda_device *d, fl_pool *pool, bool profile) {
  static const void *weights[4096];
  const void *in[256];
  void *out[256];
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  fl_plan_options options = {.threads = fl_pool_threads(pool), .pool = pool, .backend = b};
  char *text = fl_bench_read(path);
  fl_bench_check(fl_graph_parse(text, &g));
  uint32_t n_weights = 0;
  for (fl_vid v = 0; v < g->values.len; v++) {
    const fl_value *value = &g->values.data[v];
    if (value->kind != FL_VALUE_WEIGHT || value->slot >= 4096) continue;
    weights[value->slot] = make_tensor(b, &value->type);
    if (value->slot >= n_weights) n_weights = value->slot + 1;
  }
  fl_clock clock;
  fl_clock_start(&clock, FL_STAGE_plan);
  fl_bench_check(fl_engine_compile(g, &options, weights, NULL, n_weights, NULL, &e));
  fl_clock_stop(&clock);
  const fl_plan *p = fl_engine_plan(e);
  for (int i = 0; i < p->n_inputs; i++) in[i] = make_tensor(b, &p->inputs[i].type);
  for (int i = 0; i < p->n_outputs; i++) out[i] = make_tensor(b, &p->outputs[i].type);
  double began = now_ms();
  fl_bench_check(fl_engine_run(e, in, out));
  fl_bench_check(fl_cuda_check(d->api->cuStreamSynchronize(NULL), "run"));
  double first = now_ms() - began, row = time_runs(e, d, in, out, IN_A_ROW), one = time_runs(e, d, in, out, 1);
  fl_cuda_tactic_stats tactics = fl_cuda_tactic_get_stats();
  fl_cuda_stats kernels = fl_cuda_compile_stats();
  printf(
      "%-28s %8.3f ms a call, %8.3f alone; %zu steps; create %.0f ms, first run %.0f ms (in all %d tactics in %.0f ms, "
      "%d kernels in %.0f ms)\n",
      path, row, one, p->run.len, clock.times.ms[FL_STAGE_weights], first, tactics.timed, tactics.ms, kernels.compiled,
      kernels.ms);
  if (profile) {
    double *us = fl_calloc(p->run.len + 1, sizeof *us);
    fl_bench_check(fl_engine_profile(e, in, out, us));
    print_profile(p, us);
    fl_free(us);
  }
  fl_engine_destroy(e);
  for (uint32_t i = 0; i < n_weights; i++) b->release(b, (void *)(uintptr_t)weights[i]), weights[i] = NULL;
  for (int i = 0; i < (int)g->inputs.len; i++) b->release(b, (void *)(uintptr_t)in[i]);
  for (int i = 0; i < (int)g->outputs.len; i++) b->release(b, out[i]);
  fl_graph_destroy(g);
  fl_free(text);
}

int main(int argc, char **argv) {
  const fl_backend *backend;
  const fl_cuda_device *device;
  fl_pool *pool;
  bool profile = argc > 1 && !strcmp(argv[1], "-p");
  fl_bench_check(fl_cuda_backend(0, &backend));
  fl_bench_check(fl_cuda_device_open(0, &device));
  fl_bench_check(fl_cuda_check(device->api->cuCtxPushCurrent_v2(device->context), "context"));
  fl_bench_check(fl_pool_create(fl_pool_default_threads(), &pool));
  printf("%s\n", device->name);
  for (int i = profile ? 2 : 1; i < argc; i++) bench(argv[i], backend, device, pool, profile);
  fl_pool_destroy(pool);
  return 0;
}
