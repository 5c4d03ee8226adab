#include "capture/eval_impl.h"

fl_names fl_n;

int fl_names_init(void) {
#define X(n)                                                                                                           \
  if (!fl_n.n && !(fl_n.n = PyUnicode_InternFromString(#n))) return -1;
  FL_NAMES(X)
#undef X
  return 0;
}
