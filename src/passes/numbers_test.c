#include "passes/pass_test.h"

/* x op number, in 16 bits. */
static const char *after(fl_op op, fl_dtype dtype, double number, char *text, size_t size) {
  fl_graph *g;
  fl_vid x, c, v;
  fl_type type = fl_type_make(dtype, 1, (int64_t[]){2});
  FL_CHECK_OK(fl_graph_create(&g));
  FL_CHECK_OK(fl_graph_input(g, &type, NULL, &x));
  FL_CHECK_OK(fl_graph_scalar(g, dtype, number, &c));
  FL_CHECK_OK(fl_graph_op(g, op, (fl_vid[]){x, c}, 2, NULL, &v));
  FL_CHECK_OK(fl_graph_output(g, v));
  FL_CHECK_OK(fl_pass_run(g, "numbers"));
  FL_CHECK_OK(fl_pass_run(g, "dce"));
  FL_CHECK_OK(fl_graph_verify(g));
  char *printed = NULL;
  FL_CHECK_OK(fl_graph_print(g, &printed));
  snprintf(text, size, "%s", printed);
  fl_free(printed);
  fl_graph_destroy(g);
  return text;
}

FL_TEST(numbers_are_not_rounded) {
  char text[1024];
  FL_CHECK(strstr(after(FL_OP_DIV, FL_F16, 1e6, text, sizeof text), "literal f32[] = [1000000]"));
  FL_CHECK(strstr(text, "cast") && strstr(text, "div"));
  FL_CHECK(strstr(after(FL_OP_MUL, FL_BF16, 257, text, sizeof text), "literal f32[] = [257]"));
}

FL_TEST(what_16_bits_hold_stays) {
  char text[1024];
  FL_CHECK(!strstr(after(FL_OP_DIV, FL_F16, 8, text, sizeof text), "cast"));
  FL_CHECK(!strstr(after(FL_OP_MUL, FL_BF16, 0.5, text, sizeof text), "cast"));
  FL_CHECK(!strstr(after(FL_OP_ADD, FL_BF16, 0.1, text, sizeof text), "cast"));
}

FL_TEST_MAIN(FL_RUN(numbers_are_not_rounded) FL_RUN(what_16_bits_hold_stays))
