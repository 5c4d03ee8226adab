/* Stamps: numbers that name what weights hold, by which the engines of a callable's traces know that they would make the same
 * of them (rt/constants.h).
 *
 * Two traces that hold the same tensor, with the same storage, address and version, and the same sample of elements, or, where
 * versions do not tell, the same contents, give it the same stamp. A stamp is forgotten the moment that a change is seen, and given anew when an engine needs
 * it; what cannot tell of changes has none. All traces of a callable, with their branches, are a family: `refresh` forgets the
 * stamps of all at once. Needs the GIL; runs no Python. */
#ifndef FL_CAPTURE_STAMPS_H
#define FL_CAPTURE_STAMPS_H

#include <stdbool.h>
#include <stdint.h>

struct fl_weights;

typedef struct fl_family {
  int refs;
  struct fl_weights *first;
} fl_family;

fl_family *fl_family_new(void); /* NULL when out of memory */
fl_family *fl_family_retain(fl_family *f);
void fl_family_release(fl_family *f); /* takes; NULL allowed */
/* Weights that join hold the family until they leave, which they may do twice. */
void fl_family_join(fl_family *f, struct fl_weights *w);
void fl_family_leave(struct fl_weights *w);
/* As if all weights of all members had changed; `but` (or NULL) excepted. */
void fl_family_touch(fl_family *f, const struct fl_weights *but);

/* Gives stamps to those that have none. */
void fl_weights_stamp(struct fl_weights *w);

/* Stamps of nobody else in place of those that members share, all as if changed: engines then make everything for themselves.
 * False where none was taken from another member, or when out of memory. `back` puts the old ones in their place again. */
typedef struct fl_unshared {
  uint64_t *stamps, first;
} fl_unshared;
bool fl_weights_unshare(struct fl_weights *w, fl_unshared *out);
void fl_weights_share_again(struct fl_weights *w, fl_unshared *back); /* takes */
void fl_unshared_free(fl_unshared *u);

#endif
