/* Sixteen floats at a time: one thin name per AVX-512 instruction.
 *
 * simd_avx512.h and simd_avx2.h define the same names, so that a body written once is instantiated for either.
 * A file includes one of them only, and is compiled for that instruction set (its name ends in _avx512.c or _avx2.c). */
#ifndef FL_CPU_SIMD_H
#define FL_CPU_SIMD_H

#include <immintrin.h>
#include <stdint.h>

#define FL_INLINE static inline __attribute__((always_inline, unused))
#define VL        16 /* floats in a vf */

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm; /* one truth value per lane */

FL_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
FL_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
FL_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
FL_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
/* The first n lanes, 0 <= n <= VL; memory beyond them is not touched, lanes beyond them load as 0. */
FL_INLINE vm vm_first(int n) { return (vm)((1u << n) - 1u); }
FL_INLINE vm vm_and(vm a, vm b) { return a & b; }
FL_INLINE vf vf_load_mask(const float *p, vm m) { return _mm512_maskz_loadu_ps(m, p); }
FL_INLINE void vf_store_mask(float *p, vm m, vf v) { _mm512_mask_storeu_ps(p, m, v); }

FL_INLINE vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
/* Lane i of the result is lane at[i] of v. */
FL_INLINE vf vf_permute(vf v, vi at) { return _mm512_permutexvar_ps(at, v); }

/* VL 16-bit floats; stores round to nearest even. */
FL_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
FL_INLINE void vf_store_f16(uint16_t *p, vf v) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FL_INLINE vf vf_load_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
FL_INLINE void vf_store_bf16(uint16_t *p, vf v) {
  const vi u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  vi r = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000)); /* stays NaN */
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

FL_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
FL_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
FL_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
FL_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
FL_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
FL_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
/* The processor's own: b where either is NaN. */
FL_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
FL_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
FL_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
FL_INLINE vf vf_neg(vf a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
/* |magnitude| with the sign of `sign`. */
FL_INLINE vf vf_copysign(vf magnitude, vf sign) {
  const vf bit = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}
FL_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_floor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_ceil(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_trunc(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }

/* Ordered comparisons: false where either is NaN. */
FL_INLINE vm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
FL_INLINE vm vf_le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
FL_INLINE vm vf_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
FL_INLINE vm vf_isnan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }

FL_INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
FL_INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); } /* no NaN among the lanes */

/* a 2^n for integral n, right into the denormals and up to infinity. */
FL_INLINE vf vf_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }
/* x = mantissa 2^exponent with 0.75 <= mantissa < 1.5, for x > 0 and finite. */
FL_INLINE vf vf_frexp(vf x, vf *out_exponent) {
  vf m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  *out_exponent = vf_add(_mm512_getexp_ps(x), vf_select(vf_lt(m, vf_set1(1.0f)), vf_set1(1.0f), vf_zero()));
  return m;
}

#endif
