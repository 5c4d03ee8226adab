"""Inference mode and autocast that a program enters by itself: graphs, breaks and side exits inside them."""

import contextlib
import gc
import operator
import threading
import traceback

import pytest
import torch

import framelift
from exits import DO, assert_same, flat, x

torch.manual_seed(0)
LIN = torch.nn.Linear(4, 4).eval()
LOG = []
KEPT = {}
AT = [0]  # the break at which unknown code does something


def modes():
    """What torch has of modes, with the nesting of autocast."""
    torch.autocast_increment_nesting()
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.autocast_decrement_nesting(),
    )


class Unknown:
    """Called through C (methodcaller), so that nothing of it is seen; it tells of the modes that it finds."""

    def __init__(self):
        self.action = lambda: None

    def do(self):
        LOG.append((modes(), torch.ones(2).is_inference(), torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype))
        return self.action()


UNKNOWN = Unknown()


def tell(*values):
    LOG.append((modes(), *values))


TELL = operator.methodcaller("__call__")


class Teller:
    def __call__(self, *values):
        tell(*values)


@pytest.fixture(autouse=True)
def fresh():
    LOG.clear()
    KEPT.clear()
    UNKNOWN.action = lambda: None
    with torch.no_grad():
        yield


def run(f, *args):
    """The answer or the error with the program's lines, what was logged, and the modes afterwards."""
    LOG.clear()
    before = modes()
    try:
        answer, error = f(*args), None
    except Exception as e:  # noqa: BLE001
        lines = [(s.name, s.lineno) for s in traceback.extract_tb(e.__traceback__) if s.filename == __file__][1:]
        answer, error = [], (type(e), str(e), lines)
    assert modes() == before
    return flat(answer), error, list(LOG)


def same(fast, plain, *calls):
    for args in calls:
        args = args if isinstance(args, tuple) else (args,)
        want, error, log = run(plain, *[a.clone() if isinstance(a, torch.Tensor) else a for a in args])
        got, got_error, got_log = run(fast, *[a.clone() if isinstance(a, torch.Tensor) else a for a in args])
        assert got_error == error and got_log == log
        assert_same(got, want)


def trace(fast):
    (t,) = framelift.explain(fast).raw["traces"]
    return t


def reasons(fast):
    return [b["detail"] for b in trace(fast)["breaks"]]


SEEDS = [x(s) for s in range(6)]


@torch.inference_mode()
def whole_inference(t):
    y = LIN(t)
    DO(UNKNOWN)
    return y * 2, t.view(-1)


@torch.autocast("cpu", dtype=torch.bfloat16)
def whole_autocast(t):
    y = LIN(t)
    DO(UNKNOWN)
    return LIN(y) * 2, y


def with_inference(t):
    y = LIN(t)
    with torch.inference_mode():
        z = LIN(y)
        DO(UNKNOWN)
        z = z + 1
    DO(UNKNOWN)
    return y * 2, z, z * y


def with_autocast(t):
    y = LIN(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = LIN(y)
        DO(UNKNOWN)
        with torch.autocast("cpu", enabled=False):
            z = z.float() @ LIN.weight
            DO(UNKNOWN)
        z = z @ LIN.weight
        DO(UNKNOWN)
    DO(UNKNOWN)
    return y @ LIN.weight, z


def autocast_in_inference(t):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = LIN(t)
        DO(UNKNOWN)
        y = LIN(y)
    return y


def inference_in_autocast(t):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            y = LIN(t)
            DO(UNKNOWN)
            y = LIN(y)
        DO(UNKNOWN)
        z = torch.mm(t, t.t())
    return y, z


def nested_inference(t):
    with torch.inference_mode():
        with torch.inference_mode():
            y = LIN(t)
            DO(UNKNOWN)
            y = LIN(y)
        DO(UNKNOWN)
        y = y + 1
    DO(UNKNOWN)
    return y, torch.relu(t)


def by_hand(t):
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    try:
        y = LIN(t)
        DO(UNKNOWN)
        y = LIN(y)
    finally:
        torch.set_autocast_enabled("cpu", False)
    return y


def without_cache(t):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        y = LIN(t)
        DO(UNKNOWN)
        return LIN(y)


def two_in_turn(t):
    with torch.autocast("cpu", torch.bfloat16):
        y = LIN(t)
        DO(UNKNOWN)
    with torch.autocast("cpu", torch.float16):
        z = LIN(t)
        DO(UNKNOWN)
        return y, LIN(z)


def callee(y):
    y = LIN(y)
    DO(UNKNOWN)
    return y - 1


def in_a_callee(t):
    with torch.inference_mode():
        y = callee(LIN(t))
        return [callee(v) for v in (y, y + 1)]


@torch.inference_mode()
def inner(t):
    y = LIN(t)
    DO(UNKNOWN)
    return torch.relu(y)


@torch.autocast("cpu", dtype=torch.bfloat16)
def outer(t):
    y = LIN(t)
    z = inner(y)
    DO(UNKNOWN)
    return y, z, LIN(z)


def reused(t):
    mode = torch.inference_mode()
    with mode:
        y = LIN(t)
        DO(UNKNOWN)
    DO(UNKNOWN)
    with mode:
        z = LIN(y)
        DO(UNKNOWN)
    DO(UNKNOWN)
    return y, z, t + 1


def stack(t):
    with contextlib.ExitStack() as s:
        s.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        s.enter_context(torch.inference_mode())
        y = LIN(t)
        DO(UNKNOWN)
        return LIN(y)


PROGRAMS = [
    whole_inference,
    whole_autocast,
    with_inference,
    with_autocast,
    autocast_in_inference,
    inference_in_autocast,
    nested_inference,
    by_hand,
    without_cache,
    two_in_turn,
    in_a_callee,
    outer,
    reused,
    stack,
]
BREAKS = {
    with_inference: 2,
    with_autocast: 4,
    inference_in_autocast: 2,
    nested_inference: 3,
    two_in_turn: 2,
    in_a_callee: 3,
    outer: 2,
    reused: 4,
}


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


def test_the_same_model_in_and_out_of_inference_mode():
    fast = framelift.compile(with_inference)
    for inference in (False, True, False, True):
        with torch.inference_mode(inference), torch.no_grad():
            same(fast, with_inference, *SEEDS)


def keeps(t):
    with torch.inference_mode():
        KEPT["y"] = LIN(t)
        DO(UNKNOWN)
        KEPT["z"] = KEPT["y"] * 2
    return t + 1


def test_tensors_that_are_kept():
    fast = framelift.compile(keeps)
    for s in range(4):
        same(fast, keeps, x(s))
        assert KEPT["y"].is_inference() and KEPT["z"].is_inference()
        torch.testing.assert_close(KEPT["z"], LIN(x(s)) * 2)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    @torch.inference_mode()
    def forward(self, t):
        h = torch.relu(self.a(t))
        print("mean", bool(h.mean() > 0.3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(h)
            if y.float().sum().item() > 0:
                return y * 2
            return self.b(torch.relu(h))


def test_a_model_that_prints(capsys):
    m = Model().eval()
    fast = framelift.compile(m)
    for s in range(8):
        want = m(x(s))
        shown = capsys.readouterr().out
        got = fast(x(s))
        assert capsys.readouterr().out == shown and got.is_inference() and got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert framelift.explain(fast).native == 0 and not torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        m.b.weight.mul_(-1)
    for s in range(8):
        torch.testing.assert_close(fast(x(s)), m(x(s)), rtol=0.05, atol=0.05)


def test_modes_left_on_end_the_recording():
    def f(t):
        torch.set_autocast_dtype("cpu", torch.float16)
        return LIN(t)

    fast = framelift.compile(f)
    try:
        for _ in range(3):
            fast(x())
        assert framelift.explain(fast).native == 3
    finally:
        torch.set_autocast_dtype("cpu", torch.bfloat16)


def test_the_default_dtype_of_autocast_is_asked_for_again():
    def f(t):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = LIN(t)
        DO(UNKNOWN)
        with torch.autocast("cpu"):
            z = LIN(t)
            DO(UNKNOWN)
            return y, LIN(z)

    fast = framelift.compile(f)
    same(fast, f, *SEEDS)
    assert all(b["exits"] == 0 for b in trace(fast)["breaks"])
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        same(fast, f, *SEEDS)
    finally:
        torch.set_autocast_dtype("cpu", torch.bfloat16)
    same(fast, f, *SEEDS)


def test_an_outer_autocast_that_is_off():
    fast = framelift.compile(with_autocast)
    same(fast, with_autocast, *SEEDS)
    with torch.autocast("cpu", enabled=False):
        same(fast, with_autocast, *SEEDS)
    same(fast, with_autocast, *SEEDS)


def test_no_hidden_state_is_leaked():
    fast = framelift.compile(outer)

    def leave():
        if len(LOG) == 1:
            raise KeyError

    def many():
        for k in range(60):
            UNKNOWN.action = leave if k % 3 == 0 else lambda: None
            LOG.clear()
            with contextlib.suppress(KeyError):
                fast(x(k % 4))

    many()
    gc.collect()
    before = len(gc.get_objects())
    many()
    gc.collect()
    assert abs(len(gc.get_objects()) - before) < 20


def test_threads():
    fast = framelift.compile(Model().eval())
    plain, wrong = Model.forward, []

    def work(k):
        with torch.no_grad():
            for s in range(30):
                got, want = fast(x(s % 7)), plain(MODEL, x(s % 7))
                if not torch.allclose(got.float(), want.float(), atol=0.05) or not got.is_inference():
                    wrong.append((k, s))
                if torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
                    wrong.append((k, s, "mode"))

    MODEL = Model().eval()
    fast = framelift.compile(MODEL)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_casts_that_unknown_code_has_cached():
    lin = torch.nn.Linear(4, 4).eval()

    def f(t):
        with torch.autocast("cpu", torch.bfloat16):
            DO(UNKNOWN)
            y = lin(t)
            DO(UNKNOWN)
            return lin(y)

    fast = framelift.compile(f)
    UNKNOWN.action = lambda: (lin(x()), None)[1]
    for k in range(6):
        same(fast, f, x(k))
        lin.weight.mul_(-2)
    assert framelift.explain(fast).native == 0
    with torch.autocast("cpu", torch.bfloat16):
        lin(x())
        with torch.autocast("cpu", enabled=False):
            for k in range(4):  # eager goes on with the cast of the first weight
                same(fast, f, x(k))
                lin.weight.mul_(-2)
            first = framelift.compile(f)
            same(first, f, *SEEDS)
    same(fast, f, *SEEDS)


def test_a_weight_that_is_written_under_autocast():
    lin = torch.nn.Linear(4, 4).eval()
    start = lin.weight.clone()

    def f(t):
        with torch.autocast("cpu", torch.bfloat16):
            y = lin(t)
            lin.weight.mul_(-2)
            DO(UNKNOWN)
            return y, lin(t)

    answers = []
    for g in (f, framelift.compile(f)):
        lin.weight.copy_(start)
        answers.append([v for s in range(4) for v in g(x(s))])
    torch.testing.assert_close(answers[0], answers[1])
