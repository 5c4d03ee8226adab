#include "cuda/writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cuda/nvrtc.h"

static void add_arg(fl_cuda_writer *w, void *arg) {
  if (w->n_args == FL_CUDA_MAX_ARGS)
    w->text.failed = true;
  else
    w->args[w->n_args++] = arg;
}

void fl_cuda_write_pointer(fl_cuda_writer *w, const void *p) { add_arg(w, (void *)(uintptr_t)p); }

void fl_cuda_write_number(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_text_add(&w->text, "#define %s %" PRId64 "\n", name, v);
}

static void add_named(fl_cuda_writer *w, const char *name, uint64_t v) {
  fl_text_add(&w->names, ", i64 p_%s", name);
  add_arg(w, (void *)(uintptr_t)v);
}

void fl_cuda_write_argument(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_text_add(&w->text, "#define %s ((int)p_%s)\n", name, name);
  add_named(w, name, (uint64_t)v);
}

void fl_cuda_write_long(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_text_add(&w->text, "#define %s p_%s\n", name, name);
  add_named(w, name, (uint64_t)v);
}

void fl_cuda_write_float(fl_cuda_writer *w, const char *name, double v) {
  float f = (float)v;
  int32_t bits;
  memcpy(&bits, &f, sizeof bits);
  fl_text_add(&w->text, "#define %s __int_as_float((int)p_%s)\n", name, name);
  add_named(w, name, (uint32_t)bits);
}

void fl_cuda_write_double(fl_cuda_writer *w, const char *name, double v) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  fl_text_add(&w->text, "#define %s __longlong_as_double(p_%s)\n", name, name);
  add_named(w, name, bits);
}

/* Shorter forms, exact enough for a result of 16 bits (prelude.cu). NULL: none. */
static const char *short_form(fl_act act) {
  switch (act) {
  case FL_ACT_SILU: return "silu_16(v)";
  case FL_ACT_SIGMOID: return "sigmoid_16(v)";
  case FL_ACT_GELU: return "gelu_16(v)";
  case FL_ACT_GELU_TANH: return "gelu_tanh_16(v)";
  case FL_ACT_HARDSWISH: return "(v * clamp<float>(v + 3, 0, 6) * 0.16666667f)";
  case FL_ACT_HARDSIGMOID: return "(clamp<float>(v + 3, 0, 6) * 0.16666667f)";
  default: return NULL;
  }
}

void fl_cuda_write_act(fl_cuda_writer *w, fl_dtype dtype, fl_act act, double lo, double hi) {
  const char *form = dtype == FL_F32 ? NULL : short_form(act);
  if (act == FL_ACT_NONE || act == FL_ACT_RELU || act == FL_ACT_CLAMP) {
    fl_cuda_write_float(w, "LO", act == FL_ACT_CLAMP ? lo : act == FL_ACT_RELU ? 0 : -INFINITY);
    fl_cuda_write_float(w, "HI", act == FL_ACT_CLAMP ? hi : INFINITY);
    fl_text_add(&w->text, "#define ACT(v) clamp<float>(v, LO, HI)\n");
    return;
  }
  fl_text_add(&w->text, "__device__ inline float act(float v) {\n");
  if (form)
    fl_text_add(&w->text, "  v = %s;\n", form);
  else
    fl_cg_act(&w->text, "v", act, lo, hi);
  fl_text_add(&w->text, "  return v;\n}\n#define ACT(v) act(v)\n");
}

/* --- indices --- */

int64_t fl_cuda_magic(int64_t d) {
  int l = 0;
  if (d < 1) return fl_cuda_magic(1); /* of an empty tensor, which nothing counts */
  while ((int64_t)1 << l < d) l++;
  uint64_t power = (uint64_t)1 << (31 + l), m = (power + (uint64_t)d - 1) / (uint64_t)d;
  return (int64_t)(m | (uint64_t)l << 32);
}

void fl_cuda_write_quotient(fl_cuda_writer *w, const char *name, int64_t v, bool number) {
  if (number) {
    fl_text_add(&w->text, "#define OVER_%s(n) ((int)((n) / %" PRId64 "))\n", name, v);
    return;
  }
  fl_text_add(&w->text, "#define OVER_%s(n) ((int)over((unsigned)(n), p_M_%s))\n", name, name);
  fl_text_add(&w->names, ", i64 p_M_%s", name);
  add_arg(w, (void *)(uintptr_t)(uint64_t)fl_cuda_magic(v));
}

void fl_cuda_write_index(fl_cuda_writer *w, int64_t most) {
  w->small = most <= INT32_MAX;
  fl_text_add(&w->text,
              w->small ? "typedef int I;\ntypedef unsigned U;\n" : "typedef i64 I;\ntypedef unsigned long long U;\n");
}

void fl_cuda_write_size(fl_cuda_writer *w, const char *name, int64_t v) {
  if (!w->small) {
    fl_text_add(&w->text, "#define %s %" PRId64 "ll\n", name, v);
    return;
  }
  fl_text_add(&w->text, "#define %s ((I)p_%s)\n", name, name);
  add_named(w, name, (uint64_t)v);
}

void fl_cuda_write_divisor(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_cuda_write_size(w, name, v);
  if (!w->small) {
    fl_text_add(&w->text, "#define OVER_%s(n) ((n) / %s)\n", name, name);
    return;
  }
  fl_cuda_write_quotient(w, name, v, false);
}

/* The name of an argument, or the number itself. */
static void put(fl_cuda_writer *w, fl_text *t, int64_t v) {
  if (!w->small || w->n_args == FL_CUDA_MAX_ARGS) {
    fl_text_add(t, "%" PRId64 "ll", v);
    return;
  }
  fl_text_add(t, "n%d", w->n_args);
  fl_text_add(&w->names, ", i64 n%d", w->n_args);
  add_arg(w, (void *)(uintptr_t)(uint64_t)v);
}

void fl_cuda_put_size(fl_cuda_writer *w, fl_text *t, int64_t v) {
  fl_text_add(t, "(I)");
  put(w, t, v);
}

void fl_cuda_put_quotient(fl_cuda_writer *w, fl_text *t, const char *n, int64_t v) {
  fl_text_add(t, w->small ? "over((U)%s, " : "(U)%s / (U)", n);
  put(w, t, w->small ? fl_cuda_magic(v) : v);
  if (w->small) fl_text_add(t, ")");
}

void fl_cuda_put_rounds(fl_cuda_writer *w, fl_text *t, const fl_cuda_counted *c) {
  char before[16];
  for (int k = c->n - 1; k > 0; k--) {
    snprintf(before, sizeof before, "q%d", k + 1);
    fl_text_add(t, "  const U q%d = ", k);
    fl_cuda_put_quotient(w, t, k == c->n - 1 ? c->i : before, c->dims[k]);
    fl_text_add(t, ";\n");
  }
}

/* A coordinate is q[k + 1] - q[k] * dims[k], where q[n] is the index; a round of axis k costs what the axis before has for a step,
 * less all steps of axis k. Sums may wrap on the way: U is unsigned, and the end is in range. */
void fl_cuda_put_offset(fl_cuda_writer *w, fl_text *t, const fl_cuda_counted *c, const int64_t *strides, int64_t last) {
  const char *plus = "";
  int64_t inner = c->n ? strides[c->n - 1] : 0;
  bool rounds = false;
  for (int k = c->n - 1; k > 0; k--) rounds = rounds || strides[k - 1] != c->dims[k] * strides[k];
  fl_text_add(t, rounds ? "(I)(" : "(");
  if (inner) {
    fl_text_add(t, "(%s)%s * (%s)", rounds ? "U" : "I", c->i, rounds ? "U" : "I");
    if (inner == last)
      fl_text_add(t, "%" PRId64, inner);
    else
      put(w, t, inner);
    plus = " + ";
  }
  for (int k = c->n - 1; k > 0; k--) {
    int64_t step = strides[k - 1] - c->dims[k] * strides[k];
    if (!step) continue;
    fl_text_add(t, "%sq%d * (U)", plus, k);
    put(w, t, step);
    plus = " + ";
  }
  fl_text_add(t, *plus ? ")" : "0)");
}

void fl_cuda_write_function(fl_cuda_writer *w, const char *name, int n, const int64_t *dims, const int64_t *in,
                            const int64_t *out, int64_t last) {
  int64_t d[FL_MAX_RANK + 2], s[2][FL_MAX_RANK + 2];
  fl_cuda_counted c = {"i", 0, d};
  for (int i = 0; i < n; i++) {
    if (dims[i] == 1) continue;
    bool joins = c.n && s[0][c.n - 1] == in[i] * dims[i] && s[1][c.n - 1] == out[i] * dims[i];
    if (!joins) c.n++;
    d[c.n - 1] = joins ? d[c.n - 1] * dims[i] : dims[i];
    s[0][c.n - 1] = in[i];
    s[1][c.n - 1] = out[i];
  }
  fl_text_add(&w->body, "__device__ inline pack<I, 2> %s(I i PARAMETERS) {\n", name);
  fl_cuda_put_rounds(w, &w->body, &c);
  fl_text_add(&w->body, "  pack<I, 2> o;\n");
  for (int k = 0; k < 2; k++) {
    fl_text_add(&w->body, "  o.x[%d] = ", k);
    fl_cuda_put_offset(w, &w->body, &c, s[k], last);
    fl_text_add(&w->body, ";\n");
  }
  fl_text_add(&w->body, "  return o;\n}\n#define %s(i) %s(i ARGUMENTS)\n", name, name);
}

/* PARAMETERS and, the same without their types, ARGUMENTS. */
static void write_parameters(fl_cuda_writer *w) {
  static const char type[] = "i64 ";
  const char *names = w->names.data ? w->names.data : "";
  fl_text_add(&w->text, "#define PARAMETERS %s\n", names);
  fl_text_add(&w->text, "#define ARGUMENTS ");
  for (const char *at; (at = strstr(names, type)); names = at + strlen(type))
    fl_text_add(&w->text, "%.*s", (int)(at - names), names);
  fl_text_add(&w->text, "%s\n%s", names, w->body.data ? w->body.data : "");
}

void fl_cuda_write_launch(fl_cuda_writer *w, const fl_run_args *a, const char *body, int64_t grid, int block,
                          size_t shared_bytes) {
  write_parameters(w);
  fl_text_add(&w->text, "%s", body);
  if (w->names.failed || w->body.failed) w->text.failed = true;
  fl_cuda_launch(a, &w->text, grid, block, shared_bytes, w->args, w->n_args);
  fl_text_free(&w->names);
  fl_text_free(&w->body);
  *w = (fl_cuda_writer){0};
}
