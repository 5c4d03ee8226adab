/* as_strided and as_strided_scatter of dense memory, where strides describe what slices, selections and transpositions
 * could: the memory is read as factors, one for each stride, and the view is a range of each. */
#include <string.h>

#include "lower/convert.h"

/* The elements of a view in a dense block: factor i has dims[i] places, start[i] .. start[i] + size[i] of them taken. */
typedef struct region {
  int n;
  int64_t dims[FL_MAX_RANK], start[FL_MAX_RANK], size[FL_MAX_RANK];
  int order[FL_MAX_RANK]; /* base axes by falling stride: permuted so, the base is contiguous */
  int axis[FL_MAX_RANK];  /* factor i is axis[i] of the view, or -1: one element */
} region;

static void sort_by_stride(const int64_t *strides, const int64_t *dims, int *order, int n) {
  for (int i = 1; i < n; i++)
    for (int k = i; k > 0; k--) {
      int a = order[k - 1], b = order[k];
      bool falls = strides[a] > strides[b] || (strides[a] == strides[b] && dims[a] >= dims[b]);
      if (falls) break;
      order[k - 1] = b;
      order[k] = a;
    }
}

/* False when the strides are not those of a region. */
static bool find(region *r, const fl_aten_value *base, int n, const int64_t *size, const int64_t *stride,
                 int64_t offset) {
  if (!base->tensor_ok || !fl_is_dense(&base->type, base->strides)) return false;
  int axes[FL_MAX_RANK], count = 0;
  int64_t left = fl_type_numel(&base->type);
  *r = (region){0};
  if (left == 0 || offset < 0 || offset >= left) return false;
  for (int i = 0; i < base->type.rank; i++) r->order[i] = i;
  sort_by_stride(base->strides, base->type.dims, r->order, base->type.rank);
  for (int i = 0; i < n; i++) {
    if (size[i] < 1 || stride[i] < 0) return false;
    if (size[i] > 1 && stride[i] > 0) axes[count++] = i;
  }
  sort_by_stride(stride, size, axes, count);
  for (int i = 0; i <= count; i++) {
    int64_t unit = i < count ? stride[axes[i]] : 1;
    if (i == count && left == 1) break;
    if (left % unit || r->n == FL_MAX_RANK) return false;
    int k = r->n++;
    r->axis[k] = i < count ? axes[i] : -1;
    r->dims[k] = left / unit;
    r->start[k] = offset / unit % r->dims[k];
    r->size[k] = i < count ? size[axes[i]] : 1;
    if (r->start[k] + r->size[k] > r->dims[k]) return false;
    left = unit;
  }
  return true;
}

/* The base as its factors, and a view of the factors' shape back as the base. */
static fl_vid as_factors(fl_cv *c, const region *r, fl_vid base) {
  return fl_cv_reshape(c, fl_cv_permute(c, base, r->order), r->n, r->dims);
}

static fl_vid as_base(fl_cv *c, const region *r, fl_vid x, const fl_type *base) {
  int64_t dims[FL_MAX_RANK];
  int back[FL_MAX_RANK];
  for (int i = 0; i < base->rank; i++) {
    dims[i] = base->dims[r->order[i]];
    back[r->order[i]] = i;
  }
  return fl_cv_permute(c, fl_cv_reshape(c, x, base->rank, dims), back);
}

/* From the shape of the taken factors to the view's, and the other way. */
static fl_vid as_view(fl_cv *c, const region *r, fl_vid x, int n, const int64_t *size) {
  int64_t moved[FL_MAX_RANK], ones[FL_MAX_RANK];
  int at[FL_MAX_RANK], perm[FL_MAX_RANK], count = 0;
  for (int i = 0; i < n; i++) at[i] = -1;
  for (int k = 0; k < r->n; k++)
    if (r->axis[k] >= 0) {
      moved[count] = r->size[k];
      at[r->axis[k]] = count++;
    }
  x = fl_cv_reshape(c, x, count, moved);
  count = 0;
  for (int i = 0; i < n; i++) {
    if (at[i] >= 0) perm[count++] = at[i];
    ones[i] = at[i] >= 0 ? size[i] : 1;
  }
  return fl_cv_expand(c, fl_cv_reshape(c, fl_cv_permute(c, x, perm), n, ones), n, size);
}

static fl_vid from_view(fl_cv *c, const region *r, fl_vid x) {
  fl_type t = fl_cv_type(c, x);
  int64_t kept[FL_MAX_RANK];
  int perm[FL_MAX_RANK], at[FL_MAX_RANK], count = 0, next = 0;
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  for (int i = 0; i < t.rank; i++) at[i] = t.dims[i] > 1 ? count : -1, kept[count] = t.dims[i], count += t.dims[i] > 1;
  x = fl_cv_reshape(c, x, count, kept);
  for (int k = 0; k < r->n; k++)
    if (r->axis[k] >= 0) perm[next++] = at[r->axis[k]];
  return fl_cv_reshape(c, fl_cv_permute(c, x, perm), r->n, r->size);
}

/* x with src in the taken places of the axes from `axis` on. */
static fl_vid put(fl_cv *c, const region *r, fl_vid x, fl_vid src, int axis) {
  while (axis < r->n && r->size[axis] == r->dims[axis]) axis++;
  if (axis == r->n || !fl_cv_ok(c)) return src;
  int64_t start = r->start[axis], stop = start + r->size[axis];
  fl_vid parts[3];
  int n = 0;
  if (start > 0) parts[n++] = fl_cv_slice(c, x, axis, 0, start, 1);
  parts[n++] = put(c, r, fl_cv_slice(c, x, axis, start, stop, 1), src, axis + 1);
  if (stop < r->dims[axis]) parts[n++] = fl_cv_slice(c, x, axis, stop, r->dims[axis], 1);
  return fl_cv_cat(c, parts, n, axis);
}

/* --- the operators --- */

/* The value whose strides an in-place operator's result has still. */
static const fl_aten_value *root_of(const fl_cv *c, const fl_aten_value *v) {
  for (size_t left = c->aten->values.len; left && v->alias_of != FL_ATEN_NONE; left--) {
    const fl_aten_value *of = &c->aten->values.data[v->alias_of];
    if (!fl_type_equal(&of->type, &v->type) ||
        memcmp(of->strides, v->strides, sizeof v->strides[0] * (size_t)v->type.rank))
      break;
    v = of;
  }
  return v;
}

static bool read(fl_cv *c, region *r, int *n, int64_t *size) {
  int64_t stride[FL_MAX_RANK];
  *n = fl_cv_ints(c, "size", size, FL_MAX_RANK);
  int m = fl_cv_ints(c, "stride", stride, FL_MAX_RANK);
  fl_cv_arg(c, "self");
  if (!fl_cv_ok(c)) return false;
  const fl_aten_value *self = &c->aten->values.data[fl_aten_arg(c->node, "self")->v.value];
  int64_t offset = fl_cv_int(c, "storage_offset", 0);
  bool same = *n == self->type.rank && m == *n;
  for (int i = 0; i < *n && same; i++)
    same = size[i] == self->type.dims[i] && (size[i] == 1 || stride[i] == self->strides[i]);
  const fl_aten_value *root = root_of(c, self);
  /* A fresh tensor begins where its memory does; where a view or an argument does was not recorded. */
  bool begins = root->whole || (root->kind == FL_ATEN_RESULT && root->alias_of == FL_ATEN_NONE);
  if (!begins && (!same || fl_cv_has(c, "storage_offset"))) return false;
  return m == *n && find(r, self, *n, size, stride, offset);
}

void fl_convert_as_strided(fl_cv *c) {
  region r;
  int n;
  int64_t size[FL_MAX_RANK];
  if (!read(c, &r, &n, size)) {
    fl_cv_decline(c, "strides set by hand");
    return;
  }
  fl_vid x = as_factors(c, &r, fl_cv_arg(c, "self"));
  for (int i = 0; i < r.n; i++) x = fl_cv_slice(c, x, i, r.start[i], r.start[i] + r.size[i], 1);
  fl_cv_result(c, 0, as_view(c, &r, x, n, size));
}

void fl_convert_as_strided_scatter(fl_cv *c) {
  region r;
  int n;
  int64_t size[FL_MAX_RANK], taken = 1, all = 1;
  bool ok = read(c, &r, &n, size);
  for (int i = 0; ok && i < r.n; i++) taken *= r.size[i];
  for (int i = 0; ok && i < n; i++) all *= size[i];
  if (!ok || taken != all) { /* fewer: an axis of stride 0 */
    fl_cv_decline(c, "strides set by hand");
    return;
  }
  fl_vid x = fl_cv_arg(c, "self");
  fl_type base = fl_cv_type(c, x);
  fl_vid src = from_view(c, &r, fl_cv_cast(c, fl_cv_arg(c, "src"), base.dtype));
  fl_cv_result(c, 0, as_base(c, &r, put(c, &r, as_factors(c, &r, x), src, 0), &base));
}
