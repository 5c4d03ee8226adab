#include <string.h>

#include "plan/builder.h"
#include "plan/view.h"

static const fl_type *type_of(const fl_builder *b, fl_vid v) { return &b->g->values.data[v].type; }

/* --- scaling --- */

/* The axis of a reader's result channels in its weights, if `v` is those; else -1. */
static int channel_axis(const fl_node *reader, fl_vid v) {
  if (reader->n_inputs < 2 || reader->inputs[1] != v || reader->inputs[0] == v) return -1;
  if (reader->op == FL_OP_CONV2D) return 0;
  return reader->op != FL_OP_MATMUL ? -1 : fl_attr_int(&reader->attrs, "trans_b", 0) ? 0 : 1;
}

/* One number for each index of that axis, side by side. */
static bool is_scale(const fl_builder *b, fl_vid v, const fl_type *weights, int axis) {
  const fl_type *t = type_of(b, v);
  int at = axis - (weights->rank - t->rank);
  return t->dtype == FL_F32 && at >= 0 && fl_type_numel(t) == weights->dims[axis] &&
         t->dims[at] == weights->dims[axis] && b->locs[v].store != FL_NO_STORE &&
         (t->dims[at] == 1 || b->locs[v].strides[at] == 1);
}

/* Operand 0 times operand 1, and nothing else: the pointwise pass makes a group of a single operator, too. */
static bool multiplies(const fl_node *n) {
  const fl_pw_program *p = n->program;
  if (n->op != FL_OP_POINTWISE) return n->op == FL_OP_MUL;
  return p->n_instrs == 1 && p->n_inputs == 2 && p->n_outputs == 1 && p->instrs[0].op == FL_OP_MUL &&
         p->instrs[0].src[0] == 0 && p->instrs[0].src[1] == 1;
}

bool fl_may_scale_late(const fl_builder *b, const fl_node *n) {
  fl_vid out = n->outputs[0];
  fl_nid reader = fl_graph_sole_user(b->g, out);
  if (!multiplies(n) || reader == FL_NO_NODE || !fl_graph_is_const(b->g, out)) return false;
  const fl_node *r = &b->g->nodes.data[reader];
  const fl_type *t = type_of(b, out), *weights = type_of(b, n->inputs[0]);
  int axis = channel_axis(r, out);
  return axis >= 0 && !fl_graph_is_const(b->g, r->outputs[0]) && t->dtype == FL_F32 && fl_type_equal(t, weights) &&
         (t->rank == 2 || r->op == FL_OP_CONV2D) && b->late[n->inputs[0]] == FL_NO_NODE &&
         is_scale(b, n->inputs[1], t, axis);
}

/* Until then it lies where the weights do. */
void fl_scale_late(fl_builder *b, const fl_node *n) {
  fl_loc loc = b->locs[n->inputs[0]];
  b->late[n->outputs[0]] = (fl_nid)(n - b->g->nodes.data);
  fl_place(b, n->outputs[0], &loc);
  for (int i = 0; i < n->n_inputs; i++) b->stores.data[b->locs[n->inputs[i]].store].uses--;
}

bool fl_is_scaled_late(const fl_builder *b, fl_vid v) { return b->late[v] != FL_NO_NODE; }

fl_status fl_scale_now(fl_builder *b, fl_vid v) {
  const fl_node *n = &b->g->nodes.data[b->late[v]];
  b->late[v] = FL_NO_NODE;
  b->stores.data[b->locs[v].store].uses -= fl_graph_use_count(b->g, v);
  for (int i = 0; i < n->n_inputs; i++) b->stores.data[b->locs[n->inputs[i]].store].uses++;
  return fl_draft_kernel(b, n);
}

/* --- packing --- */

static bool same_loc(const fl_loc *a, const fl_loc *b, const fl_type *t) {
  return a->store == b->store && a->offset == b->offset && fl_strides_equal(t, a->strides, b->strides);
}

static uint32_t find_pack(const fl_builder *b, const fl_pack_entry *like, const fl_type *type) {
  for (size_t i = 0; i < b->packs.len; i++) {
    const fl_pack_entry *e = &b->packs.data[i];
    if (e->kernel == like->kernel && e->operand == like->operand && same_loc(&e->source, &like->source, type) &&
        e->scale.store == like->scale.store && e->scale.offset == like->scale.offset &&
        fl_problem_equal(e->problem, like->problem))
      return e->store;
  }
  return FL_NO_STORE;
}

fl_status fl_draft_pack(fl_builder *b, const fl_node *n, const fl_choice *c, int operand, fl_loc *out) {
  fl_vid v = n->inputs[operand];
  fl_vid scale = fl_is_scaled_late(b, v) ? b->g->nodes.data[b->late[v]].inputs[1] : FL_NO_VALUE;
  fl_pack_entry e = {c->problem, c->kernel, operand, b->locs[v], {.store = FL_NO_STORE}, FL_NO_STORE};
  if (scale != FL_NO_VALUE) e.scale = b->locs[scale];
  if ((out->store = find_pack(b, &e, type_of(b, v))) != FL_NO_STORE) return NULL;
  size_t bytes = c->plan.packed_bytes[operand];
  FL_TRY(fl_store_new(b, FL_STORE_TEMP, 0, bytes, &out->store));
  b->stores.data[out->store].kept_as = FL_CONST_PACKED;
  fl_draft_step d = {.step = {.kind = FL_STEP_PACK,
                              .kernel = c->kernel,
                              .pack_operand = operand,
                              .pack_pieces = c->plan.pack_pieces,
                              .pack_form = {c->plan.pack_form[0], c->plan.pack_form[1]},
                              .n_in = scale == FL_NO_VALUE ? 1 : 2,
                              .n_out = 1,
                              .params = c->plan.params,
                              .problem = c->problem,
                              .origin = n->origin}};
  int64_t raw_bytes = (int64_t)bytes;
  fl_draft_operand operands[3] = {{b->locs[v], *type_of(b, v)}};
  if (scale != FL_NO_VALUE) operands[1] = (fl_draft_operand){e.scale, *type_of(b, scale)};
  operands[d.step.n_in] = (fl_draft_operand){{.store = out->store, .strides = {1}}, fl_type_make(FL_U8, 1, &raw_bytes)};
  FL_TRY(fl_draft_add(b, FL_INIT, &d, operands));
  e.store = out->store;
  return FL_PUSH(&b->packs, e) ? NULL : fl_oom();
}
