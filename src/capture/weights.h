/* Live weights: tensors that existed before the call.
 *
 * Held strongly; before each replay every weight's address and version counter are compared with those the engines
 * have seen, so that an in-place change, load_state_dict or `.data =` takes effect on the next call. */
#ifndef FL_CAPTURE_WEIGHTS_H
#define FL_CAPTURE_WEIGHTS_H

#include <Python.h>

#include "base/alloc.h"
#include "capture/impl.h"
#include "capture/interop.h"

typedef struct fl_weight {
  PyObject *tensor;
  fl_tensor_meta meta; /* at recording; meta.data is the address now in use */
  int64_t version;
  bool own; /* made by the recording, known to nobody else */
  fl_impl_snapshot seen;
  void *copy;     /* its contents, where the version counter does not tell of changes; or NULL */
  uint64_t epoch; /* grows with each change seen; engines remember the epoch they have */
} fl_weight;

typedef struct fl_weights {
  FL_VEC(fl_weight) list;
  uint64_t epoch; /* of the newest change */
} fl_weights;

/* NULL, or why this tensor cannot be a weight (static storage). Holds `tensor`. `own`: nobody else has it, so that it need not
 * be able to tell of changes. */
const char *fl_weights_add(fl_weights *w, PyObject *tensor, bool own, uint32_t *out_index);
/* Compares this weight's contents on every check: batch norm in training changes its running statistics without
 * counting a version. False when out of memory. */
bool fl_weights_watch(fl_weights *w, uint32_t index);
/* Looks at all of them. False when one no longer has the recorded dtype, sizes, strides or device. */
bool fl_weights_check(fl_weights *w);
void fl_weights_touch(fl_weights *w); /* as if all had changed */
void fl_weights_release(fl_weights *w);

#endif
