/* Names and level of kernels whose body is written once and compiled for two instruction sets. */
#include "cpu/vmath_avx2.h"
#define FL_NAMED(k) fl_kernel_##k##_avx2
#define FL_NAME(k)  k "_avx2"
#define FL_ISA_HERE FL_ISA_AVX2
