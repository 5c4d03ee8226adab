/* Traces that end before the call does: at a break from which the rest of the call is a branch of its own.
 *
 * So ends a trace of many breaks, and that of a loop which stands again and again as it stood before: further turns would
 * tell nothing new. Its last break is left on each replay, whatever the unknown code gives. */
#include "capture/branch.h"
#include "capture/eval.h"

enum { MOST_BREAKS = 64, MOST_TURNS = 8 };

bool fl_rec_ends_at(fl_rec *r, fl_break *b) {
  fl_trace *t = r->trace;
  int turns = 0;
  if (t->breaks.len >= MOST_BREAKS) return true;
  if (!fl_break_describe(t, b)) return false;
  for (size_t i = 0; i + 1 < t->breaks.len && turns < MOST_TURNS; i++)
    turns += fl_break_alike(t, t->breaks.data[i], t, b) == 1;
  return turns == MOST_TURNS;
}

static void keep_final(fl_rec *r, uint32_t value) {
  if (r->trace->values.data[value].kind != FL_TVAL_RESULT) return;
  for (size_t i = r->live.len; i-- > 0;) {
    PyObject *o = PyWeakref_GET_OBJECT(r->live.data[i].weak);
    if (r->live.data[i].value != value || o == Py_None) continue;
    fl_final f = {value, PyObject_CallMethod(o, "clone", NULL)};
    if (!f.tensor || !FL_PUSH(&r->finals, f)) Py_XDECREF(f.tensor);
    return;
  }
}

void fl_rec_keep_finals(fl_rec *r, const fl_break *b) {
  if (!fl_rec_hide(r)) return;
  fl_eval_pause(1);
  for (size_t i = 0; i < b->state.nodes.len; i++)
    if (b->state.nodes.data[i].kind == FL_RESULT_VALUE) keep_final(r, b->state.nodes.data[i].index);
  PyErr_Clear();
  fl_eval_pause(0);
  fl_rec_show(r);
}

void fl_rec_stop(fl_rec *r) {
  r->trace->open = true;
  r->ended = r->gave_up = true; /* of what follows nothing is recorded */
}
