"""Calls within the caller's autocast, and what autocast casts for inside operators."""

import contextlib
import itertools
import threading

import pytest
import torch

import framelift
from conftest import assert_close

BF16 = torch.bfloat16
torch.manual_seed(0)
LSTM = torch.nn.LSTM(4, 4).eval()
LAYER = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()


def state():
    torch.autocast_increment_nesting()
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.autocast_decrement_nesting(),
    )


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 4)

    def forward(self, x):
        y = self.first(x).softmax(-1)
        with torch.autocast("cpu", enabled=False):
            z = self.second(y.float())
        return self.second(y), z, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def x(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def same(got, want):
    for g, w in zip(got, want, strict=True):
        if isinstance(w, torch.Tensor):
            assert g.dtype == w.dtype and g.is_inference() == w.is_inference()
            torch.testing.assert_close(g, w, rtol=2e-2, atol=2e-2)
        else:
            assert g == w


AROUND = {
    "bf16": lambda: torch.autocast("cpu", BF16),
    "fp16": lambda: torch.autocast("cpu", torch.float16),
    "no cache": lambda: torch.autocast("cpu", BF16, cache_enabled=False),
    "off": lambda: torch.autocast("cpu", enabled=False),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_each_autocast_around_a_call_has_traces_of_its_own(mode):
    net = Net().eval()
    fast = framelift.compile(net)
    with mode():
        for _ in range(3):
            for around in list(AROUND.values())[:3]:
                with around():
                    before = state()
                    same(fast(x()), net(x()))
                    assert state() == before
            assert state()[0] is False
            same(fast(x()), net(x()))
    e = framelift.explain(fast)
    assert e.native == 0 and e.recorded == 4 and not e.breaks
    assert sorted(t.autocast or "" for t in e.traces) == [
        "",
        "cpu torch.bfloat16",
        "cpu torch.bfloat16",
        "cpu torch.float16",
    ]


def test_weights_that_change_within_an_autocast():
    net = Net().eval()
    fast = framelift.compile(net)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        for _ in range(4):
            net(x())  # eager keeps casts of the weights
            same(fast(x()), net(x()))
            net.first.weight.mul_(2)
            torch.clear_autocast_cache()
    assert framelift.explain(fast).recorded == 1


def test_an_autocast_within_another():
    net = Net().eval()
    fast = framelift.compile(net)
    with torch.no_grad():
        for _ in range(3):
            with torch.autocast("cpu", BF16):
                same(fast(x()), net(x()))
                with torch.autocast("cpu", BF16):
                    before = state()
                    same(fast(x()), net(x()))
                    assert state() == before
                with torch.autocast("cpu", enabled=False):
                    same(fast(x()), net(x()))
    e = framelift.explain(fast)
    assert e.recorded == 2 and e.native == 3


def test_states_without_a_context():
    net = Net().eval()
    fast = framelift.compile(net)
    torch.set_autocast_enabled("cpu", True)
    try:
        before = state()
        with torch.no_grad():
            for _ in range(3):
                same(fast(x()), net(x()))
                assert state() == before
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.clear_autocast_cache()


SEEN = []


def with_a_break(t):
    y = torch.nn.functional.linear(t, torch.eye(4))
    print("", end="", flush=SEEN.append(state()))
    return torch.nn.functional.linear(y, torch.eye(4))


def raises(t):
    y = torch.nn.functional.linear(t, torch.eye(4))
    if y.sum() > 1e4:
        raise ValueError("too large")
    return y


def another_device(t):
    return torch.nn.functional.linear(t, torch.eye(4)), torch.is_autocast_enabled("cuda")


def test_unknown_code_in_a_call_is_within_it():
    fast = framelift.compile(with_a_break)
    SEEN.clear()
    with torch.no_grad(), torch.autocast("cpu", BF16):
        for k in range(4):
            same([fast(x(k))], [with_a_break(x(k))])
    assert all(s[:3] == (True, BF16, True) for s in SEEN) and len(SEEN) == 8
    assert framelift.explain(fast).native == 0


def test_after_an_exception_autocast_is_as_it_was():
    fast = framelift.compile(raises)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        before = state()
        for k in range(4):
            same([fast(x(k))], [raises(x(k))])
            with pytest.raises(ValueError, match="too large"):
                fast(x(k) + 1e6)
            assert state() == before


def test_arguments_that_require_grad():
    net = Net().eval()
    fast = framelift.compile(net)
    with torch.autocast("cpu", BF16):
        same(fast(x()), net(x()))
        with pytest.warns(UserWarning, match="requires grad"):
            assert fast(x().requires_grad_())[0].requires_grad
        assert not fast(x())[0].requires_grad


def test_more_states_than_are_kept():
    net = torch.nn.Linear(4, 4).eval()
    fast = framelift.compile(net)
    with torch.no_grad():
        for _ in range(2):
            for dtype in (BF16, torch.float16):
                for cache in (True, False):
                    for cuda in (True, False):
                        torch.set_autocast_enabled("cuda", cuda)
                        try:
                            with torch.autocast("cpu", dtype, cache_enabled=cache):
                                same([fast(x())], [net(x())])
                        finally:
                            torch.set_autocast_enabled("cuda", False)
    e = framelift.explain(fast)
    assert e.recorded == 4 and e.native == 8 and e.native_reason == "autocast is on"


def test_threads_have_autocast_of_their_own():
    net = Net().eval()
    fast = framelift.compile(net)
    answers = {}

    def run(name, around):
        with torch.no_grad():
            for k in range(20):
                with around():
                    answers[name, k] = fast(x(k))

    threads = [threading.Thread(target=run, args=(name, AROUND[name])) for name in ("bf16", "off", "off")]
    [t.start() for t in threads]
    [t.join() for t in threads]
    with torch.no_grad():
        for (name, k), answer in answers.items():
            with AROUND[name]():
                same(answer, net(x(k)))


COMPOSITES = {
    "einsum": lambda t: torch.einsum("ij,kj->ik", t, t),
    "inner": lambda t: torch.inner(t, t),
    "tensordot": lambda t: torch.tensordot(t, t, dims=([1], [1])),
    "lstm": lambda t: LSTM(t[None])[0],
    "multi_dot": lambda t: torch.linalg.multi_dot([t, t.mT, t]),
    "shapes": lambda t: t.reshape(-1).flatten().to(torch.float64) * 2,
    "layer": lambda t: LAYER(t[None]),
    "attention": lambda t: torch.nn.functional.scaled_dot_product_attention(t[None], t[None], t[None]),
    "outer": lambda t: torch.outer(t[0], t[1]) + torch.relu(t[0]),
}


NUMBERS = itertools.count()


def gives_up(t):
    """A recording that has ended has no part in what operators do."""
    next(NUMBERS)
    return torch.inner(torch.einsum("ij,kj->ik", t, t), torch.ones(1, 3, dtype=BF16))


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("program", [*COMPOSITES.values(), gives_up], ids=[*COMPOSITES, "gives_up"])
def test_operators_that_call_others(program, mode, where):
    def inside(t):
        with torch.autocast("cpu", BF16):
            return program(t)

    fast = framelift.compile(inside if where == "inside" else program)
    with mode():
        for k in range(3):
            want = inside(x(k))
            with contextlib.nullcontext() if where == "inside" else torch.autocast("cpu", BF16):
                got = fast(x(k))
            same([got], [want])


def test_nothing_is_cast_outside():
    fast = framelift.compile(torch.nn.Linear(4, 4).eval())
    with torch.no_grad():
        for _ in range(3):
            assert_close(fast(x()), fast.__wrapped__(x()))


WEIGHTS = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]


def merges(t):
    """As adapters are unmerged within a call."""
    for w in WEIGHTS:
        delta = WEIGHTS[0] @ WEIGHTS[1]
        assert torch.is_autocast_enabled("cpu") and delta.dtype == BF16
        w.data -= delta.float() * 0.0
        t = torch.nn.functional.linear(t, w.detach())
        assert torch.is_autocast_enabled("cpu") and t.dtype == BF16
    return t


def merges_after(t):
    next(NUMBERS)
    return merges(t)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("program", [merges, merges_after])
def test_tensors_detached_within_a_call(program, mode):
    def inside(t):
        with torch.autocast("cpu", BF16):
            return program(t)

    around, within = framelift.compile(program), framelift.compile(inside)
    with mode():
        for k in range(4):
            want = inside(x(k))
            with torch.autocast("cpu", BF16):
                before = state()
                same([around(x(k))], [want])
                assert state() == before
            same([within(x(k))], [want])
            assert not torch.is_autocast_enabled("cpu")


def test_kernels_that_are_cast_for_within():
    """The call writes to its argument, so that its trace is not compared with what was recorded."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    def program(y):
        return layer(y.mul_(0.5))

    for dtype in (torch.float32, torch.bfloat16):
        fast = framelift.compile(program)
        for _ in range(4):
            y = torch.randn(2, 3, 8, dtype=dtype)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                want = program(y.clone())
                got = fast(y)
            assert got.dtype == want.dtype
            assert torch.allclose(got.float(), want.float(), atol=0.05)
