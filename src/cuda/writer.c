#include "cuda/writer.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cuda/nvrtc.h"

static void add_arg(fl_cuda_writer *w, void *arg) {
  if (w->n_args == FL_CUDA_MAX_ARGS)
    w->text.failed = true;
  else
    w->args[w->n_args++] = arg;
}

void fl_cuda_write_pointer(fl_cuda_writer *w, const void *p) { add_arg(w, (void *)(uintptr_t)p); }

void fl_cuda_write_number(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_text_add(&w->text, "#define %s %" PRId64 "\n", name, v);
}

void fl_cuda_write_argument(fl_cuda_writer *w, const char *name, int64_t v) {
  fl_text_add(&w->text, "#define %s ((int)p_%s)\n", name, name);
  fl_text_add(&w->names, ", i64 p_%s", name);
  add_arg(w, (void *)(uintptr_t)(uint64_t)v);
}

static void float_argument(fl_cuda_writer *w, const char *name, double v) {
  float f = (float)v;
  int32_t bits;
  memcpy(&bits, &f, sizeof bits);
  fl_text_add(&w->text, "#define %s __int_as_float((int)p_%s)\n", name, name);
  fl_text_add(&w->names, ", i64 p_%s", name);
  add_arg(w, (void *)(uintptr_t)(uint32_t)bits);
}

/* Shorter forms, exact enough for a result of 16 bits (prelude.cu). NULL: none. */
static const char *short_form(fl_act act) {
  switch (act) {
  case FL_ACT_SILU: return "silu_16(v)";
  case FL_ACT_SIGMOID: return "sigmoid_16(v)";
  case FL_ACT_GELU: return "gelu_16(v)";
  case FL_ACT_GELU_TANH: return "gelu_tanh_16(v)";
  case FL_ACT_HARDSWISH: return "(v * clamp<float>(v + 3, 0, 6) * 0.16666667f)";
  case FL_ACT_HARDSIGMOID: return "(clamp<float>(v + 3, 0, 6) * 0.16666667f)";
  default: return NULL;
  }
}

void fl_cuda_write_act(fl_cuda_writer *w, fl_dtype dtype, fl_act act, double lo, double hi) {
  const char *form = dtype == FL_F32 ? NULL : short_form(act);
  if (act == FL_ACT_NONE || act == FL_ACT_RELU || act == FL_ACT_CLAMP) {
    float_argument(w, "LO", act == FL_ACT_CLAMP ? lo : act == FL_ACT_RELU ? 0 : -INFINITY);
    float_argument(w, "HI", act == FL_ACT_CLAMP ? hi : INFINITY);
    fl_text_add(&w->text, "#define ACT(v) clamp<float>(v, LO, HI)\n");
    return;
  }
  fl_text_add(&w->text, "__device__ inline float act(float v) {\n");
  if (form)
    fl_text_add(&w->text, "  v = %s;\n", form);
  else
    fl_cg_act(&w->text, "v", act, lo, hi);
  fl_text_add(&w->text, "  return v;\n}\n#define ACT(v) act(v)\n");
}

void fl_cuda_write_launch(fl_cuda_writer *w, const fl_run_args *a, const char *body, int64_t grid, int block,
                          size_t shared_bytes) {
  fl_text_add(&w->text, "#define PARAMETERS %s\n%s", w->names.data ? w->names.data : "", body);
  if (w->names.failed) w->text.failed = true;
  fl_cuda_launch(a, &w->text, grid, block, shared_bytes, w->args, w->n_args);
  fl_text_free(&w->names);
  *w = (fl_cuda_writer){0};
}
