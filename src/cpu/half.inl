/* Rows of 16-bit floats to and from f32, and rounding in place; included by bodies written on simd_*.h. */
#include "cpu/ref.h"

#define HALF(NAME, LOAD, STORE, WIDEN, NARROW)                                                                         \
  static void NAME##_load(float *d, const uint16_t *s, int64_t n) {                                                    \
    int64_t k = 0;                                                                                                     \
    for (; k + VL <= n; k += VL) vf_store(d + k, LOAD(s + k));                                                         \
    for (; k < n; k++) d[k] = WIDEN(s[k]);                                                                             \
  }                                                                                                                    \
  static void NAME##_store(uint16_t *d, const float *s, int64_t n) {                                                   \
    int64_t k = 0;                                                                                                     \
    for (; k + VL <= n; k += VL) STORE(d + k, vf_load(s + k));                                                         \
    for (; k < n; k++) d[k] = NARROW(s[k]);                                                                            \
  }                                                                                                                    \
  static void NAME##_round(float *d, const float *s, int64_t n) {                                                      \
    uint16_t block[VL];                                                                                                \
    int64_t k = 0;                                                                                                     \
    for (; k + VL <= n; k += VL) {                                                                                     \
      STORE(block, vf_load(s + k));                                                                                    \
      vf_store(d + k, LOAD(block));                                                                                    \
    }                                                                                                                  \
    for (; k < n; k++) d[k] = WIDEN(NARROW(s[k]));                                                                     \
  }
HALF(f16, vf_load_f16, vf_store_f16, fl_f16_to_f32, fl_f32_to_f16)
HALF(bf16, vf_load_bf16, vf_store_bf16, fl_bf16_to_f32, fl_f32_to_bf16)
#undef HALF
