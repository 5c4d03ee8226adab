#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[FL_ISA_COUNT] = {"portable", "avx2", "avx512", "avx512_bf16"};

static fl_isa detect(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return FL_ISA_PORTABLE;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return FL_ISA_AVX2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return FL_ISA_AVX512;
  return FL_ISA_AVX512_BF16;
#else
  return FL_ISA_PORTABLE;
#endif
}

static fl_isa lowered_by_environment(fl_isa isa) {
  const char *want = getenv("FRAMELIFT_ISA");
  if (!want) return isa;
  for (int i = 0; i < FL_ISA_COUNT; i++)
    if (!strcmp(want, names[i]) && (fl_isa)i < isa) return (fl_isa)i;
  return isa;
}

static _Atomic int in_force = -1;

fl_isa fl_cpu_isa(void) {
  int isa = atomic_load_explicit(&in_force, memory_order_relaxed);
  if (isa < 0) {
    isa = lowered_by_environment(detect());
    atomic_store_explicit(&in_force, isa, memory_order_relaxed);
  }
  return (fl_isa)isa;
}

const char *fl_isa_name(fl_isa isa) { return (unsigned)isa < FL_ISA_COUNT ? names[isa] : "?"; }

fl_isa fl_cpu_force_isa(fl_isa isa) {
  fl_isa best = detect();
  if (isa > best) isa = best;
  atomic_store_explicit(&in_force, isa, memory_order_relaxed);
  return isa;
}

static long cache_size(int name, long otherwise) {
  long size = name < 0 ? 0 : sysconf(name);
  return size > 0 ? size : otherwise;
}

#ifndef _SC_LEVEL1_DCACHE_SIZE
#define _SC_LEVEL1_DCACHE_SIZE -1
#define _SC_LEVEL2_CACHE_SIZE  -1
#define _SC_LEVEL3_CACHE_SIZE  -1
#endif

long fl_cpu_l1d(void) { return cache_size(_SC_LEVEL1_DCACHE_SIZE, 32L << 10); }
long fl_cpu_l2(void) { return cache_size(_SC_LEVEL2_CACHE_SIZE, 1L << 20); }
long fl_cpu_l3(void) { return cache_size(_SC_LEVEL3_CACHE_SIZE, 16L << 20); }
