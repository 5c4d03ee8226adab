/* CPython 3.11's private headers, for py311*.c alone. */
#ifndef FL_CAPTURE_CPYTHON_PY311_H
#define FL_CAPTURE_CPYTHON_PY311_H

#include "capture/cpython/compat.h"

#if FL_CPYTHON == 311
#undef _PyGC_FINALIZED
#define Py_BUILD_CORE
#ifdef FL_PY311_OPCODES /* defined by the one file that holds CPython's opcode tables */
#define NEED_OPCODE_TABLES
#endif
#include <internal/pycore_ceval.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_opcode.h>
#undef NEED_OPCODE_TABLES
#undef Py_BUILD_CORE
#include <opcode.h>
#define FRAME_CODE(f) ((f)->f_code)
#define FRAME_FUNC(f) ((f)->f_func)
#define FRAME_AT(f)   ((f)->prev_instr) /* the instruction being executed */
#endif

#endif
