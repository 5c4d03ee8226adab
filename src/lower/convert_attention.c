/* Scaled dot product attention: the whole operator and the variants PyTorch chooses among. */
#include <math.h>

#include "lower/convert.h"

/* [B, H, S, D]; without a batch axis (rank 3) it is [1, H, S, D]. */
static fl_vid as_heads(fl_cv *c, const char *name) {
  fl_vid x = fl_cv_arg(c, name);
  int rank = fl_cv_type(c, x).rank;
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  if (rank != 3 && rank != 4) fl_cv_decline(c, "%s of rank %d", name, rank);
  return rank == 3 ? fl_cv_unsqueeze(c, x, 0) : x;
}

static void check_shapes(fl_cv *c, fl_vid q, fl_vid k, fl_vid v) {
  fl_type a = fl_cv_type(c, q), b = fl_cv_type(c, k), d = fl_cv_type(c, v);
  if (!fl_cv_ok(c)) return;
  if (a.dims[0] != b.dims[0] || a.dims[0] != d.dims[0]) fl_cv_decline(c, "query and key of different batches");
  else if (b.dims[1] != d.dims[1] || b.dims[1] == 0 || a.dims[1] % b.dims[1])
    fl_cv_decline(c, "%lld query heads for %lld key heads", (long long)a.dims[1], (long long)b.dims[1]);
}

/* Every variant: the results beside the output (logsumexp ...) are never made. */
void fl_convert_attention(fl_cv *c) {
  fl_vid q = as_heads(c, "query"), k = as_heads(c, "key"), v = as_heads(c, "value");
  fl_vid mask = fl_cv_arg_opt(c, fl_cv_has(c, "attn_bias") ? "attn_bias" : "attn_mask");
  fl_type t = fl_cv_type(c, q), out = fl_cv_out(c, 0);
  if (fl_cv_float(c, "dropout_p", 0) != 0) fl_cv_decline(c, "attention with dropout is random");
  if (fl_cv_has(c, "dropout_mask")) fl_cv_decline(c, "attention with a dropout mask");
  check_shapes(c, q, k, v);
  if (!fl_cv_ok(c)) return;
  if (mask != FL_NO_VALUE && fl_cv_type(c, mask).dtype != FL_BOOL) mask = fl_cv_cast(c, mask, t.dtype);
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "scale", fl_cv_float(c, "scale", 1 / sqrt((double)t.dims[3])));
  fl_attr_set_int(&attrs, "causal", 'b', fl_cv_bool(c, "is_causal", false));
  fl_vid r = fl_cv_op(c, FL_OP_ATTENTION, (fl_vid[]){q, k, v, mask}, mask == FL_NO_VALUE ? 3 : 4, &attrs);
  fl_cv_result(c, 0, out.rank == 3 ? fl_cv_squeeze(c, r, 0) : r);
}
