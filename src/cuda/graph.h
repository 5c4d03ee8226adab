/* Queues of the CUDA backend, and its memory: what backend.c fills the table with. */
#ifndef FL_CUDA_GRAPH_H
#define FL_CUDA_GRAPH_H

#include "cuda/device.h"

/* backend.c: the table of no device, with which plans can be built but not run, as tests do. */
extern const fl_backend fl_cuda_table;

/* device.c */
void *fl_cuda_allocate(const fl_backend *b, size_t bytes);
void fl_cuda_release(const fl_backend *b, void *block);
FL_MUST_USE fl_status fl_cuda_upload(const fl_backend *b, void *dst, const void *src, size_t bytes);

/* graph.c. A changed program is walked twice: to compile its kernels, all at once, and to capture it; any other is
 * replayed. A queue's works wait for each other, on whichever streams they are put. */
FL_MUST_USE fl_status fl_cuda_queue_create(const fl_backend *b, fl_pool *pool, fl_queue **out);
void fl_cuda_queue_destroy(fl_queue *q);
void fl_cuda_settle(fl_queue *q);
void fl_cuda_prepare(fl_queue *q,
                     const fl_work *work); /* notes what the first run will compile, which begins at once */
FL_MUST_USE fl_status fl_cuda_run(fl_queue *q, const fl_work *work);
void fl_cuda_forget(fl_queue *q, int variant);
void fl_cuda_queue_memory(const fl_queue *q, fl_queue_memory *out);
FL_MUST_USE fl_status fl_cuda_profile(fl_queue *q, const fl_work *work, int n, double *us);
void fl_cuda_mark(fl_queue *q, int i);

/* Memory of `bytes` for a step that wants spare memory: what lies idle of the arena if that is enough, else the queue's own,
 * which all its steps share. Preparing, it only notes the need and gives NULL; recording, it gives NULL when out of memory,
 * which it notes as the queue's failure. */
void *fl_cuda_workspace(const fl_run_args *a, size_t bytes);

#endif
