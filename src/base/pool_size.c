#define _GNU_SOURCE /* CPU_ALLOC */
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"

static int affinity(void) {
  for (size_t cpus = 1024; cpus <= 1u << 16; cpus *= 2) {
    cpu_set_t *set = CPU_ALLOC(cpus);
    if (!set) break;
    int ok = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set) == 0;
    int n = ok ? CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set) : 0;
    CPU_FREE(set);
    if (ok) return n;
  }
  return 1;
}

/* Quota over period, rounded up; INT_MAX when there is none. */
static int as_cores(long quota, long period) {
  if (quota <= 0 || period <= 0) return INT_MAX;
  long cores = (quota + period - 1) / period;
  return cores < INT_MAX ? (int)cores : INT_MAX;
}

static int read_v2(const char *dir) {
  char path[4200], quota[32];
  long period;
  snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", dir);
  FILE *f = fopen(path, "r");
  if (!f) return INT_MAX;
  int got = fscanf(f, "%31s %ld", quota, &period);
  fclose(f);
  return got == 2 && strcmp(quota, "max") ? as_cores(atol(quota), period) : INT_MAX;
}

static long read_long(const char *dir, const char *name) {
  char path[4200];
  long v = -1;
  snprintf(path, sizeof path, "/sys/fs/cgroup/cpu%s/%s", dir, name);
  FILE *f = fopen(path, "r");
  if (!f) return -1;
  if (fscanf(f, "%ld", &v) != 1) v = -1;
  fclose(f);
  return v;
}

static int read_v1(const char *dir) {
  return as_cores(read_long(dir, "cpu.cfs_quota_us"), read_long(dir, "cpu.cfs_period_us"));
}

/* The least of a group's and its ancestors' quotas. In a container the group's path may name a directory that is
 * not mounted there; the root is then what counts, and is tried last in any case. */
static int least_on_path(char *dir, int (*read)(const char *)) {
  int least = INT_MAX;
  for (;;) {
    int n = read(dir);
    if (n < least) least = n;
    char *slash = strrchr(dir, '/');
    if (!slash) return least;
    *slash = 0;
  }
}

static int cgroup_quota(void) {
  char line[4096];
  int least = INT_MAX;
  FILE *f = fopen("/proc/self/cgroup", "r");
  if (!f) return least;
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *dir = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!dir) continue;
    *dir++ = 0;
    controllers++;
    int n = INT_MAX;
    if (!*controllers)
      n = least_on_path(dir, read_v2);
    else if (strstr(controllers, "cpu") && !strstr(controllers, "cpuset"))
      n = least_on_path(dir, read_v1);
    if (n < least) least = n;
  }
  fclose(f);
  return least;
}

int fl_pool_default_threads(void) {
  int n = affinity(), quota = cgroup_quota();
  if (quota < n) n = quota;
  const char *want = getenv("FRAMELIFT_NUM_THREADS");
  if (want && atoi(want) > 0 && atoi(want) < n) n = atoi(want);
  return n < 1 ? 1 : n;
}
