/* Convolutions. There are many ways to compute one: our own kernels, cuBLASLt where it is a matrix product, cuDNN's engines
 * with bias, residual and activation in the same operation, or without them and a kernel for the rest. The fastest is found
 * by timing when a program is prepared, and kept for the life of the process, by problem. */
#include "cuda/conv.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "cuda/cudnn.h"
#include "cuda/graph.h"
#include "cuda/nvrtc.h"
#include "cuda/tactic.h"

enum { WORKSPACE = 64 << 20, SMALL_CHANNELS = 4 };
enum { MAX_FUSED = FL_CONV_PLAIN - FL_CONV_FUSED, MAX_PLAIN = FL_CONV_WAYS - FL_CONV_PLAIN };
enum { BUF_X, BUF_W, BUF_BIAS, BUF_RESIDUAL, BUF_Y, BUF_WORKSPACE, BUF_FAULT };

typedef struct built {
  struct built *next;
  const fl_cuda_device *device;
  const fl_cuda_queue *owner; /* who prepared it last decides */
  bool decided;
  int way;
  char *key;
  fl_cuda_conv c;
  fl_cuda_params params;
  fl_tensor in[4], out;   /* data is NULL */
  fl_dnn_graph graphs[2]; /* of the ways from FL_CONV_PLAIN on, and of those before */
  bool proposed;
  fl_dnn_desc plans[FL_CONV_WAYS];
  size_t spare_bytes; /* the least that lies idle beside any of the owner's steps */
} built;

static struct {
  pthread_mutex_t lock; /* of everything here, and while deciding */
  fl_dnn_handle handles[FL_CUDA_MAX_DEVICES];
  built *all, **end; /* in the order in which they were met, which is the one in which their kernels are compiled */
  int forced;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .end = &state.all, .forced = FL_CONV_WAYS};

/* --- planning --- */

/* Slices of channels: pixels are evenly apart, by more than their channels. */
static bool is_slice(const fl_tensor *x) {
  const int64_t *d = x->type.dims, *s = x->strides;
  return s[1] == 1 && s[3] > d[1] && s[2] == d[3] * s[3] && s[0] == d[2] * s[2];
}

/* The matrix product of pixels and weights. */
static bool is_product(const fl_problem *p) {
  int n;
  const int64_t *w = p->in[1].type.dims, *pad = fl_attr_list(p->attrs, "pad", &n),
                *stride = fl_attr_list(p->attrs, "stride", &n);
  return fl_attr_int(p->attrs, "groups", 1) == 1 && w[2] * w[3] == 1 && pad[0] + pad[1] + pad[2] + pad[3] == 0 &&
         stride[0] * stride[1] == 1;
}

/* Our kernels for the tensor cores gather few channels from wherever they lie, and those for windows of one element and for
 * depthwise convolutions take slices: no copy is needed. */
static bool takes_any_strides(const fl_problem *p) {
  const fl_cuda_device *d = fl_cuda_device_of(p->backend);
  const int64_t *w = p->in[1].type.dims, groups = fl_attr_int(p->attrs, "groups", 1);
  fl_dtype t = p->out[0].dtype;
  if ((t != FL_F16 && t != FL_BF16) || (d && d->arch < 80)) return false;
  if (groups == 1 && w[1] <= SMALL_CHANNELS) return true;
  return is_slice(&p->in[0]) && (is_product(p) || (groups > 1 && w[0] == groups && w[1] == 1));
}

const char *fl_cuda_plan_conv(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  fl_dtype t = p->out[0].dtype;
  if (t != FL_F32 && t != FL_F16 && t != FL_BF16) return "f32, f16 and bf16 only";
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && p->in[i].type.dtype != t) return "operands of different types";
  if (fl_type_numel(&p->in[0].type) == 0) return "nothing to convolve";
  plan->in_layout[0] = takes_any_strides(p) ? FL_LAYOUT_ANY : FL_LAYOUT_CHANNELS_LAST;
  plan->in_layout[1] = FL_LAYOUT_CHANNELS_LAST;
  plan->in_layout[2] = FL_LAYOUT_CONTIGUOUS;
  if (p->n_in > 3 && !p->absent[3]) {
    if (!fl_dims_equal(&p->in[3].type, &p->out[0])) return "the residual broadcasts";
    plan->in_layout[3] = FL_LAYOUT_CHANNELS_LAST;
    if (is_product(p)) plan->in_place = 3; /* there is a way that needs no other place, see propose */
  }
  fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
  plan->strided_out = true;
  plan->wants_spare = true;
  return NULL;
}

static int alignment_of(const fl_run_args *a, const fl_cuda_params *q) {
  uintptr_t low = (uintptr_t)a->out[0].data | 16;
  for (int i = 0; i < q->n_in; i++)
    if (!q->absent[i]) low |= (uintptr_t)a->in[i].data;
  return (int)(low & -low);
}

fl_cuda_conv fl_cuda_conv_of(const fl_run_args *a, const fl_cuda_params *q) {
  int n;
  const int64_t *x = a->in[0].type.dims, *w = a->in[1].type.dims, *y = a->out[0].type.dims;
  const int64_t *s = fl_attr_list(&q->attrs, "stride", &n), *p = fl_attr_list(&q->attrs, "pad", &n),
                *d = fl_attr_list(&q->attrs, "dilation", &n);
  fl_cuda_conv c = {.dtype = a->out[0].type.dtype,
                    .n = x[0],
                    .c = x[1],
                    .h = x[2],
                    .w = x[3],
                    .o = w[0],
                    .oh = y[2],
                    .ow = y[3],
                    .kh = w[2],
                    .kw = w[3],
                    .sh = s[0],
                    .sw = s[1],
                    .dh = d[0],
                    .dw = d[1],
                    .top = p[0],
                    .left = p[1],
                    .bottom = p[2],
                    .right = p[3],
                    .groups = fl_attr_int(&q->attrs, "groups", 1),
                    .cg = w[1],
                    .m = y[0] * y[2] * y[3],
                    .bias = q->n_in > 2 && !q->absent[2],
                    .residual = q->n_in > 3 && !q->absent[3],
                    .act = (fl_act)fl_attr_int(&q->attrs, "act", FL_ACT_NONE),
                    .lo = fl_attr_float(&q->attrs, "act_lo", 0),
                    .hi = fl_attr_float(&q->attrs, "act_hi", 0),
                    .align = alignment_of(a, q)};
  c.og = c.o / c.groups;
  c.in_place = c.residual && a->in[3].data == a->out[0].data;
  memcpy(c.xs, a->in[0].strides, sizeof c.xs);
  const int64_t *ys = a->out[0].strides;
  c.yp = ys[3];
  c.even = (c.o == 1 || ys[1] == 1) && (c.oh == 1 || ys[2] == c.ow * c.yp) && (c.n == 1 || ys[0] == c.oh * c.ow * c.yp);
  return c;
}

bool fl_cuda_conv_is_plain(const fl_cuda_conv *c) {
  return c->kh == 1 && c->kw == 1 && c->sh == 1 && c->sw == 1 && c->groups == 1 && c->oh == c->h && c->ow == c->w &&
         c->top == 0 && c->left == 0 && c->xs[1] == 1 && (c->h == 1 || c->xs[2] == c->w * c->xs[3]) &&
         (c->n == 1 || c->xs[0] == c->h * c->w * c->xs[3]);
}

/* --- the ways --- */

static void run_gemm(const fl_run_args *a, const built *b) {
  const fl_cuda_conv *c = &b->c;
  fl_cuda_params q = {.op = FL_OP_MATMUL, .n_in = 4, .n_out = 1, .absent = {false, false, !c->bias, !c->residual}};
  fl_tensor in[4], out = {.type = fl_type_make(c->dtype, 2, (int64_t[]){c->m, c->o}), .data = a->out[0].data};
  fl_run_args g = *a;
  memcpy(q.constant, b->params.constant, sizeof q.constant);
  q.tf32 = b->params.tf32;
  fl_attr_set_int(&q.attrs, "trans_b", 'b', 1);
  fl_attr_set_int(&q.attrs, "act", 'a', c->act);
  fl_attr_set_float(&q.attrs, "act_lo", c->lo);
  fl_attr_set_float(&q.attrs, "act_hi", c->hi);
  out.strides[0] = c->yp;
  out.strides[1] = 1;
  in[0] = (fl_tensor){.type = fl_type_make(c->dtype, 2, (int64_t[]){c->m, c->c}), .strides = {c->xs[3], 1}};
  in[1] = (fl_tensor){.type = fl_type_make(c->dtype, 2, (int64_t[]){c->o, c->c}), .strides = {c->c, 1}};
  in[2] = (fl_tensor){.type = fl_type_make(c->dtype, 1, (int64_t[]){c->o}), .strides = {1}};
  in[3] = out;
  fl_strides_contiguous(&in[3].type, in[3].strides);
  for (int i = 0; i < 4; i++) in[i].data = i < b->params.n_in && !b->params.absent[i] ? a->in[i].data : NULL;
  g.params = &q;
  g.in = in;
  g.out = &out;
  fl_cuda_run_cublaslt(&g);
}

static bool is_gemm(const fl_cuda_conv *c) { return c->align == 16 && c->even && fl_cuda_conv_is_plain(c); }

/* Its depthwise engines are several times slower than ours. */
static bool is_for_cudnn(const built *b) {
  bool depthwise = b->c.cg == 1 && b->c.groups > 1 && fl_cuda_conv_is_ours(&b->c, b->device->arch);
  return !depthwise && b->c.align == 16 && b->c.even && fl_is_channels_last(&b->in[0].type, b->in[0].strides);
}

static fl_dnn_conv dnn_of(const built *b) {
  const int64_t *s = b->out.strides;
  return (fl_dnn_conv){.x = b->in[0].type,
                       .ys = {s[0], s[1], s[2], s[3]},
                       .w = b->in[1].type,
                       .y = b->out.type,
                       .bias = b->c.bias,
                       .residual = b->c.residual,
                       .attrs = b->params.attrs};
}

/* Plans of what cuDNN proposes. */
static void add_plans(built *b, const fl_dnn_graph *g, fl_dnn_mode mode, int first, int most) {
  const fl_cuda_api *api = b->device->api;
  fl_dnn_desc configs[FL_DNN_MAX_CONFIGS];
  int n = fl_dnn_configs(api, g, mode, configs), made = 0;
  for (int i = 0; i < n; i++) {
    if (made < most && fl_dnn_is_usable(api, configs[i], b->c.dtype != FL_F32 || b->params.tf32)) {
      b->plans[first + made] = fl_dnn_plan(api, state.handles[b->device->ordinal], configs[i], WORKSPACE);
      made += b->plans[first + made] != NULL;
    }
    api->cudnnBackendDestroyDescriptor(configs[i]);
  }
}

/* A convolution alone would overwrite the residual, which is added after it. */
static void propose(built *b) {
  if (b->proposed) return;
  b->proposed = true;
  fl_dnn_handle *handle = &state.handles[b->device->ordinal];
  if (!is_for_cudnn(b) || (!*handle && b->device->api->cudnnCreate(handle))) return;
  fl_dnn_conv c = dnn_of(b);
  bool more = c.bias || c.residual || b->c.act != FL_ACT_NONE;
  for (int fused = more && fl_dnn_can_fuse(&c); fused >= 0 && !b->plans[FL_CONV_FUSED]; fused--) {
    bool whole = fused || !more; /* nothing is left to be done after it */
    if (!whole && b->c.in_place) break;
    fl_dnn_graph *g = &b->graphs[whole];
    if (!fl_dnn_graph_make(b->device->api, *handle, &c, fused, g)) continue;
    int first = whole ? FL_CONV_FUSED : FL_CONV_PLAIN, most = whole ? MAX_FUSED : MAX_PLAIN;
    add_plans(b, g, FL_DNN_A, first, most);
    if (!fused && !b->plans[first] && !fl_cuda_conv_is_ours(&b->c, b->device->arch))
      add_plans(b, g, FL_DNN_FALLBACK, first, most);
  }
}

/* What the choice does not need any more. */
static void forget(built *b) {
  for (int i = 0; i < FL_CONV_WAYS; i++) {
    if (!b->plans[i] || i == b->way) continue;
    b->device->api->cudnnBackendDestroyDescriptor(b->plans[i]);
    b->plans[i] = NULL;
  }
  for (int whole = 0; whole < 2; whole++)
    if (b->way < FL_CONV_FUSED || whole != (b->way < FL_CONV_PLAIN))
      fl_dnn_graph_free(b->device->api, &b->graphs[whole]);
}

static fl_status run_cudnn(const fl_run_args *a, const built *b, int way, void *workspace) {
  fl_cuda_queue *q = fl_cuda_queue_of(a);
  char why[256] = "";
  fl_dnn_conv c = dnn_of(b);
  fl_dnn_memory m = {.x = a->in[0].data, .w = a->in[1].data, .y = a->out[0].data, .workspace = workspace};
  if (b->c.bias) m.bias = a->in[2].data;
  if (b->c.residual) m.residual = a->in[3].data;
  int r = fl_dnn_execute(q->device->api, state.handles[q->device->ordinal], b->plans[way], &c, way < FL_CONV_PLAIN, &m,
                         q->stream);
  if (!r) return NULL;
  q->device->api->cudnnGetLastErrorString(why, sizeof why);
  return fl_fail(FL_INTERNAL, "CUDA: cuDNN: convolution: status %d: %s", r, why);
}

/* With the lock. False: there is no such way. */
static bool launch(const fl_run_args *a, built *b, int way) {
  if (way == FL_CONV_DIRECT)
    fl_cuda_run_map(a);
  else if (way == FL_CONV_OWN) {
    if (!fl_cuda_conv_is_ours(&b->c, b->device->arch)) return false;
    fl_cuda_conv_own(a, &b->c);
  } else if (way == FL_CONV_GEMM) {
    if (!is_gemm(&b->c)) return false;
    run_gemm(a, b);
  } else {
    propose(b);
    if (!b->plans[way]) return false;
    fl_cuda_queue *q = fl_cuda_queue_of(a);
    void *workspace = fl_cuda_workspace(a, fl_dnn_workspace(b->device->api, b->plans[way]));
    if (!q->preparing && !q->failed) fl_cuda_note(q, run_cudnn(a, b, way, workspace));
    if (way >= FL_CONV_PLAIN) fl_cuda_conv_finish(a, &b->c);
  }
  return true;
}

/* --- deciding --- */

typedef struct trial {
  built *b;
  const fl_cuda_queue *q;
} trial;

static int launch_candidate(void *arg, int i, void *const *buffers, fl_cu_stream stream) {
  const trial *t = arg;
  fl_tensor in[4], out = t->b->out;
  fl_cuda_queue q = *t->q;
  q.stream = stream;
  q.preparing = false;
  q.failed = NULL;
  memcpy(in, t->b->in, sizeof in);
  for (int k = 0; k < 4; k++) in[k].data = buffers[BUF_X + k];
  out.data = buffers[BUF_Y];
  if (t->b->c.in_place) in[3].data = out.data;
  fl_run_args a = {.params = &t->b->params,
                   .in = in,
                   .out = &out,
                   .spare = buffers[BUF_WORKSPACE],
                   .spare_bytes = WORKSPACE,
                   .pool = q.base.pool,
                   .fault = buffers[BUF_FAULT],
                   .queue = &q.base};
  bool there = launch(&a, t->b, i) && !q.failed;
  fl_status_free(q.failed);
  return !there;
}

static size_t span_bytes(const fl_tensor *t) {
  int64_t last = 0;
  for (int i = 0; i < t->type.rank; i++) last += t->strides[i] > 0 ? (t->type.dims[i] - 1) * t->strides[i] : 0;
  return (size_t)(last + 1) * fl_dtype_size(t->type.dtype);
}

static fl_cuda_tactic tactic_of(built *b, trial *t) {
  fl_cuda_tactic tactic = {.key = b->key, .n = FL_CONV_WAYS, .launch = launch_candidate, .arg = t};
  for (int i = 0; i < b->params.n_in; i++) {
    if (b->params.absent[i] || (i == 3 && b->c.in_place)) continue;
    tactic.buffers[BUF_X + i].bytes = span_bytes(&b->in[i]);
    tactic.buffers[BUF_X + i].cold = i == 1 && b->params.constant[1];
  }
  tactic.buffers[BUF_Y].bytes = span_bytes(&b->out);
  tactic.buffers[BUF_WORKSPACE].bytes = WORKSPACE;
  tactic.buffers[BUF_FAULT].bytes = sizeof(int);
  return tactic;
}

/* The first way that there is, for want of timing. */
static int first_way(built *b) {
  if (fl_cuda_conv_is_ours(&b->c, b->device->arch)) return FL_CONV_OWN;
  propose(b);
  for (int i = FL_CONV_FUSED; i < FL_CONV_WAYS; i++)
    if (b->plans[i]) return i;
  return is_gemm(&b->c) ? FL_CONV_GEMM : FL_CONV_DIRECT;
}

/* Some way to it launches a kernel that we compile. */
static bool has_kernels(const built *b) {
  bool in_epilogue = b->c.act == FL_ACT_NONE || b->c.act == FL_ACT_RELU;
  return fl_cuda_conv_is_ours(&b->c, b->device->arch) || b->plans[FL_CONV_PLAIN] || (is_gemm(&b->c) && !in_epilogue);
}

static void settle(built *b, int way) {
  if (way >= FL_CONV_FUSED) propose(b); /* takes cuDNN some milliseconds */
  bool there = way == FL_CONV_DIRECT || (way == FL_CONV_OWN && fl_cuda_conv_is_ours(&b->c, b->device->arch)) ||
               (way == FL_CONV_GEMM && is_gemm(&b->c)) || (way >= FL_CONV_FUSED && b->plans[way]);
  b->way = there ? way : first_way(b);
  b->decided = true;
  forget(b);
}

/* All that may be launched: its kernels are noted in the queue. */
static void note_all(const fl_run_args *a, built *b) {
  fl_run_args each = *a;
  each.spare_bytes = SIZE_MAX; /* until it is chosen, none needs a workspace */
  for (int i = 0; i <= FL_CONV_GEMM; i++) launch(&each, b, i);
  propose(b); /* while kernels are being compiled */
  if (b->plans[FL_CONV_PLAIN]) fl_cuda_conv_finish(a, &b->c);
}

/* Of the problem's alignment, and where no other operand lies. */
static void *somewhere(const built *b, int operand) { return (void *)(uintptr_t)((operand + 1) << 20 | b->c.align); }

/* Notes what one way (FL_CONV_WAYS: all ways) compiles. */
static void note(fl_cuda_queue *q, built *b, int way) {
  fl_tensor in[4], out = b->out;
  memcpy(in, b->in, sizeof in);
  for (int k = 0; k < 4; k++) in[k].data = somewhere(b, k); /* nobody looks there */
  out.data = somewhere(b, b->c.in_place ? 3 : 4);
  fl_run_args a = {.params = &b->params, .in = in, .out = &out, .spare_bytes = b->spare_bytes, .queue = &q->base};
  bool before = q->preparing;
  q->preparing = true;
  if (way == FL_CONV_WAYS)
    note_all(&a, b);
  else
    launch(&a, b, way);
  q->preparing = before;
}

static void decide(fl_cuda_queue *q, built *b) {
  trial t = {b, q};
  fl_cuda_tactic tactic = tactic_of(b, &t);
  q->awaiting = true;
  note(q, b, FL_CONV_WAYS);
  q->awaiting = false;
  settle(b, fl_cuda_tactic_choose(b->device, &tactic, NULL));
  note(q, b, b->way);
}

/* What needs no compiler goes first. */
void fl_cuda_conv_decide(fl_cuda_queue *q) {
  pthread_mutex_lock(&state.lock);
  for (int compiled = 0; compiled < 2; compiled++)
    for (built *b = state.all; b; b = b->next)
      if (!b->decided && b->owner == q && (compiled || !has_kernels(b))) decide(q, b);
  pthread_mutex_unlock(&state.lock);
}

/* --- problems --- */

static char *key_of(const fl_cuda_device *d, const fl_cuda_conv *c, const fl_cuda_params *q) {
  fl_text t = {0};
  fl_text_add(&t, "conv dnn %zu lt %zu type %d x", d->api->cudnn_version, d->api->cublaslt_version, (int)c->dtype);
  const int64_t all[] = {c->n,     c->c,      c->h,     c->w,     c->o,        c->kh,          c->kw,
                         c->sh,    c->sw,     c->dh,    c->dw,    c->top,      c->left,        c->bottom,
                         c->right, c->groups, c->xs[0], c->xs[1], c->xs[2],    c->xs[3],       c->yp,
                         c->even,  q->tf32,   c->align, c->bias,  c->residual, q->constant[1], c->in_place};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) fl_text_add(&t, " %" PRId64, all[i]);
  fl_text_add(&t, " act %d %.9g %.9g", (int)c->act, c->lo, c->hi);
  if (state.forced != FL_CONV_WAYS) fl_text_add(&t, " forced %d", state.forced);
  if (!t.failed) return t.data;
  fl_text_free(&t);
  return NULL;
}

/* With the lock. NULL when out of memory. */
static built *find_or_add(const fl_cuda_queue *q, const fl_run_args *a) {
  const fl_cuda_params *params = a->params;
  fl_cuda_conv c = fl_cuda_conv_of(a, params);
  char *key = key_of(q->device, &c, params);
  if (!key) return NULL;
  for (built *b = state.all; b; b = b->next) {
    if (b->device != q->device || strcmp(b->key, key)) continue;
    fl_free(key);
    return b;
  }
  built *b = fl_calloc(1, sizeof *b);
  if (!b) {
    fl_free(key);
    return NULL;
  }
  *b = (built){.device = q->device, .key = key, .c = c, .params = *params, .out = a->out[0]};
  for (int i = 0; i < params->n_in && i < 4; i++) b->in[i] = a->in[i];
  *state.end = b;
  state.end = &b->next;
  return b;
}

/* All that may be launched is compiled, unless it is known already which will be. */
static void prepare(fl_cuda_queue *q, built *b, const fl_run_args *a) {
  trial t = {b, q};
  fl_cuda_tactic tactic = tactic_of(b, &t);
  int way;
  if (!b->decided && state.forced != FL_CONV_WAYS) settle(b, state.forced);
  if (!b->decided && fl_cuda_tactic_known(b->device, &tactic, &way)) settle(b, way);
  if (b->decided) {
    launch(a, b, b->way);
    return;
  }
  if (b->owner != q || a->spare_bytes < b->spare_bytes) b->spare_bytes = a->spare_bytes;
  b->owner = q;
  note_all(a, b);
}

void fl_cuda_run_conv(const fl_run_args *a) {
  fl_cuda_queue *q = fl_cuda_queue_of(a);
  pthread_mutex_lock(&state.lock);
  built *b = find_or_add(q, a);
  if (!b)
    fl_cuda_note(q, fl_oom());
  else if (q->preparing)
    prepare(q, b, a);
  else {
    if (!b->decided) propose(b); /* another thread is about to decide */
    launch(a, b, b->decided ? b->way : first_way(b));
  }
  pthread_mutex_unlock(&state.lock);
}

void fl_cuda_conv_force(int way) {
  pthread_mutex_lock(&state.lock);
  state.forced = way;
  pthread_mutex_unlock(&state.lock);
}
