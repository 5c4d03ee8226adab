#include "cuda/codegen.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *fl_cg_storage(fl_dtype t) {
  switch (t) {
  case FL_F32: return "float";
  case FL_F64: return "double";
  case FL_F16: return "f16";
  case FL_BF16: return "bf16";
  case FL_I64: return "i64";
  case FL_I32: return "int";
  case FL_I16: return "short";
  case FL_I8: return "signed char";
  case FL_U8: return "unsigned char";
  default: return "b8";
  }
}

const char *fl_cg_register(fl_dtype t) { return t == FL_F64 ? "double" : fl_dtype_is_float(t) ? "float" : "i64"; }

void fl_cg_number(fl_text *t, fl_dtype dtype, double v) {
  if (!fl_dtype_is_float(dtype))
    fl_text_add(t, "(i64)%.17g", v);
  else if (v != v)
    fl_text_add(t, "(%s)NOT_A_NUMBER", fl_cg_register(dtype));
  else if (isinf(v))
    fl_text_add(t, "(%s)%sINF", fl_cg_register(dtype), v < 0 ? "-" : "");
  else
    fl_text_add(t, "(%s)%.17g", fl_cg_register(dtype), v);
}

void fl_cg_offset(fl_text *t, const fl_tensor *x, const fl_type *shape) {
  const char *plus = "";
  for (int d = 0; d < x->type.rank; d++) {
    if (x->type.dims[d] == 1 || x->strides[d] == 0) continue;
    fl_text_add(t, "%sc%d * (I)%" PRId64, plus, shape->rank - x->type.rank + d, x->strides[d]);
    plus = " + ";
  }
  if (!*plus) fl_text_add(t, "0");
}

void fl_cg_function(fl_text *t, const char *name, int n, const int64_t *dims, const int64_t *strides) {
  int64_t d[FL_MAX_RANK + 2], s[FL_MAX_RANK + 2], total = 1;
  int m = 0;
  for (int i = 0; i < n; i++) {
    total *= dims[i];
    if (dims[i] == 1) continue;
    if (m && s[m - 1] == strides[i] * dims[i]) {
      d[m - 1] *= dims[i];
      s[m - 1] = strides[i];
    } else {
      d[m] = dims[i];
      s[m++] = strides[i];
    }
  }
  const char *index = total <= INT32_MAX ? "unsigned" : "i64";
  fl_text_add(t, "__device__ inline i64 %s(i64 r) {\n  %s q = (%s)r;\n  i64 o = 0;\n", name, index, index);
  for (int i = m - 1; i > 0; i--)
    fl_text_add(t, "  o += (i64)(q %% %" PRId64 ") * %" PRId64 ";\n  q /= %" PRId64 ";\n", d[i], s[i], d[i]);
  if (m) fl_text_add(t, "  o += (i64)q * %" PRId64 ";\n", s[0]);
  fl_text_add(t, "  return o;\n}\n");
}

void fl_cg_act(fl_text *t, const char *v, fl_act act, double lo, double hi) {
  switch (act) {
  case FL_ACT_RELU: fl_text_add(t, "  %s = %s < 0 ? 0 : %s;\n", v, v, v); break;
  case FL_ACT_CLAMP:
    fl_text_add(t, "  %s = clamp<float>(%s, ", v, v);
    fl_cg_number(t, FL_F32, lo);
    fl_text_add(t, ", ");
    fl_cg_number(t, FL_F32, hi);
    fl_text_add(t, ");\n");
    break;
  case FL_ACT_GELU: fl_text_add(t, "  %s = 0.5f * %s * (1 + erff(%s * 0.70710678f));\n", v, v, v); break;
  case FL_ACT_GELU_TANH:
    fl_text_add(t, "  %s = 0.5f * %s * (1 + tanhf(0.79788456f * (%s + 0.044715f * %s * %s * %s)));\n", v, v, v, v, v,
                v);
    break;
  case FL_ACT_SILU: fl_text_add(t, "  %s = %s / (1 + expf(-%s));\n", v, v, v); break;
  case FL_ACT_SIGMOID: fl_text_add(t, "  %s = 1 / (1 + expf(-%s));\n", v, v); break;
  case FL_ACT_TANH: fl_text_add(t, "  %s = tanhf(%s);\n", v, v); break;
  case FL_ACT_HARDSWISH: fl_text_add(t, "  %s = %s * clamp<float>(%s + 3, 0, 6) / 6;\n", v, v, v); break;
  case FL_ACT_HARDSIGMOID: fl_text_add(t, "  %s = clamp<float>(%s + 3, 0, 6) / 6;\n", v, v); break;
  default: break;
  }
}

/* --- one thread an element --- */

static int64_t reach(const fl_tensor *x) {
  int64_t last = 0;
  for (int d = 0; d < x->type.rank; d++)
    last += (x->type.dims[d] - 1) * (x->strides[d] < 0 ? -x->strides[d] : x->strides[d]);
  return last;
}

static void signature(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, int n_args) {
  fl_text_add(t, "extern \"C\" __global__ void __launch_bounds__(%d) k(", FL_CG_BLOCK);
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i]) fl_text_add(t, "const %s *x%d, ", fl_cg_storage(in[i].type.dtype), i);
  for (int i = 0; i < p->n_out; i++) fl_text_add(t, "%s *y%d, ", fl_cg_storage(out[i].type.dtype), i);
  fl_text_add(t, "int *fault");
  for (int i = 0; i < n_args; i++) fl_text_add(t, ", i64 n%d", i);
  fl_text_add(t, ") {\n  FOLLOW;\n");
}

/* Coordinates c0, c1, ... of thread i, axes closest together in the output's memory fastest; o: its place there. */
static void coordinates(fl_text *t, const fl_tensor *out) {
  int order[FL_MAX_RANK], n = 0;
  for (int d = 0; d < out->type.rank; d++) {
    int at = n++;
    for (; at > 0 && out->strides[order[at - 1]] < out->strides[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  fl_text_add(t, "  const I i = (I)blockIdx.x * %d + threadIdx.x;\n  if (i >= (I)%" PRId64 ") return;\n  I q = i;\n",
              FL_CG_BLOCK, fl_type_numel(&out->type));
  for (int k = n - 1; k >= 0; k--) {
    int d = order[k];
    int64_t dim = out->type.dims[d];
    if (dim == 1)
      fl_text_add(t, "  const I c%d = 0;\n", d);
    else if (k == 0)
      fl_text_add(t, "  const I c%d = q;\n", d);
    else
      fl_text_add(t, "  const I c%d = q %% (I)%" PRId64 ";\n  q /= (I)%" PRId64 ";\n", d, dim, dim);
  }
  fl_text_add(t, "  const I o = ");
  fl_cg_offset(t, out, &out->type);
  fl_text_add(t, ";\n");
}

/* --- several neighbours a thread, for pointwise groups --- */

enum { MAX_TENSORS = FL_PW_MAX_INPUTS + FL_PW_MAX_OUTPUTS };

/* Axes in the order of the output's memory, closest elements last, neighbours merged; strides of every operand, inputs
 * first. */
typedef struct loops {
  int n, n_tensors, width;
  int64_t dims[FL_MAX_RANK], strides[MAX_TENSORS][FL_MAX_RANK];
} loops;

static int64_t stride_at(const fl_tensor *x, const fl_type *shape, int d) {
  int at = d - (shape->rank - x->type.rank);
  return at < 0 || x->type.dims[at] == 1 ? 0 : x->strides[at];
}

static void add_loop(loops *l, int64_t dim, const int64_t *strides) {
  bool joins = l->n > 0;
  for (int k = 0; k < l->n_tensors && joins; k++) joins = l->strides[k][l->n - 1] == strides[k] * dim;
  if (!joins) l->n++;
  l->dims[l->n - 1] = joins ? l->dims[l->n - 1] * dim : dim;
  for (int k = 0; k < l->n_tensors; k++) l->strides[k][l->n - 1] = strides[k];
}

static void make_loops(const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, loops *l) {
  const fl_type *shape = &out[0].type;
  int order[FL_MAX_RANK], n = 0;
  *l = (loops){.n_tensors = p->n_in + p->n_out, .width = 1};
  for (int d = 0; d < shape->rank; d++) {
    int at = n;
    if (shape->dims[d] == 1) continue;
    for (n++; at > 0 && out[0].strides[order[at - 1]] < out[0].strides[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  for (int i = 0; i < n; i++) {
    int64_t strides[MAX_TENSORS];
    for (int k = 0; k < l->n_tensors; k++)
      strides[k] = stride_at(k < p->n_in ? &in[k] : &out[k - p->n_in], shape, order[i]);
    add_loop(l, shape->dims[order[i]], strides);
  }
}

/* The most that fits `width` neighbours of an operand which has them adjacent; all of them may also be one element. */
static int64_t narrow(const loops *l, int k, const fl_tensor *x, int64_t width) {
  int64_t inner = l->strides[k][l->n - 1];
  if (inner == 0) return width;
  if (inner != 1) return 1;
  for (int i = 0; i + 1 < l->n; i++)
    while (width > 1 && l->strides[k][i] % width) width /= 2;
  while (width > 1 && (uintptr_t)x->data % ((size_t)width * fl_dtype_size(x->type.dtype))) width /= 2;
  return width;
}

/* Elements that a thread computes: what 16 bytes of the largest type hold, if operands lie so. */
static int width_of(const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, loops *l) {
  size_t largest = 1;
  if (p->op != FL_OP_POINTWISE) return 1;
  make_loops(p, in, out, l);
  if (l->n == 0) return 1;
  for (int k = 0; k < l->n_tensors; k++) {
    size_t size = fl_dtype_size((k < p->n_in ? &in[k] : &out[k - p->n_in])->type.dtype);
    if (size > largest && l->strides[k][l->n - 1]) largest = size;
  }
  int64_t width = (int64_t)(16 / largest);
  while (width > 1 && l->dims[l->n - 1] % width) width /= 2;
  for (int k = 0; k < l->n_tensors; k++) width = narrow(l, k, k < p->n_in ? &in[k] : &out[k - p->n_in], width);
  for (int i = 0; i < p->n_out; i++)
    if (l->strides[p->n_in + i][l->n - 1] != 1) return 1;
  return l->width = (int)width;
}

/* One or two loops: what a division more costs is little beside a kernel more to compile. */
static bool takes_args(const loops *l) { return l->n <= 2; }

/* The number of threads, the threads of a row, and by operand what lies between rows. */
static void make_args(const loops *l, fl_cg_launch *launch) {
  int64_t total = 1;
  for (int i = 0; i < l->n; i++) total *= l->dims[i];
  launch->args[launch->n_args++] = total / l->width;
  if (l->n < 2) return;
  launch->args[launch->n_args++] = l->dims[1] / l->width;
  for (int k = 0; k < l->n_tensors; k++)
    if (l->strides[k][0]) launch->args[launch->n_args++] = l->strides[k][0];
}

/* Coordinates a0, a1, ... of the thread's neighbours in the loops. */
static void loop_coordinates(fl_text *t, const loops *l) {
  int64_t total = 1;
  fl_text_add(t, "  const I i = (I)blockIdx.x * %d + threadIdx.x;\n", FL_CG_BLOCK);
  if (takes_args(l)) {
    fl_text_add(t, "  if (i >= (I)n0) return;\n");
    fl_text_add(t, l->n < 2 ? "  const I a0 = i;\n" : "  const I a0 = (U)i / (U)n1, a1 = i - a0 * (I)n1;\n");
    return;
  }
  for (int i = 0; i < l->n; i++) total *= l->dims[i];
  fl_text_add(t, "  if (i >= (I)%" PRId64 ") return;\n  I q = i;\n", total / l->width);
  for (int i = l->n - 1; i > 0; i--) {
    int64_t dim = i == l->n - 1 ? l->dims[i] / l->width : l->dims[i];
    fl_text_add(t, "  const I a%d = q %% (I)%" PRId64 ";\n  q /= (I)%" PRId64 ";\n", i, dim, dim);
  }
  fl_text_add(t, "  const I a0 = q;\n");
}

static void loop_offset(fl_text *t, const loops *l, int k) {
  const char *plus = "";
  int arg = 2; /* of the operand's rows */
  for (int j = 0; j < k; j++) arg += l->strides[j][0] != 0;
  for (int i = 0; i < l->n; i++) {
    int64_t stride = l->strides[k][i] * (i == l->n - 1 ? l->width : 1);
    if (!stride) continue;
    if (l->n == 2 && i == 0)
      fl_text_add(t, "a0 * (I)n%d", arg);
    else
      fl_text_add(t, "%sa%d * (I)%" PRId64, plus, i, stride);
    plus = " + ";
  }
  if (!*plus) fl_text_add(t, "0");
}

static void wide_body(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, const loops *l) {
  char names[FL_PW_MAX_INPUTS][24];
  const char *inputs[FL_PW_MAX_INPUTS];
  loop_coordinates(t, l);
  for (int i = 0; i < p->n_in; i++) {
    const char *type = fl_cg_storage(in[i].type.dtype);
    bool one = l->strides[i][l->n - 1] == 0;
    if (one)
      fl_text_add(t, "  const %s v%d = x%d[", type, i, i);
    else
      fl_text_add(t, "  const pack<%s, %d> v%d = *(const pack<%s, %d> *)&x%d[", type, l->width, i, type, l->width, i);
    loop_offset(t, l, i);
    fl_text_add(t, "];\n");
    snprintf(names[i], sizeof names[i], one ? "ld(v%d)" : "ld(v%d.x[e])", i);
    inputs[i] = names[i];
  }
  for (int i = 0; i < p->n_out; i++)
    fl_text_add(t, "  pack<%s, %d> w%d;\n", fl_cg_storage(out[i].type.dtype), l->width, i);
  fl_text_add(t, "#pragma unroll\n  for (int e = 0; e < %d; e++) {\n", l->width);
  fl_cg_program(t, &p->program, inputs);
  for (int i = 0; i < p->n_out; i++) fl_text_add(t, "  st(w%d.x[e], r%d);\n", i, p->program.outputs[i]);
  fl_text_add(t, "  }\n");
  for (int i = 0; i < p->n_out; i++) {
    fl_text_add(t, "  *(pack<%s, %d> *)&y%d[", fl_cg_storage(out[i].type.dtype), l->width, i);
    loop_offset(t, l, p->n_in + i);
    fl_text_add(t, "] = w%d;\n", i);
  }
}

void fl_cg_map(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out,
               fl_cg_launch *out_launch) {
  int64_t far = fl_type_numel(&out[0].type) + FL_CG_BLOCK;
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && reach(&in[i]) > far) far = reach(&in[i]);
  for (int i = 0; i < p->n_out; i++)
    if (reach(&out[i]) > far) far = reach(&out[i]);
  loops l = {.width = 1};
  int width = width_of(p, in, out, &l);
  bool small = far < INT32_MAX;
  *out_launch = (fl_cg_launch){.grid = (fl_type_numel(&out[0].type) / width + FL_CG_BLOCK - 1) / FL_CG_BLOCK};
  if (width > 1 && takes_args(&l)) make_args(&l, out_launch);
  fl_text_add(t, "typedef %s I;\ntypedef %s U;\n", small ? "int" : "i64", small ? "unsigned" : "unsigned long long");
  signature(t, p, in, out, out_launch->n_args);
  if (width > 1)
    wide_body(t, p, in, out, &l);
  else {
    coordinates(t, &out[0]);
    fl_cg_body(t, p, in, out);
  }
  fl_text_add(t, "}\n");
}
