"""optimize as context manager and decorator, and disable."""

import gc
import sys
import threading
import weakref

import pytest
import torch

import framelift
from conftest import assert_close

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()


def helper(x, *rest, scale=1.0, **more):
    return torch.relu(x * scale) + sum(rest) + more.get("bias", 0)


def no_hook(function):
    """Whether nothing counts frames: the hook is not installed."""
    before = framelift._C._eval_counts()
    function()
    return framelift._C._eval_counts() == before


def test_modules_inside_are_compiled(net):
    with framelift.optimize() as o:
        for x in (X, X + 1, X):
            assert not torch.is_grad_enabled()
            assert_close(net(x), net.forward(x))
    assert torch.is_grad_enabled()
    (fast,) = [c for c in o.compiled if c.__wrapped__ is net]
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native, e.engines) == (1, 2, 0, 1)
    net(X)
    assert framelift.explain(fast).calls == 3, "nothing is captured outside"


def test_functions_inside_are_compiled_with_all_kinds_of_arguments():
    with framelift.optimize(backend="eager") as o:
        calls = [
            lambda: helper(X),
            lambda: helper(X, 1, 2, scale=2.0),
            lambda: helper(X, X, bias=3, scale=0.5),
            lambda: helper(x=X),
        ]
        answers = [[call() for _ in range(2)] for call in calls]
    assert [c.__wrapped__ for c in o.compiled] == [helper]
    for call, both in zip(calls, answers, strict=True):
        assert torch.equal(both[0], call()) and torch.equal(both[1], call())
    e = framelift.explain(o.compiled[0])
    assert e.calls == 8 and e.native == 0 and e.replayed >= 4


def test_calls_without_tensors_generators_and_libraries_are_left_alone(net):
    def plain(n):
        return [n] * 3

    def makes(x):
        yield x + 1

    with framelift.optimize() as o:
        assert plain(2) == [2, 2, 2]
        assert torch.equal(next(makes(X)), X + 1)
        assert torch.equal(torch.nn.functional.relu(X), X.clamp(min=0))
        assert sorted([2, 1], key=lambda v: v) == [1, 2]
    assert o.compiled == []


def test_errors_and_the_way_out(net):
    def fails(x):
        raise KeyError("mine")

    o = framelift.optimize()
    with pytest.raises(KeyError, match="mine"), o:
        fails(X)
    assert torch.is_grad_enabled() and framelift._C.door_set(None) is None
    with o, pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.ones(2, 3))
    assert no_hook(lambda: helper(X))


def test_nested_contexts_and_use_again(net):
    outer, inner = framelift.optimize(), framelift.optimize(backend="eager")
    with outer:
        net(X)
        with inner:
            helper(X)
        net(X)
    assert [c.__wrapped__ for c in outer.compiled] == [net]
    assert [c.__wrapped__ for c in inner.compiled] == [helper]
    with outer:
        net(X)
    assert framelift.explain(outer.compiled[0]).calls == 3


def test_grad_mode_inside_runs_natively(net):
    with framelift.optimize() as o, torch.enable_grad():
        net(X).sum().backward()
    assert net[0].weight.grad is not None and o.compiled == []


def test_other_threads_are_not_captured(net):
    answers = []
    with framelift.optimize() as o:
        thread = threading.Thread(target=lambda: answers.append(helper(X)))
        thread.start()
        thread.join()
    assert o.compiled == [] and torch.equal(answers[0], helper(X))


def test_closures_made_anew_are_bounded():
    def make(n):
        def closure(x):
            return x + n

        return closure

    with framelift.optimize(backend="eager") as o:
        for n in range(20):
            assert torch.equal(make(n)(X), X + n)
    assert len(o.compiled) == 8


def test_deep_recursion_inside(net):
    def deep(n, x):
        return x if n == 0 else deep(n - 1, x)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(60000)
    try:
        with framelift.optimize():
            assert deep(20000, X) is X
    finally:
        sys.setrecursionlimit(limit)


def test_nothing_is_leaked():
    net = torch.nn.Linear(8, 8)
    ref = weakref.ref(net)
    with framelift.optimize() as o:
        for _ in range(3):
            net(X)
    del net, o
    gc.collect()
    assert ref() is None


def test_arguments_keep_their_reference_counts(net):
    x = torch.randn(3, 8)
    with framelift.optimize() as o:
        net(x)
        before = sys.getrefcount(x)
        for _ in range(50):
            net(x)
        assert sys.getrefcount(x) == before
    assert framelift.explain(o.compiled[0]).replayed == 50


def test_decorator(net):
    @framelift.optimize(backend="eager", fallback="error")
    def fn(x):
        return net(x) * 2

    with torch.no_grad():
        fn(X)
        assert torch.equal(fn(X), net(X) * 2)
    assert framelift.explain(fn).replayed == 1


def test_wrong_options_at_once():
    with pytest.raises(ValueError, match="backend is 'tvm'"):
        framelift.optimize("tvm")
    with pytest.raises(ValueError, match="threads is 0"):
        framelift.optimize(threads=0)
    with pytest.raises(TypeError, match="disable: function must be callable"):
        framelift.disable(3)


def test_disabled_function_runs_natively_and_is_the_reason():
    seen = []

    @framelift.disable
    def log(x, *, times=1):
        """Doc."""
        seen.append(float(x.sum()) * times)
        return helper(x)

    assert log.__name__ == "log" and log.__doc__ == "Doc."

    def fn(x):
        return log(x * 2, times=2) + 1

    fast = framelift.compile(fn)
    for _ in range(3):
        assert_close(fast(X), helper(X * 2) + 1)
    assert len(seen) == 3
    e = framelift.explain(fast)
    assert (e.recorded, e.replayed, e.native) == (0, 0, 3)
    assert "a disabled function: " in e.native_reason and e.native_reason.endswith("log")


def test_disabled_inside_a_context(net):
    @framelift.disable
    def outside(x):
        return net(x)

    with framelift.optimize() as o:
        assert_close(outside(X), net(X))
    (fast,) = [c for c in o.compiled if c.__wrapped__ is net]
    assert framelift.explain(fast).calls == 1, "only the call that is not in the disabled function"
