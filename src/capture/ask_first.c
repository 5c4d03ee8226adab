#include "capture/ask_first.h"

#include "capture/segment.h"

enum { MOST_NODES = 16, MOST_ELEMENTS = 1 << 17, CALLS = 64 };

typedef struct search {
  const fl_trace *t;
  fl_ask *ask;
  int64_t elements;
  bool ok;
} search;

static bool has(const fl_ask *ask, uint32_t node) {
  for (int i = 0; i < ask->n; i++)
    if (ask->nodes[i] == node) return true;
  return false;
}

/* The operators that a value comes from, those it needs before it. */
static void look(void *ctx, uint32_t v) {
  search *s = ctx;
  const fl_tval *x = &s->t->values.data[v];
  if (!s->ok || x->kind != FL_TVAL_RESULT) {
    s->ok &= x->kind == FL_TVAL_INPUT || x->kind == FL_TVAL_WEIGHT;
    return;
  }
  const fl_tnode *n = &s->t->nodes.data[x->index];
  if (has(s->ask, x->index)) return;
  for (int i = 0; i < n->n_out; i++)
    if (n->outs[i] != FL_NO_TVAL) s->elements += fl_type_numel(&s->t->values.data[n->outs[i]].meta.type);
  s->ok = !n->schema->writes && !n->schema->seeded && !n->schema->norm && s->elements <= MOST_ELEMENTS;
  if (s->ok) fl_tnode_each(n, look, s);
  if (s->ok && (s->ok = s->ask->n < MOST_NODES)) s->ask->nodes[s->ask->n++] = x->index;
}

static void find(fl_trace *t, uint32_t step) {
  fl_ask ask = {.step = step, .nodes = fl_arena_alloc(&t->arena, MOST_NODES * sizeof(uint32_t))};
  search s = {.t = t, .ask = &ask, .ok = ask.nodes != NULL};
  if (s.ok) fl_tnode_each(&t->nodes.data[t->steps.data[step].first], look, &s);
  if (s.ok) (void)FL_PUSH(&t->asks, ask);
}

void fl_ask_first_begin(fl_trace *t) {
  if (t->effects || t->random || t->idle) return;
  size_t end = t->breaks.len ? t->breaks.data[0]->at : t->steps.len;
  for (size_t i = 0; !t->knows_asks && i < end; i++)
    if (t->steps.data[i].late) find(t, (uint32_t)i);
  t->knows_asks = true;
  t->ask_first = CALLS;
}

/* 1: it will come out otherwise, 0, or -1 with an exception. */
static int run(fl_trace *t, const fl_ask *ask, PyObject **values) {
  const char *miss = NULL;
  int rc = 0;
  for (int i = 0; rc == 0 && i < ask->n; i++) rc = fl_node_run(t, &t->nodes.data[ask->nodes[i]], values, NULL);
  if (rc == 0) rc = fl_decision_compare(t, &t->steps.data[ask->step], values, &miss);
  for (int i = 0; i < ask->n; i++) {
    const fl_tnode *n = &t->nodes.data[ask->nodes[i]];
    for (int k = 0; k < n->n_out; k++)
      if (n->outs[k] != FL_NO_TVAL) Py_CLEAR(values[n->outs[k]]);
  }
  return miss ? 1 : rc;
}

bool fl_ask_first(fl_trace *t, PyObject **values) {
  if (!t->ask_first) return false;
  t->ask_first--;
  for (size_t i = 0; i < t->asks.len; i++) {
    int rc = run(t, &t->asks.data[i], values);
    if (rc < 0) PyErr_Clear(); /* met in its place again */
    if (rc > 0) return t->ask_first = CALLS, true;
  }
  return false;
}
