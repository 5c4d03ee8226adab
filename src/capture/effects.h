/* Effects of a trace on objects that existed before the call, and tensors it finds where it itself puts new ones.
 *
 * A call's writes are kept as what they leave behind: one effect for each place, done after everything else has been
 * computed. Nothing of the trace reads a place after its write, so the moment does not matter, and a trace that is
 * abandoned half-way has changed nothing. */
#ifndef FL_CAPTURE_EFFECTS_H
#define FL_CAPTURE_EFFECTS_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "capture/interop.h"

typedef enum fl_effect_kind {
  FL_EFFECT_ATTR,   /* obj.key, by object.__setattr__ */
  FL_EFFECT_ITEM,   /* obj[key] of an exact dict */
  FL_EFFECT_CELL,   /* contents of a closure cell */
  FL_EFFECT_EXTEND, /* items added to the end of a list that was not looked into */
  FL_EFFECT_LIST,   /* all items of a list */
  FL_EFFECT_DICT,   /* all items of a dict: keys and values alternate */
  FL_EFFECT_SET,    /* all members of a set */
  FL_EFFECT_DRAW    /* obj(key), or obj() without a key: advances a generator */
} fl_effect_kind;

typedef struct fl_effect { /* objects are held by the trace */
  fl_effect_kind kind;
  PyObject *obj, *key; /* obj NULL: */
  uint32_t argument;   /* it is the container of the arguments that is this value */
  bool del;            /* ATTR, ITEM, CELL: the place is left empty */
  bool changes;        /* the trace's own guards rely on what it changes: it cannot fit right after itself */
} fl_effect;

/* A tensor found under a key when the call begins, because the trace leaves another one there. It is an input. */
typedef struct fl_source {
  PyObject *dict, *key;
  fl_tensor_meta meta;
  PyTypeObject *type;
  bool requires_grad;
} fl_source;

typedef struct fl_effects {
  FL_VEC(fl_effect) list;
  FL_VEC(fl_source) sources;
} fl_effects;

/* Does them in order. `arguments` are the trace's values. values[i] belongs to effect i; of EXTEND, LIST, DICT and SET it is a tuple. 0, or -1 with an
 * exception. */
int fl_effects_apply(const fl_effects *e, PyObject *const *values, PyObject *const *arguments);
/* Whether the tensor under the source's key is as recorded; borrowed, or NULL (no exception). */
PyObject *fl_source_find(const fl_source *s);
void fl_effects_release(fl_effects *e);

#endif
