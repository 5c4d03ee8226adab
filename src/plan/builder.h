/* What the files of the plan builder share. A plan is drafted with operands in `stores`, blocks of memory without an
 * address yet; at the end stores are given their places (finish.c) and the draft becomes the plan. */
#ifndef FL_PLAN_BUILDER_H
#define FL_PLAN_BUILDER_H

#include "plan/plan.h"

#define FL_NO_STORE UINT32_MAX

typedef enum fl_store_kind {
  FL_STORE_INPUT,
  FL_STORE_OUTPUT,
  FL_STORE_WEIGHT,
  FL_STORE_LITERAL,
  FL_STORE_TEMP /* made by a step */
} fl_store_kind;

typedef struct fl_store {
  fl_store_kind kind;
  uint32_t index; /* input, output, weight slot, or value id of a literal */
  size_t bytes;
  bool init;             /* made by the init program */
  bool kept;             /* init: the run program reads it, so it lies among the constants */
  bool shared;           /* a layout copy that later steps may read again */
  fl_const_kind kept_as; /* for reports, where it is kept */
  int first, last;       /* steps of its own program that touch it; first -1 = none yet */
  int64_t uses;          /* reads still to come of all values that lie in it */
  size_t offset;         /* in the end: in its space */
} fl_store;

/* Where a value lies. */
typedef struct fl_loc {
  uint32_t store; /* FL_NO_STORE = nowhere */
  size_t offset;  /* bytes */
  int64_t strides[FL_MAX_RANK];
} fl_loc;

typedef struct fl_draft_operand {
  fl_loc loc;
  fl_type type;
} fl_draft_operand;

typedef struct fl_draft_step {
  fl_step step; /* `operands` counts in builder.operands */
  size_t scratch_bytes;
  bool wants_spare;
} fl_draft_step;

enum { FL_INIT, FL_RUN, FL_PROGRAMS };

typedef struct fl_copy_entry {
  fl_vid value;
  fl_layout layout;
  uint32_t store;
} fl_copy_entry;

/* A part of a concatenation that was copied to its place there. */
typedef struct fl_part_entry {
  fl_vid value;
  fl_loc loc;
} fl_part_entry;

typedef struct fl_pack_entry {
  const fl_problem *problem;
  int kernel, operand;
  fl_loc source, scale; /* scale: nowhere when there is none */
  uint32_t store;
} fl_pack_entry;

/* The kernel that serves a node. */
typedef struct fl_choice {
  const fl_problem *problem;
  int kernel;
  fl_kernel_plan plan;
} fl_choice;

typedef struct fl_tactic_entry {
  const fl_problem *problem;
  int kernel;
} fl_tactic_entry;

typedef struct fl_trial fl_trial; /* memory that tactics are measured in */

typedef struct fl_builder {
  const fl_graph *g;
  const fl_plan_options *options;
  fl_plan *plan;
  fl_arena arena; /* freed with the builder */
  fl_loc *locs;   /* by value id */
  fl_nid *
      late; /* by value id: the node of the init program that makes it unless its reader does (pack.c), or FL_NO_NODE */
  fl_loc *wholes; /* of concatenations, by the id of the result; they are placed before the nodes are reached */
  FL_VEC(fl_store) stores;
  FL_VEC(fl_draft_operand) operands;
  FL_VEC(fl_draft_step) steps[FL_PROGRAMS];
  FL_VEC(fl_copy_entry) copies;
  FL_VEC(fl_pack_entry) packs;
  FL_VEC(fl_part_entry) parts;
  FL_VEC(fl_tactic_entry) tactics;
  fl_trial *trial;
  double tactic_left_us;
} fl_builder;

/* build.c */
void fl_place(fl_builder *b, fl_vid v, const fl_loc *loc);
FL_MUST_USE fl_status fl_draft_kernel(fl_builder *b, const fl_node *n);

/* pack.c: a constant operand as its kernel wants it, made once for all steps that need the same. */
FL_MUST_USE fl_status fl_draft_pack(fl_builder *b, const fl_node *n, const fl_choice *c, int operand, fl_loc *out);
/* Weights times a scale for each result channel, which only one product or convolution reads: packing can do that on
 * the way. Such a node is put off until its reader's kernel is known: then it is packed so, or made now after all. */
bool fl_may_scale_late(const fl_builder *b, const fl_node *n);
void fl_scale_late(fl_builder *b, const fl_node *n);
bool fl_is_scaled_late(const fl_builder *b, fl_vid v);
FL_MUST_USE fl_status fl_scale_now(fl_builder *b, fl_vid v);

/* store.c */
FL_MUST_USE fl_status fl_store_new(fl_builder *b, fl_store_kind kind, uint32_t index, size_t bytes, uint32_t *out);
/* Appends a step with its operands (copied; inputs first) and notes what it touches. */
FL_MUST_USE fl_status fl_draft_add(fl_builder *b, int program, const fl_draft_step *step,
                                   const fl_draft_operand *operands);
FL_MUST_USE fl_status fl_draft_copy(fl_builder *b, int program, const fl_type *type, const fl_loc *from,
                                    const fl_loc *to, uint32_t origin);
bool fl_layout_holds(fl_layout layout, const fl_type *type, const int64_t *strides);
/* A location of value `v` in this layout: its own, or that of a copy, made once. */
FL_MUST_USE fl_status fl_loc_in_layout(fl_builder *b, fl_vid v, fl_layout layout, uint32_t origin, fl_loc *out);

/* cat.c. Where result v of a kernel, with its axes in the order of these strides, lies as a part of a concatenation to come: gives the place when
 * there is one whose axes have the same order. */
FL_MUST_USE fl_status fl_cat_part(fl_builder *b, fl_vid v, const int64_t *strides, fl_loc *out, bool *out_found);
FL_MUST_USE fl_status fl_draft_cat(fl_builder *b, const fl_node *n);
FL_MUST_USE fl_status fl_want_strides(const fl_builder *b, size_t output, int64_t *strides);

/* tactic.c: which of the n candidates serves the problem; `problem` must live as long as the builder. What runs but
 * `once`, in the init program, is not worth measuring. */
FL_MUST_USE fl_status fl_tactic_choose(fl_builder *b, const fl_problem *problem, bool once, const int *ids,
                                       const fl_kernel_plan *plans, int n, int *out_chosen);
void fl_trial_destroy(fl_trial *t); /* takes; NULL allowed */
bool fl_problem_equal(const fl_problem *a, const fl_problem *b);

/* finish.c: places stores and fills the plan. */
FL_MUST_USE fl_status fl_builder_finish(fl_builder *b);
/* A result that only the init program reads, in the arena. */
static inline bool fl_is_passing(const fl_store *s) {
  return s->kind == FL_STORE_TEMP && s->init && !s->kept && s->first >= 0;
}

/* recipe.c: of stores that are blocks, in the order of plan->blocks. */
FL_MUST_USE fl_status fl_draft_recipes(fl_builder *b, const uint32_t *stores);
/* What steps of the init program need of each other; places[i] is where the drafted step i stands in plan->init. */
FL_MUST_USE fl_status fl_draft_needs(fl_builder *b, const uint32_t *places);

#endif
