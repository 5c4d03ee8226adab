/* Attention without a score matrix in memory; the body of attention_avx512.c, attention_avx2.c and attention_avx512_bf16.c,
 * which include attention_f32.inl or define the same names for bf16.
 *
 * A block of W = 2 VL queries is transposed once, so that a vector holds one number of VL queries. Then keys and values
 * are read where they lie, one number at a time broadcast against such vectors: neither is packed or transposed, and
 * maxima and sums need no step across lanes. (In bf16 "one number" is a unit of two neighbours, which are multiplied
 * together; values are interleaved for that, KEYS at a time.) Keys are taken KEYS at a time with the running maximum of flash attention
 * (Dao et al. 2022). Few queries (decoding) take one row at a time instead, with vectors along the head dimension. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"
#include "cpu/transpose.inl"

enum { W = 2 * VL, KEYS = 256, FEW = 6, TILE_ROWS = VL == 16 ? 12 : 6 };

typedef struct params {
  int64_t B, H, G, S, T, D, E, blocks; /* blocks of queries in one head */
  float scale;
  bool causal, has_mask, few;
  fl_dtype mask_type;
  int64_t mask_size; /* bytes of an element */
  int64_t mask_strides[4]; /* over B, H, S, T: 0 where it repeats; the last one is 1 */
} params;

/* One head's operands; strides between rows. */
typedef struct head {
  const elem *q, *k, *v;
  elem *out;
  int64_t qs, ks, vs, os;
  const char *mask; /* at key 0 of query 0 */
} head;

/* --- planning --- */

static const char *mask_layout(const fl_problem *p, params *q, fl_kernel_plan *plan) {
  const fl_tensor *m = &p->in[3];
  if (m->type.dtype != FL_F32 && m->type.dtype != FL_BOOL && m->type.dtype != ELEM) return "the mask is of another type";
  if (m->type.rank < 1 || m->type.dims[m->type.rank - 1] != q->T) return "the mask is the same for all keys";
  q->has_mask = true;
  q->mask_type = m->type.dtype;
  q->mask_size = (int64_t)fl_dtype_size(m->type.dtype);
  plan->in_layout[3] = FL_LAYOUT_ROWS;
  return NULL;
}

/* Of one thread. */
static int64_t scratch_floats(const params *q) {
  return q->few ? (q->T + VL) / VL * VL : (q->D + KEYS + q->E + 4) * W + ROOM(KEYS, q->E);
}

static const char *plan_attention(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  for (int i = 0; i < 3; i++) {
    if (p->in[i].type.dtype != ELEM || p->in[i].type.rank != 4) return "q, k, v are of another type, or not of four axes";
    plan->in_layout[i] = FL_LAYOUT_ROWS;
  }
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  const int64_t *qd = p->in[0].type.dims, *kd = p->in[1].type.dims, *vd = p->in[2].type.dims;
  q->B = qd[0], q->H = qd[1], q->S = qd[2], q->D = qd[3], q->G = kd[1], q->T = kd[2], q->E = vd[3];
  if (kd[0] != q->B || vd[0] != q->B || vd[1] != q->G || vd[2] != q->T || kd[3] != q->D) return "q, k, v do not fit";
  if (q->G < 1 || q->H % q->G) return "key heads must divide query heads";
  if (q->T < 1 || q->D < 1 || q->E < 1 || q->D > 512 || q->E > 512) return "empty, or a head of more than 512";
  if (q->D % UNIT) return "a head of odd size";
  if (p->n_in > 3 && !p->absent[3]) {
    const char *why = mask_layout(p, q, plan);
    if (why) return why;
  }
  q->scale = (float)fl_attr_float(p->attrs, "scale", 1 / sqrt((double)q->D));
  q->causal = fl_attr_int(p->attrs, "causal", 0) != 0;
  q->few = q->S < FEW;
  q->blocks = q->few ? q->S : (q->S + W - 1) / W;
  plan->scratch_bytes = (size_t)(p->threads > 1 ? p->threads : 1) * (size_t)scratch_floats(q) * sizeof(float);
  plan->out_strides[0][0] = q->S * q->H * q->E;
  plan->out_strides[0][1] = q->E;
  plan->out_strides[0][2] = q->H * q->E;
  plan->out_strides[0][3] = 1;
  plan->params = q;
  plan->params_bytes = sizeof *q;
  double work = (double)(q->B * q->H * q->S) * (double)q->T;
  plan->cost_us = 0.2 + work * (double)(q->D + q->E) * 2 / UNIT / 50e3 + work * 0.0004;
  return NULL;
}

static int64_t mask_stride(const fl_tensor *m, int axis) {
  int d = axis - (4 - m->type.rank);
  return d < 0 || m->type.dims[d] == 1 ? 0 : m->strides[d];
}

static head get_head(const fl_run_args *a, const params *pr, int64_t index) {
  int64_t b = index / pr->H, h = index % pr->H, g = h / (pr->H / pr->G);
  const fl_tensor *q = &a->in[0], *k = &a->in[1], *v = &a->in[2], *o = &a->out[0];
  head r = {.q = (const elem *)q->data + b * q->strides[0] + h * q->strides[1],
            .k = (const elem *)k->data + b * k->strides[0] + g * k->strides[1],
            .v = (const elem *)v->data + b * v->strides[0] + g * v->strides[1],
            .out = (elem *)o->data + b * o->strides[0] + h * o->strides[1],
            .qs = q->strides[2],
            .ks = k->strides[2],
            .vs = v->strides[2],
            .os = o->strides[2]};
  if (pr->has_mask) {
    int64_t at = b * mask_stride(&a->in[3], 0) + h * mask_stride(&a->in[3], 1);
    r.mask = (const char *)a->in[3].data + at * pr->mask_size;
  }
  return r;
}

/* The added mask of VL (or the first n) keys from `key` for the query whose mask row is `row`. */
FL_INLINE vf load_mask_row(const params *pr, const char *row, int64_t key, int64_t n) {
  const vm part = vm_first(n < VL ? (int)n : VL);
  if (pr->mask_type == FL_F32) return vf_load_mask((const float *)row + key, part);
  if (pr->mask_type == ELEM) return load_part((const elem *)row + key, part);
  float f[VL] = {0};
  for (int i = 0; i < VL && i < n; i++) f[i] = row[key + i] ? 0.0f : -INFINITY;
  return vf_load(f);
}

/* --- few queries: one row at a time --- */

static float dot(const elem *a, const elem *b, int64_t n) {
  vf s = vf_zero(), t = vf_zero();
  int64_t k = 0;
  for (; k + 2 * VL <= n; k += 2 * VL) {
    s = vf_fma(load_all(a + k), load_all(b + k), s);
    t = vf_fma(load_all(a + k + VL), load_all(b + k + VL), t);
  }
  for (; k < n; k += VL) {
    const vm part = vm_first(n - k < VL ? (int)(n - k) : VL);
    s = vf_fma(load_part(a + k, part), load_part(b + k, part), s);
  }
  return vf_sum(vf_add(s, t));
}

/* Scores become exp(score - maximum); returns their sum, 0 when every key is masked. */
static float exp_row(float *s, int64_t n) {
  float max = -INFINITY;
  for (int64_t j = 0; j < n; j++) max = s[j] > max ? s[j] : max; /* a NaN comes out of the sum */
  const vf m = vf_set1(max == -INFINITY ? 0.0f : max);
  vf sum = vf_zero();
  for (int64_t j = 0; j < n; j += VL) {
    const vm part = vm_first(n - j < VL ? (int)(n - j) : VL);
    vf e = vf_select(part, vf_exp(vf_sub(vf_load_mask(s + j, part), m)), vf_zero());
    vf_store_mask(s + j, part, e);
    sum = vf_add(sum, e);
  }
  return vf_sum(sum);
}

/* out = sum over j of s[j] v[j] times scale, 4 vectors of the value at a time. */
static void weigh_values(elem *out, const float *s, const head *h, int64_t n, int64_t E, float scale) {
  for (int64_t e = 0; e < E; e += 4 * VL) {
    vf acc[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    vm part[4];
    for (int c = 0; c < 4; c++) {
      int64_t left = E - e - c * VL;
      part[c] = vm_first(left < 0 ? 0 : left < VL ? (int)left : VL);
    }
    if (E - e >= 4 * VL)
      for (int64_t j = 0; j < n; j++) {
        const vf w = vf_set1(s[j]);
        for (int c = 0; c < 4; c++) acc[c] = vf_fma(w, load_all(h->v + j * h->vs + e + c * VL), acc[c]);
      }
    else
      for (int64_t j = 0; j < n; j++) {
        const vf w = vf_set1(s[j]);
        for (int c = 0; c < 4; c++) acc[c] = vf_fma(w, load_part(h->v + j * h->vs + e + c * VL, part[c]), acc[c]);
      }
    for (int c = 0; c < 4; c++) store_part(out + e + c * VL, part[c], vf_mul(acc[c], vf_set1(scale)));
  }
}

static void one_query(const params *pr, const fl_run_args *a, const head *h, int64_t i, float *s) {
  int64_t n = pr->causal && i + 1 < pr->T ? i + 1 : pr->T;
  const elem *q = h->q + i * h->qs;
  for (int64_t j = 0; j < n; j++) s[j] = dot(q, h->k + j * h->ks, pr->D) * pr->scale;
  if (pr->has_mask) {
    const char *row = h->mask + i * mask_stride(&a->in[3], 2) * pr->mask_size;
    for (int64_t j = 0; j < n; j += VL) {
      const vm part = vm_first(n - j < VL ? (int)(n - j) : VL);
      vf_store_mask(s + j, part, vf_add(vf_load_mask(s + j, part), load_mask_row(pr, row, j, n - j)));
    }
  }
  float sum = exp_row(s, n);
  weigh_values(h->out + i * h->os, s, h, n, pr->E, sum == 0 ? 0 : 1 / sum);
}

/* --- blocks of queries --- */

/* s[r][lane] = sum over d of k[r][d] qt[d][lane], times the scale where the queries are not scaled */
FL_INLINE void qk_tile(int R, int C, float *s, const float *qt, const elem *k, int64_t ks, int64_t D, float scale) {
  vf acc[12][2];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) acc[r][c] = vf_zero();
  for (int64_t d = 0; d < D / UNIT; d++) {
    vf x[2];
    for (int c = 0; c < C; c++) x[c] = vf_load(qt + d * W + c * VL);
    for (int r = 0; r < R; r++) {
      const vf b = spread(k + r * ks + d * UNIT);
      for (int c = 0; c < C; c++) acc[r][c] = multiply(b, x[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++)
      vf_store(s + r * W + c * VL, UNIT == 1 ? acc[r][c] : vf_mul(acc[r][c], vf_set1(scale)));
}

/* o[r][lane] = o[r][lane] decay[lane] + sum over j of v[j][r] p[j][lane]; v and p in units */
FL_INLINE void pv_tile(int R, int C, float *o, const float *decay, const float *p, const elem *v, int64_t vs,
                       int64_t n) {
  vf acc[12][2];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++)
      acc[r][c] = decay ? vf_mul(vf_load(o + r * W + c * VL), vf_load(decay + c * VL)) : vf_zero();
  for (int64_t j = 0; j < n; j++) {
    vf x[2];
    for (int c = 0; c < C; c++) x[c] = vf_load(p + j * W + c * VL);
    for (int r = 0; r < R; r++) {
      const vf b = spread(v + j * vs + r * UNIT);
      for (int c = 0; c < C; c++) acc[r][c] = multiply(b, x[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) vf_store(o + r * W + c * VL, acc[r][c]);
}

#define EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

FL_INLINE void qk_rows(int R, int C, float *s, const float *qt, const elem *k, int64_t ks, int64_t D, float scale) {
  switch (R) {
#define ROWS(R_)                                                                                                       \
  case R_: qk_tile(R_, C, s, qt, k, ks, D, scale); break;
    EACH_ROWS(ROWS)
#undef ROWS
  }
}

FL_INLINE void pv_rows(int R, int C, float *o, const float *decay, const float *p, const elem *v, int64_t vs,
                       int64_t n) {
  switch (R) {
#define ROWS(R_)                                                                                                       \
  case R_: pv_tile(R_, C, o, decay, p, v, vs, n); break;
    EACH_ROWS(ROWS)
#undef ROWS
  }
}

/* Rows of the next tile, so that no thin one is left at the end: 16 are 8 + 8, not 12 + 4. */
FL_INLINE int tile_rows(int64_t left) {
  if (left <= TILE_ROWS) return (int)left;
  return left < 2 * TILE_ROWS ? (int)(left + 1) / 2 : TILE_ROWS;
}

FL_INLINE void scores(int C, float *s, const float *qt, const elem *k, int64_t ks, int64_t D, int64_t n,
                      float scale) {
  for (int64_t j = 0; j < n;) {
    int R = tile_rows(n - j);
    qk_rows(R, C, s + j * W, qt, k + j * ks, ks, D, scale);
    j += R;
  }
}

FL_INLINE void values(int C, float *o, const float *decay, const float *p, const elem *v, int64_t vs, int64_t n,
                      int64_t E) {
  for (int64_t e = 0; e < E;) {
    int R = tile_rows(E - e);
    pv_rows(R, C, o + e * W, decay, p, v + e * UNIT, vs, n);
    e += R;
  }
}

/* Adds the mask of keys key.. key + n to scores s[n][W] of `rows` queries; `mask` is at key 0 of the first one. */
static void add_mask(const params *pr, float *s, const char *mask, int64_t query_stride, int64_t key, int64_t n,
                     int rows) {
  for (int64_t j = 0; j < n; j += VL) {
    int64_t keys = n - j < VL ? n - j : VL;
    if (query_stride == 0) { /* one mask for all queries */
      float m[VL];
      vf_store(m, load_mask_row(pr, mask, key + j, keys));
      for (int64_t r = 0; r < keys; r++)
        for (int c = 0; c < W; c += VL) {
          float *at = s + (j + r) * W + c;
          vf_store(at, vf_add(vf_load(at), vf_set1(m[r])));
        }
      continue;
    }
    for (int c = 0; c < rows; c += VL) {
      vf block[VL];
      for (int r = 0; r < VL; r++)
        block[r] = c + r < rows
                       ? load_mask_row(pr, mask + (c + r) * query_stride * pr->mask_size, key + j, keys)
                       : vf_zero();
      vf_transpose(block);
      for (int64_t r = 0; r < keys; r++) {
        float *at = s + (j + r) * W + c;
        vf_store(at, vf_add(vf_load(at), block[r]));
      }
    }
  }
}

/* Keys after a query are hidden from it. */
static void hide_later(float *s, int64_t first_query, int64_t key, int64_t n) {
  float lane[W];
  for (int i = 0; i < W; i++) lane[i] = (float)i;
  for (int64_t j = 0; j < n; j++) {
    const vf limit = vf_set1((float)(key + j - first_query)); /* lanes below it come before this key */
    for (int c = 0; c < W; c += VL) {
      float *at = s + j * W + c;
      vf_store(at, vf_select(vf_lt(vf_load(lane + c), limit), vf_set1(-INFINITY), vf_load(at)));
    }
  }
}

/* Scores become weights: s = exp(s - maximum so far); updates maximum and sum, and sets decay = exp(old - new). */
FL_INLINE void soften(float *s, int64_t n, float *max, float *sum, float *decay) {
  const vf low = vf_set1(-INFINITY);
  const vf old = vf_load(max);
  vf m0 = old, m1 = low, m2 = low, m3 = low;
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    m0 = vf_max(vf_load(s + j * W), m0), m1 = vf_max(vf_load(s + (j + 1) * W), m1);
    m2 = vf_max(vf_load(s + (j + 2) * W), m2), m3 = vf_max(vf_load(s + (j + 3) * W), m3);
  }
  for (; j < n; j++) m0 = vf_max(vf_load(s + j * W), m0);
  const vf m = vf_max(vf_max(m0, m1), vf_max(m2, m3));
  const vf shift = vf_select(vf_eq(m, low), vf_zero(), m);
  vf s0 = vf_zero(), s1 = vf_zero();
  for (j = 0; j + 2 <= n; j += 2) {
    vf a = vf_exp(vf_sub(vf_load(s + j * W), shift)), b = vf_exp(vf_sub(vf_load(s + (j + 1) * W), shift));
    vf_store(s + j * W, a), vf_store(s + (j + 1) * W, b);
    s0 = vf_add(s0, a), s1 = vf_add(s1, b);
  }
  if (j < n) {
    vf a = vf_exp(vf_sub(vf_load(s + j * W), shift));
    vf_store(s + j * W, a);
    s0 = vf_add(s0, a);
  }
  const vf d = vf_exp(vf_sub(old, shift));
  vf_store(decay, d);
  vf_store(max, m);
  vf_store(sum, vf_fma(vf_load(sum), d, vf_add(s0, s1)));
}

/* qt[d][lane] = q[lane][d], scaled if units are single numbers; d counts units */
static void transpose_queries(float *qt, const head *h, int64_t first, int rows, int64_t D, float scale) {
  const int64_t n = D / UNIT;
  for (int64_t d = 0; d < n; d += VL) {
    const vm part = vm_first(n - d < VL ? (int)(n - d) : VL);
    for (int c = 0; c < W; c += VL) {
      vf block[VL];
      for (int r = 0; r < VL; r++) {
        block[r] = c + r < rows ? load_units(h->q + (first + c + r) * h->qs + d * UNIT, part) : vf_zero();
        if (UNIT == 1) block[r] = vf_mul(block[r], vf_set1(scale));
      }
      vf_transpose(block);
      for (int r = 0; r < VL && d + r < n; r++) vf_store(qt + (d + r) * W + c, block[r]);
    }
  }
}

/* out[lane][e] = o[e][lane] / sum[lane] */
static void store_block(const head *h, const float *o, const float *sum, int64_t first, int rows, int64_t E) {
  for (int c = 0; c < rows; c += VL) {
    const vf l = vf_load(sum + c);
    const vf scale = vf_select(vf_eq(l, vf_zero()), vf_zero(), vf_div(vf_set1(1.0f), l));
    for (int64_t e = 0; e < E; e += VL) {
      const vm part = vm_first(E - e < VL ? (int)(E - e) : VL);
      vf block[VL];
      for (int r = 0; r < VL; r++) block[r] = e + r < E ? vf_mul(vf_load(o + (e + r) * W + c), scale) : vf_zero();
      vf_transpose(block);
      for (int r = 0; r < VL && c + r < rows; r++) store_part(h->out + (first + c + r) * h->os + e, part, block[r]);
    }
  }
}

static void query_block(const params *pr, const fl_run_args *a, const head *h, int64_t first, float *scratch) {
  float *qt = scratch, *s = qt + pr->D * W, *o = s + KEYS * W, *max = o + pr->E * W, *sum = max + W, *decay = sum + W;
  float *room = decay + 2 * W;
  int rows = (int)(pr->S - first < W ? pr->S - first : W);
  int64_t T = pr->causal && first + rows < pr->T ? first + rows : pr->T;
  int64_t query_stride = pr->has_mask ? mask_stride(&a->in[3], 2) : 0;
  transpose_queries(qt, h, first, rows, pr->D, pr->scale);
  for (int c = 0; c < W; c += VL) vf_store(max + c, vf_set1(-INFINITY)), vf_store(sum + c, vf_zero());
  for (int64_t key = 0; key < T; key += KEYS) {
    int64_t n = T - key < KEYS ? T - key : KEYS;
    const elem *k = h->k + key * h->ks, *v = h->v + key * h->vs;
    const float *old = key ? decay : NULL;
    int64_t vs = h->vs;
    if (rows > VL)
      scores(2, s, qt, k, h->ks, pr->D, n, pr->scale);
    else
      scores(1, s, qt, k, h->ks, pr->D, n, pr->scale);
    if (pr->has_mask)
      add_mask(pr, s, h->mask + first * query_stride * pr->mask_size, query_stride, key, n, rows);
    if (pr->causal && key + n > first) hide_later(s, first, key, n);
    for (int c = 0; c < rows; c += VL) soften(s + c, n, max + c, sum + c, decay + c);
    v = values_in_units(room, v, &vs, n, pr->E);
    n = weights_in_units(s, n);
    if (rows > VL)
      values(2, o, old, s, v, vs, n, pr->E);
    else
      values(1, o, old, s, v, vs, n, pr->E);
  }
  store_block(h, o, sum, first, rows, pr->E);
}

static void attention_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *pr = a->params;
  float *scratch = (float *)a->scratch + thread * scratch_floats(pr);
  for (int64_t u = begin; u < end; u++) {
    head h = get_head(a, pr, u / pr->blocks);
    if (pr->few)
      one_query(pr, a, &h, u % pr->blocks, scratch);
    else
      query_block(pr, a, &h, u % pr->blocks * W, scratch);
  }
}

static void run_attention(const fl_run_args *a) {
  const params *pr = a->params;
  int64_t work = pr->T * (pr->D + pr->E) * (pr->few ? 1 : W);
  fl_parallel(a->pool, pr->B * pr->H * pr->blocks, 1 + 100000 / (work + 1), attention_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(attention) = {FL_NAME("attention"), FL_OP_ATTENTION, FL_ISA_HERE, plan_attention, NULL,
                                       run_attention};
