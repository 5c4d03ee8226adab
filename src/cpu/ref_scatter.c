/* Results that are a tensor with some elements written over: scatter, index_put. One after the other, so that of two
 * writes to one place the later counts, as in PyTorch's own order. */
#include "cpu/ref.h"

typedef enum mode { SET, ADD, MUL, MAX, MIN } mode;

typedef struct params {
  int axis, n; /* index_put: first axis that is indexed, index arrays */
  int rank;    /* of the index arrays broadcast together */
  int64_t dims[FL_MAX_RANK];
  mode mode;
} params;

static double combine(mode m, double a, double b) {
  switch (m) {
  case ADD: return a + b;
  case MUL: return a * b;
  case MAX: return a != a || a > b ? a : b;
  case MIN: return a != a || a < b ? a : b;
  default: return b;
  }
}

static int64_t combine_int(mode m, int64_t a, int64_t b) {
  switch (m) {
  case ADD: return (int64_t)((uint64_t)a + (uint64_t)b);
  case MUL: return (int64_t)((uint64_t)a * (uint64_t)b);
  case MAX: return a > b ? a : b;
  case MIN: return a < b ? a : b;
  default: return b;
  }
}

static void put(const fl_tensor *out, int64_t o, const fl_tensor *src, int64_t s, mode m) {
  fl_dtype t = out->type.dtype;
  if (m == SET)
    fl_ref_copy1(out->data, o, src->data, s, fl_dtype_size(t));
  else if (fl_dtype_is_float(t))
    fl_ref_setf(out->data, t, o, combine(m, fl_ref_getf(out->data, t, o), fl_ref_getf(src->data, t, s)));
  else
    fl_ref_seti(out->data, t, o, combine_int(m, fl_ref_geti(out->data, t, o), fl_ref_geti(src->data, t, s)));
}

static params *begin(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return NULL;
  q->axis = (int)fl_attr_int(p->attrs, "axis", 0);
  q->mode = (mode)fl_attr_int(p->attrs, "mode", 0);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  plan->in_place = 0;
  plan->cost_us = 0.5 + (double)fl_type_numel(&p->out[0]) * 0.002 + (double)fl_type_numel(&p->in[1].type) * 0.02;
  return q;
}

static void copy_base(const fl_run_args *a) {
  if (a->out[0].data != a->in[0].data) fl_copy_strided(&a->out[0], &a->in[0], a->pool);
}

/* --- scatter: (x, index, src): x[.., index[c], ..] = src[c] for each c of the index --- */

static const char *plan_scatter(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!fl_dtype_is_int(p->in[1].type.dtype)) return "the index must be of an integer type";
  if (p->in[0].type.rank < 1) return "a scalar cannot be indexed";
  return begin(p, arena, plan) ? NULL : "out of memory";
}

static void run_scatter(const fl_run_args *a) {
  const params *q = a->params;
  const fl_tensor *index = &a->in[1], *src = &a->in[2], *out = &a->out[0];
  int64_t c[FL_MAX_RANK] = {0};
  copy_base(a);
  for (int64_t i = 0, n = fl_type_numel(&index->type); i < n; i++, fl_ref_next(&index->type, c)) {
    int64_t at = fl_ref_geti(index->data, index->type.dtype, fl_ref_offset(c, index->strides, index->type.rank));
    int64_t to = fl_ref_index(at, out->type.dims[q->axis], false, a->fault), o = to * out->strides[q->axis];
    if (to < 0) return;
    for (int d = 0; d < out->type.rank; d++)
      if (d != q->axis) o += c[d] * out->strides[d];
    put(out, o, src, fl_ref_offset(c, src->strides, src->type.rank), q->mode);
  }
}

const fl_kernel fl_kernel_scatter_ref = {"scatter_ref", FL_OP_SCATTER, FL_ISA_PORTABLE,
                                         plan_scatter,  NULL,          run_scatter};

/* --- index_put: (x, values, i0, i1, ...): x[.., i0, i1, .., :] = values, which broadcast to what x[...] would be --- */

static const char *plan_index_put(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = begin(p, arena, plan);
  if (!q) return "out of memory";
  q->n = p->n_in - 2;
  for (int i = 2; i < p->n_in; i++) {
    const fl_type *t = &p->in[i].type;
    if (!fl_dtype_is_int(t->dtype)) return "the index must be of an integer type";
    if (t->rank > q->rank) q->rank = t->rank;
  }
  for (int d = 0; d < q->rank; d++) q->dims[d] = 1;
  for (int i = 2; i < p->n_in; i++) {
    const fl_type *t = &p->in[i].type;
    for (int d = 0; d < t->rank; d++)
      if (t->dims[d] != 1) q->dims[q->rank - t->rank + d] = t->dims[d];
  }
  if (p->in[0].type.rank - q->n + q->rank > FL_MAX_RANK) return "too many axes";
  return NULL;
}

static int64_t broadcast_offset(const fl_tensor *t, const int64_t *c, int rank) {
  int64_t o = 0;
  for (int d = t->type.rank - 1, e = rank - 1; d >= 0; d--, e--)
    if (t->type.dims[d] != 1) o += c[e] * t->strides[d];
  return o;
}

static void run_index_put(const fl_run_args *a) {
  const params *q = a->params;
  const fl_tensor *out = &a->out[0], *values = &a->in[1];
  fl_type space = {0}; /* of x[...] */
  int64_t c[FL_MAX_RANK] = {0};
  for (int d = 0; d < q->axis; d++) space.dims[space.rank++] = out->type.dims[d];
  for (int d = 0; d < q->rank; d++) space.dims[space.rank++] = q->dims[d];
  for (int d = q->axis + q->n; d < out->type.rank; d++) space.dims[space.rank++] = out->type.dims[d];
  copy_base(a);
  for (int64_t i = 0, n = fl_type_numel(&space); i < n; i++, fl_ref_next(&space, c)) {
    int64_t o = 0;
    for (int d = 0; d < q->axis; d++) o += c[d] * out->strides[d];
    for (int k = 0; k < q->n; k++) {
      const fl_tensor *t = &a->in[2 + k];
      int64_t v = fl_ref_geti(t->data, t->type.dtype, broadcast_offset(t, c + q->axis, q->rank));
      int64_t to = fl_ref_index(v, out->type.dims[q->axis + k], true, a->fault);
      if (to < 0) return;
      o += to * out->strides[q->axis + k];
    }
    for (int d = q->axis + q->n; d < out->type.rank; d++) o += c[d - q->n + q->rank] * out->strides[d];
    put(out, o, values, broadcast_offset(values, c, space.rank), q->mode);
  }
}

const fl_kernel fl_kernel_index_put_ref = {"index_put_ref", FL_OP_INDEX_PUT, FL_ISA_PORTABLE, plan_index_put, NULL,
                                           run_index_put};
