/* Strided copies: vectors where elements are adjacent in both, also where rows begin anywhere, tiles through shared memory where the axes of adjacent elements
 * differ (channels-last and contiguous), vectors gathered element by element where only the result is dense. */
#include "cuda/writer.h"

typedef struct axis {
  int64_t dim, in, out;
} axis;

typedef struct shape {
  axis axes[FL_MAX_RANK]; /* the one of the closest elements of the result last; neighbours merged */
  int n;
  int64_t total;
  size_t size; /* of an element */
} shape;

static shape shape_of(const fl_tensor *in, const fl_tensor *out) {
  shape s = {.total = fl_type_numel(&out->type), .size = fl_dtype_size(out->type.dtype)};
  axis sorted[FL_MAX_RANK];
  int n = 0;
  for (int d = 0; d < out->type.rank; d++) {
    axis a = {out->type.dims[d], in->strides[d], out->strides[d]};
    int at = n;
    if (a.dim == 1) continue;
    for (n++; at > 0 && sorted[at - 1].out < a.out; at--) sorted[at] = sorted[at - 1];
    sorted[at] = a;
  }
  for (int i = 0; i < n; i++) {
    axis *last = s.n ? &s.axes[s.n - 1] : NULL;
    if (last && last->in == sorted[i].in * sorted[i].dim && last->out == sorted[i].out * sorted[i].dim)
      *last = (axis){last->dim * sorted[i].dim, sorted[i].in, sorted[i].out};
    else
      s.axes[s.n++] = sorted[i];
  }
  if (!s.n) s.axes[s.n++] = (axis){1, 1, 1};
  return s;
}

static const char *type_of(size_t size) {
  return size == 1 ? "unsigned char" : size == 2 ? "unsigned short" : size == 4 ? "unsigned" : "unsigned long long";
}

static int64_t reach(const shape *s) {
  int64_t in = 0, out = 0;
  for (int i = 0; i < s->n; i++) {
    in += (s->axes[i].dim - 1) * (s->axes[i].in < 0 ? -s->axes[i].in : s->axes[i].in);
    out += (s->axes[i].dim - 1) * (s->axes[i].out < 0 ? -s->axes[i].out : s->axes[i].out);
  }
  return in > out ? in : out;
}

/* Pointers and types. */
static void begin(fl_cuda_writer *w, const fl_run_args *a, const shape *s) {
  int64_t far = reach(s), most = s->total + FL_CUDA_BEYOND;
  fl_cuda_write_pointer(w, a->in[0].data);
  fl_cuda_write_pointer(w, a->out[0].data);
  fl_cuda_write_pointer(w, a->fault);
  fl_cuda_write_index(w, far > most ? far : most);
  fl_text_add(&w->text, "typedef %s T;\n", type_of(s->size));
}

/* place(i).x[0] and .x[1]: offsets in the input and the result, i counting axes [0, n), the last one of all in steps of `each`. */
static void place(fl_cuda_writer *w, const shape *s, int n, int64_t each) {
  int64_t dims[FL_MAX_RANK], in[FL_MAX_RANK], out[FL_MAX_RANK];
  for (int i = 0; i < n; i++) {
    int64_t step = i == s->n - 1 ? each : 1;
    dims[i] = s->axes[i].dim / step;
    in[i] = s->axes[i].in * step;
    out[i] = s->axes[i].out * step;
  }
  fl_cuda_write_function(w, "place", n, dims, in, out, each > 1 ? each : 0);
}

#define HEAD                                                                                                           \
  "extern \"C\" __global__ void __launch_bounds__(256) k(const T *x, T *y, int *fault PARAMETERS) {\n  FOLLOW;\n"

/* Elements that can be moved at once. */
static int64_t vector_of(const shape *s, const fl_tensor *in, const fl_tensor *out) {
  const axis *last = &s->axes[s->n - 1];
  int64_t w = 16 / (int64_t)s->size;
  if (last->in != 1 || last->out != 1) return 1;
  while (w > 1 &&
         (last->dim % w || (uintptr_t)in->data % ((size_t)w * s->size) || (uintptr_t)out->data % ((size_t)w * s->size)))
    w /= 2;
  for (int i = 0; i + 1 < s->n; i++)
    while (w > 1 && (s->axes[i].in % w || s->axes[i].out % w)) w /= 2;
  return w;
}

static void by_vectors(const fl_run_args *a, const shape *s, int64_t width) {
  static const char body[] = "typedef pack<T, V> P;\n" HEAD "  const I i = (I)blockIdx.x * 256 + threadIdx.x;\n"
                             "  if (i >= N) return;\n"
                             "  const pack<I, 2> o = place(i);\n"
                             "  *(P *)(y + o.x[1]) = *(const P *)(x + o.x[0]);\n}\n";
  fl_cuda_writer w = {0};
  int64_t n = s->total / width;
  begin(&w, a, s);
  fl_cuda_write_number(&w, "V", width);
  fl_cuda_write_size(&w, "N", n);
  place(&w, s, s->n, width);
  fl_cuda_write_launch(&w, a, body, (n + 255) / 256, 256, 0);
}

/* --- long rows that begin anywhere: a vocabulary's, of odd width --- */

enum { MIN_ROW_BYTES = 256 };

static bool has_long_rows(const shape *s) {
  const axis *last = &s->axes[s->n - 1];
  return last->in == 1 && last->out == 1 && last->dim * (int64_t)s->size >= MIN_ROW_BYTES;
}

/* A thread stores 16 aligned bytes of a row, out of the two aligned vectors in which these lie; the first thread of a row stores
 * what comes before them, and the last ones, where the second vector would reach beyond the row, element by element. */
static void by_rows(const fl_run_args *a, const shape *s) {
  static const char body[] =
      "typedef unsigned long long u64;\ntypedef pack<u64, 2> P;\n" HEAD
      "  const I i = (I)blockIdx.x * 256 + threadIdx.x, r = OVER_SLOTS(i);\n"
      "  if (r >= ROWS) return;\n"
      "  const int slot = (int)(i - r * SLOTS), n = (int)LENGTH, w = 16 / sizeof(T);\n"
      "  const pack<I, 2> o = place(r);\n"
      "  x += o.x[0];\n  y += o.x[1];\n"
      "  const int before = (int)((16 - (u64)y % 16) % 16 / sizeof(T));\n"
      "  const int at = slot ? before + (slot - 1) * w : 0, end = slot ? at + w : before;\n"
      "  if (slot && end + w <= n) {\n"
      "    const unsigned off = (unsigned)((u64)(x + at) % 16);\n"
      "    const P *p = (const P *)((const char *)(x + at) - off);\n"
      "    const P lo = p[0], hi = off ? p[1] : lo;\n"
      "    const bool far = off >= 8;\n"
      "    const int bits = (int)(off % 8) * 8;\n"
      "    const u64 a = far ? lo.x[1] : lo.x[0], b = far ? hi.x[0] : lo.x[1], c = far ? hi.x[1] : hi.x[0];\n"
      "    P out;\n"
      "    out.x[0] = bits ? a >> bits | b << (64 - bits) : a;\n"
      "    out.x[1] = bits ? b >> bits | c << (64 - bits) : b;\n"
      "    *(P *)(y + at) = out;\n"
      "    return;\n  }\n"
      "  for (int e = at; e < end && e < n; e++) y[e] = x[e];\n}\n";
  fl_cuda_writer w = {0};
  int64_t length = s->axes[s->n - 1].dim, slots = length * (int64_t)s->size / 16 + 2, rows = s->total / length;
  begin(&w, a, s);
  fl_cuda_write_divisor(&w, "SLOTS", slots);
  fl_cuda_write_size(&w, "ROWS", rows);
  fl_cuda_write_size(&w, "LENGTH", length);
  place(&w, s, s->n - 1, 1);
  fl_cuda_write_launch(&w, a, body, (rows * slots + 255) / 256, 256, 0);
}

/* --- the result is dense --- */

static bool is_dense(const shape *s) {
  int64_t step = 1;
  for (int i = s->n - 1; i >= 0; step *= s->axes[i--].dim)
    if (s->axes[i].out != step) return false;
  return true;
}

/* A thread gathers w elements of the result, which lie in at most two rows of the last axis where that is long enough. */
static void by_gathering(const fl_run_args *a, const shape *s) {
  static const char body[] = "typedef pack<T, 16 / sizeof(T)> P;\n" HEAD "  const int w = 16 / sizeof(T);\n"
                             "  const I i = ((I)blockIdx.x * 256 + threadIdx.x) * w;\n"
                             "  if (i >= N) return;\n"
                             "  P p;\n"
                             "#if ROWS\n"
                             "  const I r = OVER_LENGTH(i), c = i - r * LENGTH;\n"
                             "  const T *x0 = x + place(r).x[0] + c * STEP, *x1 = x0;\n"
                             "  if (c + w > LENGTH && i + w <= N) x1 = x + place(r + 1).x[0] - (LENGTH - c) * STEP;\n"
                             "#endif\n"
                             "#pragma unroll\n"
                             "  for (int e = 0; e < w; e++)\n"
                             "#if ROWS\n"
                             "    if (i + e < N) p.x[e] = (c + e < LENGTH ? x0 : x1)[e * STEP];\n"
                             "#else\n"
                             "    if (i + e < N) p.x[e] = x[place(i + e).x[0]];\n"
                             "#endif\n"
                             "  if (i + w <= N) {\n    *(P *)(y + i) = p;\n    return;\n  }\n"
                             "#pragma unroll\n"
                             "  for (int e = 0; e < w; e++)\n    if (i + e < N) y[i + e] = p.x[e];\n}\n";
  fl_cuda_writer w = {0};
  shape dense = *s; /* of which place tells where in the input elements are */
  const axis *last = &s->axes[s->n - 1];
  int64_t width = 16 / (int64_t)s->size, n = (s->total + width - 1) / width;
  bool rows = last->dim >= width;
  for (int i = 0; i < s->n; i++) dense.axes[i].out = 0;
  begin(&w, a, s);
  fl_cuda_write_number(&w, "ROWS", rows);
  fl_cuda_write_size(&w, "N", s->total);
  if (rows) {
    fl_cuda_write_divisor(&w, "LENGTH", last->dim);
    fl_cuda_write_size(&w, "STEP", last->in);
  }
  place(&w, &dense, rows ? s->n - 1 : s->n, 1);
  fl_cuda_write_launch(&w, a, body, (n + 255) / 256, 256, 0);
}

/* --- tiles --- */

enum { TILE = 32, MIN_SIDE = 16 };

/* The axis along which elements of the input are adjacent, if it is not the result's. */
static int crossing_axis(const shape *s) {
  const axis *last = &s->axes[s->n - 1];
  if (last->out != 1 || last->dim < MIN_SIDE) return -1;
  for (int i = 0; i + 1 < s->n; i++)
    if (s->axes[i].in == 1 && s->axes[i].dim >= MIN_SIDE) return i;
  return -1;
}

/* Tiles of the crossing axis (u) by the last one (v); the other axes count in `rest`. */
static void by_tiles(const fl_run_args *a, const shape *s, int crossing) {
  static const char body[] =
      HEAD "  __shared__ T tile[32][33];\n"
           "  const I b = blockIdx.x, row = OVER_TILES_V(b), r = OVER_TILES_U(row);\n"
           "  const I u = (row - r * TILES_U) * 32, v = (b - row * TILES_V) * 32;\n"
           "  const int lane = threadIdx.x % 32, first = threadIdx.x / 32;\n"
           "  const pack<I, 2> o = place(r);\n"
           "  x += o.x[0];\n  y += o.x[1];\n"
           "#pragma unroll\n  for (int j = first; j < 32; j += 8)\n"
           "    if (u + lane < U_DIM && v + j < V_DIM) tile[j][lane] = x[u + lane + (v + j) * IN_V];\n"
           "  __syncthreads();\n"
           "#pragma unroll\n  for (int j = first; j < 32; j += 8)\n"
           "    if (u + j < U_DIM && v + lane < V_DIM) y[(u + j) * OUT_U + v + lane] = tile[lane][j];\n}\n";
  fl_cuda_writer w = {0};
  shape rest = *s;
  axis u = s->axes[crossing], v = s->axes[s->n - 1];
  rest.n = 0;
  for (int i = 0; i + 1 < s->n; i++)
    if (i != crossing) rest.axes[rest.n++] = s->axes[i];
  int64_t tiles_u = (u.dim + TILE - 1) / TILE, tiles_v = (v.dim + TILE - 1) / TILE, n = s->total / (u.dim * v.dim);
  begin(&w, a, s);
  fl_cuda_write_size(&w, "U_DIM", u.dim);
  fl_cuda_write_size(&w, "V_DIM", v.dim);
  fl_cuda_write_size(&w, "IN_V", v.in);
  fl_cuda_write_size(&w, "OUT_U", u.out);
  fl_cuda_write_divisor(&w, "TILES_U", tiles_u);
  fl_cuda_write_divisor(&w, "TILES_V", tiles_v);
  place(&w, &rest, rest.n, 1);
  fl_cuda_write_launch(&w, a, body, tiles_u * tiles_v * n, 256, 0);
}

void fl_cuda_copy(const fl_run_args *a) {
  const fl_tensor *in = &a->in[0], *out = &a->out[0];
  shape s = shape_of(in, out);
  int64_t w = vector_of(&s, in, out);
  int crossing = crossing_axis(&s);
  if (s.total == 0) return;
  if ((size_t)w * s.size <= 4 && has_long_rows(&s))
    by_rows(a, &s);
  else if ((size_t)w * s.size >= 4 && w > 1)
    by_vectors(a, &s, w);
  else if (crossing >= 0)
    by_tiles(a, &s, crossing);
  else if (is_dense(&s) && (uintptr_t)out->data % 16 == 0)
    by_gathering(a, &s);
  else
    by_vectors(a, &s, 1);
}
