/* On the GPU: convolutions in every way that there is, against the CPU. Without one: that their sources are written. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/test.h"
#include "cpu/ref.h"
#include "cuda/conv.h"
#include "cuda/convs_case.h"
#include "rt/compile.h"

enum { CASES = sizeof cases / sizeof *cases };

/* All cases in one graph, so that all kernels are compiled at once: case i has the inputs x and residual, the weights 2 i (w)
 * and 2 i + 1 (bias), and result i. A residual that is `computed` first, channels-last, may be overwritten. */
static void write_graph(fl_text *t, const char *type, bool computed) {
  fl_text_add(t, "graph(");
  for (int i = 0; i < CASES; i++) {
    const conv_case *c = &cases[i];
    int64_t d[4];
    sscanf(c->x, "%" SCNd64 ",%" SCNd64 ",%" SCNd64 ",%" SCNd64, &d[0], &d[1], &d[2], &d[3]);
    int64_t o = strtol(c->w, NULL, 10);
    fl_text_add(t, "%s%%%d: %s[%s]", i ? ", " : "", 4 * i, type, c->x);
    if (c->nhwc)
      fl_text_add(t, " strides=[%" PRId64 ",1,%" PRId64 ",%" PRId64 "]", d[1] * d[2] * d[3], d[1] * d[3], d[1]);
    fl_text_add(t, ", %%%d: weight %d %s[%s], %%%d: weight %d %s[%" PRId64 "]", 4 * i + 1, 2 * i, type, c->w, 4 * i + 2,
                2 * i + 1, type, o);
    fl_text_add(t, ", %%%d: %s[%s]", 4 * i + 3, type, c->y);
    sscanf(c->y, "%" SCNd64 ",%" SCNd64 ",%" SCNd64 ",%" SCNd64, &d[0], &d[1], &d[2], &d[3]);
    if (computed)
      fl_text_add(t, " strides=[%" PRId64 ",1,%" PRId64 ",%" PRId64 "]", d[1] * d[2] * d[3], d[1] * d[3], d[1]);
  }
  fl_text_add(t, ") {\n");
  for (int i = 0; i < CASES; i++) {
    int result = 4 * CASES + 2 * i;
    fl_text_add(t, " %%%d = neg(%%%d) : %s[%s]\n", result, 4 * i + 3, type, cases[i].y);
    fl_text_add(t, " %%%d = conv2d(%%%d, %%%d, %%%d, %%%d) %s : %s[%s]\n", result + 1, 4 * i, 4 * i + 1, 4 * i + 2,
                computed ? result : 4 * i + 3, cases[i].attrs, type, cases[i].y);
  }
  fl_text_add(t, " return ");
  for (int i = 0; i < CASES; i++) fl_text_add(t, "%s%%%d", i ? ", " : "", 4 * CASES + 2 * i + 1);
  fl_text_add(t, "\n}");
}

typedef struct memory {
  void *host[2 * CASES], *device[2 * CASES];
} memory;

static void fill(const fl_backend *b, const fl_type *t, void **host, void **device) {
  size_t bytes = fl_type_bytes(t);
  *host = fl_malloc_aligned(bytes + 1);
  *device = b->allocate(b, bytes);
  for (int64_t k = 0; k < fl_type_numel(t); k++) fl_ref_setf(*host, t->dtype, k, (rand() % 2001 - 1000) * 1e-3);
  FL_CHECK_OK(b->upload(b, *device, *host, bytes));
}

static void drop(const fl_backend *b, memory *m) {
  for (int i = 0; i < 2 * CASES; i++) {
    fl_free_aligned(m->host[i]);
    b->release(b, m->device[i]);
  }
}

static fl_engine *compile(const char *text, const fl_backend *b, fl_pool *pool, void *const *weights) {
  fl_graph *g = NULL;
  fl_engine *e = NULL;
  fl_plan_options options = {.threads = fl_pool_threads(pool), .pool = pool, .backend = b};
  FL_CHECK_OK(fl_graph_parse(text, &g));
  if (g) FL_CHECK_OK(fl_engine_compile(g, &options, (const void *const *)weights, NULL, 2 * CASES, NULL, &e));
  fl_graph_destroy(g);
  return e;
}

static double distance(const fl_type *t, const void *a, const void *b) {
  double difference = 0, size = 1e-30;
  for (int64_t i = 0; i < fl_type_numel(t); i++) {
    double x = fl_ref_getf(a, t->dtype, i), y = fl_ref_getf(b, t->dtype, i);
    difference += isfinite(x) ? (x - y) * (x - y) : 1e30;
    size += y * y;
  }
  return sqrt(difference / size);
}

static void check_way(const fl_backend *b, fl_engine *e, int way, const char *type, const memory *inputs,
                      void *const *want, double tolerance) {
  const fl_plan *p = fl_engine_plan(e);
  void *got[CASES], *host = NULL;
  for (int i = 0; i < CASES; i++) got[i] = b->allocate(b, fl_type_bytes(&p->outputs[i].type));
  FL_CHECK_OK(fl_engine_run(e, (const void *const *)inputs->device, got));
  for (int i = 0; i < CASES; i++) {
    const fl_type *t = &p->outputs[i].type;
    host = fl_malloc_aligned(fl_type_bytes(t) + 1);
    FL_CHECK_OK(fl_cuda_download(b, host, got[i], fl_type_bytes(t)));
    double d = distance(t, host, want[i]);
    FL_CHECK_MSG(d < tolerance, "%s, way %d: error %g in case %d: [%s] * [%s] %s", type, way, d, i, cases[i].x,
                 cases[i].w, cases[i].attrs);
    fl_free_aligned(host);
    b->release(b, got[i]);
  }
}

/* What is not a number makes the same results none as on the CPU, whatever activation follows; and with cuDNN, where some engines
 * multiply zeros with it, perhaps others too. */
static void check_nans(const fl_backend *b, fl_engine *e, int way, const char *type, const memory *inputs,
                       void *const *want) {
  const fl_plan *p = fl_engine_plan(e);
  void *got[CASES];
  for (int i = 0; i < CASES; i++) got[i] = b->allocate(b, fl_type_bytes(&p->outputs[i].type));
  FL_CHECK_OK(fl_engine_run(e, (const void *const *)inputs->device, got));
  for (int i = 0; i < CASES; i++) {
    const fl_type *t = &p->outputs[i].type;
    int64_t lost = 0, more = 0;
    void *host = fl_malloc_aligned(fl_type_bytes(t) + 1);
    FL_CHECK_OK(fl_cuda_download(b, host, got[i], fl_type_bytes(t)));
    for (int64_t k = 0; k < fl_type_numel(t); k++) {
      bool is = isnan(fl_ref_getf(host, t->dtype, k)), should = isnan(fl_ref_getf(want[i], t->dtype, k));
      lost += should && !is;
      more += is && !should;
    }
    if (way != FL_CONV_DIRECT && (way != FL_CONV_OWN || strcmp(type, "f32") == 0 || cases[i].library)) more = 0;
    FL_CHECK_MSG(lost + more == 0, "%s, way %d: NaN: %" PRId64 " lost, %" PRId64 " more in case %d: [%s] * [%s] %s",
                 type, way, lost, more, i, cases[i].x, cases[i].w, cases[i].attrs);
    fl_free_aligned(host);
    b->release(b, got[i]);
  }
}

/* One element of each image is not a number. */
static void poison(const fl_backend *b, const fl_graph *g, memory *inputs) {
  for (int i = 0; i < 2 * CASES; i += 2) {
    const fl_type *t = &g->values.data[g->inputs.data[i]].type;
    fl_ref_setf(inputs->host[i], t->dtype, fl_type_numel(t) / 2, (double)NAN);
    FL_CHECK_OK(b->upload(b, inputs->device[i], inputs->host[i], fl_type_bytes(t)));
  }
}

static void check_type(const fl_backend *b, fl_pool *pool, const char *type, bool computed, double tolerance) {
  static const int ways[] = {FL_CONV_OWN,   FL_CONV_GEMM,      FL_CONV_FUSED,  FL_CONV_FUSED + 1,
                             FL_CONV_PLAIN, FL_CONV_PLAIN + 1, FL_CONV_DIRECT, FL_CONV_WAYS};
  fl_text text = {0};
  memory inputs = {0}, poisoned = {0}, weights = {0};
  void *want[CASES], *nans[CASES];
  fl_graph *g = NULL;
  write_graph(&text, type, computed);
  FL_CHECK_OK(fl_graph_parse(text.data, &g));
  if (!g) return;
  for (int i = 0; i < 2 * CASES; i++)
    fill(b, &g->values.data[g->inputs.data[i]].type, &inputs.host[i], &inputs.device[i]);
  for (int i = 0; i < 2 * CASES; i++)
    fill(b, &g->values.data[g->inputs.data[i]].type, &poisoned.host[i], &poisoned.device[i]);
  poison(b, g, &poisoned);
  for (fl_vid v = 0; v < g->values.len; v++) {
    const fl_value *w = &g->values.data[v];
    if (w->kind == FL_VALUE_WEIGHT) fill(b, &w->type, &weights.host[w->slot], &weights.device[w->slot]);
  }
  fl_graph_destroy(g);
  fl_isa isa = fl_cpu_isa();
  fl_cpu_force_isa(FL_ISA_PORTABLE); /* others spread NaN over the tiles of Winograd's algorithm */
  fl_engine *cpu = compile(text.data, NULL, pool, weights.host);
  fl_cpu_force_isa(isa);
  for (int i = 0; i < CASES; i++) {
    want[i] = fl_malloc_aligned(fl_type_bytes(&fl_engine_plan(cpu)->outputs[i].type) + 1);
    nans[i] = fl_malloc_aligned(fl_type_bytes(&fl_engine_plan(cpu)->outputs[i].type) + 1);
  }
  FL_CHECK_OK(fl_engine_run(cpu, (const void *const *)inputs.host, want));
  FL_CHECK_OK(fl_engine_run(cpu, (const void *const *)poisoned.host, nans));
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    fl_cuda_conv_force(ways[i]);
    fl_engine *gpu = compile(text.data, b, pool, weights.device);
    if (gpu) check_way(b, gpu, ways[i], type, &inputs, want, tolerance);
    if (gpu) check_nans(b, gpu, ways[i], type, &poisoned, nans);
    printf("%s, way %d: %d checks, %d failed\n", type, ways[i], fl_test_checks_, fl_test_failed_);
    fflush(stdout);
    fl_engine_destroy(gpu);
  }
  fl_cuda_conv_force(FL_CONV_WAYS);
  for (int i = 0; i < CASES; i++) {
    fl_free_aligned(want[i]);
    fl_free_aligned(nans[i]);
  }
  fl_engine_destroy(cpu);
  drop(b, &inputs);
  drop(b, &poisoned);
  drop(b, &weights);
  fl_text_free(&text);
}

FL_TEST(every_way_gives_the_same) {
  const fl_backend *b = NULL;
  fl_pool *pool = NULL;
  fl_status s = fl_cuda_backend(0, &b);
  if (s) {
    printf("no GPU: %s\n", fl_status_message(s));
    fl_status_free(s);
    return;
  }
  FL_CHECK_OK(fl_pool_create(fl_pool_default_threads(), &pool));
  for (int computed = 0; computed < 2; computed++) {
    check_type(b, pool, "f16", computed, 5e-3);
    check_type(b, pool, "bf16", computed, 3e-2);
    check_type(b, pool, "f32", computed, 2e-3); /* libraries multiply f32 as TF32 where PyTorch does */
  }
  fl_pool_destroy(pool);
}

/* --- without a GPU --- */

static fl_cuda_conv conv(fl_dtype t, int64_t n, int64_t c, int64_t size, int64_t o, int64_t k, int64_t groups) {
  return (fl_cuda_conv){.dtype = t,
                        .n = n,
                        .c = c,
                        .h = size,
                        .w = size,
                        .o = o,
                        .oh = size,
                        .ow = size,
                        .kh = k,
                        .kw = k,
                        .sh = 1,
                        .sw = 1,
                        .dh = 1,
                        .dw = 1,
                        .top = k / 2,
                        .left = k / 2,
                        .groups = groups,
                        .cg = c / groups,
                        .og = o / groups,
                        .m = n * size * size,
                        .xs = {c * size * size, 1, c * size, c},
                        .yp = o,
                        .even = true,
                        .align = 16};
}

FL_TEST(which_are_ours) {
  fl_cuda_conv depthwise = conv(FL_F16, 8, 96, 14, 96, 3, 96), plain = conv(FL_F16, 8, 96, 14, 24, 1, 1),
               window = conv(FL_F16, 8, 64, 14, 64, 3, 1), single = conv(FL_F32, 8, 96, 14, 24, 1, 1),
               few = conv(FL_F32, 8, 96, 1, 24, 1, 1);
  FL_CHECK(fl_cuda_conv_is_ours(&depthwise, 70));
  FL_CHECK(fl_cuda_conv_is_ours(&plain, 90) && !fl_cuda_conv_is_ours(&plain, 75));
  FL_CHECK(!fl_cuda_conv_is_ours(&window, 90)); /* cuDNN's engines are better */
  window.act = FL_ACT_HARDSWISH;
  FL_CHECK(fl_cuda_conv_is_ours(&window, 90));
  FL_CHECK(!fl_cuda_conv_is_ours(&single, 90) && fl_cuda_conv_is_ours(&few, 90));
  FL_CHECK(fl_cuda_conv_is_plain(&plain) && !fl_cuda_conv_is_plain(&window));
  plain.xs[2] += 8; /* rows further apart than their pixels */
  FL_CHECK(!fl_cuda_conv_is_plain(&plain));
  depthwise.even = false; /* as a part of images that lie below each other */
  FL_CHECK(!fl_cuda_conv_is_ours(&depthwise, 90));
}

FL_TEST_MAIN(FL_RUN(which_are_ours) FL_RUN(every_way_gives_the_same))
