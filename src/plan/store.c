#include "plan/builder.h"
#include "plan/view.h"

fl_status fl_store_new(fl_builder *b, fl_store_kind kind, uint32_t index, size_t bytes, uint32_t *out) {
  fl_store s = {.kind = kind, .index = index, .bytes = bytes, .first = -1};
  if (!FL_PUSH(&b->stores, s)) return fl_oom();
  *out = (uint32_t)b->stores.len - 1;
  return NULL;
}

static void touch(fl_builder *b, uint32_t store, int program, int step) {
  if (store == FL_NO_STORE) return;
  fl_store *s = &b->stores.data[store];
  if (s->kind != FL_STORE_TEMP) return;
  if (s->first < 0) {
    s->init = program == FL_INIT;
    s->first = step;
  }
  if (s->init == (program == FL_INIT))
    s->last = step;
  else
    s->kept = true;
}

fl_status fl_draft_add(fl_builder *b, int program, const fl_draft_step *step, const fl_draft_operand *operands) {
  fl_draft_step d = *step;
  d.step.operands = (uint32_t)b->operands.len;
  int at = (int)b->steps[program].len;
  for (int i = 0; i < d.step.n_in + d.step.n_out; i++)
    if (!FL_PUSH(&b->operands, operands[i])) return fl_oom();
  if (!FL_PUSH(&b->steps[program], d)) return fl_oom();
  for (int i = 0; i < d.step.n_in + d.step.n_out; i++) touch(b, operands[i].loc.store, program, at);
  return NULL;
}

fl_status fl_draft_copy(fl_builder *b, int program, const fl_type *type, const fl_loc *from, const fl_loc *to,
                        uint32_t origin) {
  if (fl_type_numel(type) == 0) return NULL;
  fl_draft_step d = {.step = {.kind = FL_STEP_COPY, .kernel = -1, .n_in = 1, .n_out = 1, .origin = origin}};
  fl_draft_operand operands[2] = {{*from, *type}, {*to, *type}};
  return fl_draft_add(b, program, &d, operands);
}

bool fl_layout_holds(fl_layout layout, const fl_type *t, const int64_t *strides) {
  switch (layout) {
  case FL_LAYOUT_ANY: return true;
  case FL_LAYOUT_ROWS: return t->rank == 0 || t->dims[t->rank - 1] == 1 || strides[t->rank - 1] == 1;
  case FL_LAYOUT_CONTIGUOUS: return fl_is_contiguous(t, strides);
  case FL_LAYOUT_CHANNELS_LAST: return fl_is_channels_last(t, strides);
  }
  return false;
}

/* Axes of one element may have any stride; kernels see the usual one. */
static void usual_strides(fl_layout layout, const fl_type *t, int64_t *strides) {
  if (layout == FL_LAYOUT_CONTIGUOUS)
    fl_strides_contiguous(t, strides);
  else if (layout == FL_LAYOUT_CHANNELS_LAST)
    fl_strides_channels_last(t, strides);
  else if (layout == FL_LAYOUT_ROWS && t->rank && t->dims[t->rank - 1] == 1)
    strides[t->rank - 1] = 1;
}

static fl_status new_copy(fl_builder *b, fl_vid v, fl_layout layout, uint32_t origin, uint32_t *out_store) {
  const fl_type *type = &b->g->values.data[v].type;
  int program = fl_graph_is_const(b->g, v) ? FL_INIT : FL_RUN;
  fl_loc to = {0};
  FL_TRY(fl_store_new(b, FL_STORE_TEMP, 0, fl_type_bytes(type), &to.store));
  b->stores.data[to.store].shared = true;
  b->stores.data[to.store].kept_as = FL_CONST_COPIED;
  b->stores.data[to.store].init = program == FL_INIT;
  usual_strides(layout, type, to.strides);
  FL_TRY(fl_draft_copy(b, program, type, &b->locs[v], &to, origin));
  fl_copy_entry entry = {v, layout, to.store};
  *out_store = to.store;
  return FL_PUSH(&b->copies, entry) ? NULL : fl_oom();
}

fl_status fl_loc_in_layout(fl_builder *b, fl_vid v, fl_layout layout, uint32_t origin, fl_loc *out) {
  const fl_type *type = &b->g->values.data[v].type;
  if (fl_layout_holds(layout, type, b->locs[v].strides)) {
    *out = b->locs[v];
    usual_strides(layout, type, out->strides);
    return NULL;
  }
  if (layout == FL_LAYOUT_ROWS) layout = FL_LAYOUT_CONTIGUOUS;
  *out = (fl_loc){.store = FL_NO_STORE};
  usual_strides(layout, type, out->strides);
  for (size_t i = 0; i < b->copies.len && out->store == FL_NO_STORE; i++)
    if (b->copies.data[i].value == v && b->copies.data[i].layout == layout) out->store = b->copies.data[i].store;
  return out->store == FL_NO_STORE ? new_copy(b, v, layout, origin, &out->store) : NULL;
}
