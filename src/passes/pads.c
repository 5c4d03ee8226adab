#include "passes/passes.h"
#include "passes/rewrite.h"

/* Zeros put around an image before a convolution (padding as TensorFlow's "same", more on one side) are the convolution's own
 * padding: no padded copy is made. */

/* The node that pads v's last two axes with zeros, and nothing else; NULL otherwise. */
static const fl_node *made_by_pad(const fl_graph *g, fl_vid v) {
  const fl_node *p = fl_rw_made_by(g, v, FL_OP_PAD);
  int n;
  if (!p || fl_attr_float(&p->attrs, "value", 0) != 0) return NULL;
  const int64_t *pads = fl_attr_list(&p->attrs, "pads", &n);
  for (int i = 0; i < n - 4; i++)
    if (pads[i]) return NULL;
  return n >= 4 ? p : NULL;
}

static fl_status visit(fl_graph *g, fl_nid n, bool *changed) {
  const fl_node *p = fl_rw_node(g, n);
  const fl_node *pad = p->op == FL_OP_CONV2D ? made_by_pad(g, p->inputs[0]) : NULL;
  if (!pad) return NULL;
  int k;
  fl_attrs attrs = p->attrs;
  fl_vid in[4] = {pad->inputs[0], p->inputs[1], p->inputs[2], p->inputs[3]}, v;
  const int64_t *own = fl_attr_list(&p->attrs, "pad", &k), *more = fl_attr_list(&pad->attrs, "pads", &k) + k - 4;
  const int64_t sum[4] = {own[0] + more[0], own[1] + more[2], own[2] + more[1], own[3] + more[3]};
  fl_attr_set_list(&attrs, "pad", sum, 4);
  FL_TRY(fl_rw_add(g, n, FL_OP_CONV2D, in, 4, &attrs, &v));
  fl_rw_replace(g, n, v);
  *changed = true;
  return NULL;
}

fl_status fl_pass_pads(fl_graph *g) {
  bool changed = false;
  return fl_rw_walk(g, visit, &changed);
}
