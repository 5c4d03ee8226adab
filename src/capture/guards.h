/* Guards: what a trace relies on outside its arguments.
 *
 * Built while recording (fl_guards_add_*), armed once when it ends, then checked on every call. The fast path compares
 * versions and pointers; where one differs, what was read is looked up again, and if it is all the same the new
 * version is kept. Needs the GIL. Strong references to everything named. */
#ifndef FL_CAPTURE_GUARDS_H
#define FL_CAPTURE_GUARDS_H

#include <Python.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "capture/ptrmap.h"
#include "capture/watch.h"

typedef struct fl_dict_guard {
  PyObject *dict, *expected; /* expected: key -> value, or the absent mark */
  uint64_t version;
} fl_dict_guard;
typedef struct fl_inst_guard {
  PyObject *obj;
  PyTypeObject *type;
  PyObject **slot, *dict; /* where the __dict__ pointer lies, and what it was */
} fl_inst_guard;
typedef struct fl_type_guard {
  PyTypeObject *type;
  PyObject *expected;
  unsigned version;
} fl_type_guard;
typedef struct fl_func_guard {
  PyObject *func, *code, *defaults, *kwdefaults, *closure;
} fl_func_guard;
typedef struct fl_cell_guard {
  PyObject *cell, *value;
} fl_cell_guard;
typedef struct fl_list_guard {
  PyObject *list, *snapshot; /* tuple */
} fl_list_guard;
typedef struct fl_cont_guard {
  PyObject *obj, *snapshot; /* tuple of members; of keys and values for a dict */
  uint64_t version;
} fl_cont_guard;
typedef struct fl_descr_guard {
  PyObject *descr, *obj, *value;
} fl_descr_guard;
typedef struct fl_query_guard {
  PyObject *callable, *args, *kwnames, *value; /* args: positional, then keyword values */
  bool cached;   /* asked in each call where the program asks, and never besides: what it keeps is changed by asking */
  bool elements; /* the value is a tensor; one like it with the same elements does as well */
  bool leaves;   /* then the call gives it away: the new one takes its place (rebind.h) */
  PyObject *now; /* that one, until it does; NULL: none */
} fl_query_guard;

typedef struct fl_guards {
#define FL_GUARD(kind, name) FL_VEC(fl_##kind##_guard) kind;
#include "capture/guards.def"
#undef FL_GUARD
  /* while recording: which objects have a guard already */
  fl_ptrmap dicts, insts, types, funcs, cells, conts;
  /* when `watched`: the words of memory whose change makes a guard be looked at, which guard that is, and the guards that
   * are looked at each time */
  bool watched;
  fl_watches words;
  FL_VEC(uint32_t) whose; /* by word */
  FL_VEC(uint32_t) others;
} fl_guards;

/* Each: 0, or -1 when out of memory (no exception) or, for `changed`, sets *changed when the same thing was read
 * with another answer before. */
int fl_guards_add_item(fl_guards *g, PyObject *dict, PyObject *key, PyObject *value, bool *changed);
int fl_guards_add_instance(fl_guards *g, PyObject *obj);
int fl_guards_add_type(fl_guards *g, PyTypeObject *type, PyObject *name, PyObject *value, bool *changed);
int fl_guards_add_function(fl_guards *g, PyObject *func);
int fl_guards_add_cell(fl_guards *g, PyObject *cell, PyObject *value, bool *changed);
int fl_guards_add_contents(fl_guards *g, PyObject *container);
int fl_guards_add_descr(fl_guards *g, PyObject *descr, PyObject *obj, PyObject *value);
/* Of functions that keep what they gave. */
int fl_guards_add_cached(fl_guards *g, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                         PyObject *value, bool elements);
int fl_guards_add_query(fl_guards *g, PyObject *callable, PyObject *const *args, size_t nargs, PyObject *kwnames,
                        PyObject *value);

PyObject *fl_guards_absent(void); /* stands for the absence of a key among what is expected; borrowed */
/* Members in iteration order; of dicts keys and values alternately. New reference, or NULL (no exception). */
PyObject *fl_guards_members(PyObject *container);
/* The same from a snapshot (tuple, as fl_guards_snapshot gives) taken before the container was written to. */
int fl_guards_add_snapshot(fl_guards *g, PyObject *container, PyObject *snapshot);
PyObject *fl_guards_snapshot(PyObject *container); /* new reference, or NULL (no exception) */
/* Whether dict[key] is guarded; *out_value is what is expected, borrowed, NULL for its absence. */
bool fl_guards_item(const fl_guards *g, PyObject *dict, PyObject *key, PyObject **out_value);
bool fl_guards_has(const fl_guards *g, PyObject *container); /* a guard on a cell or on contents; until armed */
/* Gives up the guard on dict[key] == tensor and those on the tensor's own attributes. False, and nothing changes, when
 * the tensor matters elsewhere too. */
bool fl_guards_forget_tensor(fl_guards *g, PyObject *dict, PyObject *key, PyObject *tensor);

/* Checks all precisely and takes the versions. False when something read has changed since: `why` as below. What the
 * call itself has written is left out: `written` tells of a container as a whole (key NULL) or of one key. */
typedef bool (*fl_written_fn)(void *ctx, PyObject *container, PyObject *key);
bool fl_guards_arm(fl_guards *g, fl_written_fn written, void *ctx, char *why, size_t size);
/* The check of every call. On false `why` (may be NULL) tells which guard failed. Never leaves an exception. */
bool fl_guards_check(fl_guards *g, char *why, size_t size);
int fl_guards_traverse(const fl_guards *g, visitproc visit, void *arg);
void fl_guards_release(fl_guards *g);
/* Kinds and how many there are of each, for reports: row i, NULL past the end. */
const char *fl_guards_count(const fl_guards *g, int i, size_t *out_count);

#endif
