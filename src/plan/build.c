/* Walks the graph and drafts the steps. Views cost nothing: they are locations in the store of what they view. */
#include <string.h>

#include "plan/builder.h"
#include "plan/view.h"

enum { MAX_CANDIDATES = 8 };

static const fl_type *type_of(const fl_builder *b, fl_vid v) { return &b->g->values.data[v].type; }

static fl_store *store_of(const fl_builder *b, fl_vid v) { return &b->stores.data[b->locs[v].store]; }

static bool is_view(const fl_node *n) { return (fl_op_get(n->op)->flags & FL_OPF_VIEW) != 0; }

void fl_place(fl_builder *b, fl_vid v, const fl_loc *loc) {
  b->locs[v] = *loc;
  b->stores.data[loc->store].uses += fl_graph_use_count(b->g, v);
}

static int program_of(const fl_builder *b, const fl_node *n) {
  return fl_graph_is_const(b->g, n->outputs[0]) ? FL_INIT : FL_RUN;
}

/* --- inputs, weights, literals --- */

static fl_status place_given(fl_builder *b, fl_vid v, uint32_t *slot_stores) {
  const fl_value *value = &b->g->values.data[v];
  fl_loc loc = {0};
  memcpy(loc.strides, value->strides, sizeof loc.strides);
  size_t bytes = fl_type_bytes(&value->type);
  if (value->kind == FL_VALUE_INPUT)
    FL_TRY(fl_store_new(b, FL_STORE_INPUT, (uint32_t)value->index, bytes, &loc.store));
  else if (value->kind == FL_VALUE_LITERAL)
    FL_TRY(fl_store_new(b, FL_STORE_LITERAL, v, bytes, &loc.store));
  else {
    uint32_t *known = &slot_stores[value->slot];
    if (*known == FL_NO_STORE) FL_TRY(fl_store_new(b, FL_STORE_WEIGHT, value->slot, bytes, known));
    loc.store = *known;
  }
  fl_place(b, v, &loc);
  return NULL;
}

static bool is_used_weight(const fl_builder *b, fl_vid v) {
  return b->g->values.data[v].kind == FL_VALUE_WEIGHT && fl_graph_use_count(b->g, v) > 0;
}

static fl_status place_all_given(fl_builder *b) {
  for (fl_vid v = 0; v < b->g->values.len; v++) {
    if (!is_used_weight(b, v)) continue;
    uint32_t slot = b->g->values.data[v].slot;
    if (slot == FL_NO_SLOT) return fl_fail(FL_INVALID, "plan: weight %%%u has no slot", v);
    if (slot >= b->plan->n_weights) b->plan->n_weights = slot + 1;
  }
  uint32_t *slot_stores = fl_arena_alloc(&b->arena, b->plan->n_weights * sizeof *slot_stores + 1);
  b->locs = fl_arena_alloc(&b->arena, b->g->values.len * sizeof *b->locs + 1);
  b->wholes = fl_arena_alloc(&b->arena, b->g->values.len * sizeof *b->wholes + 1);
  b->late = fl_arena_alloc(&b->arena, b->g->values.len * sizeof *b->late + 1);
  if (!slot_stores || !b->locs || !b->wholes || !b->late) return fl_oom();
  memset(slot_stores, 0xff, b->plan->n_weights * sizeof *slot_stores);
  for (fl_vid v = 0; v < b->g->values.len; v++) {
    fl_value_kind kind = b->g->values.data[v].kind;
    b->locs[v].store = b->wholes[v].store = FL_NO_STORE;
    b->late[v] = FL_NO_NODE;
    if (kind == FL_VALUE_INPUT || (kind != FL_VALUE_RESULT && fl_graph_use_count(b->g, v) > 0))
      FL_TRY(place_given(b, v, slot_stores));
  }
  return NULL;
}

/* --- views --- */

static void view_slice(const fl_builder *b, const fl_node *n, fl_loc *loc) {
  int64_t axis = fl_attr_int(&n->attrs, "axis", 0);
  size_t elem = fl_dtype_size(type_of(b, n->inputs[0])->dtype);
  if (fl_type_numel(type_of(b, n->outputs[0])))
    loc->offset += (size_t)(fl_attr_int(&n->attrs, "start", 0) * loc->strides[axis]) * elem;
  loc->strides[axis] *= fl_attr_int(&n->attrs, "step", 1);
}

/* A reshape that is no view: a copy, of an image whose channels are adjacent into one of that kind. */
static fl_status copy_reshaped(fl_builder *b, const fl_node *n, fl_loc *loc) {
  fl_vid in = n->inputs[0];
  const fl_type *from = type_of(b, in), *to = type_of(b, n->outputs[0]);
  const int64_t *strides = b->locs[in].strides;
  fl_loc copy = {0};
  fl_strides_channels_last(to, loc->strides);
  bool images = to->rank == 4 && from->rank > 0 && strides[from->rank - 1] != 1 && !fl_is_contiguous(to, loc->strides);
  if (!images || !fl_view_reshape(to, loc->strides, from, copy.strides)) {
    FL_TRY(fl_loc_in_layout(b, in, FL_LAYOUT_CONTIGUOUS, n->origin, loc));
    fl_strides_contiguous(to, loc->strides);
    return NULL;
  }
  FL_TRY(fl_store_new(b, FL_STORE_TEMP, 0, fl_type_bytes(to), &copy.store));
  b->stores.data[copy.store].shared = true;
  b->stores.data[copy.store].kept_as = FL_CONST_COPIED;
  b->stores.data[copy.store].init = program_of(b, n) == FL_INIT;
  FL_TRY(fl_draft_copy(b, program_of(b, n), from, &b->locs[in], &copy, n->origin));
  loc->store = copy.store;
  loc->offset = 0;
  return NULL;
}

static fl_status draft_view(fl_builder *b, const fl_node *n) {
  fl_vid in = n->inputs[0], out = n->outputs[0];
  const fl_type *from = type_of(b, in), *to = type_of(b, out);
  fl_loc loc = b->locs[in];
  int rank;
  switch (n->op) {
  case FL_OP_PERMUTE:
    fl_view_permute(b->locs[in].strides, fl_attr_list(&n->attrs, "perm", &rank), to->rank, loc.strides);
    break;
  case FL_OP_EXPAND: fl_view_expand(from, b->locs[in].strides, to, loc.strides); break;
  case FL_OP_SLICE: view_slice(b, n, &loc); break;
  case FL_OP_RESHAPE:
    if (fl_view_reshape(from, b->locs[in].strides, to, loc.strides)) break;
    FL_TRY(copy_reshaped(b, n, &loc));
    break;
  default: return fl_fail(FL_INTERNAL, "plan: view operator %s is not known", fl_op_get(n->op)->name);
  }
  fl_place(b, out, &loc);
  store_of(b, in)->uses--;
  return NULL;
}

/* --- problems --- */

/* Strides are those of `locs`, or without it what can be told before planning. */
static void fill_problem(const fl_graph *g, const fl_node *n, const fl_loc *locs, bool packing, int threads,
                         const fl_backend *backend, fl_problem *p) {
  p->op = n->op;
  p->backend = backend;
  p->attrs = &n->attrs;
  p->threads = threads;
  p->n_in = n->n_inputs;
  p->n_out = n->n_outputs;
  for (int i = 0; i < n->n_inputs; i++) {
    fl_vid v = n->inputs[i];
    p->absent[i] = v == FL_NO_VALUE;
    if (p->absent[i]) continue;
    const fl_value *value = &g->values.data[v];
    p->in[i].type = value->type;
    p->constant[i] = packing && fl_graph_is_const(g, v);
    if (locs)
      memcpy(p->in[i].strides, locs[v].strides, sizeof locs[v].strides);
    else if (value->kind == FL_VALUE_RESULT)
      fl_strides_contiguous(&value->type, p->in[i].strides);
    else
      memcpy(p->in[i].strides, value->strides, sizeof value->strides);
  }
  for (int i = 0; i < n->n_outputs; i++) p->out[i] = g->values.data[n->outputs[i]].type;
}

static bool is_pointwise(const fl_node *n) {
  return n->op == FL_OP_POINTWISE || (fl_op_get(n->op)->flags & FL_OPF_POINTWISE);
}

/* The problem lives as long as the plan, longer than the graph. */
static fl_status new_problem(fl_builder *b, const fl_node *n, fl_problem **out) {
  fl_problem *p = fl_arena_alloc(&b->plan->arena, sizeof *p);
  if (!p) return fl_oom();
  fill_problem(b->g, n, b->locs, program_of(b, n) == FL_RUN, b->options->threads, b->plan->backend, p);
  p->tf32 = n->op == FL_OP_MATMUL ? b->options->tf32_matmul : b->options->tf32_conv;
  p->attrs = fl_arena_memdup(&b->plan->arena, &n->attrs, sizeof n->attrs);
  if (!p->attrs) return fl_oom();
  if (is_pointwise(n)) {
    fl_pw_program *program = fl_arena_alloc(&b->plan->arena, sizeof *program);
    if (!program) return fl_oom();
    fl_pw_from_node(b->g, n, program);
    p->op = FL_OP_POINTWISE;
    p->program = program;
  }
  *out = p;
  return NULL;
}

const char *fl_plan_supports(void *ctx, const fl_graph *g, const fl_node *n) {
  const fl_backend *backend = ctx ? ctx : &fl_backend_cpu;
  if (is_view(n) || n->op == FL_OP_CAT) return NULL;
  if (n->n_inputs > FL_MAX_OPERANDS || n->n_outputs > FL_PW_MAX_OUTPUTS) return "too many operands";
  fl_problem p = {0};
  fl_pw_program program;
  fill_problem(g, n, NULL, !fl_graph_is_const(g, n->outputs[0]), 1, backend, &p);
  if (is_pointwise(n)) {
    fl_pw_from_node(g, n, &program);
    p.op = FL_OP_POINTWISE;
    p.program = &program;
  }
  return backend->why_not(&p);
}

/* --- kernels --- */

static fl_status choose_kernel(fl_builder *b, const fl_node *n, fl_choice *c) {
  fl_problem *problem = NULL;
  fl_kernel_plan plans[MAX_CANDIDATES];
  int ids[MAX_CANDIDATES], chosen = 0;
  if (n->n_inputs > FL_MAX_OPERANDS || n->n_outputs > FL_PW_MAX_OUTPUTS)
    return fl_fail(FL_UNSUPPORTED, "plan: %s has %d operands and %d results; at most %d and %d are possible",
                   fl_op_get(n->op)->name, n->n_inputs, n->n_outputs, FL_MAX_OPERANDS, FL_PW_MAX_OUTPUTS);
  FL_TRY(new_problem(b, n, &problem));
  int candidates = b->plan->backend->candidates(problem, &b->plan->arena, ids, plans, MAX_CANDIDATES);
  if (candidates == 0) {
    const char *why = b->plan->backend->why_not(problem);
    if (!why || !strcmp(why, "out of memory")) return fl_oom();
    return fl_fail(FL_UNSUPPORTED, "plan: %s (node %u): %s", fl_op_get(n->op)->name, (unsigned)(n - b->g->nodes.data),
                   why);
  }
  FL_TRY(fl_tactic_choose(b, problem, program_of(b, n) == FL_INIT, ids, plans, candidates, &chosen));
  *c = (fl_choice){.problem = problem, .kernel = ids[chosen], .plan = plans[chosen]};
  return NULL;
}

static fl_status draft_operand(fl_builder *b, const fl_node *n, const fl_choice *c, int i, fl_draft_operand *out) {
  fl_vid v = n->inputs[i];
  *out = (fl_draft_operand){.loc = {.store = FL_NO_STORE}};
  if (v == FL_NO_VALUE) return NULL;
  out->type = *type_of(b, v);
  if (fl_is_scaled_late(b, v) && !(c->plan.packed_bytes[i] && c->plan.pack_scales)) FL_TRY(fl_scale_now(b, v));
  if (!c->plan.packed_bytes[i]) return fl_loc_in_layout(b, v, c->plan.in_layout[i], n->origin, &out->loc);
  memcpy(out->loc.strides, b->locs[v].strides, sizeof out->loc.strides);
  return fl_draft_pack(b, n, c, i, &out->loc);
}

/* May result 0 take the place of the operand? Only if this is the last that is ever read of its whole store. */
static bool can_overwrite(const fl_builder *b, const fl_node *n, const fl_choice *c, const fl_draft_operand *operands) {
  int i = c->plan.in_place;
  if (i < 0 || i >= n->n_inputs || n->inputs[i] == FL_NO_VALUE || program_of(b, n) == FL_INIT) return false;
  const fl_type *type = type_of(b, n->outputs[0]);
  const fl_loc *loc = &operands[i].loc;
  const fl_store *s = &b->stores.data[loc->store];
  return s->kind == FL_STORE_TEMP && !s->init && !s->shared && s->uses == 1 && loc->offset == 0 &&
         s->bytes == fl_type_bytes(type) && fl_type_equal(type, &operands[i].type) &&
         loc->store == b->locs[n->inputs[i]].store && fl_strides_equal(type, loc->strides, c->plan.out_strides[0]);
}

/* From the first element to the last. */
static size_t extent(const fl_type *t, const int64_t *strides) {
  int64_t last = 0;
  if (fl_type_numel(t) == 0) return 0;
  for (int i = 0; i < t->rank; i++) last += (t->dims[i] - 1) * strides[i];
  return (size_t)(last + 1) * fl_dtype_size(t->dtype);
}

static fl_status place_results(fl_builder *b, const fl_node *n, const fl_choice *c, fl_draft_operand *operands) {
  bool overwrite = can_overwrite(b, n, c, operands), part = false;
  for (int i = 0; i < n->n_inputs; i++)
    if (n->inputs[i] != FL_NO_VALUE) store_of(b, n->inputs[i])->uses--;
  for (int i = 0; i < n->n_outputs; i++) {
    const fl_type *type = type_of(b, n->outputs[i]);
    fl_loc loc = {0};
    memcpy(loc.strides, c->plan.out_strides[i], sizeof loc.strides);
    if (i == 0 && c->plan.strided_out) FL_TRY(fl_cat_part(b, n->outputs[0], c->plan.out_strides[0], &loc, &part));
    if (i == 0 && part) {
      /* lies in what it becomes a part of */
    } else if (i == 0 && overwrite)
      loc.store = operands[c->plan.in_place].loc.store;
    else
      FL_TRY(fl_store_new(b, FL_STORE_TEMP, 0, extent(type, loc.strides), &loc.store));
    fl_place(b, n->outputs[i], &loc);
    operands[n->n_inputs + i] = (fl_draft_operand){loc, *type};
  }
  return NULL;
}

static bool computes_nothing(const fl_builder *b, const fl_node *n) {
  for (int i = 0; i < n->n_outputs; i++)
    if (fl_type_numel(type_of(b, n->outputs[i]))) return false;
  return true;
}

fl_status fl_draft_kernel(fl_builder *b, const fl_node *n) {
  fl_choice c;
  fl_draft_operand operands[FL_MAX_OPERANDS + FL_PW_MAX_OUTPUTS];
  FL_TRY(choose_kernel(b, n, &c));
  bool empty = computes_nothing(b, n);
  for (int i = 0; i < n->n_inputs; i++) {
    if (empty)
      operands[i] = (fl_draft_operand){.loc = {.store = FL_NO_STORE}};
    else
      FL_TRY(draft_operand(b, n, &c, i, &operands[i]));
  }
  if (empty) c.plan.in_place = -1;
  FL_TRY(place_results(b, n, &c, operands));
  if (empty) return NULL;
  fl_draft_step d = {.step = {.kind = FL_STEP_KERNEL,
                              .kernel = c.kernel,
                              .n_in = n->n_inputs,
                              .n_out = n->n_outputs,
                              .params = c.plan.params,
                              .problem = c.problem,
                              .origin = n->origin},
                     .scratch_bytes = c.plan.scratch_bytes,
                     .wants_spare = c.plan.wants_spare};
  return fl_draft_add(b, program_of(b, n), &d, operands);
}

/* --- results of the graph --- */

/* A value that fills a store of its own, in the strides asked for, is made in the caller's memory; any other is copied. */
static fl_status draft_output(fl_builder *b, size_t output) {
  fl_vid v = b->g->outputs.data[output];
  const fl_type *type = type_of(b, v);
  fl_loc want = {0};
  FL_TRY(fl_want_strides(b, output, want.strides));
  fl_operand *o = &b->plan->outputs[output];
  *o = (fl_operand){.space = FL_SPACE_OUTPUT, .index = (uint32_t)output, .type = *type};
  memcpy(o->strides, want.strides, sizeof o->strides);
  fl_store *s = store_of(b, v);
  if (s->kind == FL_STORE_TEMP && !s->init && s->first >= 0 && s->bytes == fl_type_bytes(type) &&
      b->locs[v].offset == 0 && fl_strides_equal(type, b->locs[v].strides, want.strides)) {
    s->kind = FL_STORE_OUTPUT;
    s->index = (uint32_t)output;
    return NULL;
  }
  FL_TRY(fl_store_new(b, FL_STORE_OUTPUT, (uint32_t)output, fl_type_bytes(type), &want.store));
  return fl_draft_copy(b, FL_RUN, type, &b->locs[v], &want, UINT32_MAX);
}

static fl_status draft_outputs(fl_builder *b) {
  for (size_t i = 0; i < b->g->outputs.len; i++) FL_TRY(draft_output(b, i));
  return NULL;
}

static fl_status describe_inputs(fl_builder *b) {
  fl_plan *p = b->plan;
  p->n_inputs = (int)b->g->inputs.len;
  p->n_outputs = (int)b->g->outputs.len;
  p->inputs = fl_arena_alloc(&p->arena, b->g->inputs.len * sizeof *p->inputs + 1);
  p->outputs = fl_arena_alloc(&p->arena, b->g->outputs.len * sizeof *p->outputs + 1);
  if (!p->inputs || !p->outputs) return fl_oom();
  for (size_t i = 0; i < b->g->inputs.len; i++) {
    const fl_value *v = &b->g->values.data[b->g->inputs.data[i]];
    p->inputs[i] = (fl_operand){.space = FL_SPACE_INPUT, .index = (uint32_t)i, .type = v->type};
    memcpy(p->inputs[i].strides, v->strides, sizeof v->strides);
  }
  return NULL;
}

static fl_status build(fl_builder *b) {
  FL_TRY(describe_inputs(b));
  FL_TRY(place_all_given(b));
  for (fl_nid i = b->g->first; i != FL_NO_NODE; i = b->g->nodes.data[i].next) {
    const fl_node *n = &b->g->nodes.data[i];
    if (is_view(n))
      FL_TRY(draft_view(b, n));
    else if (n->op == FL_OP_CAT)
      FL_TRY(fl_draft_cat(b, n));
    else if (fl_may_scale_late(b, n))
      fl_scale_late(b, n);
    else
      FL_TRY(fl_draft_kernel(b, n));
  }
  FL_TRY(draft_outputs(b));
  return fl_builder_finish(b);
}

fl_status fl_plan_build(const fl_graph *g, const fl_plan_options *options, fl_plan **out) {
  fl_builder b = {.g = g, .options = options, .tactic_left_us = options->tactic_budget_ms * 1000};
  b.plan = fl_calloc(1, sizeof *b.plan);
  if (!b.plan) return fl_oom();
  b.plan->backend = options->backend ? options->backend : &fl_backend_cpu;
  fl_arena_init(&b.plan->arena);
  fl_arena_init(&b.arena);
  fl_status s = build(&b);
  fl_arena_release(&b.arena);
  fl_free(b.stores.data);
  fl_free(b.operands.data);
  for (int i = 0; i < FL_PROGRAMS; i++) fl_free(b.steps[i].data);
  fl_free(b.copies.data);
  fl_free(b.packs.data);
  fl_free(b.parts.data);
  fl_free(b.tactics.data);
  fl_trial_destroy(b.trial);
  if (s)
    fl_plan_destroy(b.plan);
  else
    *out = b.plan;
  return s;
}
