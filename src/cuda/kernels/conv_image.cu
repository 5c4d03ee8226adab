// Convolution of an image of at most four channels on the tensor cores, 16-bit floats: a network's first layer.
// Defined before: T, MMA ("f16" or "bf16"), KH, KW, SH, SW, CG (channels), BN (channels of the result a block), VO (of them
// stored at once), VW (elements of w loaded at once), BLOCKS (that a multiprocessor should hold), RESIDUAL (is there one?), ACT(v); by the parameters p_...: H, W, O, OH, OW, TOP, LEFT, XN, XC, XH, XW (strides of x), YP (from pixel to
// pixel of y), TILES_Y, TILES_X, TILES (of all images). Weights are [O][KH][KW][CG].
//
// A block keeps BN channels' weights in shared memory and goes through tiles of 8 x 16 pixels. The part of the image that a tile
// looks at is read once, and lies in shared memory with four channels a pixel, so that 4 neighbouring taps are the 16 elements
// that an instruction multiplies.
#define WARPS   4
#define THREADS (WARPS * 32)
#define ROWS    2 // of pixels, a warp's
#define TH      (WARPS * ROWS)
#define TW      16
#define TAPS    ((KW + 3) / 4 * 4) // of a row of the window, with those that only fill it up
#define K       (KH * TAPS * 4)
#define PITCH   (K + 8) // an odd multiple of 16 bytes: ldmatrix meets no bank twice
#define PH      ((TH - 1) * SH + KH)
#define PW      ((TW - 1) * SW + TAPS)
#define NT      (BN / 8)
#define OWN     (BN / 4) // neighbouring channels that a thread holds

#ifndef EMULATED
__device__ inline unsigned shared_at(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

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

// Columns of the product are in an order in which a thread's are neighbouring channels.
__device__ inline int column_of(int channel) { return channel % OWN / 2 * 8 + channel / OWN * 2 + channel % 2; }

// The block's weights lie one after the other; what fills up pixels and windows is zeros.
__device__ inline void load_weights(T *weights, const T *from, int channels) {
  const int each = KH * KW * CG;
  for (int i = threadIdx.x; i < BN * PITCH / 8; i += THREADS) ((pack<unsigned, 4> *)weights)[i] = {};
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x * VW; i < channels * each; i += THREADS * VW) {
    const pack<T, VW> v = *(const pack<T, VW> *)(from + i);
#pragma unroll
    for (int e = 0; e < VW; e++) {
      const int channel = (i + e) / each, k = (i + e) % each, tap = k / CG;
      weights[column_of(channel) * PITCH + (tap / KW * TAPS + tap % KW) * 4 + k % CG] = v.x[e];
    }
  }
}

// What fills up the window is nothing, whatever stands there in the image.
__device__ inline unsigned tap_or_zero(const T *at, int tap) {
  const unsigned v = *(const unsigned *)at;
  return KW % 4 == 0 || tap < KW ? v : 0u;
}

__device__ inline void compute(float (*acc)[NT][4], const T *patch, const T *weights) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#pragma unroll 1 // the whole window would take a second to compile
  for (int kh = 0; kh < KH; kh++)
#pragma unroll
    for (int kw = 0; kw < TAPS; kw += 4) {
      unsigned a[ROWS][4];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const T *at = patch + (((warp * ROWS + r) * SH + kh) * PW + kw + g * SW) * 4 + t * 2;
        a[r][0] = tap_or_zero(at, kw + t / 2);
        a[r][1] = tap_or_zero(at + 8 * SW * 4, kw + t / 2);
        a[r][2] = tap_or_zero(at + 8, kw + 2 + t / 2);
        a[r][3] = tap_or_zero(at + 8 * SW * 4 + 8, kw + 2 + t / 2);
      }
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        unsigned b[4];
        const int column = j + 1 < NT ? j * 8 + lane % 8 + lane / 16 * 8 : j * 8 + lane % 8;
        load_matrix(b, weights + column * PITCH + (kh * TAPS + kw) * 4 + lane / 8 % 2 * 8);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          multiply(acc[r][j], a[r], b);
          if (j + 1 < NT) multiply(acc[r][j + 1], a[r], b + 2);
        }
      }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                         int *fault PARAMETERS) {
  FOLLOW;
  SHARED_MEMORY(unsigned char, memory, 128);
  T *weights = (T *)memory;
  pack<T, 4> *patch = (pack<T, 4> *)(weights + BN * PITCH);
  const int blocks_n = (O + BN - 1) / BN, n0 = blockIdx.x % blocks_n * BN, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  load_weights(weights, w + n0 * (KH * KW * CG), min(BN, O - n0));
  // Outside of the image: zeros.
  auto load = [&](const T *image, int top, int left) {
#pragma unroll 4
    for (int i = threadIdx.x; i < PH * PW; i += THREADS) {
      const int row = top + i / PW, col = left + i % PW;
      const bool inside = (unsigned)row < (unsigned)H && (unsigned)col < (unsigned)W;
      const T *at = image + ((i64)row * XH + (i64)col * XW);
      pack<T, 4> v;
#pragma unroll
      for (int c = 0; c < 4; c++) {
        st(v.x[c], 0.0f);
        if (c < CG && inside) v.x[c] = at[(i64)c * XC];
      }
      patch[i] = v;
    }
  };
  // A pixel's channels `first` to first + OWN - 1, which are elements e and e + 1 of every column tile.
  auto store = [&](const float (*acc)[4], int e, i64 pixel, int first) {
#pragma unroll
    for (int i = 0; i < OWN; i += VO) {
      if (first + i >= O) continue;
      pack<T, VO> v, add, b;
      if (bias) b = *(const pack<T, VO> *)(bias + first + i);
      if (RESIDUAL) add = *(const pack<T, VO> *)(residual + pixel * O + first + i);
#pragma unroll
      for (int u = 0; u < VO; u++) {
        float f = acc[(i + u) / 2][e + (i + u) % 2];
        if (bias) f += ld(b.x[u]);
        if (RESIDUAL) f += ld(add.x[u]);
        st(v.x[u], ACT(f));
      }
      *(pack<T, VO> *)(y + pixel * YP + first + i) = v;
    }
  };
  for (int tile = blockIdx.x / blocks_n; tile < TILES; tile += gridDim.x / blocks_n) {
    const int n = tile / (TILES_Y * TILES_X), oy = tile / TILES_X % TILES_Y * TH, ox = tile % TILES_X * TW;
    __syncthreads(); // the tile before has been computed
    load(x + (i64)n * XN, oy * SH - TOP, ox * SW - LEFT);
    __syncthreads();
    float acc[ROWS][NT][4] = {};
    compute(acc, (const T *)patch, weights);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = oy + warp * ROWS + r, col = ox + lane / 4 + half * 8;
        if (row < OH && col < OW) store(acc[r], half * 2, ((i64)n * OH + row) * OW + col, n0 + lane % 4 * OWN);
      }
  }
}
