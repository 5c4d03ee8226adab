/* Inference mode and autocast: what torch has of them now, and a state of theirs made again.
 *
 * A state of autocast is a tuple: (nesting, whether casts are cached or None: that is left alone, ((device, enabled, dtype), ...)). Modes that stand are a
 * tuple too: for each inference mode entered autocast's state at its entry and its guard, then autocast's state now; in
 * these states the nesting is how much deeper it is than in the one before. All need the GIL; the state is the thread's. */
#ifndef FL_CAPTURE_MODES_H
#define FL_CAPTURE_MODES_H

#include <Python.h>
#include <stdbool.h>

int fl_inference_enabled(void);               /* 1, 0, or -1 with an exception */
int fl_tensor_is_inference(PyObject *tensor); /* 1, 0, or -1 with an exception */

/* What comes until fl_inference_end is done in inference mode, or out of it, without gradients either way. *out_guard: to be ended
 * (NULL: it is so already). False with an exception. */
bool fl_inference_begin(bool on, PyObject **out_guard);
void fl_inference_end(PyObject *guard); /* takes; an exception stays as it is */

bool fl_inference_is_guard(PyObject *o); /* a torch._C._InferenceMode */
/* A new guard, which is entered by being made; left again unless `open`. New reference, or NULL with an exception. */
PyObject *fl_inference_guard(bool on, bool open);

/* Autocast's state of these devices (an iterable of names). New reference, or NULL with an exception. */
PyObject *fl_autocast_read(PyObject *devices);
PyObject *
fl_autocast_now(void); /* of the devices that are told apart, in the order of FL_AUTOCAST_DEVICES (schema.h) */
PyObject *fl_autocast_devices(PyObject *state); /* new tuple of the names in it, or NULL */
/* Sets it; the nesting changes by `nesting`, and where it comes to nought casts are forgotten. 0, or -1. */
int fl_autocast_write(PyObject *state, long nesting);
/* Off, where the state has it on, and out of its nesting; or as the state has it again. The rest, and the casts that are kept,
 * stay as they are. 0, or -1. */
int fl_autocast_switch(PyObject *state, bool on);
void fl_autocast_set_again(PyObject *state); /* takes; NULL: nothing. An exception stays as it is */
bool fl_autocast_is_nested(void);            /* inside any, enabled or not */
/* Forgets the casts of weights that it keeps. 0, or -1. */
int fl_autocast_forget(void);
static inline long fl_autocast_nesting(PyObject *state) { return PyLong_AsLong(PyTuple_GET_ITEM(state, 0)); }
bool fl_autocast_any(PyObject *state); /* it is enabled on some device */

/* Modes that a replay has entered for frames that stand. */
typedef struct fl_modes_held {
  PyObject *before; /* autocast's state before; NULL: nothing is held */
  PyObject *items;  /* the modes; NULL until they are entered */
} fl_modes_held;
/* Before they are entered: `last` is autocast's state in the end. 0, or -1 with an exception. */
int fl_modes_hold(fl_modes_held *h, PyObject *last);
void fl_modes_leave(fl_modes_held *h);   /* leaves them, the last one first; an exception stays as it is */
void fl_modes_pass_on(fl_modes_held *h); /* frames that run leave them */

#endif
