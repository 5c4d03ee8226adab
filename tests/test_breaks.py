"""Things that break graphs elsewhere: answers and effects are eager's on every call, and what was captured is known.

Each case gives how many calls of four were (recorded, replayed, native), a part of the reason shown when some ran
natively or of the break shown in a trace, and of the first trace the (segments, operators, breaks).
"""

import contextvars
import copy
import functools
import importlib
import inspect
import logging
import math
import os
import random
import sys
import time
import typing
import warnings
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import framelift

CASES = {}


def case(recorded, replayed, native, says=None, make=None, shape=(1, 1, 0)):
    def add(f):
        CASES[f.__name__] = (f, make, (recorded, replayed, native), says, shape)
        return f

    return add


LIN = torch.nn.Linear(4, 4).eval()
TIMES = []
LOG = logging.getLogger("framelift.tests.breaks")
SEEN = {}
VAR = contextvars.ContextVar("VAR", default=2.0)


@case(1, 3, 0, "builtins.print", shape=(2, 3, 1))
def uses_print(x):
    y = LIN(x)
    print("seen", y.shape)
    return y.relu()


@case(1, 2, 1, "Logger.warning: ", shape=(1, 2, 1))
def uses_logging(x):
    LOG.warning("rows %d", x.shape[0])
    return LIN(x)


@case(1, 3, 0, "_warnings.warn", shape=(1, 2, 1))
def uses_warnings(x):
    warnings.warn("careful", stacklevel=1)
    return LIN(x)


@case(1, 3, 0, shape=(1, 3, 0))
def imports_by_name(x):
    return LIN(x) * len(importlib.import_module("math").__name__)


@case(1, 3, 0, shape=(1, 3, 0))  # loaded by the first call, found loaded by the second
def loads_a_module_by_name(x):
    return LIN(x) * len(importlib.import_module("colorsys").rgb_to_hsv(0.1, 0.2, 0.3))


@case(1, 3, 0, shape=(1, 5, 0))
def answers_otherwise_when_compiled(x):
    return {"y": (LIN(x), LIN(x) * (2 if torch.compiler.is_compiling() else 3))}


@case(1, 3, 0, shape=(1, 2, 0))
def structured_otherwise_when_compiled(x):
    return [LIN(x)] * (2 if torch.compiler.is_compiling() else 3)


@case(1, 3, 0, shape=(1, 2, 0))
def raises_when_compiled(x):
    if torch.compiler.is_compiling():
        raise ValueError("not when compiled")
    return LIN(x)


@case(1, 3, 0, shape=(1, 2, 0))
def operator_raises_when_compiled(x):
    SEEN["inside"] = True
    try:
        return LIN(x[:, :3] if torch.compiler.is_compiling() else x)
    finally:
        del SEEN["inside"]


@case(1, 3, 0, shape=(1, 2, 0))
def uses_backend_flags(x):
    with torch.backends.cudnn.flags(enabled=False):
        return LIN(x)


class Pair(typing.NamedTuple):
    first: torch.Tensor
    second: float = 2.0


@case(1, 3, 0, shape=(1, 3, 0))
def uses_named_tuple(x):
    pair = Pair(LIN(x))
    return pair.first * pair.second


@case(1, 3, 0, "a number out of a tensor", shape=(1, 3, 2))
def uses_item(x):
    return LIN(x) * x.sum().item()


@case(2, 2, 0, "a value out of a tensor", shape=(1, 4, 0))
def uses_tensor_in_if(x):
    return LIN(x) if x.sum() > 0 else x.exp()


@case(1, 3, 0, "a value out of a tensor", shape=(1, 7, 0))
def uses_tensor_in_assert(x):
    assert torch.isfinite(x).all()
    return LIN(x)


@case(2, 2, 0, "a value out of a tensor", shape=(1, 14, 0))
def uses_tensor_in_while(x):
    x = x.abs()
    while x.max() > 0.1:
        x = x * 0.1
    return LIN(x)


@case(1, 3, 0, "data leaves the tensor", shape=(1, 2, 3))
def uses_numpy(x):
    return LIN(torch.from_numpy(np.tanh(x.numpy())))


@case(1, 3, 0, "Random.random", shape=(1, 2, 2))
def uses_random(x):
    return LIN(x) if random.random() < 2 else x


@case(1, 3, 0, "time.time", shape=(1, 2, 3))
def uses_time(x):
    start = time.time()
    y = LIN(x)
    return y if time.time() >= start else x


@case(1, 3, 0, shape=(1, 3, 0))
def uses_partial(x):
    return functools.partial(torch.mul, x)(functools.partial(LIN)(x))


@case(1, 3, 0, shape=(1, 7, 0))
def uses_map_filter_zip(x):
    parts = list(map(torch.relu, [x, -x]))
    kept = list(filter(lambda t: t.dim() == 2, parts))
    return sum(a * b for a, b in zip(kept, parts, strict=True))


@case(1, 3, 0, shape=(1, 5, 0))
def uses_enumerate_reversed(x):
    for i, layer in enumerate(reversed([LIN, torch.tanh])):
        x = layer(x) + i
    return x


@case(1, 3, 0)
def uses_isinstance_and_format(x):
    shape = "%s-{}"
    name = f"{x.dim()}d" + shape.format(x.shape[1]) % "t" if isinstance(x, torch.Tensor) else ""
    return x * len(name) if name == "2dt-4" else LIN(x)


@case(1, 3, 0, shape=(1, 3, 0))
def uses_sort_with_key(x):
    a, b = sorted([x, LIN(x)], key=lambda t: t.shape[0])
    return a - b


@case(1, 3, 0)
def uses_environment(x):
    return LIN(x) if os.environ.get("FRAMELIFT_TEST_BREAKS") else x.relu()


@case(1, 3, 0, shape=(1, 9, 0))
def uses_recursion(x, depth=3):
    return uses_recursion(LIN(x).tanh(), depth - 1) if depth else x


@functools.lru_cache
def cached(n):
    return math.sqrt(n)


@case(1, 3, 0, shape=(1, 3, 0))
def uses_lru_cache(x):
    return LIN(x) * cached(x.shape[1])


@case(1, 3, 0, shape=(1, 3, 0))
def uses_contextvar(x):
    token = VAR.set(VAR.get() + 1)
    y = LIN(x) * VAR.get()
    VAR.reset(token)
    return y


@case(1, 3, 0, shape=(1, 10, 0))
def uses_generator(x):
    def steps():
        for k in range(3):
            yield x * k

    return torch.stack([LIN(t) for t in steps()])


class Options(dict):
    def __getattr__(self, name):
        return self[name]


@case(1, 3, 0, shape=(1, 3, 0))
def uses_dict_subclass(x):
    o = Options(scale=2.0, y=LIN(x))
    return o.y * o.scale


@case(1, 3, 0, "time.perf_counter", shape=(2, 4, 5))
def uses_a_clock_for_its_own_log(x):
    start = time.perf_counter()
    y = LIN(x).relu()
    TIMES.append(f"{time.perf_counter() - start:.3f} s")
    return y * 2


@case(1, 3, 0, "TensorBase.numpy", shape=(3, 4, 5))
def uses_an_array_and_its_shape(x):
    a = LIN(x).numpy()
    return torch.from_numpy(a[:2] * 2.0).relu() + a.shape[1]


@case(1, 3, 0, "print", shape=(2, 5, 1))
def uses_print_in_a_loop_and_a_closure(x):
    total = []

    def show(t, k):
        print(k, t.shape)
        total.append(k)
        return LIN(t)

    for k, layer in enumerate([torch.relu, show, torch.tanh]):
        x = layer(x, k) if layer is show else layer(x)
    return x * len(total)


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x):
        x = self.inner(x)
        print("inside", x.shape)
        return x.relu()


@case(
    1, 3, 0, "print", make=lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), Noisy(), Noisy()).eval(), shape=(3, 8, 2)
)
def uses_print_deep_in_modules():
    pass


@case(1, 3, 0, "zlib.crc32", shape=(1, 3, 2))
def uses_another_library(x):
    seed = zlib.crc32(bytes([x.shape[0]])) % 7
    return LIN(x) * (seed + 1)


@case(1, 3, 0, shape=(1, 3, 0))
def uses_no_grad_and_try(x):
    try:
        with torch.no_grad():
            y = LIN(x)
            raise ValueError
    except ValueError:
        return y + 1


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])
        self.named = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.ReLU()})
        self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.full((4,), 2.0))])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        for _, layer in self.named.items():
            x = layer(x)
        for s in self.scales:
            x = x * s
        return x


@case(1, 3, 0, make=lambda: Stack().eval(), shape=(1, 8, 0))
def uses_module_containers():
    pass


def hooked():
    net = copy.deepcopy(LIN)
    net.register_forward_hook(lambda m, i, o: o * 2)
    net.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    return net


@case(1, 3, 0, make=hooked, shape=(1, 4, 0))
def uses_hooks():
    pass


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g


@case(1, 3, 0, shape=(1, 3, 0))
def uses_custom_autograd_function(x):
    return LIN(Square.apply(x))


@case(1, 2, 1, "checkpoint: ", shape=(2, 2, 1))
def uses_checkpoint(x):
    return torch.utils.checkpoint.checkpoint(LIN, x.relu(), use_reentrant=False) + 1


@case(1, 3, 0, shape=(1, 5, 0))
def uses_autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return LIN(x)


@case(1, 2, 1, "deepcopy: ", shape=(1, 3, 1))
def uses_deepcopy(x):
    opts = copy.deepcopy(OrderedDict(a=1, b=[2, 3]))
    return LIN(x) * opts["b"][0]


def scripted():
    net = torch.nn.Sequential(torch.jit.script(torch.nn.Linear(4, 4)), torch.nn.ReLU())
    return net.eval()


@case(1, 2, 1, "unknown C callable", make=scripted, shape=(1, 1, 1))
def uses_scripted_child():
    pass


def lines_of(f):
    lines, first = inspect.getsourcelines(f)
    return range(first, first + len(lines))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:careful")
def test_break(name, capsys, caplog):
    f, make, want, says, shape = CASES[name]
    target = make() if make else f
    fast = framelift.compile(target)
    torch.manual_seed(1)
    for k in range(4):
        x = torch.randn(3, 4).abs() * (-1) ** (k // 2) * 10 ** (k // 2)
        with torch.no_grad():
            expected = target(x.clone())
            if k == 0:
                sys.modules.pop("colorsys", None)
            out, logged = capsys.readouterr().out, len(caplog.records)
            answer = fast(x)
        near = (
            {"rtol": 2e-2, "atol": 2e-2}
            if getattr(expected, "dtype", None) is torch.bfloat16
            else {"rtol": 1e-4, "atol": 1e-5}
        )
        torch.testing.assert_close(answer, expected, **near)
        assert capsys.readouterr().out == out and len(caplog.records) in (0, 2 * logged)
        caplog.clear()
    e = framelift.explain(fast)
    shown = str(e.native_reason) + " ".join(str(b) for b in (*e.breaks, *e.checks))
    assert ((e.recorded, e.replayed, e.native), says is None or says in shown) == (want, True), shown
    if e.recorded:
        first = e.raw["traces"][-1]
        found = len(first["segments"]), sum(g["operators"] for g in first["segments"]), len(first["breaks"])
        assert found == shape, (found, shape)
        for b in first["breaks"]:
            assert make or (b["file"] == __file__ and b["line"] in lines_of(f)), b


@pytest.mark.parametrize("how", ["finally", "except", "with"])
def test_handlers_of_an_error_run_once(how):
    """A call raises while it is recorded, and its handlers do something: it is not made once more."""
    log = []

    class Manager:
        def __enter__(self):
            pass

        def __exit__(self, *args):
            log.append("left")

    def failing(x):
        if how == "with":
            with Manager():
                return LIN(x)
        try:
            return LIN(x)
        except RuntimeError:
            if how == "finally":
                raise
            log.append("seen")
            raise
        finally:
            if how == "finally":
                log.append("done")

    def f(x):
        with torch.no_grad():
            return failing(x)

    fast = framelift.compile(f)
    for _ in range(2):
        fast(torch.ones(2, 4))
        log.clear()
        with pytest.raises(RuntimeError, match="dtype"):
            fast(torch.ones(2, 4, dtype=torch.float64))
        assert len(log) == 1
        log.clear()
