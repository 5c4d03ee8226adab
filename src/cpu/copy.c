/* Strided copies. The loops follow the destination's order in memory, with axes that lie behind each other in both
 * tensors merged; where the source runs along another axis, both are walked in square blocks. */
#include <string.h>

#include "cpu/kernel.h"

enum { PIECE = 4096, SQUARE = 16 };

typedef struct job {
  char *dst;
  const char *src;
  size_t size;
  int rank; /* of the loops below, innermost last, at least 1 */
  int64_t dims[FL_MAX_RANK], ds[FL_MAX_RANK], ss[FL_MAX_RANK];
  int cross;       /* axis along which the source is dense and the destination is not, or -1 */
  int64_t pieces;  /* of the innermost axis, or of the cross axis if there is one */
} job;

static int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

/* Fills dims and strides: axes of 1 dropped, sorted by the destination's strides, merged. */
static void arrange(job *j, const fl_tensor *dst, const fl_tensor *src) {
  int n = 0;
  for (int d = 0; d < dst->type.rank; d++) {
    if (dst->type.dims[d] == 1) continue;
    int at = n++;
    for (; at > 0 && magnitude(j->ds[at - 1]) < magnitude(dst->strides[d]); at--) {
      j->dims[at] = j->dims[at - 1], j->ds[at] = j->ds[at - 1], j->ss[at] = j->ss[at - 1];
    }
    j->dims[at] = dst->type.dims[d], j->ds[at] = dst->strides[d], j->ss[at] = src->strides[d];
  }
  int m = 0;
  for (int i = 0; i < n; i++) {
    if (m && j->ds[m - 1] == j->ds[i] * j->dims[i] && j->ss[m - 1] == j->ss[i] * j->dims[i]) {
      j->dims[m - 1] *= j->dims[i], j->ds[m - 1] = j->ds[i], j->ss[m - 1] = j->ss[i];
    } else {
      j->dims[m] = j->dims[i], j->ds[m] = j->ds[i], j->ss[m] = j->ss[i];
      m++;
    }
  }
  if (m == 0) j->dims[0] = 1, j->ds[0] = j->ss[0] = 1, m = 1;
  j->rank = m;
}

#define STRIDED(T)                                                                                                     \
  for (int64_t i = 0; i < n; i++) ((T *)dst)[i * ds] = ((const T *)src)[i * ss]

static void copy_row(char *dst, int64_t ds, const char *src, int64_t ss, int64_t n, size_t size) {
  if (ds == 1 && ss == 1) memcpy(dst, src, (size_t)n * size);
  else if (size == 4) STRIDED(uint32_t);
  else if (size == 8) STRIDED(uint64_t);
  else if (size == 2) STRIDED(uint16_t);
  else STRIDED(uint8_t);
}

#define SQUARES(T)                                                                                                     \
  for (int64_t k = 0; k < inner; k += SQUARE)                                                                          \
    for (int64_t i = 0; i < n; i += SQUARE)                                                                            \
      for (int64_t p = i; p < i + SQUARE && p < n; p++)                                                                \
        for (int64_t q = k; q < k + SQUARE && q < inner; q++)                                                          \
          ((T *)dst)[p * dp + q] = ((const T *)src)[p + q * sq]

/* dst[p dp + q] = src[p + q sq], p < n, q < inner */
static void copy_cross(char *dst, int64_t dp, const char *src, int64_t sq, int64_t n, int64_t inner, size_t size) {
  if (size == 4) SQUARES(uint32_t);
  else if (size == 8) SQUARES(uint64_t);
  else if (size == 2) SQUARES(uint16_t);
  else SQUARES(uint8_t);
}

/* Unit u is a piece of one row (or of one cross slab) of the index space. */
static void copy_units(void *arg, int64_t begin, int64_t end, int thread) {
  const job *j = arg;
  int last = j->rank - 1, cut = j->cross >= 0 ? j->cross : last;
  for (int64_t u = begin; u < end; u++) {
    int64_t rest = u / j->pieces, first = u % j->pieces * PIECE, d = first * j->ds[cut], s = first * j->ss[cut];
    for (int a = last - 1; a >= 0; a--) {
      if (a == j->cross) continue;
      d += rest % j->dims[a] * j->ds[a];
      s += rest % j->dims[a] * j->ss[a];
      rest /= j->dims[a];
    }
    int64_t n = j->dims[cut] - first < PIECE ? j->dims[cut] - first : PIECE;
    char *dst = j->dst + d * (int64_t)j->size;
    const char *src = j->src + s * (int64_t)j->size;
    if (j->cross < 0) copy_row(dst, j->ds[last], src, j->ss[last], n, j->size);
    else copy_cross(dst, j->ds[cut], src, j->ss[last], n, j->dims[last], j->size);
  }
}

void fl_copy_strided(const fl_tensor *dst, const fl_tensor *src, fl_pool *pool) {
  if (fl_type_numel(&dst->type) == 0) return;
  job j = {.dst = dst->data, .src = src->data, .size = fl_dtype_size(dst->type.dtype), .cross = -1};
  arrange(&j, dst, src);
  int last = j.rank - 1;
  for (int a = 0; a < last && j.ss[last] != 1 && j.ds[last] == 1; a++)
    if (j.ss[a] == 1) j.cross = a;
  int cut = j.cross >= 0 ? j.cross : last;
  int64_t units = 1, each = (j.dims[cut] < PIECE ? j.dims[cut] : PIECE) * (j.cross >= 0 ? j.dims[last] : 1);
  j.pieces = (j.dims[cut] + PIECE - 1) / PIECE;
  for (int a = 0; a < last; a++)
    if (a != j.cross) units *= j.dims[a];
  fl_parallel(pool, units * j.pieces, 1 + 16384 / each, copy_units, &j);
}
