/* Is an engine's answer as good as the recorded one? Tensors are compared with it, and where they differ more than rounding by itself
 * explains, both with what the operators give in a wider type. Needs the GIL. */
#ifndef FL_CAPTURE_JUDGE_H
#define FL_CAPTURE_JUDGE_H

#include "capture/segment.h"

typedef struct fl_judge {
  fl_pool *pool;      /* borrowed */
  fl_dtype precision; /* of the engines */
  bool loose;         /* 16-bit answers of two ways to compute need not be judged by the exact one */
} fl_judge;

/* Adds a comparison of two tensors to cosine and max_rel; false when they differ too much. */
bool fl_judge_pair(const fl_judge *j, PyObject *got, PyObject *want, float *cosine, float *max_rel);
/* True if each result of the part in `got` agrees with that in `ref`, or is as near as that is to the exact one. Both by number of
 * the trace; the part's operators are run in a wider type on its inputs in `ref`. Leaves no exception. */
bool fl_judge_part(const fl_judge *j, const fl_trace *t, const fl_seg_part *p, PyObject *const *got,
                   PyObject *const *ref);

#endif
