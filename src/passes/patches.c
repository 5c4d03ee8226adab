#include "passes/passes.h"
#include "passes/rewrite.h"

/* A convolution whose windows lie side by side and cover the image (the patches of a vision transformer) is a product of two
 * matrices, [N OH OW, C KH KW] and [O, C KH KW]. For matrix units only, with windows too large and too few channels for the
 * kernels of convolutions: those gather channels, of which vectors of eight 16-bit floats are loaded. */
enum { VECTOR = 8, MIN_ELEMENTS = 128 /* of a window */ };

static bool all(const fl_attrs *attrs, const char *key, int64_t value) {
  int n;
  const int64_t *list = fl_attr_list(attrs, key, &n);
  for (int i = 0; i < n; i++)
    if (list[i] != value) return false;
  return true;
}

static bool is_patches(const fl_graph *g, const fl_node *n) {
  if (n->op != FL_OP_CONV2D || n->inputs[3] != FL_NO_VALUE || fl_attr_int(&n->attrs, "act", FL_ACT_NONE) != FL_ACT_NONE)
    return false;
  const fl_type *x = fl_rw_type(g, n->inputs[0]), *w = fl_rw_type(g, n->inputs[1]), *y = fl_rw_type(g, n->outputs[0]);
  int k;
  const int64_t *stride = fl_attr_list(&n->attrs, "stride", &k);
  return (x->dtype == FL_F16 || x->dtype == FL_BF16) && fl_type_numel(y) && fl_attr_int(&n->attrs, "groups", 1) == 1 &&
         all(&n->attrs, "pad", 0) && all(&n->attrs, "dilation", 1) && stride[0] == w->dims[2] &&
         stride[1] == w->dims[3] && x->dims[2] == y->dims[2] * stride[0] && x->dims[3] == y->dims[3] * stride[1] &&
         w->dims[1] % VECTOR && w->dims[1] * w->dims[2] * w->dims[3] >= MIN_ELEMENTS;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  if (!is_patches(g, fl_rw_node(g, n))) return NULL;
  const fl_type w = *fl_rw_type(g, fl_rw_node(g, n)->inputs[1]), y = *fl_rw_type(g, fl_rw_node(g, n)->outputs[0]);
  const int64_t *k = w.dims, size = k[1] * k[2] * k[3];
  fl_vid in[3] = {fl_rw_node(g, n)->inputs[0], fl_rw_node(g, n)->inputs[1], fl_rw_node(g, n)->inputs[2]}, v;
  fl_attrs attrs = {0};
  FL_TRY(fl_rw_reshape(g, n, in[0], 6, (int64_t[]){y.dims[0], k[1], y.dims[2], k[2], y.dims[3], k[3]}, &v));
  FL_TRY(fl_rw_permute(g, n, v, (int64_t[]){0, 2, 4, 1, 3, 5}, &v));
  FL_TRY(fl_rw_reshape(g, n, v, 2, (int64_t[]){y.dims[0] * y.dims[2] * y.dims[3], size}, &in[0]));
  FL_TRY(fl_rw_reshape(g, n, in[1], 2, (int64_t[]){k[0], size}, &in[1]));
  fl_attr_set_int(&attrs, "trans_b", 'b', 1);
  FL_TRY(fl_rw_add(g, n, FL_OP_MATMUL, in, in[2] == FL_NO_VALUE ? 2 : 3, &attrs, &v));
  FL_TRY(fl_rw_reshape(g, n, v, 4, (int64_t[]){y.dims[0], y.dims[2], y.dims[3], k[0]}, &v));
  FL_TRY(fl_rw_permute(g, n, v, (int64_t[]){0, 3, 1, 2}, &v));
  fl_rw_replace(g, n, v);
  *changed = true;
  return NULL;
}

fl_status fl_pass_patches(fl_graph *g) {
  bool changed = false;
  return g->wide ? NULL : fl_rw_walk(g, visit, &changed);
}
