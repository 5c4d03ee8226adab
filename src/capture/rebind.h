/* Weights that were replaced by others like them: `m.weight = nn.Parameter(...)`, load_state_dict(assign=True), another adapter.
 *
 * A weight is what lies at the places where the program found it. Where another tensor lies there now, of the same type,
 * dtype, sizes, strides, device and requires_grad, the program would do with it what it did with the old one: the trace
 * takes the new one in its place, and engines pack it before they run. Needs the GIL. */
#ifndef FL_CAPTURE_REBIND_H
#define FL_CAPTURE_REBIND_H

#include "capture/trace.h"

/* After a guard has failed. True if that was for replaced weights alone, and they are the trace's now: its guards are to be
 * checked again. False changes nothing. `inputs` are those of the call. Runs no Python code but what letting go of an old
 * weight runs. */
bool fl_trace_rebind(fl_trace *t, PyObject *const *inputs);

/* After the guards have held: what cached functions gave anew, and the call gives away, takes the place of what they gave
 * before. False where that is not possible, and nothing has changed. */
bool fl_trace_take_answers(fl_trace *t, PyObject *const *inputs);

/* Whether a tensor may take another's place, as far as one can tell without its elements. No exception. */
bool fl_rebind_is_alike(PyObject *old, PyObject *now);

#endif
