/* Shapes, axes and copies. The recorded result tells the shape, so that most of these are one reshape or expand. */
#include <string.h>

#include "lower/convert.h"

/* The argument itself, in the recorded dtype. */
void fl_convert_identity(fl_cv *c) { fl_cv_result(c, 0, fl_cv_cast(c, fl_cv_arg(c, "self"), fl_cv_out(c, 0).dtype)); }

/* Row-major order is kept: view, flatten, squeeze, unsqueeze ... */
void fl_convert_reshape(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  fl_cv_result(c, 0, fl_cv_reshape(c, fl_cv_arg(c, "self"), t.rank, t.dims));
}

void fl_convert_expand(fl_cv *c) {
  fl_type t = fl_cv_out(c, 0);
  fl_cv_result(c, 0, fl_cv_expand(c, fl_cv_arg(c, "self"), t.rank, t.dims));
}

/* self.copy_(src): src, broadcast and cast to self's type. */
void fl_convert_copy(fl_cv *c) {
  fl_type t = fl_cv_type(c, fl_cv_arg(c, "self"));
  fl_cv_result(c, 0, fl_cv_expand(c, fl_cv_cast(c, fl_cv_arg(c, "src"), t.dtype), t.rank, t.dims));
}

void fl_convert_transpose(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank;
  const char *a = fl_cv_has(c, "axis0") ? "axis0" : "dim0", *b = fl_cv_has(c, "axis1") ? "axis1" : "dim1";
  fl_cv_result(c, 0, fl_cv_transpose(c, x, fl_cv_axis(c, a, 0, rank), fl_cv_axis(c, b, 1, rank)));
}

/* t, mT, mH: the last two axes; a vector stays. */
void fl_convert_matrix_transpose(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank;
  fl_cv_result(c, 0, rank < 2 ? x : fl_cv_transpose(c, x, rank - 2, rank - 1));
}

/* numpy_T: all axes reversed. */
void fl_convert_reverse_axes(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank, perm[FL_MAX_RANK];
  for (int i = 0; i < rank; i++) perm[i] = rank - 1 - i;
  fl_cv_result(c, 0, fl_cv_permute(c, x, perm));
}

void fl_convert_permute(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank, perm[FL_MAX_RANK];
  int64_t dims[FL_MAX_RANK];
  int n = fl_cv_ints(c, "dims", dims, FL_MAX_RANK);
  if (n != rank) fl_cv_decline(c, "%d axes for a tensor of rank %d", n, rank);
  if (!fl_cv_ok(c)) return;
  for (int i = 0; i < rank; i++) perm[i] = fl_cv_wrap_axis(c, dims[i], rank);
  fl_cv_result(c, 0, fl_cv_permute(c, x, perm));
}

void fl_convert_movedim(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank, perm[FL_MAX_RANK];
  int64_t from[FL_MAX_RANK], to[FL_MAX_RANK];
  int n = fl_cv_ints(c, "source", from, FL_MAX_RANK), m = fl_cv_ints(c, "destination", to, FL_MAX_RANK);
  if (n != m) fl_cv_decline(c, "%d sources for %d destinations", n, m);
  if (!fl_cv_ok(c) || rank == 0) return;
  bool moved[FL_MAX_RANK] = {false};
  for (int i = 0; i < rank; i++) perm[i] = -1;
  for (int i = 0; i < n; i++) {
    int source = fl_cv_wrap_axis(c, from[i], rank);
    perm[fl_cv_wrap_axis(c, to[i], rank)] = source;
    moved[source] = true;
  }
  for (int i = 0, next = 0; i < rank; i++) {
    if (perm[i] >= 0) continue;
    while (next < rank - 1 && moved[next]) next++;
    perm[i] = next++;
  }
  fl_cv_result(c, 0, fl_cv_permute(c, x, perm));
}

static int64_t wrap_bound(int64_t v, int64_t n) {
  if (v < 0) v += n;
  return v < 0 ? 0 : v > n ? n : v;
}

void fl_convert_slice(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  int64_t step = fl_cv_int(c, "step", 1);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  int64_t start = wrap_bound(fl_cv_int(c, "start", 0), t.dims[axis]);
  int64_t stop = wrap_bound(fl_cv_int(c, "end", INT64_MAX), t.dims[axis]);
  fl_cv_result(c, 0, fl_cv_slice(c, x, axis, start, stop < start ? start : stop, step));
}

void fl_convert_narrow(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  if (fl_cv_is_tensor(c, "start")) fl_cv_decline(c, "start is a tensor");
  if (!fl_cv_ok(c) || t.rank == 0) return;
  int64_t start = wrap_bound(fl_cv_int(c, "start", 0), t.dims[axis]);
  fl_cv_result(c, 0, fl_cv_slice(c, x, axis, start, start + fl_cv_int(c, "length", 0), 1));
}

static fl_vid select_at(fl_cv *c, fl_vid x, int axis, int64_t i) {
  return fl_cv_squeeze(c, fl_cv_slice(c, x, axis, i, i + 1, 1), axis);
}

void fl_convert_select(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  int64_t i = fl_cv_int(c, "index", 0);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  fl_cv_result(c, 0, select_at(c, x, axis, i < 0 ? i + t.dims[axis] : i));
}

void fl_convert_unbind(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int axis = fl_cv_axis(c, "dim", 0, fl_cv_type(c, x).rank);
  for (int i = 0; i < c->node->n_outputs; i++)
    if (fl_cv_needed(c, i)) fl_cv_result(c, i, select_at(c, x, axis, i));
}

/* split, chunk, tensor_split: the recorded results tell the sizes. */
void fl_convert_split(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  int64_t start = 0, total = 0;
  for (int i = 0; i < c->node->n_outputs; i++) {
    fl_type out = fl_cv_out(c, i);
    total += axis < out.rank ? out.dims[axis] : t.dims[axis] + 1;
  }
  if (total != t.dims[axis]) {
    fl_cv_decline(c, "the parts do not add up");
    return;
  }
  for (int i = 0; i < c->node->n_outputs; i++) {
    int64_t size = fl_cv_out(c, i).dims[axis];
    if (fl_cv_needed(c, i)) fl_cv_result(c, i, fl_cv_slice(c, x, axis, start, start + size, 1));
    start += size;
  }
}

/* self with src in place of self[..., start:end, ...] */
static fl_vid scatter_slice(fl_cv *c, fl_vid x, fl_vid src, int axis, int64_t start, int64_t stop) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c) || axis >= t.rank) return FL_NO_VALUE;
  fl_vid parts[3];
  int n = 0;
  if (start > 0) parts[n++] = fl_cv_slice(c, x, axis, 0, start, 1);
  parts[n++] = fl_cv_cast(c, src, t.dtype);
  if (stop < t.dims[axis]) parts[n++] = fl_cv_slice(c, x, axis, stop, t.dims[axis], 1);
  return fl_cv_cat(c, parts, n, axis);
}

void fl_convert_slice_scatter(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), src = fl_cv_arg(c, "src");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  if (fl_cv_int(c, "step", 1) != 1) fl_cv_decline(c, "step is not 1");
  if (!fl_cv_ok(c) || t.rank == 0) return;
  int64_t start = wrap_bound(fl_cv_int(c, "start", 0), t.dims[axis]);
  int64_t stop = wrap_bound(fl_cv_int(c, "end", INT64_MAX), t.dims[axis]);
  fl_cv_result(c, 0, stop <= start ? x : scatter_slice(c, x, src, axis, start, stop));
}

void fl_convert_select_scatter(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self"), src = fl_cv_arg(c, "src");
  fl_type t = fl_cv_type(c, x);
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  int64_t i = fl_cv_int(c, "index", 0);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  if (i < 0) i += t.dims[axis];
  fl_cv_result(c, 0, scatter_slice(c, x, fl_cv_unsqueeze(c, src, axis), axis, i, i + 1));
}

/* Copies along new axes beside those that repeat: rank stays low. */
static fl_vid repeat(fl_cv *c, fl_vid x, const int64_t *times, int n) {
  fl_type t = fl_cv_type(c, x);
  int64_t lifted[FL_MAX_RANK], wide[2 * FL_MAX_RANK], grown[2 * FL_MAX_RANK], final[FL_MAX_RANK];
  int rank = 0;
  for (int i = 0; i < n; i++) {
    int64_t d = i < n - t.rank ? 1 : t.dims[i - (n - t.rank)];
    lifted[i] = d;
    final[i] = d * times[i];
    if (times[i] != 1 && d != 1) {
      wide[rank] = 1;
      grown[rank++] = times[i];
    }
    wide[rank] = d;
    grown[rank++] = d == 1 ? times[i] : d;
  }
  if (rank > FL_MAX_RANK) {
    fl_cv_decline(c, "repeats too many axes");
    return FL_NO_VALUE;
  }
  x = fl_cv_reshape(c, fl_cv_reshape(c, x, n, lifted), rank, wide);
  return fl_cv_reshape(c, fl_cv_expand(c, x, rank, grown), n, final);
}

void fl_convert_repeat(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  int rank = fl_cv_type(c, x).rank;
  int64_t given[FL_MAX_RANK], times[FL_MAX_RANK];
  int m = fl_cv_ints(c, fl_cv_has(c, "repeats") ? "repeats" : "dims", given, FL_MAX_RANK);
  if (!fl_cv_ok(c)) return;
  int n = m > rank ? m : rank;
  for (int i = 0; i < n; i++) times[i] = i < n - m ? 1 : given[i - (n - m)];
  fl_cv_result(c, 0, repeat(c, x, times, n));
}

void fl_convert_repeat_interleave(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int64_t times = fl_cv_int(c, "repeats", 1);
  if (!fl_cv_ok(c)) return;
  if (!fl_cv_has(c, "dim")) {
    x = fl_cv_reshape(c, x, 1, (int64_t[]){fl_type_numel(&t)});
    t = fl_cv_type(c, x);
  }
  int axis = fl_cv_axis(c, "dim", 0, t.rank);
  x = fl_cv_unsqueeze(c, x, axis + 1);
  fl_type wide = fl_cv_type(c, x);
  if (!fl_cv_ok(c) || t.rank == 0) return;
  wide.dims[axis + 1] = times;
  t.dims[axis] *= times;
  fl_cv_result(c, 0, fl_cv_reshape(c, fl_cv_expand(c, x, wide.rank, wide.dims), t.rank, t.dims));
}

/* [.., C r r, H, W] -> [.., C, H r, W r], and back when param is 1 */
void fl_convert_pixel_shuffle(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x), out = fl_cv_out(c, 0);
  bool back = c->param;
  int64_t r = fl_cv_int(c, back ? "downscale_factor" : "upscale_factor", 1);
  if (!fl_cv_ok(c) || t.rank < 3 || out.rank != t.rank || t.rank + 2 > FL_MAX_RANK || r < 1) {
    fl_cv_decline(c, "rank %d", t.rank);
    return;
  }
  int lead = t.rank - 3;
  int64_t wide[FL_MAX_RANK];
  int perm[FL_MAX_RANK];
  for (int i = 0; i < lead; i++) perm[i] = i, wide[i] = t.dims[i];
  const int64_t *d = t.dims + lead, *o = out.dims + lead;
  const int64_t forth_dims[] = {o[0], r, r, d[1], d[2]}, back_dims[] = {d[0], o[1], r, o[2], r};
  static const int forth_perm[] = {0, 3, 1, 4, 2}, back_perm[] = {0, 2, 4, 1, 3};
  for (int i = 0; i < 5; i++) {
    wide[lead + i] = back ? back_dims[i] : forth_dims[i];
    perm[lead + i] = lead + (back ? back_perm : forth_perm)[i];
  }
  x = fl_cv_permute(c, fl_cv_reshape(c, x, lead + 5, wide), perm);
  fl_cv_result(c, 0, fl_cv_reshape(c, x, out.rank, out.dims));
}

/* [N, g k, ...] -> [N, k g, ...] */
void fl_convert_channel_shuffle(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "self");
  fl_type t = fl_cv_type(c, x);
  int64_t groups = fl_cv_int(c, "groups", 1);
  if (t.rank < 2 || t.rank == FL_MAX_RANK || groups < 1 || t.dims[1] % groups) fl_cv_decline(c, "rank %d", t.rank);
  if (!fl_cv_ok(c)) return;
  int64_t wide[FL_MAX_RANK] = {t.dims[0], groups, t.dims[1] / groups};
  memcpy(wide + 3, t.dims + 2, (size_t)(t.rank - 2) * sizeof *wide);
  x = fl_cv_transpose(c, fl_cv_reshape(c, x, t.rank + 1, wide), 1, 2);
  fl_cv_result(c, 0, fl_cv_reshape(c, x, t.rank, t.dims));
}

/* Dropout that drops nothing. */
void fl_convert_dropout(fl_cv *c) {
  bool train = fl_cv_bool(c, "train", true);
  if (train && fl_cv_float(c, "p", 0.5) != 0) fl_cv_decline(c, "dropout in training mode is random");
  fl_cv_result(c, 0, fl_cv_arg(c, fl_cv_has(c, "input") ? "input" : "self"));
}
