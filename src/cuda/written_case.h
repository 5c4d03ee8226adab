/* The sources that a plan needs, written without a GPU: for cuda_test.c and sources_bench.c. */
#ifndef FL_CUDA_WRITTEN_CASE_H
#define FL_CUDA_WRITTEN_CASE_H

#include <string.h>

#include "cuda/conv.h"
#include "cuda/graph.h"
#include "cuda/nvrtc.h"
#include "cuda/ops.h"
#include "plan/plan.h"

/* Convolutions: our own way, where it may be the fastest, and what follows the libraries'; `direct`: also what runs where there is
 * neither. */
static inline void fl_cuda_write_step(const fl_plan *p, const fl_step *s, bool direct, fl_cuda_queue *q) {
  fl_tensor tensors[FL_MAX_OPERANDS + FL_PW_MAX_OUTPUTS] = {0};
  for (int i = 0; i < s->n_in + s->n_out; i++) {
    const fl_operand *o = &p->operands.data[s->operands + (uint32_t)i];
    tensors[i].type = o->type;
    memcpy(tensors[i].strides, o->strides, sizeof o->strides);
  }
  int fault = 0;
  fl_run_args a = {.params = s->params, .in = tensors, .out = tensors + s->n_in, .fault = &fault, .queue = &q->base};
  if (s->kind == FL_STEP_COPY) {
    fl_cuda_copy(&a);
    return;
  }
  const char *name = p->backend->kernel(s->kernel)->name;
  if (strstr(name, "cublaslt")) return;
  if (!strcmp(name, "cuda_conv2d")) {
    fl_cuda_conv c = fl_cuda_conv_of(&a, a.params);
    if (fl_cuda_conv_is_ours(&c, 90)) fl_cuda_conv_own(&a, &c);
    fl_cuda_conv_finish(&a, &c);
    if (direct) fl_cuda_run_map(&a);
    return;
  }
  p->backend->kernel(s->kernel)->run(&a);
}

/* Calls `visit` for each source of a plan on fl_cuda_table, without the prelude. */
static inline fl_status fl_cuda_write_plan(const fl_plan *p, bool direct, void (*visit)(void *arg, const char *source),
                                           void *arg) {
  static const fl_cuda_api api;
  static const fl_cuda_device device = {.api = &api, .arch = 90};
  fl_cuda_queue q = {.device = &device, .preparing = true};
  for (size_t i = 0; i < p->init.len; i++) fl_cuda_write_step(p, &p->init.data[i], direct, &q);
  for (size_t i = 0; i < p->run.len; i++) fl_cuda_write_step(p, &p->run.data[i], direct, &q);
  fl_cuda_visit_pending(&q, visit, arg);
  return q.failed;
}

#endif
