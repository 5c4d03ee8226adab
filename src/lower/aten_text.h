/* Recorded segments as text, for tests. One line each:
 *   x = input f32[1,3,8,8]                     in the order of the segment's inputs
 *   w = weight f32[4,3,3,3]                    in the order of the slots
 *   y = aten.add.Tensor(self=x, other=2.5) : f32[1,3,8,8]
 *   a, b = aten.unbind.int(self=x, dim=0) : f32[8] of x, f32[8] of x       "of": shares memory with
 *   i, - = aten.topk.default(...) : i64[4]     "-": a result that is no tensor
 *   z = aten.bernoulli.default(self=x) : f32[8] pin random                 must stay eager, for this reason
 *   return y z
 * Arguments: names, integers, floats (with '.', 'e', inf or nan), True, False, None, 'strings', dtype:f32, lists of these. */
#ifndef FL_LOWER_ATEN_TEXT_H
#define FL_LOWER_ATEN_TEXT_H

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lower/aten.h"

typedef struct aten_text {
  const char *at;
  fl_aten_graph *g;
  char names[16384][16];
  const char *problem;
} aten_text;

static void text_blank(aten_text *t) {
  while (*t->at == ' ') t->at++;
}

static bool text_take(aten_text *t, const char *word) {
  text_blank(t);
  size_t n = strlen(word);
  if (strncmp(t->at, word, n)) return false;
  if (isalnum((unsigned char)word[n - 1]) && (isalnum((unsigned char)t->at[n]) || t->at[n] == '_')) return false;
  t->at += n;
  return true;
}

static void text_need(aten_text *t, const char *word) {
  if (!text_take(t, word)) t->problem = t->problem ? t->problem : t->at;
}

static char *text_word(aten_text *t, const char *more) {
  text_blank(t);
  const char *start = t->at;
  while (isalnum((unsigned char)*t->at) || (*t->at && strchr(more, *t->at))) t->at++;
  char *word = fl_arena_alloc(&t->g->arena, (size_t)(t->at - start) + 1);
  if (!word) abort();
  memcpy(word, start, (size_t)(t->at - start));
  return word;
}

static fl_type text_type(aten_text *t) {
  fl_dtype dtype = FL_F32;
  char *name = text_word(t, "");
  fl_type type = fl_type_make(fl_dtype_parse(name, &dtype) ? dtype : FL_F32, 0, NULL);
  text_need(t, "[");
  while (!t->problem && !text_take(t, "]")) {
    type.dims[type.rank++] = strtoll(t->at, (char **)&t->at, 10);
    text_take(t, ",");
  }
  return type;
}

static uint32_t text_value(aten_text *t, const char *name) {
  for (uint32_t v = (uint32_t)t->g->values.len; v-- > 0;)
    if (!strcmp(t->names[v], name)) return v;
  t->problem = t->problem ? t->problem : name;
  return 0;
}

static uint32_t text_new_value(aten_text *t, const char *name, fl_aten_kind kind, uint32_t index) {
  fl_aten_value v = {.kind = kind, .tensor_ok = true, .index = index, .alias_of = FL_ATEN_NONE};
  uint32_t id = (uint32_t)t->g->values.len;
  snprintf(t->names[id], sizeof t->names[id], "%s", name);
  v.type = text_type(t);
  fl_strides_contiguous(&v.type, v.strides);
  if (text_take(t, "of")) v.alias_of = text_value(t, text_word(t, "_"));
  if (text_take(t, "bad")) {
    v.tensor_ok = false;
    v.why_not = text_word(t, "_");
  }
  if (!FL_PUSH(&t->g->values, v)) abort();
  return id;
}

static fl_arg text_arg(aten_text *t);

static fl_arg text_list(aten_text *t) {
  fl_arg items[64], out = {.kind = FL_ARG_INTS};
  while (!t->problem && !text_take(t, "]")) {
    items[out.count++] = text_arg(t);
    text_take(t, ",");
  }
  for (int i = 0; i < out.count; i++)
    if (items[i].kind == FL_ARG_TENSOR)
      out.kind = FL_ARG_TENSORS;
    else if (items[i].kind == FL_ARG_FLOAT)
      out.kind = FL_ARG_FLOATS;
  out.v.ints = fl_arena_alloc(&t->g->arena, 64 * sizeof *out.v.ints);
  if (!out.v.ints) abort();
  for (int i = 0; i < out.count; i++) {
    if (out.kind == FL_ARG_INTS)
      out.v.ints[i] = items[i].v.i;
    else if (out.kind == FL_ARG_FLOATS)
      out.v.floats[i] = items[i].v.f;
    else
      out.v.values[i] = items[i].kind == FL_ARG_NONE ? FL_ATEN_NONE : items[i].v.value;
  }
  return out;
}

static fl_arg text_number(aten_text *t) {
  char *end_f, *end_i;
  double f = strtod(t->at, &end_f);
  long long i = strtoll(t->at, &end_i, 10);
  t->at = end_f;
  if (end_f > end_i) return (fl_arg){.kind = FL_ARG_FLOAT, .v.f = f};
  return (fl_arg){.kind = FL_ARG_INT, .v.i = i};
}

static fl_arg text_arg(aten_text *t) {
  fl_dtype dtype = FL_F32;
  if (text_take(t, "None")) return (fl_arg){.kind = FL_ARG_NONE};
  if (text_take(t, "True")) return (fl_arg){.kind = FL_ARG_BOOL, .v.i = 1};
  if (text_take(t, "False")) return (fl_arg){.kind = FL_ARG_BOOL, .v.i = 0};
  if (text_take(t, "[")) return text_list(t);
  if (text_take(t, "dtype:")) {
    fl_dtype_parse(text_word(t, ""), &dtype);
    return (fl_arg){.kind = FL_ARG_DTYPE, .v.dtype = dtype};
  }
  if (text_take(t, "'")) {
    fl_arg a = {.kind = FL_ARG_STRING, .v.s = text_word(t, "_.:,-> ")};
    text_need(t, "'");
    return a;
  }
  text_blank(t);
  bool number =
      isdigit((unsigned char)*t->at) || *t->at == '-' || !strncmp(t->at, "inf", 3) || !strncmp(t->at, "nan", 3);
  if (number) return text_number(t);
  return (fl_arg){.kind = FL_ARG_TENSOR, .v.value = text_value(t, text_word(t, "_"))};
}

static void text_node(aten_text *t, char **names, int n_names) {
  fl_aten_node n = {.op = text_word(t, "._"), .n_outputs = n_names, .file = "model.py", .line = 1};
  n.args = fl_arena_alloc(&t->g->arena, 32 * sizeof *n.args);
  n.outputs = fl_arena_alloc(&t->g->arena, 64 * sizeof *n.outputs);
  if (!n.args || !n.outputs) abort();
  text_need(t, "(");
  while (!t->problem && !text_take(t, ")")) {
    char *name = text_word(t, "_");
    text_need(t, "=");
    n.args[n.n_args] = text_arg(t);
    n.args[n.n_args++].name = name;
    text_take(t, ",");
  }
  text_need(t, ":");
  for (int i = 0; i < n_names && !t->problem; i++) {
    n.outputs[i] = FL_ATEN_NONE;
    if (!strcmp(names[i], "-")) continue;
    n.outputs[i] = text_new_value(t, names[i], FL_ATEN_RESULT, (uint32_t)t->g->nodes.len);
    text_take(t, ",");
  }
  static const char zeros[4096]; /* "fixed": it is known to give zeros */
  if (text_take(t, "fixed"))
    for (int i = 0; i < n_names; i++)
      if (n.outputs[i] != FL_ATEN_NONE) t->g->values.data[n.outputs[i]].fixed = zeros;
  if (text_take(t, "pin")) n.pin_eager = text_word(t, "_");
  if (!FL_PUSH(&t->g->nodes, n)) abort();
}

static void text_line(aten_text *t) {
  char *names[64];
  int n = 0;
  if (text_take(t, "return")) {
    while (*t->at && *t->at != '\n' && !t->problem)
      if (!FL_PUSH(&t->g->outputs, text_value(t, text_word(t, "_")))) abort();
    return;
  }
  do names[n++] = text_word(t, "_-");
  while (text_take(t, ","));
  text_need(t, "=");
  uint32_t v = (uint32_t)t->g->values.len;
  if (text_take(t, "input")) {
    text_new_value(t, names[0], FL_ATEN_INPUT, (uint32_t)t->g->inputs.len);
    if (!FL_PUSH(&t->g->inputs, v)) abort();
  } else if (text_take(t, "weight")) {
    text_new_value(t, names[0], FL_ATEN_WEIGHT, (uint32_t)t->g->weights.len);
    if (!FL_PUSH(&t->g->weights, v)) abort();
  } else {
    text_node(t, names, n);
  }
}

/* New graph, or NULL after saying on stderr where the text is wrong. */
static fl_aten_graph *aten_from_text(const char *text) {
  aten_text t = {.at = text};
  if (fl_aten_graph_create(&t.g)) abort();
  while (*t.at && !t.problem) {
    text_blank(&t);
    if (*t.at == '\n')
      t.at++;
    else if (*t.at)
      text_line(&t);
    text_blank(&t);
  }
  if (!t.problem) return t.g;
  fprintf(stderr, "segment text wrong at: %.60s\n", t.problem);
  fl_aten_graph_destroy(t.g);
  return NULL;
}

#endif
