/* Names and level of kernels for processors that multiply bf16. */
#include "cpu/vmath_avx512.h"
#define FL_NAMED(k) fl_kernel_##k##_avx512_bf16
#define FL_NAME(k)  k "_avx512_bf16"
#define FL_ISA_HERE FL_ISA_AVX512_BF16
