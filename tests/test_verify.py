"""Engines are compared with eager before they answer: a wrong operator is found and left to PyTorch, and only it."""

import copy

import pytest
import torch

import framelift
from conftest import assert_close
from framelift import _C


@pytest.fixture
def spoil():
    yield _C.spoil
    _C.spoil(None)


def model():
    layers = [
        torch.nn.Linear(16, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 16),
    ]
    return torch.nn.Sequential(*layers, torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("op", ["aten.tanh.default", "aten.gelu.default", "aten.relu.default"])
def test_one_wrong_operator_is_left_to_pytorch(spoil, op, mode):
    spoil(op)
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m)
    with mode():
        for _ in range(3):
            assert_close(fast(x), m(x))
        assert_close(fast(x + 1), m(x + 1))
    e = framelift.explain(fast)
    assert [(o.op, o.count) for o in e.eager] == [(op, 1)]
    assert "verification failed: cosine" in e.eager[0].reason
    assert [p.kind for p in e.partitions] == ["engine", "eager", "engine"]
    assert e.replayed == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["tanh", "gelu", "relu"])
def test_a_wrong_operator_in_16_bits(spoil, op, dtype):
    """A percent is little more than bf16's last digit."""
    spoil(f"aten.{op}.default")
    linear, x = torch.nn.Linear(16, 64).to(dtype).eval(), torch.randn(64, 16).to(dtype)
    act = getattr(torch.nn.functional, op)
    fast = framelift.compile(lambda x: act(linear(x)))
    with torch.no_grad():
        fast(x)
        fast(x)
    e = framelift.explain(fast)
    assert [(o.op, o.count) for o in e.eager] == [(f"aten.{op}.default", 1)]


def relative(a, b):
    """(largest, root mean square) of the differences."""
    a, b = a.double().flatten(), b.double().flatten()
    return ((a - b).abs().max() / b.abs().max()).item(), ((a - b).norm() / b.norm()).item()


class Deep(torch.nn.Module):
    """Hundreds of roundings: in 16 bits two orders of summing differ in the first or second digit."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(layers))
        for layer in self.layers:
            torch.nn.init.orthogonal_(layer.weight, 1.2)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) * 1.5
        return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_deep_models_in_16_bits_are_judged_by_the_exact_answer(dtype, mode):
    torch.manual_seed(3)
    m, x = Deep(40).to(dtype).eval(), torch.randn(32, 64).to(dtype)
    fast = framelift.compile(m)
    with mode():
        fast(x)
        got, eager, exact = fast(x), m(x), copy.deepcopy(m).double()(x.double())
    assert relative(eager, exact)[1] > 4 * torch.finfo(dtype).eps
    for ours, theirs in zip(relative(got, exact), relative(eager, exact), strict=True):
        assert ours <= 2 * theirs
    e = framelift.explain(fast)
    assert not e.eager and [p.kind for p in e.partitions] == ["engine"]


def test_two_wrong_operators_and_one_that_repeats(spoil):
    spoil("aten.tanh.default")

    def f(x):
        y = torch.tanh(torch.relu(x) @ x / 16)
        z = torch.sigmoid(torch.tanh(y) @ x)
        return torch.tanh(z @ x / 16) + y

    fast, x = framelift.compile(f), torch.randn(16, 16)
    with torch.no_grad():
        for _ in range(2):
            assert_close(fast(x), f(x))
    e = framelift.explain(fast)
    failed = [o for o in e.eager if "verification failed" in o.reason]
    assert {o.op for o in failed} == {"aten.tanh.default"} and sum(o.count for o in failed) == 3
    assert e.engines >= 2


def test_what_is_wrong_everywhere_is_eager(spoil):
    spoil("aten.mm.default")

    def f(x):
        for _ in range(60):
            x = torch.relu(x @ x) / 20
        return x

    fast, x = framelift.compile(f), torch.rand(8, 8)
    with torch.no_grad():
        for _ in range(2):
            assert_close(fast(x), f(x))


def test_without_verification_the_fault_shows(spoil):
    spoil("aten.tanh.default")
    m, x = model(), torch.randn(3, 16)
    fast = framelift.compile(m, verify=False)
    with torch.no_grad():
        fast(x)
        assert not torch.allclose(fast(x), m(x), rtol=1e-4)


class Sensitive(torch.nn.Module):
    """The logistic map, where a rounding error doubles in every step."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.mix = torch.nn.Linear(64, 64, bias=False)
        torch.nn.init.orthogonal_(self.mix.weight)

    def forward(self, x):
        x = torch.sigmoid(self.mix(x))
        for _ in range(self.steps):
            x = 3.99 * x * (1 - x)
        return x


@pytest.mark.parametrize("steps", [0, 13, 15])
def test_sensitive_models_are_judged_by_float64(steps):
    torch.manual_seed(3)
    m, x = Sensitive(steps).eval(), torch.randn(8, 64)
    fast = framelift.compile(m)
    with torch.no_grad():
        fast(x)
        got, exact = fast(x), copy.deepcopy(m).double()(x.double())
        allowed = 4 * max((m(x) - exact).abs().max(), (m(x * (1 + 1e-7)) - exact).abs().max())
        assert (got - exact).abs().max() <= allowed
    e = framelift.explain(fast)
    assert not e.eager and [p.kind for p in e.partitions] == ["engine"]


@pytest.mark.parametrize("steps", [0, 8, 13])
def test_a_fault_in_a_sensitive_model_is_found(spoil, steps):
    spoil("aten.sigmoid.default")
    torch.manual_seed(3)
    m, x = Sensitive(steps).eval(), torch.randn(8, 64)
    fast = framelift.compile(m)
    with torch.no_grad():
        fast(x)
        fast(x)
    e = framelift.explain(fast)
    assert "aten.sigmoid.default" in [o.op for o in e.eager]


def test_parts_that_are_near_may_be_far_together():
    """Each engine is near, on inputs as eager has them; the second makes much of what the first one is off by."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Sensitive(13), Sensitive(9)

        def forward(self, x):
            x = torch.special.i0e(self.first(x)) * 0.5  # no engine has it
            for _ in range(self.second.steps):
                x = 3.99 * x * (1 - x)
            return x

    torch.manual_seed(3)
    m, x = Two().eval(), torch.randn(8, 64)
    fast = framelift.compile(m)
    with torch.no_grad():
        fast(x)
        assert_close(fast(x), m(x))
    e = framelift.explain(fast)
    kinds = [p.kind for p in e.partitions]
    assert kinds.count("engine") < 2 and "verification failed" in e.eager[0].reason


def test_where_rounding_grows_most_one_answer_of_eagers_is_not_the_measure():
    """Sums through sine, many times over: what two orders of summing differ by is chance, within eager's own spread."""
    left = 0
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        weight, x = torch.randn(64, 64, generator=g) / 8, torch.randn(4, 64, generator=g)

        def function(x, weight=weight):
            for _ in range(40):
                x = torch.sin(x @ weight * 1.7)
            return x

        fast = framelift.compile(function)
        with torch.inference_mode():
            fast(x)
            error = (fast(x) - function(x)).abs().max()
        explanation = framelift.explain(fast)
        left += bool(explanation.eager)
        assert error <= 0.05 and (explanation.engines == 1 or explanation.eager)
    assert left <= 1
