#include "cpu/product_test.h"

static fl_pool *pool;

typedef struct shape {
  int64_t n, c, h, w, o, kh, kw, stride, pad, dilation, groups;
  bool nhwc, bias, residual;
  fl_act act;
  int64_t more[4]; /* padding beside `pad`: top, left, bottom, right */
} shape;

static void make(product *q, const shape *s) {
  product_begin(q, FL_OP_CONV2D);
  const int64_t x[4] = {s->n, s->c, s->h, s->w}, w[4] = {s->o, s->c / s->groups, s->kh, s->kw};
  const fl_type t = fl_type_make(FL_F32, 4, x);
  int64_t strides[FL_MAX_RANK];
  fl_strides_channels_last(&t, strides);
  product_operand(q, 0, 4, x, s->nhwc ? strides : NULL);
  product_operand(q, 1, 4, w, NULL);
  q->p.constant[1] = true;
  const int64_t *more = s->more;
  const int64_t oh = (s->h + 2 * s->pad + more[0] + more[2] - s->dilation * (s->kh - 1) - 1) / s->stride + 1;
  const int64_t ow = (s->w + 2 * s->pad + more[1] + more[3] - s->dilation * (s->kw - 1) - 1) / s->stride + 1;
  const int64_t out[4] = {s->n, s->o, oh, ow};
  if (s->bias) product_operand(q, 2, 1, &s->o, NULL);
  if (s->residual) product_operand(q, 3, 4, out, NULL);
  q->p.out[0] = fl_type_make(FL_F32, 4, out);
  const int64_t stride[2] = {s->stride, s->stride}, dilation[2] = {s->dilation, s->dilation};
  const int64_t pad[4] = {s->pad + more[0], s->pad + more[1], s->pad + more[2], s->pad + more[3]};
  fl_attr_set_list(&q->attrs, "stride", stride, 2);
  fl_attr_set_list(&q->attrs, "pad", pad, 4);
  fl_attr_set_list(&q->attrs, "dilation", dilation, 2);
  fl_attr_set_int(&q->attrs, "groups", 'i', s->groups);
  product_act(q, s->act, -0.5, 0.75);
}

static const struct {
  const char *name;
  fl_isa isa;
  double limit;
} kernels[] = {
    {"conv2d_depthwise_avx512", FL_ISA_AVX512, 4e-6},   {"conv2d_depthwise_avx2", FL_ISA_AVX2, 4e-6},
    {"conv2d_winograd_f4_avx512", FL_ISA_AVX512, 2e-5}, {"conv2d_winograd_f4_avx2", FL_ISA_AVX2, 2e-5},
    {"conv2d_winograd_f2_avx512", FL_ISA_AVX512, 8e-6}, {"conv2d_winograd_f2_avx2", FL_ISA_AVX2, 8e-6},
    {"conv2d_grouped_avx512", FL_ISA_AVX512, 4e-6},     {"conv2d_grouped_avx2", FL_ISA_AVX2, 4e-6},
    {"conv2d_direct_avx512", FL_ISA_AVX512, 4e-6},      {"conv2d_direct_avx2", FL_ISA_AVX2, 4e-6},
    {"conv2d_gemm_avx512", FL_ISA_AVX512, 4e-6},        {"conv2d_gemm_avx2", FL_ISA_AVX2, 4e-6},
};

/* Every kernel that accepts, against the reference; returns how many did. */
static int check(const product *q, const char *what) {
  int accepted = 0;
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    if (fl_cpu_isa() < kernels[i].isa) continue;
    const double e = product_error(q, kernels[i].name, "conv2d_ref", pool);
    if (e < 0) continue;
    accepted++;
    const int64_t k = fl_type_numel(&q->p.in[1].type) / q->p.in[1].type.dims[0];
    FL_CHECK_MSG(e <= product_limit(kernels[i].limit, &q->attrs, k), "%s %s: error %g", kernels[i].name, what, e);
  }
  return accepted;
}

static void check_padded(shape s) {
  product q;
  char what[160];
  snprintf(what, sizeof what, "n%d c%d %dx%d o%d k%dx%d s%d p%d+%d%d%d%d d%d g%d nhwc%d bias%d res%d act%d", (int)s.n,
           (int)s.c, (int)s.h, (int)s.w, (int)s.o, (int)s.kh, (int)s.kw, (int)s.stride, (int)s.pad, (int)s.more[0],
           (int)s.more[1], (int)s.more[2], (int)s.more[3], (int)s.dilation, (int)s.groups, s.nhwc, s.bias, s.residual,
           (int)s.act);
  make(&q, &s);
  const int accepted = check(&q, what);
  FL_CHECK_MSG(accepted > 0 || fl_cpu_isa() < FL_ISA_AVX2, "%s: no kernel", what);
  product_end(&q);
}

/* As given, and with padding that is another on each side. */
static void check_shape(shape s) {
  static const int64_t more[][4] = {{0, 0, 1, 1}, {1, 0, 0, 2}, {0, 1, 2, 0}};
  static int turn;
  check_padded(s);
  memcpy(s.more, more[turn++ % 3], sizeof s.more);
  check_padded(s);
}

FL_TEST(windows) {
  static const int64_t ks[] = {1, 2, 3, 5, 7}, cs[] = {1, 3, 4, 16, 19, 64};
  for (int k = 0; k < 5; k++)
    for (int c = 0; c < 6; c++)
      for (int64_t stride = 1; stride <= 2; stride++)
        for (int64_t pad = 0; pad <= ks[k] / 2; pad += 1 + ks[k] / 4)
          check_shape((shape){.n = 1 + (k + c) % 2,
                              .c = cs[c],
                              .h = 11,
                              .w = 9 + c,
                              .o = 7 + 15 * c,
                              .kh = ks[k],
                              .kw = ks[k],
                              .stride = stride,
                              .pad = pad,
                              .dilation = 1,
                              .groups = 1,
                              .nhwc = (c + k) % 3 == 0,
                              .bias = c % 2 == 0,
                              .residual = (k + c) % 4 == 0,
                              .act = (fl_act)((k + c) % FL_ACT_COUNT)});
}

FL_TEST(dilation_and_groups) {
  for (int64_t groups = 1; groups <= 4; groups *= 2)
    for (int64_t dilation = 1; dilation <= 3; dilation++)
      check_shape((shape){.n = 1,
                          .c = 8 * groups,
                          .h = 13,
                          .w = 12,
                          .o = 12 * groups,
                          .kh = 3,
                          .kw = 3,
                          .stride = 1,
                          .pad = dilation,
                          .dilation = dilation,
                          .groups = groups,
                          .bias = true,
                          .residual = dilation == 2,
                          .act = FL_ACT_RELU});
}

FL_TEST(depthwise) {
  static const int64_t cs[] = {1, 8, 16, 24, 35}, ks[] = {2, 3, 5, 7};
  for (int c = 0; c < 5; c++)
    for (int k = 0; k < 4; k++)
      for (int64_t stride = 1; stride <= 3; stride++)
        for (int64_t dilation = 1; dilation <= 2; dilation++) {
          const shape s = {.n = 1 + c % 2,
                           .c = cs[c],
                           .h = 14 + c,
                           .w = 15 + 4 * (c + k),
                           .o = cs[c],
                           .kh = ks[k],
                           .kw = ks[k],
                           .stride = stride,
                           .pad = (c + k) % 3 ? ks[k] / 2 : 0,
                           .dilation = dilation,
                           .groups = cs[c],
                           .bias = k % 2,
                           .residual = stride == 1,
                           .act = (fl_act)((c + k + stride) % FL_ACT_COUNT)};
          check_shape(s);
        }
}

/* Groups narrower than a vector, as wide, wider, and wider than a panel; more and fewer results than inputs; the last
 * block not full; rows of one pixel, of a tile and of several; a copy that does not hold a row. */
FL_TEST(groups) {
  static const struct {
    int groups, cg, og, h, w, k, stride, pad, dilation;
  } at[] = {{32, 4, 4, 13, 15, 3, 1, 1, 1}, {32, 8, 8, 12, 9, 3, 2, 1, 1},   {7, 4, 4, 5, 30, 3, 1, 1, 2},
            {5, 3, 5, 9, 17, 3, 1, 0, 1},   {6, 1, 3, 8, 8, 5, 2, 2, 1},     {9, 8, 2, 6, 29, 3, 3, 1, 1},
            {3, 2, 1, 16, 1, 1, 1, 0, 1},   {2, 16, 16, 14, 14, 3, 1, 1, 1}, {3, 11, 13, 7, 7, 3, 1, 1, 1},
            {4, 32, 32, 7, 7, 3, 1, 1, 1},  {2, 24, 24, 15, 28, 3, 2, 1, 1}, {3, 40, 56, 11, 3, 3, 1, 2, 2},
            {2, 112, 40, 7, 5, 3, 1, 1, 1}, {3, 64, 17, 4, 60, 3, 2, 1, 1},  {4, 20, 33, 9, 41, 1, 2, 0, 1},
            {2, 5, 48, 3, 100, 7, 1, 3, 1}, {2, 9, 4, 3, 3, 3, 1, 4, 1},     {2, 70, 4, 6, 90, 3, 1, 1, 3},
            {19, 1, 2, 10, 6, 3, 1, 1, 1},  {2, 12, 17, 60, 44, 3, 1, 1, 1}};
  for (int i = 0; i < (int)(sizeof at / sizeof *at); i++)
    for (int variant = 0; variant < 3; variant++) {
      const shape s = {.n = 1 + (i + variant) % 2,
                       .c = at[i].groups * at[i].cg,
                       .h = at[i].h,
                       .w = at[i].w,
                       .o = at[i].groups * at[i].og,
                       .kh = at[i].k,
                       .kw = at[i].k,
                       .stride = at[i].stride,
                       .pad = at[i].pad,
                       .dilation = at[i].dilation,
                       .groups = at[i].groups,
                       .nhwc = variant == 1,
                       .bias = variant != 1,
                       .residual = variant > 0,
                       .act = (fl_act)((i + 4 * variant) % FL_ACT_COUNT)};
      check_shape(s);
      product q;
      make(&q, &s);
      for (int k = 0; k < 2; k++) {
        product_runner r;
        if (fl_cpu_isa() < (k ? FL_ISA_AVX2 : FL_ISA_AVX512)) continue;
        FL_CHECK(!product_prepare(&r, &q, k ? "conv2d_grouped_avx2" : "conv2d_grouped_avx512"));
        product_release(&r);
      }
      product_end(&q);
    }
}

/* A group's NaN and infinities stay its own, though others share its vector. */
FL_TEST(groups_do_not_mix) {
  static const char *const names[] = {"conv2d_grouped_avx512", "conv2d_grouped_avx2"};
  const shape s = {
      .n = 1, .c = 32, .h = 4, .w = 9, .o = 32, .kh = 3, .kw = 3, .stride = 1, .pad = 1, .dilation = 1, .groups = 8};
  product q;
  make(&q, &s);
  float *x = q.in[0].data;
  for (int i = 0; i < 36; i++) x[5 * 36 + i] = i % 2 ? NAN : INFINITY; /* channel 5: group 1 */
  for (int i = 0; i < 2; i++) {
    product_runner r;
    if (fl_cpu_isa() < (i ? FL_ISA_AVX2 : FL_ISA_AVX512)) continue;
    FL_CHECK(!product_prepare(&r, &q, names[i]));
    product_run(&r, pool);
    const float *y = r.out.data; /* NHWC */
    for (int k = 0; k < 36 * 32; k++) FL_CHECK(isfinite(y[k]) == (k % 32 / 4 != 1));
    product_release(&r);
  }
  product_end(&q);
}

/* Tiles cut by the border, more than one K block, few and many tiles; and how far rounding goes. */
FL_TEST(winograd) {
  static const struct {
    int c, o, h, w, pad;
  } at[] = {{16, 16, 8, 8, 1},   {64, 64, 14, 14, 1},  {20, 37, 7, 9, 0},    {400, 70, 6, 5, 1},
            {32, 96, 29, 31, 2}, {392, 16, 13, 13, 1}, {17, 130, 40, 37, 1}, {256, 256, 14, 14, 1}};
  for (int i = 0; i < 8; i++) {
    const shape s = {.n = 1 + i % 2,
                     .c = at[i].c,
                     .h = at[i].h,
                     .w = at[i].w,
                     .o = at[i].o,
                     .kh = 3,
                     .kw = 3,
                     .stride = 1,
                     .pad = at[i].pad,
                     .dilation = 1,
                     .groups = 1,
                     .bias = true,
                     .residual = i % 2,
                     .act = (fl_act)(i % 4)};
    check_shape(s);
    product q;
    make(&q, &s);
    for (int k = 0; k < 4; k++)
      if (fl_cpu_isa() >= kernels[k + 2].isa)
        printf("%s c%d: error %.2g\n", kernels[k + 2].name, at[i].c,
               product_error(&q, kernels[k + 2].name, "conv2d_ref", pool));
    product_end(&q);
  }
}

/* Tiles whose inputs are not finite are told of, and none else: neither what lies behind the last channel, nor what an
 * activation would hide. */
FL_TEST(winograd_tells_of_what_is_not_finite) {
  static const float values[] = {1e30f, INFINITY, -INFINITY, NAN, 1};
  const shape s = {.n = 1,
                   .c = 20,
                   .h = 13,
                   .w = 14,
                   .o = 37,
                   .kh = 3,
                   .kw = 3,
                   .stride = 1,
                   .pad = 1,
                   .dilation = 1,
                   .groups = 1,
                   .bias = true,
                   .act = FL_ACT_RELU};
  for (int k = 0; k < 4; k++)
    for (int v = 0; v < 5; v++) {
      product q;
      product_runner r;
      if (fl_cpu_isa() < kernels[k + 2].isa) continue;
      make(&q, &s);
      ((float *)q.in[0].data)[7 * 13 * 14 + 80] = values[v];
      FL_CHECK(!product_prepare(&r, &q, kernels[k + 2].name));
      r.fault = 0;
      product_run(&r, pool);
      FL_CHECK_MSG(r.fault == !isfinite(values[v]), "%s, %g", kernels[k + 2].name, (double)values[v]);
      product_release(&r);
      product_end(&q);
    }
}

FL_TEST(few_channels) {
  static const int64_t ks[] = {1, 3, 4, 7};
  for (int64_t c = 1; c <= 4; c++)
    for (int k = 0; k < 4; k++)
      for (int64_t stride = 1; stride <= 4; stride *= 2) {
        const shape s = {.n = 1 + c % 2,
                         .c = c,
                         .h = 20 + k,
                         .w = 70 + 3 * k,
                         .o = 7 + 13 * k,
                         .kh = ks[k],
                         .kw = ks[k],
                         .stride = stride,
                         .pad = c % 3 ? ks[k] / 2 : 0,
                         .dilation = 1,
                         .groups = 1,
                         .bias = k % 2,
                         .act = (fl_act)((c + k + stride) % FL_ACT_COUNT)};
        check_shape(s);
      }
}

/* Padding wider than the input, a window that lies in padding alone, and one row or column. */
FL_TEST(borders) {
  check_shape((shape){
      .n = 1, .c = 16, .h = 2, .w = 1, .o = 8, .kh = 5, .kw = 5, .stride = 1, .pad = 4, .dilation = 1, .groups = 1});
  check_shape((shape){
      .n = 1, .c = 3, .h = 2, .w = 1, .o = 8, .kh = 5, .kw = 5, .stride = 3, .pad = 4, .dilation = 1, .groups = 1});
  check_shape((shape){
      .n = 2, .c = 2, .h = 1, .w = 1, .o = 3, .kh = 1, .kw = 1, .stride = 1, .pad = 2, .dilation = 1, .groups = 1});
}

FL_TEST(weights_not_constant) {
  for (int64_t groups = 1; groups <= 2; groups++) {
    product q;
    const shape s = {.n = 1,
                     .c = 20,
                     .h = 9,
                     .w = 8,
                     .o = 50,
                     .kh = 3,
                     .kw = 3,
                     .stride = 1,
                     .pad = 1,
                     .dilation = 1,
                     .groups = groups,
                     .bias = true};
    make(&q, &s);
    q.p.constant[1] = false;
    const int accepted = check(&q, "weights not constant");
    FL_CHECK(accepted == (fl_cpu_isa() >= FL_ISA_AVX512 ? 2 : fl_cpu_isa() >= FL_ISA_AVX2));
    product_end(&q);
  }
}

FL_TEST(patches) {
  check_shape((shape){.n = 1,
                      .c = 3,
                      .h = 32,
                      .w = 48,
                      .o = 40,
                      .kh = 16,
                      .kw = 16,
                      .stride = 16,
                      .pad = 0,
                      .dilation = 1,
                      .groups = 1,
                      .bias = true});
  check_shape((shape){.n = 1,
                      .c = 3,
                      .h = 37,
                      .w = 35,
                      .o = 64,
                      .kh = 7,
                      .kw = 7,
                      .stride = 2,
                      .pad = 3,
                      .dilation = 1,
                      .groups = 1,
                      .bias = true,
                      .act = FL_ACT_RELU});
}

FL_TEST(empty) {
  check_shape((shape){
      .n = 0, .c = 3, .h = 5, .w = 5, .o = 4, .kh = 3, .kw = 3, .stride = 1, .pad = 1, .dilation = 1, .groups = 1});
  check_shape((shape){.n = 1,
                      .c = 0,
                      .h = 5,
                      .w = 5,
                      .o = 4,
                      .kh = 3,
                      .kw = 3,
                      .stride = 1,
                      .pad = 1,
                      .dilation = 1,
                      .groups = 1,
                      .bias = true});
}

FL_TEST(reference) {
  product q;
  const shape s = {
      .n = 1, .c = 1, .h = 3, .w = 3, .o = 1, .kh = 3, .kw = 3, .stride = 2, .pad = 1, .dilation = 1, .groups = 1};
  make(&q, &s);
  for (int i = 0; i < 9; i++) ((float *)q.in[0].data)[i] = (float)i, ((float *)q.in[1].data)[i] = (float)(i + 1);
  product_runner r;
  FL_CHECK(!product_prepare(&r, &q, "conv2d_ref"));
  product_run(&r, NULL);
  /* By hand, e.g. top left: 0 5 + 1 6 + 3 8 + 4 9 = 66. The clamp of `make` is not active (FL_ACT_NONE). */
  const float want[4] = {66, 1 * 4 + 2 * 5 + 4 * 7 + 5 * 8, 3 * 2 + 4 * 3 + 6 * 5 + 7 * 6,
                         4 * 1 + 5 * 2 + 7 * 4 + 8 * 5};
  FL_CHECK(!memcmp(r.out.data, want, sizeof want));
  product_release(&r);
  product_end(&q);
}

int main(void) {
  FL_CHECK_OK(fl_pool_create(2, &pool));
  test_windows();
  test_dilation_and_groups();
  test_depthwise();
  test_groups();
  test_groups_do_not_mix();
  test_winograd();
  test_winograd_tells_of_what_is_not_finite();
  test_few_channels();
  test_borders();
  test_weights_not_constant();
  test_patches();
  test_empty();
  test_reference();
  fl_pool_destroy(pool);
  FL_CHECK(fl_alloc_live() == 0);
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
