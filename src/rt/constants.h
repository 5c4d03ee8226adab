/* Constants that engines share.
 *
 * What an engine makes of weights depends on a recipe (plan.h) and on what the weights hold. A *stamp* names contents: whoever
 * gives stamps gives the same one twice only for tensors that hold the same, and 0 to what may not be shared. Blocks of equal
 * recipes and stamps are one block, in a table of the process, for as long as somebody holds it. A block that is listed there
 * is never written to.
 *
 * Blocks that are made together lie in one piece of memory, a slab: large pages serve them, and units of a device's allocator
 * are filled. It goes with the last of them.
 *
 * Thread rule: any thread. */
#ifndef FL_RT_CONSTANTS_H
#define FL_RT_CONSTANTS_H

#include "plan/plan.h"

typedef struct fl_constant fl_constant;

typedef struct fl_constant_key { /* borrowed */
  const fl_backend *backend;
  const void *recipe;
  size_t recipe_bytes;
  const uint64_t *stamps; /* none is 0 */
  uint32_t n_stamps;
} fl_constant_key;

/* The listed block of this key, or NULL. New reference. */
fl_constant *fl_constant_find(const fl_constant_key *key);
/* New blocks, not listed, of these sizes: multiples of 64. Together: in one slab. False when out of memory. */
FL_MUST_USE bool fl_constants_allocate(const fl_backend *b, const size_t *bytes, uint32_t n, bool together,
                                       fl_constant **out);
/* Lists a block whose contents are made. Where an equal one is listed already, takes the reference and gives one to that.
 * Out of memory it stays unlisted. */
fl_constant *fl_constant_publish(fl_constant *c, const fl_constant_key *key);
/* True if the caller's is the only reference: the block is listed no more, and may be written to. */
bool fl_constant_withdraw(fl_constant *c);
fl_constant *fl_constant_retain(fl_constant *c);
void fl_constant_release(fl_constant *c); /* takes; NULL allowed */
char *fl_constant_data(const fl_constant *c);

/* For reports: false if it was counted in this one already. Reports begin with a number of their own. */
uint64_t fl_constants_report(void);
bool fl_constant_count(fl_constant *c, uint64_t report);
/* How many are listed, and their bytes. */
void fl_constants_listed(size_t *out_blocks, size_t *out_bytes);

/* What the contexts of one engine are patched with: a block for each of plan->blocks. Immutable once contexts see it. */
typedef struct fl_constant_set {
  _Atomic int refs;
  uint32_t n;
  fl_constant *blocks[];
} fl_constant_set;

fl_constant_set *fl_constant_set_new(uint32_t n); /* of NULLs; NULL when out of memory */
fl_constant_set *fl_constant_set_retain(fl_constant_set *s);
void fl_constant_set_release(fl_constant_set *s); /* takes, and lets go of the blocks; NULL allowed */

#endif
