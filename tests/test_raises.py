"""What eager refuses for the values it is given, a replay refuses too: also where nobody needs the result."""

import pytest
import torch
import torch.nn.functional as F

import framelift

TABLE = torch.arange(24.0).reshape(6, 4)


def checked(a, name):
    """An operator that raises, nothing it gives is used."""
    return {
        "embedding": lambda: F.embedding(a, TABLE),
        "index_select": lambda: TABLE.index_select(0, a),
        "gather": lambda: torch.gather(TABLE, 0, a.reshape(2, 1)),
        "index": lambda: TABLE[a],
        "index twice": lambda: TABLE[a, a[:1]],
        "take": lambda: torch.take(TABLE, a * 5),
        "scatter": lambda: torch.zeros(6, 4).scatter(0, a.reshape(2, 1), 1.0),
        "index_add": lambda: torch.zeros(6, 4).index_add(0, a, torch.ones(2, 4)),
        "index_put": lambda: torch.zeros(6).index_put((a,), torch.ones(2)),
        "index_copy": lambda: torch.zeros(6, 4).index_copy(0, a, torch.ones(2, 4)),
        "index_fill": lambda: torch.zeros(6, 4).index_fill(0, a, 1.0),
        "one_hot": lambda: F.one_hot(a, 6),
        "nll_loss": lambda: F.nll_loss(TABLE[:2, :].repeat(1, 2)[:, :6], a),
        "cross_entropy": lambda: F.cross_entropy(TABLE.t()[:2], a),
        "embedding_bag": lambda: F.embedding_bag(a.reshape(1, 2), TABLE),
        "floor_divide": lambda: 7 // (a - 6),
        "remainder": lambda: torch.remainder(a, a - 6),
        "remainder by": lambda: 7 % (a - 6),
        "fmod": lambda: torch.fmod(a, a - 6),
        "div floor": lambda: torch.div(a, a - 6, rounding_mode="floor"),
        "div trunc": lambda: torch.div(a, a - 6, rounding_mode="trunc"),
        "cholesky": lambda: torch.linalg.cholesky(torch.eye(2) * (6 - a).float()),
        "inv": lambda: torch.linalg.inv(torch.eye(2) * (6 - a).float()),
        "solve": lambda: torch.linalg.solve(torch.eye(2) * (6 - a).float(), torch.ones(2)),
        "assert": lambda: torch._assert_async((a < 6).all()),
        "bincount": lambda: torch.bincount(5 - a),
        "multinomial": lambda: torch.multinomial((5 - a).float() + 0.5, 1),
        "bernoulli": lambda: torch.bernoulli((6 - a) * 0.1 * (a < 6) + 2.0 * (a > 5)),
        "repeat_interleave": lambda: torch.repeat_interleave(TABLE[:2], 5 - a, dim=0),
    }[name]


NAMES = [
    "embedding", "index_select", "gather", "index", "index twice", "take", "scatter", "index_add",
    "index_put", "index_copy", "index_fill", "one_hot", "nll_loss", "cross_entropy", "embedding_bag", "floor_divide",
    "remainder", "remainder by", "fmod", "div floor", "div trunc", "cholesky", "inv", "solve", "assert", "bincount",
    "multinomial", "bernoulli", "repeat_interleave",
]  # fmt: skip


def dead(name):
    def f(x, a):
        checked(a, name)()
        return torch.relu(x) + 1

    return f


def first_of_two(name):
    """The result is used, then nothing of it is."""

    def f(x, a):
        y = checked(a, name)()
        if isinstance(y, torch.Tensor) and y.dim():
            z = torch.cat([y.reshape(-1).float(), x.reshape(-1)])[y.numel() :]
            return z * 2
        return x * 2

    return f


def in_a_branch_of_where(name):
    def f(x, a):
        y = checked(a, name)()
        if isinstance(y, torch.Tensor) and y.dim():
            return torch.where(y.float() > 1e9, y.float(), 0.0).sum() * 0 + x
        return x + 0

    return f


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [dead, first_of_two, in_a_branch_of_where])
@pytest.mark.parametrize("name", NAMES)
def test_bad_values_raise_on_replay(name, make, mode):
    fn, fast = make(name), framelift.compile(make(name))
    good, bad, x = torch.tensor([1, 2]), torch.tensor([1, 6]), torch.randn(3)
    with mode():
        for _ in range(3):
            torch.manual_seed(0)
            want = fn(x, good)
            torch.manual_seed(0)
            assert torch.equal(fast(x, good), want)
        with pytest.raises(Exception) as want:  # noqa: PT011: whatever eager raises
            fn(x, bad)
        with pytest.raises(type(want.value)) as got:
            fast(x, bad)
        assert str(got.value) == str(want.value)
        torch.manual_seed(0)
        want = fn(x, good)
        torch.manual_seed(0)
        assert torch.equal(fast(x, good), want)


def test_an_index_in_a_buffer_goes_out_of_range():
    index = torch.tensor([0, 5])

    def unused(x):
        TABLE[index]
        return x + 1

    def used(x):
        return x + TABLE[index].sum()

    for fn in (unused, used):
        index.copy_(torch.tensor([0, 5]))
        fast = framelift.compile(fn)
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(fast(torch.ones(3)), fn(torch.ones(3)))
            index[0] = 6
            for _ in range(2):
                with pytest.raises(IndexError) as got:
                    fast(torch.ones(3))
                with pytest.raises(IndexError) as want:
                    fn(torch.ones(3))
                assert str(got.value) == str(want.value)
            index[0] = 3
            assert torch.equal(fast(torch.ones(3)), fn(torch.ones(3)))


def test_take_along_dim_wraps_as_in_eager():
    def f(a):
        return torch.take_along_dim(TABLE, a.reshape(-1, 1), 0)

    fast = framelift.compile(f)
    with torch.no_grad():
        for a in ([1, 2], [5, 0], [6, 1], [-1, 2], [-6, 11]):
            assert torch.equal(fast(torch.tensor(a)), f(torch.tensor(a)))


def test_an_unused_operator_that_cannot_raise_is_left_out():
    def f(x, i):
        torch.exp(x)
        x / 0
        i // 2
        torch.remainder(x, 0)
        torch.sort(x)
        i // i
        return x + 1

    fast = framelift.compile(f)
    x, i = torch.ones(4), torch.ones(3, dtype=torch.int64)
    with torch.no_grad():
        fast(x, i)
        assert torch.equal(fast(x, i), f(x, i))
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            fast(x, i * 0)
    e = framelift.explain(fast)
    # i // 2 is lowered, and the engine sees that 2 is not 0
    assert e.dead == 4 and e.lowered == 3 and not e.eager and [p.nodes for p in e.partitions] == [2]
