/* Three spatial axes, sampling, and other operators that few models have. */
#include <string.h>

#include "lower/convert.h"

/* --- conv3d: depth becomes channels of a two-dimensional convolution, one image for each depth of the result --- */

typedef struct volume {
  int64_t stride[3], pad[3], dilation[3];
  int64_t batch, channels, depth, kernel; /* depth of the result, and of the kernel */
} volume;

static fl_vid pad_depth(fl_cv *c, fl_vid x, int64_t pad) {
  int64_t pads[10] = {0};
  if (pad == 0) return x;
  pads[4] = pads[5] = pad;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "pads", pads, 10);
  fl_attr_set_float(&attrs, "value", 0);
  return fl_cv_op(c, FL_OP_PAD, &x, 1, &attrs);
}

/* [N, C, D, H, W] -> [N D', C K, H, W] */
static fl_vid depth_to_channels(fl_cv *c, fl_vid x, const volume *v) {
  fl_vid parts[64];
  if (v->kernel > 64) fl_cv_decline(c, "a kernel of depth %lld", (long long)v->kernel);
  for (int64_t k = 0; k < v->kernel && fl_cv_ok(c); k++) {
    int64_t start = k * v->dilation[0], stop = start + (v->depth - 1) * v->stride[0] + 1;
    parts[k] = fl_cv_unsqueeze(c, fl_cv_slice(c, x, 2, start, stop, v->stride[0]), 2);
  }
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  x = fl_cv_permute(c, fl_cv_cat(c, parts, (int)v->kernel, 2), (int[]){0, 3, 1, 2, 4, 5});
  fl_type t = fl_cv_type(c, x);
  int64_t dims[] = {v->batch * v->depth, v->channels * v->kernel, t.dims[4], t.dims[5]};
  return fl_cv_reshape(c, x, 4, dims);
}

void fl_convert_conv3d(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), weight = fl_cv_arg(c, "weight"), bias = fl_cv_arg_opt(c, "bias");
  fl_type out = fl_cv_out(c, 0), w = fl_cv_type(c, weight);
  volume v = {0};
  fl_cv_ints_n(c, "stride", 3, 1, v.stride);
  fl_cv_ints_n(c, "padding", 3, 0, v.pad);
  fl_cv_ints_n(c, "dilation", 3, 1, v.dilation);
  int64_t groups = fl_cv_int(c, "groups", 1);
  if (fl_cv_type(c, x).rank == 4) x = fl_cv_unsqueeze(c, x, 0);
  fl_type t = fl_cv_type(c, x);
  if (t.rank != 5 || w.rank != 5) fl_cv_decline(c, "input of rank %d, weight of rank %d", t.rank, w.rank);
  if (fl_cv_bool(c, "transposed", false)) fl_cv_decline(c, "transposed convolution over three axes");
  if (groups != 1 && w.dims[2] != 1) fl_cv_decline(c, "groups of a kernel with depth");
  if (!fl_cv_ok(c)) return;
  v.batch = t.dims[0];
  v.channels = t.dims[1];
  v.kernel = w.dims[2];
  v.depth = out.dims[out.rank - 3];
  if (v.depth < 1) return fl_cv_decline(c, "an empty result");
  x = depth_to_channels(c, pad_depth(c, x, v.pad[0]), &v);
  weight = fl_cv_reshape(c, weight, 4, (int64_t[]){w.dims[0], w.dims[1] * w.dims[2], w.dims[3], w.dims[4]});
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "stride", v.stride + 1, 2);
  fl_attr_set_list(&attrs, "pad", (int64_t[]){v.pad[1], v.pad[2], v.pad[1], v.pad[2]}, 4);
  fl_attr_set_list(&attrs, "dilation", v.dilation + 1, 2);
  fl_attr_set_int(&attrs, "groups", 'i', groups);
  x = fl_cv_op(c, FL_OP_CONV2D, (fl_vid[]){x, weight, bias}, bias == FL_NO_VALUE ? 2 : 3, &attrs);
  fl_type y = fl_cv_type(c, x);
  x = fl_cv_reshape(c, x, 5, (int64_t[]){v.batch, v.depth, y.dims[1], y.dims[2], y.dims[3]});
  fl_cv_result(c, 0, fl_cv_reshape(c, fl_cv_permute(c, x, (int[]){0, 2, 1, 3, 4}), out.rank, out.dims));
}

/* --- sampling --- */

void fl_convert_grid_sampler(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), grid = fl_cv_arg(c, "grid");
  int64_t mode = fl_cv_int(c, "interpolation_mode", 0);
  if (fl_cv_type(c, x).rank != 4) fl_cv_decline(c, "volumes");
  if (mode > 1) fl_cv_decline(c, "bicubic interpolation");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "mode", 'i', mode);
  fl_attr_set_int(&attrs, "padding", 'i', fl_cv_int(c, "padding_mode", 0));
  fl_attr_set_int(&attrs, "align_corners", 'b', fl_cv_bool(c, "align_corners", false));
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_GRID_SAMPLE, (fl_vid[]){x, grid}, 2, &attrs));
}

/* --- triangular systems; from the right they are those of the transposed matrices --- */

void fl_convert_solve_triangular(fl_cv *c) {
  fl_vid a = fl_cv_arg(c, "self"), b = fl_cv_arg(c, "B");
  fl_type at = fl_cv_type(c, a), bt = fl_cv_type(c, b), out = fl_cv_out(c, 0);
  bool upper = fl_cv_bool(c, "upper", false), left = fl_cv_bool(c, "left", true);
  if (at.rank < 2 || bt.rank < 2 || out.rank < 2) fl_cv_decline(c, "matrices of rank %d and %d", at.rank, bt.rank);
  if (!fl_cv_ok(c)) return;
  int64_t dims[FL_MAX_RANK];
  memcpy(dims, out.dims, sizeof dims);
  b = fl_cv_expand(c, b, out.rank, dims);
  dims[out.rank - 2] = dims[out.rank - 1] = at.dims[at.rank - 1];
  a = fl_cv_expand(c, a, out.rank, dims);
  if (!left) {
    a = fl_cv_transpose(c, a, out.rank - 2, out.rank - 1);
    b = fl_cv_transpose(c, b, out.rank - 2, out.rank - 1);
  }
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "upper", 'b', left ? upper : !upper);
  fl_attr_set_int(&attrs, "unit", 'b', fl_cv_bool(c, "unitriangular", false));
  fl_vid x = fl_cv_op(c, FL_OP_SOLVE_TRIANGULAR, (fl_vid[]){a, b}, 2, &attrs);
  fl_cv_result(c, 0, left ? x : fl_cv_transpose(c, x, out.rank - 2, out.rank - 1));
}

/* --- small ones --- */

void fl_convert_broadcast_tensors(fl_cv *c) {
  int n;
  fl_vid *xs = fl_cv_args(c, "tensors", &n);
  for (int i = 0; i < n && fl_cv_ok(c); i++) {
    fl_type out = fl_cv_out(c, i);
    if (fl_cv_needed(c, i)) fl_cv_result(c, i, fl_cv_expand(c, xs[i], out.rank, out.dims));
  }
}

void fl_convert_mse_loss(fl_cv *c) {
  fl_vid a, b;
  fl_cv_operands(c, "self", "target", &a, &b);
  fl_vid d = fl_cv_binary(c, FL_OP_SUB, a, b), x = fl_cv_binary(c, FL_OP_MUL, d, d);
  int64_t reduction = fl_cv_int(c, "reduction", 1);
  if (reduction) x = fl_cv_reduce(c, reduction == 1 ? FL_OP_MEAN : FL_OP_SUM, x, NULL, 0, false);
  fl_cv_result(c, 0, x);
}

/* Distances of all rows of one matrix to all of another. */
void fl_convert_cdist(fl_cv *c) {
  fl_vid a = fl_cv_arg(c, "x1"), b = fl_cv_arg(c, "x2");
  fl_type out = fl_cv_out(c, 0), t = fl_cv_type(c, a);
  if (fl_cv_float(c, "p", 2) != 2) fl_cv_decline(c, "p is not 2");
  if (t.rank < 2 || t.rank == FL_MAX_RANK || fl_cv_type(c, b).rank < 2) fl_cv_decline(c, "rank %d", t.rank);
  if (fl_cv_ok(c) && fl_type_numel(&out) * t.dims[t.rank - 1] > 1 << 24) fl_cv_decline(c, "too many distances");
  if (!fl_cv_ok(c)) return;
  a = fl_cv_unsqueeze(c, a, t.rank - 1);
  b = fl_cv_unsqueeze(c, b, fl_cv_type(c, b).rank - 2);
  fl_vid d = fl_cv_binary(c, FL_OP_SUB, a, b);
  int64_t last = -1;
  fl_vid sum = fl_cv_reduce(c, FL_OP_SUM, fl_cv_binary(c, FL_OP_MUL, d, d), &last, 1, false);
  fl_cv_result(c, 0, fl_cv_unary(c, FL_OP_SQRT, sum));
}
