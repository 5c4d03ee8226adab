/* A fast look at whether a tensor is still what it was.
 *
 * Where torch keeps a tensor's storage, sizes, strides, offset and version counter is not promised by anything, so it is
 * found by experiment when the module is loaded: fields are searched for values that are known, on several tensors, with
 * reads that cannot fault, and used only when every tensor agrees. What differs from a snapshot is then looked at
 * properly, through the public ways; a snapshot only ever says "nothing has changed". Without a finding, or on a
 * tensor it does not cover, the public ways are taken each time. Needs the GIL. */
#ifndef FL_CAPTURE_IMPL_H
#define FL_CAPTURE_IMPL_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { FL_IMPL_BYTES = 256 };

/* Byte offsets; usable when `ok`. */
typedef struct fl_impl_layout {
  bool ok;
  unsigned impl;             /* in the Python object: pointer to the tensor's body */
  unsigned first, length;    /* in the body: the fields compared as raw bytes (not the reference counts before them) */
  unsigned storage, data;    /* in the body: pointer to the storage; in the storage: address of its memory */
  unsigned counter, version; /* in the body: pointer to the version counter; in it: the number */
} fl_impl_layout;
extern fl_impl_layout fl_impl_at;

void fl_impl_init(void); /* once, after torch is imported; leaves no exception */

typedef struct fl_impl_snapshot {
  bool ok;
  const char *body, *storage, *counter;
  void *data;
  uint32_t version;
  unsigned char bytes[FL_IMPL_BYTES];
} fl_impl_snapshot;

void fl_impl_take(PyObject *tensor, int rank, fl_impl_snapshot *out);

static inline const char *fl_impl_pointer(const char *at) {
  const char *p;
  memcpy(&p, at, sizeof p);
  return p;
}

/* True only if nothing at all has changed since the snapshot. */
static inline bool fl_impl_same(PyObject *tensor, const fl_impl_snapshot *s) {
  const fl_impl_layout *l = &fl_impl_at;
  uint32_t version;
  if (!s->ok || fl_impl_pointer((const char *)tensor + l->impl) != s->body) return false;
  if (memcmp(s->body + l->first, s->bytes, l->length)) return false;
  memcpy(&version, s->counter + l->version, sizeof version);
  return version == s->version && fl_impl_pointer(s->storage + l->data) == (const char *)s->data;
}

#endif
