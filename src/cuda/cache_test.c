/* Files between processes: whole or not at all. */
#include "cuda/cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/test.h"

static char folder[64];

static void use_new_folder(void) {
  snprintf(folder, sizeof folder, "/tmp/framelift-cache-XXXXXX");
  FL_CHECK(mkdtemp(folder) != NULL);
  setenv("FRAMELIFT_CACHE_DIR", folder, 1);
}

static void remove_folder(void) {
  char path[128];
  snprintf(path, sizeof path, "%s/cuda/image", folder);
  unlink(path);
  snprintf(path, sizeof path, "%s/cuda", folder);
  FL_CHECK(rmdir(path) == 0); /* nothing but the file was left behind */
  FL_CHECK(rmdir(folder) == 0);
}

/* Changes the file: a byte at `at` becomes another, or what is from there on is cut off. */
static void damage(long at, bool cut) {
  char path[128];
  snprintf(path, sizeof path, "%s/cuda/image", folder);
  if (cut) {
    FL_CHECK(truncate(path, at) == 0);
    return;
  }
  FILE *f = fopen(path, "r+b");
  FL_CHECK(f != NULL);
  if (!f) return;
  int c = fseek(f, at, SEEK_SET) == 0 ? fgetc(f) : EOF;
  FL_CHECK(c != EOF && fseek(f, at, SEEK_SET) == 0 && fputc(c ^ 1, f) != EOF);
  fclose(f);
}

static bool reads(const char *want, size_t n) {
  size_t bytes = 0;
  char *got = fl_cuda_cache_read_written("image", &bytes);
  bool same = got && bytes == n && !memcmp(got, want, n);
  fl_free(got);
  return same;
}

FL_TEST(what_is_written_is_read_and_a_changed_bit_is_seen) {
  static const char image[] = "\177ELF\0\1\2 a kernel \0 with zeros";
  use_new_folder();
  FL_CHECK(!reads(image, sizeof image)); /* there is none yet */
  fl_cuda_cache_write("image", image, sizeof image);
  FL_CHECK(reads(image, sizeof image));
  for (long at = 0; at < (long)sizeof image + 16; at++) {
    fl_cuda_cache_write("image", image, sizeof image);
    damage(at, false);
    FL_CHECK_MSG(!reads(image, sizeof image), "byte %ld", at);
  }
  for (long at = 0; at < (long)sizeof image + 16; at += 5) {
    fl_cuda_cache_write("image", image, sizeof image);
    damage(at, true);
    FL_CHECK_MSG(!reads(image, sizeof image), "cut at %ld", at);
  }
  fl_cuda_cache_write("image", image, sizeof image);
  FL_CHECK(reads(image, sizeof image));
  remove_folder();
}

FL_TEST(a_folder_that_cannot_be_made_keeps_nothing) {
  setenv("FRAMELIFT_CACHE_DIR", "/dev/null/nowhere", 1);
  fl_cuda_cache_write("image", "x", 1);
  fl_cuda_cache_append("image", "x\n");
  FL_CHECK(!reads("x", 1));
}

FL_TEST_MAIN(FL_RUN(what_is_written_is_read_and_a_changed_bit_is_seen)
                 FL_RUN(a_folder_that_cannot_be_made_keeps_nothing))
