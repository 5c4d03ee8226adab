"""Programs that once differed from eager, each reduced to what made it differ."""

import contextlib
import contextvars
import ctypes
import functools
import weakref

import pytest
import torch
from torch._higher_order_ops.while_loop import while_loop

import battery
import framelift

LIN = torch.nn.Linear(4, 4).eval()
CONTEXT = contextvars.copy_context()
FOUR = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.py_object)
CASES = {}


def case(program):
    CASES[program.__name__] = program
    return program


def unknown(f):
    """f as code that is not looked into, so that a call of it breaks the graph."""
    return functools.partial(CONTEXT.run, f)


def x(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def linear(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(4, 4).eval()


@case
def attributes_changed_between_two_reads(compile, call):
    class State:
        scale = 1.0

    state = State()
    state.value = 1.0

    @unknown
    def grow(y):
        state.value *= 1.5
        return y

    def f(t):
        y = grow(LIN(t) * state.value)
        state.seen = state.value
        return y * state.value

    fast = compile(f)
    for k in range(5):
        call(fast, x(k))
        call.show(state)


@case
def unknown_code_replaces_the_code_of_a_frame_that_waits(compile, call):
    calls = []

    @unknown
    def replace(y):
        calls.append(1)
        if len(calls) == 3:
            f.__code__ = other.__code__
        return y

    def other(t):
        return replace(t) - LIN(t)

    def f(t):
        y = replace(LIN(t))
        return y.relu() + replace(y)

    fast = compile(f)
    for k in range(6):
        call(fast, x(k))


@case
def weights_over_the_same_memory_that_count_versions_apart(compile, call):
    a, b = linear(0), linear(1)
    fast = compile(lambda t: b(a(t)))
    call(fast, x(0))
    call(fast, x(1))
    b.weight.data = a.weight.data
    call(fast, x(0))
    with torch.no_grad():
        a.weight.mul_(0.5)
    call(fast, x(0))
    call(fast, x(1))


@case
def a_weight_changes_while_another_keeps_the_trace_from_fitting(compile, call):
    a, b = linear(0), linear(1)
    fast = compile(lambda t: b(a(t)))
    call(fast, x(0))
    call(fast, x(1))
    before = b.bias.data
    with torch.no_grad():
        a.weight.mul_(3)
    b.bias.data = torch.zeros(1)
    call(fast, x(0))
    b.bias.data = before
    call(fast, x(0))
    call(fast, x(1))


@case
def a_tensor_that_decides_changes_for_calls_that_raise(compile, call):
    n = torch.tensor(1)

    def f(t):
        y = LIN(t)
        if n == 2:
            raise ValueError("two")
        return y

    fast = compile(f)
    call(fast, x(0))
    call(fast, x(1))
    n.fill_(2)
    for k in range(3):
        call(fast, x(k))


@case
def written_where_inference_mode_is_another_than_where_it_was_made(compile, call):
    def normal(t):
        with torch.inference_mode(False):
            y = torch.ones(3, 4)
        y.add_(t)
        return y, y[0], LIN(t)

    def inference(t):
        with torch.inference_mode():
            y = torch.ones(3, 4) * 2
        return y.add_(t)  # raises

    for f in normal, inference:
        fast = compile(f)
        with torch.inference_mode(f is normal):
            for k in range(4):
                call(fast, x(k))


@case
def a_composite_that_fills_new_memory_without_an_operator(compile, call):
    targets = torch.tensor([[1, 2], [1, 1]])

    def f(t):  # the mean over lengths, of which a tensor is made in C++
        return torch.nn.functional.ctc_loss(LIN(t).log_softmax(2), targets, (5, 5), (2, 2))

    def own(t):  # new memory of the program's own, filled by operators, and looked at for its shape only
        y = torch.empty(3, 4)
        y[:2] = t[:2]
        y[2].fill_(1.0)
        return y * 2, torch.zeros_like(torch.empty(2, 2)), LIN(y)

    fast = compile(f)
    for k in range(4):
        call(fast, torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(k)))
    fast = compile(own)
    for k in range(4):
        call(fast, x(k))


@case
def functions_in_c_that_python_classes_hide(compile, call):
    w, source = torch.ones(4), torch.arange(4.0)
    copy = functools.partial(ctypes.memmove, w.data_ptr(), source.data_ptr())

    class Copies:
        size = property(functools.partial(FOUR(("memmove", ctypes.CDLL(None))), w.data_ptr(), source.data_ptr(), 16))
        __len__ = staticmethod(functools.partial(copy, 16))

    o = Copies()
    ways = [
        lambda: list(map(copy, [16])),
        lambda: sorted([16], key=copy),
        lambda: o.size,
        lambda: len(o),
    ]
    for way in ways:

        def f(t, way=way):
            y = LIN(t) * w
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                way()
            return y * 2 + w

        fast = compile(f)
        for k in range(3):
            w.fill_(k)
            call(fast, x(k))
            call.show(w)


@case
def memory_that_becomes_another_tensors(compile, call):
    def f(t):
        y, z = LIN(t), t * 2 + 1
        torch.ops.aten.set_.source_Tensor(y, z)
        z.add_(1)
        return y * 3

    fast = compile(f)
    for k in range(3):
        call(fast, x(k))


@case
def weak_reference_to_an_object_that_dies(compile, call):
    class Node:
        pass

    node = Node()
    node.k = 2.0
    ref = weakref.ref(node)
    fast = compile(lambda t: LIN(t) * (ref().k if ref() is not None else -1.0))
    call(fast, x(0))
    call(fast, x(1))
    del node
    call(fast, x(0))
    call(fast, x(1))


@case
def weak_references_to_objects_of_the_call(compile, call):
    class Node:
        pass

    def f(t):
        node, y = Node(), LIN(t)
        refs = weakref.ref(node), weakref.ref(y)
        same = refs[0]() is node, refs[1]() is y
        del node
        return y, same, refs[0]() is None

    fast = compile(f)
    for k in range(4):
        call(fast, x(k))


OPERATORS = {
    "__add__": lambda t: t + 1,
    "__rsub__": lambda t: 1 - t,
    "__matmul__": lambda t: t @ t.T,
    "__neg__": lambda t: -t,
    "__getitem__": lambda t: t[0] * 1,
    "__lt__": lambda t: (t < 0) * 1,
}


@case
def operators_of_tensors_replaced(compile, call):
    def in_place(t):
        y = t.clone()
        y += 1
        y[0] = 2.0
        return (y if y.sum() else -y), [row * 1 for row in y]

    replacements = {name: lambda own: lambda self, *args: own(self, *args) * 2 for name in OPERATORS}
    replacements["__iadd__"] = lambda own: lambda self, other: own(self, other + 5)
    replacements["__setitem__"] = lambda own: lambda self, key, value: own(self, key, value + 5)
    replacements["__bool__"] = lambda own: lambda self: False
    replacements["__iter__"] = lambda own: lambda self: iter([self, self])
    for name, replacement in replacements.items():
        fast = compile(OPERATORS.get(name, in_place))
        call(fast, x(0))
        call(fast, x(1))
        here, own = name in torch.Tensor.__dict__, getattr(torch.Tensor, name)
        setattr(torch.Tensor, name, replacement(own))
        try:
            call(fast, x(0))
            call(fast, x(1))
        finally:
            setattr(torch.Tensor, name, own) if here else delattr(torch.Tensor, name)
        call(fast, x(0))


@case
def operators_that_take_functions(compile, call):
    f = compile(lambda t: torch.cond(t.sum() > 0, lambda y: LIN(y) * 2, lambda y: y - 1, (LIN(t),)))
    g = compile(lambda t: while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, LIN(y)), (torch.tensor(0), t)))
    for k in range(4):
        call(f, x(k))
        call(g, x(k))


@case
def called_by_what_torch_compiles(compile, call):
    m = linear(0)
    f = compile(m)
    outer = torch.compile(lambda t: f(t) * 2, backend="eager")
    for k in range(3):
        call(outer, x(k))
    m.weight.data.mul_(2)
    call(outer, x(0))


def test_the_line_that_raises_in_a_replay():
    def f(a, b):
        c = a + 1
        return c // b

    def frames(function, *args):
        with pytest.raises(RuntimeError, match="ZeroDivisionError") as got:
            function(*args)
        return [(entry.name, entry.lineno) for entry in got.traceback[2:]]

    fast, a = framelift.compile(f), torch.tensor([1, 2])
    with torch.no_grad():
        for b in ([1, 1], [1, 2], [0, 1]):
            if 0 in b:
                assert frames(fast, a, torch.tensor(b)) == frames(f, a, torch.tensor(b))
            else:
                assert torch.equal(fast(a, torch.tensor(b)), f(a, torch.tensor(b)))
    assert framelift.explain(fast).replayed == 1


def test_the_line_that_raises_after_an_effect():
    def f(t, i):
        t.add_(1)
        return t[i] * 2

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(2):
            fast(x(0), torch.tensor([1]))
        t = x(0)
        with pytest.raises(IndexError, match="out of bounds") as got:
            fast(t, torch.tensor([9]))
    assert torch.equal(t, x(0) + 1)
    assert got.traceback[-1].lineno == f.__code__.co_firstlineno + 1


def test_what_torch_compiles_is_left_to_it():
    """Seeing a recording's dispatch mode, it would not compile that code ever after."""

    def f(t):
        return torch.cond(t.sum() > 0, lambda y: y * 2, lambda y: y - 1, (t.relu() - t,))

    fast = framelift.compile(f)
    with torch.no_grad():
        for k in range(4):
            assert torch.equal(fast(x(k)), f(x(k)))
    e = framelift.explain(fast)
    assert e.replayed == 2 and len(e.breaks) == 1 and e.breaks[0].detail.startswith("cond")


@pytest.mark.parametrize("name", CASES)
def test_like_eager(name):
    battery.check(CASES[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_windows(value):
    """Winograd's tiles would spread it: such a call is answered by PyTorch, the next one by the engine again."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(32, 32, 3, padding=1).eval()
    fast = framelift.compile(lambda x: torch.relu(conv(x)))
    x = torch.randn(1, 32, 30, 30)
    with torch.inference_mode():
        fast(x), fast(x)
        odd = x.clone()
        odd[0, 3, 12, 17] = value
        want, got = torch.relu(conv(odd)), fast(odd)
        assert torch.equal(torch.isfinite(want), torch.isfinite(got))
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fast(x), torch.relu(conv(x)), rtol=1e-3, atol=1e-4)
    assert framelift.explain(fast).engines == 1


def test_a_context_variable_set_to_what_it_held():
    """In another call it holds something else, and is to be set."""
    var = contextvars.ContextVar("var", default=3)

    def f(x):
        y = x * 2
        var.set(3)
        return y

    def run():
        fast, x = framelift.compile(f), torch.ones(2)
        with torch.no_grad():
            var.set(3)
            for _ in range(3):
                fast(x)
            var.set(5)
            fast(x)
        assert var.get() == 3

    contextvars.Context().run(run)
