/* Tensors that are as they were, told in one pass: where each one's body lies, the body, and in what it points to the version
 * and the address of the memory.
 *
 * What costs is memory that is not in the first cache: so what a body should hold is kept once for all tensors that are alike
 * but for their own first words, tensors are gone through in the order of their addresses, and what a body points to, which
 * tends to lie near it, is read along with it. Needs the GIL. */
#ifndef FL_CAPTURE_BODIES_H
#define FL_CAPTURE_BODIES_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "capture/impl.h"

enum { FL_BODY_OWN = 8, FL_BODY_ALIKE = FL_IMPL_BYTES / 8 - FL_BODY_OWN }; /* words */

typedef struct fl_body {
  const char *place; /* in the Python object, where the pointer to the body lies */
  const char *body;
  uint64_t own[FL_BODY_OWN]; /* its first words: pointers, among them those to the storage and the version counter */
  uint64_t data, version;    /* what these hold: the word with the address, the word with the number */
  size_t alike;              /* which of `alike` its other words are like */
} fl_body;

typedef struct fl_alike {
  uint64_t word[FL_BODY_ALIKE];
} fl_alike;

typedef struct fl_bodies {
  FL_VEC(fl_body) list;
  FL_VEC(fl_body) vectors; /* those of rank 0 and 1, where the bodies are such that part of them means nothing then */
  FL_VEC(fl_alike) alike;
} fl_bodies;

/* Whether such a tensor can be looked at in this way. */
bool fl_bodies_can(const fl_impl_snapshot *s);
/* False when it is not as the snapshot says, or out of memory. `tensor`, for which fl_bodies_can holds, is borrowed: it must
 * live as long as it is in the list. */
bool fl_bodies_add(fl_bodies *b, PyObject *tensor, const fl_impl_snapshot *s);
void fl_bodies_sort(fl_bodies *b); /* when all are there */
/* False when something has changed. */
bool fl_bodies_same(const fl_bodies *b);
void fl_bodies_clear(fl_bodies *b);
void fl_bodies_release(fl_bodies *b);

#endif
