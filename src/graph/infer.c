#include "graph/infer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef fl_status (*infer_fn)(const fl_infer_args *c);

static const infer_fn rules[FL_OP_COUNT] = {
#define FL_OP(e, name, lo, hi, outs, attrs, infer, flags) fl_infer_##infer,
#include "graph/ops.def"
#undef FL_OP
};

fl_status fl_infer_breaks(const fl_infer_args *c, const char *fmt, ...) {
  char text[256];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return fl_fail(FL_INVALID, "%s: %s", c->name, text);
}

/* --- what rules share --- */

static fl_status wrong_type(const fl_infer_args *c, int operand, const char *rule) {
  char buf[128];
  return FL_BREAKS(c, "operand %d is %s: must be %s", operand, fl_type_str(c->in[operand], buf, sizeof buf), rule);
}

fl_status fl_infer_need_rank(const fl_infer_args *c, int operand, int rank) {
  char rule[32];
  snprintf(rule, sizeof rule, "of rank %d", rank);
  return c->in[operand]->rank == rank ? NULL : wrong_type(c, operand, rule);
}

fl_status fl_infer_need_float(const fl_infer_args *c, int operand) {
  return fl_dtype_is_float(c->in[operand]->dtype) ? NULL : wrong_type(c, operand, "a float");
}

fl_status fl_infer_need_int(const fl_infer_args *c, int operand) {
  return fl_dtype_is_int(c->in[operand]->dtype) ? NULL : wrong_type(c, operand, "an integer");
}

fl_status fl_infer_need_same_dtype(const fl_infer_args *c, int operand, int as) {
  return c->in[operand]->dtype == c->in[as]->dtype ? NULL : wrong_type(c, operand, fl_dtype_name(c->in[as]->dtype));
}

fl_status fl_infer_need_vector(const fl_infer_args *c, int operand, int64_t len) {
  if (operand >= c->n_in || !c->in[operand]) return NULL;
  char rule[64];
  snprintf(rule, sizeof rule, "%s[%lld]", fl_dtype_name(c->in[0]->dtype), (long long)len);
  const fl_type *t = c->in[operand];
  return t->rank == 1 && t->dims[0] == len && t->dtype == c->in[0]->dtype ? NULL : wrong_type(c, operand, rule);
}

fl_status fl_infer_list(const fl_infer_args *c, const char *key, int count, int64_t least, const int64_t **out) {
  int n;
  *out = fl_attr_list(c->attrs, key, &n);
  if (n != count) return FL_BREAKS(c, "%s has %d elements: must have %d", key, n, count);
  /* The upper bound keeps sums of a few of them within 64 bits. */
  for (int i = 0; i < n; i++)
    if ((*out)[i] < least || (*out)[i] > (int64_t)1 << 48)
      return FL_BREAKS(c, "%s[%d] is %lld: must be at least %lld and below 2^48", key, i, (long long)(*out)[i],
                       (long long)least);
  return NULL;
}

fl_status fl_infer_axis(const fl_infer_args *c, int rank, int *out_axis) {
  int64_t axis = fl_attr_int(c->attrs, "axis", 0);
  if (axis < 0 || axis >= rank) return FL_BREAKS(c, "axis is %lld: must be in [0, %d)", (long long)axis, rank);
  *out_axis = (int)axis;
  return NULL;
}

fl_status fl_infer_broadcast(const fl_infer_args *c, fl_type *io, const fl_type *b) {
  fl_type out = *io;
  out.rank = io->rank > b->rank ? io->rank : b->rank;
  for (int i = 1; i <= out.rank; i++) {
    int64_t x = i <= io->rank ? io->dims[io->rank - i] : 1, y = i <= b->rank ? b->dims[b->rank - i] : 1;
    if (x != y && x != 1 && y != 1) {
      char left[128], right[128];
      return FL_BREAKS(c, "%s and %s do not broadcast together", fl_type_str(io, left, sizeof left),
                       fl_type_str(b, right, sizeof right));
    }
    out.dims[out.rank - i] = x == 1 ? y : x;
  }
  *io = out;
  return NULL;
}

/* --- pointwise --- */

fl_status fl_infer_pointwise(const fl_infer_args *c) {
  fl_dtype in[3], result;
  fl_type out = *c->in[0];
  for (int i = 0; i < c->n_in; i++) {
    in[i] = c->in[i]->dtype;
    FL_TRY(fl_infer_broadcast(c, &out, c->in[i]));
  }
  FL_TRY(fl_pw_dtype(c->op, in, c->n_in, (fl_dtype)fl_attr_int(c->attrs, "dtype", 0), &result));
  out.dtype = result;
  *c->out = out;
  return NULL;
}

fl_status fl_infer_program(const fl_infer_args *c) {
  const fl_pw_program *p = c->program;
  if (!p) return FL_BREAKS(c, "the program is missing");
  FL_TRY(fl_pw_check(p));
  if (c->n_in != p->n_inputs) return FL_BREAKS(c, "has %d operands: the program has %d", c->n_in, p->n_inputs);
  fl_type out = *c->in[0];
  for (int i = 0; i < c->n_in; i++) {
    if (c->in[i]->dtype != p->in_dtype[i]) return wrong_type(c, i, fl_dtype_name(p->in_dtype[i]));
    FL_TRY(fl_infer_broadcast(c, &out, c->in[i]));
  }
  for (int i = 0; i < p->n_outputs; i++) {
    c->out[i] = out;
    c->out[i].dtype = fl_pw_register_dtype(p, p->outputs[i]);
  }
  return NULL;
}

/* --- views and data movement --- */

static fl_status dims_attr(const fl_infer_args *c, fl_type *out) {
  int n;
  const int64_t *dims = fl_attr_list(c->attrs, "dims", &n);
  if (n > FL_MAX_RANK) return FL_BREAKS(c, "dims has %d elements: must have at most %d", n, FL_MAX_RANK);
  FL_TRY(fl_infer_list(c, "dims", n, 0, &dims));
  *out = fl_type_make(out->dtype, n, dims);
  return NULL;
}

fl_status fl_infer_reshape(const fl_infer_args *c) {
  c->out->dtype = c->in[0]->dtype;
  FL_TRY(dims_attr(c, c->out));
  int64_t want = fl_type_numel(c->in[0]), got = fl_type_numel(c->out);
  if (want != got) return FL_BREAKS(c, "dims hold %lld elements: must hold %lld", (long long)got, (long long)want);
  return NULL;
}

fl_status fl_infer_permute(const fl_infer_args *c) {
  const fl_type *x = c->in[0];
  const int64_t *perm;
  unsigned seen = 0;
  FL_TRY(fl_infer_list(c, "perm", x->rank, 0, &perm));
  *c->out = *x;
  for (int i = 0; i < x->rank; i++) {
    if (perm[i] >= x->rank || seen >> perm[i] & 1) return FL_BREAKS(c, "perm must name each of %d axes once", x->rank);
    seen |= 1u << perm[i];
    c->out->dims[i] = x->dims[perm[i]];
  }
  return NULL;
}

fl_status fl_infer_slice(const fl_infer_args *c) {
  int axis;
  FL_TRY(fl_infer_axis(c, c->in[0]->rank, &axis));
  int64_t dim = c->in[0]->dims[axis], start = fl_attr_int(c->attrs, "start", 0),
          stop = fl_attr_int(c->attrs, "stop", 0), step = fl_attr_int(c->attrs, "step", 0);
  if (start < 0 || start > stop || stop > dim || step < 1)
    return FL_BREAKS(c, "start %lld, stop %lld, step %lld: must be 0 <= start <= stop <= %lld, step >= 1",
                     (long long)start, (long long)stop, (long long)step, (long long)dim);
  *c->out = *c->in[0];
  c->out->dims[axis] = stop > start ? (stop - start - 1) / step + 1 : 0;
  return NULL;
}

fl_status fl_infer_expand(const fl_infer_args *c) {
  const fl_type *x = c->in[0];
  c->out->dtype = x->dtype;
  FL_TRY(dims_attr(c, c->out));
  if (c->out->rank < x->rank) return wrong_type(c, 0, "of no higher rank than dims");
  for (int i = 1; i <= x->rank; i++) {
    int64_t from = x->dims[x->rank - i], to = c->out->dims[c->out->rank - i];
    if (from != to && from != 1)
      return FL_BREAKS(c, "axis of %lld elements cannot become %lld", (long long)from, (long long)to);
  }
  return NULL;
}

fl_status fl_infer_cat(const fl_infer_args *c) {
  int axis;
  FL_TRY(fl_infer_axis(c, c->in[0]->rank, &axis));
  fl_type out = *c->in[0];
  for (int i = 1; i < c->n_in; i++) {
    fl_type t = *c->in[i];
    FL_TRY(fl_infer_need_rank(c, i, out.rank));
    int64_t more = t.dims[axis];
    t.dims[axis] = out.dims[axis];
    if (!fl_type_equal(&t, &out)) return wrong_type(c, i, "equal to operand 0 except along axis");
    if (__builtin_add_overflow(out.dims[axis], more, &out.dims[axis])) return FL_BREAKS(c, "result is too large");
  }
  *c->out = out;
  return NULL;
}

fl_status fl_infer_pad(const fl_infer_args *c) {
  const int64_t *pads;
  FL_TRY(fl_infer_list(c, "pads", 2 * c->in[0]->rank, 0, &pads));
  *c->out = *c->in[0];
  for (int i = 0; i < c->out->rank; i++)
    if (__builtin_add_overflow(c->out->dims[i], pads[2 * i], &c->out->dims[i]) ||
        __builtin_add_overflow(c->out->dims[i], pads[2 * i + 1], &c->out->dims[i]))
      return FL_BREAKS(c, "pads: result is too large");
  return NULL;
}

/* Ascending, distinct, within rank. */
static fl_status axes_attr(const fl_infer_args *c, const int64_t **out_axes, int *out_n) {
  const int64_t *axes = fl_attr_list(c->attrs, "axes", out_n);
  for (int i = 0; i < *out_n; i++)
    if (axes[i] < 0 || axes[i] >= c->in[0]->rank || (i && axes[i] <= axes[i - 1]))
      return FL_BREAKS(c, "axes[%d] is %lld: axes must ascend within [0, %d)", i, (long long)axes[i], c->in[0]->rank);
  *out_axes = axes;
  return NULL;
}

fl_status fl_infer_flip(const fl_infer_args *c) {
  const int64_t *axes;
  int n;
  *c->out = *c->in[0];
  return axes_attr(c, &axes, &n);
}

fl_status fl_infer_iota(const fl_infer_args *c) {
  int axis;
  c->out->dtype = (fl_dtype)fl_attr_int(c->attrs, "dtype", 0);
  FL_TRY(dims_attr(c, c->out));
  return fl_infer_axis(c, c->out->rank, &axis);
}

fl_status fl_infer_embedding(const fl_infer_args *c) {
  const fl_type *table = c->in[0], *indices = c->in[1];
  FL_TRY(fl_infer_need_int(c, 1));
  if (table->rank < 1) return wrong_type(c, 0, "of rank 1 or more");
  if (indices->rank + table->rank - 1 > FL_MAX_RANK) return FL_BREAKS(c, "result has more than %d axes", FL_MAX_RANK);
  fl_type out = *indices;
  out.dtype = table->dtype;
  for (int i = 1; i < table->rank; i++) out.dims[out.rank++] = table->dims[i];
  *c->out = out;
  return NULL;
}

fl_status fl_infer_index_select(const fl_infer_args *c) {
  int axis;
  FL_TRY(fl_infer_axis(c, c->in[0]->rank, &axis));
  FL_TRY(fl_infer_need_int(c, 1));
  FL_TRY(fl_infer_need_rank(c, 1, 1));
  *c->out = *c->in[0];
  c->out->dims[axis] = c->in[1]->dims[0];
  return NULL;
}

fl_status fl_infer_gather(const fl_infer_args *c) {
  int axis;
  const fl_type *x = c->in[0], *indices = c->in[1];
  FL_TRY(fl_infer_axis(c, x->rank, &axis));
  FL_TRY(fl_infer_need_int(c, 1));
  FL_TRY(fl_infer_need_rank(c, 1, x->rank));
  for (int i = 0; i < x->rank; i++)
    if (i != axis && indices->dims[i] > x->dims[i])
      return wrong_type(c, 1, "no longer than operand 0 except along axis");
  *c->out = *indices;
  c->out->dtype = x->dtype;
  return NULL;
}

fl_status fl_infer_index(const fl_infer_args *c) {
  int axis, n = c->n_in - 1;
  const fl_type *x = c->in[0];
  FL_TRY(fl_infer_axis(c, x->rank, &axis));
  if (axis + n > x->rank) return FL_BREAKS(c, "%d index arrays from axis %d: operand 0 has rank %d", n, axis, x->rank);
  fl_type at = *c->in[1], out = {.dtype = x->dtype};
  for (int i = 1; i <= n; i++) {
    FL_TRY(fl_infer_need_int(c, i));
    FL_TRY(fl_infer_broadcast(c, &at, c->in[i]));
  }
  if (x->rank - n + at.rank > FL_MAX_RANK) return FL_BREAKS(c, "result has more than %d axes", FL_MAX_RANK);
  for (int i = 0; i < axis; i++) out.dims[out.rank++] = x->dims[i];
  for (int i = 0; i < at.rank; i++) out.dims[out.rank++] = at.dims[i];
  for (int i = axis + n; i < x->rank; i++) out.dims[out.rank++] = x->dims[i];
  *c->out = out;
  return NULL;
}

fl_status fl_infer_tri(const fl_infer_args *c) {
  *c->out = *c->in[0];
  return c->in[0]->rank < 2 ? wrong_type(c, 0, "of rank 2 or more") : NULL;
}

fl_status fl_infer_axis_op(const fl_infer_args *c) {
  int axis;
  *c->out = *c->in[0];
  if (c->op != FL_OP_CUMSUM) FL_TRY(fl_infer_need_float(c, 0));
  return fl_infer_axis(c, c->in[0]->rank, &axis);
}

/* --- reductions --- */

static fl_status reduce(const fl_infer_args *c, fl_dtype dtype) {
  const int64_t *axes;
  int n;
  FL_TRY(axes_attr(c, &axes, &n));
  if (!n) return FL_BREAKS(c, "axes is empty");
  bool keepdim = fl_attr_int(c->attrs, "keepdim", 0), gone[FL_MAX_RANK] = {false};
  for (int i = 0; i < n; i++) gone[axes[i]] = true;
  fl_type out = {.dtype = dtype};
  for (int i = 0; i < c->in[0]->rank; i++) {
    if (!gone[i])
      out.dims[out.rank++] = c->in[0]->dims[i];
    else if (keepdim)
      out.dims[out.rank++] = 1;
  }
  *c->out = out;
  return NULL;
}

fl_status fl_infer_reduce(const fl_infer_args *c) {
  if (c->op == FL_OP_MEAN || c->op == FL_OP_VAR) FL_TRY(fl_infer_need_float(c, 0));
  return reduce(c, c->in[0]->dtype);
}

fl_status fl_infer_reduce_bool(const fl_infer_args *c) { return reduce(c, FL_BOOL); }

fl_status fl_infer_reduce_index(const fl_infer_args *c) {
  const int64_t *axes;
  int n;
  FL_TRY(axes_attr(c, &axes, &n));
  if (n != 1 && n != c->in[0]->rank) return FL_BREAKS(c, "axes has %d elements: must be one axis or all", n);
  return reduce(c, FL_I64);
}

/* --- the entry --- */

static fl_status check_arity(const fl_infer_args *c) {
  const fl_op_info *info = fl_op_get(c->op);
  if (c->n_in < info->min_inputs || (info->max_inputs >= 0 && c->n_in > info->max_inputs))
    return FL_BREAKS(c, "has %d operands: must have %d to %d", c->n_in, info->min_inputs, info->max_inputs);
  for (int i = 0; i < c->n_in; i++) {
    if (!c->in[i] && (i < info->min_inputs || info->max_inputs < 0)) return FL_BREAKS(c, "operand %d is absent", i);
    if (c->in[i] && (c->in[i]->rank < 0 || c->in[i]->rank > FL_MAX_RANK))
      return FL_BREAKS(c, "operand %d has rank %d", i, c->in[i]->rank);
  }
  return NULL;
}

/* Larger results would overflow the arithmetic of those who plan them. */
static fl_status check_size(const fl_infer_args *c, int n_out) {
  for (int i = 0; i < n_out; i++) {
    if (c->out[i].rank > FL_MAX_RANK) return FL_BREAKS(c, "result has more than %d axes", FL_MAX_RANK);
    if (fl_type_bytes(&c->out[i]) > (size_t)INT64_MAX / 4) return FL_BREAKS(c, "result is too large");
  }
  return NULL;
}

fl_status fl_infer(fl_op op, const fl_type *const *inputs, int n_inputs, const fl_attrs *attrs,
                   const fl_pw_program *program, fl_type *out_types) {
  if ((unsigned)op >= FL_OP_COUNT) return fl_fail(FL_INVALID, "unknown operator %d", (int)op);
  const fl_op_info *info = fl_op_get(op);
  fl_attrs normal;
  FL_TRY(fl_attrs_normalize(op, attrs, &normal));
  const fl_type *padded[8] = {NULL};
  fl_infer_args c = {op, info->name, inputs, n_inputs, &normal, program, out_types};
  FL_TRY(check_arity(&c));
  if (info->max_inputs >= 0) {
    if (n_inputs) memcpy(padded, inputs, (size_t)n_inputs * sizeof *inputs);
    c.in = padded;
    c.n_in = info->max_inputs;
  }
  int n_out = op == FL_OP_POINTWISE && program ? program->n_outputs : info->outputs;
  for (int i = 0; i < n_out && i < FL_PW_MAX_OUTPUTS; i++) out_types[i] = (fl_type){0};
  FL_TRY(rules[op](&c));
  return check_size(&c, n_out);
}
