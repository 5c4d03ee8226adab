/* Where the time of a first call goes.
 *
 * A thread that builds something has a clock; all wall time between fl_clock_start and fl_clock_stop belongs to exactly
 * one stage, so that stages add up to the whole. Whoever does the work of a stage says so wherever it is, without
 * being given the clock: on a thread that has none, that costs one load and does nothing. Threads of a pool that help
 * are not counted: it is the caller's time that a user waits for. */
#ifndef FL_BASE_STAGES_H
#define FL_BASE_STAGES_H

typedef enum fl_stage {
#define FL_STAGE(name, what) FL_STAGE_##name,
#include "base/stages.def"
#undef FL_STAGE
  FL_STAGES
} fl_stage;

typedef struct fl_stage_times {
  double ms[FL_STAGES];
} fl_stage_times;

typedef struct fl_clock {
  fl_stage_times times;
  fl_stage stage;         /* now */
  double since;           /* when it began */
  struct fl_clock *outer; /* of the same thread; does not run meanwhile */
} fl_clock;

const char *fl_stage_name(fl_stage stage);

void fl_clock_start(fl_clock *c, fl_stage stage); /* `c` must live, and this thread be the same, until it is stopped */
void fl_clock_stop(fl_clock *c);
/* From now on this thread's time belongs to `stage`. Returns the stage before, to go back to. */
fl_stage fl_stage_enter(fl_stage stage);
double fl_stages_total(const fl_stage_times *t);

#endif
