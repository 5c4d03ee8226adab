/* PyTorch's global state, read without calling Python objects.
 *
 * The functions that hold this state are exported by torch's libraries under C++ names, which nothing promises. Each is
 * looked for by name when the module is loaded and must then follow what the public functions do when the state is
 * changed; one that is missing or does not leaves the public functions in use. Needs the GIL. */
#ifndef FL_CAPTURE_PEEK_H
#define FL_CAPTURE_PEEK_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* What tells one global state from another. Equal prints mean equal states. */
typedef struct fl_print {
  uint64_t included, excluded; /* dispatch keys: autocast, functorch, dispatch modes, tracing, inference mode */
  uint64_t functions;          /* depth of function modes, and whether they are off */
  uint64_t rest;               /* default dtype, determinism, inference mode */
} fl_print;

void fl_peek_init(void); /* once, after fl_interop_init; leaves no exception */

/* False where it cannot be told. */
bool fl_peek_print(fl_print *out);
/* 1, 0, or -1 where it cannot be told. */
int fl_peek_grad(void);
int fl_peek_inference(void); /* the same */

static inline bool fl_print_equal(const fl_print *a, const fl_print *b) {
  return a->included == b->included && a->excluded == b->excluded && a->functions == b->functions && a->rest == b->rest;
}

#endif
