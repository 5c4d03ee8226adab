/* NVIDIA's libraries, opened at run time: driver, cuBLASLt, cuDNN, NVRTC.
 *
 * Nothing of CUDA is needed to build framelift or to run it without a GPU. Libraries that the process has open already
 * (PyTorch's) are used; else they are looked for by name and in the given folders. Loaded once, never unloaded.
 * Thread rule: fl_cuda_load may be called from any thread; the table it gives is constant. */
#ifndef FL_CUDA_LOAD_H
#define FL_CUDA_LOAD_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct fl_cu_context_s *fl_cu_context;
typedef struct fl_cu_stream_s *fl_cu_stream;
typedef struct fl_cu_event_s *fl_cu_event;
typedef struct fl_cu_graph_s *fl_cu_graph;
typedef struct fl_cu_graph_exec_s *fl_cu_graph_exec;
typedef struct fl_cu_module_s *fl_cu_module;
typedef struct fl_cu_function_s *fl_cu_function;
typedef uint64_t fl_cu_ptr;

typedef struct fl_cu_launch_attr { /* CUlaunchAttribute */
  int id, unused;
  int value[16];
} fl_cu_launch_attr;
typedef struct fl_cu_launch { /* CUlaunchConfig */
  unsigned grid[3], block[3], shared_bytes;
  fl_cu_stream stream;
  const fl_cu_launch_attr *attrs;
  unsigned n_attrs;
} fl_cu_launch;

typedef struct fl_lt_handle_s *fl_lt_handle;
typedef struct fl_lt_desc_s *fl_lt_desc;
typedef struct fl_lt_layout_s *fl_lt_layout;
typedef struct fl_lt_pref_s *fl_lt_pref;
typedef struct fl_lt_algo {
  uint64_t data[8];
} fl_lt_algo;
typedef struct fl_lt_heuristic {
  fl_lt_algo algo;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
} fl_lt_heuristic;

typedef struct fl_dnn_handle_s *fl_dnn_handle;
typedef void *fl_dnn_desc;
typedef struct fl_rtc_program_s *fl_rtc_program;

typedef struct fl_cuda_api {
#define FL_CUDA_SYM(library, result, name, params) result(*name) params;
#include "cuda/symbols.def"
#undef FL_CUDA_SYM
  int driver_version; /* 13000 = CUDA 13.0 */
  size_t cublaslt_version, cudnn_version;
  int nvrtc_major, nvrtc_minor;
  int device_count;
} fl_cuda_api;

/* The table, loading on the first call. `folders` is a NULL-ended list of places to look in beyond the system's, or NULL.
 * FL_UNSUPPORTED with what is missing: no driver, no device, a library not found or too old, a function not in it.
 * A failure is remembered: later calls fail alike, at no cost. */
FL_MUST_USE fl_status fl_cuda_load(const char *const *folders, const fl_cuda_api **out_api);

/* NULL for 0; else FL_INTERNAL with the driver's name and text of the error. */
FL_MUST_USE fl_status fl_cuda_check(int result, const char *what);

#endif
