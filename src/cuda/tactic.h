/* Which of several ways to compute one thing on the device is the fastest: by running each there.
 *
 * A caller that has candidates (algorithms of cuBLASLt, engine configurations of cuDNN, kernels of our own) names the
 * problem by a text and asks. Each candidate is captured into a CUDA graph several times over and the graph is timed;
 * operands that come from main memory in a network are cold here too. What is known is kept for the life of the process,
 * and on disk by problem, GPU and driver; FRAMELIFT_CUDA_TUNE=0 keeps to the first candidate and times nothing.
 * Thread rule: may be called from any thread, with the context current, but not while the calling thread captures; one
 * problem is timed at a time. */
#ifndef FL_CUDA_TACTIC_H
#define FL_CUDA_TACTIC_H

#include "cuda/device.h"

enum { FL_CUDA_TACTIC_BUFFERS = 8 };

typedef struct fl_cuda_tactic {
  const char *key; /* everything that the best candidate may depend on: operator, types, dims, strides, alignment, the
                      library and its version. The GPU and the number of candidates are added */
  int n;           /* candidates; the likeliest first */
  /* Puts candidate `i`'s work on the stream, in these buffers (in the order below); not 0: it cannot. */
  int (*launch)(void *arg, int i, void *const *buffers, fl_cu_stream stream);
  void *arg;
  struct {
    size_t bytes; /* 256-byte aligned; filled with small positive floats of whatever type */
    bool
        cold; /* lies in main memory when a network comes to it, as weights do: each run of a candidate gets another copy,
                     until they are together larger than the L2 cache */
  } buffers[FL_CUDA_TACTIC_BUFFERS]; /* zero bytes: NULL is given */
} fl_cuda_tactic;

/* The fastest candidate. Where nothing can be timed (out of memory, tuning is off, a single candidate): the first; where
 * every candidate fails: -1. `out_us` (NULL allowed) is its time, 0 where unknown. */
int fl_cuda_tactic_choose(const fl_cuda_device *device, const fl_cuda_tactic *t, float *out_us);
/* True where the choice is known without timing anything: from an earlier call, this process's or another's. */
bool fl_cuda_tactic_known(const fl_cuda_device *device, const fl_cuda_tactic *t, int *out_choice);
/* Frees the memory of timing. What asks for many problems in a row does this at the end. */
void fl_cuda_tactic_release(const fl_cuda_device *device);

typedef struct fl_cuda_tactic_stats {
  int timed, known, from_disk; /* problems */
  double ms;                   /* spent on timing */
} fl_cuda_tactic_stats;
fl_cuda_tactic_stats fl_cuda_tactic_get_stats(void);

/* For tests: one line of the file on disk. False where it is not one. */
typedef struct fl_cuda_tactic_entry {
  uint64_t hash[2];
  int n, choice;
  float us;
} fl_cuda_tactic_entry;
bool fl_cuda_tactic_parse(const char *line, fl_cuda_tactic_entry *out);
void fl_cuda_tactic_print(const fl_cuda_tactic_entry *e, char *line, size_t size);

#endif
