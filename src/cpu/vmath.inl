/* The body of vmath_avx512.h and vmath_avx2.h; simd_*.h is included before it. The polynomials are minimax fits. */

/* Horner: c[0] + x (c[1] + x (...)), with constant n so that it unrolls. */
FL_INLINE vf vf_poly(vf x, const float *c, int n) {
  vf p = vf_set1(c[n - 1]);
  for (int i = n - 2; i >= 0; i--) p = vf_fma(p, x, vf_set1(c[i]));
  return p;
}

/* exp(x) = 2^n exp(r) with |r| <= ln 2 / 2. */
FL_INLINE vf vf_exp(vf x) {
  static const float c[] = {0.5f, 0.1666657664f, 0.04166637408f, 0.008363235311f, 0.001394121863f};
  x = vf_max(vf_set1(-105.0f), vf_min(vf_set1(89.0f), x)); /* this order of operands keeps NaN */
  const vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
  vf r = vf_fnma(n, vf_set1(0.693359375f), x);
  r = vf_fnma(n, vf_set1(-2.12194440e-4f), r);
  const vf p = vf_fma(vf_mul(r, r), vf_poly(r, c, 5), r);
  return vf_ldexp(vf_add(p, vf_set1(1.0f)), n);
}

FL_INLINE vf vf_log(vf x) {
  static const float c[] = {0.3333333249f,  -0.2500005139f, 0.2000030462f,   -0.1666144913f, 0.1426260809f,
                            -0.1261707598f, 0.1171910357f,  -0.09788423428f, 0.04510334296f};
  vf e;
  const vf m = vf_sub(vf_frexp(x, &e), vf_set1(1.0f)), m2 = vf_mul(m, m);
  vf r = vf_mul(vf_mul(m2, m), vf_poly(m, c, 9));
  r = vf_fma(e, vf_set1(-2.12194440e-4f), r);
  r = vf_add(vf_fnma(m2, vf_set1(0.5f), r), m);
  r = vf_fma(e, vf_set1(0.693359375f), r);
  r = vf_select(vf_lt(x, vf_set1(__builtin_inff())), r, x); /* +inf and NaN are their own logarithms */
  r = vf_select(vf_eq(x, vf_zero()), vf_set1(-__builtin_inff()), r);
  return vf_select(vf_lt(x, vf_zero()), vf_set1(__builtin_nanf("")), r);
}

/* Below 0.93: x + x P(x^2); above: 1 - exp(-x Q(x)), and 1 beyond 4. */
FL_INLINE vf vf_erf(vf x) {
  static const float small[] = {0.1283791477f,   -0.376124811f, 0.1128168254f,
                                -0.02676171965f, 0.0049859402f, -0.0005953739497f};
  static const float big[] = {1.128648494f,    0.6351512994f,     0.1062369086f,  -0.02376209208f,
                              0.003642474003f, -0.0003228078269f, 1.123173048e-5f};
  const vf t = vf_min(vf_set1(4.0f), vf_abs(x));
  const vf s = vf_fma(x, vf_poly(vf_mul(x, x), small, 6), x);
  const vf b = vf_sub(vf_set1(1.0f), vf_exp(vf_neg(vf_mul(t, vf_poly(t, big, 7)))));
  return vf_select(vf_lt(t, vf_set1(0.93f)), s, vf_copysign(b, x));
}

/* Below 0.625: x + x^3 P(x^2); above: 1 - 2 / (exp(2x) + 1). */
FL_INLINE vf vf_tanh(vf x) {
  static const float c[] = {-0.3333328144f, 0.1333140858f, -0.05373569196f, 0.02062280711f, -0.005683869528f};
  const vf t = vf_abs(x), x2 = vf_mul(x, x), one = vf_set1(1.0f);
  const vf s = vf_fma(vf_mul(x2, x), vf_poly(x2, c, 5), x);
  const vf b = vf_sub(one, vf_div(vf_set1(2.0f), vf_add(vf_exp(vf_add(t, t)), one)));
  return vf_select(vf_lt(t, vf_set1(0.625f)), s, vf_copysign(b, x));
}

/* From exp(-|x|), so that it neither overflows nor loses the small results for x << 0. */
FL_INLINE vf vf_sigmoid(vf x) {
  const vf e = vf_exp(vf_neg(vf_abs(x))), one = vf_set1(1.0f);
  return vf_div(vf_select(vf_lt(x, vf_zero()), e, one), vf_add(one, e));
}

FL_INLINE vf vf_relu(vf x) { return vf_max(vf_zero(), x); } /* NaN stays */
/* As in PyTorch: hi where lo > hi; NaN stays. */
FL_INLINE vf vf_clamp(vf x, vf lo, vf hi) { return vf_min(hi, vf_max(lo, x)); }
FL_INLINE vf vf_silu(vf x) { return vf_mul(x, vf_sigmoid(x)); }
FL_INLINE vf vf_gelu(vf x) {
  const vf h = vf_mul(x, vf_set1(0.5f));
  return vf_fma(h, vf_erf(vf_mul(x, vf_set1(0.70710678f))), h);
}
FL_INLINE vf vf_gelu_tanh(vf x) {
  const vf inner = vf_fma(vf_mul(vf_mul(x, x), vf_set1(0.044715f)), x, x);
  const vf h = vf_mul(x, vf_set1(0.5f));
  return vf_fma(h, vf_tanh(vf_mul(inner, vf_set1(0.79788456f))), h);
}
FL_INLINE vf vf_hardsigmoid(vf x) {
  const vf t = vf_clamp(vf_add(x, vf_set1(3.0f)), vf_zero(), vf_set1(6.0f));
  return vf_mul(t, vf_set1(1.0f / 6.0f));
}
FL_INLINE vf vf_hardswish(vf x) { return vf_mul(x, vf_hardsigmoid(x)); }

/* An activation of acts.def; `act` is constant within a loop, so the switch is predicted or hoisted. */
FL_INLINE vf vf_act(vf x, fl_act act, float lo, float hi) {
  switch (act) {
  case FL_ACT_RELU: return vf_relu(x);
  case FL_ACT_CLAMP: return vf_clamp(x, vf_set1(lo), vf_set1(hi));
  case FL_ACT_GELU: return vf_gelu(x);
  case FL_ACT_GELU_TANH: return vf_gelu_tanh(x);
  case FL_ACT_SILU: return vf_silu(x);
  case FL_ACT_SIGMOID: return vf_sigmoid(x);
  case FL_ACT_TANH: return vf_tanh(x);
  case FL_ACT_HARDSWISH: return vf_hardswish(x);
  case FL_ACT_HARDSIGMOID: return vf_hardsigmoid(x);
  default: return x;
  }
}
