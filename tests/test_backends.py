"""Segments as GraphModules, and backends that compute them."""

import gc
import weakref

import pytest
import torch

import framelift
from conftest import assert_close
from framelift import backends, fx


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.out = torch.nn.Linear(8 * 36, 6)

    def forward(self, x):
        y = torch.relu_(self.norm(self.conv(x)))
        a, b = self.out(y.flatten(1)).chunk(2, dim=-1)
        return torch.cat([a, b * 2], 0)


def forwards(gm, example_inputs):
    return gm.forward


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def registered():
    yield
    backends._registered.clear()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_graph_module_is_eager_bit_for_bit(net, mode):
    fast = framelift.compile(net, backend="eager")
    with mode():
        fast(X)
        (gm,) = fx.graph_modules(fast)
        other = X * 2 + 1
        (answer,) = gm(other, *gm.weights)
        assert torch.equal(answer, net(other))
    assert isinstance(gm, torch.fx.GraphModule)
    calls = [n for n in gm.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)]
    assert len(calls) == framelift.explain(fast).operators
    assert all(n.meta["file"] and n.meta["line"] > 0 and "line" in n.meta["stack_trace"] for n in calls)
    assert {"conv", "norm", "out"} <= {(n.meta["module"] or "").split(".")[-1] for n in calls}
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    assert [n.meta["weight"] for n in placeholders[1:]] == list(gm.weights)
    assert any(w is net.conv.weight for w in gm.weights)


def test_graphs_on_both_sides_of_a_break():
    def fn(x):
        y = x * 2
        return y + 1 if y.sum() > 0 else (y - 1).cos()

    fast = framelift.compile(fn, backend=forwards)
    for x in (torch.ones(3), -torch.ones(3), torch.ones(3) * 4, -torch.ones(3) * 4):
        assert torch.equal(fast(x), fn(x))
    assert framelift.explain(fast).replayed == 2
    assert [len(gm.weights) for gm in fx.graph_modules(fast)] == [0] * framelift.explain(fast).segments


def test_callable_backend_gets_the_graph_and_later_calls(net):
    seen, calls = [], []

    def backend(gm, example_inputs):
        seen.append((gm, example_inputs))

        def run(*args):
            calls.append(args)
            return gm(*args)

        return run

    fast = framelift.compile(net, backend=backend)
    with torch.no_grad():
        fast(X)
        del calls[:]
        other = X + 1
        assert torch.equal(fast(other), net(other))
    ((gm, example_inputs),) = seen
    assert torch.equal(example_inputs[0], X) and len(example_inputs) == 1 + len(gm.weights)
    ((args),) = calls
    assert args[0] is other and args[1] is net.conv.weight
    (segment,) = framelift.explain(fast).graphs
    assert segment.backend.endswith("backend") and segment.backend_reason is None
    assert "backends" in str(framelift.explain(fast))


def test_weights_stay_live(net):
    fast = framelift.compile(net, backend=forwards)
    with torch.no_grad():
        fast(X)
        net.out.weight.mul_(2)
        net.conv.bias.data = torch.randn(8)
        assert torch.equal(fast(X), net(X))
    assert framelift.explain(fast).replayed == 1


def raises(gm, example_inputs):
    raise NotImplementedError("no such operator\nlong story")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (raises, "raises: NotImplementedError: no such operator"),
        (lambda gm, inputs: 3, "gave int, not a callable"),
        (lambda gm, inputs: lambda *a: [t + 1 for t in gm(*a)], "output 0: the answer differs from eager's"),
        (lambda gm, inputs: lambda *a: [t.double() for t in gm(*a)], "output 0: dtype is torch.float64"),
        (lambda gm, inputs: lambda *a: [t.t().contiguous().t() for t in gm(*a)], "output 0: strides are"),
        (lambda gm, inputs: lambda *a: (), "gave tuple, not 1 tensors"),
    ],
)
def test_a_backend_that_is_wrong_is_not_used(net, backend, reason):
    fast = framelift.compile(net, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(fast(X), net(X))
    (segment,) = framelift.explain(fast).graphs
    assert segment.backend == "eager" and reason in segment.backend_reason


@pytest.mark.parametrize("wrong", [ValueError("later"), "shape"])
def test_a_backend_that_fails_later_leaves_the_call_to_the_operators(net, wrong):
    state = {"on": False}

    def backend(gm, example_inputs):
        def run(*args):
            if state["on"] and isinstance(wrong, Exception):
                raise wrong
            return [t[:1] for t in gm(*args)] if state["on"] else gm(*args)

        return run

    fast = framelift.compile(net, backend=backend)
    with torch.no_grad():
        fast(X)
        state["on"] = True
        assert torch.equal(fast(X + 1), net(X + 1))


def test_writes_and_random_operators_stay_with_pytorch():
    asked = []

    def backend(gm, example_inputs):
        asked.append(gm)
        return gm.forward

    def writes(x):
        x.add_(1)
        return x * 2

    fast = framelift.compile(writes, backend=backend)
    for _ in range(3):
        x, y = torch.ones(3), torch.ones(3)
        assert torch.equal(fast(x), writes(y)) and torch.equal(x, y)
    drops = framelift.compile(lambda x: torch.nn.functional.dropout(x, 0.5, True) + 1, backend=backend)
    for seed in range(3):
        torch.manual_seed(seed)
        answer = drops(torch.ones(64))
        torch.manual_seed(seed)
        assert torch.equal(answer, torch.nn.functional.dropout(torch.ones(64), 0.5, True) + 1)
    assert asked == []


def test_asking_a_backend_draws_no_random_numbers(net):
    def backend(gm, example_inputs):
        torch.rand(7)
        return gm.forward

    torch.manual_seed(5)
    framelift.compile(net, backend=backend)(X)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_registry(net, registered):
    assert framelift.list_backends() == ["framelift", "eager", "inductor", "auto"]
    framelift.register_backend("forwards", forwards)
    assert framelift.list_backends()[-1] == "forwards"
    fast = framelift.compile(net, backend="forwards")
    with torch.no_grad():
        assert torch.equal(fast(X), net(X))
    assert [s.backend for s in framelift.explain(fast).graphs] == ["forwards"]
    for name, function, error in [("eager", forwards, ValueError), (3, forwards, TypeError), ("x", 3, TypeError)]:
        with pytest.raises(error, match="^register_backend: "):
            framelift.register_backend(name, function)


def test_inductor_without_a_compiler(net, monkeypatch):
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="backend 'inductor' needs a C\\+\\+ compiler"):
        framelift.compile(net, backend="inductor")
    fast = framelift.compile(net, backend="auto")
    with torch.no_grad():
        fast(X)
        assert_close(fast(X), net(X))
    (segment,) = framelift.explain(fast).graphs
    assert set(segment.backend_ms) == {"framelift", "eager"}
    assert segment.backend_failed == {"inductor": "no C++ compiler"}
    assert segment.backend == min(segment.backend_ms, key=segment.backend_ms.get)


@pytest.mark.skipif(bool(backends._compiler_missing()), reason="no C++ compiler")
def test_inductor(net):
    fast = framelift.compile(net, backend="inductor")
    with torch.no_grad():
        fast(X)
        assert_close(fast(X + 1), net(X + 1))
        net.out.bias.add_(1)
        assert_close(fast(X), net(X))
    (segment,) = framelift.explain(fast).graphs
    assert (segment.backend, segment.backend_reason) == ("inductor", None)


@pytest.mark.parametrize("fastest", ["framelift", "eager", "inductor"])
def test_auto_keeps_the_fastest(net, monkeypatch, fastest):
    monkeypatch.setattr(backends, "_compiler_missing", lambda: None)
    monkeypatch.setattr(backends, "inductor", forwards)
    monkeypatch.setattr(backends, "_times", lambda runs: {n: 1.0 if n == fastest else 2.0 for n in runs})
    fast = framelift.compile(net, backend="auto")
    with torch.no_grad():
        fast(X)
        assert_close(fast(X + 1), net(X + 1))
    e = framelift.explain(fast)
    assert [s.backend for s in e.graphs] == [fastest]
    assert e.engines == (fastest == "framelift")


def test_reset_of_all(net):
    first, second = framelift.compile(net), framelift.compile(lambda x: x + 1)
    with torch.no_grad():
        first(X), second(X)
    framelift.reset()
    assert framelift.explain(first).segments == framelift.explain(second).segments == 0


@pytest.mark.parametrize("backend", ["framelift", backends.dynamo])
def test_torch_compile(net, backend):
    if backend == "framelift" and backend not in torch._dynamo.list_backends():
        pytest.skip("the package is not installed: no entry point")
    fast = torch.compile(net, backend=backend)
    with torch.no_grad():
        for x in (X, X + 1, X):
            assert_close(fast(x), net(x))
        net.out.weight.mul_(3)
        assert_close(fast(X), net(X))
    torch._dynamo.reset()


def test_torch_compile_packs_parameters(net):
    made = []

    def backend(gm, example_inputs):
        made.append(backends.dynamo(gm, example_inputs))
        return made[-1]

    with torch.no_grad():
        fast = torch.compile(net, backend=backend)
        for _ in range(3):
            assert_close(fast(X), net(X))
    (call,) = made
    e = framelift.explain(call.compiled)
    assert (e.recorded, e.replayed, e.native, e.engines) == (1, 2, 0, 1), str(e)
    assert e.traces[0].weights >= 4
    torch._dynamo.reset()


def test_torch_compile_with_grad_keeps_gradients(net):
    fast = torch.compile(net, backend=backends.dynamo)
    with pytest.warns(UserWarning, match="grad mode on"):
        fast(X).sum().backward()
    assert net.conv.weight.grad is not None
    torch._dynamo.reset()


def test_nothing_is_leaked():
    net = Net().eval()
    made = []

    def backend(gm, example_inputs):
        def run(*args):
            return gm(*args)

        made.append(weakref.ref(run))
        return run

    fast = framelift.compile(net, backend=backend)
    with torch.no_grad():
        for _ in range(3):
            fast(X)
    model = weakref.ref(net)
    framelift.reset(fast)
    gc.collect()
    assert made[0]() is None, "reset lets go of what the backend made"
    with torch.no_grad():
        fast(X)
    del fast, net
    gc.collect()
    assert made[1]() is None and model() is None


def test_a_result_replaces_nothing_it_should_not():
    x = torch.ones(4)
    fast = framelift.compile(lambda a: (a + 1, a.view(2, 2), a.t()), backend=forwards)
    for _ in range(2):
        plus, view, same = fast(x)
        assert torch.equal(plus, x + 1) and view.data_ptr() == x.data_ptr() == same.data_ptr()
