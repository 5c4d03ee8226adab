/* Times of the kernels at the shapes of common models, every accepting row of an operator beside the others.
 * usage: kernels_bench [part of a case's name]    FRAMELIFT_NUM_THREADS sets the threads */
#include <stdio.h>
#include <time.h>

#include "cpu/kernel_case.h"

static fl_pool *pool;
static const char *only = "";

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static double best_of(kcase *c, kready *r, fl_tensor *out) {
  double best = 1e30, start = now_us();
  for (int i = 0; i < 2000 && (i < 3 || now_us() - start < 2e5); i++) {
    double t = now_us();
    kcase_exec(c, r, pool, out);
    t = now_us() - t;
    if (t < best) best = t;
  }
  return best;
}

/* Takes the case. */
static void bench(const char *name, kcase *c) {
  fl_tensor out[FL_PW_MAX_OUTPUTS];
  if (strstr(name, only) && kcase_infer(c)) {
    printf("%-34s", name);
    for (int id = 0; id < fl_kernel_count(); id++) {
      const fl_kernel *k = fl_kernel_get(id);
      kready r;
      if (k->op != c->problem.op || k->isa > fl_cpu_isa() || kcase_ready(c, k, pool, out, &r)) continue;
      bool slow = k->isa == FL_ISA_PORTABLE && r.plan.cost_us > 1e5;
      if (!slow) printf(" %9.1f us (%.1f) %s", best_of(c, &r, out), r.plan.cost_us, strrchr(k->name, '_') + 1);
      kcase_done(&r);
      kcase_free_out(c, out);
    }
    printf("\n");
  }
  kcase_free(c);
}

#define IN(c, ...) kcase_in(c, FL_F32, sizeof(int64_t[]){__VA_ARGS__} / 8, (int64_t[]){__VA_ARGS__}, NULL)

static fl_tensor *image(kcase *c, int64_t n, int64_t ch, int64_t h, int64_t w) {
  fl_type t = fl_type_make(FL_F32, 4, (int64_t[]){n, ch, h, w});
  int64_t s[4];
  fl_strides_channels_last(&t, s);
  return kcase_in(c, FL_F32, 4, t.dims, s);
}

static void attention(const char *name, fl_dtype t, int64_t B, int64_t H, int64_t S, int64_t T, int64_t D, int masked,
                      bool causal) {
  kcase *c = kcase_new(FL_OP_ATTENTION);
  kcase_in(c, t, 4, (int64_t[]){B, H, S, D}, (int64_t[]){S * H * D, D, H * D, 1});
  for (int i = 0; i < 2; i++) kcase_in(c, t, 4, (int64_t[]){B, H, T, D}, (int64_t[]){T * H * D, D, H * D, 1});
  if (masked == 1) kcase_in(c, FL_BOOL, 4, (int64_t[]){B, 1, S, T}, (int64_t[]){T, T, 0, 1});
  if (masked == 2) IN(c, 1, 1, S, T);
  kcase_bool(c, "causal", causal);
  kcase_float(c, "scale", 1 / sqrt((double)D));
  bench(name, c);
}

static void unary(const char *name, fl_op op, int64_t rows, int64_t n) {
  kcase *c = kcase_new(FL_OP_POINTWISE);
  IN(c, rows, n);
  kcase_instr(c, op, FL_F32, 0, -1, -1);
  bench(name, c);
}

static void norm(const char *name, fl_op op, int64_t rows, int64_t n) {
  kcase *c = kcase_new(op);
  IN(c, rows, n);
  IN(c, n);
  if (op == FL_OP_LAYER_NORM) IN(c, n);
  kcase_int(c, "axes", 1);
  kcase_float(c, "eps", 1e-5);
  bench(name, c);
}

static void pool2d(const char *name, fl_op op, int64_t ch, int64_t hw, int64_t k, int64_t stride, int64_t pad) {
  kcase *c = kcase_new(op);
  image(c, 1, ch, hw, hw);
  kcase_list(c, "kernel", k, k);
  kcase_list(c, "stride", stride, stride);
  kcase_list(c, "pad", pad, pad);
  kcase_bool(c, "ceil", false);
  if (op == FL_OP_MAX_POOL2D)
    kcase_list(c, "dilation", 1, 1);
  else {
    kcase_bool(c, "include_pad", true);
    kcase_int(c, "divisor", 0);
  }
  bench(name, c);
}

static void reduce(const char *name, fl_op op, int64_t a, int64_t b, int64_t d, int64_t axis) {
  kcase *c = kcase_new(op);
  IN(c, a, b, d);
  kcase_list(c, "axes", axis);
  kcase_bool(c, "keepdim", false);
  bench(name, c);
}

static void softmax(const char *name, int64_t rows, int64_t n) {
  kcase *c = kcase_new(FL_OP_SOFTMAX);
  IN(c, rows, n);
  kcase_int(c, "axis", 1);
  bench(name, c);
}

int main(int argc, char **argv) {
  if (argc > 1) only = argv[1];
  fl_status s = fl_pool_create(fl_pool_default_threads(), &pool);
  if (s) return 1;
  attention("attention bert 1x12x128x64", FL_F32, 1, 12, 128, 128, 64, 0, false);
  attention("attention vit 1x6x197x64", FL_F32, 1, 6, 197, 197, 64, 0, false);
  attention("attention minilm 4x12x32x32 mask", FL_F32, 4, 12, 32, 32, 32, 1, false);
  attention("attention gpt 1x12x1024x64 causal", FL_F32, 1, 12, 1024, 1024, 64, 0, true);
  attention("attention 1x12x512x64 mask", FL_F32, 1, 12, 512, 512, 64, 2, false);
  attention("attention decode 1x32x1x1024x128", FL_F32, 1, 32, 1, 1024, 128, 0, false);
  attention("attention sd 1x8x1024x40", FL_F32, 1, 8, 1024, 1024, 40, 0, false);
  attention("attention bf16 bert 1x12x128x64", FL_BF16, 1, 12, 128, 128, 64, 0, false);
  attention("attention bf16 gpt 1x12x1024x64 causal", FL_BF16, 1, 12, 1024, 1024, 64, 0, true);
  attention("attention bf16 1x12x512x64 mask", FL_BF16, 1, 12, 512, 512, 64, 2, false);
  attention("attention bf16 decode 1x32x1x1024x128", FL_BF16, 1, 32, 1, 1024, 128, 0, false);
  norm("layer_norm 128x768", FL_OP_LAYER_NORM, 128, 768);
  norm("layer_norm 197x384", FL_OP_LAYER_NORM, 197, 384);
  norm("rms_norm 128x4096", FL_OP_RMS_NORM, 128, 4096);
  unary("pointwise relu 128x3072", FL_OP_RELU, 128, 3072);
  unary("pointwise gelu 128x3072", FL_OP_GELU, 128, 3072);
  unary("pointwise silu 128x3072", FL_OP_SILU, 128, 3072);
  kcase *c = kcase_new(FL_OP_POINTWISE);
  IN(c, 128, 768), IN(c, 128, 768);
  kcase_instr(c, FL_OP_ADD, FL_F32, 0, 1, -1);
  bench("pointwise add 128x768", c);
  c = kcase_new(FL_OP_POINTWISE);
  image(c, 1, 64, 56, 56), IN(c, 64, 1, 1), IN(c, 64, 1, 1);
  kcase_instr(c, FL_OP_MUL, FL_F32, 0, 1, -1), kcase_instr(c, FL_OP_ADD, FL_F32, 3, 2, -1);
  kcase_instr(c, FL_OP_RELU, FL_F32, 4, -1, -1);
  bench("pointwise affine relu 64x56x56 nhwc", c);
  c = kcase_new(FL_OP_POINTWISE);
  kcase_in(c, FL_I64, 2, (int64_t[]){512, 1}, NULL), kcase_in(c, FL_I64, 2, (int64_t[]){1, 512}, NULL);
  kcase_in(c, FL_BOOL, 2, (int64_t[]){1, 512}, NULL);
  kcase_instr(c, FL_OP_GE, FL_BOOL, 0, 1, -1), kcase_instr(c, FL_OP_AND, FL_BOOL, 3, 2, -1);
  bench("pointwise mask 512x512 i64", c);
  softmax("softmax 1536x128", 1536, 128);
  softmax("softmax 1x50257", 1, 50257);
  pool2d("max_pool2d 64x112x112 k3 s2", FL_OP_MAX_POOL2D, 64, 112, 3, 2, 1);
  pool2d("avg_pool2d 128x56x56 k2 s2", FL_OP_AVG_POOL2D, 128, 56, 2, 2, 0);
  c = kcase_new(FL_OP_ADAPTIVE_AVG_POOL2D);
  image(c, 1, 2048, 7, 7);
  kcase_list(c, "out", 1, 1);
  bench("adaptive_avg_pool2d 2048x7x7", c);
  c = kcase_new(FL_OP_MEAN);
  image(c, 1, 1280, 7, 7);
  kcase_list(c, "axes", 2, 3);
  kcase_bool(c, "keepdim", false);
  bench("mean 1280x7x7 nhwc over hw", c);
  reduce("sum 64x128x256 axis 2", FL_OP_SUM, 64, 128, 256, 2);
  reduce("mean 64x128x256 axis 1", FL_OP_MEAN, 64, 128, 256, 1);
  reduce("amax 64x128x256 axis 0", FL_OP_AMAX, 64, 128, 256, 0);
  reduce("argmax 1x1x50257", FL_OP_ARGMAX, 1, 1, 50257, 2);
  c = kcase_new(FL_OP_CAT);
  for (int i = 0; i < 4; i++) image(c, 1, 128, 28, 28);
  kcase_int(c, "axis", 1);
  bench("cat 4x128x28x28 nhwc", c);
  c = kcase_new(FL_OP_EMBEDDING);
  IN(c, 30522, 768);
  kcase_in(c, FL_I64, 2, (int64_t[]){1, 128}, NULL);
  bench("embedding 128 of 768", c);
  c = kcase_new(FL_OP_RESIZE2D);
  image(c, 1, 128, 32, 32);
  kcase_list(c, "out", 64, 64);
  kcase_bool(c, "bilinear", true);
  kcase_bool(c, "align_corners", false);
  kcase_float(c, "scale_h", 0);
  kcase_float(c, "scale_w", 0);
  bench("resize2d bilinear 128x32 to 64", c);
  c = kcase_new(FL_OP_PAD);
  image(c, 1, 64, 56, 56);
  kcase_list(c, "pads", 0, 0, 0, 0, 1, 1, 1, 1);
  kcase_float(c, "value", 0);
  bench("pad 64x56x56 nhwc", c);
  fl_pool_destroy(pool);
  return 0;
}
