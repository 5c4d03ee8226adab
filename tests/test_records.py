"""Arguments that are named tuples, dataclasses and namespaces of tensors: another object in each call."""

import dataclasses
import types
import typing

import pytest
import torch

import framelift
from conftest import assert_close


class Pair(typing.NamedTuple):
    a: torch.Tensor
    b: torch.Tensor
    n: int = 2

    def both(self):
        return self.a * self.n + self.b


@dataclasses.dataclass
class Batch:
    a: torch.Tensor
    b: torch.Tensor
    n: int = 2
    default = 3

    @property
    def size(self):
        return self.a.shape[0]

    def both(self):
        return self.a * self.n + self.b


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: torch.Tensor
    b: torch.Tensor
    n: int = 2


def namespace(a, b, n=2):
    return types.SimpleNamespace(a=a, b=b, n=n)


def ab(seed=0, rows=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=g), torch.randn(rows, 4, generator=g)


def last(fast):
    e = framelift.explain(fast)
    return e.recorded, e.replayed, e.native


@pytest.mark.parametrize("make", [Pair, Batch, Frozen, namespace])
@pytest.mark.parametrize("nested", [lambda p: p, lambda p: [p], lambda p: {"p": (p, 1)}])
def test_new_objects_replay(make, nested):
    def f(x):
        p = x["p"][0] if isinstance(x, dict) else x[0] if isinstance(x, list) else x
        return torch.relu(p.a) * p.n + p.b, p.a.shape[0]

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in range(5):
            x = nested(make(*ab(seed)))
            assert_close(fast(x)[0], f(x)[0])
        recorded, replayed, native = last(fast)
        assert replayed == 5 - recorded and recorded <= 2 and not native
        for p in (make(*ab(7), n=5), make(*ab(7, rows=2)), make(ab(7)[0].double(), ab(7)[1]), make(*ab(8))):
            x = nested(p)
            got, want = fast(x), f(x)
            assert_close(got[0], want[0])
            assert got[0].dtype == want[0].dtype and got[1] == want[1]


def test_methods_properties_and_class_attributes():
    def f(p):
        return p.both() * p.size + p.default

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in range(4):
            p = Batch(*ab(seed))
            assert_close(fast(p), f(p))
        assert last(fast)[1] == 2
        p.default = 9  # an attribute of its own
        assert_close(fast(p), f(p))
        p = Batch(*ab(1))
        assert_close(fast(p), f(p))
        Batch.default = 4
        try:
            assert_close(fast(p), f(p))
        finally:
            Batch.default = 3
        assert_close(fast(p), f(p))


def test_a_subclass_is_another_type():
    class Louder(Batch):
        def both(self):
            return super().both() * 100

    def f(p):
        return p.both()

    fast = framelift.compile(f)
    with torch.no_grad():
        for make in (Batch, Batch, Batch, Louder, Batch, Louder, Louder):
            p = make(*ab(1))
            assert_close(fast(p), f(p))


def test_attributes_that_come_and_go():
    def f(p):
        return p.a * 2 if hasattr(p, "extra") else p.a

    fast = framelift.compile(f)
    with torch.no_grad():
        for extra in (False, False, False, True, False, True, True):
            p = namespace(*ab(1))
            if extra:
                p.extra = None
            assert_close(fast(p), f(p))


def test_writes_to_a_record():
    def f(p):
        p.a = p.a + 1
        return p.a * 2

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in range(4):
            p, q = Batch(*ab(seed)), Batch(*ab(seed))
            assert_close(fast(p), f(q))
            assert_close(p.a, q.a)


@pytest.mark.parametrize("make", [lambda: Batch(*ab(1)), lambda: [ab(1)[0]], lambda: {"a": ab(1)[0]}])
def test_one_container_given_twice(make):
    def f(p, q):
        x = p.a if isinstance(p, Batch) else p["a"] if isinstance(p, dict) else p[0]
        return x * 2 if p is q else x * 3

    fast = framelift.compile(f)
    with torch.no_grad():
        for twice in (False, False, False, True, False, True, True):
            p = make()
            q = p if twice else make()
            assert_close(fast(p, q), f(p, q))


def test_results_that_hold_the_argument():
    def f(p):
        return p, p.a + 1

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in range(4):
            for p in (Pair(*ab(seed)), Batch(*ab(seed))):
                got = fast(p)
                assert got[0] is p
                assert_close(got[1], p.a + 1)


def test_a_break_while_a_record_is_alive():
    def f(p):
        y = torch.relu(p.a)
        if y.sum().item() > 1e9:
            return y
        return y * p.n + p.b

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in (0, 1, 2, 0, 1, 2):
            for make in (Batch, Pair, namespace):
                p = make(*ab(seed))
                assert_close(fast(p), f(p))


def test_grad_is_not_lost():
    fast = framelift.compile(lambda p: p.a * 2)
    for _ in range(4):
        p = Batch(*ab(1))
        assert not fast(p).requires_grad
    p.a.requires_grad_()
    with pytest.warns(UserWarning, match="requires grad"):
        assert fast(p).requires_grad


def test_an_object_that_stays_keeps_its_weights():
    """A model written as a dataclass: its tensors are weights, and change in place."""

    @dataclasses.dataclass
    class Model:
        weight: torch.Tensor

        def run(self, x):
            return x @ self.weight

    m, x = Model(torch.randn(4, 4)), torch.randn(2, 4)
    fast = framelift.compile(Model.run)
    with torch.no_grad():
        for _ in range(3):
            assert_close(fast(m, x), m.run(x))
        assert framelift.explain(fast).traces[0].weights == 1
        m.weight.add_(1)
        assert_close(fast(m, x), m.run(x))
        m.weight = torch.randn(4, 4)
        assert_close(fast(m, x), m.run(x))
