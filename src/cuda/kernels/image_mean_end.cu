// The mean from the sums of SHARES: x [SHARES][COUNT] as float, y [COUNT]. Defined before: U, BLOCK, SHARES; by parameters COUNT and
// SCALE.
extern "C" __global__ void __launch_bounds__(BLOCK) k(const float *x, U *y, int *fault PARAMETERS) {
  FOLLOW;
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (i >= COUNT) return;
  float sum = 0;
#pragma unroll
  for (int s = 0; s < SHARES; s++) sum += x[(i64)s * COUNT + i];
  st(y[i], sum * SCALE);
}
