/* Normalizations, inference only. */
#include "lower/convert.h"

static fl_vid ones_or(fl_cv *c, fl_vid v, fl_dtype dtype, int64_t channels, double def) {
  return v != FL_NO_VALUE ? v : fl_cv_full(c, dtype, 1, &channels, def);
}

/* A node (x, weight, bias); a bias alone gets a weight of ones. */
static fl_vid affine(fl_cv *c, fl_op op, fl_vid x, fl_vid w, fl_vid b, const fl_attrs *attrs) {
  return fl_cv_op(c, op, (fl_vid[]){x, w, b}, b != FL_NO_VALUE ? 3 : w != FL_NO_VALUE ? 2 : 1, attrs);
}

static int normalized_axes(fl_cv *c, fl_vid x) {
  int64_t shape[FL_MAX_RANK];
  int n = fl_cv_ints(c, "normalized_shape", shape, FL_MAX_RANK);
  if (n < 1 || n > fl_cv_type(c, x).rank) fl_cv_decline(c, "normalized_shape of length %d", n);
  return n;
}

void fl_convert_layer_norm(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg_opt(c, "weight"), b = fl_cv_arg_opt(c, "bias");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axes", 'i', normalized_axes(c, x));
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, "eps", 1e-5));
  fl_cv_result(c, 0, affine(c, FL_OP_LAYER_NORM, x, w, b, &attrs));
}

/* No eps means that of the type in which PyTorch computes. */
void fl_convert_rms_norm(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg_opt(c, "weight");
  double eps = fl_cv_type(c, x).dtype == FL_F64 ? 0x1p-52 : 0x1p-23;
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "axes", 'i', normalized_axes(c, x));
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, "eps", eps));
  fl_cv_result(c, 0, fl_cv_op(c, FL_OP_RMS_NORM, (fl_vid[]){x, w}, w != FL_NO_VALUE ? 2 : 1, &attrs));
}

void fl_convert_group_norm(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg_opt(c, "weight"), b = fl_cv_arg_opt(c, "bias");
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "groups", 'i', fl_cv_int(c, fl_cv_has(c, "group") ? "group" : "num_groups", 1));
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, "eps", 1e-5));
  fl_cv_result(c, 0, affine(c, FL_OP_GROUP_NORM, x, w, b, &attrs));
}

static fl_vid batch_norm(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), mean = fl_cv_arg_opt(c, "running_mean"), var = fl_cv_arg_opt(c, "running_var");
  fl_type t = fl_cv_type(c, x);
  if (mean == FL_NO_VALUE || var == FL_NO_VALUE) fl_cv_decline(c, "no running statistics");
  if (t.rank < 2) fl_cv_decline(c, "input of rank %d", t.rank);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  fl_vid w = ones_or(c, fl_cv_arg_opt(c, "weight"), fl_cv_type(c, mean).dtype, t.dims[1], 1);
  fl_vid b = ones_or(c, fl_cv_arg_opt(c, "bias"), fl_cv_type(c, mean).dtype, t.dims[1], 0);
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, fl_cv_has(c, "epsilon") ? "epsilon" : "eps", 1e-5));
  return fl_cv_op(c, FL_OP_BATCH_NORM, (fl_vid[]){x, w, b, mean, var}, 5, &attrs);
}

/* Each channel by its own mean and variance over the given batch: a group norm with the batch axis moved inside. */
static fl_vid batch_statistics_norm(fl_cv *c) {
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg_opt(c, "weight"), b = fl_cv_arg_opt(c, "bias");
  fl_type t = fl_cv_type(c, x);
  if (t.rank < 2 || t.rank == FL_MAX_RANK) fl_cv_decline(c, "input of rank %d", t.rank);
  if (!fl_cv_ok(c)) return FL_NO_VALUE;
  bool one = t.dims[0] == 1;
  if (!one) x = fl_cv_unsqueeze(c, fl_cv_transpose(c, x, 0, 1), 0);
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "groups", 'i', t.dims[1]);
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, fl_cv_has(c, "epsilon") ? "epsilon" : "eps", 1e-5));
  x = affine(c, FL_OP_GROUP_NORM, x, w, b, &attrs);
  return one ? x : fl_cv_transpose(c, fl_cv_squeeze(c, x, 0), 0, 1);
}

/* All overloads; the one named no_training has no argument `training`. */
void fl_convert_batch_norm(fl_cv *c) {
  bool kept = fl_cv_has(c, "running_mean") || fl_cv_has(c, "running_var");
  bool training = fl_cv_bool(c, "training", false);
  if (training && kept) fl_cv_decline(c, "batch norm in training mode updates its statistics");
  fl_cv_result(c, 0, training ? batch_statistics_norm(c) : batch_norm(c));
}

/* Of each image and channel alone: as many groups as channels. */
void fl_convert_instance_norm(fl_cv *c) {
  if (!fl_cv_bool(c, "use_input_stats", true)) {
    fl_cv_result(c, 0, batch_norm(c));
    return;
  }
  if (fl_cv_has(c, "running_mean")) fl_cv_decline(c, "instance norm in training mode updates its statistics");
  fl_vid x = fl_cv_arg(c, "input"), w = fl_cv_arg_opt(c, "weight"), b = fl_cv_arg_opt(c, "bias");
  fl_type t = fl_cv_type(c, x);
  if (t.rank < 3) fl_cv_decline(c, "input of rank %d", t.rank);
  fl_attrs attrs = {0};
  fl_attr_set_int(&attrs, "groups", 'i', t.dims[1]);
  fl_attr_set_float(&attrs, "eps", fl_cv_float(c, "eps", 1e-5));
  fl_cv_result(c, 0, affine(c, FL_OP_GROUP_NORM, x, w, b, &attrs));
}
