/* Bicubic resizing, and what is antialiased: along each axis an output is a weighted sum of a few inputs, which are
 * selected one by one. */
#include <math.h>

#include "lower/convert.h"

enum { MOST_TAPS = 16, RESAMPLE_CUBIC = 0, RESAMPLE_CUBIC_AA = 1, RESAMPLE_LINEAR_AA = 2 }; /* params */

/* For output o the inputs at[k * out + o] with weight[k * out + o], k < n; used[...] is false where it has fewer. */
typedef struct taps {
  int n;
  int64_t out;
  int64_t *at;
  float *weight;
  bool *used;
} taps;

static double cubic(double x, double a) {
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/* PyTorch's factor: what was asked for, else the ratio of sizes. In the floats that it computes it in. */
static float step_of(int64_t in, int64_t out, bool corners, double asked) {
  if (corners) return out > 1 ? (float)(in - 1) / (float)(out - 1) : 0;
  return asked > 0 ? (float)(1 / asked) : (float)in / (float)out;
}

static bool make_room(fl_cv *c, taps *t, int n, int64_t out) {
  if (n > MOST_TAPS) {
    fl_cv_decline(c, "%d inputs for each output", n);
    return false;
  }
  *t = (taps){.n = n, .out = out};
  size_t count = (size_t)n * (size_t)out;
  t->at = fl_arena_alloc(c->texts, count * sizeof *t->at);
  t->weight = fl_arena_alloc(c->texts, count * sizeof *t->weight);
  t->used = fl_arena_alloc(c->texts, count * sizeof *t->used);
  if (!t->at || !t->weight || !t->used) c->status = fl_oom();
  return fl_cv_ok(c);
}

static bool plain_taps(fl_cv *c, taps *t, int64_t in, int64_t out, bool corners, double asked) {
  float step = step_of(in, out, corners, asked);
  if (!make_room(c, t, 4, out)) return false;
  for (int64_t o = 0; o < out; o++) {
    float x = corners ? step * (float)o : step * ((float)o + 0.5f) - 0.5f;
    int64_t first = (int64_t)floorf(x);
    for (int k = 0; k < 4; k++) {
      int64_t at = first - 1 + k;
      t->at[k * out + o] = at < 0 ? 0 : at >= in ? in - 1 : at;
      t->weight[k * out + o] = (float)cubic((double)(x - (float)first) - (k - 1), -0.75);
      t->used[k * out + o] = true;
    }
  }
  return true;
}

static double triangle(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

/* Antialiased: the window is as wide as the step, and weights add up to one. */
static bool smooth_taps(fl_cv *c, taps *t, int64_t in, int64_t out, double asked) {
  bool linear = c->param == RESAMPLE_LINEAR_AA;
  double step = step_of(in, out, false, asked), wide = step > 1 ? step : 1, reach = (linear ? 1 : 2) * wide;
  int n = (int)ceil(reach) * 2 + 1;
  if (!make_room(c, t, (int64_t)n > in ? (int)in : n, out)) return false;
  for (int64_t o = 0; o < out; o++) {
    double middle = step * ((double)o + 0.5), sum = 0, w[MOST_TAPS];
    int64_t first = (int64_t)(middle - reach + 0.5), last = (int64_t)(middle + reach + 0.5);
    if (first < 0) first = 0;
    if (last > in) last = in;
    for (int k = 0; k < t->n; k++) {
      double x = ((double)(first + k) - middle + 0.5) / wide;
      w[k] = first + k >= last ? 0 : linear ? triangle(x) : cubic(x, -0.5);
      sum += w[k];
    }
    for (int k = 0; k < t->n; k++) {
      t->used[k * out + o] = first + k < last;
      t->at[k * out + o] = first + k < last ? first + k : first;
      t->weight[k * out + o] = (float)(sum != 0 ? w[k] / sum : w[k]);
    }
  }
  return true;
}

/* A literal that broadcasts along `axis` of four. */
static fl_vid literal(fl_cv *c, fl_dtype dtype, int axis, int64_t n, const void *data) {
  fl_type t = {.dtype = dtype, .rank = axis == 3 ? 1 : 2, .dims = {n, 1}};
  fl_vid v = FL_NO_VALUE;
  if (fl_cv_ok(c)) c->status = fl_graph_literal(c->g, &t, data, &v);
  return fl_cv_ok(c) ? v : FL_NO_VALUE;
}

static bool all_used(const taps *t, int k) {
  for (int64_t o = 0; o < t->out; o++)
    if (!t->used[k * t->out + o]) return false;
  return true;
}

static fl_vid along(fl_cv *c, fl_vid x, int axis, const taps *t) {
  fl_vid sum = FL_NO_VALUE;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  for (int k = 0; k < t->n && fl_cv_ok(c); k++) {
    fl_vid at = literal(c, FL_I64, 3, t->out, t->at + k * t->out);
    fl_vid term = fl_cv_op(c, FL_OP_INDEX_SELECT, (fl_vid[]){x, at}, 2, &attrs);
    term = fl_cv_binary(c, FL_OP_MUL, term, literal(c, FL_F32, axis, t->out, t->weight + k * t->out));
    if (!all_used(t, k))
      term = fl_cv_where(c, literal(c, FL_BOOL, axis, t->out, t->used + k * t->out), term, fl_cv_scalar(c, FL_F32, 0));
    sum = k ? fl_cv_binary(c, FL_OP_ADD, sum, term) : term;
  }
  return sum;
}

/* Rows first, as they are contiguous. */
void fl_convert_resample2d(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, fl_cv_has(c, "input") ? "input" : "self");
  fl_type in = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  bool corners = fl_cv_bool(c, "align_corners", false);
  taps t[2];
  if (in.rank != 4 || out.rank != 4) fl_cv_decline(c, "input of rank %d", in.rank);
  if (in.dtype == FL_F64) fl_cv_decline(c, "of f64");
  bool smooth = c->param != RESAMPLE_CUBIC;
  if (smooth && corners) fl_cv_decline(c, "antialiased, with corners that are aligned");
  for (int i = 0; i < 2 && fl_cv_ok(c); i++) {
    double asked = fl_cv_scale_factor(c, i ? "scales_w" : "scales_h", i);
    int64_t from = in.dims[2 + i], to = out.dims[2 + i];
    if (smooth)
      smooth_taps(c, &t[i], from, to, asked);
    else
      plain_taps(c, &t[i], from, to, corners, asked);
  }
  x = fl_cv_cast(c, x, FL_F32);
  for (int i = 1; i >= 0 && fl_cv_ok(c); i--) x = along(c, x, 2 + i, &t[i]);
  fl_cv_result(c, 0, fl_cv_cast(c, x, out.dtype));
}
