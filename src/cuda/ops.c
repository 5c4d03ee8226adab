/* Generated kernels: plans, and runs that write the source and launch it. */
#include "cuda/ops.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cuda/sources.h"
#include "cuda/writer.h"

const char *fl_cuda_plan_base(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  char name[64];
  snprintf(name, sizeof name, "%s_ref", fl_op_get(p->op)->name);
  const fl_kernel *reference = fl_kernel_get(fl_kernel_find(name));
  if (!reference) return "the operator has no reference";
  fl_kernel_plan unused = {.in_place = -1};
  const char *why = reference->plan(p, arena, &unused);
  if (why) return why;
  fl_cuda_params *q = fl_arena_alloc(arena, sizeof *q);
  if (!q) return "out of memory";
  q->op = p->op;
  q->n_in = p->n_in;
  q->n_out = p->n_out;
  q->tf32 = p->tf32;
  memcpy(q->absent, p->absent, sizeof q->absent);
  memcpy(q->constant, p->constant, sizeof q->constant);
  q->attrs = *p->attrs;
  if (p->program) q->program = *p->program;
  plan->params = q;
  plan->params_bytes = sizeof *q;
  return NULL;
}

/* Result 0 lies as operand i does, if that is dense and of the same dims. */
static bool follow(const fl_problem *p, int i, fl_kernel_plan *plan) {
  if (p->absent[i] || !fl_dims_equal(&p->in[i].type, &p->out[0]) || !fl_is_dense(&p->in[i].type, p->in[i].strides))
    return false;
  for (int o = 0; o < p->n_out; o++) memcpy(plan->out_strides[o], p->in[i].strides, sizeof plan->out_strides[o]);
  return true;
}

/* Result 0 lies densely in the order of axes of operand i, a part of something larger of the same dims. */
static bool follow_part(const fl_problem *p, int i, fl_kernel_plan *plan) {
  const fl_type *t = &p->out[0];
  const int64_t *s = p->in[i].strides;
  int order[FL_MAX_RANK];
  if (p->absent[i] || !fl_dims_equal(&p->in[i].type, t)) return false;
  for (int d = 0; d < t->rank; d++) {
    int at = d;
    if (s[d] <= 0 && t->dims[d] != 1) return false;
    for (; at > 0 && s[order[at - 1]] < s[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  int64_t step = 1;
  for (int k = t->rank - 1; k >= 0; step *= t->dims[order[k--]])
    for (int o = 0; o < p->n_out; o++) plan->out_strides[o][order[k]] = step;
  return true;
}

static bool same_strides(const fl_type *t, const int64_t *a, const int64_t *b) {
  for (int d = 0; d < t->rank; d++)
    if (t->dims[d] != 1 && a[d] != b[d]) return false;
  return true;
}

static void write_pointers(fl_cuda_writer *w, const fl_run_args *a, const fl_cuda_params *q) {
  for (int i = 0; i < q->n_in; i++)
    if (!q->absent[i]) fl_cuda_write_pointer(w, a->in[i].data);
  for (int i = 0; i < q->n_out; i++) fl_cuda_write_pointer(w, a->out[i].data);
  fl_cuda_write_pointer(w, a->fault);
}

/* --- a thread an element --- */

const char *fl_cuda_plan_map(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  if (!fl_cg_has_map(p->op)) return "no kernel for this operator";
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  bool moves = p->op == FL_OP_EMBEDDING || p->op == FL_OP_INDEX_SELECT || p->op == FL_OP_GATHER || p->op == FL_OP_INDEX;
  if (moves && fl_type_numel(&p->in[0].type) == 0) return "an empty table cannot be indexed";
  plan->strided_out = true;
  if (p->op == FL_OP_CONV2D) {
    plan->in_layout[2] = FL_LAYOUT_CONTIGUOUS;
    if (fl_is_channels_last(&p->in[0].type, p->in[0].strides))
      fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
  }
  if (p->op == FL_OP_BATCH_NORM)
    for (int i = 1; i < 5; i++) plan->in_layout[i] = FL_LAYOUT_CONTIGUOUS;
  if (p->op == FL_OP_MAX_POOL2D || p->op == FL_OP_AVG_POOL2D || p->op == FL_OP_ADAPTIVE_AVG_POOL2D ||
      p->op == FL_OP_RESIZE2D || p->op == FL_OP_CONV_TRANSPOSE2D) {
    if (!fl_is_contiguous(&p->in[0].type, p->in[0].strides) && fl_is_channels_last(&p->in[0].type, p->in[0].strides))
      fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
    return NULL;
  }
  bool pointwise = p->op == FL_OP_POINTWISE || p->op == FL_OP_BATCH_NORM || p->op == FL_OP_FLIP || p->op == FL_OP_TRI;
  bool follows = false;
  for (int i = 0; pointwise && i < p->n_in && !follows; i++) follows = follow(p, i, plan);
  for (int i = 0; pointwise && i < p->n_in && !follows; i++) follows = follow_part(p, i, plan);
  for (int i = 0; p->op == FL_OP_POINTWISE && i < p->n_in && plan->in_place < 0; i++)
    if (fl_type_equal(&p->in[i].type, &p->out[0]) && same_strides(&p->out[0], p->in[i].strides, plan->out_strides[0]))
      plan->in_place = i;
  return NULL;
}

static void run_map(const fl_run_args *a, const fl_cuda_params *q) {
  fl_cuda_writer w = {0};
  write_pointers(&w, a, q);
  int64_t grid = fl_cg_map(&w, q, a->in, a->out);
  fl_cuda_write_launch(&w, a, "", grid, FL_CG_BLOCK, 0);
}

void fl_cuda_run_map(const fl_run_args *a) { run_map(a, a->params); }

static fl_op op_of_act(fl_act act) {
  switch (act) {
  case FL_ACT_RELU: return FL_OP_RELU;
  case FL_ACT_CLAMP: return FL_OP_CLAMP;
  case FL_ACT_GELU: return FL_OP_GELU;
  case FL_ACT_GELU_TANH: return FL_OP_GELU_TANH;
  case FL_ACT_SILU: return FL_OP_SILU;
  case FL_ACT_SIGMOID: return FL_OP_SIGMOID;
  case FL_ACT_TANH: return FL_OP_TANH;
  case FL_ACT_HARDSWISH: return FL_OP_HARDSWISH;
  case FL_ACT_HARDSIGMOID: return FL_OP_HARDSIGMOID;
  default: return FL_OP_COUNT;
  }
}

void fl_cuda_act(const fl_run_args *a, fl_act act, double lo, double hi) {
  fl_cuda_params q = {.op = FL_OP_POINTWISE, .n_in = 1, .n_out = 1};
  fl_dtype t = a->out[0].type.dtype;
  fl_run_args in_place = *a;
  if (act == FL_ACT_NONE) return;
  in_place.in = a->out;
  q.program = (fl_pw_program){.n_inputs = 1, .n_instrs = 1, .n_outputs = 1, .in_dtype = {t}, .outputs = {1}};
  q.program.instrs[0] = (fl_pw_instr){op_of_act(act), t, {0, -1, -1}, lo, hi};
  run_map(&in_place, &q);
}

/* --- softmax and normalizations --- */

enum { MAX_ROW = 32768 };

static void row_axes(fl_op op, const fl_attrs *attrs, const fl_type *t, const int64_t *in, const int64_t *out,
                     fl_cuda_axes *rows, fl_cuda_axes *elements) {
  if (op == FL_OP_GROUP_NORM) {
    int64_t groups = fl_attr_int(attrs, "groups", 1), each = t->dims[1] / groups;
    fl_cuda_add_axis(rows, t->dims[0], in[0], out[0]);
    fl_cuda_add_axis(rows, groups, each * in[1], each * out[1]);
    fl_cuda_add_axis(elements, each, in[1], out[1]);
    for (int d = 2; d < t->rank; d++) fl_cuda_add_axis(elements, t->dims[d], in[d], out[d]);
    return;
  }
  bool soft = op == FL_OP_SOFTMAX || op == FL_OP_LOG_SOFTMAX;
  int64_t axis = fl_attr_int(attrs, "axis", 0), last = fl_attr_int(attrs, "axes", 1);
  for (int d = 0; d < t->rank; d++)
    fl_cuda_add_axis((soft ? d == axis : d >= t->rank - last) ? elements : rows, t->dims[d], in[d], out[d]);
}

const char *fl_cuda_plan_rows(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  fl_cuda_axes rows = {0}, elements = {0};
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  const fl_tensor *x = &p->in[0];
  if (!fl_dtype_is_float(x->type.dtype)) return "the operator is for floats only";
  row_axes(p->op, p->attrs, &x->type, x->strides, x->strides, &rows, &elements);
  if (fl_cuda_axes_count(&elements) > MAX_ROW) return "a row has more than 32768 elements";
  for (int i = 1; i < p->n_in; i++) plan->in_layout[i] = FL_LAYOUT_CONTIGUOUS;
  if (p->n_in > 2 && !p->absent[1] && !p->absent[2] && p->in[1].type.dtype != p->in[2].type.dtype)
    return "weight and bias of different types";
  if (follow(p, 0, plan)) plan->in_place = 0;
  plan->strided_out = true;
  return NULL;
}

static int row_kind(fl_op op) {
  return op == FL_OP_SOFTMAX       ? 0
         : op == FL_OP_LOG_SOFTMAX ? 1
         : op == FL_OP_LAYER_NORM  ? 2
         : op == FL_OP_RMS_NORM    ? 3
                                   : 4;
}

typedef struct row_shape {
  int64_t d, n;
  int width, lanes, rows; /* elements of a chunk; threads of a row; rows of a block */
} row_shape;

/* The largest power of two that divides the row, its distance to others, and fits 16 bytes of aligned memory. */
static int row_width(const fl_run_args *a, const fl_cuda_axes *rows, const fl_cuda_axes *elements, int64_t d) {
  const fl_cuda_params *q = a->params;
  int64_t width = 16 / (int64_t)fl_dtype_size(a->in[0].type.dtype);
  if (!fl_cuda_is_adjacent(elements, elements->in) || !fl_cuda_is_adjacent(elements, elements->out)) return 1;
  while (width > 1 && d % width) width /= 2;
  for (int i = 0; i < rows->n; i++)
    while (rows->dims[i] != 1 && width > 1 && (rows->in[i] % width || rows->out[i] % width)) width /= 2;
  for (int i = 0; i < q->n_in + 1; i++) {
    const fl_tensor *t = i < q->n_in ? &a->in[i] : &a->out[0];
    if (i < q->n_in && q->absent[i]) continue;
    while (width > 1 && (uintptr_t)t->data % ((size_t)width * fl_dtype_size(t->type.dtype))) width /= 2;
  }
  return (int)width;
}

/* As few threads for a row as keep four chunks each at most; more, up to a warp, where there are few rows. */
static row_shape shape_rows(const fl_run_args *a, const fl_cuda_axes *rows, const fl_cuda_axes *elements) {
  row_shape s = {.d = fl_cuda_axes_count(elements), .n = fl_cuda_axes_count(rows), .lanes = 1, .rows = 1};
  s.width = row_width(a, rows, elements, s.d);
  int64_t chunks = s.d / s.width;
  while (s.lanes < 1024 && (chunks > 4 * s.lanes || (s.lanes < 32 && chunks > s.lanes && s.n * s.lanes < 1 << 16)))
    s.lanes *= 2;
  while (s.lanes <= 32 && s.rows * s.lanes < 128) s.rows *= 2; /* larger rows exchange through the block */
  return s;
}

static int64_t reach(const fl_cuda_axes *a, const int64_t *strides) {
  int64_t last = 0;
  for (int i = 0; i < a->n; i++) last += (a->dims[i] - 1) * (strides[i] < 0 ? -strides[i] : strides[i]);
  return last;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t fl_cuda_axes_reach(const fl_cuda_axes *a, const fl_cuda_axes *b) {
  return larger(reach(a, a->in) + reach(b, b->in), reach(a, a->out) + reach(b, b->out));
}

/* Registers depend on the length of a row. The lengths of group_norm are many, weights that are normalized when an engine is
 * built among them: of these only the number of chunks is in the source. */
static void write_lengths(fl_cuda_writer *w, const fl_cuda_params *q, const row_shape *s, const fl_type *t) {
  int64_t chunks = s->d / s->width, groups = fl_attr_int(&q->attrs, "groups", 1);
  bool grouped = q->op == FL_OP_GROUP_NORM;
  void (*write)(fl_cuda_writer *, const char *, int64_t) = grouped ? fl_cuda_write_size : fl_cuda_write_number;
  write(w, "D", s->d);
  write(w, "CHUNKS", chunks);
  fl_cuda_write_number(w, "PER", (chunks + s->lanes - 1) / s->lanes);
  fl_cuda_write_number(w, "EVEN", !grouped && chunks % s->lanes == 0);
  fl_cuda_write_size(w, "N", s->n);
  if (!grouped) return;
  int64_t each = t->dims[1] / groups;
  fl_cuda_write_number(w, "ONE_CHANNEL", each == 1);
  fl_cuda_write_divisor(w, "GROUPS", groups);
  if (each == 1) return;
  fl_cuda_write_size(w, "CPG", each);
  fl_cuda_write_divisor(w, "SPATIAL", each ? s->d / each : 1);
}

void fl_cuda_run_rows(const fl_run_args *a) {
  const fl_cuda_params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  fl_cuda_axes rows = {0}, elements = {0};
  row_axes(q->op, &q->attrs, &x->type, x->strides, out->strides, &rows, &elements);
  row_shape s = shape_rows(a, &rows, &elements);
  bool has_w = q->n_in > 1 && !q->absent[1], has_b = q->n_in > 2 && !q->absent[2], dbl = x->type.dtype == FL_F64;
  fl_dtype weights = has_w ? a->in[1].type.dtype : has_b ? a->in[2].type.dtype : x->type.dtype;
  double eps = fl_attr_float(&q->attrs, "eps", 0);
  fl_cuda_writer w = {0};
  fl_cuda_write_pointer(&w, x->data);
  fl_cuda_write_pointer(&w, has_w ? a->in[1].data : NULL);
  fl_cuda_write_pointer(&w, has_b ? a->in[2].data : NULL);
  fl_cuda_write_pointer(&w, out->data);
  fl_cuda_write_pointer(&w, a->fault);
  fl_cuda_write_index(&w, larger(fl_cuda_axes_reach(&rows, &elements), larger(s.n, s.d)) + FL_CUDA_BEYOND);
  fl_text_add(&w.text, "typedef %s T;\ntypedef %s F;\ntypedef %s W;\n", fl_cg_storage(x->type.dtype),
              fl_cg_register(x->type.dtype), fl_cg_storage(weights));
  fl_cuda_write_number(&w, "KIND", row_kind(q->op));
  fl_cuda_write_number(&w, "V", s.width);
  fl_cuda_write_number(&w, "LANES", s.lanes);
  fl_cuda_write_number(&w, "ROWS", s.rows);
  fl_cuda_write_number(&w, "HAS_W", has_w);
  fl_cuda_write_number(&w, "HAS_B", has_b);
  write_lengths(&w, q, &s, &x->type);
  if (row_kind(q->op) >= 2) (dbl ? fl_cuda_write_double : fl_cuda_write_float)(&w, "EPS", eps);
  fl_text_add(&w.text, "%s",
              dbl ? "#define EXP exp\n#define LOG log\n#define SQRT sqrt\n"
                  : "#define EXP __expf\n#define LOG logf\n#define SQRT sqrtf\n");
  fl_cuda_write_function(&w, "row", rows.n, rows.dims, rows.in, rows.out, 0);
  if (s.width == 1) fl_cuda_write_function(&w, "el", elements.n, elements.dims, elements.in, elements.out, 1);
  fl_cuda_write_launch(&w, a, fl_cuda_source_rows, (s.n + s.rows - 1) / s.rows, s.lanes * s.rows, 0);
}
