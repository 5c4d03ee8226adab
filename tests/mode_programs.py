"""Programs that enter inference mode and autocast themselves, what unknown code in them sees, and how calls compare."""

import contextlib
import operator
import traceback
from pathlib import Path

import pytest
import torch

import framelift
from exits import DO, assert_same, flat, x

HERE = Path(__file__).parent
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
        lines = [(s.name, s.lineno) for s in traceback.extract_tb(e.__traceback__) if Path(s.filename).parent == HERE][
            1:
        ]
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
