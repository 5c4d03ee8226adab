#include "capture/schema.h"

#include <string.h>

#include "base/alloc.h"
#include "capture/ptrmap.h"

/* By the overload's address (it is kept): hashing an OpOverload runs Python. */
static fl_ptrmap known;
static FL_VEC(fl_schema *) schemas;

static bool type_has(PyObject *type_str, const char *what) {
  const char *s = PyUnicode_AsUTF8(type_str);
  return s && strstr(s, what);
}

static int attr_true(PyObject *o, const char *name) {
  PyObject *v = PyObject_GetAttrString(o, name);
  if (!v) return -1;
  int t = PyObject_IsTrue(v);
  Py_DECREF(v);
  return t;
}

static int read_arg(PyObject *a, fl_schema_arg *out) {
  if (!(out->name = PyObject_GetAttrString(a, "name")) || !(out->utf8 = PyUnicode_AsUTF8(out->name))) return -1;
  int kw = attr_true(a, "kwarg_only"), has = 0;
  PyObject *fn = PyObject_GetAttrString(a, "has_default_value");
  PyObject *r = fn ? PyObject_CallNoArgs(fn) : NULL;
  if (r) has = PyObject_IsTrue(r);
  Py_XDECREF(fn);
  Py_XDECREF(r);
  if (kw < 0 || !r) return -1;
  out->kwarg_only = kw;
  if (has && !(out->def = PyObject_GetAttrString(a, "default_value"))) return -1;
  PyObject *alias = PyObject_GetAttrString(a, "alias_info");
  if (!alias) return -1;
  int w = alias == Py_None ? 0 : attr_true(alias, "is_write");
  Py_DECREF(alias);
  if (w < 0) return -1;
  out->writes = w;
  PyObject *type = PyObject_GetAttrString(a, "type"), *s = type ? PyObject_Str(type) : NULL;
  Py_XDECREF(type);
  if (!s) return -1;
  out->is_tensors = type_has(s, "List[Tensor]") || type_has(s, "List[Optional[Tensor]]");
  out->is_floats = type_has(s, "List[float]");
  out->is_float = !out->is_floats && type_has(s, "float");
  Py_DECREF(s);
  return 0;
}

#define BEGINS_WITH(name, list) begins_with(name, list, sizeof(list) / sizeof *(list))
static bool begins_with(const char *name, const char *const *list, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!strncmp(name, list[i], strlen(list[i]))) return true;
  return false;
}

/* Element by element, unless it divides; and what moves, casts, joins or adds up. */
static bool is_total(const char *name, bool pointwise) {
  static const char *const divides[] = {"div", "remainder", "fmod", "pow"};
  static const char *const list[] = {
      "aten.to.",      "aten._to_copy.", "aten.clone.",    "aten.contiguous.", "aten.cat.",    "aten.stack.",
      "aten.sum.",     "aten.any.",      "aten.all.",      "aten.amax.",       "aten.amin.",   "aten.cumsum.",
      "aten.arange.",  "aten.full",      "aten.zeros",     "aten.ones",        "aten.new_",    "aten.expand.",
      "aten.view.",    "aten.reshape.",  "aten.flatten.",  "aten.slice.",      "aten.select.", "aten.unsqueeze.",
      "aten.squeeze.", "aten.permute.",  "aten.transpose", "aten.t.",          "aten.tril.",   "aten.triu."};
  for (size_t i = 0; pointwise && i < sizeof divides / sizeof *divides; i++)
    if (strstr(name, divides[i])) return false;
  return pointwise ? !strncmp(name, "aten.", 5) : BEGINS_WITH(name, list);
}

static int read_tags(PyObject *overload, fl_schema *s) {
  PyObject *tags = PyObject_GetAttrString(overload, "tags");
  PyObject *text = tags ? PyObject_Str(tags) : NULL;
  Py_XDECREF(tags);
  if (!text) return -1;
  s->seeded = type_has(text, "nondeterministic_seeded");
  s->dynamic_shape = type_has(text, "dynamic_output_shape");
  s->total = is_total(s->name, type_has(text, "pointwise"));
  Py_DECREF(text);
  return 0;
}

/* Without the tag: composites whose shape comes from what a tensor holds (inference mode shows them whole), and operators
 * of others' libraries, which seldom say. */
static bool is_untagged(const fl_schema *s) {
  static const char *const list[] = {"aten.repeat_interleave.self_Tensor",
                                     "aten.nonzero_numpy.default",
                                     "aten.where.default",
                                     "aten.tensor_split.tensor_indices_or_sections",
                                     "aten._pack_padded_sequence.default",
                                     "aten._pad_packed_sequence.default"};
  static const char *const tagged[] = {"aten.", "prim.", "prims.", "quantized.", "onednn.", "mkldnn."};
  static const char *const fixed[] = {"torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_",
                                      "torchvision.deform_conv2d"};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    if (!strcmp(s->name, list[i])) return true;
  return !BEGINS_WITH(s->name, tagged) && !BEGINS_WITH(s->name, fixed) && !s->writes;
}

static bool is_metadata(const char *name) {
  static const char *const list[] = {
      "aten.is_same_size",   "aten.sym_",    "aten.size.",       "aten.stride.",           "aten.is_floating_point",
      "aten.is_complex",     "aten.dim.",    "aten.numel.",      "aten.is_contiguous",     "aten.storage_offset",
      "prim.layout",         "prim.device",  "aten.is_signed",   "aten._fused_sdp_choice", "aten.is_inference",
      "aten._use_cudnn_ctc", "aten.is_leaf", "aten.result_type", "aten.can_cast",          "aten._has_compatible"};
  return BEGINS_WITH(name, list);
}

static bool is_norm(const char *name) {
  static const char *const list[] = {"aten.native_batch_norm.default", "aten.batch_norm.default",
                                     "aten.cudnn_batch_norm.default",  "aten.miopen_batch_norm.default",
                                     "aten.instance_norm.default",     "aten._batch_norm_impl_index.default"};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++)
    if (!strcmp(name, list[i])) return true;
  return false;
}

static bool is_unfilled(const char *name) {
  static const char *const list[] = {"aten.empty.",          "aten.empty_like.",      "aten.empty_strided.",
                                     "aten.empty_permuted.", "aten.new_empty.",       "aten.new_empty_strided.",
                                     "aten.resize_.",        "aten._resize_output_.", "aten.resize_as_."};
  return BEGINS_WITH(name, list);
}

static bool is_outside(const char *name) {
  static const char *const own[] = {"aten.", "prim.", "prims.", "quantized.", "onednn.", "mkldnn.", "torchvision."};
  return !BEGINS_WITH(name, own);
}

/* 1, 0, or -1. */
static int has_kernel(PyObject *torch, PyObject *name, const char *key) {
  PyObject *has = PyObject_CallMethod(torch, "_dispatch_has_kernel_for_dispatch_key", "Os", name, key);
  int truth = has ? PyObject_IsTrue(has) : -1;
  Py_XDECREF(has);
  return truth;
}

static int read_kernels(PyObject *overload, fl_schema *s) {
  PyObject *torch = PyImport_ImportModule("torch._C");
  PyObject *name = torch ? PyObject_CallMethod(overload, "name", NULL) : NULL;
  int composite = name ? has_kernel(torch, name, "CompositeImplicitAutograd") : -1;
  int cuda = composite < 0 ? -1 : has_kernel(torch, name, "AutocastCUDA");
  int cpu = cuda < 0 ? -1 : has_kernel(torch, name, "AutocastCPU");
  Py_XDECREF(torch);
  Py_XDECREF(name);
  if (cpu < 0) return -1;
  s->composite = composite;
  s->autocast = (unsigned)cuda << FL_AUTOCAST_CUDA | (unsigned)cpu << FL_AUTOCAST_CPU;
  return 0;
}

static fl_schema *read_schema(PyObject *overload) {
  fl_schema *s = fl_calloc(1, sizeof *s);
  PyObject *schema = NULL, *args = NULL;
  if (!s) {
    PyErr_NoMemory();
    return NULL;
  }
  if (!(s->op = PyObject_GetAttrString(overload, "_op"))) goto fail;
  if (!(s->name_object = PyObject_Str(overload)) || !(s->name = PyUnicode_AsUTF8(s->name_object))) goto fail;
  if (!(schema = PyObject_GetAttrString(overload, "_schema"))) goto fail;
  if (!(args = PyObject_GetAttrString(schema, "arguments")) || !PyList_Check(args)) goto fail;
  s->n_args = (int)PyList_GET_SIZE(args);
  if (!(s->args = fl_calloc((size_t)s->n_args + 1, sizeof *s->args))) goto fail;
  for (int i = 0; i < s->n_args; i++) {
    if (read_arg(PyList_GET_ITEM(args, i), &s->args[i]) < 0) goto fail;
    s->writes |= s->args[i].writes;
  }
  if (read_tags(overload, s) < 0 || read_kernels(overload, s) < 0) goto fail;
  s->is_index = !strcmp(s->name, "aten.index.Tensor") || !strcmp(s->name, "aten._unsafe_index.Tensor");
  s->lifts = !strcmp(s->name, "aten.lift_fresh.default");
  s->dynamic_shape = s->dynamic_shape || is_untagged(s);
  s->metadata = is_metadata(s->name);
  s->norm = is_norm(s->name);
  s->unfilled = is_unfilled(s->name);
  s->outside = is_outside(s->name);
  s->overload = Py_NewRef(overload);
  Py_DECREF(args);
  Py_DECREF(schema);
  return s;
fail: /* happens at most once per operator and process: what was read so far is left to live */
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "framelift: an operator's schema has an unknown form");
  Py_XDECREF(args);
  Py_XDECREF(schema);
  return NULL;
}

const fl_schema *fl_schema_get(PyObject *overload) {
  uint32_t at;
  if (fl_ptrmap_get(&known, overload, &at)) return schemas.data[at];
  fl_schema *s = read_schema(overload);
  if (!s) return NULL;
  if (!FL_PUSH(&schemas, s) || !fl_ptrmap_set(&known, overload, (uint32_t)schemas.len - 1)) {
    PyErr_NoMemory();
    return NULL;
  }
  return s;
}

int fl_schema_find(const fl_schema *s, const char *arg) {
  for (int i = 0; i < s->n_args; i++)
    if (!strcmp(s->args[i].utf8, arg)) return i;
  return -1;
}
