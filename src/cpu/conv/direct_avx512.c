#include "cpu/vmath_avx512.h"

#define MR    14
#define TABLE fl_direct_avx512
#include "cpu/conv/direct_core.inl"
