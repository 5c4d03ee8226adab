/* Decisions that wait until their segment has been computed (rec_decide.c), asked before it. Where one came out otherwise
 * lately, all the segment was computed in vain; few operators on the call's arguments often tell. What they say is a
 * forecast: the decision is compared in its place all the same. */
#ifndef FL_CAPTURE_ASK_FIRST_H
#define FL_CAPTURE_ASK_FIRST_H

#include "capture/trace.h"

/* A decision of this trace has come out otherwise: its next runs ask first. Leaves an exception that is set as it is. */
void fl_ask_first_begin(fl_trace *t);
/* True where a decision will come out otherwise: nothing has been done. `values`: as a run begins. No exception. */
bool fl_ask_first(fl_trace *t, PyObject **values);

#endif
