#pragma GCC target("avx2,fma")
#include "cpu/vmath_avx2.h"
static int machine_has_it(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#include "cpu/vmath_test.inl"
