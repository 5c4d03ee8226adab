/* Concatenations: one block for the result, into which the kernels that make its parts write straight where they can; what
 * lies elsewhere is copied. A concatenation that is itself a part of a later one lies in that one's block. */
#include <string.h>

#include "plan/builder.h"
#include "plan/view.h"

static const fl_type *type_of(const fl_builder *b, fl_vid v) { return &b->g->values.data[v].type; }

fl_status fl_want_strides(const fl_builder *b, size_t output, int64_t *strides) {
  const fl_type *type = type_of(b, b->g->outputs.data[output]);
  fl_strides_contiguous(type, strides);
  if (!b->options->out_strides) return NULL;
  memcpy(strides, b->options->out_strides[output], sizeof *b->options->out_strides);
  return fl_is_dense(type, strides) ? NULL : fl_fail(FL_INVALID, "plan: strides of output %zu are not dense", output);
}

/* --- where a part lies in its whole --- */

/* The concatenation, computed in every run, of which v is a part, once. NULL when there is none, or when v is a result of the
 * graph too. */
static const fl_node *whole_of(const fl_builder *b, fl_vid v) {
  const fl_value *value = &b->g->values.data[v];
  if (value->n_output_uses || fl_graph_is_const(b->g, v) || fl_type_numel(&value->type) == 0) return NULL;
  for (uint32_t u = value->first_use; u != FL_NO_USE; u = b->g->uses.data[u].next) {
    const fl_node *n = &b->g->nodes.data[b->g->uses.data[u].node];
    int times = 0;
    if (n->op != FL_OP_CAT) continue;
    for (int i = 0; i < n->n_inputs; i++) times += n->inputs[i] == v;
    if (times == 1) return n;
  }
  return NULL;
}

static void part_of(const fl_builder *b, const fl_node *whole, fl_vid v, const fl_loc *all, fl_loc *out) {
  int64_t axis = fl_attr_int(&whole->attrs, "axis", 0);
  *out = *all;
  for (int i = 0; whole->inputs[i] != v; i++)
    out->offset +=
        (size_t)(type_of(b, whole->inputs[i])->dims[axis] * all->strides[axis]) * fl_dtype_size(type_of(b, v)->dtype);
}

static bool begins_with(const fl_node *longer, const fl_node *n) {
  if (longer->op != FL_OP_CAT || longer->n_inputs < n->n_inputs ||
      fl_attr_int(&longer->attrs, "axis", 0) != fl_attr_int(&n->attrs, "axis", 0))
    return false;
  return !memcmp(longer->inputs, n->inputs, (size_t)n->n_inputs * sizeof *n->inputs);
}

/* The longest of this concatenation and the later ones that begin as it does: they share its block, and their parts are there
 * already. Backends that compute on the host want results that lie densely, and get each its own. */
static const fl_node *longest_of(const fl_builder *b, const fl_node *n) {
  const fl_node *longest = n;
  if (b->plan->backend->immediate || fl_graph_is_const(b->g, n->outputs[0])) return n;
  for (fl_nid i = n->next; i != FL_NO_NODE; i = b->g->nodes.data[i].next)
    if (begins_with(&b->g->nodes.data[i], longest)) longest = &b->g->nodes.data[i];
  return longest;
}

/* The block of a whole, made when its first part is: in the order of axes of `like`, unless the caller of the plan wants the
 * result in another. */
static fl_status place_whole(fl_builder *b, const fl_node *whole, const int64_t *like, fl_loc *out) {
  fl_vid v = whole->outputs[0];
  const fl_type *type = type_of(b, v);
  const fl_node *larger = whole_of(b, v), *longer = longest_of(b, whole);
  *out = b->wholes[v];
  if (out->store != FL_NO_STORE) return NULL;
  if (longer != whole) {
    FL_TRY(place_whole(b, longer, like, out));
    b->stores.data[out->store].shared = true;
  } else if (larger) {
    fl_loc all;
    FL_TRY(place_whole(b, larger, like, &all));
    part_of(b, larger, v, &all, out);
  } else {
    *out = (fl_loc){0};
    fl_strides_like(type, like, out->strides);
    for (size_t i = 0; i < b->g->outputs.len; i++)
      if (b->g->outputs.data[i] == v) FL_TRY(fl_want_strides(b, i, out->strides));
    FL_TRY(fl_store_new(b, FL_STORE_TEMP, 0, fl_type_bytes(type), &out->store));
    b->stores.data[out->store].kept_as = FL_CONST_JOINED;
  }
  b->wholes[v] = *out;
  return NULL;
}

static bool same_order(const fl_type *t, const int64_t *a, const int64_t *b) {
  int64_t dense[2][FL_MAX_RANK];
  fl_strides_like(t, a, dense[0]);
  fl_strides_like(t, b, dense[1]);
  return fl_strides_equal(t, dense[0], dense[1]);
}

fl_status fl_cat_part(fl_builder *b, fl_vid v, const int64_t *strides, fl_loc *out, bool *out_found) {
  const fl_node *whole = whole_of(b, v);
  fl_loc all, part;
  *out_found = false;
  if (!whole) return NULL;
  FL_TRY(place_whole(b, whole, strides, &all));
  part_of(b, whole, v, &all, &part);
  *out_found = same_order(type_of(b, v), strides, part.strides);
  if (*out_found) *out = part;
  return NULL;
}

/* --- the node itself --- */

static fl_vid largest_input(const fl_builder *b, const fl_node *n) {
  fl_vid best = n->inputs[0];
  for (int i = 1; i < n->n_inputs; i++)
    if (fl_type_numel(type_of(b, n->inputs[i])) > fl_type_numel(type_of(b, best))) best = n->inputs[i];
  return best;
}

static bool is_copied(const fl_builder *b, fl_vid v, const fl_loc *to) {
  for (size_t i = 0; i < b->parts.len; i++)
    if (b->parts.data[i].value == v && b->parts.data[i].loc.store == to->store &&
        b->parts.data[i].loc.offset == to->offset)
      return true;
  return false;
}

/* Copies what does not lie there yet, nor was copied for a concatenation that begins as this one does. */
static fl_status copy_part(fl_builder *b, int program, const fl_node *n, fl_vid v, const fl_loc *to) {
  fl_part_entry e = {v, *to};
  if (is_copied(b, v, to)) return NULL;
  FL_TRY(fl_draft_copy(b, program, type_of(b, v), &b->locs[v], to, n->origin));
  return FL_PUSH(&b->parts, e) ? NULL : fl_oom();
}

static bool lies_at(const fl_loc *a, const fl_loc *b, const fl_type *t) {
  return a->store == b->store && a->offset == b->offset && fl_strides_equal(t, a->strides, b->strides);
}

fl_status fl_draft_cat(fl_builder *b, const fl_node *n) {
  fl_vid out = n->outputs[0];
  int program = fl_graph_is_const(b->g, out) ? FL_INIT : FL_RUN;
  int64_t axis = fl_attr_int(&n->attrs, "axis", 0);
  fl_loc loc, part;
  FL_TRY(place_whole(b, n, b->locs[largest_input(b, n)].strides, &loc));
  part = loc;
  for (int i = 0; i < n->n_inputs; i++) {
    const fl_type *in = type_of(b, n->inputs[i]);
    const fl_loc *from = &b->locs[n->inputs[i]];
    b->stores.data[from->store].uses--;
    if (fl_type_numel(in) && !lies_at(from, &part, in)) FL_TRY(copy_part(b, program, n, n->inputs[i], &part));
    part.offset += (size_t)(in->dims[axis] * loc.strides[axis]) * fl_dtype_size(in->dtype);
  }
  b->locs[out] = loc;
  b->stores.data[loc.store].uses += fl_graph_use_count(b->g, out);
  return NULL;
}
