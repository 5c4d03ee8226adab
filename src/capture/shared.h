/* Memory that is written to without an operator and without a version. Needs the GIL. */
#ifndef FL_CAPTURE_SHARED_H
#define FL_CAPTURE_SHARED_H

#include <Python.h>
#include <stdbool.h>

#include "capture/interop.h"

/* Other processes may write to it, or other tensors look at it under another address: it is mapped as shared (share_memory_(),
 * torch.from_file(shared=True)). `m` describes the tensor. */
bool fl_tensor_is_shared(PyObject *tensor, const fl_tensor_meta *m);
/* Mappings are looked up again: once in each recording. */
void fl_shared_forget(void);

/* A hash of a few elements, with which `hash` goes on; of a tensor that is not in the CPU's memory, `hash`. */
uint64_t fl_memory_hash(const fl_tensor_meta *m, uint64_t hash);

#endif
