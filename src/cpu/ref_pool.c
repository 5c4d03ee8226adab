/* Pooling and resizing of images [N, C, H, W], any float type and strides. */
#include "cpu/ref.h"

typedef struct params {
  int64_t kernel[2], stride[2], pad[4], dilation[2], divisor;
  double scale[2];
  bool include_pad, bilinear, align_corners;
} params;

static void copy_list(const fl_problem *p, const char *key, int64_t *dst, int want) {
  int n;
  const int64_t *v = fl_attr_list(p->attrs, key, &n);
  for (int i = 0; i < n && i < want; i++) dst[i] = v[i];
}

/* `pad` has two values (height, width), or four: top left bottom right. */
static void copy_pad(const fl_problem *p, int64_t *pad) {
  int n;
  const int64_t *v = fl_attr_list(p->attrs, "pad", &n);
  for (int i = 0; i < 4 && n; i++) pad[i] = v[n == 4 ? i : i % 2 < n ? i % 2 : 0];
}

static const char *plan_image(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (p->in[0].type.rank != 4) return "the input must have four axes";
  if (!fl_dtype_is_float(p->in[0].type.dtype)) return "the operator is for floats only";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->dilation[0] = q->dilation[1] = 1;
  copy_list(p, "kernel", q->kernel, 2);
  memcpy(q->stride, q->kernel, sizeof q->stride);
  copy_list(p, "stride", q->stride, 2);
  copy_list(p, "dilation", q->dilation, 2);
  copy_pad(p, q->pad);
  q->divisor = fl_attr_int(p->attrs, "divisor", 0);
  q->include_pad = fl_attr_int(p->attrs, "include_pad", 1) != 0;
  q->bilinear = fl_attr_int(p->attrs, "bilinear", 0) != 0;
  q->align_corners = fl_attr_int(p->attrs, "align_corners", 0) != 0;
  q->scale[0] = fl_attr_float(p->attrs, "scale_h", 0);
  q->scale[1] = fl_attr_float(p->attrs, "scale_w", 0);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  int64_t window = q->kernel[0] * q->kernel[1];
  if (p->op == FL_OP_ADAPTIVE_AVG_POOL2D) window = 1 + fl_type_numel(&p->in[0].type) / (fl_type_numel(&p->out[0]) + 1);
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * (double)(window + 4) * 0.005;
  return NULL;
}

typedef double (*pixel_fn)(const params *q, const fl_tensor *x, const fl_type *out, const int64_t *c, int64_t base);

typedef struct image_job {
  const fl_run_args *a;
  pixel_fn pixel;
} image_job;

static void image_range(void *arg, int64_t begin, int64_t end, int thread) {
  const image_job *j = arg;
  const fl_tensor *x = &j->a->in[0], *out = &j->a->out[0];
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin, &out->type, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&out->type, c)) {
    int64_t base = c[0] * x->strides[0] + c[1] * x->strides[1];
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(c, out->strides, 4),
                j->pixel(j->a->params, x, &out->type, c, base));
  }
}

static void run_image(const fl_run_args *a, pixel_fn pixel) {
  image_job j = {a, pixel};
  fl_parallel(a->pool, fl_type_numel(&a->out[0].type), FL_REF_GRAIN / 4, image_range, &j);
}

static double at(const fl_tensor *x, int64_t base, int64_t h, int64_t w) {
  return fl_ref_getf(x->data, x->type.dtype, base + h * x->strides[2] + w * x->strides[3]);
}

/* --- max_pool2d --- */

static double max_pixel(const params *q, const fl_tensor *x, const fl_type *out, const int64_t *c, int64_t base) {
  double m = -INFINITY;
  for (int64_t i = 0; i < q->kernel[0]; i++)
    for (int64_t j = 0; j < q->kernel[1]; j++) {
      int64_t h = c[2] * q->stride[0] - q->pad[0] + i * q->dilation[0];
      int64_t w = c[3] * q->stride[1] - q->pad[1] + j * q->dilation[1];
      if (h < 0 || w < 0 || h >= x->type.dims[2] || w >= x->type.dims[3]) continue;
      double v = at(x, base, h, w);
      m = m != m || m > v ? m : v;
    }
  return m;
}

static void run_max_pool(const fl_run_args *a) { run_image(a, max_pixel); }
const fl_kernel fl_kernel_max_pool2d_ref = {"max_pool2d_ref", FL_OP_MAX_POOL2D, FL_ISA_PORTABLE, plan_image, NULL,
                                            run_max_pool};

/* --- avg_pool2d --- */

static int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }

/* The window may begin in the padding, but what lies beyond the padding (ceil mode) never counts. */
static double avg_pixel(const params *q, const fl_tensor *x, const fl_type *out, const int64_t *c, int64_t base) {
  int64_t H = x->type.dims[2], W = x->type.dims[3];
  int64_t h0 = c[2] * q->stride[0] - q->pad[0], h1 = min_i(h0 + q->kernel[0], H + q->pad[2]);
  int64_t w0 = c[3] * q->stride[1] - q->pad[1], w1 = min_i(w0 + q->kernel[1], W + q->pad[3]);
  int64_t padded = (h1 - h0) * (w1 - w0);
  h0 = max_i(h0, 0), w0 = max_i(w0, 0), h1 = min_i(h1, H), w1 = min_i(w1, W);
  if (h0 >= h1 || w0 >= w1) return 0;
  double sum = 0;
  for (int64_t h = h0; h < h1; h++)
    for (int64_t w = w0; w < w1; w++) sum += at(x, base, h, w);
  int64_t divisor = q->divisor ? q->divisor : q->include_pad ? padded : (h1 - h0) * (w1 - w0);
  return sum / (double)divisor;
}

static void run_avg_pool(const fl_run_args *a) { run_image(a, avg_pixel); }
const fl_kernel fl_kernel_avg_pool2d_ref = {"avg_pool2d_ref", FL_OP_AVG_POOL2D, FL_ISA_PORTABLE, plan_image, NULL,
                                            run_avg_pool};

/* --- adaptive_avg_pool2d: output cell i of n averages inputs [i N / n, ceil((i + 1) N / n)) --- */

static double adaptive_pixel(const params *q, const fl_tensor *x, const fl_type *out, const int64_t *c, int64_t base) {
  int64_t H = x->type.dims[2], W = x->type.dims[3], oh = out->dims[2], ow = out->dims[3];
  int64_t h0 = c[2] * H / oh, h1 = ((c[2] + 1) * H + oh - 1) / oh;
  int64_t w0 = c[3] * W / ow, w1 = ((c[3] + 1) * W + ow - 1) / ow;
  double sum = 0;
  for (int64_t h = h0; h < h1; h++)
    for (int64_t w = w0; w < w1; w++) sum += at(x, base, h, w);
  return sum / (double)((h1 - h0) * (w1 - w0));
}

static void run_adaptive(const fl_run_args *a) { run_image(a, adaptive_pixel); }
const fl_kernel fl_kernel_adaptive_avg_pool2d_ref = {
    "adaptive_avg_pool2d_ref", FL_OP_ADAPTIVE_AVG_POOL2D, FL_ISA_PORTABLE, plan_image, NULL, run_adaptive};

/* --- resize2d: nearest or bilinear --- */

/* Input step for one output step, as PyTorch computes it: in float for float tensors. */
static float resize_step(int64_t in, int64_t out, double scale, bool align_corners) {
  if (align_corners) return out > 1 ? (float)(in - 1) / (float)(out - 1) : 0.0f;
  return scale > 0 ? (float)(1.0 / scale) : (float)in / (float)out;
}

static double resize_pixel(const params *q, const fl_tensor *x, const fl_type *out, const int64_t *c, int64_t base) {
  int64_t lo[2], hi[2];
  double t[2];
  for (int k = 0; k < 2; k++) {
    int64_t n = x->type.dims[2 + k];
    float step = resize_step(n, out->dims[2 + k], q->scale[k], q->bilinear && q->align_corners);
    if (!q->bilinear) {
      lo[k] = min_i((int64_t)floorf((float)c[2 + k] * step), n - 1);
      continue;
    }
    float s = q->align_corners ? step * (float)c[2 + k] : step * ((float)c[2 + k] + 0.5f) - 0.5f;
    if (s < 0) s = 0;
    lo[k] = min_i((int64_t)s, n - 1);
    hi[k] = min_i(lo[k] + 1, n - 1);
    t[k] = s - (float)lo[k];
    if (t[k] > 1) t[k] = 1;
  }
  if (!q->bilinear) return at(x, base, lo[0], lo[1]);
  double top = at(x, base, lo[0], lo[1]) * (1 - t[1]) + at(x, base, lo[0], hi[1]) * t[1];
  double bottom = at(x, base, hi[0], lo[1]) * (1 - t[1]) + at(x, base, hi[0], hi[1]) * t[1];
  return top * (1 - t[0]) + bottom * t[0];
}

static const char *plan_resize(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_image(p, arena, plan);
  if (!why && fl_type_numel(&p->in[0].type) == 0 && fl_type_numel(&p->out[0]) > 0)
    return "an empty image has no pixels";
  return why;
}

static void run_resize(const fl_run_args *a) { run_image(a, resize_pixel); }
const fl_kernel fl_kernel_resize2d_ref = {"resize2d_ref", FL_OP_RESIZE2D, FL_ISA_PORTABLE,
                                          plan_resize,    NULL,           run_resize};
