#include "capture/engine_error.h"

static PyObject *type; /* lives as long as the process */

int fl_engine_error_add(PyObject *module) {
  if (!type)
    type =
        PyErr_NewExceptionWithDoc("framelift.EngineError",
                                  "An engine failed, in this call or, on a GPU, in an earlier one: its answer is not "
                                  "to be used.",
                                  PyExc_RuntimeError, NULL);
  return type ? PyModule_AddObjectRef(module, "EngineError", type) : -1;
}

void fl_engine_error_raise(const char *doing, const fl_status s) {
  PyErr_Format(type, "framelift: %s%s%s", doing ? doing : "", doing ? ": " : "", fl_status_message(s));
}

bool fl_error_is_of_program(void) { return PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(type); }
