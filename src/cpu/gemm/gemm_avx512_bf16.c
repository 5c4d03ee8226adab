/* Products of bf16, two at a time: see gemm.h. Sums are f32, denormals count as zero. */
#include <string.h>

#include "cpu/vmath_avx512.h"
#include "cpu/half_avx512.h"

#define DOT(a, b, c) half_dot(a, b, c)
#define MR           14
#include "cpu/gemm/gemm_core.inl"

/* Columns contiguous: pairs are floats already. */
static void pack_columns_half(float *dst, const uint16_t *src, int64_t sn, int64_t columns, int64_t k) {
  for (int64_t at = 0; at < k; at += 2 * VL, dst += VL * NR) {
    const int64_t left = k - at < 2 * VL ? k - at : 2 * VL, rows = (left + 1) / 2;
    const __mmask32 m = left < 32 ? (1u << left) - 1u : ~0u;
    for (int64_t j = 0; j < NR; j += VL) {
      vf r[VL];
      for (int i = 0; i < VL; i++)
        r[i] = j + i < columns ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(m, src + (j + i) * sn + at)) : vf_zero();
      vf_transpose(r);
      for (int i = 0; i < VL; i++)
        if (i < rows) vf_store(dst + i * NR + j, r[i]);
    }
  }
}

/* Rows contiguous: two of them interleaved. */
static void pack_rows_half(float *dst, const uint16_t *src, int64_t sk, int64_t columns, int64_t k) {
  for (int64_t at = 0; at < k; at += 2, dst += NR)
    for (int64_t j = 0; j < NR; j += VL) {
      const int64_t left = columns - j;
      const vm m = vm_first(left < 0 ? 0 : left < VL ? (int)left : VL), odd = at + 1 < k ? m : 0;
      const uint16_t *row = src + at * sk + j;
      vf_store(dst + j, half_pairs(row, m, odd ? row + sk : row, odd));
    }
}

static void pack_half(float *dst, const uint16_t *src, int64_t sn, int64_t sk, int64_t columns, int64_t k) {
  if (sk == 1) {
    pack_columns_half(dst, src, sn, columns, k);
    return;
  }
  if (sn == 1) {
    pack_rows_half(dst, src, sk, columns, k);
    return;
  }
  uint16_t pair[2 * NR];
  for (int64_t at = 0; at < k; at += 2, dst += NR) {
    memset(pair, 0, sizeof pair);
    for (int64_t j = 0; j < columns; j++)
      for (int64_t i = 0; i < 2 && at + i < k; i++) pair[2 * j + i] = src[j * sn + (at + i) * sk];
    memcpy(dst, pair, sizeof pair);
  }
}

STRIP(1)
STRIP(2)
STRIP(3)
STRIP(4)
STRIP(5)
STRIP(6)
STRIP(7)
STRIP(8)
STRIP(9)
STRIP(10)
STRIP(11)
STRIP(12)
STRIP(13)
STRIP(14)

const fl_gemm_isa fl_gemm_avx512_bf16 = {
    .mr = MR,
    .nr = NR,
    .strip = {strip_1, strip_2, strip_3, strip_4, strip_5, strip_6, strip_7, strip_8, strip_9, strip_10, strip_11,
              strip_12, strip_13, strip_14},
    .pack_columns = pack_columns,
    .copy = copy_row,
    .act = act_row,
    .pack_half = pack_half,
};
