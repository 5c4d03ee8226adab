/* grid_sample, and triangular systems. */
#include "cpu/ref.h"

typedef struct params {
  int mode, padding; /* grid_sample */
  bool align;
  bool upper, unit; /* solve_triangular */
} params;

/* --- grid_sample: (x [N, C, H, W], grid [N, P, Q, 2]): x at places from -1 to 1, as (width, height) --- */

enum { BILINEAR, NEAREST };
enum { ZEROS, BORDER, REFLECTION };

static float reflect(float v, float twice_low, float twice_high) {
  if (twice_low == twice_high) return 0;
  float low = twice_low / 2, span = (twice_high - twice_low) / 2;
  v = fabsf(v - low);
  float extra = fmodf(v, span);
  return fmodf(floorf(v / span), 2) == 0 ? extra + low : span - extra + low;
}

static float clip(float v, int64_t n) { return fminf((float)(n - 1), fmaxf(v, 0)); }

static float place(const params *q, float v, int64_t n) {
  v = q->align ? (v + 1) / 2 * (float)(n - 1) : ((v + 1) * (float)n - 1) / 2;
  if (q->padding == REFLECTION) v = q->align ? reflect(v, 0, (float)(2 * (n - 1))) : reflect(v, -1, (float)(2 * n - 1));
  return q->padding == ZEROS ? v : clip(v, n);
}

typedef struct tap {
  int64_t offset;
  float weight;
} tap;

static void add_tap(tap *taps, int *n, const fl_tensor *x, float row, float column, float weight) {
  if (!(row >= 0 && row < (float)x->type.dims[2] && column >= 0 && column < (float)x->type.dims[3])) return;
  taps[(*n)++] = (tap){(int64_t)row * x->strides[2] + (int64_t)column * x->strides[3], weight};
}

static int find_taps(const params *q, const fl_tensor *x, float across, float down, tap *taps) {
  float column = place(q, across, x->type.dims[3]), row = place(q, down, x->type.dims[2]);
  int n = 0;
  if (q->mode == NEAREST) {
    add_tap(taps, &n, x, nearbyintf(row), nearbyintf(column), 1);
    return n;
  }
  float top = floorf(row), left = floorf(column), dy = row - top, dx = column - left;
  add_tap(taps, &n, x, top, left, (1 - dx) * (1 - dy));
  add_tap(taps, &n, x, top, left + 1, dx * (1 - dy));
  add_tap(taps, &n, x, top + 1, left, (1 - dx) * dy);
  add_tap(taps, &n, x, top + 1, left + 1, dx * dy);
  return n;
}

static void sample_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const fl_tensor *x = &a->in[0], *grid = &a->in[1], *out = &a->out[0];
  const fl_dtype t = x->type.dtype;
  fl_type places = {.rank = 3, .dims = {grid->type.dims[0], grid->type.dims[1], grid->type.dims[2]}};
  int64_t c[3];
  fl_ref_unravel(begin, &places, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&places, c)) {
    tap taps[4];
    int64_t g = fl_ref_offset(c, grid->strides, 3);
    float across = (float)fl_ref_getf(grid->data, t, g), down = (float)fl_ref_getf(grid->data, t, g + grid->strides[3]);
    int n = find_taps(a->params, x, across, down, taps);
    int64_t o = c[0] * out->strides[0] + c[1] * out->strides[2] + c[2] * out->strides[3];
    for (int64_t k = 0; k < x->type.dims[1]; k++, o += out->strides[1]) {
      float sum = 0;
      int64_t from = c[0] * x->strides[0] + k * x->strides[1];
      for (int j = 0; j < n; j++)
        sum += (t == FL_F32 ? ((const float *)x->data)[from + taps[j].offset]
                            : (float)fl_ref_getf(x->data, t, from + taps[j].offset)) *
               taps[j].weight;
      if (t == FL_F32)
        ((float *)out->data)[o] = sum;
      else
        fl_ref_setf(out->data, t, o, sum);
    }
  }
}

static params *new_params(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, double cost) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.5 + cost;
  return q;
}

static const char *plan_sample(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = new_params(p, arena, plan, (double)fl_type_numel(&p->out[0]) * 0.004);
  if (!q) return "out of memory";
  if (p->in[0].type.dtype == FL_F64) return "not for f64"; /* places are computed in f32 */
  q->mode = (int)fl_attr_int(p->attrs, "mode", 0);
  q->padding = (int)fl_attr_int(p->attrs, "padding", 0);
  q->align = fl_attr_int(p->attrs, "align_corners", 0) != 0;
  return NULL;
}

static void run_sample(const fl_run_args *a) {
  const fl_type *g = &a->in[1].type;
  if (fl_type_numel(&a->out[0].type))
    fl_parallel(a->pool, g->dims[0] * g->dims[1] * g->dims[2], 64, sample_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_grid_sample_ref = {"grid_sample_ref", FL_OP_GRID_SAMPLE, FL_ISA_PORTABLE, plan_sample, NULL,
                                             run_sample};

/* --- solve_triangular: (a [.., n, n], b [.., n, m]): x with a x = b --- */

static void solve_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *args = arg;
  const params *q = args->params;
  const fl_tensor *a = &args->in[0], *b = &args->in[1], *x = &args->out[0];
  const fl_dtype t = a->type.dtype;
  const int rank = x->type.rank;
  const int64_t n = x->type.dims[rank - 2], m = x->type.dims[rank - 1];
  const int64_t an = a->strides[rank - 2], ak = a->strides[rank - 1], bn = b->strides[rank - 2],
                bm = b->strides[rank - 1];
  const int64_t xn = x->strides[rank - 2], xm = x->strides[rank - 1];
  fl_type batches = {.rank = rank - 2};
  memcpy(batches.dims, x->type.dims, sizeof batches.dims);
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin / m, &batches, c);
  for (int64_t i = begin; i < end; i++) {
    int64_t column = i % m, ao = fl_ref_offset(c, a->strides, rank - 2);
    int64_t bo = fl_ref_offset(c, b->strides, rank - 2) + column * bm;
    int64_t xo = fl_ref_offset(c, x->strides, rank - 2) + column * xm;
    for (int64_t step = 0; step < n; step++) {
      int64_t row = q->upper ? n - 1 - step : step;
      double sum = fl_ref_getf(b->data, t, bo + row * bn);
      for (int64_t j = 0; j < step; j++) {
        int64_t k = q->upper ? n - 1 - j : j;
        sum -= fl_ref_getf(a->data, t, ao + row * an + k * ak) * fl_ref_getf(x->data, t, xo + k * xn);
      }
      if (!q->unit) sum /= fl_ref_getf(a->data, t, ao + row * an + row * ak);
      fl_ref_setf(x->data, t, xo + row * xn, sum);
    }
    if (column == m - 1) fl_ref_next(&batches, c);
  }
}

static const char *plan_solve(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *a = &p->in[0].type;
  params *q = new_params(p, arena, plan, (double)fl_type_numel(&p->out[0]) * (double)a->dims[a->rank - 1] * 0.003);
  if (!q) return "out of memory";
  q->upper = fl_attr_int(p->attrs, "upper", 0) != 0;
  q->unit = fl_attr_int(p->attrs, "unit", 0) != 0;
  return NULL;
}

static void run_solve(const fl_run_args *a) {
  const fl_type *x = &a->out[0].type;
  int64_t all = fl_type_numel(x);
  if (all) fl_parallel(a->pool, all / x->dims[x->rank - 2], 8, solve_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_solve_triangular_ref = {
    "solve_triangular_ref", FL_OP_SOLVE_TRIANGULAR, FL_ISA_PORTABLE, plan_solve, NULL, run_solve};
