#include "cpu/vmath_avx2.h"

#include "cpu/gemm/thin_core.inl"

const fl_thin_range fl_thin_avx2 = range;
