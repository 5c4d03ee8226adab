#include "lower/convert.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "lower/lower.h"

/* --- the table --- */

static const fl_converter table[] = {
#define FL_ATEN(aten, fn, param, dtypes, view, limits)                                                                 \
  {aten, fl_convert_##fn, param, FL_DT_##dtypes, (view) == 1, (view) == 2, (view) == 3, limits},
#include "lower/aten.def"
#undef FL_ATEN
};
enum { TABLE_LEN = sizeof table / sizeof *table };

static const char *const dtypes_text[] = {
    [FL_DT_FLOAT] = "f32 f64 f16 bf16",
    [FL_DT_INT] = "i64 i32 i16 i8 u8",
    [FL_DT_INTEGRAL] = "i64 i32 i16 i8 u8 bool",
    [FL_DT_BOOL] = "bool",
    [FL_DT_ANY] = "f32 f64 f16 bf16 i64 i32 i16 i8 u8 bool",
};

static const fl_converter *sorted[TABLE_LEN];
static char names[TABLE_LEN][80];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static int by_name(const void *a, const void *b) {
  return strcmp((*(const fl_converter *const *)a)->aten, (*(const fl_converter *const *)b)->aten);
}

static fl_converter_info infos[TABLE_LEN];

static void prepare_table(void) {
  for (int i = 0; i < TABLE_LEN; i++) {
    sorted[i] = &table[i];
    bool whole = strchr(table[i].aten, '.') != strrchr(table[i].aten, '.');
    snprintf(names[i], sizeof names[i], "%s%s", whole ? "" : "aten.", table[i].aten);
    infos[i] = (fl_converter_info){names[i], dtypes_text[table[i].dtypes], table[i].limits};
  }
  qsort(sorted, TABLE_LEN, sizeof *sorted, by_name);
}

static const fl_converter *find(const char *name) {
  pthread_once(&table_once, prepare_table);
  for (int lo = 0, hi = TABLE_LEN; lo < hi;) {
    int mid = (lo + hi) / 2, order = strcmp(name, sorted[mid]->aten);
    if (!order) return sorted[mid];
    if (order < 0)
      hi = mid;
    else
      lo = mid + 1;
  }
  return NULL;
}

/* Copies `name` without what follows its base name's last '_' or without "__i" of "__iand__". */
static bool functional_name(const char *name, char *out, size_t size) {
  const char *dot = strchr(name, '.');
  size_t len = strlen(name);
  if (!dot || dot - name < 2 || len >= size) return false;
  size_t base = (size_t)(dot - name);
  if (base > 5 && !strncmp(name, "__i", 3) && !strncmp(dot - 2, "__", 2)) {
    memcpy(out, "__", 2);
    memcpy(out + 2, name + 3, len - 2);
    return true;
  }
  if (name[base - 1] != '_' || name[base - 2] == '_') return false;
  memcpy(out, name, base - 1);
  memcpy(out + base - 1, dot, len - base + 1);
  return true;
}

const fl_converter *fl_converter_find(const char *op, bool *out_inplace) {
  *out_inplace = false;
  if (strncmp(op, "aten.", 5)) return find(op);
  const fl_converter *row = find(op + 5);
  char functional[128];
  if (row || !functional_name(op + 5, functional, sizeof functional)) return row;
  *out_inplace = true;
  return find(functional);
}

/* Operators without a row that never raise for what their tensors hold. All others may. */
static const char *const calm[] = {"sort", "argsort", "topk", "kthvalue", "unfold_copy", "view_copy"};

bool fl_converter_may_raise(const char *op, fl_dtype result) {
  bool ignored;
  const fl_converter *row = fl_converter_find(op, &ignored);
  if (row) return row->indexes || (row->divides && !fl_dtype_is_float(result));
  size_t n = strncmp(op, "aten.", 5) ? 0 : strcspn(op + 5, ".");
  for (size_t i = 0; i < sizeof calm / sizeof *calm; i++)
    if (strlen(calm[i]) == n && !strncmp(op + 5, calm[i], n)) return false;
  return true;
}

const fl_converter_info *fl_converter_get(int i) {
  pthread_once(&table_once, prepare_table);
  if (i < 0 || i >= TABLE_LEN) return NULL;
  return &infos[i];
}

static bool dtype_in(fl_dtypes set, fl_dtype t) {
  switch (set) {
  case FL_DT_FLOAT: return fl_dtype_is_float(t);
  case FL_DT_INT: return fl_dtype_is_int(t);
  case FL_DT_INTEGRAL: return fl_dtype_is_int(t) || t == FL_BOOL;
  case FL_DT_BOOL: return t == FL_BOOL;
  case FL_DT_ANY: return true;
  }
  return false;
}

/* --- trouble --- */

bool fl_cv_ok(const fl_cv *c) { return !c->reason && !c->status; }

void fl_cv_decline(fl_cv *c, const char *fmt, ...) {
  if (!fl_cv_ok(c)) return;
  char text[512];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  c->reason = fl_arena_strdup(c->texts, text);
  if (!c->reason) c->status = fl_oom();
}

/* Takes s. A broken graph rule means that this operator's form is beyond the engine; anything else is real trouble. */
static void take_status(fl_cv *c, fl_status s) {
  if (!s) return;
  fl_code code = fl_status_code(s);
  if (code != FL_INVALID && code != FL_UNSUPPORTED) {
    if (c->status)
      fl_status_free(s);
    else
      c->status = s;
    return;
  }
  fl_cv_decline(c, "%s", fl_status_message(s));
  fl_status_free(s);
}

/* --- arguments --- */

static const fl_arg *present(const fl_cv *c, const char *name) {
  const fl_arg *a = fl_aten_arg(c->node, name);
  if (!a || a->kind == FL_ARG_NONE) return NULL;
  return a->kind == FL_ARG_TENSOR && a->v.value == FL_ATEN_NONE ? NULL : a;
}

bool fl_cv_has(const fl_cv *c, const char *name) { return present(c, name) != NULL; }

bool fl_cv_is_tensor(const fl_cv *c, const char *name) {
  const fl_arg *a = present(c, name);
  return a && a->kind == FL_ARG_TENSOR;
}

/* Weights enter the graph when first read. */
static fl_vid value_of(fl_cv *c, uint32_t v) {
  const fl_aten_value *value = &c->aten->values.data[v];
  if (!value->tensor_ok) {
    fl_cv_decline(c, "an argument is %s", value->why_not ? value->why_not : "not a plain tensor");
    return FL_NO_VALUE;
  }
  if (c->values[v] == FL_NO_VALUE && value->kind == FL_ATEN_WEIGHT)
    take_status(c, fl_graph_weight(c->g, &value->type, value->strides, value->index, value->data, &c->values[v]));
  if (fl_cv_ok(c) && c->values[v] == FL_NO_VALUE)
    c->status = fl_fail(FL_INTERNAL, "%s: argument value %u is read before it is made", c->node->op, v);
  return fl_cv_ok(c) ? c->values[v] : FL_NO_VALUE;
}

fl_vid fl_cv_arg_opt(fl_cv *c, const char *name) {
  const fl_arg *a = present(c, name);
  if (!a || !fl_cv_ok(c)) return FL_NO_VALUE;
  if (a->kind == FL_ARG_TENSOR) return value_of(c, a->v.value);
  fl_cv_decline(c, "argument %s is not a tensor", name);
  return FL_NO_VALUE;
}

fl_vid fl_cv_arg(fl_cv *c, const char *name) {
  if (!present(c, name)) fl_cv_decline(c, "argument %s is missing", name);
  return fl_cv_arg_opt(c, name);
}

fl_vid *fl_cv_args(fl_cv *c, const char *name, int *out_count) {
  static fl_vid none = FL_NO_VALUE;
  *out_count = 0;
  const fl_arg *a = present(c, name);
  if (!fl_cv_ok(c)) return &none;
  if (!a || a->kind != FL_ARG_TENSORS) {
    fl_cv_decline(c, "argument %s is not a list of tensors", name);
    return &none;
  }
  fl_vid *list = fl_arena_alloc(c->texts, (size_t)(a->count ? a->count : 1) * sizeof *list);
  if (!list) {
    c->status = fl_oom();
    return &none;
  }
  for (int i = 0; i < a->count; i++)
    list[i] = a->v.values[i] == FL_ATEN_NONE ? FL_NO_VALUE : value_of(c, a->v.values[i]);
  *out_count = fl_cv_ok(c) ? a->count : 0;
  return list;
}

int64_t fl_cv_int(fl_cv *c, const char *name, int64_t def) {
  const fl_arg *a = present(c, name);
  if (!a) return def;
  if (a->kind == FL_ARG_INT || a->kind == FL_ARG_BOOL) return a->v.i;
  if (a->kind == FL_ARG_INTS && a->count == 1) return a->v.ints[0];
  fl_cv_decline(c, "argument %s is not an integer", name);
  return def;
}

double fl_cv_float(fl_cv *c, const char *name, double def) {
  const fl_arg *a = present(c, name);
  if (!a) return def;
  if (a->kind == FL_ARG_FLOAT) return a->v.f;
  if (a->kind == FL_ARG_INT || a->kind == FL_ARG_BOOL) {
    if (a->v.i > ((int64_t)1 << 53) || a->v.i < -((int64_t)1 << 53))
      fl_cv_decline(c, "argument %s is beyond 2^53", name);
    return (double)a->v.i;
  }
  fl_cv_decline(c, "argument %s is not a number", name);
  return def;
}

bool fl_cv_bool(fl_cv *c, const char *name, bool def) { return fl_cv_int(c, name, def) != 0; }

const char *fl_cv_string(const fl_cv *c, const char *name, const char *def) {
  const fl_arg *a = present(c, name);
  return a && (a->kind == FL_ARG_STRING || a->kind == FL_ARG_OTHER) ? a->v.s : def;
}

int fl_cv_ints(fl_cv *c, const char *name, int64_t *out, int max) {
  const fl_arg *a = present(c, name);
  if (!a || !fl_cv_ok(c)) return 0;
  if (a->kind == FL_ARG_INT) {
    out[0] = a->v.i;
    return 1;
  }
  /* An empty list has no element type that the recorder could tell. */
  bool empty = a->count == 0 && (a->kind == FL_ARG_FLOATS || a->kind == FL_ARG_TENSORS);
  if ((a->kind != FL_ARG_INTS && !empty) || a->count > max) {
    fl_cv_decline(c, "argument %s is not a list of up to %d integers", name, max);
    return 0;
  }
  for (int i = 0; i < a->count; i++) out[i] = a->v.ints[i];
  return a->count;
}

void fl_cv_ints_n(fl_cv *c, const char *name, int n, int64_t def, int64_t *out) {
  for (int i = 0; i < n; i++) out[i] = def;
  int count = fl_cv_ints(c, name, out, n);
  if (count == 1)
    for (int i = 1; i < n; i++) out[i] = out[0];
  else if (count && count != n)
    fl_cv_decline(c, "argument %s has %d integers, not %d", name, count, n);
}

int fl_cv_wrap_axis(fl_cv *c, int64_t axis, int rank) {
  int n = rank ? rank : 1;
  if (axis < -n || axis >= n) {
    fl_cv_decline(c, "axis %lld of a tensor of rank %d", (long long)axis, rank);
    return 0;
  }
  return (int)(axis < 0 ? axis + n : axis);
}

int fl_cv_axis(fl_cv *c, const char *name, int64_t def, int rank) {
  return fl_cv_wrap_axis(c, fl_cv_int(c, name, def), rank);
}

fl_type fl_cv_out(const fl_cv *c, int i) {
  if (i >= c->node->n_outputs || c->node->outputs[i] == FL_ATEN_NONE) return fl_type_make(FL_F32, 0, NULL);
  return c->aten->values.data[c->node->outputs[i]].type;
}

bool fl_cv_needed(const fl_cv *c, int i) {
  return i < c->node->n_outputs && c->node->outputs[i] != FL_ATEN_NONE && c->needed[c->node->outputs[i]];
}

fl_type fl_cv_type(const fl_cv *c, fl_vid v) {
  if (v == FL_NO_VALUE || !fl_cv_ok(c)) return fl_type_make(FL_F32, 0, NULL);
  return c->g->values.data[v].type;
}

/* --- nodes --- */

fl_vid fl_cv_op(fl_cv *c, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs) {
  fl_vid out[FL_PW_MAX_OUTPUTS];
  return fl_cv_ops(c, op, inputs, n, attrs, out) ? out[0] : FL_NO_VALUE;
}

bool fl_cv_ops(fl_cv *c, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs, fl_vid *outs) {
  if (fl_cv_ok(c)) take_status(c, fl_graph_op(c->g, op, inputs, n, attrs, outs));
  return fl_cv_ok(c);
}

fl_vid fl_cv_unary(fl_cv *c, fl_op op, fl_vid x) { return fl_cv_op(c, op, &x, 1, NULL); }

fl_vid fl_cv_binary(fl_cv *c, fl_op op, fl_vid a, fl_vid b) { return fl_cv_op(c, op, (fl_vid[]){a, b}, 2, NULL); }

fl_vid fl_cv_where(fl_cv *c, fl_vid cond, fl_vid a, fl_vid b) {
  return fl_cv_op(c, FL_OP_WHERE, (fl_vid[]){cond, a, b}, 3, NULL);
}

fl_vid fl_cv_cast(fl_cv *c, fl_vid x, fl_dtype dtype) {
  if (!fl_cv_ok(c) || x == FL_NO_VALUE || fl_cv_type(c, x).dtype == dtype) return x;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "dtype", 'd', dtype);
  return fl_cv_op(c, FL_OP_CAST, &x, 1, &attrs);
}

fl_vid fl_cv_floating(fl_cv *c, fl_vid x) {
  return fl_dtype_is_float(fl_cv_type(c, x).dtype) ? x : fl_cv_cast(c, x, FL_F32);
}

static bool is_half(fl_dtype t) { return t == FL_F16 || t == FL_BF16; }

fl_vid fl_cv_wide(fl_cv *c, fl_vid x) {
  if (!is_half(fl_cv_type(c, x).dtype)) return x;
  c->wide = true;
  return fl_cv_cast(c, x, FL_F32);
}

fl_vid fl_cv_scalar(fl_cv *c, fl_dtype dtype, double v) {
  fl_vid out = FL_NO_VALUE;
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (fl_dtype_is_int(dtype) && !(fabs(v) <= 0x1p53)) {
    fl_cv_decline(c, "%g as an integer", v);
    return FL_NO_VALUE;
  }
  take_status(c, fl_graph_scalar(c->g, dtype, dtype == FL_BOOL ? v != 0 : v, &out));
  return fl_cv_ok(c) ? out : FL_NO_VALUE;
}

fl_vid fl_cv_full(fl_cv *c, fl_dtype dtype, int rank, const int64_t *dims, double v) {
  return fl_cv_expand(c, fl_cv_scalar(c, dtype, v), rank, dims);
}

fl_vid fl_cv_mul_scalar(fl_cv *c, fl_vid x, double v) {
  return v == 1 ? x : fl_cv_binary(c, FL_OP_MUL, x, fl_cv_scalar(c, fl_cv_type(c, x).dtype, v));
}

static bool same_dims(const fl_type *t, int rank, const int64_t *dims) {
  return t->rank == rank && (!rank || !memcmp(t->dims, dims, (size_t)rank * sizeof *dims));
}

static fl_vid with_dims(fl_cv *c, fl_op op, fl_vid x, int rank, const int64_t *dims) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c) || same_dims(&t, rank, dims)) return x;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "dims", dims, rank);
  return fl_cv_op(c, op, &x, 1, &attrs);
}

fl_vid fl_cv_reshape(fl_cv *c, fl_vid x, int rank, const int64_t *dims) {
  return with_dims(c, FL_OP_RESHAPE, x, rank, dims);
}

fl_vid fl_cv_expand(fl_cv *c, fl_vid x, int rank, const int64_t *dims) {
  return with_dims(c, FL_OP_EXPAND, x, rank, dims);
}

fl_vid fl_cv_permute(fl_cv *c, fl_vid x, const int *perm) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  int64_t list[FL_MAX_RANK];
  bool same = true;
  for (int i = 0; i < t.rank; i++) {
    list[i] = perm[i];
    same &= perm[i] == i;
  }
  if (same) return x;
  fl_attrs attrs = {0};
  fl_attr_set_list(&attrs, "perm", list, t.rank);
  return fl_cv_op(c, FL_OP_PERMUTE, &x, 1, &attrs);
}

fl_vid fl_cv_transpose(fl_cv *c, fl_vid x, int a, int b) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c) || t.rank == 0) return x;
  int perm[FL_MAX_RANK];
  for (int i = 0; i < t.rank; i++) perm[i] = i == a ? b : i == b ? a : i;
  return fl_cv_permute(c, x, perm);
}

fl_vid fl_cv_slice(fl_cv *c, fl_vid x, int axis, int64_t start, int64_t stop, int64_t step) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (start == 0 && step == 1 && axis < t.rank && stop == t.dims[axis]) return x;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  fl_attr_set_int(&attrs, "start", 'i', start);
  fl_attr_set_int(&attrs, "stop", 'i', stop);
  fl_attr_set_int(&attrs, "step", 'i', step);
  return fl_cv_op(c, FL_OP_SLICE, &x, 1, &attrs);
}

fl_vid fl_cv_cat(fl_cv *c, const fl_vid *xs, int n, int axis) {
  if (n == 1) return xs[0];
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axis", 'i', axis);
  return fl_cv_op(c, FL_OP_CAT, xs, n, &attrs);
}

fl_vid fl_cv_unsqueeze(fl_cv *c, fl_vid x, int axis) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (t.rank == FL_MAX_RANK) {
    fl_cv_decline(c, "rank above %d", FL_MAX_RANK);
    return FL_NO_VALUE;
  }
  memmove(&t.dims[axis + 1], &t.dims[axis], (size_t)(t.rank - axis) * sizeof *t.dims);
  t.dims[axis] = 1;
  return fl_cv_reshape(c, x, t.rank + 1, t.dims);
}

fl_vid fl_cv_squeeze(fl_cv *c, fl_vid x, int axis) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c) || axis >= t.rank) return x;
  memmove(&t.dims[axis], &t.dims[axis + 1], (size_t)(t.rank - axis - 1) * sizeof *t.dims);
  return fl_cv_reshape(c, x, t.rank - 1, t.dims);
}

static fl_vid reduce(fl_cv *c, fl_op op, fl_vid x, const int64_t *axes, int n, bool keepdim, fl_attrs *attrs) {
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (t.rank == 0) return reduce(c, op, fl_cv_reshape(c, x, 1, (int64_t[]){1}), NULL, 0, false, attrs);
  bool in[FL_MAX_RANK] = {false};
  for (int i = 0; i < n; i++) in[fl_cv_wrap_axis(c, axes[i], t.rank)] = true;
  int64_t list[FL_MAX_RANK];
  int count = 0;
  for (int i = 0; i < t.rank; i++)
    if (in[i] || n == 0) list[count++] = i;
  fl_attr_set_list(attrs, "axes", list, count);
  fl_attr_set_int(attrs, "keepdim", 'b', keepdim);
  return fl_cv_op(c, op, &x, 1, attrs);
}

fl_vid fl_cv_reduce(fl_cv *c, fl_op op, fl_vid x, const int64_t *axes, int n, bool keepdim) {
  fl_attrs attrs = {0};
  return reduce(c, op, x, axes, n, keepdim, &attrs);
}

fl_vid fl_cv_variance(fl_cv *c, fl_vid x, const int64_t *axes, int n, bool keepdim, double correction) {
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "correction", correction);
  return reduce(c, FL_OP_VAR, x, axes, n, keepdim, &attrs);
}

/* The value whose last two axes `v` has exchanged, or FL_NO_VALUE: weights mostly arrive through aten.t. */
static fl_vid untransposed(const fl_cv *c, fl_vid v) {
  const fl_value *value = &c->g->values.data[v];
  if (value->kind != FL_VALUE_RESULT || value->type.rank < 2) return FL_NO_VALUE;
  const fl_node *n = &c->g->nodes.data[value->node];
  int rank = 0;
  const int64_t *perm = n->op == FL_OP_PERMUTE ? fl_attr_list(&n->attrs, "perm", &rank) : NULL;
  if (!perm) return FL_NO_VALUE;
  for (int i = 0; i < rank - 2; i++)
    if (perm[i] != i) return FL_NO_VALUE;
  return perm[rank - 1] == rank - 2 ? n->inputs[0] : FL_NO_VALUE;
}

fl_vid fl_cv_matmul(fl_cv *c, fl_vid a, fl_vid b, bool trans_b, fl_vid bias, fl_vid residual) {
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  fl_vid source = untransposed(c, b);
  if (source != FL_NO_VALUE) {
    b = source;
    trans_b = !trans_b;
  }
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "trans_b", 'b', trans_b);
  int n = residual != FL_NO_VALUE ? 4 : bias != FL_NO_VALUE ? 3 : 2;
  return fl_cv_op(c, FL_OP_MATMUL, (fl_vid[]){a, b, bias, residual}, n, &attrs);
}

static const char *spoiled;

void fl_cv_spoil(const char *op) { spoiled = op; }

void fl_cv_result(fl_cv *c, int i, fl_vid v) {
  if (!fl_cv_ok(c) || i >= c->node->n_outputs || c->node->outputs[i] == FL_ATEN_NONE) return;
  if (spoiled && !strcmp(spoiled, c->node->op)) v = fl_cv_mul_scalar(c, v, 1.01);
  if (c->inplace || (c->wide && is_half(fl_cv_out(c, i).dtype))) v = fl_cv_cast(c, v, fl_cv_out(c, i).dtype);
  c->values[c->node->outputs[i]] = v;
}

/* --- one operator --- */

static bool first_dtype_ok(fl_cv *c, const fl_converter *row) {
  fl_type t = fl_cv_out(c, 0);
  for (int i = c->node->n_args - 1; i >= 0; i--) {
    const fl_arg *a = &c->node->args[i];
    uint32_t v = a->kind == FL_ARG_TENSOR                ? a->v.value
                 : a->kind == FL_ARG_TENSORS && a->count ? a->v.values[0]
                                                         : FL_ATEN_NONE;
    if (v != FL_ATEN_NONE) t = c->aten->values.data[v].type;
  }
  if (dtype_in(row->dtypes, t.dtype)) return true;
  fl_cv_decline(c, "not for %s: only %s", fl_dtype_name(t.dtype), dtypes_text[row->dtypes]);
  return false;
}

static bool arguments_ok(fl_cv *c) {
  for (int i = 0; i < c->node->n_args; i++) {
    const fl_arg *a = &c->node->args[i];
    if (a->kind == FL_ARG_TENSOR && a->v.value != FL_ATEN_NONE)
      value_of(c, a->v.value);
    else if (a->kind == FL_ARG_TENSORS)
      for (int k = 0; k < a->count; k++)
        if (a->v.values[k] != FL_ATEN_NONE) value_of(c, a->v.values[k]);
  }
  return fl_cv_ok(c);
}

static void check_result(fl_cv *c, int i) {
  const fl_aten_value *want = &c->aten->values.data[c->node->outputs[i]];
  fl_vid v = c->values[c->node->outputs[i]];
  char a[96], b[96];
  if (!want->tensor_ok)
    fl_cv_decline(c, "result %d is %s", i, want->why_not ? want->why_not : "not a plain tensor");
  else if (v == FL_NO_VALUE)
    fl_cv_decline(c, "result %d is used, which the engine does not compute", i);
  else if (!fl_type_equal(&want->type, &c->g->values.data[v].type))
    fl_cv_decline(c, "result is %s, the engine would give %s", fl_type_str(&want->type, a, sizeof a),
                  fl_type_str(&c->g->values.data[v].type, b, sizeof b));
}

/* What is known on each run needs no operator. */
static void give_literals(fl_cv *c) {
  for (int i = 0; i < c->node->n_outputs && fl_cv_ok(c); i++) {
    if (!fl_cv_needed(c, i)) continue;
    const fl_aten_value *value = &c->aten->values.data[c->node->outputs[i]];
    take_status(c, fl_graph_literal(c->g, &value->type, value->fixed, &c->values[c->node->outputs[i]]));
  }
}

bool fl_cv_convert(fl_cv *c) {
  const fl_converter *row = fl_converter_find(c->node->op, &c->inplace);
  if (fl_aten_is_fixed(c->aten, c->node))
    give_literals(c);
  else if (!row)
    fl_cv_decline(c, "the engine has no %s", c->node->op);
  else if (arguments_ok(c) && first_dtype_ok(c, row)) {
    c->param = row->param;
    c->wide = false;
    c->g->origin = c->origin;
    row->fn(c);
    c->g->origin = UINT32_MAX;
  }
  for (int i = 0; i < c->node->n_outputs && fl_cv_ok(c); i++)
    if (fl_cv_needed(c, i)) check_result(c, i);
  return fl_cv_ok(c);
}
