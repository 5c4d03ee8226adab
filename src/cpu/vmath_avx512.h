/* Elementary functions on a vf (sixteen floats), inline, for files compiled for AVX-512.
 *
 * vf_exp, vf_log, vf_erf, vf_tanh, vf_sigmoid: within 3 ulp over all floats, denormals included; infinities, zeros and
 * NaN as in C. vf_relu, vf_clamp, vf_silu, vf_gelu, vf_gelu_tanh, vf_hardsigmoid, vf_hardswish and vf_act, which takes
 * an fl_act: PyTorch's formulas on these. */
#ifndef FL_CPU_VMATH_H
#define FL_CPU_VMATH_H

#include "cpu/simd_avx512.h"
#include "graph/op.h"
#include "cpu/vmath.inl"

#endif
