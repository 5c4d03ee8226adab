/* Strided copies on emulated kernels against a loop: random dimensions, strides and alignments, each side in a block of
 * its size. 25 of them, or thousands ("all"). */
#include <stdlib.h>

#include "base/alloc.h"
#include "base/test.h"
#include "cuda/emulator_case.h"
#include "cuda/ops.h"

static int pick(int n) { return rand() % n; }

typedef struct side {
  fl_tensor tensor;
  size_t offset, bytes; /* of the first element in the block, and of the block */
  char *block;
} side;

static fl_type random_type(void) {
  static const fl_dtype types[] = {FL_U8, FL_F16, FL_F32, FL_F64, FL_BOOL, FL_I64};
  static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 16, 17, 24, 32, 33, 40, 64, 65, 96, 100, 128, 257, 300, 513};
  fl_type t = {.dtype = types[pick(6)], .rank = pick(6)};
  int64_t total = 1;
  for (int d = 0; d < t.rank; d++) {
    t.dims[d] = sizes[pick(sizeof sizes / sizeof *sizes)];
    if (total * t.dims[d] > 120000) t.dims[d] = 1 + pick(3);
    total *= t.dims[d];
  }
  if (t.rank && pick(50) == 0) t.dims[pick(t.rank)] = 0;
  return t;
}

/* Axes in any order, some with gaps between; an input's may be broadcast. */
static void random_strides(fl_tensor *x, bool input) {
  int order[FL_MAX_RANK];
  int64_t step = pick(4) ? 1 : 1 + pick(3);
  bool shuffled = pick(3) != 0;
  for (int i = 0; i < x->type.rank; i++) {
    int j = shuffled ? pick(i + 1) : i;
    order[i] = order[j];
    order[j] = i;
  }
  for (int i = x->type.rank - 1; i >= 0; i--) {
    int d = order[i];
    x->strides[d] = input && !pick(6) ? 0 : step;
    if (!x->strides[d]) continue;
    step *= x->type.dims[d] ? x->type.dims[d] : 1;
    if (!pick(4)) step += pick(3) ? 8 * (1 + pick(3)) : 1 + pick(5);
  }
}

/* Of an input, vectors of 16 bytes that hold some of it may be read. */
static side random_side(const fl_type *t, bool input) {
  side s = {.tensor.type = *t};
  int64_t last = 0;
  random_strides(&s.tensor, input);
  for (int d = 0; d < t->rank; d++) last += t->dims[d] ? (t->dims[d] - 1) * s.tensor.strides[d] : 0;
  s.offset = pick(3) ? 0 : (size_t)pick(16) * fl_dtype_size(t->dtype);
  s.bytes = s.offset + (size_t)(last + 1) * fl_dtype_size(t->dtype);
  if (input) s.bytes = (s.bytes + 15) / 16 * 16;
  s.block = fl_malloc_aligned(s.bytes);
  for (size_t i = 0; i < s.bytes; i++) s.block[i] = (char)rand();
  s.tensor.data = s.block + s.offset;
  return s;
}

static void copy_by_loop(const side *in, const side *out, char *to) {
  const fl_type *t = &in->tensor.type;
  const size_t size = fl_dtype_size(t->dtype);
  for (int64_t k = 0; k < fl_type_numel(t); k++) {
    int64_t rest = k, a = 0, b = 0;
    for (int d = t->rank - 1; d >= 0; rest /= t->dims[d--]) {
      a += rest % t->dims[d] * in->tensor.strides[d];
      b += rest % t->dims[d] * out->tensor.strides[d];
    }
    memcpy(to + out->offset + (size_t)b * size, in->block + in->offset + (size_t)a * size, size);
  }
}

static void print_case(const side *in, const side *out) {
  const fl_type *t = &in->tensor.type;
  fprintf(stderr, "elements of %zu bytes, offsets %zu, %zu\n", fl_dtype_size(t->dtype), in->offset, out->offset);
  for (int d = 0; d < t->rank; d++)
    fprintf(stderr, "  %lld: %lld %lld\n", (long long)t->dims[d], (long long)in->tensor.strides[d],
            (long long)out->tensor.strides[d]);
}

static void check_copy(int trial) {
  const fl_type t = random_type();
  side in = random_side(&t, true), out = random_side(&t, false);
  char *want = malloc(out.bytes);
  memcpy(want, out.block, out.bytes);
  copy_by_loop(&in, &out, want);
  fl_run_args a = {.in = &in.tensor, .out = &out.tensor};
  fl_cuda_copy(&a);
  const bool same = !memcmp(want, out.block, out.bytes);
  FL_CHECK_MSG(same, "copy %d", trial);
  if (!same) print_case(&in, &out);
  free(want);
  fl_free_aligned(in.block);
  fl_free_aligned(out.block);
}

static void run(fl_pool *unused, bool all) {
  srand(1);
  for (int i = 0; i < (all ? 2000 : 25) && fl_test_failed_ < 5; i++) {
    check_copy(i);
    if (i % 500 == 499) printf("%d copies: %d kernels\n", i + 1, fl_emulator_stats_of().kernels);
    fflush(stdout);
  }
}

int main(int argc, char **argv) { return fl_emulator_main(argc, argv, "copies", run); }
