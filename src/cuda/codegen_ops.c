/* Bodies of kernels with a thread for each output element, but for pointwise programs. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "cuda/writer.h"

typedef struct body {
  fl_cuda_writer *w;
  fl_text *t; /* its body */
  const fl_cuda_params *p;
  const fl_tensor *in, *out;
} body;

static const int64_t *list(const body *b, const char *key) { return fl_attr_list(&b->p->attrs, key, &(int){0}); }
static int64_t integer(const body *b, const char *key) { return fl_attr_int(&b->p->attrs, key, 0); }
static bool has(const body *b, int i) { return i < b->p->n_in && !b->p->absent[i]; }

/* "before(I)n5": a size among the arguments. */
static void size(const body *b, const char *before, int64_t v) {
  fl_text_add(b->t, "%s", before);
  fl_cuda_put_size(b->w, b->t, v);
}

static void pad(const body *b) {
  const int64_t *pads = list(b, "pads");
  const fl_tensor *x = &b->in[0];
  fl_text_add(b->t, "  bool inside = true;\n  I at = 0;\n");
  for (int d = 0; d < x->type.rank; d++) {
    bool padded = pads[2 * d] || pads[2 * d + 1];
    fl_text_add(b->t, "  { const I s = c%d", d);
    if (padded) {
      size(b, " - ", pads[2 * d]);
      size(b, "; inside = inside && s >= 0 && s < ", x->type.dims[d]);
    }
    size(b, "; at += s * ", x->strides[d]);
    fl_text_add(b->t, "; }\n");
  }
  fl_text_add(b->t, "  if (inside) y0[o] = x0[at];\n  else st(y0[o], ");
  fl_cg_number(b->t, b->out[0].type.dtype, fl_attr_float(&b->p->attrs, "value", 0));
  fl_text_add(b->t, ");\n");
}

static void flip(const body *b) {
  int n;
  const int64_t *axes = fl_attr_list(&b->p->attrs, "axes", &n);
  const fl_tensor *x = &b->in[0];
  fl_text_add(b->t, "  y0[o] = x0[0");
  for (int d = 0; d < x->type.rank; d++) {
    bool turned = false;
    for (int i = 0; i < n; i++) turned = turned || axes[i] == d;
    if (turned) size(b, " + (", x->type.dims[d] - 1);
    fl_text_add(b->t, turned ? " - c%d)" : " + c%d", d);
    size(b, " * ", x->strides[d]);
  }
  fl_text_add(b->t, "];\n");
}

static void tri(const body *b) {
  int r = b->in[0].type.rank;
  fl_text_add(b->t, "  if (c%d - c%d %s ", r - 1, r - 2, integer(b, "upper") ? "<" : ">");
  size(b, "", integer(b, "diagonal"));
  fl_text_add(b->t, ") st(y0[o], 0);\n  else y0[o] = x0[");
  fl_cg_offset(b->w, &b->in[0], &b->out[0].type);
  fl_text_add(b->t, "];\n");
}

static void iota(const body *b) {
  fl_text_add(b->t, "  st(y0[o], %.17g + %.17g * (double)", fl_attr_float(&b->p->attrs, "start", 0),
              fl_attr_float(&b->p->attrs, "step", 1));
  if (b->out[0].type.rank)
    fl_text_add(b->t, "c%" PRId64 ");\n", integer(b, "axis"));
  else
    fl_text_add(b->t, "0);\n");
}

/* "const i64 j = index" read at the output's coordinates first, first + 1, ... of an operand that broadcasts. */
static void read_index(const body *b, int operand, int first, int64_t n, bool wrap) {
  const fl_tensor *x = &b->in[operand];
  fl_text_add(b->t, "  const i64 j%d = index_in(ld(x%d[0", operand, operand);
  for (int d = 0; d < x->type.rank; d++) {
    if (x->type.dims[d] == 1) continue;
    fl_text_add(b->t, " + c%d", first + d);
    size(b, " * ", x->strides[d]);
  }
  size(b, "]), ", n);
  fl_text_add(b->t, ", %s, fault);\n", wrap ? "true" : "false");
}

/* " + c2 * (i64)stride", or for an index read " + j1 * (i64)stride". */
static void step(const body *b, char name, int number, int64_t stride) {
  fl_text_add(b->t, " + %c%d * (i64)", name, number);
  size(b, "", stride);
}

static void select(const body *b) {
  const fl_tensor *x = &b->in[0], *index = &b->in[1];
  int axis = (int)integer(b, "axis");
  read_index(b, 1, axis, x->type.dims[axis], false);
  fl_text_add(b->t, "  y0[o] = x0[0");
  step(b, 'j', 1, x->strides[axis]);
  for (int d = 0; d < x->type.rank; d++)
    if (d != axis) step(b, 'c', d < axis ? d : d - 1 + index->type.rank, x->strides[d]);
  fl_text_add(b->t, "];\n");
}

static void gather(const body *b) {
  const fl_tensor *x = &b->in[0];
  int axis = (int)integer(b, "axis");
  read_index(b, 1, 0, x->type.rank ? x->type.dims[axis] : 1, false);
  fl_text_add(b->t, "  y0[o] = x0[0");
  for (int d = 0; d < x->type.rank; d++) step(b, d == axis ? 'j' : 'c', d == axis ? 1 : d, x->strides[d]);
  fl_text_add(b->t, "];\n");
}

static void index_arrays(const body *b) {
  const fl_tensor *x = &b->in[0];
  int axis = (int)integer(b, "axis"), n = b->p->n_in - 1, rank = 0;
  for (int i = 1; i <= n; i++)
    if (b->in[i].type.rank > rank) rank = b->in[i].type.rank;
  for (int i = 1; i <= n; i++) read_index(b, i, axis + rank - b->in[i].type.rank, x->type.dims[axis + i - 1], true);
  fl_text_add(b->t, "  y0[o] = x0[0");
  for (int i = 1; i <= n; i++) step(b, 'j', i, x->strides[axis + i - 1]);
  for (int d = 0; d < x->type.rank; d++)
    if (d < axis || d >= axis + n) step(b, 'c', d < axis ? d : d - n + rank, x->strides[d]);
  fl_text_add(b->t, "];\n");
}

/* All elements up to this one: quadratic, for short axes. */
static void cumsum(const body *b) {
  const fl_tensor *x = &b->in[0];
  int64_t axis = integer(b, "axis");
  fl_text_add(b->t, "  %s sum = 0;\n", fl_cg_register(b->out[0].type.dtype));
  if (!x->type.rank) {
    fl_text_add(b->t, "  sum = ld(x0[0]);\n  st(y0[o], sum);\n");
    return;
  }
  fl_text_add(b->t, "  for (I s = 0; s <= c%" PRId64 "; s++) sum += ld(x0[0", axis);
  for (int d = 0; d < x->type.rank; d++) {
    if (d == axis)
      fl_text_add(b->t, " + s");
    else
      fl_text_add(b->t, " + c%d", d);
    size(b, " * ", x->strides[d]);
  }
  fl_text_add(b->t, "]);\n  st(y0[o], sum);\n");
}

static void batch_norm(const body *b) {
  fl_text_add(b->t, "  st(y0[o], ((float)ld(x0[");
  fl_cg_offset(b->w, &b->in[0], &b->out[0].type);
  fl_text_add(b->t,
              "]) - (float)ld(x3[c1])) * rsqrtf((float)ld(x4[c1]) + %.9gf) * (float)ld(x1[c1]) + (float)ld(x2[c1]));\n",
              fl_attr_float(&b->p->attrs, "eps", 1e-5));
}

/* --- images --- */

static void image_base(const body *b) {
  const int64_t *s = b->in[0].strides;
  fl_text_add(b->t, "  const I base = c0 * (I)%" PRId64 " + c1 * (I)%" PRId64 ";\n", s[0], s[1]);
}

/* "const %s *": bounds h0, h1, w0, w1 of the window in the image. */
static void max_pool(const body *b) {
  const int64_t *k = list(b, "kernel"), *s = list(b, "stride"), *p = list(b, "pad"), *d = list(b, "dilation");
  const fl_tensor *x = &b->in[0];
  image_base(b);
  fl_text_add(b->t, "  %s m = -INF;\n", fl_cg_register(x->type.dtype));
  fl_text_add(b->t,
              "  for (int i2 = 0; i2 < %" PRId64 "; i2++)\n  for (int j2 = 0; j2 < %" PRId64 "; j2++) {\n"
              "    const I h = c2 * (I)%" PRId64 " - %" PRId64 " + i2 * (I)%" PRId64 ", w = c3 * (I)%" PRId64
              " - %" PRId64 " + j2 * (I)%" PRId64 ";\n",
              k[0], k[1], s[0], p[0], d[0], s[1], p[1], d[1]);
  fl_text_add(b->t,
              "    if (h >= 0 && w >= 0 && h < (I)%" PRId64 " && w < (I)%" PRId64
              ") m = max_nan(m, ld(x0[base + h * (I)%" PRId64 " + w * (I)%" PRId64 "]));\n  }\n  st(y0[o], m);\n",
              x->type.dims[2], x->type.dims[3], x->strides[2], x->strides[3]);
}

/* Sum over [h0, h1) x [w0, w1), divided by `count`. */
static void average(const body *b, const char *count) {
  const fl_tensor *x = &b->in[0];
  fl_text_add(
      b->t,
      "  %s sum = 0;\n  for (I h = h0; h < h1; h++)\n  for (I w = w0; w < w1; w++) sum += ld(x0[base + h * (I)%" PRId64
      " + w * (I)%" PRId64 "]);\n  st(y0[o], sum / %s);\n",
      fl_cg_register(x->type.dtype), x->strides[2], x->strides[3], count);
}

static void avg_pool(const body *b) {
  const int64_t *k = list(b, "kernel"), *s = list(b, "stride"), *p = list(b, "pad"), divisor = integer(b, "divisor");
  const char *names[2] = {"h", "w"};
  char count[40];
  image_base(b);
  for (int d = 0; d < 2; d++)
    fl_text_add(b->t,
                "  I %s0 = c%d * (I)%" PRId64 " - %" PRId64 ", %s1 = min(%s0 + (I)%" PRId64 ", (I)%" PRId64 ");\n",
                names[d], 2 + d, s[d], p[d], names[d], names[d], k[d], b->in[0].type.dims[2 + d] + p[d]);
  fl_text_add(b->t, "  const I padded = (h1 - h0) * (w1 - w0);\n");
  for (int d = 0; d < 2; d++)
    fl_text_add(b->t, "  %s0 = max(%s0, (I)0);\n  %s1 = min(%s1, (I)%" PRId64 ");\n", names[d], names[d], names[d],
                names[d], b->in[0].type.dims[2 + d]);
  fl_text_add(b->t, "  if (h0 >= h1 || w0 >= w1) { st(y0[o], 0); return; }\n");
  snprintf(count, sizeof count, "(I)%" PRId64, divisor);
  average(b, divisor ? count : integer(b, "include_pad") ? "padded" : "((h1 - h0) * (w1 - w0))");
}

static void adaptive_pool(const body *b) {
  const char *names[2] = {"h", "w"};
  image_base(b);
  for (int d = 0; d < 2; d++) {
    int64_t in = b->in[0].type.dims[2 + d], out = b->out[0].type.dims[2 + d];
    fl_text_add(b->t,
                "  const I %s0 = c%d * (I)%" PRId64 " / (I)%" PRId64 ", %s1 = ((c%d + 1) * (I)%" PRId64 " + %" PRId64
                ") / (I)%" PRId64 ";\n",
                names[d], 2 + d, in, out, names[d], 2 + d, in, out - 1, out);
  }
  average(b, "((h1 - h0) * (w1 - w0))");
}

/* Input step for one output step, as PyTorch computes it: in float. */
static double resize_step(const body *b, int axis, bool corners) {
  int64_t in = b->in[0].type.dims[axis], out = b->out[0].type.dims[axis];
  double scale = fl_attr_float(&b->p->attrs, axis == 2 ? "scale_h" : "scale_w", 0);
  if (corners) return out > 1 ? (double)((float)(in - 1) / (float)(out - 1)) : 0;
  return scale > 0 ? (double)(float)(1 / scale) : (double)((float)in / (float)out);
}

/* The pixels a0 and a1 between which result index c<axis> lies, and at: how far from a0. */
static void between(const body *b, char a, int axis, bool corners) {
  int64_t last = b->in[0].type.dims[axis] - 1;
  double step = resize_step(b, axis, corners);
  fl_text_add(b->t,
              corners ? "  const float %cs = (float)c%d * (float)%.9g;\n"
                      : "  const float %cs = ((float)c%d + 0.5f) * (float)%.9g - 0.5f;\n",
              a, axis, step);
  fl_text_add(b->t, "  const float %cf = fmaxf(%cs, 0.0f);\n", a, a);
  fl_text_add(b->t, "  const I %c0 = min((I)%cf, (I)%" PRId64 "), %c1 = min(%c0 + 1, (I)%" PRId64 ");\n", a, a, last, a,
              a, last);
  fl_text_add(b->t, "  const float %ct = fminf(%cf - (float)%c0, 1.0f);\n", a, a, a);
}

static void resize(const body *b) {
  const int64_t *s = b->in[0].strides, *d = b->in[0].type.dims;
  bool corners = integer(b, "align_corners");
  image_base(b);
  if (!integer(b, "bilinear")) {
    fl_text_add(b->t, "  const I h = min((I)floorf((float)c2 * (float)%.9g), (I)%" PRId64 ");\n",
                resize_step(b, 2, false), d[2] - 1);
    fl_text_add(b->t, "  const I w = min((I)floorf((float)c3 * (float)%.9g), (I)%" PRId64 ");\n",
                resize_step(b, 3, false), d[3] - 1);
    fl_text_add(b->t, "  y0[o] = x0[base + h * (I)%" PRId64 " + w * (I)%" PRId64 "];\n", s[2], s[3]);
    return;
  }
  between(b, 'h', 2, corners);
  between(b, 'w', 3, corners);
  for (int i = 0; i < 4; i++)
    fl_text_add(b->t, "  const %s p%d%d = ld(x0[base + h%d * (I)%" PRId64 " + w%d * (I)%" PRId64 "]);\n",
                fl_cg_register(b->in[0].type.dtype), i / 2, i % 2, i / 2, s[2], i % 2, s[3]);
  fl_text_add(b->t, "  st(y0[o], (p00 * (1 - wt) + p01 * wt) * (1 - ht) + (p10 * (1 - wt) + p11 * wt) * ht);\n");
}

/* --- direct products and convolutions: what the libraries decline --- */

static void finish_sum(const body *b, int column) {
  if (has(b, 2)) fl_text_add(b->t, "  sum += (float)ld(x2[c%d * (I)%" PRId64 "]);\n", column, b->in[2].strides[0]);
  if (has(b, 3)) {
    fl_text_add(b->t, "  sum += (float)ld(x3[");
    fl_cg_offset(b->w, &b->in[3], &b->out[0].type);
    fl_text_add(b->t, "]);\n");
  }
  fl_cg_act(b->t, "sum", (fl_act)integer(b, "act"), fl_attr_float(&b->p->attrs, "act_lo", 0),
            fl_attr_float(&b->p->attrs, "act_hi", 0));
  fl_text_add(b->t, "  st(y0[o], sum);\n");
}

/* The operand's offset without its last two axes. */
static void batch_offset(const body *b, int i) {
  fl_tensor x = b->in[i];
  fl_type shape = b->out[0].type;
  x.type.dims[x.type.rank - 1] = x.type.dims[x.type.rank - 2] = 1;
  fl_cg_offset(b->w, &x, &shape);
}

static void matmul(const body *b) {
  const fl_tensor *a = &b->in[0], *w = &b->in[1];
  int r = b->out[0].type.rank, ra = a->type.rank, rw = w->type.rank;
  bool trans = integer(b, "trans_b");
  fl_text_add(b->t, "  const I oa = ");
  batch_offset(b, 0);
  fl_text_add(b->t, " + c%d * (I)%" PRId64 ", ob = ", r - 2, a->strides[ra - 2]);
  batch_offset(b, 1);
  fl_text_add(b->t, " + c%d * (I)%" PRId64 ";\n", r - 1, w->strides[trans ? rw - 2 : rw - 1]);
  fl_text_add(b->t,
              "  %s sum = 0;\n  for (I s = 0; s < (I)%" PRId64 "; s++) sum += ld(x0[oa + s * (I)%" PRId64
              "]) * ld(x1[ob + s * (I)%" PRId64 "]);\n",
              fl_cg_register(b->out[0].type.dtype), a->type.dims[ra - 1], a->strides[ra - 1],
              w->strides[trans ? rw - 1 : rw - 2]);
  finish_sum(b, r - 1);
}

static void conv2d(const body *b) {
  const fl_tensor *x = &b->in[0], *w = &b->in[1];
  const int64_t *s = list(b, "stride"), *p = list(b, "pad"), *d = list(b, "dilation"), groups = integer(b, "groups");
  fl_text_add(b->t,
              "  float sum = 0;\n  const I first = c1 / (I)%" PRId64 " * (I)%" PRId64 ";\n"
              "  for (int i2 = 0; i2 < %" PRId64 "; i2++)\n  for (int j2 = 0; j2 < %" PRId64 "; j2++) {\n"
              "    const I h = c2 * (I)%" PRId64 " - %" PRId64 " + i2 * (I)%" PRId64 ", v = c3 * (I)%" PRId64
              " - %" PRId64 " + j2 * (I)%" PRId64 ";\n    if (h < 0 || v < 0 || h >= (I)%" PRId64 " || v >= (I)%" PRId64
              ") continue;\n",
              b->out[0].type.dims[1] / groups, w->type.dims[1], w->type.dims[2], w->type.dims[3], s[0], p[0], d[0],
              s[1], p[1], d[1], x->type.dims[2], x->type.dims[3]);
  fl_text_add(b->t,
              "    for (I s = 0; s < (I)%" PRId64 "; s++)\n      sum += (float)ld(x0[c0 * (I)%" PRId64
              " + (first + s) * (I)%" PRId64 " + h * (I)%" PRId64 " + v * (I)%" PRId64
              "]) * (float)ld(x1[c1 * (I)%" PRId64 " + s * (I)%" PRId64 " + i2 * (I)%" PRId64 " + j2 * (I)%" PRId64
              "]);\n  }\n",
              w->type.dims[1], x->strides[0], x->strides[1], x->strides[2], x->strides[3], w->strides[0], w->strides[1],
              w->strides[2], w->strides[3]);
  finish_sum(b, 1);
}

/* Each result gathers the pixels whose windows reach it. */
static void conv_transpose(const body *b) {
  const fl_tensor *x = &b->in[0], *w = &b->in[1];
  const int64_t *s = list(b, "stride"), *p = list(b, "pad"), *d = list(b, "dilation"), groups = integer(b, "groups");
  fl_text_add(b->t, "  %s sum = 0;\n  const I first = c1 / (I)%" PRId64 " * (I)%" PRId64 ";\n",
              fl_cg_register(b->out[0].type.dtype), w->type.dims[1], x->type.dims[1] / groups);
  fl_text_add(b->t,
              "  for (int i2 = 0; i2 < %" PRId64 "; i2++)\n  for (int j2 = 0; j2 < %" PRId64 "; j2++) {\n"
              "    const I h = c2 + %" PRId64 " - i2 * (I)%" PRId64 ", v = c3 + %" PRId64 " - j2 * (I)%" PRId64 ";\n",
              w->type.dims[2], w->type.dims[3], p[0], d[0], p[1], d[1]);
  fl_text_add(b->t,
              "    if (h < 0 || v < 0 || h %% (I)%" PRId64 " || v %% (I)%" PRId64 " || h / (I)%" PRId64
              " >= (I)%" PRId64 " || v / (I)%" PRId64 " >= (I)%" PRId64 ") continue;\n",
              s[0], s[1], s[0], x->type.dims[2], s[1], x->type.dims[3]);
  fl_text_add(b->t,
              "    for (I c = first; c < first + (I)%" PRId64 "; c++)\n      sum += ld(x0[c0 * (I)%" PRId64
              " + c * (I)%" PRId64 " + h / (I)%" PRId64 " * (I)%" PRId64 " + v / (I)%" PRId64 " * (I)%" PRId64 "])",
              x->type.dims[1] / groups, x->strides[0], x->strides[1], s[0], x->strides[2], s[1], x->strides[3]);
  fl_text_add(b->t,
              " * ld(x1[c * (I)%" PRId64 " + c1 %% (I)%" PRId64 " * (I)%" PRId64 " + i2 * (I)%" PRId64
              " + j2 * (I)%" PRId64 "]);\n  }\n",
              w->strides[0], w->type.dims[1], w->strides[1], w->strides[2], w->strides[3]);
  if (has(b, 2)) fl_text_add(b->t, "  sum += ld(x2[c1 * (I)%" PRId64 "]);\n", b->in[2].strides[0]);
  fl_text_add(b->t, "  st(y0[o], sum);\n");
}

static void copy(const body *b) {
  fl_text_add(b->t, "  y0[o] = x0[");
  fl_cg_offset(b->w, &b->in[0], &b->out[0].type);
  fl_text_add(b->t, "];\n");
}

static const struct {
  fl_op op;
  void (*write)(const body *b);
} bodies[] = {
    {FL_OP_CAT, copy}, /* steps that copy say so */
    {FL_OP_PAD, pad},
    {FL_OP_FLIP, flip},
    {FL_OP_TRI, tri},
    {FL_OP_IOTA, iota},
    {FL_OP_EMBEDDING, select},
    {FL_OP_INDEX_SELECT, select},
    {FL_OP_GATHER, gather},
    {FL_OP_INDEX, index_arrays},
    {FL_OP_CUMSUM, cumsum},
    {FL_OP_BATCH_NORM, batch_norm},
    {FL_OP_MAX_POOL2D, max_pool},
    {FL_OP_AVG_POOL2D, avg_pool},
    {FL_OP_ADAPTIVE_AVG_POOL2D, adaptive_pool},
    {FL_OP_MATMUL, matmul},
    {FL_OP_CONV2D, conv2d},
    {FL_OP_CONV_TRANSPOSE2D, conv_transpose},
    {FL_OP_RESIZE2D, resize},
};

bool fl_cg_has_map(fl_op op) {
  for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
    if (bodies[i].op == op) return true;
  return op == FL_OP_POINTWISE;
}

void fl_cg_body(fl_cuda_writer *w, const fl_cuda_params *p, const fl_tensor *in, const fl_tensor *out) {
  body b = {w, &w->body, p, in, out};
  for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
    if (bodies[i].op == p->op) bodies[i].write(&b);
}
