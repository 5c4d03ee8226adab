/* A recorded segment: the ATen operators one stretch of a program executed, in order, as plain data.
 *
 * This is what capture hands to lowering. Arguments are complete (defaults filled in) and in the order of the
 * operator's schema, each with its schema name. In-place operators and views arrive as they were recorded;
 * capture has already renamed values so that each value is written once (see `alias_of`).
 * The graph owns all memory in its arena; weights' data is borrowed. */
#ifndef FL_LOWER_ATEN_H
#define FL_LOWER_ATEN_H

#include "base/alloc.h"
#include "base/dtype.h"

#define FL_ATEN_NONE UINT32_MAX

typedef enum fl_arg_kind {
  FL_ARG_NONE,    /* Python None */
  FL_ARG_TENSOR,  /* value */
  FL_ARG_TENSORS, /* list of values; FL_ATEN_NONE entries for None */
  FL_ARG_INT,
  FL_ARG_FLOAT,
  FL_ARG_BOOL,
  FL_ARG_INTS,
  FL_ARG_FLOATS,
  FL_ARG_DTYPE, /* known to the engine; others arrive as FL_ARG_OTHER */
  FL_ARG_STRING,
  FL_ARG_OTHER /* device, layout, memory format, complex, generator ...: str(x) in `s` */
} fl_arg_kind;

typedef struct fl_arg {
  const char *name;
  fl_arg_kind kind;
  int count; /* of list */
  union {
    uint32_t value;
    uint32_t *values;
    int64_t i;
    double f;
    int64_t *ints;
    double *floats;
    fl_dtype dtype;
    const char *s;
  } v;
} fl_arg;

typedef enum fl_aten_kind { FL_ATEN_INPUT, FL_ATEN_WEIGHT, FL_ATEN_RESULT } fl_aten_kind;

typedef struct fl_aten_value {
  fl_aten_kind kind;
  bool tensor_ok; /* a dense strided tensor on the segment's device, of a dtype the engine has; else `why_not` tells */
  const char *why_not;
  fl_type type;
  int64_t strides[FL_MAX_RANK];
  uint32_t index;    /* INPUT: position in inputs; WEIGHT: weight slot; RESULT: node */
  const void *data;  /* WEIGHT: borrowed, valid during lowering and building; else NULL */
  bool whole;        /* known to begin where its memory does: its storage offset is 0 */
  const void *fixed; /* RESULT: the elements it has on each run, contiguous, borrowed like `data`; or NULL */
  uint32_t alias_of; /* the value this one shares memory with in eager (view, in-place), or FL_ATEN_NONE */
} fl_aten_value;

typedef struct fl_aten_node {
  const char *op; /* "aten.addmm.default" */
  int n_args, n_outputs;
  fl_arg *args;
  uint32_t *outputs; /* values; FL_ATEN_NONE for results that are not tensors */
  const char *file;  /* the user's line: innermost frame outside torch's own files */
  int line;
  const char *module;    /* dotted path of the nn.Module that was running ("layer1.0.conv1"), or NULL */
  const char *pin_eager; /* not NULL: must run eagerly, for this reason (random, writes a buffer, ...) */
} fl_aten_node;

typedef struct fl_aten_graph {
  fl_arena arena;
  FL_VEC(fl_aten_value) values;
  FL_VEC(fl_aten_node) nodes;
  FL_VEC(uint32_t) inputs;  /* values */
  FL_VEC(uint32_t) weights; /* values, by slot */
  FL_VEC(uint32_t) outputs; /* values the program still needs after the segment, each once */
} fl_aten_graph;

FL_MUST_USE fl_status fl_aten_graph_create(fl_aten_graph **out);
void fl_aten_graph_destroy(fl_aten_graph *g); /* takes; NULL allowed */
/* All its results are known, so that nothing need be computed. */
bool fl_aten_is_fixed(const fl_aten_graph *g, const fl_aten_node *n);
const fl_arg *fl_aten_arg(const fl_aten_node *n, const char *name); /* NULL when the schema has none of that name */

#endif
