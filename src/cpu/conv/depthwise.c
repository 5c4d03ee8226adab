#include "cpu/conv/depthwise.h"

#include <string.h>

typedef struct dw_params {
  int isa, vl;
  fl_conv c;
  int64_t c_padded;
  fl_epilogue epilogue;
} dw_params;

static const char *plan_isa(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int isa) {
  const char *why = fl_conv_why_not_f32(p);
  if (why) return why;
  const fl_conv c = fl_conv_of(p);
  if (c.groups != c.c || c.o != c.c) return "not one filter per channel";
  if (!p->constant[FL_CONV_W]) return "weights are not constant";
  dw_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->isa = isa;
  q->vl = isa >= FL_ISA_AVX512 ? 16 : 8;
  q->c = c;
  q->c_padded = (c.c + q->vl - 1) / q->vl * q->vl;
  q->epilogue = fl_epilogue_of(p->attrs);
  plan->in_layout[FL_CONV_X] = FL_LAYOUT_CHANNELS_LAST;
  plan->pack_pieces = 1;
  plan->packed_bytes[FL_CONV_W] = (size_t)(c.kh * c.kw * q->c_padded) * sizeof(float);
  if (!plan->packed_bytes[FL_CONV_W]) plan->packed_bytes[FL_CONV_W] = sizeof(float);
  fl_conv_plan_nhwc(p, &c, plan);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  const double bytes = 4.0 * (double)(fl_type_numel(&p->in[FL_CONV_X].type) + fl_type_numel(&p->out[0]));
  plan->cost_us = (2e-3 / 25 * fl_conv_mults(&c) + 1e-4 * bytes) * (isa >= FL_ISA_AVX512 ? 1 : 2);
  return NULL;
}

static void pack(const fl_pack_args *a, int64_t begin, int64_t end) {
  const dw_params *q = a->params;
  const fl_tensor *w = a->src;
  float *d = a->dst;
  for (int64_t i = 0; i < q->c.kh; i++)
    for (int64_t j = 0; j < q->c.kw; j++, d += q->c_padded) {
      const float *src = (const float *)w->data + i * w->strides[2] + j * w->strides[3];
      for (int64_t c = 0; c < q->c_padded; c++)
        d[c] = c < q->c.c ? src[c * w->strides[0]] * (a->scale ? a->scale[c] : 1) : 0;
    }
}

typedef struct run_state {
  fl_depthwise d;
  fl_depthwise_row row;
  int64_t chunks, vectors, vl; /* channels in `chunks` pieces of whole vectors */
} run_state;

static void tasks(void *arg, int64_t begin, int64_t end, int thread) {
  const run_state *s = arg;
  const fl_conv *c = &s->d.c;
  for (int64_t i = begin; i < end; i++) {
    const int64_t piece = i % s->chunks, row = i / s->chunks;
    const int64_t c0 = s->vectors * piece / s->chunks * s->vl, c1 = s->vectors * (piece + 1) / s->chunks * s->vl;
    s->row(&s->d, row / c->oh, row % c->oh, c0, c1 < c->c ? c1 : c->c);
  }
}

static void run(const fl_run_args *args) {
  const dw_params *q = args->params;
  const fl_conv *c = &q->c;
  run_state s = {.d = {.c = *c,
                       .c_padded = q->c_padded,
                       .x = args->in[FL_CONV_X].data,
                       .w = args->in[FL_CONV_W].data,
                       .bias = c->has_bias ? args->in[FL_CONV_BIAS].data : NULL,
                       .residual = c->has_residual ? args->in[FL_CONV_RESIDUAL].data : NULL,
                       .y = args->out[0].data,
                       .epilogue = q->epilogue},
                 .row = q->isa >= FL_ISA_AVX512 ? fl_depthwise_row_avx512 : fl_depthwise_row_avx2,
                 .chunks = 1,
                 .vectors = q->c_padded / q->vl,
                 .vl = q->vl};
  const int64_t rows = c->n * c->oh, want = 6 * fl_pool_threads(args->pool);
  if (rows > 0 && rows < want) s.chunks = (want + rows - 1) / rows;
  if (s.chunks > s.vectors) s.chunks = s.vectors > 0 ? s.vectors : 1;
  fl_parallel(args->pool, rows * s.chunks, 1, tasks, &s);
}

FL_CONV_KERNEL(depthwise, avx512, FL_ISA_AVX512)
FL_CONV_KERNEL(depthwise, avx2, FL_ISA_AVX2)
