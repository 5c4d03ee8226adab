/* Attention's kernels: how they cut problems of many shapes, and their results on a GPU. */
#include "cuda/gpu_test.h"
#include "cuda/graph.h"
#include "cuda/nvrtc.h"
#include "cuda/sources.h"
#include "passes/passes.h"

#define QKV(b, h, g, s, t, dq, dv)                                                                                     \
  "graph(%0: f32[" #b "," #h "," #s "," #dq "], %1: f32[" #b "," #g "," #t "," #dq "], %2: f32[" #b "," #g "," #t      \
  "," #dv "]"
#define PLAIN(b, h, g, s, t, dq, dv, scale, causal)                                                                    \
  QKV(b, h, g, s, t, dq, dv)                                                                                           \
  ") {\n %4 = attention(%0, %1, %2, _) scale=" #scale " causal=" #causal " : f32[" #b "," #h "," #s "," #dv "]\n"      \
  " return %4\n}"
#define MASKED(b, h, g, s, t, dq, dv, mask, scale, causal)                                                             \
  QKV(b, h, g, s, t, dq, dv)                                                                                           \
  ", %3: " mask ") {\n %4 = attention(%0, %1, %2, %3) scale=" #scale " causal=" #causal " : f32[" #b "," #h "," #s     \
  "," #dv "]\n return %4\n}"
/* Where %3 is false, `fill` is added. */
#define FILLED(b, h, g, s, t, dq, dv, mask, fill)                                                                      \
  QKV(b, h, g, s, t, dq, dv)                                                                                           \
  ", %3: bool[" mask "], %5: literal f32[] = [0], %6: literal f32[] = [" fill "]) {\n"                                 \
  " %7 = where(%3, %5, %6) : f32[" mask "]\n"                                                                          \
  " %4 = attention(%0, %1, %2, %7) scale=0.25 causal=0 : f32[" #b "," #h "," #s "," #dv "]\n return %4\n}"

static const char *const graphs[] = {
    /* head sizes, those that fill no 16 too; keys and queries that fill no tile */
    PLAIN(2, 3, 3, 40, 70, 16, 16, 0.25, 0),
    PLAIN(1, 2, 2, 100, 129, 32, 32, 0.2, 0),
    PLAIN(2, 4, 4, 65, 77, 40, 40, 0.2, 0),
    PLAIN(1, 4, 4, 130, 200, 64, 64, 0.5, 0),
    PLAIN(2, 2, 2, 50, 333, 80, 80, 0.2, 0),
    PLAIN(1, 3, 3, 90, 64, 96, 96, 0.2, 0),
    PLAIN(1, 3, 3, 70, 150, 128, 128, 0.2, 0),
    PLAIN(1, 2, 2, 33, 70, 192, 128, 0.2, 0),
    PLAIN(1, 2, 2, 80, 300, 256, 256, 0.2, 0),
    PLAIN(1, 2, 2, 5, 77, 20, 33, 0.2, 0),
    PLAIN(1, 1, 1, 30, 45, 7, 12, 0.2, 0),
    PLAIN(1, 2, 2, 9, 40, 300, 280, 0.1, 0),
    PLAIN(1, 2, 1, 9, 40, 64, 400, 0.1, 0),
    PLAIN(2, 1, 1, 3, 1, 64, 64, 0.1, 0),
    /* causal, with fewer and with more keys than queries */
    PLAIN(1, 2, 2, 300, 300, 64, 64, 0.5, 1),
    PLAIN(1, 2, 2, 130, 40, 64, 64, 0.5, 1),
    PLAIN(1, 2, 2, 17, 200, 64, 64, 0.5, 1),
    PLAIN(2, 4, 2, 150, 150, 128, 128, 0.3, 1),
    PLAIN(1, 2, 2, 20, 50, 20, 20, 0.3, 1),
    /* heads that share keys; few queries; many keys */
    PLAIN(2, 6, 2, 33, 65, 32, 16, 0.2, 0),
    PLAIN(1, 32, 8, 1, 1500, 128, 128, 0.3, 0),
    PLAIN(2, 4, 4, 1, 1000, 64, 64, 0.3, 0),
    PLAIN(1, 8, 1, 3, 2000, 64, 64, 0.3, 0),
    PLAIN(1, 4, 4, 16, 700, 256, 256, 0.1, 0),
    PLAIN(1, 2, 2, 40, 3000, 64, 64, 0.3, 0),
    PLAIN(3, 5, 5, 2, 9, 24, 24, 0.3, 1),
    /* enough rows for the largest tiles */
    PLAIN(6, 44, 44, 150, 80, 64, 64, 0.5, 0),
    PLAIN(6, 44, 22, 130, 70, 128, 128, 0.3, 1),
    /* scales that do not keep the order of scores */
    PLAIN(1, 2, 2, 30, 50, 64, 64, -0.5, 0),
    PLAIN(1, 2, 2, 30, 50, 64, 64, 0.0, 0),
    /* masks: added or kept, that repeat along each axis; a few rows of three keys keep none */
    MASKED(2, 4, 4, 100, 104, 64, 64, "f32[2,1,1,104]", 0.5, 0),
    MASKED(2, 4, 4, 100, 101, 64, 64, "f32[1,4,100,101]", 1.0, 0),
    MASKED(2, 4, 2, 33, 64, 32, 16, "f32[2,4,33,64]", 0.2, 1),
    MASKED(2, 4, 4, 40, 64, 40, 40, "f32[40,1]", 0.2, 0),
    MASKED(1, 8, 8, 300, 256, 64, 64, "f32[8,300,256]", 1.0, 0),
    MASKED(1, 4, 4, 1, 600, 64, 64, "f32[4,1,600]", 1.0, 0),
    MASKED(1, 2, 2, 70, 80, 128, 128, "f32[70,80]", 1.0, 0),
    MASKED(1, 2, 2, 70, 90, 256, 256, "f32[70,90]", 1.0, 0),
    MASKED(2, 4, 2, 33, 65, 32, 16, "bool[33,65]", 0.2, 0),
    MASKED(2, 4, 4, 50, 64, 64, 64, "bool[2,1,50,64]", 0.5, 1),
    MASKED(2, 8, 8, 60, 3, 64, 64, "bool[2,8,60,3]", 0.5, 0),
    MASKED(2, 8, 8, 60, 300, 64, 64, "bool[2,8,60,1]", 0.5, 0),
    MASKED(2, 8, 2, 1, 900, 64, 64, "bool[2,1,1,900]", 0.5, 0),
    MASKED(2, 4, 4, 60, 72, 64, 64, "F32[4,60,72]", 0.5, 0),
    MASKED(2, 4, 4, 6, 37, 64, 64, "F32[2,1,6,37]", 0.5, 0),
    FILLED(2, 8, 8, 60, 3, 64, 64, "2,8,60,3", "-inf"),
    FILLED(2, 8, 8, 60, 3, 64, 64, "2,8,60,3", "-3.4e38"),
    FILLED(1, 8, 8, 60, 70, 32, 32, "60,70", "-30000"),
    /* operands that are parts or views of others */
    "graph(%0: f32[2,50,768]) {\n %1 = reshape(%0) dims=[2,50,12,64] : f32[2,50,12,64]\n"
    " %2 = permute(%1) perm=[0,2,1,3] : f32[2,12,50,64]\n"
    " %3 = slice(%2) axis=1 start=0 stop=4 step=1 : f32[2,4,50,64]\n"
    " %4 = slice(%2) axis=1 start=4 stop=8 step=1 : f32[2,4,50,64]\n"
    " %5 = slice(%2) axis=1 start=8 stop=12 step=1 : f32[2,4,50,64]\n"
    " %6 = attention(%3, %4, %5, _) scale=0.125 causal=0 : f32[2,4,50,64]\n return %6\n}",
    "graph(%0: f32[2,4,50,36], %1: f32[2,4,36,70], %2: f32[1,1,70,64], %3: f32[50,70,4]) {\n"
    " %4 = permute(%1) perm=[0,1,3,2] : f32[2,4,70,36]\n %5 = expand(%2) dims=[2,4,70,64] : f32[2,4,70,64]\n"
    " %6 = permute(%3) perm=[2,0,1] : f32[4,50,70]\n"
    " %7 = attention(%0, %4, %5, %6) scale=0.2 causal=0 : f32[2,4,50,64]\n return %7\n}",
};

/* --- without a GPU --- */

typedef struct written {
  char *text[4];
  int n;
} written;

static void keep_source(void *arg, const char *source) {
  written *w = arg;
  const char *folder = getenv("FRAMELIFT_CUDA_DUMP"); /* keeps each source there, to be tried with nvcc */
  static int n;
  char path[512];
  if (w->n < 4) w->text[w->n++] = fl_strdup(source);
  snprintf(path, sizeof path, "%s/attention%03d.cu", folder ? folder : "", n++);
  FILE *f = folder ? fopen(path, "w") : NULL;
  if (!f) return;
  fprintf(f, "%s%s", fl_cuda_source_prelude, source);
  fclose(f);
}

static void write_steps(const fl_plan *p, fl_cuda_queue *q) {
  for (size_t i = 0; i < p->run.len; i++) {
    const fl_step *s = &p->run.data[i];
    fl_tensor tensors[5] = {0};
    for (int k = 0; k < s->n_in + s->n_out; k++) {
      const fl_operand *o = &p->operands.data[s->operands + (uint32_t)k];
      tensors[k].type = o->type;
      memcpy(tensors[k].strides, o->strides, sizeof o->strides);
    }
    fl_run_args a = {.params = s->params, .in = tensors, .out = tensors + s->n_in, .queue = &q->base};
    if (s->kind == FL_STEP_KERNEL) p->backend->kernel(s->kernel)->run(&a);
  }
}

/* The sources for a graph of one attention on a device of this architecture, and its kernel. */
static written write_graph_for(int arch, const char *text, const char *type, char kernel[64], size_t *out_scratch) {
  static const fl_cuda_api api;
  const fl_cuda_device device = {.api = &api, .arch = arch, .multiprocessors = 132};
  fl_backend backend = fl_cuda_table;
  fl_cuda_queue q = {.device = &device, .preparing = true};
  fl_plan_options options = {.threads = 1, .backend = &backend};
  backend.device = &device;
  char *typed = with_type(text, type);
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  written w = {0};
  *kernel = 0;
  FL_CHECK_OK(fl_graph_parse(typed, &g));
  if (g) FL_CHECK_OK(fl_passes_run(g, false));
  if (g) FL_CHECK_OK(fl_plan_build(g, &options, &p));
  if (p) {
    for (size_t i = 0; i < p->run.len; i++) {
      const fl_step *step = &p->run.data[i];
      if (step->kind != FL_STEP_KERNEL || p->backend->kernel(step->kernel)->op != FL_OP_ATTENTION) continue;
      snprintf(kernel, 64, "%s", p->backend->kernel(step->kernel)->name);
      *out_scratch = step->scratch == SIZE_MAX ? 0 : p->arena_bytes;
    }
    write_steps(p, &q);
    FL_CHECK_OK(q.failed);
    fl_cuda_visit_pending(&q, keep_source, &w);
  }
  fl_plan_destroy(p);
  fl_graph_destroy(g);
  fl_free(typed);
  return w;
}

static written write_graph(const char *text, const char *type, char kernel[64], size_t *out_scratch) {
  return write_graph_for(90, text, type, kernel, out_scratch);
}

static void forget(written *w) {
  for (int i = 0; i < w->n; i++) fl_free(w->text[i]);
}

static void check_written(const char *text, const char *type, const char *kernel, const char *const *parts) {
  char name[64];
  size_t scratch = 0;
  written w = write_graph(text, type, name, &scratch);
  FL_CHECK_MSG(!strcmp(name, kernel), "%s instead of %s for %s", name, kernel, text);
  bool found = false;
  for (; *parts; parts++) {
    found = false;
    for (int i = 0; i < w.n; i++) found = found || strstr(w.text[i], *parts);
    FL_CHECK_MSG(found, "no \"%s\" for %s", *parts, text);
  }
  forget(&w);
}

#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})

FL_TEST(problems_are_cut) {
  check_written(PLAIN(1, 12, 12, 512, 512, 64, 64, 0.125, 0), "f16", "cuda_attention_flash",
                PARTS("#define SPLITS 1\n", "#define WHOLE 1\n", "#define BF16 0\n", "#define SCALED 0\n",
                      "#define KVEC 8\n", "#define WGMMA 1\n", "m64n128k16.f32.f16.f16 {%0,", "\"+f\"(d[63]) :"));
  check_written(PLAIN(1, 32, 8, 1, 4096, 128, 128, 0.1, 0), "bf16", "cuda_attention_flash",
                PARTS("#define GROUP 4\n", "#define BF16 1\n", "#define SPLITS 12\n", "#define WM 1\n",
                      "#define WGMMA 0\n", "exp2f((weight[s] - max)"));
  check_written(MASKED(1, 8, 8, 128, 128, 64, 64, "f32[8,128,128]", 1.0, 0), "f16", "cuda_attention_flash",
                PARTS("#define MASK 1\n", "#define MVEC 8\n", "#define WIDE 0\n", "#define SCALED 1\n"));
  check_written(MASKED(1, 8, 8, 128, 49, 64, 64, "f32[8,128,49]", 1.0, 0), "bf16", "cuda_attention_flash",
                PARTS("#define MVEC 1\n", "#define WIDE 1\n"));
  check_written(MASKED(1, 8, 8, 128, 49, 20, 33, "bool[128,1]", 1.0, 0), "f16", "cuda_attention_flash",
                PARTS("#define MASK 2\n", "#define MVEC 0\n", "#define QVEC 4\n", "#define VVEC 1\n"));
  check_written(PLAIN(1, 4, 4, 100, 100, 64, 64, 0.1, 1), "f32", "cuda_attention_tile",
                PARTS("#define CAUSAL 1\n", "#define BM 16\n"));
  check_written(PLAIN(1, 4, 4, 1, 4096, 64, 64, 0.1, 0), "f32", "cuda_attention_tile",
                PARTS("#define BM 16\n", "#define SPLITS 32\n"));
  check_written(PLAIN(1, 4, 4, 100, 100, 300, 280, 0.1, 0), "f16", "cuda_attention_row", PARTS("#define DQ 300\n"));
}

FL_TEST(every_graph_is_written) {
  char name[64];
  size_t scratch;
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++)
    for (int k = 0; k < 3; k++) {
      written w = write_graph(graphs[i], (const char *[]){"f32", "f16", "bf16"}[k], name, &scratch);
      FL_CHECK_MSG(w.n >= 1 && strstr(name, "cuda_attention"), "%s", graphs[i]);
      for (int n = 0; n < w.n; n++) FL_CHECK(strstr(w.text[n], "k(const ") && !strstr(w.text[n], "(null)"));
      forget(&w);
    }
}

/* Distinct sources for queries and keys of each of these numbers, from `first` on. */
static int distinct_sources(const char *form, const char *type, int first, int last, int step, bool decodes) {
  char *seen[512], text[512], name[64];
  size_t scratch;
  int n = 0;
  for (int t = first; t <= last; t += step) {
    int s = decodes ? 1 : t;
    snprintf(text, sizeof text, form, s, t, t, s, s);
    written w = write_graph(text, type, name, &scratch);
    for (int i = 0; i < w.n; i++) {
      int k = 0;
      while (k < n && strcmp(seen[k], w.text[i])) k++;
      if (k == n && n < 512) seen[n++] = fl_strdup(w.text[i]);
    }
    forget(&w);
  }
  for (int k = 0; k < n; k++) fl_free(seen[k]);
  return n;
}

/* Texts of other lengths are no reason to compile: what is left are tiles, and whether the last one is full. */
FL_TEST(lengths_share_kernels) {
  static const char plain[] = "graph(%%0: f32[4,12,%d,32], %%1: f32[4,12,%d,32], %%2: f32[4,12,%d,32]) {\n"
                              " %%3 = attention(%%0, %%1, %%2, _) scale=0.2 causal=0 : f32[4,12,%d,32]\n"
                              " %%4 = permute(%%3) perm=[0,2,1,3] : f32[4,%d,12,32]\n return %%4\n}";
  int flash = distinct_sources(plain, "f16", 33, 512, 1, false),
      tile = distinct_sources(plain, "f32", 33, 512, 1, false);
  FL_CHECK_MSG(flash <= 12, "%d sources", flash);
  FL_CHECK_MSG(tile <= 4, "%d sources", tile);
  int decode = distinct_sources(plain, "f16", 1024, 8192, 64, true);
  FL_CHECK_MSG(decode <= 12, "%d sources", decode);
}

static int number_after(const char *text, const char *name) {
  const char *at = strstr(text, name);
  return at ? atoi(at + strlen(name)) : -1;
}

/* Each architecture gets kernels that it has, and tiles that fit. */
FL_TEST(architectures_differ) {
  static const int archs[] = {70, 75, 80, 86, 89, 90, 100, 120};
  char name[64];
  size_t scratch;
  for (size_t a = 0; a < sizeof archs / sizeof *archs; a++)
    for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++) {
      written w = write_graph_for(archs[a], graphs[i], "f16", name, &scratch);
      bool flash = !strcmp(name, "cuda_attention_flash");
      FL_CHECK_MSG(!flash || archs[a] >= 80, "sm_%d: %s", archs[a], graphs[i]);
      for (int n = 0; flash && n < w.n; n++) {
        int warps = number_after(w.text[n], "#define WM "), wgmma = number_after(w.text[n], "#define WGMMA ");
        if (warps < 0) continue; /* a copy, or what combines parts */
        FL_CHECK(warps >= 1 && number_after(w.text[n], "#define BN ") >= 32 &&
                 number_after(w.text[n], "#define BN ") % 32 == 0);
        FL_CHECK(wgmma == 0 || (archs[a] == 90 && warps % 4 == 0));
      }
      forget(&w);
    }
}

/* --- with one --- */

/* FRAMELIFT_TEST_PART=i/n takes a part of the graphs: most of the time goes into compiling kernels. */
static bool is_mine(size_t graph) {
  const char *part = getenv("FRAMELIFT_TEST_PART");
  unsigned i = 0, n = 1;
  return !part || sscanf(part, "%u/%u", &i, &n) < 2 || !n || graph % n == i;
}

FL_TEST(attention_on_the_gpu) {
  const fl_backend *backend = NULL;
  fl_pool *pool = NULL;
  fl_status s = fl_cuda_backend(0, &backend);
  if (s) {
    printf("no GPU: %s\n", fl_status_message(s));
    fl_status_free(s);
    return;
  }
  FL_CHECK_OK(fl_pool_create(fl_pool_default_threads(), &pool));
  static const char *const types[] = {"f32", "f16", "bf16"};
  static const double tolerance[] = {1e-5, 2e-3, 1e-2};
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++)
    for (int k = 0; k < 3; k++) {
      char *typed = is_mine(3 * i + (size_t)k) ? with_type(graphs[i], types[k]) : NULL;
      if (typed) check_graph(typed, backend, pool, types[k], tolerance[k]);
      fl_free(typed);
    }
  fl_pool_destroy(pool);
}

FL_TEST_MAIN(FL_RUN(problems_are_cut) FL_RUN(every_graph_is_written) FL_RUN(architectures_differ)
                 FL_RUN(lengths_share_kernels) FL_RUN(attention_on_the_gpu))
