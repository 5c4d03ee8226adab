/* framelift.EngineError: what only an engine can tell, such as an index that was out of range on a GPU in an earlier call. Running
 * the program again would not raise it, so that it is never taken for an exception of the program. Needs the GIL. */
#ifndef FL_CAPTURE_ENGINE_ERROR_H
#define FL_CAPTURE_ENGINE_ERROR_H

#include <Python.h>
#include <stdbool.h>

#include "base/status.h"

/* 0, or -1 with an exception. */
int fl_engine_error_add(PyObject *module);
/* Raises it with `doing` (NULL: nothing) and the status's message. Borrows the status. */
void fl_engine_error_raise(const char *doing, const fl_status s);
/* True if the exception that is set may be met again by running the program: an Exception, and not this one. */
bool fl_error_is_of_program(void);

#endif
