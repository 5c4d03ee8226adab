#include "graph/op.h"

#include <string.h>

#define P FL_OPF_POINTWISE
#define V FL_OPF_VIEW
#define C FL_OPF_COMMUTATIVE
#define X FL_OPF_RAISES

static const fl_op_info ops[FL_OP_COUNT] = {
#define FL_OP(e, name, lo, hi, outs, attrs, infer, flags) {name, lo, hi, outs, attrs, flags},
#include "graph/ops.def"
#undef FL_OP
};

static const char *const acts[FL_ACT_COUNT] = {
#define FL_ACT(e, name) name,
#include "graph/acts.def"
#undef FL_ACT
};

/* Every key of ops.def once (op_test.c checks it): nodes and plans hold these pointers, which outlive all graphs. */
static const char *const keys[] = {
    "act",      "act_hi",     "act_lo",  "align_corners", "alpha",   "axes",   "axis",   "beta",      "bilinear",
    "bins",     "descending", "k",       "largest",       "mode",    "sorted", "causal", "ceil",      "correction",
    "diagonal", "dilation",   "dims",    "divisor",       "dtype",   "eps",    "groups", "hi",        "include_pad",
    "keepdim",  "kernel",     "lo",      "out",           "out_pad", "pad",    "pads",   "perm",      "scale",
    "scale_h",  "scale_w",    "slope",   "start",         "step",    "stop",   "stride", "threshold", "trans_b",
    "upper",    "value",      "padding", "unit",
};

static const char *intern(const char *text, size_t len) {
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (!strncmp(keys[i], text, len) && !keys[i][len]) return keys[i];
  return NULL;
}

const fl_op_info *fl_op_get(fl_op op) { return &ops[(unsigned)op < FL_OP_COUNT ? op : 0]; }

bool fl_op_parse(const char *name, fl_op *out) {
  for (int i = 0; i < FL_OP_COUNT; i++) {
    if (strcmp(ops[i].name, name)) continue;
    *out = (fl_op)i;
    return true;
  }
  return false;
}

bool fl_op_attr(fl_op op, int i, const char **out_key, char *out_kind) {
  const char *at = fl_op_get(op)->attrs;
  for (; *at; i--) {
    size_t len = strcspn(at, ":");
    if (i == 0) {
      *out_key = intern(at, len);
      *out_kind = at[len + 1];
      return *out_key != NULL;
    }
    at += len + 2;
    at += strspn(at, " ");
  }
  return false;
}

const char *fl_act_name(fl_act act) { return (unsigned)act < FL_ACT_COUNT ? acts[act] : "?"; }

bool fl_act_parse(const char *name, fl_act *out) {
  for (int i = 0; i < FL_ACT_COUNT; i++) {
    if (strcmp(acts[i], name)) continue;
    *out = (fl_act)i;
    return true;
  }
  return false;
}

/* --- attribute sets --- */

static const fl_attr *find(const fl_attrs *a, const char *key) {
  for (int i = 0; a && i < a->count; i++)
    if (a->items[i].key == key || !strcmp(a->items[i].key, key)) return &a->items[i];
  return NULL;
}

/* The attribute of this key, new when there is none; NULL when the set is full. */
static fl_attr *place(fl_attrs *a, const char *key, char kind) {
  fl_attr *at = (fl_attr *)find(a, key);
  if (!at) {
    if (a->count >= FL_MAX_ATTRS) return NULL;
    at = &a->items[a->count++];
  }
  memset(at, 0, sizeof *at);
  at->key = key;
  at->kind = kind;
  return at;
}

bool fl_attr_set_int(fl_attrs *a, const char *key, char kind, int64_t v) {
  fl_attr *at = place(a, key, kind);
  if (at) at->v.i = v;
  return at != NULL;
}

bool fl_attr_set_float(fl_attrs *a, const char *key, double v) {
  fl_attr *at = place(a, key, 'f');
  if (at) at->v.f = v;
  return at != NULL;
}

bool fl_attr_set_list(fl_attrs *a, const char *key, const int64_t *v, int count) {
  int64_t copy[FL_MAX_ATTR_LIST]; /* v may lie in the attribute that is replaced */
  if (count < 0 || count > FL_MAX_ATTR_LIST) return false;
  if (count) memcpy(copy, v, (size_t)count * sizeof *v);
  fl_attr *at = place(a, key, 'I');
  if (!at) return false;
  at->count = count;
  if (count) memcpy(at->v.list, copy, (size_t)count * sizeof *v);
  return true;
}

int64_t fl_attr_int(const fl_attrs *a, const char *key, int64_t def) {
  const fl_attr *at = find(a, key);
  return at ? at->v.i : def;
}

double fl_attr_float(const fl_attrs *a, const char *key, double def) {
  const fl_attr *at = find(a, key);
  return at ? at->v.f : def;
}

const int64_t *fl_attr_list(const fl_attrs *a, const char *key, int *out_count) {
  const fl_attr *at = find(a, key);
  if (out_count) *out_count = at ? at->count : 0;
  return at ? at->v.list : NULL;
}

static bool attr_equal(const fl_attr *a, const fl_attr *b) {
  if (a->kind != b->kind || a->count != b->count || strcmp(a->key, b->key)) return false;
  if (a->kind == 'I') return !memcmp(a->v.list, b->v.list, (size_t)a->count * sizeof *a->v.list);
  return a->v.i == b->v.i; /* floats by their bits: NaN equals itself, 0 is not -0 */
}

bool fl_attrs_equal(const fl_attrs *a, const fl_attrs *b) {
  if (a->count != b->count) return false;
  for (int i = 0; i < a->count; i++)
    if (!attr_equal(&a->items[i], &b->items[i])) return false;
  return true;
}

/* --- the form in nodes --- */

static bool may_be_absent(const char *key, char kind) {
  return kind == 'b' || kind == 'a' || (kind == 'f' && (!strncmp(key, "act_", 4) || !strncmp(key, "scale_", 6)));
}

static fl_status check_value(fl_op op, const fl_attr *at) {
  const char *name = fl_op_get(op)->name;
  if (at->kind == 'd' && (at->v.i < 0 || at->v.i >= FL_DTYPE_COUNT))
    return fl_fail(FL_INVALID, "%s: %s: %lld is not a dtype", name, at->key, (long long)at->v.i);
  if (at->kind == 'a' && (at->v.i < 0 || at->v.i >= FL_ACT_COUNT))
    return fl_fail(FL_INVALID, "%s: %s: %lld is not an activation", name, at->key, (long long)at->v.i);
  if (at->kind == 'I' && (at->count < 0 || at->count > FL_MAX_ATTR_LIST))
    return fl_fail(FL_INVALID, "%s: %s: list of %d", name, at->key, at->count);
  return NULL;
}

static fl_status check_known(fl_op op, const fl_attrs *attrs) {
  for (int i = 0; attrs && i < attrs->count; i++) {
    const char *key;
    char kind;
    int k = 0;
    while (fl_op_attr(op, k, &key, &kind) && strcmp(key, attrs->items[i].key)) k++;
    if (!fl_op_attr(op, k, &key, &kind))
      return fl_fail(FL_INVALID, "%s: unknown attribute %s", fl_op_get(op)->name, attrs->items[i].key);
  }
  return NULL;
}

fl_status fl_attrs_normalize(fl_op op, const fl_attrs *attrs, fl_attrs *out) {
  const char *name = fl_op_get(op)->name, *key;
  char kind;
  FL_TRY(check_known(op, attrs));
  out->count = 0;
  for (int i = 0; fl_op_attr(op, i, &key, &kind); i++) {
    const fl_attr *given = find(attrs, key);
    if (!given && !may_be_absent(key, kind)) return fl_fail(FL_INVALID, "%s: attribute %s is missing", name, key);
    if (given && given->kind != kind)
      return fl_fail(FL_INVALID, "%s: attribute %s is of kind %c: must be %c", name, key, given->kind, kind);
    fl_attr *at = place(out, key, kind);
    if (!at) return fl_fail(FL_INTERNAL, "%s: more than %d attributes", name, FL_MAX_ATTRS);
    if (!given) continue;
    FL_TRY(check_value(op, given));
    at->count = given->count;
    if (kind == 'I' && given->count) memcpy(at->v.list, given->v.list, (size_t)given->count * sizeof *at->v.list);
    if (kind == 'f') at->v.f = given->v.f;
    if (kind == 'b') at->v.i = given->v.i != 0;
    if (kind == 'i' || kind == 'd' || kind == 'a') at->v.i = given->v.i;
  }
  if (find(out, "act") && fl_attr_int(out, "act", 0) != FL_ACT_CLAMP) {
    fl_attr_set_float(out, intern("act_lo", 6), 0);
    fl_attr_set_float(out, intern("act_hi", 6), 0);
  }
  return NULL;
}
