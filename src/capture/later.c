#include "capture/later.h"

#include <string.h>

#include "capture/make.h"
#include "capture/shared.h"
#include "plan/view.h"

enum { MOST_BYTES = 32 << 20 }; /* of the copies */

void fl_later_free(fl_later *l) {
  if (!l) return;
  for (size_t i = 0; l->inputs && i < l->n_inputs; i++) Py_XDECREF(l->inputs[i]);
  for (size_t i = 0; l->finals && i < l->n_values; i++) Py_XDECREF(l->finals[i]);
  fl_free(l->inputs);
  fl_free(l->finals);
  fl_free(l);
}

/* --- which traces --- */

/* Only engines on the CPU, and nothing that is not the same when it is done again. */
static bool can_wait(const fl_trace *t) {
  if (t->eager_parts || t->effects || t->random || t->breaks.len || t->entry || t->writes.list.len ||
      t->writes.sources.len)
    return false;
  for (size_t i = 0; i < t->steps.len; i++) {
    const fl_segment *s = t->steps.data[i].segment;
    if (!s || s->exact || !fl_device_is_cpu(s->device)) return false;
  }
  return true;
}

/* --- copies --- */

/* A new tensor of the same elements; NULL, without an exception, for what is not dense and on the CPU, or beyond *left. */
static PyObject *copy_of(PyObject *tensor, size_t *left) {
  fl_tensor_meta m;
  void *data = NULL;
  fl_tensor_read(tensor, &m);
  size_t bytes = m.ok ? fl_type_bytes(&m.type) : 0;
  if (!m.ok || m.device_type != FL_DEVICE_CPU || bytes > *left || !fl_is_dense(&m.type, m.strides)) return NULL;
  PyObject *o = fl_make_tensor(&m, &data);
  if (!o && (o = fl_tensor_new(&m))) data = fl_tensor_data(o);
  PyErr_Clear();
  if (o && bytes) memcpy(data, m.data, bytes);
  *left -= bytes;
  return o;
}

static bool copy_all(fl_later *l, PyObject *const *inputs, PyObject *const *finals) {
  size_t left = MOST_BYTES;
  for (size_t i = 0; i < l->n_inputs; i++)
    if (!(l->inputs[i] = copy_of(inputs[i], &left))) return false;
  for (size_t i = 0; i < l->n_values; i++)
    if (finals[i] && !(l->finals[i] = copy_of(finals[i], &left))) return false;
  return true;
}

/* One that was changed unseen is not mistaken for a fault of the recording. */
static uint64_t hash_weights(const fl_trace *t) {
  uint64_t h = 0;
  for (size_t i = 0; i < t->weights.list.len; i++) h = fl_memory_hash(&t->weights.list.data[i].meta, h);
  return h;
}

bool fl_later_take(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options) {
  if (!can_wait(t)) return false;
  fl_later *l = fl_calloc(1, sizeof *l);
  if (!l) return false;
  *l = (fl_later){
      .n_inputs = (size_t)t->args.n_inputs, .n_values = t->values.len, .epoch = t->weights.epoch, .options = *options};
  l->options.generator = NULL;
  l->elements = hash_weights(t);
  l->inputs = fl_calloc(l->n_inputs + 1, sizeof *l->inputs);
  l->finals = fl_calloc(l->n_values + 1, sizeof *l->finals);
  if (!l->inputs || !l->finals || !copy_all(l, inputs, finals)) return fl_later_free(l), false;
  t->later = l;
  return true;
}

/* --- the verification --- */

static void leave_to_pytorch(fl_trace *t) {
  for (size_t i = 0; i < t->steps.len; i++)
    if (t->steps.data[i].segment) (void)fl_segment_make_eager(t, &t->steps.data[i], "verification raised an error");
  t->eager_parts = true;
}

static void verify_without_grad(fl_trace *t, fl_later *l) {
  int grad = fl_grad_enabled();
  if (grad > 0) (void)fl_grad_set(false);
  bool stale = l->epoch != t->weights.epoch || l->elements != hash_weights(t);
  if (PyErr_Occurred() || fl_trace_verify_late(t, l->inputs, l->finals, stale, &l->options) < 0) leave_to_pytorch(t);
  PyErr_Clear();
  if (grad > 0) (void)fl_grad_set(true);
  PyErr_Clear();
}

void fl_later_verify(fl_trace *t) {
  fl_later *l = t->later;
  fl_clock clock;
  t->running++;
  fl_clock_start(&clock, FL_STAGE_verify);
  verify_without_grad(t, l);
  fl_clock_stop(&clock);
  t->running--;
  t->ready_times = clock.times;
  t->later = NULL;
  fl_later_free(l);
}
