/* What attention alone costs: attention_bench [cpu [TYPE]]
 *
 * A call of one attention and a call of 21 in a row, each taking the result before it as queries; the difference is 20
 * times one. Medians. On the GPU of f16, on the CPU of f32, unless told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bench.h"
#include "cuda/device.h"
#include "rt/compile.h"

enum { ROUNDS = 15, MORE = 20, MAX_INPUTS = 4 };

static const struct {
  const char *name;
  int b, h, g, s, t, d;
  bool masked, causal;
} shapes[] = {
    {"BERT 1x12x512x64", 1, 12, 12, 512, 512, 64, false, false},
    {"ViT-S 8x6x197x64", 8, 6, 6, 197, 197, 64, false, false},
    {"GPT-2 1x12x1024x64 causal", 1, 12, 12, 1024, 1024, 64, false, true},
    {"T5 1x8x2048x64 bias", 1, 8, 8, 2048, 2048, 64, true, false},
    {"decode 32 on 8 heads, 1x4096x128", 1, 32, 8, 1, 4096, 128, false, false},
    {"Llama 32 on 8 heads, 2048x128 causal", 1, 32, 8, 2048, 2048, 128, false, true},
    {"16x16x1024x64", 16, 16, 16, 1024, 1024, 64, false, false},
};

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static char *graph_text(size_t i, int count, const char *type) {
  size_t size = 1024 + (size_t)count * 160;
  char *text = fl_malloc(size), mask[80] = "";
  if (!text) exit(1);
  int b = shapes[i].b, h = shapes[i].h, g = shapes[i].g, s = shapes[i].s, t = shapes[i].t, d = shapes[i].d;
  if (shapes[i].masked) snprintf(mask, sizeof mask, ", %%3: %s[%d,%d,%d,%d]", type, b, h, s, t);
  int n = snprintf(text, size, "graph(%%0: %s[%d,%d,%d,%d], %%1: %s[%d,%d,%d,%d], %%2: %s[%d,%d,%d,%d]%s) {\n", type, b,
                   h, s, d, type, b, g, t, d, type, b, g, t, d, mask);
  for (int k = 0; k < count; k++)
    n += snprintf(text + n, size - (size_t)n,
                  " %%%d = attention(%%%d, %%1, %%2, %s) scale=%g causal=%d : %s[%d,%d,%d,%d]\n", 4 + k, k ? 3 + k : 0,
                  shapes[i].masked ? "%3" : "_", shapes[i].masked ? 1.0 : 0.125, shapes[i].causal, type, b, h, s, d);
  snprintf(text + n, size - (size_t)n, " return %%%d\n}\n", 3 + count);
  return text;
}

/* Floats of +-0.5, on the backend. */
static void *make_tensor(const fl_backend *b, const fl_type *t) {
  size_t bytes = fl_type_bytes(t);
  void *device = b->allocate(b, bytes), *host = fl_malloc(bytes + 1);
  static uint64_t seed = 1;
  if (!device || !host) exit(1);
  for (int64_t i = 0; i < fl_type_numel(t); i++) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    fl_element_set(t->dtype, host, i, (double)(seed >> 40) / (double)(1 << 24) - 0.5);
  }
  fl_bench_check(b->upload(b, device, host, bytes));
  fl_free(host);
  return device;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double time_graph(const char *text, const fl_backend *backend, const fl_cuda_device *device, fl_pool *pool) {
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  fl_plan_options options = {.threads = fl_pool_threads(pool), .pool = pool, .backend = backend};
  const void *in[MAX_INPUTS];
  double us[ROUNDS];
  fl_bench_check(fl_graph_parse(text, &g));
  fl_bench_check(fl_engine_compile(g, &options, NULL, NULL, 0, NULL, &e));
  const fl_plan *p = fl_engine_plan(e);
  for (int i = 0; i < p->n_inputs; i++) in[i] = make_tensor(backend, &p->inputs[i].type);
  void *out = make_tensor(backend, &p->outputs[0].type);
  for (int r = -2; r < ROUNDS; r++) { /* two to compile and to wake up */
    double began = now_us();
    fl_bench_check(fl_engine_run(e, in, &out));
    if (device) fl_bench_check(fl_cuda_check(device->api->cuStreamSynchronize(NULL), "run"));
    if (r >= 0) us[r] = now_us() - began;
  }
  qsort(us, ROUNDS, sizeof *us, by_value);
  for (int i = 0; i < p->n_inputs; i++) backend->release(backend, (void *)(uintptr_t)in[i]);
  backend->release(backend, out);
  fl_engine_destroy(e);
  fl_graph_destroy(g);
  return us[ROUNDS / 2];
}

int main(int argc, char **argv) {
  bool cpu = argc > 1 && !strcmp(argv[1], "cpu");
  const char *type = argc > 2 ? argv[2] : cpu ? "f32" : "f16";
  const fl_backend *backend = &fl_backend_cpu;
  const fl_cuda_device *device = NULL;
  fl_pool *pool;
  if (!cpu) {
    fl_bench_check(fl_cuda_backend(0, &backend));
    fl_bench_check(fl_cuda_device_open(0, &device));
    fl_bench_check(fl_cuda_check(device->api->cuCtxPushCurrent_v2(device->context), "context"));
  }
  fl_bench_check(fl_pool_create(fl_pool_default_threads(), &pool));
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    char *one = graph_text(i, 1, type), *many = graph_text(i, 1 + MORE, type);
    double least = time_graph(one, backend, device, pool), most = time_graph(many, backend, device, pool);
    printf("%-40s %s %10.2f us\n", shapes[i].name, type, (most - least) / MORE);
    fflush(stdout);
    fl_free(one);
    fl_free(many);
  }
  fl_pool_destroy(pool);
  return 0;
}
