// Softmax and normalizations: LANES threads for a row of D elements, kept in registers between the passes; ROWS rows a
// block, of N in all. A thread takes PER of the CHUNKS of V neighbours: V > 1 only where they are adjacent and aligned. EVEN: all of
// these are there.
// Defined before: T (storage), F (computed in), W (weights), I, D, V, N, LANES, ROWS, KIND; row(r): a row's offsets in x and y;
// el(k): an element's, if V is 1. KIND 0 softmax, 1 log_softmax, 2 layer_norm, 3 rms_norm, 4 group_norm (GROUPS groups of CPG channels
// of SPATIAL elements; ONE_CHANNEL: CPG is 1). HAS_W, HAS_B: weight and bias are there.
#define EACH_CHUNK _Pragma("unroll") for (int i = 0, c = lane; i < PER; i++, c += LANES)
#define EACH _Pragma("unroll") for (int e = 0; e < V; e++)
#define THERE (i + 1 < PER || EVEN || c < CHUNKS)

#if LANES > 32
#define ROW_SUM(v) block_sum(v, scratch)
#define ROW_MAX(v) block_max(v, scratch)
#else
#define ROW_SUM(v) lanes_sum(v)
#define ROW_MAX(v) lanes_max(v)
__device__ inline F lanes_sum(F v) {
#pragma unroll
  for (int o = LANES / 2; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
__device__ inline F lanes_max(F v) {
#pragma unroll
  for (int o = LANES / 2; o; o >>= 1) v = max_nan(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}
#endif

extern "C" __global__ void __launch_bounds__(LANES *ROWS) k(const T *x, const W *w, const W *b, T *y,
                                                                   int *fault PARAMETERS) {
  FOLLOW;
#if LANES > 32
  __shared__ F scratch[33];
#endif
  const int lane = threadIdx.x % LANES;
  const I r = (I)blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool on = ROWS == 1 || r < N; // rows beyond the last one take part in the exchanges
  const pack<I, 2> first = row(on ? r : 0);
  const T *in = x + first.x[0];
  F v[PER][V];
  EACH_CHUNK {
#if V > 1
    pack<T, V> p;
    if (on && THERE) p = *(const pack<T, V> *)(in + c * V);
    EACH v[i][e] = on && THERE ? (F)ld(p.x[e]) : (F)0;
#else
    v[i][0] = on && THERE ? (F)ld(in[el(c).x[0]]) : (F)0;
#endif
  }
#if HAS_W && KIND != 4
  pack<W, V> wp[PER];
  EACH_CHUNK if (THERE) wp[i] = *(const pack<W, V> *)(w + c * V);
#endif
#if HAS_B && KIND != 4
  pack<W, V> bp[PER];
  EACH_CHUNK if (THERE) bp[i] = *(const pack<W, V> *)(b + c * V);
#endif
#if KIND < 2
  F m = -INF, s = 0;
  EACH_CHUNK if (THERE) EACH m = max_nan(m, v[i][e]);
  m = ROW_MAX(m);
  EACH_CHUNK if (THERE) EACH {
    const F z = (F)EXP(v[i][e] - m);
    s += z;
    v[i][e] = KIND == 0 ? z : v[i][e] - m;
  }
  s = ROW_SUM(s);
  const F last = KIND == 0 ? (F)1 / s : (F)LOG(s);
#else
  F mean = 0, var = 0;
#if KIND != 3
  EACH_CHUNK EACH mean += v[i][e];
  mean = ROW_SUM(mean) / D;
#endif
  EACH_CHUNK if (THERE) EACH var += (v[i][e] - mean) * (v[i][e] - mean);
  var = ROW_SUM(var) / D;
  const F scale = (F)1 / SQRT(var + (F)EPS);
#endif
  if (!on) return;
  T *out = y + first.x[1];
  EACH_CHUNK if (THERE) {
    pack<T, V> p;
    EACH {
#if KIND == 0
      F z = v[i][e] * last;
#elif KIND == 1
      F z = v[i][e] - last;
#else
      F z = (v[i][e] - mean) * scale;
#if KIND == 4
#if ONE_CHANNEL
      const I channel = r - OVER_GROUPS(r) * GROUPS;
#else
      const I channel = (r - OVER_GROUPS(r) * GROUPS) * CPG + OVER_SPATIAL(c * V + e);
#endif
#if HAS_W
      z *= (F)ld(w[channel]);
#endif
#if HAS_B
      z += (F)ld(b[channel]);
#endif
#else
#if HAS_W
      z *= (F)ld(wp[i].x[e]);
#endif
#if HAS_B
      z += (F)ld(bp[i].x[e]);
#endif
#endif
#endif
      st(p.x[e], z);
    }
#if V > 1
    *(pack<T, V> *)(out + c * V) = p;
#else
    out[el(c).x[1]] = p.x[0];
#endif
  }
}
