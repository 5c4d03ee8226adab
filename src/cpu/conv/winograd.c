#include "cpu/conv/winograd.h"

#include <string.h>

#define CHUNK_COLUMNS 64 /* results of so many channels are held between product and output transform */

typedef struct wino_params {
  int isa, m, rows; /* rows: tiles of one block, at most the register tile's */
  fl_conv c;
  int64_t tiles_h, tiles_w;
  fl_gemm_b shape;
  fl_epilogue epilogue;
  bool shared;                /* transformed inputs of all tiles at once, then products; else block by block */
  int64_t v_floats, m_floats; /* of one block's transformed inputs; of one thread's products */
  int threads;
} wino_params;

static const fl_winograd_isa *transforms(int isa) {
  return isa >= FL_ISA_AVX512 ? &fl_winograd_avx512 : &fl_winograd_avx2;
}
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t positions(const wino_params *q) { return (q->m + 2) * (q->m + 2); }

/* A block's transformed inputs: [K block][position][row][FL_GEMM_AS]. */
static int64_t v_block(const wino_params *q) { return positions(q) * q->rows * FL_GEMM_AS; }

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa, int m) {
  const char *why = fl_conv_why_not_f32(p);
  if (why) return why;
  const fl_conv c = fl_conv_of(p);
  if (c.kh != 3 || c.kw != 3) return "the window is not 3x3";
  if (c.sh != 1 || c.sw != 1 || c.dh != 1 || c.dw != 1) return "stride or dilation is not 1";
  if (c.groups != 1) return "more than one group";
  if (c.c < 16 || c.o < 16) return "too few channels to pay";
  if (!p->constant[FL_CONV_W]) return "weights are not constant";
  const int64_t tiles_h = ceil_div(c.oh, m), tiles_w = ceil_div(c.ow, m), tiles = c.n * tiles_h * tiles_w;
  if (tiles < 1) return "empty result";
  wino_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  const fl_gemm_isa *gemm = fl_gemm_of(isa);
  *q = (wino_params){.isa = isa, .m = m, .c = c, .tiles_h = tiles_h, .tiles_w = tiles_w};
  q->epilogue = fl_epilogue_of(p->attrs);
  q->shape = fl_gemm_b_make(gemm, c.c, c.o);
  const int64_t blocks = ceil_div(tiles, gemm->mr);
  q->rows = (int)ceil_div(tiles, blocks);
  q->threads = p->threads > 0 ? p->threads : 1;
  q->shared = blocks < 3 * q->threads;
  q->v_floats = q->shape.blocks * v_block(q);
  q->m_floats = positions(q) * q->rows * CHUNK_COLUMNS + 64;
  const size_t one = fl_gemm_b_bytes(&q->shape);
  size_t all;
  if (one == SIZE_MAX || !fl_mul_size(one, (size_t)positions(q), &all)) return "weights are too large";
  plan->packed_bytes[FL_CONV_W] = all;
  plan->pack_pieces = ceil_div(q->shape.n_padded, FL_WINOGRAD_LANES);
  plan->in_layout[FL_CONV_X] = FL_LAYOUT_CHANNELS_LAST;
  plan->scratch_bytes =
      sizeof(float) * (size_t)((q->shared ? blocks : q->threads) * q->v_floats + q->threads * q->m_floats);
  fl_conv_plan_nhwc(p, &c, plan);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const double mults = (double)tiles * (double)positions(q) * (double)c.c * (double)c.o;
  const double transforms_us = (double)tiles * (double)(c.c + c.o) * (double)positions(q) * 2e-4;
  plan->cost_us = (2e-3 / 50 * mults + transforms_us + 1e-4 * (double)all) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

#define PACK_ROWS 16

/* The 3x3 weights of input channels [k0, k0 + rows) and FL_WINOGRAD_LANES result channels from o0, as g[row][9][lanes]. */
static void gather(const fl_pack_args *a, const fl_gemm_isa *isa, int64_t k0, int rows, int64_t o0, int64_t o_end,
                   float *g) {
  const fl_tensor *w = a->src;
  const int64_t *s = w->strides, lanes = min64(FL_WINOGRAD_LANES, o_end - o0);
  const float *first = (const float *)w->data + o0 * s[0] + k0 * s[1];
  if (isa->nr == FL_WINOGRAD_LANES && s[1] == 9 && s[2] == 3 && s[3] == 1) {
    isa->pack_columns(g, first, s[0], lanes, rows * 9, a->scale ? a->scale + o0 : NULL);
    return;
  }
  for (int64_t j = 0; j < FL_WINOGRAD_LANES; j++) {
    const float scale = j >= lanes ? 0 : a->scale ? a->scale[o0 + j] : 1;
    float *d = g + j;
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 9; i++, d += FL_WINOGRAD_LANES)
        *d = j < lanes ? first[j * s[0] + r * s[1] + i / 3 * s[2] + i % 3 * s[3]] * scale : 0;
  }
}

/* Panels of each position as fl_gemm_pack lays them out, position after position. Several rows at a time, because the
 * positions lie far apart in memory. */
static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const wino_params *q = a->params;
  const fl_gemm_b *b = &q->shape;
  const fl_gemm_isa *isa = fl_gemm_of(q->isa);
  const int nr = isa->nr;
  const int64_t floats = (int64_t)(fl_gemm_b_bytes(b) / sizeof(float)), step = PACK_ROWS * FL_WINOGRAD_LANES;
  _Alignas(64) float g[PACK_ROWS * 9 * FL_WINOGRAD_LANES], u[FL_WINOGRAD_MAX * PACK_ROWS * FL_WINOGRAD_LANES];
  for (int64_t o = begin * FL_WINOGRAD_LANES; o < b->n_padded && o < end * FL_WINOGRAD_LANES; o += FL_WINOGRAD_LANES)
    for (int64_t k = 0; k < b->k;) {
      const int64_t block = k / b->kc, k0 = block * b->kc, kc = min64(b->kc, b->k - k0);
      const int rows = (int)min64(PACK_ROWS, k0 + kc - k);
      gather(a, isa, k, rows, o, b->n, g);
      for (int r = 0; r < rows; r++)
        transforms(q->isa)->weights(q->m, g + r * 9 * FL_WINOGRAD_LANES, u + r * FL_WINOGRAD_LANES, step);
      for (int64_t i = 0; i < positions(q); i++)
        for (int64_t j = 0; j < FL_WINOGRAD_LANES && o + j < b->n_padded; j += nr) {
          float *panel = (float *)a->dst + i * floats + k0 * b->n_padded + (o + j) * kc + (k - k0) * nr;
          for (int r = 0; r < rows; r++)
            memcpy(panel + r * nr, u + i * step + r * FL_WINOGRAD_LANES + j, (size_t)nr * sizeof(float));
        }
      k += rows;
    }
}

/* --- run --- */

typedef struct run_state {
  const wino_params *q;
  fl_winograd w;
  const float *u;
  float *v, *m; /* blocks of transformed inputs; products, one area for each thread */
  int64_t blocks, chunks, vectors;
} run_state;

static int64_t first_tile(const run_state *s, int64_t block) { return s->w.tiles * block / s->blocks; }

/* Channel vectors [v0, v1) of one tile into its block. */
static void transform_input(const run_state *s, int64_t block, int64_t tile, int64_t v0, int64_t v1, float *v) {
  const wino_params *q = s->q;
  const fl_winograd_isa *isa = transforms(q->isa);
  const int64_t position = q->rows * FL_GEMM_AS, row = (tile - first_tile(s, block)) * FL_GEMM_AS;
  const int64_t vl = isa->vl, kc = q->shape.kc;
  for (int64_t c = v0 * vl, end = min64(v1 * vl, q->c.c); c < end;) {
    /* kc is a multiple of 8, so a K block may begin within a vector: then it begins a vector of its own. */
    const int64_t kb = c / kc, stop = min64(end, (kb + 1) * kc);
    isa->input(&s->w, tile, c, stop, v + kb * v_block(q) + row - kb * kc, position);
    c = stop;
  }
}

/* Products and results of one block for the panels of one chunk. */
static void multiply(const run_state *s, int64_t block, int64_t chunk, const float *v, float *m) {
  const wino_params *q = s->q;
  const fl_gemm_isa *gemm = fl_gemm_of(q->isa);
  const fl_gemm_b *b = &q->shape;
  const int64_t t0 = first_tile(s, block), rows = first_tile(s, block + 1) - t0;
  const int64_t o0 = chunk * CHUNK_COLUMNS, o1 = min64(o0 + CHUNK_COLUMNS, b->n), position = q->rows * CHUNK_COLUMNS;
  const int64_t floats = (int64_t)(fl_gemm_b_bytes(b) / sizeof(float));
  for (int64_t i = 0; i < positions(q); i++)
    for (int64_t kb = 0; kb < b->blocks; kb++) {
      const int64_t k0 = kb * b->kc, kc = min64(b->kc, b->k - k0);
      const fl_gemm_strip strip = {.a = v + kb * v_block(q) + i * q->rows * FL_GEMM_AS,
                                   .b = s->u + i * floats + k0 * b->n_padded + o0 * kc,
                                   .c = m + i * position,
                                   .ldc = CHUNK_COLUMNS,
                                   .n = o1 - o0,
                                   .kc = kc,
                                   .accumulate = kb > 0};
      gemm->strip[rows - 1](&strip);
    }
  for (int64_t t = 0; t < rows; t++) transforms(q->isa)->output(&s->w, t0 + t, o0, o1, m + t * CHUNK_COLUMNS, position);
}

static void block_tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  float *v = s->v + thread * s->q->v_floats, *m = s->m + thread * s->q->m_floats;
  for (int64_t i = begin; i < end; i++) {
    for (int64_t t = first_tile(s, i); t < first_tile(s, i + 1); t++) transform_input(s, i, t, 0, s->vectors, v);
    for (int64_t chunk = 0; chunk < s->chunks; chunk++) multiply(s, i, chunk, v, m);
  }
}

static void input_tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  for (int64_t i = begin; i < end; i++) {
    int64_t block = 0;
    while (first_tile(s, block + 1) <= i) block++;
    transform_input(s, block, i, 0, s->vectors, s->v + block * s->q->v_floats);
  }
}

static void product_tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  for (int64_t i = begin; i < end; i++) {
    const int64_t block = i % s->blocks;
    multiply(s, block, i / s->blocks, s->v + block * s->q->v_floats, s->m + thread * s->q->m_floats);
  }
}

static void run(const fl_run_args *args) {
  const wino_params *q = args->params;
  const fl_conv *c = &q->c;
  fl_pool *pool = fl_pool_threads(args->pool) > q->threads ? NULL : args->pool; /* scratch is for q->threads */
  run_state s = {.q = q,
                 .w = {.m = q->m,
                       .c = *c,
                       .tiles_h = q->tiles_h,
                       .tiles_w = q->tiles_w,
                       .tiles = c->n * q->tiles_h * q->tiles_w,
                       .shape = q->shape,
                       .x = args->in[FL_CONV_X].data,
                       .bias = c->has_bias ? args->in[FL_CONV_BIAS].data : NULL,
                       .residual = c->has_residual ? args->in[FL_CONV_RESIDUAL].data : NULL,
                       .y = args->out[0].data,
                       .fault = args->fault,
                       .epilogue = q->epilogue},
                 .u = args->in[FL_CONV_W].data,
                 .m = args->scratch,
                 .chunks = ceil_div(q->shape.n, CHUNK_COLUMNS),
                 .vectors = ceil_div(c->c, transforms(q->isa)->vl)};
  s.v = s.m + q->threads * q->m_floats;
  s.blocks = ceil_div(s.w.tiles, q->rows);
  if (!q->shared) {
    fl_parallel(pool, s.blocks, 1, block_tasks, &s);
    return;
  }
  fl_parallel(pool, s.w.tiles, 1, input_tasks, &s);
  fl_parallel(pool, s.blocks * s.chunks, 1, product_tasks, &s);
}

#define KERNEL(m_, suffix, isa_)                                                                                       \
  static const char *plan_f##m_##_##suffix(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {               \
    return plan_isa(p, arena, plan, isa_, m_);                                                                         \
  }                                                                                                                    \
  const fl_kernel fl_kernel_conv2d_winograd_f##m_##_##suffix = {.name = "conv2d_winograd_f" #m_ "_" #suffix,           \
                                                                .op = FL_OP_CONV2D,                                    \
                                                                .isa = isa_,                                           \
                                                                .plan = plan_f##m_##_##suffix,                         \
                                                                .pack = pack,                                          \
                                                                .run = run};

KERNEL(4, avx512, FL_ISA_AVX512)
KERNEL(2, avx512, FL_ISA_AVX512)
KERNEL(4, avx2, FL_ISA_AVX2)
KERNEL(2, avx2, FL_ISA_AVX2)
