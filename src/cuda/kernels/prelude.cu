// What every generated kernel begins with: storage types, and conversions between them and what is computed in.
// f16 and bf16 are computed in float, all integers in long long, bool in 0 or 1. No header is needed.
typedef long long i64;
struct f16 { unsigned short v; };
struct bf16 { unsigned short v; };
struct b8 { unsigned char v; };

// A kernel whose first statement is FOLLOW may be launched before the one in front of it has ended: it waits there for that
// one's results, and lets the next one come.
#if __CUDA_ARCH__ >= 900
#define FOLLOW asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory")
#else
#define FOLLOW
#endif

// What is PTX, and what no host compiler takes, stands behind #ifndef EMULATED: emulator_before.hpp has its own of it.
#ifndef EMULATED
#define SHARED_MEMORY(T, name, alignment) extern __shared__ __align__(alignment) T name[]
__device__ inline float half_to_float(unsigned short x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
__device__ inline unsigned short float_to_half(float x) {
  unsigned short r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
#endif

#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

__device__ inline float ld(float x) { return x; }
__device__ inline double ld(double x) { return x; }
__device__ inline float ld(f16 x) { return half_to_float(x.v); }
__device__ inline float ld(bf16 x) { return __uint_as_float((unsigned)x.v << 16); }
__device__ inline i64 ld(i64 x) { return x; }
__device__ inline i64 ld(int x) { return x; }
__device__ inline i64 ld(short x) { return x; }
__device__ inline i64 ld(signed char x) { return x; }
__device__ inline i64 ld(unsigned char x) { return x; }
__device__ inline i64 ld(b8 x) { return x.v != 0; }

__device__ inline f16 to_f16(float x) {
  f16 r;
  r.v = float_to_half(x);
  return r;
}
__device__ inline bf16 to_bf16(float x) {
  unsigned u = __float_as_uint(x);
  bf16 r;
  r.v = x != x ? (unsigned short)(u >> 16 | 0x40) : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
  return r;
}

template <class V> __device__ inline void st(float &p, V v) { p = (float)v; }
template <class V> __device__ inline void st(double &p, V v) { p = (double)v; }
template <class V> __device__ inline void st(f16 &p, V v) { p = to_f16((float)v); }
template <class V> __device__ inline void st(bf16 &p, V v) { p = to_bf16((float)v); }
template <class V> __device__ inline void st(i64 &p, V v) { p = (i64)v; }
template <class V> __device__ inline void st(int &p, V v) { p = (int)(i64)v; }
template <class V> __device__ inline void st(short &p, V v) { p = (short)(i64)v; }
template <class V> __device__ inline void st(signed char &p, V v) { p = (signed char)(i64)v; }
template <class V> __device__ inline void st(unsigned char &p, V v) { p = (unsigned char)(i64)v; }
template <class V> __device__ inline void st(b8 &p, V v) { p.v = v != 0; }

template <class T, int N> struct __align__(sizeof(T) * N) pack { T x[N]; };

// n / d for n < 2^31, where `magic` is fl_cuda_magic(d) (writer.c): m = ceil(2^(31 + l) / d) below, l = ceil(log2 d) above.
// Granlund and Montgomery, Division by Invariant Integers using Multiplication (1994): m d = 2^(31 + l) + e with e < d <= 2^l, so
// that n m / 2^(31 + l) exceeds n / d by n e / (d 2^(31 + l)) < 1 / d.
__device__ inline unsigned over(unsigned n, i64 magic) {
  return __umulhi(2 * n, (unsigned)magic) >> (unsigned)(magic >> 32);
}

// Index in [0, n); with `wrap` negative ones count from the end. Out of range: notes the fault and gives 0.
__device__ inline i64 index_in(i64 i, i64 n, bool wrap, int *fault) {
  if (wrap && i < 0) i += n;
  if (i >= 0 && i < n) return i;
  *fault = 1;
  return 0;
}

__device__ inline i64 div_floor(i64 a, i64 b, int *fault) {
  if (b == 0) { *fault = 1; return 0; }
  if (b == -1) return (i64)(0 - (unsigned long long)a);
  i64 q = a / b, r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? q - 1 : q;
}
__device__ inline i64 div_trunc(i64 a, i64 b, int *fault) {
  if (b == 0) { *fault = 1; return 0; }
  return b == -1 ? (i64)(0 - (unsigned long long)a) : a / b;
}
__device__ inline i64 rem_floor(i64 a, i64 b, int *fault) {
  if (b == 0) { *fault = 1; return 0; }
  if (b == -1) return 0;
  i64 r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
__device__ inline i64 pow_int(i64 a, i64 b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
  i64 r = 1;
  for (; b; b >>= 1, a *= a)
    if (b & 1) r *= a;
  return r;
}
template <class F> __device__ inline F rem_floor_f(F a, F b) {
  F m = (F)fmod((double)a, (double)b);
  return m != 0 && (b < 0) != (m < 0) ? m + b : m;
}
template <class F> __device__ inline F div_floor_f(F a, F b) {
  if (b == 0) return a / b;
  F m = (F)fmod((double)a, (double)b), d = (a - m) / b;
  if (m != 0 && (b < 0) != (m < 0)) d -= 1;
  if (d == 0) return (F)copysign(0.0, (double)(a / b));
  F r = (F)floor((double)d);
  return d - r > (F)0.5 ? r + 1 : r;
}
template <class F> __device__ inline F max_nan(F a, F b) { return a != a || a > b ? a : b; }
template <class F> __device__ inline F min_nan(F a, F b) { return a != a || a < b ? a : b; }
template <class F> __device__ inline F clamp(F x, F lo, F hi) {
  if (x < lo) x = lo;
  return x > hi ? hi : x;
}

// Activations of 16-bit floats: within one unit in the last place of the f16 result, in half the instructions of erff and
// tanhf. gelu_16 takes erfc in the form of Numerical Recipes, so that nothing cancels where x is negative.
__device__ inline float sigmoid_16(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float silu_16(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
__device__ inline float gelu_tanh_16(float x) { // 0.5 (1 + tanh(u)) is sigmoid(2 u)
  return __fdividef(x, 1.0f + __expf(-1.59576912f * (x + 0.044715f * x * x * x)));
}
__device__ inline float gelu_16(float x) {
  const float z = fabsf(x) * 0.70710678f, t = __fdividef(1.0f, 1.0f + 0.5f * z);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  const float half_erfc = 0.5f * t * __expf(p - z * z);
  return x * (x < 0 ? half_erfc : 1.0f - half_erfc);
}

template <class F> __device__ inline F op_sum(F a, F b) { return a + b; }

// The same value in all threads of the block; `scratch` has 33 elements.
#define BLOCK_REDUCE(name, OP)                                                                     \
  template <class F> __device__ inline F name(F v, F *scratch) {                                   \
    for (int o = 16; o; o >>= 1) v = OP(v, __shfl_xor_sync(0xffffffffu, v, o));                    \
    if (blockDim.x > 32) {                                                                         \
      __syncthreads();                                                                             \
      if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;                                    \
      __syncthreads();                                                                             \
      v = scratch[0];                                                                              \
      for (unsigned w = 1; w < blockDim.x / 32; w++) v = OP(v, scratch[w]);                        \
    }                                                                                              \
    return v;                                                                                      \
  }
BLOCK_REDUCE(block_sum, op_sum)
BLOCK_REDUCE(block_max, max_nan)
