#include "capture/apart.h"

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

typedef struct extent {
  const char *lo, *hi;
} extent;

static bool watch_there(fl_trace *t, void *ctx) {
  const extent *x = ctx;
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
  extent x;
  bool ok = true;
  fl_tensor_read(tensor, &m);
  if (!fl_tensor_extent(&m, &x.lo, &x.hi)) return true;
  for (size_t i = 0; i < n; i++) ok = each(in[i], watch_there, &x) && ok;
  return ok;
}

bool fl_inputs_watch_shared(const fl_trace *t, PyObject *const *inputs, fl_trace *const *in, size_t n) {
  bool ok = true;
  for (size_t i = 0; i < t->inputs.len; i++)
    ok = fl_tensor_watch_shared(inputs[t->values.data[t->inputs.data[i]].index], in, n) && ok;
  return ok;
}

static bool watch_from(fl_trace *t, void *ctx) {
  extent x;
  for (size_t i = 0; i < t->weights.list.len; i++) {
    const fl_weight *w = &t->weights.list.data[i];
    if (w->copy && fl_tensor_extent(&w->meta, &x.lo, &x.hi) && !each(ctx, watch_there, &x)) return false;
  }
  return true;
}

bool fl_weights_watch_alike(fl_trace *t) { return (!t->root && !t->breaks.len) || each(t, watch_from, t); }
