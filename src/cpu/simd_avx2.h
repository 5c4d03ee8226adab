/* Eight floats at a time: the names of simd_avx512.h on AVX2 and FMA. See there. */
#ifndef FL_CPU_SIMD_H
#define FL_CPU_SIMD_H

#include <immintrin.h>
#include <stdint.h>

#define FL_INLINE static inline __attribute__((always_inline, unused))
#define VL        8 /* floats in a vf */

typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm; /* all ones or all zeros per lane */

FL_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
FL_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
FL_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
FL_INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
FL_INLINE vm vm_first(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
FL_INLINE vm vm_and(vm a, vm b) { return _mm256_and_ps(a, b); }
FL_INLINE vf vf_load_mask(const float *p, vm m) { return _mm256_maskload_ps(p, _mm256_castps_si256(m)); }
FL_INLINE void vf_store_mask(float *p, vm m, vf v) { _mm256_maskstore_ps(p, _mm256_castps_si256(m), v); }

FL_INLINE vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
FL_INLINE vf vf_permute(vf v, vi at) { return _mm256_permutevar8x32_ps(v, at); }

FL_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
FL_INLINE void vf_store_f16(uint16_t *p, vf v) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FL_INLINE vf vf_load_bf16(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
FL_INLINE void vf_store_bf16(uint16_t *p, vf v) {
  const vi u = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  vi r = _mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff));
  const vi nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
  r = _mm256_srli_epi32(r, 16);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(r));
}

FL_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
FL_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
FL_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
FL_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
FL_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
FL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
FL_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
FL_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
FL_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
FL_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FL_INLINE vf vf_neg(vf a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
FL_INLINE vf vf_copysign(vf magnitude, vf sign) {
  const vf bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
FL_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_floor(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_ceil(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
FL_INLINE vf vf_trunc(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }

FL_INLINE vm vf_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
FL_INLINE vm vf_le(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
FL_INLINE vm vf_eq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
FL_INLINE vm vf_isnan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
FL_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }

FL_INLINE float vf_sum(vf a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
FL_INLINE float vf_hmax(vf a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* In two steps, because one factor 2^n is no float for n < -126 or n > 127; only the second one rounds. */
FL_INLINE vf vf_ldexp(vf a, vf n) {
  const vi i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half);
  const vi bias = _mm256_set1_epi32(127);
  vf p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  vf q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return vf_mul(vf_mul(a, p), q);
}
FL_INLINE vf vf_frexp(vf x, vf *out_exponent) {
  const vm tiny = vf_lt(x, vf_set1(1.17549435e-38f));
  x = vf_select(tiny, vf_mul(x, vf_set1(8388608.0f)), x);
  /* 0.75 as the origin of the exponent brings the mantissa into [0.75, 1.5). */
  const vi origin = _mm256_set1_epi32(0x3f400000);
  vi d = _mm256_sub_epi32(_mm256_castps_si256(x), origin);
  vi e = _mm256_srai_epi32(d, 23);
  vi m = _mm256_add_epi32(_mm256_and_si256(d, _mm256_set1_epi32(0x007fffff)), origin);
  *out_exponent = vf_sub(_mm256_cvtepi32_ps(e), vf_select(tiny, vf_set1(23.0f), vf_zero()));
  return _mm256_castsi256_ps(m);
}

#endif
