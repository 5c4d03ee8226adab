/* Scaled dot product attention: the whole operator and the variants PyTorch chooses among. */
#include <math.h>

#include "lower/convert.h"

/* [B, H, S, D]; without a batch axis (rank 3) it is [1, H, S, D], and several batch axes are one. */
static fl_vid as_heads(fl_cv *c, const char *name) {
  fl_vid x = fl_cv_arg(c, name);
  fl_type t = fl_cv_type(c, x);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (t.rank < 3) fl_cv_decline(c, "%s of rank %d", name, t.rank);
  if (t.rank <= 4) return t.rank == 3 ? fl_cv_unsqueeze(c, x, 0) : x;
  int64_t batch = 1, *inner = t.dims + t.rank - 3;
  for (int i = 0; i < t.rank - 3; i++) batch *= t.dims[i];
  return fl_cv_reshape(c, x, 4, (int64_t[]){batch, inner[0], inner[1], inner[2]});
}

/* A mask beside operands of `rank`, whose batch axes became one. */
static fl_vid as_mask(fl_cv *c, fl_vid mask, int rank, int64_t batch) {
  fl_type t = fl_cv_type(c, mask);
  if (!fl_cv_ok(c) || rank <= 4 || t.rank <= 3) return mask;
  int64_t own = 1, *inner = t.dims + t.rank - 3;
  for (int i = 0; i < t.rank - 3; i++) own *= t.dims[i];
  if (own != 1 && (t.rank != rank || own != batch)) fl_cv_decline(c, "a mask that repeats along one of the batch axes");
  return fl_cv_reshape(c, mask, 4, (int64_t[]){own, inner[0], inner[1], inner[2]});
}

/* [B, H, S, D] with each head `by` times in a row, as grouped queries meet it. */
static fl_vid repeat_heads(fl_cv *c, fl_vid x, int64_t by) {
  const fl_type t = fl_cv_type(c, x);
  if (by == 1 || !fl_cv_ok(c)) return x;
  x = fl_cv_expand(c, fl_cv_unsqueeze(c, x, 2), 5, (int64_t[]){t.dims[0], t.dims[1], by, t.dims[2], t.dims[3]});
  return fl_cv_reshape(c, x, 4, (int64_t[]){t.dims[0], t.dims[1] * by, t.dims[2], t.dims[3]});
}

/* Keys and values of the same number of heads, which divides that of the queries. */
static void group_heads(fl_cv *c, fl_vid qkv[3]) {
  if (!fl_cv_ok(c)) return;
  const fl_type q = fl_cv_type(c, qkv[0]), k = fl_cv_type(c, qkv[1]), v = fl_cv_type(c, qkv[2]);
  const int64_t hq = q.dims[1], hk = k.dims[1], hv = v.dims[1], most = hk > hv ? hk : hv;
  if (q.dims[0] != k.dims[0] || q.dims[0] != v.dims[0])
    fl_cv_decline(c, "query and key of different batches");
  else if (hk == 0 || hv == 0 || hq % hk || hq % hv)
    fl_cv_decline(c, "%lld query heads for %lld key heads and %lld of values", (long long)hq, (long long)hk,
                  (long long)hv);
  if (!fl_cv_ok(c)) return;
  const int64_t all = most % hk || most % hv ? hq : most;
  qkv[1] = repeat_heads(c, qkv[1], all / hk);
  qkv[2] = repeat_heads(c, qkv[2], all / hv);
}

/* bool, the operands' type, or f32 beside smaller ones (-1e9 must not become minus infinity). */
static fl_vid mask_of_type(fl_cv *c, fl_vid mask, fl_dtype t) {
  fl_dtype own = fl_cv_type(c, mask).dtype;
  bool is_fine = own == FL_BOOL || own == t || (own == FL_F32 && (t == FL_F16 || t == FL_BF16));
  return is_fine ? mask : fl_cv_cast(c, mask, t);
}

/* [B, H, S, D] each; mask: NO_VALUE if none. */
static fl_vid attend(fl_cv *c, fl_vid qkv[3], fl_vid mask, bool causal) {
  fl_type t = fl_cv_type(c, qkv[0]);
  if (fl_cv_float(c, "dropout_p", 0) != 0) fl_cv_decline(c, "attention with dropout is random");
  group_heads(c, qkv);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  /* PyTorch's flash kernel counts from the last query and key, all others (and the engine) from the first. */
  if (causal && c->param && t.dims[2] != fl_cv_type(c, qkv[1]).dims[2])
    fl_cv_decline(c, "causal from the last query, with other than as many keys");
  if (mask != FL_NO_VALUE) mask = mask_of_type(c, mask, t.dtype);
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "scale", fl_cv_float(c, "scale", 1 / sqrt((double)t.dims[3])));
  fl_attr_set_int(&attrs, "causal", 'b', causal);
  return fl_cv_op(c, FL_OP_ATTENTION, (fl_vid[]){qkv[0], qkv[1], qkv[2], mask}, mask == FL_NO_VALUE ? 3 : 4, &attrs);
}

/* The results beside the output (logsumexp ...) are never made. param: causal is as flash attention means it. */
void fl_convert_attention(fl_cv *c) {
  fl_vid qkv[] = {as_heads(c, "query"), as_heads(c, "key"), as_heads(c, "value")};
  fl_vid mask = fl_cv_arg_opt(c, fl_cv_has(c, "attn_bias") ? "attn_bias" : "attn_mask");
  fl_type out = fl_cv_out(c, 0);
  if (fl_cv_has(c, "dropout_mask")) fl_cv_decline(c, "attention with a dropout mask");
  if (mask != FL_NO_VALUE) mask = as_mask(c, mask, out.rank, fl_cv_type(c, qkv[0]).dims[0]);
  fl_vid r = attend(c, qkv, mask, fl_cv_bool(c, "is_causal", false));
  if (!fl_cv_ok(c)) return;
  fl_cv_result(c, 0, out.rank == 4 ? r : fl_cv_reshape(c, r, out.rank, out.dims));
}

/* The kernels themselves, on [B, S, H, D], as libraries call them. */
void fl_convert_attention_forward(fl_cv *c) {
  static const char *const refused[] = {"cum_seq_q",        "cum_seq_k",         "cu_seqlens_q", "cu_seqlens_k",
                                        "seqlen_k",         "window_size",       "seqused_k",    "alibi_slopes",
                                        "window_size_left", "window_size_right", "block_table"};
  static const char *const names[] = {"query", "key", "value"};
  fl_vid qkv[3];
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
    if (fl_cv_has(c, refused[i])) fl_cv_decline(c, "%s", refused[i]);
  int64_t kind = fl_cv_int(c, "custom_mask_type", 0); /* 1: causal, 2: from the last query */
  if (kind < 0 || kind > 2) fl_cv_decline(c, "custom_mask_type %lld", (long long)kind);
  for (int i = 0; i < 3 && fl_cv_ok(c); i++) {
    qkv[i] = fl_cv_arg(c, names[i]);
    if (fl_cv_type(c, qkv[i]).rank != 4)
      fl_cv_decline(c, "%s of rank %d", names[i], fl_cv_type(c, qkv[i]).rank);
    else
      qkv[i] = fl_cv_transpose(c, qkv[i], 1, 2);
  }
  if (!fl_cv_ok(c)) return;
  if (kind == 2 && fl_cv_type(c, qkv[0]).dims[2] != fl_cv_type(c, qkv[1]).dims[2])
    fl_cv_decline(c, "causal from the last query, with other than as many keys");
  fl_vid r = attend(c, qkv, fl_cv_arg_opt(c, "bias"), kind > 0 || fl_cv_bool(c, "is_causal", false));
  if (fl_cv_ok(c)) fl_cv_result(c, 0, fl_cv_transpose(c, r, 1, 2));
}

/* --- the fused layers that torch.nn.MultiheadAttention and TransformerEncoderLayer call in inference --- */

static fl_vid linear(fl_cv *c, fl_vid x, const char *weight, const char *bias) {
  return fl_cv_matmul(c, x, fl_cv_arg(c, weight), true, fl_cv_arg_opt(c, bias), FL_NO_VALUE);
}

/* PyTorch's masks tell what to leave out, as bool or as what is not 0 (-inf): type 0 is [S, T], type 1 is [B, T],
 * type 2 is [B, H, S, T]. The engine's tell what to keep. */
static fl_vid keep_mask(fl_cv *c) {
  fl_vid mask = fl_cv_arg_opt(c, "mask");
  if (mask == FL_NO_VALUE) return FL_NO_VALUE;
  fl_type t = fl_cv_type(c, mask);
  int64_t type = fl_cv_int(c, "mask_type", 2);
  if (type < 0 || type > 2 || t.rank != (type == 2 ? 4 : 2)) fl_cv_decline(c, "mask of type %d", (int)type);
  mask = fl_cv_unary(c, FL_OP_NOT, fl_cv_cast(c, mask, FL_BOOL));
  return type == 1 ? fl_cv_reshape(c, mask, 4, (int64_t[]){t.dims[0], 1, 1, t.dims[1]}) : mask;
}

/* These layers give NaN where everything is masked, attention of ours gives 0. */
static fl_vid nan_where_masked(fl_cv *c, fl_vid r, fl_vid keep) {
  int64_t last = fl_cv_type(c, keep).rank - 1;
  fl_vid any = fl_cv_reduce(c, FL_OP_ANY, keep, &last, 1, true);
  return fl_cv_where(c, any, r, fl_cv_scalar(c, fl_cv_type(c, r).dtype, NAN));
}

/* x [B, S, E] through the joint projection, heads, attention and the output projection. */
static fl_vid self_attention(fl_cv *c, fl_vid x, int64_t heads) {
  fl_type t = fl_cv_type(c, x);
  if (t.rank != 3 || heads < 1 || t.dims[2] % heads)
    fl_cv_decline(c, "input of rank %d for %d heads", t.rank, (int)heads);
  fl_vid mask = keep_mask(c), joint = linear(c, x, "qkv_weight", "qkv_bias"), qkv[3];
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  int64_t b = t.dims[0], s = t.dims[1], e = t.dims[2];
  for (int i = 0; i < 3; i++) {
    qkv[i] = fl_cv_slice(c, joint, 2, i * e, (i + 1) * e, 1);
    qkv[i] = fl_cv_transpose(c, fl_cv_reshape(c, qkv[i], 4, (int64_t[]){b, s, heads, e / heads}), 1, 2);
  }
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "scale", 1 / sqrt((double)(e / heads)));
  fl_attr_set_int(&attrs, "causal", 'b', false);
  fl_vid inputs[] = {qkv[0], qkv[1], qkv[2], mask};
  fl_vid r = fl_cv_op(c, FL_OP_ATTENTION, inputs, mask == FL_NO_VALUE ? 3 : 4, &attrs);
  if (mask != FL_NO_VALUE) r = nan_where_masked(c, r, mask);
  r = fl_cv_reshape(c, fl_cv_transpose(c, r, 1, 2), 3, t.dims);
  return linear(c, r, "proj_weight", "proj_bias");
}

void fl_convert_multi_head_attention(fl_cv *c) {
  fl_vid q = fl_cv_arg(c, "query");
  if (q != fl_cv_arg(c, "key") || q != fl_cv_arg(c, "value")) fl_cv_decline(c, "query, key and value differ");
  fl_cv_result(c, 0, self_attention(c, q, fl_cv_int(c, "num_head", 1)));
}

static fl_vid layer_norm(fl_cv *c, fl_vid x, const char *weight, const char *bias) {
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axes", 'i', 1);
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, "eps", 1e-5));
  return fl_cv_op(c, FL_OP_LAYER_NORM, (fl_vid[]){x, fl_cv_arg(c, weight), fl_cv_arg(c, bias)}, 3, &attrs);
}

static fl_vid feed_forward(fl_cv *c, fl_vid x) {
  x = linear(c, x, "ffn_weight_1", "ffn_bias_1");
  x = fl_cv_unary(c, fl_cv_bool(c, "use_gelu", false) ? FL_OP_GELU : FL_OP_RELU, x);
  return linear(c, x, "ffn_weight_2", "ffn_bias_2");
}

void fl_convert_encoder_layer(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "src");
  int64_t heads = fl_cv_int(c, "num_heads", 1);
  if (fl_cv_bool(c, "norm_first", false)) {
    x = fl_cv_binary(c, FL_OP_ADD, x, self_attention(c, layer_norm(c, x, "norm_weight_1", "norm_bias_1"), heads));
    x = fl_cv_binary(c, FL_OP_ADD, x, feed_forward(c, layer_norm(c, x, "norm_weight_2", "norm_bias_2")));
  } else {
    x = layer_norm(c, fl_cv_binary(c, FL_OP_ADD, x, self_attention(c, x, heads)), "norm_weight_1", "norm_bias_1");
    x = layer_norm(c, fl_cv_binary(c, FL_OP_ADD, x, feed_forward(c, x)), "norm_weight_2", "norm_bias_2");
  }
  fl_cv_result(c, 0, x);
}
