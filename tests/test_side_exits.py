"""Calls with breaks whose later course differs from the recorded one: what was done stays, and the rest is eager's."""

import gc
import io
import logging
import random
import sys
import traceback
import warnings

import numpy as np
import pytest
import torch

import framelift
from exits import DO, differing_in_threads, x

LIN = torch.nn.Linear(4, 4).eval()
STATE = {"scale": 1.0, "log": []}


class Unknown:
    """Called through C (methodcaller), so that nothing of it is seen."""

    def __init__(self):
        self.action = lambda: None

    def do(self):
        return self.action()


UNKNOWN = Unknown()


def trace(fast):
    (t,) = framelift.explain(fast).raw["traces"]
    return t


def exits(fast):
    return sum(b.get("exits", 0) for b in trace(fast)["breaks"])


@pytest.fixture(autouse=True)
def fresh():
    STATE.update(scale=1.0, log=[])
    UNKNOWN.action = lambda: None
    with torch.no_grad():
        yield


def same(fast, plain, seeds=range(4)):
    for s in seeds:
        torch.testing.assert_close(fast(x(s)), plain(x(s)), rtol=1e-4, atol=1e-5)


def test_state_changed_by_unknown_code_is_seen():
    def f(t):
        y = LIN(t)
        DO(UNKNOWN)
        return y * STATE["scale"]

    fast = framelift.compile(f)
    same(fast, f)
    assert exits(fast) == 0 and len(trace(fast)["segments"]) == 2

    def double():
        STATE["scale"] += 1

    UNKNOWN.action = double
    for s in range(3):
        STATE["scale"] = 1.0
        got = fast(x(s))
        assert STATE["scale"] == 2.0
        STATE["scale"] = 1.0
        torch.testing.assert_close(got, f(x(s)), rtol=1e-4, atol=1e-5)
    assert exits(fast) == 3 and framelift.explain(fast).native == 0


def test_what_unknown_code_raises_reaches_the_programs_handlers():
    def inner(t):
        try:
            DO(UNKNOWN)
            return t + 1
        except KeyError as e:
            STATE["log"].append(str(e))
            return t - 1
        finally:
            STATE["log"].append("finally")

    def f(t):
        return inner(LIN(t)) * 2

    def fail():
        raise KeyError("no")

    fast = framelift.compile(f)
    same(fast, f)
    STATE["log"].clear()
    UNKNOWN.action = fail
    same(fast, f, [7])
    assert STATE["log"] == ["'no'", "finally"] * 2 and exits(fast) == 1


def test_an_error_nobody_handles_has_eagers_traceback():
    def f(t):
        y = LIN(t)
        DO(UNKNOWN)
        return y

    def fail():
        raise ValueError("unknown")

    fast = framelift.compile(f)
    same(fast, f)
    UNKNOWN.action = fail
    shown = []
    for g in (f, fast):
        with pytest.raises(ValueError, match="unknown") as e:
            g(x())
        shown.append([(s.name, s.lineno) for s in traceback.extract_tb(e.tb) if s.filename == __file__][1:])
    assert shown[0] == shown[1] and [n for n, _ in shown[0]] == ["f", "do", "fail"]


def test_an_operator_that_raises_after_a_break_is_handled_by_the_program():
    def f(t, i):
        y = LIN(t)
        print("before", file=OUT)
        try:
            return y[i] + torch.nn.functional.embedding(i, y)
        except IndexError:
            return y.sum()

    OUT = io.StringIO()
    fast = framelift.compile(f)
    for i in (0, 1, 2, 9, 1):
        i = torch.tensor([i])
        torch.testing.assert_close(fast(x(), i), f(x(), i), rtol=1e-4, atol=1e-5)


def test_effects_before_a_break_are_done_before_it_and_once():
    def f(t):
        STATE["scale"] = 3.0
        STATE["log"].append("before")
        DO(UNKNOWN)
        STATE["log"].append("after")
        return LIN(t) * random.random()

    seen = []
    UNKNOWN.action = lambda: seen.append((STATE["scale"], tuple(STATE["log"])))
    fast = framelift.compile(f)
    for k in range(4):
        STATE.update(scale=1.0, log=[])
        random.seed(k)
        got = fast(x(k))
        assert STATE == {"scale": 3.0, "log": ["before", "after"]}
        STATE.update(scale=1.0, log=[])
        random.seed(k)
        torch.testing.assert_close(got, f(x(k)), rtol=1e-4, atol=1e-5)
    assert seen == [(3.0, ("before",))] * 8


def test_unknown_code_sees_the_frames_it_would_see():
    def look():
        frame, names = sys._getframe(2), []
        while frame and len(names) < 3:
            names.append((frame.f_code.co_name, frame.f_lineno, sorted(frame.f_locals)))
            frame = frame.f_back
        STATE["log"].append(names)

    def inner(t, k):
        local = [k]
        DO(UNKNOWN)
        return t + len(local)

    def f(t):
        y = LIN(t)
        return inner(y, k=2) + inner(y, k=3)

    UNKNOWN.action = look
    fast = framelift.compile(f)
    for _ in range(3):
        fast(x())
    f(x())
    calls = [tuple(map(str, n[:2])) for n in STATE["log"]]
    assert len(calls) == 8 and calls[0::2] == [calls[0]] * 4 and calls[1::2] == [calls[1]] * 4
    assert "'inner'" in calls[0][0] and "['k', 'local', 't']" in calls[0][0] and "'f'" in calls[0][1]


def test_log_records_and_warnings_name_the_programs_line(caplog):
    def f(t):
        logging.getLogger("framelift.tests").warning("rows %d", t.shape[0])
        warnings.warn("careful", stacklevel=1)
        return LIN(t)

    fast = framelift.compile(f)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(4):
            fast(x())
        f(x())
    assert len({(r.filename, r.lineno, r.funcName) for r in caplog.records}) == 1 and len(caplog.records) == 5
    assert len({(w.filename, w.lineno) for w in seen}) == 1 and len(seen) == 5
    assert framelift.explain(fast).replayed == 2


def test_a_weight_written_through_numpy():
    net = torch.nn.Linear(4, 4).eval()
    twin = torch.nn.Linear(4, 4).eval()
    twin.load_state_dict(net.state_dict())

    def make(m):
        def f(t):
            w = m.weight.detach().numpy()
            np.multiply(w, 1.5, out=w)
            return m(t)

        return f

    fast, plain = framelift.compile(make(net)), make(twin)
    same(fast, plain)
    torch.testing.assert_close(net.weight, twin.weight)


def test_views_and_unknown_code_share_memory():
    def f(t):
        y = LIN(t)
        row = y[0]
        np.add(row.numpy(), 1.0, out=row.numpy())
        z = torch.from_numpy(y.numpy())
        z.mul_(2.0)
        return y, row, z

    fast = framelift.compile(f)
    for s in range(4):
        a, b = fast(x(s)), f(x(s))
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        assert a[0].data_ptr() == a[1].data_ptr() == a[2].data_ptr()


def test_a_kept_tensor_is_not_shared_with_what_is_computed_later():
    def f(t):
        y = LIN(t)
        KEEP(y)
        y.add_(1.0)
        return y * 2

    held = STATE["log"]
    KEEP = held.append
    fast = framelift.compile(f)
    same(fast, f)
    for got, want in zip(held[0::2], held[1::2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_loops_closures_and_iterators_stand_as_they_stood():
    def f(t):
        total, parts = [t], {"k": t}

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
                add(parts[name])
        return sum(total), list(parts), len(total)

    fast = framelift.compile(f)
    for seed in range(12):
        random.seed(seed)
        a = fast(x(seed))
        state = random.getstate()
        random.seed(seed)
        b = f(x(seed))
        assert random.getstate() == state and a[1:] == b[1:]
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
    assert framelift.explain(fast).native == 0


def either(first, second):
    """The second answer is of another kind, so that a call recorded with the first is left where it gets it."""
    return second if STATE["other"] else first


class Given:
    """What unknown code gives: of what is done with it nothing is seen."""

    size = property(lambda self: either(2.0, 3))

    def scale(self, *args):
        return either(2.0, 3)

    def __lt__(self, other):
        return either(np.True_, [])

    def __bool__(self):
        return either(True, False)

    def __mul__(self, other):
        return either(2.0, 3)

    def __getitem__(self, key):
        return either(2.0, 3)

    def __format__(self, spec):
        return either("a", "bc")

    def __str__(self):
        return either("a", "bc")


def raising(o):
    o.scale()
    raise KeyError(o.size)


def caught(o, t):
    try:
        return t + raising(o)
    except KeyError as e:
        return t * e.args[0]


WORK = {  # each with the number of breaks in the first trace
    "method": (2, lambda o, t: t * o.scale(1) + len("after")),
    "attribute": (2, lambda o, t: t * o.size + 1),
    "branch": (2, lambda o, t: (t + 1) if o < 3 else (t - 1)),
    "compared": (2, lambda o, t: (t + 1) if (less := o < 3) else (t - len(less))),
    "truth": (2, lambda o, t: (t + 1) if o else (t - 1)),
    "and": (2, lambda o, t: t * ((o and 2.0) or 3.0)),
    "operator": (2, lambda o, t: t * (o * 2)),
    "item": (2, lambda o, t: t * o["k"]),
    "slice": (2, lambda o, t: t * o[1:2]),
    "format": (2, lambda o, t: t * len(f"x{o}y")),
    "spec": (2, lambda o, t: t * len(f"{o:>4}{t.shape[0]}")),
    "keywords": (3, lambda o, t: torch.mul(t, other=o.scale(*(2.0, 3))) + 1),
    "comprehension": (6, lambda o, t: sum([t * k for k in (1, o.scale(), 3) if o.size] + [t * o.size])),
    "caught": (3, caught),
}


@pytest.mark.parametrize("kind", WORK)
def test_frames_are_left_at_each_kind_of_instruction(kind):
    def inner(t):
        held = [t, "kept"]
        o = DO(UNKNOWN)
        first, second = held
        return work(o, first) * len(second)

    def f(t):
        return inner(LIN(t)) + 1

    n_breaks, work = WORK[kind]
    UNKNOWN.action = Given
    STATE["other"] = False
    fast = framelift.compile(f)
    same(fast, f)
    STATE["other"] = True
    same(fast, f)
    STATE["other"] = False
    same(fast, f)
    e = framelift.explain(fast)
    first = e.raw["traces"][-1]
    assert (len(first["breaks"]), e.native) == (n_breaks, 0), str(e)
    assert sum(b.get("exits", 0) for b in first["breaks"]) == 4, str(e)


def test_nothing_is_leaked():
    def f(t, table):
        y = LIN(t)
        local = {"y": y, "again": [y, t]}
        print(local["again"][0].shape, file=OUT)
        table["k"] = random.random()
        return local["again"][0] * (2 if random.random() < 0.5 else 3)

    OUT = io.StringIO()
    fast = framelift.compile(lambda t: f(t, STATE))
    for _ in range(30):
        fast(x())
    gc.collect()
    before = len(gc.get_objects()), sys.getrefcount(None), sys.getrefcount(LIN), sys.getrefcount(f)
    for _ in range(200):
        fast(x())
    gc.collect()
    after = len(gc.get_objects()), sys.getrefcount(None), sys.getrefcount(LIN), sys.getrefcount(f)
    assert exits(fast) > 20
    assert all(abs(b - a) < 60 for a, b in zip(before, after, strict=True)), (before, after)


def test_threads_meet_in_breaks():
    out = io.StringIO()

    def f(t):
        y = LIN(t)
        print(y.shape, file=out)
        return y.relu() + (1 if t.sum().item() > 0 else 2)

    fast = framelift.compile(f)
    wrong = differing_in_threads(fast, f, 100)
    e = framelift.explain(fast)
    assert not wrong and (e.native, e.recorded + e.replayed) == (0, 400) and exits(fast) > 0


def test_another_backend_is_given_the_segments_around_a_break():
    shapes = []

    def backend(gm, examples):
        shapes.append([tuple(t.shape) for t in examples])
        return gm.forward

    def f(t):
        y = LIN(t)
        DO(UNKNOWN)
        return y.relu().sum(1)

    fast = framelift.compile(f, backend=backend)
    same(fast, f)
    assert shapes == [[(3, 4), (4, 4), (4,)], [(3, 4)]] and exits(fast) == 0
