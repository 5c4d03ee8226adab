// The mean of each channel of NHWC images. A block: VX vectors of V channels, its share of the pixels VY at a time. Defined
// before: T (of x), U (of y), V, VX, VY; by parameters N, C, PIXELS, EACH (pixels of a block: blocks may share an image) and SCALE, by
// which sums are multiplied. Where blocks share, each writes the sum of its own to y [shares][N][C], as float; else the mean to
// y [N][C].
typedef pack<T, V> vec;
extern "C" __global__ void __launch_bounds__(VX * VY) k(const T *x, U *y, int *fault PARAMETERS) {
  FOLLOW;
  __shared__ float sums[VY][VX * V];
  const int across = (C / V + VX - 1) / VX, vx = threadIdx.x % VX, vy = threadIdx.x / VX;
  const int c = (blockIdx.x % across * VX + vx) * V, n = blockIdx.x / across % N, share = blockIdx.x / across / N;
  const int end = min((share + 1) * EACH, PIXELS);
  float acc[V];
#pragma unroll
  for (int e = 0; e < V; e++) acc[e] = 0;
  if (c < C) {
    const T *image = x + (i64)n * PIXELS * C + c;
#pragma unroll 4
    for (int p = share * EACH + vy; p < end; p += VY) {
      const vec v = *(const vec *)(image + (i64)p * C);
#pragma unroll
      for (int e = 0; e < V; e++) acc[e] += ld(v.x[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < V; e++) sums[vy][vx * V + e] = acc[e];
  __syncthreads();
  for (int i = threadIdx.x; i < VX * V; i += VX * VY) {
    const int channel = blockIdx.x % across * VX * V + i;
    if (channel >= C) continue;
    float sum = 0;
    for (int q = 0; q < VY; q++) sum += sums[q][i];
    st(y[((i64)share * N + n) * C + channel], sum * SCALE);
  }
}
