"""Branches: the frames that calls go on from, the memory they share, generators, threads, and leaks."""

import gc
import io
import random
import sys

import torch

import framelift
from branching import LIN, STATE, UNKNOWN, branches, close, fresh, left  # noqa: F401  (fresh: a fixture of every test)
from exits import DO, differing_in_threads, x


def test_tensors_that_share_memory_across_a_break():
    def f(t):
        y = LIN(t)
        row = y[0]
        z = y.clone()
        if DO(UNKNOWN):
            row.add_(1.0)
            z.mul_(2.0)
            return y, row, z
        return y, row, z

    fast = framelift.compile(f)
    close(fast(x()), f(x()))
    UNKNOWN.action = lambda: 1
    for k in range(4):
        a, b = fast(x(k)), f(x(k))
        close(a, b)
        assert a[0].data_ptr() == a[1].data_ptr()
    t = torch.ones(3, 4)

    def g(t):
        y = LIN(t)
        if DO(UNKNOWN) == 2:
            t.add_(y)
        return y

    fast = framelift.compile(g)
    fast(t)
    UNKNOWN.action = lambda: 2
    for _ in range(4):
        u, w = torch.ones(3, 4), torch.ones(3, 4)
        close(fast(u), g(w))
        close(u, w)
    assert left(fast)[0] == 4


def test_frames_are_left_within_nested_calls():
    def inner(t, k):
        local = [k, t]
        if t.mean().item() > 0:
            local.append(t * 2)
        return sum(local[1:]) * k

    class Net(torch.nn.Module):
        def forward(self, t, *, k=1):
            y = LIN(t)
            return {"a": inner(y, k) + inner(-y, k + 1), "k": k}

    net = Net()
    fast = framelift.compile(net)
    for s in range(20):
        a, b = fast(x(s), k=2), net(x(s), k=2)
        assert a["k"] == b["k"]
        close(a["a"], b["a"])
    e = framelift.explain(fast)
    assert e.native == 0 and left(fast)[1] == 0 and left(fast)[0] > 1, str(e)


def test_unknown_code_in_a_branch_sees_the_frames_it_would_see():
    def look():
        frame, names = sys._getframe(2), []
        while frame and len(names) < 2:
            names.append((frame.f_code.co_name, frame.f_lineno, sorted(frame.f_locals)))
            frame = frame.f_back
        STATE["log"].append(names)
        return STATE["kind"]

    def inner(t, k):
        local = [k]
        if DO(UNKNOWN):
            local.append(DO(UNKNOWN))
        return t + len(local)

    def f(t):
        return inner(LIN(t), k=2)

    UNKNOWN.action = look
    STATE["kind"] = 0
    fast = framelift.compile(f)
    fast(x())
    STATE["kind"] = 1
    logs = []
    for g in (fast, fast, fast, f):
        STATE["log"].clear()
        g(x())
        logs.append([[n[0:2] for n in calls] for calls in STATE["log"]])
    assert logs[0] == logs[1] == logs[2] == logs[3] and left(fast)[1] == 0


def test_random_numbers_and_prints_in_a_branch():
    out = io.StringIO()

    def f(t):
        y = LIN(t)
        if DO(UNKNOWN):
            print("in the branch", file=out)
            return torch.nn.functional.dropout(y, 0.5)
        return y

    fast = framelift.compile(f)
    fast(x())
    UNKNOWN.action = lambda: 1
    for k in range(4):
        torch.manual_seed(k)
        got = fast(x(k))
        after = torch.rand(2)
        torch.manual_seed(k)
        close(got, f(x(k)))
        close(after, torch.rand(2))
    assert out.getvalue() == "in the branch\n" * 8


def test_nothing_is_leaked():
    def f(t, table):
        y = LIN(t)
        local = {"y": y, "again": [y, t]}
        table["k"] = random.random()
        if t.sum().item() > 0:
            print(local["again"][0].shape, file=OUT)
        return local["again"][0] * (2 if random.random() < 0.5 else 3)

    OUT = io.StringIO()
    fast = framelift.compile(lambda t: f(t, STATE))
    for k in range(60):
        fast(x(k))
    gc.collect()
    before = len(gc.get_objects()), sys.getrefcount(None), sys.getrefcount(LIN), sys.getrefcount(f)
    for k in range(300):
        fast(x(k))
    gc.collect()
    after = len(gc.get_objects()), sys.getrefcount(None), sys.getrefcount(LIN), sys.getrefcount(f)
    assert all(abs(b - a) < 60 for a, b in zip(before, after, strict=True)), (before, after)
    held = []

    class Held:
        pass

    def make():
        o = Held()
        held.append(__import__("weakref").ref(o))

        def g(t):
            y = LIN(t)
            return y * 2 if DO(UNKNOWN) else (y, o)[0]

        return framelift.compile(g)

    for _ in range(3):
        fast = make()
        UNKNOWN.action = lambda: None
        fast(x())
        UNKNOWN.action = lambda: 1
        fast(x()), fast(x())
        assert len(branches(fast)) == 1
    del fast
    gc.collect()
    assert [r() for r in held] == [None] * 3


def test_threads_grow_and_take_branches():
    def f(t):
        y = LIN(t)
        while y.abs().max().item() > 0.3:
            y = y * 0.7
            if y.sum().item() > 0:
                y = y.relu() - 0.01
        return y

    fast = framelift.compile(f)
    wrong = differing_in_threads(fast, f, 60)
    assert not wrong and framelift.explain(fast).native == 0


class Named(torch.nn.Module):
    """Walks through generators of torch.nn, and breaks in their middle."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)

    def pairs(self, start):
        count = start
        yield from self.named_children()
        for m in (self.first, self.last):
            count += 1
            yield str(count), m

    def forward(self, t):
        seen, total = [], 0
        for name, m in self.pairs(total):
            t = m(t)
            seen.append(name)
            total += 1
            if t.max().item() > 0.8:
                t = t * 0.5
        return t, seen, total


def test_breaks_while_a_generator_is_under_way():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Named().eval()
    fast = framelift.compile(net)
    for s in range(30):
        a, b = fast(x(s) * 2), net(x(s) * 2)
        assert a[1:] == b[1:]
        close(a[0], b[0])
    e = framelift.explain(fast)
    exits, native = left(fast)
    assert (e.recorded, e.native, native) == (1, 0, 0) and exits > 5 and len(e.breaks) == 10, str(e)
    gc.collect()
    before = len(gc.get_objects()), sys.getrefcount(None)
    for s in range(100):
        fast(x(s % 30) * 2)
    gc.collect()
    after = len(gc.get_objects()), sys.getrefcount(None)
    assert all(abs(b - a) < 60 for a, b in zip(before, after, strict=True)), (before, after)


def test_a_generator_with_something_to_do_at_its_end_does_it_once():
    def layers():
        try:
            yield LIN
            yield torch.tanh
        finally:
            STATE["log"].append("closed")

    def f(t):
        for layer in layers():
            t = layer(t)
            if t.sum().item() > 0:
                break
        return t

    fast = framelift.compile(f)
    for s in range(8):
        STATE["log"].clear()
        close(fast(x(s)), f(x(s)))
        assert STATE["log"] == ["closed"] * 2
    fast = framelift.compile(f)
    for s in (7, 8):  # objects of a recorded call go when the program lets go of them
        STATE["log"].clear()
        fast(x(s))
        assert STATE["log"] == ["closed"]
