#include <math.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* Gelu written out: 0.5 x (1 + erf(x / sqrt 2)), and 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), their factors in
 * whatever order and grouping. */
typedef struct product {
  double number;
  int n_x;     /* how often x is a factor */
  fl_vid rest; /* one other factor, or NO_VALUE */
} product;

/* v as a product of numbers, x and one other factor; false when there are more of those. */
static bool factorize(const fl_graph *g, fl_vid v, fl_vid x, int depth, product *p) {
  double c;
  if (v == x) return ++p->n_x;
  if (fl_rw_number(g, v, &c)) {
    p->number *= c;
    return true;
  }
  const fl_node *n = fl_rw_made_by(g, v, FL_OP_COUNT);
  if (n && depth && n->op == FL_OP_MUL)
    return factorize(g, n->inputs[0], x, depth - 1, p) && factorize(g, n->inputs[1], x, depth - 1, p);
  if (n && depth && n->op == FL_OP_DIV && fl_rw_number(g, n->inputs[1], &c)) {
    p->number /= c;
    return factorize(g, n->inputs[0], x, depth - 1, p);
  }
  if (p->rest != FL_NO_VALUE) return false;
  p->rest = v;
  return true;
}

/* Numbers are rounded to the type that is computed in; eager multiplies 16-bit floats by the unrounded ones. */
static bool is_near(double a, double b, fl_dtype t) {
  return fabs(a - b) < (t == FL_F16 ? 1e-3 : t == FL_BF16 ? 8e-3 : 1e-5) * b;
}

static bool is_product(const fl_graph *g, fl_vid v, fl_vid x, double number, int n_x, fl_vid *out_rest) {
  product p = {1, 0, FL_NO_VALUE};
  *out_rest = FL_NO_VALUE;
  if (!factorize(g, v, x, 4, &p) || !is_near(p.number, number, fl_rw_type(g, x)->dtype) || p.n_x != n_x) return false;
  *out_rest = p.rest;
  return true;
}

/* v = 1 + other */
static bool is_one_plus(const fl_graph *g, fl_vid v, fl_vid *out_other) {
  const fl_node *n = v == FL_NO_VALUE ? NULL : fl_rw_made_by(g, v, FL_OP_ADD);
  double one;
  return n && fl_rw_with_scalar(g, n, out_other, &one) && one == 1;
}

/* sqrt(2 / pi) (x + 0.044715 x^3), or sqrt(2 / pi) x (1 + 0.044715 x^2) */
static bool is_tanh_argument(const fl_graph *g, fl_vid v, fl_vid x) {
  const double outer = 0.7978845608028654, inner = 0.044715;
  fl_vid rest, other, none;
  if (is_product(g, v, x, outer, 1, &rest))
    return is_one_plus(g, rest, &other) && is_product(g, other, x, inner, 2, &none) && none == FL_NO_VALUE;
  if (!is_product(g, v, x, outer, 0, &rest) || rest == FL_NO_VALUE) return false;
  const fl_node *sum = fl_rw_made_by(g, rest, FL_OP_ADD);
  for (int i = 0; sum && i < 2; i++)
    if (sum->inputs[i] == x && is_product(g, sum->inputs[1 - i], x, inner, 3, &none) && none == FL_NO_VALUE)
      return true;
  return false;
}

/* GELU or GELU_TANH when n computes it from x; else COUNT. */
static fl_op gelu_of(const fl_graph *g, fl_vid v, fl_vid x) {
  fl_vid rest, f, none;
  if (!is_product(g, v, x, 0.5, 1, &rest) || !is_one_plus(g, rest, &f)) return FL_OP_COUNT;
  const fl_node *n = fl_rw_made_by(g, f, FL_OP_COUNT);
  if (n && n->op == FL_OP_ERF && is_product(g, n->inputs[0], x, 0.7071067811865476, 1, &none) && none == FL_NO_VALUE)
    return FL_OP_GELU;
  return n && n->op == FL_OP_TANH && is_tanh_argument(g, n->inputs[0], x) ? FL_OP_GELU_TANH : FL_OP_COUNT;
}

static fl_status try_x(fl_graph *g, fl_nid n, fl_vid x, bool *changed) {
  fl_vid v = fl_rw_node(g, n)->outputs[0];
  if (fl_graph_use_count(g, x) < 2 || !fl_type_equal(fl_rw_type(g, x), fl_rw_type(g, v))) return NULL;
  fl_op op = gelu_of(g, v, x);
  if (op == FL_OP_COUNT) return NULL;
  *changed = true;
  FL_TRY(fl_rw_unary(g, n, op, x, &v));
  fl_rw_replace(g, n, v);
  return NULL;
}

/* x is a factor, at most two products down. */
static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  if (fl_rw_node(g, n)->op != FL_OP_MUL) return NULL;
  fl_vid candidates[6];
  int count = 0;
  for (int i = 0; i < 2; i++) {
    fl_vid v = candidates[count++] = fl_rw_node(g, n)->inputs[i];
    const fl_node *inner = fl_rw_made_by(g, v, FL_OP_MUL);
    for (int k = 0; inner && k < 2; k++) candidates[count++] = inner->inputs[k];
  }
  for (int i = 0; i < count && !fl_rw_node(g, n)->dead; i++) FL_TRY(try_x(g, n, candidates[i], changed));
  return NULL;
}

fl_status fl_pass_activations(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
