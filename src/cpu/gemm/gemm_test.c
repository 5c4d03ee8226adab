#include "cpu/product_test.h"

static fl_pool *pool;

static const char *const kernels[] = {"matmul_avx512", "matmul_avx2"};
static const fl_isa isas[] = {FL_ISA_AVX512, FL_ISA_AVX2};

typedef struct shape {
  int64_t batch, m, k, n;
  bool trans_b, constant_b, bias, residual;
  fl_act act;
  int64_t a_gap; /* floats between rows of A */
} shape;

static void make(product *q, const shape *s) {
  product_begin(q, FL_OP_MATMUL);
  const int64_t a[3] = {s->batch, s->m, s->k}, row = s->k + s->a_gap, as[3] = {s->m * row, row, 1};
  product_operand(q, 0, 3, a, as);
  const int64_t b[2] = {s->trans_b ? s->n : s->k, s->trans_b ? s->k : s->n};
  product_operand(q, 1, 2, b, NULL);
  q->p.constant[1] = s->constant_b;
  const int64_t out[3] = {s->batch, s->m, s->n};
  if (s->bias) product_operand(q, 2, 1, &s->n, NULL);
  if (s->residual) product_operand(q, 3, 3, out, NULL);
  q->p.out[0] = fl_type_make(FL_F32, 3, out);
  fl_attr_set_int(&q->attrs, "trans_b", 'b', s->trans_b);
  product_act(q, s->act, -0.5, 0.75);
}

static void check(const product *q, const char *what, double limit) {
  for (int i = 0; i < 2; i++) {
    if (fl_cpu_isa() < isas[i]) continue;
    const double e = product_error(q, kernels[i], "matmul_ref", pool);
    const int64_t k = q->p.in[0].type.dims[q->p.in[0].type.rank - 1];
    FL_CHECK_MSG(e >= 0 && e <= product_limit(limit, &q->attrs, k), "%s %s: error %g", kernels[i], what, e);
  }
}

static void check_shape(shape s) {
  product q;
  char what[160];
  snprintf(what, sizeof what, "batch %d m %d k %d n %d trans %d const %d bias %d residual %d act %d", (int)s.batch,
           (int)s.m, (int)s.k, (int)s.n, s.trans_b, s.constant_b, s.bias, s.residual, (int)s.act);
  make(&q, &s);
  check(&q, what, 4e-6);
  product_end(&q);
}

FL_TEST(sizes) {
  static const int64_t ms[] = {1, 2, 5, 13, 14, 15, 29, 49}, ks[] = {1, 3, 64, 385, 800},
                       ns[] = {1, 15, 16, 17, 32, 40, 100};
  for (size_t i = 0; i < sizeof ms / sizeof *ms; i++)
    for (size_t j = 0; j < sizeof ks / sizeof *ks; j++)
      for (size_t l = 0; l < sizeof ns / sizeof *ns; l++) {
        const bool odd = (i + j + l) % 2;
        check_shape((shape){.batch = 1 + (int64_t)(l % 2),
                            .m = ms[i],
                            .k = ks[j],
                            .n = ns[l],
                            .trans_b = odd,
                            .constant_b = i % 3 > 0,
                            .bias = l % 3 > 0,
                            .residual = j % 2 > 0,
                            .act = (fl_act)((i + 2 * j + 3 * l) % FL_ACT_COUNT),
                            .a_gap = odd ? 5 : 0});
      }
}

FL_TEST(several_blocks_of_columns) {
  check_shape((shape){.batch = 1, .m = 33, .k = 400, .n = 1100, .constant_b = true, .bias = true, .act = FL_ACT_GELU});
  check_shape((shape){.batch = 1, .m = 1, .k = 512, .n = 1000, .trans_b = true, .constant_b = true, .bias = true});
  check_shape((shape){.batch = 3, .m = 197, .k = 96, .n = 64, .constant_b = true, .residual = true});
}

FL_TEST(empty) {
  for (int i = 0; i < 2; i++) {
    const bool constant = i;
    check_shape((shape){.batch = 1, .m = 0, .k = 3, .n = 4, .constant_b = constant});
    check_shape((shape){.batch = 0, .m = 2, .k = 3, .n = 4, .constant_b = constant});
    check_shape((shape){.batch = 1, .m = 2, .k = 3, .n = 0, .constant_b = constant});
    check_shape(
        (shape){.batch = 1, .m = 2, .k = 0, .n = 20, .constant_b = constant, .bias = true, .act = FL_ACT_SIGMOID});
  }
}

/* Attention's shapes: heads taken out of one [tokens, heads x dim] matrix by strides, either side broadcast. */
FL_TEST(batched) {
  for (int trans = 0; trans < 2; trans++)
    for (int broadcast = 0; broadcast < 3; broadcast++) {
      product q;
      product_begin(&q, FL_OP_MATMUL);
      const int64_t heads = 3, s = 37, d = 20, batch = 2;
      const int64_t a[4] = {broadcast == 1 ? 1 : batch, heads, s, d};
      const int64_t as[4] = {s * heads * d, d, heads * d, 1};
      product_operand(&q, 0, 4, a, as);
      const int64_t b[4] = {batch, broadcast == 2 ? 1 : heads, trans ? 21 : d, trans ? d : 21};
      product_operand(&q, 1, 4, b, NULL);
      const int64_t out[4] = {batch, heads, s, 21};
      q.p.out[0] = fl_type_make(FL_F32, 4, out);
      fl_attr_set_int(&q.attrs, "trans_b", 'b', trans);
      char what[64];
      snprintf(what, sizeof what, "batched trans %d broadcast %d", trans, broadcast);
      check(&q, what, 4e-6);
      product_end(&q);
    }
}

FL_TEST(any_strides) {
  product q;
  product_begin(&q, FL_OP_MATMUL);
  const int64_t a[2] = {30, 45}, as[2] = {1, 31}, b[2] = {45, 50}, bs[2] = {101, 2}, out[2] = {30, 50};
  product_operand(&q, 0, 2, a, as);
  product_operand(&q, 1, 2, b, bs);
  q.p.out[0] = fl_type_make(FL_F32, 2, out);
  check(&q, "transposed A, strided B", 4e-6);
  q.p.constant[1] = true;
  check(&q, "transposed A, strided constant B", 4e-6);
  product_end(&q);
}

static void check_thin(shape s, bool adjacent) {
  static const char *const thin[] = {"matmul_thin_avx512", "matmul_thin_avx2"};
  product q;
  make(&q, &s);
  if (!s.trans_b) { /* columns that lie side by side, as in a transposed view */
    const int64_t dims[2] = {s.k, s.n}, strides[2] = {adjacent ? 1 : 2, 2 * s.k + 3};
    fl_free_aligned(q.in[1].data);
    product_operand(&q, 1, 2, dims, strides);
  }
  for (int i = 0; i < 2; i++) {
    if (fl_cpu_isa() < isas[i]) continue;
    const double e = product_error(&q, thin[i], "matmul_ref", pool);
    const bool takes = adjacent && s.batch * s.m >= 1 && s.batch * s.m <= 4;
    FL_CHECK_MSG(takes ? e >= 0 && e <= product_limit(4e-6, &q.attrs, s.k) : e < 0, "%s batch %d m %d k %d n %d: %g",
                 thin[i], (int)s.batch, (int)s.m, (int)s.k, (int)s.n, e);
  }
  product_end(&q);
}

FL_TEST(few_rows) {
  static const int64_t ks[] = {0, 1, 15, 16, 17, 200}, ns[] = {0, 1, 7, 8, 9, 33, 500};
  for (int m = 0; m <= 5; m++)
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++)
      for (size_t l = 0; l < sizeof ns / sizeof *ns; l++)
        check_thin((shape){.batch = 1 + (m == 1 && l % 2),
                           .m = m,
                           .k = ks[i],
                           .n = ns[l],
                           .trans_b = (i + l) % 3 > 0,
                           .constant_b = l % 2,
                           .bias = i % 2,
                           .residual = (i + l) % 2,
                           .act = (fl_act)((i + 2 * l) % FL_ACT_COUNT),
                           .a_gap = i % 3 ? 5 : 0},
                   true);
  check_thin((shape){.batch = 1, .m = 2, .k = 40, .n = 30}, false);
}

/* More matrices than the scratch holds at once. */
FL_TEST(rounds) {
  product q;
  product_begin(&q, FL_OP_MATMUL);
  const int64_t a[3] = {5, 4, 700}, b[3] = {5, 700, 800}, out[3] = {5, 4, 800};
  product_operand(&q, 0, 3, a, NULL);
  product_operand(&q, 1, 3, b, NULL);
  q.p.out[0] = fl_type_make(FL_F32, 3, out);
  check(&q, "rounds", 4e-6);
  product_end(&q);
}

FL_TEST(reference) {
  product q;
  product_begin(&q, FL_OP_MATMUL);
  const int64_t a[2] = {2, 3}, b[2] = {3, 2}, out[2] = {2, 2}, n = 2;
  product_operand(&q, 0, 2, a, NULL);
  product_operand(&q, 1, 2, b, NULL);
  product_operand(&q, 2, 1, &n, NULL);
  q.p.out[0] = fl_type_make(FL_F32, 2, out);
  product_act(&q, FL_ACT_RELU, 0, 0);
  for (int i = 0; i < 6; i++) ((float *)q.in[0].data)[i] = (float)(i + 1), ((float *)q.in[1].data)[i] = (float)(i - 3);
  ((float *)q.in[2].data)[0] = 1, ((float *)q.in[2].data)[1] = 100;
  product_runner r;
  FL_CHECK(!product_prepare(&r, &q, "matmul_ref"));
  product_run(&r, NULL);
  /* [1 2 3; 4 5 6] [-3 -2; -1 0; 1 2] = [-2 4; -11 4] */
  const float want[4] = {0, 104, 0, 104};
  FL_CHECK(!memcmp(r.out.data, want, sizeof want));
  product_release(&r);
  product_end(&q);
}

FL_TEST(declines) {
  product q;
  const shape s = {.batch = 1, .m = 2, .k = 2, .n = 2};
  make(&q, &s);
  q.p.in[0].type.dtype = FL_F64;
  product_runner r;
  const char *why = product_prepare(&r, &q, "matmul_avx2");
  FL_CHECK(why && !strcmp(why, "f32 only"));
  product_release(&r);
  product_end(&q);
}

int main(void) {
  FL_CHECK_OK(fl_pool_create(2, &pool));
  test_sizes();
  test_several_blocks_of_columns();
  test_empty();
  test_batched();
  test_any_strides();
  test_few_rows();
  test_rounds();
  test_reference();
  test_declines();
  fl_pool_destroy(pool);
  FL_CHECK(fl_alloc_live() == 0);
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
