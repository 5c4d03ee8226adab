// Softmax and normalizations: LANES threads for a row of D elements, kept in registers between the passes; ROWS rows a
// block, of N in all. A thread takes chunks of V neighbours: V > 1 only where they are adjacent and aligned.
// Defined before: T (storage), F (computed in), U (weights), D, V, N, LANES, ROWS, KIND; row(r), out_row(r): a row's offsets;
// el(k), out_el(k): an element's. KIND 0 softmax, 1 log_softmax, 2 layer_norm, 3 rms_norm, 4 group_norm (SPATIAL elements a
// channel, GROUPS groups of CPG channels). HAS_W, HAS_B: weight and bias are there.
#define CHUNKS (D / V)
#define PER ((CHUNKS + LANES - 1) / LANES)
#define EACH_CHUNK _Pragma("unroll") for (int i = 0, c = lane; i < PER; i++, c += LANES)
#define EACH _Pragma("unroll") for (int e = 0; e < V; e++)
#define THERE ((i + 1) * LANES <= CHUNKS || c < CHUNKS)

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

extern "C" __global__ void __launch_bounds__(LANES *ROWS) k(const T *x, const U *w, const U *b, T *y, int *fault) {
  FOLLOW;
#if LANES > 32
  __shared__ F scratch[33];
#endif
  const int lane = threadIdx.x % LANES;
  const i64 r = (i64)blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool on = N % ROWS == 0 || r < N; // rows beyond the last one take part in the exchanges
  const T *in = x + (on ? row(r) : 0);
  F v[PER][V];
  EACH_CHUNK {
#if V > 1
    pack<T, V> p;
    if (on && THERE) p = *(const pack<T, V> *)(in + c * V);
    EACH v[i][e] = on && THERE ? (F)ld(p.x[e]) : (F)0;
#else
    v[i][0] = on && THERE ? (F)ld(in[el(c)]) : (F)0;
#endif
  }
#if HAS_W && KIND != 4
  pack<U, V> wp[PER];
  EACH_CHUNK if (THERE) wp[i] = *(const pack<U, V> *)(w + c * V);
#endif
#if HAS_B && KIND != 4
  pack<U, V> bp[PER];
  EACH_CHUNK if (THERE) bp[i] = *(const pack<U, V> *)(b + c * V);
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
  T *out = y + out_row(r);
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
      const int channel = (int)(r % GROUPS) * CPG + (c * V + e) / SPATIAL;
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
    out[out_el(c)] = p.x[0];
#endif
  }
}
