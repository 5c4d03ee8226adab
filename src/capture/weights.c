#include "capture/weights.h"

#include <string.h>

const char *fl_weights_add(fl_weights *w, PyObject *tensor, bool own, uint32_t *out_index) {
  fl_weight n = {.tensor = tensor, .epoch = w->epoch};
  if (!fl_tensor_is_plain(tensor)) return "a tensor subclass";
  fl_tensor_read(tensor, &n.meta);
  if (!n.meta.has_data) return "a tensor that is not dense and strided";
  int lazy = fl_tensor_is_lazy(tensor);
  if (lazy < 0) PyErr_Clear();
  if (lazy) return "a lazily conjugated or negated tensor";
  if (!fl_tensor_version(tensor, &n.version) && !own) return "an inference tensor, whose changes cannot be seen";
  n.own = own;
  fl_impl_take(tensor, n.meta.ndim, &n.seen);
  if (!FL_PUSH(&w->list, n)) return "out of memory";
  Py_INCREF(tensor);
  *out_index = (uint32_t)w->list.len - 1;
  return NULL;
}

bool fl_weights_watch(fl_weights *w, uint32_t index) {
  fl_weight *x = &w->list.data[index];
  size_t bytes = fl_type_bytes(&x->meta.type);
  if (x->copy || !x->meta.ok || x->meta.device_type != FL_DEVICE_CPU || !bytes ||
      !fl_is_dense(&x->meta.type, x->meta.strides))
    return true;
  if (!(x->copy = fl_malloc(bytes))) return false;
  memcpy(x->copy, x->meta.data, bytes);
  return true;
}

/* True when the contents differ from the copy, which then is made anew. */
static bool contents_changed(fl_weight *x) {
  size_t bytes = fl_type_bytes(&x->meta.type);
  if (!x->copy || !memcmp(x->copy, x->meta.data, bytes)) return false;
  memcpy(x->copy, x->meta.data, bytes);
  return true;
}

bool fl_weights_check(fl_weights *w) {
  bool changed = false;
  for (size_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    bool other = false;
    if (!x->own && !fl_impl_same(x->tensor, &x->seen)) {
      fl_tensor_meta now;
      int64_t version = 0;
      fl_tensor_read(x->tensor, &now);
      if (!fl_tensor_version(x->tensor, &version) || !fl_tensor_meta_equal(&now, &x->meta)) return false;
      fl_impl_take(x->tensor, now.ndim, &x->seen);
      other = now.data != x->meta.data || version != x->version;
      x->meta.data = now.data;
      x->version = version;
    }
    if (!contents_changed(x) && !other) continue;
    x->epoch = w->epoch + 1;
    changed = true;
  }
  w->epoch += changed;
  return true;
}

void fl_weights_touch(fl_weights *w) {
  w->epoch++;
  for (size_t i = 0; i < w->list.len; i++) w->list.data[i].epoch = w->epoch;
}

void fl_weights_release(fl_weights *w) {
  for (size_t i = 0; i < w->list.len; i++) {
    Py_DECREF(w->list.data[i].tensor);
    fl_free(w->list.data[i].copy);
  }
  fl_free(w->list.data);
  *w = (fl_weights){0};
}
