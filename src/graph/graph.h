/* The engine's graph: nodes over typed values, static shapes, single assignment, in execution order.
 *
 * A graph owns everything in it; ids are indexes and stay valid. Nodes form a doubly linked list so that passes may
 * insert and remove in place, and each value knows its uses, so that an edit costs what it touches. Thread rule: one thread at a time. */
#ifndef FL_GRAPH_GRAPH_H
#define FL_GRAPH_GRAPH_H

#include <stdio.h>

#include "base/alloc.h"
#include "base/status.h"
#include "graph/op.h"

typedef uint32_t fl_vid; /* value id */
typedef uint32_t fl_nid; /* node id */
#define FL_NO_VALUE UINT32_MAX
#define FL_NO_NODE  UINT32_MAX
#define FL_NO_SLOT  UINT32_MAX
#define FL_NO_USE   UINT32_MAX

typedef enum fl_value_kind { FL_VALUE_INPUT, FL_VALUE_WEIGHT, FL_VALUE_LITERAL, FL_VALUE_RESULT } fl_value_kind;

typedef struct fl_value {
  fl_type type;
  fl_value_kind kind;
  fl_nid node;                  /* RESULT: the producer */
  int index;                    /* RESULT: which of its outputs; INPUT: position in graph inputs */
  uint32_t slot;                /* WEIGHT: the caller's weight slot; several values may share one */
  const void *data;             /* LITERAL: dense, owned by the graph. WEIGHT: borrowed, may be NULL (text graphs) */
  int64_t strides[FL_MAX_RANK]; /* INPUT, WEIGHT: as the caller holds it; LITERAL: contiguous */
  double number;                /* LITERAL of one 16-bit float: what was rounded to it; else NaN */
  bool constant;                /* see fl_graph_is_const */
  uint32_t first_use;           /* operands that read it, newest first, or FL_NO_USE */
  int n_uses, n_output_uses;    /* operands, and places in the graph's outputs */
} fl_value;

/* Operand `use - nodes[node].first_use` of `node`; linked with the other uses of the same value. */
typedef struct fl_use {
  fl_nid node;
  uint32_t prev, next;
} fl_use;

typedef struct fl_node {
  fl_op op;
  int n_inputs, n_outputs;
  fl_vid *inputs;     /* FL_NO_VALUE = absent; change with fl_graph_set_input only */
  uint32_t first_use; /* the use of input 0; the others follow */
  fl_vid *outputs;
  fl_attrs attrs;
  fl_pw_program *program; /* FL_OP_POINTWISE only */
  uint32_t origin;        /* index of the recorded operator it came from, for reports; UINT32_MAX = none */
  fl_nid prev, next;      /* order of execution */
  bool dead;
} fl_node;

typedef struct fl_graph {
  fl_arena arena;
  FL_VEC(fl_value) values;
  FL_VEC(fl_node) nodes;
  FL_VEC(fl_use) uses;
  fl_nid first, last;
  int n_live;
  FL_VEC(fl_vid) inputs;
  FL_VEC(fl_vid) outputs;
  uint32_t origin; /* given to nodes added from now on; UINT32_MAX at first */
  /* For the pass `precision`: what f32 operators are computed in (f16, bf16; FL_F32, as at first: what they are), but for
   * those of some origins. `exact` is borrowed, n_exact flags. */
  fl_dtype compute;
  const bool *exact;
  uint32_t n_exact;
  /* For the pass `widen` (false at first): arithmetic on 16-bit floats is done in f32, products of bf16 excepted where
   * the processor has them. */
  bool wide, bf16_products;
} fl_graph;

FL_MUST_USE fl_status fl_graph_create(fl_graph **out_graph);
void fl_graph_destroy(fl_graph *g); /* takes; NULL allowed */

FL_MUST_USE fl_status fl_graph_input(fl_graph *g, const fl_type *type, const int64_t *strides, fl_vid *out);
FL_MUST_USE fl_status fl_graph_weight(fl_graph *g, const fl_type *type, const int64_t *strides, uint32_t slot,
                                      const void *data, fl_vid *out);
/* Copies fl_type_bytes(type) from `data`. */
FL_MUST_USE fl_status fl_graph_literal(fl_graph *g, const fl_type *type, const void *data, fl_vid *out);
/* A rank-0 literal of `dtype` with this value (rounded; integers from |v| < 2^53 exact). */
FL_MUST_USE fl_status fl_graph_scalar(fl_graph *g, fl_dtype dtype, double v, fl_vid *out);

/* Appends a node (or inserts it before `before`, if that is not FL_NO_NODE), infers and creates its results.
 * FL_INVALID with operator, operand and rule when inputs or attributes break one. Absent trailing inputs may be left
 * out, attributes as fl_attrs_normalize allows; `inputs`, `attrs` and `program` may lie in the graph itself.
 * out_results has room for ops.def's number of outputs (POINTWISE: program->n_outputs). `program` is copied. */
FL_MUST_USE fl_status fl_graph_add(fl_graph *g, fl_nid before, fl_op op, const fl_vid *inputs, int n_inputs,
                                   const fl_attrs *attrs, const fl_pw_program *program, fl_vid *out_results);
/* Shorthand for one result, appended. attrs may be NULL. */
FL_MUST_USE fl_status fl_graph_op(fl_graph *g, fl_op op, const fl_vid *inputs, int n_inputs, const fl_attrs *attrs,
                                  fl_vid *out);
FL_MUST_USE fl_status fl_graph_output(fl_graph *g, fl_vid v);

/* Editing, for passes. The caller keeps types equal and definitions before uses; fl_graph_verify finds who did not. */
void fl_graph_replace_uses(fl_graph *g, fl_vid from, fl_vid to);
void fl_graph_set_input(fl_graph *g, fl_nid n, int operand, fl_vid v);
void fl_graph_move_before(fl_graph *g, fl_nid n, fl_nid before); /* before FL_NO_NODE: to the end */
void fl_graph_remove(fl_graph *g, fl_nid n);                     /* its results must have no uses */
int fl_graph_use_count(const fl_graph *g, fl_vid v);             /* graph outputs count as uses */
fl_nid fl_graph_sole_user(const fl_graph *g, fl_vid v);          /* the node of the only use, else FL_NO_NODE */
fl_nid fl_graph_producer(const fl_graph *g, fl_vid v);           /* FL_NO_NODE for inputs and constants */
/* The value of a literal whose elements are all equal (or all NaN). False for anything else. */
bool fl_graph_scalar_value(const fl_graph *g, fl_vid v, double *out);
/* True when the value is known before any input is: weight, literal, or computed from those alone. */
bool fl_graph_is_const(const fl_graph *g, fl_vid v);
/* True when running the node can fail for what its operands hold: passes keep it although nothing uses its results. */
bool fl_graph_may_raise(const fl_graph *g, fl_nid n);
/* The program of a single pointwise node, whose inputs are the node's; of a POINTWISE node a copy of its own. False for
 * other operators. */
bool fl_pw_from_node(const fl_graph *g, const fl_node *n, fl_pw_program *out);
int fl_graph_node_count(const fl_graph *g); /* live nodes */
int fl_graph_count_op(const fl_graph *g, fl_op op);

/* FL_INTERNAL naming the first broken rule (unknown id, use before definition, wrong type, attribute missing). */
FL_MUST_USE fl_status fl_graph_verify(const fl_graph *g);

/* Text form, one node a line, parsed back to an equal graph (weights by slot, no data):
 *   graph(%0: f32[1,3,8,8], %1: weight 0 f32[4,3,3,3], %2: literal f32[] = [1.5]) {
 *     %3 = conv2d(%0, %1, _, _) stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 act=relu : f32[1,4,8,8]
 *     return %3
 *   }
 * pointwise programs print as {r2 = add f32 r0 r1; r3 = clamp f32 r2 lo=0 hi=6; yield r3}. Printing numbers values
 * anew, inputs first, so equal graphs print equally; constants that nothing uses are left out. Strides follow the type
 * ("f32[2,3] strides=[1,2]") where they are not contiguous. */
FL_MUST_USE fl_status fl_graph_print(const fl_graph *g, char **out_text); /* new; free with fl_free */
FL_MUST_USE fl_status fl_graph_parse(const char *text, fl_graph **out_graph);

/* Element i of dense data as a double, and back: rounded to nearest even, saturating for integers. Exact for every
 * dtype but i64 beyond 2^53. */
double fl_element_get(fl_dtype dtype, const void *data, int64_t i);
void fl_element_set(fl_dtype dtype, void *data, int64_t i, double v);

/* Result types of `op`: the rule of ops.def. Used by fl_graph_add and the verifier. */
FL_MUST_USE fl_status fl_infer(fl_op op, const fl_type *const *inputs, int n_inputs, const fl_attrs *attrs,
                               const fl_pw_program *program, fl_type *out_types);

#endif
