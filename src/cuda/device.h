/* Devices: context, memory, and queues whose programs are captured into CUDA graphs and replayed.
 *
 * Each device's primary context, the one PyTorch uses. Thread rule: everything here may be called from any thread; a queue
 * belongs to one run at a time. */
#ifndef FL_CUDA_DEVICE_H
#define FL_CUDA_DEVICE_H

#include "cpu/backend.h"
#include "cuda/load.h"

typedef struct fl_cuda_device {
  int ordinal;
  const fl_cuda_api *api;
  fl_cu_context context;
  int arch; /* 90 = sm_90 */
  int multiprocessors;
  int l2_bytes;
  char name[64];
  fl_lt_handle lt;
} fl_cuda_device;

typedef struct fl_cuda_pending fl_cuda_pending; /* kernels to be compiled together (nvrtc.h) */

typedef struct fl_cuda_block {
  struct fl_cuda_block *next;
  void *data;
  size_t bytes;
} fl_cuda_block;

typedef struct fl_cuda_queue {
  fl_queue base;
  const fl_backend *backend;
  const fl_cuda_device *device;
  fl_cu_stream stream; /* what is captured */
  fl_cu_event done;    /* after the last work */
  fl_cu_graph_exec exec[FL_QUEUE_VARIANTS];
  size_t
      exec_bytes[FL_QUEUE_VARIANTS]; /* by which the device's free memory fell when they were made and first launched */
  size_t free_before;                /* the one recorded last was made; 0: it has been launched */
  bool preparing;                    /* this walk only finds what must be compiled; nothing is launched */
  bool awaiting;                     /* and waits for it */
  fl_cuda_pending *pending;
  fl_status failed;   /* the first failure of the walk */
  fl_cu_event *marks; /* while profiling */
  fl_cuda_block
      *workspace; /* of libraries, for steps beside which too little of the arena lies idle; the largest first */
  size_t workspace_wanted;
  int mode; /* of the thread that uses the queue: to go back to */
} fl_cuda_queue;

enum { FL_CUDA_MAX_DEVICES = 32, FL_CUDA_RELAXED = 2 };

/* Sets how this thread's calls get on with captures of CUDA graphs, and gives what was set before. A capture by the program,
 * in this thread or another, would be broken by much of what is done here; relaxed, it is not. */
static inline int fl_cuda_capture_mode(const fl_cuda_api *api, int mode) {
  api->cuThreadExchangeStreamCaptureMode(&mode);
  return mode;
}

/* Who gives out the memory of plans, constants and stages: any thread may call; `allocate` gives 64-byte aligned memory that may be
 * used on this thread's stream at once, or NULL. */
typedef struct fl_cuda_memory {
  void *(*allocate)(int ordinal, size_t bytes);
  void (*release)(int ordinal, void *block);
} fl_cuda_memory;
/* Before anything is allocated; kept by reference. NULL, as at first: the driver. */
void fl_cuda_memory_set(const fl_cuda_memory *m);

/* The device, opened on the first call. FL_UNSUPPORTED with the reason where it cannot be had. */
FL_MUST_USE fl_status fl_cuda_device_open(int ordinal, const fl_cuda_device **out);
/* The device of a problem or of a backend's call; NULL when planning for no device, as tests do. */
static inline const fl_cuda_device *fl_cuda_device_of(const fl_backend *b) { return b ? b->device : NULL; }

/* Keeps the first failure of a walk. Takes `s`; NULL does nothing. */
void fl_cuda_note(fl_cuda_queue *q, fl_status s);
static inline fl_cuda_queue *fl_cuda_queue_of(const fl_run_args *a) { return (fl_cuda_queue *)a->queue; }

/* The stream on which this thread's next runs do their work, in order with what the caller puts there: a CUstream, NULL =
 * the legacy default stream (as at first). */
void fl_cuda_stream_set(void *stream);
void *fl_cuda_stream_get(void);

/* True while the caller captures a CUDA graph on this stream: nothing of ours may run then. */
bool fl_cuda_is_capturing(const fl_backend *b, void *stream);

/* The backend of this device, or why there is none. Every call gives the same pointer. */
FL_MUST_USE fl_status fl_cuda_backend(int ordinal, const fl_backend **out);
FL_MUST_USE fl_status fl_cuda_download(const fl_backend *b, void *dst, const void *src,
                                       size_t bytes); /* done on return */

#endif
