#include "cpu/product_test.h"

static fl_pool *pool;

typedef struct shape {
  int64_t n, c, h, w, o, k, stride, pad, out_pad, dilation, groups;
  bool bias;
} shape;

static void make(product *q, const shape *s) {
  product_begin(q, FL_OP_CONV_TRANSPOSE2D);
  const int64_t x[4] = {s->n, s->c, s->h, s->w}, w[4] = {s->c, s->o / s->groups, s->k, s->k};
  product_operand(q, 0, 4, x, NULL);
  product_operand(q, 1, 4, w, NULL);
  q->p.constant[1] = true;
  if (s->bias) product_operand(q, 2, 1, &s->o, NULL);
  int64_t out[4] = {s->n, s->o, 0, 0};
  for (int i = 0; i < 2; i++)
    out[2 + i] = (x[2 + i] - 1) * s->stride - 2 * s->pad + s->dilation * (s->k - 1) + s->out_pad + 1;
  q->p.out[0] = fl_type_make(FL_F32, 4, out);
  const int64_t stride[2] = {s->stride, s->stride}, pad[2] = {s->pad, s->pad};
  const int64_t out_pad[2] = {s->out_pad, s->out_pad}, dilation[2] = {s->dilation, s->dilation};
  fl_attr_set_list(&q->attrs, "stride", stride, 2);
  fl_attr_set_list(&q->attrs, "pad", pad, 2);
  fl_attr_set_list(&q->attrs, "out_pad", out_pad, 2);
  fl_attr_set_list(&q->attrs, "dilation", dilation, 2);
  fl_attr_set_int(&q->attrs, "groups", 'i', s->groups);
}

/* By definition: each input is scattered over its window. */
static void scatter(const product *q, const shape *s, double *y) {
  const float *x = q->in[0].data, *w = q->in[1].data, *b = q->in[2].data;
  const int64_t oh = q->p.out[0].dims[2], ow = q->p.out[0].dims[3], og = s->o / s->groups, cg = s->c / s->groups;
  for (int64_t i = 0; i < s->n * s->o * oh * ow; i++) y[i] = s->bias ? b[i / (oh * ow) % s->o] : 0;
  for (int64_t n = 0; n < s->n; n++)
    for (int64_t c = 0; c < s->c; c++)
      for (int64_t i = 0; i < s->h * s->w; i++)
        for (int64_t o = 0; o < og; o++)
          for (int64_t k = 0; k < s->k * s->k; k++) {
            const int64_t h = i / s->w * s->stride - s->pad + k / s->k * s->dilation;
            const int64_t v = i % s->w * s->stride - s->pad + k % s->k * s->dilation;
            if (h < 0 || h >= oh || v < 0 || v >= ow) continue;
            y[((n * s->o + c / cg * og + o) * oh + h) * ow + v] +=
                (double)x[(n * s->c + c) * s->h * s->w + i] * w[(c * og + o) * s->k * s->k + k];
          }
}

static void check_shape(shape s) {
  product q;
  make(&q, &s);
  const int64_t numel = fl_type_numel(&q.p.out[0]);
  double *want = fl_malloc(sizeof(double) * (size_t)numel);
  scatter(&q, &s, want);
  int64_t strides[FL_MAX_RANK];
  fl_strides_contiguous(&q.p.out[0], strides);
  fl_tensor expected = product_tensor(&q.p.out[0], strides);
  for (int64_t i = 0; i < numel; i++) ((float *)expected.data)[i] = (float)want[i];
  for (int id = 0; id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->op != FL_OP_CONV_TRANSPOSE2D || k->isa > fl_cpu_isa()) continue;
    product_runner r;
    if (!product_prepare(&r, &q, k->name)) {
      product_run(&r, pool);
      const double e = product_difference(&r.out, &expected);
      FL_CHECK_MSG(e <= 4e-6, "%s c%d o%d k%d s%d p%d op%d d%d g%d: error %g", k->name, (int)s.c, (int)s.o, (int)s.k,
                   (int)s.stride, (int)s.pad, (int)s.out_pad, (int)s.dilation, (int)s.groups, e);
    } else {
      FL_CHECK_MSG(k->isa != FL_ISA_PORTABLE, "%s declines", k->name);
    }
    product_release(&r);
  }
  fl_free_aligned(expected.data);
  fl_free(want);
  product_end(&q);
}

FL_TEST(shapes) {
  for (int64_t k = 1; k <= 4; k++)
    for (int64_t stride = 1; stride <= 3; stride++)
      for (int64_t groups = 1; groups <= 2; groups++) {
        check_shape((shape){.n = 2,
                            .c = 6 * groups,
                            .h = 5,
                            .w = 4,
                            .o = 10 * groups,
                            .k = k,
                            .stride = stride,
                            .pad = k / 2,
                            .out_pad = stride - 1,
                            .dilation = 1,
                            .groups = groups,
                            .bias = k % 2});
        check_shape((shape){.n = 1,
                            .c = 20 * groups,
                            .h = 3,
                            .w = 7,
                            .o = 36 * groups,
                            .k = k,
                            .stride = stride,
                            .dilation = 2,
                            .groups = groups,
                            .bias = true});
      }
}

int main(void) {
  FL_CHECK_OK(fl_pool_create(2, &pool));
  test_shapes();
  fl_pool_destroy(pool);
  FL_CHECK(fl_alloc_live() == 0);
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
