// Sums that two arrays of n elements are compared by. Defined before: T. sums: dot product, squares of a, squares of b, the
// largest |b|, the largest |a - b|, and how many elements are not finite and differ. All zero beforehand.
__device__ inline void max_into(double *to, double v) { // both are not negative: their bits have their order
  atomicMax((unsigned long long *)to, (unsigned long long)__double_as_longlong(v));
}
__device__ inline double op_max(double a, double b) { return a > b ? a : b; }
BLOCK_REDUCE(block_top, op_max)

extern "C" __global__ void __launch_bounds__(256) k(const T *a, const T *b, double *sums, i64 n) {
  __shared__ double scratch[33];
  double dot = 0, aa = 0, bb = 0, top = 0, diff = 0, holes = 0;
  for (i64 i = blockIdx.x * (i64)256 + threadIdx.x; i < n; i += gridDim.x * (i64)256) {
    double x = (double)ld(a[i]), y = (double)ld(b[i]);
    if (!(fabs(x) <= 1.7976931348623157e308 && fabs(y) <= 1.7976931348623157e308)) {
      holes += !(x == y || (x != x && y != y));
      continue;
    }
    dot += x * y;
    aa += x * x;
    bb += y * y;
    top = op_max(top, fabs(y));
    diff = op_max(diff, fabs(x - y));
  }
  dot = block_sum(dot, scratch);
  aa = block_sum(aa, scratch);
  bb = block_sum(bb, scratch);
  holes = block_sum(holes, scratch);
  top = block_top(top, scratch);
  diff = block_top(diff, scratch);
  if (threadIdx.x) return;
  atomicAdd(&sums[0], dot);
  atomicAdd(&sums[1], aa);
  atomicAdd(&sums[2], bb);
  max_into(&sums[3], top);
  max_into(&sums[4], diff);
  atomicAdd(&sums[5], holes);
}
