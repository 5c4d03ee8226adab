#include "graph/infer.h"

/* --- normalizations --- */

fl_status fl_infer_layer_norm(const fl_infer_args *c) {
  const fl_type *x = c->in[0];
  int64_t axes = fl_attr_int(c->attrs, "axes", 0);
  FL_TRY(fl_infer_need_float(c, 0));
  if (axes < 1 || axes > x->rank) return FL_BREAKS(c, "axes is %lld: must be in [1, %d]", (long long)axes, x->rank);
  fl_type want = fl_type_make(x->dtype, (int)axes, x->dims + x->rank - axes);
  char buf[128];
  for (int i = 1; i < c->n_in; i++)
    if (c->in[i] && !fl_type_equal(c->in[i], &want))
      return FL_BREAKS(c, "operand %d must be %s", i, fl_type_str(&want, buf, sizeof buf));
  *c->out = *x;
  return NULL;
}

static fl_status need_channels(const fl_infer_args *c) {
  FL_TRY(fl_infer_need_float(c, 0));
  return c->in[0]->rank < 2 ? FL_BREAKS(c, "operand 0 has rank %d: must be 2 or more", c->in[0]->rank) : NULL;
}

fl_status fl_infer_group_norm(const fl_infer_args *c) {
  FL_TRY(need_channels(c));
  int64_t channels = c->in[0]->dims[1], groups = fl_attr_int(c->attrs, "groups", 0);
  if (groups < 1 || channels % groups)
    return FL_BREAKS(c, "groups is %lld: must divide %lld channels", (long long)groups, (long long)channels);
  for (int i = 1; i < 3; i++) FL_TRY(fl_infer_need_vector(c, i, channels));
  *c->out = *c->in[0];
  return NULL;
}

fl_status fl_infer_batch_norm(const fl_infer_args *c) {
  FL_TRY(need_channels(c));
  for (int i = 1; i < 5; i++) FL_TRY(fl_infer_need_vector(c, i, c->in[0]->dims[1]));
  *c->out = *c->in[0];
  return NULL;
}

/* --- matrix products --- */

static fl_status need_residual(const fl_infer_args *c, int operand) {
  char buf[128];
  if (!c->in[operand] || fl_type_equal(c->in[operand], c->out)) return NULL;
  return FL_BREAKS(c, "residual must be %s", fl_type_str(c->out, buf, sizeof buf));
}

fl_status fl_infer_matmul(const fl_infer_args *c) {
  const fl_type *a = c->in[0], *b = c->in[1];
  if (a->rank < 2 || b->rank < 2)
    return FL_BREAKS(c, "operands have ranks %d and %d: must be 2 or more", a->rank, b->rank);
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  bool trans = fl_attr_int(c->attrs, "trans_b", 0);
  int64_t m = a->dims[a->rank - 2], k = a->dims[a->rank - 1];
  int64_t bk = b->dims[b->rank - (trans ? 1 : 2)], n = b->dims[b->rank - (trans ? 2 : 1)];
  if (bk != k) return FL_BREAKS(c, "inner sizes are %lld and %lld: must be equal", (long long)k, (long long)bk);
  fl_type out = fl_type_make(a->dtype, a->rank - 2, a->dims), batch = fl_type_make(b->dtype, b->rank - 2, b->dims);
  FL_TRY(fl_infer_broadcast(c, &out, &batch));
  out.dims[out.rank++] = m;
  out.dims[out.rank++] = n;
  *c->out = out;
  FL_TRY(fl_infer_need_vector(c, 2, n));
  return need_residual(c, 3);
}

/* --- convolution and pooling --- */

typedef struct window {
  int64_t kernel, stride, dilation, before, after;
} window;

/* Where the window fits, as in PyTorch; with `ceil` a last one may hang over, if it starts inside. */
static fl_status window_out(const fl_infer_args *c, int64_t in, window w, bool ceil, int64_t *out) {
  int64_t span, room;
  if (w.kernel < 1 || __builtin_mul_overflow(w.dilation, w.kernel - 1, &span) || span > (int64_t)1 << 60 ||
      __builtin_add_overflow(in, w.before, &room) || __builtin_add_overflow(room, w.after, &room))
    return FL_BREAKS(c, "kernel of %lld elements", (long long)w.kernel);
  room -= span + 1;
  if (room < 0)
    return FL_BREAKS(c, "kernel spans %lld: axis has %lld elements with padding", (long long)span + 1,
                     (long long)room + span + 1);
  *out = room / w.stride + 1;
  if (ceil && room % w.stride && *out * w.stride < in + w.before) ++*out;
  return NULL;
}

fl_status fl_infer_conv2d(const fl_infer_args *c) {
  const fl_type *x = c->in[0], *w = c->in[1];
  const int64_t *stride, *pad, *dilation;
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_need_rank(c, 1, 4));
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  FL_TRY(fl_infer_list(c, "stride", 2, 1, &stride));
  FL_TRY(fl_infer_list(c, "pad", 4, 0, &pad));
  FL_TRY(fl_infer_list(c, "dilation", 2, 1, &dilation));
  int64_t groups = fl_attr_int(c->attrs, "groups", 0), in = x->dims[1], o = w->dims[0];
  if (groups < 1 || in % groups || o % groups || w->dims[1] != in / groups)
    return FL_BREAKS(c, "groups is %lld with %lld channels and weights of %lld x %lld", (long long)groups,
                     (long long)in, (long long)o, (long long)w->dims[1]);
  fl_type out = fl_type_make(x->dtype, 2, (int64_t[]){x->dims[0], o});
  for (int i = 0; i < 2; i++) {
    window win = {w->dims[2 + i], stride[i], dilation[i], pad[i], pad[2 + i]};
    FL_TRY(window_out(c, x->dims[2 + i], win, false, &out.dims[out.rank++]));
  }
  *c->out = out;
  FL_TRY(fl_infer_need_vector(c, 2, o));
  return need_residual(c, 3);
}

fl_status fl_infer_conv_transpose2d(const fl_infer_args *c) {
  const fl_type *x = c->in[0], *w = c->in[1];
  const int64_t *stride, *pad, *out_pad, *dilation;
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_need_rank(c, 1, 4));
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_need_same_dtype(c, 1, 0));
  FL_TRY(fl_infer_list(c, "stride", 2, 1, &stride));
  FL_TRY(fl_infer_list(c, "pad", 2, 0, &pad));
  FL_TRY(fl_infer_list(c, "out_pad", 2, 0, &out_pad));
  FL_TRY(fl_infer_list(c, "dilation", 2, 1, &dilation));
  int64_t groups = fl_attr_int(c->attrs, "groups", 0), o;
  if (groups < 1 || x->dims[1] % groups || w->dims[0] != x->dims[1] || __builtin_mul_overflow(w->dims[1], groups, &o))
    return FL_BREAKS(c, "groups is %lld with %lld channels and weights of %lld x %lld", (long long)groups,
                     (long long)x->dims[1], (long long)w->dims[0], (long long)w->dims[1]);
  fl_type out = fl_type_make(x->dtype, 4, (int64_t[]){x->dims[0], o, 0, 0});
  for (int i = 0; i < 2; i++) {
    /* In floating point first: sizes whose product overflows are refused, not wrapped. */
    double size = ((double)x->dims[2 + i] - 1) * (double)stride[i] - 2.0 * (double)pad[i] +
                  (double)dilation[i] * ((double)w->dims[2 + i] - 1) + (double)out_pad[i] + 1;
    if (size < 1 || size > 0x1p52) return FL_BREAKS(c, "result has %g elements along axis %d", size, 2 + i);
    out.dims[2 + i] = (int64_t)size;
  }
  *c->out = out;
  return fl_infer_need_vector(c, 2, o);
}

fl_status fl_infer_pool2d(const fl_infer_args *c) {
  static const int64_t ones[2] = {1, 1};
  const int64_t *kernel, *stride, *pad, *dilation = ones;
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_list(c, "kernel", 2, 1, &kernel));
  FL_TRY(fl_infer_list(c, "stride", 2, 1, &stride));
  FL_TRY(fl_infer_list(c, "pad", 2, 0, &pad));
  if (c->op == FL_OP_MAX_POOL2D)
    FL_TRY(fl_infer_list(c, "dilation", 2, 1, &dilation));
  else
    FL_TRY(fl_infer_need_float(c, 0));
  *c->out = *c->in[0];
  for (int i = 0; i < 2; i++) {
    if (pad[i] > kernel[i] / 2)
      return FL_BREAKS(c, "pad[%d] is %lld: must be at most half of kernel", i, (long long)pad[i]);
    window win = {kernel[i], stride[i], dilation[i], pad[i], pad[i]};
    FL_TRY(window_out(c, c->in[0]->dims[2 + i], win, fl_attr_int(c->attrs, "ceil", 0), &c->out->dims[2 + i]));
  }
  return NULL;
}

fl_status fl_infer_adaptive_pool2d(const fl_infer_args *c) {
  const int64_t *out;
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_need_float(c, 0));
  FL_TRY(fl_infer_list(c, "out", 2, 1, &out));
  *c->out = *c->in[0];
  for (int i = 0; i < 2; i++) {
    if (c->in[0]->dims[2 + i] < 1) return FL_BREAKS(c, "axis %d is empty", 2 + i);
    c->out->dims[2 + i] = out[i];
  }
  return NULL;
}

fl_status fl_infer_resize2d(const fl_infer_args *c) {
  const int64_t *out;
  FL_TRY(fl_infer_need_rank(c, 0, 4));
  FL_TRY(fl_infer_list(c, "out", 2, 1, &out));
  *c->out = *c->in[0];
  for (int i = 0; i < 2; i++) {
    if (c->in[0]->dims[2 + i] < 1) return FL_BREAKS(c, "axis %d is empty", 2 + i);
    c->out->dims[2 + i] = out[i];
  }
  return NULL;
}

/* --- attention --- */

static fl_status need_mask(const fl_infer_args *c, const fl_type *scores) {
  const fl_type *mask = c->in[3];
  char buf[128];
  if (!mask) return NULL;
  bool beside = mask->dtype == FL_F32 && (scores->dtype == FL_F16 || scores->dtype == FL_BF16);
  bool fits = mask->rank <= 4 && (mask->dtype == FL_BOOL || mask->dtype == scores->dtype || beside);
  for (int i = 1; fits && i <= mask->rank; i++)
    fits = mask->dims[mask->rank - i] == 1 || mask->dims[mask->rank - i] == scores->dims[4 - i];
  return fits ? NULL
              : FL_BREAKS(c, "mask must be bool or float and broadcast to %s", fl_type_str(scores, buf, sizeof buf));
}

fl_status fl_infer_attention(const fl_infer_args *c) {
  const fl_type *q = c->in[0], *k = c->in[1], *v = c->in[2];
  FL_TRY(fl_infer_need_float(c, 0));
  for (int i = 0; i < 3; i++) {
    FL_TRY(fl_infer_need_rank(c, i, 4));
    FL_TRY(fl_infer_need_same_dtype(c, i, 0));
  }
  int64_t heads = q->dims[1], groups = k->dims[1];
  if (k->dims[0] != q->dims[0] || v->dims[0] != q->dims[0]) return FL_BREAKS(c, "batch sizes differ");
  if (v->dims[1] != groups || groups < 1 || heads % groups)
    return FL_BREAKS(c, "%lld and %lld heads of keys and values: must be equal and divide %lld", (long long)groups,
                     (long long)v->dims[1], (long long)heads);
  if (k->dims[3] != q->dims[3]) return FL_BREAKS(c, "head sizes of queries and keys differ");
  if (k->dims[2] != v->dims[2]) return FL_BREAKS(c, "keys and values differ in number");
  *c->out = *q;
  c->out->dims[3] = v->dims[3];
  fl_type scores = *q;
  scores.dims[3] = k->dims[2];
  return need_mask(c, &scores);
}
