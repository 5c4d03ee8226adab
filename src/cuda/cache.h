/* What the CUDA backend keeps on disk between processes: files in $FRAMELIFT_CACHE_DIR/cuda, else
 * $XDG_CACHE_HOME/framelift/cuda, else ~/.cache/framelift/cuda. Where it cannot be written nothing is kept.
 * Thread rule: everything here may be called from any thread, and from several processes at once. */
#ifndef FL_CUDA_CACHE_H
#define FL_CUDA_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* FNV-1a twice, with different seeds. */
#define FL_CUDA_HASH_SEED {0xcbf29ce484222325, 0x84222325cbf29ce4}
void fl_cuda_hash(uint64_t h[2], const char *s);

/* The file's bytes and a NUL (new; fl_free), or NULL. */
char *fl_cuda_cache_read(const char *name, size_t *out_bytes);
/* Written beside and renamed, so that no reader sees half a file, with a hash at the end. */
void fl_cuda_cache_write(const char *name, const char *data, size_t bytes);
/* What was so written (new; fl_free), or NULL, also when a bit of it is another. */
char *fl_cuda_cache_read_written(const char *name, size_t *out_bytes);
/* One line at the end of a file, in one piece. */
void fl_cuda_cache_append(const char *name, const char *line);

#endif
