#include <math.h>

#include "passes/passes.h"
#include "passes/rewrite.h"

/* Mixed precision: operators on f32 are computed in fl_graph.compute (f16 or bf16) where they bear it. Products,
 * convolutions and attention always; what follows them as long as it is no operator that needs the range or the digits of
 * f32, as in PyTorch's autocast, but without going back to f32 where both meet: a residual stream stays low. */
typedef struct version {
  fl_vid low, full; /* the same value in either type; NO_VALUE until somebody asks */
} version;

typedef struct lowering {
  fl_graph *g;
  FL_VEC(version) versions; /* by value; past the end: itself alone */
} lowering;

static bool is_heavy(fl_op op) {
  return op == FL_OP_MATMUL || op == FL_OP_CONV2D || op == FL_OP_CONV_TRANSPOSE2D || op == FL_OP_ATTENTION ||
         op == FL_OP_EMBEDDING;
}

/* Results overflow or lose what they were computed for; sine and cosine get angles of any size. */
static bool needs_full(fl_op op) {
  static const fl_op list[] = {FL_OP_EXP,
                               FL_OP_EXPM1,
                               FL_OP_LOG,
                               FL_OP_LOG1P,
                               FL_OP_POW,
                               FL_OP_RECIPROCAL,
                               FL_OP_RSQRT,
                               FL_OP_SQRT,
                               FL_OP_SIN,
                               FL_OP_COS,
                               FL_OP_SUM,
                               FL_OP_CUMSUM,
                               FL_OP_PROD,
                               FL_OP_VAR,
                               FL_OP_CAST,
                               FL_OP_REM,
                               FL_OP_DIV,
                               FL_OP_FLOOR_DIV,
                               FL_OP_SOFTPLUS,
                               FL_OP_SORT,
                               FL_OP_TOPK,
                               FL_OP_HISTC,
                               FL_OP_SCATTER,
                               FL_OP_INDEX_PUT,
                               FL_OP_GROUPED_MATMUL,
                               FL_OP_GRID_SAMPLE,
                               FL_OP_SOLVE_TRIANGULAR};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    if (op == list[i]) return true;
  return false;
}

/* A square overflows f16 from 256 on: that of a norm that is written out, for one. */
static bool is_square(const fl_node *n) { return n->op == FL_OP_MUL && n->inputs[0] == n->inputs[1]; }

static bool is_f32(const fl_graph *g, fl_vid v) { return v != FL_NO_VALUE && fl_rw_type(g, v)->dtype == FL_F32; }

static fl_status version_of(lowering *l, fl_vid v, version **out) {
  while (l->versions.len <= v) {
    version own = {FL_NO_VALUE, (fl_vid)l->versions.len};
    if (!FL_PUSH(&l->versions, own)) return fl_oom();
  }
  *out = &l->versions.data[v];
  return NULL;
}

/* Finite numbers stay finite: masks are often made of the lowest number of f32. */
static fl_status cast_down(fl_graph *g, fl_nid before, fl_vid v, fl_vid *out) {
  const double top = g->compute == FL_F16 ? 65504 : 0x1.FEp127;
  double number;
  fl_vid size, infinite, bounded, x;
  if (fl_graph_scalar_value(g, v, &number) && (fabs(number) <= top || !isfinite(number)))
    return fl_rw_cast(g, before, v, g->compute, out);
  fl_attrs attrs = {0};
  fl_attr_set_float(&attrs, "lo", -top);
  fl_attr_set_float(&attrs, "hi", top);
  FL_TRY(fl_rw_add(g, before, FL_OP_CLAMP, &v, 1, &attrs, &bounded));
  FL_TRY(fl_rw_unary(g, before, FL_OP_ABS, v, &size));
  FL_TRY(fl_rw_with_number(g, before, FL_OP_EQ, size, INFINITY, &infinite));
  FL_TRY(fl_rw_add(g, before, FL_OP_WHERE, (fl_vid[]){infinite, v, bounded}, 3, NULL, &x));
  return fl_rw_cast(g, before, x, g->compute, out);
}

static fl_status low_of(lowering *l, fl_nid before, fl_vid v, fl_vid *out) {
  version *x;
  FL_TRY(version_of(l, v, &x));
  if (x->low == FL_NO_VALUE) {
    fl_vid made;
    FL_TRY(cast_down(l->g, before, v, &made));
    FL_TRY(version_of(l, v, &x));
    x->low = made;
  }
  *out = x->low;
  return NULL;
}

static fl_status full_of(lowering *l, fl_nid before, fl_vid v, fl_vid *out) {
  version *x;
  FL_TRY(version_of(l, v, &x));
  if (x->full == FL_NO_VALUE) {
    fl_vid made;
    FL_TRY(fl_rw_cast(l->g, before, x->low, FL_F32, &made));
    FL_TRY(version_of(l, v, &x));
    x->full = made;
  }
  *out = x->full;
  return NULL;
}

static bool is_low(const lowering *l, fl_vid v) {
  return v < l->versions.len && l->versions.data[v].full != v; /* of a result in f32 that is itself */
}

static bool goes_low(const lowering *l, const fl_node *n) {
  bool any = false, low = false;
  if (l->g->exact && n->origin < l->g->n_exact && l->g->exact[n->origin]) return false;
  for (int i = 0; i < n->n_inputs; i++) {
    if (!is_f32(l->g, n->inputs[i])) continue;
    any = true;
    low |= l->versions.len > n->inputs[i] && is_low(l, n->inputs[i]);
  }
  return any && (is_heavy(n->op) || (low && !needs_full(n->op) && !is_square(n)));
}

/* The node again, on low operands; its old results wait for their users to be rewritten. */
static fl_status lower_node(lowering *l, fl_nid id) {
  fl_graph *g = l->g;
  const fl_node *n = fl_rw_node(g, id);
  fl_vid *inputs = fl_malloc(((size_t)n->n_inputs + 1) * sizeof *inputs), results[FL_PW_MAX_OUTPUTS];
  fl_status s = inputs ? NULL : fl_oom();
  for (int i = 0; !s && i < fl_rw_node(g, id)->n_inputs; i++) {
    inputs[i] = fl_rw_node(g, id)->inputs[i];
    if (is_f32(g, inputs[i])) s = low_of(l, id, inputs[i], &inputs[i]);
  }
  n = fl_rw_node(g, id);
  if (!s) s = fl_graph_add(g, id, n->op, inputs, n->n_inputs, &n->attrs, n->program, results);
  fl_free(inputs);
  if (s) return s;
  for (int i = 0; i < fl_rw_node(g, id)->n_outputs; i++) {
    fl_vid old = fl_rw_node(g, id)->outputs[i];
    version *x;
    if (!is_f32(g, old)) {
      fl_graph_replace_uses(g, old, results[i]);
      continue;
    }
    FL_TRY(version_of(l, old, &x));
    *x = (version){results[i], FL_NO_VALUE};
  }
  return NULL;
}

static fl_status keep_node(lowering *l, fl_nid id) {
  for (int i = 0; i < fl_rw_node(l->g, id)->n_inputs; i++) {
    fl_vid v = fl_rw_node(l->g, id)->inputs[i], full;
    if (v == FL_NO_VALUE || !is_low(l, v)) continue;
    FL_TRY(full_of(l, id, v, &full));
    fl_graph_set_input(l->g, id, i, full);
  }
  return NULL;
}

static fl_status rewrite(lowering *l) {
  fl_graph *g = l->g;
  fl_nid last = g->last;
  for (fl_nid id = g->first; id != FL_NO_NODE; id = fl_rw_node(g, id)->next) {
    const fl_node *n = fl_rw_node(g, id);
    if (!fl_graph_is_const(g, n->outputs[0])) {
      g->origin = n->origin;
      FL_TRY(goes_low(l, n) ? lower_node(l, id) : keep_node(l, id));
    }
    if (id == last) break;
  }
  for (size_t i = 0; i < g->outputs.len; i++) {
    fl_vid v = g->outputs.data[i], full;
    if (!is_low(l, v)) continue;
    FL_TRY(full_of(l, FL_NO_NODE, v, &full));
    fl_graph_replace_uses(g, v, full);
  }
  for (fl_nid id = last, prev; id != FL_NO_NODE; id = prev) {
    prev = fl_rw_node(g, id)->prev;
    bool used = fl_rw_node(g, id)->dead;
    for (int i = 0; !used && i < fl_rw_node(g, id)->n_outputs; i++)
      used = fl_graph_use_count(g, fl_rw_node(g, id)->outputs[i]) > 0;
    bool replaced = !used && is_low(l, fl_rw_node(g, id)->outputs[0]);
    if (replaced) fl_graph_remove(g, id);
  }
  return NULL;
}

fl_status fl_pass_precision(fl_graph *g) {
  if (g->compute == FL_F32) return NULL;
  lowering l = {.g = g};
  uint32_t origin = g->origin;
  fl_status s = rewrite(&l);
  g->origin = origin;
  fl_free(l.versions.data);
  return s;
}
