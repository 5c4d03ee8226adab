/* Convolutions through cuDNN's operation graphs: convolution, bias, residual and activation as one operation where an
 * engine for it exists, else convolution alone and a kernel for the rest, else our direct kernel. Channels-last.
 * Built execution plans are kept for the life of the process, by problem. */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "cuda/nvrtc.h"
#include "cuda/ops.h"

enum { /* cudnn_graph.h */
       D_POINTWISE = 0,
       D_CONVOLUTION = 1,
       D_ENGINECFG = 3,
       D_ENGINEHEUR = 4,
       D_PLAN = 5,
       D_OP_CONV = 10,
       D_OP_POINTWISE = 13,
       D_GRAPH = 15,
       D_VARIANTS = 16,
       D_TENSOR = 17
};
enum {
  T_HANDLE = 0,
  T_DATA_TYPE = 1,
  T_BOOLEAN = 2,
  T_INT64 = 3,
  T_FLOAT = 4,
  T_DOUBLE = 5,
  T_VOID_PTR = 6,
  T_CONV_MODE = 7,
  T_HEUR_MODE = 8,
  T_POINTWISE_MODE = 14,
  T_DESC = 15
};
enum {
  A_PW_MODE = 0,
  A_PW_PREC = 1,
  A_PW_LOWER = 3,
  A_PW_UPPER = 4,
  A_CONV_TYPE = 100,
  A_CONV_MODE = 101,
  A_CONV_DILATIONS = 102,
  A_CONV_STRIDES = 103,
  A_CONV_POST = 104,
  A_CONV_PRE = 105,
  A_CONV_DIMS = 106,
  A_HEUR_MODE = 200,
  A_HEUR_GRAPH = 201,
  A_HEUR_RESULTS = 202,
  A_PLAN_HANDLE = 400,
  A_PLAN_CONFIG = 401,
  A_PLAN_WORKSPACE = 402,
  A_OPCONV_ALPHA = 700,
  A_OPCONV_BETA = 701,
  A_OPCONV_DESC = 702,
  A_OPCONV_W = 703,
  A_OPCONV_X = 704,
  A_OPCONV_Y = 705,
  A_OPPW_DESC = 750,
  A_OPPW_X = 751,
  A_OPPW_B = 752,
  A_OPPW_Y = 753,
  A_GRAPH_HANDLE = 800,
  A_GRAPH_OPS = 801,
  A_TENSOR_ALIGN = 900,
  A_TENSOR_TYPE = 901,
  A_TENSOR_DIMS = 902,
  A_TENSOR_STRIDES = 903,
  A_TENSOR_ID = 906,
  A_TENSOR_VIRTUAL = 907,
  A_PACK_IDS = 1000,
  A_PACK_POINTERS = 1001,
  A_PACK_WORKSPACE = 1003
};
enum {
  DNN_FLOAT = 0,
  DNN_HALF = 2,
  DNN_BFLOAT16 = 9,
  CROSS_CORRELATION = 1,
  PW_ADD = 0,
  PW_RELU = 100,
  HEUR_FALLBACK = 2,
  HEUR_A = 3
};
enum { ID_X = 1, ID_W, ID_BIAS, ID_RESIDUAL, ID_Y, ID_VIRTUAL };
enum { WORKSPACE = 64 << 20, MAX_CONFIGS = 16, MAX_DESCS = 40 };

typedef struct built {
  struct built *next;
  fl_type types[5]; /* x, w, y, bias, residual: absent ones have rank -1 */
  fl_attrs attrs;
  fl_dnn_desc plan; /* NULL: no engine */
  fl_dnn_desc kept[MAX_DESCS];
  int n_kept;
  bool fused;
} built;

static struct {
  pthread_mutex_t lock;
  fl_dnn_handle handle;
  built *all;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

const char *fl_cuda_plan_cudnn(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  fl_dtype t = p->out[0].dtype;
  if (t != FL_F32 && t != FL_F16 && t != FL_BF16) return "cuDNN is used for f32, f16 and bf16";
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && p->in[i].type.dtype != t) return "operands of different types";
  if (fl_type_numel(&p->in[0].type) == 0) return "nothing to convolve";
  plan->in_layout[0] = plan->in_layout[1] = FL_LAYOUT_CHANNELS_LAST;
  plan->in_layout[2] = FL_LAYOUT_CONTIGUOUS;
  if (p->n_in > 3 && !p->absent[3]) {
    if (!fl_dims_equal(&p->in[3].type, &p->out[0])) return "the residual broadcasts";
    plan->in_layout[3] = FL_LAYOUT_CHANNELS_LAST;
  }
  fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
  plan->scratch_bytes = WORKSPACE;
  return NULL;
}

/* --- descriptors: the first failure is kept, later calls do nothing --- */

typedef struct maker {
  const fl_cuda_api *api;
  built *b;
  int failed;
} maker;

static fl_dnn_desc make(maker *m, int type) {
  fl_dnn_desc d = NULL;
  if (!m->failed) m->failed = m->b->n_kept == MAX_DESCS ? -1 : m->api->cudnnBackendCreateDescriptor(type, &d);
  if (d) m->b->kept[m->b->n_kept++] = d;
  return d;
}

static void set(maker *m, fl_dnn_desc d, int name, int type, int64_t n, const void *v) {
  if (!m->failed) m->failed = m->api->cudnnBackendSetAttribute(d, name, type, n, v);
}

static void finish(maker *m, fl_dnn_desc d) {
  if (!m->failed) m->failed = m->api->cudnnBackendFinalize(d);
}

static fl_dnn_desc tensor(maker *m, int64_t id, int type, const int64_t *dims, const int64_t *strides) {
  fl_dnn_desc d = make(m, D_TENSOR);
  int64_t align = 16;
  bool is_virtual = id >= ID_VIRTUAL;
  set(m, d, A_TENSOR_TYPE, T_DATA_TYPE, 1, &type);
  set(m, d, A_TENSOR_DIMS, T_INT64, 4, dims);
  set(m, d, A_TENSOR_STRIDES, T_INT64, 4, strides);
  set(m, d, A_TENSOR_ID, T_INT64, 1, &id);
  set(m, d, A_TENSOR_ALIGN, T_INT64, 1, &align);
  if (is_virtual) set(m, d, A_TENSOR_VIRTUAL, T_BOOLEAN, 1, &is_virtual);
  finish(m, d);
  return d;
}

static fl_dnn_desc image(maker *m, int64_t id, int type, const fl_type *t) {
  int64_t strides[FL_MAX_RANK];
  fl_strides_channels_last(t, strides);
  return tensor(m, id, type, t->dims, strides);
}

static fl_dnn_desc pointwise(maker *m, int mode, fl_dnn_desc x, fl_dnn_desc b, fl_dnn_desc y, double lo, double hi) {
  fl_dnn_desc d = make(m, D_POINTWISE), op;
  int prec = DNN_FLOAT;
  set(m, d, A_PW_MODE, T_POINTWISE_MODE, 1, &mode);
  set(m, d, A_PW_PREC, T_DATA_TYPE, 1, &prec);
  if (mode == PW_RELU) {
    set(m, d, A_PW_LOWER, T_DOUBLE, 1, &lo);
    if (!isinf(hi)) set(m, d, A_PW_UPPER, T_DOUBLE, 1, &hi);
  }
  finish(m, d);
  op = make(m, D_OP_POINTWISE);
  set(m, op, A_OPPW_DESC, T_DESC, 1, &d);
  set(m, op, A_OPPW_X, T_DESC, 1, &x);
  if (b) set(m, op, A_OPPW_B, T_DESC, 1, &b);
  set(m, op, A_OPPW_Y, T_DESC, 1, &y);
  finish(m, op);
  return op;
}

static fl_dnn_desc convolution(maker *m, const fl_attrs *attrs, fl_dnn_desc x, fl_dnn_desc w, fl_dnn_desc y) {
  int n, type = DNN_FLOAT, mode = CROSS_CORRELATION;
  int64_t dims = 2;
  float alpha = 1, beta = 0;
  const int64_t *pad = fl_attr_list(attrs, "pad", &n);
  fl_dnn_desc d = make(m, D_CONVOLUTION), op;
  set(m, d, A_CONV_TYPE, T_DATA_TYPE, 1, &type);
  set(m, d, A_CONV_MODE, T_CONV_MODE, 1, &mode);
  set(m, d, A_CONV_DIMS, T_INT64, 1, &dims);
  set(m, d, A_CONV_PRE, T_INT64, 2, pad);
  set(m, d, A_CONV_POST, T_INT64, 2, pad + 2);
  set(m, d, A_CONV_STRIDES, T_INT64, 2, fl_attr_list(attrs, "stride", &n));
  set(m, d, A_CONV_DILATIONS, T_INT64, 2, fl_attr_list(attrs, "dilation", &n));
  finish(m, d);
  op = make(m, D_OP_CONV);
  set(m, op, A_OPCONV_DESC, T_DESC, 1, &d);
  set(m, op, A_OPCONV_X, T_DESC, 1, &x);
  set(m, op, A_OPCONV_W, T_DESC, 1, &w);
  set(m, op, A_OPCONV_Y, T_DESC, 1, &y);
  set(m, op, A_OPCONV_ALPHA, T_FLOAT, 1, &alpha);
  set(m, op, A_OPCONV_BETA, T_FLOAT, 1, &beta);
  finish(m, op);
  return op;
}

static bool has_act(fl_act act) { return act == FL_ACT_RELU || act == FL_ACT_CLAMP; }

/* The operation graph. With `fuse`: bias, residual and the activation too. */
static fl_dnn_desc operation_graph(maker *m, bool fuse) {
  const built *b = m->b;
  const fl_type *y = &b->types[2];
  int type = y->dtype == FL_F32 ? DNN_FLOAT : y->dtype == FL_F16 ? DNN_HALF : DNN_BFLOAT16, n = 0, left;
  fl_act act = (fl_act)fl_attr_int(&b->attrs, "act", FL_ACT_NONE);
  bool bias = fuse && b->types[3].rank >= 0, residual = fuse && b->types[4].rank >= 0, acts = fuse && has_act(act);
  fl_dnn_desc ops[4], now, next, out = image(m, ID_Y, type, y);
  left = bias + residual + acts;
  now = left ? image(m, ID_VIRTUAL, DNN_FLOAT, y) : out;
  ops[n++] = convolution(m, &b->attrs, image(m, ID_X, type, &b->types[0]), image(m, ID_W, type, &b->types[1]), now);
  if (bias) {
    const int64_t dims[4] = {1, y->dims[1], 1, 1}, strides[4] = {y->dims[1], 1, y->dims[1], y->dims[1]};
    next = --left ? image(m, ID_VIRTUAL + n, DNN_FLOAT, y) : out;
    ops[n++] = pointwise(m, PW_ADD, now, tensor(m, ID_BIAS, type, dims, strides), next, 0, 0);
    now = next;
  }
  if (residual) {
    next = --left ? image(m, ID_VIRTUAL + n, DNN_FLOAT, y) : out;
    ops[n++] = pointwise(m, PW_ADD, now, image(m, ID_RESIDUAL, type, y), next, 0, 0);
    now = next;
  }
  if (acts) {
    double lo = act == FL_ACT_CLAMP ? fl_attr_float(&b->attrs, "act_lo", 0) : 0;
    double hi = act == FL_ACT_CLAMP ? fl_attr_float(&b->attrs, "act_hi", 0) : INFINITY;
    ops[n++] = pointwise(m, PW_RELU, now, NULL, out, lo, hi);
  }
  fl_dnn_desc graph = make(m, D_GRAPH);
  set(m, graph, A_GRAPH_HANDLE, T_HANDLE, 1, &state.handle);
  set(m, graph, A_GRAPH_OPS, T_DESC, n, ops);
  finish(m, graph);
  return graph;
}

/* --- choosing an engine --- */

/* The plan of a configuration, or NULL if it cannot be had or wants too much workspace. */
static fl_dnn_desc plan_of(const fl_cuda_api *api, fl_dnn_desc config) {
  fl_dnn_desc plan = NULL;
  int64_t bytes = 0, got = 0;
  if (api->cudnnBackendCreateDescriptor(D_PLAN, &plan)) return NULL;
  bool ok = !api->cudnnBackendSetAttribute(plan, A_PLAN_HANDLE, T_HANDLE, 1, &state.handle) &&
            !api->cudnnBackendSetAttribute(plan, A_PLAN_CONFIG, T_DESC, 1, &config) &&
            !api->cudnnBackendFinalize(plan) &&
            !api->cudnnBackendGetAttribute(plan, A_PLAN_WORKSPACE, T_INT64, 1, &got, &bytes) && bytes <= WORKSPACE;
  if (ok) return plan;
  api->cudnnBackendDestroyDescriptor(plan);
  return NULL;
}

static fl_dnn_desc first_plan(maker *m, fl_dnn_desc graph, int mode) {
  fl_dnn_desc configs[MAX_CONFIGS] = {0}, heuristics = make(m, D_ENGINEHEUR), plan = NULL;
  int64_t got = 0;
  set(m, heuristics, A_HEUR_GRAPH, T_DESC, 1, &graph);
  set(m, heuristics, A_HEUR_MODE, T_HEUR_MODE, 1, &mode);
  finish(m, heuristics);
  for (int i = 0; i < MAX_CONFIGS && !m->failed; i++)
    m->failed = m->api->cudnnBackendCreateDescriptor(D_ENGINECFG, &configs[i]);
  if (!m->failed)
    m->failed = m->api->cudnnBackendGetAttribute(heuristics, A_HEUR_RESULTS, T_DESC, MAX_CONFIGS, &got, configs);
  for (int64_t i = 0; i < got && i < MAX_CONFIGS && !m->failed && !plan; i++) plan = plan_of(m->api, configs[i]);
  for (int i = 0; i < MAX_CONFIGS; i++)
    if (configs[i]) m->api->cudnnBackendDestroyDescriptor(configs[i]);
  return plan;
}

static void drop(const fl_cuda_api *api, built *b) {
  while (b->n_kept) api->cudnnBackendDestroyDescriptor(b->kept[--b->n_kept]);
}

static void build(const fl_cuda_api *api, built *b) {
  const int modes[] = {HEUR_A, HEUR_FALLBACK};
  for (int fuse = 1; fuse >= 0; fuse--) {
    for (int i = 0; i < 2 && !b->plan; i++) {
      drop(api, b);
      maker m = {api, b, 0};
      fl_dnn_desc graph = operation_graph(&m, fuse);
      b->plan = first_plan(&m, graph, modes[i]);
    }
    b->fused = fuse;
    if (b->plan) return;
  }
}

/* --- running --- */

static bool equal(const built *a, const built *b) {
  for (int i = 0; i < 5; i++)
    if (a->types[i].rank != b->types[i].rank || (a->types[i].rank >= 0 && !fl_type_equal(&a->types[i], &b->types[i])))
      return false;
  return fl_attrs_equal(&a->attrs, &b->attrs);
}

/* With the lock. NULL when out of memory. */
static built *find_or_build(const fl_cuda_api *api, const fl_run_args *a, const fl_cuda_params *q) {
  built key = {.attrs = q->attrs, .types = {a->in[0].type, a->in[1].type, a->out[0].type, {.rank = -1}, {.rank = -1}}};
  for (int i = 2; i < q->n_in; i++)
    if (!q->absent[i]) key.types[1 + i] = a->in[i].type;
  for (built *b = state.all; b; b = b->next)
    if (equal(b, &key)) return b;
  built *b = fl_malloc(sizeof *b);
  if (!b) return NULL;
  *b = key;
  if (state.handle || !api->cudnnCreate(&state.handle)) build(api, b);
  b->next = state.all;
  state.all = b;
  return b;
}

static int execute(fl_cuda_queue *q, const built *b, const fl_run_args *a) {
  const fl_cuda_api *api = q->device->api;
  int64_t ids[5] = {ID_X, ID_W, ID_Y}, n = 3;
  void *pointers[5] = {a->in[0].data, a->in[1].data, a->out[0].data};
  for (int i = 3; i < 5 && b->fused; i++) {
    if (b->types[i].rank < 0) continue;
    ids[n] = i == 3 ? ID_BIAS : ID_RESIDUAL;
    pointers[n++] = a->in[i - 1].data;
  }
  fl_dnn_desc pack = NULL;
  int r = api->cudnnSetStream(state.handle, q->stream);
  if (!r) r = api->cudnnBackendCreateDescriptor(D_VARIANTS, &pack);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_POINTERS, T_VOID_PTR, n, pointers);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_IDS, T_INT64, n, ids);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_WORKSPACE, T_VOID_PTR, 1, &a->scratch);
  if (!r) r = api->cudnnBackendFinalize(pack);
  if (!r) r = api->cudnnBackendExecute(state.handle, b->plan, pack);
  if (pack) api->cudnnBackendDestroyDescriptor(pack);
  return r;
}

/* y = act(y + bias + residual), for what cuDNN did not do. All channels-last. */
static void finish_unfused(const fl_run_args *a, const built *b) {
  const fl_type *y = &b->types[2];
  bool bias = !b->fused && b->types[3].rank >= 0, residual = !b->fused && b->types[4].rank >= 0;
  fl_act act = (fl_act)fl_attr_int(&b->attrs, "act", FL_ACT_NONE);
  if (b->fused && has_act(act)) act = FL_ACT_NONE;
  if (!bias && !residual && act == FL_ACT_NONE) return;
  const char *type = fl_cg_storage(y->dtype);
  int64_t n = fl_type_numel(y);
  fl_text t = {0};
  fl_text_add(&t, "extern \"C\" __global__ void k(%s *y, const %s *bias, const %s *residual, int *fault) {\n", type,
              type, type);
  fl_text_add(
      &t, "  i64 i = (i64)blockIdx.x * 256 + threadIdx.x;\n  if (i >= %" PRId64 ") return;\n  float v = ld(y[i]);\n",
      n);
  if (bias) fl_text_add(&t, "  v += ld(bias[i %% %" PRId64 "]);\n", y->dims[1]);
  if (residual) fl_text_add(&t, "  v += ld(residual[i]);\n");
  fl_cg_act(&t, "v", act, fl_attr_float(&b->attrs, "act_lo", 0), fl_attr_float(&b->attrs, "act_hi", 0));
  fl_text_add(&t, "  st(y[i], v);\n}\n");
  void *pointers[] = {a->out[0].data, bias ? a->in[2].data : NULL, residual ? a->in[3].data : NULL, a->fault};
  fl_cuda_launch(a, &t, (n + 255) / 256, 256, 0, pointers, 4);
}

void fl_cuda_run_cudnn(const fl_run_args *a) {
  fl_cuda_queue *q = fl_cuda_queue_of(a);
  char why[256] = "";
  int r = 0;
  pthread_mutex_lock(&state.lock);
  const built *b = find_or_build(q->device->api, a, a->params);
  if (b && b->plan && !q->preparing) r = execute(q, b, a);
  if (r) q->device->api->cudnnGetLastErrorString(why, sizeof why);
  pthread_mutex_unlock(&state.lock);
  if (!b)
    fl_cuda_note(q, fl_oom());
  else if (r)
    fl_cuda_note(q, fl_fail(FL_INTERNAL, "CUDA: cuDNN: convolution: status %d: %s", r, why));
  else if (b->plan)
    finish_unfused(a, b);
  else
    fl_cuda_run_map(a);
}
