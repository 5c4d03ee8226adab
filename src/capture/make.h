/* New tensors without a Python call: PyTorch's C shim allocates, its wrapper function makes the Python object.
 *
 * The shim is C and stable; the wrapper is a C++ name that nothing promises. Both are looked for when the module is
 * loaded and used only when what they make is what the public functions make. Needs the GIL. */
#ifndef FL_CAPTURE_MAKE_H
#define FL_CAPTURE_MAKE_H

#include <Python.h>
#include <stdbool.h>

#include "capture/interop.h"

void fl_make_init(void); /* once, after fl_impl_init; leaves no exception */

/* As fl_tensor_new, for a tensor on the CPU; *out_data is where its elements lie. NULL without an exception where it
 * cannot be made this way. */
PyObject *fl_make_tensor(const fl_tensor_meta *like, void **out_data);

#endif
