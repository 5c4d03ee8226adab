/* Data movement a row at a time, any dtype: cat, pad, and selection of rows (embedding, index_select, index by one
 * array). What does not have rows is left to the references. */
#include <string.h>

#include "cpu/ref.h"

typedef struct params {
  int32_t n_in, axis;
  int64_t outer, count, picks; /* selection: [outer, count, row] -> [outer, picks, row] */
  size_t row;                  /* bytes */
  int64_t before[FL_MAX_RANK];
  double value;
  bool wrap; /* negative indexes count from the end */
} params;

static params *new_params(fl_arena *arena, fl_kernel_plan *plan) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  return q;
}

/* The output takes NHWC order when the input has it. */
static void follow_layout(const fl_problem *p, fl_kernel_plan *plan) {
  const fl_tensor *x = &p->in[0];
  if (p->out[0].rank == 4 && x->type.rank == 4 && fl_is_channels_last(&x->type, x->strides) &&
      !fl_is_contiguous(&x->type, x->strides))
    fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
}

static double move_cost(const fl_type *t) { return 0.3 + (double)fl_type_bytes(t) * 2e-4; }

/* --- cat --- */

static const char *plan_cat(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  int64_t axis = fl_attr_int(p->attrs, "axis", 0);
  if (axis < 0 || axis >= p->out[0].rank) return "axis is out of range";
  for (int i = 0; i < p->n_in; i++) {
    if (p->in[i].type.dtype != p->out[0].dtype) return "inputs of different types";
    if (p->in[i].type.rank != p->out[0].rank && fl_type_numel(&p->in[i].type)) return "inputs of different ranks";
  }
  q->n_in = p->n_in;
  q->axis = (int32_t)axis;
  follow_layout(p, plan);
  plan->cost_us = move_cost(&p->out[0]);
  return NULL;
}

static void run_cat(const fl_run_args *a) {
  const params *q = a->params;
  fl_tensor at = a->out[0];
  size_t size = fl_dtype_size(at.type.dtype);
  for (int i = 0; i < q->n_in; i++) {
    if (fl_type_numel(&a->in[i].type) == 0) continue;
    at.type = a->in[i].type;
    fl_copy_strided(&at, &a->in[i], a->pool);
    at.data = (char *)at.data + at.strides[q->axis] * at.type.dims[q->axis] * (int64_t)size;
  }
}

const fl_kernel fl_kernel_cat_rows = {"cat_rows", FL_OP_CAT, FL_ISA_PORTABLE, plan_cat, NULL, run_cat};

/* --- pad: the whole output is filled, then the inside copied --- */

static const char *plan_pad(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  int n;
  const int64_t *pads = fl_attr_list(p->attrs, "pads", &n);
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  if (n != 2 * p->in[0].type.rank) return "pads must have two values for each axis";
  for (int i = 0; i < n; i++)
    if (pads[i] < 0) return "a negative pad";
  for (int d = 0; d < n / 2; d++) q->before[d] = pads[2 * d];
  q->value = fl_attr_float(p->attrs, "value", 0);
  follow_layout(p, plan);
  plan->cost_us = move_cost(&p->out[0]) * 1.5;
  return NULL;
}

typedef struct fill_job {
  char *dst, one[8];
  size_t size;
  bool zero;
} fill_job;

static void fill_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fill_job *j = arg;
  char *dst = j->dst + (size_t)begin * j->size;
  size_t bytes = (size_t)(end - begin) * j->size, done = j->size;
  if (j->zero) {
    memset(dst, 0, bytes);
    return;
  }
  memcpy(dst, j->one, done);
  for (; done < bytes; done *= 2) memcpy(dst + done, dst, done < bytes - done ? done : bytes - done);
}

static void run_pad(const fl_run_args *a) {
  const params *q = a->params;
  fl_tensor in = a->out[0];
  fill_job j = {.dst = in.data, .size = fl_dtype_size(in.type.dtype)};
  static const char none[8];
  fl_ref_setf(j.one, in.type.dtype, 0, q->value);
  j.zero = !memcmp(j.one, none, 8);
  fl_parallel(a->pool, fl_type_numel(&in.type), 16384, fill_range, &j);
  for (int d = 0; d < in.type.rank; d++) in.data = (char *)in.data + q->before[d] * in.strides[d] * (int64_t)j.size;
  in.type = a->in[0].type;
  fl_copy_strided(&in, &a->in[0], a->pool);
}

const fl_kernel fl_kernel_pad_rows = {"pad_rows", FL_OP_PAD, FL_ISA_PORTABLE, plan_pad, NULL, run_pad};

/* --- selection of rows --- */

static const char *plan_select(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_type *x = &p->in[0].type, *index = &p->in[1].type;
  int64_t axis = p->op == FL_OP_EMBEDDING ? 0 : fl_attr_int(p->attrs, "axis", 0);
  if (p->n_in != 2) return "more than one index";
  if (!fl_dtype_is_int(index->dtype)) return "the index must be of an integer type";
  if (axis < 0 || axis >= x->rank || x->rank - 1 + index->rank != p->out[0].rank) return "axis or rank does not fit";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->wrap = p->op == FL_OP_INDEX;
  q->outer = 1, q->row = fl_dtype_size(x->dtype), q->count = x->dims[axis], q->picks = fl_type_numel(index);
  for (int d = 0; d < axis; d++) q->outer *= x->dims[d];
  for (int d = (int)axis + 1; d < x->rank; d++) q->row *= (size_t)x->dims[d];
  if (q->row < 32) return "short rows";
  plan->in_layout[0] = plan->in_layout[1] = FL_LAYOUT_CONTIGUOUS;
  plan->cost_us = move_cost(&p->out[0]);
  return NULL;
}

static void select_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const char *src = a->in[0].data;
  char *dst = a->out[0].data;
  for (int64_t u = begin; u < end; u++) {
    int64_t i =
        fl_ref_index(fl_ref_geti(a->in[1].data, a->in[1].type.dtype, u % q->picks), q->count, q->wrap, a->fault);
    if (i < 0)
      memset(dst + (size_t)u * q->row, 0, q->row);
    else
      memcpy(dst + (size_t)u * q->row, src + (size_t)(u / q->picks * q->count + i) * q->row, q->row);
  }
}

static void run_select(const fl_run_args *a) {
  const params *q = a->params;
  fl_parallel(a->pool, q->outer * q->picks, 1 + 65536 / (int64_t)q->row, select_range, (void *)(uintptr_t)a);
}

const fl_kernel fl_kernel_embedding_rows = {"embedding_rows", FL_OP_EMBEDDING, FL_ISA_PORTABLE, plan_select, NULL,
                                            run_select};
const fl_kernel fl_kernel_index_select_rows = {
    "index_select_rows", FL_OP_INDEX_SELECT, FL_ISA_PORTABLE, plan_select, NULL, run_select};
const fl_kernel fl_kernel_index_rows = {"index_rows", FL_OP_INDEX, FL_ISA_PORTABLE, plan_select, NULL, run_select};
