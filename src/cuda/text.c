#include "cuda/text.h"

#include <stdarg.h>
#include <stdio.h>

static bool make_room(fl_text *t, size_t more) {
  if (t->len + more + 1 <= t->cap) return true;
  size_t cap = (t->len + more + 1) * 2;
  char *p = fl_realloc(t->data, cap);
  if (!p) {
    t->failed = true;
    return false;
  }
  t->data = p;
  t->cap = cap;
  return true;
}

void fl_text_add(fl_text *t, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  int n = vsnprintf(NULL, 0, fmt, args);
  va_end(args);
  if (t->failed || n < 0 || !make_room(t, (size_t)n)) return;
  va_start(args, fmt);
  vsnprintf(t->data + t->len, (size_t)n + 1, fmt, args);
  va_end(args);
  t->len += (size_t)n;
}

void fl_text_free(fl_text *t) {
  fl_free(t->data);
  *t = (fl_text){0};
}
