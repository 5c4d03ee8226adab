/* The transforms of winograd.h, instantiated by winograd_avx512.c and winograd_avx2.c, which include vmath first and
 * define TABLE, the name of what is exported. */

#include "cpu/conv/winograd.h"

/* Points 0, +-A, +-B, infinity. */
#define A  0.625f
#define B  1.5f
#define A2 (A * A)
#define B2 (B * B)

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* t = B^T d, of m + 2 values. */
FL_INLINE void input_1d(const int m, const vf *d, vf *t) {
  if (m == 2) {
    t[0] = vf_sub(d[0], d[2]);
    t[1] = vf_add(d[1], d[2]);
    t[2] = vf_sub(d[2], d[1]);
    t[3] = vf_sub(d[3], d[1]);
    return;
  }
  const vf product = vf_set1(A2 * B2), sum = vf_set1(A2 + B2), a = vf_set1(A), b = vf_set1(B);
  t[0] = vf_fma(product, d[0], vf_fnma(sum, d[2], d[4]));
  t[5] = vf_fma(product, d[1], vf_fnma(sum, d[3], d[5]));
  const vf e1 = vf_fnma(vf_set1(B2), d[2], d[4]), o1 = vf_fnma(vf_set1(B2), d[1], d[3]);
  const vf e2 = vf_fnma(vf_set1(A2), d[2], d[4]), o2 = vf_fnma(vf_set1(A2), d[1], d[3]);
  t[1] = vf_fma(a, o1, e1);
  t[2] = vf_fnma(a, o1, e1);
  t[3] = vf_fma(b, o2, e2);
  t[4] = vf_fnma(b, o2, e2);
}

/* y = A^T s, m values of m + 2. */
FL_INLINE void output_1d(const int m, const vf *s, vf *y) {
  const vf s1 = vf_add(s[1], s[2]), d1 = vf_sub(s[1], s[2]);
  if (m == 2) {
    y[0] = vf_add(s[0], s1);
    y[1] = vf_add(d1, s[3]);
    return;
  }
  const vf s2 = vf_add(s[3], s[4]), d2 = vf_sub(s[3], s[4]);
  y[0] = vf_add(s[0], vf_add(s1, s2));
  y[1] = vf_fma(vf_set1(A), d1, vf_mul(vf_set1(B), d2));
  y[2] = vf_fma(vf_set1(A2), s1, vf_mul(vf_set1(B2), s2));
  y[3] = vf_fma(vf_set1(A2 * A), d1, vf_fma(vf_set1(B2 * B), d2, s[5]));
}

typedef struct place {
  int64_t n, h, w; /* image and the first result's row and column */
} place;

static place place_of(const fl_winograd *w, int64_t tile) {
  const int64_t tw = tile % w->tiles_w, th = tile / w->tiles_w % w->tiles_h;
  return (place){tile / w->tiles_w / w->tiles_h, th * w->m, tw * w->m};
}

FL_INLINE void input_tile(const int m, const fl_winograd *w, int64_t tile, int64_t c0, int64_t c1, float *v,
                          int64_t position) {
  const int n = m + 2;
  const fl_conv *g = &w->c;
  const place p = place_of(w, tile);
  const int64_t h = p.h - g->top, col = p.w - g->left;
  const float *x = w->x + ((p.n * g->h + h) * g->w + col) * g->c;
  vm inside[6];
  bool row_inside[6];
  for (int i = 0; i < n; i++) {
    inside[i] = vm_first(col + i >= 0 && col + i < g->w ? VL : 0);
    row_inside[i] = h + i >= 0 && h + i < g->h;
  }
  for (int64_t c = c0; c < c1; c += VL) {
    const vm lanes = vm_first((int)min64(VL, c1 - c));
    vf t[6][6], d[6];
    for (int i = 0; i < n; i++) {
      const float *row = x + i * g->w * g->c + c;
      for (int j = 0; j < n; j++)
        d[j] = row_inside[i] ? vf_load_mask(row + j * g->c, vm_and(lanes, inside[j])) : vf_zero();
      input_1d(m, d, t[i]);
    }
    for (int j = 0; j < n; j++) {
      vf column[6], out[6];
      for (int i = 0; i < n; i++) column[i] = t[i][j];
      input_1d(m, column, out);
      for (int i = 0; i < n; i++) vf_store(v + (i * n + j) * position + c, out[i]);
    }
  }
}

FL_INLINE vf finish(vf v, const fl_epilogue *e) {
  if (e->act == FL_ACT_RELU) return vf_relu(v);
  if (e->act == FL_ACT_CLAMP) return vf_clamp(v, vf_set1(e->lo), vf_set1(e->hi));
  return v;
}

/* Is any lane not zero? */
FL_INLINE bool is_any(vf v) {
  float lanes[VL];
  bool any = false;
  vf_store(lanes, v);
  for (int i = 0; i < VL; i++) any |= lanes[i] != 0;
  return any;
}

FL_INLINE void output_tile(const int m, const fl_winograd *w, int64_t tile, int64_t o0, int64_t o1, const float *s,
                           int64_t position) {
  const int n = m + 2;
  const fl_conv *g = &w->c;
  const place p = place_of(w, tile);
  const int rows = (int)min64(m, g->oh - p.h), columns = (int)min64(m, g->ow - p.w);
  const int64_t first = ((p.n * g->oh + p.h) * g->ow + p.w) * g->o;
  vf bad = vf_zero(); /* no numbers where a result is not finite */
  for (int64_t o = o0; o < o1; o += VL, s += VL) {
    const vm lanes = vm_first((int)min64(VL, o1 - o));
    float bad_here[VL] = {0};
    vf here = vf_zero();
    const vf bias = w->bias ? vf_load_mask(w->bias + o, lanes) : vf_zero();
    vf t[4][6], d[6], y[4];
    for (int j = 0; j < n; j++) {
      for (int i = 0; i < n; i++) d[i] = vf_load(s + (i * n + j) * position);
      output_1d(m, d, y);
      for (int i = 0; i < m; i++) t[i][j] = y[i];
    }
    for (int i = 0; i < m && i < rows; i++) {
      output_1d(m, t[i], y);
      for (int j = 0; j < m && j < columns; j++) {
        const int64_t at = first + (i * g->ow + j) * g->o + o;
        vf v = vf_add(y[j], bias);
        here = vf_add(here, vf_sub(y[j], y[j]));
        if (w->residual) v = vf_add(v, vf_load_mask(w->residual + at, lanes));
        vf_store_mask(w->y + at, lanes, finish(v, &w->epilogue));
      }
    }
    vf_store_mask(bad_here, lanes, here); /* what lies behind the last channel is anything */
    bad = vf_add(bad, vf_load(bad_here));
  }
  if (is_any(bad)) fl_set_fault(w->fault);
  if (w->epilogue.act <= FL_ACT_CLAMP) return;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      float *y = w->y + first + (i * g->ow + j) * g->o;
      for (int64_t o = o0; o < o1; o += VL) {
        const vm lanes = vm_first((int)min64(VL, o1 - o));
        vf_store_mask(y + o, lanes, vf_act(vf_load_mask(y + o, lanes), w->epilogue.act, 0, 0));
      }
    }
}

/* Weights are transformed in double: their rounding is paid once and meets every result. */
typedef float half_vf __attribute__((vector_size(VL * 2)));
typedef double vd __attribute__((vector_size(VL * 4)));

/* u = G g, 3 values into m + 2. */
FL_INLINE void weights_1d(const int m, const vd g[3], vd *u) {
  const double a = A, b = B, a2 = a * a, b2 = b * b, na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2));
  if (m == 2) {
    u[0] = g[0];
    u[1] = 0.5 * (g[0] + g[1] + g[2]);
    u[2] = 0.5 * (g[0] - g[1] + g[2]);
    u[3] = g[2];
    return;
  }
  u[0] = g[0] * (1 / (a2 * b2));
  u[1] = na * (g[0] + a * g[1] + a2 * g[2]);
  u[2] = na * (g[0] - a * g[1] + a2 * g[2]);
  u[3] = nb * (g[0] + b * g[1] + b2 * g[2]);
  u[4] = nb * (g[0] - b * g[1] + b2 * g[2]);
  u[5] = g[2];
}

FL_INLINE void weights_tile(const int m, const float *g, float *u, int64_t step) {
  const int side = m + 2;
  for (int c = 0; c < FL_WINOGRAD_LANES; c += VL / 2) {
    vd t[3][6], column[3], out[6];
    for (int i = 0; i < 3; i++) {
      for (int j = 0; j < 3; j++) {
        half_vf h;
        __builtin_memcpy(&h, g + (i * 3 + j) * FL_WINOGRAD_LANES + c, sizeof h);
        column[j] = __builtin_convertvector(h, vd);
      }
      weights_1d(m, column, t[i]);
    }
    for (int j = 0; j < side; j++) {
      for (int i = 0; i < 3; i++) column[i] = t[i][j];
      weights_1d(m, column, out);
      for (int i = 0; i < side; i++) {
        const half_vf h = __builtin_convertvector(out[i], half_vf);
        __builtin_memcpy(u + (i * side + j) * step + c, &h, sizeof h);
      }
    }
  }
}

static void weights(int m, const float *g, float *u, int64_t step) {
  if (m == 4)
    weights_tile(4, g, u, step);
  else
    weights_tile(2, g, u, step);
}

static void input(const fl_winograd *w, int64_t tile, int64_t c0, int64_t c1, float *v, int64_t position) {
  if (w->m == 4)
    input_tile(4, w, tile, c0, c1, v, position);
  else
    input_tile(2, w, tile, c0, c1, v, position);
}

static void output(const fl_winograd *w, int64_t tile, int64_t o0, int64_t o1, const float *s, int64_t position) {
  if (w->m == 4)
    output_tile(4, w, tile, o0, o1, s, position);
  else
    output_tile(2, w, tile, o0, o1, s, position);
}

const fl_winograd_isa TABLE = {.vl = VL, .input = input, .output = output, .weights = weights};
