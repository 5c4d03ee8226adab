#include "capture/trace.h"

#include <string.h>

#include "capture/later.h"
#include "capture/segment.h"

fl_trace *fl_trace_new(void) {
  fl_trace *t = fl_calloc(1, sizeof *t);
  PyObject *keep = t ? PyList_New(0) : NULL;
  if (!keep) {
    fl_free(t);
    PyErr_NoMemory();
    return NULL;
  }
  fl_arena_init(&t->arena);
  t->keep = keep;
  t->refs = 1;
  return t;
}

void fl_trace_retain(fl_trace *t) { t->refs++; }

void fl_trace_release(fl_trace *t) {
  if (!t || --t->refs > 0) return;
  fl_later_free(t->later);
  for (size_t i = 0; i < t->sites.len; i++) {
    fl_site *site = t->sites.data[i];
    for (size_t k = 0; k < site->branches.len; k++) fl_trace_release(site->branches.data[k]);
    fl_free(site->branches.data);
    fl_free(site);
  }
  fl_free(t->sites.data);
  fl_free(t->asks.data);
  Py_XDECREF(t->entered);
  for (size_t i = 0; i < t->steps.len; i++) fl_segment_destroy(t->steps.data[i].segment);
  for (size_t i = 0; i < t->breaks.len; i++) {
    fl_break *b = t->breaks.data[i];
    fl_effects_release(&b->writes);
    fl_result_release(&b->state);
    fl_guards_release(&b->guards);
    fl_free(b->places.data);
    Py_XDECREF(b->recorded);
  }
  fl_free(t->breaks.data);
  fl_argspec_release(&t->args);
  fl_guards_release(&t->guards);
  fl_weights_release(&t->weights);
  fl_effects_release(&t->writes);
  fl_result_release(&t->result);
  fl_free(t->values.data);
  fl_free(t->borrowed.data);
  fl_free(t->inputs.data);
  for (size_t i = 0; i < t->nodes.len; i++) fl_tnode_forget(&t->nodes.data[i]);
  fl_free(t->nodes.data);
  fl_free(t->steps.data);
  Py_DECREF(t->keep);
  fl_arena_release(&t->arena);
  fl_free(t);
}

static void each(const fl_targ *a, fl_targ_fn fn, void *ctx) {
  if (a->kind == FL_TARG_VALUE)
    fn(ctx, a->value);
  else if (a->kind != FL_TARG_CONST)
    for (int i = 0; i < a->n; i++) each(&a->items[i], fn, ctx);
}

void fl_tnode_each(const fl_tnode *n, fl_targ_fn fn, void *ctx) {
  for (int i = 0; i < n->n_pos + n->n_kw; i++) each(&n->args[i], fn, ctx);
}

void fl_tnode_forget(fl_tnode *n) {
  PyObject **recorded = n->recorded;
  n->recorded = NULL;
  for (int i = 0; recorded && i < n->n_out; i++) Py_XDECREF(recorded[i]);
  fl_free(recorded);
}

static void mark(void *ctx, uint32_t value) { ((bool *)ctx)[value] = true; }

void fl_trace_needed_after(const fl_trace *t, uint32_t step, bool *need) {
  for (size_t i = step + 1; i < t->steps.len; i++)
    for (uint32_t k = 0; k < t->steps.data[i].n; k++)
      fl_tnode_each(&t->nodes.data[t->steps.data[i].first + k], mark, need);
  fl_trace_each_kept(t, mark, need);
}

static void each_of(const fl_result *r, fl_targ_fn fn, void *ctx) {
  for (size_t i = 0; i < r->nodes.len; i++)
    if (r->nodes.data[i].kind == FL_RESULT_VALUE) fn(ctx, r->nodes.data[i].index);
}

void fl_trace_each_kept(const fl_trace *t, fl_targ_fn fn, void *ctx) {
  for (size_t i = 0; i < t->breaks.len; i++) {
    const fl_break *b = t->breaks.data[i];
    each_of(&b->state, fn, ctx);
    for (size_t k = 0; k < b->places.len; k++) fn(ctx, b->places.data[k].value);
  }
  each_of(&t->result, fn, ctx);
}

/* Only a trace with one owner is traversed: its references are then its owner's. */
int fl_trace_traverse(const fl_trace *t, visitproc visit, void *arg) {
  if (t->refs != 1) return 0;
  Py_VISIT(t->keep);
  Py_VISIT(t->args.keep);
  Py_VISIT(t->result.keep);
  Py_VISIT(t->entered);
  for (size_t i = 0; i < t->weights.list.len; i++) Py_VISIT(t->weights.list.data[i].tensor);
  for (size_t i = 0; i < t->weights.witnesses.len; i++) Py_VISIT(t->weights.witnesses.data[i].tensor);
  for (size_t i = 0; i < t->breaks.len; i++) {
    const fl_break *b = t->breaks.data[i];
    Py_VISIT(b->state.keep);
    Py_VISIT(b->recorded);
    int rc = fl_guards_traverse(&b->guards, visit, arg);
    if (rc) return rc;
  }
  for (size_t i = 0; i < t->sites.len; i++)
    for (size_t k = 0; k < t->sites.data[i]->branches.len; k++) {
      int rc = fl_trace_traverse(t->sites.data[i]->branches.data[k], visit, arg);
      if (rc) return rc;
    }
  return fl_guards_traverse(&t->guards, visit, arg);
}
