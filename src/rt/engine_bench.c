/* What building and running whole networks costs: a chain of tiny steps, ResNet-50 and a BERT encoder, as they are
 * after the passes. engine_bench [threads [tactic budget in ms]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bench.h"
#include "rt/engine.h"

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Of all threads: what a busy machine does not change much. */
static double cpu_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

typedef struct net {
  fl_graph *g;
  const void *weights[512];
  uint32_t n_weights;
} net;

static fl_vid weight(net *n, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  fl_type t = fl_type_make(FL_F32, rank, (int64_t[]){a, b, c, d});
  int64_t strides[FL_MAX_RANK];
  fl_vid v;
  fl_strides_contiguous(&t, strides);
  size_t count = (size_t)fl_type_numel(&t);
  float *f = fl_malloc_aligned(count * sizeof *f);
  if (!f) exit(1);
  for (size_t i = 0; i < count; i++) f[i] = (float)(rand() % 2001 - 1000) * 5e-5f;
  fl_bench_check(fl_graph_weight(n->g, &t, strides, n->n_weights, f, &v));
  n->weights[n->n_weights++] = f;
  return v;
}

static fl_vid input(net *n, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  fl_type t = fl_type_make(FL_F32, rank, (int64_t[]){a, b, c, d});
  int64_t strides[FL_MAX_RANK];
  fl_vid v;
  fl_strides_contiguous(&t, strides);
  fl_bench_check(fl_graph_input(n->g, &t, strides, &v));
  return v;
}

static fl_vid op(net *n, fl_op o, const fl_vid *in, int n_in, const fl_attrs *a) {
  fl_vid v;
  fl_bench_check(fl_graph_op(n->g, o, in, n_in, a, &v));
  return v;
}

static fl_vid with_list(net *n, fl_op o, fl_vid x, const char *key, int count, const int64_t *list) {
  fl_attrs a = {0};
  fl_attr_set_list(&a, key, list, count);
  return op(n, o, &x, 1, &a);
}

/* --- ResNet-50 --- */

static fl_vid conv(net *n, fl_vid x, int64_t out, int64_t k, int64_t stride, fl_vid residual, fl_act act) {
  fl_attrs a = {0};
  int64_t p = k / 2;
  fl_attr_set_list(&a, "stride", (int64_t[]){stride, stride}, 2);
  fl_attr_set_list(&a, "pad", (int64_t[]){p, p, p, p}, 4);
  fl_attr_set_list(&a, "dilation", (int64_t[]){1, 1}, 2);
  fl_attr_set_int(&a, "groups", 'i', 1);
  fl_attr_set_int(&a, "act", 'a', act);
  fl_vid in[4] = {x, weight(n, 4, out, n->g->values.data[x].type.dims[1], k, k), weight(n, 1, out, 0, 0, 0), residual};
  return op(n, FL_OP_CONV2D, in, 4, &a);
}

static fl_vid bottleneck(net *n, fl_vid x, int64_t width, int64_t stride) {
  fl_vid y = conv(n, x, width, 1, 1, FL_NO_VALUE, FL_ACT_RELU);
  y = conv(n, y, width, 3, stride, FL_NO_VALUE, FL_ACT_RELU);
  if (stride != 1 || n->g->values.data[x].type.dims[1] != 4 * width)
    x = conv(n, x, 4 * width, 1, stride, FL_NO_VALUE, FL_ACT_NONE);
  return conv(n, y, 4 * width, 1, 1, x, FL_ACT_RELU);
}

static fl_vid resnet50(net *n) {
  static const int blocks[] = {3, 4, 6, 3};
  fl_vid x = conv(n, input(n, 4, 1, 3, 224, 224), 64, 7, 2, FL_NO_VALUE, FL_ACT_RELU);
  fl_attrs a = {0};
  fl_attr_set_list(&a, "kernel", (int64_t[]){3, 3}, 2);
  fl_attr_set_list(&a, "stride", (int64_t[]){2, 2}, 2);
  fl_attr_set_list(&a, "pad", (int64_t[]){1, 1}, 2);
  fl_attr_set_list(&a, "dilation", (int64_t[]){1, 1}, 2);
  fl_attr_set_int(&a, "ceil", 'b', 0);
  x = op(n, FL_OP_MAX_POOL2D, &x, 1, &a);
  for (int stage = 0; stage < 4; stage++)
    for (int i = 0; i < blocks[stage]; i++) x = bottleneck(n, x, 64 << stage, stage && !i ? 2 : 1);
  a = (fl_attrs){0};
  fl_attr_set_list(&a, "axes", (int64_t[]){2, 3}, 2);
  fl_attr_set_int(&a, "keepdim", 'b', 0);
  x = op(n, FL_OP_MEAN, &x, 1, &a);
  a = (fl_attrs){0};
  fl_attr_set_int(&a, "trans_b", 'b', 1);
  fl_vid in[3] = {x, weight(n, 2, 1000, 2048, 0, 0), weight(n, 1, 1000, 0, 0, 0)};
  return op(n, FL_OP_MATMUL, in, 3, &a);
}

/* --- BERT --- */

static fl_vid linear(net *n, fl_vid x, int64_t out, fl_vid residual, fl_act act) {
  const fl_type *t = &n->g->values.data[x].type;
  int64_t in_features = t->dims[t->rank - 1];
  fl_attrs a = {0};
  fl_attr_set_int(&a, "trans_b", 'b', 1);
  fl_attr_set_int(&a, "act", 'a', act);
  fl_vid in[4] = {x, weight(n, 2, out, in_features, 0, 0), weight(n, 1, out, 0, 0, 0), residual};
  return op(n, FL_OP_MATMUL, in, 4, &a);
}

static fl_vid layer_norm(net *n, fl_vid x) {
  fl_attrs a = {0};
  fl_attr_set_int(&a, "axes", 'i', 1);
  fl_attr_set_float(&a, "eps", 1e-5);
  fl_vid in[3] = {x, weight(n, 1, 768, 0, 0, 0), weight(n, 1, 768, 0, 0, 0)};
  return op(n, FL_OP_LAYER_NORM, in, 3, &a);
}

static fl_vid heads(net *n, fl_vid x) {
  x = with_list(n, FL_OP_RESHAPE, x, "dims", 4, (int64_t[]){1, 128, 12, 64});
  return with_list(n, FL_OP_PERMUTE, x, "perm", 4, (int64_t[]){0, 2, 1, 3});
}

static fl_vid bert(net *n) {
  fl_vid x = input(n, 3, 1, 128, 768, 0);
  for (int i = 0; i < 12; i++) {
    fl_attrs a = {0};
    fl_vid qkv[3];
    for (int k = 0; k < 3; k++) qkv[k] = heads(n, linear(n, x, 768, FL_NO_VALUE, FL_ACT_NONE));
    fl_attr_set_float(&a, "scale", 0.125);
    fl_attr_set_int(&a, "causal", 'b', 0);
    fl_vid y = op(n, FL_OP_ATTENTION, qkv, 3, &a);
    y = with_list(n, FL_OP_PERMUTE, y, "perm", 4, (int64_t[]){0, 2, 1, 3});
    y = with_list(n, FL_OP_RESHAPE, y, "dims", 3, (int64_t[]){1, 128, 768});
    x = layer_norm(n, linear(n, y, 768, x, FL_ACT_NONE));
    y = linear(n, x, 3072, FL_NO_VALUE, FL_ACT_GELU);
    x = layer_norm(n, linear(n, y, 768, x, FL_ACT_NONE));
  }
  return x;
}

static fl_vid chain(net *n) {
  fl_vid x = input(n, 1, 64, 0, 0, 0);
  fl_attrs a = {0};
  fl_attr_set_int(&a, "axis", 'i', 0);
  for (int i = 0; i < 200; i++) x = op(n, FL_OP_SOFTMAX, &x, 1, &a);
  return x;
}

/* --- measuring --- */

static void print_steps(const fl_plan *p, const double *us, int runs) {
  typedef struct line {
    const char *name;
    double us;
    int count;
  } line;
  line lines[64];
  int n = 0;
  for (size_t i = 0; i < p->run.len; i++) {
    const fl_step *s = &p->run.data[i];
    const char *name = s->kind == FL_STEP_COPY ? "copy" : p->backend->kernel(s->kernel)->name;
    int k = 0;
    while (k < n && strcmp(lines[k].name, name)) k++;
    if (k == n) lines[n++] = (line){name, 0, 0};
    lines[k].us += us[i] / runs;
    lines[k].count++;
  }
  for (int k = 0; k < n; k++) printf("    %3d x %-28s %9.1f us\n", lines[k].count, lines[k].name, lines[k].us);
}

static void bench(const char *name, fl_vid (*make)(net *), const fl_plan_options *options) {
  net n = {0};
  fl_plan *plan = NULL;
  fl_engine *e = NULL;
  fl_bench_check(fl_graph_create(&n.g));
  fl_bench_check(fl_graph_output(n.g, make(&n)));
  double began = now_ms();
  fl_bench_check(fl_plan_build(n.g, options, &plan));
  double planned = now_ms(), planned_cpu = cpu_ms();
  fl_bench_check(fl_engine_create(plan, n.weights, NULL, n.n_weights, options->pool, &e));
  double created = now_ms(), created_cpu = cpu_ms();
  float *x = fl_malloc_aligned(fl_type_bytes(&plan->inputs[0].type));
  float *y = fl_malloc_aligned(fl_type_bytes(&plan->outputs[0].type));
  double *us = calloc(plan->run.len, sizeof *us);
  if (!x || !y || !us) exit(1);
  for (int64_t i = 0; i < fl_type_numel(&plan->inputs[0].type); i++) x[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
  double best = 1e30;
  for (int i = 0; i < 20; i++) {
    double t = now_ms();
    fl_bench_check(fl_engine_run(e, (const void *[]){x}, (void *[]){y}));
    t = now_ms() - t;
    best = t < best ? t : best;
  }
  for (int i = 0; i < 5; i++) fl_bench_check(fl_engine_profile(e, (const void *[]){x}, (void *[]){y}, us));
  printf("%s: plan %.1f ms, create %.1f ms (cpu %.1f), run %.3f ms; %zu steps, arena %.1f MB (%.1f unshared), const "
         "%.1f MB\n",
         name, planned - began, created - planned, created_cpu - planned_cpu, best, plan->run.len,
         (double)plan->arena_bytes / 1e6, (double)plan->arena_unshared_bytes / 1e6, (double)plan->const_bytes / 1e6);
  print_steps(plan, us, 5);
  fl_engine_destroy(e);
  fl_graph_destroy(n.g);
}

int main(int argc, char **argv) {
  fl_plan_options options = {.threads = argc > 1 ? atoi(argv[1]) : fl_pool_default_threads(),
                             .tactic_budget_ms = argc > 2 ? atof(argv[2]) : 0};
  fl_bench_check(fl_pool_create(options.threads, &options.pool));
  bench("chain", chain, &options);
  bench("resnet50", resnet50, &options);
  bench("bert", bert, &options);
  fl_pool_destroy(options.pool);
  return 0;
}
