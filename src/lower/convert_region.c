/* as_strided and as_strided_scatter of dense memory, where strides describe what slices, selections and transpositions
 * could: the memory is read as factors, one for each stride, and the view is a range of each. */
#include <string.h>

#include "lower/convert.h"

/* The elements of a view in a dense block: of the dims[i] places of factor i, size[i] are taken, from start[i] on,
 * step[i] apart. */
typedef struct region {
  int n;
  int64_t dims[FL_MAX_RANK], start[FL_MAX_RANK], size[FL_MAX_RANK], step[FL_MAX_RANK];
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

/* The axes that move, by falling stride. False when the strides cannot be those of a region. */
static bool moving_axes(int n, const int64_t *size, const int64_t *stride, int *axes, int *out_count) {
  int count = 0;
  for (int i = 0; i < n; i++) {
    if (size[i] < 1 || stride[i] < 0) return false;
    if (size[i] > 1 && stride[i] > 0) axes[count++] = i;
  }
  sort_by_stride(stride, size, axes, count);
  *out_count = count;
  return true;
}

static bool add_factor(region *r, int64_t dim, int64_t unit, int64_t offset, int axis, int64_t size, int64_t step) {
  int k = r->n++;
  r->dims[k] = dim;
  r->axis[k] = axis;
  r->start[k] = offset / unit % dim;
  r->size[k] = size;
  r->step[k] = step;
  return r->start[k] + (size - 1) * step < dim;
}

/* Each axis of the view walks along one axis of the base. */
static bool along_axes(region *r, const fl_aten_value *base, const int *axes, int count, const int64_t *size,
                       const int64_t *stride, int64_t offset) {
  r->n = 0;
  for (int i = 0, k = 0; i < base->type.rank; i++) {
    int64_t dim = base->type.dims[r->order[i]], unit = base->strides[r->order[i]];
    if (dim == 1) unit = 1;
    bool walks = k < count && dim > 1 && stride[axes[k]] >= unit;
    if (walks && stride[axes[k]] % unit) return false;
    if (!add_factor(r, dim, unit, offset, walks ? axes[k] : -1, walks ? size[axes[k]] : 1,
                    walks ? stride[axes[k]] / unit : 1))
      return false;
    k += walks;
    if (i == base->type.rank - 1 && k < count) return false;
  }
  return base->type.rank > 0 || !count;
}

/* Each stride divides the block further, whatever the base's axes are. */
static bool along_strides(region *r, int64_t left, const int *axes, int count, const int64_t *size,
                          const int64_t *stride, int64_t offset) {
  r->n = 0;
  for (int i = 0; i <= count; i++) {
    int64_t unit = i < count ? stride[axes[i]] : 1;
    if (i == count && left == 1) break;
    if (left % unit || r->n == FL_MAX_RANK) return false;
    if (!add_factor(r, left / unit, unit, offset, i < count ? axes[i] : -1, i < count ? size[axes[i]] : 1, 1))
      return false;
    left = unit;
  }
  return true;
}

static bool find(region *r, const fl_aten_value *base, int n, const int64_t *size, const int64_t *stride,
                 int64_t offset) {
  if (!base->tensor_ok || !fl_is_dense(&base->type, base->strides)) return false;
  int axes[FL_MAX_RANK], count;
  int64_t numel = fl_type_numel(&base->type);
  *r = (region){0};
  if (numel == 0 || offset < 0 || offset >= numel || !moving_axes(n, size, stride, axes, &count)) return false;
  for (int i = 0; i < base->type.rank; i++) r->order[i] = i;
  sort_by_stride(base->strides, base->type.dims, r->order, base->type.rank);
  return along_axes(r, base, axes, count, size, stride, offset) ||
         along_strides(r, numel, axes, count, size, stride, offset);
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

static fl_vid taken(fl_cv *c, const region *r, fl_vid x, int axis) {
  int64_t last = r->start[axis] + (r->size[axis] - 1) * r->step[axis];
  return fl_cv_slice(c, x, axis, r->start[axis], last + 1, r->step[axis]);
}

/* x with src at places that are steps apart. */
static fl_vid put_apart(fl_cv *c, const region *r, fl_vid x, fl_vid src, int axis) {
  fl_attrs at = {0}, attrs = {0};
  fl_attr_set_list(&at, "dims", &r->size[axis], 1);
  fl_attr_set_int(&at, "axis", 'i', 0);
  fl_attr_set_float(&at, "start", (double)r->start[axis]);
  fl_attr_set_float(&at, "step", (double)r->step[axis]);
  fl_attr_set_int(&at, "dtype", 'd', FL_I64);
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_int(&attrs, "mode", 'i', 0);
  fl_vid places = fl_cv_op(c, FL_OP_IOTA, NULL, 0, &at);
  return fl_cv_op(c, FL_OP_INDEX_PUT, (fl_vid[]){x, src, places}, 3, &attrs);
}

/* x with src in the taken places of the axes from `axis` on. */
static fl_vid put(fl_cv *c, const region *r, fl_vid x, fl_vid src, int axis) {
  while (axis < r->n && r->size[axis] == r->dims[axis]) axis++;
  if (axis == r->n || !fl_cv_ok(c)) return src;
  int64_t start = r->start[axis], stop = start + r->size[axis];
  fl_vid parts[3], part = put(c, r, taken(c, r, x, axis), src, axis + 1);
  if (r->step[axis] > 1 && r->size[axis] > 1) return put_apart(c, r, x, part, axis);
  int n = 0;
  if (start > 0) parts[n++] = fl_cv_slice(c, x, axis, 0, start, 1);
  parts[n++] = part;
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
  for (int i = 0; i < r.n; i++) x = taken(c, &r, x, i);
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
