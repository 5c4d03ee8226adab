#include "base/stages.h"

#include <stddef.h>
#include <time.h>

static _Thread_local fl_clock *running;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

const char *fl_stage_name(fl_stage stage) {
  static const char *const names[FL_STAGES] = {
#define FL_STAGE(name, what) #name,
#include "base/stages.def"
#undef FL_STAGE
  };
  return stage < FL_STAGES ? names[stage] : "?";
}

/* What has passed belongs to the stage until now. */
static void settle(fl_clock *c) {
  double now = now_ms();
  c->times.ms[c->stage] += now - c->since;
  c->since = now;
}

void fl_clock_start(fl_clock *c, fl_stage stage) {
  if (running) settle(running);
  *c = (fl_clock){.stage = stage, .since = now_ms(), .outer = running};
  running = c;
}

void fl_clock_stop(fl_clock *c) {
  settle(c);
  running = c->outer;
  if (running) running->since = c->since;
}

fl_stage fl_stage_enter(fl_stage stage) {
  if (!running) return stage;
  fl_stage before = running->stage;
  if (before != stage) settle(running);
  running->stage = stage;
  return before;
}

double fl_stages_total(const fl_stage_times *t) {
  double ms = 0;
  for (int i = 0; i < FL_STAGES; i++) ms += t->ms[i];
  return ms;
}
