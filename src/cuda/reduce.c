/* Reductions: which kernel of kernels/reduce.cu, how many blocks share a result, and the axes they walk. */
#include <inttypes.h>
#include <string.h>

#include "cuda/nvrtc.h"
#include "cuda/ops.h"
#include "cuda/sources.h"

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

static void write_head(fl_text *t, const reduction *r, const char *in, const char *computed, const char *out, bool f) {
  fl_text_add(t, "typedef %s T;\ntypedef %s F;\ntypedef %s U;\n", in, computed, out);
  fl_text_add(t,
              "#define KIND %d\n#define N %" PRId64 "\n#define COUNT %" PRId64
              "\n#define THREADS %d\n#define MODE %d\n#define SPLIT %d\n",
              r->kind, r->n, r->count, r->threads, r->mode, r->split);
  fl_text_add(t, "#define LOWEST %s\n#define HIGHEST %s\n", f ? "-INF" : "((i64)0x8000000000000000)",
              f ? "INF" : "((i64)0x7fffffffffffffff)");
  fl_cg_function(t, "row", r->kept.n, r->kept.dims, r->kept.in);
  fl_cg_function(t, "out_row", r->kept.n, r->kept.dims, r->kept.out);
  fl_cg_function(t, "el", r->reduced.n, r->reduced.dims, r->reduced.in);
}

/* The denominator of a mean or variance; of the variance of too few elements 0, which gives NaN. */
static void write_divisor(fl_text *t, const reduction *r, int64_t count, double correction) {
  double n = r->kind == KIND_VAR ? (double)count - correction : (double)count;
  fl_text_add(t, "#define DIVISOR (F)%.17g\n", n > 0 ? n : 0);
}

static int64_t grid_of(const reduction *r) {
  return r->mode == BY_BLOCK    ? r->n * r->split
         : r->mode == BY_COLUMN ? (r->n + COLUMNS - 1) / COLUMNS * r->split
                                : (r->n + r->threads - 1) / r->threads;
}

/* The parts of each result lie one after the other. */
static void join_parts(const fl_run_args *a, const reduction *r, bool f) {
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  const char *computed = register_of(r, x->type.dtype);
  reduction last = {.kept = r->kept, .n = r->n, .count = r->split, .kind = r->kind, .split = 1};
  last.mode = r->n < 4096 ? BY_BLOCK : BY_THREAD;
  last.threads = last.mode == BY_BLOCK ? 32 : 128;
  int64_t stride = r->split;
  for (int i = last.kept.n - 1; i >= 0; stride *= last.kept.dims[i--]) last.kept.in[i] = stride;
  fl_cuda_add_axis(&last.reduced, r->split, 1, 0);
  fl_text t = {0};
  write_head(&t, &last, computed, computed, fl_cg_storage(out->type.dtype), f);
  write_divisor(&t, r, r->count, 0);
  fl_text_add(&t, "#define V 1\n%s", fl_cuda_source_reduce);
  void *pointers[] = {a->scratch, out->data, a->fault};
  fl_cuda_launch(a, &t, grid_of(&last), last.threads, 0, pointers, 3);
}

void fl_cuda_run_reduce(const fl_run_args *a) {
  const fl_cuda_params *q = a->params;
  const fl_tensor *x = &a->in[0], *out = &a->out[0];
  reduction r = shape_of(q, x, out->strides);
  const char *computed = register_of(&r, x->type.dtype);
  bool f = fl_dtype_is_float(x->type.dtype);
  fl_text t = {0};
  write_head(&t, &r, fl_cg_storage(x->type.dtype), computed, r.split > 1 ? computed : fl_cg_storage(out->type.dtype),
             f);
  write_divisor(&t, &r, r.count, fl_attr_float(&q->attrs, "correction", 1));
  fl_text_add(&t, "#define V %d\n%s", width_of(&r, x), fl_cuda_source_reduce);
  void *pointers[] = {x->data, r.split > 1 ? a->scratch : out->data, a->fault};
  fl_cuda_launch(a, &t, grid_of(&r), r.threads, 0, pointers, 3);
  if (r.split > 1) join_parts(a, &r, f);
}
