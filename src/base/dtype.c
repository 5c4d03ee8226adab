#include "base/dtype.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct dtype_info {
  const char *name;
  size_t bytes;
  char class;
} dtype_info;

static const dtype_info dtypes[FL_DTYPE_COUNT] = {
#define FL_DTYPE(e, name, bytes, cls) {name, bytes, #cls[0]},
#include "base/dtype.def"
#undef FL_DTYPE
};

static bool in_range(fl_dtype t) { return (unsigned)t < FL_DTYPE_COUNT; }

const char *fl_dtype_name(fl_dtype t) { return in_range(t) ? dtypes[t].name : "?"; }

size_t fl_dtype_size(fl_dtype t) { return in_range(t) ? dtypes[t].bytes : 0; }

bool fl_dtype_parse(const char *name, fl_dtype *out) {
  for (int i = 0; i < FL_DTYPE_COUNT; i++) {
    if (strcmp(dtypes[i].name, name)) continue;
    *out = (fl_dtype)i;
    return true;
  }
  return false;
}

bool fl_dtype_is_float(fl_dtype t) { return in_range(t) && dtypes[t].class == 'F'; }

bool fl_dtype_is_int(fl_dtype t) { return in_range(t) && (dtypes[t].class == 'I' || dtypes[t].class == 'U'); }

fl_type fl_type_make(fl_dtype dtype, int rank, const int64_t *dims) {
  fl_type t = {.dtype = dtype, .rank = rank};
  for (int i = 0; i < rank && i < FL_MAX_RANK; i++) t.dims[i] = dims[i];
  return t;
}

bool fl_dims_equal(const fl_type *a, const fl_type *b) {
  if (a->rank != b->rank) return false;
  for (int i = 0; i < a->rank; i++)
    if (a->dims[i] != b->dims[i]) return false;
  return true;
}

bool fl_type_equal(const fl_type *a, const fl_type *b) { return a->dtype == b->dtype && fl_dims_equal(a, b); }

int64_t fl_type_numel(const fl_type *t) {
  int64_t n = 1;
  bool overflow = false;
  for (int i = 0; i < t->rank; i++) {
    if (t->dims[i] == 0) return 0;
    overflow |= __builtin_mul_overflow(n, t->dims[i], &n);
  }
  return overflow ? INT64_MAX : n;
}

size_t fl_type_bytes(const fl_type *t) {
  size_t bytes;
  return __builtin_mul_overflow((size_t)fl_type_numel(t), fl_dtype_size(t->dtype), &bytes) ? SIZE_MAX : bytes;
}

/* Dense strides for axes visited from the innermost outwards. An axis of no elements counts as one, as in PyTorch. */
static void strides_in_order(const fl_type *t, const int *order, int64_t *strides) {
  int64_t step = 1;
  for (int i = 0; i < t->rank; i++) {
    strides[order[i]] = step;
    step *= t->dims[order[i]] > 1 ? t->dims[order[i]] : 1;
  }
}

static void contiguous_order(int rank, int *order) {
  for (int i = 0; i < rank; i++) order[i] = rank - 1 - i;
}

static bool channels_last_order(int rank, int *order) {
  if (rank != 3 && rank != 4) return false;
  order[0] = 1;
  for (int i = 1; i < rank - 1; i++) order[i] = rank - i;
  order[rank - 1] = 0;
  return true;
}

void fl_strides_contiguous(const fl_type *t, int64_t *strides) {
  int order[FL_MAX_RANK];
  contiguous_order(t->rank, order);
  strides_in_order(t, order, strides);
}

void fl_strides_channels_last(const fl_type *t, int64_t *strides) {
  int order[FL_MAX_RANK];
  if (!channels_last_order(t->rank, order)) contiguous_order(t->rank, order);
  strides_in_order(t, order, strides);
}

static bool follows_order(const fl_type *t, const int64_t *strides, const int *order) {
  if (fl_type_numel(t) == 0) return true;
  int64_t step = 1;
  for (int i = 0; i < t->rank; i++) {
    int64_t dim = t->dims[order[i]];
    if (dim == 1) continue;
    if (strides[order[i]] != step) return false;
    step *= dim;
  }
  return true;
}

bool fl_is_contiguous(const fl_type *t, const int64_t *strides) {
  int order[FL_MAX_RANK];
  contiguous_order(t->rank, order);
  return follows_order(t, strides, order);
}

bool fl_is_channels_last(const fl_type *t, const int64_t *strides) {
  int order[FL_MAX_RANK];
  return channels_last_order(t->rank, order) && follows_order(t, strides, order);
}

bool fl_is_dense(const fl_type *t, const int64_t *strides) {
  int order[FL_MAX_RANK], n = 0;
  for (int i = 0; i < t->rank; i++) {
    int at = n++;
    /* Axes of one element may have any stride: they go last, where follows_order skips them. */
    while (at > 0 && t->dims[i] != 1 && (t->dims[order[at - 1]] == 1 || strides[order[at - 1]] > strides[i])) {
      order[at] = order[at - 1];
      at--;
    }
    order[at] = i;
  }
  return follows_order(t, strides, order);
}

char *fl_type_str(const fl_type *t, char *buf, size_t size) {
  if (!size) return buf;
  int at = snprintf(buf, size, "%s[", fl_dtype_name(t->dtype));
  for (int i = 0; i < t->rank && (size_t)at < size; i++)
    at += snprintf(buf + at, size - (size_t)at, i ? ",%" PRId64 : "%" PRId64, t->dims[i]);
  if ((size_t)at < size) snprintf(buf + at, size - (size_t)at, "]");
  return buf;
}
