/* The rest of a call that has left its trace, evaluated for a recording. */
#include "capture/cpython/compat.h"
#include "capture/branch.h"
#include "capture/eval_impl.h"

typedef struct growth {
  PyObject *handled; /* when the call began; borrowed */
  fl_exit *e;
  fl_rec *r;
  fl_eval_standing standing;
} growth;

/* What the frames hold was made by the call, or guards of the trace have met it. */
static void made(void *ctx, const fl_result_node *n, PyObject *o) {
  growth *g = ctx;
  PyObject **d;
  switch (n->kind) {
  case FL_RESULT_CONST: fl_rec_note_known(g->r, o); return;
  case FL_RESULT_VALUE:
    if (g->e->t->values.data[n->index].kind == FL_TVAL_WEIGHT) fl_rec_note_known(g->r, o);
    return;
  case FL_RESULT_TUPLE:
  case FL_RESULT_NAMED:
  case FL_RESULT_STRUCT:
  case FL_RESULT_METHOD:
  case FL_RESULT_AUTOCAST:
  case FL_RESULT_BUILTIN: return;
  default: fl_rec_fresh(g->r, o);
  }
  if (n->kind == FL_RESULT_OBJECT && (d = _PyObject_GetDictPtr(o)) && *d) fl_rec_fresh(g->r, *d);
}

static void standing(void *ctx, fl_cpy_state *frames, int n) {
  growth *g = ctx;
  PyObject **callables = fl_malloc((size_t)n * sizeof *callables);
  for (int i = 0; callables && i < n; i++) callables[i] = g->e->b->frames[i].callable;
  if (callables && fl_eval_stand(&g->standing, g->r, frames, callables, n)) {
    fl_contexts_stand(g->r, &g->standing.st, &g->e->modes);
    g->standing.st.handled = g->handled; /* the frames, and generators among them, may handle another */
  }
  fl_free(callables);
}

static PyObject *run(void *ctx, PyThreadState *ts, fl_frame *f, int at, int throwflag) {
  return fl_eval_stand_run(&((growth *)ctx)->standing, ts, f, at, throwflag);
}

PyObject *fl_exit_evaluate(fl_exit *e, fl_rec *r, int *out_native) {
  growth g = {.handled = fl_cpy_handled(PyThreadState_Get()), .e = e, .r = r};
  PyObject *v = fl_exit_run(e, run, &g, standing, made);
  *out_native = !g.standing.stands;
  fl_eval_stand_end(&g.standing);
  return v;
}
