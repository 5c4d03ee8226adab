#include "lower/partition.h"

#include "base/test.h"

/* Nodes as text, separated by blanks: kind, then "<-" and what it reads, as letters.
 * E eager  N engine  F free  D dead  P eager with effects  H heavy engine; '!' after it: its result leaves;
 * "c<-ab" reads; a '~' before a letter: runs after it.  "E<-a", "N!<-b~c" */
static int parse(const char *text, fl_pnode *nodes, uint32_t (*deps)[32], uint32_t (*after)[32]) {
  int n = 0;
  for (const char *at = text; *at; n++) {
    fl_pnode *p = &nodes[n];
    *p = (fl_pnode){.deps = deps[n], .after = after[n]};
    p->kind = *at == 'E' || *at == 'P' ? FL_PNODE_EAGER : *at == 'D' ? FL_PNODE_DEAD : FL_PNODE_ENGINE;
    p->free = *at == 'F';
    p->ordered = *at == 'P';
    p->heavy = *at == 'H';
    for (at++; *at && *at != ' '; at++) {
      if (*at == '!')
        p->output = true;
      else if (*at == '~')
        after[n][p->n_after++] = (uint32_t)(*++at - 'a');
      else if (*at >= 'a')
        deps[n][p->n_deps++] = (uint32_t)(*at - 'a');
    }
    while (*at == ' ') at++;
  }
  return n;
}

/* The parts as text: "n:abc e:d n:ef". */
static void check_parts_min(const char *text, int min_nodes, const char *want) {
  static uint32_t deps[32][32], after[32][32];
  fl_pnode nodes[32];
  int n = parse(text, nodes, deps, after);
  fl_arena arena;
  fl_arena_init(&arena);
  fl_partition parts = {0};
  FL_CHECK_OK(fl_partition_make(nodes, n, min_nodes, &arena, &parts));
  char got[512] = "";
  for (int p = 0; p < parts.n_parts; p++) {
    size_t len = strlen(got);
    len += (size_t)snprintf(got + len, sizeof got - len, "%s%s:", p ? " " : "", parts.parts[p].engine ? "n" : "e");
    for (int i = 0; i < parts.parts[p].n_nodes; i++) {
      got[len++] = (char)('a' + parts.parts[p].nodes[i]);
      got[len] = 0;
    }
  }
  FL_CHECK_MSG(!strcmp(got, want), "%s gave \"%s\", not \"%s\"", text, got, want);
  fl_arena_release(&arena);
}

static void check_parts(const char *text, const char *want) { check_parts_min(text, 0, want); }

FL_TEST(whole) {
  check_parts("", "");
  check_parts("N N<-a N!<-b", "n:abc");
  check_parts("E E!<-a", "e:ab");
  check_parts("N D<-a N!<-a", "n:ac");
}

FL_TEST(one_eager_in_the_middle) {
  check_parts("H H<-a E<-b H<-c H!<-d", "n:ab e:c n:de");
  /* what does not depend on it joins the first part, though recorded later */
  check_parts("H E<-a H<-a H!<-bc", "n:ac e:b n:d");
  /* two branches, one eager operator each, still one switch there and back */
  check_parts("H E<-a H<-a E<-c H!<-bd", "n:ac e:bd n:e");
  /* eager at the start needs no engine part before it */
  check_parts("E H<-a H!", "e:a n:bc");
  check_parts("H E!<-a", "n:a e:b");
}

FL_TEST(islands) {
  check_parts("H E<-a N<-b N<-c E<-d H!<-e", "n:a e:bcde n:f");
  check_parts("H E<-a N<-b N<-c N<-d N<-e E<-f H!<-g", "n:a e:b n:cdef e:g n:h");
  check_parts("H E<-a H<-b E<-c H!<-d", "n:a e:b n:c e:d n:e");
  check_parts_min("H E<-a H<-b E<-c H!<-d", 2, "n:a e:bcd n:e");
  check_parts_min("N E<-a N<-b E<-c N!<-d", 1, "n:a e:b n:c e:d n:e");
  /* at either end a part stays, unless all in it is free */
  check_parts("E N!<-a", "e:a n:b");
  check_parts("E F!<-a", "e:ab");
}

FL_TEST(free_nodes) {
  check_parts("H F<-a E<-b H!<-c", "n:a e:bc n:d");
  check_parts("H F<-a E<-b H!<-bc", "n:a e:bc n:bd");
  check_parts("F F<-a H<-b E<-c H!<-bd", "n:abc e:d n:abe");
  check_parts("E F<-a E<-b F<-b H!<-d E!<-c", "e:abcf n:bde");
  /* leaves: made where its operand is */
  check_parts("H F!<-a", "n:ab");
  check_parts("H F!<-a E!<-b", "n:ab e:c");
  check_parts("E F<-a F!<-b", "e:abc");
  check_parts("F!", "n:a");
}

FL_TEST(effects_and_memory) {
  /* effects keep their order, even when the second is ready first */
  check_parts("H P<-a P! H!<-b", "n:a e:bc n:d");
  check_parts("H P P<-a H<-c P H!<-de", "n:a e:bce n:df");
  /* d must wait for c only because of memory */
  check_parts("H E<-a P<-b H!~c", "n:a e:bc n:d");
  check_parts("H H P~b H!", "n:abd e:c");
}

FL_TEST(out_of_memory) {
  static uint32_t deps[32][32], after[32][32];
  fl_pnode nodes[32];
  int n = parse("H F<-a E<-b N<-bc E<-d H!<-be", nodes, deps, after), failures = 0;
  int64_t live = fl_alloc_live();
  for (int64_t nth = 1; nth < 1000; nth++) {
    fl_arena arena;
    fl_arena_init(&arena);
    fl_partition parts = {0};
    fl_alloc_fail_at(nth);
    fl_status s = fl_partition_make(nodes, n, 0, &arena, &parts);
    fl_alloc_fail_at(0);
    FL_CHECK(!s || fl_status_code(s) == FL_OOM);
    failures += s != NULL;
    bool done = !s;
    fl_status_free(s);
    fl_arena_release(&arena);
    FL_CHECK(fl_alloc_live() == live);
    if (done) break;
  }
  FL_CHECK(failures > 2);
}

FL_TEST_MAIN(FL_RUN(whole) FL_RUN(one_eager_in_the_middle) FL_RUN(islands) FL_RUN(free_nodes) FL_RUN(effects_and_memory)
                 FL_RUN(out_of_memory))
