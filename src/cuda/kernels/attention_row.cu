// Attention, a block for a query row: its TK scores lie in shared memory. Defined before: T (q, k, v and the result), M (mask), HEADS, GROUP (query heads a
// key head), SQ, TK, DQ, DV, SCALE, CAUSAL, MASK (0 none, 1 added, 2 kept where true), THREADS, and the offsets q_at(b,
// h, i), k_at(b, g, j), v_at(b, g, j), o_at(b, h, i), m_at(b, h, i, j) with the last axes' strides QS, KS, VS, OS.
extern "C" __global__ void __launch_bounds__(THREADS)
k(const T *q, const T *kk, const T *v, const M *mask, T *y, float *part, int *fault PARAMETERS) {
  FOLLOW;
  SHARED_MEMORY(float, s, 4);
  __shared__ float row[DQ], scratch[33];
  const int i = blockIdx.x % SQ, h = blockIdx.x / SQ % HEADS, b = blockIdx.x / SQ / HEADS, g = h / GROUP;
  for (int d = threadIdx.x; d < DQ; d += THREADS) row[d] = (float)ld(q[q_at(b, h, i) + d * (i64)QS]) * (float)SCALE;
  __syncthreads();
  float m = -INF, sum = 0;
  for (int j = threadIdx.x; j < TK; j += THREADS) {
    float dot = 0;
    const T *key = kk + k_at(b, g, j);
    for (int d = 0; d < DQ; d++) dot += row[d] * (float)ld(key[d * (i64)KS]);
#if MASK == 1
    dot += (float)ld(mask[m_at(b, h, i, j)]);
#elif MASK == 2
    if (!ld(mask[m_at(b, h, i, j)])) dot = -INF;
#endif
    if (CAUSAL && j > i) dot = -INF;
    s[j] = dot;
    m = max_nan(m, dot);
  }
  m = block_max(m, scratch);
  for (int j = threadIdx.x; j < TK; j += THREADS) {
    s[j] = m == -INF ? 0 : __expf(s[j] - m);
    sum += s[j];
  }
  sum = block_sum(sum, scratch);
  __syncthreads();
  for (int e = threadIdx.x; e < DV; e += THREADS) {
    float acc = 0;
    for (int j = 0; j < TK; j++) acc += s[j] * (float)ld(v[v_at(b, g, j) + e * (i64)VS]);
    st(y[o_at(b, h, i) + e * (i64)OS], sum == 0 ? 0 : acc / sum);
  }
}
