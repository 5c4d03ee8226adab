#include "capture/rerun.h"

#include <string.h>

#include "capture/engine_error.h"
#include "capture/judge.h"
#include "capture/replay_break.h"

/* --- runs --- */

PyObject **fl_rerun_begin(const fl_trace *t, PyObject *const *inputs) {
  PyObject **v = fl_calloc(t->values.len + 1, sizeof *v);
  for (size_t i = 0; v && i < t->borrowed.len; i++) {
    const fl_tval *x = &t->values.data[t->borrowed.data[i]];
    v[t->borrowed.data[i]] =
        Py_NewRef(x->kind == FL_TVAL_INPUT ? inputs[x->index] : t->weights.list.data[x->index].tensor);
  }
  if (!v) PyErr_NoMemory();
  return v;
}

void fl_rerun_end(const fl_trace *t, PyObject **v) {
  for (size_t i = 0; v && i < t->values.len; i++) Py_XDECREF(v[i]);
  fl_free(v);
}

int fl_rerun_step(fl_trace *t, uint32_t i, PyObject **v, bool eager) {
  const fl_tstep *s = &t->steps.data[i];
  fl_break_recorded(t, i, v);
  if (s->kind == FL_TSTEP_SEGMENT) return fl_segment_run(t, s, v, eager, true);
  return fl_decision_run(t, s, v, NULL);
}

/* All steps by PyTorch, from the generators' state that the recording began with. NULL with an exception; t->unfaithful_at is
 * the node that raised it then. What is no result is let go of as in eager. */
static PyObject **run(fl_trace *t, PyObject *const *inputs, const fl_build_options *o, int spoil) {
  PyObject **v = fl_rerun_begin(t, inputs);
  int rc = !v || (t->random && o->generator && fl_generators_set(o->generator) < 0) ? -1 : 0, before = t->spoil;
  t->spoil = spoil;
  for (uint32_t i = 0; rc == 0 && i < t->steps.len; i++) {
    const fl_tstep *s = &t->steps.data[i];
    fl_break_recorded(t, i, v);
    t->unfaithful_at = s->first;
    rc = s->segment ? fl_segment_run(t, s, v, true, false) : fl_decision_run(t, s, v, NULL);
  }
  t->spoil = before;
  if (rc == 0) return v;
  fl_rerun_end(t, v);
  return NULL;
}

/* --- what to blame --- */

typedef struct search {
  const fl_trace *t;
  bool *seen; /* nodes that the result comes from */
  uint32_t *todo, n;
} search;

static void add(void *ctx, uint32_t value) {
  search *s = ctx;
  const fl_tval *v = &s->t->values.data[value];
  if (v->kind != FL_TVAL_RESULT || s->seen[v->index]) return;
  s->seen[v->index] = true;
  s->todo[s->n++] = v->index;
}

/* The first operator behind a result that may have done more than can be seen, else the one that gave it. */
static uint32_t culprit(const fl_trace *t, uint32_t value, bool *out_unfilled) {
  uint32_t at = t->values.data[value].index, first = at;
  search s = {.t = t};
  s.seen = fl_calloc(t->nodes.len + 1, sizeof *s.seen);
  s.todo = fl_malloc((t->nodes.len + 1) * sizeof *s.todo);
  if (s.seen && s.todo) add(&s, value);
  while (s.n) fl_tnode_each(&t->nodes.data[s.todo[--s.n]], add, &s);
  for (uint32_t i = 0; s.seen && i <= at; i++) *out_unfilled |= s.seen[i] && t->nodes.data[i].schema->unfilled;
  for (uint32_t i = 0; s.seen && i <= at && first == at; i++)
    if (s.seen[i] && (t->nodes.data[i].schema->outside || (*out_unfilled && t->nodes.data[i].schema->unfilled)))
      first = i;
  fl_free(s.seen);
  fl_free(s.todo);
  return first;
}

static void blame(fl_trace *t, uint32_t value) {
  bool unfilled = false;
  t->unfaithful_at = culprit(t, value, &unfilled);
  t->unfaithful = unfilled ? "an answer comes out of memory that no recorded operator fills"
                           : "the recorded operators do not give the recorded answer";
}

/* --- the comparison --- */

enum { NONE = UINT32_MAX };

/* The first result that is another one in `b`, or NONE. */
static uint32_t difference(const fl_trace *t, fl_pool *pool, PyObject *const *results, PyObject *const *a,
                           PyObject *const *b) {
  const fl_judge by = {.pool = pool, .precision = FL_F32, .loose = true};
  for (uint32_t i = 0; i < t->values.len; i++) {
    float cosine = 1, max_rel = 0;
    if (results[i] && (!a[i] || !b[i] || !fl_judge_pair(&by, a[i], b[i], &cosine, &max_rel))) return i;
  }
  return NONE;
}

/* Result `at` is not what it should be, or NONE. Where `first` comes again when all is run once more, no chance is to blame. */
static int judge(fl_trace *t, PyObject *const *inputs, const fl_build_options *o, PyObject *const *finals,
                 PyObject *const *first, uint32_t at) {
  if (at == NONE) return 0;
  PyObject **again = run(t, inputs, o, FL_SPOIL);
  if (!again) return -1;
  if (difference(t, o->pool, finals, first, again) == NONE) blame(t, at);
  fl_rerun_end(t, again);
  return 0;
}

/* The operators raise what they did not when they were recorded. */
static int raised(fl_trace *t) {
  if (!fl_error_is_of_program() || PyErr_ExceptionMatches(PyExc_MemoryError)) return -1;
  PyObject *type, *value, *tb;
  PyErr_Fetch(&type, &value, &tb);
  bool memory = type && strstr(((PyTypeObject *)type)->tp_name, "OutOfMemory");
  PyErr_Restore(type, value, tb);
  if (memory) return -1;
  PyErr_Clear();
  t->unfaithful = "the recorded operators raise an error, which they did not when they were recorded";
  return 0;
}

int fl_rerun_check(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *o) {
  PyObject **got = run(t, inputs, o, FL_SPOIL);
  if (!got) return raised(t);
  int rc = judge(t, inputs, o, finals, got, difference(t, o->pool, finals, finals, got));
  fl_rerun_end(t, got);
  return rc;
}

static bool any_unfilled(const fl_trace *t) {
  for (size_t i = 0; i < t->nodes.len; i++)
    if (t->nodes.data[i].schema->unfilled) return true;
  return false;
}

int fl_rerun_answers(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale, const fl_build_options *o) {
  PyObject **got = run(t, inputs, o, FL_SPOIL), **other = NULL;
  if (!got) return stale ? -1 : raised(t);
  if (stale && any_unfilled(t) && !(other = run(t, inputs, o, FL_SPOIL_OTHER))) return fl_rerun_end(t, got), -1;
  uint32_t at = NONE;
  if (!stale || other) at = difference(t, o->pool, finals, stale ? other : finals, got);
  int rc = judge(t, inputs, o, finals, got, at);
  for (size_t i = 0; rc == 0 && i < t->values.len; i++)
    if (finals[i] && got[i]) Py_SETREF(finals[i], Py_NewRef(got[i]));
  fl_rerun_end(t, got);
  fl_rerun_end(t, other);
  return rc;
}
