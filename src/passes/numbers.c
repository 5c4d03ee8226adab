#include <math.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* 16-bit floats are multiplied and divided by a number as it was given, not as it is in 16 bits: 1e6 is infinite in f16,
 * 257 is 256 in bf16. So PyTorch computes them; here it is done in f32, where the number is another one in 16 bits. It comes after
 * what looks for patterns, which would not see through the casts. */
static bool takes_number(fl_op op) {
  return op == FL_OP_MUL || op == FL_OP_DIV || op == FL_OP_FLOOR_DIV || op == FL_OP_TRUNC_DIV;
}

/* v is a literal that was rounded; gives what it was. */
static bool was_rounded(const fl_graph *g, fl_vid v, double *out) {
  double rounded;
  *out = g->values.data[v].number;
  return g->values.data[v].kind == FL_VALUE_LITERAL && !isnan(*out) && fl_graph_scalar_value(g, v, &rounded) &&
         rounded != *out;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  fl_op op = p->op;
  double number;
  if (!takes_number(op)) return NULL;
  int at = was_rounded(g, p->inputs[1], &number)                      ? 1
           : op == FL_OP_MUL && was_rounded(g, p->inputs[0], &number) ? 0
                                                                      : -1;
  if (at < 0) return NULL;
  fl_dtype dtype = fl_rw_type(g, p->outputs[0])->dtype;
  fl_vid x = p->inputs[1 - at], v;
  FL_TRY(fl_rw_cast(g, n, x, FL_F32, &x));
  FL_TRY(fl_rw_with_number(g, n, op, x, number, &v));
  FL_TRY(fl_rw_cast(g, n, v, dtype, &v));
  fl_rw_replace(g, n, v);
  *changed = true;
  return NULL;
}

fl_status fl_pass_numbers(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
