/* An engine is compared with the recorded answers before it is trusted. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "capture/exact.h"
#include "capture/replay_break.h"
#include "capture/segment.h"
#include "cuda/compare.h"
#include "plan/view.h"

typedef struct score {
  double cosine, max_rel;
  double rms;      /* of the differences, relative to that of the reference */
  bool same_holes; /* NaN and infinities where the reference has them */
} score;

static score scored(double dot, double gg, double ww, double top, double diff, bool same_holes) {
  score s = {.max_rel = top > 0 ? diff / top : diff > 0, .same_holes = same_holes};
  if (gg > 0 && ww > 0)
    s.cosine = dot / (sqrt(gg) * sqrt(ww));
  else
    s.cosine = diff <= 1e-30 ? 1 : 0;
  s.rms = ww > 0 ? sqrt(fmax(gg - 2 * dot + ww, 0) / ww) : diff > 0;
  return s;
}

typedef struct sums {
  double dot, gg, ww, top, diff;
  bool same_holes;
} sums;

static inline void take(sums *s, double a, double b) {
  if (!isfinite(a) || !isfinite(b)) {
    s->same_holes &= (isnan(a) && isnan(b)) || a == b;
    return;
  }
  s->dot += a * b;
  s->gg += a * a;
  s->ww += b * b;
  if (fabs(b) > s->top) s->top = fabs(b);
  if (fabs(a - b) > s->diff) s->diff = fabs(a - b);
}

static void take_strided(sums *s, const fl_tensor_meta *got, const fl_tensor_meta *want) {
  int64_t n = fl_type_numel(&want->type), at[FL_MAX_RANK] = {0}, g = 0, w = 0;
  for (int64_t i = 0; i < n; i++) {
    take(s, fl_element_get(got->type.dtype, got->data, g), fl_element_get(want->type.dtype, want->data, w));
    for (int d = want->type.rank - 1; d >= 0; d--) {
      g += got->strides[d];
      w += want->strides[d];
      if (++at[d] < want->type.dims[d]) break;
      g -= got->strides[d] * at[d];
      w -= want->strides[d] * at[d];
      at[d] = 0;
    }
  }
}

static bool lie_alike(const fl_tensor_meta *a, const fl_tensor_meta *b) {
  return fl_is_dense(&b->type, b->strides) && fl_strides_equal(&b->type, a->strides, b->strides);
}

/* Blocks are summed in parallel, and then one after the other, so that the score is always the same. */
enum { MOST_BLOCKS = 64 };
typedef struct dense {
  fl_dtype dtype;
  const void *got, *want;
  int64_t n, blocks;
  sums sums[MOST_BLOCKS];
} dense;

static void take_blocks(void *arg, int64_t begin, int64_t end, int thread) {
  dense *d = arg;
  for (; begin < end; begin++) {
    sums s = {.same_holes = true};
    int64_t i = d->n * begin / d->blocks, e = d->n * (begin + 1) / d->blocks;
    if (d->dtype == FL_F32)
      for (const float *got = d->got, *want = d->want; i < e; i++) take(&s, got[i], want[i]);
    for (; i < e; i++) take(&s, fl_element_get(d->dtype, d->got, i), fl_element_get(d->dtype, d->want, i));
    d->sums[begin] = s;
  }
}

static void take_dense(sums *s, fl_pool *pool, const fl_tensor_meta *got, const fl_tensor_meta *want) {
  dense d = {want->type.dtype, got->data, want->data, .n = fl_type_numel(&want->type)};
  d.blocks = 1 + d.n / 16384 < MOST_BLOCKS ? 1 + d.n / 16384 : MOST_BLOCKS;
  fl_parallel(pool, d.blocks, 1, take_blocks, &d);
  for (const sums *b = d.sums; b < d.sums + d.blocks; b++) {
    s->dot += b->dot;
    s->gg += b->gg;
    s->ww += b->ww;
    s->top = fmax(s->top, b->top);
    s->diff = fmax(s->diff, b->diff);
    s->same_holes &= b->same_holes;
  }
}

static score compare(fl_pool *pool, const fl_tensor_meta *got, const fl_tensor_meta *want) {
  sums s = {.same_holes = true};
  if (lie_alike(got, want))
    take_dense(&s, pool, got, want);
  else
    take_strided(&s, got, want);
  return scored(s.dot, s.gg, s.ww, s.top, s.diff, s.same_holes);
}

static bool is_low(fl_dtype dtype) { return dtype == FL_F16 || dtype == FL_BF16; }

/* One unit in the last place, relative to the largest value. */
static double ulp(fl_dtype dtype) { return dtype == FL_F16 ? 0x1p-10 : dtype == FL_BF16 ? 0x1p-7 : 0; }

/* `precision`: what the engine was asked to compute float32 in. Where nothing was asked and this says no, eager's answer
 * may be as far from the exact one: see as_near. */
static bool good(const score *s, fl_dtype dtype, fl_dtype precision, bool loose) {
  if (!s->same_holes) return false;
  if (!fl_dtype_is_float(dtype)) return s->max_rel == 0;
  if (is_low(precision) || (loose && is_low(dtype)))
    return s->max_rel <= 0.05 || (s->cosine >= 0.999 && s->max_rel <= 0.1);
  if (is_low(dtype)) return s->max_rel <= ulp(dtype) && s->rms <= ulp(dtype) / 2;
  return s->max_rel <= 1e-3;
}

/* Where the tensors are, if elements lie in the same order; else in the CPU's memory. False when that cannot be done. */
static bool compare_tensors(fl_pool *pool, PyObject *got, PyObject *want, const fl_tensor_meta *a,
                            const fl_tensor_meta *b, score *out) {
  const char *why;
  fl_device device = fl_device_of(b);
  if (!fl_device_equal(fl_device_of(a), device)) return false;
  if (fl_device_is_cpu(device)) return *out = compare(pool, a, b), true;
  const fl_backend *backend = fl_device_backend(device, &why);
  if (backend && lie_alike(a, b) && fl_device_enter(backend, device)) {
    fl_cuda_sums x;
    fl_status s = fl_cuda_compare(backend, pool, b->type.dtype, fl_type_numel(&b->type), a->data, b->data, &x);
    *out = scored(x.dot, x.got_squared, x.want_squared, x.top, x.difference, x.holes == 0);
    bool ok = !s;
    fl_status_free(s);
    return ok;
  }
  PyObject *x = PyObject_CallMethod(got, "cpu", NULL), *y = x ? PyObject_CallMethod(want, "cpu", NULL) : NULL;
  fl_tensor_meta m, n;
  if (y) {
    fl_tensor_read(x, &m);
    fl_tensor_read(y, &n);
    *out = compare(pool, &m, &n);
  }
  Py_XDECREF(x);
  Py_XDECREF(y);
  PyErr_Clear();
  return y != NULL;
}

typedef struct judge {
  fl_pool *pool;
  fl_dtype precision; /* of the engines */
  bool loose;         /* 16-bit answers of two ways to compute need not be judged by the exact one */
} judge;

/* Adds a comparison of two tensors to cosine and max_rel; false when they differ too much. */
static bool check_pair(const judge *j, PyObject *got, PyObject *want, float *cosine, float *max_rel) {
  fl_tensor_meta a, b;
  if (got == want) return true;
  fl_tensor_read(got, &a);
  fl_tensor_read(want, &b);
  if (!a.ok || !b.ok) return a.ok == b.ok;
  if (!fl_type_equal(&a.type, &b.type)) return false;
  score s;
  if (!compare_tensors(j->pool, got, want, &a, &b, &s)) return false;
  if (s.cosine < *cosine) *cosine = (float)s.cosine;
  if (s.max_rel > *max_rel) *max_rel = (float)s.max_rel;
  return good(&s, b.type.dtype, j->precision, j->loose);
}

/* --- two answers of the program --- */

static bool same_answers(const judge *j, PyObject *a, PyObject *b, int depth);

static bool same_dicts(const judge *j, PyObject *a, PyObject *b, int depth) {
  Py_ssize_t pos = 0;
  PyObject *k, *v;
  if (PyDict_GET_SIZE(a) != PyDict_GET_SIZE(b)) return false;
  while (PyDict_Next(a, &pos, &k, &v)) {
    PyObject *other = PyDict_GetItemWithError(b, k);
    if (!other || !same_answers(j, v, other, depth)) return PyErr_Clear(), false;
  }
  return true;
}

static bool same_answers(const judge *j, PyObject *a, PyObject *b, int depth) {
  float cosine = 1, max_rel = 0;
  if (a == b || depth > 16) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (fl_tensor_check(a)) return check_pair(j, a, b, &cosine, &max_rel);
  if (PyTuple_Check(a) || PyList_Check(a)) {
    if (PySequence_Fast_GET_SIZE(a) != PySequence_Fast_GET_SIZE(b)) return false;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(a); i++)
      if (!same_answers(j, PySequence_Fast_GET_ITEM(a, i), PySequence_Fast_GET_ITEM(b, i), depth + 1)) return false;
    return true;
  }
  if (PyDict_Check(a)) return same_dicts(j, a, b, depth + 1);
  if (PyLong_Check(a) || PyUnicode_Check(a) || PyBytes_Check(a)) return fl_const_equal(a, b);
  PyObject **x = _PyObject_GetDictPtr(a), **y = _PyObject_GetDictPtr(b);
  return !x || !y || !*x || !*y || same_dicts(j, *x, *y, depth + 1);
}

bool fl_answers_agree(fl_pool *pool, fl_dtype precision, PyObject *got, PyObject *want) {
  judge j = {pool, precision, true};
  return same_answers(&j, got, want, 0);
}

/* --- runs --- */

static PyObject **values_new(const fl_trace *t, PyObject *const *inputs) {
  PyObject **v = fl_calloc(t->values.len + 1, sizeof *v);
  for (size_t i = 0; v && i < t->borrowed.len; i++) {
    const fl_tval *x = &t->values.data[t->borrowed.data[i]];
    v[t->borrowed.data[i]] =
        Py_NewRef(x->kind == FL_TVAL_INPUT ? inputs[x->index] : t->weights.list.data[x->index].tensor);
  }
  if (!v) PyErr_NoMemory();
  return v;
}

static void values_free(const fl_trace *t, PyObject **v) {
  for (size_t i = 0; v && i < t->values.len; i++) Py_XDECREF(v[i]);
  fl_free(v);
}

static int run_step(fl_trace *t, const fl_tstep *s, PyObject **v, bool eager) {
  if (s->kind == FL_TSTEP_SEGMENT) return fl_segment_run(t, s, v, eager, true);
  return fl_node_run(t, &t->nodes.data[s->first], v, NULL);
}

static bool has_engine(const fl_segment *s) {
  for (int i = 0; s && i < s->n_parts; i++)
    if (s->parts[i].kind == FL_PART_ENGINE) return true;
  return false;
}

/* --- where rounding grows --- */

/* How far `got` is from the exact answer. False when that cannot be told. */
static bool distance(const judge *j, PyObject *got, PyObject *exact, fl_dtype wide, score *out) {
  fl_tensor_meta a, b;
  PyObject *same = fl_exact_widen(got, wide);
  if (!same) return PyErr_Clear(), false;
  fl_tensor_read(same, &a);
  fl_tensor_read(exact, &b);
  bool ok = a.ok && b.ok && b.type.dtype == wide && fl_type_equal(&a.type, &b.type) &&
            compare_tensors(j->pool, same, exact, &a, &b, out);
  Py_DECREF(same);
  return ok;
}

/* What is infinite or no number in one is so in the other. */
static bool same_holes(const judge *j, PyObject *got, PyObject *eager) {
  fl_tensor_meta a, b;
  score s;
  fl_tensor_read(got, &a);
  fl_tensor_read(eager, &b);
  return a.ok && b.ok && compare_tensors(j->pool, got, eager, &a, &b, &s) && s.same_holes;
}

typedef struct answers {
  PyObject *engine, *eager, *exact, *moved;
} answers;

/* Some models make much of a rounding error: then no two orders of summing agree. The engine is right all the same when
 * it is as near to the answer in float64 as eager is, or as that answer moves when the inputs move by their last bit. */
static bool as_near_f32(const judge *j, const answers *a) {
  score engine, recorded, sensitive;
  if (!distance(j, a->engine, a->exact, FL_F64, &engine) || !distance(j, a->eager, a->exact, FL_F64, &recorded) ||
      !distance(j, a->moved, a->exact, FL_F64, &sensitive))
    return false;
  double allowed = 2 * fmax(recorded.max_rel, sensitive.max_rel);
  return engine.max_rel <= fmin(allowed, 0.05) && engine.cosine >= 0.999;
}

/* In 16 bits eager itself is far from the exact answer, since every operator rounds. The engine rounds at fewer places: it
 * is right when it is no more than twice as far, at the worst place and on the average. */
static bool as_near_low(const judge *j, const answers *a, fl_dtype wide, fl_dtype dtype) {
  score engine, recorded;
  if (!distance(j, a->engine, a->exact, wide, &engine) || !distance(j, a->eager, a->exact, wide, &recorded))
    return false;
  double last = ulp(dtype);
  return engine.max_rel <= 2 * fmax(recorded.max_rel, last) && engine.rms <= 2 * fmax(recorded.rms, last / 4);
}

static bool as_near(const judge *j, const answers *a, fl_dtype wide) {
  fl_tensor_meta m;
  fl_tensor_read(a->eager, &m);
  if (!a->exact || !a->moved || !same_holes(j, a->engine, a->eager)) return false;
  return is_low(m.type.dtype) ? as_near_low(j, a, wide, m.type.dtype) : wide == FL_F64 && as_near_f32(j, a);
}

/* Whether all its floats have 16 bits and lie in the CPU's memory: then float32 is wide enough. */
static bool is_all_low(const fl_trace *t, const fl_seg_part *p) {
  for (int i = 0; i < p->n_out; i++) {
    const fl_tensor_meta *m = &t->values.data[p->out[i]].meta;
    if (!fl_device_is_cpu(fl_device_of(m)) || (fl_dtype_is_float(m->type.dtype) && !is_low(m->type.dtype)))
      return false;
  }
  return true;
}

static bool part_is_near(const judge *j, fl_trace *t, const fl_seg_part *p, PyObject *const *got,
                         PyObject *const *ref) {
  if (j->precision != FL_F32) return false;
  fl_dtype wide = is_all_low(t, p) ? FL_F32 : FL_F64;
  PyObject **exact = fl_exact_run(t, p, ref, wide, false), **moved = exact;
  if (exact && wide == FL_F64) moved = fl_exact_run(t, p, ref, wide, true);
  bool near = moved != NULL;
  for (int i = 0; near && i < p->n_out; i++) {
    uint32_t v = p->out[i];
    float cosine = 1, max_rel = 0;
    answers a = {got[v], ref[v], exact[v], moved[v]};
    near = check_pair(j, got[v], ref[v], &cosine, &max_rel) || as_near(j, &a, wide);
  }
  if (moved != exact) fl_exact_free(t, moved);
  fl_exact_free(t, exact);
  t->near |= near;
  return near;
}

/* Runs an engine part on the operators' own inputs: 1 = it answers like them, 0 = it does not, -1 = exception. */
static int part_is_right(fl_trace *t, const fl_tstep *step, fl_seg_part *p, PyObject *const *ref, float *cosine,
                         float *max_rel) {
  const judge by = {step->segment->pool, step->segment->precision, !fl_device_is_cpu(step->segment->device)};
  PyObject **v = fl_calloc(t->values.len + 1, sizeof *v);
  for (int j = 0; v && j < p->n_in; j++) v[p->in[j]] = Py_XNewRef(ref[p->in[j]]);
  int got = v ? fl_part_run(t, step->segment, p, v) : (PyErr_NoMemory(), -1);
  bool same = got == FL_OK;
  for (int j = 0; same && j < p->n_out; j++) same = check_pair(&by, v[p->out[j]], ref[p->out[j]], cosine, max_rel);
  if (got == FL_OK && !same) same = part_is_near(&by, t, p, v, ref);
  values_free(t, v);
  return got < 0 ? -1 : same;
}

static int segment_is_right(fl_trace *t, const fl_tstep *step, PyObject *const *ref) {
  float cosine = 1, max_rel = 0;
  int right = 1;
  for (int k = 0; right == 1 && k < step->segment->n_parts; k++)
    if (step->segment->parts[k].kind == FL_PART_ENGINE)
      right = part_is_right(t, step, &step->segment->parts[k], ref, &cosine, &max_rel);
  return right;
}

/* --- operators that must not be as they are: kept in f32 when precision is low, else left to PyTorch --- */

typedef struct cure {
  fl_trace *t;
  uint32_t step;
  PyObject *const *ref;
  const fl_build_options *options;
  bool *found;       /* operators to be kept from the engine, or from its precision */
  const char **pins; /* NULL when precision is cured: why operators are eager anyway */
  const char *reason;
  int builds;   /* left */
  double until; /* seconds, of now() */
} cure;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static bool may_build(const cure *c) { return c->builds > 0 && now() < c->until; }

/* With operators below `n` as they would be, but for those found, and all others kept. */
static int right_below(cure *c, uint32_t n) {
  fl_tstep *step = &c->t->steps.data[c->step];
  for (uint32_t i = 0; i < step->n; i++) {
    bool kept = i >= n || c->found[i];
    if (c->pins)
      c->t->nodes.data[step->first + i].pin = c->pins[i] ? c->pins[i] : kept ? c->reason : NULL;
    else
      step->segment->exact[i] = kept;
  }
  c->builds--;
  if (!fl_segment_rebuild(c->t, c->step, c->options)) return PyErr_NoMemory(), -1;
  return segment_is_right(c->t, step, c->ref);
}

/* The first operator that makes the segment wrong is kept, until it is right: found by bisection over the order of
 * recording. Where that takes too many builds or too long, all are kept; where that is wrong as well, 0. */
static int keep_what_is_wrong(cure *c) {
  uint32_t n = c->t->steps.data[c->step].n;
  int right = right_below(c, 0);
  if (right != 1) return right;
  while (may_build(c)) {
    uint32_t low = 0, high = n;
    if ((right = right_below(c, n)) != 0) return right;
    while (high - low > 1 && may_build(c)) {
      uint32_t middle = low + (high - low) / 2;
      if ((right = right_below(c, middle)) < 0) return -1;
      *(right ? &low : &high) = middle;
    }
    c->found[high - 1] = true;
  }
  return right_below(c, 0);
}

enum { MAX_BUILDS = 48, MAX_SECONDS = 10 };

static int cure_precision(fl_trace *t, uint32_t step, PyObject *const *ref, const fl_build_options *options) {
  cure c = {.t = t, .step = step, .ref = ref, .options = options, .builds = MAX_BUILDS, .until = INFINITY};
  c.found = fl_calloc(t->steps.data[step].n + 1, 1);
  int right = c.found ? keep_what_is_wrong(&c) : (PyErr_NoMemory(), -1);
  fl_free(c.found);
  return right;
}

/* Engines that are built only to be compared have kernels that were not timed, and every operator that can be in one. */
static int cure_operators(fl_trace *t, uint32_t step, PyObject *const *ref, const fl_build_options *options,
                          const char *reason) {
  fl_build_options quick = *options;
  quick.tactic_ms = 0;
  quick.min_engine_nodes = 1;
  const fl_tstep *s = &t->steps.data[step];
  cure c = {.t = t, .step = step, .ref = ref, .options = &quick, .reason = reason, .builds = MAX_BUILDS};
  c.until = now() + MAX_SECONDS;
  c.found = fl_calloc(s->n + 1, 1);
  c.pins = fl_calloc(s->n + 1, sizeof *c.pins);
  int right = c.found && c.pins ? 1 : (PyErr_NoMemory(), -1);
  for (uint32_t i = 0; right == 1 && i < s->n; i++) c.pins[i] = t->nodes.data[s->first + i].pin;
  if (right == 1) right = keep_what_is_wrong(&c);
  c.options = options;
  if (right == 1) right = right_below(&c, s->n);
  if (right == 0) right = right_below(&c, 0);
  fl_free(c.found);
  fl_free(c.pins);
  return right;
}

static const char *reason_of(fl_trace *t, float cosine, float max_rel) {
  char text[120];
  snprintf(text, sizeof text, "verification failed: cosine %.6f, largest relative error %.2g", (double)cosine,
           (double)max_rel);
  const char *kept = fl_arena_strdup(&t->arena, text);
  return kept ? kept : "verification failed";
}

/* One segment, each engine part on the operators' own inputs. */
static int verify_segment(fl_trace *t, uint32_t i, PyObject *const *ref, const fl_build_options *options) {
  const fl_tstep *step = &t->steps.data[i];
  int right = step->segment->exact ? segment_is_right(t, step, ref) : 1;
  if (right == 0) right = cure_precision(t, i, ref, options);
  for (int k = 0; right >= 0 && k < step->segment->n_parts; k++) {
    fl_seg_part *p = &step->segment->parts[k];
    float cosine = 1, max_rel = 0;
    if (p->kind != FL_PART_ENGINE || (right = part_is_right(t, step, p, ref, &cosine, &max_rel)) != 0) continue;
    right = cure_operators(t, i, ref, options, reason_of(t, cosine, max_rel));
    break;
  }
  return right < 0 ? -1 : 0;
}

/* Takes the recorded results; true when they are all there is to know of the one part that there is. */
static bool take_finals(const fl_trace *t, PyObject **ref, PyObject *const *finals) {
  const fl_segment *s = t->steps.len == 1 ? t->steps.data[0].segment : NULL;
  if (!s || s->n_parts != 1) return false;
  const fl_seg_part *p = s->parts;
  for (int i = 0; i < p->n_in; i++)
    if (!ref[p->in[i]]) return false;
  for (int i = 0; i < p->n_out; i++)
    if (!finals[p->out[i]]) return false;
  for (int i = 0; i < p->n_out; i++) Py_XSETREF(ref[p->out[i]], Py_NewRef(finals[p->out[i]]));
  return true;
}

static int verify_parts(fl_trace *t, PyObject *const *inputs, PyObject *const *finals,
                        const fl_build_options *options) {
  PyObject **ref = values_new(t, inputs);
  int rc = ref ? 0 : -1;
  if (rc == 0 && take_finals(t, ref, finals)) {
    float cosine = 1, max_rel = 0;
    int right = part_is_right(t, t->steps.data, t->steps.data[0].segment->parts, ref, &cosine, &max_rel);
    if (right) rc = right < 0 ? -1 : 1;
    const fl_seg_part *p = t->steps.data[0].segment->parts;
    for (int i = 0; i < p->n_out; i++) Py_CLEAR(ref[p->out[i]]);
  }
  for (uint32_t i = 0; rc == 0 && i < t->steps.len; i++) {
    const fl_tstep *step = &t->steps.data[i];
    fl_break_recorded(t, i, ref);
    rc = run_step(t, step, ref, true);
    if (rc == 0 && has_engine(step->segment)) rc = verify_segment(t, i, ref, options);
  }
  values_free(t, ref);
  return rc < 0 ? -1 : 0;
}

/* The whole trace on the recorded inputs: 1, 0, or -1 with an exception. */
static int trace_is_right(fl_trace *t, const judge *by, PyObject *const *inputs, PyObject *const *finals) {
  PyObject **v = values_new(t, inputs);
  if (!v) return -1;
  int rc = 0;
  float cosine = 1, max_rel = 0;
  fl_stage before = fl_stage_enter(FL_STAGE_run);
  for (size_t i = 0; rc == 0 && i < t->steps.len; i++) {
    fl_break_recorded(t, i, v);
    rc = run_step(t, &t->steps.data[i], v, false);
  }
  fl_stage_enter(before);
  bool same = rc == 0;
  for (size_t i = 0; same && i < t->values.len; i++)
    if (finals[i]) same = v[i] && check_pair(by, v[i], finals[i], &cosine, &max_rel);
  values_free(t, v);
  if (rc < 0) return -1;
  t->cosine = cosine;
  t->max_rel = max_rel;
  t->verified = same;
  return same;
}

static void disable(fl_trace *t, const fl_tstep *step, fl_seg_part *p) {
  p->kind = FL_PART_EAGER;
  p->reason = reason_of(t, t->cosine, t->max_rel);
  fl_engine_destroy(p->engine);
  p->engine = NULL;
  /* The part had one moment to drop values at; now each node has one. */
  fl_drop *drops = fl_arena_alloc(&step->segment->arena, ((size_t)p->n_nodes + 1) * sizeof *drops);
  if (drops && p->n_nodes) drops[p->n_nodes - 1] = p->drops[0];
  p->drops = drops;
  for (int i = 0; i < p->n_nodes; i++) step->segment->reasons[p->nodes[i] - step->first] = p->reason;
  t->eager_parts = true;
}

/* Parts that are each right may be wrong together: a score that moves by its last digit puts another element first. Engines
 * are taken out of use, from the first one on, until the answer is eager's. */
static int verify_together(fl_trace *t, const judge *by, PyObject *const *inputs, PyObject *const *finals) {
  int right = 0;
  for (size_t i = 0; i < t->steps.len; i++) {
    fl_tstep *step = &t->steps.data[i];
    for (int k = 0; right == 0 && step->segment && k < step->segment->n_parts; k++) {
      if (step->segment->parts[k].kind != FL_PART_ENGINE) continue;
      disable(t, step, &step->segment->parts[k]);
      right = trace_is_right(t, by, inputs, finals);
    }
  }
  return right;
}

/* Without a pool where there is no engine. */
static judge judge_of(const fl_trace *t) {
  judge by = {0};
  for (size_t i = 0; i < t->steps.len; i++) {
    const fl_segment *s = t->steps.data[i].segment;
    if (!has_engine(s)) continue;
    by.pool = s->pool;
    if (s->precision != FL_F32) by.precision = s->precision;
    by.loose |= !fl_device_is_cpu(s->device);
  }
  return by;
}

int fl_trace_verify(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options) {
  const judge by = judge_of(t);
  if (!by.pool || t->effects) return 0; /* with effects there is no engine part: rec_dispatch.c */
  int right = trace_is_right(t, &by, inputs, finals);
  if (right == 0 && verify_parts(t, inputs, finals, options) == 0) {
    right = trace_is_right(t, &by, inputs, finals);
    /* Random: the generator would have to be put back each time. */
    if (right == 0 && !t->near && !t->random) right = verify_together(t, &by, inputs, finals);
    t->verified = right > 0 || (right == 0 && t->near);
  }
  return right < 0 || PyErr_Occurred() ? -1 : 0;
}

static int eager_answers(fl_trace *t, PyObject *const *inputs, PyObject **finals) {
  PyObject **v = values_new(t, inputs);
  int rc = v ? 0 : -1;
  for (size_t i = 0; rc == 0 && i < t->steps.len; i++) rc = run_step(t, &t->steps.data[i], v, true);
  for (size_t i = 0; rc == 0 && i < t->values.len; i++)
    if (finals[i] && v[i]) Py_SETREF(finals[i], Py_NewRef(v[i]));
  values_free(t, v);
  return rc;
}

int fl_trace_verify_late(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale,
                         const fl_build_options *options) {
  const judge by = judge_of(t);
  if (!by.pool) return 0;
  int right = stale ? 0 : trace_is_right(t, &by, inputs, finals);
  if (right) return right < 0 ? -1 : 0;
  return eager_answers(t, inputs, finals) < 0 ? -1 : fl_trace_verify(t, inputs, finals, options);
}
