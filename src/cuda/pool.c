/* Pooling of channels-last images, and the mean of whole images. */
#include <string.h>

#include "cuda/sources.h"
#include "cuda/writer.h"

enum { BLOCK = 128, MAX_SHARES = 16, FEW_BLOCKS = 264 };

static const char *plan_image(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const fl_tensor *x = &p->in[0];
  fl_dtype t = x->type.dtype;
  const char *why = fl_cuda_plan_base(p, arena, plan);
  if (why) return why;
  if (x->type.rank != 4 || (t != FL_F16 && t != FL_BF16 && t != FL_F32)) return "images of f16, bf16 or f32 only";
  if (fl_is_contiguous(&x->type, x->strides) || !fl_is_channels_last(&x->type, x->strides))
    return "the image is not channels-last";
  if (fl_type_numel(&x->type) == 0 || fl_type_numel(&x->type) > INT32_MAX) return "the image is empty or too large";
  return NULL;
}

/* Channels that a thread loads at once. */
static int width_of(const fl_tensor *x, const void *y) {
  int size = (int)fl_dtype_size(x->type.dtype), v = 16 / size;
  while (v > 1 && (x->type.dims[1] % v || ((uintptr_t)x->data | (uintptr_t)y) % (uintptr_t)(v * size))) v /= 2;
  return v;
}

const char *fl_cuda_plan_pool(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = plan_image(p, arena, plan);
  if (why) return why;
  fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
  plan->strided_out = true;
  return NULL;
}

static void write_window(fl_cuda_writer *w, const fl_attrs *attrs, int kind) {
  static const char *const names[][2] = {{"KH", "KW"}, {"SH", "SW"}, {"TOP", "LEFT"}, {"DH", "DW"}};
  static const char *const keys[] = {"kernel", "stride", "pad", "dilation"};
  fl_cuda_write_number(w, "KIND", kind);
  for (int i = 0; i < 4 && kind != 2; i++) {
    int n;
    const int64_t *v = fl_attr_list(attrs, keys[i], &n);
    for (int k = 0; k < 2; k++) fl_cuda_write_number(w, names[i][k], v ? v[k] : 1);
  }
  if (kind != 1) return;
  fl_cuda_write_number(w, "INCLUDE_PAD", fl_attr_int(attrs, "include_pad", 1) != 0);
  fl_cuda_write_number(w, "DIVISOR", fl_attr_int(attrs, "divisor", 0));
}

void fl_cuda_run_pool(const fl_run_args *a) {
  static const char *const dims[] = {"N", "C", "H", "W"};
  const fl_cuda_params *q = a->params;
  const fl_tensor *x = &a->in[0], *y = &a->out[0];
  int v = width_of(x, y->data);
  while (v > 1 && (y->strides[0] % v || y->strides[2] % v || y->strides[3] % v)) v /= 2;
  fl_cuda_writer w = {0};
  fl_cuda_write_pointer(&w, x->data);
  fl_cuda_write_pointer(&w, y->data);
  fl_cuda_write_pointer(&w, a->fault);
  fl_text_add(&w.text, "typedef %s T;\n", fl_cg_storage(x->type.dtype));
  fl_cuda_write_number(&w, "V", v);
  fl_cuda_write_number(&w, "BLOCK", BLOCK);
  write_window(&w, &q->attrs, q->op == FL_OP_MAX_POOL2D ? 0 : q->op == FL_OP_AVG_POOL2D ? 1 : 2);
  for (int i = 0; i < 4; i++) fl_cuda_write_argument(&w, dims[i], x->type.dims[i]);
  fl_cuda_write_argument(&w, "OH", y->type.dims[2]);
  fl_cuda_write_argument(&w, "OW", y->type.dims[3]);
  fl_cuda_write_argument(&w, "YN", y->strides[0]);
  fl_cuda_write_argument(&w, "YH", y->strides[2]);
  fl_cuda_write_argument(&w, "YW", y->strides[3]);
  fl_cuda_write_launch(&w, a, fl_cuda_source_pool, (fl_type_numel(&y->type) / v + BLOCK - 1) / BLOCK, BLOCK, 0);
}

/* --- the mean of an image --- */

typedef struct split {
  int v, vx, vy, shares;
  int64_t across; /* blocks over the channels */
} split;

static split split_of(const fl_tensor *x, const void *y) {
  const int64_t *d = x->type.dims, pixels = d[2] * d[3];
  split s = {.v = width_of(x, y), .vx = 1, .shares = 1};
  int64_t vectors = d[1] / s.v;
  while (s.vx < 16 && s.vx < vectors) s.vx *= 2;
  s.vy = 256 / s.vx;
  while (s.vy > 1 && s.vy > pixels) s.vy /= 2;
  s.across = (vectors + s.vx - 1) / s.vx;
  while (s.shares < MAX_SHARES && s.across * d[0] * s.shares < FEW_BLOCKS && pixels >= 8 * s.vy * s.shares)
    s.shares *= 2;
  return s;
}

const char *fl_cuda_plan_image_mean(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  int n;
  const char *why = plan_image(p, arena, plan);
  if (why) return why;
  const int64_t *axes = fl_attr_list(p->attrs, "axes", &n);
  if (n != 2 || axes[0] != 2 || axes[1] != 3) return "not the mean of an image";
  if (p->out[0].dtype != p->in[0].type.dtype) return "the mean has another type";
  plan->scratch_bytes = (size_t)(MAX_SHARES * p->in[0].type.dims[0] * p->in[0].type.dims[1]) * sizeof(float);
  return NULL;
}

static void write_mean(fl_cuda_writer *w, const fl_run_args *a, const void *from, const void *to, bool whole) {
  const fl_type *t = &a->in[0].type;
  fl_cuda_write_pointer(w, from);
  fl_cuda_write_pointer(w, to);
  fl_cuda_write_pointer(w, a->fault);
  fl_text_add(&w->text, "typedef %s T;\ntypedef %s U;\n", fl_cg_storage(t->dtype),
              whole ? fl_cg_storage(t->dtype) : "float");
  fl_cuda_write_float(w, "SCALE", whole ? 1.0 / (double)(t->dims[2] * t->dims[3]) : 1);
}

void fl_cuda_run_image_mean(const fl_run_args *a) {
  const fl_tensor *x = &a->in[0];
  const int64_t *d = x->type.dims;
  split s = split_of(x, a->out[0].data);
  fl_cuda_writer w = {0};
  bool whole = s.shares == 1;
  write_mean(&w, a, x->data, whole ? a->out[0].data : a->scratch, whole);
  fl_cuda_write_number(&w, "V", s.v);
  fl_cuda_write_number(&w, "VX", s.vx);
  fl_cuda_write_number(&w, "VY", s.vy);
  fl_cuda_write_argument(&w, "N", d[0]);
  fl_cuda_write_argument(&w, "C", d[1]);
  fl_cuda_write_argument(&w, "PIXELS", d[2] * d[3]);
  fl_cuda_write_argument(&w, "EACH", (d[2] * d[3] + s.shares - 1) / s.shares);
  fl_cuda_write_launch(&w, a, fl_cuda_source_image_mean, s.across * d[0] * s.shares, s.vx * s.vy, 0);
  if (whole) return;
  write_mean(&w, a, a->scratch, a->out[0].data, true);
  fl_cuda_write_number(&w, "SHARES", s.shares);
  fl_cuda_write_number(&w, "BLOCK", BLOCK);
  fl_cuda_write_argument(&w, "COUNT", d[0] * d[1]);
  fl_cuda_write_launch(&w, a, fl_cuda_source_image_mean_end, (d[0] * d[1] + BLOCK - 1) / BLOCK, BLOCK, 0);
}
