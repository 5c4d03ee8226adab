/* Data movement, any dtype and strides: cat, pad, flip, iota, tri, embedding, index_select, gather, index.
 * Elements are copied as bytes. Only the indexing operators look at values, and those of the index alone. */
#include "cpu/ref.h"

/* The one parameter block of this file; each operator uses some of it. */
typedef struct params {
  int64_t axis, n;
  int64_t list[2 * FL_MAX_RANK];
  double start, step; /* iota; pad: start is the value */
  bool upper;
} params;

static params *new_params(fl_arena *arena, fl_kernel_plan *plan) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  return q;
}

/* Sets the axis attribute and an estimate; `axes` is the rank that bounds it. */
static const char *plan_axis(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan, int rank) {
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->axis = fl_attr_int(p->attrs, "axis", 0);
  if (q->axis < 0 || (q->axis >= rank && rank > 0)) return "axis is out of range";
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * 0.01;
  return NULL;
}

static bool is_index(const fl_tensor *t) { return fl_dtype_is_int(t->type.dtype); }

/* --- cat --- */

typedef struct cat_job {
  fl_tensor src, dst;
  size_t size;
} cat_job;

static void cat_range(void *arg, int64_t begin, int64_t end, int thread) {
  const cat_job *j = arg;
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin, &j->src.type, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&j->src.type, c))
    fl_ref_copy1(j->dst.data, fl_ref_offset(c, j->dst.strides, j->dst.type.rank), j->src.data,
                 fl_ref_offset(c, j->src.strides, j->src.type.rank), j->size);
}

static const char *plan_cat(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  for (int i = 0; i < p->n_in; i++)
    if (p->in[i].type.dtype != p->out[0].dtype) return "inputs of different types";
  return plan_axis(p, arena, plan, p->out[0].rank);
}

static void run_cat(const fl_run_args *a, const params *q, int n_in) {
  fl_tensor at = a->out[0];
  for (int i = 0; i < n_in; i++) {
    cat_job j = {a->in[i], at, fl_dtype_size(at.type.dtype)};
    /* An empty tensor of rank 1 joins anything, as in PyTorch. */
    if (fl_type_numel(&j.src.type) == 0) continue;
    fl_parallel(a->pool, fl_type_numel(&j.src.type), FL_REF_GRAIN, cat_range, &j);
    at.data = (char *)at.data + at.strides[q->axis] * a->in[i].type.dims[q->axis] * (int64_t)j.size;
  }
}

static const char *plan_cat_ref(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_cat(p, arena, plan);
  if (!why) ((params *)(uintptr_t)plan->params)->n = p->n_in;
  return why;
}

static void run_cat_ref(const fl_run_args *a) {
  const params *q = a->params;
  run_cat(a, q, (int)q->n);
}

const fl_kernel fl_kernel_cat_ref = {"cat_ref", FL_OP_CAT, FL_ISA_PORTABLE, plan_cat_ref, NULL, run_cat_ref};

/* --- operators that compute each output element's source --- */

/* Element offset of the source of output coordinates c; sets *fill instead when there is none. */
typedef int64_t (*source_fn)(const fl_run_args *a, const params *q, const int64_t *c, bool *fill);

typedef struct map_job {
  const fl_run_args *a;
  source_fn source;
  char fill[8];
} map_job;

static void map_range(void *arg, int64_t begin, int64_t end, int thread) {
  const map_job *j = arg;
  const fl_tensor *out = &j->a->out[0];
  size_t size = fl_dtype_size(out->type.dtype);
  int64_t c[FL_MAX_RANK];
  fl_ref_unravel(begin, &out->type, c);
  for (int64_t i = begin; i < end; i++, fl_ref_next(&out->type, c)) {
    bool fill = false;
    int64_t src = j->source(j->a, j->a->params, c, &fill), dst = fl_ref_offset(c, out->strides, out->type.rank);
    if (fill)
      fl_ref_copy1(out->data, dst, j->fill, 0, size);
    else
      fl_ref_copy1(out->data, dst, j->a->in[0].data, src, size);
  }
}

static void run_map(const fl_run_args *a, source_fn source, double fill) {
  map_job j = {a, source, {0}};
  fl_ref_setf(j.fill, a->out[0].type.dtype, 0, fill);
  fl_parallel(a->pool, fl_type_numel(&a->out[0].type), FL_REF_GRAIN, map_range, &j);
}

/* Reads the index at coordinates c of tensor t, and brings it into [0, n). */
static int64_t index_at(const fl_tensor *t, const int64_t *c, int64_t n, bool wrap, int *fault) {
  int64_t i = fl_ref_geti(t->data, t->type.dtype, fl_ref_offset(c, t->strides, t->type.rank));
  return fl_ref_index(i, n, wrap, fault);
}

/* pad */
static int64_t pad_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  const fl_tensor *x = &a->in[0];
  int64_t o = 0;
  for (int d = 0; d < x->type.rank; d++) {
    int64_t i = c[d] - q->list[2 * d];
    if (i < 0 || i >= x->type.dims[d]) *fill = true;
    o += i * x->strides[d];
  }
  return o;
}

static const char *plan_pad(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  int n;
  const int64_t *pads = fl_attr_list(p->attrs, "pads", &n);
  if (n != 2 * p->in[0].type.rank) return "pads must have two values for each axis";
  if (n) memcpy(q->list, pads, (size_t)n * sizeof *pads);
  q->start = fl_attr_float(p->attrs, "value", 0);
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * 0.01;
  return NULL;
}

static void run_pad(const fl_run_args *a) { run_map(a, pad_source, ((const params *)a->params)->start); }
const fl_kernel fl_kernel_pad_ref = {"pad_ref", FL_OP_PAD, FL_ISA_PORTABLE, plan_pad, NULL, run_pad};

/* flip: list[d] tells whether axis d is turned */
static int64_t flip_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  const fl_tensor *x = &a->in[0];
  int64_t o = 0;
  for (int d = 0; d < x->type.rank; d++) o += (q->list[d] ? x->type.dims[d] - 1 - c[d] : c[d]) * x->strides[d];
  return o;
}

static const char *plan_flip(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  int n;
  const int64_t *axes = fl_attr_list(p->attrs, "axes", &n);
  for (int i = 0; i < n; i++) {
    if (axes[i] < 0 || axes[i] >= p->in[0].type.rank) return "axis is out of range";
    q->list[axes[i]] = 1;
  }
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * 0.01;
  return NULL;
}

static void run_flip(const fl_run_args *a) { run_map(a, flip_source, 0); }
const fl_kernel fl_kernel_flip_ref = {"flip_ref", FL_OP_FLIP, FL_ISA_PORTABLE, plan_flip, NULL, run_flip};

/* tri: keeps column - row <= diagonal (tril), >= diagonal (triu) */
static int64_t tri_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  int r = a->in[0].type.rank;
  int64_t d = c[r - 1] - c[r - 2];
  *fill = q->upper ? d < q->axis : d > q->axis;
  return fl_ref_offset(c, a->in[0].strides, r);
}

static const char *plan_tri(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (p->in[0].type.rank < 2) return "tri needs at least two axes";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->axis = fl_attr_int(p->attrs, "diagonal", 0);
  q->upper = fl_attr_int(p->attrs, "upper", 0) != 0;
  plan->cost_us = 0.3 + (double)fl_type_numel(&p->out[0]) * 0.01;
  return NULL;
}

static void run_tri(const fl_run_args *a) { run_map(a, tri_source, 0); }
const fl_kernel fl_kernel_tri_ref = {"tri_ref", FL_OP_TRI, FL_ISA_PORTABLE, plan_tri, NULL, run_tri};

/* index_select, and embedding as its case of axis 0 with an index of any rank: the output's axes are those of x before
 * `axis`, those of the index, those of x after it. */
static int64_t select_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  const fl_tensor *x = &a->in[0], *index = &a->in[1];
  int axis = (int)q->axis, ir = index->type.rank;
  int64_t i = index_at(index, c + axis, x->type.dims[axis], false, a->fault), o = i * x->strides[axis];
  *fill = i < 0;
  for (int d = 0; d < axis; d++) o += c[d] * x->strides[d];
  for (int d = axis + 1; d < x->type.rank; d++) o += c[d - 1 + ir] * x->strides[d];
  return o;
}

static const char *plan_select(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!is_index(&p->in[1])) return "the index must be of an integer type";
  if (p->in[0].type.rank < 1) return "a scalar cannot be indexed";
  if (p->in[0].type.rank - 1 + p->in[1].type.rank != p->out[0].rank) return "the index has a rank that does not fit";
  return plan_axis(p, arena, plan, p->in[0].type.rank);
}

static void run_select(const fl_run_args *a) { run_map(a, select_source, 0); }
const fl_kernel fl_kernel_embedding_ref = {"embedding_ref", FL_OP_EMBEDDING, FL_ISA_PORTABLE, plan_select, NULL,
                                           run_select};
const fl_kernel fl_kernel_index_select_ref = {
    "index_select_ref", FL_OP_INDEX_SELECT, FL_ISA_PORTABLE, plan_select, NULL, run_select};

/* gather: out[c] = x[c with c[axis] replaced by index[c]] */
static int64_t gather_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  const fl_tensor *x = &a->in[0];
  int64_t i = index_at(&a->in[1], c, x->type.rank ? x->type.dims[q->axis] : 1, false, a->fault), o = 0;
  *fill = i < 0;
  for (int d = 0; d < x->type.rank; d++) o += (d == q->axis ? i : c[d]) * x->strides[d];
  return o;
}

static const char *plan_gather(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!is_index(&p->in[1])) return "the index must be of an integer type";
  if (p->in[0].type.rank != p->in[1].type.rank) return "input and index must have the same rank";
  const char *why = plan_axis(p, arena, plan, p->in[0].type.rank);
  if (why) return why;
  for (int d = 0, axis = (int)fl_attr_int(p->attrs, "axis", 0); d < p->out[0].rank; d++)
    if (d != axis && p->out[0].dims[d] > p->in[0].type.dims[d]) return "the index is larger than the input";
  return NULL;
}

static void run_gather(const fl_run_args *a) { run_map(a, gather_source, 0); }
const fl_kernel fl_kernel_gather_ref = {"gather_ref", FL_OP_GATHER, FL_ISA_PORTABLE, plan_gather, NULL, run_gather};

/* index: n index arrays, broadcast together to list[0] axes, take the place of axes axis .. axis + n - 1 */
static int64_t index_source(const fl_run_args *a, const params *q, const int64_t *c, bool *fill) {
  const fl_tensor *x = &a->in[0];
  int axis = (int)q->axis, n = (int)q->n, br = (int)q->list[0];
  int64_t o = 0;
  for (int d = 0; d < axis; d++) o += c[d] * x->strides[d];
  for (int k = 0; k < n; k++) {
    const fl_tensor *t = &a->in[1 + k];
    int64_t at[FL_MAX_RANK];
    for (int d = 0; d < t->type.rank; d++) at[d] = t->type.dims[d] == 1 ? 0 : c[axis + br - t->type.rank + d];
    int64_t i = index_at(t, at, x->type.dims[axis + k], true, a->fault);
    if (i < 0) *fill = true;
    o += i * x->strides[axis + k];
  }
  for (int d = axis + n; d < x->type.rank; d++) o += c[d - n + br] * x->strides[d];
  return o;
}

static const char *plan_index(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_axis(p, arena, plan, p->in[0].type.rank);
  if (why) return why;
  params *q = (params *)(uintptr_t)plan->params;
  q->n = p->n_in - 1;
  if (q->axis + q->n > p->in[0].type.rank) return "more indexes than axes";
  for (int i = 1; i < p->n_in; i++) {
    if (!is_index(&p->in[i])) return "the index must be of an integer type";
    if (p->in[i].type.rank > q->list[0]) q->list[0] = p->in[i].type.rank;
  }
  if (p->in[0].type.rank - q->n + q->list[0] != p->out[0].rank) return "the indexes have a rank that does not fit";
  return NULL;
}

static void run_index(const fl_run_args *a) { run_map(a, index_source, 0); }
const fl_kernel fl_kernel_index_ref = {"index_ref", FL_OP_INDEX, FL_ISA_PORTABLE, plan_index, NULL, run_index};

/* --- iota: start + step * coordinate along axis --- */

static const char *plan_iota(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_axis(p, arena, plan, p->out[0].rank);
  if (why) return why;
  params *q = (params *)(uintptr_t)plan->params;
  q->start = fl_attr_float(p->attrs, "start", 0);
  q->step = fl_attr_float(p->attrs, "step", 1);
  return NULL;
}

static void run_iota(const fl_run_args *a) {
  const params *q = a->params;
  const fl_tensor *out = &a->out[0];
  int64_t c[FL_MAX_RANK] = {0};
  for (int64_t i = 0, n = fl_type_numel(&out->type); i < n; i++, fl_ref_next(&out->type, c)) {
    double v = q->start + q->step * (double)(out->type.rank ? c[q->axis] : 0);
    fl_ref_setf(out->data, out->type.dtype, fl_ref_offset(c, out->strides, out->type.rank), v);
  }
}

const fl_kernel fl_kernel_iota_ref = {"iota_ref", FL_OP_IOTA, FL_ISA_PORTABLE, plan_iota, NULL, run_iota};
