/* A naive evaluator of graphs for tests: every value a dense array of doubles, every operator the loop its definition
 * says. It shares nothing with the kernels. */
#ifndef FL_RT_NAIVE_TEST_H
#define FL_RT_NAIVE_TEST_H

#include <math.h>
#include <stdlib.h>

#include "graph/graph.h"

typedef struct naive {
  const fl_graph *g;
  double **values; /* by value id */
} naive;

static inline void naive_unravel(const fl_type *t, int64_t flat, int64_t *at) {
  for (int i = t->rank - 1; i >= 0; i--) {
    at[i] = flat % t->dims[i];
    flat /= t->dims[i];
  }
}

/* Flat index of `at` (of rank `rank`) in t, right-aligned and broadcast. */
static inline int64_t naive_flat(const fl_type *t, const int64_t *at, int rank) {
  int64_t flat = 0;
  for (int i = 0; i < t->rank; i++) flat = flat * t->dims[i] + (t->dims[i] == 1 ? 0 : at[rank - t->rank + i]);
  return flat;
}

static inline double naive_pointwise(fl_op op, double a, double b) {
  switch (op) {
  case FL_OP_ADD: return a + b;
  case FL_OP_SUB: return a - b;
  case FL_OP_MUL: return a * b;
  case FL_OP_MAXIMUM: return a > b ? a : b;
  case FL_OP_NEG: return -a;
  case FL_OP_RELU: return a > 0 ? a : 0;
  case FL_OP_TANH: return tanh(a);
  default: return NAN;
  }
}

static inline double naive_sum(const naive *e, const fl_node *n, const int64_t *at) {
  const fl_type *t = &e->g->values.data[n->inputs[0]].type;
  int64_t axis = fl_attr_list(&n->attrs, "axes", &(int){0})[0], from[FL_MAX_RANK];
  for (int i = 0; i < t->rank; i++) from[i] = at[i];
  double sum = 0;
  for (from[axis] = 0; from[axis] < t->dims[axis]; from[axis]++)
    sum += e->values[n->inputs[0]][naive_flat(t, from, t->rank)];
  return sum;
}

static inline double naive_matmul(const naive *e, const fl_node *n, const fl_type *out, const int64_t *at) {
  const fl_type *ta = &e->g->values.data[n->inputs[0]].type, *tb = &e->g->values.data[n->inputs[1]].type;
  bool trans = fl_attr_int(&n->attrs, "trans_b", 0);
  int64_t a[FL_MAX_RANK], b[FL_MAX_RANK], k = ta->dims[ta->rank - 1];
  int r = out->rank;
  for (int i = 0; i < r; i++) a[i] = b[i] = at[i];
  double sum = 0;
  for (int64_t i = 0; i < k; i++) {
    a[r - 1] = i;
    b[trans ? r - 1 : r - 2] = i;
    b[trans ? r - 2 : r - 1] = at[r - 1];
    sum += e->values[n->inputs[0]][naive_flat(ta, a, r)] * e->values[n->inputs[1]][naive_flat(tb, b, r)];
  }
  if (n->n_inputs > 3 && n->inputs[3] != FL_NO_VALUE) sum += e->values[n->inputs[3]][naive_flat(out, at, r)];
  return fl_attr_int(&n->attrs, "act", FL_ACT_NONE) == FL_ACT_RELU && sum < 0 ? 0 : sum;
}

static inline double naive_conv2d(const naive *e, const fl_node *n, const fl_type *out, const int64_t *at) {
  const fl_type *tx = &e->g->values.data[n->inputs[0]].type, *tw = &e->g->values.data[n->inputs[1]].type;
  const double *x = e->values[n->inputs[0]], *w = e->values[n->inputs[1]];
  int count;
  const int64_t *stride = fl_attr_list(&n->attrs, "stride", &count), *pad = fl_attr_list(&n->attrs, "pad", &count);
  int64_t per_group = tw->dims[1], group = at[1] / (out->dims[1] / fl_attr_int(&n->attrs, "groups", 1));
  double sum = n->inputs[2] == FL_NO_VALUE ? 0 : e->values[n->inputs[2]][at[1]];
  for (int64_t c = 0; c < per_group; c++)
    for (int64_t i = 0; i < tw->dims[2]; i++)
      for (int64_t j = 0; j < tw->dims[3]; j++) {
        int64_t from[4] = {at[0], group * per_group + c, at[2] * stride[0] + i - pad[0],
                           at[3] * stride[1] + j - pad[1]};
        if (from[2] < 0 || from[3] < 0 || from[2] >= tx->dims[2] || from[3] >= tx->dims[3]) continue;
        sum += x[naive_flat(tx, from, 4)] * w[naive_flat(tw, (int64_t[]){at[1], c, i, j}, 4)];
      }
  return sum;
}

/* Inputs: x, weight, bias, mean, variance. */
static inline double naive_batch_norm(const naive *e, const fl_node *n, double x, int64_t channel) {
  double w = e->values[n->inputs[1]][channel], bias = e->values[n->inputs[2]][channel];
  double mean = e->values[n->inputs[3]][channel], var = e->values[n->inputs[4]][channel];
  return (x - mean) / sqrt(var + fl_attr_float(&n->attrs, "eps", 0)) * w + bias;
}

static inline double naive_cat(const naive *e, const fl_node *n, int64_t *at, int rank) {
  int64_t axis = fl_attr_int(&n->attrs, "axis", 0);
  for (int i = 0; i < n->n_inputs; i++) {
    const fl_type *t = &e->g->values.data[n->inputs[i]].type;
    if (at[axis] < t->dims[axis]) {
      int64_t flat = 0;
      for (int d = 0; d < rank; d++) flat = flat * t->dims[d] + at[d];
      return e->values[n->inputs[i]][flat];
    }
    at[axis] -= t->dims[axis];
  }
  return NAN;
}

static inline double naive_element(const naive *e, const fl_node *n, const fl_type *out, int64_t flat) {
  int64_t at[FL_MAX_RANK], from[FL_MAX_RANK];
  const fl_type *t = &e->g->values.data[n->inputs[0]].type;
  const double *in = e->values[n->inputs[0]];
  int count;
  naive_unravel(out, flat, at);
  switch (n->op) {
  case FL_OP_RESHAPE: return in[flat];
  case FL_OP_EXPAND: return in[naive_flat(t, at, out->rank)];
  case FL_OP_PERMUTE:
    for (int i = 0; i < out->rank; i++) from[fl_attr_list(&n->attrs, "perm", &count)[i]] = at[i];
    return in[naive_flat(t, from, t->rank)];
  case FL_OP_SLICE:
    at[fl_attr_int(&n->attrs, "axis", 0)] *= fl_attr_int(&n->attrs, "step", 1);
    at[fl_attr_int(&n->attrs, "axis", 0)] += fl_attr_int(&n->attrs, "start", 0);
    return in[naive_flat(t, at, t->rank)];
  case FL_OP_CAT: return naive_cat(e, n, at, out->rank);
  case FL_OP_SUM: return naive_sum(e, n, at);
  case FL_OP_MATMUL: return naive_matmul(e, n, out, at);
  case FL_OP_CONV2D: return naive_conv2d(e, n, out, at);
  case FL_OP_BATCH_NORM: return naive_batch_norm(e, n, in[flat], at[1]);
  default: break;
  }
  double a = in[naive_flat(t, at, out->rank)], b = 0;
  if (n->n_inputs > 1) b = e->values[n->inputs[1]][naive_flat(&e->g->values.data[n->inputs[1]].type, at, out->rank)];
  return naive_pointwise(n->op, a, b);
}

/* Values of inputs, weights and literals must be set; computes the rest. */
static inline void naive_run(naive *e) {
  for (fl_nid i = e->g->first; i != FL_NO_NODE; i = e->g->nodes.data[i].next) {
    const fl_node *n = &e->g->nodes.data[i];
    const fl_type *out = &e->g->values.data[n->outputs[0]].type;
    int64_t numel = fl_type_numel(out);
    double *v = e->values[n->outputs[0]] = realloc(e->values[n->outputs[0]], ((size_t)numel + 1) * sizeof *v);
    for (int64_t k = 0; k < numel; k++) v[k] = naive_element(e, n, out, k);
  }
}

#endif
