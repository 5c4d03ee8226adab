/* What the plans of graphs take on a GPU: memory_bench [-c] FILE...
 *
 * Each file is the text of one graph, as lowered or as optimized (`framelift explain MODEL --graph` prints those). Needs no GPU:
 * plans are made from shapes alone. A line for each: the arena beside the least that any could take, what lies in the constant
 * block by kind, weights that the plan reads in place, stages. -c: the largest constants and arena blocks too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bench.h"
#include "cuda/graph.h"
#include "passes/passes.h"
#include "plan/plan.h"

static double mib(size_t bytes) { return (double)bytes / (1 << 20); }

static size_t weight_bytes(const fl_graph *g) {
  size_t sum = 0;
  for (fl_vid v = 0; v < g->values.len; v++)
    if (g->values.data[v].kind == FL_VALUE_WEIGHT) sum += fl_type_bytes(&g->values.data[v].type);
  return sum;
}

static void print_step(const fl_plan *p, const fl_step *s) {
  char type[96];
  printf("    %s", s->kind == FL_STEP_COPY ? "copy" : p->backend->kernel(s->kernel)->name);
  for (int i = 0; i < s->n_in + s->n_out; i++) {
    const fl_operand *o = &p->operands.data[s->operands + (uint32_t)i];
    static const char *const spaces[] = {"_", "in", "out", "weight", "const", "arena"};
    if (i == s->n_in) printf(" ->");
    printf(" %s", spaces[o->space]);
    if (o->space >= FL_SPACE_CONST) printf("+%.1f", mib(o->offset));
    if (o->space) printf(" %s", fl_type_str(&o->type, type, sizeof type));
  }
  if (s->scratch != SIZE_MAX && s->kind == FL_STEP_KERNEL) printf(" scratch");
  if (s->spare_bytes) printf(" spare %.1f", mib(s->spare_bytes));
  printf("\n");
}

static void print_memory(const char *path, const fl_graph *g, const fl_plan *p, bool steps) {
  static const char *const kinds[] = {"computed", "literal", "joined", "copied", "packed"};
  printf("%-40s arena %7.1f (least %7.1f, unshared %8.1f) constants %6.1f:", path, mib(p->arena_bytes),
         mib(p->arena_floor_bytes), mib(p->arena_unshared_bytes), mib(p->const_bytes));
  for (int i = 0; i < FL_CONST_KINDS; i++)
    if (p->const_kind_bytes[i]) printf(" %s %.1f", kinds[i], mib(p->const_kind_bytes[i]));
  size_t in = 0, out = 0;
  for (int i = 0; i < p->n_inputs; i++) in += fl_type_bytes(&p->inputs[i].type);
  for (int i = 0; i < p->n_outputs; i++) out += fl_type_bytes(&p->outputs[i].type);
  printf("; init arena %.1f; weights %.1f; inputs %.1f, outputs %.1f MiB; %zu steps\n", mib(p->init_arena_bytes),
         mib(weight_bytes(g)), mib(in), mib(out), p->run.len);
  if (!steps) return;
  printf("  init\n");
  for (size_t i = 0; i < p->init.len; i++) print_step(p, &p->init.data[i]);
  printf("  run\n");
  for (size_t i = 0; i < p->run.len; i++) print_step(p, &p->run.data[i]);
}

int main(int argc, char **argv) {
  bool steps = argc > 1 && !strcmp(argv[1], "-c");
  for (int i = steps ? 2 : 1; i < argc; i++) {
    fl_graph *g = NULL;
    fl_plan *p = NULL;
    char *text = fl_bench_read(argv[i]);
    fl_bench_check(fl_graph_parse(text, &g));
    fl_bench_check(fl_passes_run(g, false));
    fl_bench_check(fl_plan_build(g, &(fl_plan_options){.backend = &fl_cuda_table, .threads = 1}, &p));
    print_memory(argv[i], g, p, steps);
    fl_plan_destroy(p);
    fl_graph_destroy(g);
    fl_free(text);
  }
  return 0;
}
