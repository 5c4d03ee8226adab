/* Reductions: which kernel of kernels/reduce.cu, how many blocks share a result, and the axes they walk. */
#include <string.h>

#include "cuda/sources.h"
#include "cuda/writer.h"

void fl_cuda_add_axis(fl_cuda_axes *a, int64_t dim, int64_t in, int64_t out) {
  a->dims[a->n] = dim;
  a->in[a->n] = in;
  a->out[a->n++] = out;
}

int64_t fl_cuda_axes_count(const fl_cuda_axes *a) {
  int64_t n = 1;
  for (int i = 0; i < a->n; i++) n *= a->dims[i];
  return n;
}

bool fl_cuda_is_adjacent(const fl_cuda_axes *a, const int64_t *strides) {
  int64_t step = 1;
  for (int i = a->n - 1; i >= 0; i--) {
    if (a->dims[i] != 1 && strides[i] != step) return false;
    step *= a->dims[i];
  }
  return true;
}

static const char *const names[] = {"sum", "mean", "prod", "amax", "amin", "any", "all", "var", "argmax", "argmin"};
enum { KIND_MEAN = 1, KIND_ANY = 5, KIND_ALL, KIND_VAR, BY_THREAD = 0, BY_BLOCK, BY_COLUMN };
enum { ENOUGH_BLOCKS = 264, MAX_SPLIT = 256, COLUMNS = 32, LINES = 8 };

typedef struct reduction {
  fl_cuda_axes kept, reduced;
  int64_t n, count;
  int kind, mode, threads, split;
} reduction;

static int kind_of(fl_op op) {
  int kind = 0;
  while (strcmp(names[kind], fl_op_get(op)->name)) kind++;
  return kind;
}

static void find_axes(const fl_cuda_params *q, const fl_tensor *x, const int64_t *out, reduction *r) {
  int n, o = 0;
  const int64_t *list = fl_attr_list(&q->attrs, "axes", &n);
  bool keep = fl_attr_int(&q->attrs, "keepdim", 0);
  for (int d = 0; d < x->type.rank; d++) {
    bool is_reduced = false;
    for (int i = 0; i < n; i++) is_reduced = is_reduced || list[i] == d;
    if (is_reduced) {
      fl_cuda_add_axis(&r->reduced, x->type.dims[d], x->strides[d], 0);
      o += keep;
    } else
      fl_cuda_add_axis(&r->kept, x->type.dims[d], x->strides[d], out[o++]);
  }
}

/* Results that are neighbours in the input come last among the kept axes. */
static bool find_column(fl_cuda_axes *kept) {
  fl_cuda_axes sorted = {0};
  int at = -1;
  for (int i = 0; i < kept->n; i++)
    if (kept->in[i] == 1 && kept->dims[i] >= COLUMNS / 2) at = i;
  if (at < 0) return false;
  for (int i = 0; i < kept->n; i++)
    if (i != at) fl_cuda_add_axis(&sorted, kept->dims[i], kept->in[i], kept->out[i]);
  fl_cuda_add_axis(&sorted, kept->dims[at], kept->in[at], kept->out[at]);
  *kept = sorted;
  return true;
}

/* Neighbouring threads take results that lie close together in the input. */
static void sort_axes(fl_cuda_axes *kept) {
  fl_cuda_axes sorted = {.n = kept->n};
  for (int i = 0; i < kept->n; i++) {
    int at = i;
    for (; at > 0 && sorted.in[at - 1] < kept->in[i]; at--) {
      sorted.dims[at] = sorted.dims[at - 1];
      sorted.in[at] = sorted.in[at - 1];
      sorted.out[at] = sorted.out[at - 1];
    }
    sorted.dims[at] = kept->dims[i];
    sorted.in[at] = kept->in[i];
    sorted.out[at] = kept->out[i];
  }
  *kept = sorted;
}

/* Several blocks for a result where there are few results of many elements. */
static int split_of(int64_t blocks, int64_t steps) {
  int64_t split = 1;
  while (split < MAX_SPLIT && blocks * split < ENOUGH_BLOCKS && steps >= 8 * split) split *= 2;
  return (int)split;
}

/* By types and strides alone: the plan and the run see the same. */
static reduction shape_of(const fl_cuda_params *q, const fl_tensor *x, const int64_t *out) {
  reduction r = {.kind = kind_of(q->op), .split = 1, .mode = BY_THREAD, .threads = 128};
  find_axes(q, x, out, &r);
  r.n = fl_cuda_axes_count(&r.kept);
  r.count = fl_cuda_axes_count(&r.reduced);
  bool inner = r.reduced.in[r.reduced.n - 1] == 1;
  if (r.kind < KIND_VAR && !inner && r.count >= LINES && find_column(&r.kept)) {
    r.mode = BY_COLUMN;
    r.threads = COLUMNS * LINES;
    r.split = split_of((r.n + COLUMNS - 1) / COLUMNS, r.count / LINES);
  } else if (r.count >= 32 && (inner || r.n < 4096)) {
    r.mode = BY_BLOCK;
    r.threads = r.count >= 1024 ? 256 : r.count >= 128 ? 128 : 32;
    if (r.kind < KIND_VAR) r.split = split_of(r.n, r.count / r.threads / 4);
  } else
    sort_axes(&r.kept);
  return r;
}

/* The result's axes lie in the order in which the input's do. */
static void follow(const fl_problem *p, const fl_cuda_params *q, int64_t *out) {
  const fl_tensor *x = &p->in[0];
  int64_t places[FL_MAX_RANK], step = 1;
  reduction r = {.kind = kind_of(q->op)};
  for (int d = 0; d < x->type.rank; d++)
    if (x->strides[d] <= 0 && x->type.dims[d] != 1) return;
  for (int d = 0; d < p->out[0].rank; d++) places[d] = d; /* in the place of strides: which axis it is */
  find_axes(q, x, places, &r);
  sort_axes(&r.kept);
  for (int i = r.kept.n - 1; i >= 0; step *= r.kept.dims[i--]) out[r.kept.out[i]] = step;
}

const char *fl_cuda_plan_reduce(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  if (fl_type_numel(&p->in[0].type) == 0) return "nothing to reduce";
  follow(p, plan->params, plan->out_strides[0]);
  reduction r = shape_of(plan->params, &p->in[0], plan->out_strides[0]);
  plan->scratch_bytes = r.split > 1 ? (size_t)(r.n * r.split) * sizeof(double) : 0;
  plan->strided_out = true;
  return NULL;
}

static int width_of(const reduction *r, const fl_tensor *x) {
  int64_t w = 16 / (int64_t)fl_dtype_size(x->type.dtype);
  if (r->mode != BY_BLOCK || r->kind >= KIND_VAR || !fl_cuda_is_adjacent(&r->reduced, r->reduced.in)) return 1;
  while (w > 1 && (r->count % w || (uintptr_t)x->data % ((size_t)w * fl_dtype_size(x->type.dtype)))) w /= 2;
  for (int i = 0; i < r->kept.n; i++)
    while (r->kept.dims[i] != 1 && w > 1 && r->kept.in[i] % w) w /= 2;
  return (int)w;
}

/* What a result is computed in. */
static const char *register_of(const reduction *r, fl_dtype t) {
  return r->kind == KIND_ANY || r->kind == KIND_ALL ? "int" : fl_cg_register(t);
}

/* What both kernels begin with; in and out are types, x and y memory of them, v neighbours a chunk. */
static void write_head(fl_cuda_writer *w, const fl_run_args *a, const reduction *r, const char *in, const void *x,
                       const char *out, const void *y, int v) {
  const fl_dtype t = a->in[0].type.dtype;
  int64_t most = fl_cuda_axes_reach(&r->kept, &r->reduced);
  if (r->n * r->split > most) most = r->n * r->split;
  if (r->count > most) most = r->count;
  fl_cuda_write_pointer(w, x);
  fl_cuda_write_pointer(w, y);
  fl_cuda_write_pointer(w, a->fault);
  fl_cuda_write_index(w, most + MAX_SPLIT * 1024);
  fl_text_add(&w->text, "typedef %s T;\ntypedef %s F;\ntypedef %s R;\n", in, register_of(r, t), out);
  fl_cuda_write_number(w, "KIND", r->kind);
  fl_cuda_write_number(w, "THREADS", r->threads);
  fl_cuda_write_number(w, "MODE", r->mode);
  fl_cuda_write_number(w, "SPLIT", r->split);
  fl_cuda_write_number(w, "V", v);
  fl_cuda_write_size(w, "N", r->n);
  bool few = r->mode == BY_THREAD && r->count <= 32; /* unrolled: all are on their way at once */
  (few ? fl_cuda_write_number : fl_cuda_write_size)(w, "COUNT", r->count);
  (few ? fl_cuda_write_number : fl_cuda_write_size)(w, "CHUNKS", r->count / v);
  bool f = fl_dtype_is_float(t);
  fl_text_add(&w->text, "#define LOWEST %s\n#define HIGHEST %s\n", f ? "-INF" : "((i64)0x8000000000000000)",
              f ? "INF" : "((i64)0x7fffffffffffffff)");
  fl_cuda_write_function(w, "row", r->kept.n, r->kept.dims, r->kept.in, r->kept.out, r->mode == BY_COLUMN);
  if (v == 1) fl_cuda_write_function(w, "el", r->reduced.n, r->reduced.dims, r->reduced.in, r->reduced.out, 1);
}

/* The denominator of a mean or variance; of the variance of too few elements 0, which gives NaN. */
static void write_divisor(fl_cuda_writer *w, const reduction *r, fl_dtype t, int64_t count, double correction) {
  double n = r->kind == KIND_VAR ? (double)count - correction : (double)count;
  if (r->kind == KIND_MEAN || r->kind == KIND_VAR)
    (t == FL_F64 ? fl_cuda_write_double : fl_cuda_write_float)(w, "DIVISOR", n > 0 ? n : 0);
}

static int64_t grid_of(const reduction *r) {
  return r->mode == BY_BLOCK    ? r->n * r->split
         : r->mode == BY_COLUMN ? (r->n + COLUMNS - 1) / COLUMNS * r->split
                                : (r->n + r->threads - 1) / r->threads;
}

/* The parts of each result lie one after the other. */
static void join_parts(const fl_run_args *a, const reduction *r) {
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  const char *computed = register_of(r, x->type.dtype);
  reduction last = {.kept = r->kept, .n = r->n, .count = r->split, .kind = r->kind, .split = 1};
  last.mode = r->n < 4096 ? BY_BLOCK : BY_THREAD;
  last.threads = last.mode == BY_BLOCK ? 32 : 128;
  int64_t stride = r->split;
  for (int i = last.kept.n - 1; i >= 0; stride *= last.kept.dims[i--]) last.kept.in[i] = stride;
  fl_cuda_add_axis(&last.reduced, r->split, 1, 0);
  fl_cuda_writer w = {0};
  write_head(&w, a, &last, computed, a->scratch, fl_cg_storage(out->type.dtype), out->data, 1);
  write_divisor(&w, r, x->type.dtype, r->count, 0);
  fl_cuda_write_launch(&w, a, fl_cuda_source_reduce, grid_of(&last), last.threads, 0);
}

void fl_cuda_run_reduce(const fl_run_args *a) {
  const fl_cuda_params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  reduction r = shape_of(q, x, out->strides);
  bool split = r.split > 1;
  const char *type = split ? register_of(&r, x->type.dtype) : fl_cg_storage(out->type.dtype);
  fl_cuda_writer w = {0};
  write_head(&w, a, &r, fl_cg_storage(x->type.dtype), x->data, type, split ? a->scratch : out->data, width_of(&r, x));
  write_divisor(&w, &r, x->type.dtype, r.count, fl_attr_float(&q->attrs, "correction", 1));
  fl_cuda_write_launch(&w, a, fl_cuda_source_reduce, grid_of(&r), r.threads, 0);
  if (split) join_parts(a, &r);
}
