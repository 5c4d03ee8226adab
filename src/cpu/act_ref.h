/* Activations of acts.def in double: what the references of products and convolutions, and their tests, apply. */
#ifndef FL_CPU_ACT_REF_H
#define FL_CPU_ACT_REF_H

#include <math.h>

#include "graph/op.h"

static inline double fl_act_ref(double x, fl_act act, double lo, double hi) {
  const double unit = x + 3 < 0 ? 0 : x + 3 > 6 ? 1 : (x + 3) / 6; /* NaN passes through */
  switch (act) {
  case FL_ACT_RELU: return x < 0 ? 0 : x;
  case FL_ACT_CLAMP: x = x < lo ? lo : x; return x > hi ? hi : x;
  case FL_ACT_GELU: return 0.5 * x * (1 + erf(x * 0.70710678118654752440));
  case FL_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
  case FL_ACT_SILU: return x / (1 + exp(-x));
  case FL_ACT_SIGMOID: return 1 / (1 + exp(-x));
  case FL_ACT_TANH: return tanh(x);
  case FL_ACT_HARDSWISH: return x * unit;
  case FL_ACT_HARDSIGMOID: return unit;
  default: return x;
  }
}

#endif
