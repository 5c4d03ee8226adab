/* The matrix product under all products and convolutions: C[M, N] (+)= A[M, K] B[K, N], f32, or bf16 with sums in f32.
 *
 * B is packed into panels of `nr` columns, in blocks of at most FL_GEMM_KC rows: block kb, panel p starts at
 * k0 n_padded + p kc nr, its rows [kc][nr] one after the other, missing columns zero. A is copied, a tile of at most `mr`
 * rows and one K block at a time, into a buffer of fixed row stride that stays in L1: the copy is where rows may lie
 * anywhere (strided matrices, pixels of an image), and what keeps the inner loop free of cache conflicts.
 *
 * In a bf16 product two neighbours along K take the place of one float, in A and B alike: K counts pairs. An odd end is
 * completed with zero. */
#ifndef FL_CPU_GEMM_GEMM_H
#define FL_CPU_GEMM_GEMM_H

#include "cpu/kernel.h"

#define FL_GEMM_KC     384 /* K block */
#define FL_GEMM_AS     400 /* row stride of an A tile in floats: an odd number of cache lines */
#define FL_GEMM_MR_MAX 14  /* rows of the tallest tile of any instruction set */

/* What is done to a result before it is stored: bias, then residual, then activation. */
typedef struct fl_epilogue {
  fl_act act;
  float lo, hi; /* FL_ACT_CLAMP */
} fl_epilogue;

/* One A tile times all columns of one B block: C[mr][n]. */
typedef struct fl_gemm_strip {
  const float *a;        /* [mr][FL_GEMM_AS]; unused by the direct convolution */
  const float *b;        /* panels [kc][nr], one after the other */
  float *c;              /* rows `ldc` apart */
  const float *bias;     /* n values added; NULL = none */
  const float *residual; /* rows `ldc` apart, added; NULL = none. May be c itself */
  uint16_t *half; /* bf16: the result, rows `ldc` apart; NULL while sums go to C, which then has rows `sums` apart */
  const uint16_t *half_residual; /* instead of residual */
  int64_t ldc, sums, n, kc;
  bool accumulate;      /* add to what C holds */
  fl_epilogue epilogue; /* FL_ACT_NONE unless this is the last K block */
} fl_gemm_strip;

/* The routines of one instruction set. */
typedef struct fl_gemm_isa {
  int mr, nr;
  void (*strip[FL_GEMM_MR_MAX])(const fl_gemm_strip *s); /* by rows - 1, up to mr */
  /* One packed panel of kc rows; column j of `columns` is contiguous at src + j sn, times scale[j] unless that is NULL. */
  void (*pack_columns)(float *dst, const float *src, int64_t sn, int64_t columns, int64_t kc, const float *scale);
  void (*copy)(float *dst, const float *src, int64_t n);
  void (*act)(float *x, int64_t n, fl_epilogue e); /* in place */
  /* bf16: one packed panel of k elements; element i of column j is at src[j sn + i sk]. NULL for f32. */
  void (*pack_half)(float *dst, const uint16_t *src, int64_t sn, int64_t sk, int64_t columns, int64_t k);
} fl_gemm_isa;

extern const fl_gemm_isa fl_gemm_avx512, fl_gemm_avx2, fl_gemm_avx512_bf16;
/* Of fl_isa, where the one with bf16 is for products of bf16 alone; NULL for the portable one. */
const fl_gemm_isa *fl_gemm_of(int isa);

/* Shape of a packed B. */
typedef struct fl_gemm_b {
  int64_t k, n, n_padded;
  int64_t blocks, kc; /* K blocks, and rows of each but the last; one empty block when k is 0 */
} fl_gemm_b;

/* A B matrix where the caller holds it: column j at data[j sn + offset of k], k counting through up to three
 * dimensions, the last fastest. */
typedef struct fl_gemm_src {
  const float *data, *scale; /* scale: of each column, or NULL */
  int64_t sn;
  int64_t dims[3], strides[3];
} fl_gemm_src;

fl_gemm_b fl_gemm_b_make(const fl_gemm_isa *isa, int64_t k, int64_t n);
size_t fl_gemm_b_bytes(const fl_gemm_b *b); /* SIZE_MAX when it does not fit */
/* Packs panels [p0, p1) of all blocks. */
void fl_gemm_pack(const fl_gemm_isa *isa, const fl_gemm_b *b, float *dst, const fl_gemm_src *src, int64_t p0,
                  int64_t p1);
int64_t fl_gemm_panels(const fl_gemm_isa *isa, const fl_gemm_b *b);
/* The same of a bf16 matrix of k rows: b counts pairs. Element i of column j is at src[j sn + i sk]. */
void fl_gemm_pack_half(const fl_gemm_isa *isa, const fl_gemm_b *b, float *dst, const uint16_t *src, int64_t sn,
                       int64_t sk, int64_t k, int64_t p0, int64_t p1);

/* Copies rows [row, row + rows) and K range [k0, k0 + kc) of the A that starts `offset` floats into what ctx describes,
 * into tile[rows][FL_GEMM_AS]. */
typedef void (*fl_gemm_fetch)(const void *ctx, int64_t offset, const fl_gemm_isa *isa, int64_t row, int rows,
                              int64_t k0, int64_t kc, float *tile);

/* A whole product. */
typedef struct fl_gemm {
  const fl_gemm_isa *isa;
  fl_gemm_b shape;
  const float *b;
  fl_gemm_fetch fetch;
  const void *ctx; /* of fetch, and offset too */
  int64_t offset;
  float *c;              /* rows ldc apart */
  const float *bias;     /* n values, or NULL */
  const float *residual; /* rows ldc apart, or NULL; may be c */
  uint16_t *half;        /* bf16: instead of c and residual */
  const uint16_t *half_residual;
  int64_t m, ldc;
  fl_epilogue epilogue;
} fl_gemm;

void fl_gemm_run(const fl_gemm *g, fl_pool *pool);

/* `batches` products of one shape side by side: `set` changes the copy of `g` it is given into number `batch`
 * (offset, b, c, bias, residual). */
typedef void (*fl_gemm_set)(const void *arg, int64_t batch, fl_gemm *g);
void fl_gemm_run_batch(const fl_gemm *g, int64_t batches, fl_gemm_set set, const void *arg, fl_pool *pool);

/* Rows [m0, m1) and panels [p0, p1) on the calling thread. */
void fl_gemm_block(const fl_gemm *g, int64_t m0, int64_t m1, int64_t p0, int64_t p1);

/* Rows of a tensor as a matrix: every dimension but the last counts rows. */
typedef struct fl_rows {
  const void *data;
  int64_t k; /* elements of a row */
  int rank;  /* of rows, dimensions that follow each other merged; 1 in most cases */
  int64_t dims[FL_MAX_RANK], strides[FL_MAX_RANK];
  int64_t sk; /* stride along K */
} fl_rows;
/* Dimensions from first_dim on. */
fl_rows fl_rows_make(const fl_tensor *t, int first_dim);
void fl_rows_fetch(const void *rows, int64_t offset, const fl_gemm_isa *isa, int64_t row, int n, int64_t k0, int64_t kc,
                   float *tile);
/* The same of bf16: offset and strides count elements, k0 and kc pairs. */
void fl_rows_fetch_half(const void *rows, int64_t offset, const fl_gemm_isa *isa, int64_t row, int n, int64_t k0,
                        int64_t kc, float *tile);

fl_epilogue fl_epilogue_of(const fl_attrs *attrs); /* act, act_lo, act_hi */

#endif
