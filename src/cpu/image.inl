/* Pooling and resizing of f32 images in NHWC order, vectors along the channels; the body of image_avx512.c and
 * image_avx2.c. A unit of work is one row of output pixels by one block of channels. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

enum { CHANNELS = 256 };

typedef struct params {
  int64_t C, H, W, OH, OW, blocks, units;
  int64_t kernel[2], stride[2], pad[2], dilation[2], divisor;
  float step[2];
  int32_t op;
  bool include_pad, bilinear, align_corners;
} params;

static void copy_list(const fl_problem *p, const char *key, int64_t *dst) {
  int n;
  const int64_t *v = fl_attr_list(p->attrs, key, &n);
  for (int i = 0; i < n && i < 2; i++) dst[i] = v[i];
}

static const char *plan_image(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type, *y = &p->out[0];
  if (x->rank != 4 || x->dtype != FL_F32) return "not an f32 image";
  if (x->dims[1] < VL / 2) return "few channels";
  int n;
  const int64_t *pad = fl_attr_list(p->attrs, "pad", &n);
  if (pad && n == 4 && (pad[0] != pad[2] || pad[1] != pad[3])) return "the padding differs from side to side";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->op = (int32_t)p->op;
  q->C = x->dims[1], q->H = x->dims[2], q->W = x->dims[3], q->OH = y->dims[2], q->OW = y->dims[3];
  q->dilation[0] = q->dilation[1] = 1;
  copy_list(p, "kernel", q->kernel);
  memcpy(q->stride, q->kernel, sizeof q->stride);
  copy_list(p, "stride", q->stride);
  copy_list(p, "dilation", q->dilation);
  copy_list(p, "pad", q->pad);
  q->divisor = fl_attr_int(p->attrs, "divisor", 0);
  q->include_pad = fl_attr_int(p->attrs, "include_pad", 1) != 0;
  q->bilinear = fl_attr_int(p->attrs, "bilinear", 0) != 0;
  q->align_corners = q->bilinear && fl_attr_int(p->attrs, "align_corners", 0);
  for (int k = 0; k < 2; k++) { /* PyTorch's step between samples, computed in float as there */
    double scale = fl_attr_float(p->attrs, k ? "scale_w" : "scale_h", 0);
    int64_t in = x->dims[2 + k], out = y->dims[2 + k];
    if (q->align_corners)
      q->step[k] = out > 1 ? (float)(in - 1) / (float)(out - 1) : 0.0f;
    else
      q->step[k] = scale > 0 ? (float)(1.0 / scale) : (float)in / (float)(out ? out : 1);
  }
  q->blocks = (q->C + CHANNELS - 1) / CHANNELS;
  q->units = fl_type_numel(y) && fl_type_numel(x) ? x->dims[0] * q->OH * q->blocks : 0;
  if (fl_type_numel(y) && !q->units) return "an empty image";
  plan->in_layout[0] = FL_LAYOUT_CHANNELS_LAST;
  fl_strides_channels_last(y, plan->out_strides[0]);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  double window = p->op == FL_OP_RESIZE2D              ? 4
                  : p->op == FL_OP_ADAPTIVE_AVG_POOL2D ? 0
                                                       : (double)(q->kernel[0] * q->kernel[1]);
  plan->cost_us = 0.2 + (double)fl_type_numel(y) * (0.0004 + window * 0.0001) + (double)fl_type_numel(x) * 0.0004;
  return NULL;
}

FL_INLINE vf load_part(const float *p, int64_t left) {
  return left >= VL ? vf_load(p) : vf_load_mask(p, vm_first((int)left));
}
FL_INLINE void store_part(float *p, int64_t left, vf v) {
  if (left >= VL)
    vf_store(p, v);
  else
    vf_store_mask(p, vm_first((int)left), v);
}

/* --- pooling --- */

/* Input rows (or columns) of output index o: from, to (exclusive), by step; `padded` counts the padding too. */
typedef struct window {
  int64_t from, to, step, padded;
} window;

static window get_window(const params *q, int k, int64_t o) {
  int64_t n = k ? q->W : q->H;
  window w = {.step = q->dilation[k]};
  if (q->op == FL_OP_ADAPTIVE_AVG_POOL2D) {
    int64_t out = k ? q->OW : q->OH;
    w.from = o * n / out;
    w.to = ((o + 1) * n + out - 1) / out;
    w.padded = w.to - w.from;
    return w;
  }
  w.from = o * q->stride[k] - q->pad[k];
  w.to = w.from + (q->kernel[k] - 1) * w.step + 1;
  if (q->op == FL_OP_AVG_POOL2D && w.to > n + q->pad[k]) w.to = n + q->pad[k];
  w.padded = w.to - w.from;
  while (w.from < 0) w.from += w.step;
  if (w.to > n) w.to = n;
  if (w.from > w.to) w.from = w.to;
  return w;
}

/* NaN wins, whichever comes first. */
FL_INLINE vf max_nan(vf m, vf v) { return vf_select(vf_isnan(v), v, vf_max(v, m)); }

/* One output pixel, channels c .. c + U VL. */
FL_INLINE void pool_pixel(bool max, int U, float *y, const float *x, const params *q, window h, window w, float scale,
                          int64_t left) {
  vf acc[4];
  for (int u = 0; u < U; u++) acc[u] = max ? vf_set1(-INFINITY) : vf_zero();
  for (int64_t i = h.from; i < h.to; i += h.step)
    for (int64_t j = w.from; j < w.to; j += w.step)
      for (int u = 0; u < U; u++) {
        vf v = load_part(x + (i * q->W + j) * q->C + u * VL, left - u * VL);
        acc[u] = max ? max_nan(acc[u], v) : vf_add(acc[u], v);
      }
  for (int u = 0; u < U; u++) store_part(y + u * VL, left - u * VL, max ? acc[u] : vf_mul(acc[u], vf_set1(scale)));
}

FL_INLINE void pool_range(bool max, const fl_run_args *a, int64_t begin, int64_t end) {
  const params *q = a->params;
  for (int64_t u = begin; u < end; u++) {
    int64_t first = u % q->blocks * CHANNELS, row = u / q->blocks, item = row / q->OH, oh = row % q->OH;
    int64_t last = first + CHANNELS < q->C ? first + CHANNELS : q->C;
    const float *x = (const float *)a->in[0].data + item * q->H * q->W * q->C;
    float *y = (float *)a->out[0].data + row * q->OW * q->C;
    window h = get_window(q, 0, oh);
    for (int64_t ow = 0; ow < q->OW; ow++, y += q->C) {
      window w = get_window(q, 1, ow);
      int64_t inside = (h.to - h.from) * (w.to - w.from);
      int64_t n = q->divisor ? q->divisor : q->include_pad ? h.padded * w.padded : inside;
      float scale = inside ? 1.0f / (float)n : 0;
      int64_t c = first;
      for (; c + 4 * VL <= last; c += 4 * VL) pool_pixel(max, 4, y + c, x + c, q, h, w, scale, 4 * VL);
      for (; c < last; c += VL) pool_pixel(max, 1, y + c, x + c, q, h, w, scale, last - c);
    }
  }
}

static void max_range(void *arg, int64_t begin, int64_t end, int thread) { pool_range(true, arg, begin, end); }
static void avg_range(void *arg, int64_t begin, int64_t end, int thread) { pool_range(false, arg, begin, end); }

static void run_max(const fl_run_args *a) {
  fl_parallel(a->pool, ((const params *)a->params)->units, 1, max_range, (void *)(uintptr_t)a);
}
static void run_avg(const fl_run_args *a) {
  fl_parallel(a->pool, ((const params *)a->params)->units, 1, avg_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(max_pool2d) = {
    FL_NAME("max_pool2d"), FL_OP_MAX_POOL2D, FL_ISA_HERE, plan_image, NULL, run_max};
const fl_kernel FL_NAMED(avg_pool2d) = {
    FL_NAME("avg_pool2d"), FL_OP_AVG_POOL2D, FL_ISA_HERE, plan_image, NULL, run_avg};
const fl_kernel FL_NAMED(adaptive_avg_pool2d) = {
    FL_NAME("adaptive_avg_pool2d"), FL_OP_ADAPTIVE_AVG_POOL2D, FL_ISA_HERE, plan_image, NULL, run_avg};

/* --- resizing --- */

typedef struct sample {
  int64_t lo, hi;
  float t; /* weight of hi */
} sample;

static sample get_sample(const params *q, int k, int64_t o) {
  int64_t last = (k ? q->W : q->H) - 1;
  float s = (float)o * q->step[k];
  if (q->bilinear && !q->align_corners) s = q->step[k] * ((float)o + 0.5f) - 0.5f;
  if (s < 0) s = 0;
  sample r = {.lo = (int64_t)s};
  if (r.lo > last) r.lo = last;
  r.hi = r.lo < last ? r.lo + 1 : last;
  r.t = s - (float)r.lo;
  if (r.t > 1) r.t = 1;
  return r;
}

static void resize_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  for (int64_t u = begin; u < end; u++) {
    int64_t first = u % q->blocks * CHANNELS, row = u / q->blocks, item = row / q->OH;
    int64_t last = first + CHANNELS < q->C ? first + CHANNELS : q->C;
    const float *x = (const float *)a->in[0].data + item * q->H * q->W * q->C;
    float *y = (float *)a->out[0].data + row * q->OW * q->C;
    sample h = get_sample(q, 0, row % q->OH);
    const float *top = x + h.lo * q->W * q->C, *bottom = x + h.hi * q->W * q->C;
    for (int64_t ow = 0; ow < q->OW; ow++, y += q->C) {
      sample w = get_sample(q, 1, ow);
      if (!q->bilinear) {
        memcpy(y + first, top + w.lo * q->C + first, (size_t)(last - first) * sizeof *y);
        continue;
      }
      const vf tl = vf_set1((1 - h.t) * (1 - w.t)), tr = vf_set1((1 - h.t) * w.t);
      const vf bl = vf_set1(h.t * (1 - w.t)), br = vf_set1(h.t * w.t);
      for (int64_t c = first; c < last; c += VL) {
        vf v = vf_mul(load_part(top + w.lo * q->C + c, last - c), tl);
        v = vf_fma(load_part(top + w.hi * q->C + c, last - c), tr, v);
        v = vf_fma(load_part(bottom + w.lo * q->C + c, last - c), bl, v);
        store_part(y + c, last - c, vf_fma(load_part(bottom + w.hi * q->C + c, last - c), br, v));
      }
    }
  }
}

static void run_resize(const fl_run_args *a) {
  fl_parallel(a->pool, ((const params *)a->params)->units, 1, resize_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(resize2d) = {FL_NAME("resize2d"), FL_OP_RESIZE2D, FL_ISA_HERE, plan_image, NULL, run_resize};
