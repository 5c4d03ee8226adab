#include "lower/partition.h"

#include <string.h>

enum { NOT_YET = -1 };
typedef enum color { NONE, FREE, EAGER, ENGINE } color;

typedef struct work {
  const fl_pnode *nodes;
  int n;
  color *colors;
  uint32_t **reads; /* by colored node: colored nodes that it needs, directly or through free ones */
  int *n_reads;
  int *part;      /* by colored node */
  int *other;     /* the second schedule tried */
  uint32_t *seen; /* by node: last search that met it */
  uint32_t search;
  uint32_t *stack;
  uint32_t *found;
} work;

/* A free node whose result leaves the segment is made where what it is made from is. */
static color output_color(const work *w, uint32_t i) {
  const fl_pnode *node = &w->nodes[i];
  bool any = false;
  for (int k = 0; k < w->n_reads[i]; k++) {
    if (w->colors[w->reads[i][k]] == ENGINE) return ENGINE;
    any = true;
  }
  return any && node->free ? EAGER : ENGINE;
}

/* Calls w->found with the colored nodes that i reads; free ones on the way are in w->seen. Returns how many. */
static int search_reads(work *w, uint32_t i) {
  int found = 0, depth = 0;
  w->search++;
  w->stack[depth++] = i;
  while (depth) {
    const fl_pnode *node = &w->nodes[w->stack[--depth]];
    for (int k = 0; k < node->n_deps; k++) {
      uint32_t d = node->deps[k];
      if (w->seen[d] == w->search) continue;
      w->seen[d] = w->search;
      if (w->colors[d] == FREE)
        w->stack[depth++] = d;
      else if (w->colors[d] != NONE)
        w->found[found++] = d;
    }
  }
  return found;
}

static fl_status find_reads(work *w, fl_arena *arena) {
  for (int i = 0; i < w->n; i++) {
    const fl_pnode *node = &w->nodes[i];
    w->colors[i] = node->kind == FL_PNODE_DEAD    ? NONE
                   : node->kind == FL_PNODE_EAGER ? EAGER
                   : node->free && !node->output  ? FREE
                                                  : ENGINE;
    if (w->colors[i] == NONE || w->colors[i] == FREE) continue;
    w->n_reads[i] = search_reads(w, (uint32_t)i);
    w->reads[i] = fl_arena_memdup(arena, w->found, (size_t)w->n_reads[i] * sizeof *w->found);
    if (!w->reads[i]) return fl_oom();
  }
  return NULL;
}

static bool ready(const work *w, const int *part, uint32_t i) {
  for (int k = 0; k < w->n_reads[i]; k++)
    if (part[w->reads[i][k]] == NOT_YET) return false;
  for (int k = 0; k < w->nodes[i].n_after; k++) {
    uint32_t a = w->nodes[i].after[k];
    if ((w->colors[a] == EAGER || w->colors[a] == ENGINE) && part[a] == NOT_YET) return false;
  }
  return true;
}

/* Alternates from side `first`, taking all that is ready at each turn: with a fixed start no order has fewer parts.
 * Everything read has a lower number, so one sweep takes whole chains. Returns the number of parts. */
static int schedule(const work *w, color first, int *part) {
  int left = 0, parts = 0;
  for (int i = 0; i < w->n; i++) {
    part[i] = NOT_YET;
    left += w->colors[i] == EAGER || w->colors[i] == ENGINE;
  }
  for (color side = first; left; side = side == EAGER ? ENGINE : EAGER) {
    int taken = 0;
    bool effects_wait = false;
    for (int i = 0; i < w->n; i++) {
      if (part[i] != NOT_YET || (w->colors[i] != EAGER && w->colors[i] != ENGINE)) continue;
      bool ordered = w->nodes[i].ordered;
      if (w->colors[i] == side && !(ordered && effects_wait) && ready(w, part, (uint32_t)i)) {
        part[i] = parts;
        taken++;
      } else {
        effects_wait |= ordered;
      }
    }
    left -= taken;
    parts += taken > 0;
  }
  return parts;
}

static int best_schedule(work *w) {
  int a = schedule(w, ENGINE, w->part), b = schedule(w, EAGER, w->other);
  if (b >= a) return a;
  memcpy(w->part, w->other, (size_t)w->n * sizeof *w->part);
  return b;
}

/* Makes engine parts that are not worth their switches eager. True when one was. */
static bool demote_islands(work *w, int parts, int min_nodes) {
  bool any = false;
  for (int p = 0; p < parts; p++) {
    int count = 0;
    bool engine = false, heavy = false;
    for (int i = 0; i < w->n; i++) {
      if (w->part[i] != p) continue;
      engine = w->colors[i] == ENGINE;
      count += !w->nodes[i].free;
      heavy |= w->nodes[i].heavy;
    }
    bool inside = p > 0 && p < parts - 1;
    int least = inside ? (min_nodes ? min_nodes : FL_MIN_ENGINE_NODES) : 1;
    if (!engine || parts == 1 || count >= least || (heavy && !min_nodes)) continue;
    for (int i = 0; i < w->n; i++)
      if (w->part[i] == p) w->colors[i] = EAGER;
    any = true;
  }
  return any;
}

static void color_outputs(work *w) {
  for (int i = 0; i < w->n; i++)
    if (w->nodes[i].free && w->nodes[i].output && w->colors[i] == ENGINE) w->colors[i] = output_color(w, (uint32_t)i);
}

/* The part's own nodes and the free ones they need, ascending. */
static fl_status collect(work *w, int p, fl_arena *arena, fl_ppart *out) {
  bool *in = fl_calloc((size_t)w->n, sizeof *in);
  if (!in) return fl_oom();
  int count = 0;
  for (int i = w->n - 1; i >= 0; i--) {
    bool own = w->part[i] == p;
    if (own) out->engine = w->colors[i] == ENGINE;
    if (!own && !(in[i] && w->colors[i] == FREE)) {
      in[i] = false;
      continue;
    }
    in[i] = true;
    count++;
    for (int k = 0; k < w->nodes[i].n_deps; k++) in[w->nodes[i].deps[k]] = true;
  }
  out->nodes = fl_arena_alloc(arena, (size_t)count * sizeof *out->nodes);
  for (int i = 0; out->nodes && i < w->n; i++)
    if (in[i]) out->nodes[out->n_nodes++] = (uint32_t)i;
  fl_free(in);
  return out->nodes ? NULL : fl_oom();
}

static bool allocate(work *w, fl_arena *arena) {
  size_t n = (size_t)w->n + 1;
  return (w->colors = fl_arena_alloc(arena, n * sizeof *w->colors)) &&
         (w->reads = fl_arena_alloc(arena, n * sizeof *w->reads)) &&
         (w->n_reads = fl_arena_alloc(arena, n * sizeof *w->n_reads)) &&
         (w->part = fl_arena_alloc(arena, n * sizeof *w->part)) &&
         (w->other = fl_arena_alloc(arena, n * sizeof *w->other)) &&
         (w->seen = fl_arena_alloc(arena, n * sizeof *w->seen)) &&
         (w->stack = fl_arena_alloc(arena, n * sizeof *w->stack)) &&
         (w->found = fl_arena_alloc(arena, n * sizeof *w->found));
}

static fl_status make(work *w, int min_nodes, fl_arena *scratch, fl_arena *arena, fl_partition *out) {
  if (!allocate(w, scratch)) return fl_oom();
  FL_TRY(find_reads(w, scratch));
  color_outputs(w);
  int parts = best_schedule(w);
  while (demote_islands(w, parts, min_nodes)) {
    color_outputs(w);
    parts = best_schedule(w);
  }
  *out = (fl_partition){fl_arena_alloc(arena, (size_t)(parts ? parts : 1) * sizeof *out->parts), parts};
  if (!out->parts) return fl_oom();
  for (int p = 0; p < parts; p++) FL_TRY(collect(w, p, arena, &out->parts[p]));
  return NULL;
}

fl_status fl_partition_make(const fl_pnode *nodes, int n, int min_engine_nodes, fl_arena *arena, fl_partition *out) {
  work w = {.nodes = nodes, .n = n};
  fl_arena scratch;
  fl_arena_init(&scratch);
  fl_status s = make(&w, min_engine_nodes, &scratch, arena, out);
  fl_arena_release(&scratch);
  return s;
}
