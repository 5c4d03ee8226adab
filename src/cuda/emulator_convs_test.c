/* Convolutions by our own kernels, emulated, against the CPU: three of them, or all ("all"), with and without residual. */
#include <inttypes.h>

#include "cuda/convs_case.h"
#include "cuda/emulator_case.h"
#include "cuda/gpu_test.h"

enum { MAX_PRODUCTS = 60000000 }; /* multiplications of a case: a minute, emulated */

/* Whose tiles end in the middle: of pixels, channels, and steps of the sum. */
static const conv_case ragged[] = {
    {"3,24,8,10", "32,24,2,3", "3,32,7,4", ATTRS("1,2", "0,0,0,0", "1,1", "1", "silu", "0.0"), true, false},
    {"2,36,9,9", "20,36,3,3", "2,20,9,9", ATTRS("1,1", "1,1,1,1", "1,1", "1", "gelu", "0.0"), true, false},
    {"2,48,9,11", "80,48,3,3", "2,80,5,6", ATTRS("2,2", "1,1,1,1", "1,1", "1", "gelu", "0.0"), true, false},
    {"1,64,13,7", "64,32,3,3", "1,64,13,7", ATTRS("1,1", "2,2,2,2", "2,2", "2", "gelu", "0.0"), true, false},
    {"2,40,9,9", "136,40,3,3", "2,136,9,9", ATTRS("1,1", "1,1,1,1", "1,1", "1", "hardswish", "0.0"), true, false},
    {"1,96,10,10", "144,48,3,3", "1,144,10,10", ATTRS("1,1", "1,1,1,1", "1,1", "2", "relu", "0.0"), true, false},
};

typedef struct dims {
  int64_t d[4];
} dims;

static dims dims_of(const char *text) {
  dims r;
  sscanf(text, "%" SCNd64 ",%" SCNd64 ",%" SCNd64 ",%" SCNd64, &r.d[0], &r.d[1], &r.d[2], &r.d[3]);
  return r;
}

static int64_t products(const conv_case *c) {
  const dims w = dims_of(c->w), y = dims_of(c->y);
  return y.d[0] * y.d[1] * y.d[2] * y.d[3] * w.d[1] * w.d[2] * w.d[3];
}

static void check(const conv_case *c, const char *t, bool residual, fl_pool *pool) {
  const dims x = dims_of(c->x), y = dims_of(c->y);
  const int before = fl_emulator_stats_of().own_convs;
  char strides[100] = "", graph[1000];
  if (c->nhwc)
    snprintf(strides, sizeof strides, " strides=[%" PRId64 ",1,%" PRId64 ",%" PRId64 "]", x.d[1] * x.d[2] * x.d[3],
             x.d[1] * x.d[3], x.d[1]);
  snprintf(graph, sizeof graph,
           "graph(%%0: %s[%s]%s, %%1: weight 0 %s[%s], %%2: weight 1 %s[%" PRId64 "], %%3: %s[%s]) {\n"
           " %%4 = conv2d(%%0, %%1, %%2, %s) %s : %s[%s]\n return %%4\n}",
           t, c->x, strides, t, c->w, t, y.d[1], t, c->y, residual ? "%3" : "_", c->attrs, t, c->y);
  check_graph(graph, fl_emulator_backend(), pool, t, strcmp(t, "bf16") ? 5e-3 : 4e-2);
  printf("  [%s] * [%s]: %s\n", c->x, c->w,
         fl_emulator_stats_of().own_convs > before ? "own kernel" : "a thread an element");
  fflush(stdout);
}

static void check_types(const conv_case *c, fl_pool *pool) {
  if (products(c) > MAX_PRODUCTS) return;
  for (int residual = 0; residual < 2; residual++) {
    check(c, "f16", residual, pool);
    check(c, "bf16", residual, pool);
  }
}

static void run(fl_pool *pool, bool all) {
  if (!all) {
    check(&ragged[0], "f16", true, pool);
    check(&ragged[1], "bf16", false, pool);
    check(&cases[8], "f16", true, pool);
    return;
  }
  for (size_t i = 0; i < sizeof ragged / sizeof *ragged; i++) check_types(&ragged[i], pool);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_types(&cases[i], pool);
}

int main(int argc, char **argv) { return fl_emulator_main(argc, argv, "convolutions", run); }
