/* Sixteen bf16 at a time, and products of two by two, for files compiled for AVX512-BF16. After simd_avx512.h. */
#ifndef FL_CPU_HALF_AVX512_H
#define FL_CPU_HALF_AVX512_H

/* c + a b, where lanes of a and b are two bf16 each, multiplied one with one and the other with the other. Denormals count
 * as zero. */
FL_INLINE vf half_dot(vf a, vf b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
FL_INLINE vf half_load(const uint16_t *p, vm m) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}
FL_INLINE void half_store(uint16_t *p, vm m, vf v) {
  uint16_t all[VL];
  vf_store_bf16(all, v);
  _mm256_mask_storeu_epi16(p, m, _mm256_loadu_si256((const __m256i *)all));
}
/* Lanes of two: one from row a, the other from row b. */
FL_INLINE vf half_pairs(const uint16_t *a, vm ma, const uint16_t *b, vm mb) {
  const vi low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(ma, a));
  const vi high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mb, b));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

#endif
