/* The callable that framelift.compile gives: guards and replay, else recording, else the original. */
#ifndef FL_CAPTURE_COMPILED_H
#define FL_CAPTURE_COMPILED_H

#include "capture/apart.h"
#include "capture/around.h"
#include "capture/rec.h"
#include "capture/segment.h"

/* Traces of one callable: so many in any case, more as long as engines of all of them hold no more memory than this beside what
 * the newest makes of the weights. The one used longest ago makes room. */
#define FL_MIN_TRACES          8
#define FL_MAX_TRACES          64
#define FL_TRACES_BYTES        ((size_t)512 << 20)
#define FL_MAX_STATES          3  /* traces that change the same thing they rely on */
#define FL_MAX_OPAQUE          16 /* callables left to CPython because something in them could not be recorded */
#define FL_FREE_RECORDINGS     64 /* of one callable; one more for so many calls: */
#define FL_CALLS_PER_RECORDING 16

typedef struct fl_give_up {
  char *reason, *detail, *file;
  int line;
  uint64_t count;
  fl_trace *holder; /* owns `args`: calls that match run natively at once */
} fl_give_up;

/* How often a guard failed, by what it says of itself. */
typedef struct fl_miss {
  const char *fixed; /* the text where that is static, or NULL */
  char *text;
  uint64_t count;
} fl_miss;

typedef struct fl_compiled {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject *target, *options, *weaklist;
  PyObject *segment_backend; /* asked what to do with each segment (fx.h), or NULL */
  bool backend_eager, fallback_error, verify;
  fl_dtype precision; /* fl_build_options */
  int threads;
  double tactic_ms;          /* negative: as long as it takes to record, in proportion */
  fl_pool *pool;             /* shared by all callables of as many threads */
  FL_VEC(fl_trace *) traces; /* most recently used first */
  fl_extents extents;        /* of their weights */
  fl_family *family;         /* their weights, and those of traces that are being made (stamps.h) */
  FL_VEC(fl_give_up) give_ups;
  fl_opaque_set opaque;
  fl_arounds arounds; /* autocast around calls */
  FL_VEC(fl_miss) misses;
  uint64_t calls, replayed, native;
  uint64_t declined;       /* of the native ones: that might have been recorded */
  int recorded;            /* recordings that became traces */
  int recordings;          /* all */
  bool records;            /* objects among the arguments are matched by their attributes (argspec.h) */
  PyThread_type_lock lock; /* held while recording */
  char native_reason[240]; /* why the last native call was native */
  bool warned;
} fl_compiled;

extern PyTypeObject fl_compiled_type;

PyObject *fl_compiled_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames);
PyObject *fl_compiled_new(PyObject *target, PyObject *options);
void fl_compiled_reset(fl_compiled *c);
void fl_compiled_refresh(fl_compiled *c);
/* What a compiled callable stands for; NULL where `o` is none. Borrowed. */
PyObject *fl_compiled_target(PyObject *o);
/* A recording that calls this compiled callable may call its target instead: no option asks for more than that. */
bool fl_compiled_is_as_its_target(PyObject *o);
bool fl_compiled_is_target_attr(PyObject *name); /* not an attribute of its own */
/* Finds the trace that fits these arguments now, guards checked. Borrowed; `inputs` has room for FL_MAX_INPUTS. NULL
 * when none does (no exception), or with one. */
fl_trace *fl_compiled_find(fl_compiled *c, PyObject *const *args, size_t nargs, PyObject *kwnames, PyObject **inputs);

/* The engines of a trace whose guards and weights were just checked may run: verified, where that was put off. False
 * while another call holds the lock. */
bool fl_compiled_make_ready(fl_compiled *c, fl_trace *t);

/* Lets go of the traces used longest ago, `stale` before them, where there are too many beside `room` more. Releasing may run
 * Python code, and other threads. */
void fl_compiled_trim(fl_compiled *c, size_t room, const fl_trace *stale);

/* A trace of its own that is unfaithful answers no call any more, and the reason is noted. Its caller holds it too. */
void fl_compiled_refuse(fl_compiled *c, fl_trace *t);

/* report.c */
PyObject *fl_report(fl_compiled *c);
/* [[segment as data (fx.h)] for each trace] */
PyObject *fl_report_segments(fl_compiled *c);
PyObject *fl_report_plans(fl_compiled *c);
PyObject *fl_report_graphs(fl_compiled *c);
PyObject *fl_report_profile(fl_compiled *c, PyObject *args, PyObject *kwargs);
PyObject *fl_report_overhead(fl_compiled *c, PyObject *args, PyObject *kwargs, long n);

#endif
