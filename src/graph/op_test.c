#include "graph/graph.h"

#include <math.h>

#include "base/test.h"

FL_TEST(rows) {
  for (int i = 0; i < FL_OP_COUNT; i++) {
    const fl_op_info *info = fl_op_get((fl_op)i);
    fl_op back;
    FL_CHECK(fl_op_parse(info->name, &back) && (int)back == i);
    FL_CHECK(info->max_inputs < 0 || info->max_inputs >= info->min_inputs);
    FL_CHECK(info->outputs >= 1 && info->outputs <= FL_PW_MAX_OUTPUTS);
    int listed = info->attrs[0] != '\0', found = 0;
    for (const char *c = info->attrs; *c; c++) listed += *c == ' ';
    const char *key;
    char kind;
    while (fl_op_attr((fl_op)i, found, &key, &kind)) {
      FL_CHECK_MSG(strchr("ifbIda", kind), "%s: kind %c", info->name, kind);
      found++;
    }
    FL_CHECK_MSG(found == listed && found <= FL_MAX_ATTRS, "%s: %d attributes of %d are known", info->name, found,
                 listed);
  }
  fl_op op;
  FL_CHECK(!fl_op_parse("no_such", &op));
  fl_act act;
  for (int i = 0; i < FL_ACT_COUNT; i++) FL_CHECK(fl_act_parse(fl_act_name((fl_act)i), &act) && (int)act == i);
}

FL_TEST(attributes) {
  fl_attrs a = {0}, b;
  FL_CHECK(fl_attr_int(&a, "axis", 7) == 7 && fl_attr_float(&a, "eps", 0.5) == 0.5);
  FL_CHECK(fl_attr_set_int(&a, "axis", 'i', 1) && fl_attr_set_int(&a, "axis", 'i', 2) && a.count == 1);
  FL_CHECK(fl_attr_int(&a, "axis", 7) == 2);
  FL_CHECK_OK(fl_attrs_normalize(FL_OP_SOFTMAX, &a, &b));
  FL_CHECK(fl_attrs_equal(&a, &b));
  FL_CHECK_FAILS(fl_attrs_normalize(FL_OP_RELU, &a, &b), FL_INVALID, "relu: unknown attribute axis");
  FL_CHECK_FAILS(fl_attrs_normalize(FL_OP_SLICE, &a, &b), FL_INVALID, "slice: attribute start is missing");
  FL_CHECK(fl_attr_set_float(&a, "axis", 2));
  FL_CHECK_FAILS(fl_attrs_normalize(FL_OP_SOFTMAX, &a, &b), FL_INVALID, "of kind f: must be i");
  FL_CHECK_OK(fl_attrs_normalize(FL_OP_MATMUL, NULL, &b));
  FL_CHECK(b.count == 4 && fl_attr_int(&b, "act", -1) == FL_ACT_NONE);
  int n;
  FL_CHECK(fl_attr_set_list(&a, "dims", (int64_t[]){4, 5}, 2) && fl_attr_list(&a, "dims", &n)[1] == 5 && n == 2);
  FL_CHECK(!fl_attr_list(&a, "pads", &n) && n == 0);
  int64_t many[FL_MAX_ATTR_LIST + 1] = {0};
  FL_CHECK(!fl_attr_set_list(&a, "pads", many, FL_MAX_ATTR_LIST + 1));
}

FL_TEST(elements) {
  struct {
    fl_dtype t;
    double in, out;
  } cases[] = {
      {FL_F16, 1.5, 1.5},
      {FL_F16, 65504, 65504},
      {FL_F16, 65519, 65504},
      {FL_F16, 65520, INFINITY},
      {FL_F16, 0x1p-24, 0x1p-24},
      {FL_F16, 0x1p-25, 0},
      {FL_F16, 0x1.8p-25, 0x1p-24},
      {FL_F16, 1 + 0x1p-11, 1},
      {FL_F16, 2047.5, 2048},
      {FL_F16, 0x1.ff8p-15, 0x1.ff8p-15},
      {FL_F16, -0.1, -0x1.998p-4},
      {FL_BF16, 1 + 0x1p-8, 1},
      {FL_BF16, 1 + 0x1.8p-8, 1 + 0x1p-7},
      {FL_BF16, 3e38, 0x1.c4p127},
      {FL_I8, 300, 127},
      {FL_I8, -2.5, -2},
      {FL_U8, -3, 0},
      {FL_I64, 1e30, (double)INT64_MAX},
      {FL_I64, 9007199254740991., 9007199254740991.},
      {FL_BOOL, 0.25, 1},
      {FL_F32, 0.1, 0.1f},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    unsigned char data[16] = {0};
    fl_element_set(cases[i].t, data, 1, cases[i].in);
    double got = fl_element_get(cases[i].t, data, 1);
    FL_CHECK_MSG(got == cases[i].out, "%s %.17g gives %.17g", fl_dtype_name(cases[i].t), cases[i].in, got);
    FL_CHECK(fl_element_get(cases[i].t, data, 0) == 0);
  }
  uint16_t half;
  for (uint32_t h = 0; h < 65536; h++) {
    if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff)) continue;
    uint16_t from = (uint16_t)h;
    fl_element_set(FL_F16, &half, 0, fl_element_get(FL_F16, &from, 0));
    if (half != h) FL_CHECK_MSG(half == h, "half %04x comes back as %04x", h, half);
  }
  fl_element_set(FL_F16, &half, 0, NAN);
  FL_CHECK(isnan(fl_element_get(FL_F16, &half, 0)));
}

/* One line each: a graph's node, and the type it must get, or the words of the refusal. */
static const struct {
  const char *inputs, *node, *want;
} inferred[] = {
    {"%0: f32[2,1,4], %1: f32[3,1]", "add(%0, %1)", "f32[2,3,4]"},
    {"%0: f32[2], %1: f32[3]", "add(%0, %1)", "do not broadcast"},
    {"%0: f32[2], %1: i64[2]", "mul(%0, %1)", "operand 1 is i64: must be f32"},
    {"%0: i64[2], %1: i64[2]", "div(%0, %1)", "must be a float"},
    {"%0: i64[2,1], %1: i64[3]", "lt(%0, %1)", "bool[2,3]"},
    {"%0: f32[2]", "cast(%0) dtype=i8", "i8[2]"},
    {"%0: bool[3,1], %1: f32[1,4], %2: f32[]", "where(%0, %1, %2)", "f32[3,4]"},
    {"%0: f32[3], %1: f32[3], %2: f32[3]", "where(%0, %1, %2)", "must be bool"},
    {"%0: f32[2]", "and(%0, %0)", "must be bool or an integer"},
    {"%0: i64[2]", "exp(%0)", "must be a float"},
    {"%0: f32[2,3,4]", "reshape(%0) dims=[6,4]", "f32[6,4]"},
    {"%0: f32[2,3,4]", "reshape(%0) dims=[5,4]", "dims hold 20 elements: must hold 24"},
    {"%0: f32[1]", "reshape(%0) dims=[]", "f32[]"},
    {"%0: f32[2,3,4]", "permute(%0) perm=[2,0,1]", "f32[4,2,3]"},
    {"%0: f32[2,3,4]", "permute(%0) perm=[2,0,2]", "each of 3 axes once"},
    {"%0: f32[2,9]", "slice(%0) axis=1 start=1 stop=8 step=3", "f32[2,3]"},
    {"%0: f32[2,9]", "slice(%0) axis=1 start=4 stop=4 step=1", "f32[2,0]"},
    {"%0: f32[2,9]", "slice(%0) axis=1 start=4 stop=10 step=1", "stop <= 9"},
    {"%0: f32[1,3]", "expand(%0) dims=[5,4,3]", "f32[5,4,3]"},
    {"%0: f32[2,3]", "expand(%0) dims=[5,3]", "cannot become 5"},
    {"%0: f32[2,3], %1: f32[2,4]", "cat(%0, %1) axis=1", "f32[2,7]"},
    {"%0: f32[2,3], %1: f32[3,4]", "cat(%0, %1) axis=1", "except along axis"},
    {"%0: f32[2,3]", "pad(%0) pads=[0,1,2,3] value=0", "f32[3,8]"},
    {"%0: f32[2,3]", "flip(%0) axes=[1,0]", "axes must ascend"},
    {"", "iota() dims=[3,4] axis=1 start=0 step=1 dtype=i64", "i64[3,4]"},
    {"%0: f32[10,8], %1: i64[2,5]", "embedding(%0, %1)", "f32[2,5,8]"},
    {"%0: f32[10,8], %1: f32[2,5]", "embedding(%0, %1)", "must be an integer"},
    {"%0: f32[10,8], %1: i64[5]", "index_select(%0, %1) axis=1", "f32[10,5]"},
    {"%0: f32[10,8], %1: i64[9,3]", "gather(%0, %1) axis=1", "f32[9,3]"},
    {"%0: f32[6,7,8], %1: i64[4,1], %2: i64[5]", "index(%0, %1, %2) axis=1", "f32[6,4,5]"},
    {"%0: f32[6,7,8], %1: i64[4,1], %2: i64[5]", "index(%0, %1, %2) axis=2", "operand 0 has rank 3"},
    {"%0: f32[6]", "tri(%0) diagonal=0", "of rank 2"},
    {"%0: f32[2,3,4]", "sum(%0) axes=[0,2]", "f32[3]"},
    {"%0: f32[2,3,4]", "mean(%0) axes=[0,2] keepdim=1", "f32[1,3,1]"},
    {"%0: f32[2,3,4]", "sum(%0) axes=[]", "axes is empty"},
    {"%0: i64[2]", "mean(%0) axes=[0]", "must be a float"},
    {"%0: f32[2,3]", "any(%0) axes=[0]", "bool[3]"},
    {"%0: f32[2,3]", "argmax(%0) axes=[1]", "i64[2]"},
    {"%0: f32[2,3,4]", "argmax(%0) axes=[0,1]", "one axis or all"},
    {"%0: f32[2,3]", "softmax(%0) axis=2", "must be in [0, 2)"},
    {"%0: f32[2,3,4], %1: f32[3,4]", "layer_norm(%0, %1) axes=2 eps=1e-5", "f32[2,3,4]"},
    {"%0: f32[2,3,4], %1: f32[4], %2: f32[3]", "layer_norm(%0, %1, %2) axes=1 eps=1e-5", "operand 2 must be f32[4]"},
    {"%0: f32[2,6,4], %1: f32[6]", "group_norm(%0, _, %1) groups=3 eps=0", "f32[2,6,4]"},
    {"%0: f32[2,6,4]", "group_norm(%0) groups=4 eps=0", "must divide 6"},
    {"%0: f32[2,6,4], %1: f32[6]", "batch_norm(%0, %1, %1, %1, %1) eps=0", "f32[2,6,4]"},
    {"%0: f32[2,6,4], %1: f32[6]", "batch_norm(%0, %1, %1, %1) eps=0", "operand 4 is absent"},
    {"%0: f32[5,1,3,4], %1: f32[2,4,6]", "matmul(%0, %1)", "f32[5,2,3,6]"},
    {"%0: f32[3,4], %1: f32[6,4], %2: f32[6], %3: f32[3,6]", "matmul(%0, %1, %2, %3) trans_b=1 act=gelu", "f32[3,6]"},
    {"%0: f32[3,4], %1: f32[6,4]", "matmul(%0, %1)", "inner sizes are 4 and 6"},
    {"%0: f32[3,4], %1: f32[4,6], %2: f32[6]", "matmul(%0, %1, _, %2)", "residual must be f32[3,6]"},
    {"%0: f32[1,3,8,8], %1: f32[4,3,3,3]", "conv2d(%0, %1) stride=[2,1] pad=[1,1,1,1] dilation=[1,1] groups=1",
     "f32[1,4,4,8]"},
    {"%0: f32[1,3,8,8], %1: f32[4,3,3,3]", "conv2d(%0, %1) stride=[1,1] pad=[1,0,2,0] dilation=[2,3] groups=1",
     "f32[1,4,7,2]"},
    {"%0: f32[1,6,8,8], %1: f32[6,1,9,3]", "conv2d(%0, %1) stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=6",
     "kernel spans 9"},
    {"%0: f32[1,6,8,8], %1: f32[4,3,3,3]", "conv2d(%0, %1) stride=[1,1] pad=[0,0,0,0] dilation=[1,1] groups=3",
     "groups is 3"},
    {"%0: f32[1,6,5,5], %1: f32[6,2,4,4]",
     "conv_transpose2d(%0, %1) stride=[2,3] pad=[1,1] out_pad=[0,1] dilation=[1,1] groups=2", "f32[1,4,10,15]"},
    {"%0: f32[1,6,112,112]", "max_pool2d(%0) kernel=[3,3] stride=[2,2] pad=[1,1] dilation=[1,1]", "f32[1,6,56,56]"},
    {"%0: f32[1,6,112,5]", "max_pool2d(%0) kernel=[3,2] stride=[2,2] pad=[0,1] dilation=[1,1] ceil=1", "f32[1,6,56,3]"},
    {"%0: f32[1,6,4,4]", "max_pool2d(%0) kernel=[3,3] stride=[2,2] pad=[2,0] dilation=[1,1]", "half of kernel"},
    {"%0: f32[1,6,7,7]", "avg_pool2d(%0) kernel=[2,2] stride=[2,2] pad=[0,0] ceil=1 divisor=0", "f32[1,6,4,4]"},
    {"%0: f32[1,6,7,7]", "adaptive_avg_pool2d(%0) out=[1,2]", "f32[1,6,1,2]"},
    {"%0: f32[2,9]", "topk(%0) axis=1 k=10", "must be in [0, 9]"},
    {"%0: f32[2,9]", "histc(%0) bins=4 lo=1 hi=1", "must be lo < hi"},
    {"%0: f32[4,6], %1: i64[2,6], %2: f32[2,6]", "scatter(%0, %1, %2) axis=0 mode=0", "f32[4,6]"},
    {"%0: f32[4,6], %1: i64[2,7], %2: f32[2,7]", "scatter(%0, %1, %2) axis=0 mode=0", "7 places on axis 1"},
    {"%0: f32[4,6], %1: f32[], %2: i64[3]", "index_put(%0, %1, %2) axis=1 mode=1", "f32[4,6]"},
    {"%0: f32[4,6], %1: f32[5], %2: i64[3]", "index_put(%0, %1, %2) axis=1 mode=1", "do not broadcast"},
    {"%0: f32[9,4], %1: f32[3,4,5], %2: i32[3]", "grouped_matmul(%0, %1, %2)", "f32[9,5]"},
    {"%0: f32[9,4], %1: f32[3,4,5], %2: i32[2]", "grouped_matmul(%0, %1, %2)", "2 ends: must be 4 and 3"},
    {"%0: f32[1,6,7,7]", "resize2d(%0) out=[14,20] bilinear=1", "f32[1,6,14,20]"},
    {"%0: f32[2,8,5,16], %1: f32[2,4,7,16], %2: f32[2,4,7,32], %3: bool[2,1,1,7]",
     "attention(%0, %1, %2, %3) scale=0.25", "f32[2,8,5,32]"},
    {"%0: f32[2,8,5,16], %1: f32[2,3,7,16], %2: f32[2,3,7,16]", "attention(%0, %1, %2) scale=1", "divide 8"},
    {"%0: f32[2,8,5,16], %1: f32[2,8,7,16], %2: f32[5,6]", "attention(%0, %1, %1, %2) scale=1", "f32[2,8,5,7]"},
    {"%0: f16[2,8,5,16], %1: f16[2,8,7,16], %2: f32[5,7]", "attention(%0, %1, %1, %2) scale=1", "f16[2,8,5,16]"},
    {"%0: f32[2,8,5,16], %1: f32[2,8,7,16], %2: f16[5,7]", "attention(%0, %1, %1, %2) scale=1", "bool or float"},
    {"%0: f32[4], %1: f32[3,1]", "pointwise(%0, %1) {r2 = add f32 r0 r1; r3 = cast i32 r2; yield r3}", "i32[3,4]"},
    {"%0: f32[4]", "pointwise(%0) {r1 = add f32 r0 r1; yield r1}", "register r1 is read before"},
};

FL_TEST(infer) {
  for (size_t i = 0; i < sizeof inferred / sizeof *inferred; i++) {
    char text[512];
    fl_graph *g = NULL;
    snprintf(text, sizeof text, "graph(%s) { %%9 = %s : %s return %%9 }", inferred[i].inputs, inferred[i].node,
             strchr(inferred[i].want, ']') ? inferred[i].want : "f32[1]");
    fl_status s = fl_graph_parse(text, &g);
    if (s)
      FL_CHECK_MSG(strstr(fl_status_message(s), inferred[i].want), "%s: %s", inferred[i].node, fl_status_message(s));
    else
      FL_CHECK_OK(fl_graph_verify(g));
    FL_CHECK_MSG(
        !s == (strchr("fib", inferred[i].want[0]) && strchr(inferred[i].want, '[') && strlen(inferred[i].want) < 16) ||
            s,
        "%s: must be refused", inferred[i].node);
    fl_status_free(s);
    fl_graph_destroy(g);
  }
}

FL_TEST_MAIN(FL_RUN(rows) FL_RUN(attributes) FL_RUN(elements) FL_RUN(infer))
