/* Graphs of every operator and way to compute it, small, for tests of this folder: with f32, which a test may replace. */
#ifndef FL_CUDA_GRAPHS_CASE_H
#define FL_CUDA_GRAPHS_CASE_H

static const char *const graphs[] = {
    /* pointwise, broadcasting, integers, bool */
    "graph(%0: f32[4,33], %1: f32[33]) {\n %2 = add(%0, %1) : f32[4,33]\n %3 = gelu(%2) : f32[4,33]\n return %3\n}",
    "graph(%0: f32[64,128], %1: f32[64,128]) {\n %2 = mul(%0, %1) : f32[64,128]\n %3 = silu(%2) : f32[64,128]\n"
    " %4 = sub(%3, %0) : f32[64,128]\n return %4\n}",
    "graph(%0: f32[5,7], %1: f32[5,7]) {\n %2 = lt(%0, %1) : bool[5,7]\n %3 = where(%2, %0, %1) : f32[5,7]\n"
    " %4 = tanh(%3) : f32[5,7]\n %5 = exp(%4) : f32[5,7]\n %6 = erf(%5) : f32[5,7]\n return %6, %2\n}",
    "graph(%0: i64[9], %1: i64[9]) {\n %2 = add(%0, %1) : i64[9]\n %3 = mul(%2, %2) : i64[9]\n"
    " %4 = cast(%3) dtype=f32 : f32[9]\n return %4, %3\n}",
    "graph(%0: f32[64,128], %1: f32[64,128]) {\n %2 = mul(%0, %1) : f32[64,128]\n %3 = gelu(%2) : f32[64,128]\n"
    " %4 = gelu_tanh(%2) : f32[64,128]\n %5 = sigmoid(%2) : f32[64,128]\n return %3, %4, %5\n}",
    /* movement */
    "graph(%0: f32[6,10,4]) {\n %1 = permute(%0) perm=[2,0,1] : f32[4,6,10]\n %2 = flip(%1) axes=[0,2] : f32[4,6,10]\n"
    " %3 = pad(%2) pads=[0,0,1,2,0,3] value=1.5 : f32[4,9,13]\n return %3\n}",
    "graph(%0: f32[6,10], %1: f32[6,3]) {\n %2 = cat(%0, %1) axis=1 : f32[6,13]\n %3 = tri(%2) diagonal=1 upper=0 : "
    "f32[6,13]\n"
    " %4 = permute(%3) perm=[1,0] : f32[13,6]\n return %4\n}",
    "graph(%0: f32[20,8], %1: i64[3,5], %2: i64[5]) {\n %3 = embedding(%0, %1) : f32[3,5,8]\n"
    " %4 = index_select(%3, %2) axis=2 : f32[3,5,5]\n return %4\n}",
    "graph(%0: f32[6,8], %1: i64[6,3]) {\n %2 = gather(%0, %1) axis=1 : f32[6,3]\n return %2\n}",
    "graph(%0: f32[20,8], %1: i64[3,5]) {\n %2 = index(%0, %1) axis=0 : f32[3,5,8]\n return %2\n}",
    "graph(%0: f32[4,8]) {\n %1 = iota() dims=[8] axis=0 start=2.0 step=0.5 dtype=f32 : f32[8]\n %2 = add(%0, %1) : "
    "f32[4,8]\n"
    " %3 = cumsum(%2) axis=1 : f32[4,8]\n return %3\n}",
    /* copies: by tiles, by vectors, by gathering along rows and one by one */
    "graph(%0: f32[2,40,9,17]) {\n %1 = permute(%0) perm=[0,2,3,1] : f32[2,9,17,40]\n %2 = slice(%0) axis=3 start=1 "
    "stop=14 step=1 : f32[2,40,9,13]\n %3 = slice(%0) axis=1 start=8 stop=24 step=1 : f32[2,16,9,17]\n"
    " %4 = slice(%1) axis=3 start=8 stop=24 step=2 : f32[2,9,17,8]\n return %1, %2, %3, %4\n}",
    "graph(%0: f32[2,3,40,21], %1: f32[6,64,32]) {\n %2 = permute(%0) perm=[0,2,3,1] : f32[2,40,21,3]\n"
    " %3 = permute(%1) perm=[1,0,2] : f32[64,6,32]\n %4 = reshape(%0) dims=[2,3,840,1] : f32[2,3,840,1]\n"
    " %5 = expand(%4) dims=[2,3,840,5] : f32[2,3,840,5]\n return %2, %3, %5\n}",
    /* concatenations made in place; operands that broadcast along rows and columns */
    "graph(%0: f32[2,8,5,7], %1: f32[2,4,5,7], %2: f32[8], %3: f32[2,8,1,1]) {\n %4 = gelu(%0) : f32[2,8,5,7]\n"
    " %5 = softmax(%1) axis=1 : f32[2,4,5,7]\n %6 = cat(%4, %5) axis=1 : f32[2,12,5,7]\n %7 = mul(%0, %3) : "
    "f32[2,8,5,7]\n"
    " %8 = cat(%6, %7, %1) axis=1 : f32[2,24,5,7]\n %9 = tanh(%6) : f32[2,12,5,7]\n return %8, %9\n}",
    "graph(%0: f32[6,40], %1: weight 0 f32[24,40], %2: f32[6,1], %3: f32[16]) {\n"
    " %4 = matmul(%0, %1, _, _) trans_b=1 act=none act_lo=0.0 act_hi=0.0 : f32[6,24]\n %5 = mul(%4, %2) : f32[6,24]\n"
    " %6 = slice(%0) axis=1 start=8 stop=24 step=1 : f32[6,16]\n %7 = add(%6, %3) : f32[6,16]\n"
    " %8 = matmul(%0, %1, _, _) trans_b=1 act=none act_lo=0.0 act_hi=0.0 : f32[6,24]\n"
    " %9 = cat(%5, %7, %8) axis=1 : f32[6,64]\n return %9\n}",
    /* concatenations that grow: the beginning of one is the one before */
    "graph(%0: f32[2,8,5,7]) {\n %1 = tanh(%0) : f32[2,8,5,7]\n %2 = sigmoid(%1) : f32[2,8,5,7]\n"
    " %3 = cat(%1, %2) axis=1 : f32[2,16,5,7]\n %4 = gelu(%3) : f32[2,16,5,7]\n %5 = slice(%4) axis=1 start=4 stop=12 "
    "step=1 : f32[2,8,5,7]\n %6 = abs(%5) : f32[2,8,5,7]\n %7 = cat(%1, %2, %6) axis=1 : f32[2,24,5,7]\n"
    " %8 = softmax(%7) axis=1 : f32[2,24,5,7]\n %9 = cat(%1, %2, %6, %8) axis=1 : f32[2,48,5,7]\n"
    " %10 = mean(%9) axes=[2,3] keepdim=0 : f32[2,48]\n %11 = exp(%9) : f32[2,48,5,7]\n return %10, %11\n}",
    /* reductions */
    "graph(%0: f32[6,70,9]) {\n %1 = sum(%0) axes=[1] keepdim=0 : f32[6,9]\n %2 = mean(%0) axes=[0,2] keepdim=1 : "
    "f32[1,70,1]\n"
    " %3 = amax(%0) axes=[2] keepdim=0 : f32[6,70]\n %4 = var(%0) axes=[1,2] keepdim=0 correction=1.0 : f32[6]\n"
    " return %1, %2, %3, %4\n}",
    "graph(%0: f32[6,700]) {\n %1 = argmax(%0) axes=[1] keepdim=0 : i64[6]\n %2 = argmin(%0) axes=[0] keepdim=0 : "
    "i64[700]\n"
    " %3 = amin(%0) axes=[1] keepdim=1 : f32[6,1]\n return %1, %2, %3\n}",
    "graph(%0: bool[6,40]) {\n %1 = any(%0) axes=[1] keepdim=0 : bool[6]\n %2 = all(%0) axes=[0] keepdim=0 : "
    "bool[40]\n return %1, %2\n}",
    /* by several blocks: rows, columns, all elements */
    "graph(%0: f32[3,40000], %1: f32[5000,40], %2: f32[2,37,30,30]) {\n %3 = sum(%0) axes=[1] keepdim=0 : f32[3]\n"
    " %4 = mean(%1) axes=[0] keepdim=1 : f32[1,40]\n %5 = amax(%1) axes=[0,1] keepdim=0 : f32[]\n"
    " %6 = gt(%0, %0) : bool[3,40000]\n %7 = any(%6) axes=[0,1] keepdim=0 : bool[]\n"
    " %8 = permute(%2) perm=[0,2,3,1] : f32[2,30,30,37]\n %9 = amin(%8) axes=[1,2] keepdim=0 : f32[2,37]\n"
    " return %3, %4, %5, %9\n}",
    "graph(%0: f32[2,8,9,40], %1: bool[3,40000]) {\n %2 = mean(%0) axes=[1,2] keepdim=0 : f32[2,40]\n"
    " %3 = any(%1) axes=[0,1] keepdim=0 : bool[]\n %4 = all(%1) axes=[1] keepdim=1 : bool[3,1]\n"
    " return %2, %3, %4\n}",
    /* rows */
    "graph(%0: f32[3,5,257]) {\n %1 = softmax(%0) axis=2 : f32[3,5,257]\n %2 = log_softmax(%0) axis=1 : f32[3,5,257]\n "
    "return %1, %2\n}",
    "graph(%0: f32[40,768], %1: weight 0 f32[768], %2: weight 1 f32[768]) {\n"
    " %3 = layer_norm(%0, %1, %2) axes=1 eps=1e-05 : f32[40,768]\n %4 = rms_norm(%3, %1) axes=1 eps=1e-05 : "
    "f32[40,768]\n return %3, %4\n}",
    "graph(%0: f32[2,8,5,7], %1: weight 0 f32[8], %2: weight 1 f32[8]) {\n"
    " %3 = group_norm(%0, %1, %2) groups=4 eps=1e-05 : f32[2,8,5,7]\n return %3\n}",
    /* images */
    "graph(%0: f32[2,6,13,11]) {\n"
    " %1 = max_pool2d(%0) kernel=[3,3] stride=[2,2] pad=[1,1] dilation=[1,1] ceil=0 : f32[2,6,7,6]\n"
    " %2 = avg_pool2d(%0) kernel=[3,2] stride=[2,2] pad=[1,1] ceil=0 include_pad=0 divisor=0 : f32[2,6,7,6]\n"
    " %3 = adaptive_avg_pool2d(%0) out=[3,4] : f32[2,6,3,4]\n return %1, %2, %3\n}",
    "graph(%0: f32[2,24,13,11] strides=[3432,1,264,24]) {\n"
    " %1 = max_pool2d(%0) kernel=[3,3] stride=[2,2] pad=[1,1] dilation=[1,2] ceil=0 : f32[2,24,7,5]\n"
    " %2 = avg_pool2d(%0) kernel=[3,2] stride=[2,2] pad=[1,1] ceil=1 include_pad=1 divisor=0 : f32[2,24,7,6]\n"
    " %3 = adaptive_avg_pool2d(%0) out=[3,4] : f32[2,24,3,4]\n"
    " %4 = mean(%0) axes=[2,3] keepdim=1 : f32[2,24,1,1]\n return %1, %2, %3, %4\n}",
    "graph(%0: f32[1,20,64,50] strides=[64000,1,1000,20], %1: f32[3,130,7,7] strides=[6370,1,910,130]) {\n"
    " %2 = mean(%0) axes=[2,3] keepdim=0 : f32[1,20]\n %3 = mean(%1) axes=[2,3] keepdim=0 : f32[3,130]\n"
    " return %2, %3\n}",
    "graph(%0: f32[2,3,5,7]) {\n"
    " %1 = resize2d(%0) out=[10,11] bilinear=1 align_corners=0 scale_h=0.0 scale_w=0.0 : f32[2,3,10,11]\n"
    " %2 = resize2d(%0) out=[3,14] bilinear=1 align_corners=1 scale_h=0.0 scale_w=0.0 : f32[2,3,3,14]\n"
    " %3 = resize2d(%0) out=[10,14] bilinear=0 align_corners=0 scale_h=2.0 scale_w=2.0 : f32[2,3,10,14]\n"
    " return %1, %2, %3\n}",
    "graph(%0: f32[2,6,5,7], %1: weight 0 f32[6,4,3,3], %2: weight 1 f32[8]) {\n"
    " %3 = conv_transpose2d(%0, %1, %2) stride=[2,1] pad=[1,0] out_pad=[1,0] dilation=[1,2] groups=2 : f32[2,8,10,11]\n"
    " return %3\n}",
    /* matrix products */
    "graph(%0: f32[5,64], %1: weight 0 f32[48,64], %2: weight 1 f32[48]) {\n"
    " %3 = matmul(%0, %1, %2, _) trans_b=1 act=gelu act_lo=0.0 act_hi=0.0 : f32[5,48]\n return %3\n}",
    "graph(%0: f32[2,16,64], %1: weight 0 f32[64,40], %2: f32[2,16,40]) {\n"
    " %3 = matmul(%0, %1, _, %2) trans_b=0 act=relu act_lo=0.0 act_hi=0.0 : f32[2,16,40]\n return %3\n}",
    "graph(%0: f32[3,4,16,24], %1: f32[3,4,32,24]) {\n %2 = permute(%0) perm=[0,2,1,3] : f32[3,16,4,24]\n"
    " %3 = permute(%2) perm=[0,2,1,3] : f32[3,4,16,24]\n"
    " %4 = matmul(%3, %1, _, _) trans_b=1 act=none act_lo=0.0 act_hi=0.0 : f32[3,4,16,32]\n"
    " %5 = permute(%4) perm=[0,1,3,2] : f32[3,4,32,16]\n"
    " %6 = matmul(%5, %4, _, _) trans_b=0 act=none act_lo=0.0 act_hi=0.0 : f32[3,4,32,32]\n return %6\n}",
    /* copies of long rows that begin anywhere */
    "graph(%0: f32[33,1048]) {\n %1 = slice(%0) axis=1 start=0 stop=1027 step=1 : f32[33,1027]\n"
    " %2 = slice(%0) axis=1 start=5 stop=1030 step=1 : f32[33,1025]\n return %1, %2\n}",
    "graph(%0: f32[3,2,701], %1: f32[3,2,5]) {\n %2 = cat(%1, %0, %1) axis=2 : f32[3,2,711]\n return %2\n}",
    "graph(%0: bool[5,1301], %1: bool[5,3]) {\n %2 = cat(%1, %0) axis=1 : bool[5,1304]\n return %2\n}",
    /* of odd width */
    "graph(%0: f32[2,7,64], %1: weight 0 f32[1027,64], %2: weight 1 f32[1027]) {\n"
    " %3 = matmul(%0, %1, %2, _) trans_b=1 act=relu act_lo=0.0 act_hi=0.0 : f32[2,7,1027]\n"
    " %4 = softmax(%3) axis=2 : f32[2,7,1027]\n return %3, %4\n}",
    "graph(%0: f32[33,64], %1: weight 0 f32[3001,64]) {\n"
    " %2 = matmul(%0, %1, _, _) trans_b=1 act=silu act_lo=0.0 act_hi=0.0 : f32[33,3001]\n return %2\n}",
    /* attention */
    "graph(%0: f32[2,4,33,32], %1: f32[2,2,65,32], %2: f32[2,2,65,16], %3: bool[33,65]) {\n"
    " %4 = attention(%0, %1, %2, %3) scale=0.2 causal=0 : f32[2,4,33,16]\n"
    " %5 = attention(%0, %1, %2, _) scale=0.2 causal=1 : f32[2,4,33,16]\n return %4, %5\n}",
    /* convolutions */
    "graph(%0: f32[2,16,14,14], %1: weight 0 f32[32,16,3,3], %2: weight 1 f32[32], %3: f32[2,32,14,14]) {\n"
    " %4 = conv2d(%0, %1, %2, %3) stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=1 act=relu act_lo=0.0 act_hi=0.0 : "
    "f32[2,32,14,14]\n"
    " return %4\n}",
    "graph(%0: f32[2,3,15,17], %1: weight 0 f32[8,3,7,7], %2: weight 1 f32[8], %3: weight 2 f32[8], %4: weight 3 "
    "f32[8],"
    " %5: weight 4 f32[8]) {\n"
    " %6 = conv2d(%0, %1, _, _) stride=[2,2] pad=[3,3,3,3] dilation=[1,1] groups=1 act=none act_lo=0.0 act_hi=0.0 : "
    "f32[2,8,8,9]\n"
    " %7 = abs(%5) : f32[8]\n %8 = batch_norm(%6, %2, %3, %4, %7) eps=0.5 : f32[2,8,8,9]\n"
    " %9 = relu(%8) : f32[2,8,8,9]\n return %9\n}",
    "graph(%0: f32[2,16,9,9], %1: weight 0 f32[16,1,3,3], %2: weight 1 f32[16]) {\n"
    " %3 = conv2d(%0, %1, %2, _) stride=[1,1] pad=[1,1,1,1] dilation=[1,1] groups=16 act=silu act_lo=0.0 act_hi=0.0 : "
    "f32[2,16,9,9]\n"
    " return %3\n}",
};

#endif
