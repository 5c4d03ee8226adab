/* What the passes share: looking at a graph, and replacing parts of it.
 *
 * A pass walks the nodes forward and rewrites at the last node of a pattern: what it inserts before that node finds
 * every operand defined, and what it erases lies behind, so the walk goes on undisturbed. */
#ifndef FL_PASSES_REWRITE_H
#define FL_PASSES_REWRITE_H

#include "graph/graph.h"

/* The node that makes v, if it is `op` (any of the graph's, when op is FL_OP_COUNT); else NULL. The pointer is valid
 * until a node is added. */
const fl_node *fl_rw_made_by(const fl_graph *g, fl_vid v, fl_op op);
static inline const fl_type *fl_rw_type(const fl_graph *g, fl_vid v) { return &g->values.data[v].type; }
static inline const fl_node *fl_rw_node(const fl_graph *g, fl_nid id) { return &g->nodes.data[id]; }
/* v has one use, which is an operand. */
static inline bool fl_rw_used_once(const fl_graph *g, fl_vid v) { return fl_graph_sole_user(g, v) != FL_NO_NODE; }

/* The number every element of v has: a literal, seen through reshape, expand and cast. */
bool fl_rw_scalar(const fl_graph *g, fl_vid v, double *out);
/* As what it was before it was rounded to 16 bits, for products and quotients: see passes/numbers.c. */
bool fl_rw_number(const fl_graph *g, fl_vid v, double *out);
/* The operands of a two-operand node as (other, scalar), in either order when it commutes. */
bool fl_rw_with_scalar(const fl_graph *g, const fl_node *n, fl_vid *out_other, double *out_scalar);
/* v, aligned to the right against `rank` axes, varies along `axis` alone, which has `len` elements. */
bool fl_rw_is_vector(const fl_graph *g, fl_vid v, int rank, int axis, int64_t len);

/* New nodes, before `before`. A reshape to v's own dims gives v itself, as do the identity permutation and a cast to v's own
 * dtype. */
fl_status fl_rw_add(fl_graph *g, fl_nid before, fl_op op, const fl_vid *inputs, int n, const fl_attrs *attrs,
                    fl_vid *out);
fl_status fl_rw_unary(fl_graph *g, fl_nid before, fl_op op, fl_vid x, fl_vid *out);
fl_status fl_rw_binary(fl_graph *g, fl_nid before, fl_op op, fl_vid a, fl_vid b, fl_vid *out);
fl_status fl_rw_with_number(fl_graph *g, fl_nid before, fl_op op, fl_vid a, double number, fl_vid *out);
fl_status fl_rw_reshape(fl_graph *g, fl_nid before, fl_vid v, int rank, const int64_t *dims, fl_vid *out);
fl_status fl_rw_permute(fl_graph *g, fl_nid before, fl_vid v, const int64_t *perm, fl_vid *out);
fl_status fl_rw_cast(fl_graph *g, fl_nid before, fl_vid v, fl_dtype dtype, fl_vid *out);
fl_status fl_rw_slice(fl_graph *g, fl_nid before, fl_vid v, int axis, int64_t start, int64_t stop, fl_vid *out);

/* `with` takes the place of n's only result; n goes, and with it what only n needed. */
void fl_rw_replace(fl_graph *g, fl_nid n, fl_vid with);
/* Removes a node without uses, and what only it needed. */
void fl_rw_erase(fl_graph *g, fl_nid n);
/* Nodes of constants come first, in their order: then any constant is defined before any other node. */
void fl_rw_hoist_constants(fl_graph *g);

/* What most passes are: `visit` at each node, in order; it may rewrite there and tells in `changed`. */
typedef fl_status (*fl_rw_visit)(fl_graph *g, fl_nid n, bool *changed);
FL_MUST_USE fl_status fl_rw_walk(fl_graph *g, fl_rw_visit visit, bool *changed);

#endif
