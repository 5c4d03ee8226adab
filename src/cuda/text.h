/* Text that grows, for generated sources. Out of memory is remembered and asked for once, at the end. */
#ifndef FL_CUDA_TEXT_H
#define FL_CUDA_TEXT_H

#include "base/alloc.h"

typedef struct fl_text {
  char *data; /* NUL-terminated, or NULL while empty */
  size_t len, cap;
  bool failed;
} fl_text;

void fl_text_add(fl_text *t, const char *fmt, ...) FL_PRINTF(2, 3);
void fl_text_free(fl_text *t);

#endif
