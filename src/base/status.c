#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

struct fl_status_obj {
  fl_code code;
  char *message; /* right behind the object, in the same block */
};

static char oom_text[] = "out of memory";
static struct fl_status_obj oom_status = {FL_OOM, oom_text};

/* "head" then "tail" in one new status. */
static fl_status make(fl_code code, const char *tail, const char *fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  int head = vsnprintf(NULL, 0, fmt, again);
  va_end(again);
  if (head < 0) head = 0;
  size_t tail_len = strlen(tail);
  fl_status s = fl_malloc(sizeof *s + (size_t)head + tail_len + 1);
  if (!s) return &oom_status;
  s->code = code;
  s->message = (char *)(s + 1);
  s->message[0] = '\0';
  vsnprintf(s->message, (size_t)head + 1, fmt, args);
  memcpy(s->message + head, tail, tail_len + 1);
  return s;
}

fl_status fl_fail(fl_code code, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fl_status s = make(code == FL_OK ? FL_INTERNAL : code, "", fmt, args);
  va_end(args);
  return s;
}

/* The context is formatted first and joined after, because the old message is the tail. */
static fl_status with_separator(fl_code code, const char *tail, const char *fmt, va_list args) {
  size_t len = strlen(tail);
  char *joined = fl_malloc(len + 3);
  if (!joined) return &oom_status;
  memcpy(joined, ": ", 2);
  memcpy(joined + 2, tail, len + 1);
  fl_status s = make(code, joined, fmt, args);
  fl_free(joined);
  return s;
}

fl_status fl_annotate(fl_status s, const char *fmt, ...) {
  if (!s || s == &oom_status) return s;
  va_list args;
  va_start(args, fmt);
  fl_status out = with_separator(s->code, s->message, fmt, args);
  va_end(args);
  fl_status_free(s);
  return out;
}

fl_status fl_oom(void) { return &oom_status; }

fl_code fl_status_code(fl_status s) { return s ? s->code : FL_OK; }

const char *fl_status_message(fl_status s) { return s ? s->message : ""; }

const char *fl_code_name(fl_code code) {
  switch (code) {
  case FL_OK: return "ok";
  case FL_INVALID: return "invalid";
  case FL_UNSUPPORTED: return "unsupported";
  case FL_OOM: return "out of memory";
  case FL_IO: return "io";
  case FL_CORRUPT: return "corrupt";
  case FL_INTERNAL: return "internal";
  }
  return "?";
}

void fl_status_free(fl_status s) {
  if (s && s != &oom_status) fl_free(s);
}
