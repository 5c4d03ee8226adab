/* Convolutions as cuDNN's operation graphs: what cuDNN proposes for one, and how it is run. Channels-last.
 *
 * Thread rule: one thread at a time for a handle and for what was made with it. */
#ifndef FL_CUDA_CUDNN_H
#define FL_CUDA_CUDNN_H

#include "cpu/kernel.h"
#include "cuda/load.h"

typedef struct fl_dnn_conv {
  fl_type x, w, y;
  int64_t ys[4]; /* strides of y: channels-last, with gaps between pixels perhaps */
  bool bias, residual;
  fl_attrs attrs; /* of CONV2D */
} fl_dnn_conv;

enum { FL_DNN_MAX_DESCS = 64, FL_DNN_MAX_CONFIGS = 16 };

typedef enum fl_dnn_mode { FL_DNN_INSTANT = 0, FL_DNN_B = 1, FL_DNN_FALLBACK = 2, FL_DNN_A = 3 } fl_dnn_mode;

/* The convolution as a graph: alone, or `fused` with bias, residual and activation. */
typedef struct fl_dnn_graph {
  fl_dnn_desc graph; /* NULL: cuDNN does not take it */
  fl_dnn_desc kept[FL_DNN_MAX_DESCS];
  int n_kept;
  bool fused;
} fl_dnn_graph;

/* Can the convolution's activation be a part of the graph? relu, or none. */
bool fl_dnn_can_fuse(const fl_dnn_conv *c);
/* False: cuDNN's heuristics or descriptors refuse. To be freed in any case. */
bool fl_dnn_graph_make(const fl_cuda_api *api, fl_dnn_handle handle, const fl_dnn_conv *c, bool fused,
                       fl_dnn_graph *out);
void fl_dnn_graph_free(const fl_cuda_api *api, fl_dnn_graph *g);

/* Engine configurations, the likeliest first. Returns how many of FL_DNN_MAX_CONFIGS; each is to be destroyed. */
int fl_dnn_configs(const fl_cuda_api *api, const fl_dnn_graph *g, fl_dnn_mode mode, fl_dnn_desc *configs);
/* Can the configuration be used? Not where cuDNN would have to compile it first, which takes up to seconds, where results
 * differ from run to run, and without `tf32` where f32 is rounded for the tensor cores. */
bool fl_dnn_is_usable(const fl_cuda_api *api, fl_dnn_desc config, bool tf32);
/* The plan of a configuration, or NULL if it cannot be had or wants more than `workspace`. */
fl_dnn_desc fl_dnn_plan(const fl_cuda_api *api, fl_dnn_handle handle, fl_dnn_desc config, size_t workspace);
/* What executing a plan takes; SIZE_MAX where it cannot be told. */
size_t fl_dnn_workspace(const fl_cuda_api *api, fl_dnn_desc plan);

typedef struct fl_dnn_memory {
  void *x, *w, *y, *bias, *residual, *workspace;
} fl_dnn_memory;

/* cuDNN's status. */
int fl_dnn_execute(const fl_cuda_api *api, fl_dnn_handle handle, fl_dnn_desc plan, const fl_dnn_conv *c, bool fused,
                   const fl_dnn_memory *memory, fl_cu_stream stream);

#endif
