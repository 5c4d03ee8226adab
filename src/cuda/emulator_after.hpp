// What follows a kernel that is compiled for the host: the launch. Each block's threads run in turn, every other
// block's from the last to the first, so that a result that depends on their order differs.
#undef multiply
#undef max
#undef min

namespace emulated {

enum { STACK = 64 << 10 };

static void *const *arguments;

template <class... A, size_t... I> static void call(void (*f)(A...), std::index_sequence<I...>) {
  f((A)(uintptr_t)arguments[I]...);
}
template <class... A> static void call(void (*f)(A...)) { call(f, std::index_sequence_for<A...>()); }

// A fiber runs one thread of each block.
static void fiber() {
  for (;;) {
    const unsigned t = threadIdx.x;
    call(&k);
    if (!threads[t].copies.empty()) fail("copies that nobody waits for");
    threads[t].alive = false;
    block.alive--;
    warp().alive--;
    release(block);
    release(warp());
    swapcontext(&threads[t].context, &scheduler);
  }
}

static void make_fibers(int n) {
  static int made;
  for (; made < n; made++) {
    ucontext_t *c = &threads[made].context;
    getcontext(c);
    c->uc_stack.ss_sp = malloc(STACK);
    c->uc_stack.ss_size = STACK;
    c->uc_link = nullptr;
    if (!c->uc_stack.ss_sp) fail("out of memory");
    makecontext(c, fiber, 0);
  }
}

static void begin_block(int n) {
  block = {n, 0, 0};
  for (int w = 0; w * WARP < n; w++) warps[w] = {n - w * WARP < WARP ? n - w * WARP : WARP, 0, 0};
  for (int t = 0; t < n; t++) {
    threads[t].alive = true;
    threads[t].waits = nullptr;
    threads[t].committed = 0;
  }
}

static bool step(int i) { // to where it waits next, if it need not wait where it is
  thread &t = threads[i];
  if (!t.alive || (t.waits && t.waits->phase == t.phase)) return false;
  threadIdx.x = (unsigned)i;
  swapcontext(&scheduler, &t.context);
  return true;
}

static void run_block(int n, bool downward) {
  begin_block(n);
  while (block.alive) {
    bool went = false;
    for (int i = 0; i < n; i++) went |= step(downward ? n - 1 - i : i);
    if (!went) fail("threads that wait for ever");
  }
}

} // namespace emulated

extern "C" void emulated_launch(long long grid, int threads, size_t shared_bytes, void *const *arguments) {
  using namespace emulated;
  blockDim.x = (unsigned)threads;
  gridDim.x = (unsigned)grid;
  emulated::arguments = arguments;
  emulated::make_fibers(threads);
  for (long long b = 0; b < grid; b++) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes ? shared_bytes : 1)) emulated::fail("out of memory");
    memset(memory, 0xff, shared_bytes);
    emulated::shared = (unsigned char *)memory;
    blockIdx.x = (unsigned)b;
    emulated::run_block(threads, b % 2);
    free(memory);
  }
}
