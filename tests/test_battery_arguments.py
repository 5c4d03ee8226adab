"""What a call is given: compiled, a program is what it is plainly (battery.py)."""

import collections

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import battery

CASES = battery.Cases()
case, x = CASES.add, battery.x


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


@pytest.mark.parametrize("program", CASES, ids=lambda program: program.__name__)
def test_as_eager(program):
    battery.check(program)
