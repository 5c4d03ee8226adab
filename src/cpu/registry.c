#include <string.h>

#include "cpu/kernel.h"

#if defined(__x86_64__) || defined(__i386__)
#define ROW_X86(...) __VA_ARGS__
#else
#define ROW_X86(...)
#endif
#define ROW_PORTABLE(...)    __VA_ARGS__
#define ROW_AVX2(...)        ROW_X86(__VA_ARGS__)
#define ROW_AVX512(...)      ROW_X86(__VA_ARGS__)
#define ROW_AVX512_BF16(...) ROW_X86(__VA_ARGS__)

#define FL_KERNEL(name, op, isa) ROW_##isa(extern const fl_kernel fl_kernel_##name;)
#include "cpu/kernels.def"
#undef FL_KERNEL

static const fl_kernel *const table[] = {
#define FL_KERNEL(name, op, isa) ROW_##isa(&fl_kernel_##name COMMA)
#define COMMA                    ,
#include "cpu/kernels.def"
#undef FL_KERNEL
    NULL};

/* What the rows say, so that a kernel which says otherwise is found by the tests. */
static const struct {
  fl_op op;
  fl_isa isa;
} rows[] = {
#define FL_KERNEL(name, op_, isa_) ROW_##isa_({FL_OP_##op_ COMMA FL_ISA_##isa_} COMMA)
#include "cpu/kernels.def"
#undef FL_KERNEL
    {FL_OP_COUNT, FL_ISA_COUNT}};

enum { ROWS = sizeof table / sizeof *table - 1 };

int fl_kernel_count(void) { return ROWS; }

const fl_kernel *fl_kernel_get(int id) { return id < 0 || id >= ROWS ? NULL : table[id]; }

int fl_kernel_find(const char *name) {
  for (int i = 0; i < ROWS; i++)
    if (!strcmp(table[i]->name, name)) return i;
  return -1;
}

static void plan_defaults(const fl_problem *p, fl_kernel_plan *plan) {
  memset(plan, 0, sizeof *plan);
  plan->in_place = -1;
  for (int o = 0; o < p->n_out; o++) fl_strides_contiguous(&p->out[o], plan->out_strides[o]);
}

/* Tries the rows of the problem's operator; `*why` is the reason of the last one that declined. */
static int try_rows(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max,
                    const char **why) {
  fl_isa isa = fl_cpu_isa();
  int n = 0;
  for (int i = 0; i < ROWS && n < max; i++) {
    if (rows[i].op != problem->op || rows[i].isa > isa) continue;
    plan_defaults(problem, &plans[n]);
    const char *reason = table[i]->plan(problem, arena, &plans[n]);
    if (reason)
      *why = reason;
    else
      ids[n++] = i;
  }
  return n;
}

int fl_kernel_candidates(const fl_problem *problem, fl_arena *arena, int *ids, fl_kernel_plan *plans, int max) {
  const char *why = NULL;
  return try_rows(problem, arena, ids, plans, max, &why);
}

const char *fl_kernel_why_not(const fl_problem *problem) {
  const char *why = "no kernel for this operator";
  fl_kernel_plan plan;
  fl_arena arena;
  int id;
  fl_arena_init(&arena);
  int n = try_rows(problem, &arena, &id, &plan, 1, &why);
  fl_arena_release(&arena);
  return n ? NULL : why;
}
