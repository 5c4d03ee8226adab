/* Ordering and counting along one axis: sort, topk, histc. */
#include "cpu/order.h"
#include "cpu/ref.h"

typedef struct params {
  fl_op op;
  int axis;
  int64_t n, k; /* of a line: elements, results */
  bool falling, sorted;
  int kept[FL_MAX_RANK], n_kept; /* the other axes */
  int64_t lines, line_bytes;     /* how many; scratch of one */
  float lo, hi;                  /* histc */
} params;

static int64_t key_at(const fl_tensor *x, int64_t i) {
  return fl_dtype_is_float(x->type.dtype) ? fl_order_key(fl_ref_getf(x->data, x->type.dtype, i))
                                          : fl_ref_geti(x->data, x->type.dtype, i);
}

static void one_line(const fl_run_args *a, const params *q, int64_t xb, const int64_t *ob, fl_pair *pairs) {
  const fl_tensor *x = &a->in[0], *values = &a->out[0], *indices = &a->out[1];
  bool scalar = x->type.rank == 0;
  int64_t xs = scalar ? 0 : x->strides[q->axis];
  for (int64_t i = 0; i < q->n; i++) pairs[i] = (fl_pair){key_at(x, xb + i * xs), i};
  if (q->op == FL_OP_SORT)
    fl_order_sort(pairs, q->n, q->falling, pairs + q->n);
  else if (q->k)
    fl_order_top(pairs, q->n, q->k, q->falling, q->sorted);
  size_t size = fl_dtype_size(x->type.dtype);
  int64_t vs = scalar ? 0 : values->strides[q->axis], is = scalar ? 0 : indices->strides[q->axis];
  for (int64_t i = 0; i < q->k; i++) {
    fl_ref_copy1(values->data, ob[0] + i * vs, x->data, xb + pairs[i].index * xs, size);
    ((int64_t *)indices->data)[ob[1] + i * is] = pairs[i].index;
  }
}

static void line_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  fl_type kept = {.rank = q->n_kept};
  for (int d = 0; d < q->n_kept; d++) kept.dims[d] = a->in[0].type.dims[q->kept[d]];
  int64_t at[FL_MAX_RANK];
  fl_ref_unravel(begin, &kept, at);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&kept, at)) {
    int64_t xb = 0, ob[2] = {0, 0};
    for (int d = 0; d < q->n_kept; d++) {
      xb += at[d] * a->in[0].strides[q->kept[d]];
      for (int o = 0; o < 2; o++) ob[o] += at[d] * a->out[o].strides[q->kept[d]];
    }
    one_line(a, q, xb, ob, (fl_pair *)((char *)a->scratch + thread * q->line_bytes));
  }
}

static const char *plan_lines(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type;
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->op = p->op;
  int64_t axis = fl_attr_int(p->attrs, "axis", 0);
  if (axis < 0 || (axis >= x->rank && x->rank > 0)) return "axis is out of range";
  q->axis = (int)axis;
  q->n = x->rank ? x->dims[axis] : 1;
  q->k = p->out[0].rank ? p->out[0].dims[axis] : 1;
  q->falling = fl_attr_int(p->attrs, p->op == FL_OP_SORT ? "descending" : "largest", 0) != 0;
  q->sorted = fl_attr_int(p->attrs, "sorted", 1) != 0;
  q->lines = 1;
  for (int d = 0; d < x->rank; d++)
    if (d != axis) {
      q->lines *= x->dims[d];
      q->kept[q->n_kept++] = d;
    }
  q->line_bytes = (p->op == FL_OP_SORT ? 2 : 1) * q->n * (int64_t)sizeof(fl_pair);
  plan->scratch_bytes = (size_t)q->line_bytes * (size_t)(p->threads > 0 ? p->threads : 1);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.5 + (double)fl_type_numel(x) * 0.05;
  return NULL;
}

static void run_lines(const fl_run_args *a) {
  const params *q = a->params;
  if (q->n) fl_parallel(a->pool, q->lines, 1 + 512 / q->n, line_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_sort_ref = {"sort_ref", FL_OP_SORT, FL_ISA_PORTABLE, plan_lines, NULL, run_lines};
const fl_kernel fl_kernel_topk_ref = {"topk_ref", FL_OP_TOPK, FL_ISA_PORTABLE, plan_lines, NULL, run_lines};

/* --- histc: how many elements fall into each of n bins between lo and hi, both included --- */

static const char *plan_histc(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  if (!fl_dtype_is_float(p->in[0].type.dtype)) return "the operator is for floats only";
  q->n = p->out[0].dims[0];
  q->lo = (float)fl_attr_float(p->attrs, "lo", 0);
  q->hi = (float)fl_attr_float(p->attrs, "hi", 0);
  plan->scratch_bytes = (size_t)q->n * sizeof(int64_t);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->in[0].type) * 0.005;
  return NULL;
}

static void run_histc(const fl_run_args *a) {
  const params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  int64_t *counts = a->scratch, at[FL_MAX_RANK] = {0};
  memset(counts, 0, (size_t)q->n * sizeof *counts);
  for (int64_t i = 0, n = fl_type_numel(&x->type); i < n; i++, fl_ref_next(&x->type, at)) {
    float v = (float)fl_ref_getf(x->data, x->type.dtype, fl_ref_offset(at, x->strides, x->type.rank));
    if (!(v >= q->lo && v <= q->hi)) continue;
    int64_t bin = (int64_t)((v - q->lo) * (float)q->n / (q->hi - q->lo));
    counts[bin < q->n ? bin : q->n - 1]++;
  }
  for (int64_t i = 0; i < q->n; i++) fl_ref_setf(out->data, out->type.dtype, i * out->strides[0], (double)counts[i]);
}

const fl_kernel fl_kernel_histc_ref = {"histc_ref", FL_OP_HISTC, FL_ISA_PORTABLE, plan_histc, NULL, run_histc};
