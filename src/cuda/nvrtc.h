/* Generated kernels: compiled by NVRTC, kept in a table by their source and on disk by its hash.
 *
 * Sources define one function, `k`; one that begins with FOLLOW (prelude.cu) is launched early. The disk cache lies in $FRAMELIFT_CACHE_DIR, else $XDG_CACHE_HOME/framelift, else
 * ~/.cache/framelift; where it cannot be written, kernels are compiled in each process. A file's name holds the hash of source,
 * architecture and compiler version; a file that the driver does not load is compiled anew. */
#ifndef FL_CUDA_NVRTC_H
#define FL_CUDA_NVRTC_H

#include "cuda/device.h"
#include "cuda/text.h"

enum { FL_CUDA_MAX_PARAMS = 64 };
/* Launches the kernel of this source (takes the text) with these pointers, at most FL_CUDA_MAX_PARAMS, as its parameters (an
 * i64 may stand for one); while the queue is preparing,
 * only notes that it will be needed, and waits until it is compiled where the queue is awaiting. Failures are kept in the queue. Empty grids do nothing. */
void fl_cuda_launch(const fl_run_args *a, fl_text *source, int64_t grid, int block, size_t shared_bytes,
                    void **pointers, int n_pointers);
/* Waits until what preparing noted is compiled, which threads have been at since it was noted. */
FL_MUST_USE fl_status fl_cuda_compile_pending(fl_cuda_queue *q);

/* What preparing noted, for tests: calls `visit` for each source, without the prelude, and forgets it. */
void fl_cuda_visit_pending(fl_cuda_queue *q, void (*visit)(void *arg, const char *source), void *arg);

typedef struct fl_cuda_stats {
  int compiled, from_disk, functions;
  double ms; /* that queues waited for compilation */
} fl_cuda_stats;
fl_cuda_stats fl_cuda_compile_stats(void);

#endif
