/* What the init program's steps need of each other, and the recipes of blocks: by which two engines know that they would make
 * the same. A recipe names the steps that lead to a block, in their order, each with all that decides what it writes; weights
 * and results are numbered as they are met, so that nothing in it depends on the rest of the plan. */
#include <string.h>

#include "plan/builder.h"

#define NONE UINT32_MAX

typedef struct outline {
  fl_builder *b;
  uint32_t *first, *next; /* writers of a store: the first one's entry; of an entry, the next one */
  uint32_t *writer;       /* of an entry: the step */
  uint32_t n_entries;
  /* Of one recipe: */
  uint32_t round;
  uint32_t *met_step, *met_store, *name; /* by step and store: the round; by store: its number */
  FL_VEC(uint32_t) steps;
  FL_VEC(char) text;
  FL_VEC(uint32_t) slots;
  uint32_t n_names;
  bool ok;
} outline;

static const fl_step *step_at(const outline *o, size_t i) { return &o->b->steps[FL_INIT].data[i].step; }

static const fl_draft_operand *operand_at(const outline *o, const fl_step *s, int i) {
  return &o->b->operands.data[s->operands + (uint32_t)i];
}

static void add_writer(outline *o, uint32_t store, uint32_t step) {
  uint32_t e = o->n_entries++, *at = &o->first[store];
  while (*at != NONE) at = &o->next[*at];
  o->writer[e] = step;
  o->next[e] = NONE;
  *at = e;
}

static fl_status begin(outline *o, fl_builder *b) {
  size_t n_steps = b->steps[FL_INIT].len, n_stores = b->stores.len, n = b->operands.len;
  uint32_t *memory = fl_arena_alloc(&b->arena, (n_steps + 3 * n_stores + 2 * n) * sizeof *memory + 1);
  if (!memory) return fl_oom();
  *o = (outline){.b = b, .met_step = memory, .met_store = memory + n_steps};
  o->name = o->met_store + n_stores;
  o->first = o->name + n_stores;
  o->next = o->first + n_stores;
  o->writer = o->next + n;
  memset(o->first, 0xff, n_stores * sizeof *o->first);
  for (uint32_t i = 0; i < n_steps; i++)
    for (int k = 0; k < step_at(o, i)->n_out; k++)
      add_writer(o, operand_at(o, step_at(o, i), step_at(o, i)->n_in + k)->loc.store, i);
  return NULL;
}

static void end(outline *o) {
  fl_free(o->steps.data);
  fl_free(o->text.data);
  fl_free(o->slots.data);
}

/* --- needs --- */

static fl_status list_needs(outline *o, const uint32_t *places, size_t i) {
  fl_plan *p = o->b->plan;
  const fl_step *s = step_at(o, i);
  uint32_t from = (uint32_t)p->deps.len;
  for (int k = 0; k < s->n_in; k++) {
    uint32_t store = operand_at(o, s, k)->loc.store;
    if (store == FL_NO_STORE || !fl_is_passing(&o->b->stores.data[store])) continue;
    o->met_store[store] = 1; /* somebody reads it */
    for (uint32_t e = o->first[store]; e != NONE; e = o->next[e])
      if (!FL_PUSH(&p->deps, places[o->writer[e]])) return fl_oom();
  }
  p->init.data[places[i]].needs = from;
  p->init.data[places[i]].n_needs = (int)(p->deps.len - from);
  return NULL;
}

fl_status fl_draft_needs(fl_builder *b, const uint32_t *places) {
  outline o;
  FL_TRY(begin(&o, b));
  for (size_t i = 0; i < b->steps[FL_INIT].len; i++) FL_TRY(list_needs(&o, places, i));
  for (size_t i = 0; i < b->steps[FL_INIT].len; i++) {
    const fl_step *s = step_at(&o, i);
    bool sink = true;
    for (int k = 0; k < s->n_out; k++) {
      uint32_t store = operand_at(&o, s, s->n_in + k)->loc.store;
      sink = sink && fl_is_passing(&b->stores.data[store]) && !o.met_store[store];
    }
    b->plan->init.data[places[i]].sink = sink;
  }
  return NULL;
}

/* --- the text of a recipe: numbers of eight bytes, one after the other --- */

static void put_bytes(outline *o, const void *data, size_t n) {
  while (o->ok && o->text.cap - o->text.len < n)
    o->ok = fl_grow((void **)&o->text.data, &o->text.cap, o->text.cap, sizeof *o->text.data);
  if (!o->ok || !n) return;
  memcpy(o->text.data + o->text.len, data, n);
  o->text.len += n;
}

static void put(outline *o, int64_t v) { put_bytes(o, &v, sizeof v); }
static void put_float(outline *o, double v) { put_bytes(o, &v, sizeof v); }

static void put_string(outline *o, const char *s) {
  put(o, (int64_t)strlen(s));
  put_bytes(o, s, strlen(s));
}

static void put_type(outline *o, const fl_type *t, const int64_t *strides) {
  put(o, t->dtype);
  put(o, t->rank);
  for (int i = 0; i < t->rank; i++) put(o, t->dims[i]);
  for (int i = 0; strides && i < t->rank; i++) put(o, strides[i]);
}

static void put_attrs(outline *o, const fl_attrs *a) {
  put(o, a->count);
  for (int i = 0; i < a->count; i++) {
    const fl_attr *x = &a->items[i];
    put_string(o, x->key);
    put(o, x->kind);
    if (x->kind == 'f')
      put_float(o, x->v.f);
    else if (x->kind != 'I')
      put(o, x->v.i);
    else {
      put(o, x->count);
      for (int k = 0; k < x->count; k++) put(o, x->v.list[k]);
    }
  }
}

static void put_program(outline *o, const fl_pw_program *p) {
  put(o, p->n_inputs);
  put(o, p->n_instrs);
  put(o, p->n_outputs);
  for (int i = 0; i < p->n_inputs; i++) put(o, p->in_dtype[i]);
  for (int i = 0; i < p->n_instrs; i++) {
    const fl_pw_instr *x = &p->instrs[i];
    put(o, x->op);
    put(o, x->dtype);
    for (int k = 0; k < 3; k++) put(o, x->src[k]);
    put_float(o, x->a);
    put_float(o, x->b);
  }
  for (int i = 0; i < p->n_outputs; i++) put(o, p->outputs[i]);
}

/* The operands are told of by the step; here those that the kernel was chosen for. */
static void put_problem(outline *o, const fl_problem *p) {
  put(o, p->op);
  put(o, p->threads);
  put(o, p->tf32);
  put(o, p->n_in);
  put(o, p->n_out);
  for (int i = 0; i < p->n_in; i++) {
    put(o, p->absent[i]);
    put(o, p->constant[i]);
    if (!p->absent[i]) put_type(o, &p->in[i].type, p->in[i].strides);
  }
  for (int i = 0; i < p->n_out; i++) put_type(o, &p->out[i], NULL);
  put(o, p->program != NULL);
  if (p->program)
    put_program(o, p->program);
  else
    put_attrs(o, p->attrs);
}

/* --- which steps, and which weights --- */

static void meet_store(outline *o, uint32_t store);

static void meet_step(outline *o, uint32_t i) {
  const fl_step *s = step_at(o, i);
  if (o->met_step[i] == o->round || !o->ok) return;
  o->met_step[i] = o->round;
  o->ok = FL_PUSH(&o->steps, i);
  for (int k = 0; k < s->n_in; k++) meet_store(o, operand_at(o, s, k)->loc.store);
}

static void meet_store(outline *o, uint32_t store) {
  if (store == FL_NO_STORE || o->met_store[store] == o->round) return;
  o->met_store[store] = o->round;
  o->name[store] = NONE;
  for (uint32_t e = o->first[store]; e != NONE; e = o->next[e]) meet_step(o, o->writer[e]);
}

static void sort(uint32_t *v, size_t n) {
  for (size_t i = 1; i < n; i++) {
    uint32_t x = v[i];
    size_t k = i;
    for (; k > 0 && v[k - 1] > x; k--) v[k] = v[k - 1];
    v[k] = x;
  }
}

static void put_slot(outline *o, uint32_t slot) {
  size_t i = 0;
  while (i < o->slots.len && o->slots.data[i] != slot) i++;
  if (i == o->slots.len && o->ok) o->ok = FL_PUSH(&o->slots, slot);
  put(o, (int64_t)i);
}

static void put_operand(outline *o, const fl_draft_operand *d) {
  uint32_t store = d->loc.store;
  if (store == FL_NO_STORE) {
    put(o, -1);
    return;
  }
  const fl_store *s = &o->b->stores.data[store];
  put(o, s->kind);
  if (s->kind == FL_STORE_WEIGHT)
    put_slot(o, s->index);
  else if (s->kind == FL_STORE_LITERAL) {
    put(o, (int64_t)s->bytes);
    put_bytes(o, o->b->g->values.data[s->index].data, s->bytes);
  } else {
    if (o->name[store] == NONE) o->name[store] = o->n_names++;
    put(o, o->name[store]);
    put(o, (int64_t)s->bytes);
  }
  put(o, (int64_t)d->loc.offset);
  put_type(o, &d->type, d->loc.strides);
}

static void put_step(outline *o, const fl_step *s) {
  put(o, s->kind);
  put(o, s->kernel);
  put(o, s->pack_operand);
  put(o, s->pack_pieces);
  put(o, s->pack_form[0]);
  put(o, s->pack_form[1]);
  put(o, s->n_in);
  put(o, s->n_out);
  if (s->kind == FL_STEP_KERNEL) put_problem(o, s->problem);
  for (int k = 0; k < s->n_in + s->n_out; k++) put_operand(o, operand_at(o, s, k));
}

static fl_status make_recipe(outline *o, uint32_t store, fl_const_block *out) {
  o->steps.len = o->text.len = o->slots.len = o->n_names = 0;
  o->round++;
  o->ok = true;
  meet_store(o, store);
  sort(o->steps.data, o->steps.len);
  for (size_t i = 0; i < o->steps.len && o->ok; i++) put_step(o, step_at(o, o->steps.data[i]));
  put(o, o->name[store]); /* which of the results it is */
  if (!o->ok) return fl_oom();
  out->recipe = fl_arena_memdup(&o->b->plan->arena, o->text.data, o->text.len);
  out->recipe_bytes = o->text.len;
  out->slots = fl_arena_alloc(&o->b->plan->arena, o->slots.len * sizeof *out->slots + 1);
  out->n_slots = (uint32_t)o->slots.len;
  if (!out->recipe || !out->slots) return fl_oom();
  if (o->slots.len) memcpy(out->slots, o->slots.data, o->slots.len * sizeof *out->slots);
  return NULL;
}

fl_status fl_draft_recipes(fl_builder *b, const uint32_t *stores) {
  outline o;
  fl_status s = NULL;
  FL_TRY(begin(&o, b));
  for (size_t i = 0; i < b->plan->blocks.len && !s; i++) s = make_recipe(&o, stores[i], &b->plan->blocks.data[i]);
  end(&o);
  return s;
}
