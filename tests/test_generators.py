"""Breaks in the frames of generators that the program drives by a loop, by next() or by a with statement."""

import contextlib
import gc
import sys
import traceback

import pytest
import torch

import framelift
from exits import DO, assert_same, flat, x

torch.manual_seed(0)
LIN = torch.nn.Linear(4, 4).eval()
LOG = []
KEPT = {}
AT = [0]


class Unknown:
    """Called through C (methodcaller); it tells of the frames of this file that it is called in."""

    def do(self):
        f, seen = sys._getframe(), []
        while f and f.f_code.co_name != "run":
            if f.f_code.co_filename == __file__:
                seen.append((f.f_code.co_name, f.f_lineno, sorted(f.f_locals)))
            f = f.f_back
        LOG.append((seen, torch.is_inference_mode_enabled()))
        return self.action()

    def action(self):
        return None


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
    try:
        answer, error = f(*args), None
    except Exception as e:  # noqa: BLE001
        lines = [(s.name, s.lineno) for s in traceback.extract_tb(e.__traceback__) if s.filename == __file__][1:]
        answer, error = [], (type(e), str(e), lines, type(e.__context__))
    return flat(answer), error, list(LOG)


def same(fast, plain, *calls):
    for t in calls:
        want, *told = run(plain, t)
        got, *got_told = run(fast, t)
        assert got_told == told
        assert_same(got, want)


def trace(fast):
    assert len(framelift.explain(fast).raw["traces"]) == 1, str(framelift.explain(fast))
    (t,) = framelift.explain(fast).raw["traces"]
    return t


SEEDS = [x(s) for s in range(5)]


def pieces(y, n):
    for i in range(n):
        y = LIN(y)
        DO(UNKNOWN)
        yield y * i
    DO(UNKNOWN)


def loop(t):
    total = t * 0
    for piece in pieces(LIN(t), 2):
        total = total + piece
    return LIN(total)


def loop_with_breaks_in_its_body(t):
    total = t * 0
    for i, piece in [(0, t)]:
        total = total + piece + i
    for piece in pieces(LIN(t), 2):
        total = total + piece
        DO(UNKNOWN)
    return LIN(total)


def left_early(t):
    y = LIN(t)
    for i, piece in enumerate(list(range(3))):
        y = y + i * piece
    turns = iter((False, True, True))
    for piece in pieces(y, 3):
        y = LIN(piece)
        if next(turns):
            break
    else:
        y = y * 100
    return y + 1


def to_the_end(t):
    y = LIN(t)
    for piece in pieces(y, 1):
        y = y + piece
    else:
        y = y * 100
    return LIN(y)


def by_next(t):
    g = pieces(LIN(t), 2)
    y = next(g)
    y = y + next(g)
    try:
        next(g)
    except StopIteration as e:
        y = y + 1
        LOG.append(e.value)
    return LIN(y)


def gives_a_value(y):
    y = LIN(y)
    yield y
    DO(UNKNOWN)
    return 7


def value_at_the_end(t):
    g = gives_a_value(t)
    y = next(g)
    try:
        next(g)
    except StopIteration as e:
        y = y * e.value
    return LIN(y)


def outer_pieces(y):
    for piece in pieces(y, 2):
        piece = LIN(piece)
        DO(UNKNOWN)
        yield piece - 1


def nested(t):
    y = LIN(t)
    for piece in outer_pieces(y):
        y = y + piece
    return y


def callee(y):
    y = LIN(y)
    DO(UNKNOWN)
    return y


def in_a_callee(t):
    y = LIN(t)
    for v in (callee(u) for u in (y, y + 1)):
        y = y + v
    return y


@contextlib.contextmanager
def timed(name):
    DO(UNKNOWN)
    LOG.append(name)
    yield len(name)
    DO(UNKNOWN)
    LOG.append("end of " + name)


def managed(t):
    with timed("first") as n:
        y = LIN(t) * n
        with timed("inner"):
            y = LIN(y)
    return LIN(y)


def in_inference_mode(t):
    with torch.inference_mode():
        y = LIN(t)
        for piece in pieces(y, 2):
            y = y + piece
    return y, t + 1


def guarded_pieces(y):
    try:
        y = LIN(y)
        DO(UNKNOWN)
        yield y
    finally:
        LOG.append("closed")
        DO(UNKNOWN)


def with_a_finally(t):
    y = LIN(t)
    for piece in guarded_pieces(y):
        y = y + piece
    return LIN(y)


def below_c_code(t):
    y = LIN(t)
    return sum(pieces(y, 2)), list(map(callee, [y]))


def delegates(y):
    yield from pieces(y, 2)


def delegated(t):
    y = LIN(t)
    for piece in delegates(y):
        y = y + piece
    return y


PROGRAMS = {
    loop: 3,
    loop_with_breaks_in_its_body: 5,
    left_early: 2,
    to_the_end: 2,
    by_next: 3,
    value_at_the_end: 1,
    nested: 5,
    in_a_callee: 2,
    managed: 4,
    in_inference_mode: 3,
    with_a_finally: 2,
}
NATIVE = [below_c_code, delegated]
each = pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
each_and_more = pytest.mark.parametrize("f", [*PROGRAMS, *NATIVE], ids=lambda f: f.__name__)


@each
def test_the_graph_is_split_at_the_break_alone(f):
    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    breaks = trace(fast)["breaks"]
    assert len(breaks) == PROGRAMS[f] and framelift.explain(fast).native == 0
    assert all(b["exits"] == 0 and b["detail"] == "operator.methodcaller" for b in breaks)


@pytest.mark.parametrize("f", NATIVE, ids=lambda f: f.__name__)
def test_others_run_natively(f):
    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    assert framelift.explain(fast).recorded == 0


@each_and_more
@pytest.mark.parametrize("error", [KeyError, StopIteration, GeneratorExit], ids=lambda e: e.__name__)
def test_what_unknown_code_raises(f, error):
    def fail():
        if len(LOG) == AT[0]:
            raise error("from unknown code")

    def handled(t):
        try:
            return f(t)
        except (KeyError, RuntimeError, StopIteration, GeneratorExit) as e:
            LOG.append((type(e), str(e)))
            return LIN(t)

    for g in (f, handled) if error is not GeneratorExit else (handled,):
        fast = framelift.compile(g)
        same(fast, g, *SEEDS[:2])
        for AT[0] in (1, 2, 3, 4, 5):
            UNKNOWN.action = fail
            same(fast, g, *SEEDS[:3])
            UNKNOWN.action = lambda: None
            same(fast, g, *SEEDS[:2])


@each_and_more
def test_calls_that_leave_go_on_in_the_generator(f):
    def g(t):
        KEPT["n"] = 0
        answer = f(t)
        return answer, t * KEPT["n"]

    def count():
        KEPT["n"] = KEPT.get("n", 0) + (len(LOG) == AT[0])

    fast = framelift.compile(g)
    same(fast, g, *SEEDS[:2])
    for AT[0] in (1, 2, 3, 4, 5, 1, 2):
        UNKNOWN.action = count
        same(fast, g, *SEEDS[:3])
        UNKNOWN.action = lambda: None
        same(fast, g, *SEEDS[:1])


def choosing(y, n):
    for i in range(n):
        y = LIN(y)
        y = y * 2 if y.sum().item() > 0 else y - 1
        yield y + i


def chooses(t):
    total = t
    for piece in choosing(t, 3):
        total = total + piece
    return total


def test_either_way_in_a_generator():
    fast = framelift.compile(chooses)
    same(fast, chooses, *[x(s) for s in range(12)], *SEEDS)
    assert framelift.explain(fast).native == 0


def in_a_loop_and_after_it(t):
    KEPT["n"] = 0
    y = loop(t)
    DO(UNKNOWN)
    return LIN(y) * KEPT["n"]


@pytest.mark.parametrize("f", [loop, in_a_loop_and_after_it, managed], ids=lambda f: f.__name__)
def test_a_call_made_while_an_exception_is_handled(f):
    class Tells:
        def do(self):
            LOG.append(type(sys.exc_info()[1]))
            KEPT["n"] = KEPT.get("n", 0) + (len(LOG) == AT[0])

    fast = framelift.compile(f)
    UNKNOWN.action = Tells().do
    for AT[0] in (0, 1, 2, 3):
        try:
            raise LookupError("the caller's")
        except LookupError:
            same(fast, f, *SEEDS)
            same(framelift.compile(f), f, *SEEDS)
            assert isinstance(sys.exc_info()[1], LookupError)
        same(fast, f, *SEEDS)
        assert sys.exc_info()[1] is None


def test_nothing_is_leaked():
    programs = [framelift.compile(f) for f in (loop, managed, nested, by_next)]

    def fail():
        if len(LOG) == 2:
            raise KeyError

    def many(n):
        for s in range(n):
            UNKNOWN.action = fail if s % 3 == 0 else lambda: None
            for fast in programs:
                LOG.clear()
                with contextlib.suppress(KeyError):
                    fast(x(s % 4))
        LOG.clear()

    many(4)
    gc.collect()
    before = len(gc.get_objects())
    many(40)
    gc.collect()
    assert abs(len(gc.get_objects()) - before) < 50


class Adapted(torch.nn.Module):
    """As peft calls its models: keyword arguments go through context managers within context managers."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(4, 4)
        self.names = ()

    @contextlib.contextmanager
    def base_hooks(self, *args, **kwargs):
        names = kwargs.pop("names", None)
        if names is None:
            yield
            return
        self.names = names
        yield
        self.names = ()

    @contextlib.contextmanager
    def hooks(self, *args, **kwargs):
        with self.base_hooks(*args, **kwargs):
            yield

    def forward(self, *args, **kwargs):
        with self.hooks(*args, **kwargs):
            kwargs = {k: v for k, v in kwargs.items() if k != "names"}
            return self.base(*args, **kwargs) * (1 + len(self.names))


def test_keywords_that_generators_are_given_are_the_calls_own():
    model = Adapted()
    fast = framelift.compile(model)
    for k in range(3):
        assert torch.equal(fast(input=x(k)), model(input=x(k)))
        assert torch.equal(fast(x(k), names=("a",)), model(x(k), names=("a",)))
    e = framelift.explain(fast)
    assert e.recorded == 2 and e.replayed == 4 and not e.breaks
