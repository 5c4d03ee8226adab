#include "capture/weights.h"

#include <string.h>

#include "capture/shared.h"

enum { WORD = sizeof(uint64_t), MAX_COMPARED = 16384 };

/* --- a few elements --- */

/* Other processes and inference mode change weights that are looked at in other ways. */
static bool is_sampled(const fl_weight *x) {
  return !x->own && !x->unversioned && !x->shared && x->meta.ok && x->meta.device_type == FL_DEVICE_CPU &&
         x->meta.data && fl_type_bytes(&x->meta.type);
}

static fl_sample sample_of(const fl_weight *x) {
  fl_sample s = {.taken = is_sampled(x)};
  size_t bytes = fl_type_bytes(&x->meta.type), last = bytes - 2 * WORD;
  if (!s.taken) return s;
  if (bytes < 2 * WORD || !fl_is_dense(&x->meta.type, x->meta.strides)) {
    s.word[0] = fl_memory_hash(&x->meta, 0);
    return s;
  }
  for (size_t i = 0; i < FL_SAMPLE_PLACES; i++) {
    s.at[i] = (const char *)x->meta.data + last * i / (FL_SAMPLE_PLACES - 1);
    memcpy(s.word + 2 * i, s.at[i], 2 * WORD);
  }
  return s;
}

static void take_sample(fl_weight *x) { x->sample = sample_of(x); }

/* True when they are other elements than before, which is remembered then. */
static bool sample_changed(fl_weight *x) {
  fl_sample now = sample_of(x);
  bool changed = x->sample.taken && memcmp(now.word, x->sample.word, sizeof now.word) != 0;
  x->sample = now;
  return changed;
}

static bool watch_sample(fl_weights *w, const fl_weight *x) {
  for (size_t i = 0; i < FL_SAMPLE_PLACES; i++) {
    fl_watch_pair pair = {x->sample.at[i], {x->sample.word[2 * i], x->sample.word[2 * i + 1]}};
    if (!FL_PUSH(&w->elements, pair)) return false;
  }
  return true;
}

uint64_t fl_weights_moves;

const char *fl_weights_add(fl_weights *w, PyObject *tensor, bool own, uint32_t *out_index) {
  fl_weight n = {.tensor = tensor, .epoch = w->epoch};
  if (!fl_tensor_is_plain(tensor)) return "a tensor subclass";
  fl_tensor_read(tensor, &n.meta);
  if (!n.meta.has_data) return "a tensor that is not dense and strided";
  int lazy = fl_tensor_is_lazy(tensor);
  if (lazy < 0) PyErr_Clear();
  if (lazy) return "a lazily conjugated or negated tensor";
  n.unversioned = !fl_tensor_version(tensor, &n.version) && !own;
  n.own = own;
  n.shared = !own && fl_tensor_is_shared(tensor, &n.meta);
  n.witness = -1;
  take_sample(&n);
  fl_impl_take(tensor, n.meta.ndim, &n.seen);
  if (!FL_PUSH(&w->list, n)) return "out of memory";
  Py_INCREF(tensor);
  fl_weights_moves++;
  *out_index = (uint32_t)w->list.len - 1;
  if (!own) w->list.data[*out_index].storage = fl_storage_hold(tensor);
  w->watched = false;
  w->unstamped = true;
  if (!(n.unversioned || n.shared) || !n.meta.ok || fl_type_bytes(&n.meta.type) > MAX_COMPARED) return NULL;
  return fl_weights_watch(w, *out_index) ? NULL : "out of memory";
}

/* --- contents: the elements one after the other, in the order of memory where they fill it --- */

/* From axis `axis` on, of what lies at `at`. */
static bool runs(const fl_tensor_meta *m, int axis, const char *at, char **flat, bool compare) {
  const int64_t *dims = m->type.dims, stride = axis < m->ndim ? m->strides[axis] : 0;
  bool row = axis == m->ndim - 1 && stride == 1;
  if (row || axis == m->ndim) {
    size_t bytes = m->item_size * (size_t)(row ? dims[axis] : 1);
    char *to = *flat;
    *flat += bytes;
    return compare ? !memcmp(to, at, bytes) : (memcpy(to, at, bytes), true);
  }
  for (int64_t i = 0; i < dims[axis]; i++)
    if (!runs(m, axis + 1, at + i * stride * (int64_t)m->item_size, flat, compare)) return false;
  return true;
}

/* Takes the elements at `data` to `flat`, or compares them with it. */
static bool contents(const fl_tensor_meta *m, const void *data, void *flat, bool compare) {
  size_t bytes = fl_type_bytes(&m->type);
  char *at = flat;
  if (!fl_is_dense(&m->type, m->strides)) return runs(m, 0, data, &at, compare);
  return compare ? !memcmp(flat, data, bytes) : (memcpy(flat, data, bytes), true);
}

bool fl_weight_holds_copy(const fl_weight *x) { return contents(&x->meta, x->meta.data, x->copy, true); }

static void forget_stamp(fl_weights *w, fl_weight *x) {
  x->stamp = 0;
  w->unstamped = true;
}

static void take_contents(const fl_weight *x, const void *data) { (void)contents(&x->meta, data, x->copy, false); }

bool fl_weights_watch(fl_weights *w, uint32_t index) {
  fl_weight *x = &w->list.data[index];
  size_t bytes = fl_type_bytes(&x->meta.type);
  if (x->copy || !x->meta.ok || x->meta.device_type != FL_DEVICE_CPU || !bytes) return true;
  if (!(x->copy = fl_malloc(bytes))) return false;
  take_contents(x, x->meta.data);
  forget_stamp(w, x);
  w->watched = false;
  return true;
}

bool fl_weights_freeze(fl_weights *w, uint32_t index) {
  fl_weight *x = &w->list.data[index];
  size_t bytes = fl_type_bytes(&x->meta.type);
  if (x->own || x->frozen || !bytes) return true;
  if (!(x->frozen = fl_malloc(bytes))) return false;
  memcpy(x->frozen, x->meta.data, bytes);
  return true;
}

bool fl_weights_witness(fl_weights *w, uint32_t index, PyObject *tensor) {
  fl_witness n = {.tensor = tensor};
  fl_tensor_meta m;
  fl_tensor_read(tensor, &m);
  if (!fl_tensor_is_plain(tensor) || !m.has_data || !fl_tensor_version(tensor, &n.version)) return true;
  fl_impl_take(tensor, m.ndim, &n.seen);
  for (int i = 0; i < (int)w->witnesses.len; i++)
    if (w->witnesses.data[i].tensor == tensor) return w->list.data[index].witness = i, true;
  if (!FL_PUSH(&w->witnesses, n)) return false;
  Py_INCREF(tensor);
  w->witnesses.data[w->witnesses.len - 1].storage = fl_storage_hold(tensor);
  w->list.data[index].witness = (int)w->witnesses.len - 1;
  w->watched = false;
  return true;
}

uint32_t fl_weights_remove(fl_weights *w, uint32_t index) {
  uint32_t last = (uint32_t)--w->list.len;
  PyObject *tensor = w->list.data[index].tensor;
  fl_storage_let_go(w->list.data[index].storage);
  w->list.data[index] = w->list.data[last];
  w->watched = false;
  Py_DECREF(tensor);
  return last;
}

/* --- the memory that shows that nothing has changed --- */

static bool can_watch_elements(const fl_weight *x) {
  size_t bytes = fl_type_bytes(&x->meta.type);
  return (uintptr_t)x->meta.data % WORD == 0 && bytes % WORD == 0 && bytes >= 2 * WORD &&
         fl_is_dense(&x->meta.type, x->meta.strides);
}

/* A few elements side by side, in lines of memory spread over the tensor: both ends, where views of a part begin and end, and
 * between. */
static bool watch_elements(fl_weights *w, const fl_weight *x) {
  enum { PLACES = 5 };
  const size_t last = fl_type_bytes(&x->meta.type) / WORD - 2; /* where a pair can begin */
  const char *data = x->meta.data, *copy = x->copy;
  for (size_t i = 0; i < PLACES; i++) {
    size_t at = last * i / (PLACES - 1) * WORD;
    fl_watch_pair pair = {data + at, {fl_word(copy + at), fl_word(copy + at + WORD)}};
    if (!FL_PUSH(&w->elements, pair)) return false;
  }
  return true;
}

static bool watch_weight(fl_weights *w, uint32_t i) {
  const fl_weight *x = &w->list.data[i];
  bool words = x->own || fl_bodies_can(&x->seen), contents = !x->copy || (x->witness >= 0 && can_watch_elements(x));
  bool sampled = !x->copy && x->sample.taken;
  if (!words || !contents || (x->shared && (x->copy || x->frozen)) || (sampled && !x->sample.at[0]))
    return FL_PUSH(&w->loose, i);
  return (x->own || fl_bodies_add(&w->bodies, x->tensor, &x->seen)) && (!x->copy || watch_elements(w, x)) &&
         (!sampled || watch_sample(w, x));
}

/* All is as the list says now. False when it cannot be told that quickly. */
static bool watch(fl_weights *w) {
  bool ok = true;
  fl_bodies_clear(&w->bodies);
  w->elements.len = w->loose.len = 0;
  for (uint32_t i = 0; ok && i < w->list.len; i++) ok = watch_weight(w, i);
  for (size_t i = 0; ok && i < w->witnesses.len; i++) {
    const fl_witness *x = &w->witnesses.data[i];
    ok = fl_bodies_can(&x->seen) && fl_bodies_add(&w->bodies, x->tensor, &x->seen);
  }
  fl_bodies_sort(&w->bodies);
  return ok;
}

static bool nothing_changed(const fl_weights *w) {
  return w->watched && fl_bodies_same(&w->bodies) && fl_watch_pairs_same(&w->elements);
}

/* --- one after the other --- */

/* True when the contents differ from the copy, which then is made anew. */
static bool contents_changed(fl_weight *x) {
  if (!x->copy || fl_weight_holds_copy(x)) return false;
  x->stamp = 0;
  take_contents(x, x->meta.data);
  return true;
}

/* Its elements may lie where those of another storage lay, which is gone: address and version do not tell. */
static bool is_in_another(PyObject *tensor, uint64_t *storage) {
  uint64_t now = fl_storage_hold(tensor);
  bool other = now != *storage;
  uint64_t gone = other ? *storage : now;
  *storage = now;
  fl_storage_let_go(gone); /* last of all: another thread may come to look at the same weight meanwhile */
  return other;
}

static bool witness_changed(fl_witness *x) {
  int64_t version = 0;
  fl_tensor_meta now;
  if (fl_impl_same(x->tensor, &x->seen)) return false;
  fl_tensor_read(x->tensor, &now);
  bool same = fl_tensor_version(x->tensor, &version) && version == x->version;
  if (is_in_another(x->tensor, &x->storage)) same = false;
  x->version = version;
  fl_impl_take(x->tensor, now.ndim, &x->seen);
  return !same;
}

/* False when the tensor is another kind of tensor now. */
static bool look_at(fl_weight *x, bool *other) {
  fl_tensor_meta now;
  int64_t version = 0;
  if (x->own || fl_impl_same(x->tensor, &x->seen)) return true;
  fl_tensor_read(x->tensor, &now);
  if (fl_tensor_version(x->tensor, &version) == x->unversioned || !fl_tensor_meta_equal(&now, &x->meta)) return false;
  fl_impl_take(x->tensor, now.ndim, &x->seen);
  *other = is_in_another(x->tensor, &x->storage) || now.data != x->meta.data || version != x->version;
  if (*other) x->stamp = 0;
  if (now.data != x->meta.data) {
    fl_weights_moves++;
    fl_shared_forget();
    if (fl_tensor_is_shared(x->tensor, &now) != x->shared) return x->seen.ok = false;
  }
  x->meta.data = now.data;
  x->version = version;
  return true;
}

/* To be compared on the next check, though nothing may have changed by then. */
static void compare_again(fl_weight *x) {
  x->stamp = 0;
  x->version = -1;
  x->seen.ok = false;
}

static bool still_frozen(fl_weight *x) {
  if (!x->frozen || !memcmp(x->frozen, x->meta.data, fl_type_bytes(&x->meta.type))) return true;
  compare_again(x);
  return false;
}

/* False as above. *changed is set where it has new contents or a new place. */
static bool check_weight(fl_weights *w, uint32_t i, bool *changed) {
  fl_weight *x = &w->list.data[i];
  bool other = false;
  w->unstamped = true; /* if it changes */
  if (!look_at(x, &other)) return false;
  if (!x->copy && sample_changed(x)) {
    x->stamp = 0;
    other = true;
  }
  if ((other || x->unversioned || x->shared) && !still_frozen(x)) return false;
  if (!contents_changed(x) && !other) return true;
  x->epoch = w->epoch + 1;
  return *changed = true;
}

/* What lies in the memory of a changed weight has changed with it; versions are shared by views, not by `.data =`. `ok`
 * if all have been looked at; false when a frozen one no longer has its contents. */
static bool touch_overlapping(fl_weights *w, bool ok) {
  const char *lo, *hi, *a, *b;
  for (size_t i = 0; i < w->list.len; i++) {
    const fl_weight *x = &w->list.data[i];
    if (x->epoch != w->epoch + 1 || !fl_tensor_extent(&x->meta, &lo, &hi)) continue;
    for (size_t k = 0; k < w->list.len; k++) {
      fl_weight *y = &w->list.data[k];
      if (y->epoch == x->epoch || !fl_tensor_extent(&y->meta, &a, &b) || a >= hi || lo >= b) continue;
      y->epoch = x->epoch;
      forget_stamp(w, y);
      if (!ok)
        compare_again(y);
      else
        ok = still_frozen(y);
    }
  }
  return ok;
}

/* False as above; *changed as well when the check ends early. */
static bool look_at_each(fl_weights *w, bool *changed) {
  for (size_t i = 0; i < w->witnesses.len; i++)
    if (witness_changed(&w->witnesses.data[i]))
      for (size_t k = 0; k < w->list.len; k++)
        if (w->list.data[k].witness == (int)i && !w->list.data[k].copy) {
          w->list.data[k].epoch = w->epoch + 1;
          forget_stamp(w, &w->list.data[k]);
          *changed = true;
        }
  bool ok = true;
  for (uint32_t i = 0; i < w->list.len && ok; i++) ok = check_weight(w, i, changed);
  return ok;
}

static bool check_each(fl_weights *w) {
  bool changed = false, ok = look_at_each(w, &changed);
  if (changed) ok = touch_overlapping(w, ok);
  w->epoch += changed; /* engines are behind even where the trace does not fit this time */
  return ok;
}

bool fl_weights_check(fl_weights *w) {
  if (nothing_changed(w)) {
    bool changed = false, ok = true;
    for (size_t i = 0; i < w->loose.len && ok; i++) ok = check_weight(w, w->loose.data[i], &changed);
    if (changed) ok = touch_overlapping(w, ok);
    w->epoch += changed;
    return ok;
  }
  w->watched = false;
  if (!check_each(w)) return false;
  w->watched = watch(w);
  return true;
}

void fl_replacement_take(PyObject *tensor, fl_replacement *out) {
  fl_tensor_meta now;
  fl_tensor_read(tensor, &now);
  *out = (fl_replacement){.tensor = Py_NewRef(tensor), .data = now.data};
  if (!fl_tensor_version(tensor, &out->version)) out->version = 0;
  fl_impl_take(tensor, now.ndim, &out->seen);
  out->storage = fl_storage_hold(tensor);
}

void fl_replacement_free(fl_replacement *r) {
  if (!r->tensor) return;
  fl_storage_let_go(r->storage);
  Py_CLEAR(r->tensor);
}

#define EXCHANGE(a, b)                                                                                                 \
  do {                                                                                                                 \
    __typeof__(a) exchanged_ = (a);                                                                                    \
    (a) = (b);                                                                                                         \
    (b) = exchanged_;                                                                                                  \
  } while (0)

void fl_weights_replace(fl_weights *w, uint32_t index, fl_replacement *by) {
  fl_weight *x = &w->list.data[index];
  EXCHANGE(x->tensor, by->tensor);
  EXCHANGE(x->storage, by->storage);
  x->meta.data = by->data;
  fl_weights_moves++;
  x->version = by->version;
  x->seen = by->seen;
  if (x->copy) take_contents(x, by->data);
  take_sample(x);
  x->epoch = ++w->epoch;
  forget_stamp(w, x);
  w->watched = false;
}

void fl_weights_replace_witness(fl_weights *w, uint32_t index, fl_replacement *by) {
  fl_witness *x = &w->witnesses.data[index];
  EXCHANGE(x->tensor, by->tensor);
  EXCHANGE(x->storage, by->storage);
  x->version = by->version;
  x->seen = by->seen;
  w->epoch++;
  for (size_t i = 0; i < w->list.len; i++)
    if (w->list.data[i].witness == (int)index) {
      w->list.data[i].epoch = w->epoch;
      forget_stamp(w, &w->list.data[i]);
    }
  w->watched = false;
}

void fl_weights_touch(fl_weights *w) {
  w->epoch++;
  for (size_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    x->epoch = w->epoch;
    forget_stamp(w, x);
    if (!x->frozen) continue;
    compare_again(x);
    w->watched = false;
  }
}

void fl_weights_release(fl_weights *w) {
  fl_family_leave(w);
  for (size_t i = 0; i < w->list.len; i++) {
    fl_storage_let_go(w->list.data[i].storage);
    Py_DECREF(w->list.data[i].tensor);
    fl_free(w->list.data[i].copy);
    fl_free(w->list.data[i].frozen);
  }
  for (size_t i = 0; i < w->witnesses.len; i++) {
    fl_storage_let_go(w->witnesses.data[i].storage);
    Py_DECREF(w->witnesses.data[i].tensor);
  }
  fl_free(w->list.data);
  fl_free(w->witnesses.data);
  fl_bodies_release(&w->bodies);
  fl_free(w->elements.data);
  fl_free(w->loose.data);
  *w = (fl_weights){0};
}
