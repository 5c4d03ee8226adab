/* What the programs that measure share: they end with a message where anything fails. Header only; for `*_bench.c`. */
#ifndef FL_BASE_BENCH_H
#define FL_BASE_BENCH_H

#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/status.h"

static inline void fl_bench_check(fl_status s) { /* takes */
  if (!s) return;
  fprintf(stderr, "%s\n", fl_status_message(s));
  exit(1);
}

/* The whole file, ended by a zero byte; fl_free. */
static inline char *fl_bench_read(const char *path) {
  enum { MOST = 16 << 20 };
  FILE *f = fopen(path, "rb");
  char *text = f ? fl_calloc(MOST, 1) : NULL;
  size_t n = text ? fread(text, 1, MOST - 1, f) : 0;
  if (!n) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(1);
  }
  fclose(f);
  return text;
}

#endif
