// What a convolution of a library left to be done: y = act(y + bias + residual), V neighbouring channels a thread. Defined
// before: T, V, BLOCK, ACT(v); by parameters PER_PIXEL and VECTORS, which count vectors, and YP (from pixel to pixel of y).
typedef pack<T, V> vec;
extern "C" __global__ void __launch_bounds__(BLOCK) k(const T *x, const T *w, const T *bias, const T *residual, T *y,
                                                       int *fault PARAMETERS) {
  FOLLOW;
  const I i = (I)blockIdx.x * BLOCK + threadIdx.x;
  if (i >= VECTORS) return;
  const I pixel = OVER_PER_PIXEL(i), c = i - pixel * PER_PIXEL, at = pixel * YP + c * V;
  vec v = *(const vec *)(y + at);
  vec b;
  if (bias) b = ((const vec *)bias)[c];
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
