#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

/* A name in the text is a number; larger ones would make the table of names huge. */
#define MAX_NAME (1u << 20)

typedef struct reader {
  fl_graph *g;
  const char *at;
  int line;
  FL_VEC(fl_vid) names; /* number in the text -> value */
} reader;

/* --- tokens --- */

static fl_status syntax(const reader *r, const char *want) {
  char found[24] = "end of text";
  size_t n = strcspn(r->at, "\n");
  if (*r->at) snprintf(found, sizeof found, "\"%.*s\"", (int)(n < 20 ? n : 20), r->at);
  return fl_fail(FL_INVALID, "line %d: expected %s, found %s", r->line, want, found);
}

static void skip_space(reader *r) {
  for (; isspace((unsigned char)*r->at); r->at++) r->line += *r->at == '\n';
}

static bool peek(reader *r, const char *token) {
  skip_space(r);
  return !strncmp(r->at, token, strlen(token));
}

static bool accept(reader *r, const char *token) {
  if (!peek(r, token)) return false;
  r->at += strlen(token);
  return true;
}

static fl_status expect(reader *r, const char *token) {
  char want[32];
  if (accept(r, token)) return NULL;
  snprintf(want, sizeof want, "\"%s\"", token);
  return syntax(r, want);
}

static fl_status word(reader *r, char *buf, size_t size) {
  skip_space(r);
  size_t n = 0;
  while (isalnum((unsigned char)r->at[n]) || r->at[n] == '_') n++;
  if (!n || n >= size) return syntax(r, "a name");
  memcpy(buf, r->at, n);
  buf[n] = '\0';
  r->at += n;
  return NULL;
}

static fl_status integer(reader *r, int64_t *out) {
  char *end;
  skip_space(r);
  errno = 0;
  *out = strtoll(r->at, &end, 10);
  if (end == r->at || errno) return syntax(r, "an integer");
  r->at = end;
  return NULL;
}

static fl_status number(reader *r, double *out) {
  char *end;
  skip_space(r);
  *out = strtod(r->at, &end);
  if (end == r->at) return syntax(r, "a number");
  r->at = end;
  return NULL;
}

static fl_status list(reader *r, int64_t *out, int max, int *out_n) {
  *out_n = 0;
  FL_TRY(expect(r, "["));
  while (!accept(r, "]")) {
    if (*out_n) FL_TRY(expect(r, ","));
    if (*out_n == max) return syntax(r, "a shorter list");
    FL_TRY(integer(r, &out[(*out_n)++]));
  }
  return NULL;
}

static fl_status dtype(reader *r, fl_dtype *out) {
  char name[16];
  FL_TRY(word(r, name, sizeof name));
  return fl_dtype_parse(name, out) ? NULL : fl_fail(FL_INVALID, "line %d: unknown dtype %s", r->line, name);
}

static fl_status type(reader *r, fl_type *out) {
  int64_t dims[FL_MAX_RANK];
  int rank;
  fl_dtype t;
  FL_TRY(dtype(r, &t));
  FL_TRY(list(r, dims, FL_MAX_RANK, &rank));
  *out = fl_type_make(t, rank, dims);
  return NULL;
}

/* --- names --- */

static fl_status new_name(reader *r, uint32_t *out) {
  int64_t n;
  FL_TRY(expect(r, "%"));
  FL_TRY(integer(r, &n));
  if (n < 0 || n > MAX_NAME) return fl_fail(FL_INVALID, "line %d: name %%%lld is too large", r->line, (long long)n);
  while (r->names.len <= (size_t)n)
    if (!FL_PUSH(&r->names, FL_NO_VALUE)) return fl_oom();
  if (r->names.data[n] != FL_NO_VALUE)
    return fl_fail(FL_INVALID, "line %d: %%%lld is defined twice", r->line, (long long)n);
  *out = (uint32_t)n;
  return NULL;
}

static fl_status value(reader *r, fl_vid *out) {
  int64_t n;
  if (accept(r, "_")) {
    *out = FL_NO_VALUE;
    return NULL;
  }
  FL_TRY(expect(r, "%"));
  FL_TRY(integer(r, &n));
  if (n < 0 || (size_t)n >= r->names.len || r->names.data[n] == FL_NO_VALUE)
    return fl_fail(FL_INVALID, "line %d: %%%lld is not defined", r->line, (long long)n);
  *out = r->names.data[n];
  return NULL;
}

/* --- inputs and constants --- */

static fl_status elements(reader *r, const fl_type *t, char *data) {
  int64_t n = fl_type_numel(t);
  FL_TRY(expect(r, "="));
  FL_TRY(expect(r, "["));
  for (int64_t i = 0; i < n; i++) {
    if (i) FL_TRY(expect(r, ","));
    if (t->dtype == FL_I64) {
      int64_t v;
      FL_TRY(integer(r, &v));
      memcpy(data + i * 8, &v, sizeof v);
    } else {
      double v;
      FL_TRY(number(r, &v));
      fl_element_set(t->dtype, data, i, v);
    }
  }
  return expect(r, "]");
}

static fl_status literal(reader *r, const fl_type *t, fl_vid *out) {
  /* Each element takes two characters or more, so this cannot ask for more memory than the text is worth. */
  if (fl_type_numel(t) > (int64_t)strlen(r->at)) return syntax(r, "as many elements as the type has");
  char *data = fl_malloc(fl_type_bytes(t));
  if (!data) return fl_oom();
  fl_status s = elements(r, t, data);
  if (!s) s = fl_graph_literal(r->g, t, data, out);
  fl_free(data);
  return s;
}

static fl_status leaf(reader *r) {
  uint32_t name;
  FL_TRY(new_name(r, &name));
  FL_TRY(expect(r, ":"));
  bool is_weight = accept(r, "weight"), is_literal = !is_weight && accept(r, "literal");
  int64_t slot = 0, strides[FL_MAX_RANK];
  fl_type t;
  int n = 0;
  if (is_weight) FL_TRY(integer(r, &slot));
  if (slot < 0 || slot >= FL_NO_SLOT) return syntax(r, "a smaller slot");
  FL_TRY(type(r, &t));
  bool strided = accept(r, "strides=");
  if (strided) {
    FL_TRY(list(r, strides, FL_MAX_RANK, &n));
    if (n != t.rank || is_literal) return syntax(r, "one stride for each dimension of an input or weight");
  }
  fl_vid v;
  if (is_literal)
    FL_TRY(literal(r, &t, &v));
  else if (is_weight)
    FL_TRY(fl_graph_weight(r->g, &t, strided ? strides : NULL, (uint32_t)slot, NULL, &v));
  else
    FL_TRY(fl_graph_input(r->g, &t, strided ? strides : NULL, &v));
  r->names.data[name] = v;
  return NULL;
}

/* --- nodes --- */

static fl_status attr_value(reader *r, fl_attrs *attrs, const char *key, char kind) {
  int64_t i = 0, items[FL_MAX_ATTR_LIST];
  double f;
  int n;
  bool ok;
  char name[16];
  fl_dtype t;
  fl_act act;
  switch (kind) {
  case 'I':
    FL_TRY(list(r, items, FL_MAX_ATTR_LIST, &n));
    ok = fl_attr_set_list(attrs, key, items, n);
    break;
  case 'f':
    FL_TRY(number(r, &f));
    ok = fl_attr_set_float(attrs, key, f);
    break;
  case 'd':
    FL_TRY(dtype(r, &t));
    ok = fl_attr_set_int(attrs, key, kind, t);
    break;
  case 'a':
    FL_TRY(word(r, name, sizeof name));
    if (!fl_act_parse(name, &act)) return fl_fail(FL_INVALID, "line %d: unknown activation %s", r->line, name);
    ok = fl_attr_set_int(attrs, key, kind, act);
    break;
  default: FL_TRY(integer(r, &i)); ok = fl_attr_set_int(attrs, key, kind, i);
  }
  return ok ? NULL : syntax(r, "fewer attributes");
}

static fl_status attributes(reader *r, fl_op op, fl_attrs *attrs) {
  char key[24];
  for (skip_space(r); isalpha((unsigned char)*r->at); skip_space(r)) {
    FL_TRY(word(r, key, sizeof key));
    FL_TRY(expect(r, "="));
    const char *known;
    char kind;
    int i = 0;
    while (fl_op_attr(op, i, &known, &kind) && strcmp(known, key)) i++;
    if (!fl_op_attr(op, i, &known, &kind))
      return fl_fail(FL_INVALID, "line %d: %s has no attribute %s", r->line, fl_op_get(op)->name, key);
    FL_TRY(attr_value(r, attrs, known, kind));
  }
  return NULL;
}

static fl_status operation(reader *r, fl_op *out) {
  char name[32];
  FL_TRY(word(r, name, sizeof name));
  return fl_op_parse(name, out) ? NULL : fl_fail(FL_INVALID, "line %d: unknown operator %s", r->line, name);
}

static fl_status reg(reader *r, int16_t *out) {
  int64_t n;
  FL_TRY(expect(r, "r"));
  FL_TRY(integer(r, &n));
  if (n < 0 || n >= FL_PW_MAX_INPUTS + FL_PW_MAX_INSTRS) return syntax(r, "a smaller register");
  *out = (int16_t)n;
  return NULL;
}

static fl_status instr_floats(reader *r, fl_pw_instr *in) {
  fl_attrs attrs = {0};
  FL_TRY(attributes(r, in->op, &attrs));
  const char *key;
  char kind;
  for (int i = 0, k = 0; fl_op_attr(in->op, i, &key, &kind); i++)
    if (kind == 'f' && k < 2) *(k++ ? &in->b : &in->a) = fl_attr_float(&attrs, key, 0);
  return NULL;
}

static fl_status instr(reader *r, fl_pw_program *p) {
  int16_t to;
  if (p->n_instrs == FL_PW_MAX_INSTRS) return syntax(r, "fewer instructions");
  FL_TRY(reg(r, &to));
  if (to != p->n_inputs + p->n_instrs) return syntax(r, "registers written in order");
  fl_pw_instr *in = &p->instrs[p->n_instrs++];
  *in = (fl_pw_instr){.src = {-1, -1, -1}};
  FL_TRY(expect(r, "="));
  FL_TRY(operation(r, &in->op));
  FL_TRY(dtype(r, &in->dtype));
  for (int i = 0; i < 3 && peek(r, "r") && isdigit((unsigned char)r->at[1]); i++) FL_TRY(reg(r, &in->src[i]));
  FL_TRY(instr_floats(r, in));
  return expect(r, ";");
}

static fl_status program(reader *r, const fl_vid *inputs, int n_inputs, fl_pw_program *p) {
  memset(p, 0, sizeof *p);
  if (n_inputs > FL_PW_MAX_INPUTS) return syntax(r, "fewer operands");
  p->n_inputs = n_inputs;
  for (int i = 0; i < n_inputs; i++) {
    if (inputs[i] == FL_NO_VALUE) return syntax(r, "an operand instead of _");
    p->in_dtype[i] = r->g->values.data[inputs[i]].type.dtype;
  }
  FL_TRY(expect(r, "{"));
  while (!accept(r, "yield")) FL_TRY(instr(r, p));
  while (!accept(r, "}")) {
    if (p->n_outputs == FL_PW_MAX_OUTPUTS) return syntax(r, "fewer results");
    FL_TRY(reg(r, &p->outputs[p->n_outputs++]));
  }
  return NULL;
}

typedef struct node_text {
  uint32_t names[FL_PW_MAX_OUTPUTS];
  int n_names;
  FL_VEC(fl_vid) inputs;
} node_text;

static fl_status result_types(reader *r, const node_text *t, const fl_vid *results, int n_results) {
  char want[128];
  fl_type given;
  if (t->n_names != n_results)
    return fl_fail(FL_INVALID, "line %d: %d results have names: must be %d", r->line, t->n_names, n_results);
  FL_TRY(expect(r, ":"));
  for (int i = 0; i < n_results; i++) {
    if (i) FL_TRY(expect(r, ","));
    FL_TRY(type(r, &given));
    const fl_type *have = &r->g->values.data[results[i]].type;
    if (!fl_type_equal(&given, have))
      return fl_fail(FL_INVALID, "line %d: result is %s", r->line, fl_type_str(have, want, sizeof want));
    r->names.data[t->names[i]] = results[i];
  }
  return NULL;
}

static fl_status node_body(reader *r, node_text *t) {
  fl_op op;
  fl_attrs attrs = {0};
  fl_pw_program prog;
  fl_vid v, results[FL_PW_MAX_OUTPUTS];
  for (bool more = true; more; more = accept(r, ",")) {
    if (t->n_names == FL_PW_MAX_OUTPUTS) return syntax(r, "fewer results");
    FL_TRY(new_name(r, &t->names[t->n_names++]));
  }
  FL_TRY(expect(r, "="));
  FL_TRY(operation(r, &op));
  FL_TRY(expect(r, "("));
  while (!accept(r, ")")) {
    if (t->inputs.len) FL_TRY(expect(r, ","));
    FL_TRY(value(r, &v));
    if (!FL_PUSH(&t->inputs, v)) return fl_oom();
  }
  FL_TRY(attributes(r, op, &attrs));
  bool group = op == FL_OP_POINTWISE;
  if (group) FL_TRY(program(r, t->inputs.data, (int)t->inputs.len, &prog));
  int line = r->line;
  fl_status s =
      fl_graph_add(r->g, FL_NO_NODE, op, t->inputs.data, (int)t->inputs.len, &attrs, group ? &prog : NULL, results);
  if (s) return fl_annotate(s, "line %d", line);
  return result_types(r, t, results, group ? prog.n_outputs : fl_op_get(op)->outputs);
}

static fl_status node(reader *r) {
  node_text t = {.n_names = 0};
  fl_status s = node_body(r, &t);
  fl_free(t.inputs.data);
  return s;
}

static fl_status graph(reader *r) {
  FL_TRY(expect(r, "graph"));
  FL_TRY(expect(r, "("));
  for (bool first = true; !accept(r, ")"); first = false) {
    if (!first) FL_TRY(expect(r, ","));
    FL_TRY(leaf(r));
  }
  FL_TRY(expect(r, "{"));
  while (!accept(r, "return")) FL_TRY(node(r));
  for (bool first = true; !accept(r, "}"); first = false) {
    fl_vid v;
    if (!first) FL_TRY(expect(r, ","));
    FL_TRY(value(r, &v));
    FL_TRY(fl_graph_output(r->g, v));
  }
  skip_space(r);
  return *r->at ? syntax(r, "end of text") : NULL;
}

fl_status fl_graph_parse(const char *text, fl_graph **out_graph) {
  reader r = {.at = text, .line = 1};
  FL_TRY(fl_graph_create(&r.g));
  fl_status s = graph(&r);
  fl_free(r.names.data);
  if (s)
    fl_graph_destroy(r.g);
  else
    *out_graph = r.g;
  return s;
}
