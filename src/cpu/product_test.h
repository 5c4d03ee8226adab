/* What the tests and benchmarks of products and convolutions share: a problem with its data, served by one kernel as the
 * builder would (layout changes, packing, scratch), and compared with the reference. */
#ifndef FL_CPU_PRODUCT_TEST_H
#define FL_CPU_PRODUCT_TEST_H

#include <math.h>
#include <stdlib.h>

#include "base/test.h"
#include "cpu/kernel.h"

typedef struct product {
  fl_problem p;
  fl_attrs attrs;
  fl_tensor in[4]; /* data owned */
  fl_tensor out;
} product;

static uint32_t product_seed = 12345;
static float product_random(void) {
  product_seed = product_seed * 1664525u + 1013904223u;
  return (float)(int32_t)product_seed / 2147483648.0f;
}

static fl_tensor product_tensor(const fl_type *t, const int64_t *strides) {
  fl_tensor x = {.type = *t};
  memcpy(x.strides, strides, sizeof x.strides);
  int64_t last = 0;
  for (int d = 0; d < t->rank; d++) last += t->dims[d] > 0 ? (t->dims[d] - 1) * strides[d] : 0;
  const size_t floats = (size_t)last + 1;
  float *data = fl_malloc_aligned(floats * sizeof(float));
  for (size_t i = 0; data && i < floats; i++) data[i] = product_random();
  x.data = data;
  return x;
}

/* Operand i of the problem; strides NULL = contiguous. */
static inline void product_operand(product *q, int i, int rank, const int64_t *dims, const int64_t *strides) {
  fl_type t = fl_type_make(FL_F32, rank, dims);
  int64_t s[FL_MAX_RANK] = {0};
  if (strides)
    memcpy(s, strides, (size_t)rank * sizeof *s);
  else
    fl_strides_contiguous(&t, s);
  q->in[i] = product_tensor(&t, s);
  q->p.in[i] = q->in[i];
  q->p.in[i].data = NULL;
  q->p.absent[i] = false;
  if (q->p.n_in <= i) q->p.n_in = i + 1;
}

static inline void product_begin(product *q, fl_op op) {
  memset(q, 0, sizeof *q);
  q->p.op = op;
  q->p.attrs = &q->attrs;
  q->p.n_out = 1;
  q->p.threads = 2;
  for (int i = 0; i < FL_MAX_OPERANDS; i++) q->p.absent[i] = true;
}

static inline void product_act(product *q, fl_act act, double lo, double hi) {
  fl_attr_set_int(&q->attrs, "act", 'a', act);
  fl_attr_set_float(&q->attrs, "act_lo", lo);
  fl_attr_set_float(&q->attrs, "act_hi", hi);
}

static inline void product_end(product *q) {
  for (int i = 0; i < 4; i++) fl_free_aligned(q->in[i].data);
  fl_free_aligned(q->out.data);
}

/* --- one kernel at work --- */

typedef struct product_runner {
  fl_arena arena;
  fl_kernel_plan plan;
  const fl_kernel *kernel;
  fl_tensor in[4], out;
  void *owned[4], *scratch;
  int fault;
} product_runner;

static fl_tensor product_copy_of(const fl_tensor *src, const int64_t *strides) {
  fl_tensor t = product_tensor(&src->type, strides);
  fl_copy_strided(&t, src, NULL);
  return t;
}

static void product_pack(const product_runner *r, const product *q, int i, const fl_tensor *src, const float *scale,
                         void *dst) {
  fl_pack_args a = {.problem = &q->p, .params = r->plan.params, .operand = i, .src = src, .scale = scale, .dst = dst};
  memset(dst, 0, r->plan.packed_bytes[i]);
  r->kernel->pack(&a, 0, r->plan.pack_pieces);
}

/* Weights packed in pieces, backwards, from others that a scale makes the same: every bit must be. */
static void product_check_scales(const product_runner *r, const product *q) {
  fl_tensor w = product_copy_of(&q->in[1], q->in[1].strides);
  const bool rows = fl_attr_int(&q->attrs, "trans_b", 0) != 0;
  const int axis = q->p.op == FL_OP_CONV2D ? 0 : w.type.rank - (rows ? 2 : 1);
  const size_t bytes = r->plan.packed_bytes[1];
  float *scale = fl_malloc_aligned(((size_t)w.type.dims[axis] + 1) * sizeof *scale), *data = w.data;
  char *packed = fl_malloc_aligned(bytes);
  for (int64_t i = 0; i < w.type.dims[axis]; i++) scale[i] = ldexpf(1, (int)(i % 7) - 3);
  for (int64_t i = 0; i < fl_type_numel(&w.type); i++) {
    int64_t flat = i, at = 0, channel = 0;
    for (int d = w.type.rank - 1; d >= 0; flat /= w.type.dims[d], d--) {
      at += flat % w.type.dims[d] * w.strides[d];
      if (d == axis) channel = flat % w.type.dims[d];
    }
    data[at] = data[at] / scale[channel];
  }
  memset(packed, 0, bytes);
  fl_pack_args a = {.problem = &q->p, .params = r->plan.params, .operand = 1, .src = &w, .scale = scale, .dst = packed};
  for (int64_t p = r->plan.pack_pieces; p-- > 0;) r->kernel->pack(&a, p, p + 1);
  FL_CHECK_MSG(!memcmp(packed, r->owned[1], bytes), "%s: weights with a scale", r->kernel->name);
  fl_free_aligned(packed);
  fl_free_aligned(scale);
  fl_free_aligned(w.data);
}

static void product_lay_out(product_runner *r, const product *q, int i) {
  const fl_tensor *src = &q->in[i];
  r->in[i] = *src;
  int64_t s[FL_MAX_RANK] = {0};
  const fl_layout want = r->plan.in_layout[i];
  if (r->plan.packed_bytes[i]) {
    r->owned[i] = fl_malloc_aligned(r->plan.packed_bytes[i]);
    product_pack(r, q, i, src, NULL, r->owned[i]);
    if (i == 1 && r->plan.pack_scales) product_check_scales(r, q);
    r->in[i].data = r->owned[i];
    return;
  }
  if (want == FL_LAYOUT_ANY || (want == FL_LAYOUT_CONTIGUOUS && fl_is_contiguous(&src->type, src->strides)) ||
      (want == FL_LAYOUT_CHANNELS_LAST && fl_is_channels_last(&src->type, src->strides)) ||
      (want == FL_LAYOUT_ROWS && src->strides[src->type.rank - 1] == 1))
    return;
  if (want == FL_LAYOUT_CHANNELS_LAST)
    fl_strides_channels_last(&src->type, s);
  else
    fl_strides_contiguous(&src->type, s);
  r->in[i] = product_copy_of(src, s);
  r->owned[i] = r->in[i].data;
}

/* The kernel's reason when it declines. */
static inline const char *product_prepare(product_runner *r, const product *q, const char *name) {
  memset(r, 0, sizeof *r);
  fl_arena_init(&r->arena);
  const int id = fl_kernel_find(name);
  if (id < 0) return "no such kernel";
  r->kernel = fl_kernel_get(id);
  r->plan.in_place = -1;
  fl_strides_contiguous(&q->p.out[0], r->plan.out_strides[0]);
  const char *why = r->kernel->plan(&q->p, &r->arena, &r->plan);
  if (why) return why;
  for (int i = 0; i < q->p.n_in; i++)
    if (!q->p.absent[i]) product_lay_out(r, q, i);
  r->out = product_tensor(&q->p.out[0], r->plan.out_strides[0]);
  r->scratch = fl_malloc_aligned(r->plan.scratch_bytes + 64);
  return NULL;
}

static inline void product_run(product_runner *r, fl_pool *pool) {
  const fl_run_args args = {
      .params = r->plan.params, .in = r->in, .out = &r->out, .scratch = r->scratch, .pool = pool, .fault = &r->fault};
  r->kernel->run(&args);
}

static inline void product_release(product_runner *r) {
  for (int i = 0; i < 4; i++) fl_free_aligned(r->owned[i]);
  fl_free_aligned(r->out.data);
  fl_free_aligned(r->scratch);
  fl_arena_release(&r->arena);
}

/* Largest difference between two tensors over the largest magnitude; INFINITY where one has NaN and the other not. */
static inline double product_difference(const fl_tensor *got, const fl_tensor *want) {
  double worst = 0, top = 1e-30;
  const int64_t n = fl_type_numel(&got->type);
  for (int64_t i = 0; i < n; i++) {
    int64_t flat = i, g = 0, w = 0;
    for (int d = got->type.rank - 1; d >= 0; d--) {
      const int64_t at = flat % got->type.dims[d];
      flat /= got->type.dims[d];
      g += at * got->strides[d];
      w += at * want->strides[d];
    }
    const double x = ((const float *)got->data)[g], y = ((const float *)want->data)[w];
    if (isnan(x) != isnan(y)) return INFINITY;
    if (isnan(x)) continue;
    worst = fmax(worst, fabs(x - y));
    top = fmax(top, fabs(y));
  }
  return worst / top;
}

/* What rounding allows after sums over k random terms. Activations with a bounded result hide how large the sums were. */
static inline double product_limit(double limit, const fl_attrs *attrs, int64_t k) {
  const fl_act act = (fl_act)fl_attr_int(attrs, "act", FL_ACT_NONE);
  const bool bounded = act == FL_ACT_CLAMP || act == FL_ACT_SIGMOID || act == FL_ACT_TANH || act == FL_ACT_HARDSIGMOID;
  return bounded ? limit * sqrt(1 + (double)k) : limit;
}

/* Runs `name` and `reference` on the problem; in place of the residual too, where the kernel offers that. Negative when
 * the kernel declines. */
static inline double product_error(const product *q, const char *name, const char *reference, fl_pool *pool) {
  product_runner a, b;
  const char *why = product_prepare(&a, q, name), *ref_why = product_prepare(&b, q, reference);
  double error = -1;
  FL_CHECK_MSG(!ref_why, "%s declines: %s", reference, ref_why ? ref_why : "");
  if (!why && !ref_why) {
    product_run(&b, pool);
    product_run(&a, pool);
    error = product_difference(&a.out, &b.out);
    const int at = a.plan.in_place;
    if (at >= 0 && !memcmp(a.in[at].strides, a.out.strides, sizeof(int64_t) * (size_t)a.out.type.rank)) {
      memcpy(a.out.data, a.in[at].data, fl_type_bytes(&a.out.type));
      a.in[at].data = a.out.data;
      product_run(&a, pool);
      error = fmax(error, product_difference(&a.out, &b.out));
    }
  }
  product_release(&a);
  product_release(&b);
  return error;
}

#endif
