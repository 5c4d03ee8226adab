/* torch.result_type: tensors with dimensions decide, then tensors without, then Python numbers, but a higher kind
 * (bool < integer < float) of a later group wins over a lower kind of an earlier one. */
#include "lower/convert.h"

static int kind(fl_dtype t) { return t == FL_BOOL ? 0 : fl_dtype_is_float(t) ? 2 : 1; }

fl_dtype fl_promote_types(fl_dtype a, fl_dtype b) {
  if (a == b) return a;
  if (kind(a) != kind(b)) return kind(a) > kind(b) ? a : b;
  if (kind(a) == 2) {
    if (a == FL_F64 || b == FL_F64) return FL_F64;
    return FL_F32; /* two different ones of f32, f16, bf16 */
  }
  if (a == FL_U8 || b == FL_U8) {
    fl_dtype other = a == FL_U8 ? b : a;
    return other == FL_I8 ? FL_I16 : other;
  }
  return fl_dtype_size(a) > fl_dtype_size(b) ? a : b;
}

static void add(fl_promotion *p, int group, fl_dtype t) {
  p->dtype[group] = p->has[group] ? fl_promote_types(p->dtype[group], t) : t;
  p->has[group] = true;
}

void fl_promote_value(fl_cv *c, fl_promotion *p, fl_vid v) {
  if (v == FL_NO_VALUE || !fl_cv_ok(c)) return;
  fl_type t = fl_cv_type(c, v);
  add(p, t.rank ? 0 : 1, t.dtype);
}

static bool is_number(const fl_arg *a) {
  return a && (a->kind == FL_ARG_INT || a->kind == FL_ARG_FLOAT || a->kind == FL_ARG_BOOL);
}

void fl_promote_arg(fl_cv *c, fl_promotion *p, const char *name) {
  if (!fl_cv_has(c, name)) return;
  const fl_arg *a = fl_aten_arg(c->node, name);
  if (is_number(a))
    add(p, 2, a->kind == FL_ARG_FLOAT ? FL_F32 : a->kind == FL_ARG_INT ? FL_I64 : FL_BOOL);
  else
    fl_promote_value(c, p, fl_cv_arg(c, name));
}

fl_dtype fl_promotion_dtype(const fl_promotion *p) {
  fl_dtype result = FL_F32;
  bool any = false;
  for (int i = 2; i >= 0; i--) {
    if (!p->has[i]) continue;
    if (!any || kind(p->dtype[i]) >= kind(result)) result = p->dtype[i];
    any = true;
  }
  return result;
}

fl_vid fl_cv_operand(fl_cv *c, const char *name, fl_dtype dtype) {
  if (is_number(fl_aten_arg(c->node, name))) return fl_cv_scalar(c, dtype, fl_cv_float(c, name, 0));
  return fl_cv_cast(c, fl_cv_arg(c, name), dtype);
}

void fl_cv_operands(fl_cv *c, const char *a, const char *b, fl_vid *out_a, fl_vid *out_b) {
  fl_promotion p = {0};
  fl_promote_arg(c, &p, a);
  fl_promote_arg(c, &p, b);
  fl_dtype dtype = fl_promotion_dtype(&p);
  *out_a = fl_cv_operand(c, a, dtype);
  *out_b = fl_cv_operand(c, b, dtype);
}
