// What a convolution of a library left to be done: y = act(y + bias + residual), V neighbouring channels a thread. Defined
// before: T, V, BLOCK, ACT(v); O (channels), YP (from pixel to pixel of y) and VECTORS by
// parameters.
typedef pack<T, V> vec;
extern "C" __global__ void __launch_bounds__(BLOCK) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                       int *fault PARAMETERS) {
  FOLLOW;
  const i64 i = (i64)blockIdx.x * BLOCK + threadIdx.x;
  if (i >= p_VECTORS) return;
  const i64 at = i / (O / V) * YP + i % (O / V) * V;
  vec v = *(const vec *)(y + at);
  vec b;
  if (bias) b = ((const vec *)bias)[(unsigned)(i % (O / V))];
  vec r;
  if (residual) r = ((const vec *)residual)[i];
#pragma unroll
  for (int e = 0; e < V; e++) {
    float f = ld(v.x[e]);
    if (bias) f += ld(b.x[e]);
    if (residual) f += ld(r.x[e]);
    st(v.x[e], ACT(f));
  }
  *(vec *)(y + at) = v;
}
