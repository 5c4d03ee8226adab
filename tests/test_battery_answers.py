"""What a call gives back: compiled, a program is what it is plainly (battery.py)."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


@case
def answers_that_are_functions(compile, call):
    def f(t):
        y = t + 1
        return lambda: y * 2

    fast = compile(f)
    for _ in range(3):
        t = x()
        call(lambda t: fast(t)(), t)


@case
def answers_that_are_bound_methods(compile, call):
    fast = compile(lambda t: (t + 1).relu)
    for _ in range(3):
        call(lambda t: fast(t)(), x())
    fast = compile(lambda t: [t.shape[0]].append)
    for _ in range(3):
        call(lambda t: fast(t).__self__, x())


@case
def answers_that_are_partials_and_classes(compile, call):
    fast = compile(lambda t: functools.partial(torch.add, t + 1))
    for _ in range(3):
        call(lambda t: fast(t)(1), x())

    def make(t):
        class Box:
            value = t * 2

        return Box

    fast = compile(make)
    for _ in range(3):
        call(lambda t: fast(t).value, x())


@case
def answers_with_attributes(compile, call):
    class Out:
        def __init__(self, a):
            self.a = a
            self.also = a
            self.items = [a, {"n": 1}]

    fast = compile(lambda t: Out(t * 2))
    for _ in range(3):
        call(fast, x())


@case
def answers_are_new_each_time(compile, call):
    fast = compile(lambda t: {"a": [t * 2], "b": (), "c": {1, 2}, "d": [1, 2]})
    t = x()
    kept = [fast(t) for _ in range(3)]
    kept[1]["d"].append(5)
    kept[1]["a"][0].add_(1)
    call.show(*kept)


@case
def answers_that_are_inputs_weights_and_views(compile, call):
    m = nn.Linear(4, 4)

    def f(t):
        y = t * 2
        z = y.view(-1)
        return t, t[0], t.t(), m.weight, m.weight[0], m.weight.t(), y, z, z[1:3], y, m(t)

    fast = compile(f)
    for _ in range(3):
        call(fast, x())


@case
def strides_of_answers(compile, call):
    def f(t):
        return (
            t.t() + 1,
            (t * 2).t(),
            t[:, :1] + 1,
            t[:, :1].t() * 2,
            t.unsqueeze(0) * 2,
            t.expand(2, 3, 4) + 1,
            t.permute(1, 0).unsqueeze(1).relu(),
            torch.cat([t.t(), t.t()]),
            t.sum(0, keepdim=True).t(),
            t.reshape(3, 1, 4).transpose(0, 2).exp(),
            t.t().sum(1, keepdim=True),
            F.softmax(t.t(), 0),
        )

    fast = compile(f)
    for t in (x(3, 4), x(4, 3).t(), x(3, 8)[:, ::2], x(1, 4).expand(3, 4)):
        call(fast, t)
        call(fast, t)


@case
def channels_last(compile, call):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).eval()
    one = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()).eval()
    fast, small = compile(net), compile(one)
    for _ in range(2):
        call(fast, x(2, 3, 8, 8))
        call(fast, x(2, 3, 8, 8).to(memory_format=torch.channels_last))
        call(fast, x(1, 3, 8, 8).to(memory_format=torch.channels_last))
        call(small, x(2, 1, 8, 8))
        call(small, x(2, 1, 8, 8).to(memory_format=torch.channels_last))
        call(fast, x(2, 3, 9, 9)[:, :, 1:, :-1])
        call(fast, x(8, 8, 3, 2).permute(3, 2, 0, 1))


@case
def channels_last_weights(compile, call):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    fast = compile(net)
    call(fast, x(2, 3, 8, 8))
    net.to(memory_format=torch.channels_last)
    call(fast, x(2, 3, 8, 8))
    call(fast, x(2, 3, 8, 8))


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
