/* Values of tensors that decide how the program goes on, where a guard can promise that they are the same again: those of
 * a small tensor among the arguments, and whatever is computed from such and from small weights alone. Elsewhere they end
 * a segment. */
#include <string.h>

#include "capture/rec.h"

enum { MOST_BYTES = 1024, MOST_NODES = 1000, MOST_COUNTS = 64 };

static bool is_small(const fl_tensor_meta *m) {
  return m->ok && m->device_type == FL_DEVICE_CPU && fl_is_dense(&m->type, m->strides) &&
         fl_type_bytes(&m->type) <= MOST_BYTES;
}

static bool guard_input(fl_rec *r, PyObject *tensor, uint32_t index) {
  fl_argspec *args = &r->trace->args;
  if (index >= (uint32_t)args->n_inputs || r->effects || !is_small(&args->inputs[index].meta)) return false;
  fl_input *in = &args->inputs[index];
  size_t bytes = fl_type_bytes(&in->meta.type);
  if (in->content || !bytes) return true;
  in->content_bytes = bytes;
  in->content = fl_arena_memdup(&r->trace->arena, fl_tensor_data(tensor), bytes);
  return in->content != NULL;
}

typedef struct search {
  fl_rec *r;
  FL_VEC(uint32_t) weights, inputs; /* by index; by value: to be guarded */
  int nodes;
  bool counts, numbers, ok;
} search;

static bool is_integer(const fl_tensor_meta *m) { return m->type.dtype == FL_I32 || m->type.dtype == FL_I64; }

/* Few integers among the arguments: sizes, lengths, a grid. Their elements may be guarded without being asked for. */
static bool are_counts(const search *s, uint32_t index) {
  const fl_argspec *args = &s->r->trace->args;
  if (!(s->counts || s->numbers) || s->r->effects || index >= (uint32_t)args->n_inputs) return false;
  const fl_tensor_meta *m = &args->inputs[index].meta;
  return is_small(m) && is_integer(m) && fl_type_numel(&m->type) <= MOST_COUNTS;
}

static PyObject *live_object(fl_rec *r, uint32_t value) {
  for (size_t i = 0; i < r->live.len; i++) {
    const fl_live *l = &r->live.data[i];
    if (l->value == value && PyWeakref_GET_OBJECT(l->weak) == l->object) return l->object;
  }
  return NULL;
}

static bool guard_counts(fl_rec *r, uint32_t value) {
  PyObject *o = live_object(r, value);
  return o && guard_input(r, o, r->trace->values.data[value].index);
}

/* Nothing but zeros and ones: a mask, whose elements are another in each call. */
static bool is_mask(fl_rec *r, uint32_t value) {
  PyObject *o = live_object(r, value);
  const fl_tensor_meta *m = &r->trace->values.data[value].meta;
  size_t n = (size_t)fl_type_numel(&m->type);
  const void *data = o ? fl_tensor_data(o) : NULL;
  for (size_t i = 0; data && i < n; i++) {
    int64_t x = m->type.dtype == FL_I32 ? ((const int32_t *)data)[i] : ((const int64_t *)data)[i];
    if (x != 0 && x != 1) return false;
  }
  return true;
}

static void look(void *ctx, uint32_t v) {
  search *s = ctx;
  const fl_tval *x = &s->r->trace->values.data[v];
  if (s->numbers && !is_integer(&x->meta)) s->ok = false;
  if (!s->ok) return;
  if (x->kind == FL_TVAL_WEIGHT) {
    const fl_weight *w = &s->r->trace->weights.list.data[x->index];
    s->ok = is_small(&w->meta) && !w->copy && FL_PUSH(&s->weights, x->index);
    return;
  }
  if (x->kind == FL_TVAL_INPUT) { /* its elements are guarded already */
    const fl_argspec *args = &s->r->trace->args;
    s->ok = x->index < (uint32_t)args->n_inputs && args->inputs[x->index].content && !s->r->effects;
    if (!s->ok && are_counts(s, x->index) && !(s->numbers && is_mask(s->r, v))) s->ok = FL_PUSH(&s->inputs, v);
    return;
  }
  const fl_tnode *n = x->kind == FL_TVAL_RESULT ? &s->r->trace->nodes.data[x->index] : NULL;
  s->ok = n && (!n->pin || n->schema->dynamic_shape) && !n->schema->seeded && !n->schema->norm && !n->schema->outside &&
          ++s->nodes <= MOST_NODES;
  if (s->ok) fl_tnode_each(n, look, s);
}

typedef enum fix_what { FIX_ANY, FIX_COUNTS, FIX_NUMBERS } fix_what;

static bool fix(fl_rec *r, PyObject *tensor, bool input, fix_what what) {
  uint32_t v;
  if (r->gave_up || r->trace->writes_weights) return false;
  if (!fl_rec_find(r, tensor, &v) && (v = fl_rec_value_of(r, tensor, NULL)) == FL_NO_TVAL) return false;
  const fl_tval *x = &r->trace->values.data[v];
  if (x->kind == FL_TVAL_INPUT && input) return guard_input(r, tensor, x->index);
  search s = {.r = r, .counts = what == FIX_COUNTS, .numbers = what == FIX_NUMBERS, .ok = true};
  look(&s, v);
  for (size_t i = 0; s.ok && i < s.weights.len; i++) s.ok = fl_weights_freeze(&r->trace->weights, s.weights.data[i]);
  for (size_t i = 0; s.ok && i < s.inputs.len; i++) s.ok = guard_counts(r, s.inputs.data[i]);
  fl_free(s.weights.data);
  fl_free(s.inputs.data);
  return s.ok;
}

bool fl_rec_fix(fl_rec *r, PyObject *tensor, bool input) { return fix(r, tensor, input, FIX_ANY); }
bool fl_rec_fix_counts(fl_rec *r, PyObject *tensor) { return fix(r, tensor, false, FIX_COUNTS); }
bool fl_rec_fix_numbers(fl_rec *r, PyObject *tensor) {
  return fix(r, tensor, true, FIX_ANY) || fix(r, tensor, false, FIX_NUMBERS);
}

bool fl_rec_read_elements(fl_rec *r, PyObject *tensor) {
  return r && !r->gave_up && !r->paused && fl_tensor_check(tensor) && fl_rec_fix_numbers(r, tensor);
}

void fl_rec_identified(fl_rec *r, PyObject *obj) {
  if (fl_rec_is_passing(r, obj)) fl_rec_give_up(r, "id of a tensor or argument", "");
  if (r && r->trace && fl_tensor_check(obj)) r->trace->identified = true;
}
