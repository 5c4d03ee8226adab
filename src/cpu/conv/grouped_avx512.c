#include "cpu/vmath_avx512.h"

#define MR 14
#define TILES(T)                                                                                                       \
  T(1, 1)                                                                                                              \
  T(1, 2)                                                                                                              \
  T(1, 3)                                                                                                              \
  T(1, 4)                                                                                                              \
  T(1, 5)                                                                                                              \
  T(1, 6)                                                                                                              \
  T(1, 7)                                                                                                              \
  T(1, 8)                                                                                                              \
  T(1, 9)                                                                                                              \
  T(1, 10)                                                                                                             \
  T(1, 11)                                                                                                             \
  T(1, 12)                                                                                                             \
  T(1, 13) T(1, 14) T(2, 1) T(2, 2) T(2, 3) T(2, 4) T(2, 5) T(2, 6) T(2, 7)
#define TABLE fl_grouped_avx512
#include "cpu/conv/grouped_core.inl"
