#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "plan/plan.h"

typedef FL_VEC(char) text;

FL_PRINTF(2, 3) static bool put(text *t, const char *fmt, ...) {
  char buf[256];
  va_list args;
  va_start(args, fmt);
  int n = vsnprintf(buf, sizeof buf, fmt, args);
  va_end(args);
  for (int i = 0; i < n && i < (int)sizeof buf - 1; i++)
    if (!FL_PUSH(t, buf[i])) return false;
  return true;
}

static bool put_operand(text *t, const fl_operand *o) {
  static const char *const spaces[] = {"_", "input", "output", "weight", "const", "arena"};
  char type[96];
  if (o->space == FL_SPACE_NONE) return put(t, "_");
  if (!put(t, "%s", spaces[o->space])) return false;
  if (o->space <= FL_SPACE_WEIGHT && !put(t, " %u", o->index)) return false;
  if ((o->offset || o->space > FL_SPACE_WEIGHT) && !put(t, "+%zu", o->offset)) return false;
  if (!put(t, " %s", fl_type_str(&o->type, type, sizeof type))) return false;
  if (fl_is_contiguous(&o->type, o->strides)) return true;
  for (int i = 0; i < o->type.rank; i++)
    if (!put(t, "%s%" PRId64, i ? "," : " strides=[", o->strides[i])) return false;
  return put(t, "]");
}

static bool put_operands(text *t, const fl_operand *o, int n) {
  for (int i = 0; i < n; i++)
    if (!put(t, "%s", i ? ", " : "") || !put_operand(t, &o[i])) return false;
  return true;
}

static bool put_step(text *t, const fl_plan *p, const fl_step *s) {
  const fl_kernel *k = s->kind == FL_STEP_COPY ? NULL : p->backend->kernel(s->kernel);
  bool ok = s->kind == FL_STEP_COPY   ? put(t, "  copy(")
            : s->kind == FL_STEP_PACK ? put(t, "  pack %s.%d(", k->name, s->pack_operand)
                                      : put(t, "  %s(", k->name);
  const fl_operand *o = p->operands.data + s->operands;
  ok = ok && put_operands(t, o, s->n_in) && put(t, ") -> ") && put_operands(t, o + s->n_in, s->n_out);
  if (ok && s->kind == FL_STEP_KERNEL && s->scratch != SIZE_MAX) ok = put(t, " scratch arena+%zu", s->scratch);
  for (int i = 0; ok && i < s->n_deps; i++)
    ok = put(t, "%s%u", i ? "," : " weights ", p->deps.data[s->deps + (uint32_t)i]);
  return ok && put(t, "\n");
}

static bool put_plan(text *t, const fl_plan *p) {
  bool ok = put(t, "plan: %d inputs, %d outputs, %u weights, arena %zu bytes (%zu unshared), constants %zu bytes\n",
                p->n_inputs, p->n_outputs, p->n_weights, p->arena_bytes, p->arena_unshared_bytes, p->const_bytes);
  ok = ok && put(t, "init:\n");
  for (size_t i = 0; ok && i < p->init.len; i++) ok = put_step(t, p, &p->init.data[i]);
  ok = ok && put(t, "run:\n");
  for (size_t i = 0; ok && i < p->run.len; i++) ok = put_step(t, p, &p->run.data[i]);
  return ok && FL_PUSH(t, 0);
}

fl_status fl_plan_print(const fl_plan *p, char **out_text) {
  text t = {0};
  if (!put_plan(&t, p)) {
    fl_free(t.data);
    return fl_oom();
  }
  *out_text = t.data;
  return NULL;
}
