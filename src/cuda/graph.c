#include "cuda/graph.h"

#include "base/stages.h"
#include "cuda/conv.h"
#include "cuda/nvrtc.h"
#include "cuda/tactic.h"

enum { STREAM_NON_BLOCKING = 1, EVENT_NO_TIMING = 2, HOST_DEVICEMAP = 2 };

static _Thread_local fl_cu_stream current_stream;

void fl_cuda_stream_set(void *stream) { current_stream = stream; }
void *fl_cuda_stream_get(void) { return current_stream; }

void fl_cuda_note(fl_cuda_queue *q, fl_status s) {
  if (q->failed)
    fl_status_free(s);
  else
    q->failed = s;
}

static void enter(fl_cuda_queue *q) {
  q->device->api->cuCtxPushCurrent_v2(q->device->context);
  q->mode = fl_cuda_capture_mode(q->device->api, FL_CUDA_RELAXED);
}

static void leave(const fl_cuda_queue *q) {
  fl_cuda_capture_mode(q->device->api, q->mode);
  q->device->api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
}

static fl_status fill_queue(fl_cuda_queue *q) {
  const fl_cuda_api *api = q->device->api;
  void *fault = NULL;
  FL_TRY(fl_cuda_check(api->cuStreamCreate(&q->stream, STREAM_NON_BLOCKING), "stream"));
  FL_TRY(fl_cuda_check(api->cuEventCreate(&q->done, EVENT_NO_TIMING), "event"));
  FL_TRY(fl_cuda_check(api->cuMemHostAlloc(&fault, sizeof *q->base.fault, HOST_DEVICEMAP), "host memory"));
  q->base.fault = fault;
  *q->base.fault = 0;
  return NULL;
}

fl_status fl_cuda_queue_create(const fl_backend *b, fl_pool *pool, fl_queue **out) {
  fl_cuda_queue *q = fl_calloc(1, sizeof *q);
  if (!q) return fl_oom();
  q->backend = b;
  q->device = fl_cuda_device_of(b);
  q->base.pool = pool;
  enter(q);
  fl_status s = fill_queue(q);
  leave(q);
  if (s)
    fl_cuda_queue_destroy(&q->base);
  else
    *out = &q->base;
  return s;
}

/* --- workspaces --- */

/* Programs recorded earlier go on with the block that they know. */
static fl_status grow_workspace(fl_cuda_queue *q, size_t bytes) {
  if (!bytes || (q->workspace && q->workspace->bytes >= bytes)) return NULL;
  fl_cuda_block *b = fl_calloc(1, sizeof *b);
  if (!b) return fl_oom();
  *b = (fl_cuda_block){.next = q->workspace, .data = fl_cuda_allocate(q->backend, bytes), .bytes = bytes};
  if (!b->data) {
    fl_free(b);
    return fl_oom();
  }
  q->workspace = b;
  return NULL;
}

static void drop_workspaces(fl_cuda_queue *q) {
  for (fl_cuda_block *b = q->workspace, *next; b; b = next) {
    next = b->next;
    fl_cuda_release(q->backend, b->data);
    fl_free(b);
  }
  q->workspace = NULL;
}

void *fl_cuda_workspace(const fl_run_args *a, size_t bytes) {
  fl_cuda_queue *q = fl_cuda_queue_of(a);
  if (bytes <= a->spare_bytes) return a->spare;
  if (q->preparing) {
    if (bytes > q->workspace_wanted) q->workspace_wanted = bytes;
    return NULL;
  }
  /* Was seen while preparing, but where another thread has just decided otherwise. */
  fl_status s = grow_workspace(q, bytes);
  if (s) return fl_cuda_note(q, s), NULL;
  return q->workspace->data;
}

/* --- life --- */

void fl_cuda_queue_destroy(fl_queue *base) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  if (!q) return;
  const fl_cuda_api *api = q->device->api;
  enter(q);
  if (q->done) api->cuEventSynchronize(q->done);
  for (int i = 0; i < FL_QUEUE_VARIANTS; i++)
    if (q->exec[i]) api->cuGraphExecDestroy(q->exec[i]);
  if (q->done) api->cuEventDestroy_v2(q->done);
  if (q->stream) api->cuStreamDestroy_v2(q->stream);
  if (q->base.fault) api->cuMemFreeHost(q->base.fault);
  drop_workspaces(q);
  leave(q);
  fl_status_free(fl_cuda_compile_pending(q));
  fl_status_free(q->failed);
  fl_free(q);
}

static fl_status take_failure(fl_cuda_queue *q) {
  fl_status s = q->failed;
  q->failed = NULL;
  return s;
}

static void prepare(fl_cuda_queue *q, const fl_work *work) {
  q->preparing = true;
  q->workspace_wanted = 0;
  work->walk(work->arg);
  q->preparing = false;
}

static fl_status walk_and_compile(fl_cuda_queue *q, const fl_work *work) {
  prepare(q, work);
  if (!q->failed) fl_cuda_conv_decide(q); /* while kernels are being compiled */
  fl_status s = fl_cuda_compile_pending(q);
  fl_cuda_tactic_release(q->device);
  if (!s) s = grow_workspace(q, q->workspace_wanted);
  fl_status failed = take_failure(q);
  if (!failed) return s;
  fl_status_free(s);
  return failed;
}

/* The program, compiled, as a graph that can be launched. */
static fl_status record(fl_cuda_queue *q, const fl_work *work, fl_cu_graph_exec *out) {
  const fl_cuda_api *api = q->device->api;
  fl_cu_graph graph = NULL;
  FL_TRY(fl_cuda_check(api->cuStreamBeginCapture_v2(q->stream, FL_CUDA_RELAXED), "capture"));
  work->walk(work->arg);
  int r = api->cuStreamEndCapture(q->stream, &graph);
  fl_status s = take_failure(q);
  if (!s) s = fl_cuda_check(r, "capture");
  if (!s) s = fl_cuda_check(api->cuGraphInstantiateWithFlags(out, graph, 0), "graph");
  if (graph) api->cuGraphDestroy(graph);
  return s;
}

static size_t free_memory(const fl_cuda_queue *q) {
  size_t left = 0, all;
  return q->device->api->cuMemGetInfo_v2(&left, &all) ? 0 : left;
}

/* Others may allocate meanwhile: a figure for reports. */
static void note_size(fl_cuda_queue *q, int variant) {
  size_t left = q->free_before ? free_memory(q) : 0;
  if (q->free_before) q->exec_bytes[variant] = left && left < q->free_before ? q->free_before - left : 0;
  q->free_before = 0;
}

void fl_cuda_queue_memory(const fl_queue *base, fl_queue_memory *out) {
  const fl_cuda_queue *q = (const fl_cuda_queue *)base;
  *out = (fl_queue_memory){0};
  for (const fl_cuda_block *b = q->workspace; b; b = b->next) out->workspace_bytes += b->bytes;
  for (int i = 0; i < FL_QUEUE_VARIANTS; i++) {
    out->programs += q->exec[i] != NULL;
    out->program_bytes += q->exec[i] ? q->exec_bytes[i] : 0;
  }
}

static fl_status capture(fl_cuda_queue *q, const fl_work *work) {
  const fl_cuda_api *api = q->device->api;
  fl_cu_graph_exec *exec = &q->exec[work->variant];
  FL_TRY(fl_cuda_check(api->cuEventSynchronize(q->done), "the run before"));
  if (*exec) api->cuGraphExecDestroy(*exec);
  *exec = NULL;
  fl_stage before = fl_stage_enter(FL_STAGE_capture);
  fl_status s = walk_and_compile(q, work);
  q->free_before = s ? 0 : free_memory(q);
  if (!s) s = record(q, work, exec);
  fl_stage_enter(before);
  return s;
}

static fl_status transfer(fl_cuda_queue *q, const fl_transfer *t, int n, fl_cu_stream stream) {
  for (int i = 0; i < n; i++) {
    if (t[i].bytes == 0) continue;
    int r = q->device->api->cuMemcpyDtoDAsync_v2((fl_cu_ptr)(uintptr_t)t[i].to, (fl_cu_ptr)(uintptr_t)t[i].from,
                                                 t[i].bytes, stream);
    if (r) return fl_cuda_check(r, "copy of an input or output");
  }
  return NULL;
}

bool fl_cuda_is_capturing(const fl_backend *b, void *stream) {
  int status = 0;
  return fl_cuda_device_of(b)->api->cuStreamIsCapturing(stream, &status) != 0 || status != 0;
}

/* An earlier run can only be told of too late to be repeated, as with eager's own device-side asserts. */
static fl_status verdict(fl_cuda_queue *q, bool earlier) {
  if (!__atomic_exchange_n(q->base.fault, 0, __ATOMIC_RELAXED)) return NULL;
  return fl_fail(earlier ? FL_INTERNAL : FL_INVALID,
                 "CUDA: an index was out of range, or an integer was divided by zero%s",
                 earlier ? ", in an earlier call: its answer is undefined" : "");
}

static fl_status launch(fl_cuda_queue *q, const fl_work *work) {
  const fl_cuda_api *api = q->device->api;
  fl_cu_stream stream = current_stream;
  FL_TRY(verdict(q, true));
  if (work->changed || !q->exec[work->variant]) FL_TRY(capture(q, work));
  FL_TRY(fl_cuda_check(api->cuStreamWaitEvent(stream, q->done, 0), "the run before"));
  FL_TRY(transfer(q, work->before, work->n_before, stream));
  FL_TRY(fl_cuda_check(api->cuGraphLaunch(q->exec[work->variant], stream), "graph launch"));
  note_size(q, work->variant);
  FL_TRY(transfer(q, work->after, work->n_after, stream));
  FL_TRY(fl_cuda_check(api->cuEventRecord(q->done, stream), "event"));
  if (!work->wait) return NULL;
  FL_TRY(fl_cuda_check(api->cuEventSynchronize(q->done), "run"));
  return verdict(q, false);
}

void fl_cuda_prepare(fl_queue *base, const fl_work *work) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  fl_stage before = fl_stage_enter(FL_STAGE_capture);
  enter(q);
  prepare(q, work);
  fl_status_free(take_failure(q)); /* the run will meet it again */
  leave(q);
  fl_stage_enter(before);
}

fl_status fl_cuda_run(fl_queue *base, const fl_work *work) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  enter(q);
  fl_status s = launch(q, work);
  leave(q);
  return s;
}

void fl_cuda_settle(fl_queue *base) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  enter(q);
  q->device->api->cuEventSynchronize(q->done);
  leave(q);
}

void fl_cuda_forget(fl_queue *base, int variant) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  enter(q);
  q->device->api->cuEventSynchronize(q->done);
  if (q->exec[variant]) q->device->api->cuGraphExecDestroy(q->exec[variant]);
  q->exec[variant] = NULL;
  leave(q);
}

/* --- profiling: events recorded inside the graph --- */

enum { EVENT_RECORD_EXTERNAL = 1, PROFILE_RUNS = 5 };

void fl_cuda_mark(fl_queue *base, int i) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  if (q->preparing) return;
  /* Mark 0 twice: what lies between is what a mark costs. */
  for (int k = i == 0 ? 0 : i + 1; k <= i + 1; k++)
    fl_cuda_note(q, fl_cuda_check(q->device->api->cuEventRecordWithFlags(q->marks[k], q->stream, EVENT_RECORD_EXTERNAL),
                                  "mark"));
}

/* The least of some runs for each part. */
static fl_status read_marks(fl_cuda_queue *q, int n, float *least) {
  const fl_cuda_api *api = q->device->api;
  FL_TRY(fl_cuda_check(api->cuStreamSynchronize(q->stream), "profile"));
  for (int i = 0; i <= n; i++) {
    float ms;
    FL_TRY(fl_cuda_check(api->cuEventElapsedTime(&ms, q->marks[i], q->marks[i + 1]), "profile"));
    if (ms * 1000 < least[i]) least[i] = ms * 1000;
  }
  return NULL;
}

static fl_status run_marked(fl_cuda_queue *q, const fl_work *work, int n, float *least) {
  const fl_cuda_api *api = q->device->api;
  fl_cu_graph_exec exec = NULL;
  for (int i = 0; i < n + 2; i++) FL_TRY(fl_cuda_check(api->cuEventCreate(&q->marks[i], 0), "event"));
  FL_TRY(walk_and_compile(q, work));
  FL_TRY(record(q, work, &exec));
  fl_status s = transfer(q, work->before, work->n_before, q->stream);
  for (int run = 0; run < PROFILE_RUNS && !s; run++) {
    s = fl_cuda_check(api->cuGraphLaunch(exec, q->stream), "graph launch");
    if (!s) s = read_marks(q, n, least);
  }
  if (!s) s = transfer(q, work->after, work->n_after, q->stream);
  if (!s) s = fl_cuda_check(api->cuStreamSynchronize(q->stream), "profile");
  api->cuGraphExecDestroy(exec);
  return s ? s : verdict(q, false);
}

fl_status fl_cuda_profile(fl_queue *base, const fl_work *work, int n, double *us) {
  fl_cuda_queue *q = (fl_cuda_queue *)base;
  float *least = fl_malloc(((size_t)n + 1) * sizeof *least);
  q->marks = fl_calloc((size_t)n + 2, sizeof *q->marks);
  enter(q);
  for (int i = 0; least && i <= n; i++) least[i] = 1e30f;
  fl_status s = least && q->marks ? NULL : fl_oom();
  if (!s) s = fl_cuda_check(q->device->api->cuEventSynchronize(q->done), "the run before");
  if (!s) s = fl_cuda_check(q->device->api->cuStreamSynchronize(current_stream), "the caller's stream");
  if (!s) s = run_marked(q, work, n, least);
  for (int i = 0; i < n && !s; i++) us[i] += least[i + 1] > least[0] ? (double)(least[i + 1] - least[0]) : 0;
  for (int i = 0; q->marks && i < n + 2; i++)
    if (q->marks[i]) q->device->api->cuEventDestroy_v2(q->marks[i]);
  leave(q);
  fl_free(q->marks);
  fl_free(least);
  q->marks = NULL;
  return s;
}
