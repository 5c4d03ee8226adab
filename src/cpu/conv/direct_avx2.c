#include "cpu/vmath_avx2.h"

#define MR    6
#define TABLE fl_direct_avx2
#include "cpu/conv/direct_core.inl"
