/* Products of bf16 against the reference, which sums in double and rounds once. */
#include "base/test.h"
#include "cpu/kernel_case.h"

static fl_pool *pool;

typedef struct shape {
  int64_t batch, m, k, n;
  bool trans_b, constant_b, bias, residual;
  fl_act act;
  int64_t a_gap, b_step; /* elements between rows of A; between elements of a row of B, if not 0 */
} shape;

static fl_tensor *in(kcase *c, int rank, const int64_t *dims, const int64_t *strides) {
  return kcase_in(c, FL_BF16, rank, dims, strides);
}

static kcase *make(const shape *s) {
  kcase *c = kcase_new(FL_OP_MATMUL);
  const int64_t row = s->k + s->a_gap;
  in(c, 3, (int64_t[]){s->batch, s->m, s->k}, (int64_t[]){s->m * row, row, 1});
  const int64_t b[2] = {s->trans_b ? s->n : s->k, s->trans_b ? s->k : s->n}, step = s->b_step ? s->b_step : 1;
  in(c, 2, b, (int64_t[]){b[1] * step + 1, step});
  c->problem.constant[1] = s->constant_b;
  if (s->bias)
    in(c, 1, &s->n, NULL);
  else
    kcase_absent(c);
  if (s->residual)
    in(c, 3, (int64_t[]){s->batch, s->m, s->n}, NULL);
  else
    kcase_absent(c);
  kcase_bool(c, "trans_b", s->trans_b);
  (void)fl_attr_set_int(&c->attrs, "act", 'a', s->act);
  kcase_float(c, "act_lo", -0.5);
  kcase_float(c, "act_hi", 0.75);
  return c;
}

static const fl_kernel *named(const char *name) { return fl_kernel_get(fl_kernel_find(name)); }

/* Within one rounding of the reference, and what sums in f32 lose: a result may lie close to the middle of two. */
static void compare(const kcase *c, const fl_tensor *got, const fl_tensor *want, int64_t k, const char *what) {
  double worst = 0;
  for (int64_t i = 0; i < fl_type_numel(&c->problem.out[0]); i++) {
    const double g = kcase_get(got, i), w = kcase_get(want, i);
    worst = fmax(worst, isnan(g) ? INFINITY : fabs(g - w) / (fabs(w) / 128 + 1e-6 * sqrt((double)k + 1) + 1e-30));
  }
  FL_CHECK_MSG(worst <= 1, "%s: %g times what rounding allows", what, worst);
}

/* Takes the case. */
static void check(kcase *c, const char *what) {
  fl_tensor got[FL_PW_MAX_OUTPUTS], want[FL_PW_MAX_OUTPUTS];
  const fl_type *a = &c->problem.in[0].type;
  if (kcase_infer(c) && fl_cpu_isa() >= FL_ISA_AVX512_BF16) {
    FL_CHECK(!kcase_run(c, named("matmul_ref"), pool, want));
    const char *why = kcase_run(c, named("matmul_avx512_bf16"), pool, got);
    FL_CHECK_MSG(!why, "%s: %s", what, why);
    if (!why) {
      compare(c, got, want, a->dims[a->rank - 1], what);
      kcase_free_out(c, got);
    }
    kcase_free_out(c, want);
  }
  kcase_free(c);
}

static void check_shape(shape s) {
  char what[160];
  snprintf(what, sizeof what, "batch %d m %d k %d n %d trans %d const %d bias %d residual %d act %d gap %d step %d",
           (int)s.batch, (int)s.m, (int)s.k, (int)s.n, s.trans_b, s.constant_b, s.bias, s.residual, (int)s.act,
           (int)s.a_gap, (int)s.b_step);
  check(make(&s), what);
}

/* Odd and even K, one K block and several, tiles of any height, panels cut anywhere. */
FL_TEST(sizes) {
  static const int64_t ms[] = {1, 2, 5, 13, 14, 15, 29, 49}, ks[] = {1, 2, 3, 64, 97, 769, 1600},
                       ns[] = {1, 15, 16, 17, 32, 40, 300};
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
                            .a_gap = odd ? 5 : 0,
                            .b_step = (i + l) % 4 == 3 ? 3 : 0});
      }
}

FL_TEST(many_columns) {
  check_shape((shape){.batch = 1, .m = 33, .k = 400, .n = 1100, .constant_b = true, .bias = true, .act = FL_ACT_GELU});
  check_shape((shape){.batch = 1, .m = 1, .k = 512, .n = 1000, .trans_b = true, .constant_b = true, .bias = true});
  check_shape((shape){.batch = 1, .m = 30, .k = 3072, .n = 768, .trans_b = true, .constant_b = true, .residual = true});
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

/* Heads taken out of one [tokens, heads x dim] matrix by strides, either side broadcast; and A transposed. */
FL_TEST(batched) {
  for (int trans = 0; trans < 2; trans++)
    for (int broadcast = 0; broadcast < 4; broadcast++) {
      const int64_t heads = 3, s = 37, d = 21, batch = 2;
      kcase *c = kcase_new(FL_OP_MATMUL);
      if (broadcast == 3)
        in(c, 4, (int64_t[]){batch, heads, s, d}, (int64_t[]){heads * d * s, d * s, 1, s});
      else
        in(c, 4, (int64_t[]){broadcast == 1 ? 1 : batch, heads, s, d}, (int64_t[]){s * heads * d, d, heads * d, 1});
      in(c, 4, (int64_t[]){batch, broadcast == 2 ? 1 : heads, trans ? 22 : d, trans ? d : 22}, NULL);
      kcase_bool(c, "trans_b", trans);
      check(c, "batched");
    }
}

/* Infinities and NaN arrive; the zeros that complete an odd K touch nothing. */
FL_TEST(not_finite) {
  kcase *c = make(&(shape){.batch = 1, .m = 3, .k = 3, .n = 33, .constant_b = true});
  uint16_t *a = c->problem.in[0].data;
  a[2] = 0x7f80; /* infinity, in row 0 */
  a[5] = 0x7fc0; /* NaN, in row 1 */
  fl_tensor got[FL_PW_MAX_OUTPUTS];
  if (kcase_infer(c) && fl_cpu_isa() >= FL_ISA_AVX512_BF16) {
    FL_CHECK(!kcase_run(c, named("matmul_avx512_bf16"), pool, got));
    for (int64_t i = 0; i < 33; i++) {
      FL_CHECK(isinf(kcase_get(got, i)) && isnan(kcase_get(got, 33 + i)) && isfinite(kcase_get(got, 66 + i)));
    }
    kcase_free_out(c, got);
  }
  kcase_free(c);
}

FL_TEST(declines) {
  kcase *c = make(&(shape){.batch = 1, .m = 2, .k = 2, .n = 2});
  c->problem.in[0].type.dtype = FL_F16;
  fl_tensor got[FL_PW_MAX_OUTPUTS];
  const char *why = kcase_run(c, named("matmul_avx512_bf16"), pool, got);
  FL_CHECK(why && !strcmp(why, "bf16 only"));
  kcase_free(c);
}

int main(void) {
  FL_CHECK_OK(fl_pool_create(2, &pool));
  test_sizes();
  test_many_columns();
  test_empty();
  test_batched();
  test_not_finite();
  test_declines();
  fl_pool_destroy(pool);
  FL_CHECK(fl_alloc_live() == 0);
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
