"""Calls that leave their trace grow branches: values and effects are eager's, and what was recorded is known."""

import io
import random
import traceback

import pytest
import torch

import framelift
from branching import LIN, STATE, UNKNOWN, branches, close, fresh, left  # noqa: F401  (fresh: a fixture of every test)
from exits import DO, x


def halved(t):
    while t.abs().max().item() > 1.0:
        STATE["log"].append("turn")
        t = t * 0.5
    STATE["log"].append("end")
    return t + 1


def halve(fast, top):
    """The loop takes as many turns as are needed to bring `top` below one."""
    outcomes = []
    for f in (fast, halved):
        STATE["log"].clear()
        outcomes.append((f(torch.full((2, 2), float(top))), list(STATE["log"])))
    close(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] == outcomes[1][1]


def test_a_loop_of_other_lengths():
    fast = framelift.compile(halved)
    for top in (8, 8):
        halve(fast, top)
    assert left(fast) == (0, 0) and branches(fast) == []
    for top in (16, 16, 2, 2, 4, 0.5, 1000, 1e6, 3, 16, 1e30, 5):
        halve(fast, top)
    e = framelift.explain(fast)
    assert (e.native, e.recorded, len(e.traces)) == (0, 1, 1), str(e)
    exits, native = left(fast)
    assert exits > 10 and native == 0 and len(branches(fast)) <= 3, str(e)


def test_a_loop_that_converges():
    def f(t):
        last = t
        while True:
            t = torch.cos(LIN(t) * 0.1 + t * 0.5)
            if (t - last).abs().max().item() < 1e-5:
                break
            last = t
        return t

    fast = framelift.compile(f)
    for seed in range(8):
        close(fast(x(seed) * (seed + 1)), f(x(seed) * (seed + 1)))
    e = framelift.explain(fast)
    assert (e.native, e.recorded) == (0, 1) and left(fast)[1] == 0, str(e)


def test_a_long_loop_is_recorded_as_a_few_turns():
    def f(t, most):
        while t.abs().max().item() > 1e-3:
            t = t * 0.97 + LIN.weight.sum() * 0
            STATE["log"].append(1)
        return t + most

    fast = framelift.compile(f)
    for seed in range(6):
        STATE["log"].clear()
        got = fast(x(seed), 1)
        turns = len(STATE["log"])
        close(got, f(x(seed), 1))
        assert len(STATE["log"]) == 2 * turns > 300
    e = framelift.explain(fast)
    assert (e.recorded, e.native) == (1, 0) and len(e.breaks) < 40 and len(branches(fast)) <= 8, str(e)
    b = [b for b in e.breaks if b.exits][-1]
    assert b.exit_reason == "the trace ends there" and left(fast)[1] == 0, str(e)


def test_a_call_of_very_many_breaks_is_several_traces():
    out = io.StringIO()

    def f(t, turns):
        for k in range(turns):
            t = LIN(t) * 0.5 + k
            print(k, file=out)
        return t

    fast = framelift.compile(f)
    for k in range(6):
        out.truncate(0)
        close(fast(x(k), 150), f(x(k), 150))
        assert out.getvalue().strip("\0").split() == [str(n) for n in range(150)] * 2
    e = framelift.explain(fast)
    assert (e.recorded, e.native, len(e.breaks)) == (1, 0, 64) and left(fast)[1] == 0, str(e)
    assert [len(t.breaks) for _, t in e.branches] == [64, 22], str(e)
    close(fast(x(), 3), f(x(), 3))


def test_either_way_at_a_number():
    def f(t, threshold):
        y = LIN(t)
        if y.sum().item() > threshold:
            y = y.relu()
            STATE["log"].append("over")
        else:
            y = y.tanh() - 1
            STATE["log"].append("under")
        return y * 2

    fast = framelift.compile(f)
    for k in range(12):
        got = fast(x(), -100.0 if k % 2 else 100.0)
        close(got, f(x(), -100.0 if k % 2 else 100.0))
        assert STATE["log"][-2:] == ["over" if k % 2 else "under"] * 2
    assert len(STATE["log"]) == 24
    assert framelift.explain(fast).native == 0

    def g(t):
        y = LIN(t)
        return (y.relu() if y.sum().item() > 0 else y.tanh() - 1) * 2

    fast = framelift.compile(g)
    ways = [bool(LIN(x(s)).sum() > 0) for s in range(30)]
    for s in range(30):
        close(fast(x(s)), g(x(s)))
    other = sum(w != ways[0] for w in ways)
    ((_, hits, segments),) = branches(fast)
    assert (hits, segments, left(fast)) == (other - 1, 1, (other, 0))


def test_an_object_of_another_kind():
    def f(t):
        y = LIN(t)
        got = DO(UNKNOWN)
        if got is None:
            return y + 1
        if isinstance(got, torch.Tensor):
            return y * got
        return y * len(got) + got["by"]

    gives = [lambda: None, lambda: torch.ones(4), lambda: {"by": x(5)}, lambda: {"by": torch.ones(3, 1)}]
    fast = framelift.compile(f)
    for turn in range(3):
        for give in gives:
            UNKNOWN.action = give
            close(fast(x(turn)), f(x(turn)))
    e = framelift.explain(fast)
    assert (e.recorded, e.native, left(fast)) == (1, 0, (9, 0)), str(e)
    assert [hits for _, hits, _ in branches(fast)] == [2, 2, 2]


class Early(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(5))
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(5))

    def forward(self, t, sure):
        seen = []
        for i, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            t = layer(t).relu()
            p, at = head(t).softmax(-1), i
            seen.append(p)
            if p.max().item() > sure:
                break
        return seen, at


def test_a_model_that_exits_early():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Early().eval()
    fast = framelift.compile(net)
    marks = (1.1, 1.1, 0.0, 0.52, 0.55, 0.6, 0.7, 0.8, 0.9)
    for turn in range(3):
        for sure in marks:
            a, b = fast(x(turn) * 3, torch.tensor(sure)), net(x(turn) * 3, torch.tensor(sure))
            assert a[1] == b[1]
            close(a[0], b[0])
    e = framelift.explain(fast)
    assert e.native == 0 and left(fast)[1] == 0 and 1 <= len(branches(fast)) <= 4, str(e)


def test_what_frames_hold_is_a_branchs_own():
    def f(t, table):
        total, parts = [t], {"k": t}
        view = t[1:]

        def add(u):
            nonlocal total
            total = [*total, u]
            return len(total)

        for i, (name, layer) in enumerate(zip("abc", [LIN, torch.tanh, LIN], strict=True)):
            t = layer(t)
            if random.random() < 0.5:
                t = t * 2
            parts[name] = t + i
            add(t)
        for name in parts:
            if random.random() < 0.5:
                add(parts[name] + table["w"])
        return sum(total), list(parts), len(total), view

    fast = framelift.compile(f)
    for seed in range(60):
        random.seed(seed % 20)
        t, w = x(seed), x(100 + seed)
        a = fast(t, {"w": w})
        state = random.getstate()
        random.seed(seed % 20)
        b = f(t, {"w": w})
        assert random.getstate() == state and a[1:3] == b[1:3] and a[3].data_ptr() == b[3].data_ptr()
        close(a[0], b[0])
    e = framelift.explain(fast)
    exits, native = left(fast)
    assert e.native == 0 and exits > 40 and native < exits, str(e)


def test_effects_of_a_branch_are_done_once_and_in_order():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.last = None

        def forward(self, t):
            STATE["log"].append("begin")
            y = LIN(t)
            kind = DO(UNKNOWN)
            if kind == "other":
                STATE["log"].append("other")
                self.last = y
                DO(UNKNOWN)
                STATE["log"].append("after")
                return y * 2
            return y

    net = Net()
    seen = []

    def make(kind):
        def action():
            seen.append(tuple(STATE["log"]))
            return kind

        return action

    fast = framelift.compile(net)
    for kind in ["this"] * 2 + ["other"] * 4 + ["this"]:
        UNKNOWN.action = make(kind)
        outcomes = []
        for f in (fast, net):
            STATE["log"].clear()
            net.last = None
            seen.clear()
            y = f(x())
            outcomes.append((y, list(STATE["log"]), list(seen), net.last))
        close(outcomes[0][0], outcomes[1][0])
        assert outcomes[0][1:3] == outcomes[1][1:3]
        assert (outcomes[0][3] is None) == (outcomes[1][3] is None)
    assert left(fast)[1] == 0 and [h for _, h, _ in branches(fast)] == [3], str(framelift.explain(fast))


def test_an_error_in_a_branch_is_the_programs():
    def f(t, i):
        y = LIN(t)
        if DO(UNKNOWN) == "look":
            try:
                return torch.nn.functional.embedding(i, y)
            except IndexError:
                STATE["log"].append("caught")
                raise
        return y

    fast = framelift.compile(f)
    fast(x(), torch.tensor([0]))
    UNKNOWN.action = lambda: "look"
    for i in (0, 1, 2):
        close(fast(x(), torch.tensor([i])), f(x(), torch.tensor([i])))
    assert [h for _, h, _ in branches(fast)] == [2]
    shown = []
    for g in (f, fast):
        with pytest.raises(IndexError) as e:
            g(x(), torch.tensor([7]))
        shown.append([(s.name, s.lineno) for s in traceback.extract_tb(e.tb) if s.filename == __file__][1:])
    assert shown[0] == shown[1] and STATE["log"] == ["caught"] * 2
    close(fast(x(), torch.tensor([1])), f(x(), torch.tensor([1])))


def test_branches_are_bounded_and_then_calls_go_on_natively():
    def f(t):
        y = LIN(t)
        k = DO(UNKNOWN)
        return y * 2 if k == 0 else y * k

    fast = framelift.compile(f)
    for k in range(30):
        UNKNOWN.action = lambda k=k: k
        close(fast(x(k)), f(x(k)))
    e = framelift.explain(fast)
    assert e.native == 0 and len(branches(fast)) == 8 and left(fast) == (29, 21), str(e)
    UNKNOWN.action = lambda: 3
    close(fast(x()), f(x()))
    assert left(fast) == (30, 21)
    framelift.reset(fast)
    close(fast(x()), f(x()))
    assert branches(fast) == []


def test_a_branch_that_cannot_be_recorded_says_why():
    def f(t):
        y = LIN(t)
        if DO(UNKNOWN):
            STATE["gen"] = (k for k in range(2))
            return y - next(STATE["gen"])
        return y

    fast = framelift.compile(f)
    close(fast(x()), f(x()))
    UNKNOWN.action = lambda: 1
    for _ in range(5):
        close(fast(x()), f(x()))
    e = framelift.explain(fast)
    (b,) = [b for b in e.breaks if b.exits]
    assert b.branches == () and b.branch_reason and b.exits == 5 and e.native == 0, str(e)
    assert f"runs natively: {b.branch_reason}" in str(e)


def test_weights_and_state_of_a_branch_are_live():
    net = torch.nn.Linear(4, 4).eval()

    def f(t):
        y = LIN(t)
        if DO(UNKNOWN):
            return net(y) * STATE["scale"]
        return y

    fast = framelift.compile(f)
    close(fast(x()), f(x()))
    UNKNOWN.action = lambda: 1
    for k in range(6):
        close(fast(x(k)), f(x(k)))
        if k == 2:
            net.weight.mul_(2.0)
        if k == 3:
            net.bias.data = torch.ones(4)
        if k == 4:
            STATE["scale"] = 3.0
    assert left(fast) == (6, 0) and [h for _, h, _ in branches(fast)] == [4, 0]
    net.weight.data.add_(1.0)
    framelift.refresh(fast)
    close(fast(x()), f(x()))


def test_another_backend_is_given_the_segments_of_branches():
    shapes = []

    def backend(gm, examples):
        shapes.append([tuple(t.shape) for t in examples])
        return gm.forward

    def f(t):
        y = LIN(t)
        if DO(UNKNOWN):
            return (y.relu() + t).sum(1)
        return y

    fast = framelift.compile(f, backend=backend)
    close(fast(x()), f(x()))
    UNKNOWN.action = lambda: 1
    for k in range(3):
        close(fast(x(k)), f(x(k)))
    assert shapes == [[(3, 4), (4, 4), (4,)], [(3, 4), (3, 4)]] and left(fast) == (3, 0)


def test_inference_mode():
    fast = framelift.compile(halved)
    with torch.inference_mode():
        for top in (8, 8, 16, 16, 2, 2, 1000):
            halve(fast, top)
    assert framelift.explain(fast).native == 0 and left(fast)[1] == 0
