"""vmap and torch function modes inside a call: what they do to operators is recorded, and replayed without them."""

import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode

import framelift


def calls(function, fast, inputs):
    with torch.inference_mode():
        for x in inputs:
            torch.testing.assert_close(fast(x), function(x), rtol=1e-5, atol=1e-6)


def recorded(function, *, segments=1, replayed=2, inputs=None):
    """Three calls with eager's answers; the explanation of one trace without breaks."""
    torch.manual_seed(0)
    fast = framelift.compile(function)
    calls(function, fast, inputs or [torch.randn(3, 4) for _ in range(3)])
    explanation = framelift.explain(fast)
    assert explanation.segments == segments and not explanation.breaks and not explanation.native_reason
    assert explanation.replayed == replayed and not explanation.eager
    return explanation


weight = torch.randn(4, 4)


def rows(x):
    return torch.vmap(lambda row: row @ weight + row.shape[0] + row.dim())(x)


def columns(x):
    return torch.vmap(lambda a, b: (a - b.mean(), a * 2), in_dims=(1, None), out_dims=(1, 0))(x, x)


def nested(x):
    product = torch.vmap(torch.vmap(lambda a, b: a * b, in_dims=(None, 0)), in_dims=(0, None))
    return product(x[:, 0], x[0])


def in_chunks(x):
    return torch.vmap(lambda row: torch.softmax(row, 0), chunk_size=2)(x)


def of_a_dict(x):
    return torch.vmap(lambda d: {"sum": d["a"].sum(), "pair": (d["a"], d["b"] + 1)})({"a": x, "b": x[:, 0]})


def conditions(x):
    def one(row):
        if row.dim() != 1 or row.requires_grad or row.dtype != torch.float32:
            return row
        return row.where(row > 0, torch.zeros(()))

    return torch.vmap(one)(x)


@pytest.mark.parametrize("function", [rows, columns, nested, in_chunks, of_a_dict, conditions])
def test_vmap(function):
    recorded(function)


def test_vmap_of_a_module_follows_its_weights():
    net = torch.nn.Linear(4, 2)
    function = lambda x: torch.vmap(net)(x)  # noqa: E731
    fast = framelift.compile(function)
    x = torch.randn(3, 4)
    calls(function, fast, [x, x])
    with torch.no_grad():
        net.weight.mul_(3)
    calls(function, fast, [x])
    net.bias = torch.nn.Parameter(torch.ones(2))
    calls(function, fast, [x, x])
    assert framelift.explain(fast).segments == 1 and not framelift.explain(fast).native_reason


def test_what_a_vmapped_function_reads_is_guarded():
    scale = [2.0]

    def function(x):
        return torch.vmap(lambda row: row * scale[0])(x)

    fast = framelift.compile(function)
    x = torch.randn(3, 4)
    calls(function, fast, [x, x])
    scale[0] = 5.0
    calls(function, fast, [x, x])
    assert framelift.explain(fast).recorded == 2


class Twice(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, indices):
        return x[indices[0]] * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Same(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x, x + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class OwnRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, x):
        return x * 3, in_dims[0]


def test_autograd_functions_under_vmap():
    places = torch.tensor([2, 0, 1])
    recorded(lambda x: torch.vmap(torch.vmap(lambda r, i: Twice.apply(r, [i]), (None, 0)), (0, None))(x, places))
    same = framelift.compile(lambda x: torch.vmap(Same.apply)(x))
    calls(torch.vmap(Same.apply), same, [torch.randn(3, 4) for _ in range(3)])
    x = torch.randn(3, 4)
    with torch.inference_mode():
        assert same(x)[0].data_ptr() == torch.vmap(Same.apply)(x)[0].data_ptr() == x.data_ptr()
    assert framelift.explain(same).replayed == 3 and framelift.explain(same).segments == 1
    fast = framelift.compile(lambda x: torch.vmap(OwnRule.apply)(x))
    calls(lambda x: x * 3, fast, [torch.randn(3, 4)] * 3)
    assert framelift.explain(fast).native_reason


class Doubles(TorchFunctionMode):
    factor = 2

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * self.factor if func is torch.add else result


def under_a_mode(x):
    with Doubles():
        y = torch.add(x, 1, alpha=2)
        z = x.sum(dim=0, keepdim=True)
    return torch.add(y, z), y.shape[0]


def with_two_modes(x):
    with Doubles(), Doubles():
        return torch.add(x, x) + x.mT.mT


def test_function_modes():
    recorded(under_a_mode)
    recorded(with_two_modes)


def test_a_mode_is_guarded(monkeypatch):
    fast = framelift.compile(under_a_mode)
    x = torch.randn(3, 4)
    calls(under_a_mode, fast, [x, x])
    monkeypatch.setattr(Doubles, "factor", 7)
    calls(under_a_mode, fast, [x, x])
    plain = lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {})) - 1  # noqa: E731
    monkeypatch.setattr(Doubles, "__torch_function__", plain)
    calls(under_a_mode, fast, [x, x])
    explanation = framelift.explain(fast)
    assert explanation.recorded == 3 and explanation.replayed == 3 and not explanation.native_reason


class Counts(TorchFunctionMode):
    def __init__(self, seen):
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_effects_of_a_mode_are_done_again():
    seen = []

    def function(x):
        with Counts(seen):
            return torch.relu(x) + 1

    fast = framelift.compile(function)
    for _ in range(3):
        x = torch.randn(3, 4)
        del seen[:]
        expected = function(x)
        names = list(seen)
        del seen[:]
        assert torch.equal(fast(x), expected) and seen == names and names


def printing(x):
    return torch.vmap(lambda row: (print("row", row.dim()), row * 2)[1])(x)


def a_break_under_a_mode(x):
    with Doubles():
        y = torch.add(x, 1)
        print("under a mode")
        return torch.add(y, 1)


@pytest.mark.parametrize("function", [printing, a_break_under_a_mode])
def test_unknown_code_under_them_runs_as_itself(function, capsys):
    fast = framelift.compile(function)
    x = torch.randn(3, 4)
    with torch.inference_mode():
        expected = function(x)
        said = capsys.readouterr().out
        for _ in range(3):
            assert torch.equal(fast(x), expected) and capsys.readouterr().out == said
    explanation = framelift.explain(fast)
    assert explanation.native_reason or explanation.breaks


def test_gradients_inside_stay_native():
    def function(x):
        return torch.func.grad(lambda v: (v * v).sum())(x)

    fast = framelift.compile(function)
    for _ in range(3):
        x = torch.randn(3, 4)
        torch.testing.assert_close(fast(x), function(x))
    assert framelift.explain(fast).native_reason or framelift.explain(fast).breaks


def test_errors_are_eagers():
    def function(x):
        return torch.vmap(lambda row: row * row.sum().item())(x)

    fast = framelift.compile(function)
    for call in (function, fast, fast):
        with pytest.raises(RuntimeError, match="vmap: It looks like you're calling .item"):
            call(torch.randn(3, 4))
    assert torch._C._functorch.peek_interpreter_stack() is None


def test_a_batched_tensor_that_escapes_is_not_replayed():
    kept = []

    def function(x):
        def one(row):
            kept[:] = [row]
            return row + 1

        return torch.vmap(one)(x)

    fast = framelift.compile(function)
    for _ in range(3):
        x = torch.randn(3, 4)
        assert torch.equal(fast(x), x + 1)
        assert torch._C._functorch.get_unwrapped(kept[0]).equal(x)
    assert framelift.explain(fast).native_reason


def test_random_numbers_are_drawn_again():
    def function(x):
        return torch.vmap(lambda row: row + torch.rand(()), randomness="different")(x)

    fast = framelift.compile(function)
    with torch.inference_mode(), warnings.catch_warnings():
        for seed in range(3):
            x = torch.randn(3, 4)
            torch.manual_seed(seed)
            expected = function(x)
            torch.manual_seed(seed)
            assert torch.equal(fast(x), expected)


def test_a_first_call_that_loads_what_vmap_needs():
    import os
    import subprocess
    import sys

    code = (
        "import torch, framelift\n"
        "f = framelift.compile(lambda x: torch.vmap(lambda r: r * 2)(x))\n"
        "x = torch.ones(2, 3)\n"
        "assert torch.equal(f(x), x * 2) and torch.equal(f(x), x * 2)\n"
        "e = framelift.explain(f)\n"
        "assert e.segments == 1 and e.replayed == 1, str(e)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
