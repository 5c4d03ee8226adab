/* Matrix products through cuBLASLt: bias, residual and what activations it has in the epilogue, any other activation in a
 * kernel after it. cuBLASLt counts columns first: our result [M, N] is its N x M, our b its first operand. Of the
 * algorithms that it proposes for a problem the fastest is found by timing, and kept for the life of the process. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/graph.h"
#include "cuda/ops.h"
#include "cuda/tactic.h"

enum { /* cublasLt.h, cublas_api.h, library_types.h */
       R_32F = 0,
       R_16F = 2,
       R_16BF = 14,
       COMPUTE_32F = 68,
       COMPUTE_32F_FAST_TF32 = 77,
       DESC_TRANSA = 3,
       DESC_TRANSB = 4,
       DESC_EPILOGUE = 7,
       DESC_BIAS = 8,
       LAYOUT_BATCH_COUNT = 5,
       LAYOUT_BATCH_OFFSET = 6,
       PREF_WORKSPACE = 1,
       PREF_ALIGN_A = 5,
       EPILOGUE_DEFAULT = 1,
       EPILOGUE_RELU = 2,
       EPILOGUE_BIAS = 4,
       EPILOGUE_GELU = 32
};
enum { WORKSPACE = 32 << 20, MAX_ALGOS = 6, ALIGN = 16, BUCKETS = 64 };
/* Rows of a product, as texts of any length have them: once so many numbers of them were timed, the algorithm of another is taken
 * where one is near. */
enum { TIMED_ROWS = 4 };
enum { WHOLE = 8, MIN_RAGGED = 1024 }; /* elements of 16 bits in 16 bytes; columns from which odd widths matter */

static int type_of(fl_dtype t) { return t == FL_F32 ? R_32F : t == FL_F16 ? R_16F : R_16BF; }

/* One of the last two axes must be adjacent, the other not closer than that one is long. */
static bool is_matrix(const fl_type *t, const int64_t *s, bool *out_turned) {
  int64_t rows = t->dims[t->rank - 2], cols = t->dims[t->rank - 1], rs = s[t->rank - 2], cs = s[t->rank - 1];
  *out_turned = false;
  if ((cs == 1 || cols == 1) && (rs >= cols || rows == 1)) return true;
  *out_turned = true;
  return (rs == 1 || rows == 1) && cs >= rows;
}

/* Many columns of 16 bits, no multiple of 16 bytes, from weights whose rows are: matrix units could neither load nor store
 * whole vectors if rows of the result lay one after another. */
static bool is_ragged(const fl_problem *p) {
  const fl_type *out = &p->out[0], *w = &p->in[1].type;
  bool turned, trans_b = fl_attr_int(p->attrs, "trans_b", 0);
  int64_t width = out->dims[out->rank - 1];
  return fl_dtype_size(out->dtype) == 2 && width % WHOLE && width >= MIN_RAGGED && w->rank == 2 &&
         is_matrix(w, p->in[1].strides, &turned) && trans_b != turned && (p->n_in < 4 || p->absent[3]);
}

static void pad_rows(const fl_type *t, int64_t *strides) {
  int64_t row = (t->dims[t->rank - 1] + WHOLE - 1) / WHOLE * WHOLE;
  for (int d = t->rank - 2; d >= 0; d--) {
    strides[d] = row;
    row *= t->dims[d];
  }
}

const char *fl_cuda_plan_cublaslt(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  bool turned;
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  fl_dtype t = p->out[0].dtype;
  if (t != FL_F32 && t != FL_F16 && t != FL_BF16) return "cuBLASLt is used for f32, f16 and bf16";
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && p->in[i].type.dtype != t) return "operands of different types";
  for (int i = 0; i < 2; i++) {
    if (p->in[i].type.rank < 2) return "operands need two axes";
    if (fl_type_numel(&p->in[i].type) == 0) return "nothing to multiply";
    if (!is_matrix(&p->in[i].type, p->in[i].strides, &turned)) plan->in_layout[i] = FL_LAYOUT_CONTIGUOUS;
  }
  plan->in_layout[2] = FL_LAYOUT_CONTIGUOUS;
  if (p->n_in > 3 && !p->absent[3]) {
    if (!fl_dims_equal(&p->in[3].type, &p->out[0])) return "the residual broadcasts";
    plan->in_layout[3] = FL_LAYOUT_CONTIGUOUS;
    plan->in_place = 3;
  }
  if (is_ragged(p)) pad_rows(&p->out[0], plan->out_strides[0]);
  plan->strided_out = true;
  plan->wants_spare = true;
  return NULL;
}

typedef struct side { /* an operand as rows x cols at row stride `ld`; `turned`: as cols x rows */
  char *data;
  int64_t ld, batch[FL_MAX_RANK]; /* strides of the batch axes of the result */
  bool turned;
} side;

static side side_of(const fl_tensor *x, const fl_type *out) {
  side s = {.data = x->data};
  int r = x->type.rank;
  int64_t rows = x->type.dims[r - 2], cols = x->type.dims[r - 1];
  is_matrix(&x->type, x->strides, &s.turned);
  s.ld = s.turned ? x->strides[r - 1] : x->strides[r - 2];
  if (s.ld < (s.turned ? rows : cols)) s.ld = s.turned ? rows : cols; /* a single row: any stride */
  for (int d = 0; d < r - 2; d++)
    if (x->type.dims[d] != 1) s.batch[out->rank - r + d] = x->strides[d];
  return s;
}

typedef struct product {
  const fl_run_args *a;
  const fl_cuda_params *q;
  int64_t m, n, k, count; /* count: of the innermost batch axis */
  int64_t dims[FL_MAX_RANK];
  int n_batch;
  side x[2], residual, out;
  bool trans_b, has_residual;
  const void *bias;
  int epilogue;
} product;

/* Batch axes that lie one after another in all operands become one; one that only a has becomes more rows of a. */
static void merge_batch(product *p) {
  side *s[] = {&p->x[0], &p->x[1], &p->out, &p->residual};
  int n = 0;
  for (int i = 0; i < p->n_batch; i++) {
    if (p->dims[i] == 1) continue;
    bool joins = n > 0;
    for (int k = 0; k < 4; k++) joins = joins && s[k]->batch[n - 1] == s[k]->batch[i] * p->dims[i];
    if (!joins) n++;
    for (int k = 0; k < 4; k++) s[k]->batch[n - 1] = s[k]->batch[i];
    p->dims[n - 1] = joins ? p->dims[n - 1] * p->dims[i] : p->dims[i];
  }
  p->n_batch = n;
  if (n == 1 && p->m == 1 && !p->x[0].turned) { /* a row each: how far apart they are is their stride */
    p->x[0].ld = p->x[0].batch[0] ? p->x[0].batch[0] : p->x[0].ld;
    p->out.ld = p->out.batch[0];
    if (p->has_residual) p->residual.ld = p->residual.batch[0];
  }
  if (n != 1 || p->x[1].batch[0] || p->x[0].turned || p->x[0].batch[0] != p->m * p->x[0].ld ||
      p->out.batch[0] != p->m * p->out.ld || (p->has_residual && p->residual.batch[0] != p->m * p->residual.ld))
    return;
  p->m *= p->dims[0];
  p->n_batch = 0;
}

static fl_status lt(int r, const char *what) {
  return r ? fl_fail(FL_INTERNAL, "CUDA: cuBLASLt: %s: status %d", what, r) : NULL;
}

typedef struct objects {
  fl_lt_desc desc;
  fl_lt_layout layout[4]; /* cuBLASLt's a (our b), b (our a), c (residual), d */
  fl_lt_pref pref;
} objects;

/* One product of the innermost batch: where its four operands lie, in cuBLASLt's order. */
typedef struct call {
  const product *p;
  const side *sides[4];
  const char *data[4];
  int count;
  int64_t strides[4]; /* of the batch */
} call;

static fl_status make_layout(const fl_cuda_api *api, int type, int64_t rows, int64_t cols, const side *s, int count,
                             int64_t stride, fl_lt_layout *out) {
  FL_TRY(lt(api->cublasLtMatrixLayoutCreate(out, type, (uint64_t)(s->turned ? cols : rows),
                                            (uint64_t)(s->turned ? rows : cols), s->ld),
            "layout"));
  if (count == 1) return NULL;
  FL_TRY(lt(api->cublasLtMatrixLayoutSetAttribute(*out, LAYOUT_BATCH_COUNT, &count, sizeof count), "batch"));
  return lt(api->cublasLtMatrixLayoutSetAttribute(*out, LAYOUT_BATCH_OFFSET, &stride, sizeof stride), "batch");
}

static uint32_t alignment_of(const void *p) {
  uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
  return low == 0 || low > ALIGN ? ALIGN : (uint32_t)low;
}

static fl_status set_bias(const fl_cuda_api *api, const objects *o, const void *bias) {
  return lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_BIAS, &bias, sizeof bias), "bias");
}

static fl_status set_preferences(const call *c, const fl_cuda_api *api, objects *o) {
  uint64_t workspace = WORKSPACE;
  FL_TRY(lt(api->cublasLtMatmulPreferenceCreate(&o->pref), "preference"));
  FL_TRY(lt(api->cublasLtMatmulPreferenceSetAttribute(o->pref, PREF_WORKSPACE, &workspace, sizeof workspace),
            "workspace"));
  for (int i = 0; i < 4; i++) {
    uint32_t bytes = alignment_of(c->data[i]), bias = alignment_of(c->p->bias);
    if (i == 3 && bias < bytes) bytes = bias; /* the epilogue reads the bias as it writes the result */
    FL_TRY(lt(api->cublasLtMatmulPreferenceSetAttribute(o->pref, PREF_ALIGN_A + i, &bytes, sizeof bytes), "alignment"));
  }
  return NULL;
}

/* Our b as stored is [K, N], or [N, K] with trans_b; columns first that is N x K, or K x N to be transposed. */
static int op_a(const product *p) { return p->trans_b != p->x[1].turned; }
static int op_b(const product *p) { return p->x[0].turned; }

static int compute_of(const product *p) {
  return p->q->tf32 && p->a->out[0].type.dtype == FL_F32 ? COMPUTE_32F_FAST_TF32 : COMPUTE_32F;
}

static fl_status set_up(const call *c, const fl_cuda_api *api, objects *o) {
  const product *p = c->p;
  int type = type_of(p->a->out[0].type.dtype), a = op_a(p), b = op_b(p);
  int64_t rows[4] = {p->trans_b ? p->k : p->n, p->k, p->n, p->n},
          cols[4] = {p->trans_b ? p->n : p->k, p->m, p->m, p->m};
  FL_TRY(lt(api->cublasLtMatmulDescCreate(&o->desc, compute_of(p), R_32F), "description"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_TRANSA, &a, sizeof a), "transpose"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_TRANSB, &b, sizeof b), "transpose"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_EPILOGUE, &p->epilogue, sizeof p->epilogue), "epilogue"));
  if (p->bias) FL_TRY(set_bias(api, o, p->bias));
  for (int i = 0; i < 4; i++)
    FL_TRY(make_layout(api, type, rows[i], cols[i], c->sides[i], c->count, c->strides[i], &o->layout[i]));
  return NULL;
}

static void tear_down(const fl_cuda_api *api, const objects *o) {
  for (int i = 0; i < 4; i++)
    if (o->layout[i]) api->cublasLtMatrixLayoutDestroy(o->layout[i]);
  if (o->pref) api->cublasLtMatmulPreferenceDestroy(o->pref);
  if (o->desc) api->cublasLtMatmulDescDestroy(o->desc);
}

static int multiply(const call *c, const fl_cuda_device *d, const objects *o, const fl_lt_algo *algo,
                    const void *const *data, void *out, void *workspace, size_t workspace_bytes, fl_cu_stream stream) {
  float one = 1, beta = c->p->has_residual;
  return d->api->cublasLtMatmul(d->lt, o->desc, &one, data[0], o->layout[0], data[1], o->layout[1], &beta, data[2],
                                o->layout[2], out, o->layout[3], algo, workspace, workspace_bytes, stream);
}

/* --- the choice of an algorithm --- */

typedef struct chosen {
  struct chosen *next;
  const fl_cuda_device *device;
  char *key, *family; /* family: the key of all problems that differ in m alone; NULL where there is no time of it */
  int64_t m;
  bool found;
  fl_lt_algo algo;
  size_t workspace;
  float us; /* 0: unknown */
} chosen;

static struct {
  pthread_mutex_t lock;
  chosen *buckets[BUCKETS];
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* m: the product's; 0: of its family. */
static void write_key(fl_text *t, const call *c, const fl_cuda_device *d, int64_t m) {
  const product *p = c->p;
  fl_text_add(t,
              "matmul lt %zu type %d compute %d m %" PRId64 " n %" PRId64 " k %" PRId64
              " ops %d%d epilogue %d bias %d residual %d",
              d->api->cublaslt_version, (int)p->a->out[0].type.dtype, compute_of(p), m, p->n, p->k, op_a(p), op_b(p),
              p->epilogue, p->bias != NULL, p->has_residual);
  if (alignment_of(p->bias) < ALIGN) fl_text_add(t, " bias align %u", alignment_of(p->bias));
  fl_text_add(t, " cold %d%d batch %d", p->q->constant[0], p->q->constant[1], c->count);
  for (int i = 0; i < 4; i++) {
    fl_text_add(t, " ld %" PRId64 " align %u", c->sides[i]->ld, alignment_of(c->data[i]));
    if (c->count > 1) fl_text_add(t, " stride %" PRId64, c->strides[i]);
  }
}

static chosen **bucket_of(const char *key) {
  uint64_t h = 0xcbf29ce484222325;
  for (; *key; key++) h = (h ^ (unsigned char)*key) * 0x100000001b3;
  return &known.buckets[h % BUCKETS];
}

static const chosen *find_chosen(const fl_cuda_device *d, const char *key) {
  pthread_mutex_lock(&known.lock);
  const chosen *c = *bucket_of(key);
  while (c && (c->device != d || strcmp(c->key, key))) c = c->next;
  pthread_mutex_unlock(&known.lock);
  return c;
}

/* Where products of `family` of several numbers of rows were timed, the one whose number is nearest to m and within a quarter of
 * it. NULL: there is none. */
static const chosen *nearest(const fl_cuda_device *d, const char *family, int64_t m) {
  const chosen *best = NULL;
  int timed = 0;
  pthread_mutex_lock(&known.lock);
  for (int i = 0; i < BUCKETS; i++)
    for (const chosen *c = known.buckets[i]; c; c = c->next) {
      if (c->device != d || !c->family || strcmp(c->family, family)) continue;
      timed++;
      if (4 * m > 5 * c->m || 4 * c->m > 5 * m) continue;
      if (!best || llabs(c->m - m) < llabs(best->m - m)) best = c;
    }
  pthread_mutex_unlock(&known.lock);
  return timed < TIMED_ROWS ? NULL : best;
}

/* Takes key and family. Two threads may keep the same problem twice: the later one is found. */
static const chosen *keep_chosen(const fl_cuda_device *d, char *key, char *family, int64_t m,
                                 const fl_lt_heuristic *best, float us) {
  chosen *c = fl_calloc(1, sizeof *c), **bucket = bucket_of(key);
  if (!c) {
    fl_free(key);
    fl_free(family);
    return NULL;
  }
  *c = (chosen){.device = d, .key = key, .family = family, .m = m, .found = best != NULL, .us = us};
  if (best) c->algo = best->algo, c->workspace = best->workspace_bytes;
  pthread_mutex_lock(&known.lock);
  c->next = *bucket;
  *bucket = c;
  pthread_mutex_unlock(&known.lock);
  return c;
}

typedef struct contest {
  const call *c;
  const fl_cuda_device *d;
  const objects *o;
  fl_lt_heuristic found[MAX_ALGOS];
} contest;

static int launch_candidate(void *arg, int i, void *const *buffers, fl_cu_stream stream) {
  const contest *t = arg;
  if (buffers[4]) {
    fl_status s = set_bias(t->d->api, t->o, buffers[4]);
    if (s) {
      fl_status_free(s);
      return 1;
    }
  }
  const void *data[3] = {buffers[0], buffers[1], t->c->p->has_residual ? buffers[2] : buffers[3]};
  return multiply(t->c, t->d, t->o, &t->found[i].algo, data, buffers[3], buffers[5], WORKSPACE, stream);
}

static size_t extent(const call *c, int i, int64_t rows, int64_t cols) {
  const side *s = c->sides[i];
  int64_t last = s->turned ? (rows - 1) * s->ld + cols : (cols - 1) * s->ld + rows;
  return (size_t)(last + (c->count - 1) * (c->strides[i] > 0 ? c->strides[i] : 0)) *
         fl_dtype_size(c->p->a->out[0].type.dtype);
}

/* The algorithm of a product of about as many rows, where it can compute this one. */
static const fl_lt_heuristic *as_before(contest *t, const char *family, float *out_us) {
  const chosen *c = t->c->count == 1 ? nearest(t->d, family, t->c->p->m) : NULL;
  fl_lt_heuristic *h = &t->found[0];
  if (!c || t->d->api->cublasLtMatmulAlgoCheck(t->d->lt, t->o->desc, t->o->layout[0], t->o->layout[1], t->o->layout[2],
                                               t->o->layout[3], &c->algo, h))
    return NULL;
  if (h->status || h->workspace_bytes > WORKSPACE) return NULL;
  h->algo = c->algo;
  *out_us = c->us * (float)t->c->p->m / (float)c->m;
  return h;
}

/* NULL when there is no algorithm. *out_timed: by timing this very problem. */
static const fl_lt_heuristic *contend(contest *t, const char *key, const char *family, float *out_us, bool *out_timed) {
  const product *p = t->c->p;
  int n = 0;
  if (t->d->api->cublasLtMatmulAlgoGetHeuristic(t->d->lt, t->o->desc, t->o->layout[0], t->o->layout[1], t->o->layout[2],
                                                t->o->layout[3], t->o->pref, MAX_ALGOS, t->found, &n))
    return NULL;
  fl_cuda_tactic tactic = {.key = key, .n = n, .launch = launch_candidate, .arg = t};
  tactic.buffers[0].bytes = extent(t->c, 0, p->trans_b ? p->k : p->n, p->trans_b ? p->n : p->k);
  tactic.buffers[0].cold = p->q->constant[1];
  tactic.buffers[1].bytes = extent(t->c, 1, p->k, p->m);
  tactic.buffers[1].cold = p->q->constant[0];
  tactic.buffers[2].bytes = p->has_residual ? extent(t->c, 2, p->n, p->m) : 0;
  tactic.buffers[3].bytes = extent(t->c, 3, p->n, p->m);
  tactic.buffers[4].bytes = p->bias ? (size_t)p->n * fl_dtype_size(p->a->out[0].type.dtype) : 0;
  tactic.buffers[5].bytes = WORKSPACE;
  int best = -1;
  if (!fl_cuda_tactic_known(t->d, &tactic, &best)) {
    const fl_lt_heuristic likely = t->found[0], *h = as_before(t, family, out_us);
    if (h) return h;
    t->found[0] = likely;
  }
  best = n ? fl_cuda_tactic_choose(t->d, &tactic, out_us) : -1;
  *out_timed = best >= 0 && *out_us > 0;
  return best < 0 ? NULL : &t->found[best];
}

static fl_status choose(const call *c, const fl_cuda_device *d, const chosen **out) {
  fl_text key = {0}, family = {0};
  write_key(&key, c, d, c->p->m);
  if (key.failed) return fl_oom();
  *out = find_chosen(d, key.data);
  if (*out) {
    fl_text_free(&key);
    return NULL;
  }
  write_key(&family, c, d, 0);
  objects o = {0};
  contest t = {.c = c, .d = d, .o = &o};
  fl_status s = family.failed ? fl_oom() : set_up(c, d->api, &o);
  if (!s) s = set_preferences(c, d->api, &o);
  if (!s) {
    float us = 0;
    bool timed = false;
    const fl_lt_heuristic *best = contend(&t, key.data, family.data, &us, &timed);
    if (!timed) fl_text_free(&family);
    *out = keep_chosen(d, key.data, family.data, c->p->m, best, us);
    if (!*out) s = fl_oom();
  } else {
    fl_text_free(&key);
    fl_text_free(&family);
  }
  tear_down(d->api, &o);
  return s;
}

/* --- running --- */

static call call_at(const product *p, const int64_t *at) {
  call c = {.p = p, .sides = {&p->x[1], &p->x[0], p->has_residual ? &p->residual : &p->out, &p->out}};
  size_t size = fl_dtype_size(p->a->out[0].type.dtype);
  c.count = p->n_batch ? (int)p->dims[p->n_batch - 1] : 1;
  for (int i = 0; i < 4; i++) {
    c.data[i] = c.sides[i]->data;
    for (int d = 0; d + 1 < p->n_batch; d++) c.data[i] += (size_t)(at[d] * c.sides[i]->batch[d]) * size;
    c.strides[i] = p->n_batch ? c.sides[i]->batch[p->n_batch - 1] : 0;
  }
  return c;
}

static fl_status run_one(const call *c, fl_cuda_queue *q, bool *out_found) {
  objects o = {0};
  const chosen *best;
  FL_TRY(choose(c, q->device, &best));
  *out_found = best->found;
  if (!best->found) return NULL;
  void *workspace = fl_cuda_workspace(c->p->a, best->workspace);
  if (q->preparing || q->failed) return NULL;
  const void *data[3] = {c->data[0], c->data[1], c->data[2]};
  fl_status s = set_up(c, q->device->api, &o);
  if (!s)
    s = lt(multiply(c, q->device, &o, &best->algo, data, (void *)(uintptr_t)c->data[3], workspace, best->workspace,
                    q->stream),
           "product");
  tear_down(q->device->api, &o);
  return s;
}

static product describe(const fl_run_args *a) {
  const fl_cuda_params *q = a->params;
  const fl_tensor *out = &a->out[0];
  int r = out->type.rank;
  product p = {.a = a, .q = q, .m = out->type.dims[r - 2], .n = out->type.dims[r - 1], .n_batch = r - 2};
  p.k = a->in[0].type.dims[a->in[0].type.rank - 1];
  p.trans_b = fl_attr_int(&q->attrs, "trans_b", 0);
  p.has_residual = q->n_in > 3 && !q->absent[3];
  p.bias = q->n_in > 2 && !q->absent[2] ? a->in[2].data : NULL;
  memcpy(p.dims, out->type.dims, sizeof p.dims);
  p.x[0] = side_of(&a->in[0], &out->type);
  p.x[1] = side_of(&a->in[1], &out->type);
  p.out = side_of(out, &out->type);
  p.residual = p.has_residual ? side_of(&a->in[3], &out->type) : p.out;
  merge_batch(&p);
  return p;
}

/* In the epilogue: relu, and gelu_tanh of 16-bit floats. */
static bool is_fused(fl_act act, fl_dtype t) {
  return act == FL_ACT_NONE || act == FL_ACT_RELU || (act == FL_ACT_GELU_TANH && t != FL_F32);
}

static int epilogue_of(fl_act act, bool bias) {
  int e = act == FL_ACT_RELU ? EPILOGUE_RELU : act == FL_ACT_GELU_TANH ? EPILOGUE_GELU : 0;
  return bias ? e | EPILOGUE_BIAS : e ? e : EPILOGUE_DEFAULT;
}

/* All products of the outer batch axes. */
static void run_all(const product *p, fl_cuda_queue *queue, bool *out_found) {
  int64_t at[FL_MAX_RANK] = {0}, outer = 1;
  for (int d = 0; d + 1 < p->n_batch; d++) outer *= p->dims[d];
  for (int64_t i = 0; i < outer && !queue->failed && *out_found; i++) {
    call c = call_at(p, at);
    fl_cuda_note(queue, run_one(&c, queue, out_found));
    for (int d = p->n_batch - 2; d >= 0 && ++at[d] == p->dims[d]; d--) at[d] = 0;
  }
}

/* --- odd widths ---
 * As many columns as fill whole vectors, and the few left by themselves, where that is the faster way. */

static bool has_ragged_end(const product *p) {
  return p->n % WHOLE && p->n >= MIN_RAGGED && !p->n_batch && !p->has_residual && p->out.ld % WHOLE == 0 &&
         p->trans_b != p->x[1].turned && fl_dtype_size(p->a->out[0].type.dtype) == 2;
}

static product columns(const product *p, int64_t first, int64_t n) {
  product c = *p;
  c.n = n;
  c.x[1].data += 2 * first * p->x[1].ld;
  c.out.data += 2 * first;
  c.residual = c.out;
  if (p->bias) c.bias = (const char *)p->bias + 2 * first;
  return c;
}

static fl_status chosen_for(const product *p, const fl_cuda_device *d, const chosen **out) {
  call c = call_at(p, (int64_t[FL_MAX_RANK]){0});
  return choose(&c, d, out);
}

static bool is_better_split(const product *whole, const product parts[2], fl_cuda_queue *q) {
  const chosen *one = NULL, *two[2] = {NULL};
  fl_status s = chosen_for(whole, q->device, &one);
  for (int i = 0; i < 2 && !s; i++) s = chosen_for(&parts[i], q->device, &two[i]);
  bool ok = !s && two[0]->found && two[1]->found;
  fl_cuda_note(q, s);
  return ok && (!one->found || one->us <= 0 || two[0]->us + two[1]->us < one->us);
}

static void run_product(const product *p, fl_cuda_queue *queue, bool *out_found) {
  if (has_ragged_end(p)) {
    int64_t most = p->n / WHOLE * WHOLE;
    const product parts[2] = {columns(p, 0, most), columns(p, most, p->n - most)};
    if (is_better_split(p, parts, queue)) {
      for (int i = 0; i < 2; i++) run_all(&parts[i], queue, out_found);
      return;
    }
  }
  run_all(p, queue, out_found);
}

void fl_cuda_run_cublaslt(const fl_run_args *a) {
  fl_cuda_queue *queue = fl_cuda_queue_of(a);
  product p = describe(a);
  fl_act act = (fl_act)fl_attr_int(&p.q->attrs, "act", FL_ACT_NONE);
  bool fused = is_fused(act, a->out[0].type.dtype), found = true;
  p.epilogue = epilogue_of(fused ? act : FL_ACT_NONE, p.bias != NULL);
  run_product(&p, queue, &found);
  if (!found)
    fl_cuda_run_map(a);
  else if (!fused)
    fl_cuda_act(a, act, fl_attr_float(&p.q->attrs, "act_lo", 0), fl_attr_float(&p.q->attrs, "act_hi", 0));
}
