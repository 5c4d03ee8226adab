/* Padding and sliding windows. What no engine operator does directly selects elements by indexes known here. */
#include <string.h>

#include "lower/convert.h"

/* x with the elements at `index` (takes; may be NULL after a failure) along an axis. */
static fl_vid select_known(fl_cv *c, fl_vid x, int axis, int64_t *index, int64_t n) {
  fl_vid at = FL_NO_VALUE;
  if (!index && fl_cv_ok(c)) c->status = fl_oom();
  if (fl_cv_ok(c)) {
    fl_type t = fl_type_make(FL_I64, 1, &n);
    c->status = fl_graph_literal(c->g, &t, index, &at);
  }
  fl_free(index);
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  return fl_cv_op(c, FL_OP_INDEX_SELECT, (fl_vid[]){x, at}, 2, &attrs);
}

/* Windows of `size` elements, `dilation` apart, at every `step`: the axis becomes n * size. */
static fl_vid windows(fl_cv *c, fl_vid x, int axis, int64_t n, int64_t size, int64_t step, int64_t dilation) {
  int64_t *index = n >= 0 && size >= 0 ? fl_calloc((size_t)n, (size_t)size * sizeof *index) : NULL;
  for (int64_t i = 0; index && i < n * size; i++) index[i] = i / size * step + i % size * dilation;
  return select_known(c, x, axis, index, n * size);
}

/* --- padding: [before last axis, after last axis, before the one in front of it, ...] --- */

typedef enum mode { CONSTANT, REFLECT, REPLICATE, CIRCULAR } mode;

static int64_t source(mode m, int64_t i, int64_t n) {
  if (m == REPLICATE) return i < 0 ? 0 : i >= n ? n - 1 : i;
  if (m == CIRCULAR) return (i % n + n) % n;
  return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i;
}

static fl_vid pad_axis(fl_cv *c, mode m, fl_vid x, int axis, int64_t before, int64_t after) {
  int64_t n = fl_cv_type(c, x).dims[axis], limit = m == REFLECT ? n - 1 : m == CIRCULAR ? n : INT32_MAX;
  if (n < 1 || before > limit || after > limit || n + before + after < 0) fl_cv_decline(c, "padding beyond the tensor");
  if (!fl_cv_ok(c) || (before == 0 && after == 0)) return x;
  int64_t total = n + before + after, *index = fl_calloc((size_t)total, sizeof *index);
  for (int64_t i = 0; index && i < total; i++) index[i] = source(m, i - before, n);
  return select_known(c, x, axis, index, total);
}

/* Negative amounts cut off. */
static fl_vid pad_constant(fl_cv *c, fl_vid x, const int64_t *given, int n) {
  fl_type t = fl_cv_type(c, x);
  int64_t pads[2 * FL_MAX_RANK] = {0};
  bool any = false;
  for (int i = 0; i < n / 2; i++) {
    int axis = t.rank - 1 - i;
    int64_t before = given[2 * i], after = given[2 * i + 1];
    if (before < 0 || after < 0)
      x = fl_cv_slice(c, x, axis, before < 0 ? -before : 0, t.dims[axis] + (after < 0 ? after : 0), 1);
    pads[2 * axis] = before > 0 ? before : 0;
    pads[2 * axis + 1] = after > 0 ? after : 0;
    any |= before > 0 || after > 0;
  }
  if (!any) return x;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "pads", pads, 2 * t.rank);
  fl_attr_set_float(&attrs, "value", fl_cv_float(c, "value", 0));
  return fl_cv_op(c, FL_OP_PAD, &x, 1, &attrs);
}

static void pad(fl_cv *c, mode m) {
  fl_vid x = fl_cv_arg(c, "self");
  int64_t given[2 * FL_MAX_RANK];
  int n = fl_cv_ints(c, fl_cv_has(c, "padding") ? "padding" : "pad", given, 2 * FL_MAX_RANK);
  int rank = fl_cv_type(c, x).rank;
  if (n > 2 * rank || n % 2) fl_cv_decline(c, "%d paddings for rank %d", n, rank);
  if (!fl_cv_ok(c)) return;
  if (m == CONSTANT) x = pad_constant(c, x, given, n);
  for (int i = 0; m != CONSTANT && i < n / 2; i++) x = pad_axis(c, m, x, rank - 1 - i, given[2 * i], given[2 * i + 1]);
  fl_cv_result(c, 0, x);
}

void fl_convert_constant_pad(fl_cv *c) { pad(c, CONSTANT); }
void fl_convert_reflection_pad(fl_cv *c) { pad(c, REFLECT); }
void fl_convert_replication_pad(fl_cv *c) { pad(c, REPLICATE); }
void fl_convert_circular_pad(fl_cv *c) { pad(c, CIRCULAR); }

void fl_convert_pad(fl_cv *c) {
  static const char *const names[] = {"constant", "reflect", "replicate", "circular"};
  const char *name = fl_cv_string(c, "mode", "constant");
  for (int m = CONSTANT; m <= CIRCULAR; m++)
    if (!strcmp(name, names[m])) {
      pad(c, (mode)m);
      return;
    }
  fl_cv_decline(c, "padding mode %s", name);
}

/* --- sliding windows --- */

/* Tensor.unfold: the axis becomes the number of windows, their elements a new last axis. */
void fl_convert_unfold(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dimension", 0, t.rank);
  int64_t size = fl_cv_int(c, "size", 1), step = fl_cv_int(c, "step", 1);
  if (t.rank == 0 || t.rank == FL_MAX_RANK || size < 1 || step < 1 || size > t.dims[axis])
    fl_cv_decline(c, "rank %d", t.rank);
  if (!fl_cv_ok(c)) return;
  int64_t n = (t.dims[axis] - size) / step + 1;
  x = windows(c, x, axis, n, size, step, 1);
  int perm[FL_MAX_RANK];
  fl_type wide = t;
  wide.dims[axis] = n;
  memmove(&wide.dims[axis + 2], &wide.dims[axis + 1], (size_t)(t.rank - axis - 1) * sizeof *wide.dims);
  wide.dims[axis + 1] = size;
  for (int i = 0; i < t.rank; i++) perm[i] = i + (i > axis);
  perm[t.rank] = axis + 1;
  fl_cv_result(c, 0, fl_cv_permute(c, fl_cv_reshape(c, x, t.rank + 1, wide.dims), perm));
}

/* [N, C, H, W] -> [N, C kh kw, oh ow] */
void fl_convert_im2col(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int64_t kernel[2], dilation[2], padding[2], stride[2], out[2];
  fl_cv_ints_n(c, "kernel_size", 2, 1, kernel);
  fl_cv_ints_n(c, "dilation", 2, 1, dilation);
  fl_cv_ints_n(c, "padding", 2, 0, padding);
  fl_cv_ints_n(c, "stride", 2, 1, stride);
  if (fl_cv_type(c, x).rank != 4) fl_cv_decline(c, "input of rank %d", fl_cv_type(c, x).rank);
  if (!fl_cv_ok(c)) return;
  x = pad_constant(c, x, (int64_t[]){padding[1], padding[1], padding[0], padding[0]}, 4);
  fl_type t = fl_cv_type(c, x), result = fl_cv_out(c, 0);
  for (int i = 0; i < 2 && fl_cv_ok(c); i++) {
    int64_t span = dilation[i] * (kernel[i] - 1) + 1;
    if (stride[i] < 1 || kernel[i] < 1 || span > t.dims[2 + i])
      fl_cv_decline(c, "window beyond the image");
    else
      x = windows(c, x, 2 + i, out[i] = (t.dims[2 + i] - span) / stride[i] + 1, kernel[i], stride[i], dilation[i]);
  }
  if (!fl_cv_ok(c)) return;
  x = fl_cv_reshape(c, x, 6, (int64_t[]){t.dims[0], t.dims[1], out[0], kernel[0], out[1], kernel[1]});
  x = fl_cv_permute(c, x, (int[]){0, 1, 3, 5, 2, 4});
  fl_cv_result(c, 0, fl_cv_reshape(c, x, result.rank, result.dims));
}
