#include "cpu/instance_avx512.h"
#include "cpu/reduce.inl"
