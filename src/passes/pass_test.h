/* What tests of passes share: text in, pass, text out. */
#ifndef FL_PASSES_PASS_TEST_H
#define FL_PASSES_PASS_TEST_H

#include "base/test.h"
#include "passes/passes.h"

/* `pass` turns graph `in` into graph `out`, up to names; NULL runs all. Both are bodies as fl_graph_parse reads them. */
static inline void check_pass_at(const char *file, int line, const char *pass, const char *in, const char *out) {
  fl_graph *g = NULL, *want = NULL;
  char *got_text = NULL, *want_text = NULL;
  FL_CHECK_OK(fl_graph_parse(in, &g));
  FL_CHECK_OK(fl_graph_parse(out, &want));
  if (g && want) {
    if (pass) {
      FL_CHECK_OK(fl_pass_run(g, pass));
      FL_CHECK_OK(fl_graph_verify(g));
      FL_CHECK_OK(fl_pass_run(g, "dce"));
    } else {
      FL_CHECK_OK(fl_passes_run(g, true));
    }
    FL_CHECK_OK(fl_graph_verify(g));
    FL_CHECK_OK(fl_graph_print(g, &got_text));
    FL_CHECK_OK(fl_graph_print(want, &want_text));
    FL_CHECK_MSG(got_text && want_text && !strcmp(got_text, want_text), "from %s:%d:\n%swanted\n%s", file, line,
                 got_text, want_text);
  }
  fl_free(got_text);
  fl_free(want_text);
  fl_graph_destroy(g);
  fl_graph_destroy(want);
}
#define CHECK_PASS(pass, in, out) check_pass_at(__FILE__, __LINE__, pass, in, out)
#define CHECK_UNCHANGED(pass, in) check_pass_at(__FILE__, __LINE__, pass, in, in)

#endif
