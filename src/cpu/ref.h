/* What the portable reference kernels share: elements as double or int64_t whatever their type, and walking an index
 * space. The references judge all other kernels, so they are written to be read, and are right for any strides. */
#ifndef FL_CPU_REF_H
#define FL_CPU_REF_H

#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

static inline float fl_bf16_to_f32(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
uint16_t fl_f32_to_bf16(float f); /* round half to even */
float fl_f16_to_f32(uint16_t h);
uint16_t fl_f32_to_f16(float f); /* round half to even */

/* Element i of an array of type t. A float read as integer truncates; out of range gives INT64_MIN, as on x86. */
double fl_ref_getf(const void *data, fl_dtype t, int64_t i);
int64_t fl_ref_geti(const void *data, fl_dtype t, int64_t i);
void fl_ref_setf(void *data, fl_dtype t, int64_t i, double v);
void fl_ref_seti(void *data, fl_dtype t, int64_t i, int64_t v); /* integers wrap; bool is v != 0 */
int64_t fl_ref_ftoi(double v);

/* Coordinates of flat index `flat` in row-major order, and their successor. */
static inline void fl_ref_unravel(int64_t flat, const fl_type *t, int64_t *coord) {
  for (int d = t->rank - 1; d >= 0; d--) {
    coord[d] = flat % t->dims[d];
    flat /= t->dims[d];
  }
}

static inline void fl_ref_next(const fl_type *t, int64_t *coord) {
  for (int d = t->rank - 1; d >= 0; d--) {
    if (++coord[d] < t->dims[d]) return;
    coord[d] = 0;
  }
}

static inline int64_t fl_ref_offset(const int64_t *coord, const int64_t *strides, int rank) {
  int64_t o = 0;
  for (int d = 0; d < rank; d++) o += coord[d] * strides[d];
  return o;
}

/* Copies one element of `size` bytes. */
static inline void fl_ref_copy1(void *dst, int64_t i, const void *src, int64_t j, size_t size) {
  memcpy((char *)dst + (size_t)i * size, (const char *)src + (size_t)j * size, size);
}

/* Index in [0, n); with `wrap` negative ones count from the end, as in x[i] but not in the other operators. Out of
 * range: sets the fault flag and gives 0; the caller must not read if n is 0, when the result is -1. */
static inline int64_t fl_ref_index(int64_t i, int64_t n, bool wrap, int *fault) {
  if (wrap && i < 0) i += n;
  if (i >= 0 && i < n) return i;
  fl_set_fault(fault);
  return n > 0 ? 0 : -1;
}

/* Elements per chunk of parallel work. */
#define FL_REF_GRAIN 2048

#endif
