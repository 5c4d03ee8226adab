/* The recording state, for the recorder's own files. */
#ifndef FL_CAPTURE_REC_H
#define FL_CAPTURE_REC_H

#include "capture/record.h"
#include "capture/trace.h"

/* A tensor the recording knows, by its object's address. The reference is weak so that memory is freed as in eager;
 * another tensor later at the same address is told apart by it. */
typedef struct fl_live {
  PyObject *object; /* address only */
  PyObject *weak;
  uint32_t value; /* the value the object holds now */
  uint32_t next;  /* another live tensor of the same storage, or UINT32_MAX */
} fl_live;

/* The value that holds all of a storage now, and where that lies; value FL_NO_TVAL: there is none. */
typedef struct fl_base {
  uint32_t value;
  const char *data; /* address only */
} fl_base;

typedef struct fl_pending { /* a place that existed before and was written to: rec_effects.c */
  fl_write_kind kind;
  PyObject *obj, *key; /* strong; of a container written as a whole the key is NULL */
  PyObject *container; /* strong: the dictionary with the key, the cell, or the whole container */
  PyObject *original;  /* strong: what was there, NULL = absent; of a whole container a snapshot */
  bool whole;
  bool looked_into; /* whole: what the call did depends on what was in it */
  bool covered;     /* a container of the arguments: another object on the next call */
  bool moved;       /* deleted and set again: its place in the dictionary's order is another one */
  bool effect;      /* not undone: the trace has an effect for it */
  uint32_t at;      /* which */
} fl_pending;

typedef struct fl_reason {
  char *reason, *detail, *file;
  int line;
  PyObject *blame; /* a callable that may be left to CPython instead, or NULL */
} fl_reason;

typedef struct fl_unknown {
  PyObject *object;   /* strong */
  uint32_t value, at; /* at: the break it came from */
  struct fl_back *back;
} fl_unknown;

typedef struct fl_opaque_entry {
  PyObject *callable; /* strong */
  char *reason, *detail;
} fl_opaque_entry;
typedef FL_VEC(fl_opaque_entry) fl_opaque_set;

/* A yes or no out of a tensor whose check waits for the end of the segment: rec_decide.c. */
typedef struct fl_decision {
  fl_tnode node;
  PyObject *answer; /* kept by the trace */
  fl_compare compare;
  uint32_t after; /* nodes recorded before it */
} fl_decision;

typedef struct fl_draw { /* kept by the trace; self may be NULL */
  PyObject *callable, *self;
} fl_draw;

/* What a recorded result was, for engines to be compared with, where the trace ends before the call. */
typedef struct fl_final {
  uint32_t value;
  PyObject *tensor; /* strong */
} fl_final;

/* A cached function that was called, with tensors of the call's own or without. */
typedef struct fl_cache {
  PyObject *callable; /* kept by the trace */
  bool own;
} fl_cache;

struct fl_rec {
  fl_trace *trace; /* owned */
  fl_rec *outer;   /* recording of an outer call of this thread (ours does not nest: NULL) */
  PyObject *mode;  /* the dispatch mode object */
  bool gave_up, oom;
  bool ended; /* the trace ends before the call: nothing is recorded any more */
  FL_VEC(fl_final) finals;
  int paused; /* inside an operator: what runs there is the operator's own business */
  fl_reason why;
  fl_ptrmap live_of; /* tensor address -> live entry */
  FL_VEC(fl_live) live;
  FL_VEC(uint32_t) storage_head; /* storage -> first live entry */
  FL_VEC(fl_base) storage_base;
  FL_VEC(uint8_t) storage_kind;    /* fl_tval_kind of the tensor that owns the memory */
  fl_ptrmap fresh, covered, known; /* made in this call / in the arguments / read through a guard */
  FL_VEC(fl_pending) pending;
  FL_VEC(fl_decision) decisions;
  FL_VEC(fl_draw) draws; /* since the last break */
  fl_ptrmap drawn;       /* the numbers, and what was calculated from them; kept by the trace */
  PyObject *drew;        /* what drew the last one; kept by the trace */
  FL_VEC(fl_cache) caches;
  fl_decision number; /* that is about to be compared; answer NULL: none */
  PyObject *inputs[FL_MAX_INPUTS];
  uint64_t elements; /* a hash of some of theirs, before the call */
  bool effects;      /* something happened since the last break that must not happen twice */
  bool random;
  bool any_effects, any_random; /* before it */
  bool changes_inference;       /* the call has been in inference mode and out of it */
  bool rewrites;                /* since the last break a tensor made before it was written to */
  size_t first_storage;         /* made since the last break */
  fl_guards *guards;            /* of the stretch being recorded */
  fl_effects *writes;           /* where its effects go */
  PyObject *const *args;        /* of the call */
  size_t n_args;
  PyObject *kwnames;
  fl_ptrmap unknown_of; /* what unknown code gave -> entry */
  FL_VEC(fl_unknown) unknown;
  fl_ptrmap *made;             /* fresh objects met while frames are described */
  const fl_opaque_set *opaque; /* callables that are left to CPython; of the compiled callable */
  /* module paths */
  fl_ptrmap module_index; /* module -> index of names */
  FL_VEC(const char *) module_names;
  FL_VEC(const char *) module_stack;
  size_t copied;         /* bytes of results kept (fl_tnode.recorded) */
  const char *last_copy; /* the newest interned file name */
};

/* Nothing is recorded now. */
static inline bool fl_rec_is_off(const fl_rec *r) { return !r || r->gave_up || r->paused; }
/* Gives up. Returns 0: the program goes on. */
static inline int fl_rec_oom(fl_rec *r) {
  fl_rec_give_up(r, "out of memory", "while recording");
  return 0;
}

/* Begins recording a call. NULL and *why_not (static storage) when its arguments cannot be recorded; NULL and
 * *why_not NULL with an exception. `target` names the modules in reports. `at`: what a branch begins with besides, or
 * NULL. */
struct fl_entry; /* replay_break.h */
fl_rec *fl_rec_begin(PyObject *target, PyObject *const *args, size_t n_pos, PyObject *kwnames, bool records,
                     const struct fl_entry *at, const char **why_not);
/* Ends it: `result` is the call's. The trace (new reference) when the call can be replayed, else NULL and the reason
 * is in r->why. Never leaves an exception. */
fl_trace *fl_rec_end(fl_rec *r, PyObject *result);
void fl_rec_free(fl_rec *r);

/* For the dispatcher. */
const char *fl_rec_intern(fl_rec *r, const char *s); /* in the trace's arena */
bool fl_rec_keep(fl_rec *r, PyObject *o);            /* false = out of memory, recording given up */
/* The value a tensor holds now; makes a weight of one not seen before. FL_NO_TVAL after giving up.
 * `schema` is the operator that met it, NULL when it is known where the tensor comes from. */
uint32_t fl_rec_value_of(fl_rec *r, PyObject *tensor, const fl_schema *schema);
/* A constant that the recording made for itself. */
uint32_t fl_rec_own(fl_rec *r, PyObject *tensor);
bool fl_rec_find(fl_rec *r, PyObject *tensor, uint32_t *out_value);
/* A new result value held by `tensor` (which may be one already known: then it is renamed). */
uint32_t fl_rec_result(fl_rec *r, PyObject *tensor, uint32_t node, uint32_t view_of, uint32_t alias_of);
/* How many other tensors still alive share this value's memory. */
int fl_rec_aliases(fl_rec *r, uint32_t value);
const char *fl_rec_module(const fl_rec *r);

/* rec_writes.c: an operator writes to a tensor made in the call whose memory others share. True when that can be said by
 * values: then, once the operator's node `by` and its result are recorded, fl_rec_view_written says it. */
bool fl_rec_view_write(fl_rec *r, PyObject *tensor, fl_base *out_base);
void fl_rec_view_written(fl_rec *r, PyObject *tensor, fl_base base, const fl_tnode *by);

/* rec_memory.c: whether memory made in the call is as it was made, but for as many writes. Composites in C++ make tensors from numbers by
 * at::tensor: new memory, filled without an operator. A program's own new memory counts a version when it is filled. Why that
 * ends a recording where it is read. */
bool fl_rec_is_unfilled(const fl_rec *r, PyObject *tensor, uint32_t value, int64_t writes);
extern const char fl_rec_filled_unseen[];
/* Keeps copies of an operator's results (fl_tnode.recorded), up to a limit. */
void fl_rec_keep_results(fl_rec *r, PyObject *result, fl_tnode *n);
/* Gives up where an operator is about to read such a result, or the program goes on without the recording, and it is no longer
 * what it was. */
void fl_rec_look_at_result(fl_rec *r, PyObject *tensor, uint32_t value);
void fl_rec_look_at_results(fl_rec *r);
/* A hash of some elements of the arguments, which only operators and unknown code may write to. */
uint64_t fl_rec_hash_inputs(const fl_rec *r);
void fl_rec_look_at_inputs(fl_rec *r);

/* rec_values.c: true when guards, which this adds, promise that the tensor holds the same elements on each replay. An
 * argument's elements are guarded for this only where `input` says so. */
bool fl_rec_fix(fl_rec *r, PyObject *tensor, bool input);
/* The same for numbers that sizes come from: of arguments of up to 64 integers the elements are guarded. */
bool fl_rec_fix_counts(fl_rec *r, PyObject *tensor);
/* The same for numbers the program reads: also of what is computed in integers from such arguments, unless they are masks. */
bool fl_rec_fix_numbers(fl_rec *r, PyObject *tensor);

/* rec_draws.c: the recording gives up if the number was drawn; the draws of a stretch become effects. */
bool fl_rec_sees_drawn(fl_rec *r, PyObject *o);
void fl_rec_settle_draws(fl_rec *r, PyObject *all);

/* rec_decide.c: a step that runs the operator `n` and checks its answer; it is `late` if operators that were recorded
 * after it come before it. */
bool fl_rec_add_decision(fl_rec *r, const fl_decision *d, bool late);
/* Puts off that step until fl_rec_decide; false where it cannot wait. */
bool fl_rec_put_off(fl_rec *r, fl_decision *d);
/* A number that waits to be compared: noted, and, where something else comes first, decided as it is. */
void fl_rec_await(fl_rec *r, const fl_tnode *n, PyObject *answer, bool swapped);
void fl_rec_not_compared(fl_rec *r);
/* Adds the steps that wait. Before a break, an effect, an operator that may not run unless the answers are these. */
void fl_rec_decide(fl_rec *r);

/* The dispatch mode's object (one for the process). New reference. */
PyObject *fl_rec_mode_new(void);
/* Runs the operator and records it; `kwargs` may be NULL. New reference, or NULL with the operator's exception. */
PyObject *fl_rec_operator(fl_rec *r, const fl_schema *s, PyObject *args, PyObject *kwargs);

void fl_rec_current_set(fl_rec *r);

void fl_rec_gone(fl_rec *r, PyObject *object); /* what may lie at its address soon is no object of the call's own */
/* Marks the value as one that existed before the call. */
void fl_rec_note_known(fl_rec *r, PyObject *value);

/* A tensor that unknown code gave at break `at`, and a value that is no tensor. FL_NO_TVAL after giving up. */
uint32_t fl_rec_given(fl_rec *r, PyObject *tensor, uint32_t at);
uint32_t fl_rec_object_value(fl_rec *r, fl_tval_kind kind, uint32_t index);
fl_result_asker fl_rec_asker(fl_rec *r, bool frames);
void fl_rec_find_witnesses(fl_rec *r); /* at a stretch's end: what tells of batch norm's training */
bool fl_rec_is_written(void *rec, PyObject *container, PyObject *key);

/* rec_break.c, rec_given.c */
bool fl_rec_enter(fl_rec *r, const struct fl_entry *at); /* false: it cannot be followed */
/* dict[key] holds a tensor of this trace, which it holds on each replay after the last break: noted. */
bool fl_rec_reads_place(fl_rec *r, PyObject *dict, PyObject *key, PyObject *value);
bool fl_rec_unknown_value(void *rec, PyObject *object, uint32_t *out_value);
bool fl_rec_argument_value(void *rec, PyObject *object, uint32_t *out_value);
bool fl_rec_made(void *rec, PyObject *object);
void fl_rec_end_stretch(fl_rec *r); /* notes of the newest break whether what follows it may be done twice */

/* rec_open.c: whether the trace ends at this break, which is about to be called; its results are kept; it ends. */
bool fl_rec_ends_at(fl_rec *r, fl_break *b);
void fl_rec_keep_finals(fl_rec *r, const fl_break *b);
void fl_rec_stop(fl_rec *r);

/* rec_effects.c: whether the call has written to this key of a dictionary, or (key NULL) anything to this container. */
bool fl_rec_written(fl_rec *r, PyObject *container, PyObject *key);
/* The contents of a container are being looked at. True when it was written to before: that needs no guard, or another. */
bool fl_rec_reads_written(fl_rec *r, PyObject *container);
/* At the end: of cached functions' answers those that leave the call, or are written to, must be the same objects. */
void fl_rec_settle_cached(fl_rec *r, fl_trace *t);
/* At the end: writes become the trace's effects. The call's result, or a tuple of it and the effects' values (new
 * reference); NULL after giving up. */
PyObject *fl_rec_settle_writes(fl_rec *r, PyObject *result);
/* Whether it would succeed, and fn says yes to each value written. */
typedef bool (*fl_rec_written_fn)(fl_rec *r, PyObject *value);
bool fl_rec_may_settle(fl_rec *r, fl_rec_written_fn fn);
/* Then: tensors read from places that the trace leaves other tensors in become inputs found there. */
void fl_rec_find_sources(fl_rec *r, PyObject *all);

#endif
