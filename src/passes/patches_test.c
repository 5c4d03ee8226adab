#include "passes/pass_test.h"

#define WINDOW "stride=[16,16] pad=[0,0,0,0] dilation=[1,1] groups=1"

FL_TEST(patches_of_a_transformer) {
  CHECK_PASS("patches",
             "graph(%0: f16[2,3,32,48], %1: weight 0 f16[40,3,16,16], %2: weight 1 f16[40]) {"
             " %3 = conv2d(%0, %1, %2) " WINDOW " : f16[2,40,2,3] return %3 }",
             "graph(%0: f16[2,3,32,48], %1: weight 0 f16[40,3,16,16], %2: weight 1 f16[40]) {"
             " %3 = reshape(%0) dims=[2,3,2,16,3,16] : f16[2,3,2,16,3,16]"
             " %4 = permute(%3) perm=[0,2,4,1,3,5] : f16[2,2,3,3,16,16]"
             " %5 = reshape(%4) dims=[12,768] : f16[12,768] %6 = reshape(%1) dims=[40,768] : f16[40,768]"
             " %7 = matmul(%5, %6, %2) trans_b=1 : f16[12,40] %8 = reshape(%7) dims=[2,2,3,40] : f16[2,2,3,40]"
             " %9 = permute(%8) perm=[0,3,1,2] : f16[2,40,2,3] return %9 }");
}

FL_TEST(without_bias) {
  CHECK_PASS("patches",
             "graph(%0: bf16[1,1,16,16], %1: weight 0 bf16[8,1,16,16]) {"
             " %2 = conv2d(%0, %1) " WINDOW " : bf16[1,8,1,1] return %2 }",
             "graph(%0: bf16[1,1,16,16], %1: weight 0 bf16[8,1,16,16]) {"
             " %2 = reshape(%0) dims=[1,1,1,16,1,16] : bf16[1,1,1,16,1,16]"
             " %3 = permute(%2) perm=[0,2,4,1,3,5] : bf16[1,1,1,1,16,16]"
             " %4 = reshape(%3) dims=[1,256] : bf16[1,256] %5 = reshape(%1) dims=[8,256] : bf16[8,256]"
             " %6 = matmul(%4, %5) trans_b=1 : bf16[1,8] %7 = reshape(%6) dims=[1,1,1,8] : bf16[1,1,1,8]"
             " %8 = permute(%7) perm=[0,3,1,2] : bf16[1,8,1,1] return %8 }");
}

/* Of f32; with a rest of the image; overlapping; padded; with whole vectors of channels; of small windows; in groups. */
FL_TEST(declined) {
  CHECK_UNCHANGED("patches",
                  "graph(%0: f32[1,3,32,32], %1: weight 0 f32[8,3,16,16], %2: f16[1,3,33,32],"
                  "      %3: weight 1 f16[8,3,16,16], %4: f16[1,8,32,32], %5: weight 2 f16[8,8,16,16],"
                  "      %6: f16[1,3,32,32], %7: weight 3 f16[8,3,4,4], %8: f16[1,6,32,32]) {"
                  "  %9 = conv2d(%0, %1) " WINDOW " : f32[1,8,2,2] %10 = conv2d(%2, %3) " WINDOW " : f16[1,8,2,2]"
                  "  %11 = conv2d(%6, %3) stride=[8,8] pad=[0,0,0,0] dilation=[1,1] groups=1 : f16[1,8,3,3]"
                  "  %12 = conv2d(%6, %3) stride=[16,16] pad=[8,8,8,8] dilation=[1,1] groups=1 : f16[1,8,3,3]"
                  "  %13 = conv2d(%4, %5) " WINDOW " : f16[1,8,2,2]"
                  "  %14 = conv2d(%6, %7) stride=[4,4] pad=[0,0,0,0] dilation=[1,1] groups=1 : f16[1,8,8,8]"
                  "  %15 = conv2d(%8, %3) stride=[16,16] pad=[0,0,0,0] dilation=[1,1] groups=2 : f16[1,8,2,2]"
                  "  return %9, %10, %11, %12, %13, %14, %15 }");
}

FL_TEST_MAIN(FL_RUN(patches_of_a_transformer) FL_RUN(without_bias) FL_RUN(declined))
