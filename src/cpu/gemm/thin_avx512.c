#include "cpu/vmath_avx512.h"

#include "cpu/gemm/thin_core.inl"

const fl_thin_range fl_thin_avx512 = range;
