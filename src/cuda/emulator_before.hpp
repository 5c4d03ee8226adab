// What a kernel finds before its own text when it is compiled for the host (emulator_case.h): CUDA's words, and what
// kernels write in PTX.
//
// A block's threads are fibers that run one at a time and go on where they wait for each other. An asynchronous copy
// is done when it is waited for, as late as a GPU may do it; shared memory of a launch is a heap block of its size.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(x)                      __attribute__((aligned((x) > 16 ? 16 : (x)))) // a GPU's widest access
#define SHARED_MEMORY(T, name, alignment) T *const name = (T *)emulated::shared
#define __syncthreads()                   emulated::wait(emulated::block)
#define __syncwarp()                      emulated::wait(emulated::warp())

static struct {
  unsigned x;
} blockIdx, threadIdx, blockDim, gridDim;

namespace emulated {

enum { MAX_THREADS = 1024, WARP = 32 };

[[noreturn]] static void fail(const char *what) {
  fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  abort();
}

// --- threads that wait for each other ---

struct group { // a block or a warp
  int alive, arrived;
  unsigned phase;
};
struct copy {
  void *to;
  const void *from; // null: zeros
  int bytes, group;
};
struct thread {
  ucontext_t context;
  group *waits;
  unsigned phase;
  bool alive;
  std::vector<copy> copies;
  int committed;
};

static unsigned char *shared;
static group block, warps[MAX_THREADS / WARP];
static thread threads[MAX_THREADS];
static ucontext_t scheduler;

static group &warp() { return warps[threadIdx.x / WARP]; }

static void release(group &g) {
  if (!g.arrived || g.arrived < g.alive) return;
  g.arrived = 0;
  g.phase++;
}

static void wait(group &g) {
  const unsigned t = threadIdx.x;
  threads[t].waits = &g;
  threads[t].phase = g.phase;
  g.arrived++;
  release(g);
  swapcontext(&threads[t].context, &scheduler);
}

// --- what the lanes of a warp exchange ---

static unsigned long long slots[MAX_THREADS];
static const void *rows[MAX_THREADS];
static unsigned operand_a[MAX_THREADS][4], operand_b[MAX_THREADS][2];

template <class T> static T exchange(T v, unsigned with) {
  static_assert(sizeof v <= sizeof *slots, "a register");
  memcpy(&slots[threadIdx.x], &v, sizeof v);
  wait(warp());
  T r;
  memcpy(&r, &slots[with], sizeof r);
  wait(warp());
  return r;
}

} // namespace emulated

// --- intrinsics ---

template <class To, class From> static inline To emulated_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To r;
  memcpy(&r, &x, sizeof r);
  return r;
}
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float emulated_exp(float x) { return expf(x); }
#define __expf emulated_exp // the C library has a function of that name
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
template <class A, class B> static inline auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <class A, class B> static inline auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }
struct float2 {
  float x, y;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int o) {
  return emulated::exchange(v, threadIdx.x ^ (unsigned)o);
}

// F16C, without <immintrin.h>, which takes half a second to read.
typedef short emulated_halves __attribute__((vector_size(16)));
typedef float emulated_floats __attribute__((vector_size(16)));
static inline float half_to_float(unsigned short x) { return __builtin_ia32_vcvtph2ps(emulated_halves{(short)x})[0]; }
static inline unsigned short float_to_half(float x) {
  return (unsigned short)__builtin_ia32_vcvtps2ph(emulated_floats{x}, 0)[0];
}

// --- asynchronous copies (cp.async) ---

template <int BYTES, class T> static inline void copy_async(T *to, const T *from, bool valid) {
  if ((uintptr_t)to % BYTES || (valid && (uintptr_t)from % BYTES)) emulated::fail("a copy that is not aligned");
  emulated::thread &t = emulated::threads[threadIdx.x];
  t.copies.push_back({to, valid ? from : nullptr, BYTES, t.committed});
}
static inline void copy_commit() { emulated::threads[threadIdx.x].committed++; }
template <int LATER> static inline void copy_wait() {
  emulated::thread &t = emulated::threads[threadIdx.x];
  size_t n = 0;
  for (const emulated::copy &c : t.copies) {
    if (c.group >= t.committed - LATER)
      t.copies[n++] = c;
    else if (c.from)
      memcpy(c.to, c.from, (size_t)c.bytes);
    else
      memset(c.to, 0, (size_t)c.bytes);
  }
  t.copies.resize(n);
}

// --- tensor cores ---

// ldmatrix.x4.b16: lane l has the address of row l % 8 of matrix l / 8, and gets elements 2 (l % 4) of row l / 4 of each.
static inline void load_matrix(unsigned *r, const void *at) {
  const unsigned t = threadIdx.x, lane = t % emulated::WARP, first = t - lane;
  if ((uintptr_t)at % 16) emulated::fail("ldmatrix of a row that is not aligned");
  emulated::rows[t] = at;
  emulated::wait(emulated::warp());
  for (unsigned q = 0; q < 4; q++)
    memcpy(&r[q], (const char *)emulated::rows[first + q * 8 + lane / 4] + lane % 4 * 4, sizeof *r);
  emulated::wait(emulated::warp());
}

static inline float emulated_element(unsigned pair, int high, bool bf) {
  const unsigned bits = pair >> 16 * high & 0xffff;
  return bf ? __uint_as_float(bits << 16) : half_to_float((unsigned short)bits);
}

// mma.m16n8k16.row.col: d += a b, sums in float, in another order than a GPU's.
static inline void emulated_mma(float *d, const unsigned *a, const unsigned *b, bool bf) {
  using namespace emulated;
  const unsigned t = threadIdx.x, lane = t % WARP, first = t - lane;
  memcpy(operand_a[t], a, sizeof *operand_a);
  memcpy(operand_b[t], b, sizeof *operand_b);
  emulated::wait(warp());
  for (unsigned e = 0; e < 4; e++) {
    const unsigned row = lane / 4 + (e >= 2 ? 8 : 0), column = lane % 4 * 2 + e % 2;
    for (unsigned k = 0; k < 16; k++) {
      const unsigned pair = k % 8 / 2, x = operand_a[first + row % 8 * 4 + pair][(row >= 8) + 2 * (k >= 8)];
      d[e] +=
          emulated_element(x, k % 2, bf) * emulated_element(operand_b[first + column * 4 + pair][k >= 8], k % 2, bf);
    }
  }
  emulated::wait(warp());
}
#define multiply(d, a, b) emulated_mma(d, a, b, MMA[0] == 'b')
