/* The opcode switch of CPython 3.11: its own instructions, and those all versions have (loop_common.inl).
 *
 * Works on the real frame's own locals and operand stack, so that a frame can be given to ceval before any instruction:
 * GIVE_UP does so for whatever is rare and would only repeat ceval (its error texts included). */
#define FL_PY311_OPCODES
#include "capture/cpython/py311.h"
#include "capture/eval_impl.h"

#if FL_CPYTHON == 311

/* Signals, pending calls, other threads' wish for the GIL, exceptions sent to this thread. */
static int serve_breaker(PyThreadState *ts) {
  if (PyErr_CheckSignals() < 0 || Py_MakePendingCalls() < 0) return -1;
  if (ts->async_exc) {
    PyObject *exc = ts->async_exc;
    ts->async_exc = NULL;
    ts->interp->ceval.pending.async_exc = 0;
    PyErr_SetNone(exc);
    Py_DECREF(exc);
    return -1;
  }
  /* Taking the GIL again also recomputes the breaker. */
  PyThreadState *saved = PyEval_SaveThread();
  PyEval_RestoreThread(saved);
  return 0;
}

static bool breaker(PyThreadState *ts) { return _Py_atomic_load_relaxed(&ts->interp->ceval.eval_breaker); }

#define NATIVE_IF_UNHANDLED() ((void)0)
#include "capture/cpython/loop_helpers.inl"

PyObject *fl_cpy_eval(PyThreadState *ts, fl_frame *f, int throwflag) {
  if (Py_EnterRecursiveCall("")) return NULL;
  _PyCFrame *cframe = ts->cframe;
  fl_frame *below = cframe->current_frame;
  PyCodeObject *code = f->f_code;
  _Py_CODEUNIT *first = _PyCode_CODE(code), *ip = f->prev_instr + 1, *start = ip, *at = f->prev_instr;
  PyObject **locals = f->localsplus, **base = locals + code->co_nlocalsplus, **sp = locals + f->stacktop;
  PyObject *kwnames = NULL, *result = NULL;
  fl_rec *r = fl_eval_here->r;
  unsigned opcode = 0, oparg = 0;
  if (r && fl_rec_gave_up(r)) r = NULL;
  fl_eval_state *st = fl_eval_here;
  fl_eval_frame here = {st->top, f, st->entry, base, -1, 0, FL_CPY_ANSWER, 0};
  st->entry = NULL;
  st->top = &here;

  f->previous = below;
  f->is_entry = true;
  f->stacktop = -1; /* as ceval: the garbage collector does not look at a running frame's stack */
  cframe->current_frame = f;
  if (throwflag) {
    opcode = _PyOpcode_Deopt[_Py_OPCODE(ip[-1])];
    goto error;
  }

  for (;;) {
    start = ip;
    /* A debugger was attached by what this frame called: CPython reports the rest of it. */
    if (cframe->use_tracing && !kwnames) goto give_up;
    opcode = _PyOpcode_Deopt[_Py_OPCODE(*ip)];
    oparg = _Py_OPARG(*ip);
    while (opcode == EXTENDED_ARG) {
      ip++;
      opcode = _PyOpcode_Deopt[_Py_OPCODE(*ip)];
      oparg = oparg << 8 | _Py_OPARG(*ip);
    }
    f->prev_instr = at = ip++;
    ip += _PyOpcode_Caches[opcode];

    switch (opcode) {
#include "capture/cpython/loop_common.inl"

    /* --- of this version --- */
    case PRECALL: continue;
    case UNARY_POSITIVE: {
      PyObject *v = fl_data_unary(r, fl_n.__pos__, PyNumber_Positive, TOP());
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case LOAD_CLOSURE: {
      PyObject *v = locals[oparg];
      if (!v) UNBOUND(oparg);
      PUSH(Py_NewRef(v));
      continue;
    }
    case LOAD_CLASSDEREF: {
      PyObject *v, *name = PyTuple_GET_ITEM(code->co_localsplusnames, oparg);
      int found = f->f_locals ? namespace_get(f->f_locals, name, &v) : 0;
      if (found < 0) goto error;
      if (!found) {
        v = Py_XNewRef(PyCell_GET(locals[oparg]));
        if (!v) UNBOUND(oparg);
        if (r) fl_tell(r, fl_rec_read_cell(r, locals[oparg], v));
      }
      PUSH(v);
      continue;
    }
    case LOAD_GLOBAL: {
      PyObject *v = load_global(r, f, NAME(oparg >> 1));
      if (!v) goto error;
      if (oparg & 1) PUSH(NULL);
      PUSH(v);
      continue;
    }
    case LOAD_ATTR: {
      if (GIVEN(TOP(), false)) IN_CALL(1);
      PyObject *v = fl_attr_get(r, TOP(), NAME(oparg));
      CALLED();
      if (!v) goto error;
      SET_TOP_STEAL(v);
      continue;
    }
    case LOAD_METHOD: {
      PyObject *obj = TOP(), *m;
      if (GIVEN(obj, false)) {
        TOP() = NULL;
        IN_CALL(0);
        m = fl_attr_get(r, obj, NAME(oparg));
        CALLED();
        Py_DECREF(obj);
        if (!m) goto error;
        PUSH(m);
        continue;
      }
      int bound = fl_attr_method(r, obj, NAME(oparg), &m);
      if (bound < 0) goto error;
      if (bound) {
        TOP() = m;
        PUSH(obj);
      } else {
        TOP() = NULL;
        Py_DECREF(obj);
        PUSH(m);
      }
      continue;
    }
    case COMPARE_OP: {
      if (GIVEN_ONE(SECOND(), TOP())) IN_CALL(2);
      PyObject *b = POP(), *v = fl_data_compare(r, TOP(), b, (int)oparg);
      CALLED();
      Py_DECREF(b);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case LIST_TO_TUPLE: {
      PyObject *v = PyList_AsTuple(TOP());
      if (!v) goto error;
      SET_TOP_STEAL(v);
      continue;
    }
    case POP_JUMP_FORWARD_IF_FALSE:
    case POP_JUMP_FORWARD_IF_TRUE:
    case POP_JUMP_BACKWARD_IF_FALSE:
    case POP_JUMP_BACKWARD_IF_TRUE: {
      TRUTH_OF_GIVEN(start - first); /* this instruction, with the answer on the stack */
      PyObject *v = POP();
      int truth = fl_data_truth(r, v);
      Py_DECREF(v);
      if (truth < 0) goto error;
      if (truth == (opcode == POP_JUMP_FORWARD_IF_TRUE || opcode == POP_JUMP_BACKWARD_IF_TRUE)) {
        if (opcode == POP_JUMP_FORWARD_IF_FALSE || opcode == POP_JUMP_FORWARD_IF_TRUE) {
          ip += oparg;
        } else {
          ip -= oparg;
          SERVE();
        }
      }
      continue;
    }
    case POP_JUMP_FORWARD_IF_NONE:
    case POP_JUMP_FORWARD_IF_NOT_NONE:
    case POP_JUMP_BACKWARD_IF_NONE:
    case POP_JUMP_BACKWARD_IF_NOT_NONE: {
      PyObject *v = POP();
      bool none = v == Py_None;
      Py_DECREF(v);
      if (none == (opcode == POP_JUMP_FORWARD_IF_NONE || opcode == POP_JUMP_BACKWARD_IF_NONE)) {
        if (opcode == POP_JUMP_FORWARD_IF_NONE || opcode == POP_JUMP_FORWARD_IF_NOT_NONE) {
          ip += oparg;
        } else {
          ip -= oparg;
          SERVE();
        }
      }
      continue;
    }
    case JUMP_IF_FALSE_OR_POP:
    case JUMP_IF_TRUE_OR_POP: {
      int truth = fl_data_truth(r, TOP());
      if (truth < 0) goto error;
      if (truth == (opcode == JUMP_IF_TRUE_OR_POP))
        ip += oparg;
      else
        DROP();
      continue;
    }
    case FOR_ITER: {
      IN_LOOP(ip + oparg - first);
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
      ip += oparg;
      continue;
    }

    case KW_NAMES: kwnames = PyTuple_GET_ITEM(code->co_consts, oparg); continue;
    case CALL: {
      int method = PEEK(oparg + 2) != NULL, total = (int)oparg + method;
      PyObject *fn = PEEK(total + 1), **args = sp - total;
      size_t npos = (size_t)total - (kwnames ? (size_t)PyTuple_GET_SIZE(kwnames) : 0);
      if (!method && Py_IS_TYPE(fn, &PyMethod_Type)) {
        /* The free slot below the arguments takes self, as ceval does. */
        PyObject *self = PyMethod_GET_SELF(fn), *func = PyMethod_GET_FUNCTION(fn);
        PEEK(oparg + 1) = Py_NewRef(self);
        PEEK(oparg + 2) = Py_NewRef(func);
        Py_DECREF(fn);
        fn = func;
        args--;
        total++;
        npos++;
        method = 1;
      }
      IN_CALL(oparg + 2);
      PyObject *v = fl_call(r, fn, args, npos | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
      CALLED();
      kwnames = NULL;
      Py_DECREF(fn);
      for (int i = 0; i < total; i++) Py_DECREF(args[i]);
      sp -= oparg + 2;
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case CALL_FUNCTION_EX: {
      PyObject *kwargs = oparg & 1 ? POP() : NULL, *args = POP();
      if (r) fl_data_saw(r, args);
      args = star_args(TOP(), args);
      IN_CALL(2);
      PyObject *v = args ? fl_call_ex(r, TOP(), args, kwargs) : NULL;
      CALLED();
      Py_XDECREF(args);
      Py_XDECREF(kwargs);
      DROP();
      TOP() = v;
      if (!v) {
        sp--;
        goto error;
      }
      if (r && fl_rec_gave_up(r)) r = NULL;
      SERVE();
      continue;
    }
    case RETURN_VALUE: result = POP(); goto leave;

    case YIELD_VALUE:
      result = POP();
      _PyFrame_GetGenerator(f)->gi_frame_state = FRAME_SUSPENDED;
      goto leave;
    case SEND: {
      PyObject *v = POP(), *out;
      if (r && !PyGen_CheckExact(TOP())) fl_data_saw(r, TOP());
      PySendResult status = PyIter_Send(TOP(), v, &out);
      Py_DECREF(v);
      if (status == PYGEN_ERROR) goto error;
      if (status == PYGEN_RETURN) {
        SET_TOP_STEAL(out);
        ip += oparg;
      } else {
        PUSH(out);
      }
      continue;
    }

    default: /* async, IMPORT_STAR, PREP_RERAISE_STAR, PRINT_EXPR, and what comes */ GIVE_UP();
    }
  error:
    kwnames = NULL;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "error return without exception set");
    if (!_PyFrame_IsIncomplete(f)) {
      PyFrameObject *frame_obj = PyEval_GetFrame();
      if (frame_obj) PyTraceBack_Here(frame_obj);
    }
  unwind:;
    int level, target;
    bool lasti;
    if (!fl_exc_handler(code, (int)(at - first), &level, &target, &lasti)) goto leave;
    while (sp > base + level) {
      PyObject *v = POP();
      Py_XDECREF(v);
    }
    if (lasti) {
      PyObject *offset = PyLong_FromLong(_PyInterpreterFrame_LASTI(f));
      if (!offset) goto unwind;
      PUSH(offset);
    }
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    PyException_SetTraceback(value, tb ? tb : Py_None);
    Py_XDECREF(tb);
    Py_XDECREF(type);
    PUSH(value);
    ip = first + target;
  }

leave:
  if (opcode != YIELD_VALUE || !result)
    while (sp > base) {
      PyObject *v = POP();
      Py_XDECREF(v);
    }
  f->stacktop = (int)(sp - locals);
  cframe->current_frame = below;
  st->top = here.below;
  Py_LeaveRecursiveCall();
  return result;

give_up:
  fl_eval_count_handed_over();
  if (r) fl_rec_give_up(r, "instruction left to CPython", PyUnicode_AsUTF8(code->co_qualname));
  f->prev_instr = start - 1;
  f->stacktop = (int)(sp - locals);
  cframe->current_frame = below;
  st->top = here.below;
  Py_LeaveRecursiveCall();
  return fl_cpy_native(ts, f, 0);
}
#endif
