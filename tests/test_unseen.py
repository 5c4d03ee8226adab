"""The fast looks at tensors and at global state: whatever they could miss is seen all the same."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import framelift
from framelift import _C


def norm(features=64, **kwargs):
    torch.manual_seed(0)
    m = torch.nn.BatchNorm1d(features, **kwargs).eval()
    m.running_mean.normal_()
    m.running_var.uniform_(0.5, 2)
    return m


def train_step(m, x):
    m.train()(x)
    m.eval()


def train_by_hand(m, x):
    F.batch_norm(x, m.running_mean, m.running_var, training=True)


def train_first_half(m, x):
    n = m.num_features // 2
    F.batch_norm(x[:, :n], m.running_mean[:n], m.running_var[:n], training=True)


def train_last_half(m, x):
    n = m.num_features // 2
    F.batch_norm(x[:, n:], m.running_mean[n:], m.running_var[n:], training=True)


@pytest.mark.parametrize("step", [train_step, train_by_hand, train_first_half, train_last_half])
@pytest.mark.parametrize("kwargs", [{}, {"momentum": None}, {"momentum": 0.001}])
@pytest.mark.parametrize("features", [6, 64, 513])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_batch_norm_elsewhere_is_seen(step, kwargs, features, mode):
    m = norm(features, **kwargs)
    fast = framelift.compile(torch.nn.Sequential(torch.nn.Linear(features, features), m).eval())
    x = torch.randn(16, features)
    with mode():
        for _ in range(4):
            for _ in range(2):
                torch.testing.assert_close(fast(x), fast.__wrapped__(x), rtol=1e-4, atol=1e-5)
            step(m, torch.randn(16, features) * 3 + 1)
    assert len(framelift.explain(fast).traces) == 1


def test_statistics_without_a_counter_are_compared_whole():
    mean, var = torch.zeros(4096), torch.ones(4096)

    def f(x):
        return F.batch_norm(x, mean, var)

    fast, x = framelift.compile(f), torch.randn(4, 4096)
    with torch.no_grad():
        fast(x)
        F.batch_norm(x[:, 7:8], mean[7:8], var[7:8], training=True)
        torch.testing.assert_close(fast(x), f(x))


def test_another_counter_is_another_module():
    m = norm()
    fast, x = framelift.compile(m), torch.randn(4, 64)
    with torch.no_grad():
        fast(x)
        m.num_batches_tracked = torch.tensor(0)
        fast(x)
        train_step(m, x)
        torch.testing.assert_close(fast(x), m(x))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DefaultDtype:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *exc):
        torch.set_default_dtype(torch.float32)


class Deterministic:
    def __enter__(self):
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *exc):
        torch.use_deterministic_algorithms(False)


STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "function mode": Functions,
    "dispatch mode": Dispatch,
    "functions off": torch._C.DisableTorchFunction,
    "default dtype": DefaultDtype,
    "deterministic": Deterministic,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("state", list(STATES))
def test_global_state_is_seen(state, watch):
    watched = watch(lambda x: torch.nn.functional.linear(x, x) + torch.ones(3))
    x = torch.randn(3, 3)
    with torch.no_grad():
        assert [watched(x), watched(x)] == ["recorded", "replayed"]
        for again in (False, True):
            with STATES[state]():
                assert again or watched(x) != "replayed"
                got, want = watched.fast(x), watched.fast.__wrapped__(x)
                assert (got.dtype, got.is_inference()) == (want.dtype, want.is_inference())
            assert watched(x) == "replayed"


def test_state_is_each_threads_own():
    def f(x):
        return torch.nn.functional.linear(x, x)

    fast, x, seen = framelift.compile(f), torch.randn(3, 3), []

    def other():
        with torch.no_grad():
            seen.append(fast(x).dtype)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                seen.append(fast(x).dtype)

    with torch.no_grad():
        fast(x), fast(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            seen.append(fast(x).dtype)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_functorch_and_tracing_run_natively():
    def f(x):
        return x * 2 + 1

    fast, x = framelift.compile(f), torch.randn(4, 3)
    with torch.no_grad():
        fast(x), fast(x)
        torch.testing.assert_close(torch.vmap(fast)(x), f(x))
        torch.testing.assert_close(torch.vmap(torch.vmap(fast))(x), f(x))
        with pytest.warns(UserWarning, match="requires grad"):
            torch.testing.assert_close(torch.func.grad(lambda y: fast(y).sum())(x), torch.full_like(x, 2))
        with pytest.warns(DeprecationWarning):
            traced = torch.jit.trace(lambda y: fast(y), x)
        torch.testing.assert_close(traced(x + 1), f(x + 1))
        before = framelift.explain(fast).replayed
        torch.testing.assert_close(fast(x), f(x))
        assert framelift.explain(fast).replayed == before + 1


ALIKE = {
    "another": lambda: torch.randn(2, 3),
    "a slice": lambda: torch.randn(5, 3)[2:4],
    "a view": lambda: torch.randn(6).view(2, 3),
    "an inference tensor": lambda: made_in_inference(2, 3),
    "a detached one": lambda: torch.randn(2, 3, requires_grad=True).detach(),
}
UNLIKE = {
    "strides": lambda: torch.randn(3, 2).t(),
    "expanded": lambda: torch.randn(1, 3).expand(2, 3),
    "sizes": lambda: torch.randn(3, 2),
    "rank": lambda: torch.randn(2, 3, 1),
    "double": lambda: torch.randn(2, 3, dtype=torch.float64),
    "int": lambda: torch.ones(2, 3, dtype=torch.int32),
    "negative bit": lambda: torch._neg_view(torch.randn(2, 3)),
    "conjugate": lambda: torch.randn(2, 3, dtype=torch.complex64).conj().real,
    "sparse": lambda: torch.randn(2, 3).to_sparse(),
    "parameter": lambda: torch.nn.Parameter(torch.randn(2, 3), requires_grad=False),
}


def made_in_inference(*sizes):
    with torch.inference_mode():
        return torch.randn(*sizes)


@pytest.mark.parametrize("first", ["another", "a view", "an inference tensor"])
def test_arguments_alike_and_unlike(first):
    def f(x):
        return torch.sin(x) * 2

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(2):
            x = ALIKE[first]()
            fast(x), fast(x)
            for make in ALIKE.values():
                x, before = make(), framelift.explain(fast).replayed
                torch.testing.assert_close(fast(x), f(x))
                assert framelift.explain(fast).replayed == before + 1
            for make in UNLIKE.values():
                x = make()
                want = f(x)
                torch.testing.assert_close(fast(x), want)
                assert fast(x).dtype == want.dtype


def test_an_argument_that_came_to_require_grad():
    fast, x = framelift.compile(lambda x: x * 2), torch.randn(3)
    fast(x)
    assert not fast(x).requires_grad
    x.requires_grad_()
    with pytest.warns(UserWarning, match="requires grad"):
        assert fast(x).requires_grad


def test_storage_changes_are_seen():
    lin = torch.nn.Linear(8, 8, bias=False)
    fast, x = framelift.compile(lin), torch.randn(2, 8)
    with torch.no_grad():
        fast(x)
        changes = [
            lambda w: setattr(w, "data", w.data.t()),
            lambda w: setattr(w, "data", w.data.clone()),
            lambda w: torch.utils.swap_tensors(w, torch.nn.Parameter(torch.randn(8, 8))),
            lambda w: w.set_(torch.randn(80)[16:].view(8, 8)),
            lambda w: w.untyped_storage().copy_(torch.randn(80).untyped_storage()) and w.add_(0),
            lambda w: w.t_(),
        ]
        for change in changes:
            change(lin.weight)
            for _ in range(2):
                torch.testing.assert_close(fast(x), lin(x))


def test_guards_that_hold_cost_little():
    """A namespace whose other names change on every call is looked at, and nothing is recorded."""
    fast = framelift.compile(lambda x: x * SCALE)
    with torch.no_grad():
        for i in range(20):
            globals()["UNRELATED"] = i
            assert fast(torch.ones(3)).tolist() == [2.0] * 3
        globals()["SCALE"] = 3
        assert fast(torch.ones(3)).tolist() == [3.0] * 3
        globals()["SCALE"] = 2
        assert fast(torch.ones(3)).tolist() == [2.0] * 3
    assert len(framelift.explain(fast).traces) == 2
    assert _C.overhead(fast, (torch.ones(3),), {}, 100)[0] < 1000


SCALE = 2
UNRELATED = 0
