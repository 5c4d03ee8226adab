#ifndef FL_PYTHON_MOD_EVAL_H
#define FL_PYTHON_MOD_EVAL_H

#include <Python.h>

int fl_mod_eval_add(PyObject *module); /* adds _evaluate and its like; 0, or -1 with an exception */

#endif
