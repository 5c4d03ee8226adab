#include "cuda/compare.h"

#include "cuda/codegen.h"
#include "cuda/graph.h"
#include "cuda/nvrtc.h"
#include "cuda/sources.h"

typedef struct comparison {
  fl_queue *queue;
  fl_dtype dtype;
  int64_t n;
  void *pointers[4]; /* got, want, sums, and the number of elements, which is passed like one */
} comparison;

static void walk(void *arg) {
  comparison *c = arg;
  fl_run_args a = {.queue = c->queue};
  fl_text t = {0};
  int64_t blocks = (c->n + 255) / 256;
  fl_text_add(&t, "typedef %s T;\n%s", fl_cg_storage(c->dtype), fl_cuda_source_compare);
  fl_cuda_launch(&a, &t, blocks < 1024 ? blocks : 1024, 256, 0, c->pointers, 4);
}

fl_status fl_cuda_compare(const fl_backend *b, fl_pool *pool, fl_dtype dtype, int64_t n, const void *got,
                          const void *want, fl_cuda_sums *out) {
  static const fl_cuda_sums zero;
  comparison c = {.dtype = dtype, .n = n};
  *out = zero;
  if (n == 0) return NULL;
  void *sums = b->allocate(b, sizeof *out);
  if (!sums) return fl_oom();
  fl_status s = b->upload(b, sums, &zero, sizeof zero);
  if (!s) s = b->queue_create(b, pool, &c.queue);
  c.pointers[0] = (void *)(uintptr_t)got;
  c.pointers[1] = (void *)(uintptr_t)want;
  c.pointers[2] = sums;
  c.pointers[3] = (void *)(uintptr_t)n;
  fl_work work = {.walk = walk, .arg = &c, .changed = true, .wait = true};
  if (!s) s = b->run(c.queue, &work);
  if (!s) s = fl_cuda_download(b, out, sums, sizeof *out);
  b->queue_destroy(c.queue);
  b->release(b, sums);
  return s;
}
