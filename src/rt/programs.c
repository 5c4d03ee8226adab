#include "rt/programs.h"

#include <string.h>

enum { MAX_RECORDINGS = 16, ALIGN = 64, OF_STAGES = 0, OF_ADDRESSES = 1, SWEEP = 16 };
static const uint64_t first_patience[2] = {2, 64};
static const size_t large = 16 << 20; /* bytes of stages */

static size_t span_bytes(const fl_operand *o) {
  int64_t last = 0;
  if (fl_type_numel(&o->type) == 0) return 0;
  for (int i = 0; i < o->type.rank; i++) last += (o->type.dims[i] - 1) * o->strides[i];
  return (size_t)(last + 1) * fl_dtype_size(o->type.dtype);
}

fl_status fl_programs_init(fl_programs *p, const fl_plan *plan) {
  p->plan = plan;
  p->n = plan->n_inputs + plan->n_outputs;
  p->stages = fl_calloc((size_t)p->n + 1, sizeof *p->stages);
  if (!p->stages) return fl_oom();
  for (int i = 0; i < p->n; i++)
    p->stages[i].bytes = span_bytes(i < plan->n_inputs ? &plan->inputs[i] : &plan->outputs[i - plan->n_inputs]);
  for (int i = 0; i < p->n; i++) p->large |= p->stages[i].bytes >= large;
  for (int v = 0; v < FL_QUEUE_VARIANTS; v++) p->list[v].fresh = true;
  memcpy(p->patience, first_patience, sizeof p->patience);
  return NULL;
}

/* --- stages --- */

void *fl_programs_stage(const fl_programs *p, int i) {
  return i < p->plan->n_inputs ? p->stages[i].to : (void *)(uintptr_t)p->stages[i].from;
}

static void set_stage(fl_programs *p, int i, void *block) {
  if (i < p->plan->n_inputs)
    p->stages[i].to = block;
  else
    p->stages[i].from = block;
}

static void drop_stages(fl_programs *p) {
  const fl_backend *b = p->plan->backend;
  for (int i = 0; i < p->n; i++) {
    b->release(b, fl_programs_stage(p, i));
    set_stage(p, i, NULL);
  }
  p->staged = false;
}

static fl_status make_stages(fl_programs *p) {
  const fl_backend *b = p->plan->backend;
  for (int i = 0; i < p->n; i++) {
    void *block = b->allocate(b, p->stages[i].bytes);
    if (!block) {
      drop_stages(p);
      return fl_oom();
    }
    set_stage(p, i, block);
  }
  p->staged = true;
  p->list[0].fresh = true;
  return NULL;
}

size_t fl_programs_bytes(const fl_programs *p) {
  size_t sum = 0;
  for (int i = 0; p->staged && i < p->n; i++) sum += p->stages[i].bytes;
  return sum;
}

void fl_programs_destroy(fl_programs *p) {
  if (!p->plan) return;
  if (p->stages) drop_stages(p);
  for (int v = 0; v < FL_QUEUE_VARIANTS; v++) fl_free(p->list[v].at);
  fl_free(p->stages);
}

void fl_programs_refresh(fl_programs *p) {
  for (int v = 0; v < FL_QUEUE_VARIANTS; v++) p->list[v].fresh = true;
}

/* --- the caller's addresses ---
 * A recording costs about as much as a thousand copies, so that one is made for addresses that have come before only, and
 * not for ever new ones. */

static const void *address_of(const fl_programs *p, const void *const *inputs, void *const *outputs, int i) {
  return i < p->plan->n_inputs ? inputs[i] : outputs[i - p->plan->n_inputs];
}

bool fl_programs_aligned(const fl_programs *p, const void *const *inputs, void *const *outputs) {
  uintptr_t low = 0;
  for (int i = 0; i < p->n; i++) low |= (uintptr_t)address_of(p, inputs, outputs, i);
  return low % ALIGN == 0;
}

static int find(const fl_programs *p, const void *const *inputs, void *const *outputs) {
  for (int v = 1; v < FL_QUEUE_VARIANTS; v++) {
    int i = 0;
    if (!p->list[v].at) continue;
    while (i < p->n && p->list[v].at[i] == address_of(p, inputs, outputs, i)) i++;
    if (i == p->n) return v;
  }
  return 0;
}

static bool was_seen(fl_programs *p, const void *const *inputs, void *const *outputs) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int i = 0; i < p->n; i++) hash = (hash ^ (uintptr_t)address_of(p, inputs, outputs, i)) * 0x100000001b3;
  for (int i = 0; i < FL_PROGRAMS_SEEN; i++)
    if (p->seen[i] == hash) return true;
  p->seen[p->calls % FL_PROGRAMS_SEEN] = hash;
  return false;
}

/* Is a recording made for these addresses? The first few times at once where a stage would be large: its memory is worth more. */
static bool is_worthwhile(fl_programs *p, const void *const *inputs, void *const *outputs) {
  bool seen = was_seen(p, inputs, outputs);
  return p->recordings < MAX_RECORDINGS && (seen || (p->large && p->recordings < FL_QUEUE_VARIANTS - 1));
}

/* The program least used, for these addresses. 0 when out of memory. */
static int take(fl_programs *p, const void *const *inputs, void *const *outputs) {
  int v = 1;
  for (int i = 2; i < FL_QUEUE_VARIANTS; i++)
    if (p->list[i].used < p->list[v].used) v = i;
  fl_program *d = &p->list[v];
  if (!d->at) d->at = fl_malloc((size_t)p->n * sizeof *d->at);
  if (!d->at) return 0;
  for (int i = 0; i < p->n; i++) d->at[i] = address_of(p, inputs, outputs, i);
  d->fresh = true;
  p->recordings++;
  return v;
}

/* --- forgetting --- */

static void forget(fl_programs *p, fl_queue *q, int v) {
  fl_program *d = &p->list[v];
  if (p->plan->backend->forget) p->plan->backend->forget(q, v); /* waits for its work */
  if (v)
    p->recordings--; /* would it come back, that were nothing new */
  else
    drop_stages(p);
  fl_free(d->at);
  *d = (fl_program){.fresh = true};
  p->patience[v ? OF_ADDRESSES : OF_STAGES] *= 2;
}

static bool is_idle(const fl_programs *p, int v) {
  return (v ? p->list[v].at != NULL : p->staged) &&
         p->calls - p->list[v].used >= p->patience[v ? OF_ADDRESSES : OF_STAGES];
}

static void forget_idle(fl_programs *p, fl_queue *q) {
  if (is_idle(p, 0)) forget(p, q, 0);
  for (int v = 1; p->calls % SWEEP == 0 && v < FL_QUEUE_VARIANTS; v++)
    if (is_idle(p, v)) forget(p, q, v);
}

/* --- the choice --- */

static void fill_copies(fl_programs *p, const void *const *inputs, void *const *outputs, fl_work *work) {
  int n = p->plan->n_inputs;
  for (int i = 0; i < n; i++) p->stages[i].from = inputs[i];
  for (int i = n; i < p->n; i++) p->stages[i].to = outputs[i - n];
  work->before = p->stages;
  work->n_before = n;
  work->after = p->stages + n;
  work->n_after = p->plan->n_outputs;
}

fl_status fl_programs_choose(fl_programs *p, fl_queue *q, const void *const *inputs, void *const *outputs,
                             fl_work *work, fl_program **out) {
  p->calls++;
  int v = find(p, inputs, outputs);
  if (!v && fl_programs_aligned(p, inputs, outputs) && is_worthwhile(p, inputs, outputs)) v = take(p, inputs, outputs);
  p->list[v].used = p->calls;
  work->variant = v;
  *out = &p->list[v];
  forget_idle(p, q);
  if (v) return NULL;
  if (!p->staged) FL_TRY(make_stages(p));
  fill_copies(p, inputs, outputs, work);
  return NULL;
}
