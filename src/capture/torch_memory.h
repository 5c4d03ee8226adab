/* Device memory from PyTorch's caching allocator, so that engines and eager operators share one pool and its accounting. */
#ifndef FL_CAPTURE_TORCH_MEMORY_H
#define FL_CAPTURE_TORCH_MEMORY_H

#include "cuda/device.h"

/* NULL where this PyTorch does not export what is needed: then memory comes from the driver. */
const fl_cuda_memory *fl_torch_memory(void);

#endif
