// Flash attention (Dao 2023) on tensor cores, for f16 and bf16: scores live in registers, softmax runs along the keys.
// Queries of the heads that share a key head stand together: row r is query r / GROUP of head r % GROUP. A block has BM rows
// and WN groups of WM warps; a warp has 16 MI rows, a group every WN-th tile of BN keys. Blocks may share the keys of a
// row tile (SPLITS); flash_combine.cu puts their results together then. WGMMA: four warps multiply together, with score_product
// and value_product, which are written for the tile's size; MI is 1, WM a multiple of 4.
// Arguments: SQ, TK, HEAD_PAIRS (batches times GROUPS), strides; OVER_x divides by x. Defined before: T (storage), M (mask), BF16, GROUPS (key
// heads), GROUP (query heads a key head), DQ, DV, CAUSAL, MASK (0 none, 1 added, 2 kept where true), MI, WM, WN, BN, STAGES, SPLITS,
// WHOLE (all stages are full of keys); SCALED: scores get SCALE before their
// maximum is taken (when masks are added, or SCALE is not positive), and then exp2((score - maximum) * (float)FACTOR); WIDE: masks
// whose numbers may overflow when multiplied; QVEC, KVEC, VVEC, OVEC, MVEC: elements that can be read or written at once (MVEC 0:
// the mask repeats along the keys; else it divides TK); K_STRIDE, V_STRIDE from key to key; places as in attention.cu.
#define UP(d) (((d) + 15) / 16 * 16)
#define DQP UP(DQ)
#define DVP UP(DV)
#define QLD (DQP + 8) // rows begin an odd number of 16 bytes apart: eight of them fill all banks
#define VLD (DVP + 8)
#define OLD (DVP + 4) // of floats
#define BM (16 * MI * WM)
#define KEYS (WN * BN)  // of a stage
#define THREADS (32 * WM * WN)
#define ROWS (SQ * GROUP)
#define TILES ((ROWS + BM - 1) / BM)
#if WGMMA // tiles are panels of 64 columns, whose rows of 128 bytes have their eight parts in an order that wgmma knows
#define BYTES(rows, columns) ((columns + 63) / 64 * (rows) * 128)
#define UNIT 64 // rows that are multiplied together
#define Q_IN_REGISTERS 0
#else
#define BYTES(rows, columns) ((rows) * (columns + 8) * 2)
#define UNIT (16 * MI)
#define Q_IN_REGISTERS (MI * DQP <= 128)
#endif
#define K_BYTES BYTES(KEYS, DQP)
#define STAGE (K_BYTES + BYTES(KEYS, DVP))

__device__ inline u32 shared_address(const void *p) {
  u32 r;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(r) : "l"(p));
  return r;
}
__device__ inline float exp2_of(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ inline u32 two(float lo, float hi) {
  u32 r;
#if BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
#endif
  return r;
}
__device__ inline void multiply(float *d, const u32 *a, u32 b0, u32 b1) {
#if BF16
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void matrices(u32 *r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ inline void matrices_turned(u32 *r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// VEC elements to shared memory, zeros unless `there`.
template <int VEC> __device__ inline void bring(u32 to, const T *from, bool there) {
  if constexpr (VEC == 1) {
    unsigned short x = there ? from->v : (unsigned short)0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(x) : "memory");
  } else if constexpr (VEC == 8) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(VEC * 2), "r"(there ? VEC * 2 : 0)
                 : "memory");
  }
}
__device__ inline void brought() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ inline void wait_all_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// The key that stands in row r of a tile. In each 32, the columns that a thread has of four products are eight neighbours,
// whose mask it reads at once. A permutation of r's bits: order(a + b) = order(a) + order(b) when no bit is in both.
__device__ inline constexpr int order(int r) { return (r & ~31) + 8 * (r >> 1 & 3) + 2 * (r >> 3 & 3) + (r & 1); }

// Where element c of row r lies in a tile of N rows and D columns.
template <int N, int D> __device__ inline int place(int r, int c) {
#if WGMMA
  return c / 64 * (N * 128) + r * 128 + (c / 8 % 8 ^ r % 8) * 16 + c % 8 * 2;
#else
  return (r * (D + 8) + c) * 2;
#endif
}

__device__ constexpr int power_of_two(int n) { return n < 2 ? 1 : 2 * power_of_two((n + 1) / 2); }

// N keys of D elements from key0 on, keys from `end` on and elements up to DP are zeros.
template <int N, int D, int DP, int VEC>
__device__ inline void bring_keys(u32 to, const T *from, i64 stride, int key0, int end) {
  constexpr int PER = power_of_two(DP / VEC), STEP = THREADS / PER;
  if constexpr (STEP > 0 && THREADS % PER == 0 && (STEP & (STEP - 1)) == 0 && (!WGMMA || STEP % 8 == 0)) {
    const int r0 = threadIdx.x / PER, c = threadIdx.x % PER * VEC;
    const T *mine = from + (key0 + order(r0)) * stride + c;
    const int left = c < D ? end - key0 - order(r0) : 0;
    if (DP / VEC != PER && c >= DP) return;
    to += place<N, DP>(r0, c);
#pragma unroll
    for (int i = 0; i < (N + STEP - 1) / STEP; i++)
      if (N % STEP == 0 || r0 + i * STEP < N)
        bring<VEC>(to + place<N, DP>(i * STEP, 0), mine + order(i * STEP) * stride, order(i * STEP) < left);
  } else {
    for (int e = threadIdx.x; e < N * (DP / VEC); e += THREADS) {
      const int r = e / (DP / VEC), c = e % (DP / VEC) * VEC, key = key0 + order(r);
      bring<VEC>(to + place<N, DP>(r, c), from + key * stride + c, key < end && c < D);
    }
  }
}

// What a thread has of the mask: rows lane / 4 and lane / 4 + 8 of each 16, eight keys of each 32.
#if MASK
struct masks { pack<M, 8> x[MI][2][BN / 32]; };
__device__ inline void read_mask(masks &m, const M *const (&rows)[MI][2], int key0 PARAMETERS) {
#pragma unroll
  for (int a = 0; a < MI * 2 * (BN / 32); a++) {
    const int mi = a / (2 * (BN / 32)), h = a / (BN / 32) % 2, n = a % (BN / 32), key = key0 + 32 * n + 8 * (threadIdx.x % 4);
    pack<M, 8> &to = m.x[mi][h][n];
    const M *from = rows[mi][h];
#pragma unroll
    for (int i = 0; i < 8; i += MVEC ? MVEC : 1) {
#if MVEC == 0
      to.x[i] = *from;
#else  // keys beyond the last are left out later: any place will do
      const int at = WHOLE || key + i < TK ? key + i : 0;
      *(pack<M, MVEC> *)&to.x[i] = *(const pack<M, MVEC> *)(from + at);
#endif
    }
  }
}
#endif

struct warp_state {
  float o[MI][DVP / 8][4], s[MI][BN / 8][4], max[MI][2], sum[MI][2];
#if Q_IN_REGISTERS
  u32 q[DQP / 16][MI][4];
#endif
};

#if WGMMA
// Tells where a tile lies: groups of eight rows are 1024 bytes apart, panels `panel` bytes.
__device__ inline unsigned long long tile_at(u32 at, u32 panel) {
  return (unsigned long long)1 << 62 | (unsigned long long)(1024 >> 4) << 32 | (unsigned long long)(panel >> 4) << 16 |
         (at & 0x3ffff) >> 4;
}
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_end() {
  asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// s = q k^T for a tile of keys.
__device__ inline void scores(warp_state &w, u32 q, u32 keys) {
  products_begin();
#pragma unroll
  for (int d = 0; d < DQP / 16; d++)
    score_product(&w.s[0][0][0], tile_at(q + d / 4 * BM * 128 + d % 4 * 32, 0),
                  tile_at(keys + d / 4 * KEYS * 128 + d % 4 * 32, 0), d > 0);
  products_end();
}

// o += s v
__device__ inline void weigh(warp_state &w, u32 values) {
  u32 a[BN / 16][4];
#pragma unroll
  for (int n = 0; n < BN / 16; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) a[n][i] = two(w.s[0][2 * n + i / 2][i % 2 * 2], w.s[0][2 * n + i / 2][i % 2 * 2 + 1]);
  products_begin();
#pragma unroll
  for (int n = 0; n < BN / 16; n++) value_product(&w.o[0][0][0], a[n], tile_at(values + n * 2048, KEYS * 128), 1);
  products_end();
}
#else
// s = q k^T for a tile of keys.
__device__ inline void scores(warp_state &w, u32 q, u32 keys) {
  const int lane = threadIdx.x % 32;
  keys += ((lane / 16 * 8 + lane % 8) * QLD + lane / 8 % 2 * 8) * 2;
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) w.s[mi][n][i] = 0;
#pragma unroll
  for (int d = 0; d < DQP / 16; d++) {
#if !Q_IN_REGISTERS
    u32 mine[MI][4];
#pragma unroll
    for (int mi = 0; mi < MI; mi++) matrices(mine[mi], q + (mi * 16 * QLD + d * 16) * 2);
#endif
#pragma unroll
    for (int n = 0; n < BN / 16; n++) {
      u32 b[4];
      matrices(b, keys + (n * 16 * QLD + d * 16) * 2);
#pragma unroll
      for (int mi = 0; mi < MI; mi++) {
#if Q_IN_REGISTERS
        const u32 *a = w.q[d][mi];
#else
        const u32 *a = mine[mi];
#endif
        multiply(w.s[mi][2 * n], a, b[0], b[1]);
        multiply(w.s[mi][2 * n + 1], a, b[2], b[3]);
      }
    }
  }
}

// o += s v
__device__ inline void weigh(warp_state &w, u32 values) {
  const int lane = threadIdx.x % 32;
  values += (lane % 16 * VLD + lane / 16 * 8) * 2;
#pragma unroll
  for (int n = 0; n < BN / 16; n++) {
    u32 a[MI][4];
#pragma unroll
    for (int mi = 0; mi < MI; mi++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *s = &w.s[mi][2 * n + i / 2][i % 2 * 2];
        a[mi][i] = two(s[0], s[1]);
      }
#pragma unroll
    for (int d = 0; d < DVP / 16; d++) {
      u32 b[4];
      matrices_turned(b, values + (n * 16 * VLD + d * 16) * 2);
#pragma unroll
      for (int mi = 0; mi < MI; mi++) {
        multiply(w.o[mi][2 * d], a[mi], b[0], b[1]);
        multiply(w.o[mi][2 * d + 1], a[mi], b[2], b[3]);
      }
    }
  }
}
#endif

// Scale and mask; query[mi][h]: the query of each of the thread's rows.
__device__ inline void mask_scores(warp_state &w, const int (&query)[MI][2], int key0, bool edge
#if MASK
                                   , const masks &m
#endif
                                   PARAMETERS) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float &s = w.s[mi][n][i];
#if MASK == 1
        s = s * (float)SCALE + (float)ld(m.x[mi][i / 2][n / 4].x[n % 4 * 2 + i % 2]);
#elif SCALED
        s *= (float)SCALE;
#endif
#if MASK == 2
        if (!ld(m.x[mi][i / 2][n / 4].x[n % 4 * 2 + i % 2])) s = -INF;
#endif
      }
  if (!edge) return;
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int key = key0 + n / 4 * 32 + lane % 4 * 8 + n % 4 * 2 + i % 2;
        if ((!WHOLE && key >= TK) || (CAUSAL && key > query[mi][i / 2])) w.s[mi][n][i] = -INF;
      }
}

// s becomes exp(s - max); o and sum follow the new maximum. Sums are the thread's own until the end.
__device__ inline void soften(warp_state &w) {
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = w.max[mi][h];
#pragma unroll
      for (int n = 0; n < BN / 8; n++) m = fmaxf(m, fmaxf(w.s[mi][n][2 * h], w.s[mi][n][2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      const float zero = m == -INF ? 0 : m, change = exp2_of((w.max[mi][h] - zero) * (float)FACTOR);
      w.max[mi][h] = m;
      float sum = 0;
#if !WIDE
      const float shift = -zero * (float)FACTOR;
#endif
#pragma unroll
      for (int n = 0; n < BN / 8; n++)
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; i++) {
#if !WIDE
          w.s[mi][n][i] = exp2_of(fmaf(w.s[mi][n][i], (float)FACTOR, shift));
#else  // a mask of -3e38 must not overflow when it is multiplied
          w.s[mi][n][i] = exp2_of((w.s[mi][n][i] - zero) * (float)FACTOR);
#endif
          sum += w.s[mi][n][i];
        }
      w.sum[mi][h] = w.sum[mi][h] * change + sum;
#pragma unroll
      for (int d = 0; d < DVP / 8; d++) {
        w.o[mi][d][2 * h] *= change;
        w.o[mi][d][2 * h + 1] *= change;
      }
    }
}

__device__ inline T rounded(float x) {
  T r;
  st(r, x);
  return r;
}

// One group, all keys: its warps' rows go out through shared memory, many bytes at a time.
__device__ inline void put_rows(warp_state &w, T *shared, T *y, int b, int g, int row0, int group_row PARAMETERS) {
  const int lane = threadIdx.x % 32;
  T *mine = shared + group_row * VLD;
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float f = w.sum[mi][h] == 0 ? 0 : 1 / w.sum[mi][h];
#pragma unroll
      for (int d = 0; d < DVP / 8; d++)
        *(u32 *)&mine[(mi * 16 + h * 8 + lane / 4) * VLD + d * 8 + lane % 4 * 2] =
            two(w.o[mi][d][2 * h] * f, w.o[mi][d][2 * h + 1] * f);
    }
  __syncwarp();
  constexpr int PER = DV / OVEC;
  for (int e = lane; e < 16 * MI * PER; e += 32) {
    const int r = e / PER, c = e % PER * OVEC, row = row0 + group_row + r;
    if (row < ROWS)
      *(pack<T, OVEC> *)&y[o_at(b, g * GROUP + row % GROUP, row / GROUP) + c] = *(const pack<T, OVEC> *)&mine[r * VLD + c];
  }
}

// Several groups, or blocks, of the same rows: groups are added in shared memory.
__device__ inline void merge_rows(warp_state &w, float *shared, T *y, float *part, int b, int g, int split, int row0, int group_row,
                                  int group PARAMETERS) {
  const int lane = threadIdx.x % 32;
  float *edges = shared + WN * BM * OLD, *mine = shared + (group * BM + group_row) * OLD;
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++)
      if (lane % 4 == 0) {
        float *at = edges + (group * BM + group_row + mi * 16 + h * 8 + lane / 4) * 2;
        at[0] = w.max[mi][h];
        at[1] = w.sum[mi][h];
      }
  __syncthreads();
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = group_row + mi * 16 + h * 8 + lane / 4, row = row0 + r;
      float m = -INF, sum = 0;
#pragma unroll
      for (int i = 0; i < WN; i++) m = fmaxf(m, edges[(i * BM + r) * 2]);
      const float zero = m == -INF ? 0 : m;
#pragma unroll
      for (int i = 0; i < WN; i++) sum += edges[(i * BM + r) * 2 + 1] * exp2_of((edges[(i * BM + r) * 2] - zero) * (float)FACTOR);
      float f = exp2_of((w.max[mi][h] - zero) * (float)FACTOR);
#if SPLITS == 1
      f = sum == 0 ? 0 : f / sum;
#else
      if (group == 0 && lane % 4 == 0 && row < ROWS) {
        float *at = part + (i64)SPLITS * HEAD_PAIRS * ROWS * DV + (((i64)split * HEAD_PAIRS + b * GROUPS + g) * ROWS + row) * 2;
        at[0] = m;
        at[1] = sum;
      }
#endif
#pragma unroll
      for (int d = 0; d < DVP / 8; d++) {
        pack<float, 2> x = {w.o[mi][d][2 * h] * f, w.o[mi][d][2 * h + 1] * f};
        *(pack<float, 2> *)&mine[(mi * 16 + h * 8 + lane / 4) * OLD + d * 8 + lane % 4 * 2] = x;
      }
    }
  __syncthreads();
  constexpr int PER = DV / OVEC;
  for (int e = threadIdx.x; e < BM * PER; e += THREADS) {
    const int r = e / PER, c = e % PER * OVEC, row = row0 + r;
    if (row >= ROWS) break;
    pack<float, OVEC> x;
#pragma unroll
    for (int i = 0; i < OVEC; i++) {
      x.x[i] = 0;
#pragma unroll
      for (int n = 0; n < WN; n++) x.x[i] += shared[(n * BM + r) * OLD + c + i];
    }
#if SPLITS == 1
    pack<T, OVEC> z;
#pragma unroll
    for (int i = 0; i < OVEC; i++) z.x[i] = rounded(x.x[i]);
    *(pack<T, OVEC> *)&y[o_at(b, g * GROUP + row % GROUP, row / GROUP) + c] = z;
#else
    *(pack<float, OVEC> *)&part[(((i64)split * HEAD_PAIRS + b * GROUPS + g) * ROWS + row) * DV + c] = x;
#endif
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
k(const T *q, const T *kk, const T *v, const M *mask, T *y, float *part, int *fault PARAMETERS) {
  FOLLOW;
  extern __shared__ __align__(1024) char memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / WM, group_row = warp % WM * 16 * MI;
  const int tile = blockIdx.x / SPLITS, split = blockIdx.x % SPLITS;
  const int turn = OVER_HEAD_PAIRS(tile), bg = tile - turn * HEAD_PAIRS, b = bg / GROUPS, g = bg % GROUPS;
  const int row0 = (CAUSAL ? TILES - 1 - turn : turn) * BM; // long ones first
  const int last_row = row0 + BM <= ROWS ? row0 + BM - 1 : ROWS - 1;
  const int end = CAUSAL && last_row / GROUP + 1 < TK ? last_row / GROUP + 1 : TK;
  const int stages = (end + KEYS - 1) / KEYS, each = (stages + SPLITS - 1) / SPLITS, first = split * each;
  const int stop = first + each < stages ? first + each : stages;
  const u32 q_shared = shared_address(memory), k_shared = q_shared + BYTES(BM, DQP);
  const T *keys = kk + k_at(b, g, 0), *values = v + v_at(b, g, 0);

  for (int e = threadIdx.x; e < BM * (DQP / QVEC); e += THREADS) {
    const int r = e / (DQP / QVEC), c = e % (DQP / QVEC) * QVEC, row = row0 + r;
    const bool there = row < ROWS && c < DQ;
    bring<QVEC>(q_shared + place<BM, DQP>(r, c), q + (there ? q_at(b, g * GROUP + row % GROUP, row / GROUP) + c : 0), there);
  }
  auto bring_stage = [&](int n) {
    if (n < stop) {
      const u32 to = k_shared + n % STAGES * STAGE;
      bring_keys<KEYS, DQ, DQP, KVEC>(to, keys, K_STRIDE, n * KEYS, TK);
      bring_keys<KEYS, DV, DVP, VVEC>(to + K_BYTES, values, V_STRIDE, n * KEYS, TK);
    }
    brought();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) bring_stage(first + i);

  warp_state w;
  int query[MI][2];
#if MASK
  const M *mask_rows[MI][2];
  masks m;
#endif
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int row = row0 + group_row + mi * 16 + h * 8 + lane / 4;
      if (row >= ROWS) row = ROWS - 1;
      query[mi][h] = row / GROUP;
      w.max[mi][h] = -INF;
      w.sum[mi][h] = 0;
#if MASK
      mask_rows[mi][h] = mask + m_at(b, g * GROUP + row % GROUP, row / GROUP, 0);
#endif
#pragma unroll
      for (int d = 0; d < DVP / 8; d++) w.o[mi][d][2 * h] = w.o[mi][d][2 * h + 1] = 0;
    }
  const int unit = group_row / UNIT * UNIT, first_query = (row0 + unit) / GROUP, last_query = (row0 + unit + UNIT - 1) / GROUP;
#if WGMMA
  const u32 my_q = q_shared + unit * 128;
#else
  const u32 my_q = q_shared + ((group_row + lane % 16) * QLD + lane / 16 * 8) * 2;
#endif
#if MASK
  if (first < stop) read_mask(m, mask_rows, first * KEYS + group * BN ARGUMENTS);
#endif
#if Q_IN_REGISTERS
  wait_all_but<STAGES - 2>();
  __syncthreads();
#pragma unroll
  for (int d = 0; d < DQP / 16; d++)
#pragma unroll
    for (int mi = 0; mi < MI; mi++) matrices(w.q[d][mi], my_q + (mi * 16 * QLD + d * 16) * 2);
#endif

  for (int n = first; n < stop; n++) {
    wait_all_but<STAGES - 2>();
#if WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    bring_stage(n + STAGES - 1);
    const int key0 = n * KEYS + group * BN;
    if (key0 >= TK || (CAUSAL && key0 > last_query)) continue;
    const u32 k_tile = k_shared + n % STAGES * STAGE + place<KEYS, DQP>(group * BN, 0);
    const u32 v_tile = k_shared + n % STAGES * STAGE + K_BYTES + place<KEYS, DVP>(group * BN, 0);
    const bool edge = (!WHOLE && key0 + BN > TK) || (CAUSAL && key0 + BN - 1 > first_query);
    scores(w, my_q, k_tile);
#if MASK
    mask_scores(w, query, key0, edge, m ARGUMENTS);
    if (n + 1 < stop) read_mask(m, mask_rows, key0 + KEYS ARGUMENTS); // on its way while values are added
#else
    mask_scores(w, query, key0, edge ARGUMENTS);
#endif
    soften(w);
    weigh(w, v_tile);
  }
  wait_all_but<0>();
#pragma unroll
  for (int mi = 0; mi < MI; mi++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      w.sum[mi][h] += __shfl_xor_sync(0xffffffffu, w.sum[mi][h], 1);
      w.sum[mi][h] += __shfl_xor_sync(0xffffffffu, w.sum[mi][h], 2);
    }
  __syncthreads();
#if WN == 1 && SPLITS == 1
  put_rows(w, (T *)memory, y, b, g, row0, group_row ARGUMENTS);
#else
  merge_rows(w, (float *)memory, y, part, b, g, split, row0, group_row, group ARGUMENTS);
#endif
}
