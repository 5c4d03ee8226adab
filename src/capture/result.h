/* What a call gives back, as a recipe that makes it anew.
 *
 * Containers and plain objects made by the call are made again on every replay, with their own type and state and
 * without running their constructors; tensors come from the trace's values; all else is the same object again. */
#ifndef FL_CAPTURE_RESULT_H
#define FL_CAPTURE_RESULT_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"

typedef enum fl_result_kind {
  FL_RESULT_VALUE, /* value `index` */
  FL_RESULT_CONST,
  FL_RESULT_TUPLE,
  FL_RESULT_LIST,
  FL_RESULT_DICT,   /* exact dict, OrderedDict or a subclass: keys and values alternate */
  FL_RESULT_NAMED,  /* tuple subclass with nothing but its items */
  FL_RESULT_STRUCT, /* structseq (torch.return_types): made by calling the type */
  FL_RESULT_OBJECT, /* plain object: its __dict__ alone */
  FL_RESULT_SET,
  /* of frames only: */
  FL_RESULT_CELL,
  FL_RESULT_FUNCTION,  /* code, globals, qualified name; defaults, keyword defaults, closure, annotations or None */
  FL_RESULT_METHOD,    /* function and self */
  FL_RESULT_BUILTIN,   /* a C method bound to its item */
  FL_RESULT_GENERATOR, /* under way: function, then locals and operands; `object`: (code, place, state) */
  FL_RESULT_RUNNING,   /* one whose frame stands: function; `object`: code */
  FL_RESULT_TOKEN,     /* of context variable `object`, which it sets to its item */
  FL_RESULT_GUARD,     /* of inference mode: index 1: entered, 0: left */
  FL_RESULT_EXCEPTION, /* of its parts (raised.h); `object`: its type */
  FL_RESULT_TRACEBACK, /* at the place `object` (raised.h), before its item, the next one or None */
  FL_RESULT_AUTOCAST,  /* autocast's state `object` (modes.h), which it sets */
  FL_RESULT_CALL       /* an iterator or slice: by calling `object` with the items; index 1: the last is its state */
} fl_result_kind;

/* Nodes in the order they are made: children before parents, each object once. */
typedef struct fl_result_node {
  fl_result_kind kind;
  uint32_t index;
  PyObject *object; /* CONST; else the type. Kept */
  int n, n_attrs;
  uint32_t *items; /* n of them, then n_attrs pairs of key and value: nodes */
} fl_result_node;

typedef struct fl_result {
  PyObject *keep; /* list */
  FL_VEC(fl_result_node) nodes;
  uint32_t root;
} fl_result;

/* Asks what a tensor or an object is. */
typedef struct fl_result_asker {
  void *ctx;
  /* The value of a tensor, or false when it is not one of the trace's. */
  bool (*tensor)(void *ctx, PyObject *tensor, uint32_t *out_value);
  /* The object existed before the call: given back as it is. */
  bool (*known)(void *ctx, PyObject *object);
  /* A container among the arguments. */
  bool (*argument)(void *ctx, PyObject *object);
  /* The value of an object that unknown code gave. */
  bool (*unknown)(void *ctx, PyObject *object, uint32_t *out_value);
  /* The value that stands for a container among the arguments; or NULL. */
  bool (*argument_value)(void *ctx, PyObject *object, uint32_t *out_value);
  /* For the state of frames, else NULL: whether an object that would be made anew is the call's own. */
  bool (*made)(void *ctx, PyObject *object);
  PyObject
      *tokens; /* tuple: of context variables that are set (vars.h), in order. The recipe must come to them first */
  PyObject *raised; /* tuple: exceptions that frames handle or hold (raised.h) */
  PyObject *modes;  /* tuple: those that stand (modes.h), in order; likewise */
} fl_result_asker;

/* Its objects' state is their items and __dict__ and nothing else: every type up to `base` is a Python class without slots. */
bool fl_result_plain_class(PyTypeObject *t, PyTypeObject *base);
/* NULL, or why this result cannot be made again (`detail`: the type's name). No exception is left. */
const char *fl_result_make(fl_result *out, fl_arena *arena, PyObject *result, const fl_result_asker *ask,
                           const char **detail);
/* `values` are borrowed objects by value number. New reference, or NULL with an exception. */
PyObject *fl_result_build(const fl_result *r, PyObject *const *values);
/* The same of the nodes that are needed alone, which those below them are too: a tuple of what the roots are. fn, unless it
 * is NULL, is told of each object. */
typedef void (*fl_result_made_fn)(void *ctx, const fl_result_node *n, PyObject *o);
PyObject *fl_result_build_part(const fl_result *r, PyObject *const *values, const uint32_t *roots, int n,
                               const bool *need, fl_result_made_fn fn, void *ctx);
/* They make the same of the same items; of values it is not asked which. */
bool fl_result_same_node(const fl_result_node *a, const fl_result_node *b);
void fl_result_release(fl_result *r);

#endif
