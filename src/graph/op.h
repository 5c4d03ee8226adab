/* Operators and their attributes: what the graph, the plan and the kernels all know. */
#ifndef FL_GRAPH_OP_H
#define FL_GRAPH_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

typedef enum fl_op {
#define FL_OP(e, name, lo, hi, outs, attrs, infer, flags) FL_OP_##e,
#include "graph/ops.def"
#undef FL_OP
  FL_OP_COUNT
} fl_op;

typedef enum fl_act {
#define FL_ACT(e, name) FL_ACT_##e,
#include "graph/acts.def"
#undef FL_ACT
  FL_ACT_COUNT
} fl_act;

enum { FL_OPF_POINTWISE = 1, FL_OPF_VIEW = 2, FL_OPF_COMMUTATIVE = 4, FL_OPF_RAISES = 8 };

typedef struct fl_op_info {
  const char *name;
  int min_inputs, max_inputs; /* max -1 = any number */
  int outputs;
  const char *attrs; /* "key:kind key:kind" */
  unsigned flags;    /* FL_OPF_* */
} fl_op_info;

const fl_op_info *fl_op_get(fl_op op); /* never NULL for op < FL_OP_COUNT */
bool fl_op_parse(const char *name, fl_op *out);
/* Attribute i of the operator's row: its interned key and kind. False past the last. */
bool fl_op_attr(fl_op op, int i, const char **out_key, char *out_kind);
const char *fl_act_name(fl_act act);
bool fl_act_parse(const char *name, fl_act *out);

/* Attributes of one node: a small ordered set. Keys are the strings of ops.def (static storage). */
#define FL_MAX_ATTRS     8
#define FL_MAX_ATTR_LIST 16

typedef struct fl_attr {
  const char *key;
  char kind; /* as in ops.def: i f b I d a; ints, bools, dtypes and activations are in i */
  int count; /* of list */
  union {
    int64_t i;
    double f;
    int64_t list[FL_MAX_ATTR_LIST];
  } v;
} fl_attr;

typedef struct fl_attrs {
  int count;
  fl_attr items[FL_MAX_ATTRS];
} fl_attrs;

/* Setters replace an attribute of the same key. False if the set or the list is full (a bug of the caller:
 * ops.def never has more). `key` must be static or outlive the attributes. */
bool fl_attr_set_int(fl_attrs *a, const char *key, char kind, int64_t v);
bool fl_attr_set_float(fl_attrs *a, const char *key, double v);
bool fl_attr_set_list(fl_attrs *a, const char *key, const int64_t *v, int count);
/* Getters give the default when the key is absent. */
int64_t fl_attr_int(const fl_attrs *a, const char *key, int64_t def);
double fl_attr_float(const fl_attrs *a, const char *key, double def);
const int64_t *fl_attr_list(const fl_attrs *a, const char *key, int *out_count); /* NULL and 0 when absent */
bool fl_attrs_equal(const fl_attrs *a, const fl_attrs *b); /* same keys, kinds and values, in the same order */

/* The form in which nodes hold attributes: exactly those of the row, in its order, with static keys. Absent flags are
 * false, an absent activation is none, act_lo and act_hi are 0 unless the activation is clamp, scale_h and scale_w
 * default to 0. FL_INVALID naming any other attribute that is missing, unknown or of another kind. */
FL_MUST_USE fl_status fl_attrs_normalize(fl_op op, const fl_attrs *attrs, fl_attrs *out);

/* The program of a pointwise group: straight-line code over registers.
 * Registers 0..n_inputs-1 hold the inputs' elements; each instruction writes the next register.
 * The last n_outputs results named in `outputs` are the group's results. */
#define FL_PW_MAX_INPUTS  16
#define FL_PW_MAX_INSTRS  64
#define FL_PW_MAX_OUTPUTS 4

typedef struct fl_pw_instr {
  fl_op op;       /* a pointwise operator */
  fl_dtype dtype; /* of its result */
  int16_t src[3]; /* registers; -1 = absent */
  double a, b;    /* its float attributes, in ops.def's order (clamp lo hi, elu alpha, ...) */
} fl_pw_instr;

typedef struct fl_pw_program {
  int n_inputs, n_instrs, n_outputs;
  fl_dtype in_dtype[FL_PW_MAX_INPUTS];
  fl_pw_instr instrs[FL_PW_MAX_INSTRS];
  int16_t outputs[FL_PW_MAX_OUTPUTS]; /* registers */
} fl_pw_program;

/* Type of a pointwise operator's result from its operands' (which must be equal where the operator says so).
 * `cast` is the result of FL_OP_CAST. FL_INVALID with the rule. */
FL_MUST_USE fl_status fl_pw_dtype(fl_op op, const fl_dtype *in, int n_in, fl_dtype cast, fl_dtype *out);
/* FL_INVALID naming the first instruction that breaks a rule: registers defined before use, arities, dtypes, bounds. */
FL_MUST_USE fl_status fl_pw_check(const fl_pw_program *p);
fl_dtype fl_pw_register_dtype(const fl_pw_program *p, int reg); /* of a checked program */
bool fl_pw_equal(const fl_pw_program *a, const fl_pw_program *b);

#endif
