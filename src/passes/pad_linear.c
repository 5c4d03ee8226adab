#include "passes/passes.h"
#include "passes/rewrite.h"

/* A product of 16-bit floats with a constant matrix [K, N] whose rows are no multiple of 16 bytes keeps matrix units from loading
 * whole vectors. Matrix and bias get columns of zeros, and the result is a slice of the wider product. Only where the product is
 * wide, since the slice may have to be copied. A matrix whose K elements are adjacent (a vocabulary's) needs no copy: what is
 * odd then is the result alone, and its kernel can leave gaps between rows. */
enum { MULTIPLE = 8, MIN_WIDTH = 1024 };

static fl_status pad_end(fl_graph *g, fl_nid before, fl_vid v, int axis, int64_t by, fl_vid *out) {
  int64_t pads[2 * FL_MAX_RANK] = {0};
  fl_attrs attrs = {0};
  pads[2 * axis + 1] = by;
  fl_attr_set_list(&attrs, "pads", pads, 2 * fl_rw_type(g, v)->rank);
  fl_attr_set_float(&attrs, "value", 0);
  return fl_rw_add(g, before, FL_OP_PAD, &v, 1, &attrs, out);
}

static bool has_odd_rows(const fl_graph *g, const fl_node *n) {
  const fl_value *w = &g->values.data[n->inputs[1]];
  int along_n = fl_attr_int(&n->attrs, "trans_b", 0) ? 0 : 1;
  return w->kind == FL_VALUE_RESULT ? along_n == 1 : w->strides[1 - along_n] != 1;
}

static bool is_candidate(const fl_graph *g, const fl_node *n) {
  if (n->op != FL_OP_MATMUL || n->inputs[3] != FL_NO_VALUE) return false;
  const fl_type *out = fl_rw_type(g, n->outputs[0]), *w = fl_rw_type(g, n->inputs[1]);
  int64_t width = out->dims[out->rank - 1];
  return (out->dtype == FL_F16 || out->dtype == FL_BF16) && width % MULTIPLE && width >= MIN_WIDTH && w->rank == 2 &&
         fl_graph_is_const(g, n->inputs[1]) && has_odd_rows(g, n) && !fl_graph_is_const(g, n->inputs[0]) &&
         (n->inputs[2] == FL_NO_VALUE || fl_graph_is_const(g, n->inputs[2]));
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  if (!is_candidate(g, fl_rw_node(g, n))) return NULL;
  fl_type out = *fl_rw_type(g, fl_rw_node(g, n)->outputs[0]);
  fl_vid in[3] = {fl_rw_node(g, n)->inputs[0], fl_rw_node(g, n)->inputs[1], fl_rw_node(g, n)->inputs[2]}, v;
  fl_attrs attrs = fl_rw_node(g, n)->attrs;
  int64_t width = out.dims[out.rank - 1], by = MULTIPLE - width % MULTIPLE;
  FL_TRY(pad_end(g, n, in[1], fl_attr_int(&attrs, "trans_b", 0) ? 0 : 1, by, &in[1]));
  if (in[2] != FL_NO_VALUE) FL_TRY(pad_end(g, n, in[2], 0, by, &in[2]));
  FL_TRY(fl_rw_add(g, n, FL_OP_MATMUL, in, 3, &attrs, &v));
  FL_TRY(fl_rw_slice(g, n, v, out.rank - 1, 0, width, &v));
  *changed = true;
  fl_rw_replace(g, n, v);
  return NULL;
}

fl_status fl_pass_pad_linear(fl_graph *g) {
  bool changed = false;
  return g->wide ? NULL : fl_rw_walk(g, visit, &changed); /* a processor packs its matrices, whatever their width */
}
