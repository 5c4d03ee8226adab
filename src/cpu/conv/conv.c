#include "cpu/conv/conv.h"

static void read_list(const fl_problem *p, const char *key, int64_t *dst, int count) {
  int n;
  const int64_t *v = fl_attr_list(p->attrs, key, &n);
  for (int i = 0; i < n && i < count; i++) dst[i] = v[i];
}

fl_conv fl_conv_of(const fl_problem *p) {
  const fl_type *x = &p->in[FL_CONV_X].type, *w = &p->in[FL_CONV_W].type, *y = &p->out[0];
  int64_t stride[2] = {1, 1}, dilation[2] = {1, 1}, pad[4] = {0, 0, 0, 0};
  read_list(p, "stride", stride, 2);
  read_list(p, "dilation", dilation, 2);
  read_list(p, "pad", pad, 4);
  fl_conv c = {.n = x->dims[0],
               .c = x->dims[1],
               .h = x->dims[2],
               .w = x->dims[3],
               .o = w->dims[0],
               .oh = y->dims[2],
               .ow = y->dims[3],
               .kh = w->dims[2],
               .kw = w->dims[3],
               .sh = stride[0],
               .sw = stride[1],
               .dh = dilation[0],
               .dw = dilation[1],
               .top = pad[0],
               .left = pad[1]};
  c.groups = fl_attr_int(p->attrs, "groups", 1);
  if (c.groups < 1) c.groups = 1;
  c.cg = c.c / c.groups;
  c.og = c.o / c.groups;
  c.has_bias = p->n_in > FL_CONV_BIAS && !p->absent[FL_CONV_BIAS];
  c.has_residual = p->n_in > FL_CONV_RESIDUAL && !p->absent[FL_CONV_RESIDUAL];
  return c;
}

double fl_conv_mults(const fl_conv *c) {
  return (double)c->n * (double)c->oh * (double)c->ow * (double)c->o * (double)c->cg * (double)c->kh * (double)c->kw;
}

const char *fl_conv_why_not_f32(const fl_problem *p) {
  if (p->in[FL_CONV_X].type.dtype != FL_F32 || p->in[FL_CONV_W].type.dtype != FL_F32) return "f32 only";
  if (p->in[FL_CONV_X].type.rank != 4) return "the input must have four axes";
  return NULL;
}

void fl_conv_plan_nhwc(const fl_problem *p, const fl_conv *c, fl_kernel_plan *plan) {
  fl_strides_channels_last(&p->out[0], plan->out_strides[0]);
  plan->pack_scales = true;
  if (c->has_bias) plan->in_layout[FL_CONV_BIAS] = FL_LAYOUT_CONTIGUOUS;
  if (c->has_residual) {
    plan->in_layout[FL_CONV_RESIDUAL] = FL_LAYOUT_CHANNELS_LAST;
    plan->in_place = FL_CONV_RESIDUAL;
  }
}
