/* Status values: every function that can fail returns one, and nothing aborts the host.
 *
 * NULL is success. Anything else is one object owned by the receiver, who either returns it to its
 * own caller (FL_TRY), or reads it and frees it. A message names the operator or parameter, the value
 * and the rule that was broken. Thread rule: a status belongs to one thread at a time. */
#ifndef FL_BASE_STATUS_H
#define FL_BASE_STATUS_H

#include <stdbool.h>

typedef enum fl_code {
  FL_OK = 0,
  FL_INVALID,     /* the caller's argument breaks a rule */
  FL_UNSUPPORTED, /* well formed, but this part cannot do it: falls back */
  FL_OOM,         /* memory could not be had */
  FL_IO,          /* a file could not be read or written */
  FL_CORRUPT,     /* bytes from outside fail verification */
  FL_INTERNAL     /* a bug of ours */
} fl_code;

typedef struct fl_status_obj *fl_status;

#if defined(__GNUC__)
#define FL_MUST_USE          __attribute__((warn_unused_result))
#define FL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define FL_NONNULL_RESULT    __attribute__((returns_nonnull))
#else
#define FL_MUST_USE
#define FL_PRINTF(fmt, args)
#define FL_NONNULL_RESULT
#endif

/* Returns a new status with a formatted message. Out of memory while making it gives the static
 * FL_OOM status, which is as good as any other. */
FL_MUST_USE FL_NONNULL_RESULT fl_status fl_fail(fl_code code, const char *fmt, ...) FL_PRINTF(2, 3);

/* Takes `s`, returns it with "context: " put before its message. NULL stays NULL. */
FL_MUST_USE fl_status fl_annotate(fl_status s, const char *fmt, ...) FL_PRINTF(2, 3);

/* The static out-of-memory status: needs no memory itself, and freeing it does nothing. */
FL_MUST_USE FL_NONNULL_RESULT fl_status fl_oom(void);

fl_code fl_status_code(fl_status s);        /* FL_OK for NULL */
const char *fl_status_message(fl_status s); /* "" for NULL; borrowed from `s` */
const char *fl_code_name(fl_code code);     /* "invalid", "unsupported", ... */
void fl_status_free(fl_status s);           /* takes; NULL allowed */

#define FL_TRY(expr)                                                                                                   \
  do {                                                                                                                 \
    fl_status fl_try_s_ = (expr);                                                                                      \
    if (fl_try_s_) return fl_try_s_;                                                                                   \
  } while (0)

#endif
