// Depthwise convolution of NHWC images, V channels and TH x TW pixels of the result a thread. Defined before: T, V, KH, KW, SH,
// SW, DH, DW, TH, TW, THREADS (at least VX * VY), MOST (at least VX), RESIDUAL (is there one?), ACT(v); by the parameters
// p_...: N, H, W, C, OH, OW, TOP, LEFT, XP and YP (elements from pixel to pixel of x and y), VX
// (vectors of channels a block), VY (tiles a block). Weights are [C][KH][KW];
// a block keeps those of its channels in shared memory, channels innermost.
typedef pack<T, V> vec;
#define SPAN_H ((TH - 1) * SH + (KH - 1) * DH + 1)
#define SPAN_W ((TW - 1) * SW + (KW - 1) * DW + 1)
#define UNROLLED (KH < 5 ? SPAN_H : 1) // rows: more would be compiled for most of a second

extern "C" __global__ void __launch_bounds__(THREADS) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                         int *fault PARAMETERS) {
  FOLLOW;
  __shared__ __align__(32) float weights[KH * KW][MOST * V];
  const int tiles_w = (OW + TW - 1) / TW, tiles_h = (OH + TH - 1) / TH, across = (C / V + VX - 1) / VX;
  const int vx = threadIdx.x % VX, c0 = blockIdx.x % across * VX * V, c = c0 + vx * V;
#pragma unroll 2
  for (int i = threadIdx.x; i < VX * KH * KW; i += VX * VY) {
    if (c0 + i * V / (KH * KW) >= C) break;
    const vec f = *(const vec *)(w + (i64)c0 * (KH * KW) + i * V);
#pragma unroll
    for (int e = 0; e < V; e++) weights[(i * V + e) % (KH * KW)][(i * V + e) / (KH * KW)] = ld(f.x[e]);
  }
  __syncthreads();
  const int tile = blockIdx.x / across * VY + threadIdx.x / VX;
  if (tile >= N * tiles_h * tiles_w || c >= C) return;
  const int ow = tile % tiles_w * TW, oh = tile / tiles_w % tiles_h * TH, n = tile / (tiles_w * tiles_h);
  const T *image = x + (i64)n * H * W * XP + c;
  float acc[TH][TW][V];
#pragma unroll
  for (int i = 0; i < TH; i++)
#pragma unroll
    for (int j = 0; j < TW; j++)
#pragma unroll
      for (int e = 0; e < V; e++) acc[i][j][e] = 0;
#pragma unroll UNROLLED
  for (int r = 0; r < SPAN_H; r++) {
    const int h = oh * SH - TOP + r;
    vec row[SPAN_W];
#pragma unroll
    for (int s = 0; s < SPAN_W; s++) {
      const int v = ow * SW - LEFT + s;
      row[s] = vec();
      if ((unsigned)h < H && (unsigned)v < W) row[s] = *(const vec *)(image + (i64)(h * W + v) * XP);
    }
#pragma unroll
    for (int i = 0; i < TH; i++) {
      if (r < i * SH || (r - i * SH) % DH || (r - i * SH) / DH >= KH) continue;
#pragma unroll
      for (int kw = 0; kw < KW; kw++) {
        const pack<float, V> f = *(const pack<float, V> *)&weights[(r - i * SH) / DH * KW + kw][vx * V];
#pragma unroll
        for (int j = 0; j < TW; j++)
#pragma unroll
          for (int e = 0; e < V; e++) acc[i][j][e] += f.x[e] * ld(row[j * SW + kw * DW].x[e]);
      }
    }
  }
  vec b;
  if (bias) b = *(const vec *)(bias + c);
#pragma unroll
  for (int i = 0; i < TH; i++)
#pragma unroll
    for (int j = 0; j < TW; j++) {
      if (oh + i >= OH || ow + j >= OW) continue;
      const i64 pixel = ((i64)n * OH + oh + i) * OW + ow + j;
      vec out;
      vec add;
      if (RESIDUAL) add = *(const vec *)(residual + pixel * C + c);
#pragma unroll
      for (int e = 0; e < V; e++) {
        float f = acc[i][j][e];
        if (bias) f += ld(b.x[e]);
        if (RESIDUAL) f += ld(add.x[e]);
        st(out.x[e], ACT(f));
      }
      *(vec *)(y + pixel * YP + c) = out;
    }
}
