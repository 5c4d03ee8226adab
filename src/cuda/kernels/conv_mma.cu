// Convolution as a matrix product on the tensor cores, 16-bit floats, the image matrix gathered on the way (implicit GEMM).
// Defined before: T, MMA ("f16" or "bf16"), KH, KW, BM, BN, BK (tile), WARPS_M, WARPS_N, STAGES, VA (elements of x loaded at
// once; 1: any strides), VB (of w), VO (of the result), PLAIN (no window, pixels of x evenly apart), ACT(v); as numbers or by
// parameters: SH, SW, DH, DW, H, W, CG (channels of x a group), O, OG, TOP, LEFT, OH, OW, M (pixels of the result), XN, XC, XH, XW
// (strides of x); OVER_CG, OVER_OW and OVER_IMAGE (OH * OW) divide; TILES_N tiles make the channels of a group, ACROSS those of all.
// I: an integer for places in x. Weights are [O][KH][KW][CG]. A block computes a tile of BM pixels and BN channels of one group.
#define THREADS (WARPS_M * WARPS_N * 32)
#define K       (KH * KW * CG)
#define STEPS   ((K + BK - 1) / BK)
#define STAGE   ((BM + BN) * BK)
#define CHUNKS  (BK / 8) // of 8 elements, 16 bytes, in a row of a tile
#define WM      (BM / WARPS_M)
#define WN      (BN / WARPS_N)
#define MT      (WM / 16)
#define NT      (WN / 8)

// Where element `k` of tile row `row` lies: chunks are exchanged so that ldmatrix meets no bank twice.
__device__ inline int place(int row, int k) {
  const int chunk = k / 8;
  const int turned = CHUNKS >= 8 ? chunk ^ (row & 7) : CHUNKS == 4 ? chunk ^ (row >> 1 & 3) : chunk ^ (row >> 2 & 1);
  return row * BK + turned * 8 + k % 8;
}

#ifndef EMULATED
__device__ inline unsigned shared_at(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copies BYTES (4, 8 or 16) or writes as many zeros.
template <int BYTES> __device__ inline void copy_async(T *to, const T *from, bool valid) {
  const int bytes = valid ? BYTES : 0;
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at(to)), "l"(from), "r"(bytes));
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_at(to)), "l"(from), "n"(BYTES < 4 ? 4 : BYTES),
                 "r"(bytes));
}

// Copies begun since the last call are a group; all but the `LATER` latest groups have arrived.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int LATER> __device__ inline void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LATER)); }

__device__ inline void load_matrix(unsigned *r, const T *at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_at(at)));
}

__device__ inline void multiply(float *d, const unsigned *a, const unsigned *b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." MMA "." MMA ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#define A_COLS  (BK / VA)          // loads in a row of the image tile
#define A_ROWS  (THREADS / A_COLS) // rows that all threads load at once
#define A_LOADS ((BM + A_ROWS - 1) / A_ROWS)
#define B_COLS  (BK / VB)
#define B_ROWS  (THREADS / B_COLS)
#define B_LOADS ((BN + B_ROWS - 1) / B_ROWS)

extern "C" __global__ void __launch_bounds__(THREADS) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                         int *fault PARAMETERS) {
  FOLLOW;
  SHARED_MEMORY(unsigned char, memory, 128);
  T *tiles = (T *)memory; // stages: BM rows of x, BN rows of w; those that a short product does not reach have no memory
  const int down = OVER_ACROSS(blockIdx.x), across = blockIdx.x - down * ACROSS, group = OVER_TILES_N(across);
  const int m0 = down * BM, n0 = (across - group * TILES_N) * BN;
  const int lane = threadIdx.x % 32, wm = threadIdx.x / 32 % WARPS_M * WM, wn = threadIdx.x / 32 / WARPS_M * WN;
  x += (I)(group * CG) * (I)XC;
  w += (i64)group * OG * K;
  // Of each row of the tile that this thread loads: where its window begins. With VA == 1 neighbouring threads take
  // neighbouring pixels, as x may lie in any order.
  I at[VA == 1 ? 1 : A_LOADS];
  int top[VA == 1 ? 1 : A_LOADS], left[VA == 1 ? 1 : A_LOADS];
#pragma unroll
  for (int i = 0; i < (VA == 1 ? 1 : A_LOADS); i++) {
    const int m = m0 + (VA == 1 ? (int)threadIdx.x % BM : (int)threadIdx.x / A_COLS + i * A_ROWS);
#if PLAIN
    top[i] = m < M ? 0 : -1;
    left[i] = 0;
    at[i] = (I)m * (I)XW;
#else
    const int n = OVER_IMAGE(m), q = m - n * (OH * OW), line = OVER_OW(q), first = line * SH - TOP;
    top[i] = m < M ? first : -(1 << 20);
    left[i] = (q - line * OW) * SW - LEFT;
    at[i] = (I)n * (I)XN + (I)first * (I)XH + (I)left[i] * (I)XW;
#endif
  }
  auto load_a = [&](T *tile, int k0) {
#if VA > 1
    const int col = threadIdx.x % A_COLS * VA, k = k0 + col;
#if KH * KW == 1
    const int tap = 0, c = k;
#else
    const int tap = OVER_CG(k), c = k - tap * CG;
#endif
    const int dh = tap / KW * DH, dw = tap % KW * DW;
    const I offset = (I)dh * (I)XH + (I)dw * (I)XW + c;
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int row = threadIdx.x / A_COLS + i * A_ROWS;
      const bool inside = k < K && (PLAIN ? top[i] == 0 : (unsigned)(top[i] + dh) < H && (unsigned)(left[i] + dw) < W);
      if (BM % A_ROWS == 0 || row < BM) copy_async<VA * 2>(tile + place(row, col), inside ? x + (at[i] + offset) : x, inside);
    }
#else
    const int row = threadIdx.x % BM;
#pragma unroll
    for (int j = threadIdx.x / BM * 2; j < BK; j += THREADS / BM * 2) {
      pack<T, 2> two;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int k = k0 + j + e, tap = OVER_CG(k), c = k - tap * CG, dh = tap / KW * DH, dw = tap % KW * DW;
        if (k < K && (unsigned)(top[0] + dh) < H && (unsigned)(left[0] + dw) < W)
          two.x[e] = x[at[0] + (I)c * (I)XC + (I)dh * (I)XH + (I)dw * (I)XW];
        else
          st(two.x[e], 0.0f);
      }
      *(pack<T, 2> *)(tile + place(row, j)) = two;
    }
#endif
  };
  auto load_b = [&](T *tile, int k0) {
#if VB > 1
    const int col = threadIdx.x % B_COLS * VB, k = k0 + col;
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) {
      const int row = threadIdx.x / B_COLS + i * B_ROWS;
      const bool inside = k < K && n0 + row < OG;
      if (BN % B_ROWS == 0 || row < BN)
        copy_async<VB * 2>(tile + place(row, col), inside ? w + ((i64)(n0 + row) * K + k) : w, inside);
    }
#else
    for (int i = threadIdx.x; i < BN * BK; i += THREADS) {
      const int row = i / BK, k = k0 + i % BK;
      if (k < K && n0 + row < OG)
        tile[place(row, i % BK)] = w[(i64)(n0 + row) * K + k];
      else
        st(tile[place(row, i % BK)], 0.0f);
    }
#endif
  };
  float acc[MT][NT][4];
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0;
#pragma unroll 1 // unrolled, loads of single elements would be compiled for most of a second
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < STEPS) {
      load_a(tiles + s * STAGE, s * BK);
      load_b(tiles + s * STAGE + BM * BK, s * BK);
    }
    copy_commit();
  }
  for (int step = 0; step < STEPS; step++) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    const int next = step + STAGES - 1;
    if (next < STEPS) {
      load_a(tiles + next % STAGES * STAGE, next * BK);
      load_b(tiles + next % STAGES * STAGE + BM * BK, next * BK);
    }
    copy_commit();
    const T *a = tiles + step % STAGES * STAGE, *b = a + BM * BK;
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      unsigned fa[MT][4], fb[(NT + 1) / 2][4];
#pragma unroll
      for (int i = 0; i < MT; i++) load_matrix(fa[i], a + place(wm + i * 16 + lane % 16, kk + lane / 16 * 8));
#pragma unroll
      for (int j = 0; j < (NT + 1) / 2; j++) // with NT == 1 the second half is that of the first again
        load_matrix(fb[j], b + place(wn + (NT == 1 ? lane % 8 : j * 16 + lane % 8 + lane / 16 * 8), kk + lane / 8 % 2 * 8));
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++) multiply(acc[i][j], fa[i], fb[j / 2] + j % 2 * 2);
    }
  }
  copy_wait<0>();
  __syncthreads();
  float *out = (float *)memory; // the tile, to be written in rows
#define PITCH (BN + 4)
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        *(float2 *)(out + (wm + i * 16 + lane / 4 + e * 8) * PITCH + wn + j * 8 + lane % 4 * 2) =
            make_float2(acc[i][j][e * 2], acc[i][j][e * 2 + 1]);
  __syncthreads();
  for (int i = threadIdx.x; i < BM * (BN / VO); i += THREADS) {
    const int row = i / (BN / VO), col = i % (BN / VO) * VO, channel = group * OG + n0 + col;
    if (m0 + row >= M || n0 + col >= OG) continue;
    const i64 pixel = m0 + row;
    const pack<float, VO> sum = *(const pack<float, VO> *)(out + row * PITCH + col);
    pack<T, VO> v;
    pack<T, VO> add;
    if (residual) add = *(const pack<T, VO> *)(residual + pixel * O + channel);
    pack<T, VO> b;
    if (bias) b = *(const pack<T, VO> *)(bias + channel);
#pragma unroll
    for (int e = 0; e < VO; e++) {
      float f = sum.x[e];
      if (bias) f += ld(b.x[e]);
      if (residual) f += ld(add.x[e]);
      st(v.x[e], ACT(f));
    }
    *(pack<T, VO> *)(y + pixel * YP + channel) = v;
  }
}
