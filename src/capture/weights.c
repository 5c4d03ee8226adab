#include "capture/weights.h"

const char *fl_weights_add(fl_weights *w, PyObject *tensor, uint32_t *out_index) {
  fl_weight n = {.tensor = tensor, .epoch = w->epoch};
  if (!fl_tensor_is_plain(tensor)) return "a tensor subclass";
  fl_tensor_read(tensor, &n.meta);
  if (!n.meta.has_data) return "a tensor that is not dense and strided";
  int lazy = fl_tensor_is_lazy(tensor);
  if (lazy < 0) PyErr_Clear();
  if (lazy) return "a lazily conjugated or negated tensor";
  if (!fl_tensor_version(tensor, &n.version)) return "an inference tensor, whose changes cannot be seen";
  if (!FL_PUSH(&w->list, n)) return "out of memory";
  Py_INCREF(tensor);
  *out_index = (uint32_t)w->list.len - 1;
  return NULL;
}

bool fl_weights_check(fl_weights *w) {
  bool changed = false;
  for (size_t i = 0; i < w->list.len; i++) {
    fl_weight *x = &w->list.data[i];
    fl_tensor_meta now;
    int64_t version = 0;
    fl_tensor_read(x->tensor, &now);
    if (!fl_tensor_version(x->tensor, &version)) return false;
    if (now.data == x->meta.data && version == x->version && now.type.rank == x->meta.type.rank) continue;
    if (!fl_tensor_meta_equal(&now, &x->meta)) return false;
    x->meta.data = now.data;
    x->version = version;
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
  for (size_t i = 0; i < w->list.len; i++) Py_DECREF(w->list.data[i].tensor);
  fl_free(w->list.data);
  *w = (fl_weights){0};
}
