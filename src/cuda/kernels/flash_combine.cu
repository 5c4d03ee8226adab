// Results of SPLITS blocks for the same rows, each with the maximum and sum of its keys, become one. A block a row.
// Arguments and defined before: as in flash.cu; FACTOR; THREADS; OVER_ROWS.
#define ROWS (SQ * GROUP)
#define ALL ((i64)HEAD_PAIRS * ROWS)
extern "C" __global__ void __launch_bounds__(THREADS) k(const float *part, T *y, int *fault PARAMETERS) {
  FOLLOW;
  const i64 at = blockIdx.x;
  const float *edges = part + SPLITS * ALL * DV;
  float max = -INF, sum = 0, weight[SPLITS];
#pragma unroll
  for (int s = 0; s < SPLITS; s++) max = fmaxf(max, weight[s] = edges[(s * ALL + at) * 2]);
#pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    weight[s] = max == -INF ? 0 : exp2f((weight[s] - max) * (float)FACTOR);
    sum += weight[s] * edges[(s * ALL + at) * 2 + 1];
  }
  const float f = sum == 0 ? 0 : 1 / sum;
  const int bg = OVER_ROWS(at), row = (int)at - bg * ROWS, b = bg / GROUPS, g = bg % GROUPS;
  T *to = y + o_at(b, g * GROUP + row % GROUP, row / GROUP);
  for (int e = threadIdx.x; e < DV; e += THREADS) {
    float x = 0;
#pragma unroll
    for (int s = 0; s < SPLITS; s++) x += weight[s] * part[(s * ALL + at) * DV + e];
    st(to[e], x * f);
  }
}
