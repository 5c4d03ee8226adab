/* The device: context, memory, and queues whose programs are captured into CUDA graphs and replayed.
 *
 * Device 0's primary context, the one PyTorch uses. Thread rule: everything here may be called from any thread; a queue
 * belongs to one run at a time. */
#ifndef FL_CUDA_DEVICE_H
#define FL_CUDA_DEVICE_H

#include "cpu/backend.h"
#include "cuda/load.h"

typedef struct fl_cuda_device {
  const fl_cuda_api *api;
  fl_cu_context context;
  int arch; /* 90 = sm_90 */
  int multiprocessors;
  fl_lt_handle lt;
} fl_cuda_device;

typedef struct fl_cuda_pending fl_cuda_pending; /* kernels to be compiled together (nvrtc.h) */

typedef struct fl_cuda_queue {
  fl_queue base;
  const fl_cuda_device *device;
  fl_cu_stream stream; /* what is captured */
  fl_cu_event done;    /* after the last work */
  fl_cu_graph_exec exec;
  bool preparing; /* this walk only finds what must be compiled; nothing is launched */
  fl_cuda_pending *pending;
  fl_status failed; /* the first failure of the walk */
} fl_cuda_queue;

/* The device, opened on the first call. FL_UNSUPPORTED with the reason where there is none. */
FL_MUST_USE fl_status fl_cuda_device_open(const fl_cuda_device **out);

/* Keeps the first failure of a walk. Takes `s`; NULL does nothing. */
void fl_cuda_note(fl_cuda_queue *q, fl_status s);
static inline fl_cuda_queue *fl_cuda_queue_of(const fl_run_args *a) { return (fl_cuda_queue *)a->queue; }

/* The stream on which this thread's next runs do their work, in order with what the caller puts there: a CUstream, NULL =
 * the legacy default stream (as at first). */
void fl_cuda_stream_set(void *stream);

/* NULL when there is a GPU that can be used, else why not. The backend must not be used then. */
FL_MUST_USE fl_status fl_cuda_backend(const fl_backend **out);
FL_MUST_USE fl_status fl_cuda_download(void *dst, const void *src, size_t bytes); /* done on return */

#endif
