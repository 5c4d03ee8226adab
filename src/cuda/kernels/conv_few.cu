// A matrix product of few rows: y[m][o] = act(sum of x[m][k] w[o][k] + bias + residual), a warp for one o and ROWS of m. Defined
// before: T, V, ROWS, WARPS, ACT(v); by parameters M, K, O and XP and YP (from row to row of x and y).
typedef pack<T, V> vec;
extern "C" __global__ void __launch_bounds__(WARPS * 32) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                            int *fault PARAMETERS) {
  FOLLOW;
  const int across = (O + WARPS - 1) / WARPS, lane = threadIdx.x % 32;
  const int o = blockIdx.x % across * WARPS + threadIdx.x / 32, m0 = blockIdx.x / across * ROWS;
  if (o >= O) return;
  float acc[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) acc[r] = 0;
#pragma unroll 2
  for (int i = lane * V; i < K; i += 32 * V) {
    const vec b = *(const vec *)(w + (i64)o * K + i);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const vec a = *(const vec *)(x + (i64)min(m0 + r, M - 1) * XP + i);
#pragma unroll
      for (int e = 0; e < V; e++) acc[r] += ld(a.x[e]) * ld(b.x[e]);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    for (int s = 16; s; s >>= 1) acc[r] += __shfl_xor_sync(0xffffffffu, acc[r], s);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (lane != r || m0 + r >= M) continue;
    float f = acc[r];
    if (bias) f += ld(bias[o]);
    if (residual) f += ld(residual[(i64)(m0 + r) * O + o]);
    st(y[(i64)(m0 + r) * YP + o], ACT(f));
  }
}
