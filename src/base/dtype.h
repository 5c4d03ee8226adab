/* Element types and the shapes of dense tensors. */
#ifndef FL_BASE_DTYPE_H
#define FL_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum fl_dtype {
#define FL_DTYPE(e, name, bytes, cls) FL_##e,
#include "base/dtype.def"
#undef FL_DTYPE
  FL_DTYPE_COUNT
} fl_dtype;

const char *fl_dtype_name(fl_dtype t); /* "f32", ... ; "?" out of range */
size_t fl_dtype_size(fl_dtype t);      /* bytes; 0 out of range */
bool fl_dtype_parse(const char *name, fl_dtype *out);
bool fl_dtype_is_float(fl_dtype t);
bool fl_dtype_is_int(fl_dtype t); /* signed or unsigned, not bool */

#define FL_MAX_RANK 8

/* What a value is: element type and logical dimensions, in PyTorch's order (NCHW for images). */
typedef struct fl_type {
  fl_dtype dtype;
  int rank;                  /* 0..FL_MAX_RANK; 0 is a scalar of one element */
  int64_t dims[FL_MAX_RANK]; /* each >= 0 */
} fl_type;

/* Where its elements lie: strides in elements, PyTorch's meaning (0 = broadcast). */
typedef struct fl_tensor {
  void *data;
  fl_type type;
  int64_t strides[FL_MAX_RANK];
} fl_tensor;

fl_type fl_type_make(fl_dtype dtype, int rank, const int64_t *dims);
bool fl_type_equal(const fl_type *a, const fl_type *b);
bool fl_dims_equal(const fl_type *a, const fl_type *b);
int64_t fl_type_numel(const fl_type *t);
size_t fl_type_bytes(const fl_type *t); /* dense */
void fl_strides_contiguous(const fl_type *t, int64_t *strides);
void fl_strides_channels_last(const fl_type *t, int64_t *strides); /* rank 4 (NHWC) or 3 (NLC) */
bool fl_is_contiguous(const fl_type *t, const int64_t *strides);   /* dims of 1 are free, as in PyTorch */
bool fl_is_channels_last(const fl_type *t, const int64_t *strides);
/* True if the elements fill one block without gaps or overlap, in whatever order. */
bool fl_is_dense(const fl_type *t, const int64_t *strides);
/* "f32[1,3,224,224]" into buf (always terminated); returns buf. */
char *fl_type_str(const fl_type *t, char *buf, size_t size);

#endif
