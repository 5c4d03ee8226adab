/* Random graphs for tests: single operators, and the patterns passes look for, put on what is there already. */
#ifndef FL_PASSES_RANDOM_TEST_H
#define FL_PASSES_RANDOM_TEST_H

#include "base/test.h"
#include "graph/graph.h"

static uint64_t random_state;
static uint32_t random_slots; /* weights of the graph in the making */
static inline int pick(int n) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (int)((random_state >> 33) % (uint64_t)n);
}

static inline fl_status random_weight(fl_graph *g, int rank, const int64_t *dims, fl_vid *out) {
  fl_type t = fl_type_make(FL_F32, rank, dims);
  return fl_graph_weight(g, &t, NULL, random_slots++, NULL, out);
}

static inline fl_status reshape_to(fl_graph *g, fl_vid v, int rank, const int64_t *dims, fl_vid *out) {
  fl_attrs a = {0};
  fl_attr_set_list(&a, "dims", dims, rank);
  return fl_graph_op(g, FL_OP_RESHAPE, &v, 1, &a, out);
}

static inline fl_status permute_to(fl_graph *g, fl_vid v, int rank, const int64_t *perm, fl_vid *out) {
  fl_attrs a = {0};
  fl_attr_set_list(&a, "perm", perm, rank);
  return fl_graph_op(g, FL_OP_PERMUTE, &v, 1, &a, out);
}

static inline fl_status binary_op(fl_graph *g, fl_op op, fl_vid x, fl_vid y, fl_vid *out) {
  return fl_graph_op(g, op, (fl_vid[]){x, y}, 2, NULL, out);
}

static inline fl_status mean_of(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_attrs a = {0};
  fl_attr_set_list(&a, "axes", (int64_t[]){g->values.data[v].type.rank - 1}, 1);
  fl_attr_set_int(&a, "keepdim", 'b', 1);
  return fl_graph_op(g, FL_OP_MEAN, &v, 1, &a, out);
}

static inline fl_status random_view(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_attrs a = {0};
  int kind = pick(4);
  if (kind == 0) {
    int64_t joined[2] = {t.dims[0] * t.dims[1], t.dims[2]}, split[3] = {1, t.dims[0], t.dims[1]};
    return t.rank == 3 ? reshape_to(g, v, 2, joined, out) : reshape_to(g, v, 3, split, out);
  }
  if (kind == 1) return permute_to(g, v, t.rank, t.rank == 3 ? (int64_t[]){2, 0, 1} : (int64_t[]){1, 0, 2, 3}, out);
  if (kind == 2) {
    fl_attr_set_list(&a, "dims", t.dims, t.rank);
    return fl_graph_op(g, FL_OP_EXPAND, &v, 1, &a, out);
  }
  int axis = pick(t.rank);
  fl_attr_set_int(&a, "axis", 'i', axis);
  fl_attr_set_int(&a, "start", 'i', 0);
  fl_attr_set_int(&a, "stop", 'i', pick(2) ? t.dims[axis] : (t.dims[axis] + 1) / 2);
  fl_attr_set_int(&a, "step", 'i', 1 + pick(2));
  return fl_graph_op(g, FL_OP_SLICE, &v, 1, &a, out);
}

static inline fl_status random_batch_norm(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_vid in[5] = {v};
  fl_attrs a = {0};
  fl_attr_set_float(&a, "eps", 1e-5);
  for (int i = 1; i < 5; i++) FL_TRY(random_weight(g, 1, &g->values.data[v].type.dims[1], &in[i]));
  return fl_graph_op(g, FL_OP_BATCH_NORM, in, 5, &a, out);
}

static inline fl_status random_activation(fl_graph *g, fl_vid v, fl_vid *out) {
  static const fl_op ops[] = {FL_OP_RELU, FL_OP_GELU, FL_OP_SIGMOID, FL_OP_TANH, FL_OP_SILU, FL_OP_HARDSWISH};
  fl_attrs a = {0};
  if (pick(4)) return fl_graph_op(g, ops[pick(6)], &v, 1, NULL, out);
  fl_attr_set_float(&a, "lo", 0);
  fl_attr_set_float(&a, "hi", 6);
  return fl_graph_op(g, FL_OP_CLAMP, &v, 1, &a, out);
}

/* A linear layer of `n` columns as recorded: view, weights transposed, addmm, view. */
static inline fl_status random_linear(fl_graph *g, fl_vid v, int64_t n, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  int64_t k = t.dims[t.rank - 1], rows = fl_type_numel(&t) / (k ? k : 1);
  fl_vid in[3];
  bool bias = pick(2);
  FL_TRY(reshape_to(g, v, 2, (int64_t[]){rows, k}, &in[0]));
  FL_TRY(random_weight(g, 2, (int64_t[]){n, k}, &in[1]));
  FL_TRY(permute_to(g, in[1], 2, (int64_t[]){1, 0}, &in[1]));
  FL_TRY(random_weight(g, 1, &n, &in[2]));
  FL_TRY(fl_graph_op(g, FL_OP_MATMUL, in, bias ? 3 : 2, NULL, out));
  t.dims[t.rank - 1] = n;
  FL_TRY(reshape_to(g, *out, t.rank, t.dims, out));
  if (!bias && pick(2)) FL_TRY(binary_op(g, FL_OP_ADD, *out, in[2], out));
  return NULL;
}

/* Two heads over the rows of [B, S, K], with the heads counted with the batch around each product. */
static inline fl_status random_attention(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_vid head[3], scores, mask, c;
  fl_attrs a = {0};
  if (t.rank != 3) return fl_fail(FL_INVALID, "rank");
  int64_t b = t.dims[0], s = t.dims[1], d = 1 + pick(3);
  bool flat = pick(2);
  for (int i = 0; i < 3; i++) {
    FL_TRY(random_linear(g, v, 2 * d, &head[i]));
    FL_TRY(reshape_to(g, head[i], 4, (int64_t[]){b, s, 2, d}, &head[i]));
    FL_TRY(permute_to(g, head[i], 4, (int64_t[]){0, 2, 1, 3}, &head[i]));
    if (i == 1) FL_TRY(permute_to(g, head[i], 4, (int64_t[]){0, 1, 3, 2}, &head[i]));
    if (flat) FL_TRY(reshape_to(g, head[i], 3, i == 1 ? (int64_t[]){2 * b, d, s} : (int64_t[]){2 * b, s, d}, &head[i]));
  }
  FL_TRY(binary_op(g, FL_OP_MATMUL, head[0], head[1], &scores));
  if (flat && pick(2)) FL_TRY(reshape_to(g, scores, 4, (int64_t[]){b, 2, s, s}, &scores));
  FL_TRY(fl_graph_scalar(g, FL_F32, 1 + pick(3), &c));
  FL_TRY(random_weight(g, 2, (int64_t[]){s, s}, &mask));
  if (pick(2)) FL_TRY(binary_op(g, FL_OP_ADD, scores, mask, &scores));
  if (pick(2)) FL_TRY(binary_op(g, FL_OP_DIV, scores, c, &scores));
  if (pick(2)) FL_TRY(binary_op(g, FL_OP_ADD, mask, scores, &scores));
  fl_attr_set_int(&a, "axis", 'i', g->values.data[scores].type.rank - 1);
  FL_TRY(fl_graph_op(g, FL_OP_SOFTMAX, &scores, 1, &a, &scores));
  if (flat) FL_TRY(reshape_to(g, scores, 3, (int64_t[]){2 * b, s, s}, &scores));
  FL_TRY(binary_op(g, FL_OP_MATMUL, scores, head[2], out));
  if (flat) FL_TRY(reshape_to(g, *out, 4, (int64_t[]){b, 2, s, d}, out));
  FL_TRY(permute_to(g, *out, 4, (int64_t[]){0, 2, 1, 3}, out));
  FL_TRY(reshape_to(g, *out, 3, (int64_t[]){b, s, 2 * d}, out));
  FL_TRY(random_linear(g, *out, t.dims[2], out));
  return pick(2) ? binary_op(g, FL_OP_ADD, v, *out, out) : NULL;
}

static inline fl_status random_norm(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_vid x = v, mean, two, w;
  if (pick(2)) {
    FL_TRY(mean_of(g, v, &mean));
    FL_TRY(binary_op(g, FL_OP_SUB, v, mean, &x));
  }
  FL_TRY(fl_graph_scalar(g, FL_F32, 2, &two));
  FL_TRY(binary_op(g, FL_OP_POW, x, two, out));
  FL_TRY(mean_of(g, *out, out));
  FL_TRY(fl_graph_scalar(g, FL_F32, 0.125, &two));
  FL_TRY(binary_op(g, FL_OP_ADD, *out, two, out));
  FL_TRY(fl_graph_op(g, FL_OP_RSQRT, out, 1, NULL, out));
  FL_TRY(binary_op(g, FL_OP_MUL, x, *out, out));
  FL_TRY(random_weight(g, 1, &t.dims[t.rank - 1], &w));
  if (pick(4)) FL_TRY(binary_op(g, FL_OP_MUL, w, *out, out));
  return pick(2) ? binary_op(g, FL_OP_ADD, *out, w, out) : NULL;
}

/* Convolution, batch norm, activation or the sum with what went in. */
static inline fl_status random_conv(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_vid in[3];
  fl_attrs a = {0};
  if (t.rank == 3) {
    FL_TRY(reshape_to(g, v, 4, (int64_t[]){1, t.dims[0], t.dims[1], t.dims[2]}, &v));
    t = g->values.data[v].type;
  }
  if (t.rank != 4) return fl_fail(FL_INVALID, "rank");
  int64_t channels = pick(2) ? t.dims[1] : 1 + pick(4);
  fl_attr_set_list(&a, "stride", (int64_t[]){1, 1}, 2);
  fl_attr_set_list(&a, "pad", (int64_t[]){1, 1, 1, 1}, 4);
  fl_attr_set_list(&a, "dilation", (int64_t[]){1, 1}, 2);
  fl_attr_set_int(&a, "groups", 'i', 1);
  in[0] = v;
  FL_TRY(random_weight(g, 4, (int64_t[]){channels, t.dims[1], 3, 3}, &in[1]));
  FL_TRY(random_weight(g, 1, &channels, &in[2]));
  FL_TRY(fl_graph_op(g, FL_OP_CONV2D, in, 2 + pick(2), &a, out));
  if (pick(3)) FL_TRY(random_batch_norm(g, *out, out));
  if (pick(2)) FL_TRY(random_activation(g, *out, out));
  return channels == t.dims[1] && pick(2) ? binary_op(g, FL_OP_ADD, *out, v, out) : NULL;
}

static inline fl_status random_pattern(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_attrs a = {0};
  switch (pick(8)) {
  case 0: return random_view(g, v, out);
  case 1: return random_batch_norm(g, v, out);
  case 2: return random_attention(g, v, out);
  case 3: return random_norm(g, v, out);
  case 4: return random_conv(g, v, out);
  case 5: return mean_of(g, v, out);
  case 6:
    fl_attr_set_int(&a, "axis", 'i', g->values.data[v].type.rank - 1);
    return fl_graph_op(g, FL_OP_SOFTMAX, &v, 1, &a, out);
  default: return random_linear(g, v, 1 + pick(4), out);
  }
}

/* Tame graphs have only operators that do not magnify rounding errors without bound. */
static inline fl_status random_node(fl_graph *g, bool tame, fl_vid *out) {
  static const fl_op binary[] = {FL_OP_ADD, FL_OP_MUL, FL_OP_SUB, FL_OP_DIV, FL_OP_POW};
  static const fl_op wild[] = {FL_OP_EXP, FL_OP_RSQRT, FL_OP_LOG, FL_OP_SQRT};
  int n = (int)g->values.len;
  fl_vid in[2] = {(fl_vid)(pick(3) ? n - 1 - pick(n < 8 ? n : 8) : pick(n)), (fl_vid)pick(n)};
  switch (pick(5)) {
  case 0: return !tame && pick(2) ? fl_graph_op(g, wild[pick(4)], in, 1, NULL, out) : random_activation(g, in[0], out);
  case 1:
  case 2:
    if (g->values.data[in[0]].type.rank < 2) return fl_fail(FL_INVALID, "rank");
    return random_pattern(g, in[0], out);
  case 3:
    if (pick(2)) return fl_graph_op(g, FL_OP_MATMUL, in, 2, NULL, out);
    FL_TRY(fl_graph_scalar(g, FL_F32, pick(4), &in[1]));
    return fl_graph_op(g, binary[pick(3)], in, 2, NULL, out);
  default: return fl_graph_op(g, binary[pick(tame ? 3 : 5)], in, 2, NULL, out);
  }
}

/* About `nodes` nodes and three outputs. Some attempts break a rule, and that is all they do. */
static inline fl_graph *random_graph(int nodes, bool tame) {
  fl_graph *g = NULL;
  fl_vid v;
  random_slots = 0;
  fl_type t = {FL_F32, 3, {2, 3, 4}}, w = {FL_F32, 2, {4, 4}};
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &t, NULL, &v));
  FL_CHECK_OK(fl_graph_input(g, &w, NULL, &v));
  FL_CHECK_OK(random_weight(g, 2, w.dims, &v));
  for (int tries = 0; fl_graph_node_count(g) < nodes && tries < 40 * nodes; tries++) {
    fl_status s = random_node(g, tame, &v);
    FL_CHECK(!s || fl_status_code(s) == FL_INVALID);
    fl_status_free(s);
  }
  for (int i = 0; i < 3; i++)
    FL_CHECK_OK(fl_graph_output(g, (fl_vid)(g->values.len - 1 - (size_t)pick((int)g->values.len / 2))));
  return g;
}

#endif
