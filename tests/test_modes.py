"""Inference mode and autocast that a program enters by itself: graphs, breaks and side exits inside them."""

import pytest
import torch

import framelift
from exits import DO, flat, x
from mode_programs import (
    AT,
    BREAKS,
    KEPT,
    LIN,
    LOG,
    PROGRAMS,
    SEEDS,
    UNKNOWN,
    fresh,  # noqa: F401  (a fixture of every test)
    modes,
    reasons,
    same,
    tell,
    trace,
)


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_graphs_are_split_at_the_break_alone(f):
    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    assert len(trace(fast)["breaks"]) == BREAKS.get(f, 1) and framelift.explain(fast).native == 0
    assert all(b["exits"] == 0 for b in trace(fast)["breaks"])
    assert set(reasons(fast)) == {"operator.methodcaller"}


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_what_unknown_code_raises_leaves_the_modes(f):
    def handled(t):
        try:
            return f(t)
        except KeyError as e:
            tell(str(e))
            return t @ LIN.weight

    def fail():
        if len(LOG) == AT[0]:
            raise KeyError(f"break {AT[0]}")

    for g in (f, handled):
        fast = framelift.compile(g)
        same(fast, g, *SEEDS[:2])
        for AT[0] in (1, 2, 3):
            UNKNOWN.action = fail
            same(fast, g, *SEEDS[:2])
            UNKNOWN.action = lambda: None
            same(fast, g, *SEEDS[:2])


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_calls_that_leave_go_on_in_the_modes(f):
    """At each break in turn unknown code changes what the program reads."""

    def g(t):
        KEPT["n"] = 0
        answer = f(t)
        return answer, t * KEPT["n"]

    def count():
        KEPT["n"] = KEPT.get("n", 0) + (len(LOG) == AT[0])

    fast = framelift.compile(g)
    same(fast, g, *SEEDS[:2])
    for AT[0] in (1, 2, 3, 4, 1, 2):
        UNKNOWN.action = count
        same(fast, g, *SEEDS[:3])


@pytest.mark.parametrize("what", ["enabled", "cache"])
@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_unknown_code_that_changes_the_modes(f, what):
    """A state that unknown code leaves behind is the program's: eager's answer, or its error, whatever that is."""

    def change():
        if len(LOG) != AT[0]:
            return
        if what == "enabled":
            torch.set_autocast_enabled("cpu", not torch.is_autocast_enabled("cpu"))
        else:
            torch.set_autocast_cache_enabled(not torch.is_autocast_cache_enabled())

    def told(g):
        LOG.clear()
        try:
            answer = [(t.dtype, t.is_inference()) for t in flat(g(SEEDS[1]))]
        except RuntimeError as e:
            answer = [str(e)]
        after = modes()
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_cache_enabled(True)
        return answer, after, list(LOG)

    fast = framelift.compile(f)
    same(fast, f, *SEEDS[:2])
    for AT[0] in (1, 2, 1):
        UNKNOWN.action = change
        assert told(fast) == told(f)
        UNKNOWN.action = lambda: None
        same(fast, f, *SEEDS[:2])
    first = framelift.compile(f)
    AT[0], UNKNOWN.action = 1, change
    assert told(first) == told(f)


@torch.inference_mode()
def chooses(t):
    y = LIN(t)
    if y.sum().item() > 0:
        y = torch.relu(y)
        z = y + 1
    else:
        z = y - 1
    return z @ LIN.weight


@torch.autocast("cpu", dtype=torch.bfloat16)
def chooses_in_autocast(t):
    y = LIN(t)
    if y.sum() > 0:
        tell("more")
        z = LIN(y)
    else:
        z = y - 1
        tell("less")
        z = torch.mm(z, LIN.weight)
    return z, y


def loops(t):
    n = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        while t.abs().sum() > 4 and n < 6:
            t = t.float() * 0.7
            DO(UNKNOWN)
            t = torch.mm(t, torch.eye(4))
            n += 1
    return t, n


@pytest.mark.parametrize("f", [chooses, chooses_in_autocast, loops], ids=lambda f: f.__name__)
def test_either_way_in_a_mode(f):
    fast = framelift.compile(f)
    same(fast, f, *SEEDS, *SEEDS)
    assert framelift.explain(fast).native == 0


def raises_after_a_break(t, i):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        y = LIN(t)
        DO(UNKNOWN)
        z = torch.nn.functional.embedding(i, y)
    return z


def handles_after_a_break(t, i):
    try:
        return raises_after_a_break(t, i)
    except IndexError:
        tell("handled")
        return torch.mm(t, LIN.weight)


@pytest.mark.parametrize("f", [raises_after_a_break, handles_after_a_break], ids=lambda f: f.__name__)
def test_an_operator_that_raises_after_a_break(f):
    fast = framelift.compile(f)
    for i in (0, 1, 9, 2, 9):
        same(fast, f, (x(), torch.tensor([i])))


def writes_across(t):
    y = LIN(t)
    v = y[0]
    with torch.inference_mode():
        y.add_(1)
        w = y.view(-1)
        z = LIN(y)
        z.mul_(2)
        DO(UNKNOWN)
        y.mul_(3)
        z.add_(1)
    return y, v, w, z, t


def view_across(t):
    y = LIN(t)
    with torch.inference_mode():
        return y.view(-1), y[0] * 2, y.t() + 1, LIN.weight.t(), t.view(-1), t.t()[0]


def view_of_an_inference_tensor(t):
    with torch.inference_mode():
        y = LIN(t)
        z = y * 2
    w = y.view(-1)
    DO(UNKNOWN)
    return w, y[0], z[1] + 1, torch.relu(z).view(-1)


def writes_outside(t):
    with torch.inference_mode():
        y = LIN(t)
    y.add_(1)
    return y


def writes_outside_after_a_break(t):
    with torch.inference_mode():
        y = LIN(t)
        DO(UNKNOWN)
    y.add_(1)
    return y


def writes_an_argument(t):
    with torch.inference_mode():
        t.add_(1)
        y = LIN(t)
    return y, t


def dynamic(t):
    with torch.inference_mode():
        i = torch.nonzero(t > -10)
        y = t[t > -10]
    return i, y, i + 1, torch.nonzero(t > -10)


def leaves_inference(t):
    with torch.inference_mode(False):
        y = t * 2
        z = y.view(-1)
    return y, z, LIN(t)


@pytest.mark.parametrize(
    "f",
    [
        writes_across,
        view_across,
        view_of_an_inference_tensor,
        writes_outside,
        writes_outside_after_a_break,
        writes_an_argument,
        dynamic,
        leaves_inference,
    ],
    ids=lambda f: f.__name__,
)
def test_which_tensors_are_inference_tensors(f):
    for inference in (False, True):
        fast = framelift.compile(f)
        with torch.inference_mode(inference), torch.no_grad():
            same(fast, f, *SEEDS)
