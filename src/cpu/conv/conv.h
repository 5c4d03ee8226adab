/* What the convolution kernels share: the problem's geometry. */
#ifndef FL_CPU_CONV_CONV_H
#define FL_CPU_CONV_CONV_H

#include "cpu/kernel.h"

enum { FL_CONV_X, FL_CONV_W, FL_CONV_BIAS, FL_CONV_RESIDUAL };

typedef struct fl_conv {
  int64_t n, c, h, w; /* input */
  int64_t o, oh, ow;  /* result */
  int64_t kh, kw, sh, sw, dh, dw, top, left;
  int64_t groups, cg, og; /* channels of one group */
  bool has_bias, has_residual;
} fl_conv;

fl_conv fl_conv_of(const fl_problem *p);
/* Multiplications of a direct convolution. */
double fl_conv_mults(const fl_conv *c);
/* Why no f32 kernel can serve it, or NULL. */
const char *fl_conv_why_not_f32(const fl_problem *p);
/* Asks for a channels-last result, bias contiguous, and residual as the result, which may overwrite it. Weights may be
 * scaled while they are packed. */
void fl_conv_plan_nhwc(const fl_problem *p, const fl_conv *c, fl_kernel_plan *plan);

/* The rows of one convolution kernel, which every instruction set plans, packs and runs alike but for its own tiles:
 * the file has plan_isa(problem, arena, plan, isa), pack and run. */
#define FL_CONV_KERNEL(kind, suffix, isa_)                                                                             \
  static const char *plan_##suffix(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {                       \
    return plan_isa(p, arena, plan, isa_);                                                                             \
  }                                                                                                                    \
  const fl_kernel fl_kernel_conv2d_##kind##_##suffix = {.name = "conv2d_" #kind "_" #suffix,                           \
                                                        .op = FL_OP_CONV2D,                                            \
                                                        .isa = isa_,                                                   \
                                                        .plan = plan_##suffix,                                         \
                                                        .pack = pack,                                                  \
                                                        .run = run};

#endif
