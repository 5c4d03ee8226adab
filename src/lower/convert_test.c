#include "base/test.h"
#include "lower/aten_text.h"
#include "lower/lower.h"

/* Lowers a segment that must become one engine partition; NULL otherwise. */
static fl_lowered *lower_whole(const char *text) {
  fl_aten_graph *aten = aten_from_text(text);
  fl_lowered *l = NULL;
  FL_CHECK(aten != NULL);
  if (!aten) return NULL;
  FL_CHECK_OK(fl_lower(aten, NULL, &l));
  bool whole = l && l->parts.len == 1 && l->parts.data[0].kind == FL_PART_ENGINE;
  FL_CHECK_MSG(whole, "not one engine partition:\n%s", text);
  for (int i = 0; l && i < l->n_reports; i++)
    if (l->reports[i].reason) FL_CHECK_MSG(whole, "%s: %s", aten->nodes.data[i].op, l->reports[i].reason);
  if (whole) FL_CHECK_OK(fl_graph_verify(l->parts.data[0].graph));
  fl_aten_graph_destroy(aten);
  if (whole) return l;
  fl_lowered_destroy(l);
  return NULL;
}

/* The engine graph's text must contain each of the '|'-separated pieces in order. */
static void check_graph(const char *segment, const char *pieces) {
  fl_lowered *l = lower_whole(segment);
  char *text = NULL;
  if (!l) return;
  FL_CHECK_OK(fl_graph_print(l->parts.data[0].graph, &text));
  const char *at = text;
  while (at && *pieces) {
    size_t n = strcspn(pieces, "|");
    char piece[256];
    snprintf(piece, sizeof piece, "%.*s", (int)n, pieces);
    const char *found = strstr(at, piece);
    FL_CHECK_MSG(found, "no \"%s\" in\n%s", piece, text);
    at = found ? found + strlen(piece) : NULL;
    pieces += n + (pieces[n] == '|');
  }
  fl_free(text);
  fl_lowered_destroy(l);
}

/* The last operator must stay eager, for a reason that contains `why`. */
static void check_declined(const char *segment, const char *why) {
  fl_aten_graph *aten = aten_from_text(segment);
  fl_lowered *l = NULL;
  FL_CHECK(aten != NULL);
  if (!aten) return;
  FL_CHECK_OK(fl_lower(aten, NULL, &l));
  const char *reason = l ? l->reports[l->n_reports - 1].reason : NULL;
  FL_CHECK_MSG(reason && strstr(reason, why), "got \"%s\", not \"%s\"", reason ? reason : "lowered", why);
  FL_CHECK(l && !l->reports[l->n_reports - 1].lowered);
  fl_lowered_destroy(l);
  fl_aten_graph_destroy(aten);
}

/* One operator on x: f32[2,4,6] and y: f32[6] (and i: i64[2,4,6], m: bool[2,4,6], w: f32[6,6]). */
static void check_op(const char *op, const char *result, const char *pieces) {
  char text[1024];
  snprintf(text, sizeof text,
           "x = input f32[2,4,6]\ny = input f32[6]\ni = input i64[2,4,6]\nm = input bool[2,4,6]\n"
           "h = input bf16[2,4,6]\ns = input f64[]\nw = weight f32[6,6]\n"
           "r = aten.%s : %s\nreturn r\n",
           op, result);
  check_graph(text, pieces);
}

FL_TEST(unary) {
  check_op("exp.default(self=x)", "f32[2,4,6]", "exp(%");
  check_op("exp.default(self=i)", "f32[2,4,6]", "cast(%|dtype=f32|exp(%");
  check_op("neg.default(self=i)", "i64[2,4,6]", "neg(%");
  check_op("floor.default(self=i)", "i64[2,4,6]", "return");
  check_op("relu_.default(self=x)", "f32[2,4,6] of x", "relu(%");
  check_op("gelu.default(self=x, approximate='tanh')", "f32[2,4,6]", "gelu_tanh(%");
  check_op("hardtanh_.default(self=x, min_val=0.0, max_val=6.0)", "f32[2,4,6] of x", "clamp(%|lo=0|hi=6");
  check_op("clamp.default(self=x, min=-1, max=None)", "f32[2,4,6]", "clamp(%|lo=-1|hi=inf");
  check_op("clamp.default(self=i, min=2, max=5)", "i64[2,4,6]", "maximum(|minimum(");
  check_op("logical_not.default(self=x)", "bool[2,4,6]", "eq(");
  check_op("bitwise_not.default(self=m)", "bool[2,4,6]", "not(");
  check_op("glu.default(self=x, dim=-1)", "f32[2,4,3]", "slice(|start=3|sigmoid(|slice(|mul(");
  check_graph(
      "x = input f32[2,4,6]\nw = weight f32[4]\nr = aten.prelu.default(self=x, weight=w) : f32[2,4,6]\nreturn r\n",
      "dims=[1,4,1]|mul(|gt(|where(");
  check_op("nan_to_num.default(self=x, nan=None, posinf=None, neginf=None)", "f32[2,4,6]", "where(|where(|where(");
}

FL_TEST(fixed_results) {
  check_graph(
      "x = input f32[2,4]\nc = input i64[2]\ni = aten.repeat_interleave.self_Tensor(self=c, repeats=c) : i64[3] fixed\n"
      "r = aten.index_select.default(self=x, dim=1, index=i) : f32[2,3]\nreturn r\n",
      "index_select(%1, %2");
  check_declined("c = input i64[2]\ni = aten.repeat_interleave.self_Tensor(self=c, repeats=c) : i64[3]\nreturn i\n",
                 "the engine has no");
}

FL_TEST(resampling) {
  const char *const text = "x = input f32[1,2,3,4]\nr = aten.%s : f32[1,2,6,4]\nreturn r\n";
  char plain[256], smooth[256], many[256];
  snprintf(plain, sizeof plain, text,
           "upsample_bicubic2d.vec(input=x, output_size=[6,4], align_corners=False, scale_factors=None)");
  check_graph(plain, "index_select(|axis=3|mul(|index_select(|mul(|add(|index_select(|axis=2|mul(");
  snprintf(smooth, sizeof smooth, text,
           "_upsample_bilinear2d_aa.vec(input=x, output_size=[6,4], align_corners=False, scale_factors=None)");
  check_graph(smooth, "index_select(|axis=3|mul(|index_select(|axis=2|mul(|where(");
  snprintf(many, sizeof many, text,
           "_upsample_bicubic2d_aa.vec(input=x, output_size=[6,4], align_corners=True, scale_factors=None)");
  check_declined(many, "corners");
}

FL_TEST(promotion) {
  check_op("add.Tensor(self=x, other=y, alpha=1)", "f32[2,4,6]", "add(%0, %1)");
  check_op("add.Tensor(self=x, other=y, alpha=2)", "f32[2,4,6]", "mul(%1|add(");
  check_op("add_.Tensor(self=x, other=1, alpha=1)", "f32[2,4,6] of x", "add(");
  check_op("mul.Tensor(self=i, other=x)", "f32[2,4,6]", "cast(|dtype=f32|mul(");
  check_op("mul.Tensor(self=i, other=2.5)", "f32[2,4,6]", "cast(|mul(");
  check_op("mul.Tensor(self=x, other=s)", "f32[2,4,6]", "cast(|dtype=f32|mul(");
  check_op("add.Tensor(self=h, other=2.5, alpha=1)", "bf16[2,4,6]", "add(");
  check_op("add.Tensor(self=h, other=x, alpha=1)", "f32[2,4,6]", "cast(|add(");
  check_op("add_.Tensor(self=h, other=x, alpha=1)", "bf16[2,4,6] of h", "cast(|dtype=f32|add(|cast(|dtype=bf16");
  check_op("add.Tensor(self=m, other=m, alpha=1)", "bool[2,4,6]", "or(");
  check_op("add.Tensor(self=m, other=i, alpha=1)", "i64[2,4,6]", "cast(|dtype=i64|add(");
  check_op("add.Tensor(self=m, other=1, alpha=1)", "i64[2,4,6]", "cast(|dtype=i64|add(");
  check_op("div.Tensor(self=i, other=2)", "f32[2,4,6]", "cast(|div(");
  check_op("div.Tensor_mode(self=i, other=2, rounding_mode='floor')", "i64[2,4,6]", "floor_div(");
  check_op("div.Tensor_mode(self=x, other=y, rounding_mode=None)", "f32[2,4,6]", "div(");
  check_op("rsub.Scalar(self=x, other=1, alpha=1)", "f32[2,4,6]", "sub(%");
  check_op("ge.Scalar(self=i, other=0)", "bool[2,4,6]", "ge(");
  check_op("__and__.Tensor(self=m, other=m)", "bool[2,4,6]", "and(");
  check_op("__iand__.Tensor(self=m, other=m)", "bool[2,4,6] of m", "and(");
  check_op("pow.Tensor_Scalar(self=x, exponent=2)", "f32[2,4,6]", "mul(%0, %0)");
  check_op("pow.Tensor_Scalar(self=x, exponent=0.5)", "f32[2,4,6]", "sqrt(");
  check_op("pow.Tensor_Scalar(self=x, exponent=1.7)", "f32[2,4,6]", "pow(");
  check_op("pow.Scalar(self=2, exponent=x)", "f32[2,4,6]", "pow(");
  check_op("where.self(condition=m, self=x, other=s)", "f32[2,4,6]", "cast(|where(");
  check_op("masked_fill.Scalar(self=x, mask=m, value=-inf)", "f32[2,4,6]", "where(");
  check_op("addcmul.default(self=x, tensor1=x, tensor2=y, value=0.5)", "f32[2,4,6]", "mul(|mul(|add(");
  check_op("lerp.Scalar(self=x, end=y, weight=0.25)", "f32[2,4,6]", "sub(|mul(|add(");
}

FL_TEST(views) {
  check_op("view.default(self=x, size=[8,-1])", "f32[8,6]", "reshape(%0) dims=[8,6]");
  check_op("t.default(self=w)", "f32[6,6]", "permute(%0) perm=[1,0]");
  check_op("transpose.int(self=x, dim0=1, dim1=-1)", "f32[2,6,4]", "permute(%0) perm=[0,2,1]");
  check_op("permute.default(self=x, dims=[2,0,1])", "f32[6,2,4]", "permute(%0) perm=[2,0,1]");
  check_op("movedim.int(self=x, source=[0], destination=[-1])", "f32[4,6,2]", "perm=[1,2,0]");
  check_op("expand.default(self=y, size=[4,-1], implicit=False)", "f32[4,6]", "expand(%0) dims=[4,6]");
  check_op("slice.Tensor(self=x, dim=2, start=1, end=9223372036854775807, step=2)", "f32[2,4,3]",
           "axis=2 start=1 stop=6 step=2");
  check_op("slice.Tensor(self=x, dim=-1, start=-2, end=None, step=1)", "f32[2,4,2]", "start=4 stop=6");
  check_op("select.int(self=x, dim=1, index=-1)", "f32[2,6]", "start=3 stop=4|reshape(|dims=[2,6]");
  check_op("repeat.default(self=x, repeats=[3,1,2,1])", "f32[3,2,8,6]", "expand(|reshape(");
  check_op("repeat_interleave.self_int(self=x, repeats=3, dim=1, output_size=None)", "f32[2,12,6]", "expand(");
  check_op("_to_copy.default(self=i, dtype=dtype:bool)", "bool[2,4,6]", "cast(");
  check_op("dropout.default(input=x, p=0.5, train=False)", "f32[2,4,6]", "return %0");
  check_op("slice_scatter.default(self=x, src=x, dim=1, start=0, end=4, step=1)", "f32[2,4,6]", "return %0");
  check_graph("x = input f32[2,4,6]\na, b, c = aten.split.Tensor(self=x, split_size=3, dim=-1) : f32[2,4,3] of x, "
              "f32[2,4,3] of x, f32[2,4,0] of x\nr = aten.add.Tensor(self=a, other=b) : f32[2,4,3]\nreturn r\n",
              "start=0 stop=3|start=3 stop=6|add(");
  /* y[:, 1:3, ::2] of a fresh y, and back into it; what an argument's memory begins with is not known */
  check_graph("x = input f32[2,4,6]\ny = aten.clone.default(self=x) : f32[2,4,6]\n"
              "v = aten.as_strided.default(self=y, size=[2,2,3], stride=[24,6,2], storage_offset=6) : f32[2,2,3] of y\n"
              "w = aten.add_.Tensor(self=v, other=1, alpha=1) : f32[2,2,3] of v\n"
              "r = aten.as_strided_scatter.default(self=y, src=w, size=[2,2,3], stride=[24,6,2], storage_offset=6) : "
              "f32[2,4,6]\nreturn r\n",
              "start=1 stop=3 step=1|start=0 stop=5 step=2|add(|iota() dims=[3]|step=2|index_put(|cat(");
  check_declined(
      "x = input f32[2,4,6]\ny = aten.relu.default(self=x) : f32[2,4,6]\n"
      "r = aten.as_strided_scatter.default(self=x, src=y, size=[2,4,6], stride=[24,6,1], storage_offset=0) : "
      "f32[2,4,6]\nreturn r\n",
      "strides set by hand");
  check_graph("x = input f32[2,9,4,4]\nr = aten.pixel_shuffle.default(self=x, upscale_factor=3) : f32[2,1,12,12]\n"
              "return r\n",
              "dims=[2,1,3,3,4,4]|perm=[0,1,4,2,5,3]|dims=[2,1,12,12]");
}

FL_TEST(data) {
  check_op("cat.default(tensors=[x, i], dim=-1)", "f32[2,4,12]", "cast(|cat(|axis=2");
  check_op("stack.default(tensors=[x, x], dim=1)", "f32[2,2,4,6]", "dims=[2,1,4,6]|cat(|axis=1");
  check_op("diff.default(self=x)", "f32[2,4,5]", "start=1 stop=6|start=0 stop=5|sub(");
  check_op("diff.default(self=i, n=2, dim=0, prepend=i)", "i64[2,4,6]", "cat(|start=1 stop=4|sub(|start=1 stop=3|sub(");
  check_op("roll.default(self=x, shifts=[2], dims=[2])", "f32[2,4,6]", "start=4 stop=6|start=0 stop=4|cat(");
  check_op("flip.default(self=x, dims=[-1,0])", "f32[2,4,6]", "axes=[0,2]");
  check_op("constant_pad_nd.default(self=x, pad=[1,2,-1,0], value=3)", "f32[2,3,9]",
           "axis=1 start=1 stop=4|pads=[0,0,0,0,1,2] value=3");
  check_op("gather.default(self=x, dim=1, index=i, sparse_grad=False)", "f32[2,4,6]", "gather(|axis=1");
  check_op("embedding.default(weight=w, indices=i, padding_idx=0)", "f32[2,4,6,6]", "embedding(");
  check_op("index.Tensor(self=x, indices=[None, i])", "f32[2,2,4,6,6]", "index(|axis=1");
  check_op("triu.default(self=x, diagonal=1)", "f32[2,4,6]", "tri(|diagonal=1|upper=1");
  check_op("cumsum.default(self=m, dim=1, dtype=None)", "i64[2,4,6]", "cast(|cumsum(");
}

FL_TEST(ordering_and_writing) {
  check_graph("x = input i64[2,9]\na, b = aten.sort.default(self=x, dim=-1, descending=True) : i64[2,9], i64[2,9]\n"
              "return a b\n",
              "sort(%0) axis=1 descending=1|return");
  check_declined("x = input f32[9]\na, b = aten.sort.default(self=x, dim=-1, descending=False) : f32[9], i64[9]\n"
                 "return a b\n",
                 "only a stable sort");
  check_graph(
      "x = input f32[9]\na, b = aten.sort.default(self=x, dim=-1, descending=False) : f32[9], i64[9]\nreturn a\n",
      "sort(");
  check_graph(
      "x = input f32[2,9]\na, b = aten.topk.default(self=x, k=3, dim=-1, largest=True, sorted=True) : f32[2,3], "
      "i64[2,3]\nreturn a b\n",
      "topk(%0) axis=1 k=3 largest=1 sorted=1");
  check_op("histc.default(self=x, bins=5, min=0, max=4)", "f32[5]", "histc(%0) bins=5 lo=0 hi=4");
  check_op("one_hot.default(self=i, num_classes=7)", "i64[2,4,6,7]", "scatter(");
  check_op("bucketize.Tensor(self=x, boundaries=y, out_int32=True, right=False)", "i32[2,4,6]",
           "lt(|sum(|where(|cast(");
  check_op("scatter_add.default(self=x, dim=1, index=i, src=x)", "f32[2,4,6]", "scatter(%0, %1, %0) axis=1 mode=1");
  check_op("scatter_.value(self=x, dim=-1, index=i, value=0.5)", "f32[2,4,6] of x", "expand(|scatter(|axis=2 mode=0");
  check_graph("x = input f32[4,6]\nk = input i64[3]\ns = input f32[3,6]\n"
              "r = aten.index_add_.default(self=x, dim=0, index=k, source=s, alpha=2) : f32[4,6] of x\nreturn r\n",
              "mul(|expand(|scatter(|mode=1");
  check_graph(
      "x = input f32[4,6]\nk = input i64[3]\ns = input f32[3,6]\n"
      "r = aten.index_put_.default(self=x, indices=[k], values=s, accumulate=False) : f32[4,6] of x\nreturn r\n",
      "index_put(%0, %2, %1) axis=0 mode=0");
  check_op("index_put_.default(self=x, indices=[m], values=s, accumulate=False)", "f32[2,4,6] of x", "where(");
  check_declined("x = input f32[4,6]\nm = input bool[4,6]\ns = input f32[9]\n"
                 "r = aten.index_put_.default(self=x, indices=[m], values=s, accumulate=False) : f32[4,6] of x\n"
                 "return r\n",
                 "mask");
  check_graph("x = input f32[9,4]\nw = weight f32[3,4,5]\ne = input i32[3]\n"
              "r = transformers.grouped_mm_fallback.default(input=x, weight=w, offs=e) : f32[9,5]\nreturn r\n",
              "grouped_matmul(");
}

FL_TEST(volumes_and_systems) {
  check_graph("x = input f32[2,3,6,8,8]\nw = weight f32[5,3,2,4,4]\nb = weight f32[5]\n"
              "r = aten.conv3d.default(input=x, weight=w, bias=b, stride=[2,4,4], padding=[0,0,0], dilation=[1,1,1], "
              "groups=1) : f32[2,5,3,2,2]\nreturn r\n",
              "cat(|dims=[6,6,8,8]|conv2d(|stride=[4,4]|dims=[2,3,5,2,2]|perm=[0,2,1,3,4]");
  check_graph(
      "x = input f32[1,2,5,5]\ng = input f32[1,3,4,2]\n"
      "r = aten.grid_sampler.default(input=x, grid=g, interpolation_mode=0, padding_mode=2, align_corners=True) : "
      "f32[1,2,3,4]\nreturn r\n",
      "grid_sample(%0, %1) mode=0 padding=2 align_corners=1");
  check_graph("a = input f32[4,4]\nb = input f32[7,3,4]\n"
              "r = aten.linalg_solve_triangular.default(self=a, B=b, upper=True, left=False, unitriangular=False) : "
              "f32[7,3,4]\nreturn r\n",
              "expand(|permute(|solve_triangular(|permute(");
  check_op("mse_loss.default(self=x, target=x, reduction=1)", "f32[]", "sub(|mul(|mean(");
  check_op("cdist.default(x1=x, x2=w, p=2.0, compute_mode=None)", "f32[2,4,6]", "sub(|mul(|sum(|sqrt(");
}

FL_TEST(padding_and_windows) {
  check_graph("x = input f32[1,5]\nr = aten.reflection_pad1d.default(self=x, padding=[2,1]) : f32[1,8]\nreturn r\n",
              "literal i64[8] = [2,1,0,1,2,3,4,3]|index_select(%0|axis=1");
  check_graph("x = input f32[1,5]\nr = aten.pad.default(self=x, pad=[2,1], mode='replicate', value=None) : f32[1,8]\n"
              "return r\n",
              "[0,0,0,1,2,3,4,4]|index_select(");
  check_graph("x = input f32[1,5]\nr = aten.pad.default(self=x, pad=[2,1], mode='circular', value=None) : f32[1,8]\n"
              "return r\n",
              "[3,4,0,1,2,3,4,0]|index_select(");
  check_graph(
      "x = input f32[5,3]\nr = aten.unfold.default(self=x, dimension=0, size=3, step=2) : f32[2,3,3]\nreturn r\n",
      "[0,1,2,2,3,4]|index_select(%0|dims=[2,3,3]|perm=[0,2,1]");
  check_declined("x = input f32[1,2]\nr = aten.reflection_pad1d.default(self=x, padding=[2,1]) : f32[1,5]\nreturn r\n",
                 "padding beyond the tensor");
}

FL_TEST(encoder_layer) {
  check_graph(
      "x = input f32[2,4,6]\nm = input f32[2,4]\nq = weight f32[18,6]\nqb = weight f32[18]\np = weight f32[6,6]\n"
      "b = weight f32[6]\nf = weight f32[16,6]\nfb = weight f32[16]\ng = weight f32[6,16]\n"
      "r = aten._transformer_encoder_layer_fwd.default(src=x, embed_dim=6, num_heads=2, qkv_weight=q, qkv_bias=qb, "
      "proj_weight=p, proj_bias=b, use_gelu=True, norm_first=False, eps=1e-5, norm_weight_1=b, norm_bias_1=b, "
      "norm_weight_2=b, norm_bias_2=b, ffn_weight_1=f, ffn_bias_1=fb, ffn_weight_2=g, ffn_bias_2=b, mask=m, "
      "mask_type=1) : f32[2,4,6]\nreturn r\n",
      "not(|dims=[2,1,1,4]|attention(|any(|where(|matmul(|add(|layer_norm(|matmul(|gelu(|matmul(|add(|layer_norm(");
}

FL_TEST(products) {
  check_graph("x = input f32[2,8]\nw = weight f32[4,8]\nb = weight f32[4]\nt = aten.t.default(self=w) : f32[8,4] of w\n"
              "r = aten.addmm.default(self=b, mat1=x, mat2=t, beta=1, alpha=1) : f32[2,4]\nreturn r\n",
              "matmul(%0, %|trans_b=1");
  check_op("linear.default(input=x, weight=w, bias=y)", "f32[2,4,6]", "matmul(%0, %|trans_b=1");
  check_op("matmul.default(self=x, other=w)", "f32[2,4,6]", "matmul(");
  check_op("matmul.default(self=x, other=y)", "f32[2,4]", "dims=[6,1]|matmul(|dims=[2,4]");
  check_graph(
      "a = input f32[2,3,4,5]\nb = input f32[2,6,4,5]\n"
      "r = aten.einsum.default(equation='bhid,bnid->bihn', tensors=[a,b], path=None) : f32[2,4,3,6]\nreturn r\n",
      "perm=[0,2,1,3]|dims=[8,3,5]|dims=[8,6,5]|matmul(|trans_b=1|dims=[2,4,3,6]");
  check_graph("a = input f32[3]\nb = input f32[4]\n"
              "r = aten.einsum.default(equation='i,j->ji', tensors=[a,b], path=None) : f32[4,3]\nreturn r\n",
              "mul(|perm=[1,0]");
  check_declined(
      "a = input f32[3,3]\nr = aten.einsum.default(equation='ii->i', tensors=[a], path=None) : f32[3]\nreturn r\n",
      "equation ii");
  check_graph("c = input f32[2,4]\nx = input f32[2,8]\ny = input f32[8,4]\n"
              "r = aten.addmm.default(self=c, mat1=x, mat2=y, beta=2, alpha=1) : f32[2,4]\nreturn r\n",
              "mul(%0|matmul(%1, %2, _, %");
}

FL_TEST(convolution) {
  check_graph("x = input f32[1,3,8,8]\nw = weight f32[4,3,3,3]\n"
              "r = aten.convolution.default(input=x, weight=w, bias=None, stride=[2,2], padding=[1,1], dilation=[1,1], "
              "transposed=False, output_padding=[0,0], groups=1) : f32[1,4,4,4]\nreturn r\n",
              "conv2d(%0, %1|stride=[2,2] pad=[1,1,1,1]");
  check_graph(
      "x = input f32[1,3,8]\nw = weight f32[4,3,4]\nb = weight f32[4]\n"
      "r = aten.conv1d.padding(input=x, weight=w, bias=b, stride=[1], padding='same', dilation=[1], groups=1) : "
      "f32[1,4,8]\nreturn r\n",
      "dims=[1,3,1,8]|dims=[4,3,1,4]|conv2d(|pad=[0,1,0,2]|dims=[1,4,8]");
  check_graph("x = input f32[1,4,8,8]\nw = weight f32[4,2,2,2]\n"
              "r = aten.conv_transpose2d.input(input=x, weight=w, bias=None, stride=[2,2], padding=[0,0], "
              "output_padding=[0,0], groups=1, dilation=[1,1]) : f32[1,2,16,16]\nreturn r\n",
              "conv_transpose2d(");
  check_graph("x = input f32[1,4,9,9]\nr, i = aten.max_pool2d_with_indices.default(self=x, kernel_size=[3,3], "
              "stride=[2,2], padding=[1,1], dilation=[1,1], ceil_mode=False) : f32[1,4,5,5], i64[1,4,5,5]\nreturn r\n",
              "max_pool2d(%0) kernel=[3,3] stride=[2,2] pad=[1,1]");
  check_graph("x = input f32[4,9,9]\nr = aten.avg_pool2d.default(self=x, kernel_size=[3,3], stride=[], padding=[0,0], "
              "ceil_mode=False, count_include_pad=True, divisor_override=None) : f32[4,3,3]\nreturn r\n",
              "dims=[1,4,9,9]|avg_pool2d(|dims=[4,3,3]");
  check_graph("x = input f32[1,4,9,9]\nr = aten.adaptive_avg_pool2d.default(self=x, output_size=[1,1]) : f32[1,4,1,1]\n"
              "return r\n",
              "mean(%0) axes=[2,3] keepdim=1");
  check_graph(
      "x = input f32[1,4,9,9]\nr = aten.upsample_bilinear2d.vec(input=x, output_size=None, align_corners=False, "
      "scale_factors=[2.0,2.0]) : f32[1,4,18,18]\nreturn r\n",
      "resize2d(|out=[18,18]|scale_h=2");
}

FL_TEST(norms_and_reductions) {
  check_graph("x = input f32[2,4,6,6]\nw = weight f32[4]\nb = weight f32[4]\nm = weight f32[4]\nv = weight f32[4]\n"
              "r, i, j = aten.native_batch_norm.default(input=x, weight=w, bias=b, running_mean=m, running_var=v, "
              "training=False, momentum=0.1, eps=1e-05) : f32[2,4,6,6], f32[0], f32[0]\nreturn r\n",
              "batch_norm(%0, %1, %2, %3, %4)");
  check_op("layer_norm.default(input=x, normalized_shape=[6], weight=y, bias=y, eps=1e-5, cudnn_enable=True)",
           "f32[2,4,6]", "layer_norm(%0, %1, %1) axes=1");
  check_op("rms_norm.default(input=x, normalized_shape=[6], weight=y, eps=None)", "f32[2,4,6]",
           "rms_norm(%0, %1) axes=1 eps=1.19");
  check_op("group_norm.default(input=x, num_groups=2, weight=None, bias=None, eps=1e-5, cudnn_enabled=True)",
           "f32[2,4,6]", "group_norm(%0) groups=2");
  check_op("mean.dim(self=x, dim=[-1,-2], keepdim=True, dtype=None)", "f32[2,1,1]", "axes=[1,2] keepdim=1");
  check_op("sum.default(self=m, dtype=None)", "i64[]", "cast(|sum(|axes=[0,1,2]");
  check_op("any.default(self=x)", "bool[]", "cast(|any(");
  check_op("argmax.default(self=x, dim=None, keepdim=False)", "i64[]", "dims=[48]|argmax(");
  check_op("var.correction(self=x, dim=[1], correction=0, keepdim=False)", "f32[2,6]", "correction=0");
  check_op("std.dim(self=x, dim=[1], unbiased=False, keepdim=False)", "f32[2,6]", "correction=0|sqrt(");
  check_op("linalg_norm.default(self=x, ord=None, dim=[-1], keepdim=True, dtype=None)", "f32[2,4,1]", "sum(|sqrt(");
  check_declined("x = input f32[2,4]\nr = aten.linalg_norm.default(self=x, ord=1, dim=None, keepdim=False, dtype=None) "
                 ": f32[]\nreturn r\n",
                 "a norm of matrices");
  check_op("linalg_vector_norm.default(self=x, ord=2, dim=[1], keepdim=False, dtype=None)", "f32[2,6]",
           "mul(|sum(|sqrt(");
  check_op("_softmax.default(self=x, dim=-1, half_to_float=False)", "f32[2,4,6]", "softmax(%0) axis=2");
  check_op("_safe_softmax.default(self=x, dim=-1, dtype=None)", "f32[2,4,6]", "all(|softmax(|where(");
  check_op("logsumexp.default(self=x, dim=[1], keepdim=False)", "f32[2,6]", "amax(|exp(|sum(|log(|add(");
}

FL_TEST(attention) {
  check_graph("q = input f32[1,6,8,16]\nk = input f32[1,2,9,16]\nm = input bool[8,9]\n"
              "r, l = aten._scaled_dot_product_flash_attention_for_cpu.default(query=q, key=k, value=k, dropout_p=0.0, "
              "is_causal=False, attn_mask=m, scale=None) : f32[1,6,8,16], f32[1,6,8]\nreturn r\n",
              "attention(%0, %1, %1, %2) scale=0.25");
  check_graph("q = input f32[6,8,16]\n"
              "r = aten.scaled_dot_product_attention.default(query=q, key=q, value=q, attn_mask=None, dropout_p=0.0, "
              "is_causal=True, scale=0.5, enable_gqa=False) : f32[6,8,16]\nreturn r\n",
              "dims=[1,6,8,16]|attention(|scale=0.5 causal=1|dims=[6,8,16]");
  check_graph("q = input f32[2,3,4,8,16]\nm = input f32[2,3,1,8,8]\n"
              "r = aten.scaled_dot_product_attention.default(query=q, key=q, value=q, attn_mask=m, dropout_p=0.0, "
              "is_causal=False, scale=None, enable_gqa=False) : f32[2,3,4,8,16]\nreturn r\n",
              "dims=[6,4,8,16]|dims=[6,1,8,8]|attention(|dims=[2,3,4,8,16]");
  check_declined("q = input f32[2,3,4,8,16]\nm = input f32[3,1,8,8]\n"
                 "r = aten.scaled_dot_product_attention.default(query=q, key=q, value=q, attn_mask=m, dropout_p=0.0, "
                 "is_causal=False, scale=None, enable_gqa=False) : f32[2,3,4,8,16]\nreturn r\n",
                 "one of the batch axes");
}

/* What PyTorch chooses among on a GPU, and what it calls there. */
FL_TEST(attention_variants) {
  static const char qkv[] = "q = input f16[2,6,8,16]\nk = input f16[2,2,8,16]\nm = input f32[2,1,1,8]\n";
  static const char *const calls[][2] = {
      {"r, l, a, b, x, y, s, u, d = aten._scaled_dot_product_flash_attention.default(query=q, key=k, value=k, "
       "dropout_p=0.0, is_causal=True, return_debug_mask=False, scale=None) : f16[2,6,8,16], f32[2,6,8], i32[], i32[], "
       "i64[], i64[], i64[], i64[], f16[]",
       "attention(%0, %1, %1) scale=0.25 causal=1"},
      {"r, l, s, o = aten._scaled_dot_product_efficient_attention.default(query=q, key=k, value=k, attn_bias=m, "
       "compute_log_sumexp=False, dropout_p=0.0, is_causal=False, scale=0.5) : f16[2,6,8,16], f32[2,6,8], i64[], i64[]",
       "attention(%0, %1, %1, %2) scale=0.5"},
      {"r, l, a, b, x, y, s, o, d = aten._scaled_dot_product_cudnn_attention.default(query=q, key=k, value=k, "
       "attn_bias=m, compute_log_sumexp=True, dropout_p=0.0, is_causal=False, return_debug_mask=False, scale=None) : "
       "f16[2,6,8,16], f32[2,6,8], i32[], i32[], i64[], i64[], i64[], i64[], f16[]",
       "attention(%0, %1, %1, %2) scale=0.25"},
      {"r, w = aten._scaled_dot_product_attention_math.default(query=q, key=k, value=k, attn_mask=m, dropout_p=0.0, "
       "is_causal=False, dropout_mask=None, scale=None, enable_gqa=True) : f16[2,6,8,16], f16[2,6,8,8]",
       "attention(%0, %1, %1, %2) scale=0.25"},
      {"r = aten.scaled_dot_product_attention.default(query=q, key=k, value=k, attn_mask=m, dropout_p=0.0, "
       "is_causal=False, scale=None, enable_gqa=True) : f16[2,6,8,16]",
       "attention(%0, %1, %1, %2) scale=0.25"},
  };
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    char text[1024];
    snprintf(text, sizeof text, "%s%s\nreturn r\n", qkv, calls[i][0]);
    check_graph(text, calls[i][1]);
  }
  check_graph("q = input bf16[2,8,6,16]\nk = input bf16[2,8,2,16]\n"
              "r, l, s, u, d = aten._flash_attention_forward.default(query=q, key=k, value=k, cum_seq_q=None, "
              "cum_seq_k=None, max_q=8, max_k=8, dropout_p=0.0, is_causal=True, return_debug_mask=False, scale=None, "
              "window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None) : bf16[2,8,6,16], "
              "f32[2,6,8], i64[], i64[], bf16[]\nreturn r\n",
              "permute(%0) perm=[0,2,1,3]|attention(|scale=0.25 causal=1|perm=[0,2,1,3]");
  check_graph("q = input f16[2,8,6,16]\nk = input f16[2,9,6,16]\nm = input f16[2,6,8,9]\n"
              "r, l, s, o, x, y = aten._efficient_attention_forward.default(query=q, key=k, value=k, bias=m, "
              "cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, dropout_p=0.0, "
              "custom_mask_type=0, compute_log_sumexp=False, scale=1.0, seqlen_k=None, window_size=None) : "
              "f16[2,8,6,16], f32[2,6,8], i64[], i64[], i64[], i64[]\nreturn r\n",
              "attention(|%2) scale=1|perm=[0,2,1,3]");
  /* Fewer heads of keys than of values: repeated. */
  check_graph("q = input f32[2,8,5,16]\nk = input f32[2,2,7,16]\nv = input f32[2,4,7,16]\n"
              "r = aten.scaled_dot_product_attention.default(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, "
              "is_causal=False, scale=None, enable_gqa=True) : f32[2,8,5,16]\nreturn r\n",
              "dims=[2,2,1,7,16]|dims=[2,2,2,7,16]|dims=[2,4,7,16]|attention(%0, %5, %2) scale=0.25");
  check_declined(
      "q = input f32[2,8,5,16]\nk = input f32[2,3,7,16]\nv = input f32[2,4,7,16]\n"
      "r = aten.scaled_dot_product_attention.default(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, "
      "is_causal=False, scale=None, enable_gqa=True) : f32[2,8,5,16]\nreturn r\n",
      "8 query heads for 3 key heads and 4 of values");
  check_declined("q = input f16[2,6,8,16]\nk = input f16[2,6,9,16]\n"
                 "r, l = aten._scaled_dot_product_flash_attention.default(query=q, key=k, value=k, dropout_p=0.0, "
                 "is_causal=True, return_debug_mask=False, scale=None) : f16[2,6,8,16], f32[2,6,8]\nreturn r\n",
                 "from the last query");
  check_declined("q = input f16[2,6,8,16]\n"
                 "r, l = aten._scaled_dot_product_flash_attention.default(query=q, key=q, value=q, dropout_p=0.0, "
                 "is_causal=True, return_debug_mask=False, scale=None) : f16[2,6,8,16], f32[2,6,8]\nreturn r l\n",
                 "result 1 is used");
  check_declined(
      "q = input f16[2,6,8,16]\n"
      "r = aten.scaled_dot_product_attention.default(query=q, key=q, value=q, attn_mask=None, dropout_p=0.1, "
      "is_causal=False, scale=None, enable_gqa=False) : f16[2,6,8,16]\nreturn r\n",
      "dropout");
}

FL_TEST(creation) {
  check_op("arange.start_step(start=2, end=14, step=3, dtype=None)", "i64[4]", "iota() dims=[4] axis=0 start=2 step=3");
  check_op("full.default(size=[2,3], fill_value=-inf)", "f32[2,3]", "-inf|expand(");
  check_op("new_ones.default(self=x, size=[], dtype=dtype:bool)", "bool[]", "literal bool[]");
  check_op("scalar_tensor.default(s=-inf, dtype=dtype:f32)", "f32[]", "literal f32[] = [-inf]");
  check_op("eye.default(n=3)", "f32[3,3]", "iota(|iota(|eq(|cast(");
}

FL_TEST(declines) {
  check_declined("x = input f32[4]\nr, i = aten.kthvalue.default(self=x, k=1, dim=-1) : f32[4], i64[4]\nreturn r\n",
                 "the engine has no aten.kthvalue.default");
  check_declined("x = input f32[4]\nr = aten.dropout.default(input=x, p=0.5, train=True) : f32[4]\nreturn r\n",
                 "random");
  check_declined("x = input f32[4]\nm = input bool[4]\nr = aten.index.Tensor(self=x, indices=[m]) : f32[2]\nreturn r\n",
                 "mask");
  check_declined("x = input f32[4]\nr = aten.exp.default(self=x) : f64[4]\nreturn r\n",
                 "result is f64[4], the engine would give f32[4]");
  check_declined(
      "x = input f32[1,4,9,9]\nr, i = aten.max_pool2d_with_indices.default(self=x, kernel_size=[3,3], "
      "stride=[2,2], padding=[1,1], dilation=[1,1], ceil_mode=False) : f32[1,4,5,5], i64[1,4,5,5]\nreturn r i\n",
      "result 1 is used");
  check_declined("x = input f32[4] bad sparse\nr = aten.exp.default(self=x) : f32[4]\nreturn r\n", "sparse");
  check_declined("x = input i64[4,4]\nr = aten.mm.default(self=x, mat2=x) : i64[4,4]\nreturn r\n", "not for i64");
  check_declined("x = input f32[2,4,3]\nw = weight f32[4]\nr = aten.batch_norm.default(input=x, weight=w, bias=w, "
                 "running_mean=w, running_var=w, training=True, momentum=0.1, eps=1e-5) : f32[2,4,3]\nreturn r\n",
                 "training");
  check_declined("x = input f32[4]\nr = aten.clamp.default(self=x, min=nan, max=None) : f32[4]\nreturn r\n", "NaN");
}

FL_TEST(table) {
  int n = 0;
  while (fl_converter_get(n)) n++;
  FL_CHECK(n > 250);
  for (int i = 0; i < n; i++) {
    FL_CHECK(!strncmp(fl_converter_get(i)->aten, "aten.", 5) ||
             !strncmp(fl_converter_get(i)->aten, "transformers.", 13));
    for (int k = 0; k < i; k++)
      FL_CHECK_MSG(strcmp(fl_converter_get(i)->aten, fl_converter_get(k)->aten), "%s twice", fl_converter_get(i)->aten);
  }
  FL_CHECK(fl_converter_get(-1) == NULL);
}

FL_TEST_MAIN(FL_RUN(unary) FL_RUN(promotion) FL_RUN(views) FL_RUN(data) FL_RUN(ordering_and_writing)
                 FL_RUN(volumes_and_systems) FL_RUN(padding_and_windows) FL_RUN(encoder_layer) FL_RUN(products)
                     FL_RUN(convolution) FL_RUN(norms_and_reductions) FL_RUN(attention) FL_RUN(attention_variants)
                         FL_RUN(creation) FL_RUN(resampling) FL_RUN(fixed_results) FL_RUN(declines) FL_RUN(table))
