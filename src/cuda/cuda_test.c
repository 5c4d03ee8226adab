/* Without a GPU: the text of generated kernels, and which problems the kernels accept. With one: graphs through passes,
 * plan and engine on it, against the same on the CPU. */
#include <math.h>
#include <stdlib.h>

#include "base/test.h"
#include "cuda/gpu_test.h"
#include "cuda/graph.h"
#include "cuda/graphs_case.h"
#include "cuda/nvrtc.h"
#include "cuda/ops.h"
#include "cuda/sources.h"
#include "cuda/tactic.h"
#include "cuda/writer.h"
#include "cuda/written_case.h"
#include "passes/passes.h"

/* --- text --- */

static fl_tensor tensor(fl_dtype t, int rank, int64_t a, int64_t b, int64_t c) {
  fl_tensor x = {.type = fl_type_make(t, rank, (int64_t[]){a, b, c})};
  fl_strides_contiguous(&x.type, x.strides);
  return x;
}

static bool contains(const fl_text *t, const char *part) {
  bool found = t->data && strstr(t->data, part);
  if (!found) fprintf(stderr, "no \"%s\" in:\n%s\n", part, t->data ? t->data : "(nothing)");
  return found;
}

static void empty(fl_cuda_writer *w) {
  fl_text_free(&w->text);
  fl_text_free(&w->names);
  fl_text_free(&w->body);
  *w = (fl_cuda_writer){0};
}

static int64_t written(const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, fl_cuda_writer *w) {
  empty(w);
  return fl_cg_map(w, p, in, out);
}

static int64_t argument(const fl_cuda_writer *w, int i) { return (int64_t)(uintptr_t)w->args[i]; }

FL_TEST(pointwise_text) {
  fl_cuda_writer w = {0};
  fl_cuda_params p = {.op = FL_OP_POINTWISE, .n_in = 2, .n_out = 1};
  p.program =
      (fl_pw_program){.n_inputs = 2, .n_instrs = 2, .n_outputs = 1, .in_dtype = {FL_F16, FL_F16}, .outputs = {3}};
  p.program.instrs[0] = (fl_pw_instr){FL_OP_ADD, FL_F16, {0, 1, -1}, 0, 0};
  p.program.instrs[1] = (fl_pw_instr){FL_OP_CLAMP, FL_F16, {2, -1, -1}, 0, INFINITY};
  fl_tensor in[2] = {tensor(FL_F16, 2, 64, 32, 0), tensor(FL_F16, 1, 32, 0, 0)}, out = tensor(FL_F16, 2, 64, 32, 0);
  FL_CHECK(written(&p, in, &out, &w) == 1); /* rows of 32 share x1 */
  FL_CHECK(contains(&w.body, "k(const f16 *x0, const f16 *x1, f16 *y0, int *fault PARAMETERS)"));
  FL_CHECK(contains(&w.names, ", i64 n0, i64 n1, i64 n2") && argument(&w, 0) == 256 &&
           argument(&w, 1) == fl_cuda_magic(4) && argument(&w, 2) == -32);
  FL_CHECK(contains(&w.body, "const U q1 = over((U)i, n1);"));
  FL_CHECK(contains(&w.body, "const pack<f16, 8> v0 = *(const pack<f16, 8> *)&x0[((I)i * (I)8)];"));
  FL_CHECK(contains(&w.body, "const pack<f16, 8> v1 = *(const pack<f16, 8> *)&x1[(I)((U)i * (U)8 + q1 * (U)n2)];"));
  FL_CHECK(contains(&w.body, "const float r2 = r0 + r1;"));
  FL_CHECK(contains(&w.body, "const float r3 = clamp<float>(r2, (float)0, (float)INF);"));
  in[1] = in[0]; /* both operands lie as the result does: one loop */
  FL_CHECK(written(&p, in, &out, &w) == 1 && w.n_args == 1);
  FL_CHECK(contains(&w.body, "const pack<f16, 8> v1 = *(const pack<f16, 8> *)&x1[((I)i * (I)8)];"));
  in[1].data = (void *)(uintptr_t)2; /* unless memory is not aligned for it */
  FL_CHECK(written(&p, in, &out, &w) == 8 && w.n_args == 1);
  FL_CHECK(contains(&w.body, "const pack<f16, 1> v1 = *(const pack<f16, 1> *)&x1[((I)i * (I)1)];"));
  in[1] = tensor(FL_F16, 2, 64, 1, 0); /* one element a row */
  FL_CHECK(written(&p, in, &out, &w) == 1);
  FL_CHECK(contains(&w.body, "const f16 v1 = x1[(I)(q1 * (U)n2)];") && argument(&w, 2) == 1);
  in[1].type.dims[1] = 32; /* a column of something wider: no neighbours */
  in[1].strides[0] = 512;
  in[1].strides[1] = 16;
  FL_CHECK(written(&p, in, &out, &w) == 8);
  FL_CHECK(contains(&w.body, "&x1[((I)i * (I)n1)];") && argument(&w, 1) == 16);
  empty(&w);
}

/* 16-bit floats have shorter forms of some activations; 32-bit ones keep the exact ones. */
FL_TEST(activations_text) {
  const fl_dtype types[] = {FL_F16, FL_BF16, FL_F32};
  for (int i = 0; i < 3; i++) {
    fl_cuda_params p = {.op = FL_OP_POINTWISE, .n_in = 1, .n_out = 1};
    p.program = (fl_pw_program){.n_inputs = 1, .n_instrs = 1, .n_outputs = 1, .in_dtype = {types[i]}, .outputs = {1}};
    p.program.instrs[0] = (fl_pw_instr){FL_OP_GELU, types[i], {0, -1, -1}, 0, 0};
    fl_tensor x = tensor(types[i], 1, 64, 0, 0);
    fl_cuda_writer w = {0};
    written(&p, &x, &x, &w);
    FL_CHECK(contains(&w.body, types[i] == FL_F32 ? "erff(r0 * 0.70710678f)" : "const float r1 = gelu_16(r0);"));
    empty(&w);
  }
}

FL_TEST(other_shapes_share_the_kernel) {
  fl_cuda_params p = {.op = FL_OP_POINTWISE, .n_in = 2, .n_out = 1};
  p.program =
      (fl_pw_program){.n_inputs = 2, .n_instrs = 1, .n_outputs = 1, .in_dtype = {FL_F16, FL_F16}, .outputs = {2}};
  p.program.instrs[0] = (fl_pw_instr){FL_OP_MUL, FL_F16, {0, 1, -1}, 0, 0};
  fl_cuda_writer w[2] = {0};
  for (int i = 0; i < 2; i++) { /* a factor for each channel of each image, channels last */
    fl_tensor x = tensor(FL_F16, 3, 2 + i, 49 << i, 24 << i), in[2] = {x, tensor(FL_F16, 3, 2 + i, 1, 24 << i)};
    written(&p, in, &x, &w[i]);
    FL_CHECK(argument(&w[i], 1) == fl_cuda_magic(3 << i) && argument(&w[i], 2) == fl_cuda_magic(49 << i));
  }
  FL_CHECK(!strcmp(w[0].body.data, w[1].body.data) && !strcmp(w[0].names.data, w[1].names.data));
  empty(&w[0]);
  empty(&w[1]);
}

/* Sizes stay numbers where an offset needs 64 bits, and where there are no more parameters. */
FL_TEST(sizes_that_are_numbers) {
  fl_cuda_writer w = {0};
  fl_cuda_write_index(&w, (int64_t)INT32_MAX + 1);
  fl_cuda_put_quotient(&w, &w.body, "i", 7);
  FL_CHECK(contains(&w.text, "typedef i64 I;") && contains(&w.body, "(U)i / (U)7ll") && w.n_args == 0);
  empty(&w);
  fl_cuda_write_index(&w, INT32_MAX);
  for (int i = 0; i < FL_CUDA_MAX_ARGS; i++) fl_cuda_put_size(&w, &w.body, i);
  FL_CHECK(contains(&w.body, "(I)n63") && !w.text.failed);
  fl_cuda_put_size(&w, &w.body, 12345);
  FL_CHECK(contains(&w.body, "(I)12345ll") && w.n_args == FL_CUDA_MAX_ARGS);
  empty(&w);
}

/* As `over` of prelude.cu does it. */
static uint32_t over(uint32_t n, int64_t magic) {
  return (uint32_t)((uint64_t)(2 * n) * (uint32_t)magic >> 32) >> (magic >> 32);
}

FL_TEST(divisions_by_magic_numbers) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < 3000; i++) {
    int64_t p = (int64_t)1 << i % 31;
    int64_t d = i < 300 ? i + 1 : i < 400 ? p + i % 3 - 1 : i < 500 ? INT32_MAX - i % 100 : rand() % INT32_MAX + 1;
    if (i % 2 && i >= 500) d = d % 5000 + 1;
    if (d < 1) d = 1;
    int64_t magic = fl_cuda_magic(d), last = INT32_MAX / d * d;
    const int64_t n[] = {0, 1, d - 1, d, d + 1, 2 * d - 1, 2 * d, last - 1, last, INT32_MAX - 1, INT32_MAX, rand()};
    for (size_t k = 0; k < sizeof n / sizeof *n; k++)
      wrong += n[k] <= INT32_MAX && over((uint32_t)n[k], magic) != n[k] / d;
    for (int64_t k = 0; k < 1000; k++) {
      uint32_t m = (uint32_t)(rand() % (INT32_MAX / d + 1) * d); /* a multiple, and the last number before it */
      wrong += over(m, magic) != m / d || (m && over(m - 1, magic) != (m - 1) / d);
    }
  }
  FL_CHECK_MSG(wrong == 0, "%lld wrong", (long long)wrong);
}

FL_TEST(text_of_axes_merges_neighbours) {
  fl_cuda_writer w = {0};
  const int64_t none[3] = {0};
  fl_cuda_write_index(&w, 1000);
  fl_cuda_write_function(&w, "row", 3, (int64_t[]){2, 3, 4}, (int64_t[]){24, 8, 2}, none, 0);
  FL_CHECK(contains(&w.body, "o.x[0] = ((I)i * (I)n0);") && !strstr(w.body.data, "over") && argument(&w, 0) == 2);
  empty(&w);
  fl_cuda_write_index(&w, 1000);
  fl_cuda_write_function(&w, "row", 2, (int64_t[]){3, 4}, (int64_t[]){1, 8}, (int64_t[]){4, 1}, 0);
  FL_CHECK(contains(&w.body, "const U q1 = over((U)i, n0);") && argument(&w, 0) == fl_cuda_magic(4));
  FL_CHECK(contains(&w.body, "o.x[0] = (I)((U)i * (U)n1 + q1 * (U)n2);") && argument(&w, 2) == 1 - 4 * 8);
  FL_CHECK(contains(&w.body, "o.x[1] = ((I)i * (I)n3);") && argument(&w, 3) == 1);
  empty(&w);
}

FL_TEST(text_survives_failing_memory) {
  for (int n = 1; n < 4; n++) {
    fl_text t = {0};
    fl_alloc_fail_at(n);
    for (int i = 0; i < 100; i++) fl_text_add(&t, "%d,", i);
    fl_alloc_fail_at(0);
    FL_CHECK(t.failed);
    fl_text_free(&t);
  }
}

/* Parts are made where the whole lies, also in a whole that is a part; an input can only be copied. */
FL_TEST(parts_are_made_in_place) {
  static const char text[] =
      "graph(%0: f16[2,8,5,5], %1: f16[2,3,5,5]) {\n %2 = relu(%0) : f16[2,8,5,5]\n %3 = softmax(%0) axis=1 : "
      "f16[2,8,5,5]\n %4 = cat(%2, %3) axis=1 : f16[2,16,5,5]\n %5 = tanh(%4) : f16[2,16,5,5]\n"
      " %6 = cat(%4, %5, %1) axis=1 : f16[2,35,5,5]\n return %6\n}";
  fl_plan_options options = {.threads = 1, .backend = &fl_cuda_table};
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  int copies = 0;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  for (size_t i = 0; i < p->run.len; i++) copies += p->run.data[i].kind == FL_STEP_COPY;
  FL_CHECK(p->run.len == 4 && copies == 1);
  const fl_operand *o = &p->operands.data[p->run.data[2].operands]; /* tanh: of 16 channels, to those behind them */
  FL_CHECK(o[0].space == FL_SPACE_OUTPUT && o[0].offset == 0 && o[0].strides[0] == 35 * 25);
  FL_CHECK(o[1].space == FL_SPACE_OUTPUT && o[1].offset == 16 * 25 * 2 && o[1].strides[0] == 35 * 25);
  fl_plan_destroy(p);
  fl_graph_destroy(g);
}

/* Each concatenation goes on where the one before it stands: nothing is copied, whatever the number of layers. */
FL_TEST(growing_concatenations_are_not_copied) {
  static const char text[] =
      "graph(%0: f16[2,8,5,5]) {\n %1 = tanh(%0) : f16[2,8,5,5]\n %2 = exp(%1) : f16[2,8,5,5]\n"
      " %3 = cat(%1, %2) axis=1 : f16[2,16,5,5]\n %4 = softmax(%3) axis=1 : f16[2,16,5,5]\n"
      " %5 = cat(%1, %2, %4) axis=1 : f16[2,32,5,5]\n %6 = softmax(%5) axis=1 : f16[2,32,5,5]\n"
      " %7 = cat(%1, %2, %4, %6) axis=1 : f16[2,64,5,5]\n %8 = abs(%7) : f16[2,64,5,5]\n return %8\n}";
  fl_plan_options options = {.threads = 1, .backend = &fl_cuda_table};
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  int copies = 0;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  for (size_t i = 0; i < p->run.len; i++) copies += p->run.data[i].kind == FL_STEP_COPY;
  FL_CHECK_MSG(p->run.len == 5 && copies == 0, "%zu steps, %d copies", p->run.len, copies);
  fl_plan_destroy(p);
  fl_graph_destroy(g);
}

static fl_plan *plan_of(const char *text) {
  fl_plan_options options = {.threads = 1, .backend = &fl_cuda_table};
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  FL_CHECK_OK(fl_passes_run(g, true));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  fl_graph_destroy(g);
  return p;
}

/* A convolution that is a matrix product is made where its residual lies; any other may be computed alone first. */
FL_TEST(residuals_are_overwritten) {
  static const char text[] =
      "graph(%%0: f16[2,8,4,4] strides=[128,1,32,8], %%1: weight 0 f16[8,8,%d,%d]) {\n %%2 = relu(%%0) : f16[2,8,4,4]\n"
      " %%3 = tanh(%%0) : f16[2,8,4,4]\n %%4 = conv2d(%%3, %%1, _, %%2) stride=[1,1] pad=[%d,%d,%d,%d] dilation=[1,1] "
      "groups=1 act=none act_lo=0.0 act_hi=0.0 : f16[2,8,4,4]\n %%5 = exp(%%4) : f16[2,8,4,4]\n return %%5\n}";
  for (int pad = 0; pad < 2; pad++) {
    fl_text t = {0};
    fl_text_add(&t, text, 2 * pad + 1, 2 * pad + 1, pad, pad, pad, pad);
    fl_plan *p = plan_of(t.data);
    const fl_step *s = NULL;
    for (size_t i = 0; i < p->run.len; i++)
      if (p->run.data[i].n_in == 4) s = &p->run.data[i];
    const fl_operand *o = s ? &p->operands.data[s->operands] : NULL;
    FL_CHECK(o && (o[3].space == o[4].space && o[3].offset == o[4].offset) == (pad == 0));
    fl_plan_destroy(p);
    fl_text_free(&t);
  }
}

/* Libraries get what lies idle of the arena: the last product of a chain can have the place of the first's result. */
FL_TEST(workspaces_are_not_planned_for) {
  fl_plan *p = plan_of("graph(%0: f16[64,64], %1: weight 0 f16[4096,64], %2: weight 1 f16[64,4096]) {\n"
                       " %3 = matmul(%0, %1) trans_b=1 : f16[64,4096]\n %4 = matmul(%3, %2) trans_b=1 : f16[64,64]\n"
                       " %5 = softmax(%4) axis=1 : f16[64,64]\n %6 = matmul(%5, %1) trans_b=1 : f16[64,4096]\n"
                       " return %6\n}");
  FL_CHECK(p->run.len == 4 && p->arena_bytes == (64 * 4096 + 64 * 64) * 2 && p->const_bytes == 0);
  FL_CHECK(p->arena_floor_bytes == p->arena_bytes);
  for (int i = 0; i < 4; i++) FL_CHECK(p->run.data[i].scratch == SIZE_MAX);
  FL_CHECK(p->run.data[1].spare_bytes == 0 && p->run.data[2].spare_bytes == 0);
  FL_CHECK(p->run.data[0].spare_bytes == 64 * 64 * 2 && p->run.data[3].spare_bytes >= 64 * 4096 * 2 - 64 * 64 * 2);
  fl_plan_destroy(p);
}

/* A vocabulary of odd width: weights are read where they are, and rows of the result begin at multiples of 16 bytes. */
FL_TEST(odd_widths_take_no_copy_of_weights) {
  fl_plan *p = plan_of("graph(%0: f16[2,7,64], %1: weight 0 f16[1027,64], %2: weight 1 f16[1027]) {\n"
                       " %3 = matmul(%0, %1, %2) trans_b=1 : f16[2,7,1027]\n return %3\n}");
  const fl_operand *o = &p->operands.data[p->run.data[0].operands];
  FL_CHECK(p->const_bytes == 0 && p->run.len == 2 && p->run.data[1].kind == FL_STEP_COPY);
  FL_CHECK(o[1].space == FL_SPACE_WEIGHT && o[4].space == FL_SPACE_ARENA);
  FL_CHECK(o[4].strides[2] == 1 && o[4].strides[1] == 1032 && o[4].strides[0] == 7 * 1032);
  FL_CHECK(p->arena_bytes == 28928); /* 13 rows of 1032, one of 1027 */
  fl_plan_destroy(p);
  /* Weights whose own rows are odd are padded. */
  p = plan_of("graph(%0: f16[7,64], %1: weight 0 f16[64,1027]) {\n %2 = matmul(%0, %1) : f16[7,1027]\n return %2\n}");
  FL_CHECK(p->const_bytes == 64 * 1032 * 2 && p->const_kind_bytes[FL_CONST_COMPUTED] == p->const_bytes);
  fl_plan_destroy(p);
}

/* Parts of a whole are made there whatever the width. */
FL_TEST(odd_widths_in_a_concatenation) {
  fl_plan *p = plan_of("graph(%0: f16[7,64], %1: weight 0 f16[1027,64], %2: f16[7,5]) {\n"
                       " %3 = matmul(%0, %1) trans_b=1 : f16[7,1027]\n %4 = cat(%3, %2) axis=1 : f16[7,1032]\n"
                       " return %4\n}");
  const fl_operand *o = &p->operands.data[p->run.data[0].operands];
  FL_CHECK(p->run.len == 2 && p->arena_bytes == 0 && o[4].space == FL_SPACE_OUTPUT && o[4].strides[0] == 1032);
  fl_plan_destroy(p);
}

FL_TEST(joined_weights_are_told) {
  fl_plan *p = plan_of("graph(%0: f16[7,64], %1: weight 0 f16[64,64], %2: weight 1 f16[64,64]) {\n"
                       " %3 = matmul(%0, %1) trans_b=1 : f16[7,64]\n %4 = matmul(%0, %2) trans_b=1 : f16[7,64]\n"
                       " return %3, %4\n}");
  FL_CHECK(p->const_bytes == 2 * 64 * 64 * 2 && p->const_kind_bytes[FL_CONST_JOINED] == p->const_bytes);
  fl_plan_destroy(p);
}

FL_TEST(sources_are_embedded) {
  FL_CHECK(strstr(fl_cuda_source_prelude, "typedef long long i64;") != NULL);
  FL_CHECK(strstr(fl_cuda_source_rows, "void __launch_bounds__(LANES *ROWS) k(") != NULL);
}

FL_TEST(no_device_is_told) {
  const fl_backend *backend = NULL;
  fl_status s = fl_cuda_backend(0, &backend);
  FL_CHECK(s ? fl_status_code(s) == FL_UNSUPPORTED && strstr(fl_status_message(s), "CUDA: ") : backend != NULL);
  fl_status_free(s);
}

/* --- without a GPU: every graph is planned on CUDA kernels, and those that are ours are written --- */

typedef struct writing {
  int sources, wrong;
} writing;

/* FRAMELIFT_CUDA_DUMP=folder keeps each source there, to be tried with nvcc. */
static void check_source(void *arg, const char *source) {
  writing *w = arg;
  const char *folder = getenv("FRAMELIFT_CUDA_DUMP");
  char path[512];
  static int n;
  w->sources++;
  w->wrong += !strstr(source, "extern \"C\" __global__") || !strstr(source, "k(") || strstr(source, "(null)");
  if (!folder) return;
  snprintf(path, sizeof path, "%s/k%03d.cu", folder, n++);
  FILE *f = fopen(path, "w");
  if (!f) return;
  fprintf(f, "%s%s", fl_cuda_source_prelude, source);
  fclose(f);
}

static void check_writing(const char *text) {
  fl_plan_options options = {.threads = 1, .backend = &fl_cuda_table};
  fl_graph *g = NULL;
  fl_plan *p = NULL;
  FL_CHECK_OK(fl_graph_parse(text, &g));
  if (!g) return;
  FL_CHECK_OK(fl_passes_run(g, false));
  FL_CHECK_OK(fl_plan_build(g, &options, &p));
  writing w = {0};
  if (p) FL_CHECK_OK(fl_cuda_write_plan(p, true, check_source, &w));
  FL_CHECK_MSG(w.wrong == 0, "%d of %d sources of\n%s", w.wrong, w.sources, text);
  fl_plan_destroy(p);
  fl_graph_destroy(g);
}

FL_TEST(every_graph_is_planned_and_written) {
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++) {
    char *half = with_type(graphs[i], "f16");
    check_writing(graphs[i]);
    if (half) check_writing(half);
    fl_free(half);
  }
}

/* --- on the GPU --- */

FL_TEST(graphs_on_the_gpu) {
  const fl_backend *backend = NULL;
  fl_pool *pool = NULL;
  fl_status s = fl_cuda_backend(0, &backend);
  if (s) {
    printf("no GPU: %s\n", fl_status_message(s));
    fl_status_free(s);
    return;
  }
  FL_CHECK_OK(fl_pool_create(8, &pool));
  for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++) {
    char *half = with_type(graphs[i], "f16");
    bool convolves = strstr(graphs[i], "conv2d"); /* cuDNN multiplies f32 as TF32, as it does for PyTorch */
    check_graph(graphs[i], backend, pool, "f32", convolves ? 2e-3 : 2e-5);
    if (half) check_graph(half, backend, pool, "f16", 5e-3);
    fl_free(half);
  }
  fl_cuda_stats stats = fl_cuda_compile_stats();
  printf("%d kernels: %d compiled, %d from disk\n", stats.functions, stats.compiled, stats.from_disk);
  fl_pool_destroy(pool);
}

/* Once products of several numbers of rows were timed, others near them are not. */
FL_TEST(lengths_share_algorithms) {
  static const int timed[] = {64, 80, 96, 128, 160, 200}, near[] = {72, 100, 111, 150};
  const fl_backend *backend = NULL;
  fl_pool *pool = NULL;
  fl_status s = fl_cuda_backend(0, &backend);
  fl_status_free(s);
  if (!backend) return;
  FL_CHECK_OK(fl_pool_create(1, &pool));
  for (int round = 0; round < 2; round++) {
    const int *rows = round ? near : timed, n = round ? 4 : 6;
    int before = fl_cuda_tactic_get_stats().timed;
    for (int i = 0; i < n; i++) {
      char text[256];
      snprintf(text, sizeof text,
               "graph(%%0: f16[%d,256], %%1: weight 0 f16[256,512], %%2: weight 1 f16[512]) {\n"
               " %%3 = matmul(%%0, %%1, %%2, _) trans_b=0 act=relu act_lo=0.0 act_hi=0.0 : f16[%d,512]\n return %%3\n}",
               rows[i], rows[i]);
      check_graph(text, backend, pool, "f16", 5e-3);
    }
    if (round) FL_CHECK(fl_cuda_tactic_get_stats().timed == before);
  }
  fl_pool_destroy(pool);
}

/* An index out of range is an error, told when the run is waited for or by the next one; then all is well again. */
FL_TEST(faults_are_told) {
  static const char text[] = "graph(%0: f32[4,2], %1: i64[3]) {\n %2 = embedding(%0, %1) : f32[3,2]\n return %2\n}";
  const fl_backend *backend = NULL;
  fl_status s = fl_cuda_backend(0, &backend);
  fl_status_free(s);
  if (!backend) return;
  fl_engine *e = NULL;
  int64_t bad[3] = {0, 9, 1};
  void *inputs[2] = {backend->allocate(backend, 32), backend->allocate(backend, sizeof bad)},
       *out = backend->allocate(backend, 24);
  float host[6];
  FL_CHECK_OK(compile(text, backend, NULL, NULL, 0, &e));
  if (!e) return;
  FL_CHECK_OK(backend->upload(backend, inputs[1], bad, sizeof bad));
  FL_CHECK_OK(fl_engine_run(e, (const void *const *)inputs, &out));
  FL_CHECK_OK(fl_cuda_download(backend, host, out, sizeof host));
  bad[1] = 2;
  FL_CHECK_OK(backend->upload(backend, inputs[1], bad, sizeof bad));
  FL_CHECK_FAILS(fl_engine_run(e, (const void *const *)inputs, &out), FL_INTERNAL, "in an earlier call");
  FL_CHECK_OK(fl_engine_run(e, (const void *const *)inputs, &out));
  double us[1] = {0};
  FL_CHECK_OK(fl_engine_profile(e, (const void *const *)inputs, &out, us));
  FL_CHECK(us[0] > 0);
  FL_CHECK_OK(fl_engine_run(e, (const void *const *)inputs, &out));
  fl_engine_destroy(e);
  backend->release(backend, inputs[0]);
  backend->release(backend, inputs[1]);
  backend->release(backend, out);
}

FL_TEST_MAIN(FL_RUN(pointwise_text) FL_RUN(other_shapes_share_the_kernel) FL_RUN(activations_text)
                 FL_RUN(sizes_that_are_numbers) FL_RUN(divisions_by_magic_numbers)
                     FL_RUN(text_of_axes_merges_neighbours) FL_RUN(text_survives_failing_memory)
                         FL_RUN(parts_are_made_in_place) FL_RUN(residuals_are_overwritten)
                             FL_RUN(growing_concatenations_are_not_copied) FL_RUN(workspaces_are_not_planned_for)
                                 FL_RUN(odd_widths_take_no_copy_of_weights) FL_RUN(odd_widths_in_a_concatenation)
                                     FL_RUN(joined_weights_are_told) FL_RUN(sources_are_embedded)
                                         FL_RUN(no_device_is_told) FL_RUN(every_graph_is_planned_and_written)
                                             FL_RUN(graphs_on_the_gpu) FL_RUN(lengths_share_algorithms)
                                                 FL_RUN(faults_are_told))
