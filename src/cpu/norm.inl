/* layer_norm, rms_norm, group_norm, batch_norm, softmax and log_softmax of f32; the body of
 * norm_avx512.c and norm_avx2.c. */
#include <math.h>
#include <string.h>

#include "cpu/kernel.h"

typedef struct params {
  int64_t outer, n, inner; /* softmax: [outer, n, inner]; norms: outer rows of n */
  int64_t groups, channels, pixels;
  float eps;
  bool has_weight, has_bias, log_result, mean, channels_last;
} params;

static params *new_params(fl_arena *arena, fl_kernel_plan *plan) {
  params *q = fl_arena_alloc(arena, sizeof *q);
  plan->params = q;
  plan->params_bytes = sizeof *q;
  return q;
}

static const char *all_f32(const fl_problem *p) {
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && p->in[i].type.dtype != FL_F32) return "an operand is not f32";
  return NULL;
}

/* --- rows --- */

FL_INLINE vf load_part(const float *p, int64_t left) {
  return left >= VL ? vf_load(p) : vf_load_mask(p, vm_first((int)left));
}
FL_INLINE void store_part(float *p, int64_t left, vf v) {
  if (left >= VL)
    vf_store(p, v);
  else
    vf_store_mask(p, vm_first((int)left), v);
}

static float row_sum(const float *x, int64_t n) {
  vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
  int64_t k = 0;
  for (; k + 4 * VL <= n; k += 4 * VL) {
    s0 = vf_add(s0, vf_load(x + k));
    s1 = vf_add(s1, vf_load(x + k + VL));
    s2 = vf_add(s2, vf_load(x + k + 2 * VL));
    s3 = vf_add(s3, vf_load(x + k + 3 * VL));
  }
  for (; k < n; k += VL) s0 = vf_add(s0, load_part(x + k, n - k));
  return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

/* Sum of (x - mean)^2; *out_sum gets the sum of (x - mean). */
static float row_squares(const float *x, int64_t n, float mean, float *out_sum) {
  const vf m = vf_set1(mean);
  vf s0 = vf_zero(), s1 = vf_zero(), t0 = vf_zero(), t1 = vf_zero();
  int64_t k = 0;
  for (; k + 2 * VL <= n; k += 2 * VL) {
    vf a = vf_sub(vf_load(x + k), m), b = vf_sub(vf_load(x + k + VL), m);
    s0 = vf_fma(a, a, s0), s1 = vf_fma(b, b, s1);
    t0 = vf_add(t0, a), t1 = vf_add(t1, b);
  }
  for (; k + VL <= n; k += VL) {
    vf a = vf_sub(vf_load(x + k), m);
    s0 = vf_fma(a, a, s0);
    t0 = vf_add(t0, a);
  }
  float rest = 0, left = 0;
  for (; k < n; k++) {
    float d = x[k] - mean;
    rest += d * d;
    left += d;
  }
  *out_sum = left + vf_sum(vf_add(t0, t1));
  return rest + vf_sum(vf_add(s0, s1));
}

/* Mean and 1 / sqrt(variance + eps). The mean is corrected by what the first one left over: a row of equal numbers has
 * exactly that mean and no variance, however the sum was rounded. */
static float row_moments(const float *x, int64_t n, float eps, float *out_mean) {
  float mean = row_sum(x, n) / (float)n, left;
  float squares = row_squares(x, n, mean, &left), shift = left / (float)n;
  float var = squares / (float)n - shift * shift;
  *out_mean = mean + shift;
  if (fabsf(shift) > 0.03f * sqrtf(squares / (float)n)) /* the difference above is rounding alone: once more */
    var = row_squares(x, n, *out_mean, &left) / (float)n;
  return 1.0f / sqrtf(var + eps);
}

/* Whether sums overflowed on the way to this scale, of rows of n finite numbers that lie `step` apart. Where they do
 * depends on their order: eager's answer is another one. */
static bool has_overflowed(float scale, const float *x, int64_t rows, int64_t n, int64_t step) {
  if (scale > 0) return false;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < n; k++)
      if (!isfinite(x[r * step + k])) return false;
  return true;
}

/* y = (x - mean) scale [w] [+ b]; constant flags drop what is absent. */
FL_INLINE void row_affine(float *y, const float *x, int64_t n, float mean, float scale, const float *w, const float *b,
                          bool has_w, bool has_b) {
  const vf s = vf_set1(scale), m = vf_set1(mean);
  for (int64_t k = 0; k < n; k += VL) {
    vf v = vf_mul(vf_sub(load_part(x + k, n - k), m), s); /* x s - mean s would leave the rounding of mean s */
    if (has_w && has_b)
      v = vf_fma(v, load_part(w + k, n - k), load_part(b + k, n - k));
    else if (has_w)
      v = vf_mul(v, load_part(w + k, n - k));
    else if (has_b)
      v = vf_add(v, load_part(b + k, n - k));
    store_part(y + k, n - k, v);
  }
}

static void row_norm(const params *q, float *y, const float *x, const float *w, const float *b, int *fault) {
  float mean = 0, ignored;
  const float scale = q->mean ? row_moments(x, q->n, q->eps, &mean)
                              : 1.0f / sqrtf(row_squares(x, q->n, 0, &ignored) / (float)q->n + q->eps);
  if (has_overflowed(scale, x, 1, q->n, 0)) fl_set_fault(fault);
  if (q->has_weight && q->has_bias)
    row_affine(y, x, q->n, mean, scale, w, b, true, true);
  else if (q->has_weight)
    row_affine(y, x, q->n, mean, scale, w, b, true, false);
  else if (q->has_bias)
    row_affine(y, x, q->n, mean, scale, w, b, false, true);
  else
    row_affine(y, x, q->n, mean, scale, w, b, false, false);
}

/* --- layer_norm, rms_norm --- */

static const char *plan_rows(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = all_f32(p);
  if (why) return why;
  const fl_type *x = &p->in[0].type;
  int64_t axes = fl_attr_int(p->attrs, "axes", 1);
  if (axes < 1 || axes > x->rank) return "axes is out of range";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->outer = q->n = 1;
  for (int d = 0; d < x->rank; d++) *(d < x->rank - axes ? &q->outer : &q->n) *= x->dims[d];
  q->eps = (float)fl_attr_float(p->attrs, "eps", 1e-5);
  q->mean = p->op == FL_OP_LAYER_NORM;
  q->has_weight = p->n_in > 1 && !p->absent[1];
  q->has_bias = p->n_in > 2 && !p->absent[2];
  for (int i = 0; i < p->n_in; i++) {
    if (i && !p->absent[i] && fl_type_numel(&p->in[i].type) != q->n)
      return "weight and bias must have the normalized shape";
    plan->in_layout[i] = FL_LAYOUT_CONTIGUOUS;
  }
  plan->in_place = 0;
  plan->cost_us = 0.1 + (double)(q->outer * q->n) * 0.0004;
  return NULL;
}

static void rows_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  for (int64_t r = begin; r < end; r++)
    row_norm(q, (float *)a->out[0].data + r * q->n, (const float *)a->in[0].data + r * q->n,
             q->has_weight ? a->in[1].data : NULL, q->has_bias ? a->in[2].data : NULL, a->fault);
}

static void run_rows(const fl_run_args *a) {
  const params *q = a->params;
  if (q->n) fl_parallel(a->pool, q->outer, 1 + 8192 / q->n, rows_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(layer_norm) = {
    FL_NAME("layer_norm"), FL_OP_LAYER_NORM, FL_ISA_HERE, plan_rows, NULL, run_rows};
const fl_kernel FL_NAMED(rms_norm) = {FL_NAME("rms_norm"), FL_OP_RMS_NORM, FL_ISA_HERE, plan_rows, NULL, run_rows};

/* --- group_norm --- */

static const char *plan_group(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = all_f32(p);
  if (why) return why;
  const fl_type *x = &p->in[0].type;
  int64_t groups = fl_attr_int(p->attrs, "groups", 1);
  if (x->rank < 2 || groups < 1 || x->dims[1] % groups) return "groups must divide the channels";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->outer = x->dims[0], q->channels = x->dims[1], q->groups = groups, q->pixels = 1;
  for (int d = 2; d < x->rank; d++) q->pixels *= x->dims[d];
  q->eps = (float)fl_attr_float(p->attrs, "eps", 1e-5);
  q->has_weight = p->n_in > 1 && !p->absent[1];
  q->has_bias = p->n_in > 2 && !p->absent[2];
  q->channels_last = x->rank == 4 && fl_is_channels_last(x, p->in[0].strides) && !fl_is_contiguous(x, p->in[0].strides);
  plan->in_layout[0] = q->channels_last ? FL_LAYOUT_CHANNELS_LAST : FL_LAYOUT_CONTIGUOUS;
  plan->in_layout[1] = plan->in_layout[2] = FL_LAYOUT_CONTIGUOUS;
  if (q->channels_last) {
    fl_strides_channels_last(x, plan->out_strides[0]);
    /* Two values for each channel of an item: its scale and shift. */
    plan->scratch_bytes = (size_t)(p->threads > 1 ? p->threads : 1) * 2 * (size_t)q->channels * sizeof(float);
  }
  plan->in_place = 0;
  plan->cost_us = 0.1 + (double)fl_type_numel(x) * 0.0005;
  return NULL;
}

/* One group of one item, its channels dense and one after the other. */
static void group_planes(const fl_run_args *a, const params *q, int64_t i) {
  int64_t per = q->channels / q->groups, n = per * q->pixels, first = i % q->groups * per;
  const float *x = (const float *)a->in[0].data + i * n;
  float *y = (float *)a->out[0].data + i * n;
  float mean, scale = row_moments(x, n, q->eps, &mean);
  if (has_overflowed(scale, x, 1, n, 0)) fl_set_fault(a->fault);
  for (int64_t c = 0; c < per; c++) {
    float w = q->has_weight ? ((const float *)a->in[1].data)[first + c] : 1.0f;
    float b = q->has_bias ? ((const float *)a->in[2].data)[first + c] : 0.0f;
    const vf s = vf_set1(scale * w), t = vf_set1(b), m = vf_set1(mean);
    for (int64_t k = 0; k < q->pixels; k += VL)
      store_part(y + c * q->pixels + k, q->pixels - k,
                 vf_fma(vf_sub(load_part(x + c * q->pixels + k, q->pixels - k), m), s, t));
  }
}

/* sums[c] = sum over pixels of (x - mean[c])^power, power 1 or 2, for an item in NHWC order. */
FL_INLINE void channel_sums(float *sums, const float *x, const float *mean, const params *q, bool squares) {
  int64_t C = q->channels;
  memset(sums, 0, (size_t)C * sizeof *sums);
  for (int64_t p = 0; p < q->pixels; p++)
    for (int64_t c = 0; c < C; c += VL) {
      vf d = vf_sub(load_part(x + p * C + c, C - c), load_part(mean + c, C - c)), sum = load_part(sums + c, C - c);
      store_part(sums + c, C - c, squares ? vf_fma(d, d, sum) : vf_add(sum, d));
    }
}

/* One item in NHWC order: the groups' means (the second pass corrects the rounding of the first, as row_moments does),
 * then their scales, each repeated for every channel. */
static void group_item(const fl_run_args *a, const params *q, int64_t item, float *scale, float *mean) {
  const float *x = (const float *)a->in[0].data + item * q->pixels * q->channels;
  float *y = (float *)a->out[0].data + item * q->pixels * q->channels;
  const float *w = q->has_weight ? a->in[1].data : NULL, *b = q->has_bias ? a->in[2].data : NULL;
  int64_t C = q->channels, per = C / q->groups, n = per * q->pixels;
  memset(mean, 0, (size_t)C * sizeof *mean);
  for (int pass = 0; pass < 2; pass++) {
    channel_sums(scale, x, mean, q, false);
    for (int64_t g = 0; g < q->groups; g++) {
      float shift = row_sum(scale + g * per, per) / (float)n;
      for (int64_t c = 0; c < per; c++) mean[g * per + c] += shift;
    }
  }
  channel_sums(scale, x, mean, q, true);
  for (int64_t g = 0; g < q->groups; g++) {
    float r = 1.0f / sqrtf(row_sum(scale + g * per, per) / (float)n + q->eps);
    if (has_overflowed(r, x + g * per, q->pixels, per, C)) fl_set_fault(a->fault);
    for (int64_t c = g * per; c < (g + 1) * per; c++) scale[c] = r * (w ? w[c] : 1.0f);
  }
  for (int64_t p = 0; p < q->pixels; p++)
    for (int64_t c = 0; c < C; c += VL) {
      vf d = vf_sub(load_part(x + p * C + c, C - c), load_part(mean + c, C - c));
      store_part(y + p * C + c, C - c, vf_fma(d, load_part(scale + c, C - c), b ? load_part(b + c, C - c) : vf_zero()));
    }
}

static void group_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  float *scratch = (float *)a->scratch + 2 * q->channels * thread;
  for (int64_t i = begin; i < end; i++) {
    if (q->channels_last)
      group_item(a, q, i, scratch, scratch + q->channels);
    else
      group_planes(a, q, i);
  }
}

static void run_group(const fl_run_args *a) {
  const params *q = a->params;
  if (q->pixels && q->channels)
    fl_parallel(a->pool, q->outer * (q->channels_last ? 1 : q->groups), 1, group_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(group_norm) = {
    FL_NAME("group_norm"), FL_OP_GROUP_NORM, FL_ISA_HERE, plan_group, NULL, run_group};

/* --- batch_norm: a scale and a shift for each channel, computed into scratch, then one pass --- */

static const char *plan_batch(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = all_f32(p);
  if (why) return why;
  const fl_type *x = &p->in[0].type;
  if (x->rank < 2 || p->n_in < 5 || p->absent[3] || p->absent[4]) return "no channels or no statistics";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->outer = x->dims[0], q->channels = x->dims[1], q->pixels = 1;
  for (int d = 2; d < x->rank; d++) q->pixels *= x->dims[d];
  q->eps = (float)fl_attr_float(p->attrs, "eps", 1e-5);
  q->has_weight = !p->absent[1];
  q->has_bias = !p->absent[2];
  q->channels_last = x->rank == 4 && fl_is_channels_last(x, p->in[0].strides) && !fl_is_contiguous(x, p->in[0].strides);
  for (int i = 1; i < 5; i++) plan->in_layout[i] = FL_LAYOUT_CONTIGUOUS;
  plan->in_layout[0] = q->channels_last ? FL_LAYOUT_CHANNELS_LAST : FL_LAYOUT_CONTIGUOUS;
  if (q->channels_last) fl_strides_channels_last(x, plan->out_strides[0]);
  q->channels_last = q->channels_last || q->pixels == 1;
  plan->scratch_bytes = 2 * (size_t)q->channels * sizeof(float);
  plan->in_place = 0;
  plan->cost_us = 0.2 + (double)fl_type_numel(x) * 0.0008;
  return NULL;
}

/* Units are pixels in NHWC order, planes otherwise. */
static void batch_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const float *scale = a->scratch, *shift = scale + q->channels;
  for (int64_t u = begin; u < end; u++) {
    int64_t n = q->channels_last ? q->channels : q->pixels, c = u % q->channels;
    const float *x = (const float *)a->in[0].data + u * n;
    float *y = (float *)a->out[0].data + u * n;
    if (q->channels_last)
      for (int64_t k = 0; k < n; k += VL)
        store_part(y + k, n - k,
                   vf_fma(load_part(x + k, n - k), load_part(scale + k, n - k), load_part(shift + k, n - k)));
    else
      for (int64_t k = 0; k < n; k += VL)
        store_part(y + k, n - k, vf_fma(load_part(x + k, n - k), vf_set1(scale[c]), vf_set1(shift[c])));
  }
}

static void run_batch(const fl_run_args *a) {
  const params *q = a->params;
  float *scale = a->scratch, *shift = scale + q->channels;
  const float *mean = a->in[3].data, *var = a->in[4].data;
  if (q->channels == 0 || q->pixels == 0) return;
  for (int64_t c = 0; c < q->channels; c++) {
    scale[c] = (q->has_weight ? ((const float *)a->in[1].data)[c] : 1.0f) / sqrtf(var[c] + q->eps);
    shift[c] = (q->has_bias ? ((const float *)a->in[2].data)[c] : 0.0f) - mean[c] * scale[c];
  }
  int64_t n = q->channels_last ? q->channels : q->pixels;
  fl_parallel(a->pool, q->outer * q->channels * q->pixels / n, 1 + 16384 / n, batch_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(batch_norm) = {
    FL_NAME("batch_norm"), FL_OP_BATCH_NORM, FL_ISA_HERE, plan_batch, NULL, run_batch};

/* --- softmax, log_softmax --- */

static const char *plan_softmax(const fl_problem *p, fl_arena *arena, fl_kernel_plan *plan) {
  const char *why = all_f32(p);
  if (why) return why;
  const fl_type *x = &p->in[0].type;
  int64_t axis = fl_attr_int(p->attrs, "axis", 0);
  if (x->rank == 0) return "a scalar";
  if (axis < 0 || axis >= x->rank) return "axis is out of range";
  params *q = new_params(arena, plan);
  if (!q) return "out of memory";
  q->outer = q->n = q->inner = 1;
  for (int d = 0; d < x->rank; d++) *(d < axis ? &q->outer : d == axis ? &q->n : &q->inner) *= x->dims[d];
  q->log_result = p->op == FL_OP_LOG_SOFTMAX;
  plan->in_layout[0] = FL_LAYOUT_CONTIGUOUS;
  plan->in_place = 0;
  plan->cost_us = 0.1 + (double)fl_type_numel(x) * 0.001;
  return NULL;
}

/* NaN among the values need not come out here: it comes out of the sum. */
static float row_max(const float *x, int64_t n) {
  vf m0 = vf_set1(-INFINITY), m1 = m0;
  int64_t k = 0;
  for (; k + 2 * VL <= n; k += 2 * VL) {
    m0 = vf_max(vf_load(x + k), m0);
    m1 = vf_max(vf_load(x + k + VL), m1);
  }
  float m = vf_hmax(vf_max(m0, m1));
  for (; k < n; k++) m = x[k] > m ? x[k] : m;
  return m;
}

static void softmax_row(float *y, const float *x, int64_t n, bool log_result) {
  const float max = row_max(x, n);
  const vf m = vf_set1(max);
  vf sum = vf_zero();
  int64_t k = 0;
  for (; k + VL <= n; k += VL) {
    vf e = vf_exp(vf_sub(vf_load(x + k), m));
    if (!log_result) vf_store(y + k, e);
    sum = vf_add(sum, e);
  }
  if (k < n) {
    const vm part = vm_first((int)(n - k));
    vf e = vf_select(part, vf_exp(vf_sub(vf_load_mask(x + k, part), m)), vf_zero());
    if (!log_result) vf_store_mask(y + k, part, e);
    sum = vf_add(sum, e);
  }
  const float total = vf_sum(sum);
  if (log_result) {
    const vf shift = vf_set1(logf(total));
    for (k = 0; k < n; k += VL) store_part(y + k, n - k, vf_sub(vf_sub(load_part(x + k, n - k), m), shift));
  } else {
    const vf scale = vf_set1(1.0f / total);
    for (k = 0; k < n; k += VL) store_part(y + k, n - k, vf_mul(load_part(y + k, n - k), scale));
  }
}

/* VL neighbouring columns of an [n, inner] block at once. */
static void softmax_columns(float *y, const float *x, int64_t n, int64_t inner, int64_t left, bool log_result) {
  vf m = vf_set1(-INFINITY), sum = vf_zero();
  for (int64_t k = 0; k < n; k++) m = vf_max(load_part(x + k * inner, left), m);
  for (int64_t k = 0; k < n; k++) {
    vf e = vf_exp(vf_sub(load_part(x + k * inner, left), m));
    if (!log_result) store_part(y + k * inner, left, e);
    sum = vf_add(sum, e);
  }
  const vf last = log_result ? vf_log(sum) : vf_div(vf_set1(1.0f), sum);
  for (int64_t k = 0; k < n; k++) {
    vf v = load_part((log_result ? x : y) + k * inner, left);
    store_part(y + k * inner, left, log_result ? vf_sub(vf_sub(v, m), last) : vf_mul(v, last));
  }
}

static void softmax_range(void *arg, int64_t begin, int64_t end, int thread) {
  const fl_run_args *a = arg;
  const params *q = a->params;
  const int64_t blocks = (q->inner + VL - 1) / VL;
  for (int64_t i = begin; i < end; i++) {
    int64_t c = i % blocks * VL, at = i / blocks * q->n * q->inner + c;
    const float *x = (const float *)a->in[0].data + at;
    float *y = (float *)a->out[0].data + at;
    if (q->inner == 1)
      softmax_row(y, x, q->n, q->log_result);
    else
      softmax_columns(y, x, q->n, q->inner, q->inner - c, q->log_result);
  }
}

static void run_softmax(const fl_run_args *a) {
  const params *q = a->params;
  if (q->n && q->inner)
    fl_parallel(a->pool, q->outer * ((q->inner + VL - 1) / VL), 1 + 4096 / q->n, softmax_range, (void *)(uintptr_t)a);
}

const fl_kernel FL_NAMED(softmax) = {FL_NAME("softmax"), FL_OP_SOFTMAX, FL_ISA_HERE, plan_softmax, NULL, run_softmax};
const fl_kernel FL_NAMED(log_softmax) = {
    FL_NAME("log_softmax"), FL_OP_LOG_SOFTMAX, FL_ISA_HERE, plan_softmax, NULL, run_softmax};
