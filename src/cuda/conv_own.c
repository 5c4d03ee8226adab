/* Our own convolution kernels: depthwise, products on the tensor cores, of images (a network's first layer), and those of a
 * few pixels (squeeze-excitation). */
#include <inttypes.h>
#include <math.h>
#include <stdint.h>

#include "cuda/conv.h"
#include "cuda/sources.h"
#include "cuda/writer.h"

enum { X, W, BIAS, RESIDUAL };
enum {
  MAX_SHARED = 40 << 10,
  FEW_PIXELS = 256,
  FEW_PRODUCTS = 8 << 20,
  FULL = 264 /* blocks, two a multiprocessor */,
  DEPTHWISE_THREADS = 128
};

static void operands(fl_cuda_writer *w, const fl_run_args *a, const fl_cuda_conv *c) {
  void *const all[] = {
      a->in[X].data,  a->in[W].data, c->bias ? a->in[BIAS].data : NULL, c->residual ? a->in[RESIDUAL].data : NULL,
      a->out[0].data, a->fault};
  for (int i = 0; i < 6; i++) fl_cuda_write_pointer(w, all[i]);
}

static void type_and_act(fl_cuda_writer *w, const fl_cuda_conv *c) {
  fl_text_add(&w->text, "typedef %s T;\n", fl_cg_storage(c->dtype));
  fl_cuda_write_act(w, c->dtype, c->act, c->lo, c->hi);
}

static void common(fl_cuda_writer *w, const fl_cuda_conv *c) {
  fl_cuda_write_number(w, "KH", c->kh);
  fl_cuda_write_number(w, "KW", c->kw);
  fl_cuda_write_number(w, "SH", c->sh);
  fl_cuda_write_number(w, "SW", c->sw);
  fl_cuda_write_number(w, "DH", c->dh);
  fl_cuda_write_number(w, "DW", c->dw);
  type_and_act(w, c);
}

/* The most elements, a power of two, that can be loaded at once where rows of them are all these multiples long. */
static int width_for(const fl_cuda_conv *c, int most, int64_t x, int64_t y) {
  int size = (int)fl_dtype_size(c->dtype), v = c->align / size;
  if (v > most) v = most;
  while (v > 1 && (x % v || y % v)) v /= 2;
  return v < 1 ? 1 : v;
}

/* --- depthwise --- */

static bool is_depthwise(const fl_cuda_conv *c) {
  return c->groups > 1 && c->cg == 1 && c->og == 1 && c->xs[1] == 1 && c->kh * c->kw <= 81;
}

static void launch_depthwise(const fl_run_args *a, const fl_cuda_conv *c) {
  int v = width_for(c, 8, c->c | c->yp, c->xs[3]);
  int th = c->sh == 1 ? 2 : 1,
      tw = c->sh == 1 ? 2 : 4; /* pixels of a thread: those that share most of what they read */
  int64_t vectors = c->c / v, vx = 1, tiles = c->n * ((c->oh + th - 1) / th) * ((c->ow + tw - 1) / tw);
  int64_t most = MAX_SHARED / (c->kh * c->kw * v * (int)sizeof(float));
  if (most > 32) most = 32;
  for (int64_t d = 1; d <= most; d++)
    if (vectors % d == 0) vx = d;
  if (vx < 8 && vectors > vx) vx = most < vectors ? most : vectors;
  int64_t vy = DEPTHWISE_THREADS / vx;
  fl_cuda_writer w = {0};
  operands(&w, a, c);
  common(&w, c);
  fl_cuda_write_number(&w, "RESIDUAL", c->residual);
  fl_cuda_write_number(&w, "V", v);
  fl_cuda_write_number(&w, "TH", th);
  fl_cuda_write_number(&w, "TW", tw);
  fl_cuda_write_number(&w, "MOST", most);
  fl_cuda_write_number(&w, "THREADS", DEPTHWISE_THREADS);
  fl_cuda_write_argument(&w, "VX", vx);
  fl_cuda_write_argument(&w, "VY", vy);
  fl_cuda_write_argument(&w, "N", c->n);
  fl_cuda_write_argument(&w, "H", c->h);
  fl_cuda_write_argument(&w, "W", c->w);
  fl_cuda_write_argument(&w, "C", c->c);
  fl_cuda_write_argument(&w, "OH", c->oh);
  fl_cuda_write_argument(&w, "OW", c->ow);
  fl_cuda_write_argument(&w, "TOP", c->top);
  fl_cuda_write_argument(&w, "LEFT", c->left);
  fl_cuda_write_argument(&w, "XP", c->xs[3]);
  fl_cuda_write_argument(&w, "YP", c->yp);
  fl_cuda_write_launch(&w, a, fl_cuda_source_depthwise, (tiles + vy - 1) / vy * ((vectors + vx - 1) / vx),
                       (int)(vx * vy), 0);
}

/* --- on the tensor cores --- */

typedef struct tile {
  int bm, bn, warps_m, warps_n, stages, bk; /* at most bk: see launch_mma */
} tile;

/* For many pixels, and for few. */
static const tile wide[2] = {{128, 128, 2, 2, 3, 64}, {64, 64, 2, 2, 4, 32}};
static const tile of_96[2] = {{128, 96, 4, 2, 3, 32}, {64, 96, 2, 2, 4, 32}};
static const tile of_64[2] = {{128, 64, 2, 2, 4, 32}, {64, 64, 2, 2, 4, 32}};
static const tile of_48[2] = {{128, 48, 4, 1, 4, 32}, {64, 48, 2, 1, 4, 32}};
static const tile of_32[2] = {{128, 32, 4, 1, 4, 32}, {64, 32, 2, 1, 4, 32}};
static const tile of_16[2] = {{128, 16, 4, 1, 4, 32}, {64, 16, 2, 1, 4, 32}};

static const tile *tiles_for(int64_t og) {
  return og <= 16                ? of_16
         : og <= 32              ? of_32
         : og <= 48              ? of_48
         : og <= 64              ? of_64
         : og <= 96 || og == 192 ? of_96
                                 : wide;
}

static bool has_tensor_cores(const fl_cuda_conv *c, int arch) {
  return arch >= 80 && (c->dtype == FL_F16 || c->dtype == FL_BF16) && (c->groups == 1 || (c->cg >= 16 && c->og >= 16));
}

/* How many elements of x a load takes; 1 where its channels are not side by side. */
static int load_width(const fl_cuda_conv *c) {
  if (c->xs[1] != 1) return 1;
  int v = width_for(c, 8, c->cg, c->xs[3]);
  while (v > 1 && (c->xs[0] % v || c->xs[2] % v)) v /= 2;
  return v;
}

/* Numbers only for x whose elements are loaded one by one, which takes a division each, or whose places need 64 bits. */
static void geometry(fl_cuda_writer *w, const fl_cuda_conv *c, const tile *t, int va, bool plain) {
  static const char *const names[] = {"SH",  "SW",   "DH", "DW", "H", "W",  "CG", "O",  "OG",
                                      "TOP", "LEFT", "OH", "OW", "M", "XN", "XC", "XH", "XW"};
  const int64_t values[] = {c->sh,  c->sw,   c->dh, c->dw, c->h, c->w,     c->cg,    c->o,     c->og,
                            c->top, c->left, c->oh, c->ow, c->m, c->xs[0], c->xs[1], c->xs[2], c->xs[3]};
  int64_t far = c->n * c->xs[0], tiles_n = (c->og + t->bn - 1) / t->bn;
  bool small = far < INT32_MAX - (1 << 24), numbers = va == 1 || !small;
  for (size_t i = 0; i < sizeof values / sizeof *values; i++)
    (numbers ? fl_cuda_write_number : fl_cuda_write_argument)(w, names[i], values[i]);
  fl_cuda_write_number(w, "KH", c->kh);
  fl_cuda_write_number(w, "KW", c->kw);
  fl_cuda_write_argument(w, "TILES_N", tiles_n);
  fl_cuda_write_argument(w, "ACROSS", c->groups * tiles_n);
  fl_cuda_write_quotient(w, "TILES_N", tiles_n, false);
  fl_cuda_write_quotient(w, "ACROSS", c->groups * tiles_n, false);
  if (!plain) {
    fl_cuda_write_quotient(w, "CG", c->cg, numbers);
    fl_cuda_write_quotient(w, "OW", c->ow, numbers);
    fl_cuda_write_quotient(w, "IMAGE", c->oh * c->ow, numbers);
  }
  fl_text_add(&w->text, "typedef %s I;\n", small ? "int" : "i64");
}

/* Large tiles where there are enough of them to fill the device; not where there is little to add up, and much to write. */
static const tile *tile_for(const fl_cuda_conv *c) {
  const tile *t = tiles_for(c->og);
  bool few = (c->m + t->bm - 1) / t->bm * ((c->og + t->bn - 1) / t->bn) * c->groups < FULL;
  bool shallow = c->kh * c->kw * c->cg <= 32 && c->og >= 96;
  return &t[few || shallow];
}

static void launch_mma(const fl_run_args *a, const fl_cuda_conv *c) {
  const tile *t = tile_for(c);
  int va = load_width(c), vb = width_for(c, 8, c->kh * c->kw * c->cg, 8), vo = width_for(c, 8, c->o | c->yp, c->og);
  int64_t k = c->kh * c->kw * c->cg, bk = k <= 16 ? 16 : k <= 32 ? 32 : t->bk, steps = (k + bk - 1) / bk;
  bool plain = fl_cuda_conv_is_plain(c) && va > 1;
  size_t loads = (size_t)((steps < t->stages ? steps : t->stages) * (t->bm + t->bn) * bk * 2),
         stores = (size_t)(t->bm * (t->bn + 4) * 4);
  fl_cuda_writer w = {0};
  operands(&w, a, c);
  type_and_act(&w, c);
  fl_text_add(&w.text, "#define MMA \"%s\"\n", fl_cg_storage(c->dtype));
  fl_cuda_write_number(&w, "BM", t->bm);
  fl_cuda_write_number(&w, "BN", t->bn);
  fl_cuda_write_number(&w, "BK", bk);
  fl_cuda_write_number(&w, "WARPS_M", t->warps_m);
  fl_cuda_write_number(&w, "WARPS_N", t->warps_n);
  fl_cuda_write_number(&w, "STAGES", t->stages);
  fl_cuda_write_number(&w, "VA", va);
  fl_cuda_write_number(&w, "VB", vb);
  fl_cuda_write_number(&w, "VO", vo);
  fl_cuda_write_number(&w, "PLAIN", plain);
  geometry(&w, c, t, va, plain);
  fl_cuda_write_argument(&w, "YP", c->yp);
  fl_cuda_write_launch(&w, a, fl_cuda_source_conv_mma,
                       (c->m + t->bm - 1) / t->bm * ((c->og + t->bn - 1) / t->bn) * c->groups,
                       t->warps_m * t->warps_n * 32, loads > stores ? loads : stores);
}

/* --- of images: few channels --- */

enum { IMAGE_CHANNELS = 4, IMAGE_ROWS = 8, IMAGE_COLS = 16, IMAGE_THREADS = 128 };
enum { IMAGE_MAX_SHARED = 96 << 10, ALL_SHARED = 224 << 10 /* of a multiprocessor */ };

/* Channels of the result that a block computes, a multiple of 8. */
static int image_channels(const fl_cuda_conv *c) {
  return c->o % 64 == 0 ? 64 : c->o <= 64 ? (int)(c->o + 7) / 8 * 8 : c->o % 48 == 0 ? 48 : c->o % 32 == 0 ? 32 : 64;
}

static int64_t image_taps(const fl_cuda_conv *c) { return (c->kw + 3) / 4 * 4; }

static size_t image_shared(const fl_cuda_conv *c) {
  int64_t taps = image_taps(c), pixels = ((IMAGE_ROWS - 1) * c->sh + c->kh) * ((IMAGE_COLS - 1) * c->sw + taps);
  return (size_t)(image_channels(c) * (c->kh * taps * 4 + 8) + pixels * 4) * 2;
}

/* That a multiprocessor should hold, for their registers and shared memory. */
static int image_blocks(const fl_cuda_conv *c) {
  int bn = image_channels(c),
      most = bn <= 16   ? 8
             : bn <= 32 ? 6
                        : 4,
      fit = (int)(ALL_SHARED / (image_shared(c) + 1024));
  return fit < most ? fit : most;
}

static bool is_image(const fl_cuda_conv *c, int arch) {
  for (int i = 0; i < 4; i++)
    if (c->xs[i] > INT32_MAX) return false;
  return arch >= 80 && (c->dtype == FL_F16 || c->dtype == FL_BF16) && c->groups == 1 && c->c <= IMAGE_CHANNELS &&
         c->kh * c->kw > 1 && c->dh * c->dw == 1 && image_shared(c) <= IMAGE_MAX_SHARED;
}

static void launch_image(const fl_run_args *a, const fl_cuda_conv *c) {
  int bn = image_channels(c), blocks = image_blocks(c);
  int64_t down = (c->oh + IMAGE_ROWS - 1) / IMAGE_ROWS, across = (c->ow + IMAGE_COLS - 1) / IMAGE_COLS;
  int64_t tiles = c->n * down * across, parts = (c->o + bn - 1) / bn, most = FULL / 2 * blocks / parts;
  fl_cuda_writer w = {0};
  operands(&w, a, c);
  common(&w, c);
  fl_text_add(&w.text, "#define MMA \"%s\"\n", fl_cg_storage(c->dtype));
  fl_cuda_write_number(&w, "RESIDUAL", c->residual);
  fl_cuda_write_number(&w, "CG", c->c);
  fl_cuda_write_number(&w, "BN", bn);
  fl_cuda_write_number(&w, "VO", width_for(c, 8, c->o | c->yp, bn / 4));
  fl_cuda_write_number(&w, "VW", width_for(c, 8, c->o * c->kh * c->kw * c->c, 8));
  fl_cuda_write_number(&w, "BLOCKS", blocks);
  const struct {
    const char *name;
    int64_t v;
  } args[] = {{"H", c->h},      {"W", c->w},       {"O", c->o},       {"OH", c->oh},       {"OW", c->ow},
              {"TOP", c->top},  {"LEFT", c->left}, {"XN", c->xs[0]},  {"XC", c->xs[1]},    {"XH", c->xs[2]},
              {"XW", c->xs[3]}, {"YP", c->yp},     {"TILES_Y", down}, {"TILES_X", across}, {"TILES", tiles}};
  for (size_t i = 0; i < sizeof args / sizeof *args; i++) fl_cuda_write_argument(&w, args[i].name, args[i].v);
  fl_cuda_write_launch(&w, a, fl_cuda_source_conv_image,
                       (tiles < most ? tiles
                        : most > 0   ? most
                                     : 1) *
                           parts,
                       IMAGE_THREADS, image_shared(c));
}

/* --- of few pixels: a warp a channel of the result --- */

static bool has_few_pixels(const fl_cuda_conv *c) {
  return fl_cuda_conv_is_plain(c) && c->m <= FEW_PIXELS && c->m * c->c * c->o <= FEW_PRODUCTS;
}

static void launch_few(const fl_run_args *a, const fl_cuda_conv *c) {
  int v = width_for(c, 8, c->cg, c->xs[3]);
  const int rows = 8, warps = 4;
  fl_cuda_writer w = {0};
  operands(&w, a, c);
  common(&w, c);
  fl_cuda_write_number(&w, "V", v);
  fl_cuda_write_number(&w, "ROWS", rows);
  fl_cuda_write_number(&w, "WARPS", warps);
  fl_cuda_write_argument(&w, "M", c->m);
  fl_cuda_write_argument(&w, "K", c->cg);
  fl_cuda_write_argument(&w, "O", c->o);
  fl_cuda_write_argument(&w, "XP", c->xs[3]);
  fl_cuda_write_argument(&w, "YP", c->yp);
  fl_cuda_write_launch(&w, a, fl_cuda_source_conv_few, (c->o + warps - 1) / warps * ((c->m + rows - 1) / rows),
                       warps * 32, 0);
}

/* --- all of them --- */

/* Where the kernels of libraries were always faster: without groups, many channels. Windows of one element, unless they have
 * an activation that the libraries lack and not too many channels; others with an activation that cuDNN has. */
static bool is_for_libraries(const fl_cuda_conv *c) {
  bool simple = c->act == FL_ACT_NONE || c->act == FL_ACT_RELU;
  if (c->groups > 1) return false;
  if (c->kh * c->kw > 1) return simple && c->cg >= 32;
  return c->align == 16 && c->c % 8 == 0 && c->o % 8 == 0 && c->xs[1] == 1 && c->xs[3] == c->c &&
         c->c >= (simple ? 256 : 384);
}

bool fl_cuda_conv_is_ours(const fl_cuda_conv *c, int arch) {
  if (!c->even) return false;
  return is_depthwise(c) || is_image(c, arch) || has_few_pixels(c) ||
         (has_tensor_cores(c, arch) && !is_for_libraries(c));
}

void fl_cuda_conv_own(const fl_run_args *a, const fl_cuda_conv *c) {
  if (is_depthwise(c))
    launch_depthwise(a, c);
  else if (is_image(c, fl_cuda_queue_of(a)->device->arch))
    launch_image(a, c);
  else if (has_few_pixels(c))
    launch_few(a, c);
  else
    launch_mma(a, c);
}

void fl_cuda_conv_finish(const fl_run_args *a, const fl_cuda_conv *c) {
  if (!c->bias && !c->residual && c->act == FL_ACT_NONE) return;
  int v = width_for(c, 16 / (int)fl_dtype_size(c->dtype), c->o, c->yp);
  int64_t n = c->m * c->o / v, last = c->m * c->yp;
  fl_cuda_writer w = {0};
  operands(&w, a, c);
  fl_cuda_write_index(&w, (n > last ? n : last) + FL_CUDA_BEYOND);
  type_and_act(&w, c);
  fl_cuda_write_number(&w, "V", v);
  fl_cuda_write_number(&w, "BLOCK", 256);
  fl_cuda_write_divisor(&w, "PER_PIXEL", c->o / v);
  fl_cuda_write_size(&w, "YP", c->yp);
  fl_cuda_write_size(&w, "VECTORS", n);
  fl_cuda_write_launch(&w, a, fl_cuda_source_conv_finish, (n + 255) / 256, 256, 0);
}
