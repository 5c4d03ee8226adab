/* Packed bytes depend on the kernel, the operand and its form alone: engines for other sizes share them. */
#include "base/test.h"
#include "cpu/kernel_case.h"

enum { ROUNDS = 12000, MAX_ROWS = 512, W = 1 };
static int compared[MAX_ROWS], differed[MAX_ROWS];

/* One weight, and problems around it. */
typedef struct family {
  fl_op op;
  int rank;
  int64_t dims[4], strides[4];
  int order;
  fl_dtype dtype;
} family;

static int64_t one_of(const int64_t *v, int n) { return v[kcase_below(n)]; }

static family any_family(void) {
  static const fl_op ops[] = {FL_OP_CONV2D, FL_OP_CONV2D, FL_OP_MATMUL, FL_OP_GROUPED_MATMUL};
  static const int64_t small[] = {1, 2, 3, 4, 8, 16, 20, 33}, windows[] = {1, 3, 3, 5};
  family f = {.op = ops[kcase_below(4)], .dtype = FL_F32};
  f.rank = f.op == FL_OP_CONV2D ? 4 : f.op == FL_OP_MATMUL ? 2 : 3;
  for (int i = 0; i < f.rank; i++) f.dims[i] = one_of(small, 8);
  if (f.op == FL_OP_CONV2D) f.dims[2] = f.dims[3] = one_of(windows, 4);
  if (f.op == FL_OP_CONV2D && kcase_below(4) == 0) f.dims[1] = 1;    /* depthwise, and many groups */
  if (f.op == FL_OP_MATMUL && kcase_below(2)) f.dims[1] = f.dims[0]; /* transposed or not */
  if (f.op == FL_OP_MATMUL && kcase_below(3) == 0) f.dtype = FL_BF16;
  fl_type t = fl_type_make(f.dtype, f.rank, f.dims);
  fl_strides_contiguous(&t, f.strides);
  if (f.op == FL_OP_CONV2D && kcase_below(2)) fl_strides_channels_last(&t, f.strides);
  return f;
}

static void conv_around(kcase *c, const family *f, const fl_tensor *w) {
  int64_t groups = kcase_below(2) ? 1 : kcase_below(3) ? f->dims[0] : 1 + kcase_below(4);
  int64_t dims[4] = {1 + kcase_below(2), f->dims[1] * groups, 6 + kcase_below(20), 6 + kcase_below(20)}, nhwc[4];
  fl_type t = fl_type_make(FL_F32, 4, dims);
  fl_strides_channels_last(&t, nhwc);
  kcase_in(c, FL_F32, 4, dims, kcase_below(2) ? nhwc : NULL);
  c->problem.in[c->problem.n_in++] = *w;
  const int64_t pad = kcase_below(3), stride = 1 + (kcase_below(3) == 0), dilation = 1 + (kcase_below(5) == 0);
  kcase_list(c, "stride", stride, stride);
  kcase_list(c, "dilation", dilation, dilation);
  kcase_list(c, "pad", pad, pad, pad, pad);
  kcase_int(c, "groups", groups);
}

static void product_around(kcase *c, const family *f, const fl_tensor *w) {
  bool trans = kcase_below(2);
  int64_t dims[3] = {1 + kcase_below(3), 1 + kcase_below(40), f->dims[trans ? 1 : 0]};
  int skip = (int)kcase_below(2);
  kcase_in(c, f->dtype, 3 - skip, dims + skip, NULL);
  c->problem.in[c->problem.n_in++] = *w;
  kcase_bool(c, "trans_b", trans);
}

static void groups_around(kcase *c, const family *f, const fl_tensor *w) {
  int64_t dims[2] = {1 + kcase_below(40), f->dims[1]};
  kcase_in(c, FL_F32, 2, dims, NULL);
  c->problem.in[c->problem.n_in++] = *w;
  kcase_in(c, FL_I64, 1, f->dims, NULL);
}

/* The weight is of the first case; others borrow it. NULL where the operator's rules reject the sizes. */
static kcase *any_case(const family *f, const fl_tensor *w) {
  kcase *c = kcase_new(f->op);
  if (f->op == FL_OP_CONV2D)
    conv_around(c, f, w);
  else if (f->op == FL_OP_MATMUL)
    product_around(c, f, w);
  else
    groups_around(c, f, w);
  const fl_type *types[3] = {0};
  for (int i = 0; i < c->problem.n_in; i++) types[i] = &c->problem.in[i].type;
  c->problem.constant[W] = true;
  c->problem.threads = 1 + (int)kcase_below(3);
  fl_status s = fl_infer(f->op, types, c->problem.n_in, &c->attrs, NULL, c->problem.out);
  bool ok = !s;
  fl_status_free(s);
  if (!ok) kcase_free(c);
  return ok ? c : NULL;
}

typedef struct packed {
  fl_kernel_plan plan;
  char *bytes; /* NULL: the kernel does not pack it */
} packed;

static packed pack(const kcase *c, const fl_kernel *k, const float *scale) {
  packed out = {.plan.in_place = -1};
  fl_arena arena = {0};
  for (int o = 0; o < c->problem.n_out; o++) fl_strides_contiguous(&c->problem.out[o], out.plan.out_strides[o]);
  if (!k->plan(&c->problem, &arena, &out.plan) && out.plan.packed_bytes[W]) {
    out.bytes = calloc(1, out.plan.packed_bytes[W]);
    fl_pack_args a = {.problem = &c->problem,
                      .params = out.plan.params,
                      .operand = W,
                      .src = &c->problem.in[W],
                      .scale = out.plan.pack_scales ? scale : NULL,
                      .dst = out.bytes};
    k->pack(&a, 0, out.plan.pack_pieces);
  }
  fl_arena_release(&arena);
  return out;
}

static void compare(const kcase *a, const kcase *b, int id, const float *scale) {
  const fl_kernel *k = fl_kernel_get(id);
  packed x = pack(a, k, scale), y = pack(b, k, scale);
  if (x.bytes && y.bytes) {
    bool same = !memcmp(x.plan.pack_form, y.plan.pack_form, sizeof x.plan.pack_form);
    size_t bytes = x.plan.packed_bytes[W];
    if (same)
      FL_CHECK_MSG(bytes == y.plan.packed_bytes[W] && x.plan.pack_pieces == y.plan.pack_pieces &&
                       !memcmp(x.bytes, y.bytes, bytes),
                   "%s packs otherwise in the same form", k->name);
    compared[id] += same;
    differed[id] += !same;
  }
  free(x.bytes);
  free(y.bytes);
}

static void one_family(void) {
  family f = any_family();
  kcase *holder = kcase_new(f.op);
  fl_tensor w = *kcase_in(holder, f.dtype, f.rank, f.dims, f.strides);
  float scale[64];
  for (int i = 0; i < 64; i++) scale[i] = (float)kcase_uniform() + 2;
  const float *by = kcase_below(2) ? scale : NULL;
  kcase *a = any_case(&f, &w), *b = any_case(&f, &w);
  for (int id = 0; a && b && id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->op == f.op && k->pack && k->isa <= fl_cpu_isa()) compare(a, b, id, by);
  }
  if (a) kcase_free(a);
  if (b) kcase_free(b);
  kcase_free(holder);
}

int main(void) {
  for (int i = 0; i < ROUNDS && fl_test_failed_ < 5; i++) one_family();
  for (int id = 0; id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->pack && k->isa <= fl_cpu_isa())
      FL_CHECK_MSG(compared[id] >= 20, "%s: %d of equal form, %d not", k->name, compared[id], differed[id]);
  }
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
