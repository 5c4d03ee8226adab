#include <stdint.h>
#include <string.h>

#include "cpu/kernel.h"

/* A copy is cut into tiles of a plane of two axes: n, along which dst is closest together, and m, along which src is
 * (else the next axis of dst). The other axes count planes. */
typedef struct axis {
  int64_t dim, dst, src; /* strides in elements */
} axis;

typedef struct plane_copy {
  char *dst;
  const char *src;
  size_t elem;
  int n_outer;
  axis outer[FL_MAX_RANK], m, n;
  int64_t tile_m, tile_n, tiles_m, tiles_n;
} plane_copy;

typedef struct tile {
  void *dst;
  const void *src;
  int64_t m, n, dst_m, dst_n, src_m, src_n;
} tile;

static int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* --- one tile --- */

#define TILE_FUNCTIONS(T)                                                                                              \
  static void copy_##T(const tile *t) {                                                                                \
    T *d = t->dst;                                                                                                     \
    const T *s = t->src;                                                                                               \
    for (int64_t i = 0; i < t->m; i++, d += t->dst_m, s += t->src_m)                                                   \
      for (int64_t j = 0; j < t->n; j++) d[j * t->dst_n] = s[j * t->src_n];                                            \
  }                                                                                                                    \
  static void fill_##T(const tile *t) {                                                                                \
    T *d = t->dst;                                                                                                     \
    const T *s = t->src;                                                                                               \
    for (int64_t i = 0; i < t->m; i++, d += t->dst_m, s += t->src_m) {                                                 \
      T v = *s;                                                                                                        \
      for (int64_t j = 0; j < t->n; j++) d[j] = v;                                                                     \
    }                                                                                                                  \
  }
TILE_FUNCTIONS(uint8_t)
TILE_FUNCTIONS(uint16_t)
TILE_FUNCTIONS(uint32_t)
TILE_FUNCTIONS(uint64_t)

typedef void (*tile_fn)(const tile *);
static const tile_fn copies[] = {[1] = copy_uint8_t, [2] = copy_uint16_t, [4] = copy_uint32_t, [8] = copy_uint64_t};
static const tile_fn fills[] = {[1] = fill_uint8_t, [2] = fill_uint16_t, [4] = fill_uint32_t, [8] = fill_uint64_t};

static void copy_rows(const tile *t, size_t elem) {
  char *d = t->dst;
  const char *s = t->src;
  for (int64_t i = 0; i < t->m; i++)
    memcpy(d + i * t->dst_m * (int64_t)elem, s + i * t->src_m * (int64_t)elem, (size_t)t->n * elem);
}

typedef uint32_t v4 __attribute__((vector_size(16)));

static v4 load4(const uint32_t *p) {
  v4 v;
  memcpy(&v, p, sizeof v);
  return v;
}

static void store4(uint32_t *p, v4 v) { memcpy(p, &v, sizeof v); }

/* dst[i][j] = src[j][i] for a block of 4 x 4 */
static inline void transpose_4x4(uint32_t *d, int64_t dst_m, const uint32_t *s, int64_t src_n) {
  v4 a = load4(s), b = load4(s + src_n), c = load4(s + 2 * src_n), e = load4(s + 3 * src_n);
  v4 ab0 = __builtin_shuffle(a, b, (v4){0, 4, 1, 5}), ab1 = __builtin_shuffle(a, b, (v4){2, 6, 3, 7});
  v4 ce0 = __builtin_shuffle(c, e, (v4){0, 4, 1, 5}), ce1 = __builtin_shuffle(c, e, (v4){2, 6, 3, 7});
  store4(d, __builtin_shuffle(ab0, ce0, (v4){0, 1, 4, 5}));
  store4(d + dst_m, __builtin_shuffle(ab0, ce0, (v4){2, 3, 6, 7}));
  store4(d + 2 * dst_m, __builtin_shuffle(ab1, ce1, (v4){0, 1, 4, 5}));
  store4(d + 3 * dst_m, __builtin_shuffle(ab1, ce1, (v4){2, 3, 6, 7}));
}

/* src is adjacent along m, dst along n; 4-byte elements. */
static void transpose_words(const tile *t) {
  uint32_t *d = t->dst;
  const uint32_t *s = t->src;
  int64_t m4 = t->m & ~3, n4 = t->n & ~3;
  for (int64_t i = 0; i < m4; i += 4)
    for (int64_t j = 0; j < n4; j += 4) transpose_4x4(d + i * t->dst_m + j, t->dst_m, s + i + j * t->src_n, t->src_n);
  for (int64_t i = 0; i < m4; i++)
    for (int64_t j = n4; j < t->n; j++) d[i * t->dst_m + j] = s[i + j * t->src_n];
  for (int64_t i = m4; i < t->m; i++)
    for (int64_t j = 0; j < t->n; j++) d[i * t->dst_m + j] = s[i + j * t->src_n];
}

static void copy_tile(const tile *t, size_t elem) {
  if (t->dst_n == 1 && t->src_n == 1)
    copy_rows(t, elem);
  else if (t->dst_n == 1 && t->src_n == 0)
    fills[elem](t);
  else if (elem == 4 && t->dst_n == 1 && t->src_m == 1)
    transpose_words(t);
  else
    copies[elem](t);
}

/* --- all tiles --- */

static void copy_range(void *arg, int64_t begin, int64_t end, int thread) {
  const plane_copy *p = arg;
  for (int64_t k = begin; k < end; k++) {
    int64_t in = k % p->tiles_n * p->tile_n, rest = k / p->tiles_n;
    int64_t im = rest % p->tiles_m * p->tile_m;
    rest /= p->tiles_m;
    int64_t d = im * p->m.dst + in * p->n.dst, s = im * p->m.src + in * p->n.src;
    for (int a = p->n_outer - 1; a >= 0; a--) {
      int64_t at = rest % p->outer[a].dim;
      rest /= p->outer[a].dim;
      d += at * p->outer[a].dst;
      s += at * p->outer[a].src;
    }
    tile t = {p->dst + d * (int64_t)p->elem,
              p->src + s * (int64_t)p->elem,
              smaller(p->tile_m, p->m.dim - im),
              smaller(p->tile_n, p->n.dim - in),
              p->m.dst,
              p->n.dst,
              p->m.src,
              p->n.src};
    copy_tile(&t, p->elem);
  }
}

/* Axes of more than one element, outermost in dst first. */
static int sorted_axes(const fl_tensor *dst, const fl_tensor *src, axis *axes) {
  int n = 0;
  for (int i = 0; i < dst->type.rank; i++) {
    axis a = {dst->type.dims[i], dst->strides[i], src->strides[i]};
    if (a.dim == 1) continue;
    int at = n++;
    for (; at > 0 && magnitude(axes[at - 1].dst) < magnitude(a.dst); at--) axes[at] = axes[at - 1];
    axes[at] = a;
  }
  return n;
}

/* Neighbours that form one axis in both tensors become one. */
static int merge_axes(axis *axes, int n) {
  int kept = 0;
  for (int i = 0; i < n; i++) {
    axis *last = kept ? &axes[kept - 1] : NULL;
    if (last && last->dst == axes[i].dst * axes[i].dim && last->src == axes[i].src * axes[i].dim)
      *last = (axis){last->dim * axes[i].dim, axes[i].dst, axes[i].src};
    else
      axes[kept++] = axes[i];
  }
  return kept;
}

/* The axis along which src is closest together, the last (dst's) excepted; -1 if there is one axis only. */
static int source_axis(const axis *axes, int n) {
  int best = n - 2;
  if (axes[n - 1].src == 1 || axes[n - 1].src == 0) return best;
  for (int i = 0; i < n - 1; i++)
    if (axes[i].src && magnitude(axes[i].src) < magnitude(axes[best].src)) best = i;
  return best;
}

static void choose_tiles(plane_copy *p) {
  bool rows = p->n.src == 1 || p->n.src == 0;
  p->tile_n = smaller(p->n.dim, rows ? 4096 : 64);
  p->tile_m = smaller(p->m.dim, rows ? (4096 + p->tile_n - 1) / p->tile_n : p->tile_n < 16 ? 1024 : 64);
  p->tiles_n = (p->n.dim + p->tile_n - 1) / p->tile_n;
  p->tiles_m = (p->m.dim + p->tile_m - 1) / p->tile_m;
}

void fl_copy_strided(const fl_tensor *dst, const fl_tensor *src, fl_pool *pool) {
  axis axes[FL_MAX_RANK + 2];
  if (fl_type_numel(&dst->type) == 0) return;
  int n = merge_axes(axes, sorted_axes(dst, src, axes));
  plane_copy p = {.dst = dst->data, .src = src->data, .elem = fl_dtype_size(dst->type.dtype)};
  p.n = n > 0 ? axes[n - 1] : (axis){1, 1, 1};
  int m = n > 1 ? source_axis(axes, n) : -1;
  p.m = m >= 0 ? axes[m] : (axis){1, 0, 0};
  for (int i = 0; i < n - 1; i++)
    if (i != m) p.outer[p.n_outer++] = axes[i];
  choose_tiles(&p);
  int64_t tiles = p.tiles_m * p.tiles_n;
  for (int i = 0; i < p.n_outer; i++) tiles *= p.outer[i].dim;
  fl_parallel(pool, tiles, 16384 / (p.tile_m * p.tile_n) + 1, copy_range, &p);
}
