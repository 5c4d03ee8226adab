/* How many kernels the plans of graphs compile: sources_bench [-o DIR] FILE...
 *
 * Each file is the text of one graph, as lowered or as optimized (`framelift explain MODEL --graph` prints those; with f16 for f32
 * it is what precision="fp16" runs). Needs no GPU. Counts what convolutions may choose from, but not what libraries do. -o: each
 * source goes to DIR/k000.cu, ..., those of the last step first, to be compiled or compared. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bench.h"
#include "cuda/sources.h"
#include "cuda/written_case.h"
#include "passes/passes.h"

typedef struct count {
  const char *folder;
  int sources;
  size_t bytes;
} count;

static void keep_source(void *arg, const char *source) {
  count *c = arg;
  char path[512];
  c->bytes += strlen(source);
  snprintf(path, sizeof path, "%s/k%03d.cu", c->folder ? c->folder : "", c->sources++);
  FILE *f = c->folder ? fopen(path, "w") : NULL;
  if (f) {
    fprintf(f, "%s%s", fl_cuda_source_prelude, source);
    fclose(f);
  } else if (c->folder) {
    fprintf(stderr, "%s: cannot be written\n", path);
    exit(1);
  }
}

int main(int argc, char **argv) {
  count c = {.folder = argc > 2 && !strcmp(argv[1], "-o") ? argv[2] : NULL};
  for (int i = c.folder ? 3 : 1; i < argc; i++) {
    fl_graph *g = NULL;
    fl_plan *p = NULL;
    char *text = fl_bench_read(argv[i]);
    count before = c;
    fl_bench_check(fl_graph_parse(text, &g));
    fl_bench_check(fl_passes_run(g, false));
    fl_bench_check(fl_plan_build(g, &(fl_plan_options){.backend = &fl_cuda_table, .threads = 1}, &p));
    fl_bench_check(fl_cuda_write_plan(p, false, keep_source, &c));
    printf("%-40s %3d sources of %zu bytes\n", argv[i], c.sources - before.sources, c.bytes - before.bytes);
    fl_plan_destroy(p);
    fl_graph_destroy(g);
    fl_free(text);
  }
  return 0;
}
