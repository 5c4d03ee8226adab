#include "base/test.h"
#include "cpu/kernel.h"

static const struct {
  const char *name;
  fl_op op;
  fl_isa isa;
} rows[] = {
#define FL_KERNEL(name, op, isa) {#name, FL_OP_##op, FL_ISA_##isa},
#include "cpu/kernels.def"
#undef FL_KERNEL
};

enum { ROWS = sizeof rows / sizeof *rows };

FL_TEST(kernels_are_what_their_rows_say) {
#if defined(__x86_64__)
  FL_CHECK(fl_kernel_count() == ROWS);
#endif
  for (int i = 0; i < ROWS; i++) {
    int id = fl_kernel_find(rows[i].name);
    if (id < 0 && rows[i].isa != FL_ISA_PORTABLE) continue; /* another processor family */
    FL_CHECK_MSG(id >= 0, "%s", rows[i].name);
    const fl_kernel *k = fl_kernel_get(id);
    if (!k) continue;
    FL_CHECK_MSG(k->op == rows[i].op && k->isa == rows[i].isa && k->plan && k->run, "%s", k->name);
  }
  FL_CHECK(fl_kernel_get(-1) == NULL && fl_kernel_get(fl_kernel_count()) == NULL);
  FL_CHECK(fl_kernel_find("no such kernel") == -1);
}

FL_TEST(rows_of_an_operator_stand_together_and_end_portable) {
  for (int i = 0; i < ROWS; i++) {
    bool last = i + 1 == ROWS || rows[i + 1].op != rows[i].op;
    if (last) FL_CHECK_MSG(rows[i].isa == FL_ISA_PORTABLE, "%s", rows[i].name);
    for (int j = i + 1; last && j < ROWS; j++) FL_CHECK_MSG(rows[j].op != rows[i].op, "%s", rows[j].name);
  }
}

FL_TEST(isa_limits_the_candidates) {
  static const fl_attrs attrs;
  fl_problem p = {.op = FL_OP_SOFTMAX, .attrs = &attrs, .n_in = 1, .n_out = 1, .threads = 1};
  int64_t dims[] = {4, 8};
  p.in[0].type = p.out[0] = fl_type_make(FL_F32, 2, dims);
  fl_strides_contiguous(&p.in[0].type, p.in[0].strides);
  fl_isa best = fl_cpu_isa();
  for (int isa = 0; isa <= (int)best; isa++) {
    fl_arena arena;
    int ids[8];
    fl_kernel_plan plans[8];
    fl_cpu_force_isa((fl_isa)isa);
    fl_arena_init(&arena);
    int n = fl_kernel_candidates(&p, &arena, ids, plans, 8);
    FL_CHECK(n >= 1);
    for (int i = 0; i < n; i++) FL_CHECK((int)fl_kernel_get(ids[i])->isa <= isa);
    FL_CHECK(n < 1 || fl_kernel_get(ids[n - 1])->isa == FL_ISA_PORTABLE);
    FL_CHECK(fl_kernel_candidates(&p, &arena, ids, plans, 1) == 1);
    fl_arena_release(&arena);
  }
  fl_cpu_force_isa(best);
  FL_CHECK(fl_kernel_why_not(&p) == NULL);
  p.op = FL_OP_RESHAPE;
  FL_CHECK(strstr(fl_kernel_why_not(&p), "no kernel"));
}

FL_TEST_MAIN(FL_RUN(kernels_are_what_their_rows_say) FL_RUN(rows_of_an_operator_stand_together_and_end_portable)
                 FL_RUN(isa_limits_the_candidates))
