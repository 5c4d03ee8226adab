#include "passes/pass_test.h"

#define REST "dilation=[1,1] groups=1"

/* pads: before and after each axis; pad: top, left, bottom, right. */
FL_TEST(more_on_one_side) {
  CHECK_PASS("pads",
             "graph(%0: f32[1,3,8,9], %1: weight 0 f32[4,3,3,3], %2: weight 1 f32[4]) {"
             " %3 = pad(%0) pads=[0,0,0,0,0,1,2,3] value=0.0 : f32[1,3,9,14]"
             " %4 = conv2d(%3, %1, %2) stride=[2,2] pad=[0,1,0,1] " REST " : f32[1,4,4,7] return %4 }",
             "graph(%0: f32[1,3,8,9], %1: weight 0 f32[4,3,3,3], %2: weight 1 f32[4]) {"
             " %3 = conv2d(%0, %1, %2) stride=[2,2] pad=[0,3,1,4] " REST " : f32[1,4,4,7] return %3 }");
}

/* Another user sees the padded image. */
FL_TEST(of_two_uses) {
  CHECK_PASS("pads",
             "graph(%0: f32[1,3,8,9], %1: weight 0 f32[4,3,3,3]) {"
             " %2 = pad(%0) pads=[0,0,0,0,1,1,1,1] value=0.0 : f32[1,3,10,11]"
             " %3 = conv2d(%2, %1) stride=[1,1] pad=[0,0,0,0] " REST " : f32[1,4,8,9] return %2, %3 }",
             "graph(%0: f32[1,3,8,9], %1: weight 0 f32[4,3,3,3]) {"
             " %2 = pad(%0) pads=[0,0,0,0,1,1,1,1] value=0.0 : f32[1,3,10,11]"
             " %3 = conv2d(%0, %1) stride=[1,1] pad=[1,1,1,1] " REST " : f32[1,4,8,9] return %2, %3 }");
}

/* With another value; of channels. */
FL_TEST(declined) {
  CHECK_UNCHANGED("pads", "graph(%0: f32[1,3,8,9], %1: weight 0 f32[4,3,3,3], %2: f32[1,2,8,9]) {"
                          " %3 = pad(%0) pads=[0,0,0,0,1,1,1,1] value=0.5 : f32[1,3,10,11]"
                          " %4 = pad(%2) pads=[0,0,1,0,0,0,0,0] value=0.0 : f32[1,3,8,9]"
                          " %6 = conv2d(%3, %1) stride=[1,1] pad=[0,0,0,0] " REST " : f32[1,4,8,9]"
                          " %7 = conv2d(%4, %1) stride=[1,1] pad=[0,0,0,0] " REST " : f32[1,4,6,7]"
                          " return %6, %7 }");
}

FL_TEST_MAIN(FL_RUN(more_on_one_side) FL_RUN(of_two_uses) FL_RUN(declined))
