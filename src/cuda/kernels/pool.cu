// Windows of NHWC images, V channels of one pixel of the result a thread. Defined before: T, V, BLOCK, KIND (0 maximum, 1 average,
// 2 average of evenly divided images), KH, KW, SH, SW, DH, DW, TOP, LEFT, INCLUDE_PAD, DIVISOR (0: the window's size); by
// parameters N, H, W, C, OH, OW, YN, YH, YW (strides of y).
typedef pack<T, V> vec;
extern "C" __global__ void __launch_bounds__(BLOCK) k(const T *x, T *y, int *fault PARAMETERS) {
  FOLLOW;
  const i64 i = (i64)blockIdx.x * BLOCK + threadIdx.x;
  if (i >= (i64)N * OH * OW * (C / V)) return;
  const int c = (int)(i % (C / V)) * V, pixel = (int)(i / (C / V)), ow = pixel % OW, oh = pixel / OW % OH, n = pixel / (OW * OH);
  const T *image = x + (i64)n * H * W * C + c;
  float acc[V];
#pragma unroll
  for (int e = 0; e < V; e++) acc[e] = KIND == 0 ? -INF : 0;
#if KIND == 2
  const int h0 = oh * H / OH, h1 = ((oh + 1) * H + OH - 1) / OH, w0 = ow * W / OW, w1 = ((ow + 1) * W + OW - 1) / OW;
  const float count = (h1 - h0) * (w1 - w0);
  for (int h = h0; h < h1; h++)
    for (int w = w0; w < w1; w++) {
#else
#if KIND == 1
  const int h0 = max(oh * SH - TOP, 0), h1 = min(oh * SH - TOP + KH, H), w0 = max(ow * SW - LEFT, 0), w1 = min(ow * SW - LEFT + KW, W);
  const int padded = (min(oh * SH - TOP + KH, H + TOP) - (oh * SH - TOP)) * (min(ow * SW - LEFT + KW, W + LEFT) - (ow * SW - LEFT));
  const bool empty = h0 >= h1 || w0 >= w1;
  const float count = empty ? 1 : DIVISOR ? DIVISOR : INCLUDE_PAD ? padded : (h1 - h0) * (w1 - w0);
#endif
#pragma unroll
  for (int a = 0; a < KH; a++)
#pragma unroll
    for (int b = 0; b < KW; b++) {
      const int h = oh * SH - TOP + a * DH, w = ow * SW - LEFT + b * DW;
      if ((unsigned)h >= H || (unsigned)w >= W) continue;
#endif
      const vec v = *(const vec *)(image + (i64)(h * W + w) * C);
#pragma unroll
      for (int e = 0; e < V; e++) acc[e] = KIND == 0 ? max_nan<float>(acc[e], ld(v.x[e])) : acc[e] + (float)ld(v.x[e]);
    }
  vec out;
#pragma unroll
  for (int e = 0; e < V; e++) {
#if KIND == 0
    st(out.x[e], acc[e]);
#else
    st(out.x[e], acc[e] / count);
#endif
  }
  *(vec *)(y + (i64)n * YN + (i64)oh * YH + (i64)ow * YW + c) = out;
}
