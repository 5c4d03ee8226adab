/* The private headers of CPython 3.12 and 3.13, for py312.c and loop312.c alone, and the names that differ in the two. */
#ifndef FL_CAPTURE_CPYTHON_PY312_H
#define FL_CAPTURE_CPYTHON_PY312_H

#include "capture/cpython/compat.h"

#if FL_CPYTHON == 312 || FL_CPYTHON == 313
#undef _PyGC_FINALIZED
#define Py_BUILD_CORE
#ifdef FL_PY312_OPCODES /* defined by the one file that holds CPython's opcode tables */
#define NEED_OPCODE_TABLES
#define NEED_OPCODE_METADATA
#endif
#include <internal/pycore_ceval.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_intrinsics.h>
#if FL_CPYTHON == 312
#include <internal/pycore_opcode.h>
#else
#include <internal/pycore_opcode_metadata.h>
#endif
#undef NEED_OPCODE_TABLES
#undef NEED_OPCODE_METADATA
#undef Py_BUILD_CORE
#include <opcode.h>

#define FRAME_FUNC(f) ((PyFunctionObject *)(f)->f_funcobj)
#if FL_CPYTHON == 312
#define FRAME_CODE(f) ((f)->f_code)
#define FRAME_AT(f)   ((f)->prev_instr) /* the instruction being executed; between two, the one before */
#define FRAME_TOP(ts) ((ts)->cframe->current_frame)
enum { FL_NEXT_IS = 1 }; /* a frame at rest points this far before the instruction to come */
#else
#define FRAME_CODE(f) ((PyCodeObject *)(f)->f_executable)
#define FRAME_AT(f)   ((f)->instr_ptr) /* the instruction being executed, or the one to come */
#define FRAME_TOP(ts) ((ts)->current_frame)
enum { FL_NEXT_IS = 0 };
#endif
#endif

#endif
