/* Side exits: branches are tried, one is recorded, or CPython runs the rest. */
#include "capture/engine_error.h"
#include "capture/cpython/compat.h"
#include "capture/branch.h"

#include <string.h>

#include "capture/apart.h"
#include "capture/segment.h"

bool fl_exit_take(fl_exit *e, fl_run *run, fl_break *b) {
  *e = (fl_exit){.t = run->t, .b = b, .holes = fl_malloc(((size_t)b->n_holes + 1) * sizeof *e->holes)};
  if (!e->holes) return e->b = NULL, PyErr_NoMemory(), false;
  for (int i = 0; i < b->n_holes; i++) e->holes[i] = Py_XNewRef(run->values[b->holes[i]]);
  e->back = run->last_back;
  run->last_back = NULL;
  return true;
}

void fl_exit_drop(fl_exit *e) {
  for (int i = 0; e->b && i < e->b->n_holes; i++) Py_XDECREF(e->holes[i]);
  if (e->b) fl_free(e->holes);
  Py_CLEAR(e->back);
  *e = (fl_exit){0};
}

/* --- frames --- */

typedef struct going {
  fl_exit *e;
  PyObject *frames, *back; /* owned */
  fl_cpy_state *states;
  int n;
  void (*standing)(void *ctx, fl_cpy_state *frames, int n);
  void *ctx;
} going;

static PyObject *answer(void *ctx, bool *go_on) {
  going *g = ctx;
  PyObject *back = g->back;
  *go_on = true;
  g->back = NULL;
  fl_raised_stand(&g->e->raised, &g->e->b->state, fl_break_raised(g->e->b), g->states);
  if (g->standing) g->standing(g->ctx, g->states, g->n);
  fl_modes_pass_on(&g->e->modes);
  fl_raised_pass_on(&g->e->raised);
  Py_CLEAR(g->frames); /* the frames hold what they need */
  return back;
}

/* The modes that stand, and what the frames hold; new reference. */
static PyObject *make_frames(fl_exit *e, fl_result_made_fn made, void *ctx) {
  const fl_trace *t = e->t;
  const fl_break *b = e->b;
  PyObject **values = fl_malloc((t->values.len + 1) * sizeof *values), *out = NULL;
  bool *need = fl_calloc(b->state.nodes.len + 1, sizeof *need);
  if (values && need) {
    memcpy(values, t->start, t->values.len * sizeof *values);
    for (int i = 0; i < b->n_holes; i++) values[b->holes[i]] = e->holes[i];
    for (int i = 0; i < b->n_nodes; i++)
      need[b->nodes[i]] = true; /* which sets context variables, for frames to reset */
    const uint32_t *items = b->state.nodes.data[b->state.root].items;
    uint32_t *roots = fl_malloc(((size_t)b->n_frames + 2) * sizeof *roots);
    if (!roots) {
      PyErr_NoMemory();
    } else if (fl_break_hold_modes(b, &e->modes) == 0) {
      roots[0] = items[FL_STATE_MODES];
      roots[1] = items[FL_STATE_RAISED];
      memcpy(roots + 2, items + FL_STATE_FRAMES, (size_t)b->n_frames * sizeof *roots);
      out = fl_result_build_part(&b->state, values, roots, b->n_frames + 2, need, made, ctx);
      if (out && fl_break_raised(b)->n) e->raised.items = Py_NewRef(PyTuple_GET_ITEM(out, 1));
      if (out && e->modes.before) e->modes.items = Py_NewRef(PyTuple_GET_ITEM(out, 0));
      if (!out) fl_modes_leave(&e->modes);
    }
    fl_free(roots);
  } else
    PyErr_NoMemory();
  fl_free(values);
  fl_free(need);
  return out;
}

PyObject *fl_exit_run(fl_exit *e, fl_cpy_run_fn run, void *ctx, void (*standing)(void *, fl_cpy_state *, int),
                      fl_result_made_fn made) {
  bool went_on;
  going g = {.e = e, .n = e->b->n_frames, .standing = standing, .ctx = ctx};
  g.states = fl_malloc(((size_t)g.n + 1) * sizeof *g.states);
  if (!g.states) return PyErr_NoMemory();
  PyObject *v = NULL;
  if ((g.frames = make_frames(e, made, ctx))) {
    fl_break_states(e->b, &PyTuple_GET_ITEM(g.frames, 2), g.states);
    g.back = e->back;
    e->back = NULL;
    for (int i = 0; !run && i < e->b->n_holes; i++) Py_CLEAR(e->holes[i]); /* else they are a recording's arguments */
    v = fl_cpy_resume(PyThreadState_Get(), g.states, g.n, fl_back_none(), answer, &g, run, ctx, &went_on);
  }
  fl_raised_leave(&e->raised); /* no frames stood */
  fl_modes_leave(&e->modes);
  Py_XDECREF(g.frames);
  Py_XDECREF(g.back);
  fl_free(g.states);
  return v;
}

/* --- branches --- */

static bool same_state(const fl_trace *t) {
  fl_torch_state now;
  if (fl_torch_state_read(&now) < 0 || fl_grad_enabled() != 0) return PyErr_Clear(), false;
  if (!fl_torch_state_equal(&now, &t->state) || fl_torch_state_why_not(&now)) return false;
  if (t->autocast && fl_autocast_is_nested()) return false;
  if (t->handles && fl_cpy_handled(PyThreadState_Get())) return false;
  return t->cuda_state < 0 || fl_torch_cuda_state() == t->cuda_state;
}

/* 1 fits, 0 does not, -1 exception. */
static int fits(fl_trace *t, const fl_call_args *args, PyObject **inputs) {
  void *data[FL_MAX_INPUTS];
  char buf[160];
  const char *why;
  if (!fl_argspec_match(&t->args, args->args, args->n_args, NULL, inputs, data, &why)) return 0;
  if (!same_state(t) || !fl_sources_find(t, inputs, buf, sizeof buf)) return 0;
  int ok = fl_guards_check(&t->guards, buf, sizeof buf) && fl_weights_check(&t->weights) &&
           fl_inputs_watch_shared(t, inputs, &t, 1, NULL);
  return PyErr_Occurred() ? -1 : ok;
}

size_t fl_exit_arguments(const fl_exit *e, PyObject **args, PyObject **objects, size_t *n_objects) {
  size_t n = 0;
  *n_objects = 0;
  for (int i = 0; i < e->b->n_holes; i++)
    if (e->t->values.data[e->b->holes[i]].kind == FL_TVAL_OBJECT)
      objects[(*n_objects)++] = e->holes[i];
    else
      args[n++] = e->holes[i];
  return n;
}

typedef struct taken {
  fl_exit from;
  PyObject **args, **objects;
  size_t n_args, n_objects;
  fl_exit *next;
  const fl_call_args *call;
} taken;

/* The branch's answer; NULL with an exception, with another exit, or with neither: it does not fit. */
static PyObject *try(taken *k, fl_trace *t, const char **miss, bool engines) {
  PyObject *inputs[FL_MAX_INPUTS];
  fl_call_args args = {k->args, k->n_args, NULL, k->call->grow, k->call->grow_ctx};
  if (fits(t, &args, inputs) <= 0) return NULL;
  fl_entry entry = {k->objects, k->n_objects, k->from.back};
  return fl_trace_run_to_exit(t, inputs, &args, &entry, miss, engines, k->next);
}

/* 1 when *out, an exception or another exit is what became of it; 0: none fits. */
static int try_all(taken *k, bool engines, PyObject **out) {
  const fl_site *s = k->from.b->site;
  for (size_t i = 0; s && i < s->branches.len; i++) {
    fl_trace *t = s->branches.data[i];
    const char *miss = NULL;
    *out = try(k, t, &miss, engines);
    if (*out || k->next->b) return t->hits++, 1;
    if (!PyErr_Occurred()) continue;
    if (miss || t->effects || t->dirty || !fl_error_is_of_program()) return 1;
    PyErr_Clear(); /* the program's handlers, and its traceback, are in the frames */
    k->from.native = true;
    return 0;
  }
  return 0;
}

PyObject *fl_exit_go_on(fl_exit *e, const fl_call_args *call, bool engines) {
  taken k = {.from = *e, .next = e, .call = call};
  PyObject *out = NULL;
  size_t n = (size_t)e->b->n_holes + 1;
  bool done = false;
  *e = (fl_exit){0};
  k.args = fl_calloc(2 * n, sizeof *k.args);
  if (k.args) {
    k.objects = k.args + n;
    k.n_args = fl_exit_arguments(&k.from, k.args, k.objects, &k.n_objects);
    if (!k.from.native) done = try_all(&k, engines, &out);
    if (!done && !k.from.native && call->grow) out = call->grow(call->grow_ctx, &k.from, &done);
    if (!done) out = fl_exit_run(&k.from, NULL, NULL, NULL, NULL);
  } else
    PyErr_NoMemory();
  fl_free(k.args);
  fl_exit_drop(&k.from);
  return out;
}
