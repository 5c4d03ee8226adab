#include "cuda/nvrtc.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/stages.h"
#include "cuda/cache.h"
#include "cuda/sources.h"

typedef struct entry {
  struct entry *next;
  const fl_cuda_device *device; /* whose context holds the function */
  uint64_t hash[2];
  char *source; /* without the prelude */
  fl_cu_function function;
} entry;

struct fl_cuda_pending {
  fl_cuda_pending *next;     /* of the queue */
  fl_cuda_pending *next_job; /* of those that nobody has begun with */
  uint64_t hash[2];
  char *source;
  const fl_cuda_device *device;
  bool done;
  fl_status status;
};

enum { BUCKETS = 256, ATTR_SHARED = 8, ATTR_PROGRAMMATIC = 6 };

static struct {
  pthread_mutex_t lock;
  entry *buckets[BUCKETS];
  fl_cuda_stats stats;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

fl_cuda_stats fl_cuda_compile_stats(void) {
  pthread_mutex_lock(&table.lock);
  fl_cuda_stats s = table.stats;
  pthread_mutex_unlock(&table.lock);
  return s;
}

static void hash_source(const fl_cuda_queue *q, const char *source, uint64_t h[2]) {
  char version[64];
  const fl_cuda_api *api = q->device->api;
  snprintf(version, sizeof version, "sm_%d nvrtc %d.%d ", q->device->arch, api->nvrtc_major, api->nvrtc_minor);
  const uint64_t seed[2] = FL_CUDA_HASH_SEED;
  memcpy(h, seed, sizeof seed);
  fl_cuda_hash(h, version);
  fl_cuda_hash(h, fl_cuda_source_prelude);
  fl_cuda_hash(h, source);
}

static entry *find(const fl_cuda_device *d, const uint64_t h[2], const char *source) {
  for (entry *e = table.buckets[h[0] % BUCKETS]; e; e = e->next)
    if (e->device == d && e->hash[0] == h[0] && e->hash[1] == h[1] && !strcmp(e->source, source)) return e;
  return NULL;
}

static const char *cache_name(const uint64_t h[2], char name[64]) {
  snprintf(name, 64, "%016" PRIx64 "%016" PRIx64 ".cubin", h[0], h[1]);
  return name;
}

/* --- compiling --- */

static fl_status compile_error(const fl_cuda_api *api, fl_rtc_program program, int r, const char *source) {
  size_t bytes = 0;
  api->nvrtcGetProgramLogSize(program, &bytes);
  char *log = fl_calloc(bytes + 1, 1);
  if (log) api->nvrtcGetProgramLog(program, log);
  if (getenv("FRAMELIFT_CUDA_SOURCE")) fprintf(stderr, "%s\n", source);
  fl_status s = fl_fail(FL_INTERNAL, "CUDA: NVRTC: %s: %.600s", api->nvrtcGetErrorString(r), log ? log : "");
  fl_free(log);
  return s;
}

static fl_status compile_program(const fl_cuda_device *d, fl_rtc_program program, const char *source, char **out,
                                 size_t *out_bytes) {
  char arch[40];
  snprintf(arch, sizeof arch, "--gpu-architecture=sm_%d%s", d->arch, d->arch == 90 ? "a" : ""); /* a: with wgmma */
  const char *options[] = {arch, "--std=c++17", "--minimal"}; /* minimal: half of the time before optimization */
  const bool knows_minimal = d->api->nvrtc_major >= 13;
  int r = d->api->nvrtcCompileProgram(program, knows_minimal ? 3 : 2, options);
  if (r) return compile_error(d->api, program, r, source);
  r = d->api->nvrtcGetCUBINSize(program, out_bytes);
  if (r) return compile_error(d->api, program, r, source);
  *out = fl_malloc(*out_bytes);
  if (!*out) return fl_oom();
  r = d->api->nvrtcGetCUBIN(program, *out);
  return r ? compile_error(d->api, program, r, source) : NULL;
}

static fl_status compile(const fl_cuda_device *d, const char *source, char **out, size_t *out_bytes) {
  fl_rtc_program program = NULL;
  fl_text whole = {0};
  fl_text_add(&whole, "%s%s", fl_cuda_source_prelude, source);
  if (whole.failed) return fl_oom();
  int r = d->api->nvrtcCreateProgram(&program, whole.data, "framelift.cu", 0, NULL, NULL);
  fl_status s = r ? fl_fail(FL_INTERNAL, "CUDA: NVRTC: %s", d->api->nvrtcGetErrorString(r))
                  : compile_program(d, program, source, out, out_bytes);
  if (program) d->api->nvrtcDestroyProgram(&program);
  fl_text_free(&whole);
  return s;
}

static int load_function(const fl_cuda_api *api, const char *image, fl_cu_function *out) {
  fl_cu_module module = NULL;
  int r = api->cuModuleLoadData(&module, image);
  if (!r) r = api->cuModuleGetFunction(out, module, "k");
  if (r && module) api->cuModuleUnload(module);
  return r; /* modules of the table live as long as the process */
}

static fl_status get_function(const fl_cuda_device *d, const char *source, const uint64_t h[2], fl_cu_function *out,
                              bool *out_cached) {
  size_t bytes = 0;
  char name[64], *image = fl_cuda_cache_read_written(cache_name(h, name), &bytes);
  *out_cached = image && !load_function(d->api, image, out);
  fl_free(image);
  if (*out_cached) return NULL;
  image = NULL;
  fl_status s = compile(d, source, &image, &bytes);
  if (!s) s = fl_cuda_check(load_function(d->api, image, out), "a compiled kernel");
  if (!s) fl_cuda_cache_write(cache_name(h, name), image, bytes);
  fl_free(image);
  return s;
}

static fl_status keep(const fl_cuda_device *d, const uint64_t h[2], const char *source, fl_cu_function function,
                      bool cached) {
  entry *e = fl_calloc(1, sizeof *e);
  char *copy = fl_strdup(source);
  if (!e || !copy) {
    fl_free(e);
    fl_free(copy);
    return fl_oom();
  }
  pthread_mutex_lock(&table.lock);
  *e = (entry){
      .next = table.buckets[h[0] % BUCKETS], .device = d, .hash = {h[0], h[1]}, .source = copy, .function = function};
  table.buckets[h[0] % BUCKETS] = e;
  table.stats.functions++;
  table.stats.from_disk += cached;
  table.stats.compiled += !cached;
  pthread_mutex_unlock(&table.lock);
  return NULL;
}

static void compile_one(fl_cuda_pending *p) {
  const fl_cuda_device *d = p->device;
  fl_cu_function function = NULL;
  bool cached = false;
  d->api->cuCtxPushCurrent_v2(d->context);
  int mode = fl_cuda_capture_mode(d->api, FL_CUDA_RELAXED);
  p->status = get_function(d, p->source, p->hash, &function, &cached);
  fl_cuda_capture_mode(d->api, mode);
  d->api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
  if (!p->status) p->status = keep(d, p->hash, p->source, function, cached);
}

/* --- the crew: threads that compile what has been noted, while the walk that notes goes on; they end when nothing is left --- */

enum { MAX_CREW = 16 };

static struct {
  pthread_mutex_t lock;
  pthread_cond_t finished; /* a job */
  fl_cuda_pending *first, **end;
  int crew;
} jobs = {.lock = PTHREAD_MUTEX_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER, .end = &jobs.first};

/* With the lock, which is given up meanwhile. False: there is nothing left to begin with. */
static bool do_a_job(void) {
  fl_cuda_pending *p = jobs.first;
  if (!p) return false;
  jobs.first = p->next_job;
  if (!jobs.first) jobs.end = &jobs.first;
  pthread_mutex_unlock(&jobs.lock);
  compile_one(p);
  pthread_mutex_lock(&jobs.lock);
  p->done = true;
  pthread_cond_broadcast(&jobs.finished);
  return true;
}

static void *crew_member(void *unused) {
  pthread_mutex_lock(&jobs.lock);
  while (do_a_job()) continue;
  jobs.crew--;
  pthread_mutex_unlock(&jobs.lock);
  return NULL;
}

/* Where no thread can be had, whoever waits compiles. The thread that notes has work of its own: one core is left for it. */
static void submit(fl_cuda_pending *p) {
  pthread_t thread;
  int most = fl_pool_default_threads() - 1;
  pthread_mutex_lock(&jobs.lock);
  *jobs.end = p;
  jobs.end = &p->next_job;
  if (jobs.crew < (most < MAX_CREW ? most : MAX_CREW) && !pthread_create(&thread, NULL, crew_member, NULL)) {
    pthread_detach(thread);
    jobs.crew++;
  }
  pthread_mutex_unlock(&jobs.lock);
}

static void wait_for(const fl_cuda_pending *p) {
  pthread_mutex_lock(&jobs.lock);
  while (!p->done)
    if (!do_a_job()) pthread_cond_wait(&jobs.finished, &jobs.lock);
  pthread_mutex_unlock(&jobs.lock);
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void add_waited(double since) {
  pthread_mutex_lock(&table.lock);
  table.stats.ms += now_ms() - since;
  pthread_mutex_unlock(&table.lock);
}

/* Its failure is left to fl_cuda_compile_pending. */
static void await(const fl_cuda_pending *p) {
  double began = now_ms();
  fl_stage before = fl_stage_enter(FL_STAGE_compile);
  wait_for(p);
  fl_stage_enter(before);
  add_waited(began);
}

fl_status fl_cuda_compile_pending(fl_cuda_queue *q) {
  fl_status s = NULL;
  if (!q->pending) return NULL;
  double began = now_ms();
  fl_stage before = fl_stage_enter(FL_STAGE_compile);
  for (fl_cuda_pending *p = q->pending, *next; p; p = next) {
    next = p->next;
    wait_for(p);
    if (s)
      fl_status_free(p->status);
    else
      s = p->status;
    fl_free(p->source);
    fl_free(p);
  }
  q->pending = NULL;
  fl_stage_enter(before);
  add_waited(began);
  return s;
}

void fl_cuda_visit_pending(fl_cuda_queue *q, void (*visit)(void *arg, const char *source), void *arg) {
  for (fl_cuda_pending *p = q->pending, *next; p; p = next) {
    next = p->next;
    visit(arg, p->source);
    fl_free(p->source);
    fl_free(p);
  }
  q->pending = NULL;
}

/* --- launching --- */

static fl_cuda_pending *find_pending(const fl_cuda_queue *q, const uint64_t h[2], const char *source) {
  for (fl_cuda_pending *p = q->pending; p; p = p->next)
    if (p->hash[0] == h[0] && p->hash[1] == h[1] && !strcmp(p->source, source)) return p;
  return NULL;
}

/* Takes the text. */
static void note_pending(fl_cuda_queue *q, const uint64_t h[2], char *source) {
  fl_cuda_pending *p = find_pending(q, h, source);
  if (p) {
    fl_free(source);
    if (q->awaiting) await(p);
    return;
  }
  p = fl_calloc(1, sizeof *p);
  if (!p) {
    fl_free(source);
    fl_cuda_note(q, fl_oom());
    return;
  }
  *p = (fl_cuda_pending){.next = q->pending, .hash = {h[0], h[1]}, .source = source, .device = q->device};
  q->pending = p;
  if (q->device->api->nvrtcCreateProgram) submit(p); /* tests write sources for no device */
}

static fl_cu_function lookup(const fl_cuda_device *d, const uint64_t h[2], const char *source) {
  pthread_mutex_lock(&table.lock);
  const entry *e = find(d, h, source);
  pthread_mutex_unlock(&table.lock);
  return e ? e->function : NULL;
}

void fl_cuda_launch(const fl_run_args *a, fl_text *source, int64_t grid, int block, size_t shared_bytes,
                    void **pointers, int n_pointers) {
  fl_cuda_queue *q = fl_cuda_queue_of(a);
  const fl_cuda_api *api = q->device->api;
  uint64_t h[2];
  void *params[FL_CUDA_MAX_PARAMS];
  if (source->failed || !source->data) {
    fl_cuda_note(q, fl_oom());
    fl_text_free(source);
    return;
  }
  hash_source(q, source->data, h);
  fl_cu_function f = lookup(q->device, h, source->data);
  if (q->preparing) {
    if (f || grid == 0)
      fl_text_free(source);
    else
      note_pending(q, h, source->data);
    *source = (fl_text){0};
    return;
  }
  bool follows = strstr(source->data, "FOLLOW;") != NULL;
  fl_text_free(source);
  if (grid == 0) return;
  if (!f || grid > INT32_MAX) {
    fl_cuda_note(q, fl_fail(FL_INTERNAL, "CUDA: a kernel %s", f ? "has too many blocks" : "was not prepared"));
    return;
  }
  for (int i = 0; i < n_pointers; i++) params[i] = &pointers[i];
  if (shared_bytes > 48 << 10) api->cuFuncSetAttribute(f, ATTR_SHARED, (int)shared_bytes);
  /* A kernel that says where it reads what the one before it wrote may be started while that one ends. */
  const fl_cu_launch_attr early = {.id = ATTR_PROGRAMMATIC, .value = {1}};
  fl_cu_launch launch = {.grid = {(unsigned)grid, 1, 1},
                         .block = {(unsigned)block, 1, 1},
                         .shared_bytes = (unsigned)shared_bytes,
                         .stream = q->stream,
                         .attrs = &early,
                         .n_attrs = follows && q->device->arch >= 90 && api->driver_version >= 12030};
  fl_cuda_note(q, fl_cuda_check(api->cuLaunchKernelEx(&launch, f, params, NULL), "kernel launch"));
}
