#include <time.h>

#include "base/stages.h"
#include "base/test.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void spend(double ms) {
  for (double begin = now(); now() - begin < ms;) continue;
}

/* A clock's sum lies between what passed inside and outside of its start and stop, however long a thread had to wait. */
typedef struct bounds {
  double before, after_start, before_stop, after;
} bounds;

static bool holds(const bounds *b, double sum) {
  const double rounding = 1e-5; /* of milliseconds since the machine started */
  return sum >= b->before_stop - b->after_start - rounding && sum <= b->after - b->before + rounding;
}

FL_TEST(names) {
  FL_CHECK(!strcmp(fl_stage_name(FL_STAGE_record), "record"));
  FL_CHECK(!strcmp(fl_stage_name(FL_STAGE_backend), "backend"));
  FL_CHECK(!strcmp(fl_stage_name(FL_STAGES), "?"));
}

FL_TEST(without_a_clock) {
  FL_CHECK(fl_stage_enter(FL_STAGE_plan) == FL_STAGE_plan); /* to enter that again does nothing either */
  FL_CHECK(fl_stage_enter(FL_STAGE_run) == FL_STAGE_run);
}

/* All time belongs to one stage, wherever it is entered, and the sum is the whole. */
FL_TEST(each_moment_once) {
  fl_clock c;
  bounds b = {.before = now()};
  fl_clock_start(&c, FL_STAGE_record);
  b.after_start = now();
  spend(2);
  fl_stage before = fl_stage_enter(FL_STAGE_plan);
  FL_CHECK(before == FL_STAGE_record);
  spend(3);
  fl_stage outer = fl_stage_enter(FL_STAGE_tactics);
  FL_CHECK(outer == FL_STAGE_plan);
  spend(1);
  fl_stage_enter(outer);
  spend(1);
  fl_stage_enter(before);
  b.before_stop = now();
  fl_clock_stop(&c);
  b.after = now();
  FL_CHECK(c.times.ms[FL_STAGE_record] >= 2 && c.times.ms[FL_STAGE_plan] >= 4 && c.times.ms[FL_STAGE_tactics] >= 1);
  FL_CHECK(c.times.ms[FL_STAGE_weights] == 0);
  FL_CHECK(holds(&b, fl_stages_total(&c.times)));
}

FL_TEST(a_clock_inside_another) {
  fl_clock outer, inner;
  bounds b = {.before = now()};
  fl_clock_start(&outer, FL_STAGE_run);
  b.after_start = now();
  spend(1);
  fl_clock_start(&inner, FL_STAGE_record);
  spend(4);
  FL_CHECK(fl_stage_enter(FL_STAGE_verify) == FL_STAGE_record);
  fl_clock_stop(&inner);
  FL_CHECK(fl_stage_enter(FL_STAGE_lower) == FL_STAGE_run);
  b.before_stop = now();
  fl_clock_stop(&outer);
  b.after = now();
  FL_CHECK(inner.times.ms[FL_STAGE_record] >= 4);
  FL_CHECK(outer.times.ms[FL_STAGE_run] >= 1);
  FL_CHECK(outer.times.ms[FL_STAGE_record] == 0 && outer.times.ms[FL_STAGE_verify] == 0);
  FL_CHECK(holds(&b, fl_stages_total(&outer.times) + fl_stages_total(&inner.times)));
  FL_CHECK(fl_stage_enter(FL_STAGE_plan) == FL_STAGE_plan);
}

FL_TEST_MAIN(FL_RUN(names) FL_RUN(without_a_clock) FL_RUN(each_moment_once) FL_RUN(a_clock_inside_another))
