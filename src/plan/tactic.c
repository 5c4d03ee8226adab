/* Which of several kernels serves a problem: by their own estimates, then by measuring. */
#include <string.h>
#include <time.h>

#include "base/stages.h"
#include "plan/builder.h"
#include "plan/view.h"

enum { RUNS = 3, SLOW_US = 20000 };
#define NEAR 1.3 /* estimates further apart than this have been right on every model of the zoo */
#define CLEARLY                                                                                                        \
  0.9 /* a measured time must be this much less than the favourite's: clocks are noisy, estimates are not */

/* --- problems --- */

static bool operands_equal(const fl_problem *a, const fl_problem *b, int i) {
  if (a->absent[i] != b->absent[i] || a->constant[i] != b->constant[i]) return false;
  return a->absent[i] || (fl_type_equal(&a->in[i].type, &b->in[i].type) &&
                          fl_strides_equal(&a->in[i].type, a->in[i].strides, b->in[i].strides));
}

bool fl_problem_equal(const fl_problem *a, const fl_problem *b) {
  if (a->op != b->op || a->n_in != b->n_in || a->n_out != b->n_out || a->threads != b->threads || a->tf32 != b->tf32)
    return false;
  if (!a->program != !b->program || (a->program && !fl_pw_equal(a->program, b->program))) return false;
  for (int i = 0; i < a->n_in; i++)
    if (!operands_equal(a, b, i)) return false;
  for (int i = 0; i < a->n_out; i++)
    if (!fl_type_equal(&a->out[i], &b->out[i])) return false;
  return a->program || fl_attrs_equal(a->attrs, b->attrs);
}

/* --- estimates --- */

static double copy_us(const fl_type *type) { return 2.0 * (double)fl_type_bytes(type) / 1e4; /* 10 GB/s */ }

/* Microseconds for the layout changes that this plan asks for; those of constants are done once. */
static double copies_us(const fl_problem *p, const fl_kernel_plan *plan) {
  double us = 0;
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i] && !p->constant[i] && !fl_layout_holds(plan->in_layout[i], &p->in[i].type, p->in[i].strides))
      us += copy_us(&p->in[i].type);
  return us;
}

/* The table's order stands where an estimate is missing. */
static int by_estimate(const fl_problem *p, const fl_kernel_plan *plans, int n) {
  int best = 0;
  for (int i = 1; i < n; i++)
    if (plans[i].cost_us > 0 && plans[best].cost_us > 0 &&
        plans[i].cost_us + copies_us(p, &plans[i]) < plans[best].cost_us + copies_us(p, &plans[best]))
      best = i;
  return best;
}

/* --- measuring --- */

enum { MAX_BLOCKS = 2 * FL_MAX_OPERANDS + FL_PW_MAX_OUTPUTS + 1 };

/* Memory of a measurement, kept for the next one. */
typedef struct block {
  void *data;
  size_t bytes;
} block;

struct fl_trial {
  fl_tensor in[FL_MAX_OPERANDS], out[FL_PW_MAX_OUTPUTS];
  block blocks[MAX_BLOCKS];
  int n_blocks, fault;
  block constants[FL_MAX_OPERANDS]; /* of this problem: what is flushed */
  int n_constants;
  void *scratch;
};

void fl_trial_destroy(fl_trial *t) {
  if (!t) return;
  for (int i = 0; i < MAX_BLOCKS; i++) fl_free_aligned(t->blocks[i].data);
  fl_free(t);
}

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void *new_block(fl_trial *t, size_t bytes) {
  block *b = &t->blocks[t->n_blocks++];
  if (b->bytes < bytes || !b->data) {
    fl_free_aligned(b->data);
    b->data = fl_malloc_aligned(bytes);
    b->bytes = b->data ? bytes : 0;
  }
  return b->data;
}

static size_t span_bytes(const fl_tensor *t) {
  int64_t last = 0;
  for (int i = 0; i < t->type.rank; i++) last += t->strides[i] > 0 ? (t->type.dims[i] - 1) * t->strides[i] : 0;
  return (size_t)(last + 1) * fl_dtype_size(t->type.dtype);
}

/* Floats are 0.5, so that no denormal slows a kernel down; integers are 0, in range of whatever they index. */
static void fill(fl_dtype dtype, void *data, size_t bytes) {
  if (dtype != FL_F32) {
    memset(data, 0, bytes);
    return;
  }
  float *f = data;
  for (size_t i = 0; i < bytes / sizeof *f; i++) f[i] = 0.5f;
}

/* Packed operands are of the type that they were: no need to pack. */
static bool prepare_operand(fl_trial *t, const fl_problem *p, const fl_kernel_plan *plan, int i) {
  fl_tensor *in = &t->in[i];
  *in = p->in[i];
  if (p->absent[i]) return true;
  if (!plan->packed_bytes[i] && !fl_layout_holds(plan->in_layout[i], &in->type, in->strides)) {
    if (plan->in_layout[i] == FL_LAYOUT_CHANNELS_LAST)
      fl_strides_channels_last(&in->type, in->strides);
    else
      fl_strides_contiguous(&in->type, in->strides);
  }
  size_t bytes = plan->packed_bytes[i] ? plan->packed_bytes[i] : span_bytes(in);
  in->data = new_block(t, bytes);
  if (!in->data) return false;
  fill(in->type.dtype, in->data, bytes);
  if (p->constant[i]) t->constants[t->n_constants++] = (block){in->data, bytes};
  return true;
}

static bool prepare(fl_trial *t, const fl_problem *p, const fl_kernel_plan *plan) {
  t->n_blocks = t->n_constants = 0;
  for (int i = 0; i < p->n_in; i++)
    if (!prepare_operand(t, p, plan, i)) return false;
  for (int i = 0; i < p->n_out; i++) {
    t->out[i] = (fl_tensor){.type = p->out[i], .data = new_block(t, fl_type_bytes(&p->out[i]))};
    memcpy(t->out[i].strides, plan->out_strides[i], sizeof t->out[i].strides);
    if (!t->out[i].data) return false;
  }
  t->scratch = plan->scratch_bytes ? new_block(t, plan->scratch_bytes) : NULL;
  return t->scratch || !plan->scratch_bytes;
}

/* Whether weights come from main memory in every run: a warm measurement would flatter kernels with larger packs. */
static bool weights_are_cold(const fl_builder *b) {
  double bytes = 0, cache = (double)fl_cpu_l3(), share = 16e6 * b->options->threads; /* others use the cache too */
  for (size_t i = 0; i < b->stores.len; i++)
    if (b->stores.data[i].kind == FL_STORE_WEIGHT) bytes += (double)b->stores.data[i].bytes;
  return bytes > (cache < share ? cache : share);
}

static void flush(const fl_trial *t) {
#if defined(__x86_64__) || defined(__i386__)
  for (int i = 0; i < t->n_constants; i++)
    for (size_t at = 0; at < t->constants[i].bytes; at += 64)
      __builtin_ia32_clflush((const char *)t->constants[i].data + at);
  __builtin_ia32_mfence();
#endif
}

/* The least of some runs, the first of which also brings the memory in; gives up early on a kernel far behind. */
static double measure(fl_builder *b, const fl_problem *p, int id, const fl_kernel_plan *plan, double best) {
  fl_trial *t = b->trial ? b->trial : (b->trial = fl_calloc(1, sizeof *t));
  double least = best;
  const fl_kernel *k = b->plan->backend->kernel(id);
  if (!t || !prepare(t, p, plan)) return least;
  fl_run_args args = {.params = plan->params,
                      .in = t->in,
                      .out = t->out,
                      .scratch = t->scratch,
                      .pool = b->options->pool,
                      .fault = &t->fault};
  bool cold = weights_are_cold(b);
  fl_pool_hold(b->options->pool);
  for (int i = 0; i < RUNS; i++) {
    if (i > 0 && cold) flush(t);
    double began = now_us();
    k->run(&args);
    double us = now_us() - began;
    if ((i > 0 || us > SLOW_US) && us < least) least = us;
    if (us > 4 * best || us > SLOW_US) break;
  }
  fl_pool_release(b->options->pool);
  return least;
}

/* The same thing in fewer lanes does not compete, and so no portable reference: those judge. Nor does a kernel whose own
 * estimate is not near. */
static bool competes(const fl_builder *b, const int *ids, const fl_kernel_plan *plans, int i, int favourite) {
  const fl_backend *k = b->plan->backend;
  if (i == favourite) return true;
  return k->kernel(ids[i])->isa >= k->kernel(ids[favourite])->isa &&
         (plans[i].cost_us <= 0 || plans[favourite].cost_us <= 0 || plans[i].cost_us < NEAR * plans[favourite].cost_us);
}

/* Microseconds that measuring is expected to take: its runs, and what is written and flushed for them. */
static double effort_us(const fl_builder *b, const fl_problem *p, const fl_kernel_plan *plan) {
  size_t bytes = plan->scratch_bytes;
  for (int i = 0; i < p->n_in; i++)
    if (!p->absent[i]) bytes += fl_type_bytes(&p->in[i].type) + 2 * plan->packed_bytes[i];
  for (int i = 0; i < p->n_out; i++) bytes += fl_type_bytes(&p->out[i]);
  return RUNS * plan->cost_us / fl_pool_threads(b->options->pool) + (double)bytes / 5e3;
}

static int by_measuring(fl_builder *b, const fl_problem *p, const int *ids, const fl_kernel_plan *plans, int n,
                        int favourite) {
  int chosen = favourite, competitors = 0;
  double best = 1e30, effort = 0;
  for (int i = 0; i < n; i++) {
    if (!competes(b, ids, plans, i, favourite)) continue;
    competitors++;
    effort += effort_us(b, p, &plans[i]);
  }
  if (competitors < 2 || effort > b->tactic_left_us) return favourite;
  for (int k = 0; k < n && b->tactic_left_us > 0; k++) {
    int i = k == 0 ? favourite : k <= favourite ? k - 1 : k; /* the favourite first */
    if (!competes(b, ids, plans, i, favourite)) continue;
    double began = now_us(), extra = copies_us(p, &plans[i]);
    double us = measure(b, p, ids[i], &plans[i], best - extra) + extra;
    if (us < best * (k == 0 ? 1 : CLEARLY)) {
      best = us;
      chosen = i;
    }
    b->tactic_left_us -= now_us() - began;
  }
  return chosen;
}

fl_status fl_tactic_choose(fl_builder *b, const fl_problem *problem, bool once, const int *ids,
                           const fl_kernel_plan *plans, int n, int *out_chosen) {
  *out_chosen = by_estimate(problem, plans, n);
  if (n < 2 || once || b->tactic_left_us <= 0 || !b->plan->backend->immediate) return NULL;
  for (size_t i = 0; i < b->tactics.len; i++) {
    if (!fl_problem_equal(b->tactics.data[i].problem, problem)) continue;
    for (int k = 0; k < n; k++)
      if (ids[k] == b->tactics.data[i].kernel) *out_chosen = k;
    return NULL;
  }
  fl_stage before = fl_stage_enter(FL_STAGE_tactics);
  *out_chosen = by_measuring(b, problem, ids, plans, n, *out_chosen);
  fl_stage_enter(before);
  fl_tactic_entry entry = {problem, ids[*out_chosen]};
  return FL_PUSH(&b->tactics, entry) ? NULL : fl_oom();
}
