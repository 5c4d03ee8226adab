/* Gives every store its place and turns the draft into the plan. */
#include <string.h>

#include "plan/builder.h"

enum { ALIGN = 64 };

/* Adds room for `bytes` at the end of a space. */
static bool append(size_t *total, size_t bytes, size_t *out_offset) {
  *out_offset = *total;
  return fl_add_size(bytes, ALIGN - 1, &bytes) && fl_add_size(*total, bytes / ALIGN * ALIGN, total);
}

/* --- the constants: literals, then what the run program reads of the init program's results, what is small first --- */

/* Of one kind, at the end. */
static fl_status append_kept(fl_builder *b, fl_store *s, fl_const_kind kind, size_t *total) {
  size_t before = *total;
  if (!append(total, s->bytes, &s->offset)) return fl_oom();
  b->plan->const_kind_bytes[kind] += *total - before;
  return NULL;
}

static bool is_kept(const fl_store *s) { return s->kind == FL_STORE_TEMP && s->init && s->kept; }

static fl_status place_blocks(fl_builder *b, size_t least) {
  fl_plan *p = b->plan;
  uint32_t *stores = fl_arena_alloc(&b->arena, b->stores.len * sizeof *stores + 1);
  if (!stores) return fl_oom();
  for (uint32_t i = 0; i < b->stores.len; i++) {
    fl_store *s = &b->stores.data[i];
    if (!is_kept(s) || s->bytes < least) continue;
    FL_TRY(append_kept(b, s, s->kept_as, &p->const_bytes));
    fl_const_block block = {.offset = s->offset, .bytes = p->const_bytes - s->offset, .kind = s->kept_as};
    stores[p->blocks.len] = i;
    if (!FL_PUSH(&p->blocks, block)) return fl_oom();
  }
  return fl_draft_recipes(b, stores);
}

static fl_status place_constants(fl_builder *b) {
  fl_plan *p = b->plan;
  const size_t least = b->options->block_bytes ? b->options->block_bytes : FL_BLOCK_BYTES;
  for (size_t i = 0; i < b->stores.len; i++) {
    fl_store *s = &b->stores.data[i];
    if (s->kind == FL_STORE_LITERAL) FL_TRY(append_kept(b, s, FL_CONST_LITERAL, &p->literal_bytes));
  }
  p->const_bytes = p->literal_bytes;
  for (size_t i = 0; i < b->stores.len; i++) {
    fl_store *s = &b->stores.data[i];
    if (is_kept(s) && s->bytes < least) FL_TRY(append_kept(b, s, s->kept_as, &p->const_bytes));
  }
  p->local_bytes = p->const_bytes;
  memcpy(p->local_kind_bytes, p->const_kind_bytes, sizeof p->local_kind_bytes);
  char *literals = fl_arena_alloc(&p->arena, p->literal_bytes + 1);
  if (!literals) return fl_oom();
  for (size_t i = 0; i < b->stores.len; i++) {
    const fl_store *s = &b->stores.data[i];
    if (s->kind == FL_STORE_LITERAL) memcpy(literals + s->offset, b->g->values.data[s->index].data, s->bytes);
  }
  p->literals = literals;
  return place_blocks(b, least);
}

/* --- the arenas --- */

static bool lies_in_arena(const fl_store *s, bool init) {
  return init ? fl_is_passing(s) : s->kind == FL_STORE_TEMP && !s->init && s->first >= 0;
}

/* Back to stores and steps, in the order in which the blocks were listed. */
static void note_places(fl_builder *b, int program, const fl_interval *blocks, int n, size_t total) {
  const fl_interval *next = blocks;
  for (size_t i = 0; i < b->stores.len; i++)
    if (lies_in_arena(&b->stores.data[i], program == FL_INIT)) b->stores.data[i].offset = next++->offset;
  for (size_t i = 0; i < b->steps[program].len; i++, next++) {
    fl_draft_step *d = &b->steps[program].data[i];
    d->step.scratch = d->scratch_bytes ? next->offset : SIZE_MAX;
    if (!d->wants_spare) continue;
    fl_gap gap = fl_memplan_gap(blocks, n, total, (int)i);
    d->step.spare = gap.offset;
    d->step.spare_bytes = gap.bytes;
  }
}

/* Blocks are the stores of this program, then the scratch memory of its steps. */
static fl_status place_in_arena(fl_builder *b, int program, size_t *out_bytes, size_t *out_unshared,
                                size_t *out_floor) {
  size_t n_steps = b->steps[program].len, n = 0, unused;
  fl_interval *blocks = fl_arena_alloc(&b->arena, (b->stores.len + n_steps) * sizeof *blocks + 1);
  if (!blocks) return fl_oom();
  for (size_t i = 0; i < b->stores.len; i++) {
    const fl_store *s = &b->stores.data[i];
    if (lies_in_arena(s, program == FL_INIT)) blocks[n++] = (fl_interval){s->first, s->last, s->bytes, 0};
  }
  for (size_t i = 0; i < n_steps; i++)
    blocks[n++] = (fl_interval){(int)i, (int)i, b->steps[program].data[i].scratch_bytes, 0};
  FL_TRY(fl_memplan(blocks, (int)n, out_bytes));
  *out_unshared = 0;
  for (size_t i = 0; i < n; i++)
    if (!append(out_unshared, blocks[i].bytes, &unused)) return fl_oom();
  *out_floor = fl_memplan_floor(blocks, (int)n);
  note_places(b, program, blocks, (int)n, *out_bytes);
  return NULL;
}

/* --- which weights a step of the init program depends on ---
 * Results that only the init program reads are not kept, so a step that is run again needs its producers run again:
 * they inherit the slots of their readers. */

typedef struct slot_sets {
  size_t words; /* of one set */
  uint64_t *step, *store;
  uint64_t *needed; /* by store: slots that make some reader of it run again */
} slot_sets;

static void unite(const slot_sets *s, uint64_t *to, const uint64_t *from) {
  for (size_t w = 0; w < s->words; w++) to[w] |= from[w];
}

static uint32_t operand_store(const fl_builder *b, const fl_step *step, int i) {
  return b->operands.data[step->operands + (uint32_t)i].loc.store;
}

static void depend_forwards(fl_builder *b, slot_sets *s, size_t at) {
  const fl_step *step = &b->steps[FL_INIT].data[at].step;
  uint64_t *set = s->step + at * s->words;
  for (int i = 0; i < step->n_in; i++) {
    uint32_t in = operand_store(b, step, i);
    if (in == FL_NO_STORE) continue;
    uint32_t slot = b->stores.data[in].index;
    if (b->stores.data[in].kind == FL_STORE_WEIGHT)
      set[slot / 64] |= 1ull << slot % 64;
    else
      unite(s, set, s->store + in * s->words);
  }
  for (int i = 0; i < step->n_out; i++) unite(s, s->store + operand_store(b, step, step->n_in + i) * s->words, set);
}

static void depend_backwards(fl_builder *b, slot_sets *s, size_t at) {
  const fl_step *step = &b->steps[FL_INIT].data[at].step;
  uint64_t *set = s->step + at * s->words;
  for (int i = 0; i < step->n_out; i++) unite(s, set, s->needed + operand_store(b, step, step->n_in + i) * s->words);
  for (int i = 0; i < step->n_in; i++) {
    uint32_t in = operand_store(b, step, i);
    if (in != FL_NO_STORE && lies_in_arena(&b->stores.data[in], true)) unite(s, s->needed + in * s->words, set);
  }
}

static fl_status list_slots(fl_builder *b, const slot_sets *s, size_t at) {
  fl_step *step = &b->steps[FL_INIT].data[at].step;
  step->deps = (uint32_t)b->plan->deps.len;
  for (uint32_t slot = 0; slot < b->plan->n_weights; slot++) {
    if (!(s->step[at * s->words + slot / 64] >> slot % 64 & 1)) continue;
    if (!FL_PUSH(&b->plan->deps, slot)) return fl_oom();
    step->n_deps++;
  }
  return NULL;
}

static fl_status find_dependencies(fl_builder *b) {
  size_t n = b->steps[FL_INIT].len, bytes;
  slot_sets s = {.words = b->plan->n_weights / 64 + 1};
  if (!fl_mul_size(n + 2 * b->stores.len, s.words * sizeof *s.step, &bytes)) return fl_oom();
  s.step = fl_arena_alloc(&b->arena, bytes);
  if (!s.step) return fl_oom();
  s.store = s.step + n * s.words;
  s.needed = s.store + b->stores.len * s.words;
  for (size_t i = 0; i < n; i++) depend_forwards(b, &s, i);
  for (size_t i = n; i-- > 0;) depend_backwards(b, &s, i);
  for (size_t i = 0; i < n; i++) FL_TRY(list_slots(b, &s, i));
  return NULL;
}

/* --- the plan itself --- */

static fl_operand emit_operand(const fl_builder *b, const fl_draft_operand *d) {
  fl_operand o = {.space = FL_SPACE_NONE, .type = d->type, .offset = d->loc.offset};
  memcpy(o.strides, d->loc.strides, sizeof o.strides);
  if (d->loc.store == FL_NO_STORE) return o;
  const fl_store *s = &b->stores.data[d->loc.store];
  o.index = s->kind == FL_STORE_LITERAL || s->kind == FL_STORE_TEMP ? 0 : s->index;
  switch (s->kind) {
  case FL_STORE_INPUT: o.space = FL_SPACE_INPUT; break;
  case FL_STORE_OUTPUT: o.space = FL_SPACE_OUTPUT; break;
  case FL_STORE_WEIGHT: o.space = FL_SPACE_WEIGHT; break;
  case FL_STORE_LITERAL: o.space = FL_SPACE_CONST; break;
  case FL_STORE_TEMP: o.space = s->init && s->kept ? FL_SPACE_CONST : FL_SPACE_ARENA; break;
  }
  o.offset += s->offset;
  return o;
}

/* Packs of weights as the caller holds them, whose scale at most is made by other steps, come last, so that all are made in
 * parallel. */
static bool is_late_pack(const fl_builder *b, const fl_step *s) {
  uint32_t in = operand_store(b, s, 0);
  return s->kind == FL_STEP_PACK && b->stores.data[in].kind == FL_STORE_WEIGHT;
}

/* What they read of other steps must last until then. */
static void keep_for_late_packs(fl_builder *b) {
  int end = (int)b->steps[FL_INIT].len;
  for (int i = 0; i < end; i++) {
    const fl_step *s = &b->steps[FL_INIT].data[i].step;
    for (int k = 1; is_late_pack(b, s) && k < s->n_in; k++) b->stores.data[operand_store(b, s, k)].last = end;
  }
}

static fl_status emit_init(fl_builder *b, bool late, uint32_t *places) {
  for (size_t i = 0; i < b->steps[FL_INIT].len; i++) {
    const fl_step *s = &b->steps[FL_INIT].data[i].step;
    if (is_late_pack(b, s) != late) continue;
    places[i] = (uint32_t)b->plan->init.len;
    if (!FL_PUSH(&b->plan->init, *s)) return fl_oom();
  }
  return NULL;
}

static fl_status emit(fl_builder *b) {
  fl_plan *p = b->plan;
  for (size_t i = 0; i < b->operands.len; i++)
    if (!FL_PUSH(&p->operands, emit_operand(b, &b->operands.data[i]))) return fl_oom();
  uint32_t *places = fl_arena_alloc(&b->arena, b->steps[FL_INIT].len * sizeof *places + 1);
  if (!places) return fl_oom();
  FL_TRY(emit_init(b, false, places));
  FL_TRY(emit_init(b, true, places));
  FL_TRY(fl_draft_needs(b, places));
  for (size_t i = 0; i < b->steps[FL_RUN].len; i++)
    if (!FL_PUSH(&p->run, b->steps[FL_RUN].data[i].step)) return fl_oom();
  return NULL;
}

fl_status fl_builder_finish(fl_builder *b) {
  size_t unshared, least;
  FL_TRY(place_constants(b));
  keep_for_late_packs(b);
  FL_TRY(place_in_arena(b, FL_INIT, &b->plan->init_arena_bytes, &unshared, &least));
  FL_TRY(place_in_arena(b, FL_RUN, &b->plan->arena_bytes, &b->plan->arena_unshared_bytes, &b->plan->arena_floor_bytes));
  FL_TRY(find_dependencies(b));
  return emit(b);
}

void fl_plan_destroy(fl_plan *p) {
  if (!p) return;
  fl_free(p->init.data);
  fl_free(p->run.data);
  fl_free(p->operands.data);
  fl_free(p->deps.data);
  fl_free(p->blocks.data);
  fl_arena_release(&p->arena);
  fl_free(p);
}
