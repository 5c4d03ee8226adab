/* Names and level of kernels whose body is written once and compiled for two instruction sets. */
#include "cpu/vmath_avx512.h"
#define FL_NAMED(k) fl_kernel_##k##_avx512
#define FL_NAME(k)  k "_avx512"
#define FL_ISA_HERE FL_ISA_AVX512
