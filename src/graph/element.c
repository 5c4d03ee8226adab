#include <math.h>
#include <string.h>

#include "graph/graph.h"

static double half_to_double(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double v = exponent == 31 ? (mantissa ? NAN : INFINITY)
             : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                            : ldexp(mantissa, -24);
  return h & 0x8000 ? -v : v;
}

/* Rounds to nearest even: by the ulp of v's binade, or of the subnormals. */
static uint16_t double_to_half(double v) {
  uint16_t sign = signbit(v) ? 0x8000 : 0;
  if (isnan(v)) return sign | 0x7e00;
  v = fabs(v);
  if (v >= 65520) return sign | 0x7c00;
  int exponent;
  frexp(v, &exponent); /* v in [2^(exponent-1), 2^exponent) */
  if (v == 0) return sign;
  if (exponent < -13) return sign | (uint16_t)rint(ldexp(v, 24));
  /* A mantissa that rounds up to 2048 carries into the exponent, as it should. */
  return sign | (uint16_t)(((exponent + 14) << 10) + (int)rint(ldexp(v, 11 - exponent)) - 1024);
}

static uint16_t float_to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  if (isnan(f)) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float bf16_to_float(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

#define GET(T)                                                                                                         \
  {                                                                                                                    \
    T x;                                                                                                               \
    memcpy(&x, (const char *)data + i * (int64_t)sizeof x, sizeof x);                                                  \
    return (double)x;                                                                                                  \
  }
#define GET_HALF(convert)                                                                                              \
  {                                                                                                                    \
    uint16_t x;                                                                                                        \
    memcpy(&x, (const char *)data + i * 2, 2);                                                                         \
    return convert(x);                                                                                                 \
  }

double fl_element_get(fl_dtype dtype, const void *data, int64_t i) {
  switch (dtype) {
  case FL_F32: GET(float)
  case FL_F64: GET(double)
  case FL_F16: GET_HALF(half_to_double)
  case FL_BF16: GET_HALF(bf16_to_float)
  case FL_I64: GET(int64_t)
  case FL_I32: GET(int32_t)
  case FL_I16: GET(int16_t)
  case FL_I8: GET(int8_t)
  case FL_U8: GET(uint8_t)
  case FL_BOOL: return ((const uint8_t *)data)[i] != 0;
  default: return NAN;
  }
}

/* The integer nearest to v that fits; a plain conversion is undefined outside the range. */
static int64_t to_integer(double v, int64_t lo, int64_t hi) {
  if (isnan(v)) return 0;
  v = rint(v);
  if (v <= (double)lo) return lo;
  return v >= (double)hi ? hi : (int64_t)v;
}

#define SET(T, v)                                                                                                      \
  {                                                                                                                    \
    T x = (T)(v);                                                                                                      \
    memcpy((char *)data + i * (int64_t)sizeof x, &x, sizeof x);                                                        \
    return;                                                                                                            \
  }

void fl_element_set(fl_dtype dtype, void *data, int64_t i, double v) {
  switch (dtype) {
  case FL_F32: SET(float, v)
  case FL_F64: SET(double, v)
  case FL_F16: SET(uint16_t, double_to_half(v))
  case FL_BF16: SET(uint16_t, float_to_bf16((float)v))
  case FL_I64: SET(int64_t, to_integer(v, INT64_MIN, INT64_MAX))
  case FL_I32: SET(int32_t, to_integer(v, INT32_MIN, INT32_MAX))
  case FL_I16: SET(int16_t, to_integer(v, INT16_MIN, INT16_MAX))
  case FL_I8: SET(int8_t, to_integer(v, INT8_MIN, INT8_MAX))
  case FL_U8: SET(uint8_t, to_integer(v, 0, UINT8_MAX))
  case FL_BOOL: SET(uint8_t, v != 0)
  default: return;
  }
}
