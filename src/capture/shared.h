/* Memory that other processes may write to, or that other tensors look at under another address: mapped as shared (share_memory_(),
 * torch.from_file(shared=True)). Nothing that happens to it there counts a version. Needs the GIL. */
#ifndef FL_CAPTURE_SHARED_H
#define FL_CAPTURE_SHARED_H

#include <Python.h>
#include <stdbool.h>

#include "capture/interop.h"

/* `m` describes the tensor. */
bool fl_tensor_is_shared(PyObject *tensor, const fl_tensor_meta *m);
/* Mappings are looked up again: once in each recording. */
void fl_shared_forget(void);

#endif
