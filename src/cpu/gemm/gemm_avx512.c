#include "cpu/vmath_avx512.h"

#define MR 14
#include "cpu/gemm/gemm_core.inl"

STRIP(1)
STRIP(2)
STRIP(3)
STRIP(4)
STRIP(5)
STRIP(6)
STRIP(7)
STRIP(8)
STRIP(9)
STRIP(10)
STRIP(11)
STRIP(12)
STRIP(13)
STRIP(14)

const fl_gemm_isa fl_gemm_avx512 = {
    .mr = MR,
    .nr = NR,
    .strip = {strip_1, strip_2, strip_3, strip_4, strip_5, strip_6, strip_7, strip_8, strip_9, strip_10, strip_11,
              strip_12, strip_13, strip_14},
    .pack_columns = pack_columns,
    .copy = copy_row,
    .act = act_row,
};
