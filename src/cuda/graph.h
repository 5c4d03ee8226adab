/* Queues of the CUDA backend, and its memory: what backend.c fills the table with. */
#ifndef FL_CUDA_GRAPH_H
#define FL_CUDA_GRAPH_H

#include "cuda/device.h"

/* backend.c: the table itself, with which plans can be built without a device, as tests do. */
extern const fl_backend fl_cuda_table;

/* device.c */
void *fl_cuda_allocate(size_t bytes);
void fl_cuda_release(void *block);
FL_MUST_USE fl_status fl_cuda_upload(void *dst, const void *src, size_t bytes);

/* graph.c. A changed program is walked twice: to compile its kernels, all at once, and to capture it; any other is
 * replayed. A queue's works wait for each other, on whichever streams they are put. */
FL_MUST_USE fl_status fl_cuda_queue_create(fl_pool *pool, fl_queue **out);
void fl_cuda_queue_destroy(fl_queue *q);
FL_MUST_USE fl_status fl_cuda_run(fl_queue *q, const fl_work *work);

#endif
