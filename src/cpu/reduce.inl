/* Reductions of f32 over axes that lie together in memory; the body of reduce_avx512.c and reduce_avx2.c.
 * The input is seen as [outer, n, inner] with n reduced. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

enum { COLUMNS = 4 * VL };

typedef struct params {
  int64_t outer, n, inner, blocks;
  float scale; /* of the result: 1 / n for a mean */
  float correction;
  int32_t op;
} params;

FL_INLINE vf load_part(const float *p, int64_t left) {
  return left >= VL ? vf_load(p) : left <= 0 ? vf_zero() : vf_load_mask(p, vm_first((int)left));
}

/* --- planning --- */

/* Input axes by memory order; false when the tensor is not dense or the reduced ones do not lie together. Sets
 * the output's strides so that the kept axes keep their order. */
static bool arrange(const fl_problem *p, const int64_t *strides, const bool *reduced, params *q, int64_t *out_strides) {
  const fl_type *x = &p->in[0].type;
  int order[FL_MAX_RANK], n = 0, state = 0;
  bool keepdim = fl_attr_int(p->attrs, "keepdim", 0) != 0;
  if (!fl_is_dense(x, strides)) return false;
  for (int d = 0; d < x->rank; d++) {
    if (x->dims[d] == 1) continue;
    int at = n++;
    for (; at > 0 && strides[order[at - 1]] < strides[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  q->outer = q->n = q->inner = 1;
  for (int k = 0; k < n; k++) {
    bool r = reduced[order[k]];
    if (state == 0 && r)
      state = 1;
    else if (state == 1 && !r)
      state = 2;
    else if (state == 2 && r)
      return false;
    *(state == 0 ? &q->outer : state == 1 ? &q->n : &q->inner) *= x->dims[order[k]];
  }
  int axis[FL_MAX_RANK], next = 0;
  for (int d = 0; d < x->rank; d++) axis[d] = keepdim ? d : reduced[d] ? -1 : next++;
  int64_t s = 1;
  for (int d = 0; d < p->out[0].rank; d++) out_strides[d] = 1;
  for (int k = n - 1; k >= 0; k--)
    if (!reduced[order[k]]) {
      out_strides[axis[order[k]]] = s;
      s *= x->dims[order[k]];
    }
  return true;
}

static const char *plan_reduce(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type;
  bool index = p->op == FL_OP_ARGMAX || p->op == FL_OP_ARGMIN;
  if (x->dtype != FL_F32) return "the input is not f32";
  if (p->out[0].dtype != (index ? FL_I64 : FL_F32)) return "the result has another type";
  if (fl_type_numel(x) == 0) return "an empty input";
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  int n;
  const int64_t *axes = fl_attr_list(p->attrs, "axes", &n);
  bool reduced[FL_MAX_RANK] = {false};
  for (int i = 0; i < n; i++) {
    if (axes[i] < 0 || axes[i] >= x->rank) return "axis is out of range";
    reduced[axes[i]] = true;
  }
  /* The index of an extreme counts in the axes' own order, which several axes have in a contiguous input only. */
  bool as_is = !(index && n > 1) && arrange(p, p->in[0].strides, reduced, q, plan->out_strides[0]);
  if (!as_is) {
    int64_t contiguous[FL_MAX_RANK];
    fl_strides_contiguous(x, contiguous);
    if (!arrange(p, contiguous, reduced, q, plan->out_strides[0])) return "the reduced axes do not lie together";
    plan->in_layout[0] = FL_LAYOUT_CONTIGUOUS;
  }
  if (index && q->inner != 1) return "the reduced axis is not the innermost";
  q->op = (int32_t)p->op;
  q->scale = p->op == FL_OP_MEAN ? 1.0f / (float)q->n : 1.0f;
  q->correction = (float)fl_attr_float(p->attrs, "correction", 1);
  q->blocks = q->inner == 1 ? 1 : (q->inner + COLUMNS - 1) / COLUMNS;
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.1 + (double)fl_type_numel(x) * (p->op == FL_OP_VAR ? 0.0006 : 0.0004);
  return NULL;
}

/* --- running --- */

FL_INLINE vf combine(fl_op op, vf acc, vf x, vf mean) {
  const vf d = vf_sub(x, mean);
  switch (op) {
  case FL_OP_AMAX: return vf_select(vf_isnan(x), x, vf_max(x, acc));
  case FL_OP_AMIN: return vf_select(vf_isnan(x), x, vf_min(x, acc));
  case FL_OP_VAR: return vf_fma(d, d, acc);
  case FL_OP_MEAN: return vf_add(acc, d); /* what a rounded mean leaves over */
  default: return vf_add(acc, x);
  }
}

FL_INLINE vf neutral(fl_op op) { return vf_set1(op == FL_OP_AMAX ? -INFINITY : op == FL_OP_AMIN ? INFINITY : 0.0f); }

/* Across the lanes of one vector, of which the first `lanes` count. */
FL_INLINE float across(fl_op op, vf v, int lanes) {
  if (op != FL_OP_AMAX && op != FL_OP_AMIN) return vf_sum(v);
  float f[VL], r;
  vf_store(f, v);
  r = f[0];
  for (int i = 1; i < lanes; i++) r = f[i] != f[i] || (op == FL_OP_AMAX ? f[i] > r : f[i] < r) ? f[i] : r;
  return r;
}

FL_INLINE float reduce_row(fl_op op, const float *x, int64_t n, float mean) {
  const vf m = vf_set1(mean);
  if (n < VL) { /* only the lanes that exist may count */
    vf v = combine(op, neutral(op), vf_load_mask(x, vm_first((int)n)), m);
    v = vf_select(vm_first((int)n), v, vf_zero());
    return across(op, v, (int)n);
  }
  vf a = neutral(op), b = a, c = a, d = a;
  int64_t k = 0;
  for (; k + 4 * VL <= n; k += 4 * VL) {
    a = combine(op, a, vf_load(x + k), m), b = combine(op, b, vf_load(x + k + VL), m);
    c = combine(op, c, vf_load(x + k + 2 * VL), m), d = combine(op, d, vf_load(x + k + 3 * VL), m);
  }
  for (; k + VL <= n; k += VL) a = combine(op, a, vf_load(x + k), m);
  if (k < n) {
    const vm part = vm_first((int)(n - k));
    a = vf_select(part, combine(op, a, vf_load_mask(x + k, part), m), a);
  }
  fl_op join = op == FL_OP_VAR || op == FL_OP_MEAN ? FL_OP_SUM : op;
  return across(op, combine(join, combine(join, a, b, m), combine(join, c, d, m), m), VL);
}

/* Up to 4 VL neighbouring columns of an [n, inner] block. */
FL_INLINE void reduce_columns(fl_op op, float *y, const float *x, int64_t n, int64_t inner, int64_t left,
                              const vf *mean, float scale) {
  vf acc[4];
  for (int u = 0; u < 4; u++) acc[u] = neutral(op);
  if (left >= COLUMNS)
    for (int64_t k = 0; k < n; k++)
      for (int u = 0; u < 4; u++) acc[u] = combine(op, acc[u], vf_load(x + k * inner + u * VL), mean[u]);
  else
    for (int64_t k = 0; k < n; k++)
      for (int u = 0; u < 4; u++)
        acc[u] = combine(op, acc[u], load_part(x + k * inner + u * VL, left - u * VL), mean[u]);
  for (int u = 0; u < 4; u++) {
    int64_t here = left - u * VL;
    vf r = vf_mul(acc[u], vf_set1(scale));
    if (here >= VL)
      vf_store(y + u * VL, r);
    else if (here > 0)
      vf_store_mask(y + u * VL, vm_first((int)here), r);
  }
}

FL_INLINE void reduce_unit(fl_op op, const params *q, float *y, const float *x, int64_t left) {
  float scale = q->scale;
  if (op == FL_OP_VAR) {
    float free = (float)q->n - q->correction;
    scale = 1.0f / (free > 0 ? free : 0);
  }
  if (q->inner == 1) {
    float mean = 0;
    for (int pass = 0; op == FL_OP_VAR && pass < 2; pass++) mean += reduce_row(FL_OP_MEAN, x, q->n, mean) / (float)q->n;
    *y = reduce_row(op, x, q->n, mean) * scale;
    return;
  }
  vf mean[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
  if (op == FL_OP_VAR) {
    float m[COLUMNS];
    for (int pass = 0; pass < 2; pass++) { /* the second corrects the rounding of the first */
      reduce_columns(FL_OP_MEAN, m, x, q->n, q->inner, left, mean, 1.0f / (float)q->n);
      for (int u = 0; u < 4; u++)
        if (left > u * VL) mean[u] = vf_add(mean[u], load_part(m + u * VL, left - u * VL));
    }
  }
  reduce_columns(op, y, x, q->n, q->inner, left, mean, scale);
}

/* Whether a variance overflowed that eager, whose sums are in double, may well give: it is no finite number, though
 * the elements are. */
static bool has_overflowed(const params *q, const float *y, const float *x, int64_t left) {
  const int64_t width = left < COLUMNS ? left : COLUMNS;
  for (int64_t c = 0; c < width && (float)q->n > q->correction; c++) {
    int64_t k = 0;
    if (isfinite(y[c])) continue;
    while (k < q->n && isfinite(x[k * q->inner + c])) k++;
    if (k == q->n) return true;
  }
  return false;
}

static void reduce_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  for (int64_t u = begin; u < end; u++) {
    int64_t c = u % q->blocks * COLUMNS, o = u / q->blocks;
    const float *x = (const float *)a->in[0].data + o * q->n * q->inner + c;
    float *y = (float *)a->out[0].data + o * q->inner + c;
    switch (q->op) {
    case FL_OP_AMAX: reduce_unit(FL_OP_AMAX, q, y, x, q->inner - c); break;
    case FL_OP_AMIN: reduce_unit(FL_OP_AMIN, q, y, x, q->inner - c); break;
    case FL_OP_VAR:
      reduce_unit(FL_OP_VAR, q, y, x, q->inner - c);
      if (has_overflowed(q, y, x, q->inner - c)) fl_set_fault(a->fault);
      break;
    default: reduce_unit(FL_OP_SUM, q, y, x, q->inner - c); break;
    }
  }
}

static void run_reduce(const fl_run_args *a) {
  const params *q = a->params;
  int64_t work = q->n * (q->inner == 1 ? 1 : q->inner < COLUMNS ? q->inner : COLUMNS);
  fl_parallel(a->pool, q->outer * q->blocks, 1 + 16384 / work, reduce_range, (void *)(uintptr_t)a);
}

#define REDUCE(lower, upper)                                                                                           \
  const fl_kernel FL_NAMED(lower) = {FL_NAME(#lower), FL_OP_##upper, FL_ISA_HERE, plan_reduce, NULL, run_reduce};
REDUCE(sum, SUM)
REDUCE(mean, MEAN)
REDUCE(amax, AMAX)
REDUCE(amin, AMIN)
REDUCE(var, VAR)

/* --- argmax, argmin: the extreme by vectors, then the first element equal to it --- */

static int64_t first_of(const float *x, int64_t n, float v) {
  bool nan = v != v;
  for (int64_t k = 0; k < n; k += 64) {
    bool found = false;
    for (int64_t i = k; i < k + 64 && i < n; i++) found |= nan ? x[i] != x[i] : x[i] == v;
    if (!found) continue;
    for (int64_t i = k; i < k + 64 && i < n; i++)
      if (nan ? x[i] != x[i] : x[i] == v) return i;
  }
  return 0;
}

static void arg_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  for (int64_t r = begin; r < end; r++) {
    const float *x = (const float *)a->in[0].data + r * q->n;
    float v = q->op == FL_OP_ARGMAX ? reduce_row(FL_OP_AMAX, x, q->n, 0) : reduce_row(FL_OP_AMIN, x, q->n, 0);
    ((int64_t *)a->out[0].data)[r] = first_of(x, q->n, v);
  }
}

static void run_arg(const fl_run_args *a) {
  const params *q = a->params;
  fl_parallel(a->pool, q->outer, 1 + 16384 / q->n, arg_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(argmax) = {FL_NAME("argmax"), FL_OP_ARGMAX, FL_ISA_HERE, plan_reduce, NULL, run_arg};
const fl_kernel FL_NAMED(argmin) = {FL_NAME("argmin"), FL_OP_ARGMIN, FL_ISA_HERE, plan_reduce, NULL, run_arg};
