/* The opcode switch of CPython 3.12 and 3.13: their own instructions, and those all versions have (loop_common.inl).
 *
 * Works on the real frame's own locals and operand stack, so that a frame can be given to ceval before any instruction.
 * The callee disposes of its frame here. 3.13 exports what does so; on 3.12 ceval is given the frame for its last
 * instruction: the return, the raise without a handler, or (throwflag) the instruction that failed. */
#define FL_PY312_OPCODES
#include "capture/cpython/py312.h"
#include "capture/eval_impl.h"

#if FL_CPYTHON == 312 || FL_CPYTHON == 313

#if FL_CPYTHON == 312
static bool breaker(PyThreadState *ts) { return _Py_atomic_load_relaxed(&ts->interp->ceval.eval_breaker); }
static void async_exc_served(PyThreadState *ts) { ts->interp->ceval.pending.async_exc = 0; }
#else
static bool breaker(PyThreadState *ts) {
  return _Py_atomic_load_uintptr_relaxed(&ts->eval_breaker) & _PY_EVAL_EVENTS_MASK;
}
static void async_exc_served(PyThreadState *ts) { _Py_unset_eval_breaker_bit(ts, _PY_ASYNC_EXCEPTION_BIT); }
#endif

/* Signals (and a due garbage collection), pending calls, exceptions sent to this thread, other threads' wish for the
 * GIL. */
static int serve_breaker(PyThreadState *ts) {
  if (PyErr_CheckSignals() < 0 || Py_MakePendingCalls() < 0) return -1;
  if (ts->async_exc) {
    PyObject *exc = ts->async_exc;
    ts->async_exc = NULL;
    async_exc_served(ts);
    PyErr_SetNone(exc);
    Py_DECREF(exc);
    return -1;
  }
  /* Taking the GIL again also recomputes the breaker. */
  PyThreadState *saved = PyEval_SaveThread();
  PyEval_RestoreThread(saved);
  return 0;
}

#define HANDLED() fl_exc_handler(code, (int)(at - first), &level, &target, &lasti)
/* Before an instruction that raises again as it was: the frame's end is ceval's business. */
#if FL_CPYTHON == 312
#define NATIVE_IF_UNHANDLED()                                                                                          \
  do {                                                                                                                 \
    if (!HANDLED()) goto finish;                                                                                       \
  } while (0)
#else
#define NATIVE_IF_UNHANDLED() ((void)0)
#endif
#include "capture/cpython/loop_helpers.inl"

/* A callable and its self, or NULL, lie in this order. */
#if FL_CPYTHON == 312
#define PUSH_CALLABLE(callable, self)                                                                                  \
  do {                                                                                                                 \
    PyObject *callable_ = (callable), *self_ = (self);                                                                 \
    if (self_) {                                                                                                       \
      PUSH(callable_);                                                                                                 \
      PUSH(self_);                                                                                                     \
    } else {                                                                                                           \
      PUSH(NULL);                                                                                                      \
      PUSH(callable_);                                                                                                 \
    }                                                                                                                  \
  } while (0)
/* An attribute to be called takes the object's place, in a break. */
#define IN_METHOD()                                                                                                    \
  do {                                                                                                                 \
    TOP() = NULL;                                                                                                      \
    IN_CALL(0);                                                                                                        \
  } while (0)
enum { COMPARE_SHIFT = 4, AFTER_LOOP = 1 /* FOR_ITER jumps past END_FOR */ };
#else
#define PUSH_CALLABLE(callable, self)                                                                                  \
  do {                                                                                                                 \
    PyObject *callable_ = (callable), *self_ = (self);                                                                 \
    PUSH(callable_);                                                                                                   \
    PUSH(self_);                                                                                                       \
  } while (0)
#define IN_METHOD()                                                                                                    \
  do {                                                                                                                 \
    IN_CALL(1);                                                                                                        \
    here.wants = FL_CPY_NULL;                                                                                          \
  } while (0)
enum { COMPARE_SHIFT = 5, AFTER_LOOP = 2 /* FOR_ITER jumps past END_FOR, POP_TOP */ };
#endif

/* The call of `oparg` arguments on the stack. Pops everything; new reference or NULL. */
static PyObject *call_on_stack(fl_rec *r, PyObject **sp, unsigned oparg, PyObject *kwnames) {
#if FL_CPYTHON == 312
  bool method = PEEK(oparg + 2) != NULL;
  PyObject **where = method ? &PEEK(oparg + 2) : &PEEK(oparg + 1);
#else
  bool method = PEEK(oparg + 1) != NULL;
  PyObject **where = &PEEK(oparg + 2);
#endif
  PyObject *fn = *where, *res;
  if (!method && Py_IS_TYPE(fn, &PyMethod_Type)) {
    /* The free slot below the arguments takes self, as ceval does. */
    PyObject *self = PyMethod_GET_SELF(fn), *func = PyMethod_GET_FUNCTION(fn);
    PEEK(oparg + 2) = Py_NewRef(func);
    PEEK(oparg + 1) = Py_NewRef(self);
    Py_DECREF(fn);
    fn = func;
    method = true;
  }
  int total = (int)oparg + method;
  PyObject **args = sp - total;
  size_t npos = (size_t)total - (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0);
  res = fl_call(r, fn, args, npos | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
  Py_DECREF(fn);
  for (int i = 0; i < total; i++) Py_DECREF(args[i]);
  return res;
}

/* super().name: pops nothing; new reference or NULL. */
static PyObject *super_attr(fl_rec *r, PyObject *super_type, PyObject **class_self, size_t n, PyObject *name) {
  PyObject *super = fl_call(r, super_type, class_self, n, NULL), *v;
  if (!super) return NULL;
  v = fl_attr_get(r, super, name);
  Py_DECREF(super);
  return v;
}

static PyObject *make_slice(PyObject *start, PyObject *stop) {
  PyObject *slice = PySlice_New(start, stop, NULL);
  Py_DECREF(start);
  Py_DECREF(stop);
  return slice;
}

/* The value of a generator that ended, out of StopIteration; takes exc. NULL: another exception. */
static PyObject *stop_value(PyObject *exc) {
  if (!PyErr_GivenExceptionMatches(exc, PyExc_StopIteration)) return NULL;
  PyObject *v = ((PyStopIterationObject *)exc)->value;
  return Py_NewRef(v ? v : Py_None);
}

PyObject *fl_cpy_eval(PyThreadState *ts, fl_frame *f, int throwflag) {
  /* ceval raises RecursionError, and disposes of the frame. */
  if (ts->py_recursion_remaining <= 0) return fl_cpy_native(ts, f, throwflag);
  ts->py_recursion_remaining--;
  fl_frame *below = FRAME_TOP(ts);
  PyCodeObject *code = FRAME_CODE(f);
  _Py_CODEUNIT *first = _PyCode_CODE(code), *ip = FRAME_AT(f) + FL_NEXT_IS, *start = ip, *at = ip - 1;
  PyObject **locals = f->localsplus, **base = locals + code->co_nlocalsplus, **sp = locals + f->stacktop;
  PyObject *kwnames = NULL, *result = NULL;
  fl_rec *r = fl_eval_here->r;
  unsigned opcode = 0, oparg = 0;
  int level, target;
  bool lasti;
  if (r && fl_rec_gave_up(r)) r = NULL;
  fl_eval_state *st = fl_eval_here;
  fl_eval_frame here = {st->top, f, st->entry, base, -1, 0, FL_CPY_ANSWER, 0};
  st->entry = NULL;
  st->top = &here;

  f->previous = below;
  f->stacktop = -1; /* as ceval: the garbage collector does not look at a running frame's stack */
  FRAME_TOP(ts) = f;
  if (throwflag) goto error;

  for (;;) {
    start = ip;
    opcode = _PyOpcode_Deopt[ip->op.code];
    oparg = ip->op.arg;
    while (opcode == EXTENDED_ARG) {
      ip++;
      opcode = _PyOpcode_Deopt[ip->op.code];
      oparg = oparg << 8 | ip->op.arg;
    }
    FRAME_AT(f) = at = ip++;
    ip += _PyOpcode_Caches[opcode];

    switch (opcode) {
#include "capture/cpython/loop_common.inl"

    /* --- of these versions: locals, names --- */
    case LOAD_FAST_CHECK: {
      PyObject *v = locals[oparg];
      if (!v) UNBOUND(oparg);
      PUSH(Py_NewRef(v));
      continue;
    }
    case LOAD_FAST_AND_CLEAR:
      PUSH(locals[oparg]);
      locals[oparg] = NULL;
      continue;
    case LOAD_GLOBAL: {
      PyObject *v = load_global(r, f, NAME(oparg >> 1));
      if (!v) goto error;
      if (oparg & 1)
        PUSH_CALLABLE(v, NULL);
      else
        PUSH(v);
      continue;
    }
    case LOAD_LOCALS:
      if (!f->f_locals) {
        PyErr_SetString(PyExc_SystemError, "no locals");
        goto error;
      }
      PUSH(Py_NewRef(f->f_locals));
      continue;
    case LOAD_FROM_DICT_OR_DEREF:
    case LOAD_FROM_DICT_OR_GLOBALS: {
      bool deref = opcode == LOAD_FROM_DICT_OR_DEREF;
      PyObject *v, *name = deref ? PyTuple_GET_ITEM(code->co_localsplusnames, oparg) : NAME(oparg);
      int found = namespace_get(TOP(), name, &v);
      if (found < 0) goto error;
      if (r) fl_tell(r, fl_rec_read_item(r, TOP(), name, v));
      if (!found && deref) {
        v = Py_XNewRef(PyCell_GET(locals[oparg]));
        if (!v) UNBOUND(oparg);
        if (r) fl_tell(r, fl_rec_read_cell(r, locals[oparg], v));
      } else if (!found) {
        v = load_global(r, f, name);
        if (!v) goto error;
      }
      SET_TOP_STEAL(v);
      continue;
    }

    /* --- attributes, items, operators --- */
    case LOAD_ATTR: {
      PyObject *obj = TOP(), *name = NAME(oparg >> 1), *m;
      if (!(oparg & 1)) {
        if (GIVEN(obj, false)) IN_CALL(1);
        PyObject *v = fl_attr_get(r, obj, name);
        CALLED();
        if (!v) goto error;
        SET_TOP_STEAL(v);
        continue;
      }
      if (GIVEN(obj, false)) {
        IN_METHOD();
        m = fl_attr_get(r, obj, name);
        CALLED();
        sp--;
        Py_DECREF(obj);
        if (!m) goto error;
        PUSH_CALLABLE(m, NULL);
        continue;
      }
      int bound = fl_attr_method(r, obj, name, &m);
      if (bound < 0) goto error;
      sp--;
      PUSH_CALLABLE(m, bound ? obj : NULL);
      if (!bound) Py_DECREF(obj);
      continue;
    }
    case LOAD_SUPER_ATTR: {
      PyObject *v = super_attr(r, PEEK(3), &PEEK(2), oparg & 2, NAME(oparg >> 2));
      DROP();
      DROP();
      DROP();
      if (!v) goto error;
      if (oparg & 1)
        PUSH_CALLABLE(v, NULL);
      else
        PUSH(v);
      continue;
    }
    case BINARY_SLICE: {
      if (r) fl_rec_uses(r, SECOND());
      if (r) fl_rec_uses(r, TOP());
      if (GIVEN(PEEK(3), false)) IN_CALL(3);
      PyObject *stop = POP(), *slice = make_slice(POP(), stop);
      PyObject *v = slice ? fl_data_subscr(r, TOP(), slice) : NULL;
      CALLED();
      Py_XDECREF(slice);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case STORE_SLICE: {
      if (r) fl_rec_uses(r, SECOND());
      if (r) fl_rec_uses(r, TOP());
      PyObject *stop = POP(), *slice = make_slice(POP(), stop), *obj = POP(), *v = POP();
      int rc = slice ? fl_data_store(r, obj, slice, v) : -1;
      Py_XDECREF(slice);
      Py_DECREF(v);
      Py_DECREF(obj);
      if (rc) goto error;
      continue;
    }
    case COMPARE_OP: {
      bool wants_truth = FL_CPYTHON == 313 && (oparg & 16);
      if (GIVEN_ONE(SECOND(), TOP())) {
        IN_CALL(2);
        if (wants_truth) here.wants = FL_CPY_TRUTH;
      }
      PyObject *b = POP(), *v = fl_data_compare(r, TOP(), b, (int)(oparg >> COMPARE_SHIFT));
      CALLED();
      Py_DECREF(b);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      if (wants_truth) {
        TRUTH_OF_GIVEN(ip - first);
        int truth = fl_data_truth(r, TOP());
        SET_TOP_STEAL(Py_NewRef(truth > 0 ? Py_True : Py_False));
        if (truth < 0) goto error;
      }
      continue;
    }
    case CALL_INTRINSIC_1: {
      PyObject *v;
      if (oparg == INTRINSIC_UNARY_POSITIVE)
        v = fl_data_unary(r, fl_n.__pos__, PyNumber_Positive, TOP());
      else if (oparg == INTRINSIC_LIST_TO_TUPLE)
        v = PyList_AsTuple(TOP());
      else if (oparg == INTRINSIC_STOPITERATION_ERROR && !PyErr_GivenExceptionMatches(TOP(), PyExc_StopIteration))
        v = Py_NewRef(TOP());
      else
        GIVE_UP();
      if (!v) goto error;
      SET_TOP_STEAL(v);
      continue;
    }

    /* --- jumps --- */
    case POP_JUMP_IF_FALSE:
    case POP_JUMP_IF_TRUE: {
      if (FL_CPYTHON == 312) TRUTH_OF_GIVEN(start - first); /* this instruction, with the answer on the stack */
      PyObject *v = POP();
      int truth = fl_data_truth(r, v);
      Py_DECREF(v);
      if (truth < 0) goto error;
      if (truth == (opcode == POP_JUMP_IF_TRUE)) ip += oparg;
      continue;
    }
    case POP_JUMP_IF_NONE:
    case POP_JUMP_IF_NOT_NONE: {
      PyObject *v = POP();
      if ((v == Py_None) == (opcode == POP_JUMP_IF_NONE)) ip += oparg;
      Py_DECREF(v);
      continue;
    }
    case FOR_ITER: {
      IN_LOOP(ip + oparg + AFTER_LOOP - first);
      PyObject *v = fl_data_next(r, TOP());
      NEXT_DONE();
      if (v) {
        PUSH(v);
        continue;
      }
      if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_StopIteration)) goto error;
        PyErr_Clear();
      }
      DROP();
      ip += oparg + AFTER_LOOP;
      continue;
    }
    case END_FOR:
      DROP();
      if (FL_CPYTHON == 312) DROP();
      continue;

    /* --- calls --- */
    case CALL: {
      IN_CALL(oparg + 2);
      PyObject *v = call_on_stack(r, sp, oparg, kwnames);
      CALLED();
      kwnames = NULL;
      sp -= oparg + 2;
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case CALL_FUNCTION_EX: {
      PyObject *kwargs = oparg & 1 ? POP() : NULL, *args = POP();
      PyObject *func = FL_CPYTHON == 312 ? TOP() : SECOND();
      if (r) fl_data_saw(r, args);
      args = star_args(func, args);
      IN_CALL(2);
      PyObject *v = args ? fl_call_ex(r, func, args, kwargs) : NULL;
      CALLED();
      Py_XDECREF(args);
      Py_XDECREF(kwargs);
      sp -= 2;
      Py_DECREF(func);
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case RETURN_CONST: PUSH(Py_NewRef(PyTuple_GET_ITEM(code->co_consts, oparg))); goto returned;
    case RETURN_VALUE: goto returned;

    /* --- generators --- */
    case YIELD_VALUE: {
      PyGenObject *gen = _PyFrame_GetGenerator(f);
      result = POP();
#if FL_CPYTHON == 312
      gen->gi_frame_state = FRAME_SUSPENDED;
#else
      gen->gi_frame_state = FRAME_SUSPENDED + (int)oparg;
      f->instr_ptr++;
#endif
      ts->exc_info = gen->gi_exc_state.previous_item;
      gen->gi_exc_state.previous_item = NULL;
      f->stacktop = (int)(sp - locals);
      FRAME_TOP(ts) = below;
      st->top = here.below;
      f->previous = NULL;
      ts->py_recursion_remaining++;
      return result;
    }
    case SEND: {
      PyObject *v = POP(), *out;
      if (r && !PyGen_CheckExact(TOP())) fl_data_saw(r, TOP());
      PySendResult status = PyIter_Send(TOP(), v, &out);
      Py_DECREF(v);
      if (status == PYGEN_ERROR) goto error;
      PUSH(out);
      if (status == PYGEN_RETURN) ip += oparg;
      continue;
    }
    case END_SEND: {
      PyObject *v = POP();
      SET_TOP_STEAL(v);
      continue;
    }
    case CLEANUP_THROW: {
      PyObject *v = stop_value(TOP());
      if (!v) {
        NATIVE_IF_UNHANDLED();
        PyErr_SetRaisedException(POP());
        goto unwind;
      }
      DROP();
      DROP();
      SET_TOP_STEAL(Py_NewRef(Py_None));
      PUSH(v);
      continue;
    }

#if FL_CPYTHON == 312
    case LOAD_CLOSURE: {
      PyObject *v = locals[oparg];
      if (!v) UNBOUND(oparg);
      PUSH(Py_NewRef(v));
      continue;
    }
    case KW_NAMES: kwnames = PyTuple_GET_ITEM(code->co_consts, oparg); continue;
#else
    case LOAD_FAST_LOAD_FAST: {
      PyObject *a = locals[oparg >> 4], *b = locals[oparg & 15];
      if (!a || !b) UNBOUND(a ? oparg & 15 : oparg >> 4);
      PUSH(Py_NewRef(a));
      PUSH(Py_NewRef(b));
      continue;
    }
    case STORE_FAST_LOAD_FAST: {
      Py_XSETREF(locals[oparg >> 4], POP());
      PyObject *v = locals[oparg & 15];
      if (!v) UNBOUND(oparg & 15);
      PUSH(Py_NewRef(v));
      continue;
    }
    case STORE_FAST_STORE_FAST: {
      PyObject *a = POP(), *b = POP();
      Py_XSETREF(locals[oparg >> 4], a);
      Py_XSETREF(locals[oparg & 15], b);
      continue;
    }
    case CALL_KW: {
      PyObject *names = POP();
      IN_CALL(oparg + 2);
      PyObject *v = call_on_stack(r, sp, oparg, names);
      CALLED();
      Py_DECREF(names);
      sp -= oparg + 2;
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case TO_BOOL: {
      TRUTH_OF_GIVEN(ip - first);
      int truth = fl_data_truth(r, TOP());
      if (truth < 0) goto error;
      SET_TOP_STEAL(Py_NewRef(truth ? Py_True : Py_False));
      continue;
    }
    case SET_FUNCTION_ATTRIBUTE: {
      PyFunctionObject *fn = (PyFunctionObject *)POP();
      PyObject *v = POP();
      if (oparg == 8)
        fn->func_closure = v;
      else if (oparg == 4)
        fn->func_annotations = v;
      else if (oparg == 2)
        fn->func_kwdefaults = v;
      else
        fn->func_defaults = v;
      PUSH((PyObject *)fn);
      continue;
    }
    case CONVERT_VALUE: {
      PyObject *v = fl_data_convert(r, TOP(), (int)oparg);
      if (!v) goto error;
      SET_TOP_STEAL(v);
      continue;
    }
    case FORMAT_SIMPLE:
    case FORMAT_WITH_SPEC: {
      bool has_spec = opcode == FORMAT_WITH_SPEC;
      if (GIVEN(PEEK(1 + has_spec), true)) IN_CALL(1 + has_spec);
      PyObject *spec = has_spec ? POP() : NULL, *v = fl_data_format(r, TOP(), 0, spec);
      CALLED();
      Py_XDECREF(spec);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
#endif

    default: /* async, import *, except* at its end, type parameters, instrumented, and what comes */ GIVE_UP();
    }

  error:
    kwnames = NULL;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "error return without exception set");
#if FL_CPYTHON == 312
    if (!HANDLED()) goto thrown; /* ceval adds the traceback */
#endif
    if (!_PyFrame_IsIncomplete(f)) {
      PyFrameObject *frame_obj = PyEval_GetFrame();
      if (frame_obj) PyTraceBack_Here(frame_obj);
    }
  unwind:
    if (!HANDLED()) goto thrown;
    while (sp > base + level) {
      PyObject *v = POP();
      Py_XDECREF(v);
    }
    if (lasti) {
      PyObject *offset = PyLong_FromLong(_PyInterpreterFrame_LASTI(f));
      if (!offset) goto unwind;
      PUSH(offset);
    }
    PUSH(PyErr_GetRaisedException());
    ip = first + target;
  }

#define LEAVE()                                                                                                        \
  do {                                                                                                                 \
    f->stacktop = (int)(sp - locals);                                                                                  \
    FRAME_TOP(ts) = below;                                                                                             \
    st->top = here.below;                                                                                              \
    ts->py_recursion_remaining++;                                                                                      \
  } while (0)

#if FL_CPYTHON == 312
returned:
  if (opcode == RETURN_CONST) DROP();
finish: /* ceval executes this one instruction, with which the frame ends */
  f->prev_instr = start - 1;
  LEAVE();
  return fl_cpy_native(ts, f, 0);
thrown:
  f->prev_instr = at;
  LEAVE();
  return fl_cpy_native(ts, f, 1);
#else
returned:
  result = POP();
thrown:
  while (sp > base) {
    PyObject *v = POP();
    Py_XDECREF(v);
  }
  LEAVE();
  _PyEval_FrameClearAndPop(ts, f);
  return result;
#endif

give_up:
  fl_eval_count_handed_over();
  if (r) fl_rec_give_up(r, "instruction left to CPython", PyUnicode_AsUTF8(code->co_qualname));
  FRAME_AT(f) = start - FL_NEXT_IS;
  LEAVE();
  return fl_cpy_native(ts, f, 0);
}
#endif
