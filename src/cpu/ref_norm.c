/* Normalizations of any float type and any strides; statistics in double. */
#include "cpu/ref.h"

typedef struct params {
  double eps;
  int64_t groups;
  int32_t axes, op;
  bool has_weight, has_bias;
} params;

static const char *plan_common(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, params **out) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  if (!fl_dtype_is_float(p->in[0].type.dtype)) return "the operator is for floats only";
  q->eps = fl_attr_float(p->attrs, "eps", 1e-5);
  q->op = (int32_t)p->op;
  q->has_weight = p->n_in > 1 && !p->absent[1];
  q->has_bias = p->n_in > 2 && !p->absent[2];
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->in[0].type) * 0.03;
  *out = q;
  return NULL;
}

static double get(const fl_tensor *t, int64_t offset) { return fl_ref_getf(t->data, t->type.dtype, offset); }

/* Sums of squares of finite numbers that overflow in eager's type do so where its order of adding has it: a fault. */
static void check_sum(const fl_run_args *a, double mean, double squares) {
  const bool wide = a->in[0].type.dtype == FL_F64;
  if (isfinite(mean) && !isnan(squares) && isinf(wide ? squares : (double)(float)squares)) fl_set_fault(a->fault);
}

/* --- layer_norm, rms_norm: each outer index has its own statistics over the last `axes` dimensions --- */

static void norm_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  int rank = x->type.rank, head = rank - q->axes;
  fl_type outer = {.rank = head}, inner = {.rank = q->axes};
  memcpy(outer.dims, x->type.dims, (size_t)head * sizeof *outer.dims);
  memcpy(inner.dims, x->type.dims + head, (size_t)q->axes * sizeof *inner.dims);
  int64_t n = fl_type_numel(&inner), at[FL_MAX_RANK];
  fl_ref_unravel(begin, &outer, at);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&outer, at)) {
    int64_t xb = fl_ref_offset(at, x->strides, head), ob = fl_ref_offset(at, out->strides, head);
    int64_t c[FL_MAX_RANK] = {0};
    double mean = 0, var = 0;
    if (q->op == FL_OP_LAYER_NORM) {
      for (int64_t k = 0; k < n; k++, fl_ref_next(&inner, c))
        mean += get(x, xb + fl_ref_offset(c, x->strides + head, q->axes));
      mean /= (double)n;
    }
    for (int64_t k = 0; k < n; k++, fl_ref_next(&inner, c)) {
      double d = get(x, xb + fl_ref_offset(c, x->strides + head, q->axes)) - mean;
      var += d * d;
    }
    check_sum(a, mean, var);
    double scale = 1 / sqrt(var / (double)n + q->eps);
    for (int64_t k = 0; k < n; k++, fl_ref_next(&inner, c)) {
      double v = (get(x, xb + fl_ref_offset(c, x->strides + head, q->axes)) - mean) * scale;
      if (q->has_weight) v *= get(&a->in[1], fl_ref_offset(c, a->in[1].strides, q->axes));
      if (q->has_bias) v += get(&a->in[2], fl_ref_offset(c, a->in[2].strides, q->axes));
      fl_ref_setf(out->data, out->type.dtype, ob + fl_ref_offset(c, out->strides + head, q->axes), v);
    }
  }
}

static const char *plan_norm(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q;
  const char *why = plan_common(p, arena, plan, &q);
  if (why) return why;
  int64_t axes = fl_attr_int(p->attrs, "axes", 1);
  if (axes < 1 || axes > p->in[0].type.rank) return "axes is out of range";
  q->axes = (int32_t)axes;
  for (int i = 1; i < p->n_in; i++)
    if (!p->absent[i] && p->in[i].type.rank != axes) return "weight and bias must have the normalized shape";
  return NULL;
}

static void run_norm(const fl_run_args *a) {
  const params *q = a->params;
  const fl_type *x = &a->in[0].type;
  int64_t rows = 1;
  if (fl_type_numel(x) == 0) return;
  for (int d = 0; d < x->rank - q->axes; d++) rows *= x->dims[d];
  fl_parallel(a->pool, rows, 1 + FL_REF_GRAIN * rows / fl_type_numel(x), norm_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_layer_norm_ref = {"layer_norm_ref", FL_OP_LAYER_NORM, FL_ISA_PORTABLE, plan_norm, NULL,
                                            run_norm};
const fl_kernel fl_kernel_rms_norm_ref = {"rms_norm_ref", FL_OP_RMS_NORM, FL_ISA_PORTABLE, plan_norm, NULL, run_norm};

/* --- group_norm: x [N, C, ...], statistics over C / groups channels and all that follows --- */

static void group_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  int rank = x->type.rank;
  int64_t per = x->type.dims[1] / q->groups;
  fl_type part = x->type; /* the elements of one group: [1, per, ...] */
  part.dims[0] = 1;
  part.dims[1] = per;
  int64_t n = fl_type_numel(&part);
  for (int64_t i = begin; i < end; i++) {
    int64_t item = i / q->groups, first = i % q->groups * per, c[FL_MAX_RANK] = {0};
    int64_t xb = item * x->strides[0] + first * x->strides[1], ob = item * out->strides[0] + first * out->strides[1];
    double mean = 0, var = 0;
    for (int64_t k = 0; k < n; k++, fl_ref_next(&part, c)) mean += get(x, xb + fl_ref_offset(c, x->strides, rank));
    mean /= (double)n;
    for (int64_t k = 0; k < n; k++, fl_ref_next(&part, c)) {
      double d = get(x, xb + fl_ref_offset(c, x->strides, rank)) - mean;
      var += d * d;
    }
    check_sum(a, mean, var);
    double scale = 1 / sqrt(var / (double)n + q->eps);
    for (int64_t k = 0; k < n; k++, fl_ref_next(&part, c)) {
      double v = (get(x, xb + fl_ref_offset(c, x->strides, rank)) - mean) * scale;
      if (q->has_weight) v *= get(&a->in[1], (first + c[1]) * a->in[1].strides[0]);
      if (q->has_bias) v += get(&a->in[2], (first + c[1]) * a->in[2].strides[0]);
      fl_ref_setf(out->data, out->type.dtype, ob + fl_ref_offset(c, out->strides, rank), v);
    }
  }
}

static const char *plan_group(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q;
  const char *why = plan_common(p, arena, plan, &q);
  if (why) return why;
  q->groups = fl_attr_int(p->attrs, "groups", 1);
  if (p->in[0].type.rank < 2) return "group_norm needs a channel axis";
  if (q->groups < 1 || p->in[0].type.dims[1] % q->groups) return "groups must divide the channels";
  return NULL;
}

static void run_group(const fl_run_args *a) {
  const params *q = a->params;
  if (fl_type_numel(&a->in[0].type) == 0) return;
  fl_parallel(a->pool, a->in[0].type.dims[0] * q->groups, 1, group_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_group_norm_ref = {"group_norm_ref", FL_OP_GROUP_NORM, FL_ISA_PORTABLE, plan_group, NULL,
                                            run_group};

/* --- batch_norm in inference: (x - mean) / sqrt(var + eps) * weight + bias, per channel --- */

static void batch_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin, &x->type, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&x->type, c)) {
    double v[5] = {0, 1, 0, 0, 0};
    for (int k = 1; k < 5; k++)
      if (k > 2 || (k == 1 ? q->has_weight : q->has_bias)) v[k] = get(&a->in[k], c[1] * a->in[k].strides[0]);
    double r = (get(x, fl_ref_offset(c, x->strides, x->type.rank)) - v[3]) / sqrt(v[4] + q->eps) * v[1] + v[2];
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(c, out->strides, out->type.rank), r);
  }
}

static const char *plan_batch(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q;
  if (p->in[0].type.rank < 2) return "batch_norm needs a channel axis";
  if (p->n_in < 5 || p->absent[3] || p->absent[4]) return "batch_norm needs running statistics";
  return plan_common(p, arena, plan, &q);
}

static void run_batch(const fl_run_args *a) {
  fl_parallel(a->pool, fl_type_numel(&a->in[0].type), FL_REF_GRAIN, batch_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_batch_norm_ref = {"batch_norm_ref", FL_OP_BATCH_NORM, FL_ISA_PORTABLE, plan_batch, NULL,
                                            run_batch};
