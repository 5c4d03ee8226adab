/* Graphs on the GPU against the same on the CPU, for the tests of this folder. */
#ifndef FL_CUDA_GPU_TEST_H
#define FL_CUDA_GPU_TEST_H

#include <math.h>
#include <stdlib.h>

#include "base/test.h"
#include "cpu/ref.h"
#include "cuda/device.h"
#include "rt/compile.h"

/* The text with another type for f32; F32 stays f32. */
static inline char *with_type(const char *text, const char *type) {
  char *copy = fl_calloc(strlen(text) * 2 + 1, 1), *to = copy;
  for (; copy && *text; text++) {
    if (!strncmp(text, "f32", 3)) {
      to += sprintf(to, "%s", type);
      text += 2;
    } else
      *to++ = !strncmp(text, "F32", 3) ? 'f' : *text;
  }
  return copy;
}

enum { MAX_VALUES = 16 };

typedef struct memory { /* of inputs, then weights: on the host and on the device */
  int n_inputs, n_weights;
  fl_type types[MAX_VALUES];
  void *host[MAX_VALUES], *device[MAX_VALUES];
} memory;

static inline void fill(memory *m, const fl_backend *backend, int i) {
  const fl_type *t = &m->types[i];
  for (int64_t k = 0; k < fl_type_numel(t); k++) {
    if (fl_dtype_is_float(t->dtype))
      fl_ref_setf(m->host[i], t->dtype, k, (rand() % 2001 - 1000) * 1e-3);
    else
      fl_ref_seti(m->host[i], t->dtype, k, rand() % (t->dtype == FL_BOOL ? 2 : 5));
  }
  FL_CHECK_OK(backend->upload(backend, m->device[i], m->host[i], fl_type_bytes(t)));
}

static inline void make_memory(memory *m, const fl_graph *g, const fl_backend *backend) {
  *m = (memory){.n_inputs = (int)g->inputs.len};
  for (size_t i = 0; i < g->inputs.len; i++) m->types[i] = g->values.data[g->inputs.data[i]].type;
  for (fl_vid v = 0; v < g->values.len; v++) {
    const fl_value *value = &g->values.data[v];
    if (value->kind != FL_VALUE_WEIGHT) continue;
    m->types[m->n_inputs + (int)value->slot] = value->type;
    if ((int)value->slot >= m->n_weights) m->n_weights = (int)value->slot + 1;
  }
  for (int i = 0; i < m->n_inputs + m->n_weights; i++) {
    m->host[i] = fl_malloc_aligned(fl_type_bytes(&m->types[i]) + 1);
    m->device[i] = backend->allocate(backend, fl_type_bytes(&m->types[i]));
    fill(m, backend, i);
  }
}

static inline void free_memory(memory *m, const fl_backend *backend) {
  for (int i = 0; i < m->n_inputs + m->n_weights; i++) {
    fl_free_aligned(m->host[i]);
    backend->release(backend, m->device[i]);
  }
}

static inline fl_status compile(const char *text, const fl_backend *backend, fl_pool *pool, const void *const *weights,
                                int n, fl_engine **out) {
  fl_graph *g = NULL;
  fl_plan_options options = {.threads = fl_pool_threads(pool), .pool = pool, .backend = backend};
  FL_TRY(fl_graph_parse(text, &g));
  fl_status s = fl_engine_compile(g, &options, weights, NULL, (uint32_t)n, NULL, out);
  fl_graph_destroy(g);
  return s;
}

/* ||a - b|| / ||b|| of what is finite in b; a huge value where a is not finite and b is. */
static inline double distance(const fl_type *t, const void *a, const void *b) {
  double difference = 0, size = 1e-30;
  for (int64_t i = 0; i < fl_type_numel(t); i++) {
    double x = fl_ref_getf(a, t->dtype, i), y = fl_ref_getf(b, t->dtype, i);
    if (!isfinite(y)) continue;
    difference += isfinite(x) ? (x - y) * (x - y) : 1e30;
    size += y * y;
  }
  return sqrt(difference / size);
}

static inline double compare(const fl_backend *backend, fl_engine *cpu, fl_engine *gpu, const memory *m) {
  const fl_plan *p = fl_engine_plan(gpu);
  void *want[4], *device[4], *got[4];
  double worst = 0;
  for (int i = 0; i < p->n_outputs; i++) {
    size_t bytes = fl_type_bytes(&p->outputs[i].type);
    want[i] = fl_malloc_aligned(bytes + 1);
    got[i] = fl_malloc_aligned(bytes + 1);
    device[i] = backend->allocate(backend, bytes);
    memset(got[i], 0xff, bytes);
    FL_CHECK_OK(backend->upload(backend, device[i], got[i], bytes));
  }
  FL_CHECK_OK(fl_engine_run(cpu, (const void *const *)m->host, want));
  fl_status s = fl_engine_run(gpu, (const void *const *)m->device, device);
  if (s) worst = 1e9;
  FL_CHECK_OK(s);
  for (int i = 0; i < p->n_outputs; i++) {
    const fl_type *t = &p->outputs[i].type;
    FL_CHECK_OK(fl_cuda_download(backend, got[i], device[i], fl_type_bytes(t)));
    double d = distance(t, got[i], want[i]);
    if (d > worst) worst = d;
    fl_free_aligned(want[i]);
    fl_free_aligned(got[i]);
    backend->release(backend, device[i]);
  }
  return worst;
}

/* The first run, a replay with other inputs, and one with other weights. */
static inline void check_graph(const char *text, const fl_backend *backend, fl_pool *pool, const char *type,
                               double tolerance) {
  fl_graph *g = NULL;
  fl_engine *cpu = NULL, *gpu = NULL;
  memory m;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  if (!g) return;
  make_memory(&m, g, backend);
  FL_CHECK_OK(compile(text, NULL, pool, (const void *const *)m.host + m.n_inputs, m.n_weights, &cpu));
  FL_CHECK_OK(compile(text, backend, pool, (const void *const *)m.device + m.n_inputs, m.n_weights, &gpu));
  double worst = 1e9;
  if (cpu && gpu) {
    worst = compare(backend, cpu, gpu, &m);
    for (int i = 0; i < m.n_inputs; i++) fill(&m, backend, i);
    worst = fmax(worst, compare(backend, cpu, gpu, &m));
    if (m.n_weights) {
      fill(&m, backend, m.n_inputs);
      FL_CHECK_OK(fl_engine_update(cpu, &(uint32_t){0}, (const void *const *)&m.host[m.n_inputs], NULL, 1));
      FL_CHECK_OK(fl_engine_update(gpu, &(uint32_t){0}, (const void *const *)&m.device[m.n_inputs], NULL, 1));
      worst = fmax(worst, compare(backend, cpu, gpu, &m));
    }
  }
  const char *first = strstr(text, "= ");
  printf("%s %-12.*s error %.2e\n", type, (int)strcspn(first + 2, "("), first + 2, worst);
  FL_CHECK_MSG(worst < tolerance, "%s: error %g in\n%s", type, worst, text);
  fl_engine_destroy(cpu);
  fl_engine_destroy(gpu);
  free_memory(&m, backend);
  fl_graph_destroy(g);
}

#endif
