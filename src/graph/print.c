#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "graph/graph.h"

typedef struct writer {
  const fl_graph *g;
  FL_VEC(char) text;
  uint32_t *names; /* value id -> printed number; UINT32_MAX = none yet */
  uint32_t n_names;
  bool oom;
} writer;

static void put(writer *w, const char *fmt, ...) FL_PRINTF(2, 3);
static void put(writer *w, const char *fmt, ...) {
  char line[128];
  va_list args;
  va_start(args, fmt);
  int n = vsnprintf(line, sizeof line, fmt, args);
  va_end(args);
  for (int i = 0; i < n && i < (int)sizeof line - 1; i++)
    if (w->oom || !FL_PUSH(&w->text, line[i])) w->oom = true;
}

static void put_type(writer *w, const fl_type *t) {
  put(w, "%s[", fl_dtype_name(t->dtype));
  for (int i = 0; i < t->rank; i++) put(w, i ? ",%" PRId64 : "%" PRId64, t->dims[i]);
  put(w, "]");
}

static void put_list(writer *w, const int64_t *v, int n) {
  put(w, "[");
  for (int i = 0; i < n; i++) put(w, i ? ",%" PRId64 : "%" PRId64, v[i]);
  put(w, "]");
}

/* The shortest of two forms that reads back the same. */
static void put_double(writer *w, double v) {
  char text[40];
  snprintf(text, sizeof text, "%.9g", v);
  double back = 0;
  if (sscanf(text, "%lf", &back) != 1 || (back != v && !isnan(v))) snprintf(text, sizeof text, "%.17g", v);
  put(w, "%s", text);
}

static void put_element(writer *w, const fl_value *v, int64_t i) {
  if (v->type.dtype == FL_I64)
    put(w, "%" PRId64, ((const int64_t *)v->data)[i]);
  else if (v->type.dtype == FL_F32)
    put(w, "%.9g", fl_element_get(FL_F32, v->data, i));
  else
    put_double(w, fl_element_get(v->type.dtype, v->data, i));
}

static void put_name(writer *w, fl_vid v) {
  if (v == FL_NO_VALUE)
    put(w, "_");
  else if (v >= w->g->values.len || w->names[v] == UINT32_MAX)
    put(w, "%%?%u", v);
  else
    put(w, "%%%u", w->names[v]);
}

static void put_leaf(writer *w, fl_vid id) {
  const fl_value *v = &w->g->values.data[id];
  w->names[id] = w->n_names++;
  put(w, "%s%%%u: ", w->names[id] ? ", " : "", w->names[id]);
  if (v->kind == FL_VALUE_WEIGHT) put(w, "weight %u ", v->slot);
  if (v->kind == FL_VALUE_LITERAL) put(w, "literal ");
  put_type(w, &v->type);
  if (!fl_is_contiguous(&v->type, v->strides)) {
    put(w, " strides=");
    put_list(w, v->strides, v->type.rank);
  }
  if (v->kind != FL_VALUE_LITERAL) return;
  put(w, " = [");
  for (int64_t i = 0; i < fl_type_numel(&v->type); i++) {
    if (i) put(w, ",");
    put_element(w, v, i);
  }
  put(w, "]");
}

/* False, no activation and its bounds go without saying. */
static bool is_silent(const fl_node *n, const fl_attr *a) {
  if (a->kind == 'b' || a->kind == 'a') return a->v.i == 0;
  if (!strncmp(a->key, "act_", 4)) return fl_attr_int(&n->attrs, "act", 0) != FL_ACT_CLAMP;
  return !strncmp(a->key, "scale_", 6) && a->v.f == 0;
}

static void put_attr(writer *w, const fl_attr *a) {
  put(w, " %s=", a->key);
  switch (a->kind) {
  case 'I': put_list(w, a->v.list, a->count); break;
  case 'f': put_double(w, a->v.f); break;
  case 'd': put(w, "%s", fl_dtype_name((fl_dtype)a->v.i)); break;
  case 'a': put(w, "%s", fl_act_name((fl_act)a->v.i)); break;
  default: put(w, "%" PRId64, a->v.i);
  }
}

static void put_instr(writer *w, const fl_pw_instr *in, int reg) {
  put(w, "r%d = %s %s", reg, fl_op_get(in->op)->name, fl_dtype_name(in->dtype));
  for (int i = 0; i < 3 && in->src[i] >= 0; i++) put(w, " r%d", in->src[i]);
  const char *key;
  char kind;
  for (int i = 0, k = 0; fl_op_attr(in->op, i, &key, &kind); i++) {
    if (kind != 'f' || k >= 2) continue;
    put(w, " %s=", key);
    put_double(w, k++ ? in->b : in->a);
  }
  put(w, "; ");
}

static void put_program(writer *w, const fl_pw_program *p) {
  put(w, " {");
  for (int i = 0; i < p->n_instrs; i++) put_instr(w, &p->instrs[i], p->n_inputs + i);
  put(w, "yield");
  for (int i = 0; i < p->n_outputs; i++) put(w, " r%d", p->outputs[i]);
  put(w, "}");
}

static void put_node(writer *w, const fl_node *n) {
  put(w, "  ");
  for (int i = 0; i < n->n_outputs; i++) {
    w->names[n->outputs[i]] = w->n_names++;
    if (i) put(w, ", ");
    put_name(w, n->outputs[i]);
  }
  put(w, " = %s(", fl_op_get(n->op)->name);
  int shown = n->n_inputs;
  while (shown && n->inputs[shown - 1] == FL_NO_VALUE) shown--;
  for (int i = 0; i < shown; i++) {
    if (i) put(w, ", ");
    put_name(w, n->inputs[i]);
  }
  put(w, ")");
  for (int i = 0; i < n->attrs.count; i++)
    if (!is_silent(n, &n->attrs.items[i])) put_attr(w, &n->attrs.items[i]);
  if (n->program) put_program(w, n->program);
  for (int i = 0; i < n->n_outputs; i++) {
    put(w, i ? ", " : " : ");
    put_type(w, &w->g->values.data[n->outputs[i]].type);
  }
  put(w, "\n");
}

static void put_graph(writer *w) {
  const fl_graph *g = w->g;
  put(w, "graph(");
  for (size_t i = 0; i < g->inputs.len; i++) put_leaf(w, g->inputs.data[i]);
  for (fl_vid v = 0; v < g->values.len; v++)
    if (w->names[v] == UINT32_MAX && g->values.data[v].kind != FL_VALUE_RESULT && fl_graph_use_count(g, v))
      put_leaf(w, v);
  put(w, ") {\n");
  for (fl_nid id = g->first; id != FL_NO_NODE; id = g->nodes.data[id].next) put_node(w, &g->nodes.data[id]);
  put(w, "  return");
  for (size_t i = 0; i < g->outputs.len; i++) {
    put(w, i ? ", " : " ");
    put_name(w, g->outputs.data[i]);
  }
  put(w, "\n}\n");
}

fl_status fl_graph_print(const fl_graph *g, char **out_text) {
  writer w = {.g = g, .names = fl_malloc((g->values.len + 1) * sizeof(uint32_t))};
  if (!w.names) return fl_oom();
  memset(w.names, 0xff, (g->values.len + 1) * sizeof(uint32_t));
  put_graph(&w);
  if (!FL_PUSH(&w.text, '\0')) w.oom = true;
  fl_free(w.names);
  if (w.oom) {
    fl_free(w.text.data);
    return fl_oom();
  }
  *out_text = w.text.data;
  return NULL;
}
