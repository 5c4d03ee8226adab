#include "cpu/gemm/gemm.h"

#include <string.h>

const fl_gemm_isa *fl_gemm_of(int isa) {
#if defined(__x86_64__) || defined(__i386__)
  if (isa >= FL_ISA_AVX512_BF16) return &fl_gemm_avx512_bf16;
  if (isa >= FL_ISA_AVX512) return &fl_gemm_avx512;
  if (isa == FL_ISA_AVX2) return &fl_gemm_avx2;
#endif
  return NULL;
}

fl_epilogue fl_epilogue_of(const fl_attrs *attrs) {
  return (fl_epilogue){.act = (fl_act)fl_attr_int(attrs, "act", FL_ACT_NONE),
                       .lo = (float)fl_attr_float(attrs, "act_lo", 0),
                       .hi = (float)fl_attr_float(attrs, "act_hi", 0)};
}

/* --- packed B --- */

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

fl_gemm_b fl_gemm_b_make(const fl_gemm_isa *isa, int64_t k, int64_t n) {
  fl_gemm_b b = {.k = k, .n = n, .n_padded = ceil_div(n, isa->nr) * isa->nr};
  b.blocks = max64(1, ceil_div(k, FL_GEMM_KC));
  b.kc = ceil_div(ceil_div(k, b.blocks), 8) * 8; /* blocks of equal size, not one full and one tiny */
  b.blocks = max64(1, b.kc ? ceil_div(k, b.kc) : 1);
  return b;
}

size_t fl_gemm_b_bytes(const fl_gemm_b *b) {
  size_t bytes;
  if (!fl_mul_size((size_t)b->k, (size_t)b->n_padded, &bytes) || !fl_mul_size(bytes, sizeof(float), &bytes))
    return SIZE_MAX;
  return bytes;
}

int64_t fl_gemm_panels(const fl_gemm_isa *isa, const fl_gemm_b *b) { return b->n_padded / isa->nr; }

static int64_t block_rows(const fl_gemm_b *b, int64_t block) { return min64(b->kc, b->k - block * b->kc); }

static void pack_rows(float *dst, const fl_gemm_src *s, const float *column, const float *scale, int64_t columns,
                      int nr, int64_t k0, int64_t kc) {
  const int64_t d1 = s->dims[1], d2 = s->dims[2];
  int64_t i2 = k0 % d2, i1 = k0 / d2 % d1, i0 = k0 / d2 / d1;
  for (int64_t k = 0; k < kc; k++, dst += nr) {
    const float *src = column + i0 * s->strides[0] + i1 * s->strides[1] + i2 * s->strides[2];
    for (int64_t j = 0; j < columns; j++) dst[j] = src[j * s->sn] * (scale ? scale[j] : 1);
    for (int64_t j = columns; j < nr; j++) dst[j] = 0;
    if (++i2 == d2) {
      i2 = 0;
      if (++i1 == d1) i1 = 0, i0++;
    }
  }
}

/* Are the elements of a column side by side? */
static bool contiguous_columns(const fl_gemm_src *s) {
  return s->strides[2] == 1 && (s->dims[1] == 1 || s->strides[1] == s->dims[2]) &&
         (s->dims[0] == 1 || s->strides[0] == s->dims[1] * s->dims[2]);
}

void fl_gemm_pack(const fl_gemm_isa *isa, const fl_gemm_b *b, float *dst, const fl_gemm_src *src, int64_t p0,
                  int64_t p1) {
  const int nr = isa->nr;
  for (int64_t p = p0; p < p1; p++)
    for (int64_t block = 0; block < b->blocks; block++) {
      const int64_t k0 = block * b->kc, kc = block_rows(b, block), columns = min64(nr, b->n - p * nr);
      float *panel = dst + k0 * b->n_padded + p * kc * nr;
      const float *first = src->data + p * nr * src->sn, *scale = src->scale ? src->scale + p * nr : NULL;
      if (contiguous_columns(src))
        isa->pack_columns(panel, first + k0, src->sn, columns, kc, scale);
      else
        pack_rows(panel, src, first, scale, columns, nr, k0, kc);
    }
}

void fl_gemm_pack_half(const fl_gemm_isa *isa, const fl_gemm_b *b, float *dst, const uint16_t *src, int64_t sn,
                       int64_t sk, int64_t k, int64_t p0, int64_t p1) {
  const int nr = isa->nr;
  for (int64_t p = p0; p < p1; p++)
    for (int64_t block = 0; block < b->blocks; block++) {
      const int64_t k0 = block * b->kc, kc = block_rows(b, block);
      isa->pack_half(dst + k0 * b->n_padded + p * kc * nr, src + p * nr * sn + 2 * k0 * sk, sn, sk,
                     min64(nr, b->n - p * nr), min64(2 * kc, k - 2 * k0));
    }
}

/* --- rows of A --- */

fl_rows fl_rows_make(const fl_tensor *t, int first_dim) {
  const int last = t->type.rank - 1;
  fl_rows r = {.data = t->data, .k = t->type.dims[last], .sk = t->strides[last]};
  for (int d = first_dim; d < last; d++) {
    const int64_t dim = t->type.dims[d], stride = t->strides[d];
    if (dim == 1) continue;
    if (r.rank && r.strides[r.rank - 1] == stride * dim) {
      r.dims[r.rank - 1] *= dim;
      r.strides[r.rank - 1] = stride;
    } else {
      r.dims[r.rank] = dim;
      r.strides[r.rank++] = stride;
    }
  }
  if (!r.rank) r.rank = 1, r.dims[0] = 1, r.strides[0] = 0;
  return r;
}

static int64_t row_offset(const fl_rows *r, int64_t row) {
  int64_t at = 0;
  for (int d = r->rank - 1; d > 0; d--) {
    at += row % r->dims[d] * r->strides[d];
    row /= r->dims[d];
  }
  return at + row * r->strides[0];
}

void fl_rows_fetch(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int n, int64_t k0, int64_t kc,
                   float *tile) {
  const fl_rows *r = ctx;
  for (int i = 0; i < n; i++, tile += FL_GEMM_AS) {
    const float *src = (const float *)r->data + row_offset(r, row + i) + offset + k0 * r->sk;
    if (r->sk == 1)
      isa->copy(tile, src, kc);
    else
      for (int64_t k = 0; k < kc; k++) tile[k] = src[k * r->sk];
  }
}

void fl_rows_fetch_half(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int n, int64_t k0,
                        int64_t kc, float *tile) {
  const fl_rows *r = ctx;
  const int64_t count = min64(2 * kc, r->k - 2 * k0);
  for (int i = 0; i < n; i++, tile += FL_GEMM_AS) {
    const uint16_t *src = (const uint16_t *)r->data + row_offset(r, row + i) + offset + 2 * k0 * r->sk;
    char *dst = (char *)tile;
    if (count % 2) tile[kc - 1] = 0;
    if (r->sk == 1)
      memcpy(dst, src, (size_t)count * sizeof *src);
    else
      for (int64_t k = 0; k < count; k++) memcpy(dst + k * 2, src + k * r->sk, sizeof *src);
  }
}

/* --- the product --- */

/* Of rows [m0, m1) in tiles of equal height, where tile t begins: 49 rows are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7. */
static int64_t tile_row(const fl_gemm *g, int64_t m0, int64_t m1, int64_t t) {
  return m0 + (m1 - m0) * t / ceil_div(m1 - m0, g->isa->mr);
}

static fl_gemm_strip strip_of(const fl_gemm *g, const float *tile, int64_t block, int64_t p0, int64_t p1) {
  const fl_gemm_b *b = &g->shape;
  const int nr = g->isa->nr;
  fl_gemm_strip s = {.a = tile, .ldc = g->ldc, .n = min64(p1 * nr, b->n) - p0 * nr, .kc = block_rows(b, block)};
  s.b = g->b + block * b->kc * b->n_padded + p0 * nr * s.kc;
  s.accumulate = block > 0;
  if (block == b->blocks - 1) s.epilogue = g->epilogue;
  return s;
}

static void block_single(const fl_gemm *g, int64_t m0, int64_t m1, int64_t p0, int64_t p1) {
  _Alignas(64) float tile[FL_GEMM_MR_MAX * FL_GEMM_AS];
  const int64_t tiles = ceil_div(m1 - m0, g->isa->mr), col = p0 * g->isa->nr;
  for (int64_t block = 0; block < g->shape.blocks; block++) {
    fl_gemm_strip s = strip_of(g, tile, block, p0, p1);
    s.bias = g->bias && !block ? g->bias + col : NULL;
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t r0 = tile_row(g, m0, m1, t), r1 = tile_row(g, m0, m1, t + 1);
      g->fetch(g->ctx, g->offset, g->isa, r0, (int)(r1 - r0), block * g->shape.kc, s.kc, tile);
      s.c = g->c + r0 * g->ldc + col;
      s.residual = g->residual && !block ? g->residual + r0 * g->ldc + col : NULL;
      g->isa->strip[r1 - r0 - 1](&s);
    }
  }
}

#define HALF_COLUMNS 256 /* whose sums are kept between K blocks; a multiple of nr */

/* bf16: a tile goes through all K blocks, its sums at hand, and is rounded once. */
static void block_half(const fl_gemm *g, int64_t m0, int64_t m1, int64_t p0, int64_t p1) {
  _Alignas(64) float tile[FL_GEMM_MR_MAX * FL_GEMM_AS], sums[FL_GEMM_MR_MAX * HALF_COLUMNS];
  const int64_t tiles = ceil_div(m1 - m0, g->isa->mr), col = p0 * g->isa->nr, last = g->shape.blocks - 1;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t r0 = tile_row(g, m0, m1, t), r1 = tile_row(g, m0, m1, t + 1);
    for (int64_t block = 0; block <= last; block++) {
      fl_gemm_strip s = strip_of(g, tile, block, p0, p1);
      g->fetch(g->ctx, g->offset, g->isa, r0, (int)(r1 - r0), block * g->shape.kc, s.kc, tile);
      s.c = sums;
      s.sums = HALF_COLUMNS;
      if (block == last) {
        s.bias = g->bias ? g->bias + col : NULL;
        s.half = g->half + r0 * g->ldc + col;
        s.half_residual = g->half_residual ? g->half_residual + r0 * g->ldc + col : NULL;
      }
      g->isa->strip[r1 - r0 - 1](&s);
    }
  }
}

void fl_gemm_block(const fl_gemm *g, int64_t m0, int64_t m1, int64_t p0, int64_t p1) {
  if (!g->half) {
    block_single(g, m0, m1, p0, p1);
    return;
  }
  const int64_t step = g->shape.blocks > 1 ? HALF_COLUMNS / g->isa->nr : max64(1, p1 - p0);
  for (; p0 < p1; p0 += step) block_half(g, m0, m1, p0, min64(p0 + step, p1));
}

/* How a product is cut into tasks. */
typedef struct cut {
  const fl_gemm *g;
  fl_gemm_set set;
  const void *arg;
  int64_t m_tasks, p_tasks, panels;
} cut;

static void run_tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const cut *c = arg;
  for (int64_t i = begin; i < end; i++) {
    const int64_t mi = i % c->m_tasks, pi = i / c->m_tasks % c->p_tasks;
    fl_gemm g = *c->g;
    if (c->set) c->set(c->arg, i / c->m_tasks / c->p_tasks, &g);
    fl_gemm_block(&g, g.m * mi / c->m_tasks, g.m * (mi + 1) / c->m_tasks, c->panels * pi / c->p_tasks,
                  c->panels * (pi + 1) / c->p_tasks);
  }
}

/* Columns first, so that the part of B that a task reads again for each A tile stays in L2; then rows, until there are
 * enough tasks to even out threads that run unequally fast. */
static cut make_cut(const fl_gemm *g, int64_t batches, int threads) {
  const fl_gemm_b *b = &g->shape;
  cut c = {.g = g, .m_tasks = 1, .p_tasks = 1, .panels = fl_gemm_panels(g->isa, b)};
  const int64_t tiles = ceil_div(g->m, g->isa->mr), kc = max64(1, g->half ? b->k : min64(b->kc, b->k));
  const int64_t l2_panels = max64(g->half ? 2 : 1, 448 * 1024 / (kc * g->isa->nr * (int64_t)sizeof(float)));
  c.p_tasks = ceil_div(c.panels, l2_panels);
  if (threads == 1) return c;
  const int64_t want = threads * 4;
  const int64_t b_floats = b->k * b->n_padded;
  /* A large B is read from far away: split it, rather than let every thread read all of it. */
  if (b_floats * (int64_t)sizeof(float) > 256 * 1024 && batches * c.p_tasks < want)
    c.p_tasks = min64(ceil_div(want, batches), max64(c.p_tasks, c.panels / 2));
  if (c.p_tasks < 1) c.p_tasks = 1;
  if (batches * c.p_tasks < want) c.m_tasks = max64(1, min64(ceil_div(want, batches * c.p_tasks), tiles));
  return c;
}

void fl_gemm_run_batch(const fl_gemm *g, int64_t batches, fl_gemm_set set, const void *arg, fl_pool *pool) {
  if (g->m <= 0 || g->shape.n <= 0 || batches <= 0) return;
  cut c = make_cut(g, batches, fl_pool_threads(pool));
  c.set = set;
  c.arg = arg;
  fl_parallel(pool, batches * c.p_tasks * c.m_tasks, 1, run_tasks, &c);
}

void fl_gemm_run(const fl_gemm *g, fl_pool *pool) { fl_gemm_run_batch(g, 1, NULL, NULL, pool); }
