/* What attention.inl knows of its elements, for f32: a unit is one number. After simd_*.h. */
#include "base/dtype.h"

typedef float elem;
#define ELEM          FL_F32
#define UNIT          1
#define ROOM(keys, E) 0 /* floats that values_in_units needs */

FL_INLINE vf multiply(vf a, vf b, vf c) { return vf_fma(a, b, c); }
FL_INLINE vf spread(const elem *unit) { return vf_set1(*unit); }
FL_INLINE vf load_units(const elem *p, vm m) { return vf_load_mask(p, m); }
FL_INLINE vf load_all(const elem *p) { return vf_load(p); } /* VL elements, as f32 */
FL_INLINE vf load_part(const elem *p, vm m) { return vf_load_mask(p, m); }
FL_INLINE void store_part(elem *p, vm m, vf v) { vf_store_mask(p, m, v); }
/* n rows of E values as rows of units, one for each number of weights_in_units. */
FL_INLINE const elem *values_in_units(float *room, const elem *v, int64_t *stride, int64_t n, int64_t E) { return v; }
/* Makes units of n rows of W weights, in place; returns how many rows those are. */
FL_INLINE int64_t weights_in_units(float *s, int64_t n) { return n; }
