#include "capture/segment.h"

#include <string.h>

#include "rt/compile.h"

static void drop_parts(fl_segment *s) {
  for (int i = 0; i < s->n_parts; i++) fl_engine_destroy(s->parts[i].engine);
  s->n_parts = 0;
  fl_lowered_destroy(s->lowered);
  s->lowered = NULL;
}

void fl_segment_destroy(fl_segment *s) {
  if (!s) return;
  drop_parts(s);
  fl_aten_graph_destroy(s->aten);
  fl_free(s->values);
  fl_free(s->slots);
  fl_arena_release(&s->arena);
  fl_free(s);
}

/* --- what must stay eager so that results share memory as in eager --- */

static bool dense_type(const fl_tval *v) { return v->meta.ok && fl_is_dense(&v->meta.type, v->meta.strides); }

static void pin_views(fl_trace *t, uint32_t v, const char *reason) {
  while (v != FL_NO_TVAL && t->values.data[v].kind == FL_TVAL_RESULT && t->values.data[v].view_of != FL_NO_TVAL) {
    fl_tnode *n = &t->nodes.data[t->values.data[v].index];
    if (!n->pin) n->pin = reason;
    v = t->values.data[v].view_of;
  }
}

static bool storage_is_shared(const fl_trace *t, const bool *kept, uint32_t v) {
  const fl_tval *x = &t->values.data[v];
  for (size_t i = 0; i < t->values.len; i++)
    if (i != v && t->values.data[i].storage == x->storage && (t->values.data[i].kind != FL_TVAL_RESULT || kept[i]))
      return true;
  return false;
}

static void keep_value(void *ctx, uint32_t v) { ((bool *)ctx)[v] = true; }

static bool pin_results(fl_trace *t) {
  bool *kept = fl_calloc(t->values.len + 1, sizeof *kept);
  if (!kept) return false;
  fl_trace_each_kept(t, keep_value, kept);
  for (uint32_t v = 0; v < t->values.len; v++) {
    if (!kept[v] || t->values.data[v].view_of == FL_NO_TVAL) continue;
    if (storage_is_shared(t, kept, v))
      pin_views(t, v, "the result shares memory with another tensor");
    else if (!dense_type(&t->values.data[v]))
      pin_views(t, v, "the result is a view with gaps or overlap");
  }
  fl_free(kept);
  return true;
}

/* --- when values are no longer needed --- */

typedef struct last_use {
  uint32_t *at, now;
} last_use;

static void touch(void *ctx, uint32_t v) { ((last_use *)ctx)->at[v] = ((last_use *)ctx)->now; }

/* Groups values by the moment of their last use: drops[moment]. Values with at == UINT32_MAX stay. */
static bool group_drops(fl_arena *arena, const uint32_t *at, size_t n_values, fl_drop *drops, uint32_t moments) {
  for (size_t v = 0; v < n_values; v++)
    if (at[v] < moments) drops[at[v]].n++;
  for (uint32_t m = 0; m < moments; m++) {
    if (drops[m].n && !(drops[m].values = fl_arena_alloc(arena, (size_t)drops[m].n * sizeof(uint32_t)))) return false;
    drops[m].n = 0;
  }
  for (size_t v = 0; v < n_values; v++)
    if (at[v] < moments) drops[at[v]].values[drops[at[v]].n++] = (uint32_t)v;
  return true;
}

static bool node_drops(fl_trace *t) {
  size_t nv = t->values.len, nn = t->nodes.len;
  last_use u = {fl_malloc((nv + 1) * sizeof *u.at), 0};
  fl_drop *drops = fl_calloc(nn + 1, sizeof *drops);
  bool ok = u.at && drops;
  if (ok) memset(u.at, 0xff, (nv + 1) * sizeof *u.at);
  for (; ok && u.now < nn; u.now++) {
    fl_tnode *n = &t->nodes.data[u.now];
    for (int i = 0; i < n->n_out; i++)
      if (n->outs[i] != FL_NO_TVAL) touch(&u, n->outs[i]);
    fl_tnode_each(n, touch, &u);
  }
  u.now = UINT32_MAX;
  if (ok) fl_trace_each_kept(t, touch, &u);
  ok = ok && group_drops(&t->arena, u.at, nv, drops, (uint32_t)nn);
  for (size_t i = 0; ok && i < nn; i++) {
    t->nodes.data[i].drop = drops[i].values;
    t->nodes.data[i].n_drop = drops[i].n;
  }
  fl_free(u.at);
  fl_free(drops);
  return ok;
}

static bool part_drops(fl_trace *t, uint32_t step, fl_segment *s) {
  size_t nv = t->values.len, moments = 0;
  for (int i = 0; i < s->n_parts; i++) moments += s->parts[i].kind == FL_PART_EAGER ? (size_t)s->parts[i].n_nodes : 1;
  last_use u = {fl_malloc((nv + 1) * sizeof *u.at), 0};
  bool *need = fl_calloc(nv + 1, sizeof *need);
  fl_drop *drops = fl_arena_alloc(&s->arena, (moments + 1) * sizeof *drops);
  bool ok = u.at && need && drops;
  if (ok) {
    memset(u.at, 0xff, (nv + 1) * sizeof *u.at);
    fl_trace_needed_after(t, step, need);
  }
  for (int i = 0; ok && i < s->n_parts; i++) {
    fl_seg_part *p = &s->parts[i];
    p->drops = drops + u.now;
    if (p->kind == FL_PART_ENGINE) {
      for (int k = 0; k < p->n_in; k++) touch(&u, p->in[k]);
      for (int k = 0; k < p->n_out; k++) touch(&u, p->out[k]);
      u.now++;
      continue;
    }
    for (int k = 0; k < p->n_nodes; k++, u.now++) {
      const fl_tnode *n = &t->nodes.data[p->nodes[k]];
      for (int j = 0; j < n->n_out; j++)
        if (n->outs[j] != FL_NO_TVAL) touch(&u, n->outs[j]);
      fl_tnode_each(n, touch, &u);
    }
  }
  for (size_t v = 0; ok && v < nv; v++)
    if (need[v]) u.at[v] = UINT32_MAX;
  ok = ok && group_drops(&s->arena, u.at, nv, drops, (uint32_t)moments);
  fl_free(u.at);
  fl_free(need);
  return ok;
}

/* --- parts --- */

static uint32_t *translate(fl_arena *a, const uint32_t *from, int n, const uint32_t *map) {
  uint32_t *out = fl_arena_alloc(a, ((size_t)n + 1) * sizeof *out);
  for (int i = 0; out && i < n; i++) out[i] = map[from[i]];
  return out;
}

/* Two elements at one place; gaps between them are fine. */
static bool overlaps(const fl_tval *v) {
  const fl_type *t = &v->meta.type;
  int order[FL_MAX_RANK];
  int64_t extent = 1; /* of the axes of smaller strides */
  for (int i = 0; i < t->rank; i++) {
    int at = i;
    for (; at > 0 && v->meta.strides[order[at - 1]] > v->meta.strides[i]; at--) order[at] = order[at - 1];
    order[at] = i;
  }
  for (int i = 0; i < t->rank; i++) {
    int64_t dim = t->dims[order[i]], stride = v->meta.strides[order[i]];
    if (dim <= 1) continue;
    if (stride < extent) return true;
    extent = stride * (dim - 1) + extent;
  }
  return !v->meta.ok;
}

/* Why an engine part's borders cannot be served, or NULL. */
static const char *set_borders(fl_trace *t, uint32_t step, fl_segment *s, fl_seg_part *p) {
  const fl_plan *plan = fl_engine_plan(p->engine);
  p->checked = fl_arena_alloc(&s->arena, (size_t)p->n_in + 1);
  p->copied = fl_arena_alloc(&s->arena, (size_t)p->n_out + 1);
  if (!p->checked || !p->copied) return "out of memory";
  for (int i = 0; i < p->n_in; i++) {
    const fl_tval *v = &t->values.data[p->in[i]];
    p->checked[i] = v->kind == FL_TVAL_RESULT;
    if (!fl_type_equal(&v->meta.type, &plan->inputs[i].type)) return "the plan's inputs differ from those recorded";
  }
  for (int i = 0; i < p->n_out; i++) {
    const fl_tval *v = &t->values.data[p->out[i]];
    if (!fl_type_equal(&v->meta.type, &plan->outputs[i].type)) return "the plan's outputs differ from those recorded";
    if (overlaps(v)) return "an output whose elements share memory";
    p->copied[i] = !dense_type(v);
    for (int d = 0; d < v->meta.type.rank; d++)
      if (v->meta.type.dims[d] != 1 && v->meta.strides[d] != plan->outputs[i].strides[d]) p->copied[i] = true;
    if (p->copied[i] && !s->backend->immediate) return "an output whose strides the engine cannot give";
  }
  return NULL;
}

static const char *keep_text(fl_segment *s, fl_status st) {
  const char *m = fl_arena_strdup(&s->arena, fl_status_message(st));
  fl_status_free(st);
  return m ? m : "out of memory";
}

/* Eager's strides where they are dense, so that outputs need no copy. */
static int64_t (*out_strides(fl_trace *t, fl_segment *s, const fl_seg_part *p))[FL_MAX_RANK] {
  int64_t(*out)[FL_MAX_RANK] = fl_arena_alloc(&s->arena, ((size_t)p->n_out + 1) * sizeof *out);
  for (int i = 0; out && i < p->n_out; i++) {
    const fl_tval *v = &t->values.data[p->out[i]];
    if (dense_type(v))
      memcpy(out[i], v->meta.strides, sizeof out[i]);
    else
      fl_strides_contiguous(&v->meta.type, out[i]);
  }
  return out;
}

static void build_engine(fl_trace *t, uint32_t step, fl_segment *s, fl_seg_part *p, fl_graph *g,
                         const fl_build_options *o) {
  const void **weights = fl_calloc(s->n_slots + 1, sizeof *weights);
  uint64_t *stamps = fl_calloc(s->n_slots + 1, sizeof *stamps);
  int64_t(*strides)[FL_MAX_RANK] = out_strides(t, s, p);
  fl_plan_options po = {.backend = s->backend,
                        .threads = fl_pool_threads(o->pool),
                        .tactic_budget_ms = o->tactic_ms,
                        .tf32_matmul = t->cuda_state > 0 && t->cuda_state & FL_TF32_MATMUL,
                        .tf32_conv = t->cuda_state > 0 && t->cuda_state & FL_TF32_CONV,
                        .pool = o->pool,
                        .out_strides = (const int64_t(*)[FL_MAX_RANK])strides};
  fl_compile_nodes nodes = {0};
  fl_status st = weights && stamps ? NULL : fl_oom();
  fl_weights_stamp(&t->weights);
  for (uint32_t i = 0; !st && i < s->n_slots; i++) {
    weights[i] = t->weights.list.data[s->slots[i]].meta.data;
    stamps[i] = t->weights.list.data[s->slots[i]].stamp;
  }
  p->epoch = t->weights.epoch; /* others may touch them from now on */
  g->compute = s->precision;
  g->wide = fl_device_is_cpu(s->device);
  g->bf16_products = g->wide && fl_cpu_isa() >= FL_ISA_AVX512_BF16;
  g->exact = s->exact;
  g->n_exact = s->exact ? t->steps.data[step].n : 0;
  if (!st) {
    Py_BEGIN_ALLOW_THREADS st = fl_engine_compile(g, &po, weights, stamps, s->n_slots, &nodes, &p->engine);
    Py_END_ALLOW_THREADS
  }
  fl_free(weights);
  fl_free(stamps);
  p->engine_nodes = nodes.after;
  if (!st)
    p->reason = set_borders(t, step, s, p);
  else {
    p->engine = NULL;
    p->reason = keep_text(s, st);
  }
  if (!p->reason) return;
  fl_engine_destroy(p->engine);
  p->engine = NULL;
  p->kind = FL_PART_EAGER;
  for (int i = 0; i < p->n_nodes; i++) s->reasons[p->nodes[i] - t->steps.data[step].first] = p->reason;
}

static fl_status build_parts(fl_trace *t, uint32_t step, fl_segment *s, const fl_build_options *o) {
  const fl_tstep *st = &t->steps.data[step];
  s->n_parts = (int)s->lowered->parts.len;
  s->parts = fl_arena_alloc(&s->arena, ((size_t)s->n_parts + 1) * sizeof *s->parts);
  s->reasons = fl_arena_alloc(&s->arena, ((size_t)st->n + 1) * sizeof *s->reasons);
  if (!s->parts || !s->reasons) return fl_oom();
  for (uint32_t i = 0; i < st->n; i++)
    s->reasons[i] = s->lowered->reports[i].lowered ? NULL : s->lowered->reports[i].reason;
  for (int i = 0; i < s->n_parts; i++) {
    fl_part *from = &s->lowered->parts.data[i];
    fl_seg_part *p = &s->parts[i];
    p->kind = from->kind;
    p->n_nodes = from->n_nodes;
    p->n_in = from->n_inputs;
    p->n_out = from->n_outputs;
    p->nodes = fl_arena_alloc(&s->arena, ((size_t)p->n_nodes + 1) * sizeof *p->nodes);
    p->in = translate(&s->arena, from->inputs, p->n_in, s->values);
    p->out = translate(&s->arena, from->outputs, p->n_out, s->values);
    if (!p->nodes || !p->in || !p->out) return fl_oom();
    for (int k = 0; k < p->n_nodes; k++) p->nodes[k] = from->nodes[k] + st->first;
    if (p->kind == FL_PART_ENGINE) build_engine(t, step, s, p, from->graph, o);
  }
  return part_drops(t, step, s) ? NULL : fl_oom();
}

static fl_status lower_segment(fl_trace *t, uint32_t step, fl_segment *s, const fl_build_options *o) {
  fl_lower_options lo = {.supports = fl_plan_supports,
                         .ctx = (void *)(uintptr_t)s->backend,
                         .cpu = fl_device_is_cpu(s->device),
                         .min_engine_nodes = o->min_engine_nodes};
  drop_parts(s);
  FL_TRY(fl_lower(s->aten, &lo, &s->lowered));
  return build_parts(t, step, s, o);
}

/* Parts that could not be built in low precision get f32 again. False when there is none. */
static bool keep_what_lacks_kernels(const fl_trace *t, uint32_t step, fl_segment *s) {
  bool any = false;
  for (int i = 0; i < s->n_parts; i++) {
    const fl_seg_part *p = &s->parts[i];
    if (p->kind != FL_PART_EAGER || !p->reason) continue;
    any = true;
    for (int k = 0; k < p->n_nodes; k++) s->exact[p->nodes[k] - t->steps.data[step].first] = true;
  }
  return any;
}

static fl_status build_segment(fl_trace *t, uint32_t step, fl_segment *s, const fl_build_options *o) {
  const char *why = NULL;
  s->device = fl_segment_device(t, step);
  s->backend = fl_device_backend(s->device, &why);
  if (!s->backend) return fl_fail(FL_UNSUPPORTED, "%s", why);
  if (!fl_device_enter(s->backend, s->device)) return fl_fail(FL_UNSUPPORTED, "a CUDA graph is being captured");
  if (!fl_device_is_cpu(s->device)) t->cuda_state = fl_torch_cuda_state();
  fl_device_trim(s->backend, s->device); /* of what eager left, or the build before this one */
  if (o->precision != FL_F32 && !fl_device_is_cpu(s->device)) {
    s->precision = o->precision;
    s->exact = fl_arena_alloc(&s->arena, t->steps.data[step].n + 1);
    if (!s->exact) return fl_oom();
  }
  FL_TRY(fl_segment_graph(t, step, s->device, &s->aten, &s->values, &s->slots, &s->n_slots));
  FL_TRY(lower_segment(t, step, s, o));
  return s->exact && keep_what_lacks_kernels(t, step, s) ? lower_segment(t, step, s, o) : NULL;
}

bool fl_segment_rebuild(fl_trace *t, uint32_t step, const fl_build_options *o) {
  fl_segment *s = t->steps.data[step].segment;
  for (size_t i = 0; i < s->aten->values.len; i++) { /* weights may have moved since */
    const fl_tval *v = &t->values.data[s->values[i]];
    if (s->aten->values.data[i].data) s->aten->values.data[i].data = t->weights.list.data[v->index].meta.data;
  }
  for (uint32_t i = 0; i < s->aten->nodes.len; i++)
    s->aten->nodes.data[i].pin_eager = t->nodes.data[t->steps.data[step].first + i].pin;
  fl_status bad = lower_segment(t, step, s, o);
  bool ok = !bad || fl_segment_make_eager(t, &t->steps.data[step], keep_text(s, bad));
  for (int k = 0; ok && k < s->n_parts; k++) t->eager_parts |= s->parts[k].kind == FL_PART_EAGER;
  return ok;
}

bool fl_segment_make_eager(fl_trace *t, fl_tstep *st, const char *reason) {
  fl_segment *s = st->segment;
  for (int i = 0; i < s->n_parts; i++) fl_engine_destroy(s->parts[i].engine);
  s->n_parts = 0;
  s->reasons = fl_arena_alloc(&s->arena, ((size_t)st->n + 1) * sizeof *s->reasons);
  fl_seg_part *p = s->parts = fl_arena_alloc(&s->arena, sizeof *p);
  fl_drop *drops = fl_arena_alloc(&s->arena, ((size_t)st->n + 1) * sizeof *drops);
  if (!p || !s->reasons || !drops || !(p->nodes = fl_arena_alloc(&s->arena, ((size_t)st->n + 1) * sizeof *p->nodes)))
    return false;
  p->kind = FL_PART_EAGER;
  p->n_nodes = (int)st->n;
  p->drops = drops;
  p->reason = reason;
  for (uint32_t i = 0; i < st->n; i++) {
    fl_tnode *n = &t->nodes.data[st->first + i];
    p->nodes[i] = st->first + i;
    s->reasons[i] = n->pin ? n->pin : reason;
    drops[i] = (fl_drop){n->drop, n->n_drop};
  }
  s->n_parts = 1;
  return true;
}

static bool list_borrowed(fl_trace *t) {
  if (!(t->start = fl_arena_alloc(&t->arena, (t->values.len + 1) * sizeof *t->start))) return false;
  for (uint32_t v = 0; v < t->values.len; v++) {
    const fl_tval *x = &t->values.data[v];
    if (x->kind == FL_TVAL_WEIGHT) t->start[v] = t->weights.list.data[x->index].tensor;
    if (fl_tval_is_borrowed(x) && !FL_PUSH(&t->borrowed, v)) return false;
    if (x->kind == FL_TVAL_INPUT && !FL_PUSH(&t->inputs, v)) return false;
  }
  return true;
}

bool fl_trace_build(fl_trace *t, const fl_build_options *o) {
  const fl_segment *last = NULL;
  t->cuda_state = -1;
  if (!list_borrowed(t) || !pin_results(t) || !node_drops(t)) return false;
  if (t->breaks.len) t->eager_parts = true;
  for (uint32_t i = 0; i < t->steps.len; i++) {
    fl_tstep *st = &t->steps.data[i];
    if (st->kind != FL_TSTEP_SEGMENT) {
      t->eager_parts = true;
      continue;
    }
    fl_segment *s = st->segment = fl_calloc(1, sizeof *s);
    if (!s) return false;
    s->pool = o->pool;
    fl_arena_init(&s->arena);
    const char *reason = st->eager_reason ? st->eager_reason : o->lower ? NULL : "backend eager";
    if (!reason) {
      fl_status bad = build_segment(t, i, s, o);
      if (bad) reason = keep_text(s, bad);
    }
    if (reason && !fl_segment_make_eager(t, st, reason)) return false;
    for (int k = 0; k < s->n_parts; k++) {
      t->eager_parts |= s->parts[k].kind == FL_PART_EAGER;
      if (s->parts[k].kind == FL_PART_ENGINE) last = s;
    }
  }
  if (last) fl_device_trim(last->backend, last->device); /* before arenas are made */
  return true;
}

static size_t engine_bytes(fl_engine *e, uint64_t report, bool constants) {
  fl_engine_memory m = fl_engine_memory_of(e, report);
  size_t bytes = m.arenas + m.stages + m.workspaces + m.programs_bytes;
  for (int i = 0; constants && i < FL_CONST_KINDS; i++) bytes += m.constants[i];
  return bytes;
}

size_t fl_trace_bytes(const fl_trace *t, uint64_t report, bool constants) {
  size_t bytes = 0;
  for (size_t i = 0; i < t->steps.len; i++) {
    const fl_segment *s = t->steps.data[i].segment;
    for (int k = 0; s && k < s->n_parts; k++)
      if (s->parts[k].engine) bytes += engine_bytes(s->parts[k].engine, report, constants);
  }
  for (size_t i = 0; i < t->sites.len; i++)
    for (size_t k = 0; k < t->sites.data[i]->branches.len; k++)
      bytes += fl_trace_bytes(t->sites.data[i]->branches.data[k], report, constants);
  return bytes;
}
