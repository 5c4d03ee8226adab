/* Sums that overflow though the numbers are finite: every kernel leaves such a row to eager, whose order of adding
 * decides what comes out. What was not finite before is no fault. */
#include "base/test.h"
#include "cpu/kernel_case.h"

enum { N = 70, CHANNELS = 4 };

static kcase *make(fl_op op, fl_dtype t, bool channels_last, double value) {
  const int64_t rows[] = {3, N}, image[] = {2, CHANNELS, 3, 5}, last[] = {60, 1, 20, 4};
  const bool group = op == FL_OP_GROUP_NORM;
  kcase *c = kcase_new(op);
  fl_tensor *x = kcase_in(c, t, group ? 4 : 2, group ? image : rows, group && channels_last ? last : NULL);
  for (int64_t i = 0, n = fl_type_numel(&x->type); i < n; i++) fl_ref_setf(x->data, t, i, (double)(i % 7));
  fl_ref_setf(x->data, t, 41, value);
  if (op == FL_OP_VAR) {
    kcase_list(c, "axes", channels_last ? 0 : 1);
    kcase_bool(c, "keepdim", false);
    kcase_float(c, "correction", 1);
    return c;
  }
  kcase_absent(c);
  if (op != FL_OP_RMS_NORM) kcase_absent(c);
  kcase_float(c, "eps", 1e-5);
  kcase_int(c, group ? "groups" : "axes", group ? 2 : 1);
  return c;
}

static void check(fl_op op, fl_dtype t, bool channels_last, double value, bool fault) {
  kcase *c = make(op, t, channels_last, value);
  int runs = 0;
  FL_CHECK(kcase_infer(c));
  for (int id = 0; id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    fl_tensor out[FL_PW_MAX_OUTPUTS];
    if (k->op != op || k->isa > fl_cpu_isa() || kcase_run(c, k, NULL, out)) continue;
    runs++;
    FL_CHECK_MSG(c->fault == fault, "%s of %g, type %d: fault %d", k->name, value, (int)t, c->fault);
    kcase_free_out(c, out);
  }
  FL_CHECK(runs > 0);
  kcase_free(c);
}

FL_TEST(norms) {
  static const fl_op ops[] = {FL_OP_LAYER_NORM, FL_OP_GROUP_NORM};
  for (int i = 0; i < 2; i++)
    for (int last = 0; last < 2; last++) {
      if (last && ops[i] != FL_OP_GROUP_NORM) continue;
      check(ops[i], FL_F32, last, 1e4, false);
      check(ops[i], FL_F32, last, 1e25, true);
      check(ops[i], FL_F32, last, -3e38, true);
      check(ops[i], FL_F32, last, INFINITY, false);
      check(ops[i], FL_F32, last, NAN, false);
      check(ops[i], FL_BF16, last, 1e25, true);
      check(ops[i], FL_BF16, last, 1e4, false);
      check(ops[i], FL_F64, last, 1e25, false);
      check(ops[i], FL_F64, last, 1e200, true);
    }
}

/* Eager adds in double: here fast kernels, in float, leave to it what the reference computes. */
FL_TEST(variances) {
  for (int last = 0; last < 2; last++) {
    check(FL_OP_VAR, FL_F32, last, 1e4, false);
    check(FL_OP_VAR, FL_F64, last, 1e25, false);
    check(FL_OP_VAR, FL_F32, last, NAN, false);
    check(FL_OP_VAR, FL_F32, last, -INFINITY, false);
  }
}

FL_TEST_MAIN(FL_RUN(norms) FL_RUN(variances))
