/* vf_transpose: a VL x VL block in registers, row i of the result is column i. After simd_*.h. */
#ifndef FL_CPU_TRANSPOSE_INL
#define FL_CPU_TRANSPOSE_INL

#if defined(__AVX512F__)
FL_INLINE vf join_pd(vf a, vf b, int high) {
  __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
}

FL_INLINE void vf_transpose(vf r[16]) {
  vf t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  /* r[k + c], 128-bit lane l: column 4 l + c of rows k..k+3 */
  for (int k = 0; k < 16; k += 4) {
    r[k] = join_pd(t[k], t[k + 2], 0), r[k + 1] = join_pd(t[k], t[k + 2], 1);
    r[k + 2] = join_pd(t[k + 1], t[k + 3], 0), r[k + 3] = join_pd(t[k + 1], t[k + 3], 1);
  }
  for (int c = 0; c < 4; c++) {
    t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), t[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
  }
  for (int c = 0; c < 4; c++) {
    r[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88), r[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
    r[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
    r[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
  }
}
#else
FL_INLINE vf join_pd(vf a, vf b, int high) {
  __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
  return _mm256_castpd_ps(high ? _mm256_unpackhi_pd(x, y) : _mm256_unpacklo_pd(x, y));
}

FL_INLINE void vf_transpose(vf r[8]) {
  vf t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  vf s[8]; /* s[k + c], 128-bit lane l: column 4 l + c of rows k..k+3 */
  for (int k = 0; k < 8; k += 4) {
    s[k] = join_pd(t[k], t[k + 2], 0), s[k + 1] = join_pd(t[k], t[k + 2], 1);
    s[k + 2] = join_pd(t[k + 1], t[k + 3], 0), s[k + 3] = join_pd(t[k + 1], t[k + 3], 1);
  }
  for (int c = 0; c < 4; c++) {
    r[c] = _mm256_permute2f128_ps(s[c], s[4 + c], 0x20);
    r[4 + c] = _mm256_permute2f128_ps(s[c], s[4 + c], 0x31);
  }
}
#endif

#endif
