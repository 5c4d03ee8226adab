/* A plan: everything a run needs, decided beforehand, as plain data.
 *
 * Steps in order, each a kernel and its operands; operands name a memory space and an offset. Two programs:
 * `init` computes what depends on weights alone (folded batch norms, packed matrices), the constants, and is
 * run again, step by step where weights changed; `run` computes the answer in one arena sized by the interval planner.
 * A plan is immutable once built. */
#ifndef FL_PLAN_PLAN_H
#define FL_PLAN_PLAN_H

#include "base/alloc.h"
#include "cpu/backend.h"
#include "graph/graph.h"

typedef enum fl_space {
  FL_SPACE_NONE,   /* absent operand */
  FL_SPACE_INPUT,  /* index: caller's input */
  FL_SPACE_OUTPUT, /* index: caller's output */
  FL_SPACE_WEIGHT, /* index: weight slot, as the caller holds it */
  FL_SPACE_CONST,  /* offset into the constants: the engine's own, then the blocks */
  FL_SPACE_ARENA   /* offset into the execution context's arena */
} fl_space;

typedef struct fl_operand {
  fl_space space;
  uint32_t index;
  size_t offset; /* bytes, added to the space's base in every space */
  fl_type type;
  int64_t strides[FL_MAX_RANK];
} fl_operand;

typedef enum fl_step_kind {
  FL_STEP_KERNEL, /* kernel->run */
  FL_STEP_PACK,   /* kernel->pack of operand `pack_operand`: in[0], times in[1] where there are two, -> out[0] (raw
                     bytes). init program only */
  FL_STEP_COPY    /* strided copy in[0] -> out[0] */
} fl_step_kind;

typedef struct fl_step {
  fl_step_kind kind;
  int kernel; /* id in the backend's table */
  int pack_operand;
  int64_t pack_pieces;
  int64_t pack_form[2];
  uint32_t operands; /* first of n_in + n_out operands in plan->operands */
  int n_in, n_out;
  const void *params;
  size_t scratch;            /* arena offset; SIZE_MAX = none */
  size_t spare, spare_bytes; /* arena offset of the largest piece that lies idle, for a kernel that wants it */
  const fl_problem *problem; /* for pack, reports and tests */
  uint32_t origin;           /* recorded operator, or UINT32_MAX */
  uint32_t deps; /* init: first of n_deps weight slots in plan->deps: when one of them changes, run it again */
  int n_deps;
  uint32_t needs; /* init: first of n_needs earlier steps in plan->deps, whose results it reads and nobody keeps */
  int n_needs;
  bool sink; /* init: nothing needs its results, but it may find that eager would raise */
} fl_step;

/* What lies among the constants. */
typedef enum fl_const_kind {
  FL_CONST_COMPUTED, /* folded batch norms, other types, whatever else follows from weights alone */
  FL_CONST_LITERAL,
  FL_CONST_JOINED, /* several weights side by side */
  FL_CONST_COPIED, /* weights in another layout */
  FL_CONST_PACKED, /* as a kernel wants them */
  FL_CONST_KINDS
} fl_const_kind;

/* A large constant has a block of its own, which engines can share. Its recipe is all that decides what is in it but for what
 * the weights hold: steps, kernels, types, literals, exact. Blocks with equal recipes, made by one backend of equal contents
 * of the slots in their order, are equal. */
typedef struct fl_const_block {
  size_t offset, bytes; /* in FL_SPACE_CONST, in ascending order */
  fl_const_kind kind;
  const void *recipe;
  size_t recipe_bytes;
  uint32_t *slots;
  uint32_t n_slots;
} fl_const_block;

typedef struct fl_plan {
  fl_arena arena; /* owns everything below */
  const fl_backend *backend;
  FL_VEC(fl_step) init;
  FL_VEC(fl_step) run;
  FL_VEC(fl_operand) operands;
  FL_VEC(uint32_t) deps;
  int n_inputs, n_outputs;
  uint32_t n_weights;  /* slots: 0..n_weights-1 */
  fl_operand *inputs;  /* types and strides that fl_engine_run expects */
  fl_operand *outputs; /* types and strides it gives */
  size_t arena_bytes, const_bytes;
  size_t init_arena_bytes;     /* FL_SPACE_ARENA of the init program, needed only while it runs */
  size_t arena_unshared_bytes; /* what the arena would take without reuse, for reports */
  size_t arena_floor_bytes;    /* the most that is alive in one step: no arena can be smaller */
  size_t const_kind_bytes[FL_CONST_KINDS];
  size_t local_bytes; /* the engine's own constants: literals and small ones, from offset 0; blocks follow */
  size_t local_kind_bytes[FL_CONST_KINDS];
  FL_VEC(fl_const_block) blocks;
  const void *literals; /* copied to the start of the constants */
  size_t literal_bytes;
} fl_plan;

#define FL_BLOCK_BYTES (16u << 10)

#define FL_NO_BLOCK UINT32_MAX

/* The block in which a constant's offset lies; FL_NO_BLOCK: it is one of the engine's own. */
static inline uint32_t fl_plan_block_at(const fl_plan *p, size_t offset) {
  uint32_t lo = 0, hi = (uint32_t)p->blocks.len; /* block `lo` begins at or before it */
  if (!hi || offset < p->blocks.data[0].offset) return FL_NO_BLOCK;
  while (hi - lo > 1) *(p->blocks.data[(lo + hi) / 2].offset <= offset ? &lo : &hi) = (lo + hi) / 2;
  return lo;
}

typedef struct fl_plan_options {
  const fl_backend *backend; /* NULL = fl_backend_cpu */
  int threads;
  double tactic_budget_ms;     /* time to spend on measuring kernels against each other; 0 = cost model alone */
  fl_pool *pool;               /* what tactics are measured with; NULL = one thread */
  bool tf32_matmul, tf32_conv; /* fl_problem.tf32 of matrix products, and of convolutions */
  size_t block_bytes;          /* the least that has a block of its own; 0: FL_BLOCK_BYTES */
  const int64_t (*out_strides)[FL_MAX_RANK]; /* of each graph output: dense, in any order. NULL = contiguous */
} fl_plan_options;

/* Plans an optimized graph. FL_UNSUPPORTED with node and reason if no kernel serves one. Borrows the graph.
 * Tactics are measured on synthetic data: no weight is read. */
FL_MUST_USE fl_status fl_plan_build(const fl_graph *g, const fl_plan_options *options, fl_plan **out);
/* NULL if the builder can serve node `n`, else why not, in static storage. For fl_lower_options.supports. `ctx` is the
 * fl_backend, NULL for the CPU. */
const char *fl_plan_supports(void *ctx, const fl_graph *g, const fl_node *n);
void fl_plan_destroy(fl_plan *p); /* takes; NULL allowed */

/* Text of a plan for tests and reports: one line a step with kernel, operands and bytes. New; fl_free. */
FL_MUST_USE fl_status fl_plan_print(const fl_plan *p, char **out_text);

/* The interval planner: offsets for blocks that live from step `first` to step `last` (inclusive), so that blocks
 * alive together never overlap. Returns the total in bytes; offsets are 64-byte aligned. Pure.
 * Greedy by size, best fit (Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference"). */
typedef struct fl_interval {
  int first, last;
  size_t bytes;
  size_t offset; /* out */
} fl_interval;
FL_MUST_USE fl_status fl_memplan(fl_interval *blocks, int n, size_t *out_total);
/* The most bytes that are alive in one step: a lower bound of any plan's total. */
size_t fl_memplan_floor(const fl_interval *blocks, int n);
/* The largest piece of [0, total) that no block alive in `step` covers, from a multiple of 256. Blocks are placed. */
typedef struct fl_gap {
  size_t offset, bytes;
} fl_gap;
fl_gap fl_memplan_gap(const fl_interval *blocks, int n, size_t total, int step);

#endif
