#include "cpu/instance_avx512.h"
#include "cpu/attention_f32.inl"
#include "cpu/attention.inl"
