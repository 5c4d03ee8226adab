#include "cpu/instance_avx2.h"
#include "cpu/image.inl"
