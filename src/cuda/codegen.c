#include "cuda/codegen.h"

#include "cuda/writer.h"

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

void fl_cg_offset(fl_cuda_writer *w, const fl_tensor *x, const fl_type *shape) {
  fl_text *t = &w->body;
  const char *plus = "";
  for (int d = 0; d < x->type.rank; d++) {
    if (x->type.dims[d] == 1 || x->strides[d] == 0) continue;
    fl_text_add(t, "%sc%d * ", plus, shape->rank - x->type.rank + d);
    fl_cuda_put_size(w, t, x->strides[d]);
    plus = " + ";
  }
  if (!*plus) fl_text_add(t, "0");
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

static void signature(fl_text *t, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out) {
  fl_text_add(t, "extern \"C\" __global__ void __launch_bounds__(%d) k(", FL_CG_BLOCK);
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i]) fl_text_add(t, "const %s *x%d, ", fl_cg_storage(in[i].type.dtype), i);
  for (int i = 0; i < p->n_out; i++) fl_text_add(t, "%s *y%d, ", fl_cg_storage(out[i].type.dtype), i);
  fl_text_add(t, "int *fault PARAMETERS) {\n  FOLLOW;\n");
}

/* Index i of a thread; there are n. */
static void thread_index(fl_cuda_writer *w, int64_t n) {
  fl_text_add(&w->body, "  const I i = (I)blockIdx.x * %d + threadIdx.x;\n  if (i >= ", FL_CG_BLOCK);
  fl_cuda_put_size(w, &w->body, n);
  fl_text_add(&w->body, ") return;\n");
}

/* Coordinates c0, c1, ... of thread i, axes closest together in the output's memory fastest; o: its place there. */
static void coordinates(fl_cuda_writer *w, const fl_tensor *out) {
  fl_text *t = &w->body;
  int order[FL_MAX_RANK], n = 0;
  char rest[16] = "i"; /* what is left to be divided */
  for (int d = 0; d < out->type.rank; d++) {
    int at = n;
    if (out->type.dims[d] == 1) {
      fl_text_add(t, "  const I c%d = 0;\n", d);
      continue;
    }
    for (n++; at > 0 && out->strides[order[at - 1]] < out->strides[d]; at--) order[at] = order[at - 1];
    order[at] = d;
  }
  for (int k = n - 1; k > 0; k--) {
    int d = order[k];
    fl_text_add(t, "  const I q%d = ", d);
    fl_cuda_put_quotient(w, t, rest, out->type.dims[d]);
    fl_text_add(t, ", c%d = %s - q%d * ", d, rest, d);
    fl_cuda_put_size(w, t, out->type.dims[d]);
    fl_text_add(t, ";\n");
    snprintf(rest, sizeof rest, "q%d", d);
  }
  if (n) fl_text_add(t, "  const I c%d = %s;\n", order[0], rest);
  fl_text_add(t, "  const I o = ");
  fl_cg_offset(w, out, &out->type);
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
static int width_of(const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out, const loops *l) {
  size_t largest = 1;
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
  return (int)width;
}

/* The loops as a thread counts them: `width` neighbours at once. Fills dims and strides. */
static fl_cuda_counted counted_of(const loops *l, int64_t *dims, int64_t strides[][FL_MAX_RANK]) {
  fl_cuda_counted c = {"i", l->n, dims};
  for (int i = 0; i < l->n; i++) {
    int64_t each = i == l->n - 1 ? l->width : 1;
    dims[i] = l->dims[i] / each;
    for (int k = 0; k < l->n_tensors; k++) strides[k][i] = l->strides[k][i] * each;
  }
  if (c.n > 1 && dims[c.n - 1] == 1) c.n--;
  return c;
}

static void wide_body(fl_cuda_writer *w, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out,
                      const loops *l) {
  fl_text *t = &w->body;
  char names[FL_PW_MAX_INPUTS][24];
  const char *inputs[FL_PW_MAX_INPUTS];
  int64_t dims[FL_MAX_RANK], strides[MAX_TENSORS][FL_MAX_RANK];
  fl_cuda_counted c = counted_of(l, dims, strides);
  thread_index(w, fl_type_numel(&out[0].type) / l->width);
  fl_cuda_put_rounds(w, t, &c);
  for (int i = 0; i < p->n_in; i++) {
    const char *type = fl_cg_storage(in[i].type.dtype);
    bool one = l->n == 0 || l->strides[i][l->n - 1] == 0;
    if (one)
      fl_text_add(t, "  const %s v%d = x%d[", type, i, i);
    else
      fl_text_add(t, "  const pack<%s, %d> v%d = *(const pack<%s, %d> *)&x%d[", type, l->width, i, type, l->width, i);
    fl_cuda_put_offset(w, t, &c, strides[i], l->width);
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
    fl_cuda_put_offset(w, t, &c, strides[p->n_in + i], l->width);
    fl_text_add(t, "] = w%d;\n", i);
  }
}

int64_t fl_cg_map(fl_cuda_writer *w, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out) {
  int64_t n = fl_type_numel(&out[0].type), far = n + FL_CUDA_BEYOND;
  loops l = {.width = 1};
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && reach(&in[i]) > far) far = reach(&in[i]);
  for (int i = 0; i < p->n_out; i++)
    if (reach(&out[i]) > far) far = reach(&out[i]);
  fl_cuda_write_index(w, far);
  signature(&w->body, p, in, out);
  if (p->op == FL_OP_POINTWISE) {
    make_loops(p, in, out, &l);
    l.width = width_of(p, in, out, &l);
    wide_body(w, p, in, out, &l);
  } else {
    thread_index(w, n);
    coordinates(w, &out[0]);
    fl_cg_body(w, p, in, out);
  }
  fl_text_add(&w->body, "}\n");
  return (n / l.width + FL_CG_BLOCK - 1) / FL_CG_BLOCK;
}
