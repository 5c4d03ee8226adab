/* The arguments of a call: their structure, matched again on every call.
 *
 * Tensors in them (also nested in exact tuples, lists, dicts and OrderedDicts, named tuples and records) become the trace's inputs, in order
 * of first appearance; an argument object met again is matched as the same object. Constants match by type and value,
 * everything else by identity. */
#ifndef FL_CAPTURE_ARGSPEC_H
#define FL_CAPTURE_ARGSPEC_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "capture/impl.h"
#include "capture/interop.h"
#include "capture/ptrmap.h"

typedef enum fl_spec_kind {
  FL_SPEC_TENSOR, /* input `index` */
  FL_SPEC_SAME,   /* the same object as input `index` */
  FL_SPEC_CONST,
  FL_SPEC_TUPLE,
  FL_SPEC_LIST,
  FL_SPEC_DICT,
  FL_SPEC_RECORD, /* its type, its __dict__ as items[0]; of a dict's subclass, what is in it as items[1]: */
  FL_SPEC_ITEMS,  /* keys in order and values, as of a DICT */
  FL_SPEC_OBJECT,
  FL_SPEC_UNREAD /* anything: the program has not looked at it */
} fl_spec_kind;

/* What `covered` says of a list, dict or record: this bit, and which one it is, counted from the outside in. */
#define FL_ARG_CONTAINER 0x80000000u
#define FL_ARG_UNREAD    0x7fffffffu /* of what is not matched */

typedef struct fl_spec {
  fl_spec_kind kind;
  uint32_t index;
  PyObject *object;   /* CONST, OBJECT; DICT: tuple of the keys in order. Kept by the argspec */
  PyTypeObject *type; /* of the object; kept by the argspec */
  int n;
  struct fl_spec *items;
} fl_spec;

/* It is an object of its own, which `covered` counts. */
static inline bool fl_spec_is_container(const fl_spec *s) {
  return s->kind == FL_SPEC_LIST || s->kind == FL_SPEC_DICT || s->kind == FL_SPEC_RECORD;
}

/* It has items that are matched. */
static inline bool fl_spec_holds(const fl_spec *s) {
  return s->kind == FL_SPEC_TUPLE || s->kind == FL_SPEC_LIST || s->kind == FL_SPEC_DICT || s->kind == FL_SPEC_RECORD ||
         s->kind == FL_SPEC_ITEMS;
}

typedef struct fl_input {
  fl_tensor_meta meta;
  fl_impl_shape seen; /* of the tensor that last fitted */
  PyTypeObject *type;
  bool requires_grad;
  const void *content; /* its elements, where the program depends on them; or NULL. In the trace's arena */
  size_t content_bytes;
  bool attrs_read; /* the program looked at its Python attributes: it must have none */
} fl_input;

#define FL_MAX_INPUTS     256
#define FL_MAX_CONTAINERS 64

typedef struct fl_argspec {
  PyObject *keep;    /* list of what is held */
  PyObject *kwnames; /* tuple or NULL */
  int n_pos, n_kw, n_inputs;
  fl_spec *args; /* n_pos + n_kw */
  fl_input *inputs;
  fl_ptrmap elsewhere; /* dicts and lists that the program has otherwise: none of them may be among the arguments */
} fl_argspec;

/* An object that is nothing but its attributes: a dataclass's instance, a SimpleNamespace. Only where calls are given
 * another one each time (`records`) is it matched by what is in it; one that stays may hold a model's weights. */
bool fl_argspec_is_record(PyObject *o);
/* Describes a call's arguments; `inputs` gets borrowed tensors (room for FL_MAX_INPUTS), `covered` every container and
 * tensor object seen. NULL, or why they cannot be described (static storage; "out of memory" too).
 * No exception is left. Memory from `arena`; release with fl_argspec_release. */
const char *fl_argspec_make(fl_argspec *out, fl_arena *arena, PyObject *const *args, size_t n_pos, PyObject *kwnames,
                            PyObject **inputs, fl_ptrmap *covered, bool records);
extern const char fl_argspec_other_object[]; /* what `why` below points to where another object was given */
void fl_argspec_release(fl_argspec *s);
/* True when the arguments match; `inputs` gets borrowed tensors, `data` their addresses (NULL when they have none).
 * On false *why names what differed (static storage). Never leaves an exception. */
bool fl_argspec_match(const fl_argspec *s, PyObject *const *args, size_t n_pos, PyObject *kwnames, PyObject **inputs,
                      void **data, const char **why);
/* Identity, or equality of exact None, bool, int, float, complex, str, bytes, and tuples of those. */
bool fl_const_equal(PyObject *a, PyObject *b);

#endif
