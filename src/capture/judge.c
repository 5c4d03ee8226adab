#include "capture/judge.h"

#include <math.h>
#include <string.h>

#include "capture/exact.h"
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

bool fl_judge_pair(const fl_judge *j, PyObject *got, PyObject *want, float *cosine, float *max_rel) {
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

/* --- where rounding grows --- */

/* How far `got` is from the exact answer. False when that cannot be told. */
static bool distance(const fl_judge *j, PyObject *got, PyObject *exact, fl_dtype wide, score *out) {
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
static bool same_holes(const fl_judge *j, PyObject *got, PyObject *eager) {
  fl_tensor_meta a, b;
  score s;
  fl_tensor_read(got, &a);
  fl_tensor_read(eager, &b);
  return a.ok && b.ok && compare_tensors(j->pool, got, eager, &a, &b, &s) && s.same_holes;
}

typedef struct answers {
  PyObject *engine, *eager, *exact, *moved;
  double spread; /* how far eager's answers to inputs moved by their last bit are from the exact one; 0: not known */
} answers;

/* Some models make much of a rounding error: then no two orders of summing agree. The engine is right all the same when
 * it is as near to the answer in float64 as eager is, or as that answer moves when the inputs move by their last bit. */
static bool as_near_f32(const fl_judge *j, const answers *a) {
  score engine, recorded, sensitive;
  if (!distance(j, a->engine, a->exact, FL_F64, &engine) || !distance(j, a->eager, a->exact, FL_F64, &recorded) ||
      !distance(j, a->moved, a->exact, FL_F64, &sensitive))
    return false;
  double allowed = 2 * fmax(fmax(recorded.max_rel, sensitive.max_rel), a->spread);
  return engine.max_rel <= fmin(allowed, 0.05) && engine.cosine >= 0.999;
}

/* In 16 bits eager itself is far from the exact answer, since every operator rounds. The engine rounds at fewer places: it
 * is right when it is no more than twice as far, at the worst place and on the average. */
static bool as_near_low(const fl_judge *j, const answers *a, fl_dtype wide, fl_dtype dtype) {
  score engine, recorded;
  if (!distance(j, a->engine, a->exact, wide, &engine) || !distance(j, a->eager, a->exact, wide, &recorded))
    return false;
  double last = ulp(dtype);
  return engine.max_rel <= 2 * fmax(recorded.max_rel, last) && engine.rms <= 2 * fmax(recorded.rms, last / 4);
}

static bool as_near(const fl_judge *j, const answers *a, fl_dtype wide) {
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

/* Where rounding grows most, an answer's distance from the exact one is chance: eager's own answer is one draw of many. Others
 * are its answers to inputs moved by their last bit, which are as good. For each result the largest distance; NULL where
 * that cannot be told. */
static double *spread(const fl_judge *j, const fl_trace *t, const fl_seg_part *p, PyObject *const *ref,
                      PyObject *const *exact) {
  double *most = fl_calloc((size_t)p->n_out + 1, sizeof *most);
  for (int k = FL_NUDGE_OUT; most && k < FL_NUDGES; k++) {
    PyObject **drawn = fl_exact_run(t, p, ref, FL_F32, (fl_nudge)k);
    for (int i = 0; drawn && i < p->n_out; i++) {
      score s;
      uint32_t v = p->out[i];
      if (drawn[v] && exact[v] && distance(j, drawn[v], exact[v], FL_F64, &s) && s.same_holes)
        most[i] = fmax(most[i], s.max_rel);
    }
    fl_exact_free(t, drawn);
  }
  return most;
}

static bool all_near(const fl_judge *j, const fl_seg_part *p, PyObject *const *got, PyObject *const *ref,
                     PyObject *const *exact, PyObject *const *moved, fl_dtype wide, const double *spread) {
  bool near = true;
  for (int i = 0; near && i < p->n_out; i++) {
    uint32_t v = p->out[i];
    float cosine = 1, max_rel = 0;
    answers a = {got[v], ref[v], exact[v], moved[v], spread ? spread[i] : 0};
    near = fl_judge_pair(j, got[v], ref[v], &cosine, &max_rel) || as_near(j, &a, wide);
  }
  return near;
}

bool fl_judge_part(const fl_judge *j, const fl_trace *t, const fl_seg_part *p, PyObject *const *got,
                   PyObject *const *ref) {
  if (j->precision != FL_F32) return false;
  fl_dtype wide = is_all_low(t, p) ? FL_F32 : FL_F64;
  PyObject **exact = fl_exact_run(t, p, ref, wide, FL_NUDGE_NONE), **moved = exact;
  if (exact && wide == FL_F64) moved = fl_exact_run(t, p, ref, wide, FL_NUDGE_OUT);
  bool near = moved && all_near(j, p, got, ref, exact, moved, wide, NULL);
  if (moved && !near && wide == FL_F64) {
    double *most = spread(j, t, p, ref, exact);
    near = most && all_near(j, p, got, ref, exact, moved, wide, most);
    fl_free(most);
  }
  if (moved != exact) fl_exact_free(t, moved);
  fl_exact_free(t, exact);
  return near;
}
