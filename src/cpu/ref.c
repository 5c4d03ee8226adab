#include "cpu/ref.h"

uint16_t fl_f32_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if (f != f) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float fl_f16_to_f32(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  float m = exponent == 31 ? (mantissa ? NAN : INFINITY)
            : exponent     ? ldexpf((float)(mantissa + 1024), exponent - 25)
                           : ldexpf((float)mantissa, -24);
  return h & 0x8000 ? -m : m;
}

uint16_t fl_f32_to_f16(float f) {
  uint16_t sign = signbit(f) ? 0x8000 : 0;
  float a = fabsf(f);
  if (a != a) return sign | 0x7e00;
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < 6.103515625e-05f) return (uint16_t)(sign | (int)rintf(ldexpf(a, 24))); /* subnormal, or its successor */
  int e;
  float m = frexpf(a, &e); /* a = m 2^e, 0.5 <= m < 1; rounding up to 2048 carries into the exponent as it should */
  return (uint16_t)(sign | (((e + 13) << 10) + (int)rintf(ldexpf(m, 11))));
}

int64_t fl_ref_ftoi(double v) {
  return v >= -9223372036854775808.0 && v < 9223372036854775808.0 ? (int64_t)v : INT64_MIN;
}

double fl_ref_getf(const void *p, fl_dtype t, int64_t i) {
  switch (t) {
  case FL_F32: return ((const float *)p)[i];
  case FL_F64: return ((const double *)p)[i];
  case FL_F16: return fl_f16_to_f32(((const uint16_t *)p)[i]);
  case FL_BF16: return fl_bf16_to_f32(((const uint16_t *)p)[i]);
  default: return (double)fl_ref_geti(p, t, i);
  }
}

int64_t fl_ref_geti(const void *p, fl_dtype t, int64_t i) {
  switch (t) {
  case FL_I64: return ((const int64_t *)p)[i];
  case FL_I32: return ((const int32_t *)p)[i];
  case FL_I16: return ((const int16_t *)p)[i];
  case FL_I8: return ((const int8_t *)p)[i];
  case FL_U8: return ((const uint8_t *)p)[i];
  case FL_BOOL: return ((const uint8_t *)p)[i] != 0;
  default: return fl_ref_ftoi(fl_ref_getf(p, t, i));
  }
}

void fl_ref_setf(void *p, fl_dtype t, int64_t i, double v) {
  switch (t) {
  case FL_F32: ((float *)p)[i] = (float)v; break;
  case FL_F64: ((double *)p)[i] = v; break;
  case FL_F16: ((uint16_t *)p)[i] = fl_f32_to_f16((float)v); break;
  case FL_BF16: ((uint16_t *)p)[i] = fl_f32_to_bf16((float)v); break;
  case FL_BOOL: ((uint8_t *)p)[i] = v != 0; break;
  case FL_I32: ((int32_t *)p)[i] = v > -2147483649.0 && v < 2147483648.0 ? (int32_t)v : INT32_MIN; break;
  default: fl_ref_seti(p, t, i, fl_ref_ftoi(v)); break;
  }
}

void fl_ref_seti(void *p, fl_dtype t, int64_t i, int64_t v) {
  switch (t) {
  case FL_I64: ((int64_t *)p)[i] = v; break;
  case FL_I32: ((int32_t *)p)[i] = (int32_t)v; break;
  case FL_I16: ((int16_t *)p)[i] = (int16_t)v; break;
  case FL_I8: ((int8_t *)p)[i] = (int8_t)v; break;
  case FL_U8: ((uint8_t *)p)[i] = (uint8_t)v; break;
  case FL_BOOL: ((uint8_t *)p)[i] = v != 0; break;
  default: fl_ref_setf(p, t, i, (double)v); break;
  }
}
