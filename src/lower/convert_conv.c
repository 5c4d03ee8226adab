/* Convolution, pooling, resizing. One spatial axis is two with height 1. */
#include <string.h>

#include "lower/convert.h"

/* Spatial parameters, read for one or two axes: [H, W]. */
typedef struct window {
  int axes; /* 1 or 2 */
  int64_t kernel[2], stride[2], pad[2], dilation[2], out_pad[2];
} window;

static void spatial(fl_cv *c, const char *name, int axes, int64_t def, int64_t neutral, int64_t *out) {
  fl_cv_ints_n(c, name, axes, def, out);
  if (axes == 1) {
    out[1] = out[0];
    out[0] = neutral;
  }
}

/* [N, C, L] -> [N, C, 1, L]; a missing batch axis is added. `want` is the rank of a batch. */
static fl_vid as_batch_2d(fl_cv *c, fl_vid x, int axes) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (t.rank != axes + 2 && t.rank != axes + 1) fl_cv_decline(c, "input of rank %d", t.rank);
  if (t.rank == axes + 1) x = fl_cv_unsqueeze(c, x, 0);
  return axes == 1 ? fl_cv_unsqueeze(c, x, 2) : x;
}

static void result_2d(fl_cv *c, fl_vid x, int axes) {
  fl_type out = fl_cv_out(c, 0);
  if (axes == 1) x = fl_cv_squeeze(c, x, 2);
  fl_cv_result(c, 0, out.rank == axes + 1 ? fl_cv_squeeze(c, x, 0) : x);
}

/* --- convolution --- */

static void convolve(fl_cv *c, bool transposed, const int64_t *pad4, window *w) {
  fl_vid x = fl_cv_arg(c, "input"), weight = fl_cv_arg(c, "weight"), bias = fl_cv_arg_opt(c, "bias");
  spatial(c, "stride", w->axes, 1, 1, w->stride);
  spatial(c, "dilation", w->axes, 1, 1, w->dilation);
  x = as_batch_2d(c, x, w->axes);
  if (w->axes == 1) weight = fl_cv_unsqueeze(c, weight, 2);
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "stride", w->stride, 2);
  if (pad4)
    fl_attr_set_list(&attrs, "pad", pad4, 4);
  else {
    spatial(c, "padding", w->axes, 0, 0, w->pad);
    int64_t both[4] = {w->pad[0], w->pad[1], w->pad[0], w->pad[1]};
    fl_attr_set_list(&attrs, "pad", both, transposed ? 2 : 4);
  }
  if (transposed) {
    spatial(c, "output_padding", w->axes, 0, 0, w->out_pad);
    fl_attr_set_list(&attrs, "out_pad", w->out_pad, 2);
  }
  fl_attr_set_list(&attrs, "dilation", w->dilation, 2);
  fl_attr_set_int(&attrs, "groups", 'i', fl_cv_int(c, "groups", 1));
  fl_op op = transposed ? FL_OP_CONV_TRANSPOSE2D : FL_OP_CONV2D;
  result_2d(c, fl_cv_op(c, op, (fl_vid[]){x, weight, bias}, bias == FL_NO_VALUE ? 2 : 3, &attrs), w->axes);
}

/* convolution and _convolution: the weight's rank tells the axes. */
void fl_convert_convolution(fl_cv *c) {
  window w = {.axes = fl_cv_type(c, fl_cv_arg(c, "weight")).rank - 2};
  if (w.axes == 3) {
    fl_convert_conv3d(c);
    return;
  }
  if (w.axes != 1 && w.axes != 2) fl_cv_decline(c, "convolution over %d axes", w.axes);
  if (fl_cv_ok(c)) convolve(c, fl_cv_bool(c, "transposed", false), NULL, &w);
}

/* conv1d, conv2d; param is the number of axes */
void fl_convert_conv(fl_cv *c) {
  window w = {.axes = c->param};
  convolve(c, false, NULL, &w);
}

void fl_convert_conv_transpose(fl_cv *c) {
  window w = {.axes = c->param};
  convolve(c, true, NULL, &w);
}

/* padding is "valid" or "same"; an odd total goes after, as in PyTorch. */
void fl_convert_conv_padding(fl_cv *c) {
  window w = {.axes = c->param};
  int64_t pad[4] = {0};
  fl_type t = fl_cv_type(c, fl_cv_arg(c, "weight"));
  spatial(c, "dilation", w.axes, 1, 1, w.dilation);
  if (t.rank != w.axes + 2) fl_cv_decline(c, "weight of rank %d", t.rank);
  if (!fl_cv_ok(c)) return;
  for (int i = 0; i < w.axes && !strcmp(fl_cv_string(c, "padding", "valid"), "same"); i++) {
    int axis = 2 - w.axes + i;
    int64_t total = w.dilation[axis] * (t.dims[2 + i] - 1);
    pad[axis] = total / 2;
    pad[2 + axis] = total - total / 2;
  }
  convolve(c, false, pad, &w);
}

/* --- pooling --- */

static void pool_window(fl_cv *c, window *w, fl_attrs *attrs) {
  int64_t given[2];
  spatial(c, "kernel_size", w->axes, 1, 1, w->kernel);
  bool strided = fl_cv_has(c, "stride") && fl_cv_ints(c, "stride", given, 2);
  if (strided)
    spatial(c, "stride", w->axes, 1, 1, w->stride);
  else
    memcpy(w->stride, w->kernel, sizeof w->stride);
  spatial(c, "padding", w->axes, 0, 0, w->pad);
  fl_attr_set_list(attrs, "kernel", w->kernel, 2);
  fl_attr_set_list(attrs, "stride", w->stride, 2);
  fl_attr_set_list(attrs, "pad", w->pad, 2);
  fl_attr_set_int(attrs, "ceil", 'b', fl_cv_bool(c, "ceil_mode", false));
}

void fl_convert_max_pool(fl_cv *c) {
  window w = {.axes = c->param};
  fl_attrs attrs = {0};
  pool_window(c, &w, &attrs);
  spatial(c, "dilation", w.axes, 1, 1, w.dilation);
  fl_attr_set_list(&attrs, "dilation", w.dilation, 2);
  fl_vid x = as_batch_2d(c, fl_cv_arg(c, "self"), w.axes);
  result_2d(c, fl_cv_op(c, FL_OP_MAX_POOL2D, &x, 1, &attrs), w.axes);
}

void fl_convert_avg_pool(fl_cv *c) {
  window w = {.axes = c->param};
  fl_attrs attrs = {0};
  pool_window(c, &w, &attrs);
  fl_attr_set_int(&attrs, "include_pad", 'b', fl_cv_bool(c, "count_include_pad", true));
  fl_attr_set_int(&attrs, "divisor", 'i', fl_cv_int(c, "divisor_override", 0));
  fl_vid x = as_batch_2d(c, fl_cv_arg(c, "self"), w.axes);
  result_2d(c, fl_cv_op(c, FL_OP_AVG_POOL2D, &x, 1, &attrs), w.axes);
}

/* Over the whole image it is a mean, which every backend is good at. */
void fl_convert_adaptive_avg_pool(fl_cv *c) {
  int axes = c->param;
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  if (out.rank != t.rank || t.rank <= axes) fl_cv_decline(c, "input of rank %d", t.rank);
  if (!fl_cv_ok(c)) return;
  int64_t size[2] = {1, out.dims[t.rank - 1]}, over[2] = {t.rank - axes, t.rank - 1};
  if (axes == 2) size[0] = out.dims[t.rank - 2];
  if (size[0] == 1 && size[1] == 1) {
    fl_cv_result(c, 0, fl_cv_reduce(c, FL_OP_MEAN, x, over, axes, true));
    return;
  }
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "out", size, 2);
  x = as_batch_2d(c, x, axes);
  result_2d(c, fl_cv_op(c, FL_OP_ADAPTIVE_AVG_POOL2D, &x, 1, &attrs), axes);
}

/* Where the output divides the input, the windows are equal and apart. */
void fl_convert_adaptive_max_pool(fl_cv *c) {
  int axes = c->param;
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  if (out.rank != t.rank || t.rank <= axes) fl_cv_decline(c, "input of rank %d", t.rank);
  if (!fl_cv_ok(c)) return;
  int64_t kernel[2] = {1, 1};
  for (int i = 0; i < axes; i++) {
    int64_t in = t.dims[t.rank - axes + i], o = out.dims[t.rank - axes + i];
    if (o == 0 || in % o) {
      fl_cv_decline(c, "%lld is not a multiple of %lld", (long long)in, (long long)o);
      return;
    }
    kernel[2 - axes + i] = in / o;
  }
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "kernel", kernel, 2);
  fl_attr_set_list(&attrs, "stride", kernel, 2);
  fl_attr_set_list(&attrs, "pad", (int64_t[]){0, 0}, 2);
  fl_attr_set_list(&attrs, "dilation", (int64_t[]){1, 1}, 2);
  fl_attr_set_int(&attrs, "ceil", 'b', false);
  x = as_batch_2d(c, x, axes);
  result_2d(c, fl_cv_op(c, FL_OP_MAX_POOL2D, &x, 1, &attrs), axes);
}

/* --- resizing; param 1 is bilinear --- */

double fl_cv_scale_factor(fl_cv *c, const char *name, int i) {
  const fl_arg *factors = fl_aten_arg(c->node, "scale_factors");
  if (factors && factors->kind == FL_ARG_FLOATS && i < factors->count) return factors->v.floats[i];
  return fl_cv_float(c, name, 0);
}

static void resize(fl_cv *c, int axes, bool bilinear) {
  fl_vid x = fl_cv_arg(c, fl_cv_has(c, "input") ? "input" : "self");
  fl_type out = fl_cv_out(c, 0);
  if (fl_cv_type(c, x).rank != axes + 2 || out.rank != axes + 2) fl_cv_decline(c, "input of rank %d", out.rank);
  if (bilinear && out.dtype == FL_F64) fl_cv_decline(c, "in f64: weights are f32");
  if (!fl_cv_ok(c)) return;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "out", (int64_t[]){axes == 2 ? out.dims[2] : 1, out.dims[out.rank - 1]}, 2);
  fl_attr_set_int(&attrs, "bilinear", 'b', bilinear);
  fl_attr_set_int(&attrs, "align_corners", 'b', fl_cv_bool(c, "align_corners", false));
  fl_attr_set_float(&attrs, "scale_h", axes == 2 ? fl_cv_scale_factor(c, "scales_h", 0) : 0);
  fl_attr_set_float(&attrs, "scale_w",
                    axes == 2 ? fl_cv_scale_factor(c, "scales_w", 1) : fl_cv_scale_factor(c, "scales", 0));
  x = as_batch_2d(c, x, axes);
  result_2d(c, fl_cv_op(c, FL_OP_RESIZE2D, &x, 1, &attrs), axes);
}

void fl_convert_upsample2d(fl_cv *c) { resize(c, 2, c->param); }
void fl_convert_upsample1d(fl_cv *c) { resize(c, 1, c->param); }
