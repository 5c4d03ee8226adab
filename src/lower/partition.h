/* Which operators run together, and in what order: pure, over an abstract graph.
 *
 * Parts alternate between engine and eager. Operators that do not depend on an eager one join one engine part wherever
 * they were recorded, so that each side is entered as seldom as the dependencies allow. Free operators (views, values
 * of weights alone) belong to no side: each part that reads one makes it again. */
#ifndef FL_LOWER_PARTITION_H
#define FL_LOWER_PARTITION_H

#include "base/alloc.h"

typedef enum fl_pnode_kind { FL_PNODE_DEAD, FL_PNODE_EAGER, FL_PNODE_ENGINE } fl_pnode_kind;

typedef struct fl_pnode {
  fl_pnode_kind kind;
  bool free;             /* ENGINE, and made at no cost on either side */
  bool output;           /* a result leaves the segment */
  bool ordered;          /* EAGER, with effects: these keep their order among each other */
  bool heavy;            /* worth a switch by itself */
  const uint32_t *deps;  /* earlier nodes whose results it reads */
  const uint32_t *after; /* nodes of lower number that must have run, for what they do to memory */
  int n_deps, n_after;
} fl_pnode;

typedef struct fl_ppart {
  bool engine;
  uint32_t *nodes; /* ascending; free ones may be in several parts */
  int n_nodes;
} fl_ppart;

typedef struct fl_partition {
  fl_ppart *parts; /* in an order in which everything read was made before */
  int n_parts;
} fl_partition;

#define FL_MIN_ENGINE_NODES 4

/* An engine part between two eager ones that has fewer than `min_engine_nodes` operators that are not free stays
 * eager; 0 means FL_MIN_ENGINE_NODES, and then parts with a heavy operator are left. Results in the arena. */
FL_MUST_USE fl_status fl_partition_make(const fl_pnode *nodes, int n, int min_engine_nodes, fl_arena *arena,
                                        fl_partition *out);

#endif
