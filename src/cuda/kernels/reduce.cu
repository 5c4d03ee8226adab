// Reductions of COUNT elements to one of N. Defined before: T, F (computed in), U (result), KIND, N, COUNT, THREADS,
// row(r), el(k), out_row(r). WIDE: a block for a result, else a thread.
// KIND 0 sum, 1 mean, 2 prod, 3 amax, 4 amin, 5 any, 6 all, 7 var, 8 argmax, 9 argmin.
__device__ inline F first() {
#if KIND == 2 || KIND == 6
  return 1;
#elif KIND == 3
  return LOWEST;
#elif KIND == 4
  return HIGHEST;
#else
  return 0;
#endif
}

__device__ inline F value(F v) {
#if KIND == 5 || KIND == 6
  return v != 0;
#else
  return v;
#endif
}

template <class G> __device__ inline G join(G a, G b) {
#if KIND == 2
  return a * b;
#elif KIND == 3
  return max_nan(a, b);
#elif KIND == 4
  return min_nan(a, b);
#elif KIND == 5
  return a != 0 || b != 0;
#elif KIND == 6
  return a != 0 && b != 0;
#else
  return a + b;
#endif
}
BLOCK_REDUCE(block_join, join)

#define STEP (WIDE ? THREADS : 1)
#define AT   (WIDE ? (int)threadIdx.x : 0)

__device__ inline bool better(F a, i64 ka, F b, i64 kb) { // whether (a, ka) comes before (b, kb)
  if (kb < 0) return true;
  if (ka < 0) return false;
  bool na = a != a, nb = b != b;
  if (na || nb) return na && nb ? ka < kb : na;
  if (a == b) return ka < kb;
  return KIND == 8 ? a > b : a < b;
}

extern "C" __global__ void __launch_bounds__(THREADS) k(const T *x, U *y, int *fault) {
  FOLLOW;
  __shared__ F scratch[33];
  __shared__ i64 places[33];
  const i64 r = WIDE ? (i64)blockIdx.x : (i64)blockIdx.x * THREADS + threadIdx.x;
  if (r >= N) return;
  const T *in = x + row(r);
#if KIND >= 8
  F best = 0;
  i64 at = -1;
  for (i64 i = AT; i < COUNT; i += STEP) {
    F v = ld(in[el(i)]);
    if (better(v, i, best, at)) best = v, at = i;
  }
#if WIDE
  for (int o = 16; o; o >>= 1) {
    F v = __shfl_xor_sync(0xffffffffu, best, o);
    i64 p = __shfl_xor_sync(0xffffffffu, at, o);
    if (p >= 0 && better(v, p, best, at)) best = v, at = p;
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best, places[threadIdx.x / 32] = at;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; i++)
    if (places[i] >= 0 && better(scratch[i], places[i], best, at)) best = scratch[i], at = places[i];
  if (threadIdx.x) return;
#endif
  st(y[out_row(r)], at);
#else
  F acc = first();
  for (i64 i = AT; i < COUNT; i += STEP) acc = join(acc, value(ld(in[el(i)])));
#if WIDE
  acc = block_join(acc, scratch);
#endif
#if KIND == 1 || KIND == 7
  acc /= COUNT;
#endif
#if KIND == 7
  const F mean = acc;
  acc = 0;
  for (i64 i = AT; i < COUNT; i += STEP) {
    F d = (F)ld(in[el(i)]) - mean;
    acc += d * d;
  }
#if WIDE
  acc = block_sum(acc, scratch);
#endif
  const F n = (F)COUNT - (F)CORRECTION;
  acc /= n > 0 ? n : 0;
#endif
  if (WIDE && threadIdx.x) return;
  st(y[out_row(r)], acc);
#endif
}
