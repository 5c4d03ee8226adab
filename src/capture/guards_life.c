/* Guards: what they hold, and how it is let go. */
#include <string.h>

#include "capture/guards.h"

#define VISIT3(a, b, c)                                                                                                \
  do {                                                                                                                 \
    Py_VISIT(a);                                                                                                       \
    Py_VISIT(b);                                                                                                       \
    Py_VISIT(c);                                                                                                       \
    return 0;                                                                                                          \
  } while (0)
static int visit_dict(const fl_dict_guard *x, visitproc visit, void *arg) { VISIT3(x->dict, x->expected, NULL); }
static int visit_inst(const fl_inst_guard *x, visitproc visit, void *arg) { VISIT3(x->obj, x->type, x->dict); }
static int visit_type(const fl_type_guard *x, visitproc visit, void *arg) { VISIT3(x->type, x->expected, NULL); }
static int visit_func(const fl_func_guard *x, visitproc visit, void *arg) {
  Py_VISIT(x->func);
  Py_VISIT(x->code);
  VISIT3(x->defaults, x->kwdefaults, x->closure);
}
static int visit_cell(const fl_cell_guard *x, visitproc visit, void *arg) { VISIT3(x->cell, x->value, NULL); }
static int visit_list(const fl_list_guard *x, visitproc visit, void *arg) { VISIT3(x->list, x->snapshot, NULL); }
static int visit_cont(const fl_cont_guard *x, visitproc visit, void *arg) { VISIT3(x->obj, x->snapshot, NULL); }
static int visit_descr(const fl_descr_guard *x, visitproc visit, void *arg) { VISIT3(x->descr, x->obj, x->value); }
static int visit_query(const fl_query_guard *x, visitproc visit, void *arg) {
  Py_VISIT(x->kwnames);
  Py_VISIT(x->now);
  VISIT3(x->callable, x->args, x->value);
}

int fl_guards_traverse(const fl_guards *g, visitproc visit, void *arg) {
  int rc;
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++)                                                                             \
    if ((rc = visit_##kind(&g->kind.data[i], visit, arg))) return rc;
#include "capture/guards.def"
#undef FL_GUARD
  return 0;
}

static void drop_dict(fl_dict_guard *x) { Py_DECREF(x->dict), Py_DECREF(x->expected); }
static void drop_inst(fl_inst_guard *x) { Py_DECREF(x->obj), Py_DECREF(x->type), Py_XDECREF(x->dict); }
static void drop_type(fl_type_guard *x) { Py_DECREF(x->type), Py_DECREF(x->expected); }
static void drop_func(fl_func_guard *x) {
  Py_DECREF(x->func), Py_XDECREF(x->code), Py_XDECREF(x->defaults), Py_XDECREF(x->kwdefaults), Py_XDECREF(x->closure);
}
static void drop_cell(fl_cell_guard *x) { Py_DECREF(x->cell), Py_XDECREF(x->value); }
static void drop_list(fl_list_guard *x) { Py_DECREF(x->list), Py_DECREF(x->snapshot); }
static void drop_cont(fl_cont_guard *x) { Py_DECREF(x->obj), Py_DECREF(x->snapshot); }
static void drop_descr(fl_descr_guard *x) { Py_DECREF(x->descr), Py_DECREF(x->obj), Py_XDECREF(x->value); }
static void drop_query(fl_query_guard *x) {
  Py_DECREF(x->callable), Py_DECREF(x->args), Py_XDECREF(x->kwnames), Py_DECREF(x->value), Py_XDECREF(x->now);
}

void fl_guards_release(fl_guards *g) {
#define FL_GUARD(kind, name)                                                                                           \
  for (size_t i = 0; i < g->kind.len; i++) drop_##kind(&g->kind.data[i]);                                              \
  fl_free(g->kind.data);
#include "capture/guards.def"
#undef FL_GUARD
  fl_ptrmap *maps[] = {&g->dicts, &g->insts, &g->types, &g->funcs, &g->cells, &g->conts};
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) fl_ptrmap_release(maps[i]);
  fl_free(g->words.data);
  fl_free(g->whose.data);
  fl_free(g->others.data);
  memset(g, 0, sizeof *g);
}

const char *fl_guards_count(const fl_guards *g, int i, size_t *out_count) {
  int row = 0;
#define FL_GUARD(kind, name)                                                                                           \
  if (row++ == i) return *out_count = g->kind.len, name;
#include "capture/guards.def"
#undef FL_GUARD
  return NULL;
}
