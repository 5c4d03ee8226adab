/* A trace: one way a function was seen to run, and how to run it again.
 *
 * Values are numbered over the whole trace: the tensors of the arguments (inputs), tensors that existed before the call
 * (weights), and results of the recorded operators. Steps are segments (stretches of operators), and between them
 * operators whose answer decided how the program went on: at replay they run eagerly and must answer the same. */
#ifndef FL_CAPTURE_TRACE_H
#define FL_CAPTURE_TRACE_H

#include <Python.h>

#include "base/stages.h"
#include "capture/cpython/compat.h"
#include "capture/argspec.h"
#include "capture/effects.h"
#include "capture/guards.h"
#include "capture/result.h"
#include "capture/schema.h"
#include "capture/weights.h"
#include "lower/lower.h"
#include "rt/engine.h"

#define FL_NO_TVAL UINT32_MAX

typedef enum fl_tval_kind {
  FL_TVAL_INPUT,
  FL_TVAL_WEIGHT,
  FL_TVAL_RESULT,
  FL_TVAL_GIVEN,   /* a tensor that unknown code gave */
  FL_TVAL_OBJECT,  /* another object that unknown code gave */
  FL_TVAL_ARGUMENT /* a list or dict among the arguments */
} fl_tval_kind;

typedef struct fl_tval {
  fl_tval_kind kind;
  uint32_t index;      /* INPUT, WEIGHT, ARGUMENT: which; RESULT: the node; GIVEN, OBJECT: the break */
  fl_tensor_meta meta; /* at recording; meta.data is not kept for results */
  uint32_t view_of;    /* the value it is a view of in eager, or FL_NO_TVAL */
  uint32_t alias_of;   /* view_of, or the value an in-place operator renamed to this */
  uint32_t storage;    /* the same number: memory shared in eager */
  bool whole;          /* known to begin where its memory does */
  const void
      *fixed; /* RESULT: its elements where guards promise them on each replay, contiguous, in the arena; or NULL */
} fl_tval;

static inline bool fl_tval_is_borrowed(const fl_tval *v) {
  return v->kind == FL_TVAL_INPUT || v->kind == FL_TVAL_WEIGHT;
}

/* An argument of a recorded operator as it was given. */
typedef enum fl_targ_kind { FL_TARG_CONST, FL_TARG_VALUE, FL_TARG_LIST, FL_TARG_TUPLE } fl_targ_kind;
typedef struct fl_targ {
  fl_targ_kind kind;
  uint32_t value;
  PyObject *object; /* CONST; kept by the trace */
  int n;
  struct fl_targ *items;
} fl_targ;

typedef struct fl_tnode {
  const fl_schema *schema;
  int n_pos, n_kw;
  PyObject *kwnames; /* tuple, or NULL */
  fl_targ *args;     /* n_pos + n_kw */
  int n_out;
  uint32_t *outs; /* of the flattened result; FL_NO_TVAL for what is not a tensor */
  const char *file, *module;
  int line;
  const char *pin; /* must run eagerly, and why */
  PyObject **
      recorded; /* until the trace is built, of another library's operator: copies of its n_out results as it gave them, or
                        * NULL. What else it did is not done again to verify the trace. Owned */
  uint32_t *drop; /* results nobody needs after this node, when all nodes run eagerly */
  int n_drop;
} fl_tnode;

/* A comparison of a number with another. */
typedef struct fl_compare {
  PyObject *other; /* kept by the trace; NULL: nothing is compared */
  int op;          /* Py_LT ... */
  bool swapped;    /* the number is the second one */
} fl_compare;

typedef enum fl_tstep_kind { FL_TSTEP_SEGMENT, FL_TSTEP_SCALAR, FL_TSTEP_SHAPE } fl_tstep_kind;
typedef struct fl_tstep {
  fl_tstep_kind kind;
  uint32_t first, n;        /* nodes */
  PyObject *scalar;         /* SCALAR: the answer the trace goes on with; kept */
  fl_compare compare;       /* SCALAR: of the operator's answer, where that is what the trace goes on with */
  const char *eager_reason; /* SEGMENT: why all of it runs eagerly, or NULL */
  bool random;
  bool inference;             /* in inference mode (not SCALAR) */
  bool late;                  /* SCALAR: asked after what the program did according to the answer (rec_decide.c) */
  struct fl_segment *segment; /* SEGMENT: once built */
} fl_tstep;

/* What unknown code gave back, as it was recorded. */
typedef enum fl_back_kind {
  FL_BACK_TENSOR, /* a new tensor: `value` */
  FL_BACK_SAME,   /* the object that is `value` already */
  FL_BACK_CONST,  /* this object, or an equal plain value */
  FL_BACK_OBJECT, /* anything: `value`; once the program goes on according to it, equal to `object` */
  FL_BACK_TUPLE,
  FL_BACK_LIST,
  FL_BACK_DICT
} fl_back_kind;
typedef struct fl_back {
  fl_back_kind kind;
  bool used;   /* OBJECT: must be equal */
  bool shared; /* OBJECT: others may hold it */
  uint32_t value;
  PyObject *object; /* CONST, OBJECT; DICT: tuple of its keys. Kept by the trace */
  bool ordered;     /* DICT: an OrderedDict */
  int n;
  struct fl_back *items;
} fl_back;

/* A graph break: code that is not understood is called, between two stretches of the program that are. What a stretch relies
 * on is checked when it begins: the first one's guards at entry, the others' after the break before them. Where that
 * fails, the frames are made anew as they stood in that call, and are run to their end: a side exit (branch.h). */
typedef struct fl_break_frame {
  PyCodeObject *code; /* kept by the trace */
  PyObject *callable; /* what was called, whose answer is the frame's; or its function. Kept */
  int n_locals, depth, next, other;
  fl_cpy_wants wants;
  bool generator; /* it is one's */
} fl_break_frame;
typedef struct fl_place { /* objects are kept by the trace */
  PyObject *dict, *key;
  uint32_t value;
} fl_place;
/* Where calls leave their trace: frames that stand alike, each time with the same objects but for what is computed in the
 * call (the holes). Breaks of a trace and of its branches that are alike in this share it, as the turns of a loop do. */
typedef struct fl_site {
  struct fl_trace *t; /* the trace and its break that it was made for */
  const struct fl_break *b;
  FL_VEC(struct fl_trace *) branches; /* owned */
  int recordings, give_ups;
  char why[200]; /* why no branch was made of the last recording */
} fl_site;
typedef struct fl_break {
  uint32_t at;       /* steps before it */
  fl_effects writes; /* what the stretch before it leaves behind: done before the call */
  fl_result state;   /* (values of the effects, callable, arguments, frames: (function, locals, operands) ...) */
  size_t n_pos;      /* of the arguments */
  PyObject *kwnames; /* or NULL; kept by the trace */
  fl_break_frame *frames;
  int n_frames;
  uint32_t *tensors; /* computed ones among the arguments: their metadata must not change */
  int n_tensors;
  fl_back back;
  fl_guards guards;        /* of the stretch after it */
  FL_VEC(fl_place) places; /* read by that stretch: hold tensors of the trace */
  bool dirty;              /* that stretch does what must not be done twice */
  const char *reason, *detail, *file;
  int line;
  fl_site *site;   /* once built; NULL: none */
  uint32_t *nodes; /* of the state: those that frames hold, in the order in which they are met */
  uint32_t *holes; /* values that frames hold, in that order, but for weights */
  int n_nodes, n_holes;
  uint64_t count, exits;
  char exit_why[160]; /* why the last one was left */
  PyObject *recorded; /* what it gave at recording, until the trace is built */
} fl_break;

/* A late decision, and the few operators that it comes from (ask_first.h). */
typedef struct fl_ask {
  uint32_t step, *nodes;
  int n;
} fl_ask;

typedef struct fl_trace {
  int refs;
  fl_arena arena;
  PyObject *keep; /* list: everything held */
  int running;    /* calls that run or change it now */
  fl_argspec args;
  fl_torch_state state;
  bool handles;     /* there is a break while an exception is handled: only where the call begins with none */
  bool autocast;    /* the call enters autocast: only outside any other, which might keep casts of weights */
  PyObject *around; /* the state of autocast around the call (fl_around), or NULL; only to be told from others */
  int cuda_state;   /* fl_torch_cuda_state() if engines compute on a GPU, else -1 */
  fl_guards guards;
  fl_weights weights;
  FL_VEC(fl_tval) values;
  FL_VEC(uint32_t) borrowed; /* values that are inputs or weights */
  FL_VEC(uint32_t) inputs;   /* those that are inputs. Once built */
  PyObject **start;          /* the values a run begins with: weights, NULL elsewhere. Once built */
  FL_VEC(fl_tnode) nodes;
  FL_VEC(fl_tstep) steps;
  FL_VEC(fl_break *) breaks;
  bool containers;  /* a value is a container of the arguments */
  fl_result result; /* with effects: a tuple of the call's result and each effect's value */
  fl_effects writes;
  /* Of a branch: */
  struct fl_trace *root; /* the trace that it grew from; borrowed. NULL: it is one itself */
  fl_back *entry;        /* what unknown code gave, among the holes and at last: n_entry of them */
  int n_entry;
  PyObject *entered; /* tuple: those of the recording, until it is built */
  bool dirty;        /* what comes before its first break must not be done twice */
  /* Of a trace with breaks: */
  FL_VEC(fl_site *) sites;
  int n_branches; /* of all sites, recorded or not */
  bool open;      /* it ends at its last break, which is left whatever it gives (rec_open.c) */
  bool effects;   /* running it twice is not running it once: it writes to arguments, buffers, parameters */
  bool random;
  FL_VEC(fl_ask) asks; /* once looked for: knows_asks */
  int ask_first;       /* for so many more runs */
  bool knows_asks;
  bool writes_weights;        /* weights are checked again before each segment */
  bool idle;                  /* being measured: engines do not run, their results hold anything */
  bool identified;            /* the program knows which tensors its weights are: by id, as keys of a dictionary */
  bool eager_parts;           /* some operator runs through PyTorch: grad mode must be off */
  uint64_t hits, rebound;     /* rebound: how often weights were replaced (rebind.h) */
  fl_stage_times times;       /* of the call that recorded it */
  fl_stage_times ready_times; /* of the verification that was put off */
  struct fl_later *later;     /* no engine may run yet but to be verified (later.h); else NULL */
  float cosine, max_rel;
  bool verified;
  const char
      *unfaithful; /* why the recorded operators are no account of the call, or NULL: no call may be answered by them */
  uint32_t unfaithful_at; /* the node that shows it */
  int spoil; /* not 0 while it is verified: memory that operators leave unfilled holds this number, for nobody to rely on */
  bool near; /* some engine is not as near to eager as usual, but as near to the answer in float64 */
} fl_trace;

fl_trace *fl_trace_new(void); /* NULL with MemoryError */
void fl_trace_retain(fl_trace *t);
void fl_trace_release(fl_trace *t); /* takes; NULL allowed */

/* Of a branch, the trace that it grew from; else itself. */
static inline fl_trace *fl_trace_root(const fl_trace *t) { return t->root ? t->root : (fl_trace *)t; }

int fl_trace_traverse(const fl_trace *t, visitproc visit, void *arg);

/* Calls fn(ctx, value) for each value that the recipes of breaks and of the result use; a value may come more than once. */
void fl_trace_each_kept(const fl_trace *t, void (*fn)(void *ctx, uint32_t value), void *ctx);

/* Calls fn for each value among a node's arguments, in order. */
typedef void (*fl_targ_fn)(void *ctx, uint32_t value);
void fl_tnode_each(const fl_tnode *n, fl_targ_fn fn, void *ctx);

/* Lets go of the copies of its results. */
void fl_tnode_forget(fl_tnode *n);

/* need[v] = true for each value that a later step or the call's result uses. */
void fl_trace_needed_after(const fl_trace *t, uint32_t step, bool *need);

#endif
