/* Matrix products through cuBLASLt: bias, residual and what activations it has in the epilogue, any other activation in a
 * kernel after it. cuBLASLt counts columns first: our result [M, N] is its N x M, our b its first operand. */
#include <string.h>

#include "cuda/ops.h"

enum { /* cublasLt.h, cublas_api.h, library_types.h */
       R_32F = 0,
       R_16F = 2,
       R_16BF = 14,
       COMPUTE_32F = 68,
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
enum { WORKSPACE = 32 << 20 };

static int type_of(fl_dtype t) { return t == FL_F32 ? R_32F : t == FL_F16 ? R_16F : R_16BF; }

/* One of the last two axes must be adjacent, the other not closer than that one is long. */
static bool is_matrix(const fl_type *t, const int64_t *s, bool *out_turned) {
  int64_t rows = t->dims[t->rank - 2], cols = t->dims[t->rank - 1], rs = s[t->rank - 2], cs = s[t->rank - 1];
  *out_turned = false;
  if ((cs == 1 || cols == 1) && (rs >= cols || rows == 1)) return true;
  *out_turned = true;
  return (rs == 1 || rows == 1) && cs >= rows;
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
  plan->scratch_bytes = WORKSPACE;
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
  return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

static fl_status set_up(const product *p, const fl_cuda_api *api, objects *o, const char *const *data, int count) {
  int type = type_of(p->a->out[0].type.dtype), last = p->n_batch - 1;
  /* Our b as stored is [K, N], or [N, K] with trans_b; columns first that is N x K, or K x N to be transposed. */
  int op_a = p->trans_b != p->x[1].turned, op_b = p->x[0].turned;
  int64_t b_rows = p->trans_b ? p->k : p->n, b_cols = p->trans_b ? p->n : p->k;
  FL_TRY(lt(api->cublasLtMatmulDescCreate(&o->desc, COMPUTE_32F, R_32F), "description"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_TRANSA, &op_a, sizeof op_a), "transpose"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_TRANSB, &op_b, sizeof op_b), "transpose"));
  FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_EPILOGUE, &p->epilogue, sizeof p->epilogue), "epilogue"));
  if (p->bias) FL_TRY(lt(api->cublasLtMatmulDescSetAttribute(o->desc, DESC_BIAS, &p->bias, sizeof p->bias), "bias"));
  const side *c = p->has_residual ? &p->residual : &p->out;
  FL_TRY(make_layout(api, type, b_rows, b_cols, &p->x[1], count, last < 0 ? 0 : p->x[1].batch[last], &o->layout[0]));
  FL_TRY(make_layout(api, type, p->k, p->m, &p->x[0], count, last < 0 ? 0 : p->x[0].batch[last], &o->layout[1]));
  FL_TRY(make_layout(api, type, p->n, p->m, c, count, last < 0 ? 0 : c->batch[last], &o->layout[2]));
  FL_TRY(make_layout(api, type, p->n, p->m, &p->out, count, last < 0 ? 0 : p->out.batch[last], &o->layout[3]));
  FL_TRY(lt(api->cublasLtMatmulPreferenceCreate(&o->pref), "preference"));
  uint64_t workspace = WORKSPACE;
  FL_TRY(lt(api->cublasLtMatmulPreferenceSetAttribute(o->pref, PREF_WORKSPACE, &workspace, sizeof workspace),
            "workspace"));
  for (int i = 0; i < 4; i++) {
    uint32_t bytes = alignment_of(data[i]);
    FL_TRY(lt(api->cublasLtMatmulPreferenceSetAttribute(o->pref, PREF_ALIGN_A + i, &bytes, sizeof bytes), "alignment"));
  }
  return NULL;
}

static fl_status multiply(const product *p, fl_cuda_queue *q, const objects *o, const char *const *data) {
  const fl_cuda_api *api = q->device->api;
  fl_lt_heuristic found;
  int n = 0;
  FL_TRY(lt(api->cublasLtMatmulAlgoGetHeuristic(q->device->lt, o->desc, o->layout[0], o->layout[1], o->layout[2],
                                                o->layout[3], o->pref, 1, &found, &n),
            "choice of an algorithm"));
  if (n == 0) return fl_fail(FL_INTERNAL, "CUDA: cuBLASLt: no algorithm");
  if (q->preparing) return NULL;
  float one = 1, beta = p->has_residual;
  return lt(api->cublasLtMatmul(q->device->lt, o->desc, &one, data[0], o->layout[0], data[1], o->layout[1], &beta,
                                data[2], o->layout[2], (void *)(uintptr_t)data[3], o->layout[3], &found.algo,
                                p->a->scratch, WORKSPACE, q->stream),
            "product");
}

static fl_status run_one(const product *p, fl_cuda_queue *q, const int64_t *at) {
  const fl_cuda_api *api = q->device->api;
  objects o = {0};
  const side *s[] = {&p->x[1], &p->x[0], p->has_residual ? &p->residual : &p->out, &p->out};
  const char *data[4];
  size_t size = fl_dtype_size(p->a->out[0].type.dtype);
  for (int i = 0; i < 4; i++) {
    data[i] = s[i]->data;
    for (int d = 0; d + 1 < p->n_batch; d++) data[i] += (size_t)(at[d] * s[i]->batch[d]) * size;
  }
  int count = p->n_batch ? (int)p->dims[p->n_batch - 1] : 1;
  fl_status st = set_up(p, api, &o, data, count);
  if (!st) st = multiply(p, q, &o, data);
  for (int i = 0; i < 4; i++)
    if (o.layout[i]) api->cublasLtMatrixLayoutDestroy(o.layout[i]);
  if (o.pref) api->cublasLtMatmulPreferenceDestroy(o.pref);
  if (o.desc) api->cublasLtMatmulDescDestroy(o.desc);
  return st;
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

void fl_cuda_run_cublaslt(const fl_run_args *a) {
  fl_cuda_queue *queue = fl_cuda_queue_of(a);
  product p = describe(a);
  fl_act act = (fl_act)fl_attr_int(&p.q->attrs, "act", FL_ACT_NONE);
  bool fused = act == FL_ACT_RELU || (act == FL_ACT_GELU_TANH && a->out[0].type.dtype != FL_F32);
  p.epilogue = fused ? (act == FL_ACT_RELU ? EPILOGUE_RELU : EPILOGUE_GELU) : p.bias ? 0 : EPILOGUE_DEFAULT;
  if (p.bias) p.epilogue |= EPILOGUE_BIAS;
  int64_t at[FL_MAX_RANK] = {0}, outer = 1;
  for (int d = 0; d + 1 < p.n_batch; d++) outer *= p.dims[d];
  for (int64_t i = 0; i < outer && !queue->failed; i++) {
    fl_cuda_note(queue, run_one(&p, queue, at));
    for (int d = p.n_batch - 2; d >= 0 && ++at[d] == p.dims[d]; d--) at[d] = 0;
  }
  if (!fused && act != FL_ACT_NONE)
    fl_cuda_act(a, act, fl_attr_float(&p.q->attrs, "act_lo", 0), fl_attr_float(&p.q->attrs, "act_hi", 0));
}
