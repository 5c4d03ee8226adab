#include "cpu/conv/grouped.h"

#include <string.h>

#define COPY_BYTES (64 << 10) /* of one stripe's window, where it can be */
#define MIN_PIXELS 14

typedef struct grouped_params {
  int isa, vl, threads;
  fl_conv c;
  int64_t per_block, blocks, panel; /* groups of a block, the last of which may have fewer; channels of a panel */
  int64_t panels, block_floats;     /* of a block's weights */
  int64_t step;                     /* floats of a pixel in the copy */
  int64_t rows, pixels;             /* of a stripe */
  int64_t copy_rows, copy_columns, copy_floats;
  fl_epilogue epilogue;
} grouped_params;

static const fl_grouped_isa *grouped_of(int isa) {
  return isa >= FL_ISA_AVX512 ? &fl_grouped_avx512 : &fl_grouped_avx2;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static bool is_narrow(const grouped_params *q) { return q->panel == q->vl; }

static const char *why_not(const fl_problem *p, const fl_conv *c) {
  if (c->groups < 2) return "one group";
  if (c->groups == c->c && c->o == c->c) return "one filter per channel";
  if (!p->constant[FL_CONV_W]) return "weights are not constant";
  if (!c->n || !c->oh || !c->ow || !c->og || !c->cg || !c->kh || !c->kw) return "empty";
  return NULL;
}

/* Groups that share a vector: their results are its lanes, and their inputs fit into another. */
static void choose_blocks(grouped_params *q) {
  const fl_conv *c = &q->c;
  const int64_t fit = min64(q->vl / c->og, q->vl / c->cg);
  q->per_block = max64(1, min64(fit, c->groups));
  q->panel = fit >= 2 ? q->vl : 2 * q->vl;
  q->blocks = ceil_div(c->groups, q->per_block);
  q->panels = ceil_div(q->per_block * c->og, q->panel);
  q->step = is_narrow(q) ? q->vl : c->cg;
}

static void window_of(grouped_params *q) {
  const fl_conv *c = &q->c;
  q->copy_rows = (q->rows - 1) * c->sh + (c->kh - 1) * c->dh + 1;
  q->copy_columns = (q->pixels - 1) * c->sw + (c->kw - 1) * c->dw + 1;
}

/* As many rows as the copy may hold, in parts of rows if need be, and enough stripes for all threads. */
static bool choose_stripes(grouped_params *q) {
  const fl_conv *c = &q->c;
  q->rows = 1;
  q->pixels = c->ow;
  window_of(q);
  const double bytes = 4.0 * (double)q->step * (double)q->copy_rows;
  const double fit = (COPY_BYTES / bytes - (double)((c->kw - 1) * c->dw + 1)) / (double)c->sw + 1;
  if (fit < (double)c->ow) {
    const int64_t pixels = fit < MIN_PIXELS ? MIN_PIXELS : (int64_t)fit / MIN_PIXELS * MIN_PIXELS;
    q->pixels = min64(c->ow, pixels);
    window_of(q);
  }
  const double row = 4.0 * (double)q->step * (double)q->copy_columns;
  const double rows = (COPY_BYTES / row - (double)((c->kh - 1) * c->dh + 1)) / (double)c->sh + 1;
  if (rows > 1) q->rows = rows < (double)c->oh ? (int64_t)rows : c->oh;
  const int64_t others = c->n * q->blocks * ceil_div(c->ow, q->pixels), want = q->threads > 1 ? 4 * q->threads : 1;
  q->rows = min64(q->rows, ceil_div(c->oh, min64(c->oh, ceil_div(want, others))));
  q->rows = ceil_div(c->oh, ceil_div(c->oh, q->rows)); /* stripes of equal height */
  window_of(q);
  size_t floats;
  if (!fl_mul_size((size_t)q->copy_rows, (size_t)q->copy_columns, &floats) ||
      !fl_mul_size(floats, (size_t)q->step, &floats) || floats > (SIZE_MAX >> 4) / (size_t)q->threads)
    return false;
  q->copy_floats = ((int64_t)floats + 15) & ~(int64_t)15;
  return true;
}

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const char *why = fl_conv_why_not_f32(p);
  if (why) return why;
  const fl_conv c = fl_conv_of(p);
  why = why_not(p, &c);
  if (why) return why;
  grouped_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  *q = (grouped_params){.isa = isa, .vl = grouped_of(isa)->vl, .threads = p->threads > 0 ? p->threads : 1, .c = c};
  q->epilogue = fl_epilogue_of(p->attrs);
  choose_blocks(q);
  if (!choose_stripes(q)) return "the window is large";
  q->block_floats = q->panels * c.kh * c.kw * c.cg * q->panel;
  plan->packed_bytes[FL_CONV_W] = (size_t)(q->blocks * q->block_floats) * sizeof(float);
  plan->pack_pieces = q->blocks * q->panels;
  plan->pack_form[0] = c.groups;
  plan->scratch_bytes = (size_t)(q->threads * q->copy_floats) * sizeof(float);
  plan->in_layout[FL_CONV_X] = FL_LAYOUT_CHANNELS_LAST;
  fl_conv_plan_nhwc(p, &c, plan);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const double lanes = (double)(ceil_div(q->per_block * c.og, q->vl) * q->vl) / (double)(q->per_block * c.og);
  const double bytes = 4.0 * (double)(fl_type_numel(&p->in[FL_CONV_X].type) + fl_type_numel(&p->out[0]));
  plan->cost_us = (2e-3 / 50 * fl_conv_mults(&c) * lanes + 1e-4 * bytes) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

/* --- weights: [block][panel][kh][kw][channel][lane] --- */

/* `n` filters from o on, side by side. Whole rows are written, from n places that each are read in order. */
static void pack_panel(const grouped_params *q, const fl_pack_args *a, int64_t o, int64_t n, float *dst) {
  const fl_conv *c = &q->c;
  const int64_t *st = a->src->strides;
  const float *scale = a->scale ? a->scale + o : NULL;
  for (int64_t i = 0; i < c->cg; i++)
    for (int64_t h = 0; h < c->kh; h++)
      for (int64_t k = 0; k < c->kw; k++) {
        const float *src = (const float *)a->src->data + o * st[0] + i * st[1] + h * st[2] + k * st[3];
        float *row = dst + ((h * c->kw + k) * c->cg + i) * q->panel;
        for (int64_t j = 0; j < n; j++) row[j] = src[j * st[0]] * (scale ? scale[j] : 1);
        for (int64_t j = n; j < q->panel; j++) row[j] = 0;
      }
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const grouped_params *q = a->params;
  const int64_t per_panel = q->block_floats / q->panels, per_block = q->per_block * q->c.og;
  for (int64_t i = begin; i < end; i++) {
    const int64_t first = i / q->panels * per_block + i % q->panels * q->panel;
    const int64_t last = min64((i / q->panels + 1) * per_block, q->c.o);
    pack_panel(q, a, first, min64(q->panel, max64(0, last - first)), (float *)a->dst + i * per_panel);
  }
}

/* --- run --- */

typedef struct run_state {
  const grouped_params *q;
  const fl_run_args *args;
  int64_t row_stripes, pixel_stripes;
  int32_t lanes[16 * 8]; /* narrow: at most half a vector's channels a group */
} run_state;

typedef struct stripe {
  int64_t n, block, row, pixel; /* of the image; first of each */
  int64_t rows, pixels;
} stripe;

static stripe stripe_at(const run_state *s, int64_t i) {
  const grouped_params *q = s->q;
  stripe t = {.pixel = i % s->pixel_stripes * q->pixels};
  i /= s->pixel_stripes;
  t.row = i % s->row_stripes * q->rows;
  i /= s->row_stripes;
  t.n = i % q->c.n;
  t.block = i / q->c.n;
  t.rows = min64(q->rows, q->c.oh - t.row);
  t.pixels = min64(q->pixels, q->c.ow - t.pixel);
  return t;
}

static int64_t clip(int64_t v, int64_t hi) { return v < 0 ? 0 : v > hi ? hi : v; }

/* The window of a stripe, with its padding. */
static void copy_window(const run_state *s, const stripe *t, float *dst) {
  const grouped_params *q = s->q;
  const fl_conv *c = &q->c;
  const int64_t c0 = t->block * q->per_block * c->cg, channels = min64(q->per_block * c->cg, c->c - c0);
  const int64_t rows = (t->rows - 1) * c->sh + (c->kh - 1) * c->dh + 1, h0 = t->row * c->sh - c->top;
  const int64_t w0 = t->pixel * c->sw - c->left, left = clip(-w0, q->copy_columns);
  const int64_t right = max64(left, clip(c->w - w0, q->copy_columns)), line = q->copy_columns * q->step;
  const float *x = (const float *)s->args->in[FL_CONV_X].data + t->n * c->h * c->w * c->c + c0;
  for (int64_t i = 0; i < rows; i++, dst += line) {
    const int64_t h = h0 + i;
    if (h < 0 || h >= c->h) {
      memset(dst, 0, (size_t)line * sizeof *dst);
      continue;
    }
    memset(dst, 0, (size_t)(left * q->step) * sizeof *dst);
    if (right > left)
      grouped_of(q->isa)->copy(dst + left * q->step, q->step, x + (h * c->w + w0 + left) * c->c, c->c, channels,
                               right - left);
    memset(dst + right * q->step, 0, (size_t)(line - right * q->step) * sizeof *dst);
  }
}

static fl_grouped describe(const run_state *s, const stripe *t, const float *copy) {
  const grouped_params *q = s->q;
  const fl_conv *c = &q->c;
  const fl_run_args *args = s->args;
  const int64_t at = ((t->n * c->oh + t->row) * c->ow + t->pixel) * c->o, line = q->copy_columns * q->step;
  fl_grouped g = {.x = copy,
                  .pixel_step = c->sw * q->step,
                  .row_step = c->sh * line,
                  .kh = c->kh,
                  .kw = c->kw,
                  .window_row = c->dh * line,
                  .window_column = c->dw * q->step,
                  .channels = c->cg,
                  .lanes = s->lanes,
                  .rows = t->rows,
                  .pixels = t->pixels,
                  .out_row = c->ow * c->o};
  if (!is_narrow(q) && c->dw == 1) g.channels *= g.kw, g.kw = 1;
  g.out = (fl_gemm_strip){.c = (float *)args->out[0].data + at,
                          .ldc = c->o,
                          .residual = c->has_residual ? (const float *)args->in[FL_CONV_RESIDUAL].data + at : NULL,
                          .epilogue = q->epilogue};
  return g;
}

static void tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const grouped_params *q = s->q;
  const fl_grouped_isa *isa = grouped_of(q->isa);
  const float *bias = q->c.has_bias ? s->args->in[FL_CONV_BIAS].data : NULL;
  float *copy = (float *)s->args->scratch + thread * q->copy_floats;
  for (int64_t i = begin; i < end; i++) {
    const stripe t = stripe_at(s, i);
    const int64_t first = t.block * q->per_block * q->c.og, n = min64(q->per_block * q->c.og, q->c.o - first);
    copy_window(s, &t, copy);
    const fl_grouped whole = describe(s, &t, copy);
    for (int64_t k = 0; k < q->panels && k * q->panel < n; k++) {
      fl_grouped g = whole;
      const int64_t column = first + k * q->panel;
      g.b = (const float *)s->args->in[FL_CONV_W].data + t.block * q->block_floats + k * (q->block_floats / q->panels);
      g.out.c += column;
      if (g.out.residual) g.out.residual += column;
      g.out.bias = bias ? bias + column : NULL;
      g.out.n = min64(q->panel, n - k * q->panel);
      (is_narrow(q) ? isa->narrow : isa->wide)(&g);
    }
  }
}

static void run(const fl_run_args *args) {
  const grouped_params *q = args->params;
  const fl_conv *c = &q->c;
  run_state s = {
      .q = q, .args = args, .row_stripes = ceil_div(c->oh, q->rows), .pixel_stripes = ceil_div(c->ow, q->pixels)};
  for (int64_t i = 0; is_narrow(q) && i < c->cg; i++)
    for (int64_t l = 0; l < q->vl; l++)
      s.lanes[i * q->vl + l] = l < q->per_block * c->og ? (int32_t)(l / c->og * c->cg + i) : 0;
  fl_pool *pool = fl_pool_threads(args->pool) > q->threads ? NULL : args->pool; /* scratch is for q->threads */
  fl_parallel(pool, q->blocks * c->n * s.row_stripes * s.pixel_stripes, 1, tasks, &s);
}

FL_CONV_KERNEL(grouped, avx512, FL_ISA_AVX512)
FL_CONV_KERNEL(grouped, avx2, FL_ISA_AVX2)
