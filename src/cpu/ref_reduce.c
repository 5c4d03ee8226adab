/* Reductions, scans and softmax over any axes, any dtype and strides. Sums of floats are kept in double. */
#include "cpu/ref.h"

typedef struct params {
  fl_op op;
  int32_t rank, n_kept, n_reduced;
  int32_t kept[FL_MAX_RANK], reduced[FL_MAX_RANK]; /* axes of the input */
  int32_t out_axis[FL_MAX_RANK];                   /* the output's axis for each kept one */
  double correction;
} params;

static params *new_params(fl_arena *arena, fl_kernel_plan *plan, fl_op op) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  if (q) q->op = op;
  return q;
}

/* The input's offsets of the reduced elements: an odometer over the reduced axes. */
typedef struct walk {
  fl_type dims;
  int64_t strides[FL_MAX_RANK], at[FL_MAX_RANK], count;
} walk;

static walk walk_axes(const fl_tensor *x, const int32_t *axes, int n) {
  walk w = {.dims = {.rank = n}};
  w.count = 1;
  for (int i = 0; i < n; i++) {
    w.dims.dims[i] = x->type.dims[axes[i]];
    w.strides[i] = x->strides[axes[i]];
    w.count *= w.dims.dims[i];
  }
  return w;
}

static int64_t walk_offset(const walk *w) { return fl_ref_offset(w->at, w->strides, w->dims.rank); }
static void walk_next(walk *w) { fl_ref_next(&w->dims, w->at); }

static double reduce_f(const params *q, const fl_tensor *x, int64_t base, walk w) {
  fl_dtype t = x->type.dtype;
  double acc = q->op == FL_OP_PROD ? 1 : q->op == FL_OP_AMAX ? -INFINITY : q->op == FL_OP_AMIN ? INFINITY : 0;
  for (int64_t k = 0; k < w.count; k++, walk_next(&w)) {
    double v = fl_ref_getf(x->data, t, base + walk_offset(&w));
    switch (q->op) {
    case FL_OP_PROD: acc *= v; break;
    case FL_OP_AMAX: acc = acc != acc || acc > v ? acc : v; break;
    case FL_OP_AMIN: acc = acc != acc || acc < v ? acc : v; break;
    default: acc += v; break;
    }
  }
  return q->op == FL_OP_MEAN || q->op == FL_OP_VAR ? acc / (double)w.count : acc;
}

static double variance(const params *q, const fl_tensor *x, int64_t base, walk w) {
  double mean = reduce_f(q, x, base, w), acc = 0;
  for (int64_t k = 0; k < w.count; k++, walk_next(&w)) {
    double d = fl_ref_getf(x->data, x->type.dtype, base + walk_offset(&w)) - mean;
    acc += d * d;
  }
  double n = (double)w.count - q->correction;
  return acc / (n > 0 ? n : 0);
}

static int64_t reduce_i(const params *q, const fl_tensor *x, int64_t base, walk w) {
  fl_dtype t = x->type.dtype;
  int64_t acc = q->op == FL_OP_PROD || q->op == FL_OP_ALL ? 1
                : q->op == FL_OP_AMAX                     ? INT64_MIN
                : q->op == FL_OP_AMIN                     ? INT64_MAX
                                                          : 0;
  bool f = fl_dtype_is_float(t);
  for (int64_t k = 0; k < w.count; k++, walk_next(&w)) {
    int64_t o = base + walk_offset(&w), v = f ? fl_ref_getf(x->data, t, o) != 0 : fl_ref_geti(x->data, t, o);
    switch (q->op) {
    case FL_OP_PROD: acc = (int64_t)((uint64_t)acc * (uint64_t)v); break;
    case FL_OP_AMAX: acc = v > acc ? v : acc; break;
    case FL_OP_AMIN: acc = v < acc ? v : acc; break;
    case FL_OP_ANY: acc |= v != 0; break;
    case FL_OP_ALL: acc &= v != 0; break;
    default: acc = (int64_t)((uint64_t)acc + (uint64_t)v); break;
    }
  }
  return acc;
}

/* The first of equal ones; the first NaN beats all. */
static int64_t arg_extreme(const params *q, const fl_tensor *x, int64_t base, walk w) {
  bool f = fl_dtype_is_float(x->type.dtype), max = q->op == FL_OP_ARGMAX;
  double bf = 0;
  int64_t bi = 0, best = 0;
  for (int64_t k = 0; k < w.count; k++, walk_next(&w)) {
    int64_t o = base + walk_offset(&w);
    double vf = f ? fl_ref_getf(x->data, x->type.dtype, o) : 0;
    int64_t vi = f ? 0 : fl_ref_geti(x->data, x->type.dtype, o);
    bool better = f ? bf == bf && (vf != vf || (max ? vf > bf : vf < bf)) : max ? vi > bi : vi < bi;
    if (k == 0 || better) bf = vf, bi = vi, best = k;
  }
  return best;
}

static void reduce_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  walk kept = walk_axes(x, q->kept, q->n_kept), reduced = walk_axes(x, q->reduced, q->n_reduced);
  fl_ref_unravel(begin, &kept.dims, kept.at);
  for (int64_t i = begin; i < end; i++, walk_next(&kept)) {
    int64_t base = walk_offset(&kept), o = 0;
    for (int k = 0; k < q->n_kept; k++) o += kept.at[k] * out->strides[q->out_axis[k]];
    fl_dtype t = out->type.dtype;
    bool index = q->op == FL_OP_ARGMAX || q->op == FL_OP_ARGMIN, logic = q->op == FL_OP_ANY || q->op == FL_OP_ALL;
    if (index)
      fl_ref_seti(out->data, t, o, arg_extreme(q, x, base, reduced));
    else if (q->op == FL_OP_VAR)
      fl_ref_setf(out->data, t, o, variance(q, x, base, reduced));
    else if (logic || !fl_dtype_is_float(x->type.dtype))
      fl_ref_seti(out->data, t, o, reduce_i(q, x, base, reduced));
    else
      fl_ref_setf(out->data, t, o, reduce_f(q, x, base, reduced));
  }
}

static const char *plan_reduce(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type;
  params *q = new_params(arena, plan, p->op);
  if (!q) return "out of memory";
  if ((p->op == FL_OP_MEAN || p->op == FL_OP_VAR) && !fl_dtype_is_float(x->dtype))
    return "the operator is for floats only";
  int n;
  const int64_t *axes = fl_attr_list(p->attrs, "axes", &n);
  bool keepdim = fl_attr_int(p->attrs, "keepdim", 0) != 0;
  for (int i = 0; i < n; i++)
    if (axes[i] < 0 || axes[i] >= x->rank || (i && axes[i] <= axes[i - 1])) return "axes must ascend and be in range";
  for (int d = 0, i = 0; d < x->rank; d++) {
    if (i < n && axes[i] == d) {
      q->reduced[q->n_reduced++] = d;
      i++;
    } else {
      q->out_axis[q->n_kept] = keepdim ? d : q->n_kept;
      q->kept[q->n_kept++] = d;
    }
  }
  q->correction = fl_attr_float(p->attrs, "correction", 1);
  plan->cost_us = 0.3 + (double)fl_type_numel(x) * 0.008;
  return NULL;
}

static void run_reduce(const fl_run_args *a) {
  int64_t n = fl_type_numel(&a->out[0].type), per = n ? fl_type_numel(&a->in[0].type) / n : 0;
  fl_parallel(a->pool, n, 1 + FL_REF_GRAIN / (per + 1), reduce_range, (void *)(uintptr_t)a);
}

#define REDUCE(lower, upper)                                                                                           \
  const fl_kernel fl_kernel_##lower##_ref = {#lower "_ref", FL_OP_##upper, FL_ISA_PORTABLE,                            \
                                             plan_reduce,   NULL,          run_reduce};
REDUCE(sum, SUM)
REDUCE(mean, MEAN)
REDUCE(prod, PROD)
REDUCE(amax, AMAX)
REDUCE(amin, AMIN)
REDUCE(any, ANY)
REDUCE(all, ALL)
REDUCE(var, VAR)
REDUCE(argmax, ARGMAX)
REDUCE(argmin, ARGMIN)

/* --- along one axis, results of the input's shape: softmax, log_softmax, cumsum --- */

static void softmax_line(const fl_tensor *x, int64_t xb, int64_t xs, const fl_tensor *out, int64_t ob, int64_t os,
                         int64_t n, bool log_result) {
  fl_dtype t = x->type.dtype;
  double max = -INFINITY, sum = 0;
  for (int64_t k = 0; k < n; k++) {
    double v = fl_ref_getf(x->data, t, xb + k * xs);
    max = max != max || max > v ? max : v;
  }
  for (int64_t k = 0; k < n; k++) sum += exp(fl_ref_getf(x->data, t, xb + k * xs) - max);
  for (int64_t k = 0; k < n; k++) {
    double v = fl_ref_getf(x->data, t, xb + k * xs) - max;
    fl_ref_setf(out->data, out->type.dtype, ob + k * os, log_result ? v - log(sum) : exp(v) / sum);
  }
}

static void cumsum_line(const fl_tensor *x, int64_t xb, int64_t xs, const fl_tensor *out, int64_t ob, int64_t os,
                        int64_t n) {
  double f = 0;
  uint64_t i = 0;
  for (int64_t k = 0; k < n; k++) {
    if (fl_dtype_is_float(x->type.dtype)) {
      f += fl_ref_getf(x->data, x->type.dtype, xb + k * xs);
      fl_ref_setf(out->data, out->type.dtype, ob + k * os, f);
    } else {
      i += (uint64_t)fl_ref_geti(x->data, x->type.dtype, xb + k * xs);
      fl_ref_seti(out->data, out->type.dtype, ob + k * os, (int64_t)i);
    }
  }
}

static void line_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  walk lines = walk_axes(x, q->kept, q->n_kept);
  int axis = q->reduced[0];
  bool scalar = x->type.rank == 0;
  int64_t n = scalar ? 1 : x->type.dims[axis], xs = scalar ? 0 : x->strides[axis], os = scalar ? 0 : out->strides[axis];
  fl_ref_unravel(begin, &lines.dims, lines.at);
  for (int64_t i = begin; i < end; i++, walk_next(&lines)) {
    int64_t ob = 0;
    for (int k = 0; k < q->n_kept; k++) ob += lines.at[k] * out->strides[q->kept[k]];
    if (q->op == FL_OP_CUMSUM)
      cumsum_line(x, walk_offset(&lines), xs, out, ob, os, n);
    else
      softmax_line(x, walk_offset(&lines), xs, out, ob, os, n, q->op == FL_OP_LOG_SOFTMAX);
  }
}

static const char *plan_line(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type;
  params *q = new_params(arena, plan, p->op);
  if (!q) return "out of memory";
  if (p->op != FL_OP_CUMSUM && !fl_dtype_is_float(x->dtype)) return "the operator is for floats only";
  int64_t axis = fl_attr_int(p->attrs, "axis", 0);
  if (axis < 0 || (axis >= x->rank && x->rank > 0)) return "axis is out of range";
  q->reduced[0] = (int32_t)axis;
  for (int d = 0; d < x->rank; d++)
    if (d != axis) q->kept[q->n_kept++] = d;
  plan->cost_us = 0.3 + (double)fl_type_numel(x) * 0.03;
  return NULL;
}

static void run_line(const fl_run_args *a) {
  const params *q = a->params;
  const fl_type *x = &a->in[0].type;
  int64_t per = x->rank ? x->dims[q->reduced[0]] : 1;
  if (per) fl_parallel(a->pool, fl_type_numel(x) / per, 1 + FL_REF_GRAIN / per, line_range, (void *)(uintptr_t)a);
}

#define LINE(lower, upper)                                                                                             \
  const fl_kernel fl_kernel_##lower##_ref = {#lower "_ref", FL_OP_##upper, FL_ISA_PORTABLE, plan_line, NULL, run_line};
LINE(softmax, SOFTMAX)
LINE(log_softmax, LOG_SOFTMAX)
LINE(cumsum, CUMSUM)
