// Softmax and normalizations: a block for a row of D elements, kept in registers between the passes.
// Defined before: T (storage), F (computed in), U (weights), D, THREADS, KIND; row(r), el(k): the input's offsets; out_row(r), out_el(k).
// KIND 0 softmax, 1 log_softmax, 2 layer_norm, 3 rms_norm, 4 group_norm (SPATIAL elements a channel, GROUPS groups of
// CPG channels). HAS_W, HAS_B: weight and bias are there.
#define PER ((D + THREADS - 1) / THREADS)

extern "C" __global__ void __launch_bounds__(THREADS) k(const T *x, const U *w, const U *b, T *y, int *fault) {
  __shared__ F scratch[33];
  const i64 r = blockIdx.x;
  const T *in = x + row(r);
  T *out = y + out_row(r);
  F v[PER];
#pragma unroll
  for (int i = 0; i < PER; i++) {
    int e = i * THREADS + threadIdx.x;
    v[i] = e < D ? (F)ld(in[el(e)]) : (F)0;
  }
#if KIND < 2
  F m = -INF, s = 0;
#pragma unroll
  for (int i = 0; i < PER; i++)
    if (i * THREADS + threadIdx.x < D) m = max_nan(m, v[i]);
  m = block_max(m, scratch);
#pragma unroll
  for (int i = 0; i < PER; i++)
    if (i * THREADS + threadIdx.x < D) s += (F)EXP(v[i] - m);
  s = block_sum(s, scratch);
#pragma unroll
  for (int i = 0; i < PER; i++) {
    int e = i * THREADS + threadIdx.x;
    if (e < D) st(out[out_el(e)], KIND == 0 ? (F)EXP(v[i] - m) / s : v[i] - m - (F)LOG(s));
  }
#else
  F mean = 0, var = 0;
#if KIND != 3
#pragma unroll
  for (int i = 0; i < PER; i++) mean += v[i];
  mean = block_sum(mean, scratch) / D;
#endif
#pragma unroll
  for (int i = 0; i < PER; i++)
    if (i * THREADS + threadIdx.x < D) var += (v[i] - mean) * (v[i] - mean);
  var = block_sum(var, scratch) / D;
  const F scale = (F)1 / SQRT(var + (F)EPS);
#pragma unroll
  for (int i = 0; i < PER; i++) {
    int e = i * THREADS + threadIdx.x;
    if (e >= D) continue;
#if KIND == 4
    int c = (int)(r % GROUPS) * CPG + e / SPATIAL;
#else
    int c = e;
#endif
    F z = (v[i] - mean) * scale;
#if HAS_W
    z *= (F)ld(w[c]);
#endif
#if HAS_B
    z += (F)ld(b[c]);
#endif
    st(out[out_el(e)], z);
  }
#endif
}
