    /* The instructions that mean the same in every version: included inside the switch of each loopNNN.c.
     *
     * Caches are skipped before the handler runs. `at` is the instruction, `start` the EXTENDED_ARG before it if any. */
    case NOP: continue;
    case RESUME:
      if ((oparg & 3) < 2) SERVE();
      continue;

    /* --- locals, cells, constants, the stack --- */
    case LOAD_FAST: {
      PyObject *v = locals[oparg];
      if (!v) UNBOUND(oparg);
      PUSH(Py_NewRef(v));
      continue;
    }
    case LOAD_CONST: PUSH(Py_NewRef(PyTuple_GET_ITEM(code->co_consts, oparg))); continue;
    case STORE_FAST: {
      PyObject *old = locals[oparg];
      locals[oparg] = POP();
      Py_XDECREF(old);
      continue;
    }
    case DELETE_FAST: {
      PyObject *old = locals[oparg];
      if (!old) UNBOUND(oparg);
      locals[oparg] = NULL;
      Py_DECREF(old);
      continue;
    }
    case MAKE_CELL: {
      PyObject *cell = PyCell_New(locals[oparg]);
      if (!cell) goto error;
      Py_XSETREF(locals[oparg], cell);
      FRESH(cell);
      continue;
    }
    case COPY_FREE_VARS: copy_free_vars(f, (int)oparg); continue;
    case LOAD_DEREF: {
      PyObject *v = PyCell_GET(locals[oparg]);
      if (!v) UNBOUND(oparg);
      if (r) fl_tell(r, fl_rec_read_cell(r, locals[oparg], v));
      PUSH(Py_NewRef(v));
      continue;
    }
    case STORE_DEREF: {
      PyObject *cell = locals[oparg], *old = PyCell_GET(cell), *v = POP();
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_CELL, cell, NULL, v));
      PyCell_SET(cell, v);
      Py_XDECREF(old);
      continue;
    }
    case DELETE_DEREF: {
      PyObject *cell = locals[oparg], *old = PyCell_GET(cell);
      if (!old) UNBOUND(oparg);
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_CELL, cell, NULL, NULL));
      PyCell_SET(cell, NULL);
      Py_DECREF(old);
      continue;
    }
    case POP_TOP: DROP(); continue;
    case PUSH_NULL: PUSH(NULL); continue;
    case COPY: PUSH(Py_NewRef(PEEK((int)oparg))); continue;
    case SWAP: {
      PyObject *top = TOP();
      TOP() = PEEK(oparg);
      PEEK(oparg) = top;
      continue;
    }

    /* --- names --- */
    case LOAD_NAME: {
      PyObject *v = load_name(r, f, NAME(oparg));
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case STORE_NAME: {
      PyObject *v = POP(), *ns = f->f_locals;
      int rc = -1;
      if (!ns)
        PyErr_Format(PyExc_SystemError, "no locals found when storing %R", NAME(oparg));
      else {
        if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, ns, NAME(oparg), v));
        rc = PyDict_CheckExact(ns) ? PyDict_SetItem(ns, NAME(oparg), v) : PyObject_SetItem(ns, NAME(oparg), v);
      }
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case DELETE_NAME: {
      PyObject *ns = f->f_locals, *name = NAME(oparg);
      if (!ns) {
        PyErr_Format(PyExc_SystemError, "no locals when deleting %R", name);
        goto error;
      }
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_ITEM, ns, name, NULL));
      if (PyObject_DelItem(ns, name)) {
        fl_exc_name(PyExc_NameError, "name '%.200s' is not defined", name);
        goto error;
      }
      continue;
    }
    case STORE_GLOBAL: {
      PyObject *v = POP();
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_GLOBAL, f->f_globals, NAME(oparg), v));
      int rc = PyDict_SetItem(f->f_globals, NAME(oparg), v);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case DELETE_GLOBAL:
      if (r) fl_tell(r, fl_rec_write(r, FL_WRITE_GLOBAL, f->f_globals, NAME(oparg), NULL));
      if (PyDict_DelItem(f->f_globals, NAME(oparg))) {
        if (PyErr_ExceptionMatches(PyExc_KeyError))
          fl_exc_name(PyExc_NameError, "name '%.200s' is not defined", NAME(oparg));
        goto error;
      }
      continue;
    case LOAD_ASSERTION_ERROR: PUSH(Py_NewRef(PyExc_AssertionError)); continue;
    case LOAD_BUILD_CLASS: {
      PyObject *v = load_build_class(r, f);
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case SETUP_ANNOTATIONS:
      if (setup_annotations(f) < 0) goto error;
      continue;
    case IMPORT_NAME: {
      PyObject *fromlist = POP(), *depth = TOP();
      PyObject *v = fl_import_name(r, f->f_builtins, f->f_globals, f->f_locals, NAME(oparg), fromlist, depth);
      Py_DECREF(fromlist);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case IMPORT_FROM: {
      PyObject *v;
      int found = fl_import_from(r, TOP(), NAME(oparg), &v);
      if (found < 0) goto error;
      if (!found) GIVE_UP();
      PUSH(v);
      continue;
    }

    /* --- attributes, items --- */
    case STORE_ATTR: {
      PyObject *obj = POP(), *v = POP();
      int rc = fl_attr_set(r, obj, NAME(oparg), v);
      Py_DECREF(v);
      Py_DECREF(obj);
      if (rc) goto error;
      continue;
    }
    case DELETE_ATTR: {
      PyObject *obj = POP();
      int rc = fl_attr_set(r, obj, NAME(oparg), NULL);
      Py_DECREF(obj);
      if (rc) goto error;
      continue;
    }
    case BINARY_SUBSCR: {
      if (GIVEN(SECOND(), false) || (!PyTuple_Check(SECOND()) && GIVEN_ONE(SECOND(), TOP()))) IN_CALL(2);
      PyObject *key = POP(), *v = fl_data_subscr(r, TOP(), key);
      CALLED();
      Py_DECREF(key);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case STORE_SUBSCR: {
      PyObject *key = POP(), *obj = POP(), *v = POP();
      int rc = fl_data_store(r, obj, key, v);
      Py_DECREF(v);
      Py_DECREF(obj);
      Py_DECREF(key);
      if (rc) goto error;
      continue;
    }
    case DELETE_SUBSCR: {
      PyObject *key = POP(), *obj = POP();
      int rc = fl_data_store(r, obj, key, NULL);
      Py_DECREF(obj);
      Py_DECREF(key);
      if (rc) goto error;
      continue;
    }

    /* --- operators --- */
    case UNARY_NEGATIVE:
    case UNARY_INVERT: {
      PyObject *v = opcode == UNARY_NEGATIVE ? fl_data_unary(r, fl_n.__neg__, PyNumber_Negative, TOP())
                                             : fl_data_unary(r, fl_n.__invert__, PyNumber_Invert, TOP());
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case UNARY_NOT: {
      int truth = fl_data_truth(r, TOP());
      SET_TOP_STEAL(Py_NewRef(truth ? Py_False : Py_True));
      if (truth < 0) goto error;
      continue;
    }
    case BINARY_OP: {
      if (!fl_rec_draws_from(r, SECOND(), TOP()) && GIVEN_ONE(SECOND(), TOP())) IN_CALL(2);
      PyObject *b = POP(), *v = fl_data_binary(r, (int)oparg, TOP(), b);
      CALLED();
      Py_DECREF(b);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case IS_OP: {
      PyObject *b = POP();
      bool is = TOP() == b;
      if (r && !is) fl_rec_compared(r, TOP(), b);
      if (r && b != Py_None && TOP() != Py_None && (GIVEN(b, false) || GIVEN(TOP(), false)))
        fl_rec_give_up(r, "identity of what unknown code gave", "is");
      Py_DECREF(b);
      SET_TOP_STEAL(Py_NewRef(is != (bool)oparg ? Py_True : Py_False));
      continue;
    }
    case CONTAINS_OP: {
      PyObject *container = POP();
      int in = fl_data_contains(r, container, TOP());
      Py_DECREF(container);
      SET_TOP_STEAL(Py_NewRef((in > 0) != (bool)oparg ? Py_True : Py_False));
      if (in < 0) goto error;
      continue;
    }
#if FL_CPYTHON < 313
    case FORMAT_VALUE: {
      if (!(oparg & 3) && GIVEN(PEEK(1 + !!(oparg & 4)), true)) IN_CALL(1 + !!(oparg & 4));
      PyObject *spec = oparg & 4 ? POP() : NULL, *v = fl_data_format(r, TOP(), (int)(oparg & 3), spec);
      CALLED();
      Py_XDECREF(spec);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
#endif
    case GET_LEN: {
      Py_ssize_t n = fl_data_len(r, TOP());
      PyObject *v = n < 0 ? NULL : PyLong_FromSsize_t(n);
      if (!v) goto error;
      PUSH(v);
      continue;
    }

    /* --- building --- */
    case BUILD_TUPLE:
    case BUILD_LIST: {
      PyObject *v = opcode == BUILD_TUPLE ? PyTuple_New(oparg) : PyList_New(oparg);
      if (!v) goto error;
      sp -= oparg;
      for (unsigned i = 0; i < oparg; i++)
        if (opcode == BUILD_TUPLE)
          PyTuple_SET_ITEM(v, i, sp[i]);
        else
          PyList_SET_ITEM(v, i, sp[i]);
      PUSH(v);
      if (opcode == BUILD_LIST) FRESH(v);
      continue;
    }
    case BUILD_SET:
    case BUILD_STRING:
    case BUILD_MAP:
    case BUILD_CONST_KEY_MAP: {
      int n = opcode == BUILD_MAP ? 2 * (int)oparg : (int)oparg + (opcode == BUILD_CONST_KEY_MAP);
      for (int i = 0; r && opcode != BUILD_CONST_KEY_MAP && opcode != BUILD_STRING && i < n; i += opcode == BUILD_MAP ? 2 : 1)
        fl_rec_uses(r, sp[i - n]);
      PyObject *v = opcode == BUILD_SET      ? build_set(sp - n, (int)oparg)
                    : opcode == BUILD_STRING ? build_string(r, st, &here, base, ip - first, sp, (int)oparg)
                    : opcode == BUILD_MAP    ? build_map(sp - n, (int)oparg)
                                             : build_const_key_map(TOP(), sp - n, (int)oparg);
      if (!v) goto error;
      while (n--) DROP();
      PUSH(v);
      if (opcode != BUILD_STRING) FRESH(v);
      continue;
    }
    case BUILD_SLICE: {
      PyObject *step = oparg == 3 ? POP() : NULL, *stop = POP();
      if (r) {
        if (step) fl_rec_uses(r, step);
        fl_rec_uses(r, stop);
        fl_rec_uses(r, TOP());
      }
      PyObject *v = PySlice_New(TOP(), stop, step);
      Py_XDECREF(step);
      Py_DECREF(stop);
      SET_TOP_STEAL(v);
      if (!v) goto error;
      continue;
    }
    case LIST_APPEND:
    case SET_ADD: {
      PyObject *v = POP();
      if (r && opcode == SET_ADD) fl_rec_uses(r, v);
      int rc = opcode == LIST_APPEND ? PyList_Append(PEEK(oparg), v) : PySet_Add(PEEK(oparg), v);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case MAP_ADD: {
      PyObject *v = POP(), *key = POP();
      if (r) fl_rec_uses(r, key);
      int rc = PyDict_SetItem(PEEK(oparg), key, v);
      Py_DECREF(key);
      Py_DECREF(v);
      if (rc) goto error;
      continue;
    }
    case LIST_EXTEND:
    case SET_UPDATE:
    case DICT_UPDATE: {
      PyObject *items = POP();
      int rc;
      if (opcode == LIST_EXTEND)
        rc = list_extend(r, PEEK(oparg), items);
      else if (opcode == DICT_UPDATE)
        rc = dict_update(r, PEEK(oparg), items);
      else {
        if (r) fl_data_saw(r, items);
        rc = _PySet_Update(PEEK(oparg), items);
      }
      Py_DECREF(items);
      if (rc < 0) goto error;
      continue;
    }
    case DICT_MERGE: {
      PyObject *other = POP();
      if (r) fl_data_saw(r, other);
      int rc = _PyDict_MergeEx(PEEK(oparg), other, 2);
      if (rc < 0) fl_exc_kwargs(PEEK(oparg + (FL_CPYTHON < 313 ? 2 : 3)), other);
      Py_DECREF(other);
      if (rc < 0) goto error;
      continue;
    }
    case MAKE_FUNCTION: {
      PyObject *fcode = POP(), *fn = make_function(r, f, fcode, (int)oparg, &sp);
      Py_DECREF(fcode);
      if (!fn) goto error;
      PUSH(fn);
      continue;
    }
    case UNPACK_SEQUENCE:
    case UNPACK_EX: {
      PyObject *seq = POP();
      bool star = opcode == UNPACK_EX;
      int before = star ? (int)(oparg & 0xFF) : (int)oparg, after = star ? (int)(oparg >> 8) : -1;
      int total = before + (star ? after + 1 : 0);
      int rc = fl_data_unpack(r, seq, before, after, sp + total);
      Py_DECREF(seq);
      if (rc < 0) goto error;
      sp += total;
      continue;
    }

    /* --- jumps --- */
    case JUMP_FORWARD: ip += oparg; continue;
    case JUMP_BACKWARD:
      ip -= oparg;
      SERVE();
      continue;
    case JUMP_BACKWARD_NO_INTERRUPT: ip -= oparg; continue;
    case GET_ITER: {
      PyObject *it = fl_data_iter(r, TOP());
      SET_TOP_STEAL(it);
      if (!it) goto error;
      continue;
    }
    /* --- calls --- */
    /* --- generators --- */
    case GET_YIELD_FROM_ITER: {
      PyObject *it = yield_from_iter(r, f, TOP());
      if (!it) goto error;
      SET_TOP_STEAL(it);
      continue;
    }
    /* --- exceptions, with --- */
    case RAISE_VARARGS: {
      if (!oparg) NATIVE_IF_UNHANDLED();
      PyObject *cause = oparg == 2 ? POP() : NULL, *exc = oparg >= 1 ? POP() : NULL;
      if (fl_exc_raise(r, exc, cause)) goto unwind;
      goto error;
    }
    case RERAISE: {
      NATIVE_IF_UNHANDLED();
      if (oparg) FRAME_AT(f) = first + PyLong_AsLong(PEEK(oparg + 1));
      PyObject *value = POP();
      PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(value)), value, PyException_GetTraceback(value));
      goto unwind;
    }
    case PUSH_EXC_INFO: {
      PyObject *value = TOP(), *old = ts->exc_info->exc_value;
      TOP() = old ? old : Py_NewRef(Py_None);
      PUSH(Py_NewRef(value));
      ts->exc_info->exc_value = value;
      continue;
    }
    case POP_EXCEPT: {
      PyObject *old = ts->exc_info->exc_value;
      ts->exc_info->exc_value = POP();
      if (ts->exc_info->exc_value == Py_None) Py_CLEAR(ts->exc_info->exc_value); /* 3.13 knows NULL alone as none */
      Py_XDECREF(old);
      continue;
    }
    case CHECK_EXC_MATCH: {
      PyObject *right = POP();
      int match = fl_exc_check_type(right) < 0 ? -1 : PyErr_GivenExceptionMatches(TOP(), right);
      Py_DECREF(right);
      if (match < 0) goto error;
      PUSH(Py_NewRef(match ? Py_True : Py_False));
      continue;
    }
    case CHECK_EG_MATCH: {
      PyObject *type = POP(), *match = NULL, *rest = NULL;
      int rc = fl_exc_check_star(type) < 0 ? -1 : fl_exc_group_match(TOP(), type, &match, &rest);
      Py_DECREF(type);
      if (rc < 0) goto error;
      if (match == Py_None) {
        Py_DECREF(rest);
      } else {
        PyErr_SetHandledException(match);
        SET_TOP_STEAL(rest);
      }
      PUSH(match);
      continue;
    }
    case BEFORE_WITH: {
      PyObject *exit = NULL, *enter = with_methods(r, TOP(), &exit);
      if (!enter) goto error;
      SET_TOP_STEAL(exit);
      IN_CALL(0);
      PyObject *v = fl_call(r, enter, NULL, 0, NULL);
      CALLED();
      Py_DECREF(enter);
      if (!v) goto error;
      PUSH(v);
      if (r && fl_rec_gave_up(r)) r = NULL;
      continue;
    }
    case WITH_EXCEPT_START: {
      IN_CALL(0);
      PyObject *v = with_exit(r, PEEK(4), TOP());
      CALLED();
      if (!v) goto error;
      PUSH(v);
      continue;
    }

    /* --- match --- */
    case MATCH_MAPPING:
    case MATCH_SEQUENCE: {
      unsigned long flag = opcode == MATCH_MAPPING ? Py_TPFLAGS_MAPPING : Py_TPFLAGS_SEQUENCE;
      PUSH(Py_NewRef(PyType_HasFeature(Py_TYPE(TOP()), flag) ? Py_True : Py_False));
      continue;
    }
    case MATCH_KEYS: {
      PyObject *v = fl_match_keys(r, SECOND(), TOP());
      if (!v) goto error;
      PUSH(v);
      continue;
    }
    case MATCH_CLASS: {
      PyObject *names = POP(), *type = POP();
      PyObject *v = fl_match_class(r, TOP(), type, (Py_ssize_t)oparg, names);
      Py_DECREF(names);
      Py_DECREF(type);
      if (!v && PyErr_Occurred()) goto error;
      SET_TOP_STEAL(v ? v : Py_NewRef(Py_None));
      continue;
    }

