#include "cpu/gemm/gemm.h"

#include <string.h>

const fl_gemm_isa *fl_gemm_of(int isa) {
#if defined(__x86_64__) || defined(__i386__)
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

static void pack_rows(float *dst, const fl_gemm_src *s, const float *column, int64_t columns, int nr, int64_t k0,
                      int64_t kc) {
  const int64_t d1 = s->dims[1], d2 = s->dims[2];
  int64_t i2 = k0 % d2, i1 = k0 / d2 % d1, i0 = k0 / d2 / d1;
  for (int64_t k = 0; k < kc; k++, dst += nr) {
    const float *src = column + i0 * s->strides[0] + i1 * s->strides[1] + i2 * s->strides[2];
    for (int64_t j = 0; j < columns; j++) dst[j] = src[j * s->sn];
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
      const float *first = src->data + p * nr * src->sn;
      if (contiguous_columns(src))
        isa->pack_columns(panel, first + k0, src->sn, columns, kc);
      else
        pack_rows(panel, src, first, columns, nr, k0, kc);
    }
}

/* --- rows of A --- */

fl_rows fl_rows_make(const fl_tensor *t, int first_dim) {
  const int last = t->type.rank - 1;
  fl_rows r = {.data = t->data, .sk = t->strides[last]};
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

static const float *row_at(const fl_rows *r, int64_t row) {
  const float *p = r->data;
  for (int d = r->rank - 1; d > 0; d--) {
    p += row % r->dims[d] * r->strides[d];
    row /= r->dims[d];
  }
  return p + row * r->strides[0];
}

void fl_rows_fetch(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int n, int64_t k0, int64_t kc,
                   float *tile) {
  const fl_rows *r = ctx;
  for (int i = 0; i < n; i++, tile += FL_GEMM_AS) {
    const float *src = row_at(r, row + i) + offset + k0 * r->sk;
    if (r->sk == 1)
      isa->copy(tile, src, kc);
    else
      for (int64_t k = 0; k < kc; k++) tile[k] = src[k * r->sk];
  }
}

/* --- the product --- */

void fl_gemm_block(const fl_gemm *g, int64_t m0, int64_t m1, int64_t p0, int64_t p1) {
  _Alignas(64) float tile[FL_GEMM_MR_MAX * FL_GEMM_AS];
  const fl_gemm_b *b = &g->shape;
  const int nr = g->isa->nr;
  const int64_t tiles = ceil_div(m1 - m0, g->isa->mr), col = p0 * nr;
  fl_gemm_strip s = {.a = tile, .ldc = g->ldc, .n = min64(p1 * nr, b->n) - col};
  for (int64_t block = 0; block < b->blocks; block++) {
    const int64_t k0 = block * b->kc;
    s.kc = block_rows(b, block);
    s.b = g->b + k0 * b->n_padded + p0 * nr * s.kc;
    s.accumulate = block > 0;
    s.bias = g->bias && !block ? g->bias + col : NULL;
    if (block == b->blocks - 1) s.epilogue = g->epilogue;
    for (int64_t t = 0; t < tiles; t++) {
      /* Tiles of equal height: 49 rows are 13 + 12 + 12 + 12, not 14 + 14 + 14 + 7. */
      const int64_t r0 = m0 + (m1 - m0) * t / tiles, r1 = m0 + (m1 - m0) * (t + 1) / tiles;
      g->fetch(g->ctx, g->offset, g->isa, r0, (int)(r1 - r0), k0, s.kc, tile);
      s.c = g->c + r0 * g->ldc + col;
      s.residual = g->residual && !block ? g->residual + r0 * g->ldc + col : NULL;
      g->isa->strip[r1 - r0 - 1](&s);
    }
  }
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
  const int64_t tiles = ceil_div(g->m, g->isa->mr), kc = max64(1, min64(b->kc, b->k));
  const int64_t l2_panels = max64(1, 448 * 1024 / (kc * g->isa->nr * (int64_t)sizeof(float)));
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
