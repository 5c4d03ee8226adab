/* Decisions: a yes or no out of a tensor, according to which the program goes on.
 *
 * A check in the middle would cut a segment in two, and on a GPU wait for the first half. What the program computes
 * after it has no effect until the call ends, so the check can come after it: where the answer is another one, the results
 * are thrown away, as they are when the check comes first. Other numbers end the segment: they differ too often. */
#include "capture/rec.h"

bool fl_rec_add_decision(fl_rec *r, const fl_decision *d, bool late) {
  fl_trace *t = r->trace;
  fl_tstep s = {.kind = FL_TSTEP_SCALAR,
                .first = (uint32_t)t->nodes.len,
                .n = 1,
                .scalar = d->answer,
                .compare = d->compare,
                .late = late};
  if (fl_rec_keep(r, d->answer) && FL_PUSH(&t->steps, s) && FL_PUSH(&t->nodes, d->node)) return true;
  return fl_rec_give_up(r, "out of memory", ""), false;
}

/* An input or weight can be asked before anything is computed. */
static bool is_computed(const fl_rec *r, const fl_tnode *n) {
  for (int i = 0; i < n->n_pos + n->n_kw; i++)
    if (n->args[i].kind == FL_TARG_VALUE) return r->trace->values.data[n->args[i].value].kind == FL_TVAL_RESULT;
  return false;
}

bool fl_rec_put_off(fl_rec *r, fl_decision *d) {
  if (!PyBool_Check(d->answer) || !is_computed(r, &d->node)) return false;
  d->after = (uint32_t)r->trace->nodes.len;
  if (!fl_rec_keep(r, d->answer) || !FL_PUSH(&r->decisions, *d)) fl_rec_give_up(r, "out of memory", "");
  return true;
}

static void decide_number(fl_rec *r) {
  fl_decision d = r->number;
  r->number.answer = NULL;
  if (r->gave_up || fl_rec_put_off(r, &d)) return;
  fl_rec_decide(r);
  fl_rec_add_decision(r, &d, false);
}

void fl_rec_await(fl_rec *r, const fl_tnode *n, PyObject *answer, bool swapped) {
  if (fl_rec_keep(r, answer)) r->number = (fl_decision){.node = *n, .answer = answer, .compare = {.swapped = swapped}};
}

void fl_rec_not_compared(fl_rec *r) {
  if (r->number.answer) decide_number(r);
}

static bool is_number(PyObject *o) { return PyLong_CheckExact(o) || PyBool_Check(o) || PyFloat_CheckExact(o); }

void fl_rec_decides(fl_rec *r, PyObject *a, PyObject *b, int op, PyObject *result) {
  if (r->gave_up || r->paused || !r->number.answer) return;
  bool swapped = r->number.compare.swapped;
  PyObject *own = swapped ? b : a, *other = swapped ? a : b;
  if (fl_const_equal(own, r->number.answer) && is_number(other) && PyBool_Check(result) && fl_rec_keep(r, other)) {
    r->number.compare.other = other;
    r->number.compare.op = op;
    r->number.answer = result;
  }
  decide_number(r);
}

void fl_rec_decide(fl_rec *r) {
  size_t n = r->decisions.len;
  uint32_t nodes = r->trace ? (uint32_t)r->trace->nodes.len : 0;
  for (size_t i = 0; i < n && !r->gave_up; i++) {
    const fl_decision *d = &r->decisions.data[i];
    fl_rec_add_decision(r, d, d->after < nodes);
  }
  r->decisions.len = 0;
}
