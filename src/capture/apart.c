#include "capture/apart.h"

#include <stdlib.h>

/* For root, branches and, as long as it is none of them yet, `t`, until one says no. */
static bool each(const fl_trace *t, bool (*fn)(fl_trace *t, void *ctx), void *ctx) {
  fl_trace *root = fl_trace_root(t);
  bool met = root == t, go_on = fn(root, ctx);
  for (size_t i = 0; go_on && i < root->sites.len; i++) {
    const fl_site *s = root->sites.data[i];
    for (size_t k = 0; go_on && k < s->branches.len; k++) {
      met |= s->branches.data[k] == t;
      go_on = fn(s->branches.data[k], ctx);
    }
  }
  return go_on && (met || fn((fl_trace *)t, ctx));
}

static bool watch_there(fl_trace *t, void *ctx) {
  const fl_extent *x = ctx;
  const char *lo, *hi;
  for (uint32_t i = 0; i < t->weights.list.len; i++) {
    const fl_weight *w = &t->weights.list.data[i];
    if (w->own || w->copy || !fl_tensor_extent(&w->meta, &lo, &hi) || lo >= x->hi || x->lo >= hi) continue;
    if (!fl_weights_watch(&t->weights, i) || !w->copy) return false;
  }
  return true;
}

bool fl_tensor_watch_shared(PyObject *tensor, fl_trace *const *in, size_t n) {
  fl_tensor_meta m;
  fl_extent x;
  bool ok = true;
  fl_tensor_read(tensor, &m);
  if (!fl_tensor_extent(&m, &x.lo, &x.hi)) return true;
  for (size_t i = 0; i < n; i++) ok = each(in[i], watch_there, &x) && ok;
  return ok;
}

/* --- many traces: where their weights lie --- */

static bool list_extents(fl_trace *t, void *ctx) {
  fl_extents *all = ctx;
  for (uint32_t i = 0; i < t->weights.list.len; i++) {
    const fl_weight *w = &t->weights.list.data[i];
    fl_extent x;
    if (w->own || w->copy || !fl_tensor_extent(&w->meta, &x.lo, &x.hi)) continue;
    if (!FL_PUSH(&all->list, x)) return false;
  }
  return true;
}

/* Those that meet become one. */
static void join(fl_extents *all) {
  size_t n = 0;
  if (!all->list.len) return;
  qsort(all->list.data, all->list.len, sizeof *all->list.data, fl_extent_order);
  for (size_t i = 1; i < all->list.len; i++) {
    fl_extent x = all->list.data[i], *last = &all->list.data[n];
    if (x.lo >= last->hi)
      all->list.data[++n] = x;
    else if (x.hi > last->hi)
      last->hi = x.hi;
  }
  all->list.len = n + 1;
}

static bool know(fl_extents *all, fl_trace *const *in, size_t n) {
  if (all->moves == fl_weights_moves) return true;
  all->moves = 0;
  all->list.len = 0;
  for (size_t i = 0; i < n; i++)
    if (!each(in[i], list_extents, all)) return false;
  join(all);
  all->moves = fl_weights_moves;
  return true;
}

static bool is_apart(const fl_extents *all, PyObject *tensor) {
  fl_tensor_meta m;
  fl_extent x;
  size_t low = 0, high = all->list.len;
  fl_tensor_read(tensor, &m);
  if (!fl_tensor_extent(&m, &x.lo, &x.hi)) return true;
  while (low < high) { /* the first that ends after the tensor begins */
    size_t mid = (low + high) / 2;
    if (all->list.data[mid].hi > x.lo)
      high = mid;
    else
      low = mid + 1;
  }
  return low == all->list.len || all->list.data[low].lo >= x.hi;
}

bool fl_inputs_watch_shared(const fl_trace *t, PyObject *const *inputs, fl_trace *const *in, size_t n,
                            fl_extents *known) {
  bool ok = true, quick = known && know(known, in, n);
  for (size_t i = 0; i < t->inputs.len; i++) {
    PyObject *tensor = inputs[t->values.data[t->inputs.data[i]].index];
    if (!quick || !is_apart(known, tensor)) ok = fl_tensor_watch_shared(tensor, in, n) && ok;
  }
  return ok;
}

static bool watch_from(fl_trace *t, void *ctx) {
  fl_extent x;
  for (size_t i = 0; i < t->weights.list.len; i++) {
    const fl_weight *w = &t->weights.list.data[i];
    if (w->copy && fl_tensor_extent(&w->meta, &x.lo, &x.hi) && !each(ctx, watch_there, &x)) return false;
  }
  return true;
}

bool fl_weights_watch_alike(fl_trace *t) { return (!t->root && !t->breaks.len) || each(t, watch_from, t); }
