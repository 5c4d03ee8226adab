#include "cpu/vmath_avx512.h"

#define TABLE fl_winograd_avx512
#include "cpu/conv/winograd_core.inl"
