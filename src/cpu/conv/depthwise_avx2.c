#include "cpu/vmath_avx2.h"

#define T   4
#define ROW fl_depthwise_row_avx2
#include "cpu/conv/depthwise_core.inl"
