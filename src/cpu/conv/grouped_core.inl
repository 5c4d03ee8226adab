/* The loops of grouped.h, instantiated by grouped_avx512.c and grouped_avx2.c, which include vmath first and define MR, the
 * pixels of a tile, and TABLE, the name of what is exported. */

#include "cpu/conv/grouped.h"
#include "cpu/gemm/gemm_core.inl"

#define BASES ((MR + 2) / 3)

/* Where the pixels of a tile are read: every third has a pointer, its neighbours are one and two steps on. Of two rows,
 * the second's pointers follow. */
typedef struct spots {
  const float *at[BASES + 1];
} spots;

FL_INLINE spots spots_at(const int rows, const int cols, const fl_grouped *g, const float *x) {
  spots s;
  for (int r = 0, k = 0; r < rows; r++)
    for (int i = 0; i < cols; i += 3) s.at[k++] = x + r * g->row_step + i * g->pixel_step;
  return s;
}

FL_INLINE const float *spot(const int cols, const spots *s, int pixel, int64_t step) {
  const int i = pixel % cols;
  return s->at[pixel / cols * ((cols + 2) / 3) + i / 3] + i % 3 * step;
}

/* acc[rows cols][nv] = the window's sums. */
FL_INLINE void window_wide(const int rows, const int cols, const int nv, vf acc[][2], const fl_grouped *g,
                           const float *x, const float *b) {
  const int64_t step = g->pixel_step;
#pragma GCC unroll 14
  for (int i = 0; i < rows * cols; i++)
    for (int j = 0; j < nv; j++) acc[i][j] = vf_zero();
  for (int64_t h = 0; h < g->kh; h++, x += g->window_row)
    for (int64_t w = 0; w < g->kw; w++) {
      spots s = spots_at(rows, cols, g, x + w * g->window_column);
      for (int64_t c = 0; c < g->channels; c++, b += NR) {
        _mm_prefetch((const char *)(b + B_PREFETCH), _MM_HINT_T0);
        if (nv > 1 && VL > 8) _mm_prefetch((const char *)(b + B_PREFETCH + VL), _MM_HINT_T0);
        vf bv[2];
        for (int j = 0; j < nv; j++) bv[j] = vf_load(b + j * VL);
#pragma GCC unroll 14
        for (int i = 0; i < rows * cols; i++) {
          const vf xv = vf_set1(*spot(cols, &s, i, step));
          for (int j = 0; j < nv; j++) acc[i][j] = vf_fma(xv, bv[j], acc[i][j]);
        }
        for (int k = 0; k < rows * ((cols + 2) / 3); k++) s.at[k]++;
      }
    }
}

FL_INLINE void window_narrow(const int rows, const int cols, vf acc[][2], const fl_grouped *g, const float *x) {
  const int64_t step = g->pixel_step;
  const float *b = g->b;
#pragma GCC unroll 14
  for (int i = 0; i < rows * cols; i++) acc[i][0] = vf_zero();
  for (int64_t h = 0; h < g->kh; h++, x += g->window_row)
    for (int64_t w = 0; w < g->kw; w++) {
      const spots s = spots_at(rows, cols, g, x + w * g->window_column);
      for (int64_t c = 0; c < g->channels; c++, b += VL) {
        const vf bv = vf_load(b);
        const vi lane = vi_load(g->lanes + c * VL);
#pragma GCC unroll 14
        for (int i = 0; i < rows * cols; i++)
          acc[i][0] = vf_fma(vf_permute(vf_load(spot(cols, &s, i, step)), lane), bv, acc[i][0]);
      }
    }
}

/* A tile of `rows` x `cols` pixels, whose results lie one after the other. */
FL_INLINE void wide_tile(const int rows, const int cols, const fl_grouped *g, const float *x, const fl_gemm_strip *s) {
  vf acc[MR][2];
  const int n = (int)s->n;
  if (n == NR) {
    window_wide(rows, cols, 2, acc, g, x, g->b);
    store_tile(rows * cols, 2, false, s, acc, 0, VL);
  } else if (n > VL) {
    window_wide(rows, cols, 2, acc, g, x, g->b);
    store_tile(rows * cols, 2, true, s, acc, 0, n - VL);
  } else {
    window_wide(rows, cols, 1, acc, g, x, g->b);
    store_tile(rows * cols, 1, true, s, acc, 0, n);
  }
}

FL_INLINE void narrow_tile(const int rows, const int cols, const fl_grouped *g, const float *x,
                           const fl_gemm_strip *s) {
  vf acc[MR][2];
  window_narrow(rows, cols, acc, g, x);
  store_tile(rows * cols, 1, true, s, acc, 0, (int)s->n);
}

typedef void (*tile_fn)(const fl_grouped *g, const float *x, const fl_gemm_strip *s);

#define TILE(rows, cols)                                                                                               \
  static void wide_##rows##x##cols(const fl_grouped *g, const float *x, const fl_gemm_strip *s) {                      \
    wide_tile(rows, cols, g, x, s);                                                                                    \
  }                                                                                                                    \
  static void narrow_##rows##x##cols(const fl_grouped *g, const float *x, const fl_gemm_strip *s) {                    \
    narrow_tile(rows, cols, g, x, s);                                                                                  \
  }
TILES(TILE)
#undef TILE
#define TILE(rows, cols) [rows - 1][cols - 1] = wide_##rows##x##cols,
static const tile_fn wide_tiles[2][MR] = {TILES(TILE)};
#undef TILE
#define TILE(rows, cols) [rows - 1][cols - 1] = narrow_##rows##x##cols,
static const tile_fn narrow_tiles[2][MR] = {TILES(TILE)};
#undef TILE

/* Tiles of equal width; where a row is short, two rows at a time, whose results then follow each other. */
static void stripe(const fl_grouped *g, const tile_fn tiles[2][MR]) {
  const int64_t count = (g->pixels + MR - 1) / MR;
  const bool pairs = 2 * g->pixels <= MR && g->out_row == g->pixels * g->out.ldc;
  for (int64_t row = 0; row < g->rows;) {
    const int rows = pairs && row + 2 <= g->rows ? 2 : 1;
    for (int64_t t = 0; t < count; t++) {
      const int64_t at = g->pixels * t / count, cols = g->pixels * (t + 1) / count - at;
      fl_gemm_strip s = g->out;
      s.c += row * g->out_row + at * s.ldc;
      if (s.residual) s.residual += row * g->out_row + at * s.ldc;
      tiles[rows - 1][cols - 1](g, g->x + row * g->row_step + at * g->pixel_step, &s);
      if (s.epilogue.act > FL_ACT_CLAMP)
        for (int64_t i = 0; i < rows * cols; i++) act_row(s.c + i * s.ldc, s.n, s.epilogue);
    }
    row += rows;
  }
}

static void wide(const fl_grouped *g) { stripe(g, wide_tiles); }
static void narrow(const fl_grouped *g) { stripe(g, narrow_tiles); }

static void copy(float *dst, int64_t to, const float *src, int64_t from, int64_t channels, int64_t n) {
  const int64_t whole = channels / VL * VL;
  const vm m = vm_first((int)(channels - whole));
  for (int64_t i = 0; i < n; i++, dst += to, src += from) {
    for (int64_t c = 0; c < whole; c += VL) vf_store(dst + c, vf_load(src + c));
    if (whole < channels) vf_store_mask(dst + whole, m, vf_load_mask(src + whole, m));
  }
}

const fl_grouped_isa TABLE = {.vl = VL, .wide = wide, .narrow = narrow, .copy = copy};
