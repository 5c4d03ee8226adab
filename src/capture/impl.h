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

enum { FL_IMPL_BYTES = 192 };

/* Byte offsets; usable when `ok`. */
typedef struct fl_impl_layout {
  bool ok;
  unsigned impl;             /* in the Python object: pointer to the tensor's body */
  unsigned first, length;    /* in the body: the fields compared as raw bytes (not the reference counts before them) */
  unsigned storage, data;    /* in the body: pointer to the storage; in the storage: address of its memory */
  unsigned counter, version; /* in the body: pointer to the version counter; in it: the number */
  unsigned offset;           /* in the body: storage offset; after it `tail`: all that is neither sizes nor strides */
  bool shapes;               /* the following are known */
  unsigned autograd, extra;  /* in the body: pointers, NULL without autograd or unusual metadata */
  unsigned rank, sizes, strides;
} fl_impl_layout;
extern fl_impl_layout fl_impl_at;

void fl_impl_init(void); /* once, after torch is imported; leaves no exception */

typedef struct fl_impl_bytes {
  uint64_t word[FL_IMPL_BYTES / sizeof(uint64_t)];
} fl_impl_bytes;

typedef struct fl_impl_snapshot {
  bool ok;
  const char *body, *storage, *counter;
  void *data;
  uint32_t version;
  fl_impl_bytes bytes;
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
  if (memcmp(s->body + l->first, &s->bytes, l->length)) return false;
  memcpy(&version, s->counter + l->version, sizeof version);
  return version == s->version && fl_impl_pointer(s->storage + l->data) == (const char *)s->data;
}

/* A tensor's sizes, strides, element type, device, layout and keys, to compare other tensors with. */
enum { FL_IMPL_RANK = 5, FL_IMPL_TAIL = 24 };
typedef struct fl_impl_shape {
  bool ok;
  size_t rank, bytes; /* bytes: of sizes or strides */
  uint64_t item_size;
  int64_t sizes[FL_IMPL_RANK], strides[FL_IMPL_RANK];
  unsigned char tail[FL_IMPL_TAIL];
} fl_impl_shape;

void fl_impl_shape_take(PyObject *tensor, int rank, size_t item_size, fl_impl_shape *out);

/* Where the first element of a tensor with a storage lies; needs fl_impl_at.shapes. */
static inline void *fl_impl_data(PyObject *tensor, size_t item_size) {
  const fl_impl_layout *l = &fl_impl_at;
  const char *body = fl_impl_pointer((const char *)tensor + l->impl);
  char *data = (char *)(uintptr_t)fl_impl_pointer(fl_impl_pointer(body + l->storage) + l->data);
  int64_t offset;
  memcpy(&offset, body + l->offset, sizeof offset);
  return data ? data + offset * (int64_t)item_size : NULL;
}

/* True only if the tensor is like the one the shape was taken of; *out_autograd then tells whether autograd knows it (when
 * not it does not require grad), *out_data where its first element lies. */
static inline bool fl_impl_like(PyObject *tensor, const fl_impl_shape *s, bool *out_autograd, void **out_data) {
  const fl_impl_layout *l = &fl_impl_at;
  size_t rank;
  if (!s->ok) return false;
  const char *body = fl_impl_pointer((const char *)tensor + l->impl);
  memcpy(&rank, body + l->rank, sizeof rank);
  if (rank != s->rank || fl_impl_pointer(body + l->extra) || memcmp(body + l->sizes, s->sizes, s->bytes) ||
      memcmp(body + l->strides, s->strides, s->bytes) || memcmp(body + l->offset + 8, s->tail, FL_IMPL_TAIL))
    return false;
  if (!fl_impl_pointer(body + l->storage)) return false;
  *out_autograd = fl_impl_pointer(body + l->autograd) != NULL;
  *out_data = fl_impl_data(tensor, s->item_size);
  return true;
}

/* True only if the tensor certainly has other sizes than the one the shape was taken of. */
static inline bool fl_impl_other_sizes(PyObject *tensor, const fl_impl_shape *s) {
  const fl_impl_layout *l = &fl_impl_at;
  size_t rank;
  if (!s->ok) return false;
  const char *body = fl_impl_pointer((const char *)tensor + l->impl);
  if (fl_impl_pointer(body + l->extra)) return false; /* they may be told by something else */
  memcpy(&rank, body + l->rank, sizeof rank);
  return rank != s->rank || memcmp(body + l->sizes, s->sizes, s->bytes);
}

#endif
