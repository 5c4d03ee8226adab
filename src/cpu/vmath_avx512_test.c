#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "cpu/vmath_avx512.h"
static int machine_has_it(void) { return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"); }
#include "cpu/vmath_test.inl"
