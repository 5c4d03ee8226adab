#include "cuda/cache.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

static void hash_bytes(uint64_t h[2], const char *s, size_t n) {
  for (; n; s++, n--) {
    h[0] = (h[0] ^ (unsigned char)*s) * 0x100000001b3;
    h[1] = (h[1] ^ (unsigned char)*s) * 0x100000001b3 + 0x9e3779b97f4a7c15;
  }
}

void fl_cuda_hash(uint64_t h[2], const char *s) { hash_bytes(h, s, strlen(s)); }

static bool cache_path(char *path, size_t size, const char *name) {
  const char *own = getenv("FRAMELIFT_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  int n = own && *own     ? snprintf(path, size, "%s/cuda/%s", own, name)
          : xdg && *xdg   ? snprintf(path, size, "%s/framelift/cuda/%s", xdg, name)
          : home && *home ? snprintf(path, size, "%s/.cache/framelift/cuda/%s", home, name)
                          : -1;
  return n > 0 && (size_t)n < size;
}

static void make_folders(char *path) {
  for (char *p = path + 1; *p; p++) {
    if (*p != '/') continue;
    *p = 0;
    mkdir(path, 0700);
    *p = '/';
  }
}

char *fl_cuda_cache_read(const char *name, size_t *out_bytes) {
  char path[1024];
  FILE *f = cache_path(path, sizeof path, name) ? fopen(path, "rb") : NULL;
  if (!f) return NULL;
  long bytes = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
  char *data = bytes > 0 && fseek(f, 0, SEEK_SET) == 0 ? fl_malloc((size_t)bytes + 1) : NULL;
  if (data && fread(data, 1, (size_t)bytes, f) != (size_t)bytes) {
    fl_free(data);
    data = NULL;
  }
  fclose(f);
  if (data) data[bytes] = 0;
  *out_bytes = (size_t)bytes;
  return data;
}

char *fl_cuda_cache_read_written(const char *name, size_t *out_bytes) {
  uint64_t h[2] = FL_CUDA_HASH_SEED;
  char *data = fl_cuda_cache_read(name, out_bytes);
  if (!data) return NULL;
  if (*out_bytes >= sizeof h) {
    *out_bytes -= sizeof h;
    hash_bytes(h, data, *out_bytes);
    if (!memcmp(h, data + *out_bytes, sizeof h)) return data;
  }
  fl_free(data);
  return NULL;
}

void fl_cuda_cache_write(const char *name, const char *data, size_t bytes) {
  char path[1024], beside[1100];
  uint64_t h[2] = FL_CUDA_HASH_SEED;
  if (!cache_path(path, sizeof path, name)) return;
  make_folders(path);
  snprintf(beside, sizeof beside, "%s.XXXXXX", path);
  int to = mkstemp(beside);
  FILE *f = to < 0 ? NULL : fdopen(to, "wb");
  if (!f) return;
  hash_bytes(h, data, bytes);
  bool ok = fwrite(data, 1, bytes, f) == bytes && fwrite(h, 1, sizeof h, f) == sizeof h;
  ok = fclose(f) == 0 && ok;
  if (!ok || rename(beside, path)) remove(beside);
}

void fl_cuda_cache_append(const char *name, const char *line) {
  char path[1024];
  if (!cache_path(path, sizeof path, name)) return;
  make_folders(path);
  int f = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (f < 0) return;
  size_t bytes = strlen(line);
  if (write(f, line, bytes) != (ssize_t)bytes) bytes = 0; /* half a line is skipped by readers */
  close(f);
}
