#define _GNU_SOURCE
#include "capture/impl.h"

#include <sys/uio.h>
#include <unistd.h>

#include "capture/interop.h"

fl_impl_layout fl_impl_at;

enum { OBJECT_WORDS = 8, BODY_WORDS = 32, SMALL_WORDS = 8, PROBES = 5 };

/* A copy of memory that may not be there. */
static bool peek(const void *at, void *out, size_t n) {
  struct iovec to = {out, n}, from = {(void *)(uintptr_t)at, n};
  if ((uintptr_t)at < 4096 || (uintptr_t)at % 8) return false;
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)n;
}

typedef struct probe {
  PyObject *tensor;
  void *base;      /* of its storage */
  uint64_t offset; /* of its first element, in elements */
  uint64_t version;
  int rank;
  uint64_t sizes[FL_IMPL_RANK], strides[FL_IMPL_RANK];
  bool autograd;
  uint64_t body[BODY_WORDS];
} probe;

static bool all_bodies(probe *p, unsigned object_word) {
  for (int i = 0; i < PROBES; i++) {
    uint64_t word;
    memcpy(&word, (const char *)p[i].tensor + 8 * object_word, 8);
    if (!peek((const void *)(uintptr_t)word, p[i].body, sizeof p[i].body)) return false;
  }
  return true;
}

static bool find_storage(const probe *p, fl_impl_layout *l) {
  for (unsigned k = 1; k < BODY_WORDS; k++)
    for (unsigned j = 1; j < SMALL_WORDS; j++) {
      bool all = true;
      for (int i = 0; all && i < PROBES; i++) {
        uint64_t small[SMALL_WORDS];
        all = peek((const void *)(uintptr_t)p[i].body[k], small, sizeof small) &&
              small[j] == (uint64_t)(uintptr_t)p[i].base;
      }
      if (!all) continue;
      l->storage = 8 * k;
      l->data = 8 * j;
      return true;
    }
  return false;
}

static bool find_counter(const probe *p, fl_impl_layout *l) {
  for (unsigned k = 1; k < BODY_WORDS; k++)
    for (unsigned j = 2; j < 8; j++) {
      bool all = true;
      for (int i = 0; all && i < PROBES; i++) {
        uint32_t small[8];
        all = peek((const void *)(uintptr_t)p[i].body[k], small, sizeof small) && small[j] == p[i].version;
      }
      if (!all) continue;
      l->counter = 8 * k;
      l->version = 4 * j;
      return true;
    }
  return false;
}

static bool find_offset(const probe *p, unsigned *out) {
  for (unsigned k = 1; k < BODY_WORDS; k++) {
    bool all = true;
    for (int i = 0; all && i < PROBES; i++) all = p[i].body[k] == p[i].offset;
    if (all) return *out = 8 * k, true;
  }
  return false;
}

/* Word k holds the rank, the next FL_IMPL_RANK words the sizes, as many after them the strides. */
static bool shape_at(const probe *p, unsigned k) {
  for (int i = 0; i < PROBES; i++) {
    const uint64_t *at = &p[i].body[k];
    size_t n = (size_t)p[i].rank * sizeof *at;
    if (at[0] != (uint64_t)p[i].rank || memcmp(at + 1, p[i].sizes, n) || memcmp(at + 1 + FL_IMPL_RANK, p[i].strides, n))
      return false;
  }
  return true;
}

/* Two words between storage and counter: the first is set where autograd has been at work, the second nowhere. */
static void find_shapes(const probe *p, fl_impl_layout *l) {
  if (l->counter != l->storage + 24) return;
  for (int i = 0; i < PROBES; i++) {
    if (p[i].body[l->storage / 8 + 2]) return;
    if ((p[i].body[l->storage / 8 + 1] != 0) != p[i].autograd) return;
  }
  for (unsigned k = l->counter / 8 + 1; 8 * (k + 1 + 2 * FL_IMPL_RANK) <= l->offset; k++) {
    if (!shape_at(p, k)) continue;
    l->autograd = l->storage + 8;
    l->extra = l->storage + 16;
    l->rank = 8 * k;
    l->sizes = l->rank + 8;
    l->strides = l->sizes + 8 * FL_IMPL_RANK;
    l->shapes = true;
  }
}

static bool probe_layout(probe *p, fl_impl_layout *l) {
  for (unsigned w = 2; w < OBJECT_WORDS; w++) {
    unsigned offset;
    if ((Py_ssize_t)(8 * w + 8) > Py_TYPE(p[0].tensor)->tp_basicsize || !all_bodies(p, w)) continue;
    if (!find_storage(p, l) || !find_counter(p, l) || !find_offset(p, &offset)) continue;
    if (l->storage > offset || l->counter < l->storage || l->counter > offset) continue;
    l->impl = 8 * w;
    l->offset = offset;
    l->first = l->storage;
    l->length = offset + 32 - l->first; /* to the element count, type and device that follow the offset */
    find_shapes(p, l);
    return l->length <= FL_IMPL_BYTES;
  }
  return false;
}

/* Tensors with known and differing storage, offset and version; pairs that differ in one thing each. */
static PyObject *make_probes(PyObject **out_unlike) {
  static const char code[] =
      "import torch\n"
      "with torch.inference_mode(False), torch.no_grad():\n"
      "    a = torch.zeros(3, 7)\n"
      "    b = torch.nn.Parameter(torch.zeros(11))\n"
      "    c = torch.zeros(40)[13:23]\n"
      "    d = torch.zeros(64)[29:].view(5, 7)\n"
      "    e = torch.zeros(2, 3, 5, 7)\n"
      "    for t, n in (b, 1), (c, 6), (d, 9), (e, 17):\n"
      "        for _ in range(n): t.add_(1)\n"
      "    z = torch.zeros(3, 7, dtype=torch.complex64)\n"
      "    unlike = [(a, torch._neg_view(a)), (z, z.conj()), (a, a.int()), (a, a.bfloat16()), (a, a.half()),\n"
      "              (a, torch.zeros(3, 7, device='meta')), (a, torch.zeros(7, 3).t()), (a, torch.zeros(1, "
      "7).expand(3, 7)),\n"
      "              (a, torch.zeros(3, 8)[:, :7]), (a, torch.zeros(21)), (a, torch.zeros(3, 7, 1)), (a, "
      "a.to_sparse())]\n"
      "probes = [(t, t._version, t.storage_offset(), t.untyped_storage().data_ptr(), t.shape, t.stride(),\n"
      "           t.requires_grad or t._is_view()) for t in (a, b, c, d, e)]\n";
  PyObject *globals = PyDict_New();
  PyObject *done = globals && PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0
                       ? PyRun_String(code, Py_file_input, globals, globals)
                       : NULL;
  PyObject *list = done ? Py_XNewRef(PyDict_GetItemString(globals, "probes")) : NULL;
  *out_unlike = done ? Py_XNewRef(PyDict_GetItemString(globals, "unlike")) : NULL;
  Py_XDECREF(done);
  Py_XDECREF(globals);
  return list;
}

static bool read_numbers(PyObject *tuple, int n, uint64_t *out) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != n) return false;
  for (int i = 0; i < n; i++) out[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, i));
  return !PyErr_Occurred();
}

static bool read_probe(PyObject *row, probe *p) {
  memset(p, 0, sizeof *p);
  p->tensor = PyTuple_GET_ITEM(row, 0);
  p->version = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(row, 1));
  p->offset = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(row, 2));
  p->base = PyLong_AsVoidPtr(PyTuple_GET_ITEM(row, 3));
  p->rank = (int)PyTuple_GET_SIZE(PyTuple_GET_ITEM(row, 4));
  p->autograd = PyTuple_GET_ITEM(row, 6) == Py_True;
  return p->rank <= FL_IMPL_RANK && read_numbers(PyTuple_GET_ITEM(row, 4), p->rank, p->sizes) &&
         read_numbers(PyTuple_GET_ITEM(row, 5), p->rank, p->strides) && !PyErr_Occurred();
}

/* Whether what makes two tensors differ is seen; the layout must be in place. */
static bool tells_apart(PyObject *unlike) {
  bool autograd;
  void *data;
  if (!unlike || !PyList_Check(unlike)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(unlike); i++) {
    PyObject *a = PyTuple_GET_ITEM(PyList_GET_ITEM(unlike, i), 0), *b = PyTuple_GET_ITEM(PyList_GET_ITEM(unlike, i), 1);
    fl_impl_shape s;
    fl_impl_shape_take(a, 2, 4, &s);
    if (!fl_impl_like(a, &s, &autograd, &data) || fl_impl_like(b, &s, &autograd, &data)) return false;
  }
  return true;
}

void fl_impl_init(void) {
  PyObject *unlike = NULL, *list = make_probes(&unlike);
  probe p[PROBES];
  fl_impl_layout l = {0};
  bool ok = list && PyList_Check(list) && PyList_GET_SIZE(list) == PROBES && sizeof(void *) == 8;
  for (int i = 0; ok && i < PROBES; i++) ok = read_probe(PyList_GET_ITEM(list, i), &p[i]);
  if (ok && probe_layout(p, &l)) {
    l.ok = true;
    fl_impl_at = l;
    fl_impl_at.shapes = l.shapes && tells_apart(unlike);
  }
  PyErr_Clear();
  Py_XDECREF(unlike);
  Py_XDECREF(list);
}

void fl_impl_take(PyObject *tensor, int rank, fl_impl_snapshot *out) {
  const fl_impl_layout *l = &fl_impl_at;
  out->ok = false;
  /* From six dimensions on sizes lie elsewhere and may change in place. */
  if (!l->ok || rank > 5) return;
  out->body = fl_impl_pointer((const char *)tensor + l->impl);
  out->storage = fl_impl_pointer(out->body + l->storage);
  out->counter = fl_impl_pointer(out->body + l->counter);
  if (!out->storage || !out->counter) return;
  memset(&out->bytes, 0, sizeof out->bytes);
  memcpy(&out->bytes, out->body + l->first, l->length);
  out->data = (void *)(uintptr_t)fl_impl_pointer(out->storage + l->data);
  memcpy(&out->version, out->counter + l->version, sizeof out->version);
  out->ok = true;
}

void fl_impl_shape_take(PyObject *tensor, int rank, size_t item_size, fl_impl_shape *out) {
  const fl_impl_layout *l = &fl_impl_at;
  memset(out, 0, sizeof *out);
  if (!l->shapes || rank > FL_IMPL_RANK) return;
  const char *body = fl_impl_pointer((const char *)tensor + l->impl);
  memcpy(&out->rank, body + l->rank, sizeof out->rank);
  if (out->rank != (size_t)rank || fl_impl_pointer(body + l->extra) || !fl_impl_pointer(body + l->storage)) return;
  out->bytes = (size_t)rank * sizeof *out->sizes;
  out->item_size = item_size;
  memcpy(out->sizes, body + l->sizes, out->bytes);
  memcpy(out->strides, body + l->strides, out->bytes);
  memcpy(out->tail, body + l->offset + 8, FL_IMPL_TAIL);
  out->ok = true;
}
