/* Verification put off to the second call.
 *
 * What a first call costs beyond eager is mostly packed weights and a run of the engine to compare. Where nothing but engines
 * takes part, both wait until arguments come for which the trace would be used: copies of the arguments and of the answer
 * are kept until then. A call whose arguments never come again pays for neither. Needs the GIL. */
#ifndef FL_CAPTURE_LATER_H
#define FL_CAPTURE_LATER_H

#include "capture/segment.h"

typedef struct fl_later {
  PyObject **inputs, **finals; /* owned; finals by value, NULL elsewhere */
  size_t n_inputs, n_values;
  uint64_t epoch;    /* of the weights that gave `finals` */
  uint64_t elements; /* a hash of some of theirs */
  fl_build_options options;
} fl_later;

/* True if the trace now has what is needed to verify it later; false where it must be verified at once, or memory is short. */
bool fl_later_take(fl_trace *t, PyObject *const *inputs, PyObject *const *finals, const fl_build_options *options);
/* Verifies, and lets go of the copies; guards and weights have been checked. The lock of the callable is held, so that nobody
 * else does this; others answer without the trace meanwhile. Leaves no exception: what cannot be verified is left to
 * PyTorch. t->unfaithful may be set. */
void fl_later_verify(fl_trace *t);
void fl_later_free(fl_later *l); /* takes; NULL allowed */

#endif
