"""Ordering, counting and writing at indexes in engines: PyTorch's answers, ties and all."""

import pytest
import torch

import framelift

KEYS = [
    lambda n: torch.randn(3, n),
    lambda n: torch.randint(0, 4, (3, n)).float(),  # ties
    lambda n: torch.randn(3, n).masked_fill(torch.rand(3, n) < 0.2, float("nan")),
    lambda n: torch.zeros(3, n),
    lambda n: torch.randint(-3, 3, (3, n)),
    lambda n: torch.arange(3 * n).view(3, n).flip(1).float(),
]


def both(f, *args, engine=True):
    """The engine's answer on other values than those recorded, which must be PyTorch's."""
    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(*args), f(*args), rtol=0, atol=0, equal_nan=True)
    e = framelift.explain(fast)
    assert not engine or (e.engines, e.eager) == (1, ()), e
    return fast


@pytest.mark.parametrize("keys", range(len(KEYS)))
@pytest.mark.parametrize("n", [1, 2, 5, 17, 64, 200, 3000])
def test_topk_is_torch_s_for_ties_too(keys, n):
    torch.manual_seed(n)
    x = KEYS[keys](n)
    for k in sorted({1, min(3, n), n // 2, n}):
        for largest in (True, False):
            for is_sorted in (True, False):
                both(lambda t, k=k, g=largest, s=is_sorted: torch.topk(t, k, -1, g, s), x)
    both(lambda t: torch.topk(t, 2, 0), x)


@pytest.mark.parametrize("keys", range(len(KEYS)))
@pytest.mark.parametrize("n", [1, 16, 33, 500])
def test_stable_sort(keys, n):
    torch.manual_seed(n)
    x = KEYS[keys](n)
    for descending in (True, False):
        both(lambda t, d=descending: torch.sort(t, stable=True, dim=1, descending=d), x)
        both(lambda t, d=descending: torch.sort(t, dim=0, descending=d).values, x)
    both(lambda t: torch.argsort(t, dim=0, stable=True), x)


def test_unstable_positions_of_floats_stay_eager():
    fast = both(lambda t: torch.sort(t + 1).indices * 2, torch.rand(3, 50).round(decimals=1), engine=False)
    assert [o.op for o in framelift.explain(fast).eager] == ["aten.sort.default"]


@pytest.mark.parametrize("bins,lo,hi", [(4, 0, 3), (7, -1, 1), (128, 0, 127), (3, 0.1, 0.7)])
def test_histc(bins, lo, hi):
    torch.manual_seed(bins)
    both(lambda t: torch.histc(t, bins=bins, min=lo, max=hi), torch.randint(0, bins, (999,)).float())
    both(lambda t: torch.histc(t, bins=bins, min=lo, max=hi), torch.randn(50, 9))


def test_scatter_and_index_writes():
    torch.manual_seed(0)
    x, src = torch.randn(4, 6), torch.randn(5, 6)
    at, rows, columns = torch.randint(0, 4, (3, 6)), torch.tensor([3, 0, 3]), torch.tensor([5, -1, 2])
    fs = [
        lambda x: x.scatter(0, at, src),
        lambda x: x.scatter(0, at, 2.0),
        lambda x: x.scatter_add(0, at, src),
        lambda x: x.scatter_reduce(0, at, src, "amax"),
        lambda x: x.scatter_reduce(0, at, src, "prod"),
        lambda x: x.index_add(0, rows, src[:3], alpha=2),
        lambda x: x.index_copy(0, rows[:2], src[:2]),
        lambda x: x.index_fill(1, columns[2:], 7.0),
        lambda x: x.index_put((rows,), src[:3]),
        lambda x: x.index_put((rows, columns), torch.tensor(1.5)),
        lambda x: x.index_put((rows, columns), src[0, :3], accumulate=True),
        lambda x: x.index_put((x > 0,), torch.tensor(0.0)),
        lambda x: x.index_put((x[:, 0] > 0,), torch.tensor(-1.0)),
    ]
    for f in fs:
        both(f, x)


def test_assignments_at_indexes():
    def f(x, at):
        y = torch.zeros_like(x)
        y[at] = x[at] * 2
        y[x > 1] = 0
        y[:, at[:2] % 3] = x[:, :2] + 5
        inverse = torch.empty_like(at)
        inverse[at] = torch.arange(at.shape[0])
        return y, inverse

    both(f, torch.randn(8, 3), torch.randperm(8))


def test_indexes_out_of_range_raise_as_in_eager():
    f = lambda x, at: x.scatter(0, at, 1.0)  # noqa: E731
    fast = both(f, torch.randn(4), torch.tensor([1, 3]))
    with torch.no_grad(), pytest.raises(RuntimeError, match="out of bounds"):
        fast(torch.randn(4), torch.tensor([1, 4]))


@pytest.mark.parametrize("right", [True, False])
def test_bucketize(right):
    edges = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    x = torch.tensor([[-2.0, -1.0, 0.0], [0.3, 2.0, float("nan")]])
    both(lambda t: torch.bucketize(t, edges, right=right), x)
    both(lambda t: torch.searchsorted(edges, t, right=right, out_int32=True), x)


def test_one_hot():
    with torch.inference_mode():
        fast = framelift.compile(lambda t: torch.nn.functional.one_hot(t, 5) * 2)
        for seed in range(3):
            t = torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(fast(t), torch.nn.functional.one_hot(t, 5) * 2)


def test_experts():
    """As transformers' mixtures of experts: sorted by expert, one product for each, put back in order."""
    w = torch.randn(4, 16, 24)

    def f(x, experts):
        order = torch.sort(experts)
        counts = torch.histc(order.values.float(), bins=4, min=0, max=3)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        y = torch._grouped_mm(x[order.indices], w, offs=ends)
        inverse = torch.empty_like(order.indices)
        inverse[order.indices] = torch.arange(experts.shape[0])
        return y[inverse]

    fast = framelift.compile(f)
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            x, experts = torch.randn(70, 16), torch.randint(0, 4, (70,))
            torch.testing.assert_close(fast(x, experts), f(x, experts))
            torch.testing.assert_close(fast(x, experts), torch.einsum("sk,skn->sn", x, w[experts]))
    e = framelift.explain(fast)
    assert (e.engines, e.eager, e.replayed) == (1, (), 5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [True, False])
def test_grid_sample(mode, padding, align):
    torch.manual_seed(0)
    x, grid = torch.randn(2, 3, 7, 5), torch.randn(2, 4, 6, 2)
    f = lambda x, g: torch.nn.functional.grid_sample(x, g, mode, padding, align)  # noqa: E731
    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x, grid), f(x, grid))
    e = framelift.explain(fast)
    assert (e.engines, e.eager) == (1, ())


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_triangular_systems(upper, left, unit):
    torch.manual_seed(0)
    a, b = torch.randn(3, 5, 5) + 3 * torch.eye(5), torch.randn(3, 5, 5)
    f = lambda a, b: torch.linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unit)  # noqa: E731
    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(a, b), f(a, b), rtol=1e-4, atol=1e-4)
    assert framelift.explain(fast).eager == ()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": (2, 4, 4), "stride": (2, 4, 4)},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1, 2), "dilation": (2, 1, 1), "stride": (1, 2, 1)},
        {"kernel_size": (1, 3, 3), "groups": 2},
    ],
)
def test_conv3d(options):
    torch.manual_seed(0)
    conv, x = torch.nn.Conv3d(4, 6, **options), torch.randn(2, 4, 6, 8, 8)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            fast = framelift.compile(conv)
            for _ in range(2):
                torch.testing.assert_close(fast(x), conv(x), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(fast(x[0]), conv(x[0]), rtol=1e-4, atol=1e-5)
            assert framelift.explain(fast).eager == ()


def test_engines_that_are_right_alone_and_wrong_together():
    """The order of rounding errors: each engine answers well to eager's inputs, but the second not to the first's."""
    torch.manual_seed(0)
    w, x = torch.randn(900, 64), torch.randn(8, 900)
    with torch.no_grad():
        exact = x @ w

    def f(x):
        y = x @ w
        third = torch.kthvalue(y, 3).values
        noise = (y - exact) * 1e6 + third[:, None] * 0
        return torch.argsort(noise, dim=1, stable=True), (noise + 1).relu()

    fast = framelift.compile(f)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), f(x))
    e = framelift.explain(fast)
    assert e.replayed == 2 and any("verification failed" in o.reason for o in e.eager)
