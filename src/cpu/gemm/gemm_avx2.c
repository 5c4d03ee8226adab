#include "cpu/vmath_avx2.h"

#define MR 6
#include "cpu/gemm/gemm_core.inl"

STRIP(1)
STRIP(2)
STRIP(3)
STRIP(4)
STRIP(5)
STRIP(6)

const fl_gemm_isa fl_gemm_avx2 = {
    .mr = MR,
    .nr = NR,
    .strip = {strip_1, strip_2, strip_3, strip_4, strip_5, strip_6},
    .pack_columns = pack_columns,
    .copy = copy_row,
    .act = act_row,
};
