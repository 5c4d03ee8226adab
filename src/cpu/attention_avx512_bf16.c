/* Attention of bf16: scores, maxima and sums are f32; weights are rounded to bf16 before they multiply values. */
#include "base/dtype.h"
#include "cpu/instance_avx512_bf16.h"
#include "cpu/half_avx512.h"

/* The names of attention_f32.inl. A unit is two numbers: neighbours in queries and keys, two keys' in values and weights. */
typedef uint16_t elem;
#define ELEM          FL_BF16
#define UNIT          2
#define ROOM(keys, E) ((keys) / 2 * (E))

FL_INLINE vf multiply(vf a, vf b, vf c) { return half_dot(a, b, c); }
FL_INLINE vf spread(const elem *unit) {
  int both;
  __builtin_memcpy(&both, unit, sizeof both);
  return _mm512_castsi512_ps(_mm512_set1_epi32(both));
}
FL_INLINE vf load_units(const elem *p, vm m) { return _mm512_maskz_loadu_ps(m, p); }
FL_INLINE vf load_all(const elem *p) { return vf_load_bf16(p); }
FL_INLINE vf load_part(const elem *p, vm m) { return half_load(p, m); }
FL_INLINE void store_part(elem *p, vm m, vf v) { half_store(p, m, v); }

static const elem *values_in_units(float *room, const elem *v, int64_t *stride, int64_t n, int64_t E) {
  for (int64_t j = 0; j < n; j += 2)
    for (int64_t e = 0; e < E; e += VL) {
      const vm m = vm_first(E - e < VL ? (int)(E - e) : VL), odd = j + 1 < n ? m : 0;
      const elem *row = v + j * *stride + e;
      vf_store_mask(room + j / 2 * E + e, m, half_pairs(row, m, odd ? row + *stride : row, odd));
    }
  *stride = 2 * E;
  return (const elem *)room;
}

static int64_t weights_in_units(float *s, int64_t n) {
  for (int64_t j = 0; j < n; j += 2)
    for (int c = 0; c < 2 * VL; c += VL) {
      elem a[VL], b[VL] = {0};
      vf_store_bf16(a, vf_load(s + j * 2 * VL + c));
      if (j + 1 < n) vf_store_bf16(b, vf_load(s + (j + 1) * 2 * VL + c));
      vf_store(s + j * VL + c, half_pairs(a, vm_first(VL), b, vm_first(VL)));
    }
  return (n + 1) / 2;
}

#include "cpu/attention.inl"
