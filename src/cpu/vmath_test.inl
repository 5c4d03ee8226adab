/* Body of the vmath tests: every function against the C library in double, over all of the floats by a prime step. */
#include "base/test.h"

#include <math.h>

typedef double (*scalar_fn)(double);
typedef vf (*vector_fn)(vf);

static float from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

/* Distance in units of the last place of the right result (those of the denormals at least). */
static double ulps(float got, double want) {
  if (isnan(want)) return isnan(got) ? 0 : INFINITY;
  if (isinf((float)want) || isinf(got)) return (float)want == got ? 0 : INFINITY;
  int e;
  frexp(want, &e);
  const double ulp = ldexp(1.0, (e < -125 ? -125 : e) - 24);
  return fabs((double)got - want) / ulp;
}

static double sigmoid_ref(double x) { return 1.0 / (1.0 + exp(-x)); }

static void sweep(const char *name, vector_fn fn, scalar_fn ref, double limit) {
  double worst = 0;
  float worst_x = 0, x[VL], y[VL];
  for (uint64_t u = 0; u < (1ull << 32);) {
    for (int i = 0; i < VL; i++, u += 2503) x[i] = from_bits((uint32_t)u);
    vf_store(y, fn(vf_load(x)));
    for (int i = 0; i < VL; i++) {
      const double err = ulps(y[i], ref(x[i]));
      if (!(err <= worst)) worst = err, worst_x = x[i];
    }
  }
  printf("%-8s worst %.2f ulp at %a\n", name, worst, (double)worst_x);
  FL_CHECK_MSG(worst <= limit, "%s: %g ulp at %a", name, worst, (double)worst_x);
}

static vf exp_(vf x) { return vf_exp(x); }
static vf log_(vf x) { return vf_log(x); }
static vf erf_(vf x) { return vf_erf(x); }
static vf tanh_(vf x) { return vf_tanh(x); }
static vf sigmoid_(vf x) { return vf_sigmoid(x); }

static void edges(vector_fn fn, scalar_fn ref, double limit) {
  static const float at[] = {0.0f,    -0.0f,           INFINITY,      -INFINITY,      NAN,  1e-45f,
                             -1e-45f, 1.17549435e-38f, 3.4028235e38f, -3.4028235e38f, 1.0f, -1.0f,
                             88.72f,  -103.97f,        -87.4f,        0.75f};
  for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
    float y[VL];
    vf_store(y, fn(vf_set1(at[i])));
    FL_CHECK_MSG(ulps(y[0], ref(at[i])) <= limit, "at %a: %a", (double)at[i], (double)y[0]);
  }
}

FL_TEST(functions) {
  sweep("exp", exp_, exp, 3);
  sweep("log", log_, log, 3);
  sweep("erf", erf_, erf, 3);
  sweep("tanh", tanh_, tanh, 3);
  sweep("sigmoid", sigmoid_, sigmoid_ref, 3);
  edges(exp_, exp, 3);
  edges(log_, log, 3);
  edges(erf_, erf, 3);
  edges(tanh_, tanh, 3);
  edges(sigmoid_, sigmoid_ref, 3);
}

FL_TEST(activations) {
  static const float x0[] = {-7.0f, -2.5f, -0.5f, 0.0f, 0.25f, 1.0f, 3.5f, 8.0f};
  for (int i = 0; i < 8; i++) {
    const double x = x0[i];
    const double want[FL_ACT_COUNT] = {
        [FL_ACT_NONE] = x,
        [FL_ACT_RELU] = x > 0 ? x : 0,
        [FL_ACT_CLAMP] = x < -1  ? -1
                         : x > 2 ? 2
                                 : x,
        [FL_ACT_GELU] = 0.5 * x * (1 + erf(x / sqrt(2.0))),
        [FL_ACT_GELU_TANH] = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
        [FL_ACT_SILU] = x / (1 + exp(-x)),
        [FL_ACT_SIGMOID] = 1 / (1 + exp(-x)),
        [FL_ACT_TANH] = tanh(x),
        [FL_ACT_HARDSIGMOID] = fmin(fmax(x + 3, 0), 6) / 6,
        [FL_ACT_HARDSWISH] = x * fmin(fmax(x + 3, 0), 6) / 6,
    };
    for (int a = 0; a < FL_ACT_COUNT; a++) {
      float y[VL];
      vf_store(y, vf_act(vf_set1(x0[i]), (fl_act)a, -1.0f, 2.0f));
      FL_CHECK_MSG(fabs(y[VL - 1] - want[a]) <= 2e-7 * (1 + fabs(x)), "act %d at %g: %g, not %g", a, x,
                   (double)y[VL - 1], want[a]);
    }
  }
  float y[VL];
  for (int a = 0; a < FL_ACT_COUNT; a++) {
    vf_store(y, vf_act(vf_set1(NAN), (fl_act)a, -1.0f, 2.0f));
    FL_CHECK_MSG(isnan(y[0]), "act %d of NaN: %g", a, (double)y[0]);
  }
}

int main(void) {
  if (!machine_has_it()) {
    printf("skipped: this machine lacks the instruction set\n");
    return 0;
  }
  test_functions();
  test_activations();
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
