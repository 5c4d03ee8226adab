"""Small programs, each around one thing that may go wrong: compiled they must be as they are plainly (battery.py)."""

import collections
import copy
import functools
import pickle
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = []


def case(program):
    CASES.append(program)
    return program


def x(*sizes):
    return torch.randn(*(sizes or (3, 4)))


# --- arguments ---


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(4, 4))
        self.items = [torch.randn(4, 4), 2.0]

    def forward(self, t):
        return t @ self.w


@case
def input_is_a_buffer_then_another_tensor(compile, call):
    m = Buffered()
    fast = compile(m)
    for t in (m.w, x(4, 4), m.w, x(4, 4)):
        call(fast, t)


@case
def another_tensor_then_the_buffer(compile, call):
    m = Buffered()
    fast = compile(m)
    for t in (x(4, 4), m.w, x(4, 4)):
        call(fast, t)


@case
def identity_of_an_input_and_a_buffer(compile, call):
    m = Buffered()
    m.forward = lambda t: t + 1 if t is m.w else t - 1
    fast = compile(m)
    for t in (x(4, 4), m.w, x(4, 4), m.w):
        call(fast, t)


@case
def identity_of_an_input_and_a_buffer_other_order(compile, call):
    m = Buffered()
    m.forward = lambda t: t + 1 if t is m.w else t - 1
    fast = compile(m)
    for t in (m.w, x(4, 4), m.w):
        call(fast, t)


@case
def identity_of_an_input_and_a_global_list_item(compile, call):
    known = [x()]

    def f(t):
        return t + 1 if any(t is k for k in known) else t - 1

    fast = compile(f)
    for t in (x(), known[0], x(), known[0]):
        call(fast, t)


@case
def membership_of_an_input_in_a_list(compile, call):
    known = [torch.zeros(())]

    def f(t):
        return t + 1 if t in known else t - 1

    fast = compile(f)
    for t in (torch.ones(()), known[0], torch.ones(()), torch.zeros(())):
        call(fast, t)


@case
def list_argument_that_is_also_an_attribute(compile, call):
    m = Buffered()
    m.forward = lambda items: items[0] * m.items[1]
    fast = compile(m)
    other = [m.items[0], 2.0]
    call(fast, m.items)
    call(fast, other)
    m.items[1] = 3.0
    call(fast, other)
    call(fast, m.items)


@case
def dict_argument_that_is_also_a_global(compile, call):
    table = {"a": x(), "k": 1.0}

    def f(d):
        return d["a"] * table["k"]

    fast = compile(f)
    other = dict(table)
    call(fast, table)
    table["k"] = 5.0
    call(fast, other)
    call(fast, table)


@case
def object_argument_given_back(compile, call):
    class Config:
        def __init__(self):
            self.k = 1

    config = Config()
    fast = compile(lambda t, c: (t + 1, c))
    for _ in range(3):
        call(fast, x(), config)
        config.k += 1


@case
def containers_given_back(compile, call):
    fast = compile(lambda t, a, b: (t + 1, a, b, {"a": a}))
    for _ in range(3):
        call(fast, x(), [1, x()], {"k": x(), "n": 3})


@case
def tuple_and_namedtuple_arguments(compile, call):
    point = collections.namedtuple("point", "a b")
    fast = compile(lambda p: (p[0] * p[1], p))
    for _ in range(3):
        call(fast, point(x(), 2))
        call(fast, (x(), 2))
        call(fast, point(x(), 3))


@case
def bool_int_float_arguments(compile, call):
    fast = compile(lambda t, k: (t * k, k, str(k)))
    for k in (1, True, 1.0, 0, False, 0.0, -0.0, float("nan"), float("inf"), 1, True, 0.0, -0.0):
        call(fast, torch.arange(3), k)


@case
def signed_zero_arguments(compile, call):
    fast = compile(lambda t, k: t / k)
    for k in (0.0, -0.0, 0.0, -0.0):
        call(fast, x(), k)


@case
def complex_arguments(compile, call):
    fast = compile(lambda t, k: (t * k, repr(k)))
    for k in (0j, complex(0.0, -0.0), complex(-0.0, 0.0), 1j, 0j, complex(0.0, -0.0)):
        call(fast, x(), k)


@case
def string_and_none_arguments(compile, call):
    def f(t, mode=None, *rest, **named):
        return t * (1 if mode is None else len(mode)) + len(rest) - len(named), sorted(named)

    fast = compile(f)
    for _ in range(2):
        call(fast, x())
        call(fast, x(), None)
        call(fast, x(), mode=None)
        call(fast, x(), "ab")
        call(fast, x(), mode="abc")
        call(fast, x(), "a", 1)
        call(fast, x(), b=1, a=2)
        call(fast, x(), a=2, b=1)


@case
def numpy_arguments(compile, call):
    import numpy as np

    fast = compile(lambda t, k: t * k)
    array = np.float32(2) * np.ones(4, dtype=np.float32)
    for k in (np.float64(2), np.float32(3), np.int64(2), np.float64(4)):
        call(fast, x(), k)
    fast = compile(lambda t, a: t + torch.from_numpy(a))
    for _ in range(3):
        call(fast, x(), array)
        array += 1


@case
def bytearray_argument(compile, call):
    data = bytearray(b"ab")
    fast = compile(lambda t, b: t * len(b) + b[0] + sum(b))
    call(fast, x(), data)
    data.append(3)
    call(fast, x(), data)
    data[0] = 1
    call(fast, x(), data)


@case
def set_argument(compile, call):
    data = {1, 2}
    fast = compile(lambda t, s: t * len(s) + sum(s) + (7 in s))
    call(fast, x(), data)
    data.add(7)
    call(fast, x(), data)
    data.discard(1)
    call(fast, x(), data)


@case
def torch_constants_as_arguments(compile, call):
    fast = compile(lambda t, d: t.to(d))
    for d in (torch.float64, torch.float16, torch.int32, torch.float64, torch.device("cpu"), torch.bool):
        call(fast, x(), d)
    fast = compile(lambda t, s: t[s] * 2)
    for s in (slice(0, 2), slice(1, 3), slice(0, 2), Ellipsis, None):
        call(fast, x(), s)


@case
def arguments_that_share_memory(compile, call):
    def f(a, b):
        c = a * 2
        b.add_(1)
        return a + c, b * 3

    fast = compile(f)
    for _ in range(2):
        base = x(4, 4)
        call(fast, base, base[0])
        call(fast, base[1], base[0])
        call(fast, base, base)
        call(fast, x(4, 4), x(4))


@case
def expanded_and_overlapping_inputs(compile, call):
    fast = compile(lambda t: (t * 2, t.sum(), t @ t.t(), F.layer_norm(t, (4,))))
    for _ in range(2):
        call(fast, x(1, 4).expand(3, 4))
        call(fast, x(3, 1).expand(3, 4))
        call(fast, x(8).as_strided((3, 4), (2, 1)))
        call(fast, x(6, 8)[::2, ::2])
        call(fast, x(4, 3).t())
        call(fast, x(3, 5)[:, 1:])


@case
def inputs_of_every_dtype(compile, call):
    fast = compile(lambda t: (t + t, t * 2, t.sum(), t.max() if t.numel() else None, t.to(torch.float32).relu()))
    kinds = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    for dtype in [*kinds, torch.int8, torch.uint8, torch.bool, torch.float32]:
        for _ in range(2):
            call(fast, torch.randint(0, 2, (3, 4)).to(dtype))


@case
def complex_inputs(compile, call):
    fast = compile(lambda t: (t * 2, t.abs(), t.conj(), t.real, t.imag, torch.view_as_real(t)))
    for _ in range(2):
        call(fast, torch.randn(3, dtype=torch.complex64))
        call(fast, torch.randn(3, dtype=torch.complex64).conj())
        call(fast, torch.randn(3, dtype=torch.complex128))


@case
def negative_views(compile, call):
    fast = compile(lambda t: t + 1)
    for _ in range(2):
        call(fast, torch.randn(3, dtype=torch.complex64).conj().imag)
        call(fast, x(3))


@case
def sparse_and_quantized_inputs(compile, call):
    fast = compile(lambda t: t.to_dense() * 2)
    for _ in range(2):
        call(fast, torch.eye(3).to_sparse())
        call(fast, torch.eye(3).to_sparse_csr())
        call(fast, torch.eye(3))
    fast = compile(lambda t: t.dequantize() * 2)
    for _ in range(2):
        call(fast, torch.quantize_per_tensor(x(), 0.1, 3, torch.quint8))


@case
def scalar_and_empty_tensors(compile, call):
    fast = compile(lambda t: (t * 2, t.sum(), t.reshape(-1), torch.cat([t.reshape(-1), t.reshape(-1)])))
    for _ in range(2):
        for sizes in ((), (0,), (0, 4), (3, 0, 2), (1,), (1, 1)):
            call(fast, torch.randn(sizes))


@case
def empty_batches_through_layers(compile, call):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    fast = compile(net)
    for n in (0, 1, 0, 2):
        call(fast, x(n, 3, 6, 6))


@case
def inputs_that_require_grad(compile, call):
    fast = compile(lambda t: (t * 2, t, t.detach(), t.view(-1)))
    for _ in range(2):
        call(fast, x().requires_grad_())
        call(fast, nn.Parameter(x()))
        call(fast, x())


@case
def inference_tensors(compile, call):
    fast = compile(lambda t: (t * 2, t.is_inference()))
    with torch.inference_mode():
        t = x()
    for _ in range(2):
        call(fast, t)
        call(fast, x())


@case
def metadata_of_inputs(compile, call):
    fast = compile(lambda t: t * t.storage_offset() + t._is_view())
    base = x(6)
    for t in (base[1:4], base[2:5], x(3), base[0:3], base[3:]):
        call(fast, t)


@case
def as_strided_of_inputs(compile, call):
    fast = compile(lambda t: (t.as_strided((2,), (1,)), t.as_strided((2,), (1,), 0)))
    base = x(6)
    for t in (base[1:4], base[2:5], x(3), base[0:3], base[3:]):
        call(fast, t)


@case
def subclass_inputs(compile, call):
    class Sub(torch.Tensor):
        pass

    fast = compile(lambda t: (t + 1, type(t).__name__))
    for _ in range(2):
        call(fast, x().as_subclass(Sub))
        call(fast, x())


@case
def attributes_on_inputs(compile, call):
    fast = compile(lambda t: t * getattr(t, "scale", 1))
    for scale in (None, 2, 3, None):
        t = x()
        if scale:
            t.scale = scale
        call(fast, t)


# --- answers ---


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


# --- effects ---


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


# --- state ---


@case
def dunders_added_later(compile, call):
    class Holder:
        def __init__(self):
            self.k = 2.0

    class Seq:
        def __init__(self):
            self.items = [1.0, 2.0]

        def __iter__(self):
            return iter(self.items)

    holder, seq = Holder(), Seq()

    def f(t):
        t = t * (2 if holder else 3)
        for s in seq:
            t = t + s
        return t * holder.k * (1 if holder == 5 else 2)

    fast = compile(f)
    call(fast, x())
    Holder.__bool__ = lambda self: False
    call(fast, x())
    Holder.__eq__ = lambda self, other: True
    call(fast, x())
    Seq.__iter__ = lambda self: iter([10.0])
    call(fast, x())
    Holder.__getattribute__ = lambda self, name: 100.0
    call(fast, x())
    del Holder.__getattribute__
    Holder.k = property(lambda self: -1.0)
    call(fast, x())
    Holder.k = property(lambda self: -2.0)
    call(fast, x())


@case
def class_of_the_target_changed(compile, call):
    class A:
        def __call__(self, t):
            return t + 1

    class B:
        def __call__(self, t):
            return t + 2

    a = A()
    fast = compile(a)
    call(fast, x())
    call(fast, x())
    A.__call__ = lambda self, t: t * 7
    call(fast, x())
    a.__class__ = B
    call(fast, x())
    B.__call__ = lambda self, t: t * 9
    call(fast, x())


@case
def class_of_a_module_changed(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    net[0].__class__ = nn.Tanh
    call(fast, x())
    net[1].__dict__ = dict(net[1].__dict__, bias=None)
    call(fast, x())


@case
def module_call_patched(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    old = nn.Module.__call__
    try:
        nn.Module.__call__ = lambda self, *a, **k: old(self, *a, **k) + 1
        call(fast, x())
    finally:
        nn.Module.__call__ = old
    call(fast, x())


@case
def functions_patched(compile, call):
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    old = F.relu
    try:
        F.relu = lambda t, inplace=False: t * 100
        call(fast, x())
    finally:
        F.relu = old
    old = torch.relu
    try:
        torch.relu = torch.tanh
        call(fast, x())
    finally:
        torch.relu = old
    call(fast, x())


@case
def tensor_methods_patched(compile, call):
    fast = compile(lambda t: t.relu() + (t * 2).flip(0))
    call(fast, x())
    torch.Tensor.relu = lambda self: self * 100
    try:
        call(fast, x())
        call(fast, x())
    finally:
        del torch.Tensor.relu
    call(fast, x())


@case
def inherited_attributes(compile, call):
    class Base:
        k = 1.0

    class Mid(Base):
        pass

    class Leaf(Mid):
        pass

    leaf = Leaf()
    fast = compile(lambda t: t * leaf.k)
    call(fast, x())
    Base.k = 2.0
    call(fast, x())
    Mid.k = 3.0
    call(fast, x())
    leaf.k = 4.0
    call(fast, x())
    del leaf.k
    call(fast, x())

    class Other(Base):
        k = 7.0

    Leaf.__bases__ = (Other,)
    call(fast, x())


@case
def metaclass_state(compile, call):
    class Meta(type):
        factor = 2.0

        def __instancecheck__(cls, o):
            return cls.__dict__.get("yes", False)

        def __contains__(cls, o):
            return False

    class K(metaclass=Meta):
        pass

    fast = compile(lambda t: t * K.factor + isinstance(t, K) + (3 in K))
    call(fast, x())
    K.yes = True
    call(fast, x())
    Meta.factor = 5.0
    call(fast, x())
    K.factor = 6.0
    call(fast, x())
    Meta.__contains__ = lambda cls, o: True
    call(fast, x())


@case
def abstract_classes_registered_later(compile, call):
    class Thing:
        pass

    class Abstract(collections.abc.Sized):
        pass

    thing = Thing()
    fast = compile(lambda t: t + 1 if isinstance(thing, Abstract) else t - 1)
    call(fast, x())
    call(fast, x())
    Abstract.register(Thing)
    call(fast, x())


@case
def subclasses_made_later(compile, call):
    class Base:
        pass

    fast = compile(lambda t: t + len(Base.__subclasses__()))
    call(fast, x())
    kept = type("More", (Base,), {})
    call(fast, x())
    call.show(kept.__name__)


@case
def slots_and_properties(compile, call):
    class Slotted:
        __slots__ = ("a", "b")

    s = Slotted()
    s.a = 1.0
    fast = compile(lambda t: t * s.a + getattr(s, "b", 5.0))
    call(fast, x())
    s.a = 2.0
    call(fast, x())
    s.b = 3.0
    call(fast, x())
    del s.b
    call(fast, x())


@case
def containers_of_every_kind(compile, call):
    class Deque(collections.deque):
        pass

    class List(list):
        pass

    class Dict(dict):
        def __missing__(self, key):
            return 11.0

    state = SimpleNamespace(
        deque=collections.deque([1.0, 2.0]),
        sub=Deque([1.0]),
        lst=List([1.0]),
        d=Dict(a=1.0),
        raw=bytearray(b"a"),
        counter=collections.Counter("aab"),
        default=collections.defaultdict(int, k=1),
        odict=collections.OrderedDict(a=1),
        chain=collections.ChainMap({"a": 1.0}, {"b": 2.0}),
        user=collections.UserDict(a=1.0),
        fset=frozenset([1]),
    )
    state.keys = state.odict.keys()
    state.values = {"p": 1.0}
    state.view = state.values.values()

    def f(t):
        return [
            t * sum(state.deque),
            t * len(state.sub),
            t * sum(state.sub),
            t * sum(state.lst),
            t * state.d["a"],
            t * state.d["zz"],
            t * len(state.raw),
            t * state.raw[0],
            t * state.counter["a"],
            t * state.counter["q"],
            t * state.default["k"],
            t * len(state.odict),
            t * state.chain["b"],
            t * state.user["a"],
            t * len(list(state.odict)),
            t * (3.0 in state.deque),
            t * sum(v for v in state.deque),
            "".join(state.odict),
            list(reversed(state.deque)),
            sorted(state.d),
            max(state.lst),
            t * any(s > 5 for s in state.sub),
        ]

    fast = compile(f)
    call(fast, x())
    changes = [
        lambda: state.deque.append(3.0),
        lambda: state.deque.rotate(),
        lambda: state.sub.append(9.0),
        lambda: state.lst.append(4.0),
        lambda: state.d.update(a=3.0),
        lambda: state.d.update(zz=3.0),
        lambda: state.raw.extend(b"b"),
        lambda: state.raw.__setitem__(0, 7),
        lambda: state.counter.update("aq"),
        lambda: state.default.update(k=4),
        lambda: state.odict.update(b=1),
        lambda: state.odict.move_to_end("a"),
        lambda: state.chain.maps[1].update(b=5.0),
        lambda: state.chain.update(b=8.0),
        lambda: state.user.update(a=3.0),
    ]
    for change in changes:
        change()
        call(fast, x())


@case
def bytearrays_outside(compile, call):
    raw = bytearray(b"ab")
    fast = compile(lambda t: t * len(raw))
    call(fast, x())
    raw.append(1)
    call(fast, x())
    second = compile(lambda t: t * raw[0])
    call(second, x())
    raw[0] = 3
    call(second, x())
    third = compile(lambda t: [t * v for v in raw])
    call(third, x())
    raw[1] = 5
    call(third, x())


@case
def deque_subclasses_outside(compile, call):
    class Deque(collections.deque):
        pass

    ring = Deque([1.0])
    fast = compile(lambda t: t * sum(ring))
    call(fast, x())
    ring.append(9.0)
    call(fast, x())
    second = compile(lambda t: t * ring[0])
    call(second, x())
    ring[0] = 5.0
    call(second, x())


@case
def views_outside(compile, call):
    table = {"a": 1.0}
    view, keys, items = table.values(), table.keys(), table.items()
    memory = memoryview(bytearray(b"ab"))
    programs = [
        lambda t: [t * v for v in view],
        lambda t: t * len(keys),
        lambda t: t * sum(view),
        lambda t: t * ("b" in keys),
        lambda t: [t * v for _, v in items],
        lambda t: t * memory[0],
        lambda t: t * sum(memory),
        lambda t: t * len(list(keys)),
        lambda t: t * len([*view]),
        lambda t: (t, *keys),
    ]
    fast = [compile(p) for p in programs]
    for i in range(3):
        for f in fast:
            call(f, x())
        table["abc"[i]] = 5.0 + i
        memory[0] = i


@case
def nested_containers(compile, call):
    tree = {"a": [{"b": [1.0, (2.0, [3.0])]}]}
    fast = compile(lambda t: t * tree["a"][0]["b"][1][1][0])
    call(fast, x())
    tree["a"][0]["b"][1][1][0] = 5.0
    call(fast, x())
    deep = [[[[[[[1.0]]]]]]]
    second = compile(lambda t: t * (deep == [[[[[[[1.0]]]]]]]))
    call(second, x())
    deep[0][0][0][0][0][0][0] = 2.0
    call(second, x())
    third = compile(lambda t: t * len(repr(deep)))
    call(third, x())
    deep[0][0][0][0][0][0][0] = 222.0
    call(third, x())


@case
def partials(compile, call):
    def g(t, a, b=1.0):
        return t * a + b

    part = functools.partial(g, a=2.0)
    fast = compile(lambda t: part(t))
    direct = compile(functools.partial(g, a=2.0, b=3.0))
    for _ in range(2):
        call(fast, x())
        call(direct, x())
    part.keywords["a"] = 5.0
    call(fast, x())
    part.__setstate__((g, (), {"a": 1.0, "b": 9.0}, {}))
    call(fast, x())


@case
def cached_functions(compile, call):
    value = [1.0]

    @functools.lru_cache
    def scale(n):
        return value[0] * n

    fast = compile(lambda t: t * scale(t.shape[0]))
    call(fast, x())
    value[0] = 5.0
    call(fast, x())
    scale.cache_clear()
    call(fast, x())
    call(fast, x())


@case
def cached_properties(compile, call):
    class Net(nn.Module):
        k = 2.0

        @functools.cached_property
        def scale(self):
            return self.k * 3

        def forward(self, t):
            return t * self.scale

    net = Net()
    fast = compile(net)
    call(fast, x())
    net.k = 5.0
    call(fast, x())
    del net.scale
    call(fast, x())
    call(fast, x())


@case
def weak_references(compile, call):
    class Node:
        k = 3.0

    node = Node()
    ref = weakref.ref(node)
    table = weakref.WeakValueDictionary(a=node)
    fast = compile(lambda t: t * (ref().k if ref() is not None else -1.0) + len(table))
    call(fast, x())
    node.k = 5.0
    call(fast, x())


@case
def environment(compile, call):
    import os

    fast = compile(lambda t: t * float(os.environ.get("FL_BATTERY", "1")))
    os.environ.pop("FL_BATTERY", None)
    call(fast, x())
    os.environ["FL_BATTERY"] = "3"
    call(fast, x())
    del os.environ["FL_BATTERY"]
    call(fast, x())


@case
def context_variables(compile, call):
    import contextvars

    var = contextvars.ContextVar("var", default=1.0)
    fast = compile(lambda t: t * var.get())
    call(fast, x())
    token = var.set(4.0)
    call(fast, x())
    var.reset(token)
    call(fast, x())
    context = contextvars.copy_context()
    context.run(var.set, 9.0)
    call(lambda t: context.run(fast, t), x())
    call(fast, x())


@case
def thread_identity(compile, call):
    table = {}
    local = threading.local()
    local.k = 1.0
    fast = compile(lambda t: t * table[threading.get_ident()])
    second = compile(lambda t: t * getattr(local, "k", 7.0))
    third = compile(lambda t: (t, threading.current_thread().name))

    def body(k, name):
        with torch.no_grad():
            table[threading.get_ident()] = k
            for f in (fast, second, third):
                call(f, x())
                call(f, x())

    for k in (1.0, 2.0, 3.0):
        thread = threading.Thread(target=body, args=(k, "t"), name=f"thread {k}")
        body(10 * k, "main")
        thread.start()
        thread.join()


@case
def time_and_random_numbers(compile, call):
    import random

    random.seed(3)
    fast = compile(lambda t: t * random.random() + random.randint(0, 9))
    for _ in range(3):
        call(fast, x())
    import numpy as np

    np.random.seed(3)
    fast = compile(lambda t: t * float(np.random.rand()))
    for _ in range(3):
        call(fast, x())
    items = [1.0, 2.0, 3.0]
    fast = compile(lambda t: t * random.choice(items))
    for _ in range(3):
        call(fast, x())


@case
def hooks_on_submodules(compile, call):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    fast = compile(net)
    call(fast, x())
    h = net[0][1].register_forward_hook(lambda m, a, out: out + 1)
    call(fast, x())
    k = net[0][1].register_forward_hook(lambda m, a, out: out * 3)
    call(fast, x())
    h.remove()
    call(fast, x())
    k.remove()
    call(fast, x())
    h = net[1].register_forward_pre_hook(lambda m, a, kw: ((a[0] * 2,), kw), with_kwargs=True)
    call(fast, x())
    h.remove()
    h = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, a: (a[0] + 1,))
    call(fast, x())
    h.remove()
    call(fast, x())
    seen = []
    h = net[1].register_forward_hook(lambda m, a, out: seen.append(out.sum()))
    call(fast, x())
    call(fast, x())
    call.show(len(seen), *seen)
    h.remove()


@case
def parametrizations(compile, call):
    class Double(nn.Module):
        def forward(self, w):
            return w * 2

    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    fast = compile(net)
    call(fast, x())
    nn.utils.parametrize.register_parametrization(net[0], "weight", Double())
    call(fast, x())
    call(fast, x())
    net[0].parametrizations.weight.original.mul_(3)
    call(fast, x())
    with nn.utils.parametrize.cached():
        call(fast, x())
        call(fast, x())
    nn.utils.parametrizations.weight_norm(net[1])
    call(fast, x())
    net[1].parametrizations.weight.original0.mul_(2)
    call(fast, x())
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    call(fast, x())


@case
def spectral_norm(compile, call):
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    fast = compile(net)
    for training in (False, False, True, True, False):
        net.train(training)
        call(fast, x())


@case
def weights_changed(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    fast = compile(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    call(fast, x())
    for _ in range(2):
        with torch.enable_grad():
            net(x()).square().sum().backward()
        optimizer.step()
        call(fast, x())
    net[0].weight.data = x(4, 4)
    call(fast, x())
    net[0].weight.data = x(4, 4).t()
    call(fast, x())
    net[2].weight = net[0].weight
    call(fast, x())
    net[0].weight.mul_(2)
    call(fast, x())
    net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}, assign=True)
    call(fast, x())
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    call(fast, x())
    nn.utils.vector_to_parameters(torch.ones(40), net.parameters())
    call(fast, x())
    net[0].bias = None
    call(fast, x())
    net[0].weight.requires_grad_(False)
    call(fast, x())
    with torch.no_grad():
        net[0].weight[1:3] = 7
    call(fast, x())
    net[0].weight.view(-1)[0] = -3
    call(fast, x())


@case
def precision_changed(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4))
    fast = compile(net)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16, torch.float32):
        net.to(dtype)
        call(fast, x().to(dtype))
        call(fast, x().to(dtype))
    net.to("meta")
    call(fast, x())


@case
def views_of_weights(compile, call):
    m = nn.Linear(8, 4)

    def f(t):
        return t @ m.weight[:, 2:6], F.linear(t, m.weight.t()[:4]), m.weight[0] + 1, t @ m.weight.view(8, 4)[:4]

    fast = compile(f)
    for _ in range(2):
        call(fast, x())
        m.weight.mul_(2)
        call(fast, x())
        m.weight[0, 2] = 5
        call(fast, x())


@case
def weights_that_share_memory(compile, call):
    base = torch.randn(4, 8)
    a, b = base[:, :4], base[:, 4:]

    def f(t):
        return t @ a + t @ b

    fast = compile(f)
    call(fast, x())
    base.mul_(2)
    call(fast, x())
    a.add_(1)
    call(fast, x())

    def g(t):
        a.add_(1)
        return t @ base[:, :4]

    fast = compile(g)
    call(fast, x())
    call(fast, x())


@case
def batch_norm_train_and_eval(compile, call):
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    fast = compile(net)
    for training in (True, True, False, True, False, False):
        net.train(training)
        call(fast, x(2, 2, 4, 4))
        call.show(*net.buffers())
    net[1].momentum = None
    net.train()
    call(fast, x(2, 2, 4, 4))
    call(fast, x(2, 2, 4, 4))
    call.show(*net.buffers())
    net[1].track_running_stats = False
    net.eval()
    call(fast, x(2, 2, 4, 4))


@case
def dropout_and_random_order(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2))
    fast = compile(net)
    t = x()
    for seed in (1, 2, 1, 2):
        torch.manual_seed(seed)
        call(fast, t)
        call(fast, t)
    net.eval()
    call(fast, t)

    def f(t):
        a = torch.rand(2)
        y = t.exp().sum() * a
        b = torch.randn(3)
        c = torch.randint(0, 9, (2,))
        z = (t * 2).relu()
        d = torch.bernoulli(torch.sigmoid(t))
        return c, b, y, d + z, torch.randperm(5), torch.normal(0.0, 1.0, (2,)), torch.rand_like(t)

    fast = compile(f)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        call(fast, t)
        call(fast, t)
    generator = torch.Generator()
    fast = compile(lambda t: t + torch.rand(4, generator=generator))
    for seed in (1, 2, 1):
        generator.manual_seed(seed)
        call(fast, t)
        call(fast, t)


@case
def control_flow(compile, call):
    def f(t):
        n = 0
        while t.sum() < 10 and n < 20:
            t = t + 0.5
            n += 1
        if t.max() > 3:
            t = t * 2
        elif bool((t < 0).any()):
            t = t - 1
        return t, n, t.argmax().item(), t.shape[0]

    fast = compile(f)
    for k in (0, 1, 2, -1, 0, 5, 5, 2, 1):
        call(fast, x() * 0.1 + k)


@case
def shapes_that_depend_on_data(compile, call):
    def f(t):
        chosen = t[t > 0]
        return chosen, chosen.shape[0], t.nonzero(), torch.unique(t.round()), chosen.sum(), t.masked_select(t < 0)

    fast = compile(f)
    for _ in range(4):
        call(fast, x())


@case
def numbers_out_of_tensors(compile, call):
    fast = compile(lambda t: (t.sum().item(), t.tolist(), float(t[0, 0]), int(t.argmax()), t.numpy().sum().item()))
    for _ in range(3):
        call(fast, x())
    fast = compile(lambda t: t * t.sum().item())
    for _ in range(4):
        call(fast, x())
    fast = compile(lambda t: f"{t.mean():.2f} {t}")
    for _ in range(3):
        call(fast, x())
    fast = compile(lambda t: torch.tensor([t.sum().item(), 1.0]) + torch.tensor(t.tolist())[0, 0])
    for _ in range(3):
        call(fast, x())


@case
def tensors_made_of_tensors(compile, call):
    def f(t):
        return (
            torch.tensor(t.shape),
            torch.as_tensor(t),
            t.new_tensor([1.0, 2.0]),
            t.new_zeros(2),
            t.data + 1,
            torch.nn.Parameter(t) + 1,
            torch.stack([t, t]),
            torch.full((2,), t.shape[0]),
            torch.asarray(t),
            torch.clone(t),
            t.contiguous(),
            t.to(torch.float32),
            t.cpu(),
            torch.tensor(3.5) * t,
        )

    fast = compile(f)
    for _ in range(3):
        call(fast, x())
    constant = compile(lambda t: torch.tensor([1.0, 2.0, 3.0, 4.0]).add_(t.sum()))
    for _ in range(3):
        call(constant, x())


@case
def exceptions(compile, call):
    def f(t, mode):
        if mode == 1:
            raise ValueError("mode 1")
        if mode == 2:
            return t.view(5, 7)
        if mode == 3:
            return t.undefined
        if mode == 4:
            try:
                return t.view(5, 7)
            except RuntimeError as error:
                return t + len(str(error)[:10])
            finally:
                t.add_(1)
        if mode == 5:
            if not (t > 100).all():
                raise AssertionError("too small")
        return t + 1

    fast = compile(f)
    for _ in range(2):
        for mode in range(6):
            call(fast, x(), mode)
    linear = compile(nn.Linear(4, 2))
    for sizes in ((3, 4), (3, 5), (3, 4), (4,), (2, 3, 4), (3, 5)):
        call(linear, torch.randn(sizes))


@case
def exceptions_of_data(compile, call):
    embedding = compile(nn.Embedding(5, 3))
    for ids in ([0, 4], [1, 5], [2, 3], [-1, 0]):
        call(embedding, torch.tensor(ids))
    pick = compile(lambda t, i: (t.gather(0, i), t.index_select(0, i.view(-1)), t[i.view(-1)]))
    for i in ([[0, 1, 2, 0]], [[0, 1, 3, 0]], [[-1, 0, 1, 1]], [[2, 2, 2, 2]]):
        call(pick, x(), torch.tensor(i))
    for op in (
        lambda a, b: a.gather(0, b.view(1, -1)),
        lambda a, b: a.index_select(0, b),
        lambda a, b: a[b],
        lambda a, b: F.one_hot(b, 4),
        lambda a, b: F.embedding(b, a),
        lambda a, b: torch.take(a, b),
        lambda a, b: a.scatter(0, b.view(1, -1), 1.0),
        lambda a, b: F.nll_loss(a[:, :4], b[:3]),
        lambda a, b: a.index_add(0, b[:3], a),
        lambda a, b: F.cross_entropy(a, b[:3]),
        lambda a, b: a.take_along_dim(b.view(1, -1), 0),
        lambda a, b: a[:, b],
    ):
        fast = compile(op)
        for ids in ([0, 1, 2, 0], [0, 1, 7, 0], [0, 1, -1, 2], [-9, 1, 1, 1], [2, 2, 1, 0]):
            call(fast, x(), torch.tensor(ids))
    divide = compile(lambda a, b: (a // b, a % b))
    for b in ([1, 2, 3], [1, 0, 3], [-1, 2, -3]):
        call(divide, torch.tensor([7, -7, 5]), torch.tensor(b))
    inverse = compile(lambda t: torch.linalg.inv(t))
    for t in (torch.eye(3), torch.zeros(3, 3), torch.eye(3) * 2):
        call(inverse, t)


@case
def recursion_and_generators(compile, call):
    def tree(t, depth):
        return t if depth == 0 else tree(t * 2, depth - 1) + tree(t + 1, depth - 1)

    def pieces(t):
        for i in range(t.shape[0]):
            got = yield t[i] * i
            if got:
                return

    def f(t, depth):
        total = tree(t, depth)
        *first, last = pieces(t)
        g = pieces(t)
        next(g)
        try:
            g.send(True)
        except StopIteration:
            total = total + 1
        return (
            total,
            first,
            last,
            [*pieces(t)],
            {i: v for i, v in enumerate(pieces(t))},
            sum(p.sum() for p in pieces(t)),
        )

    fast = compile(f)
    for depth in (0, 3, 1, 3):
        call(fast, x(), depth)

    def forever(t):
        return forever(t + 1)

    def caught(t):
        try:
            return forever(t)
        except RecursionError:
            return t

    fast = compile(caught)
    for _ in range(2):
        call(fast, x())


@case
def callers_in_every_mode(compile, call):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).requires_grad_(False)
    fast = compile(net)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad):
        with mode():
            call(fast, x())
            call(fast, x())


@case
def default_dtype_between_calls(compile, call):
    fast = compile(lambda t: (t + torch.ones(4), torch.tensor(1.5), torch.arange(3) / 2, t * 1.5))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            call(fast, torch.arange(4))
        finally:
            torch.set_default_dtype(torch.float32)


@case
def modes_between_calls(compile, call):
    m = nn.Linear(4, 4)
    fast = compile(m)
    t = x()
    call(fast, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call(fast, t)
    torch.use_deterministic_algorithms(True)
    call(fast, t)
    torch.use_deterministic_algorithms(False)
    call(fast, t)
    with torch.device("meta"):
        call(fast, t)
    call(lambda t: torch.func.vmap(fast)(t), t)
    call(lambda t: torch.func.functional_call(m, {"weight": t.new_ones(4, 4), "bias": t[0]}, (t,)), t)
    call(fast, t)


@case
def compiled_in_compiled(compile, call):
    inner = compile(nn.Linear(4, 4))
    outer = compile(lambda t: inner(t) + inner(t * 2))
    for _ in range(3):
        call(inner, x())
        call(outer, x())


@case
def kinds_of_targets(compile, call):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 2.0

        def forward(self, t):
            return t * self.k

        def other(self, t):
            return t + self.k

        @staticmethod
        def plain(t):
            return t - 1

        @classmethod
        def make(cls, t):
            return t * len(cls.__name__)

    net = Net()
    for target in (
        net.other,
        Net.plain,
        Net.make,
        torch.relu,
        torch.Tensor.relu,
        functools.partial(net, net.k),
        operator_like,
        F.gelu,
        net.forward,
        lambda t: t,
    ):
        fast = compile(target)
        for _ in range(2):
            call(fast, x())
            net.k += 1


def operator_like(t, *, k=2):
    return t**k


@case
def copies_of_compiled(compile, call):
    net = nn.Linear(4, 4)
    fast = compile(net)
    t = x()
    call(fast, t)
    again = copy.deepcopy(fast)
    net.weight.mul_(2)
    call(again, t)
    call(fast, t)
    call(copy.copy(fast), t)
    call(pickle.loads(pickle.dumps(fast)), t)


@case
def memo_by_identity(compile, call):
    memo = {}

    def f(t):
        return t * len({id(t): 1, id(f): 2}) + (id(t) in memo)

    fast = compile(f)
    kept = x()
    call(fast, x())
    memo[id(kept)] = 1
    call(fast, kept)
    call(fast, x())


@case
def with_statements(compile, call):
    class Guard:
        depth = 0

        def __enter__(self):
            self.depth += 1
            return self

        def __exit__(self, *error):
            self.depth -= 1
            return error[0] is KeyError

    guard = Guard()

    def f(t, bad):
        with guard as g:
            t = t * g.depth
            if bad:
                raise KeyError(bad)
            with torch.no_grad(), guard:
                t = t + g.depth
        return t, guard.depth

    fast = compile(f)
    for bad in (0, 1, 0, 1, 0):
        call(fast, x(), bad)
        call.show(guard.depth)


@case
def printing(compile, call):
    import contextlib
    import io

    def f(t):
        print("shape", t.shape)
        return t + 1

    fast = compile(f)
    for _ in range(3):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            call(fast, x())
        call.show(out.getvalue())


@case
def recurrent_layers(compile, call):
    for layer in (
        nn.LSTM(4, 5, 2),
        nn.GRU(4, 5, bidirectional=True),
        nn.RNN(4, 5, batch_first=True),
        nn.LSTMCell(4, 5),
    ):
        layer.eval()
        fast = compile(layer)
        t = x(3, 4) if isinstance(layer, nn.LSTMCell) else x(6, 3, 4)
        call(fast, t)
        call(fast, t)
        for p in layer.parameters():
            p.mul_(0.5)
        call(fast, t)


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
