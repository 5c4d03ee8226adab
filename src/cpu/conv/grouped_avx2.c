#include "cpu/vmath_avx2.h"

#define MR       6
#define TILES(T) T(1, 1) T(1, 2) T(1, 3) T(1, 4) T(1, 5) T(1, 6) T(2, 1) T(2, 2) T(2, 3)
#define TABLE    fl_grouped_avx2
#include "cpu/conv/grouped_core.inl"
