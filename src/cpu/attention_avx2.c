#include "cpu/instance_avx2.h"
#include "cpu/attention_f32.inl"
#include "cpu/attention.inl"
