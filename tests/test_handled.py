"""Breaks while an exception is being handled: in except and finally blocks, and in __exit__."""

import contextlib
import gc
import io
import logging
import sys
import traceback
import weakref

import pytest
import torch

import framelift
from exits import DO, assert_same, flat, x

torch.manual_seed(0)
LIN = torch.nn.Linear(4, 4).eval()
LOG = []
KEPT = {}
AT = [0]
OUT = io.StringIO()


def chain(e):
    """What an exception is, with its lines, and those that it came from."""
    if e is None:
        return None
    lines = [(s.name, s.lineno, s.line) for s in traceback.extract_tb(e.__traceback__) if s.filename == __file__]
    own = lines[1:] if lines and lines[0][0] == "run" else lines
    more = {k: v for k, v in vars(e).items() if not isinstance(v, torch.Tensor)}
    return (
        type(e),
        str(e),
        own,
        more,
        getattr(e, "name", None),
        chain(e.__cause__),
        chain(e.__context__),
        e.__suppress_context__,
    )


class Unknown:
    """Called through C (methodcaller); it tells of the exception that is being handled."""

    def __init__(self):
        self.action = lambda: None

    def do(self):
        e = sys.exc_info()[1]
        shown = [s for s in traceback.format_exc().splitlines() if "framelift" not in s]
        LOG.append((chain(e), shown))
        return self.action()


UNKNOWN = Unknown()


@pytest.fixture(autouse=True)
def fresh():
    LOG.clear()
    KEPT.clear()
    UNKNOWN.action = lambda: None
    with torch.no_grad():
        yield


def run(f, *args):
    LOG.clear()
    OUT.seek(0)
    OUT.truncate()
    before = sys.exc_info()[1]
    try:
        answer, error = f(*args), None
    except Exception as e:  # noqa: BLE001
        answer, error = [], chain(e)
    assert sys.exc_info()[1] is before
    return flat(answer), error, list(LOG), OUT.getvalue()


def same(fast, plain, *calls):
    for args in calls:
        args = args if isinstance(args, tuple) else (args,)
        want, *told = run(plain, *args)
        got, *got_told = run(fast, *args)
        assert got_told == told
        assert_same(got, want)


def trace(fast):
    assert len(framelift.explain(fast).raw["traces"]) == 1, str(framelift.explain(fast))
    (t,) = framelift.explain(fast).raw["traces"]
    return t


SEEDS = [x(s) for s in range(5)]
TABLE = {"scale": 2.0}


class Odd(ValueError):
    """It has what is not in its arguments."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


class Holds(Exception):
    pass


def missing(t):
    y = LIN(t)
    try:
        s = TABLE["shift"]
    except KeyError:
        DO(UNKNOWN)
        s = 3
    return LIN(y) * s


def named(t):
    y = LIN(t)
    try:
        return y * TABLE["shift"]
    except KeyError as e:
        DO(UNKNOWN)
        LOG.append((str(e), e.args))
        y = LIN(y)
    DO(UNKNOWN)
    return y + 1


def check(y, n):
    y = LIN(y)
    if n > 2:
        raise Odd(f"too many: {n}", n)
    return y


def from_a_callee(t):
    y = LIN(t)
    try:
        y = check(y, 3)
    except Odd as e:
        DO(UNKNOWN)
        y = y * e.code
        LOG.append(vars(e))
    return LIN(y)


def in_finally(t):
    y = LIN(t)
    try:
        try:
            y = y + 1
            raise Odd("out", 7)
        finally:
            DO(UNKNOWN)
            y = LIN(y)
    except Odd as e:
        DO(UNKNOWN)
        y = y * e.code
    return y


def nested(t):
    y = LIN(t)
    try:
        raise KeyError("outer")
    except KeyError:
        DO(UNKNOWN)
        try:
            check(y, 5)
        except ValueError:
            DO(UNKNOWN)
            y = LIN(y)
        DO(UNKNOWN)
        y = y - 1
    DO(UNKNOWN)
    return y


def raised_from(t):
    y = LIN(t)
    try:
        try:
            raise KeyError("cause")
        except KeyError as e:
            DO(UNKNOWN)
            raise RuntimeError("effect") from e
    except RuntimeError:
        DO(UNKNOWN)
        y = LIN(y)
    try:
        try:
            y.no_such_thing  # noqa: B018
        except AttributeError:
            DO(UNKNOWN)
            raise IndexError("another")  # noqa: B904
    except LookupError:
        DO(UNKNOWN)
        y = y * 2
    return y


def raises_again(t):
    y = LIN(t)
    try:
        check(y, 4)
    except Odd:
        DO(UNKNOWN)
        if y.sum() > 0:
            y = LIN(y)
        raise


def raises_another(t):
    y = LIN(t)
    try:
        check(y, 4)
    except Odd as e:
        DO(UNKNOWN)
        raise TypeError(str(e.code)) from None


def tries_again(t):
    y = LIN(t)
    for n in (5, 4, 1):
        try:
            y = check(y, n) + n
            break
        except Odd as e:
            LOG.append(str(e))
            DO(UNKNOWN)
            y = y * 2
    return y


class Manager:
    def __init__(self, swallows):
        self.swallows = swallows

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        LOG.append((kind, str(value), tb is not None and tb.tb_lineno))
        DO(UNKNOWN)
        return self.swallows


def managed(t):
    y = LIN(t)
    with Manager(True):
        y = LIN(y)
        raise Odd("in it", 1)
    try:
        with Manager(False):
            check(y, 9)
    except Odd:
        y = y + 1
        DO(UNKNOWN)
    return LIN(y)


class Enters(Manager):
    def __enter__(self):
        DO(UNKNOWN)
        LOG.append("entered")
        return 3


def entered(t):
    y = LIN(t)
    try:
        TABLE["none"]  # noqa: B018
    except KeyError:
        with Enters(True) as n, Enters(False) as k:
            y = LIN(y) * n
            check(y, k)
    return y


def suppressed(t):
    y = LIN(t)
    with contextlib.suppress(KeyError):
        try:
            y = y * TABLE["none"]
        finally:
            DO(UNKNOWN)
    return LIN(y)


def holds_a_tensor(t):
    y = LIN(t)
    try:
        raise Holds(y, "text")
    except Holds as e:
        DO(UNKNOWN)
        return LIN(e.args[0]), len(e.args)


def kept_for_later(t):
    y, error = LIN(t), None
    try:
        check(y, 3)
    except Odd as e:
        error = e
    DO(UNKNOWN)
    return LIN(y) * error.code


def passed_on(t):
    y = LIN(t)
    try:
        check(y, 3)
    except Odd:
        y = helper(y)
    return y


def helper(y):
    DO(UNKNOWN)
    try:
        raise
    except Odd as e:
        DO(UNKNOWN)
        return LIN(y) * e.code


PROGRAMS = {
    missing: 1,
    named: 2,
    from_a_callee: 1,
    in_finally: 2,
    nested: 4,
    raised_from: 4,
    tries_again: 2,
    managed: 3,
    entered: 4,
    suppressed: 1,
    holds_a_tensor: 1,
    kept_for_later: 1,
    passed_on: 2,
}
RAISE = [raises_again, raises_another]
each = pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
each_and_more = pytest.mark.parametrize("f", [*PROGRAMS, *RAISE], ids=lambda f: f.__name__)


@each
def test_the_graph_is_split_at_the_break_alone(f):
    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    breaks = trace(fast)["breaks"]
    assert len(breaks) == PROGRAMS[f] and framelift.explain(fast).native == 0
    assert all(b["exits"] == 0 and b["detail"] == "operator.methodcaller" for b in breaks)


@each_and_more
def test_what_unknown_code_raises_is_handled_in_turn(f):
    class Other(Exception):
        pass

    def fail():
        if len(LOG) >= AT[0]:
            raise Other("from unknown code")

    fast = framelift.compile(f)
    same(fast, f, *SEEDS[:2])
    for AT[0] in (1, 2, 3, 4):
        UNKNOWN.action = fail
        same(fast, f, *SEEDS[:3])
        UNKNOWN.action = lambda: None
        same(fast, f, *SEEDS[:2])


@each_and_more
def test_calls_that_leave_go_on_handling_it(f):
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


@each_and_more
def test_unknown_code_that_keeps_or_changes_the_exception(f):
    def keep():
        KEPT.setdefault("all", []).append(sys.exc_info()[1])

    def change():
        e = sys.exc_info()[1]
        if e is not None:
            e.args = ("changed",)
            e.note = len(LOG)

    fast = framelift.compile(f)
    same(fast, f, *SEEDS[:2])
    for action in (keep, change, lambda: None):
        UNKNOWN.action = action
        same(fast, f, *SEEDS[:3])
        first = framelift.compile(f)
        same(first, f, *SEEDS[:3])


@each_and_more
def test_a_call_made_while_an_exception_is_handled(f):
    fast = framelift.compile(f)
    for _ in range(2):
        same(fast, f, *SEEDS[:2])
        try:
            raise LookupError("the caller's")
        except LookupError:
            same(fast, f, *SEEDS[:2])
            first = framelift.compile(f)
            same(first, f, *SEEDS[:2])


def chooses(t, n=3):
    y = LIN(t)
    try:
        y = y * TABLE["none"]
    except KeyError as e:
        if y.sum().item() > 0:
            print("more", e, file=OUT)
            y = LIN(y)
        else:
            y = y - 1
            print("less", repr(e), file=OUT)
            try:
                y = torch.nn.functional.embedding((y[0] * 3).long().abs() % n, y)
            except IndexError:
                print("out of range", file=OUT)
    return LIN(y)


def test_either_way_in_a_handler():
    fast = framelift.compile(chooses)
    same(fast, chooses, *SEEDS, *[x(s) for s in range(5, 12)], *SEEDS)
    assert framelift.explain(fast).native == 0


def logs(t):
    y = LIN(t)
    try:
        check(y, 8)
    except Odd:
        logging.getLogger("framelift.test").exception("it failed")
        y = LIN(y)
    return y


def test_a_log_of_the_exception():
    stream = logging.StreamHandler(OUT)
    logging.getLogger("framelift.test").addHandler(stream)
    try:
        fast = framelift.compile(logs)
        same(fast, logs, *SEEDS)
        assert "too many: 8" in OUT.getvalue() and "check(y, 8)" in OUT.getvalue()
        assert framelift.explain(fast).replayed >= 3
    finally:
        logging.getLogger("framelift.test").removeHandler(stream)


GIVEN = ValueError("there before")


def raises_a_given_one(t):
    y = LIN(t)
    try:
        raise GIVEN
    except ValueError:
        y = y + 1
        OUT.write("handled")
    return LIN(y)


def test_an_exception_that_was_there_before():
    fast = framelift.compile(raises_a_given_one)
    for s in range(3):
        want = raises_a_given_one(x(s))
        length = len(traceback.extract_tb(GIVEN.__traceback__))
        torch.testing.assert_close(fast(x(s)), want)
        assert len(traceback.extract_tb(GIVEN.__traceback__)) > length


def test_nothing_is_leaked():
    """Not even until the garbage collector comes."""
    programs = [framelift.compile(f) for f in (from_a_callee, tries_again, raises_again)]
    refs = []

    def many(n):
        for s in range(n):
            for fast in programs:
                LOG.clear()
                with contextlib.suppress(Odd):
                    fast(x(s))

    def note():
        refs.append(weakref.ref(sys.exc_info()[1]))

    many(2)
    gc.collect()
    gc.disable()
    try:
        UNKNOWN.action = note
        many(20)
        UNKNOWN.action = lambda: None
        assert len(refs) == 80 and sum(r() is not None for r in refs) == 0
    finally:
        gc.enable()
    gc.collect()
    before = len(gc.get_objects())
    many(30)
    gc.collect()
    assert abs(len(gc.get_objects()) - before) < 50
