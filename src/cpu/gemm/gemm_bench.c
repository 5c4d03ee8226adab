/* GFLOP/s of products and convolutions at the shapes of well-known models: gemm_bench [threads] [filter] [ms]. */
#include <time.h>

#include "cpu/kernel_case.h"
#include "cpu/product_test.h"

/* With one thread its own time, which a busy machine changes less. */
static clockid_t the_clock = CLOCK_MONOTONIC;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(the_clock, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static double budget_ms = 60;

/* Best of many runs; `flush` between them would measure memory instead. */
static double best_ms(product_runner *r, fl_pool *pool) {
  double best = 1e30, began = now_ms();
  fl_pool_hold(pool);
  do {
    const double t0 = now_ms();
    product_run(r, pool);
    const double t = now_ms() - t0;
    if (t < best) best = t;
  } while (now_ms() - began < budget_ms);
  fl_pool_release(pool);
  return best;
}

static void report(const char *label, const product *q, double flops, fl_pool *pool) {
  printf("%-34s", label);
  for (int id = 0; id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->op != q->p.op || k->isa == FL_ISA_PORTABLE || k->isa > fl_cpu_isa()) continue;
    if (k->isa != FL_ISA_AVX512 && fl_cpu_isa() >= FL_ISA_AVX512) continue;
    product_runner r;
    if (!product_prepare(&r, q, k->name)) {
      const double ms = best_ms(&r, pool);
      printf("  %s %.3f ms %.0f GF/s (est %.2f)", k->name, ms, flops / ms * 1e-6, r.plan.cost_us * 1e-3);
    }
    product_release(&r);
  }
  printf("\n");
  fflush(stdout);
}

static void matmul(const char *model, int64_t m, int64_t k, int64_t n, fl_act act, fl_pool *pool, const char *filter) {
  char label[64];
  snprintf(label, sizeof label, "%s m%d k%d n%d", model, (int)m, (int)k, (int)n);
  if (filter && !strstr(label, filter)) return;
  product q;
  product_begin(&q, FL_OP_MATMUL);
  const int64_t a[2] = {m, k}, b[2] = {n, k}, out[2] = {m, n};
  product_operand(&q, 0, 2, a, NULL);
  product_operand(&q, 1, 2, b, NULL);
  product_operand(&q, 2, 1, &n, NULL);
  q.p.constant[1] = q.p.constant[2] = true;
  q.p.out[0] = fl_type_make(FL_F32, 2, out);
  fl_attr_set_int(&q.attrs, "trans_b", 'b', 1);
  product_act(&q, act, 0, 0);
  report(label, &q, 2.0 * (double)m * (double)k * (double)n, pool);
  product_end(&q);
}

/* The same in bf16. */
static void matmul_half(const char *model, int64_t m, int64_t k, int64_t n, fl_act act, fl_pool *pool,
                        const char *filter) {
  char label[64];
  snprintf(label, sizeof label, "bf16 %s m%d k%d n%d", model, (int)m, (int)k, (int)n);
  if ((filter && !strstr(label, filter)) || fl_cpu_isa() < FL_ISA_AVX512_BF16) return;
  kcase *c = kcase_new(FL_OP_MATMUL);
  kcase_in(c, FL_BF16, 2, (int64_t[]){m, k}, NULL);
  kcase_in(c, FL_BF16, 2, (int64_t[]){n, k}, NULL);
  kcase_in(c, FL_BF16, 1, &n, NULL);
  c->problem.constant[1] = c->problem.constant[2] = true;
  kcase_bool(c, "trans_b", true);
  (void)fl_attr_set_int(&c->attrs, "act", 'a', act);
  kready r;
  fl_tensor out[1];
  if (kcase_infer(c) && !kcase_ready(c, fl_kernel_get(fl_kernel_find("matmul_avx512_bf16")), pool, out, &r)) {
    double best = 1e30, began = now_ms();
    do {
      const double t0 = now_ms();
      kcase_exec(c, &r, pool, out);
      best = fmin(best, now_ms() - t0);
    } while (now_ms() - began < budget_ms);
    printf("%-34s  %.3f ms %.0f GF/s (est %.2f)\n", label, best, 2e-6 * (double)(m * k * n) / best,
           r.plan.cost_us * 1e-3);
    kcase_done(&r);
    kcase_free_out(c, out);
  }
  kcase_free(c);
}

static void conv(const char *model, int64_t c, int64_t hw, int64_t o, int64_t k, int64_t stride, int64_t pad,
                 int64_t groups, fl_pool *pool, const char *filter) {
  char label[64];
  snprintf(label, sizeof label, "%s c%d %dx%d o%d k%d s%d g%d", model, (int)c, (int)hw, (int)hw, (int)o, (int)k,
           (int)stride, (int)groups);
  if (filter && !strstr(label, filter)) return;
  product q;
  product_begin(&q, FL_OP_CONV2D);
  const int64_t x[4] = {1, c, hw, hw}, w[4] = {o, c / groups, k, k}, oh = (hw + 2 * pad - k) / stride + 1;
  const int64_t out[4] = {1, o, oh, oh}, strides[2] = {stride, stride}, pads[4] = {pad, pad, pad, pad};
  product_operand(&q, 0, 4, x, NULL);
  product_operand(&q, 1, 4, w, NULL);
  product_operand(&q, 2, 1, &o, NULL);
  q.p.constant[1] = q.p.constant[2] = true;
  q.p.out[0] = fl_type_make(FL_F32, 4, out);
  fl_attr_set_list(&q.attrs, "stride", strides, 2);
  fl_attr_set_list(&q.attrs, "pad", pads, 4);
  fl_attr_set_int(&q.attrs, "groups", 'i', groups);
  product_act(&q, FL_ACT_RELU, 0, 0);
  report(label, &q, 2.0 * (double)(o * oh * oh * (c / groups) * k * k), pool);
  product_end(&q);
}

static const struct {
  const char *model;
  int m, k, n;
  fl_act act;
} matmuls[] = {
    {"bert", 128, 768, 768, FL_ACT_NONE},   {"bert", 128, 768, 2304, FL_ACT_NONE},
    {"bert", 128, 768, 3072, FL_ACT_GELU},  {"bert", 128, 3072, 768, FL_ACT_NONE},
    {"bert", 128, 768, 30522, FL_ACT_NONE}, {"vit", 197, 384, 1152, FL_ACT_NONE},
    {"vit", 197, 384, 384, FL_ACT_NONE},    {"vit", 197, 384, 1536, FL_ACT_GELU},
    {"vit", 197, 1536, 384, FL_ACT_NONE},   {"minilm", 16, 384, 384, FL_ACT_NONE},
    {"minilm", 16, 384, 1536, FL_ACT_GELU}, {"minilm", 16, 1536, 384, FL_ACT_NONE},
    {"minilm", 64, 384, 1536, FL_ACT_GELU}, {"head", 1, 512, 1000, FL_ACT_NONE},
    {"head", 1, 2048, 1000, FL_ACT_NONE},   {"head", 1, 1280, 1000, FL_ACT_NONE},
    {"decode", 1, 768, 3072, FL_ACT_NONE},  {"decode", 4, 768, 3072, FL_ACT_NONE},
};

static const struct {
  const char *model;
  int c, hw, o, k, stride, pad, groups;
} convs[] = {
    {"resnet", 3, 224, 64, 7, 2, 3, 1},       {"resnet", 64, 56, 64, 3, 1, 1, 1},
    {"resnet", 64, 56, 128, 3, 2, 1, 1},      {"resnet", 128, 28, 128, 3, 1, 1, 1},
    {"resnet", 128, 28, 256, 3, 2, 1, 1},     {"resnet", 256, 14, 256, 3, 1, 1, 1},
    {"resnet", 256, 14, 512, 3, 2, 1, 1},     {"resnet", 512, 7, 512, 3, 1, 1, 1},
    {"resnet", 64, 56, 128, 1, 2, 0, 1},      {"resnet50", 64, 56, 64, 1, 1, 0, 1},
    {"resnet50", 64, 56, 256, 1, 1, 0, 1},    {"resnet50", 256, 56, 64, 1, 1, 0, 1},
    {"resnet50", 512, 28, 128, 1, 1, 0, 1},   {"resnet50", 128, 28, 512, 1, 1, 0, 1},
    {"resnet50", 1024, 14, 256, 1, 1, 0, 1},  {"resnet50", 256, 14, 1024, 1, 1, 0, 1},
    {"resnet50", 2048, 7, 512, 1, 1, 0, 1},   {"resnet50", 512, 7, 2048, 1, 1, 0, 1},
    {"resnet50", 1024, 14, 2048, 1, 2, 0, 1}, {"squeeze", 3, 224, 64, 3, 2, 0, 1},
    {"squeeze", 16, 55, 64, 3, 1, 1, 1},      {"squeeze", 16, 55, 64, 1, 1, 0, 1},
    {"squeeze", 128, 55, 16, 1, 1, 0, 1},     {"squeeze", 64, 13, 256, 3, 1, 1, 1},
    {"squeeze", 512, 13, 1000, 1, 1, 0, 1},   {"mobile", 3, 224, 32, 3, 2, 1, 1},
    {"mobile", 32, 112, 32, 3, 1, 1, 32},     {"mobile", 96, 112, 96, 3, 2, 1, 96},
    {"mobile", 144, 56, 144, 3, 1, 1, 144},   {"mobile", 384, 14, 384, 3, 1, 1, 384},
    {"mobile", 960, 7, 960, 3, 1, 1, 960},    {"mobile", 32, 112, 16, 1, 1, 0, 1},
    {"mobile", 16, 112, 96, 1, 1, 0, 1},      {"mobile", 24, 56, 144, 1, 1, 0, 1},
    {"mobile", 144, 56, 24, 1, 1, 0, 1},      {"mobile", 320, 7, 1280, 1, 1, 0, 1},
    {"vit", 3, 224, 384, 16, 16, 0, 1},       {"resnext", 128, 56, 128, 3, 1, 1, 32},
    {"resnext", 256, 56, 256, 3, 2, 1, 32},   {"resnext", 256, 28, 256, 3, 1, 1, 32},
    {"resnext", 512, 28, 512, 3, 2, 1, 32},   {"resnext", 512, 14, 512, 3, 1, 1, 32},
    {"resnext", 1024, 14, 1024, 3, 2, 1, 32}, {"resnext", 1024, 7, 1024, 3, 1, 1, 32},
    {"regnet", 224, 112, 224, 3, 2, 1, 2},    {"regnet", 224, 56, 224, 3, 1, 1, 2},
    {"regnet", 448, 28, 448, 3, 1, 1, 4},     {"regnet", 896, 14, 896, 3, 1, 1, 8},
    {"regnet", 2240, 7, 2240, 3, 1, 1, 20},   {"regnet", 192, 28, 192, 3, 1, 1, 8},
    {"regnet", 432, 14, 432, 3, 1, 1, 9},
};

int main(int argc, char **argv) {
  fl_pool *pool;
  fl_status s = fl_pool_create(argc > 1 ? atoi(argv[1]) : fl_pool_default_threads(), &pool);
  if (s) return 1;
  if (fl_pool_threads(pool) == 1) the_clock = CLOCK_THREAD_CPUTIME_ID;
  const char *filter = argc > 2 && *argv[2] ? argv[2] : NULL;
  if (argc > 3) budget_ms = atof(argv[3]);
  for (size_t i = 0; i < sizeof matmuls / sizeof *matmuls; i++)
    matmul(matmuls[i].model, matmuls[i].m, matmuls[i].k, matmuls[i].n, matmuls[i].act, pool, filter);
  for (size_t i = 0; i < sizeof matmuls / sizeof *matmuls; i++)
    matmul_half(matmuls[i].model, matmuls[i].m, matmuls[i].k, matmuls[i].n, matmuls[i].act, pool, filter);
  for (size_t i = 0; i < sizeof convs / sizeof *convs; i++)
    conv(convs[i].model, convs[i].c, convs[i].hw, convs[i].o, convs[i].k, convs[i].stride, convs[i].pad,
         convs[i].groups, pool, filter);
  fl_pool_destroy(pool);
  return 0;
}
