#include "cuda/emulator_case.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "cuda/cache.h"
#include "cuda/conv.h"
#include "cuda/graph.h"
#include "cuda/nvrtc.h"
#include "cuda/ops.h"
#include "cuda/sources.h"

#if defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#include <sanitizer/asan_interface.h>
#define SANITIZERS "-fsanitize=address,undefined" /* the runtimes are those of this program */
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define SANITIZERS                        "-fsanitize=undefined -static-libubsan"
#endif
#define FLAGS "-std=c++17 -O1 -g1 -w -mf16c -ffp-contract=off -shared -fPIC -fno-sanitize-recover=all " SANITIZERS

extern const char fl_cuda_source_emulator_before[], fl_cuda_source_emulator_after[]; /* made by the build */

/* The linker gives these for the functions without __wrap_ (CMakeLists.txt). */
void __wrap_fl_cuda_launch(const fl_run_args *a, fl_text *source, int64_t grid, int block, size_t shared_bytes,
                           void **pointers, int n_pointers);
void __wrap_fl_cuda_run_cublaslt(const fl_run_args *a);
void __wrap_fl_cuda_run_conv(const fl_run_args *a);
fl_status __wrap_fl_cuda_download(const fl_backend *b, void *dst, const void *src, size_t bytes);

typedef void (*launcher)(long long grid, int threads, size_t shared_bytes, void *const *arguments);

typedef struct kernel {
  uint64_t hash[2];
  launcher launch;
} kernel;

typedef struct block {
  char *data;
  size_t bytes;
} block;

static struct {
  FL_VEC(kernel) kernels;
  FL_VEC(block) blocks; /* of the backend's memory */
  fl_emulator_stats stats;
  fl_backend backend;
  bool no_own_convs;
} emulator;

static void fail(const char *what, const char *about) {
  fprintf(stderr, "emulator: %s: %s\n", what, about);
  exit(1);
}

/* --- compiling --- */

const char *fl_emulator_why_not(void) {
  static char why[200];
  if (!*FL_EMULATOR_CXX) return "CMake found no g++";
  if (fl_cpu_isa() < FL_ISA_AVX2) return "the processor has no AVX2 and F16C, or FRAMELIFT_ISA leaves them out";
  if (system(FL_EMULATOR_CXX " --version > /dev/null 2>&1") == 0) return NULL;
  snprintf(why, sizeof why, "%s does not run", FL_EMULATOR_CXX);
  return why;
}

static void hash_of(const char *source, uint64_t h[2]) {
  const uint64_t seed[2] = FL_CUDA_HASH_SEED;
  memcpy(h, seed, sizeof seed);
  fl_cuda_hash(h, FL_EMULATOR_CXX " " FLAGS);
  fl_cuda_hash(h, fl_cuda_source_emulator_before);
  fl_cuda_hash(h, fl_cuda_source_prelude);
  fl_cuda_hash(h, source);
  fl_cuda_hash(h, fl_cuda_source_emulator_after);
}

static void write_program(const char *path, const char *source) {
  FILE *f = fopen(path, "w");
  if (!f) fail(path, strerror(errno));
  fprintf(f, "%s%s%s\n%s", fl_cuda_source_emulator_before, fl_cuda_source_prelude, source,
          fl_cuda_source_emulator_after);
  if (fclose(f)) fail(path, strerror(errno));
}

/* Into a file of this process's own, renamed when it is complete: several tests may need it at once. */
static void compile_program(const char *base, const char *source) {
  char path[600], command[2600], made[600], library[600];
  snprintf(path, sizeof path, "%s.%d.cpp", base, (int)getpid());
  snprintf(made, sizeof made, "%s.%d.so", base, (int)getpid());
  snprintf(library, sizeof library, "%s.so", base);
  snprintf(command, sizeof command, "%s %s -o '%s' '%s'", FL_EMULATOR_CXX, FLAGS, made, path);
  write_program(path, source);
  if (system(command)) fail("cannot be compiled", path);
  if (rename(made, library)) fail(library, strerror(errno));
  remove(path);
  emulator.stats.compiled++;
}

static launcher load(const uint64_t h[2], const char *source) {
  char base[500], library[600];
  mkdir(FL_EMULATOR_FOLDER, 0777);
  snprintf(base, sizeof base, "%s/%016" PRIx64 "%016" PRIx64, FL_EMULATOR_FOLDER, h[0], h[1]);
  snprintf(library, sizeof library, "%s.so", base);
  if (access(library, R_OK)) compile_program(base, source);
  void *so = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!so) fail("cannot be loaded", dlerror());
  launcher launch = NULL;
  void *symbol = dlsym(so, "emulated_launch");
  memcpy(&launch, &symbol, sizeof launch);
  return launch;
}

static launcher launcher_of(const char *source) {
  uint64_t h[2];
  hash_of(source, h);
  for (size_t i = 0; i < emulator.kernels.len; i++)
    if (!memcmp(emulator.kernels.data[i].hash, h, sizeof h)) return emulator.kernels.data[i].launch;
  kernel made = {.hash = {h[0], h[1]}, .launch = load(h, source)};
  if (!FL_PUSH(&emulator.kernels, made)) fail("out of memory", "kernels");
  emulator.stats.kernels++;
  return made.launch;
}

/* --- memory: what a kernel may touch --- */

static void *allocate(const fl_backend *b, size_t bytes) {
  block made = {fl_malloc_aligned(bytes + 1), bytes};
  if (made.data && !FL_PUSH(&emulator.blocks, made)) fail("out of memory", "blocks");
  return made.data;
}

static void release(const fl_backend *b, void *data) {
  for (size_t i = 0; i < emulator.blocks.len; i++) {
    if (emulator.blocks.data[i].data != data) continue;
    emulator.blocks.data[i] = emulator.blocks.data[--emulator.blocks.len];
    break;
  }
  fl_free_aligned(data);
}

/* From the first byte to the last; a vector of 16 bytes that holds some of it may be read. */
static void permit(const void *data, size_t bytes) {
  uintptr_t from = (uintptr_t)data / 16 * 16, to = ((uintptr_t)data + bytes + 15) / 16 * 16;
  for (size_t i = 0; i < emulator.blocks.len; i++) {
    const block *b = &emulator.blocks.data[i];
    uintptr_t begin = (uintptr_t)b->data, end = begin + b->bytes;
    if (!bytes || from < begin || from >= end) continue;
    ASAN_UNPOISON_MEMORY_REGION((void *)from, (to < end ? to : end) - from);
  }
}

static void permit_tensor(const fl_tensor *t) {
  int64_t last = 0;
  if (!t->data || !fl_type_numel(&t->type)) return;
  for (int d = 0; d < t->type.rank; d++) last += (t->type.dims[d] - 1) * t->strides[d];
  permit(t->data, (size_t)(last + 1) * fl_dtype_size(t->type.dtype));
}

static void forbid_all(void) {
  for (size_t i = 0; i < emulator.blocks.len; i++)
    ASAN_POISON_MEMORY_REGION(emulator.blocks.data[i].data, emulator.blocks.data[i].bytes);
}

static void permit_all(void) {
  for (size_t i = 0; i < emulator.blocks.len; i++)
    ASAN_UNPOISON_MEMORY_REGION(emulator.blocks.data[i].data, emulator.blocks.data[i].bytes);
}

/* Scratch has no size here: a kernel that has some may touch everything. Copies have no parameters. */
static void permit_operands(const fl_run_args *a) {
  static const fl_cuda_params copy = {.n_in = 1, .n_out = 1};
  const fl_cuda_params *p = a->params ? a->params : &copy;
  if (a->scratch || a->spare) return;
  forbid_all();
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i]) permit_tensor(&a->in[i]);
  for (int i = 0; i < p->n_out; i++) permit_tensor(&a->out[i]);
}

/* --- in place of CUDA's --- */

void __wrap_fl_cuda_launch(const fl_run_args *a, fl_text *source, int64_t grid, int threads, size_t shared_bytes,
                           void **pointers, int n_pointers) {
  void *arguments[FL_CUDA_MAX_PARAMS] = {0};
  if (source->failed || n_pointers > FL_CUDA_MAX_PARAMS) fail("cannot be launched", "out of memory, or parameters");
  memcpy(arguments, pointers, (size_t)n_pointers * sizeof *pointers);
  if (grid) {
    launcher launch = launcher_of(source->data);
    permit_operands(a);
    launch(grid, threads, shared_bytes, arguments);
    permit_all();
    emulator.stats.launches++;
  }
  fl_text_free(source);
}

void __wrap_fl_cuda_run_cublaslt(const fl_run_args *a) { fl_cuda_run_map(a); }

/* As where there is no library: the sum alone, then what a library's epilogue does. */
static void run_direct(const fl_run_args *a, const fl_cuda_conv *c) {
  fl_cuda_params plain = *(const fl_cuda_params *)a->params;
  fl_run_args b = *a;
  if (a->in[3].data == a->out[0].data || !c->even) {
    fl_cuda_run_map(a);
    return;
  }
  for (int i = 2; i < 4; i++) plain.absent[i] = true;
  for (int i = 0; i < plain.attrs.count; i++)
    if (!strcmp(plain.attrs.items[i].key, "act")) plain.attrs.items[i].v.i = FL_ACT_NONE;
  b.params = &plain;
  fl_cuda_run_map(&b);
  fl_cuda_conv_finish(a, c);
}

void __wrap_fl_cuda_run_conv(const fl_run_args *a) {
  static const fl_cuda_device device = {.arch = 90};
  fl_cuda_queue queue = {.device = &device};
  fl_cuda_conv c = fl_cuda_conv_of(a, a->params);
  fl_run_args own = *a;
  own.queue = &queue.base;
  if (emulator.no_own_convs || !fl_cuda_conv_is_ours(&c, device.arch)) {
    run_direct(a, &c);
    return;
  }
  emulator.stats.own_convs++;
  fl_cuda_conv_own(&own, &c);
}

fl_status __wrap_fl_cuda_download(const fl_backend *b, void *dst, const void *src, size_t bytes) {
  memcpy(dst, src, bytes);
  return NULL;
}

/* --- the backend --- */

const fl_backend *fl_emulator_backend(void) {
  emulator.backend = fl_backend_cpu;
  emulator.backend.name = "emulator";
  emulator.backend.immediate = false;
  emulator.backend.candidates = fl_cuda_table.candidates;
  emulator.backend.why_not = fl_cuda_table.why_not;
  emulator.backend.kernel = fl_cuda_table.kernel;
  emulator.backend.copy = fl_cuda_table.copy;
  emulator.backend.allocate = allocate;
  emulator.backend.release = release;
  return &emulator.backend;
}

void fl_emulator_own_convs(bool own) { emulator.no_own_convs = !own; }
fl_emulator_stats fl_emulator_stats_of(void) { return emulator.stats; }

int fl_emulator_summary(const char *what, int checks, int failed) {
  const fl_emulator_stats *s = &emulator.stats;
  printf("%s: %d kernels (%d compiled now), %d launches, %d checks, %d failed\n", what, s->kernels, s->compiled,
         s->launches, checks, failed);
  return failed != 0;
}
