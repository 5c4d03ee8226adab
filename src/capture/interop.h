/* Tensors across the border: reading a torch tensor's metadata, and making torch tensors.
 *
 * Nothing here is built against PyTorch's headers: metadata comes through the DLPack C exchange API
 * (torch.Tensor.__dlpack_c_exchange_api__) and the rest through torch's Python objects. All calls need the GIL. */
#ifndef FL_CAPTURE_INTEROP_H
#define FL_CAPTURE_INTEROP_H

#include <Python.h>
#include <stdbool.h>

#include "base/dtype.h"

/* Once per process, after `import torch`. 0, or -1 with ImportError set (torch older than 2.10). */
int fl_interop_init(void);

/* DLPack's numbers of the devices that engines know. */
enum { FL_DEVICE_CPU = 1, FL_DEVICE_CUDA = 2 };

typedef struct fl_tensor_meta {
  bool ok;             /* a dense strided tensor on the CPU or a CUDA device, of a dtype and rank the engine has */
  const char *why_not; /* static storage */
  bool has_data;       /* data, shape and byte extent are known (also for dtypes the engine lacks) */
  void *data;
  int device_type, device_id; /* DLPack's numbers */
  uint32_t dtype_key;         /* DLPack dtype as one word, for comparing */
  size_t item_size;
  int ndim; /* may exceed FL_MAX_RANK: then dims and strides below are not filled */
  fl_type type;
  int64_t strides[FL_MAX_RANK];
} fl_tensor_meta;

bool fl_tensor_check(PyObject *o);    /* isinstance(o, torch.Tensor) */
bool fl_tensor_is_plain(PyObject *o); /* its type is exactly torch.Tensor, Parameter or Buffer */
/* Never fails and never leaves an exception: what cannot be read is !ok with a reason. */
void fl_tensor_read(PyObject *tensor, fl_tensor_meta *out);
bool fl_tensor_meta_equal(const fl_tensor_meta *a, const fl_tensor_meta *b); /* all but `data` */
/* First and one-past-last byte the elements lie in; false when unknown or empty. */
bool fl_tensor_extent(const fl_tensor_meta *m, const char **lo, const char **hi);
typedef struct fl_extent {
  const char *lo, *hi;
} fl_extent;
/* For qsort, of extents and of what begins with one: by where they begin. */
static inline int fl_extent_order(const void *a, const void *b) {
  const fl_extent *x = (const fl_extent *)a, *y = (const fl_extent *)b;
  return (x->lo > y->lo) - (x->lo < y->lo);
}

bool fl_tensor_is_wrapped(PyObject *o); /* a functorch transform's, around another tensor */
/* 1, 0, or -1 with an exception. */
int fl_tensor_requires_grad(PyObject *tensor);
int fl_tensor_is_lazy(PyObject *tensor); /* the conjugate or negative bit is set */
/* PyTorch's counter of in-place changes. False for inference tensors, which have none. No exception. */
bool fl_tensor_version(PyObject *tensor, int64_t *out);
/* What its elements lie in, as a number that no other storage gets while it is held, though memory and tensor may go. 0 where
 * it cannot be told. No exception. */
uint64_t fl_tensor_storage(PyObject *tensor);
uint64_t fl_storage_hold(PyObject *tensor);
void fl_storage_let_go(uint64_t storage); /* 0 does nothing; leaves an exception that is set as it is */

/* A new tensor of this dtype, these sizes, strides and device in memory of torch's own allocator, uninitialized; an inference
 * tensor under inference_mode. `like` must be ok. New reference, or NULL with an exception. */
PyObject *fl_tensor_new(const fl_tensor_meta *like);
/* The stream that PyTorch's next operators on the device go to; NULL where it has none. */
void *fl_torch_stream(int device_type, int device_id);
void *fl_tensor_data(PyObject *tensor); /* NULL when it cannot be read (or is empty) */

/* torch.float32 ... to the engine's dtype. */
bool fl_torch_dtype(PyObject *o, fl_dtype *out);
PyObject *fl_torch_dtype_object(fl_dtype dtype); /* and back; borrowed */

/* Global state that changes what operators mean. */
typedef struct fl_torch_state {
  bool inference, autocast, functorch, deterministic, torch_function, tracing;
  int function_modes, dispatch_modes;
  PyObject *default_dtype; /* borrowed, immortal */
} fl_torch_state;
int fl_torch_state_read(fl_torch_state *out); /* 0, or -1 with an exception */
/* NULL, or why nothing may be recorded or replayed in this state. Static storage. */
const char *fl_torch_state_why_not(const fl_torch_state *s);
bool fl_torch_state_equal(const fl_torch_state *a, const fl_torch_state *b);

/* What the program has set for GPUs, as one number: whether f32 may be multiplied as TF32 (FL_TF32_* bits), and the current
 * device, which "cuda" without a number means. No exception. */
enum { FL_TF32_MATMUL = 1, FL_TF32_CONV = 2, FL_CUDA_DEVICE_SHIFT = 2 };
int fl_torch_cuda_state(void);

int fl_grad_enabled(void);     /* 1, 0, or -1 */
int fl_grad_set(bool enabled); /* 0 or -1 */
int fl_torch_threads(void);    /* torch.get_num_threads(); at least 1 */
/* True for C functions whose answer fl_torch_state already guards (torch.is_grad_enabled ...). */
bool fl_torch_state_covers(PyObject *callable);
int fl_dispatch_push(PyObject *mode); /* 0 or -1 */
int fl_dispatch_pop(void);
bool fl_dispatch_take_off(PyObject *mode); /* pops it if it is the last one pushed */

#endif
