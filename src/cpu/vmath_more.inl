/* More elementary functions on a vf, for pointwise programs; vmath_avx512.h or vmath_avx2.h is included before it. */
#ifndef FL_CPU_VMATH_MORE_INL
#define FL_CPU_VMATH_MORE_INL

#include <math.h>

/* Kahan: exp(x) - 1 = (u - 1) x / log u with u = exp(x) as rounded. */
FL_INLINE vf vf_expm1(vf x) {
  const vf one = vf_set1(1.0f), u = vf_exp(x), d = vf_sub(u, one);
  vf r = vf_div(vf_mul(d, x), vf_log(u));
  r = vf_select(vf_eq(u, one), x, r);
  r = vf_select(vf_lt(x, vf_set1(-18.0f)), vf_set1(-1.0f), r);
  return vf_select(vf_lt(vf_set1(80.0f), x), u, r); /* also infinity */
}

FL_INLINE vf vf_log1p(vf x) {
  const vf one = vf_set1(1.0f), u = vf_add(one, x);
  vf r = vf_div(vf_mul(vf_log(u), x), vf_sub(u, one));
  r = vf_select(vf_eq(u, one), x, r);
  return vf_select(vf_lt(vf_set1(1e30f), x), vf_log(x), r);
}

FL_INLINE vf vf_softplus(vf x, float beta, float threshold) {
  const vf t = vf_mul(x, vf_set1(beta));
  return vf_select(vf_lt(vf_set1(threshold), t), x, vf_div(vf_log1p(vf_exp(t)), vf_set1(beta)));
}

/* Reduced by multiples of pi/2 in three parts, then minimax polynomials on |r| <= pi/4. `quarter` 0 gives the sine, 1
 * the cosine. Beyond 8192 the reduction would lose digits, and the C library answers. */
FL_INLINE vf vf_sincos(vf x, float quarter) {
  const vf n = vf_round(vf_mul(x, vf_set1(0.636619772f)));
  vf r = vf_fnma(n, vf_set1(1.5707855225f), x);
  r = vf_fnma(n, vf_set1(1.0804334124e-5f), r);
  r = vf_fnma(n, vf_set1(6.0770999344e-11f), r);
  const vf r2 = vf_mul(r, r), k = vf_add(n, vf_set1(quarter));
  vf s = vf_fma(vf_fma(vf_set1(-1.9515295891e-4f), r2, vf_set1(8.3321608736e-3f)), r2, vf_set1(-1.6666654611e-1f));
  s = vf_fma(vf_mul(s, r2), r, r);
  vf c = vf_fma(vf_fma(vf_set1(2.443315711809948e-5f), r2, vf_set1(-1.388731625493765e-3f)), r2,
                vf_set1(4.166664568298827e-2f));
  c = vf_fma(vf_mul(c, r2), r2, vf_fnma(r2, vf_set1(0.5f), vf_set1(1.0f)));
  /* k mod 4: odd takes the cosine, 2 and 3 change the sign. */
  const vf half = vf_floor(vf_mul(k, vf_set1(0.5f))), odd = vf_sub(k, vf_add(half, half));
  const vf turn = vf_sub(half, vf_mul(vf_set1(2.0f), vf_floor(vf_mul(half, vf_set1(0.5f)))));
  vf v = vf_select(vf_eq(odd, vf_zero()), s, c);
  v = vf_select(vf_eq(turn, vf_zero()), v, vf_neg(v));
  float in[VL], out[VL];
  vf_store(in, x);
  bool large = false;
  for (int i = 0; i < VL; i++) large = large || !(fabsf(in[i]) < 8192.0f);
  if (!large) return v;
  vf_store(out, v);
  for (int i = 0; i < VL; i++)
    if (!(fabsf(in[i]) < 8192.0f)) out[i] = quarter == 0.0f ? sinf(in[i]) : cosf(in[i]);
  return vf_load(out);
}
FL_INLINE vf vf_sin(vf x) { return vf_sincos(x, 0.0f); }
FL_INLINE vf vf_cos(vf x) { return vf_sincos(x, 1.0f); }

/* PyTorch's floor division and remainder of floats. */
FL_INLINE float scalar_floor_div(float a, float b) {
  if (b == 0) return a / b;
  float mod = fmodf(a, b), div = (a - mod) / b;
  if (mod != 0 && (b < 0) != (mod < 0)) div -= 1;
  if (div == 0) return copysignf(0.0f, a / b);
  float r = floorf(div);
  return div - r > 0.5f ? r + 1 : r;
}
FL_INLINE float scalar_rem(float a, float b) {
  float mod = fmodf(a, b);
  return mod != 0 && (b < 0) != (mod < 0) ? mod + b : mod;
}

#endif
