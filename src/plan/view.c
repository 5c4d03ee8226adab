#include "plan/view.h"

/* Axes of `from` are taken in groups, each the longest that lies evenly in memory; axes of `to` must fill every group
 * exactly. */
bool fl_view_reshape(const fl_type *from, const int64_t *strides, const fl_type *to, int64_t *out_strides) {
  int64_t n = fl_type_numel(from);
  if (n == 0 || n == 1) {
    fl_strides_contiguous(to, out_strides);
    return true;
  }
  int o = to->rank - 1;
  int64_t group = 1, filled = 1, base = 1;
  bool begun = false;
  for (int i = from->rank - 1; i >= 0; i--) {
    if (!begun) base = strides[i];
    begun = true;
    group *= from->dims[i];
    bool ends = i == 0 || (from->dims[i - 1] != 1 && strides[i - 1] != group * base);
    if (!ends) continue;
    for (; o >= 0 && (filled < group || to->dims[o] == 1); o--) {
      out_strides[o] = filled * base;
      filled *= to->dims[o];
    }
    if (filled != group) return false;
    group = filled = 1;
    begun = false;
  }
  return o < 0;
}

void fl_view_permute(const int64_t *strides, const int64_t *perm, int rank, int64_t *out_strides) {
  for (int i = 0; i < rank; i++) out_strides[i] = strides[perm[i]];
}

void fl_view_expand(const fl_type *from, const int64_t *strides, const fl_type *to, int64_t *out_strides) {
  int added = to->rank - from->rank;
  for (int i = 0; i < to->rank; i++) {
    int j = i - added;
    out_strides[i] = j < 0 || (from->dims[j] == 1 && to->dims[i] != 1) ? 0 : strides[j];
  }
}

bool fl_strides_equal(const fl_type *t, const int64_t *a, const int64_t *b) {
  for (int i = 0; i < t->rank; i++)
    if (t->dims[i] != 1 && a[i] != b[i]) return false;
  return true;
}

void fl_strides_like(const fl_type *t, const int64_t *like, int64_t *out_strides) {
  int order[FL_MAX_RANK];
  for (int i = 0; i < t->rank; i++) {
    if (like[i] <= 0 && t->dims[i] != 1) {
      fl_strides_contiguous(t, out_strides);
      return;
    }
    int at = i;
    for (; at > 0 && like[order[at - 1]] < like[i]; at--) order[at] = order[at - 1];
    order[at] = i;
  }
  int64_t step = 1;
  for (int i = t->rank - 1; i >= 0; i--) {
    out_strides[order[i]] = step;
    step *= t->dims[order[i]] > 1 ? t->dims[order[i]] : 1;
  }
}
