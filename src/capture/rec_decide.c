/* Decisions: a yes or no out of a tensor, according to which the program goes on.
 *
 * A check in the middle would cut a segment in two, and on a GPU wait for the first half. What the program computes
 * after it has no effect until the call ends, so the check can come after it: where the answer is another one, the results
 * are thrown away, as they are when the check comes first. Other numbers end the segment: they differ too often. */
#include "capture/rec.h"

bool fl_rec_add_decision(fl_rec *r, const fl_tnode *n, PyObject *answer, bool late) {
  fl_trace *t = r->trace;
  fl_tstep s = {.kind = FL_TSTEP_SCALAR, .first = (uint32_t)t->nodes.len, .n = 1, .scalar = answer, .late = late};
  if (fl_rec_keep(r, answer) && FL_PUSH(&t->steps, s) && FL_PUSH(&t->nodes, *n)) return true;
  return fl_rec_give_up(r, "out of memory", ""), false;
}

/* An input or weight can be asked before anything is computed. */
static bool is_computed(const fl_rec *r, const fl_tnode *n) {
  for (int i = 0; i < n->n_pos + n->n_kw; i++)
    if (n->args[i].kind == FL_TARG_VALUE) return r->trace->values.data[n->args[i].value].kind == FL_TVAL_RESULT;
  return false;
}

bool fl_rec_put_off(fl_rec *r, fl_tnode *n, PyObject *answer) {
  if (!PyBool_Check(answer) || !is_computed(r, n)) return false;
  fl_decision d = {*n, answer, (uint32_t)r->trace->nodes.len};
  if (!fl_rec_keep(r, answer) || !FL_PUSH(&r->decisions, d)) fl_rec_give_up(r, "out of memory", "");
  return true;
}

void fl_rec_decide(fl_rec *r) {
  size_t n = r->decisions.len;
  uint32_t nodes = r->trace ? (uint32_t)r->trace->nodes.len : 0;
  for (size_t i = 0; i < n && !r->gave_up; i++) {
    const fl_decision *d = &r->decisions.data[i];
    fl_rec_add_decision(r, &d->node, d->answer, d->after < nodes);
  }
  r->decisions.len = 0;
}
