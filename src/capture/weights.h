/* Live weights: tensors that existed before the call.
 *
 * Held strongly; before each replay every weight's storage, address and version counter are compared with those the engines
 * have seen, so that an in-place change, load_state_dict or `.data =` takes effect on the next call. */
#ifndef FL_CAPTURE_WEIGHTS_H
#define FL_CAPTURE_WEIGHTS_H

#include <Python.h>

#include "base/alloc.h"
#include "capture/bodies.h"
#include "capture/impl.h"
#include "capture/interop.h"
#include "capture/stamps.h"
#include "capture/watch.h"

/* A few elements: what changes a weight without counting a version (`p.data.mul_(2)`, a merged adapter) mostly changes all of
 * them. */
enum { FL_SAMPLE_PLACES = 3 };
typedef struct fl_sample {
  const char
      *at[FL_SAMPLE_PLACES]; /* pairs of words; NULL: `word[0]` is a hash of what is too small or scattered for them */
  uint64_t word[2 * FL_SAMPLE_PLACES];
  bool taken;
} fl_sample;

typedef struct fl_weight {
  PyObject *tensor;
  fl_tensor_meta meta; /* at recording; meta.data is the address now in use */
  int64_t version;
  bool own;         /* made by the recording, known to nobody else */
  bool unversioned; /* an inference tensor: small ones are compared by contents, others read anew in each call */
  bool shared;      /* in memory that others may write to unseen (shared.h): likewise */
  fl_impl_snapshot seen;
  uint64_t storage; /* held, so that another at the same address is told apart; 0 = cannot be told */
  fl_sample sample;
  void *copy;     /* its contents, where the version counter does not tell of changes; or NULL */
  void *frozen;   /* its contents at recording, on which the trace depends; or NULL */
  int witness;    /* which of the witnesses changes with it, or -1 */
  uint64_t epoch; /* grows with each change seen; engines remember the epoch they have */
  uint64_t
      stamp; /* names what it holds (stamps.h); 0: none, or none yet. While there is one, all above is as it was then */
} fl_weight;

/* A tensor that is written whenever another is, and counts its versions. */
typedef struct fl_witness {
  PyObject *tensor;
  int64_t version;
  fl_impl_snapshot seen;
  uint64_t storage; /* as of a weight */
} fl_witness;

typedef struct fl_weights {
  FL_VEC(fl_weight) list;
  FL_VEC(fl_witness) witnesses;
  uint64_t epoch; /* of the newest change */
  /* stamps.h */
  fl_family *family; /* or NULL */
  struct fl_weights *next_kin;
  bool unstamped; /* some may have no stamp yet */
  bool taken;     /* some stamp came from another member */
  /* When `watched`, the memory that shows that nothing has changed, in the order in which it may be read: the tensors' bodies;
   * elements of watched contents. */
  bool watched;
  fl_bodies bodies;
  fl_watch_pairs elements;
  FL_VEC(uint32_t) loose; /* weights that are looked at each time */
} fl_weights;

/* Grows whenever a weight of any trace is new or lies elsewhere. */
extern uint64_t fl_weights_moves;
/* NULL, or why this tensor cannot be a weight (static storage). Holds `tensor`. `own`: nobody else has it, so that it need not
 * be able to tell of changes. */
const char *fl_weights_add(fl_weights *w, PyObject *tensor, bool own, uint32_t *out_index);
/* Its elements may differ in each call: nothing may be computed of them beforehand. */
static inline bool fl_weight_is_read(const fl_weight *w) { return (w->unversioned || w->shared) && !w->copy; }
/* Its memory holds what the copy does. */
bool fl_weight_holds_copy(const fl_weight *w);
/* Compares this weight's contents on every check: batch norm in training changes its running statistics without
 * counting a version. False when out of memory. */
bool fl_weights_watch(fl_weights *w, uint32_t index);
/* `tensor` counts a version whenever a module changes the weight's contents: from now on the contents are compared when
 * it has, and a few of them on each check, for who changes them by himself. False when out of memory. */
bool fl_weights_witness(fl_weights *w, uint32_t index, PyObject *tensor);
/* Lets go of a weight whose contents are not watched; the last one takes its index. Returns the index that was the last. */
uint32_t fl_weights_remove(fl_weights *w, uint32_t index);
/* The trace depends on this CPU weight's contents. False when out of memory. */
bool fl_weights_freeze(fl_weights *w, uint32_t index);
/* A tensor of the same metadata that is to be a weight in place of another. Taking it may run other threads; the exchange
 * does not, and leaves what was there before in it. */
typedef struct fl_replacement {
  PyObject *tensor; /* owned */
  void *data;
  int64_t version;
  fl_impl_snapshot seen;
  uint64_t storage;
} fl_replacement;
void fl_replacement_take(PyObject *tensor, fl_replacement *out);
void fl_replacement_free(fl_replacement *r); /* zeroed: nothing */
void fl_weights_replace(fl_weights *w, uint32_t index, fl_replacement *by);
void fl_weights_replace_witness(fl_weights *w, uint32_t index, fl_replacement *by);
/* Looks at all of them. False when one no longer has the recorded dtype, sizes, strides or device, or, frozen, contents. */
bool fl_weights_check(fl_weights *w);
void fl_weights_touch(fl_weights *w); /* as if all had changed */
void fl_weights_release(fl_weights *w);

#endif
