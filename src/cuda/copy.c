/* Strided copies: vectors where elements are adjacent in both, also where rows begin anywhere, tiles through shared memory where the axes of adjacent elements
 * differ (channels-last and contiguous), vectors gathered element by element where only the result is dense. */
#include <inttypes.h>

#include "cuda/nvrtc.h"
#include "cuda/ops.h"

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

/* A function of axes [0, n), the last of which counts `each` elements. */
static void place(fl_text *t, const char *name, const shape *s, int n, int64_t each, bool in) {
  int64_t dims[FL_MAX_RANK], strides[FL_MAX_RANK];
  for (int i = 0; i < n; i++) {
    int64_t w = i == s->n - 1 ? each : 1;
    dims[i] = s->axes[i].dim / w;
    strides[i] = (in ? s->axes[i].in : s->axes[i].out) * w;
  }
  fl_cg_function(t, name, n, dims, strides);
}

static void begin(fl_text *t, const shape *s) { fl_text_add(t, "typedef %s T;\n", type_of(s->size)); }

static const char head[] =
    "extern \"C\" __global__ void __launch_bounds__(256) k(const T *x, T *y, int *fault) {\n  FOLLOW;\n";

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

static void by_vectors(const fl_run_args *a, const shape *s, int64_t w) {
  fl_text t = {0};
  int64_t n = s->total / w;
  begin(&t, s);
  place(&t, "from", s, s->n, w, true);
  place(&t, "to", s, s->n, w, false);
  fl_text_add(&t, "typedef pack<T, %d> P;\n%s", (int)w, head);
  fl_text_add(&t, "  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;\n  if (i < %" PRId64 ") ", n);
  fl_text_add(&t, "*(P *)(y + to(i)) = *(const P *)(x + from(i));\n}\n");
  void *pointers[] = {a->in[0].data, a->out[0].data, a->fault};
  fl_cuda_launch(a, &t, (n + 255) / 256, 256, 0, pointers, 3);
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
  fl_text t = {0};
  int64_t length = s->axes[s->n - 1].dim, w = 16 / (int64_t)s->size, slots = length / w + 2, rows = s->total / length;
  begin(&t, s);
  place(&t, "from", s, s->n - 1, 1, true);
  place(&t, "to", s, s->n - 1, 1, false);
  fl_text_add(&t, "typedef pack<unsigned long long, 2> P;\ntypedef unsigned long long u64;\n%s", head);
  fl_text_add(&t,
              "  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x, r = i / %" PRId64 ";\n"
              "  if (r >= %" PRId64 ") return;\n"
              "  const int slot = (int)(i - r * %" PRId64 "), n = %" PRId64 ", w = %d;\n",
              slots, rows, slots, length, (int)w);
  fl_text_add(&t,
              "  x += from(r);\n  y += to(r);\n"
              "  const int before = (int)((16 - (u64)y %% 16) %% 16 / sizeof(T));\n"
              "  const int at = slot ? before + (slot - 1) * w : 0, end = slot ? at + w : before;\n"
              "  if (slot && end + w <= n) {\n"
              "    const unsigned off = (unsigned)((u64)(x + at) %% 16);\n"
              "    const P *p = (const P *)((const char *)(x + at) - off);\n"
              "    const P lo = p[0], hi = off ? p[1] : lo;\n"
              "    const bool far = off >= 8;\n"
              "    const int bits = (int)(off %% 8) * 8;\n"
              "    const u64 a = far ? lo.x[1] : lo.x[0], b = far ? hi.x[0] : lo.x[1], c = far ? hi.x[1] : hi.x[0];\n"
              "    P out;\n"
              "    out.x[0] = bits ? a >> bits | b << (64 - bits) : a;\n"
              "    out.x[1] = bits ? b >> bits | c << (64 - bits) : b;\n"
              "    *(P *)(y + at) = out;\n"
              "    return;\n  }\n"
              "  for (int e = at; e < end && e < n; e++) y[e] = x[e];\n}\n");
  void *pointers[] = {a->in[0].data, a->out[0].data, a->fault};
  fl_cuda_launch(a, &t, (rows * slots + 255) / 256, 256, 0, pointers, 3);
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
  fl_text t = {0};
  const axis *last = &s->axes[s->n - 1];
  int64_t w = 16 / (int64_t)s->size, n = (s->total + w - 1) / w;
  bool rows = last->dim >= w;
  begin(&t, s);
  place(&t, "from", s, rows ? s->n - 1 : s->n, 1, true);
  fl_text_add(&t, "typedef pack<T, %d> P;\n%s", (int)w, head);
  fl_text_add(&t,
              "  const i64 i = ((i64)blockIdx.x * 256 + threadIdx.x) * %d;\n  if (i >= %" PRId64 ") return;\n  P p;\n",
              (int)w, s->total);
  if (rows)
    fl_text_add(&t,
                "  const i64 r = i / %" PRId64 ";\n  const int c = (int)(i - r * %" PRId64 ");\n"
                "  const T *x0 = x + from(r), *x1 = c + %d > %" PRId64 " && i + %d <= %" PRId64
                " ? x + from(r + 1) : x;\n",
                last->dim, last->dim, (int)w, last->dim, (int)w, s->total);
  fl_text_add(&t, "#pragma unroll\n  for (int e = 0; e < %d; e++)\n    if (i + e < %" PRId64 ") ", (int)w, s->total);
  if (rows)
    fl_text_add(&t,
                "p.x[e] = c + e < %" PRId64 " ? x0[(c + e) * (i64)%" PRId64 "] : x1[(c + e - %" PRId64
                ") * (i64)%" PRId64 "];\n",
                last->dim, last->in, last->dim, last->in);
  else
    fl_text_add(&t, "p.x[e] = x[from(i + e)];\n");
  fl_text_add(&t,
              "  if (i + %d <= %" PRId64 ") {\n    *(P *)(y + i) = p;\n    return;\n  }\n"
              "#pragma unroll\n  for (int e = 0; e < %d; e++)\n    if (i + e < %" PRId64 ") y[i + e] = p.x[e];\n}\n",
              (int)w, s->total, (int)w, s->total);
  void *pointers[] = {a->in[0].data, a->out[0].data, a->fault};
  fl_cuda_launch(a, &t, (n + 255) / 256, 256, 0, pointers, 3);
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
  fl_text t = {0};
  shape rest = *s;
  axis u = s->axes[crossing], v = s->axes[s->n - 1];
  rest.n = 0;
  for (int i = 0; i + 1 < s->n; i++)
    if (i != crossing) rest.axes[rest.n++] = s->axes[i];
  int64_t tiles_u = (u.dim + TILE - 1) / TILE, tiles_v = (v.dim + TILE - 1) / TILE, n = s->total / (u.dim * v.dim);
  begin(&t, s);
  place(&t, "from", &rest, rest.n, 1, true);
  place(&t, "to", &rest, rest.n, 1, false);
  fl_text_add(&t,
              "#define U %" PRId64 "\n#define V %" PRId64 "\n#define IN_V (i64)%" PRId64 "\n#define OUT_U (i64)%" PRId64
              "\n#define TILES_U %" PRId64 "u\n#define TILES_V %" PRId64 "u\n%s",
              u.dim, v.dim, v.in, u.out, tiles_u, tiles_v, head);
  fl_text_add(&t, "  __shared__ T tile[32][33];\n"
                  "  const unsigned b = blockIdx.x, across = b %% TILES_V, down = b / TILES_V %% TILES_U;\n"
                  "  const i64 r = b / (TILES_V * TILES_U);\n"
                  "  const int lane = threadIdx.x %% 32, first = threadIdx.x / 32;\n"
                  "  x += from(r);\n  y += to(r);\n"
                  "#pragma unroll\n  for (int j = first; j < 32; j += 8) {\n"
                  "    const int iu = down * 32 + lane, iv = across * 32 + j;\n"
                  "    if (iu < U && iv < V) tile[j][lane] = x[iu + iv * IN_V];\n  }\n"
                  "  __syncthreads();\n"
                  "#pragma unroll\n  for (int j = first; j < 32; j += 8) {\n"
                  "    const int iu = down * 32 + j, iv = across * 32 + lane;\n"
                  "    if (iu < U && iv < V) y[iu * OUT_U + iv] = tile[lane][j];\n  }\n}\n");
  void *pointers[] = {a->in[0].data, a->out[0].data, a->fault};
  fl_cuda_launch(a, &t, tiles_u * tiles_v * n, 256, 0, pointers, 3);
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
