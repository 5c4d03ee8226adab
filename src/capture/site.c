/* Where calls leave their traces: which breaks stand alike. */
#include <string.h>

#include "capture/branch.h"

enum { NOWHERE = UINT32_MAX };

static const uint32_t *state_items(const fl_break *b) { return b->state.nodes.data[b->state.root].items; }

static void walk(fl_break *b, uint32_t node, uint32_t *at) {
  const fl_result_node *n = &b->state.nodes.data[node];
  if (at[node] != NOWHERE) return;
  at[node] = (uint32_t)b->n_nodes;
  b->nodes[b->n_nodes++] = node;
  for (int i = 0; i < n->n + 2 * n->n_attrs; i++) walk(b, n->items[i], at);
}

static uint32_t *positions(const fl_break *b) {
  size_t n = b->state.nodes.len;
  uint32_t *at = fl_malloc((n + 1) * sizeof *at);
  for (size_t i = 0; at && i < n; i++) at[i] = NOWHERE;
  for (int i = 0; at && i < b->n_nodes; i++) at[b->nodes[i]] = (uint32_t)i;
  return at;
}

static const fl_tval *value_of(const fl_trace *t, const fl_result_node *n) { return &t->values.data[n->index]; }

static int hole_at(const fl_break *b, uint32_t value) {
  int i = 0;
  while (i < b->n_holes && b->holes[i] != value) i++;
  return i;
}

bool fl_break_describe(fl_trace *t, fl_break *b) {
  size_t n = b->state.nodes.len;
  if (b->holes) return true;
  b->nodes = fl_arena_alloc(&t->arena, (n + 1) * sizeof *b->nodes);
  b->holes = fl_arena_alloc(&t->arena, (n + 1) * sizeof *b->holes);
  b->n_nodes = b->n_holes = 0;
  uint32_t *at = b->nodes && b->holes ? positions(b) : NULL;
  if (at) walk(b, state_items(b)[FL_STATE_TOKENS], at); /* context variables are set for the frames */
  if (at) walk(b, state_items(b)[FL_STATE_MODES], at);
  if (at) walk(b, state_items(b)[FL_STATE_RAISED], at);
  for (int i = 0; at && i < b->n_frames; i++) walk(b, state_items(b)[FL_STATE_FRAMES + i], at);
  for (int i = 0; at && i < b->n_nodes; i++) {
    const fl_result_node *x = &b->state.nodes.data[b->nodes[i]];
    if (x->kind != FL_RESULT_VALUE || value_of(t, x)->kind == FL_TVAL_WEIGHT) continue;
    if (hole_at(b, x->index) == b->n_holes) b->holes[b->n_holes++] = x->index;
  }
  fl_free(at);
  return at != NULL;
}

/* A tensor, a container among the arguments, or an object of which nothing is known. */
static fl_tval_kind kind_of(const fl_tval *v) {
  return v->kind == FL_TVAL_OBJECT || v->kind == FL_TVAL_ARGUMENT ? v->kind : FL_TVAL_INPUT;
}

static bool same_value(const fl_trace *t, const fl_break *a, uint32_t x, const fl_trace *u, const fl_break *b,
                       uint32_t y) {
  const fl_tval *v = &t->values.data[x], *w = &u->values.data[y];
  if (v->kind == FL_TVAL_WEIGHT || w->kind == FL_TVAL_WEIGHT)
    return v->kind == w->kind && t->weights.list.data[v->index].tensor == u->weights.list.data[w->index].tensor;
  return hole_at(a, x) == hole_at(b, y) && kind_of(v) == kind_of(w);
}

static bool same_frames(const fl_break *a, const fl_break *b) {
  if (a->n_frames != b->n_frames || a->n_nodes != b->n_nodes || a->n_holes != b->n_holes) return false;
  for (int i = 0; i < a->n_frames; i++) {
    const fl_break_frame *f = &a->frames[i], *g = &b->frames[i];
    if (f->code != g->code || f->depth != g->depth || f->next != g->next || f->wants != g->wants ||
        f->other != g->other || f->generator != g->generator)
      return false;
  }
  return true;
}

int fl_break_alike(const fl_trace *t, const fl_break *a, const fl_trace *u, const fl_break *b) {
  if (!same_frames(a, b)) return 0;
  uint32_t *at = positions(a), *in = positions(b);
  int same = at && in ? 1 : -1;
  for (int i = 0; same == 1 && i < a->n_nodes; i++) {
    const fl_result_node *x = &a->state.nodes.data[a->nodes[i]], *y = &b->state.nodes.data[b->nodes[i]];
    same = fl_result_same_node(x, y);
    if (same && x->kind == FL_RESULT_VALUE) same = same_value(t, a, x->index, u, b, y->index);
    for (int k = 0; same && k < x->n + 2 * x->n_attrs; k++) same = at[x->items[k]] == in[y->items[k]];
  }
  fl_free(at);
  fl_free(in);
  return same;
}

static fl_site *find(fl_trace *root, fl_trace *t, fl_break *b) {
  for (size_t i = 0; i < root->sites.len; i++) {
    fl_site *s = root->sites.data[i];
    int same = fl_break_alike(s->t, s->b, t, b);
    if (same) return same > 0 ? s : NULL;
  }
  fl_site *s = fl_calloc(1, sizeof *s);
  if (!s || !FL_PUSH(&root->sites, s)) return fl_free(s), NULL;
  s->t = t;
  s->b = b;
  return s;
}

bool fl_sites_find(fl_trace *t) {
  for (size_t i = 0; i < t->breaks.len; i++) {
    fl_break *b = t->breaks.data[i];
    if (!fl_break_describe(t, b)) return false;
    /* Where context variables are set nothing is recorded: what is set must be reset in the same call of the evaluator. */
    if (b->state.nodes.data[state_items(b)[FL_STATE_TOKENS]].n) continue;
    if (!(b->site = find(fl_trace_root(t), t, b))) return false;
  }
  return true;
}

bool fl_site_may_grow(const fl_break *b) {
  const fl_site *s = b->site;
  const fl_trace *root = s ? fl_trace_root(s->t) : NULL;
  return s && s->recordings < FL_MAX_BRANCHES && s->give_ups < FL_MAX_BRANCH_GIVE_UP &&
         root->n_branches < FL_MAX_ALL_BRANCHES;
}

bool fl_site_is_open(const fl_break *b) { return b->site && (b->site->branches.len || fl_site_may_grow(b)); }
