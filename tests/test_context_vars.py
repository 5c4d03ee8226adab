"""Context variables that are set when unknown code is called: it sees what it would see in eager, as do the frames."""

from contextvars import ContextVar

import numpy as np
import pytest
import torch

import framelift

LIN = torch.nn.Linear(4, 4).eval()
VAR, OTHER = ContextVar("framelift_test", default=None), ContextVar("framelift_test_other")
SEEN = []


def unknown(do):
    """`do` called by C code that is not known."""
    return np.frompyfunc(lambda _: do(), 1, 1)


def check_equal(a, b):
    assert a == b


def check(program, counts=(1, 4, 0)):
    fast = framelift.compile(program)
    with torch.no_grad():
        for k in range(5):
            x = torch.randn(3, 4) + k
            SEEN.clear()
            expected, seen = program(x), list(SEEN)
            SEEN.clear()
            got = fast(x)
            for a, b in zip(*[y if isinstance(y, tuple) else (y, None) for y in (got, expected)], strict=True):
                torch.testing.assert_close(a, b) if isinstance(a, torch.Tensor) else check_equal(a, b)
            assert seen == SEEN and VAR.get() is None and OTHER.get("nothing") == "nothing"
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == counts, e
    return e


look = unknown(lambda: SEEN.append((repr(VAR.get()), OTHER.get("nothing"))) or 2.0)


def collecting(x):
    """As transformers collects outputs."""
    collected = {"names": []}
    token = VAR.set(collected)
    try:
        y = LIN(x) * look(0)
        if VAR.get() is not None and "names" in VAR.get():
            VAR.get()["names"].append("first")
        return LIN(y) * look(1), collected
    finally:
        VAR.reset(token)


def test_what_is_set_is_seen():
    e = check(collecting)
    assert e.segments >= 2 and any("ufunc" in b.detail for b in e.breaks)


def test_sets_nest():
    def program(x):
        first = VAR.set({})
        other = OTHER.set("other")
        second = VAR.set({"depth": 2})
        x = LIN(x) * look(0)
        VAR.reset(second)
        del second
        x = LIN(x) * look(0)
        OTHER.reset(other)
        del other
        x = LIN(x) * look(0)
        VAR.reset(first)
        return x * 2

    check(program)


def test_what_was_reset_is_not_set():
    ask = unknown(lambda: SEEN.append(OTHER.get("nothing")) or 2.0)

    def program(x):
        token = OTHER.set("gone")
        x = LIN(x)
        OTHER.reset(token)
        del token
        return x * ask(0)

    check(program)


def change():
    VAR.get()["more"] = len(SEEN)
    return 2.0


def keep():
    SEEN.append(VAR.get())
    return 2.0


def set_again():
    VAR.set({"again": 1})
    return 2.0


@pytest.mark.parametrize("do", [change, keep, set_again])
def test_what_unknown_code_changes_is_not_lost(do):
    """Then nothing is recorded, or the program goes on by itself."""
    once = []
    ask = unknown(lambda: do() if once else 2.0)

    def program(x):
        token = VAR.set({})
        try:
            y = LIN(x) * ask(0)
            return y, dict(VAR.get())
        finally:
            VAR.reset(token)

    fast = framelift.compile(program)
    with torch.no_grad():
        for k in range(6):
            if k == 3:
                once.append(True)
            x = torch.randn(3, 4)
            (a, b), (c, d) = fast(x), program(x)
            torch.testing.assert_close(a, c)
            assert b == d and VAR.get() is None
    e = framelift.explain(fast)
    assert e.recorded == 1 and e.replayed >= 2


def test_an_error_leaves_nothing_set():
    fail = []

    def raises():
        if fail:
            raise KeyError("no")
        return 2.0

    ask = unknown(raises)

    def program(x):
        token = VAR.set({})
        try:
            return LIN(x) * ask(0)
        finally:
            VAR.reset(token)

    fast = framelift.compile(program)
    x = torch.randn(3, 4)
    with torch.no_grad():
        for k in range(4):
            if k == 2:
                fail.append(1)
            for f in (program, fast):
                if fail:
                    with pytest.raises(KeyError, match="no"):
                        f(x)
                else:
                    f(x)
                assert VAR.get() is None


class Collector:
    """As transformers has it: a context variable, but for a compiler an attribute."""

    value = None

    def __init__(self):
        self.compiling = False

    def set(self, value):
        if not torch.compiler.is_compiling():
            return VAR.set(value)
        self.compiling, self.value = True, value
        return None

    def get(self):
        return self.value if self.compiling else VAR.get()

    def reset(self, token):
        if token is None:
            self.compiling, self.value = False, None
        else:
            VAR.reset(token)


def test_a_program_that_asks_whether_it_is_compiled():
    collector = Collector()
    look = unknown(lambda: SEEN.append(repr(collector.get())) or 2.0)

    def program(x):
        token = collector.set({})
        try:
            return LIN(x) * look(0)
        finally:
            collector.reset(token)

    check(program)

    def other(x):
        token = collector.set({})
        try:
            return LIN(x) * (3.0 if torch.compiler.is_compiling() else look(0))
        finally:
            collector.reset(token)

    assert len(check(other).breaks) == 1
