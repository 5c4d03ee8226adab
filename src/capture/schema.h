/* What the recorder must know of an ATen operator, read once from its OpOverload and kept for the process. */
#ifndef FL_CAPTURE_SCHEMA_H
#define FL_CAPTURE_SCHEMA_H

#include <Python.h>
#include <stdbool.h>

/* Devices whose autocast is told apart: CUDA and the CPU. */
enum { FL_AUTOCAST_DEVICES = 2, FL_AUTOCAST_CUDA = 0, FL_AUTOCAST_CPU = 1 };

typedef struct fl_schema_arg {
  PyObject *name;   /* str */
  const char *utf8; /* the same, borrowed from `name` */
  PyObject *def;    /* default, or NULL when there is none */
  bool kwarg_only;
  bool writes;     /* (a!): the operator changes it */
  bool is_float;   /* an int given here means a float */
  bool is_tensors; /* a list of tensors: what an empty list means */
  bool is_floats;
} fl_schema_arg;

typedef struct fl_schema {
  PyObject *overload; /* the OpOverload */
  PyObject *op;       /* its `_op`: the builtin that dispatches to C++ without a Python frame */
  const char *name;   /* "aten.add.Tensor" */
  PyObject *name_object;
  int n_args;
  fl_schema_arg *args;
  bool writes;        /* some argument is written */
  bool seeded;        /* tag nondeterministic_seeded: random, unless its arguments switch that off */
  bool dynamic_shape; /* the result's shape may depend on data: tag dynamic_output_shape, or schema.c */
  bool is_index;      /* aten.index.Tensor: dynamic only for masks */
  bool lifts;         /* lift_fresh: a tensor made from Python values enters here */
  bool metadata;      /* a result that is not a tensor depends on shapes alone */
  bool unfilled;      /* gives memory that it does not fill */
  bool outside;       /* of a library that is not PyTorch's own */
  bool total;         /* no integer makes it fail: none is an index, or divides */
  bool composite;     /* of other operators, which inference mode hides */
  unsigned autocast;  /* bit: of the device (FL_AUTOCAST_DEVICES) whose autocast casts for it */
  bool norm;          /* batch and instance norm: write running statistics in training, unseen by the schema */
} fl_schema;

/* Borrowed, valid for the life of the process; NULL with an exception. */
const fl_schema *fl_schema_get(PyObject *overload);
int fl_schema_find(const fl_schema *s, const char *arg); /* index, or -1 */

#endif
