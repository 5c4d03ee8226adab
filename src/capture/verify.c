/* An engine is compared with the recorded answers before it is trusted. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "capture/device.h"
#include "capture/judge.h"
#include "capture/rerun.h"

static bool has_engine(const fl_segment *s) {
  for (int i = 0; s && i < s->n_parts; i++)
    if (s->parts[i].kind == FL_PART_ENGINE) return true;
  return false;
}

/* Runs an engine part on the operators' own inputs: 1 = it answers like them, 0 = it does not, -1 = exception. */
static int part_is_right(fl_trace *t, const fl_tstep *step, fl_seg_part *p, PyObject *const *ref, float *cosine,
                         float *max_rel) {
  const fl_judge by = {step->segment->pool, step->segment->precision, !fl_device_is_cpu(step->segment->device)};
  PyObject **v = fl_calloc(t->values.len + 1, sizeof *v);
  for (int j = 0; v && j < p->n_in; j++) v[p->in[j]] = Py_XNewRef(ref[p->in[j]]);
  int got = v ? fl_part_run(t, step->segment, p, v) : (PyErr_NoMemory(), -1);
  bool same = got == FL_OK;
  for (int j = 0; same && j < p->n_out; j++) same = fl_judge_pair(&by, v[p->out[j]], ref[p->out[j]], cosine, max_rel);
  if (got == FL_OK && !same && fl_judge_part(&by, t, p, v, ref)) same = t->near = true;
  fl_rerun_end(t, v);
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
  PyObject **ref = fl_rerun_begin(t, inputs);
  int rc = ref ? 0 : -1;
  if (rc == 0 && take_finals(t, ref, finals)) {
    float cosine = 1, max_rel = 0;
    int right = part_is_right(t, t->steps.data, t->steps.data[0].segment->parts, ref, &cosine, &max_rel);
    if (right) rc = right < 0 ? -1 : 1;
    const fl_seg_part *p = t->steps.data[0].segment->parts;
    for (int i = 0; i < p->n_out; i++) Py_CLEAR(ref[p->out[i]]);
  }
  if (rc == 0) rc = fl_rerun_check(t, inputs, finals, options);
  for (uint32_t i = 0; rc == 0 && !t->unfaithful && i < t->steps.len; i++) {
    rc = fl_rerun_step(t, i, ref, true);
    if (rc == 0 && has_engine(t->steps.data[i].segment)) rc = verify_segment(t, i, ref, options);
  }
  fl_rerun_end(t, ref);
  return rc < 0 ? -1 : 0;
}

/* All steps, with engines, as far as they can be run: their status. */
static int run_trace(fl_trace *t, PyObject **v) {
  int rc = 0;
  fl_stage before = fl_stage_enter(FL_STAGE_run);
  for (uint32_t i = 0; rc == 0 && i < t->steps.len; i++) rc = fl_rerun_step(t, i, v, false);
  fl_stage_enter(before);
  return rc;
}

/* The whole trace on the recorded inputs: 1, 0, or -1 with an exception. */
static int trace_is_right(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals,
                          const fl_build_options *o) {
  if (t->random && o->generator && fl_generators_set(o->generator) < 0) return -1;
  PyObject **v = fl_rerun_begin(t, inputs);
  if (!v) return -1;
  float cosine = 1, max_rel = 0;
  int rc = run_trace(t, v);
  bool same = rc == 0;
  for (size_t i = 0; same && i < t->values.len; i++)
    if (finals[i]) same = v[i] && fl_judge_pair(by, v[i], finals[i], &cosine, &max_rel);
  fl_rerun_end(t, v);
  if (rc < 0) return -1;
  t->cosine = cosine;
  t->max_rel = max_rel;
  t->verified = same;
  return same;
}

/* The same. Where it is not right, what other traces made of the weights may be of contents that are no more, though nothing told
 * of it: then it is right with constants of its own, and the others are to make theirs anew. */
static int is_right(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals,
                    const fl_build_options *o) {
  fl_unshared were;
  int right = trace_is_right(t, by, inputs, finals, o);
  if (right || !fl_weights_unshare(&t->weights, &were)) return right;
  right = trace_is_right(t, by, inputs, finals, o);
  if (right == 0) {
    fl_weights_share_again(&t->weights, &were);
    return 0;
  }
  fl_unshared_free(&were);
  if (right > 0) fl_family_touch(t->weights.family, &t->weights);
  return right;
}

/* The results of a trace of one segment, all of its parts together, are judged like those of a part: parts that are each near may be far
 * together. Of other traces it is not known, and they count as near. */
static bool is_near_together(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals) {
  if (t->steps.len != 1 || t->random) return true;
  const fl_tstep *step = t->steps.data;
  fl_seg_part all = {.n_nodes = (int)step->n, .n_in = (int)t->inputs.len};
  all.nodes = fl_malloc((step->n + 1) * sizeof *all.nodes);
  all.out = fl_malloc((t->values.len + 1) * sizeof *all.out);
  all.in = t->inputs.data;
  PyObject **got = fl_rerun_begin(t, inputs);
  bool near = all.nodes && all.out && got && run_trace(t, got) == 0;
  for (uint32_t i = 0; near && i < step->n; i++) all.nodes[i] = step->first + i;
  for (size_t i = 0; near && i < t->values.len; i++)
    if (finals[i]) all.out[all.n_out++] = (uint32_t)i;
  PyObject **ref = near ? fl_rerun_begin(t, inputs) : NULL;
  for (int i = 0; ref && i < all.n_out; i++) Py_XSETREF(ref[all.out[i]], Py_NewRef(finals[all.out[i]]));
  near = ref && fl_judge_part(by, t, &all, got, ref);
  if (ref) fl_rerun_end(t, ref);
  if (got) fl_rerun_end(t, got);
  fl_free(all.nodes);
  fl_free(all.out);
  PyErr_Clear();
  return near;
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
static int verify_together(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals,
                           const fl_build_options *o) {
  int right = 0;
  for (size_t i = 0; i < t->steps.len; i++) {
    fl_tstep *step = &t->steps.data[i];
    for (int k = 0; right == 0 && step->segment && k < step->segment->n_parts; k++) {
      if (step->segment->parts[k].kind != FL_PART_ENGINE) continue;
      disable(t, step, &step->segment->parts[k]);
      right = trace_is_right(t, by, inputs, finals, o);
    }
  }
  return right;
}

/* Without a pool where there is no engine. */
static fl_judge judge_of(const fl_trace *t) {
  fl_judge by = {0};
  for (size_t i = 0; i < t->steps.len; i++) {
    const fl_segment *s = t->steps.data[i].segment;
    if (!has_engine(s)) continue;
    by.pool = s->pool;
    if (s->precision != FL_F32) by.precision = s->precision;
    by.loose |= !fl_device_is_cpu(s->device);
  }
  return by;
}

/* Whatever the order of parts does to memory that operators share unseen, the recorded order does not. */
static int verify_in_order(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals,
                           const fl_build_options *o) {
  for (size_t i = 0; i < t->steps.len; i++) {
    fl_tstep *step = &t->steps.data[i];
    if (step->segment && !fl_segment_make_eager(t, step, reason_of(t, t->cosine, t->max_rel)))
      return PyErr_NoMemory(), -1;
  }
  return trace_is_right(t, by, inputs, finals, o);
}

static int verify_whole(fl_trace *t, const fl_judge *by, PyObject *const *inputs, PyObject *const *finals,
                        const fl_build_options *o) {
  int right = trace_is_right(t, by, inputs, finals, o);
  if (right) return right;
  if (t->near && is_near_together(t, by, inputs, finals)) return t->verified = true;
  right = verify_together(t, by, inputs, finals, o);
  return right ? right : verify_in_order(t, by, inputs, finals, o);
}

static int verify(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options) {
  const fl_judge by = judge_of(t);
  if (!by.pool) return fl_rerun_check(t, inputs, finals, options);
  int right = is_right(t, &by, inputs, finals, options);
  if (right) return right < 0 ? -1 : 0;
  if (verify_parts(t, inputs, finals, options) < 0 || t->unfaithful) return PyErr_Occurred() ? -1 : 0;
  return verify_whole(t, &by, inputs, finals, options) < 0 ? -1 : 0;
}

int fl_trace_verify(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options) {
  if (t->effects) return 0; /* with effects there is no engine part: rec_dispatch.c */
  t->spoil = FL_SPOIL;
  int rc = verify(t, inputs, finals, options);
  t->spoil = 0;
  return rc < 0 || PyErr_Occurred() ? -1 : 0;
}

static int verify_late(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale,
                       const fl_build_options *options) {
  const fl_judge by = judge_of(t);
  int right = !by.pool ? 1 : stale ? 0 : is_right(t, &by, inputs, finals, options);
  if (right) return right < 0 ? -1 : 0;
  if (fl_rerun_answers(t, inputs, finals, stale, options) < 0) return -1;
  return t->unfaithful ? 0 : verify(t, inputs, finals, options);
}

int fl_trace_verify_late(fl_trace *t, PyObject *const *inputs, PyObject **finals, bool stale,
                         const fl_build_options *options) {
  t->spoil = FL_SPOIL;
  int rc = verify_late(t, inputs, finals, stale, options);
  t->spoil = 0;
  return rc < 0 || PyErr_Occurred() ? -1 : 0;
}
