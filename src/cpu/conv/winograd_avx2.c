#include "cpu/vmath_avx2.h"

#define TABLE fl_winograd_avx2
#include "cpu/conv/winograd_core.inl"
