/* What C unit tests share: checks that go on after a failure, and a closing line.
 *
 *   FL_TEST(name) { FL_CHECK(1 + 1 == 2); FL_CHECK_OK(some_status()); }
 *   FL_TEST_MAIN(FL_RUN(name))
 */
#ifndef FL_BASE_TEST_H
#define FL_BASE_TEST_H

#include <stdio.h>
#include <string.h>

#include "base/status.h"

static int fl_test_failed_, fl_test_checks_;

#define FL_CHECK(cond)                                                                                                 \
  do {                                                                                                                 \
    fl_test_checks_++;                                                                                                 \
    if (!(cond)) {                                                                                                     \
      fl_test_failed_++;                                                                                               \
      fprintf(stderr, "%s:%d: %s: FAILED: %s\n", __FILE__, __LINE__, __func__, #cond);                                 \
    }                                                                                                                  \
  } while (0)

#define FL_CHECK_MSG(cond, ...)                                                                                        \
  do {                                                                                                                 \
    fl_test_checks_++;                                                                                                 \
    if (!(cond)) {                                                                                                     \
      fl_test_failed_++;                                                                                               \
      fprintf(stderr, "%s:%d: %s: FAILED: %s: ", __FILE__, __LINE__, __func__, #cond);                                 \
      fprintf(stderr, __VA_ARGS__);                                                                                    \
      fputc('\n', stderr);                                                                                             \
    }                                                                                                                  \
  } while (0)

#define FL_CHECK_OK(expr)                                                                                              \
  do {                                                                                                                 \
    fl_status fl_s_ = (expr);                                                                                          \
    fl_test_checks_++;                                                                                                 \
    if (fl_s_) {                                                                                                       \
      fl_test_failed_++;                                                                                               \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, fl_status_message(fl_s_));                         \
      fl_status_free(fl_s_);                                                                                           \
    }                                                                                                                  \
  } while (0)

/* The call must fail with this code, and its message must contain `text`. */
#define FL_CHECK_FAILS(expr, code_, text)                                                                              \
  do {                                                                                                                 \
    fl_status fl_s_ = (expr);                                                                                          \
    fl_test_checks_++;                                                                                                 \
    if (fl_status_code(fl_s_) != (code_) || !strstr(fl_status_message(fl_s_), (text))) {                               \
      fl_test_failed_++;                                                                                               \
      fprintf(stderr, "%s:%d: %s: got %s \"%s\"\n", __FILE__, __LINE__, #expr, fl_code_name(fl_status_code(fl_s_)),    \
              fl_status_message(fl_s_));                                                                               \
    }                                                                                                                  \
    fl_status_free(fl_s_);                                                                                             \
  } while (0)

#define FL_TEST(name) static void test_##name(void)
#define FL_RUN(name)  test_##name();
#define FL_TEST_MAIN(runs)                                                                                             \
  int main(void) {                                                                                                     \
    runs;                                                                                                              \
    printf("%d checks, %d failed\n", fl_test_checks_, fl_test_failed_);                                                \
    return fl_test_failed_ != 0;                                                                                       \
  }

#endif
