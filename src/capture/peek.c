#define _GNU_SOURCE
#include "capture/peek.h"

#include <dlfcn.h>
#include <link.h>

#include "capture/interop.h"

/* Where a thread-local variable lies, as the dynamic linker wants it told. */
typedef struct tls_index {
  unsigned long module, offset;
} tls_index;
extern void *__tls_get_addr(tls_index *);

static struct {
  bool ok, grad_ok;
  tls_index keys;
  bool (*inference)(void), (*grad)(void);
  int64_t (*function_depth)(void);
  int (*functions_off)(void);
  signed char (*default_dtype)(void);
  bool (*deterministic)(const void *context);
  const void *context;
  void *const *(*tracing)(void);
  uint64_t functorch; /* its dispatch keys */
} P;

static bool find_keys(void *c10) {
  const char *at = dlsym(c10, "_ZN3c104impl26raw_local_dispatch_key_setE");
  size_t module = 0;
  char *block = NULL;
  if (!at || dlinfo(c10, RTLD_DI_TLS_MODID, &module) || !module || dlinfo(c10, RTLD_DI_TLS_DATA, &block) || !block)
    return false;
  P.keys = (tls_index){module, (unsigned long)(at - block)};
  return __tls_get_addr(&P.keys) == at;
}

/* Function pointers out of object pointers, as dlsym gives them. */
#define FIND(to, lib, name)                                                                                            \
  do {                                                                                                                 \
    void *found = dlsym(lib, name);                                                                                    \
    if (!found) return false;                                                                                          \
    memcpy(&(to), &found, sizeof found);                                                                               \
  } while (0)

static bool find_all(void *c10, void *cpu) {
  const void *(*context)(void);
  FIND(P.inference, c10, "_ZN3c1013InferenceMode10is_enabledEv");
  FIND(P.grad, c10, "_ZN3c108GradMode10is_enabledEv");
  FIND(P.default_dtype, c10, "_ZN3c1031get_default_dtype_as_scalartypeEv");
  FIND(P.function_depth, cpu, "_ZN2at4impl22PythonTorchFunctionTLS9stack_lenEv");
  FIND(P.functions_off, cpu, "_ZN2at4impl22PythonTorchFunctionTLS18get_disabled_stateEv");
  FIND(P.deterministic, cpu, "_ZNK2at7Context23deterministicAlgorithmsEv");
  FIND(P.tracing, cpu, "_ZN5torch3jit6tracer15getTracingStateEv");
  FIND(context, cpu, "_ZN2at13globalContextEv");
  P.context = context();
  return P.context && find_keys(c10);
}

bool fl_peek_print(fl_print *out) {
  if (!P.ok || *P.tracing()) return false;
  const uint64_t *keys = __tls_get_addr(&P.keys);
  /* While functorch works it takes its keys out and in again. */
  if ((keys[0] | keys[1]) & P.functorch) return false;
  out->included = keys[0];
  out->excluded = keys[1];
  out->functions = (uint64_t)P.function_depth() << 8 | (unsigned char)P.functions_off();
  out->rest =
      (uint64_t)(unsigned char)P.default_dtype() << 2 | (uint64_t)P.deterministic(P.context) << 1 | P.inference();
  return true;
}

int fl_peek_grad(void) { return P.grad_ok ? P.grad() : -1; }

int fl_peek_inference(void) { return P.ok ? P.inference() : -1; }

/* --- the experiment --- */

static PyObject *look(PyObject *self, PyObject *unused) {
  fl_print p;
  if (!fl_peek_print(&p)) Py_RETURN_NONE;
  return Py_BuildValue("(KKKKi)", (unsigned long long)p.included, (unsigned long long)p.excluded,
                       (unsigned long long)p.functions, (unsigned long long)p.rest, fl_peek_grad());
}

static PyMethodDef look_def = {"look", look, METH_NOARGS, NULL};

/* True if each change is seen while it lasts and gone afterwards, and a thread of its own sees none. */
static const char code[] =
    "import threading, torch\n"
    "from torch.overrides import TorchFunctionMode\n"
    "from torch.utils._python_dispatch import TorchDispatchMode\n"
    "class Mode(TorchDispatchMode):\n"
    "    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))\n"
    "class Flag:\n"
    "    def __init__(self, get, set, value): self.get, self.set, self.value = get, set, value\n"
    "    def __enter__(self): self.old = self.get(); self.set(self.value)\n"
    "    def __exit__(self, *e): self.set(self.old)\n"
    "other = torch.float64 if torch.get_default_dtype() != torch.float64 else torch.float32\n"
    "flip = not torch._C._get_deterministic_algorithms()\n"
    "changes = [lambda: torch.inference_mode(), lambda: torch.autocast('cpu'), TorchFunctionMode, Mode,\n"
    "    torch._C.DisableTorchFunction, torch._C.DisableTorchFunctionSubclass,\n"
    "    lambda: Flag(torch.get_default_dtype, torch.set_default_dtype, other),\n"
    "    lambda: Flag(torch._C._get_deterministic_algorithms, torch._C._set_deterministic_algorithms, flip)]\n"
    "seen, there, flags = [], [], []\n"
    "with torch.inference_mode(False):\n"
    "    base = look()\n"
    "    for change in changes:\n"
    "        with change():\n"
    "            now = look()\n"
    "            t = threading.Thread(target=lambda: there.append(look()[:3])) if not seen else None\n"
    "            if t: t.start(), t.join()\n"
    "        seen += [now is not None and now[:4] != base[:4], look() == base]\n"
    "    torch._C._functorch._vmap_increment_nesting(1, 'error')\n"
    "    try: keys = (look()[0] ^ base[0]) & look()[0]\n"
    "    finally: torch._C._functorch._vmap_decrement_nesting()\n"
    "    for on in (True, False):\n"
    "        with torch.set_grad_enabled(on): flags.append(look()[4] == on)\n"
    "prints = base is not None and all(seen) and there == [base[:3]]\n"
    "grads = all(flags)\n";

static bool is_true(PyObject *globals, const char *name) { return PyDict_GetItemString(globals, name) == Py_True; }

void fl_peek_init(void) {
  void *c10 = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD), *cpu = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  fl_torch_state s;
  /* In an unusual state the experiment would prove nothing. */
  bool plain = fl_torch_state_read(&s) == 0 && !fl_torch_state_why_not(&s);
  if (!c10 || !cpu || !plain || !find_all(c10, cpu)) return PyErr_Clear();
  P.ok = P.grad_ok = true;
  PyObject *globals = PyDict_New(), *fn = PyCFunction_New(&look_def, NULL), *done = NULL;
  if (globals && fn && PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0 &&
      PyDict_SetItemString(globals, "look", fn) == 0)
    done = PyRun_String(code, Py_file_input, globals, globals);
  P.grad_ok = done && is_true(globals, "grads");
  P.ok = done && is_true(globals, "prints");
  PyObject *keys = done ? PyDict_GetItemString(globals, "keys") : NULL;
  P.functorch = keys ? PyLong_AsUnsignedLongLongMask(keys) : 0;
  P.ok = P.ok && P.functorch && !PyErr_Occurred();
  PyErr_Clear();
  if (globals) PyDict_Clear(globals); /* its functions refer to it */
  Py_XDECREF(done);
  Py_XDECREF(fn);
  Py_XDECREF(globals);
}
