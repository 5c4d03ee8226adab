/* Attention, three kernels of it: flash (tensor cores, f16 and bf16), tile (any float type), row (heads too large for
 * tiles). This file chooses tiles and writes what the kernels want to know. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cuda/nvrtc.h"
#include "cuda/ops.h"
#include "cuda/sources.h"
#include "cuda/writer.h"

enum { MAX_HEAD = 256, MAX_ROW_HEAD = 1024, MAX_ROW_KEYS = 40000, MAX_SPLITS = 64 };
enum { MASK_NONE, MASK_ADDED, MASK_KEPT };

/* How a kernel cuts the problem. flash.cu: 16 * mi rows a warp, wm * wn warps, bn keys of a group. attention_tile.cu: bm
 * rows, bn keys. */
typedef struct tiling {
  int mi, wm, wn, bn, stages, splits;
  bool wgmma; /* flash: products of 64 rows by four warps together */
} tiling;

typedef struct attention_params {
  fl_cuda_params base;
  tiling t;
} attention_params;

typedef struct shape {
  int64_t batch, groups, group, sq, tk, dq, dv, rows; /* rows: queries of the heads that share a key head */
  bool causal, adds;                                  /* adds a mask */
  int arch, processors, shared;                       /* of the device; 132 of sm_90 when planning for none */
} shape;

/* What a block may have, in bytes. */
static int shared_limit(int arch) {
  switch (arch) {
  case 70:
  case 72: return 96 << 10;
  case 75: return 64 << 10;
  case 80:
  case 87: return 163 << 10;
  case 90:
  case 100:
  case 103:
  case 110: return 227 << 10;
  default: return 99 << 10;
  }
}

static shape shape_of(const fl_problem *p) {
  const fl_type *q = &p->in[0].type, *k = &p->in[1].type, *v = &p->in[2].type;
  const fl_cuda_device *d = fl_cuda_device_of(p->backend);
  shape s = {.batch = q->dims[0],
             .groups = k->dims[1],
             .group = k->dims[1] ? q->dims[1] / k->dims[1] : 0,
             .sq = q->dims[2],
             .tk = k->dims[2],
             .dq = q->dims[3],
             .dv = v->dims[3],
             .arch = d ? d->arch : 90,
             .processors = d ? d->multiprocessors : 132};
  s.rows = s.sq * s.group;
  s.causal = fl_attr_int(p->attrs, "causal", 0) != 0;
  s.adds = p->n_in > 3 && !p->absent[3] && p->in[3].type.dtype != FL_BOOL;
  s.shared = shared_limit(s.arch);
  return s;
}

static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int at_most(int64_t n, int most) { return n > most ? most : (int)n; }

static size_t part_bytes(const shape *s, int splits) {
  if (splits == 1) return 0;
  return (size_t)(splits * s->batch * s->groups * s->rows * (s->dv + 2)) * sizeof(float);
}

static const char *plan_common(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  for (int i = 0; i < 3; i++)
    if (p->in[i].type.dtype != p->in[0].type.dtype || p->in[i].type.dtype == FL_F64)
      return "q, k and v must be of one type, f32, f16 or bf16";
  const int64_t *d = p->out[0].dims;
  const int64_t strides[4] = {d[1] * d[2] * d[3], d[3], d[1] * d[3], 1}; /* [B, S, H, E]: what follows is a view */
  memcpy(plan->out_strides[0], strides, sizeof strides);
  return NULL;
}

static const char *keep_tiling(const shape *s, const tiling *t, fl_arena *arena, fl_kernel_plan *plan) {
  attention_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->base = *(const fl_cuda_params *)plan->params;
  q->t = *t;
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->scratch_bytes = part_bytes(s, t->splits);
  return NULL;
}

/* Blocks that share the keys of a row tile: enough for `wanted` blocks, each with `least` keys or more. A kernel knows their number,
 * so few are used. */
static int splits_of(const shape *s, int64_t tiles, int64_t wanted, int64_t least) {
  static const int numbers[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, MAX_SPLITS};
  int64_t blocks = tiles * s->batch * s->groups, n = blocks ? wanted / blocks : 1, most = s->tk / least;
  if (n > most) n = most;
  int i = 0;
  while (i + 1 < (int)(sizeof numbers / sizeof *numbers) && numbers[i + 1] <= n) i++;
  return numbers[i];
}

/* --- flash --- */

static int64_t flash_shared(const shape *s, const tiling *t) {
  int64_t q = up(s->dq, 16), v = up(s->dv, 16), bm = 16 * t->mi * t->wm, keys = t->wn * t->bn;
  int64_t q_row = t->wgmma ? up(q, 64) * 2 : (q + 8) * 2, v_row = t->wgmma ? up(v, 64) * 2 : (v + 8) * 2;
  int64_t tiles = bm * q_row + t->stages * keys * (q_row + v_row);
  int64_t merge = t->wn == 1 && t->splits == 1 ? bm * (v + 8) * 2 : t->wn * bm * ((v + 4) * 4 + 8);
  return tiles > merge ? tiles : merge;
}

/* A tile of 16 rows: many groups of keys, as the rows are few. */
static tiling few_rows(const shape *s) {
  tiling t = {.mi = 1, .wm = 1, .wn = 4, .bn = 32, .stages = 3};
  t.splits = splits_of(s, 1, s->processors * 3 / 4, 2 * t.wn * t.bn);
  while (flash_shared(s, &t) > s->shared) {
    if (t.stages > 2)
      t.stages--;
    else
      t.wn /= 2;
  }
  return t;
}

/* Groups of four warps with 64 rows each, as wgmma wants them. Measured on an H100. */
static tiling wgmma_tiling(const shape *s, int64_t head) {
  tiling t = {.mi = 1, .wm = 4, .wn = 1, .bn = 128, .stages = 2, .splits = 1, .wgmma = true};
  int64_t blocks = ceil_div(s->rows, 64) * s->batch * s->groups;
  bool many = blocks >= 4 * s->processors;
  if (head <= 64) {
    t.wm = many ? 8 : 4;
    t.bn = many ? 96 : 128;
    t.wn = s->causal && s->tk >= 512 && blocks <= 2 * s->processors ? 2 : 1;
  } else if (head <= 128) {
    t.wm = many ? 8 : 4;
    t.bn = 64;
  } else {
    t.wn = 2;
    t.bn = 32;
  }
  return t;
}

static tiling mma_tiling(const shape *s, int64_t head) {
  tiling t = {.mi = 1, .wm = 4, .wn = 1, .bn = 64, .stages = 2, .splits = 1};
  bool many = ceil_div(s->rows, 128) * s->batch * s->groups >= 2 * s->processors;
  if (s->rows <= 48) t.wm = (int)ceil_div(s->rows, 16);
  if (s->adds && head <= 64) {
    t.bn = 32;
    t.wn = s->tk >= 512 ? 2 : 1;
  } else if (many && head <= 128 && !s->adds) {
    t.mi = 2;
    t.stages = head <= 64 ? 3 : 2;
  } else if (head <= 64)
    t.bn = 128;
  return t;
}

static tiling flash_tiling(const shape *s) {
  if (s->rows <= 16) return few_rows(s);
  int64_t head = s->dq > s->dv ? s->dq : s->dv;
  tiling t = s->arch == 90 && s->rows > 48 ? wgmma_tiling(s, head) : mma_tiling(s, head);
  if (t.wn > 1 && t.bn >= s->tk) t.wn = 1;
  while (t.bn > 32 && t.bn - 32 >= s->tk) t.bn -= 32;
  int64_t tiles = ceil_div(s->rows, 16 * t.mi * t.wm);
  if (tiles * s->batch * s->groups * 2 <= s->processors) t.splits = splits_of(s, tiles, s->processors, 256);
  while (flash_shared(s, &t) > s->shared) {
    if (t.stages > 2)
      t.stages--;
    else if (t.wn > 1)
      t.wn /= 2;
    else if (t.bn > 32)
      t.bn -= 32;
    else
      t.wm = t.wgmma ? 4 : t.wm / 2;
  }
  return t;
}

const char *fl_cuda_plan_attention_flash(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_common(p, arena, plan);
  if (why) return why;
  shape s = shape_of(p);
  if (p->in[0].type.dtype == FL_F32) return "tensor cores are used for f16 and bf16";
  if (s.arch < 80) return "the device has no products of 16 x 8 x 16";
  if (s.dq > MAX_HEAD || s.dv > MAX_HEAD) return "heads of more than 256 elements";
  if (s.dq < 1 || s.dv < 1 || s.tk < 1) return "nothing to compute";
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i]) plan->in_layout[i] = FL_LAYOUT_ROWS;
  tiling t = flash_tiling(&s);
  return keep_tiling(&s, &t, arena, plan);
}

/* Elements from each row's begin that can be read at once, 16 bytes at most: `length` of them lie there. */
static int width(const fl_tensor *x, int64_t length, const int64_t *strides) {
  int size = (int)fl_dtype_size(x->type.dtype), n = size > 1 ? 16 / size : 8;
  for (; n > 1; n /= 2) {
    bool fits = length % n == 0 && (uintptr_t)x->data % (unsigned)(n * size) == 0;
    for (int d = 0; d < 3; d++) fits = fits && strides[d] % n == 0;
    if (fits) break;
  }
  return n;
}

/* An offset by up to four coordinates, of an operand of one or several batches. Strides that depend on the heads alone are numbers:
 * from row to row and, where heads lie inside rows, from head to head. Others are arguments, as is all of a mask but its last. */
static void write_place(fl_cuda_writer *w, const char *name, const int64_t *strides, int n, bool batches) {
  static const char *const coordinates[] = {"b", "h", "i", "j"};
  char of[4][16];
  for (int d = batches ? 0 : 1; d < n; d++) {
    bool number = n > 3 ? d == 3 : d == 2 || (d == 1 && strides[1] < strides[2]);
    snprintf(of[d], sizeof of[d], "%c_%s", name[0], coordinates[d]);
    if (strides[d]) number ? fl_cuda_write_number(w, of[d], strides[d]) : fl_cuda_write_long(w, of[d], strides[d]);
  }
  fl_text_add(&w->text, "#define %s(b, h, i%s) (0", name, n > 3 ? ", j" : "");
  for (int d = batches ? 0 : 1; d < n; d++)
    if (strides[d]) fl_text_add(&w->text, " + (%s) * (i64)%s", coordinates[d], of[d]);
  fl_text_add(&w->text, ")\n");
}

/* The mask as four axes, those that repeat at stride 0. */
static void mask_strides(const fl_tensor *m, int64_t out[4]) {
  memset(out, 0, 4 * sizeof *out);
  for (int d = 0; d < m->type.rank; d++)
    if (m->type.dims[d] != 1) out[4 - m->type.rank + d] = m->strides[d];
}

typedef struct problem { /* of a run */
  const fl_run_args *a;
  const attention_params *q;
  const fl_tensor *x, *out, *mask; /* mask: NULL if none */
  int64_t mask_at[4];
  int64_t heads, groups, rows;
  double scale;
  int kind; /* of the mask */
} problem;

static problem problem_of(const fl_run_args *a) {
  problem p = {.a = a, .q = a->params, .x = a->in, .out = &a->out[0]};
  if (p.q->base.n_in > 3 && !p.q->base.absent[3]) p.mask = &a->in[3];
  if (p.mask) mask_strides(p.mask, p.mask_at);
  p.kind = !p.mask ? MASK_NONE : p.mask->type.dtype == FL_BOOL ? MASK_KEPT : MASK_ADDED;
  p.heads = a->in[0].type.dims[1];
  p.groups = a->in[1].type.dims[1];
  p.rows = a->in[0].type.dims[2] * (p.heads / p.groups);
  p.scale = fl_attr_float(&p.q->base.attrs, "scale", 1 / sqrt((double)a->in[0].type.dims[3]));
  return p;
}

/* What all kernels are given and want to know. Numbers of queries and keys and what follows from them are arguments, so that texts of
 * other lengths share the kernel. */
static void write_problem(fl_cuda_writer *w, const problem *p) {
  const int64_t *q = p->x[0].type.dims, *v = p->x[2].type.dims;
  fl_text_add(&w->text, "typedef %s T;\ntypedef %s M;\n", fl_cg_storage(p->x[0].type.dtype),
              fl_cg_storage(p->mask ? p->mask->type.dtype : p->x[0].type.dtype));
  fl_cuda_write_argument(w, "SQ", q[2]);
  fl_cuda_write_argument(w, "TK", v[2]);
  fl_cuda_write_argument(w, "HEAD_PAIRS", q[0] * p->groups);
  fl_cuda_write_quotient(w, "HEAD_PAIRS", q[0] * p->groups, false);
  fl_text_add(&w->text,
              "#define HEADS %" PRId64 "\n#define GROUPS %" PRId64 "\n#define GROUP %" PRId64 "\n#define DQ %" PRId64
              "\n#define DV %" PRId64 "\n",
              p->heads, p->groups, p->heads / p->groups, q[3], v[3]);
  fl_text_add(&w->text, "#define SCALE %.17g\n#define CAUSAL %d\n#define MASK %d\n", p->scale,
              fl_attr_int(&p->q->base.attrs, "causal", 0) != 0, p->kind);
  fl_text_add(&w->text,
              "#define QS %" PRId64 "\n#define KS %" PRId64 "\n#define VS %" PRId64 "\n#define OS %" PRId64 "\n",
              p->x[0].strides[3], p->x[1].strides[3], p->x[2].strides[3], p->out->strides[3]);
  write_place(w, "q_at", p->x[0].strides, 3, q[0] > 1);
  write_place(w, "k_at", p->x[1].strides, 3, q[0] > 1);
  write_place(w, "v_at", p->x[2].strides, 3, q[0] > 1);
  write_place(w, "o_at", p->out->strides, 3, q[0] > 1);
  if (p->mask) write_place(w, "m_at", p->mask_at, 4, q[0] > 1);
}

/* exp2((score - maximum) * factor): scores are scaled before when something is added to them. */
static bool is_scaled(const problem *p) { return p->kind == MASK_ADDED || !(p->scale > 0); }
static double factor(const problem *p) { return 1.4426950408889634 * (is_scaled(p) ? 1 : p->scale); }

static void combine(const problem *p, int splits, double f) {
  fl_cuda_writer w = {0};
  int64_t dv = p->x[2].type.dims[3];
  int threads = at_most(up(dv, 32), 256);
  fl_cuda_write_pointer(&w, p->a->scratch);
  fl_cuda_write_pointer(&w, p->out->data);
  fl_cuda_write_pointer(&w, p->a->fault);
  write_problem(&w, p);
  fl_cuda_write_number(&w, "SPLITS", splits);
  fl_cuda_write_quotient(&w, "ROWS", p->rows, false);
  fl_text_add(&w.text, "#define FACTOR %.17g\n#define THREADS %d\n", f, threads);
  fl_cuda_write_launch(&w, p->a, fl_cuda_source_flash_combine, p->x[0].type.dims[0] * p->groups * p->rows, threads, 0);
}

/* What comes before the arguments. */
static void write_pointers(fl_cuda_writer *w, const problem *p) {
  const void *pointers[] = {p->x[0].data,   p->x[1].data,  p->x[2].data, p->mask ? p->mask->data : NULL,
                            p->out[0].data, p->a->scratch, p->a->fault};
  for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) fl_cuda_write_pointer(w, pointers[i]);
}

static void put_accumulators(fl_text *t, int n, bool values) {
  for (int i = 0; i < n; i++)
    values ? fl_text_add(t, "%s\"+f\"(d[%d])", i ? ", " : "", i) : fl_text_add(t, "%s%%%d", i ? "," : "", i);
}

/* d (+)= a b with 64 rows and n columns, 16 products an element: b, and a too unless it is in registers, as wgmma's
 * descriptions of shared memory. score_product: b's columns are rows there. */
static void put_product(fl_text *t, const char *type, int n, bool registers) {
  int at = n / 2; /* accumulators a thread */
  fl_text_add(t, "__device__ inline void %s(float *d, %s a, unsigned long long b, int keep) {\n",
              registers ? "value_product" : "score_product", registers ? "const u32 *" : "unsigned long long");
  fl_text_add(t, "  asm volatile(\"{ .reg .pred p; setp.ne.b32 p, %%%d, 0; ", at + (registers ? 5 : 2));
  fl_text_add(t, "wgmma.mma_async.sync.aligned.m64n%dk16.f32.%s.%s {", n, type, type);
  put_accumulators(t, at, false);
  if (registers)
    fl_text_add(t, "}, {%%%d,%%%d,%%%d,%%%d}, %%%d, p, 1, 1, 1; }\" : ", at, at + 1, at + 2, at + 3, at + 4);
  else
    fl_text_add(t, "}, %%%d, %%%d, p, 1, 1, 0, 0; }\" : ", at, at + 1);
  put_accumulators(t, at, true);
  if (registers)
    fl_text_add(t, " : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(b), \"r\"(keep));\n}\n");
  else
    fl_text_add(t, " : \"l\"(a), \"l\"(b), \"r\"(keep));\n}\n");
}

static void write_flash(fl_cuda_writer *w, const problem *p) {
  fl_text *t = &w->text;
  const tiling *c = &p->q->t;
  const int64_t *q = p->x[0].type.dims, *v = p->x[2].type.dims;
  bool repeats = p->mask && p->mask_at[3] == 0;
  fl_text_add(t, "#define BF16 %d\n#define SCALED %d\n#define FACTOR %.17g\n#define WIDE %d\n",
              p->x[0].type.dtype == FL_BF16, is_scaled(p), factor(p),
              p->kind == MASK_ADDED && p->mask->type.dtype != FL_F16);
  fl_text_add(t, "#define QVEC %d\n#define KVEC %d\n#define VVEC %d\n#define OVEC %d\n#define MVEC %d\n",
              width(&p->x[0], q[3], p->x[0].strides), width(&p->x[1], q[3], p->x[1].strides),
              width(&p->x[2], v[3], p->x[2].strides), width(p->out, v[3], p->out->strides),
              !p->mask || repeats ? 0 : width(p->mask, v[2], p->mask_at));
  fl_text_add(t, "#define K_STRIDE %" PRId64 "\n#define V_STRIDE %" PRId64 "\n", p->x[1].strides[2],
              p->x[2].strides[2]);
  fl_text_add(t,
              "#define MI %d\n#define WM %d\n#define WN %d\n#define BN %d\n#define STAGES %d\n#define WHOLE %d\n"
              "#define WGMMA %d\ntypedef unsigned u32;\n",
              c->mi, c->wm, c->wn, c->bn, c->stages, v[2] % (c->wn * c->bn) == 0, c->wgmma);
  fl_cuda_write_number(w, "SPLITS", c->splits);
  const char *type = p->x[0].type.dtype == FL_BF16 ? "bf16" : "f16";
  if (c->wgmma) put_product(t, type, c->bn, false);
  if (c->wgmma) put_product(t, type, (int)up(v[3], 16), true);
}

static shape run_shape(const problem *p) {
  const int64_t *q = p->x[0].type.dims, *v = p->x[2].type.dims;
  return (shape){.batch = q[0], .groups = p->groups, .rows = p->rows, .tk = v[2], .dq = q[3], .dv = v[3]};
}

void fl_cuda_run_attention_flash(const fl_run_args *a) {
  problem p = problem_of(a);
  shape s = run_shape(&p);
  const tiling *c = &p.q->t;
  fl_cuda_writer w = {0};
  write_pointers(&w, &p);
  write_problem(&w, &p);
  write_flash(&w, &p);
  int64_t blocks = ceil_div(p.rows, 16 * c->mi * c->wm) * s.batch * s.groups * c->splits;
  fl_cuda_write_launch(&w, a, fl_cuda_source_flash, blocks, 32 * c->wm * c->wn, (size_t)flash_shared(&s, c));
  if (c->splits > 1) combine(&p, c->splits, factor(&p));
}

/* --- tile --- */

static int64_t tile_shared(const shape *s, const tiling *t) {
  int64_t bm = 16 * t->mi, dq = up(s->dq, 4) + 4, dv = up(s->dv, s->dv > 32 ? 64 : 32);
  return (bm * dq + t->bn * (dq + dv) + bm * (t->bn + 4)) * (int64_t)sizeof(float);
}

static tiling tile_tiling(const shape *s) {
  tiling t = {.mi = 4, .bn = 64, .splits = 1};
  int64_t heads = s->batch * s->groups;
  while (t.mi > 1 && (ceil_div(s->rows, 16 * t.mi) * heads < s->processors || s->rows <= 8 * t.mi)) t.mi /= 2;
  while (tile_shared(s, &t) > s->shared) {
    if (t.bn > 16)
      t.bn /= 2;
    else if (t.mi > 1)
      t.mi /= 2;
    else
      break;
  }
  t.splits = splits_of(s, ceil_div(s->rows, 16 * t.mi), 2 * s->processors, 2 * t.bn);
  return t;
}

const char *fl_cuda_plan_attention_tile(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_common(p, arena, plan);
  if (why) return why;
  shape s = shape_of(p);
  tiling t = tile_tiling(&s);
  if (s.dq < 1 || s.dv < 1 || s.tk < 1) return "nothing to compute";
  if (s.dv > MAX_HEAD || tile_shared(&s, &t) > s.shared) return "the heads are too large for tiles";
  return keep_tiling(&s, &t, arena, plan);
}

void fl_cuda_run_attention_tile(const fl_run_args *a) {
  problem p = problem_of(a);
  shape s = run_shape(&p);
  const tiling *c = &p.q->t;
  fl_cuda_writer w = {0};
  write_pointers(&w, &p);
  write_problem(&w, &p);
  fl_cuda_write_number(&w, "SPLITS", c->splits);
  fl_text_add(&w.text, "#define BM %d\n#define BN %d\n#define THREADS 256\n", 16 * c->mi, c->bn);
  int64_t blocks = ceil_div(p.rows, 16 * c->mi) * s.batch * s.groups * c->splits;
  fl_cuda_write_launch(&w, a, fl_cuda_source_attention_tile, blocks, 256, (size_t)tile_shared(&s, c));
  if (c->splits > 1) combine(&p, c->splits, 1.4426950408889634);
}

/* --- row --- */

const char *fl_cuda_plan_attention_row(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_common(p, arena, plan);
  if (why) return why;
  shape s = shape_of(p);
  if (s.tk > MAX_ROW_KEYS || s.tk * (int64_t)sizeof(float) + (8 << 10) > s.shared) return "too many keys";
  if (s.dq > MAX_ROW_HEAD) return "heads of more than 1024 elements";
  return keep_tiling(&s, &(tiling){.splits = 1}, arena, plan);
}

void fl_cuda_run_attention_row(const fl_run_args *a) {
  problem p = problem_of(a);
  int64_t keys = p.x[1].type.dims[2];
  fl_cuda_writer w = {0};
  write_pointers(&w, &p);
  write_problem(&w, &p);
  fl_text_add(&w.text, "#define THREADS 128\n");
  fl_cuda_write_launch(&w, a, fl_cuda_source_attention_row, p.x[0].type.dims[0] * p.heads * p.x[0].type.dims[2], 128,
                       (size_t)keys * sizeof(float));
}
