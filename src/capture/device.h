/* Devices: where a tensor lies, the backend that computes there, and the stream of the caller.
 *
 * A segment's engines compute on one device; its operators on tensors elsewhere stay with PyTorch. All calls need the GIL. */
#ifndef FL_CAPTURE_DEVICE_H
#define FL_CAPTURE_DEVICE_H

#include "capture/interop.h"
#include "cpu/backend.h"

typedef struct fl_device {
  int type, id; /* DLPack's numbers */
} fl_device;

static inline fl_device fl_device_of(const fl_tensor_meta *m) { return (fl_device){m->device_type, m->device_id}; }
static inline bool fl_device_equal(fl_device a, fl_device b) { return a.type == b.type && a.id == b.id; }
static inline bool fl_device_is_cpu(fl_device d) { return d.type == FL_DEVICE_CPU; }

/* The backend of a device, or NULL with the reason in *why (for the life of the process). */
const fl_backend *fl_device_backend(fl_device d, const char **why);

/* This thread's next runs on the backend go to PyTorch's current stream of the device. False where nothing of ours may
 * run now: the caller captures a CUDA graph there. */
bool fl_device_enter(const fl_backend *b, fl_device d);

/* PyTorch hands back to the driver what it only caches: engines' memory, which stays, would else be cut out of large blocks that
 * eager left, and keep all of these. Nothing on the CPU. No exception. */
void fl_device_trim(const fl_backend *b, fl_device d);

/* True while this thread captures a CUDA graph on its current stream. No exception. */
bool fl_device_is_capturing(void);

/* State of every generator that operators draw from: a new object to be given to fl_generators_set. NULL with an
 * exception. */
PyObject *fl_generators_get(void);
int fl_generators_set(PyObject *state);

#endif
