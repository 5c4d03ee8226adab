/* The programs that a context's queue has recorded, of a backend that records them with their addresses (staged).
 *
 * Program 0 reads and writes stages, blocks that stand for the caller's tensors; those of a call are copied to and from them. It
 * serves any call. The others were recorded with the caller's own addresses, for when these come again, or instead of large
 * stages. What has not been used for a while is forgotten: stages and their program soon, since results can be large and addresses mostly come again;
 * each time that something is forgotten, the next thing is kept for twice as long. Thread rule: as the context's. */
#ifndef FL_RT_PROGRAMS_H
#define FL_RT_PROGRAMS_H

#include "plan/plan.h"

typedef struct fl_program {
  const void **at; /* the caller's inputs, then outputs; NULL: of stages, or free */
  uint64_t used;   /* in this call */
  bool fresh;      /* to be recorded, or recorded anew since weights moved */
} fl_program;

enum { FL_PROGRAMS_SEEN = 8 };

typedef struct fl_programs {
  const fl_plan *plan; /* borrowed; NULL: the backend is not staged */
  int n;               /* inputs and outputs */
  fl_transfer *stages; /* as work wants them; the block is the side that the caller does not give. Bytes are set */
  bool staged;         /* stages are there */
  bool large;          /* one of them would be: addresses need not come again to be recorded */
  fl_program list[FL_QUEUE_VARIANTS];
  uint64_t seen[FL_PROGRAMS_SEEN], calls; /* addresses of the last calls that used the stages, as hashes */
  int recordings;                         /* with addresses */
  uint64_t patience[2];                   /* calls until a program that goes unused is forgotten: of stages, others */
} fl_programs;

FL_MUST_USE fl_status fl_programs_init(fl_programs *p,
                                       const fl_plan *plan); /* of zeros; to be destroyed on failure too */
void fl_programs_destroy(fl_programs *p);

/* Weights moved: each program is to be recorded once more. */
void fl_programs_refresh(fl_programs *p);
/* Are these aligned as stages are? Programs may count on it. */
bool fl_programs_aligned(const fl_programs *p, const void *const *inputs, void *const *outputs);
/* Where stage `i` lies: inputs, then outputs. Of program 0, once it was chosen. */
void *fl_programs_stage(const fl_programs *p, int i);

/* The program for a call, made ready but for recording: sets the work's variant and copies. The plan's tensors are at the stages
 * for variant 0, else at the caller's. FL_OOM. */
FL_MUST_USE fl_status fl_programs_choose(fl_programs *p, fl_queue *q, const void *const *inputs, void *const *outputs,
                                         fl_work *work, fl_program **out);
/* Bytes of the stages that are there. */
size_t fl_programs_bytes(const fl_programs *p);

#endif
