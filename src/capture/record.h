/* What the evaluator tells the recorder, and what it asks.
 *
 * The evaluator (eval*.c) runs Python for real. While it does, it reports every read of state that existed before the
 * call, every object it makes, every write, every call of C code. The recorder (rec*.c) turns reads into guards,
 * ATen operators (which reach it through its dispatch mode) into segments, and decides whether the call can be
 * replayed. Together the reads form a read set: if each gives the identical object again, so does the evaluation,
 * and the operators it executes are the same.
 *
 * `r` is the recording of this thread, or NULL when frames are only evaluated (conformance runs): every call here
 * accepts NULL and then does nothing. All object arguments are borrowed. Functions returning int give 0, or -1 with a
 * Python exception set for out of memory alone: they never fail the user's program for any other reason.
 * Holding rule: the recorder keeps its own references to all it must find again. */
#ifndef FL_CAPTURE_RECORD_H
#define FL_CAPTURE_RECORD_H

#include <Python.h>
#include <stdbool.h>

typedef struct fl_rec fl_rec;

fl_rec *fl_rec_current(void); /* of this thread */

/* --- reads: each becomes a guard unless the object is fresh, was written in this call, or is covered by a guard
 * on the arguments --- */

/* dict[key] was looked up and gave `value` (NULL: absent). For instance, module, class and global namespaces and for
 * ordinary dicts. */
int fl_rec_read_item(fl_rec *r, PyObject *dict, PyObject *key, PyObject *value);
/* An attribute of `obj` was looked up: its type, and which dict is its __dict__, mattered. */
int fl_rec_read_instance(fl_rec *r, PyObject *obj);
/* `name` was looked up along type's MRO and gave `value` (NULL: absent). */
int fl_rec_read_type(fl_rec *r, PyTypeObject *type, PyObject *name, PyObject *value);
/* A closure cell held `value` (NULL: empty). */
int fl_rec_read_cell(fl_rec *r, PyObject *cell, PyObject *value);
/* A Python function was called: its code, defaults, keyword defaults and closure mattered. */
int fl_rec_read_function(fl_rec *r, PyObject *function);
/* A data descriptor in C (slot member, getset) on `obj` gave `value` (NULL: unset): checked by getting it again and comparing
 * identity, or equality for exact int, float, str, bool, tuple of those, None. */
int fl_rec_read_descr(fl_rec *r, PyObject *descr, PyObject *obj, PyObject *value);
/* Everything directly in a mutable container mattered (list, dict, set, deque, ...; len, iteration, `in`, ==). Immutable and
 * unknown objects are ignored. */
int fl_rec_read_contents(fl_rec *r, PyObject *container);
/* `is` was asked of two objects that are not the same. */
void fl_rec_compared(fl_rec *r, PyObject *a, PyObject *b);
/* The program learns which object this is (`id`, and so hash). */
void fl_rec_identified(fl_rec *r, PyObject *obj);
/* Another object stands here in the next call: an argument, a tensor made by the call. */
bool fl_rec_is_passing(fl_rec *r, PyObject *obj);
/* A C function that only reads interpreter or library state was called with these arguments and gave `result`
 * (torch.is_grad_enabled, ContextVar.get, os.environ lookups ...): checked by calling it again and comparing as above. */
int fl_rec_read_query(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                      PyObject *result);

/* A cached function is called, with tensors of this call's `own` or without. False where it was called the other way before: what
 * each finds in the cache is left by both. */
bool fl_rec_may_cache(fl_rec *r, PyObject *callable, bool own);
/* What a cached function gave, which is asked again likewise. A tensor that nobody had before may be another object then. */
int fl_rec_read_cached(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                       PyObject *result);

/* A tensor that operators of this call computed, in memory of its own. */
bool fl_rec_made_tensor(fl_rec *r, PyObject *tensor);
/* Such a one, in memory made since the last break: unknown code has not seen it. */
bool fl_rec_made_lately(fl_rec *r, PyObject *tensor);
/* Something that this call made. A tensor of others may lie where one of the call's own was. */
bool fl_rec_is_own(fl_rec *r, PyObject *obj);
/* The elements of a tensor are given out. True when a guard promises that they are the same on each replay. */
bool fl_rec_read_elements(fl_rec *r, PyObject *tensor);

/* A comparison of plain values gave `result`. A number out of a tensor that nothing else has seen is decided by that. */
void fl_rec_decides(fl_rec *r, PyObject *a, PyObject *b, int op, PyObject *result);

/* --- objects and writes --- */

/* `obj` was made by this call and nothing outside knows it yet. */
int fl_rec_fresh(fl_rec *r, PyObject *obj);
bool fl_rec_is_fresh(fl_rec *r, PyObject *obj);
bool fl_rec_knows(fl_rec *r, PyObject *obj); /* it was read on some way that the trace guards */

typedef enum fl_write_kind {
  FL_WRITE_ATTR,   /* obj.key = value, or del when value is NULL */
  FL_WRITE_ITEM,   /* obj[key] = value, or del */
  FL_WRITE_GLOBAL, /* obj is the globals dict */
  FL_WRITE_CELL,   /* obj is the cell, key NULL */
  FL_WRITE_METHOD  /* a mutating C method of a container ran: key is the method's name, value NULL */
} fl_write_kind;
/* Called before the write is done. Writes to fresh objects cost nothing; others are effects. */
int fl_rec_write(fl_rec *r, fl_write_kind kind, PyObject *obj, PyObject *key, PyObject *value);

/* --- numbers drawn from Python's generators: rec_draws.c --- */

/* callable(self), or callable() where self is NULL, draws a number and does nothing else; whether it may be an effect. */
bool fl_rec_may_draw(fl_rec *r, PyObject *generator);
void fl_rec_draw(fl_rec *r, PyObject *callable, PyObject *self, PyObject *number); /* it has been called */
/* Two numbers, one of which was drawn: what is calculated from them is not looked at either (fl_rec_drawn). */
bool fl_rec_draws_from(fl_rec *r, PyObject *a, PyObject *b);
void fl_rec_drawn(fl_rec *r, PyObject *number);

/* --- code that is not understood --- */

/* Runs callable(*args) outside the recording as a step of its own: again on each replay, at this point of the program, with
 * these values; what it gives is unknown (fl_rec_uses). `shows`: it neither keeps nor changes what it is given. Where
 * that cannot be done the recording gives up with this reason, and the callable is called. As PyObject_Vectorcall. */
PyObject *fl_rec_opaque(fl_rec *r, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames,
                        bool shows, const char *reason, const char *detail);
/* Whether there may be such a step for the call that the innermost frame waits for, and nothing of the program's is in its way. */
bool fl_rec_can_break(fl_rec *r);
/* This callable must be such a step, because something in it could not be recorded before; *reason, *detail say what. */
bool fl_rec_must_be_opaque(fl_rec *r, PyObject *callable, const char **reason, const char **detail);
/* The recorder's dispatch mode is taken off torch's stack (false: it is not), and put back. Exceptions stay as they are. */
bool fl_rec_hide(fl_rec *r);
void fl_rec_show(fl_rec *r);
/* For code that minds the mode, be the recording given up or not. False where nothing was to be done. */
bool fl_rec_leave(fl_rec *r);
void fl_rec_return(fl_rec *r);
/* The program goes on according to this value: if unknown code gave it (or an item of this tuple), the trace holds only
 * while it gives an equal one, or, of an object that is no plain value, the recording gives up. */
void fl_rec_uses(fl_rec *r, PyObject *value);
/* Whether it is an object that unknown code gave, of which nothing is known; `plain`: or a number, a string. */
bool fl_rec_is_unknown(fl_rec *r, PyObject *value, bool plain);

/* The call sets autocast: its trace holds where autocast keeps no casts of weights from before. */
void fl_rec_uses_autocast(fl_rec *r);

/* --- trouble --- */

/* From here on this call cannot be replayed, for this reason; it goes on plainly and its answer stands. `reason` is a
 * row of breaks.def ("unknown C function"), `detail` names the thing. The current user line is added by the recorder. */
void fl_rec_give_up(fl_rec *r, const char *reason, const char *detail);
bool fl_rec_gave_up(const fl_rec *r);

/* A call of PyTorch's C++ begins (how many operators have been recorded), and ends: gives up where it gives back memory that it
 * has filled without an operator. */
size_t fl_rec_nodes(const fl_rec *r);
void fl_rec_called(fl_rec *r, PyObject *callable, size_t first);

#endif
