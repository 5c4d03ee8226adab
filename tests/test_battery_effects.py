"""What a call changes: compiled, a program is what it is plainly (battery.py)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def in_place_on_inputs(compile, call):
    def f(t):
        t += 1
        t.relu_()
        t[:, 1:3] = 5
        return t * 2

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def in_place_on_values(compile, call):
    def f(t):
        y = t * 2
        v = y[0]
        y[:, 1:3] = 5
        v.add_(1)
        z = t + 1
        z.mul_(3).add_(z)
        w = z.t()
        w[0] = 0
        del w
        z.clamp_(min=0)
        return y, v, z

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def in_place_that_returns_itself(compile, call):
    fast = compile(lambda t: t.add_(1))
    t = x()
    for _ in range(3):
        call(fast, t)
    fast = compile(lambda t: F.relu(t, inplace=True))
    for _ in range(3):
        call(fast, x())


@case
def out_arguments(compile, call):
    out = torch.zeros(3, 4)
    small = torch.zeros(3, 4)

    def f(t):
        torch.add(t, 1, out=out)
        mine = torch.empty(0)
        torch.mul(t, 2, out=mine)
        return mine, out + 1

    fast = compile(f)
    for _ in range(3):
        call(fast, x())
        call.show(out)
    fast = compile(lambda t, o: torch.exp(t, out=o))
    for _ in range(3):
        call(fast, x(), torch.zeros(3, 4))
    call.show(small)


@case
def counters_everywhere(compile, call):
    class Net(nn.Module):
        seen = 0

        def __init__(self):
            super().__init__()
            self.calls = 0
            self.log = []

        def forward(self, t):
            self.calls += 1
            type(self).seen += 1
            self.log.append(t.shape)
            return t * self.calls + Net.seen

    net = Net()
    fast = compile(net)
    for _ in range(3):
        call(fast, x())
        call.show(net.calls, Net.seen, len(net.log))
    n = 0

    def f(t):
        nonlocal n
        n += 1
        return t * n

    fast = compile(f)
    for _ in range(3):
        call(fast, x())
        call.show(n)


@case
def default_argument_that_grows(compile, call):
    def f(t, acc=[]):  # noqa: B006
        acc.append(1)
        return t * len(acc)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def default_arguments_changed(compile, call):
    def f(t, scale=[1.0], *, table={"k": 2.0}):  # noqa: B006
        return t * scale[0] + table["k"]

    fast = compile(f)
    call(fast, x())
    f.__defaults__[0][0] = 4.0
    call(fast, x())
    f.__kwdefaults__["table"]["k"] = 9.0
    call(fast, x())
    f.__kwdefaults__ = {"table": {"k": -1.0}}
    call(fast, x())
    f.__kwdefaults__["table"] = {"k": -5.0}
    call(fast, x())
    f.__code__ = (lambda t, scale, *, table: t + 1000).__code__
    call(fast, x())


@case
def generators_from_outside(compile, call):
    source = iter(range(10))
    fast = compile(lambda t: t + next(source))
    for _ in range(3):
        call(fast, x())
    rest = (i for i in range(10))
    fast = compile(lambda t: t + sum(zip([1], rest, strict=False), ())[1])
    for _ in range(3):
        call(fast, x())
    pairs = map(abs, range(9))
    fast = compile(lambda t: [t + i for i, _ in zip(pairs, "ab", strict=False)])
    for _ in range(3):
        call(fast, x())


@case
def cached_state(compile, call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cache = {}
            self.last = None

        def forward(self, t):
            n = t.shape[0]
            if n not in self.cache:
                self.cache[n] = torch.full((4,), float(len(self.cache) + 1))
            self.last = t
            return t * self.cache[n]

    net = Net()
    fast = compile(net)
    for n in (2, 3, 2, 3, 2):
        call(fast, x(n, 4))
        call.show(net.last, list(net.cache))
        if n == 3:
            net.cache.clear()


@case
def global_torch_state_set_by_the_call(compile, call):
    def f(t, on):
        torch.set_grad_enabled(on)
        return t + 1

    fast = compile(f)
    for on in (False, True, False, True):
        with torch.no_grad():
            call(fast, x(), on)
            call.show(torch.is_grad_enabled())


@case
def enable_grad_inside(compile, call):
    m = nn.Linear(4, 4)

    def f(t):
        with torch.enable_grad():
            return m(t)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def gradients_inside(compile, call):
    def f(t):
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (g,) = torch.autograd.grad((t**2).sum(), t)
        return g

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def default_dtype_inside(compile, call):
    def f(t):
        torch.set_default_dtype(torch.float64)
        try:
            return t + torch.ones(4)
        finally:
            torch.set_default_dtype(torch.float32)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def autocast_inside(compile, call):
    m = nn.Linear(4, 4)

    def f(t):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(t)
        return y, y.dtype, m(t)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def seeds_inside(compile, call):
    def f(t):
        torch.manual_seed(7)
        return t + torch.rand(4)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())
        call.show(torch.rand(2))


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
