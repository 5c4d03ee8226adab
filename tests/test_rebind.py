"""Weights that are replaced by others like them: the trace takes them, nothing is recorded again."""

import gc
import threading
import weakref

import pytest
import torch

import framelift
from conftest import assert_close


def new(*shape):
    return torch.nn.Parameter(torch.randn(*shape), requires_grad=False)


def model():
    torch.manual_seed(0)
    return (
        torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16))
        .eval()
        .requires_grad_(False)
    )


def follows(fast, m, x, recorded, rebound, before=None):
    """Calls answer like m's; so many recordings, and replacements in the newest trace, in all."""
    with torch.no_grad():
        for i in range(2):
            assert_close(fast(x + i), m(x + i))
    e = framelift.explain(fast)
    assert (e.recorded, e.native, e.traces[0].rebound) == (recorded, 0, rebound)
    return e


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_replaced_parameter(calls, mode):
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    weights, biases = [new(16, 16) for _ in range(40)], [new(16) for _ in range(40)]
    with mode():
        for _ in range(calls):
            fast(x)
        for i in range(40):
            m[0].weight = weights[i]
            if i % 3 == 0:
                m[2].bias = biases[i]
            assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    assert (e.recorded, e.native, e.traces[0].rebound, e.replayed) == (1, 0, 40, 40 + calls - 1)
    assert not e.eager and e.traces[0].segments[0].cosine > 0.9999


def test_what_was_replaced_is_let_go():
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with torch.no_grad():
        fast(x), fast(x)
        old = weakref.ref(m[0].weight)
        m[0].weight = new(16, 16)
        fast(x)
    gc.collect()
    assert old() is None


def test_new_ones_are_followed_too():
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    m[0].weight = new(16, 16)
    follows(fast, m, x, 1, 1)
    m[0].weight.mul_(3)
    follows(fast, m, x, 1, 1)
    m[0].weight.data = torch.randn(16, 16)
    follows(fast, m, x, 1, 1)


def test_load_state_dict_assign():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.conv(x)).relu()

    m, x = Net().eval(), torch.randn(2, 3, 9, 9)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    for i in range(3):
        other = Net()
        other.norm.running_mean.normal_(), other.norm.running_var.uniform_(0.5, 2)
        m.load_state_dict(other.state_dict(), assign=True)
        follows(fast, m, x, 1, 1 + i)
        m.norm.running_var.mul_(2)
        follows(fast, m, x, 1, 1 + i)


@pytest.mark.parametrize(
    "other",
    [
        lambda w: torch.nn.Parameter(torch.randn(16, 16), requires_grad=True),
        lambda w: torch.nn.Parameter(torch.randn(16, 16).t(), requires_grad=False),
        lambda w: torch.nn.Parameter(torch.randn(16, 16, dtype=torch.float64), requires_grad=False),
        lambda w: torch.nn.Parameter(torch.randn(8, 16), requires_grad=False),
    ],
)
def test_another_kind_is_another_trace(other):
    m, x = torch.nn.Linear(16, 16, bias=False).requires_grad_(False), torch.randn(3, 16)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    m.weight = other(m.weight)
    x = x.to(m.weight.dtype)
    follows(fast, m, x, 2, 0)


# --- which are the same ---


def tied(a, b):
    m = model()
    m[0].bias, m[2].bias = None, None
    if a == b:
        m[2].weight = m[0].weight
    return m


def test_tied_weights_stay_tied():
    m, x = tied(0, 0), torch.randn(3, 16)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    m[0].weight = m[2].weight = new(16, 16)
    follows(fast, m, x, 1, 1)
    m[2].weight = new(16, 16)  # not tied any more
    follows(fast, m, x, 2, 0)
    m[0].weight = new(16, 16)
    follows(fast, m, x, 2, 1)
    m[0].weight = m[2].weight  # again
    assert framelift.explain(fast).recorded == 2
    with torch.no_grad():
        assert_close(fast(x), m(x))


def test_exchanged_weights():
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    m[0].weight, m[2].weight = m[2].weight, m[0].weight
    follows(fast, m, x, 1, 1)


class Asks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = new(16, 16), new(16, 16)

    def forward(self, x):
        return x @ self.a if self.a is self.b else x @ self.a + x @ self.b


def test_what_asks_whether_they_are_the_same():
    m, x = Asks(), torch.randn(3, 16)
    fast = framelift.compile(m)
    follows(fast, m, x, 1, 0)
    m.a = new(16, 16)
    follows(fast, m, x, 1, 1)
    m.b = m.a
    follows(fast, m, x, 2, 0)
    m.b = new(16, 16)
    follows(fast, m, x, 2, 2)  # the first trace again
    m.b = m.a


def test_an_argument_that_becomes_a_weight():
    m = Asks()
    fast = framelift.compile(m)
    x = new(16, 16)
    with torch.no_grad():
        for _ in range(2):
            assert_close(fast(x), m(x))
        m.a = x
        assert_close(fast(x), m(x))


OTHER = new(16, 16)  # of which only the identity matters


def test_a_tensor_that_is_only_asked_for():
    m = Asks()

    def f(x):
        return x @ m.a * (2 if m.a is OTHER else 3)

    fast, x = framelift.compile(f), torch.randn(3, 16)
    with torch.no_grad():
        for a in (m.a, new(16, 16), OTHER, new(16, 16)):
            m.a = a
            for _ in range(2):
                assert_close(fast(x), f(x))


NAMES, IDS = {}, {}


@pytest.mark.parametrize("name_of", [lambda w: NAMES.get(w, 0), lambda w: IDS.get(id(w), 0), lambda w: w in set(NAMES)])
def test_weights_that_the_program_knows(name_of):
    m, x = Asks(), torch.randn(3, 16)
    a, b = new(16, 16), new(16, 16)
    NAMES.clear(), IDS.clear()
    NAMES.update({m.a: 1, a: 2})
    IDS.update({id(m.a): 1, id(a): 2})

    def f(x):
        return x @ m.a * (1 + name_of(m.a))

    fast = framelift.compile(f)
    with torch.no_grad():
        for w in (m.a, a, b):
            m.a = w
            for _ in range(2):
                assert_close(fast(x), f(x))


# --- where they are found ---

GLOBAL = torch.randn(16, 16)


def of_global(x):
    return x @ GLOBAL


def test_globals_cells_and_lists():
    global GLOBAL
    cell, items = torch.randn(16, 16), [torch.randn(16), torch.randn(16)]

    def of_cell(x):
        return x @ cell

    def of_list(x):
        return x + items[0] * items[1]

    x = torch.randn(3, 16)
    fasts = [(framelift.compile(f), f) for f in (of_global, of_cell, of_list)]
    for i in range(3):
        for fast, f in fasts:
            follows(fast, f, x, 1, i)
        GLOBAL, cell, items[1] = torch.randn(16, 16), torch.randn(16, 16), torch.randn(16)


class Gives(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = new(16, 16)

    def forward(self, x):
        return x @ self.w, self.w, self.w.t()


def test_a_weight_that_is_given_back():
    m, x = Gives(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with torch.no_grad():
        for _ in range(3):
            for _ in range(2):
                y, w, t = fast(x)
                assert_close(y, m(x)[0])
                assert w is m.w and t.data_ptr() == w.data_ptr()
            assert framelift.explain(fast).recorded == 1
            m.w = new(16, 16)


def test_a_weight_with_attributes():
    m, x = Gives(), torch.randn(3, 16)
    m.w.scale = 2

    def f(x):
        return x @ m.w * getattr(m.w, "scale", 1)

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(3):
            for _ in range(2):
                assert_close(fast(x), f(x))
            m.w = new(16, 16)


def test_elements_that_decide():
    m, x = Gives(), torch.randn(3, 16)
    m.register_buffer("n", torch.tensor([2, 3]))

    def f(x):
        return x @ m.w * m.n[0].item()

    fast = framelift.compile(f)
    with torch.no_grad():
        for n, recorded in (([2, 3], 1), ([2, 3], 1), ([5, 3], 2)):
            m.n = torch.tensor(n)
            for _ in range(2):
                assert_close(fast(x), f(x))
            assert framelift.explain(fast).recorded == recorded


class Lora(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(16, 16)
        self.down, self.up = new(4, 16), new(16, 4)

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()


def test_adapters_are_exchanged():
    m, x = Lora().requires_grad_(False), torch.randn(3, 16)
    adapters = [(m.down, m.up), (new(4, 16), new(16, 4)), (new(4, 16), new(16, 4))]
    fast = framelift.compile(m)
    with torch.inference_mode():
        for i in range(50):
            m.down, m.up = adapters[i % 3]
            assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    assert (e.recorded, e.native, e.replayed) == (1, 0, 49)


def test_threads_that_replace_and_call():
    m, x = model(), torch.randn(3, 16)
    weights = [new(16, 16) for _ in range(4)]
    fast = framelift.compile(m)
    answers, wrong = [], []
    with torch.no_grad():
        for w in weights:
            m[0].weight = w
            answers.append(m(x))
            fast(x)

    def call():
        with torch.no_grad():
            for i in range(200):
                m[0].weight = weights[i % 4]
                y = fast(x)
                if not any(torch.allclose(y, a, atol=1e-4) for a in answers):
                    wrong.append(y)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# --- room for traces ---


def call(fast, n):
    assert torch.equal(fast(torch.ones(n)), torch.full((n,), 2.0))


def test_the_trace_used_longest_ago_makes_room():
    fast = framelift.compile(lambda x: x + 1)
    for n in range(1, 65):
        call(fast, n)
    for n in range(1, 65):
        call(fast, n)
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native, len(e.traces)) == (64, 64, 0, 64)
    call(fast, 65)
    call(fast, 2)  # 1 made room
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, len(e.traces)) == (65, 65, 64)
    call(fast, 1)
    assert framelift.explain(fast).recorded == 66


def test_large_traces_make_room_sooner():
    """Eight are kept whatever their engines hold, more of them only within 512 MiB."""
    fast, x, kept = framelift.compile(lambda x, n: (x + n).softmax(1).amax(1)), torch.zeros(4, 1 << 22), []
    with torch.inference_mode():
        for n in range(1, 11):
            for _ in range(2):
                assert_close(fast(x, n), torch.full((4,), 2.0**-22))
            e = framelift.explain(fast)
            kept.append(len(e.traces))
    assert e.memory["arena"] >> 20 == 8 * 64
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_recordings_are_bounded_by_the_calls_they_answer():
    fast = framelift.compile(lambda x: x + 1)
    for n in range(1, 73):
        call(fast, n)
    e = framelift.explain(fast)
    assert (e.recorded, e.native) == (64, 8) and "too many recordings" in e.native_reason
    for _ in range(8):
        call(fast, 64)
    call(fast, 80)
    call(fast, 81)
    e = framelift.explain(fast)
    assert (e.recorded, e.native, e.replayed) == (65, 9, 8), "one more for 16 calls, answered or not"
    for n in range(100, 133):
        call(fast, n)
    assert framelift.explain(fast).recorded == 67, "of calls that are ever new, few are recorded"
