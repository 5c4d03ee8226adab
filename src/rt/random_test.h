/* Random small graphs with their inputs and weights, for tests of everything between a graph and its results. */
#ifndef FL_RT_RANDOM_TEST_H
#define FL_RT_RANDOM_TEST_H

#include "base/test.h"
#include "rt/engine.h"
#include "rt/naive_test.h"

enum { MAX_GIVEN = 80, MAX_OUT = 4, MAX_NODES = 14 };

typedef struct world {
  fl_graph *g;
  fl_vid given[MAX_GIVEN]; /* inputs and weights */
  float *memory[MAX_GIVEN];
  bool positive[MAX_GIVEN]; /* variances */
  int n_given, n_inputs;
  uint32_t n_slots;
  int64_t out_strides[MAX_OUT][FL_MAX_RANK];
  naive naive;
} world;

static inline int pick(int n) { return rand() % n; }

static inline size_t span(const fl_type *t, const int64_t *strides) {
  int64_t last = 0;
  for (int i = 0; i < t->rank; i++) last += (t->dims[i] - 1) * strides[i];
  return (size_t)last + 1;
}

static inline void random_strides(const fl_type *t, int gap, int64_t *strides) {
  int order[FL_MAX_RANK];
  for (int i = 0; i < t->rank; i++) {
    int j = pick(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  int64_t step = gap;
  for (int i = 0; i < t->rank; i++) {
    strides[order[i]] = step;
    step *= t->dims[order[i]];
  }
}

static inline void fill(world *w, int i) {
  const fl_value *v = &w->g->values.data[w->given[i]];
  size_t n = span(&v->type, v->strides);
  for (size_t k = 0; k < n; k++) {
    float x = (float)(pick(2001) - 1000) / 1000;
    w->memory[i][k] = w->positive[i] ? fabsf(x) + 0.5f : x;
  }
  int64_t numel = fl_type_numel(&v->type), at[FL_MAX_RANK];
  double *d = w->naive.values[w->given[i]];
  for (int64_t k = 0; k < numel; k++) {
    int64_t offset = 0;
    naive_unravel(&v->type, k, at);
    for (int a = 0; a < v->type.rank; a++) offset += at[a] * v->strides[a];
    d[k] = w->memory[i][offset];
  }
}

static inline fl_vid add_given(world *w, bool weight, const fl_type *t, const int64_t *strides) {
  fl_vid v;
  if (weight)
    FL_CHECK_OK(fl_graph_weight(w->g, t, strides, w->n_slots++, NULL, &v));
  else
    FL_CHECK_OK(fl_graph_input(w->g, t, strides, &v));
  w->memory[w->n_given] = malloc(span(t, strides) * sizeof(float));
  w->given[w->n_given++] = v;
  w->n_inputs += !weight;
  return v;
}

static inline void add_random_given(world *w, bool weight) {
  fl_type t = {.dtype = FL_F32, .rank = pick(4)};
  int64_t strides[FL_MAX_RANK] = {0};
  static const int64_t sizes[] = {1, 2, 4, 4, 6};
  for (int i = 0; i < t.rank; i++) t.dims[i] = sizes[pick(5)];
  random_strides(&t, 1 + (pick(4) == 0), strides);
  add_given(w, weight, &t, strides);
}

static inline bool try_view(fl_graph *g, fl_vid v, fl_vid *out) {
  fl_type t = g->values.data[v].type;
  fl_attrs a = {0};
  int64_t list[FL_MAX_RANK];
  int axis = t.rank ? pick(t.rank) : 0;
  switch (pick(4)) {
  case 0:
    for (int i = 0; i < t.rank; i++) {
      int j = pick(i + 1);
      list[i] = list[j];
      list[j] = i;
    }
    fl_attr_set_list(&a, "perm", list, t.rank);
    return !fl_graph_op(g, FL_OP_PERMUTE, &v, 1, &a, out);
  case 1:
    if (!t.rank || t.dims[axis] < 2) return false;
    fl_attr_set_int(&a, "axis", 'i', axis);
    fl_attr_set_int(&a, "start", 'i', pick((int)t.dims[axis]));
    fl_attr_set_int(&a, "stop", 'i', t.dims[axis]);
    fl_attr_set_int(&a, "step", 'i', 1 + pick(2));
    return !fl_graph_op(g, FL_OP_SLICE, &v, 1, &a, out);
  case 2:
    if (t.rank > 4) return false;
    list[0] = 1 + pick(3);
    for (int i = 0; i < t.rank; i++) list[i + 1] = t.dims[i] == 1 ? 1 + pick(4) : t.dims[i];
    fl_attr_set_list(&a, "dims", list, t.rank + 1);
    return !fl_graph_op(g, FL_OP_EXPAND, &v, 1, &a, out);
  default:
    list[0] = fl_type_numel(&t);
    if (pick(2) && list[0] % 2 == 0) {
      list[0] /= 2;
      list[1] = 2;
      fl_attr_set_list(&a, "dims", list, 2);
    } else
      fl_attr_set_list(&a, "dims", list, 1);
    return !fl_graph_op(g, FL_OP_RESHAPE, &v, 1, &a, out);
  }
}

/* With a residual if some value fits. */
static inline bool try_matmul(fl_graph *g, const fl_vid *ab, fl_vid *out) {
  fl_vid v[4] = {ab[0], ab[1], FL_NO_VALUE, FL_NO_VALUE};
  const fl_type *in[2] = {&g->values.data[v[0]].type, &g->values.data[v[1]].type};
  fl_attrs a = {0};
  fl_type t;
  fl_attr_set_int(&a, "trans_b", 'b', pick(2));
  fl_attr_set_int(&a, "act", 'a', pick(2) ? FL_ACT_RELU : FL_ACT_NONE);
  fl_status s = fl_infer(FL_OP_MATMUL, in, 2, &a, NULL, &t);
  for (fl_vid r = 0; !s && r < g->values.len; r++)
    if (fl_type_equal(&g->values.data[r].type, &t)) v[3] = r;
  if (!s) s = fl_graph_op(g, FL_OP_MATMUL, v, v[3] == FL_NO_VALUE ? 2 : 4, &a, out);
  bool made = !s;
  fl_status_free(s);
  return made;
}

static inline bool try_node(fl_graph *g, fl_vid *out) {
  static const fl_op binary[] = {FL_OP_ADD, FL_OP_SUB, FL_OP_MUL, FL_OP_MAXIMUM};
  static const fl_op unary[] = {FL_OP_NEG, FL_OP_RELU, FL_OP_TANH};
  fl_vid v[3];
  fl_attrs a = {0};
  fl_status s = NULL;
  for (int i = 0; i < 3; i++) v[i] = (fl_vid)pick((int)g->values.len);
  const fl_type *t = &g->values.data[v[0]].type;
  switch (pick(8)) {
  case 0:
  case 1: s = fl_graph_op(g, unary[pick(3)], v, 1, NULL, out); break;
  case 2:
  case 3: s = fl_graph_op(g, binary[pick(4)], v, 2, NULL, out); break;
  case 4: return try_matmul(g, v, out);
  case 5:
    if (!t->rank) return false;
    fl_attr_set_int(&a, "axis", 'i', pick(t->rank));
    if (pick(2)) v[1] = v[0];
    s = fl_graph_op(g, FL_OP_CAT, v, pick(2) ? 2 : 3, &a, out);
    break;
  case 6:
    if (!t->rank) return false;
    fl_attr_set_list(&a, "axes", (int64_t[]){pick(t->rank)}, 1);
    fl_attr_set_int(&a, "keepdim", 'b', 1);
    s = fl_graph_op(g, FL_OP_SUM, v, 1, &a, out);
    break;
  default: return try_view(g, v[0], out);
  }
  bool made = !s;
  fl_status_free(s);
  return made;
}

/* --- networks of images --- */

static inline fl_vid add_image(world *w) {
  fl_type t = fl_type_make(FL_F32, 4, (int64_t[]){1 + pick(2), pick(2) ? 3 : 8, 5 + pick(5), 5 + pick(5)});
  int64_t strides[FL_MAX_RANK];
  if (pick(2))
    fl_strides_contiguous(&t, strides);
  else
    fl_strides_channels_last(&t, strides);
  return add_given(w, false, &t, strides);
}

static inline fl_vid add_weight(world *w, int rank, int64_t a, int64_t b, int64_t c, int64_t d, bool positive) {
  fl_type t = fl_type_make(FL_F32, rank, (int64_t[]){a, b, c, d});
  int64_t strides[FL_MAX_RANK];
  fl_strides_contiguous(&t, strides);
  w->positive[w->n_given] = positive;
  return add_given(w, true, &t, strides);
}

static inline fl_status add_conv(world *w, fl_vid x, fl_vid *out) {
  int64_t c = w->g->values.data[x].type.dims[1], k = pick(2) ? 3 : 1, stride = pick(4) ? 1 : 2;
  int64_t groups = pick(4) ? 1 : c, channels = groups == 1 ? (int64_t[]){4, 8, 16, 33}[pick(4)] : c;
  fl_vid in[3] = {x, add_weight(w, 4, channels, c / groups, k, k, false), FL_NO_VALUE};
  if (pick(2)) in[2] = add_weight(w, 1, channels, 0, 0, 0, false);
  fl_attrs a = {0};
  fl_attr_set_list(&a, "stride", (int64_t[]){stride, stride}, 2);
  fl_attr_set_list(&a, "pad", (int64_t[]){k / 2, k / 2, k / 2, k / 2}, 4);
  fl_attr_set_list(&a, "dilation", (int64_t[]){1, 1}, 2);
  fl_attr_set_int(&a, "groups", 'i', groups);
  return fl_graph_op(w->g, FL_OP_CONV2D, in, 3, &a, out);
}

static inline fl_status add_batch_norm(world *w, fl_vid x, fl_vid *out) {
  int64_t c = w->g->values.data[x].type.dims[1];
  fl_attrs a = {0};
  fl_attr_set_float(&a, "eps", 1e-3);
  fl_vid in[5] = {x};
  for (int i = 1; i < 5; i++) in[i] = add_weight(w, 1, c, 0, 0, 0, i == 4);
  return fl_graph_op(w->g, FL_OP_BATCH_NORM, in, 5, &a, out);
}

/* An image as late as possible: networks are deep, not wide. */
static inline fl_vid pick_image(const world *w) {
  for (size_t i = w->g->values.len; i-- > 0;)
    if (w->g->values.data[i].type.rank == 4 && w->g->values.data[i].kind != FL_VALUE_WEIGHT && pick(4))
      return (fl_vid)i;
  return 0;
}

static inline bool try_image_node(world *w) {
  fl_vid v[2] = {pick_image(w), pick_image(w)}, out;
  const fl_type *t[2] = {&w->g->values.data[v[0]].type, &w->g->values.data[v[1]].type};
  fl_attrs a = {0};
  fl_status s = NULL;
  switch (pick(8)) {
  case 0:
  case 1:
  case 2: s = add_conv(w, v[0], &out); break;
  case 3:
  case 4: s = add_batch_norm(w, v[0], &out); break;
  case 5: s = fl_graph_op(w->g, FL_OP_RELU, v, 1, NULL, &out); break;
  case 6:
    if (!fl_type_equal(t[0], t[1])) return false;
    s = fl_graph_op(w->g, FL_OP_ADD, v, 2, NULL, &out);
    break;
  default:
    if (pick(2)) v[1] = v[0];
    fl_attr_set_int(&a, "axis", 'i', 1);
    s = fl_graph_op(w->g, FL_OP_CAT, v, 2, &a, &out);
  }
  bool made = !s;
  fl_status_free(s);
  return made;
}

/* --- worlds --- */

static inline void add_nodes(world *w, bool images) {
  fl_vid v;
  for (int i = 0; i < 4 && !images; i++) add_random_given(w, false);
  for (int i = 0; i < 3 && !images; i++) add_random_given(w, true);
  for (int i = 0; i < 2 && images; i++) add_image(w);
  FL_CHECK_OK(fl_graph_scalar(w->g, FL_F32, 0.75, &v));
  for (int made = 0, tries = 0; made < MAX_NODES && tries < 400; tries++) {
    if (fl_type_numel(&w->g->values.data[w->g->values.len - 1].type) > (images ? 6000 : 3000)) break;
    made += images ? try_image_node(w) : try_node(w->g, &v);
  }
}

static inline void make_world(world *w, bool images) {
  *w = (world){0};
  FL_CHECK_OK(fl_graph_create(&w->g));
  add_nodes(w, images);
  fl_vid v;
  int n_out = 1 + pick(MAX_OUT);
  for (int i = 0; i < n_out; i++) {
    v = (fl_vid)(w->g->values.len - 1 - (size_t)pick(i < 2 ? 3 : (int)w->g->values.len));
    random_strides(&w->g->values.data[v].type, 1, w->out_strides[i]);
    FL_CHECK_OK(fl_graph_output(w->g, v));
  }
  w->naive = (naive){w->g, calloc(w->g->values.len, sizeof(double *))};
  for (fl_vid i = 0; i < w->g->values.len; i++) {
    const fl_value *value = &w->g->values.data[i];
    if (value->kind != FL_VALUE_RESULT)
      w->naive.values[i] = calloc((size_t)fl_type_numel(&value->type) + 1, sizeof(double));
    if (value->kind == FL_VALUE_LITERAL) w->naive.values[i][0] = 0.75;
  }
  for (int i = 0; i < w->n_given; i++) fill(w, i);
}

/* n_values: how many the graph had when the world was made. */
static inline void free_world(world *w, size_t n_values) {
  for (size_t i = 0; i < n_values; i++) free(w->naive.values[i]);
  free(w->naive.values);
  for (int i = 0; i < w->n_given; i++) free(w->memory[i]);
  fl_graph_destroy(w->g);
}

/* Inputs stand first among the given, in the order of the graph's. */
static inline const void *const *inputs_of(const world *w) { return (const void *const *)w->memory; }
static inline const void *const *weights_of(const world *w) { return (const void *const *)w->memory + w->n_inputs; }

/* Runs the engine on fresh output memory; the number of elements that are not the naive evaluator's. */
static inline int count_wrong(const world *w, fl_engine *e) {
  float *outputs[MAX_OUT];
  int wrong = 0;
  for (size_t i = 0; i < w->g->outputs.len; i++) {
    size_t bytes = fl_type_bytes(&w->g->values.data[w->g->outputs.data[i]].type);
    outputs[i] = malloc(bytes + 1);
    memset(outputs[i], 0xff, bytes);
  }
  fl_status s = fl_engine_run(e, inputs_of(w), (void *const *)outputs);
  wrong += s != NULL;
  fl_status_free(s);
  for (size_t i = 0; i < w->g->outputs.len; i++) {
    const fl_type *t = &w->g->values.data[w->g->outputs.data[i]].type;
    const double *expect = w->naive.values[w->g->outputs.data[i]];
    int64_t n = fl_type_numel(t), at[FL_MAX_RANK];
    double scale = 1;
    for (int64_t k = 0; k < n; k++) scale = fabs(expect[k]) > scale ? fabs(expect[k]) : scale;
    for (int64_t k = 0; k < n; k++) {
      int64_t offset = 0;
      naive_unravel(t, k, at);
      for (int a = 0; a < t->rank; a++) offset += at[a] * w->out_strides[i][a];
      wrong += !(fabs(outputs[i][offset] - expect[k]) <= 1e-4 * scale);
    }
    free(outputs[i]);
  }
  return wrong;
}

#endif
