// Attention of any float type without tensor cores: a block of 256 threads for BM rows, BN keys at a time, as floats in shared
// memory. Rows, splits and names as in flash.cu; THREADS 256; QS, KS, VS: strides of the last axes; BM and BN multiples of 16.
#define RM (BM / 16)
#define RN (BN / 16)
#define W (DV > 32 ? 4 : 2) // values are read that many at a time
#define DQP ((DQ + 3) / 4 * 4)
#define DVP ((DV + 16 * W - 1) / (16 * W) * (16 * W))
#define QLD (DQP + 4)
#define PLD (BN + 4)
#define ROWS (SQ * GROUP)
#define TILES ((ROWS + BM - 1) / BM)

template <int N, int D, int LD, class F> __device__ inline void bring(float *to, F at, int rows) {
  constexpr int DP = D == DQ ? DQP : DVP;
  for (int e = threadIdx.x; e < N * DP; e += THREADS) {
    const int r = e / DP, c = e % DP;
    to[r * LD + c] = r < rows && c < D ? (float)ld(*at(r, c)) : 0;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
k(const T *q, const T *kk, const T *v, const M *mask, T *y, float *part, int *fault PARAMETERS) {
  FOLLOW;
  SHARED_MEMORY(float, shared, 16);
  float *qs = shared, *ks = qs + BM * QLD, *vs = ks + BN * QLD, *ps = vs + BN * DVP;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int tile = blockIdx.x / SPLITS, split = blockIdx.x % SPLITS;
  const int turn = OVER_HEAD_PAIRS(tile), bg = tile - turn * HEAD_PAIRS, b = bg / GROUPS, g = bg % GROUPS;
  const int row0 = (CAUSAL ? TILES - 1 - turn : turn) * BM;
  const int rows = ROWS - row0 < BM ? ROWS - row0 : BM, last_query = (row0 + rows - 1) / GROUP;
  const int end = CAUSAL && last_query + 1 < TK ? last_query + 1 : TK;
  const int tiles = (end + BN - 1) / BN, each = (tiles + SPLITS - 1) / SPLITS, first = split * each;
  const int stop = first + each < tiles ? first + each : tiles;
  float o[RM][DVP / 16], max[RM], sum[RM];
#pragma unroll
  for (int i = 0; i < RM; i++) {
    max[i] = -INF;
    sum[i] = 0;
#pragma unroll
    for (int e = 0; e < DVP / 16; e++) o[i][e] = 0;
  }
  bring<BM, DQ, QLD>(qs, [&](int r, int c) {
    return q + q_at(b, g * GROUP + (row0 + r) % GROUP, (row0 + r) / GROUP) + c * (i64)QS; }, rows);
  for (int n = first; n < stop; n++) {
    const int key0 = n * BN;
    __syncthreads();
    bring<BN, DQ, QLD>(ks, [&](int r, int c) { return kk + k_at(b, g, key0 + r) + c * (i64)KS; }, TK - key0);
    bring<BN, DV, DVP>(vs, [&](int r, int c) { return v + v_at(b, g, key0 + r) + c * (i64)VS; }, TK - key0);
    __syncthreads();
    float s[RM][RN] = {};
#pragma unroll 4
    for (int d = 0; d < DQP; d += 4) {
      pack<float, 4> a[RM], c[RN];
#pragma unroll
      for (int i = 0; i < RM; i++) a[i] = *(const pack<float, 4> *)&qs[(ty * RM + i) * QLD + d];
#pragma unroll
      for (int j = 0; j < RN; j++) c[j] = *(const pack<float, 4> *)&ks[(tx + 16 * j) * QLD + d];
#pragma unroll
      for (int e = 0; e < 4; e++)
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
          for (int j = 0; j < RN; j++) s[i][j] = fmaf(a[i].x[e], c[j].x[e], s[i][j]);
    }
#pragma unroll
    for (int i = 0; i < RM; i++) {
      const int row = row0 + ty * RM + i < ROWS ? row0 + ty * RM + i : ROWS - 1, query = row / GROUP;
      float m = max[i];
#pragma unroll
      for (int j = 0; j < RN; j++) {
        const int key = key0 + tx + 16 * j;
        s[i][j] *= (float)SCALE;
#if MASK
        const auto mine = ld(mask[m_at(b, g * GROUP + row % GROUP, query, key < TK ? key : TK - 1)]);
#endif
#if MASK == 1
        s[i][j] += (float)mine;
#elif MASK == 2
        if (!mine) s[i][j] = -INF;
#endif
        if (key >= TK || (CAUSAL && key > query)) s[i][j] = -INF;
        m = fmaxf(m, s[i][j]);
      }
#pragma unroll
      for (int lane = 1; lane < 16; lane *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, lane));
      const float zero = m == -INF ? 0 : m, change = __expf(max[i] - zero);
      max[i] = m;
      sum[i] *= change;
#pragma unroll
      for (int j = 0; j < RN; j++) {
        s[i][j] = __expf(s[i][j] - zero);
        sum[i] += s[i][j];
        ps[(ty * RM + i) * PLD + tx + 16 * j] = s[i][j];
      }
#pragma unroll
      for (int e = 0; e < DVP / 16; e++) o[i][e] *= change;
    }
    __syncwarp(); // a row's threads are of one warp
    for (int j = 0; j < BN; j += 4) {
      pack<float, 4> p[RM];
#pragma unroll
      for (int i = 0; i < RM; i++) p[i] = *(const pack<float, 4> *)&ps[(ty * RM + i) * PLD + j];
#pragma unroll
      for (int u = 0; u < 4; u++)
#pragma unroll
        for (int e = 0; e < DVP / 16; e += W) {
          const pack<float, W> x = *(const pack<float, W> *)&vs[(j + u) * DVP + e * 16 + tx * W];
#pragma unroll
          for (int i = 0; i < RM; i++)
#pragma unroll
            for (int w = 0; w < W; w++) o[i][e + w] = fmaf(p[i].x[u], x.x[w], o[i][e + w]);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < RM; i++) {
    const int row = row0 + ty * RM + i;
#pragma unroll
    for (int lane = 1; lane < 16; lane *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lane);
    if (row >= ROWS) continue;
    const i64 at = (i64)split * HEAD_PAIRS * ROWS + (i64)bg * ROWS + row;
    const float f = SPLITS > 1 ? 1 : sum[i] == 0 ? 0 : 1 / sum[i];
    if (SPLITS > 1 && tx == 0) {
      part[(i64)SPLITS * HEAD_PAIRS * ROWS * DV + at * 2] = max[i];
      part[(i64)SPLITS * HEAD_PAIRS * ROWS * DV + at * 2 + 1] = sum[i];
    }
#pragma unroll
    for (int e = 0; e < DVP / 16; e++) {
      const int c = e / W * W * 16 + tx * W + e % W;
      if (c >= DV) continue;
      if (SPLITS > 1)
        part[at * DV + c] = o[i][e];
      else
        st(y[o_at(b, g * GROUP + row % GROUP, row / GROUP) + c * (i64)OS], o[i][e] * f);
    }
  }
}
