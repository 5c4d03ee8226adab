/* Every row of kernels.def against the portable reference of its operator, on random problems: odd sizes, strides,
 * broadcasts, empty tensors, one thread and two. A row for which no problem was found fails. */
#include "base/test.h"
#include "cpu/kernel_case.h"

enum { ROUNDS = 60, MAX_ROWS = 512 };
static int served[MAX_ROWS];
static fl_pool *pool;

static int64_t pick_dim(void) {
  static const int64_t dims[] = {1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 50, 64, 70};
  return dims[kcase_below(sizeof dims / sizeof *dims)];
}

static void pick_dims(int rank, int64_t *dims) {
  int64_t total = 1;
  for (int d = 0; d < rank; d++) {
    dims[d] = pick_dim();
    while (total * dims[d] > 20000) dims[d] = (dims[d] + 1) / 2;
    total *= dims[d];
  }
  if (kcase_below(30) == 0 && rank) dims[kcase_below(rank)] = 0;
}

/* An input with strides of a random kind: dense in either order, transposed, with gaps, with a repeated axis. */
static fl_tensor *any_in(kcase *c, fl_dtype t, int rank, const int64_t *dims) {
  fl_type type = fl_type_make(t, rank, dims);
  int64_t s[FL_MAX_RANK];
  fl_strides_contiguous(&type, s);
  int kind = (int)kcase_below(6);
  if (kind == 1 && rank == 4) fl_strides_channels_last(&type, s);
  if (kind == 2 && rank >= 2) { /* the last two axes exchanged in memory */
    s[rank - 2] = 1;
    s[rank - 1] = dims[rank - 2] > 0 ? dims[rank - 2] : 1;
  }
  if (kind == 3)
    for (int d = 0; d < rank - 1; d++) s[d] *= 3;
  if (kind == 4)
    for (int d = 0; d < rank; d++) s[d] *= 2;
  if (kind == 5 && rank) s[kcase_below(rank)] = 0;
  return kcase_in(c, t, rank, dims, s);
}

static bool close_enough(double want, double got, double tolerance) {
  if (want != want || got != got) return want != want && got != got;
  if (want == got) return true;
  return fabs(want - got) <= tolerance * (1 + fabs(want));
}

/* Runs every row of the operator against the last one, the reference. Frees the case. */
static void compare_rows(kcase *c, double tolerance) {
  fl_tensor want[FL_PW_MAX_OUTPUTS], got[FL_PW_MAX_OUTPUTS];
  bool ok = kcase_infer(c);
  FL_CHECK_MSG(ok, "%s", fl_op_get(c->problem.op)->name);
  const fl_kernel *ref = NULL;
  for (int id = 0; id < fl_kernel_count(); id++)
    if (fl_kernel_get(id)->op == c->problem.op) ref = fl_kernel_get(id);
  const char *why = ok && ref ? kcase_run(c, ref, pool, want) : "no reference";
  FL_CHECK_MSG(!why, "%s: %s", fl_op_get(c->problem.op)->name, why);
  for (int id = 0; id < fl_kernel_count() && !why; id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->op != c->problem.op || k->isa > fl_cpu_isa()) continue;
    if (k == ref) {
      served[id]++;
      continue;
    }
    if (kcase_run(c, k, kcase_below(2) ? pool : NULL, got)) continue;
    served[id]++;
    for (int o = 0; o < c->problem.n_out; o++) {
      int bad = 0;
      FL_CHECK_MSG(fl_is_dense(&got[o].type, got[o].strides), "%s", k->name);
      for (int64_t i = 0, n = fl_type_numel(&want[o].type); i < n; i++) {
        double w = kcase_get(&want[o], i), g = kcase_get(&got[o], i);
        char text[128];
        if (close_enough(w, g, tolerance) || bad++ > 2) continue;
        FL_CHECK_MSG(false, "%s: element %lld of output %d %s is %.9g, not %.9g", k->name, (long long)i, o,
                     fl_type_str(&want[o].type, text, sizeof text), g, w);
      }
      FL_CHECK(!bad);
    }
    kcase_free_out(c, got);
  }
  if (!why) kcase_free_out(c, want);
  kcase_free(c);
}

/* --- pointwise --- */

static bool is_unary(fl_op op) { return op <= FL_OP_CAST; }

static void instr_attrs(kcase *c, int k) {
  fl_pw_instr *in = &c->program.instrs[k];
  if (in->op == FL_OP_CLAMP)
    in->a = -0.5, in->b = 1;
  else
    in->a = 1.25, in->b = 10;
}

static fl_dtype result_type(fl_op op, fl_dtype in) {
  return op == FL_OP_ISNAN || (op >= FL_OP_EQ && op <= FL_OP_GE) ? FL_BOOL : in;
}

/* Half a last place may go either way when 16-bit floats are rounded. */
static double rounding_of(fl_dtype t, double of_f32) { return t == FL_F16 ? 1e-3 : t == FL_BF16 ? 8e-3 : of_f32; }

/* Each operator alone, on numbers of every kind. */
static void one_op(fl_op op, fl_dtype t) {
  static const double special[] = {0,    -0.0, 1,   -1,    2,     3,    -2.5,     2.5,       0.5, -0.5, 1.5, 100,
                                   -100, 88.5, -90, 1e-10, -1e-6, 1e10, INFINITY, -INFINITY, NAN, 7,    9.5, 20};
  kcase *c = kcase_new(FL_OP_POINTWISE);
  int64_t dims[] = {24, 24 + kcase_below(20)};
  int n = op == FL_OP_WHERE ? 3 : is_unary(op) ? 1 : 2;
  for (int i = 0; i < n; i++) {
    fl_tensor *x = kcase_in(c, op == FL_OP_WHERE && i == 0 ? FL_BOOL : t, 2, dims, NULL);
    for (int64_t k = 0; k < fl_type_numel(&x->type) && fl_dtype_is_float(x->type.dtype); k++)
      fl_ref_setf(x->data, x->type.dtype, k, special[(i ? k / dims[1] : k) % 24] * (k % 7 == 0 ? 0.37 : 1));
  }
  kcase_instr(c, op, op == FL_OP_CAST ? (t == FL_BOOL ? FL_F32 : FL_BOOL) : result_type(op, t), 0, n > 1 ? 1 : -1,
              n > 2 ? 2 : -1);
  instr_attrs(c, 0);
  compare_rows(c, rounding_of(t, 1e-5));
}

FL_TEST(each_pointwise_operator) {
  for (int op = 0; op <= FL_OP_WHERE; op++) {
    bool logic = op == FL_OP_AND || op == FL_OP_OR || op == FL_OP_XOR || op == FL_OP_NOT;
    one_op((fl_op)op, logic ? FL_BOOL : FL_F32);
    if (!logic) one_op((fl_op)op, FL_F16), one_op((fl_op)op, FL_BF16);
    if (op >= FL_OP_CAST && (op == FL_OP_CAST || op >= FL_OP_EQ)) one_op((fl_op)op, FL_BOOL);
  }
}

/* Each cast among floats. Where bf16 overflows in f16, both do. */
FL_TEST(pointwise_casts) {
  static const fl_dtype floats[] = {FL_F32, FL_F16, FL_BF16};
  for (int i = 0; i < 9; i++) {
    kcase *c = kcase_new(FL_OP_POINTWISE);
    int64_t dims[] = {700};
    fl_tensor *x = kcase_in(c, floats[i / 3], 1, dims, NULL);
    for (int64_t k = 0; k < 700; k++)
      fl_ref_setf(x->data, floats[i / 3], k, k % 50 == 3 ? NAN : kcase_uniform() * pow(10, (double)(k % 14) - 8));
    kcase_instr(c, FL_OP_CAST, floats[i % 3], 0, -1, -1);
    compare_rows(c, 0);
  }
}

/* Random programs of continuous operators on inputs that broadcast in all ways. */
static void random_program(fl_dtype t) {
  static const fl_op ops[] = {FL_OP_ADD,  FL_OP_MUL,     FL_OP_SUB,        FL_OP_MAXIMUM, FL_OP_TANH,  FL_OP_SIGMOID,
                              FL_OP_RELU, FL_OP_GELU,    FL_OP_HARDSWISH,  FL_OP_ABS,     FL_OP_CLAMP, FL_OP_WHERE,
                              FL_OP_SILU, FL_OP_MINIMUM, FL_OP_LEAKY_RELU, FL_OP_NEG};
  kcase *c = kcase_new(FL_OP_POINTWISE);
  int rank = (int)kcase_below(5), n_in = 1 + (int)kcase_below(5);
  int64_t dims[FL_MAX_RANK];
  pick_dims(rank, dims);
  for (int i = 0; i < n_in; i++) {
    int64_t mine[FL_MAX_RANK];
    int r = i ? (int)kcase_below(rank + 1) : rank, skip = rank - r;
    for (int d = 0; d < r; d++) mine[d] = i && kcase_below(3) == 0 ? 1 : dims[d + skip];
    any_in(c, i && kcase_below(4) == 0 ? FL_BOOL : t, r, mine);
  }
  int reg = 0;
  for (int k = 0, n = 1 + (int)kcase_below(12); k < n; k++) {
    fl_op op = ops[kcase_below(sizeof ops / sizeof *ops)];
    int s[3] = {reg, -1, -1}, have = n_in + k;
    bool bools = false;
    if (!is_unary(op)) s[1] = (int)kcase_below(have);
    if (op == FL_OP_WHERE) s[2] = s[1], s[1] = reg;
    for (int a = 0; a < 3; a++)
      bools =
          bools || (s[a] >= 0 && s[a] < n_in && c->program.n_inputs >= 0 && c->problem.in[s[a]].type.dtype == FL_BOOL);
    if (op == FL_OP_WHERE || bools) { /* a bool input selects; otherwise compare for one */
      int m = -1;
      for (int i = 0; i < n_in; i++)
        if (c->problem.in[i].type.dtype == FL_BOOL) m = i;
      if (m < 0)
        op = FL_OP_ADD, s[1] = reg, s[2] = -1;
      else
        op = FL_OP_WHERE, s[0] = m, s[1] = reg, s[2] = 0;
    }
    reg = kcase_instr(c, op, t, s[0], s[1], s[2]);
    instr_attrs(c, k);
  }
  if (kcase_below(3) == 0) reg = kcase_instr(c, FL_OP_GT, FL_BOOL, reg, 0, -1);
  if (c->program.n_instrs > 2 && kcase_below(3) == 0) {
    c->program.n_outputs = 3;
    c->program.outputs[1] = (int16_t)(n_in + c->program.n_instrs / 2 - 1);
    c->program.outputs[2] = 0;
  }
  compare_rows(c, 8 * rounding_of(t, 2.5e-6));
}

FL_TEST(pointwise_programs) {
  for (int i = 0; i < 6 * ROUNDS; i++) random_program(FL_F32);
  for (int i = 0; i < 2 * ROUNDS; i++) random_program(FL_F16), random_program(FL_BF16);
}

/* --- reductions and norms --- */

static void one_reduction(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 1 + (int)kcase_below(4);
  int64_t dims[FL_MAX_RANK], axes[FL_MAX_RANK];
  pick_dims(rank, dims);
  int n = 0;
  for (int d = 0; d < rank; d++)
    if (kcase_below(2)) axes[n++] = d;
  if (!n) axes[n++] = kcase_below(rank);
  if ((op == FL_OP_ARGMAX || op == FL_OP_ARGMIN) && n < rank) n = 1;
  bool extreme = op == FL_OP_AMAX || op == FL_OP_AMIN || op == FL_OP_ARGMAX || op == FL_OP_ARGMIN;
  for (int d = 0; d < rank; d++)
    if (extreme && dims[d] == 0) dims[d] = 2;
  bool logic = op == FL_OP_ANY || op == FL_OP_ALL;
  fl_tensor *x = any_in(c, logic ? FL_BOOL : FL_F32, rank, dims);
  if (!logic && kcase_below(8) == 0 && fl_type_numel(&x->type)) ((float *)x->data)[0] = NAN;
  (void)fl_attr_set_list(&c->attrs, "axes", axes, n);
  kcase_bool(c, "keepdim", kcase_below(2));
  if (op == FL_OP_VAR) kcase_float(c, "correction", (double)kcase_below(2));
  compare_rows(c, 1e-4);
}

FL_TEST(reductions) {
  for (int op = FL_OP_SUM; op <= FL_OP_ARGMIN; op++)
    for (int i = 0; i < ROUNDS; i++) one_reduction((fl_op)op);
}

static void one_line(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 1 + (int)kcase_below(4);
  int64_t dims[FL_MAX_RANK];
  pick_dims(rank, dims);
  fl_tensor *x = any_in(c, FL_F32, rank, dims);
  if (op != FL_OP_CUMSUM && kcase_below(6) == 0)
    for (int64_t k = 0; k < 40 && k < c->cells[0] / 2; k++) ((float *)x->data)[k] = -INFINITY;
  kcase_int(c, "axis", kcase_below(rank));
  compare_rows(c, 1e-5);
}

FL_TEST(softmax_and_scans) {
  for (int i = 0; i < ROUNDS; i++) {
    one_line(FL_OP_SOFTMAX);
    one_line(FL_OP_LOG_SOFTMAX);
    one_line(FL_OP_CUMSUM);
  }
}

static void maybe_vector(kcase *c, int rank, const int64_t *dims) {
  if (kcase_below(3))
    kcase_in(c, FL_F32, rank, dims, NULL);
  else
    kcase_absent(c);
}

static void one_norm(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 1 + (int)kcase_below(4), axes = 1 + (int)kcase_below(rank);
  int64_t dims[FL_MAX_RANK];
  pick_dims(rank, dims);
  any_in(c, FL_F32, rank, dims);
  maybe_vector(c, axes, dims + rank - axes);
  if (op == FL_OP_LAYER_NORM) maybe_vector(c, axes, dims + rank - axes);
  kcase_int(c, "axes", axes);
  kcase_float(c, "eps", 1e-5);
  compare_rows(c, 1e-4);
}

static void one_channel_norm(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 2 + (int)kcase_below(3);
  int64_t dims[FL_MAX_RANK], groups = 1 + kcase_below(4);
  pick_dims(rank, dims);
  dims[1] = (dims[1] ? dims[1] : 1) * groups;
  any_in(c, FL_F32, rank, dims);
  for (int i = 0; i < 2; i++) {
    if (op == FL_OP_GROUP_NORM)
      maybe_vector(c, 1, dims + 1);
    else
      kcase_in(c, FL_F32, 1, dims + 1, NULL);
  }
  kcase_float(c, "eps", 1e-5);
  if (op == FL_OP_GROUP_NORM)
    kcase_int(c, "groups", groups);
  else {
    kcase_in(c, FL_F32, 1, dims + 1, NULL);
    fl_tensor *var = kcase_in(c, FL_F32, 1, dims + 1, NULL);
    for (int64_t i = 0; i < dims[1]; i++) ((float *)var->data)[i] = fabsf(((float *)var->data)[i]) + 0.1f;
  }
  compare_rows(c, 1e-3); /* two nearly equal values may be a whole group, and their variance ill-conditioned */
}

FL_TEST(norms) {
  for (int i = 0; i < ROUNDS; i++) {
    one_norm(FL_OP_LAYER_NORM);
    one_norm(FL_OP_RMS_NORM);
    one_channel_norm(FL_OP_GROUP_NORM);
    one_channel_norm(FL_OP_BATCH_NORM);
  }
}

/* --- images --- */

static void one_image(fl_op op) {
  kcase *c = kcase_new(op);
  int64_t dims[4] = {kcase_below(3), pick_dim(), 3 + kcase_below(20), 3 + kcase_below(20)};
  any_in(c, FL_F32, 4, dims);
  int64_t k0 = 1 + kcase_below(3), k1 = 1 + kcase_below(3), p0 = kcase_below(k0 / 2 + 1), p1 = kcase_below(k1 / 2 + 1);
  if (op == FL_OP_ADAPTIVE_AVG_POOL2D || op == FL_OP_RESIZE2D) {
    kcase_list(c, "out", 1 + kcase_below(20), 1 + kcase_below(20));
    if (op == FL_OP_RESIZE2D) {
      kcase_bool(c, "bilinear", kcase_below(2));
      kcase_bool(c, "align_corners", kcase_below(2));
      kcase_float(c, "scale_h", 0);
      kcase_float(c, "scale_w", 0);
    }
  } else {
    kcase_list(c, "kernel", k0, k1);
    kcase_list(c, "stride", 1 + kcase_below(3), 1 + kcase_below(3));
    kcase_list(c, "pad", p0, p1);
    kcase_bool(c, "ceil", kcase_below(2));
    if (op == FL_OP_MAX_POOL2D)
      kcase_list(c, "dilation", 1, 1);
    else {
      kcase_bool(c, "include_pad", kcase_below(2));
      kcase_int(c, "divisor", kcase_below(3));
    }
  }
  compare_rows(c, 1e-5);
}

FL_TEST(images) {
  for (int i = 0; i < ROUNDS; i++) {
    one_image(FL_OP_MAX_POOL2D);
    one_image(FL_OP_AVG_POOL2D);
    one_image(FL_OP_ADAPTIVE_AVG_POOL2D);
    one_image(FL_OP_RESIZE2D);
  }
}

/* --- attention --- */

static fl_tensor *heads_in(kcase *c, fl_dtype t, int64_t B, int64_t H, int64_t S, int64_t D) {
  int64_t dims[] = {B, H, S, D};
  /* as a projection gives them: B, S, H, D in memory, perhaps within a wider row; or dense */
  int64_t wide = kcase_below(2) ? 3 * H * D : H * D, strides[] = {S * wide, D, wide, 1};
  return kcase_in(c, t, 4, dims, kcase_below(3) ? strides : NULL);
}

static void one_attention(fl_dtype t, int64_t S, int64_t T) {
  static const int64_t depths[] = {8, 16, 24, 32, 40, 64, 80, 96, 128, 5};
  kcase *c = kcase_new(FL_OP_ATTENTION);
  int64_t B = 1 + kcase_below(3), G = 1 + kcase_below(3), H = G * (1 + kcase_below(2));
  int64_t D = depths[kcase_below(10)], E = kcase_below(4) ? D : depths[kcase_below(10)];
  heads_in(c, t, B, H, S, D);
  heads_in(c, t, B, G, T, D);
  heads_in(c, t, B, G, T, E);
  int mask = (int)kcase_below(4);
  if (mask) {
    int64_t dims[] = {kcase_below(2) ? B : 1, kcase_below(2) ? H : 1, kcase_below(2) ? S : 1, T};
    int skip = dims[0] == 1 && dims[1] == 1 ? (int)kcase_below(3) : 0;
    fl_dtype mt = mask == 1 ? FL_BOOL : kcase_below(2) ? t : FL_F32;
    fl_tensor *m = any_in(c, mt, 4 - skip, dims + skip);
    for (int64_t k = 0; mask == 2 && k < c->cells[3]; k++)
      if (kcase_below(3) == 0) fl_ref_setf(m->data, mt, k, -INFINITY);
    if (mask == 1 && kcase_below(2)) memset(m->data, 0, (size_t)c->cells[3] / 2);
  }
  kcase_float(c, "scale", 1 / sqrt((double)D));
  kcase_bool(c, "causal", kcase_below(3) == 0);
  compare_rows(c, t == FL_BF16 ? 1.2e-2 : 2e-5);
}

FL_TEST(attention) {
  for (int i = 0; i < 2 * ROUNDS; i++) {
    const fl_dtype t = i % 2 ? FL_BF16 : FL_F32;
    one_attention(t, 1, 1 + kcase_below(200));
    int64_t S = 1 + kcase_below(150);
    one_attention(t, S, kcase_below(2) ? S : 1 + kcase_below(150));
    if (i < 8) one_attention(t, 6 + S, 250 + kcase_below(300)); /* keys in more than one part */
  }
  one_attention(FL_F32, 0, 4);
  one_attention(FL_F32, 3, 0);
  one_attention(FL_BF16, 3, 0);
}

/* --- data movement --- */

static fl_dtype any_type(void) {
  static const fl_dtype t[] = {FL_F32, FL_F64, FL_I64, FL_I32, FL_I16, FL_U8, FL_BOOL, FL_F16};
  return t[kcase_below(8)];
}

static fl_tensor *index_in(kcase *c, int rank, const int64_t *dims, int64_t n) {
  fl_tensor *t = any_in(c, kcase_below(2) ? FL_I64 : FL_I32, rank, dims);
  for (int64_t k = 0; k < c->cells[c->problem.n_in - 1]; k++)
    fl_ref_seti(t->data, t->type.dtype, k, kcase_below(2 * n) - n);
  return t;
}

static void one_movement(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 1 + (int)kcase_below(4);
  int64_t dims[FL_MAX_RANK], more[FL_MAX_RANK];
  pick_dims(rank, dims);
  int64_t axis = kcase_below(rank);
  fl_dtype t = any_type();
  if (op == FL_OP_TRI && rank < 2) dims[rank++] = 7;
  if (op == FL_OP_CAT) {
    for (int i = 0, n = 1 + (int)kcase_below(4); i < n; i++) {
      dims[axis] = kcase_below(20);
      any_in(c, t, rank, dims);
    }
  } else if (op != FL_OP_IOTA) {
    for (int d = 0; d < rank && op >= FL_OP_EMBEDDING && op <= FL_OP_INDEX; d++)
      if (!dims[d]) dims[d] = 3;
    any_in(c, t, rank, dims);
  }
  if (op == FL_OP_FLIP)
    (void)fl_attr_set_list(&c->attrs, "axes", &axis, 1);
  else if (op == FL_OP_PAD) {
    int64_t pads[2 * FL_MAX_RANK];
    for (int d = 0; d < 2 * rank; d++) pads[d] = kcase_below(4);
    (void)fl_attr_set_list(&c->attrs, "pads", pads, 2 * rank);
    kcase_float(c, "value", (double)kcase_below(2));
  } else if (op == FL_OP_TRI) {
    kcase_int(c, "diagonal", kcase_below(7) - 3);
    kcase_bool(c, "upper", kcase_below(2));
  } else if (op == FL_OP_IOTA) {
    (void)fl_attr_set_list(&c->attrs, "dims", dims, rank);
    (void)fl_attr_set_int(&c->attrs, "dtype", 'd', FL_I64);
    kcase_float(c, "start", 3);
    kcase_float(c, "step", 2);
  }
  if (op != FL_OP_FLIP && op != FL_OP_PAD && op != FL_OP_TRI && op != FL_OP_EMBEDDING) kcase_int(c, "axis", axis);
  int r = (int)kcase_below(3);
  for (int d = 0; d < 3; d++) more[d] = 1 + kcase_below(9);
  if (op == FL_OP_EMBEDDING) index_in(c, r, more, dims[0]);
  if (op == FL_OP_INDEX_SELECT) index_in(c, 1, more, dims[axis]);
  if (op == FL_OP_INDEX) {
    index_in(c, r, more, dims[axis]);
    if (axis + 1 < rank && kcase_below(2)) index_in(c, 1, (int64_t[]){r ? more[r - 1] : 4}, dims[axis + 1]);
  }
  if (op == FL_OP_GATHER) {
    memcpy(more, dims, sizeof more);
    more[axis] = 1 + kcase_below(9);
    index_in(c, rank, more, dims[axis]);
  }
  compare_rows(c, 0);
}

FL_TEST(movement) {
  static const fl_op ops[] = {FL_OP_CAT,    FL_OP_PAD,   FL_OP_FLIP, FL_OP_EMBEDDING, FL_OP_INDEX_SELECT,
                              FL_OP_GATHER, FL_OP_INDEX, FL_OP_TRI,  FL_OP_IOTA};
  for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
    for (int i = 0; i < ROUNDS; i++) one_movement(ops[k]);
}

/* --- ordering, and writing at indexes --- */

static void one_order(fl_op op) {
  kcase *c = kcase_new(op);
  int rank = 1 + (int)kcase_below(4), axis = (int)kcase_below(rank);
  int64_t dims[FL_MAX_RANK];
  pick_dims(rank, dims);
  fl_tensor *x = any_in(c, op != FL_OP_HISTC && kcase_below(2) ? FL_I64 : FL_F32, rank, dims);
  if (x->type.dtype == FL_F32 && c->cells[0] > 1) ((float *)x->data)[0] = NAN;
  c->problem.n_out = op == FL_OP_HISTC ? 1 : 2;
  if (op == FL_OP_HISTC) {
    kcase_int(c, "bins", 1 + kcase_below(9));
    kcase_float(c, "lo", -1);
    kcase_float(c, "hi", 1.5);
  } else {
    kcase_int(c, "axis", axis);
    kcase_bool(c, op == FL_OP_SORT ? "descending" : "largest", kcase_below(2));
    if (op == FL_OP_TOPK) {
      kcase_int(c, "k", kcase_below(dims[axis] + 1));
      kcase_bool(c, "sorted", kcase_below(2));
    }
  }
  compare_rows(c, 0);
}

static void one_scatter(void) {
  kcase *c = kcase_new(FL_OP_SCATTER);
  int rank = 1 + (int)kcase_below(3), axis = (int)kcase_below(rank);
  int64_t dims[FL_MAX_RANK], at[FL_MAX_RANK];
  pick_dims(rank, dims);
  for (int d = 0; d < rank; d++) at[d] = kcase_below(dims[d] + 1);
  any_in(c, FL_F32, rank, dims);
  index_in(c, rank, at, dims[axis] ? dims[axis] : 1);
  for (int d = 0; d < rank; d++) at[d] += kcase_below(2);
  any_in(c, FL_F32, rank, at);
  kcase_int(c, "axis", axis);
  kcase_int(c, "mode", kcase_below(5));
  compare_rows(c, 0);
}

static void one_index_put(void) {
  kcase *c = kcase_new(FL_OP_INDEX_PUT);
  int64_t dims[] = {1 + kcase_below(9), 1 + kcase_below(9), 1 + kcase_below(9)}, n = kcase_below(9);
  int64_t values[] = {kcase_below(2) ? dims[0] : 1, n, dims[2]};
  bool both = kcase_below(2);
  any_in(c, FL_F32, 3, dims);
  if (both)
    any_in(c, FL_F32, 2, (int64_t[]){kcase_below(2) ? dims[0] : 1, n});
  else
    any_in(c, FL_F32, 3, values);
  index_in(c, 1, &n, dims[1]);
  if (both) index_in(c, 1, &n, dims[2]);
  kcase_int(c, "axis", 1);
  kcase_int(c, "mode", kcase_below(2));
  compare_rows(c, 0);
}

static void one_sample(void) {
  kcase *c = kcase_new(FL_OP_GRID_SAMPLE);
  int64_t dims[] = {1 + kcase_below(2), 1 + kcase_below(5), 1 + kcase_below(9), 1 + kcase_below(9)};
  any_in(c, FL_F32, 4, dims);
  any_in(c, FL_F32, 4, (int64_t[]){dims[0], kcase_below(6), kcase_below(6), 2});
  kcase_int(c, "mode", kcase_below(2));
  kcase_int(c, "padding", kcase_below(3));
  kcase_bool(c, "align_corners", kcase_below(2));
  compare_rows(c, 1e-5);
}

static void one_system(void) {
  kcase *c = kcase_new(FL_OP_SOLVE_TRIANGULAR);
  int64_t n = 1 + kcase_below(9), m = kcase_below(9), batch = kcase_below(4);
  any_in(c, FL_F32, 3, (int64_t[]){batch, n, n});
  any_in(c, FL_F32, 3, (int64_t[]){batch, n, m});
  kcase_bool(c, "upper", kcase_below(2));
  kcase_bool(c, "unit", kcase_below(2));
  compare_rows(c, 1e-5);
}

FL_TEST(ordering_and_writing) {
  for (int i = 0; i < ROUNDS; i++) {
    one_order(FL_OP_SORT);
    one_order(FL_OP_TOPK);
    one_order(FL_OP_HISTC);
    one_scatter();
    one_index_put();
    one_sample();
    one_system();
  }
}

static void one_grouped(void) {
  kcase *c = kcase_new(FL_OP_GROUPED_MATMUL);
  int64_t rows = kcase_below(70), k = kcase_below(60), n = 1 + kcase_below(50), groups = 1 + kcase_below(6), end = 0;
  any_in(c, FL_F32, 2, (int64_t[]){rows, k});
  /* as the parameter lies, or its transposed view */
  kcase_in(c, FL_F32, 3, (int64_t[]){groups, k, n}, kcase_below(2) ? (int64_t[]){k * n, 1, k} : NULL);
  c->problem.constant[1] = kcase_below(2);
  fl_tensor *ends = kcase_in(c, kcase_below(2) ? FL_I32 : FL_I64, 1, &groups, NULL);
  for (int64_t e = 0; e < groups; e++) {
    end += kcase_below(rows - end + 1);
    fl_ref_seti(ends->data, ends->type.dtype, e, end);
  }
  compare_rows(c, 1e-4);
}

FL_TEST(grouped_products) {
  for (int i = 0; i < ROUNDS; i++) one_grouped();
}

static bool elsewhere(fl_op op) { return op == FL_OP_MATMUL || op == FL_OP_CONV2D || op == FL_OP_CONV_TRANSPOSE2D; }

FL_TEST(no_row_untested) {
  for (int id = 0; id < fl_kernel_count(); id++) {
    const fl_kernel *k = fl_kernel_get(id);
    if (k->isa <= fl_cpu_isa() && !elsewhere(k->op)) FL_CHECK_MSG(served[id] > 0, "%s", k->name);
  }
}

int main(void) {
  FL_CHECK_OK(fl_pool_create(2, &pool));
  test_each_pointwise_operator();
  test_pointwise_casts();
  test_pointwise_programs();
  test_reductions();
  test_softmax_and_scans();
  test_norms();
  test_images();
  test_attention();
  test_movement();
  test_ordering_and_writing();
  test_grouped_products();
  test_no_row_untested();
  fl_pool_destroy(pool);
  printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);
  return fl_test_failed_ != 0;
}
