#include "cuda/cudnn.h"

#include <string.h>

enum { /* cudnn_graph.h: descriptors, */
       D_POINTWISE = 0,
       D_CONVOLUTION = 1,
       D_ENGINE = 2,
       D_ENGINECFG = 3,
       D_ENGINEHEUR = 4,
       D_PLAN = 5,
       D_OP_CONV = 10,
       D_OP_POINTWISE = 13,
       D_GRAPH = 15,
       D_VARIANTS = 16,
       D_TENSOR = 17
};
enum { /* types of attributes, */
       T_HANDLE = 0,
       T_DATA_TYPE = 1,
       T_BOOLEAN = 2,
       T_INT64 = 3,
       T_FLOAT = 4,
       T_DOUBLE = 5,
       T_VOID_PTR = 6,
       T_CONV_MODE = 7,
       T_HEUR_MODE = 8,
       T_NAN = 10,
       T_NUMERICS = 11,
       T_POINTWISE_MODE = 14,
       T_DESC = 15,
       T_BEHAVIOR = 19
};
enum { /* attributes, */
       A_PW_MODE = 0,
       A_PW_PREC = 1,
       A_PW_NAN = 2,
       A_PW_LOWER = 3,
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
       A_CONFIG_ENGINE = 300,
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
       A_PACK_WORKSPACE = 1003,
       A_ENGINE_NUMERICS = 1303,
       A_ENGINE_BEHAVIOR = 1305
};
enum { /* and values */
       DNN_FLOAT = 0,
       DNN_HALF = 2,
       DNN_BFLOAT16 = 9,
       CROSS_CORRELATION = 1,
       PW_ADD = 0,
       PW_RELU = 100,
       PROPAGATE_NAN = 1,
       TENSOR_CORE = 0,
       NONDETERMINISTIC = 4,
       RUNTIME_COMPILATION = 0
};
enum { ID_X = 1, ID_W, ID_BIAS, ID_RESIDUAL, ID_Y, ID_VIRTUAL };

/* --- descriptors: the first failure is kept, later calls do nothing --- */

typedef struct maker {
  const fl_cuda_api *api;
  const fl_dnn_conv *c;
  fl_dnn_graph *g;
  fl_dnn_desc ops[12], now; /* now: what the last operation gave */
  int n_ops, left;          /* left: operations still to come */
  int type, failed;
} maker;

static fl_dnn_desc make(maker *m, int type) {
  fl_dnn_desc d = NULL;
  if (!m->failed) m->failed = m->g->n_kept == FL_DNN_MAX_DESCS ? -1 : m->api->cudnnBackendCreateDescriptor(type, &d);
  if (d) m->g->kept[m->g->n_kept++] = d;
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
  bool yes = true;
  set(m, d, A_TENSOR_TYPE, T_DATA_TYPE, 1, &type);
  set(m, d, A_TENSOR_DIMS, T_INT64, 4, dims);
  set(m, d, A_TENSOR_STRIDES, T_INT64, 4, strides);
  set(m, d, A_TENSOR_ID, T_INT64, 1, &id);
  set(m, d, A_TENSOR_ALIGN, T_INT64, 1, &align);
  if (id >= ID_VIRTUAL) set(m, d, A_TENSOR_VIRTUAL, T_BOOLEAN, 1, &yes);
  finish(m, d);
  return d;
}

static fl_dnn_desc image(maker *m, int64_t id, int type, const fl_type *t) {
  int64_t strides[FL_MAX_RANK];
  fl_strides_channels_last(t, strides);
  return tensor(m, id, type, t->dims, strides);
}

/* Where the next operation's result goes: the result of all if it is the last. */
static fl_dnn_desc result(maker *m) {
  return --m->left > 0 ? image(m, ID_VIRTUAL + m->left, DNN_FLOAT, &m->c->y)
                       : tensor(m, ID_Y, m->type, m->c->y.dims, m->c->ys);
}

/* now = mode(now, b), `b` NULL for one operand. What is not a number stays so. */
static void pointwise(maker *m, int mode, fl_dnn_desc b) {
  fl_dnn_desc d = make(m, D_POINTWISE), y = result(m);
  int prec = DNN_FLOAT, nan = PROPAGATE_NAN;
  double lowest = 0;
  set(m, d, A_PW_MODE, T_POINTWISE_MODE, 1, &mode);
  set(m, d, A_PW_PREC, T_DATA_TYPE, 1, &prec);
  if (mode == PW_RELU) {
    set(m, d, A_PW_NAN, T_NAN, 1, &nan);
    set(m, d, A_PW_LOWER, T_DOUBLE, 1, &lowest);
  }
  finish(m, d);
  fl_dnn_desc op = make(m, D_OP_POINTWISE);
  set(m, op, A_OPPW_DESC, T_DESC, 1, &d);
  set(m, op, A_OPPW_X, T_DESC, 1, &m->now);
  if (b) set(m, op, A_OPPW_B, T_DESC, 1, &b);
  set(m, op, A_OPPW_Y, T_DESC, 1, &y);
  finish(m, op);
  m->ops[m->n_ops++] = op;
  m->now = y;
}

static void convolution(maker *m) {
  int n, type = DNN_FLOAT, mode = CROSS_CORRELATION;
  int64_t dims = 2;
  float alpha = 1, beta = 0;
  const fl_attrs *attrs = &m->c->attrs;
  const int64_t *pad = fl_attr_list(attrs, "pad", &n);
  fl_dnn_desc d = make(m, D_CONVOLUTION), y = result(m);
  set(m, d, A_CONV_TYPE, T_DATA_TYPE, 1, &type);
  set(m, d, A_CONV_MODE, T_CONV_MODE, 1, &mode);
  set(m, d, A_CONV_DIMS, T_INT64, 1, &dims);
  set(m, d, A_CONV_PRE, T_INT64, 2, pad);
  set(m, d, A_CONV_POST, T_INT64, 2, pad + 2);
  set(m, d, A_CONV_STRIDES, T_INT64, 2, fl_attr_list(attrs, "stride", &n));
  set(m, d, A_CONV_DILATIONS, T_INT64, 2, fl_attr_list(attrs, "dilation", &n));
  finish(m, d);
  fl_dnn_desc x = image(m, ID_X, m->type, &m->c->x), w = image(m, ID_W, m->type, &m->c->w), op = make(m, D_OP_CONV);
  set(m, op, A_OPCONV_DESC, T_DESC, 1, &d);
  set(m, op, A_OPCONV_X, T_DESC, 1, &x);
  set(m, op, A_OPCONV_W, T_DESC, 1, &w);
  set(m, op, A_OPCONV_Y, T_DESC, 1, &y);
  set(m, op, A_OPCONV_ALPHA, T_FLOAT, 1, &alpha);
  set(m, op, A_OPCONV_BETA, T_FLOAT, 1, &beta);
  finish(m, op);
  m->ops[m->n_ops++] = op;
  m->now = y;
}

/* --- activations: with others, cuDNN has no engine that it need not compile first --- */

static bool has_relu(const fl_attrs *attrs) { return fl_attr_int(attrs, "act", FL_ACT_NONE) == FL_ACT_RELU; }

bool fl_dnn_can_fuse(const fl_dnn_conv *c) {
  return has_relu(&c->attrs) || fl_attr_int(&c->attrs, "act", FL_ACT_NONE) == FL_ACT_NONE;
}

bool fl_dnn_graph_make(const fl_cuda_api *api, fl_dnn_handle handle, const fl_dnn_conv *c, bool fused,
                       fl_dnn_graph *out) {
  fl_dtype t = c->y.dtype;
  *out = (fl_dnn_graph){.fused = fused};
  maker m = {.api = api, .c = c, .g = out};
  m.type = t == FL_F32 ? DNN_FLOAT : t == FL_F16 ? DNN_HALF : DNN_BFLOAT16;
  m.left = 1 + (fused ? c->bias + c->residual + has_relu(&c->attrs) : 0);
  convolution(&m);
  /* The residual before the bias: in this order cuDNN has engines that are compiled already. */
  if (fused && c->residual) pointwise(&m, PW_ADD, image(&m, ID_RESIDUAL, m.type, &c->y));
  if (fused && c->bias) {
    const int64_t k = c->y.dims[1], dims[4] = {1, k, 1, 1}, strides[4] = {k, 1, k, k};
    pointwise(&m, PW_ADD, tensor(&m, ID_BIAS, m.type, dims, strides));
  }
  if (fused && has_relu(&c->attrs)) pointwise(&m, PW_RELU, NULL);
  fl_dnn_desc graph = make(&m, D_GRAPH);
  set(&m, graph, A_GRAPH_HANDLE, T_HANDLE, 1, &handle);
  set(&m, graph, A_GRAPH_OPS, T_DESC, m.n_ops, m.ops);
  finish(&m, graph);
  if (!m.failed) out->graph = graph;
  return !m.failed;
}

void fl_dnn_graph_free(const fl_cuda_api *api, fl_dnn_graph *g) {
  while (g->n_kept) api->cudnnBackendDestroyDescriptor(g->kept[--g->n_kept]);
  g->graph = NULL;
}

/* --- engines --- */

int fl_dnn_configs(const fl_cuda_api *api, const fl_dnn_graph *g, fl_dnn_mode mode, fl_dnn_desc *configs) {
  fl_dnn_desc h = NULL;
  int64_t got = 0;
  int which = mode, n = 0;
  bool ok = !api->cudnnBackendCreateDescriptor(D_ENGINEHEUR, &h) &&
            !api->cudnnBackendSetAttribute(h, A_HEUR_GRAPH, T_DESC, 1, &g->graph) &&
            !api->cudnnBackendSetAttribute(h, A_HEUR_MODE, T_HEUR_MODE, 1, &which) && !api->cudnnBackendFinalize(h);
  while (ok && n < FL_DNN_MAX_CONFIGS && !api->cudnnBackendCreateDescriptor(D_ENGINECFG, &configs[n])) n++;
  if (n && api->cudnnBackendGetAttribute(h, A_HEUR_RESULTS, T_DESC, n, &got, configs)) got = 0;
  while (n > got) api->cudnnBackendDestroyDescriptor(configs[--n]);
  if (h) api->cudnnBackendDestroyDescriptor(h);
  return n;
}

static bool has_note(const fl_cuda_api *api, fl_dnn_desc engine, int attribute, int type, int note) {
  int notes[16];
  int64_t got = 0;
  bool has = false;
  if (api->cudnnBackendGetAttribute(engine, attribute, type, 16, &got, notes)) got = 0;
  for (int64_t i = 0; i < got && i < 16; i++) has = has || notes[i] == note;
  return has;
}

bool fl_dnn_is_usable(const fl_cuda_api *api, fl_dnn_desc config, bool tf32) {
  fl_dnn_desc engine = NULL;
  int64_t got = 0;
  bool usable = false;
  if (api->cudnnBackendCreateDescriptor(D_ENGINE, &engine)) return false;
  if (!api->cudnnBackendGetAttribute(config, A_CONFIG_ENGINE, T_DESC, 1, &got, &engine))
    usable = !has_note(api, engine, A_ENGINE_BEHAVIOR, T_BEHAVIOR, RUNTIME_COMPILATION) &&
             !has_note(api, engine, A_ENGINE_NUMERICS, T_NUMERICS, NONDETERMINISTIC) &&
             (tf32 || !has_note(api, engine, A_ENGINE_NUMERICS, T_NUMERICS, TENSOR_CORE));
  api->cudnnBackendDestroyDescriptor(engine);
  return usable;
}

size_t fl_dnn_workspace(const fl_cuda_api *api, fl_dnn_desc plan) {
  int64_t bytes = 0, got = 0;
  if (api->cudnnBackendGetAttribute(plan, A_PLAN_WORKSPACE, T_INT64, 1, &got, &bytes)) return SIZE_MAX;
  return bytes > 0 ? (size_t)bytes : 0;
}

fl_dnn_desc fl_dnn_plan(const fl_cuda_api *api, fl_dnn_handle handle, fl_dnn_desc config, size_t workspace) {
  fl_dnn_desc plan = NULL;
  if (api->cudnnBackendCreateDescriptor(D_PLAN, &plan)) return NULL;
  bool ok = !api->cudnnBackendSetAttribute(plan, A_PLAN_HANDLE, T_HANDLE, 1, &handle) &&
            !api->cudnnBackendSetAttribute(plan, A_PLAN_CONFIG, T_DESC, 1, &config) &&
            !api->cudnnBackendFinalize(plan) && fl_dnn_workspace(api, plan) <= workspace;
  if (ok) return plan;
  api->cudnnBackendDestroyDescriptor(plan);
  return NULL;
}

int fl_dnn_execute(const fl_cuda_api *api, fl_dnn_handle handle, fl_dnn_desc plan, const fl_dnn_conv *c, bool fused,
                   const fl_dnn_memory *memory, fl_cu_stream stream) {
  int64_t ids[5] = {ID_X, ID_W, ID_Y}, n = 3;
  void *pointers[5] = {memory->x, memory->w, memory->y};
  if (fused && c->bias) ids[n] = ID_BIAS, pointers[n++] = memory->bias;
  if (fused && c->residual) ids[n] = ID_RESIDUAL, pointers[n++] = memory->residual;
  fl_dnn_desc pack = NULL;
  int r = api->cudnnSetStream(handle, stream);
  if (!r) r = api->cudnnBackendCreateDescriptor(D_VARIANTS, &pack);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_POINTERS, T_VOID_PTR, n, pointers);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_IDS, T_INT64, n, ids);
  if (!r) r = api->cudnnBackendSetAttribute(pack, A_PACK_WORKSPACE, T_VOID_PTR, 1, &memory->workspace);
  if (!r) r = api->cudnnBackendFinalize(pack);
  if (!r) r = api->cudnnBackendExecute(handle, plan, pack);
  if (pack) api->cudnnBackendDestroyDescriptor(pack);
  return r;
}
