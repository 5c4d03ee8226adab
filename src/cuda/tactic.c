#include "cuda/tactic.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/stages.h"
#include "cuda/cache.h"

enum { BUCKETS = 64, STREAM_NON_BLOCKING = 1, CAPTURE_RELAXED = 2 };
enum { RUNS = 16, LEAST_RUNS = 3, MAX_COPIES = RUNS, REPEATS = 3, ENOUGH_US = 800, PROBLEM_MS = 60 };
static const float BEHIND = 1.2f;
static const char file_name[] = "tactics.txt";

typedef struct entry {
  struct entry *next;
  fl_cuda_tactic_entry e;
} entry;

static struct {
  pthread_mutex_t lock; /* of everything here, and while timing */
  bool loaded;
  entry *buckets[BUCKETS];
  fl_cuda_tactic_stats stats;
  const fl_cuda_device *owner; /* of the block */
  fl_cu_ptr block;
  size_t block_bytes;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

fl_cuda_tactic_stats fl_cuda_tactic_get_stats(void) {
  pthread_mutex_lock(&state.lock);
  fl_cuda_tactic_stats s = state.stats;
  pthread_mutex_unlock(&state.lock);
  return s;
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* --- what is known --- */

bool fl_cuda_tactic_parse(const char *line, fl_cuda_tactic_entry *out) {
  fl_cuda_tactic_entry e;
  char end = 0;
  if (sscanf(line, "%16" SCNx64 "%16" SCNx64 " %d %d %f %c", &e.hash[0], &e.hash[1], &e.n, &e.choice, &e.us, &end) < 6)
    return false;
  if (end != '.' || e.n < 2 || e.choice < -1 || e.choice >= e.n || !(e.us >= 0)) return false;
  *out = e;
  return true;
}

void fl_cuda_tactic_print(const fl_cuda_tactic_entry *e, char *line, size_t size) {
  snprintf(line, size, "%016" PRIx64 "%016" PRIx64 " %d %d %.3f .\n", e->hash[0], e->hash[1], e->n, e->choice,
           (double)e->us);
}

static entry *find(const uint64_t h[2], int n) {
  for (entry *e = state.buckets[h[0] % BUCKETS]; e; e = e->next)
    if (e->e.hash[0] == h[0] && e->e.hash[1] == h[1] && e->e.n == n) return e;
  return NULL;
}

/* Forgotten when out of memory: the problem is timed again. */
static void keep(const fl_cuda_tactic_entry *what) {
  entry *e = find(what->hash, what->n);
  if (!e) {
    e = fl_malloc(sizeof *e);
    if (!e) return;
    e->next = state.buckets[what->hash[0] % BUCKETS];
    state.buckets[what->hash[0] % BUCKETS] = e;
  }
  e->e = *what;
}

static void load(void) {
  size_t bytes;
  fl_cuda_tactic_entry e;
  state.loaded = true;
  char *text = fl_cuda_cache_read(file_name, &bytes), *rest = NULL;
  for (char *line = text ? strtok_r(text, "\n", &rest) : NULL; line; line = strtok_r(NULL, "\n", &rest)) {
    if (!fl_cuda_tactic_parse(line, &e)) continue;
    keep(&e);
    state.stats.from_disk++;
  }
  fl_free(text);
}

/* --- timing --- */

typedef struct trial {
  const fl_cuda_device *device;
  const fl_cuda_tactic *t;
  fl_cu_stream stream;
  fl_cu_event begin, end;
  float roughly;   /* the best of single runs */
  int copies;      /* of cold buffers */
  fl_cu_ptr flush; /* larger than the cache; 0 = no operand is cold */
  size_t flush_bytes;
  fl_cu_ptr at[FL_CUDA_TACTIC_BUFFERS]; /* of the first copy */
} trial;

static size_t room(size_t bytes) { return (bytes + 255) / 256 * 256; }

static void drop_block(void) {
  if (state.block) {
    const fl_cuda_api *api = state.owner->api;
    api->cuCtxPushCurrent_v2(state.owner->context);
    api->cuMemFree_v2(state.block);
    api->cuCtxPopCurrent_v2(&(fl_cu_context){0});
  }
  state.block = state.block_bytes = 0;
}

/* A block of the device that is at least as large. */
static bool make_block(const trial *r, size_t bytes) {
  if (bytes <= state.block_bytes && state.owner == r->device) return true;
  drop_block();
  if (r->device->api->cuMemAlloc_v2(&state.block, bytes)) return false;
  state.owner = r->device;
  state.block_bytes = bytes;
  return !r->device->api->cuMemsetD8Async(state.block, 0x3c, bytes, r->stream);
}

/* Places the buffers in the block. */
static bool make_buffers(trial *r) {
  size_t cold = 0, total, l2 = (size_t)r->device->l2_bytes;
  for (int i = 0; i < FL_CUDA_TACTIC_BUFFERS; i++)
    if (r->t->buffers[i].cold) cold += room(r->t->buffers[i].bytes);
  r->copies = !cold || cold > 2 * l2 ? 1 : (int)(2 * l2 / cold) + 1;
  if (r->copies > MAX_COPIES) r->copies = MAX_COPIES;
  total = r->flush_bytes = cold ? 2 * l2 : 0;
  for (int i = 0; i < FL_CUDA_TACTIC_BUFFERS; i++) {
    r->at[i] = total; /* an offset for now */
    total += room(r->t->buffers[i].bytes) * (size_t)(r->t->buffers[i].cold ? r->copies : 1);
  }
  if (!make_block(r, total)) return false;
  r->flush = cold ? state.block : 0;
  for (int i = 0; i < FL_CUDA_TACTIC_BUFFERS; i++) r->at[i] += state.block;
  return true;
}

static int launch(const trial *r, int candidate, int run) {
  void *buffers[FL_CUDA_TACTIC_BUFFERS];
  for (int i = 0; i < FL_CUDA_TACTIC_BUFFERS; i++) {
    size_t bytes = r->t->buffers[i].bytes;
    size_t skip = r->t->buffers[i].cold ? room(bytes) * (size_t)(run % r->copies) : 0;
    buffers[i] = bytes ? (void *)(uintptr_t)(r->at[i] + skip) : NULL;
  }
  return r->t->launch(r->t->arg, candidate, buffers, r->stream);
}

/* Microseconds from event to event, or a negative number. */
static float elapsed(const trial *r) {
  float ms = -1;
  if (r->device->api->cuEventSynchronize(r->end)) return -1;
  return r->device->api->cuEventElapsedTime(&ms, r->begin, r->end) ? -1 : ms * 1000;
}

static float once(const trial *r, int candidate) {
  const fl_cuda_api *api = r->device->api;
  api->cuEventRecord(r->begin, r->stream);
  int failed = launch(r, candidate, 1);
  api->cuEventRecord(r->end, r->stream);
  float us = elapsed(r);
  return failed ? -1 : us;
}

/* Straight on the stream: loads what is loaded lazily, and tells roughly how long it takes: more, where the host was busy
 * between the two events. */
static float rough(const trial *r, int candidate) {
  if (launch(r, candidate, 0) || r->device->api->cuStreamSynchronize(r->stream)) return -1;
  return once(r, candidate);
}

static fl_cu_graph_exec capture(const trial *r, int candidate, int runs) {
  const fl_cuda_api *api = r->device->api;
  fl_cu_graph graph = NULL;
  fl_cu_graph_exec exec = NULL;
  int failed = 0;
  if (api->cuStreamBeginCapture_v2(r->stream, CAPTURE_RELAXED)) return NULL;
  for (int i = 0; i < runs && !failed; i++) failed = launch(r, candidate, i);
  if (api->cuStreamEndCapture(r->stream, &graph)) return NULL;
  if (!failed && api->cuGraphInstantiateWithFlags(&exec, graph, 0)) exec = NULL;
  api->cuGraphDestroy(graph);
  return exec;
}

/* Negative: it cannot be run, or is far behind. Timed once where `best`, the best before (negative: none), is better by
 * more than rounds of the same differ. */
static float time_candidate(trial *r, int candidate, float best) {
  const fl_cuda_api *api = r->device->api;
  float us = rough(r, candidate), most = 1.6f * r->roughly + 4, least = -1;
  if (us > most) us = once(r, candidate);
  if (us < 0 || us > most) return -1;
  if (us < r->roughly) r->roughly = us;
  int runs = us * RUNS <= ENOUGH_US ? RUNS : us * LEAST_RUNS >= ENOUGH_US ? LEAST_RUNS : (int)(ENOUGH_US / us);
  fl_cu_graph_exec exec = capture(r, candidate, runs);
  if (!exec) return -1;
  for (int i = 0; i < REPEATS; i++) {
    if (r->flush) api->cuMemsetD8Async(r->flush, 0x3c, r->flush_bytes, r->stream);
    api->cuEventRecord(r->begin, r->stream);
    api->cuGraphLaunch(exec, r->stream);
    api->cuEventRecord(r->end, r->stream);
    us = elapsed(r) / (float)runs;
    if (us >= 0 && (least < 0 || us < least)) least = us;
    if (best >= 0 && least > BEHIND * best) break;
  }
  api->cuGraphExecDestroy(exec);
  return least;
}

/* False where nothing could be timed. */
static bool time_all(trial *r, fl_cuda_tactic_entry *out) {
  double began = now_ms();
  bool any = false;
  float best = -1;
  const char *log = getenv("FRAMELIFT_CUDA_TUNE_LOG");
  if (!make_buffers(r)) return false;
  out->choice = -1;
  for (int i = 0; i < r->t->n && (out->choice < 0 || now_ms() - began < PROBLEM_MS); i++) {
    float us = time_candidate(r, i, best);
    if (log) fprintf(stderr, "tactic %d: %.2f us%s", i, (double)us, i + 1 < r->t->n ? ", " : "");
    any = true;
    if (us < 0 || (best >= 0 && us >= best)) continue;
    best = us;
    out->choice = i;
  }
  if (log) fprintf(stderr, " of %s: %d\n", r->t->key, out->choice);
  out->us = best < 0 ? 0 : best;
  /* After an error of the context all candidates fail, which tells nothing about them. */
  if (out->choice < 0 && r->device->api->cuStreamSynchronize(r->stream)) return false;
  return any;
}

static bool measure(const fl_cuda_device *d, const fl_cuda_tactic *t, fl_cuda_tactic_entry *out) {
  const fl_cuda_api *api = d->api;
  trial r = {.device = d, .t = t, .roughly = 1e30f};
  bool done = !api->cuStreamCreate(&r.stream, STREAM_NON_BLOCKING) && !api->cuEventCreate(&r.begin, 0) &&
              !api->cuEventCreate(&r.end, 0) && time_all(&r, out);
  if (r.end) api->cuEventDestroy_v2(r.end);
  if (r.begin) api->cuEventDestroy_v2(r.begin);
  if (r.stream) api->cuStreamDestroy_v2(r.stream);
  return done;
}

static bool is_off(void) {
  const char *s = getenv("FRAMELIFT_CUDA_TUNE");
  return s && !strcmp(s, "0");
}

static int choose(const fl_cuda_device *d, const fl_cuda_tactic *t, fl_cuda_tactic_entry *e) {
  char line[128];
  if (!state.loaded) load();
  const entry *known = find(e->hash, e->n);
  if (known) {
    *e = known->e;
    state.stats.known++;
    return e->choice;
  }
  double began = now_ms();
  if (!measure(d, t, e)) return 0;
  state.stats.ms += now_ms() - began;
  state.stats.timed++;
  keep(e);
  fl_cuda_tactic_print(e, line, sizeof line);
  fl_cuda_cache_append(file_name, line);
  return e->choice;
}

static fl_cuda_tactic_entry entry_of(const fl_cuda_device *d, const fl_cuda_tactic *t) {
  char head[128];
  fl_cuda_tactic_entry e = {.hash = FL_CUDA_HASH_SEED, .n = t->n};
  snprintf(head, sizeof head, "%s sm_%d driver %d ", d->name, d->arch, d->api->driver_version);
  fl_cuda_hash(e.hash, head);
  fl_cuda_hash(e.hash, t->key);
  return e;
}

bool fl_cuda_tactic_known(const fl_cuda_device *d, const fl_cuda_tactic *t, int *out_choice) {
  *out_choice = 0;
  if (t->n < 2 || is_off()) return true;
  fl_cuda_tactic_entry e = entry_of(d, t);
  pthread_mutex_lock(&state.lock);
  if (!state.loaded) load();
  const entry *known = find(e.hash, e.n);
  if (known) *out_choice = known->e.choice;
  pthread_mutex_unlock(&state.lock);
  return known != NULL;
}

int fl_cuda_tactic_choose(const fl_cuda_device *d, const fl_cuda_tactic *t, float *out_us) {
  if (out_us) *out_us = 0;
  if (t->n < 2 || is_off()) return 0;
  fl_cuda_tactic_entry e = entry_of(d, t);
  pthread_mutex_lock(&state.lock);
  fl_stage before = fl_stage_enter(FL_STAGE_tactics);
  int choice = choose(d, t, &e);
  fl_stage_enter(before);
  pthread_mutex_unlock(&state.lock);
  if (out_us) *out_us = e.us;
  return choice;
}

void fl_cuda_tactic_release(const fl_cuda_device *d) {
  pthread_mutex_lock(&state.lock);
  if (state.owner == d) drop_block();
  pthread_mutex_unlock(&state.lock);
}
