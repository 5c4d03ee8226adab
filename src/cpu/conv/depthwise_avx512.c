#include "cpu/vmath_avx512.h"

#define T   7 /* divides the widths of images halved from 224 */
#define ROW fl_depthwise_row_avx512
#include "cpu/conv/depthwise_core.inl"
