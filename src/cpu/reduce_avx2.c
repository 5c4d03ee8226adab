#include "cpu/instance_avx2.h"
#include "cpu/reduce.inl"
