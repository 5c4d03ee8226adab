/* For tests and benchmarks of kernels: a problem with its operands, served by one kernel as the plan builder would.
 *
 *   kcase c = kcase_make(FL_OP_ADD...); kcase_in(&c, FL_F32, 2, dims, NULL); ...; kcase_infer(&c);
 *   kcase_run(&c, kernel, pool, out) -> NULL, or why the kernel declined; out[] are new tensors, kcase_free_out */
#ifndef FL_CPU_KERNEL_CASE_H
#define FL_CPU_KERNEL_CASE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/kernel.h"
#include "cpu/ref.h"
#include "graph/graph.h"

typedef struct kcase {
  fl_problem problem;
  fl_attrs attrs;
  fl_pw_program program;
  char *block[FL_MAX_OPERANDS];   /* what in[i].data points into */
  int64_t cells[FL_MAX_OPERANDS]; /* elements there */
  int fault;                      /* of the last run */
} kcase;

static uint64_t kcase_seed = 88172645463325252u;
static inline uint64_t kcase_random(void) {
  kcase_seed ^= kcase_seed << 13, kcase_seed ^= kcase_seed >> 7, kcase_seed ^= kcase_seed << 17;
  return kcase_seed;
}
static inline int64_t kcase_below(int64_t n) { return (int64_t)(kcase_random() % (uint64_t)n); }
static inline double kcase_uniform(void) { return (double)(kcase_random() >> 11) / 4503599627370496.0 - 1; } /* -1..1 */

static inline kcase *kcase_new(fl_op op) {
  kcase *c = calloc(1, sizeof *c);
  c->problem.op = op;
  c->problem.attrs = &c->attrs;
  c->problem.program = op == FL_OP_POINTWISE ? &c->program : NULL;
  c->problem.n_out = 1;
  return c;
}

static inline void kcase_free(kcase *c) {
  for (int i = 0; i < FL_MAX_OPERANDS; i++) free(c->block[i]);
  free(c);
}

static inline void kcase_absent(kcase *c) { c->problem.absent[c->problem.n_in++] = true; }

/* Adds an input with these strides (NULL = contiguous; all >= 0), its memory exactly as large as its elements need, so
 * that sanitizers see a read beyond it. Values: floats uniform in -2..2, integers 0..100, bool random. */
static inline fl_tensor *kcase_in(kcase *c, fl_dtype t, int rank, const int64_t *dims, const int64_t *strides) {
  int i = c->problem.n_in++;
  fl_tensor *x = &c->problem.in[i];
  x->type = fl_type_make(t, rank, dims);
  if (strides)
    memcpy(x->strides, strides, (size_t)rank * sizeof *strides);
  else
    fl_strides_contiguous(&x->type, x->strides);
  int64_t last = 0;
  for (int d = 0; d < rank; d++) last += (dims[d] - 1) * x->strides[d];
  int64_t n = fl_type_numel(&x->type) ? last + 1 : 0;
  c->cells[i] = n;
  x->data = c->block[i] = malloc((size_t)(n ? n : 1) * fl_dtype_size(t));
  for (int64_t k = 0; k < n; k++) {
    if (fl_dtype_is_float(t))
      fl_ref_setf(x->data, t, k, 2 * kcase_uniform());
    else
      fl_ref_seti(x->data, t, k, t == FL_BOOL ? kcase_below(2) : kcase_below(100));
  }
  return x;
}

/* Gives an input the values of `v`, in row-major order. */
static inline void kcase_set(fl_tensor *x, const double *v) {
  int64_t at[FL_MAX_RANK] = {0};
  for (int64_t k = 0; k < fl_type_numel(&x->type); k++, fl_ref_next(&x->type, at))
    fl_ref_setf(x->data, x->type.dtype, fl_ref_offset(at, x->strides, x->type.rank), v[k]);
}

static inline double kcase_get(const fl_tensor *x, int64_t flat) {
  int64_t at[FL_MAX_RANK];
  fl_ref_unravel(flat, &x->type, at);
  return fl_ref_getf(x->data, x->type.dtype, fl_ref_offset(at, x->strides, x->type.rank));
}

/* Result types by the graph's own rules. False (and the message on stderr) when they reject the problem. */
static inline bool kcase_infer(kcase *c) {
  const fl_type *types[FL_MAX_OPERANDS] = {0};
  for (int i = 0; i < c->problem.n_in; i++) types[i] = c->problem.absent[i] ? NULL : &c->problem.in[i].type;
  if (c->problem.program) c->problem.n_out = c->program.n_outputs;
  fl_status s = fl_infer(c->problem.op, types, c->problem.n_in, &c->attrs, c->problem.program, c->problem.out);
  if (s) fprintf(stderr, "%s\n", fl_status_message(s));
  bool ok = !s;
  fl_status_free(s);
  return ok;
}

static inline void kcase_free_out(kcase *c, fl_tensor *out) {
  for (int o = 0; o < c->problem.n_out; o++) fl_free_aligned(out[o].data);
}

static inline void kcase_layout(fl_layout layout, const fl_type *t, int64_t *strides, bool *ok) {
  *ok = true;
  if (layout == FL_LAYOUT_CHANNELS_LAST) {
    *ok = fl_is_channels_last(t, strides);
    fl_strides_channels_last(t, strides);
  } else if (layout == FL_LAYOUT_CONTIGUOUS) {
    *ok = fl_is_contiguous(t, strides);
    fl_strides_contiguous(t, strides);
  } else if (layout == FL_LAYOUT_ROWS && t->rank && t->dims[t->rank - 1] != 1 && strides[t->rank - 1] != 1) {
    *ok = false;
    fl_strides_contiguous(t, strides);
  }
}

/* A planned problem, which may run many times. */
typedef struct kready {
  const fl_kernel *kernel;
  fl_arena arena;
  fl_kernel_plan plan;
  fl_tensor in[FL_MAX_OPERANDS];
  void *owned[FL_MAX_OPERANDS]; /* copies and packed blocks */
  void *scratch;
} kready;

static inline const char *kcase_ready(kcase *c, const fl_kernel *k, fl_pool *pool, fl_tensor *out, kready *r) {
  fl_problem *p = &c->problem;
  memset(r, 0, sizeof *r);
  r->kernel = k;
  p->threads = fl_pool_threads(pool);
  r->plan.in_place = -1;
  for (int o = 0; o < p->n_out; o++) fl_strides_contiguous(&p->out[o], r->plan.out_strides[o]);
  const char *why = k->plan(p, &r->arena, &r->plan);
  if (why) {
    fl_arena_release(&r->arena);
    return why;
  }
  for (int i = 0; i < p->n_in; i++) {
    if (p->absent[i]) continue;
    bool ok;
    r->in[i] = p->in[i];
    kcase_layout(r->plan.in_layout[i], &r->in[i].type, r->in[i].strides, &ok);
    size_t bytes = r->plan.packed_bytes[i];
    if (bytes) {
      r->in[i] = p->in[i];
      r->in[i].data = r->owned[i] = fl_malloc_aligned(bytes);
      fl_pack_args a = {.problem = p, .params = r->plan.params, .operand = i, .src = &p->in[i], .dst = r->owned[i]};
      for (int64_t piece = r->plan.pack_pieces; piece-- > 0;) k->pack(&a, piece, piece + 1);
    } else if (!ok) {
      r->in[i].data = r->owned[i] = fl_malloc_aligned(fl_type_bytes(&r->in[i].type));
      fl_copy_strided(&r->in[i], &p->in[i], pool);
    }
  }
  for (int o = 0; o < p->n_out; o++) {
    out[o].type = p->out[o];
    memcpy(out[o].strides, r->plan.out_strides[o], sizeof out[o].strides);
    out[o].data = fl_malloc_aligned(fl_type_bytes(&p->out[o]));
    memset(out[o].data, 0x5a, fl_type_bytes(&p->out[o]));
  }
  r->scratch = r->plan.scratch_bytes ? fl_malloc_aligned(r->plan.scratch_bytes) : NULL;
  if (r->scratch) memset(r->scratch, 0xff, r->plan.scratch_bytes); /* NaN, if read before it is written */
  return NULL;
}

static inline void kcase_exec(kcase *c, kready *r, fl_pool *pool, fl_tensor *out) {
  c->fault = 0;
  fl_run_args a = {
      .params = r->plan.params, .in = r->in, .out = out, .scratch = r->scratch, .pool = pool, .fault = &c->fault};
  r->kernel->run(&a);
}

static inline void kcase_done(kready *r) {
  for (int i = 0; i < FL_MAX_OPERANDS; i++) fl_free_aligned(r->owned[i]);
  fl_free_aligned(r->scratch);
  fl_arena_release(&r->arena);
}

static inline const char *kcase_run(kcase *c, const fl_kernel *k, fl_pool *pool, fl_tensor *out) {
  kready r;
  const char *why = kcase_ready(c, k, pool, out, &r);
  if (why) return why;
  kcase_exec(c, &r, pool, out);
  kcase_done(&r);
  return NULL;
}

/* Attributes and programs in a line. */
static inline void kcase_int(kcase *c, const char *key, int64_t v) { (void)fl_attr_set_int(&c->attrs, key, 'i', v); }
static inline void kcase_bool(kcase *c, const char *key, bool v) { (void)fl_attr_set_int(&c->attrs, key, 'b', v); }
static inline void kcase_float(kcase *c, const char *key, double v) { (void)fl_attr_set_float(&c->attrs, key, v); }
#define kcase_list(c, key, ...)                                                                                        \
  (void)fl_attr_set_list(&(c)->attrs, key, (int64_t[]){__VA_ARGS__}, sizeof(int64_t[]){__VA_ARGS__} / 8)

/* Appends an instruction; returns its register. Call after all inputs are added. */
static inline int kcase_instr(kcase *c, fl_op op, fl_dtype t, int s0, int s1, int s2) {
  fl_pw_program *pr = &c->program;
  pr->n_inputs = c->problem.n_in;
  for (int i = 0; i < pr->n_inputs; i++) pr->in_dtype[i] = c->problem.in[i].type.dtype;
  pr->instrs[pr->n_instrs] = (fl_pw_instr){op, t, {(int16_t)s0, (int16_t)s1, (int16_t)s2}, 0, 0};
  pr->outputs[0] = (int16_t)(pr->n_inputs + pr->n_instrs);
  pr->n_outputs = 1;
  return pr->n_inputs + pr->n_instrs++;
}

#endif
