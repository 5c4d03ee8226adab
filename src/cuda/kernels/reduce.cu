// Reductions of COUNT elements to one of N. Defined before: T, F (computed in), R (result), I, KIND, N, COUNT, CHUNKS (of V), THREADS;
// row(r): where a result's elements begin and its place; el(k): an element's offset, if V is 1.
// KIND 0 sum, 1 mean, 2 prod, 3 amax, 4 amin, 5 any, 6 all, 7 var, 8 argmax, 9 argmin.
// MODE 0: a thread a result. 1: a block a result; elements are adjacent in chunks of V where V > 1.
// 2: 32 neighbouring results a block, 8 threads for each of them. Modes 1 and 2 up to KIND 6 share the elements of a result among
// SPLIT blocks, which leave their parts in y for a second kernel; a mean is divided by DIVISOR, last of all.
template <class G> __device__ inline F value(G v) {
#if KIND == 5 || KIND == 6
  return v != 0;
#else
  return (F)v;
#endif
}

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

__device__ inline void finish(R *y, I r, I place, int part, F acc PARAMETERS) {
#if SPLIT > 1
  y[r * SPLIT + part] = acc;
#else
#if KIND == 1 || KIND == 7
  acc /= DIVISOR;
#endif
  st(y[place], acc);
#endif
}

__device__ inline bool better(F a, i64 ka, F b, i64 kb) { // whether (a, ka) comes before (b, kb)
  if (kb < 0) return true;
  if (ka < 0) return false;
  bool na = a != a, nb = b != b;
  if (na || nb) return na && nb ? ka < kb : na;
  if (a == b) return ka < kb;
  return KIND == 8 ? a > b : a < b;
}

#define WIDE (MODE == 1)
#define STEP (WIDE ? THREADS : 1)
#define AT   (WIDE ? (int)threadIdx.x : 0)

extern "C" __global__ void __launch_bounds__(THREADS) k(const T *x, R *y, int *fault PARAMETERS) {
  FOLLOW;
#if MODE == 2
  __shared__ F parts[8][32];
  const int lane = threadIdx.x % 32, line = threadIdx.x / 32;
  const I r = (I)(blockIdx.x / SPLIT) * 32 + lane;
  const int part = blockIdx.x % SPLIT;
  const pack<I, 2> at = row(r < N ? r : 0);
  const T *in = x + at.x[0];
  F acc = first();
#pragma unroll 4
  for (I i = part * 8 + line; i < COUNT; i += 8 * SPLIT) acc = join(acc, value(ld(in[el(i).x[0]])));
  parts[line][lane] = acc;
  __syncthreads();
  if (line || r >= N) return;
  for (int i = 1; i < 8; i++) acc = join(acc, parts[i][lane]);
  finish(y, r, at.x[1], part, acc ARGUMENTS);
#else
  __shared__ F scratch[33];
  const I r = WIDE ? (I)(blockIdx.x / SPLIT) : (I)blockIdx.x * THREADS + threadIdx.x;
  const int part = WIDE ? (int)(blockIdx.x % SPLIT) : 0;
  if (r >= N) return;
  const pack<I, 2> at = row(r);
  const T *in = x + at.x[0];
#if KIND >= 8
  __shared__ i64 places[33];
  F best = 0;
  i64 where = -1;
  for (I i = AT; i < COUNT; i += STEP) {
    F v = ld(in[el(i).x[0]]);
    if (better(v, i, best, where)) best = v, where = i;
  }
#if WIDE
  for (int o = 16; o; o >>= 1) {
    F v = __shfl_xor_sync(0xffffffffu, best, o);
    i64 p = __shfl_xor_sync(0xffffffffu, where, o);
    if (p >= 0 && better(v, p, best, where)) best = v, where = p;
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best, places[threadIdx.x / 32] = where;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; i++)
    if (places[i] >= 0 && better(scratch[i], places[i], best, where)) best = scratch[i], where = places[i];
  if (threadIdx.x) return;
#endif
  st(y[at.x[1]], where);
#else
  F acc = first();
#if V > 1
#pragma unroll 4
  for (I i = part * THREADS + AT; i < CHUNKS; i += STEP * SPLIT) {
    const pack<T, V> p = *(const pack<T, V> *)(in + i * V);
#pragma unroll
    for (int e = 0; e < V; e++) acc = join(acc, value(ld(p.x[e])));
  }
#else
#pragma unroll 4
  for (I i = part * THREADS + AT; i < COUNT; i += STEP * SPLIT) acc = join(acc, value(ld(in[el(i).x[0]])));
#endif
#if WIDE
  acc = block_join(acc, scratch);
#endif
#if KIND == 7
  const F mean = acc / COUNT;
  acc = 0;
  for (I i = AT; i < COUNT; i += STEP) {
    F d = (F)ld(in[el(i).x[0]]) - mean;
    acc += d * d;
  }
#if WIDE
  acc = block_sum(acc, scratch);
#endif
#endif
  if (WIDE && threadIdx.x) return;
  finish(y, r, at.x[1], part, acc ARGUMENTS);
#endif
#endif
}
