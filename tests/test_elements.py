"""Elements of tensors that a program looks at: guarded where they are an argument's or a weight's, else a break."""

import torch

import framelift

LIN = torch.nn.Linear(4, 4).eval()


def check(f, calls):
    """Calls f on each of `calls`; returns its explanation."""
    fast = framelift.compile(f)
    with torch.no_grad():
        for args in calls:
            torch.testing.assert_close(fast(*args), f(*args))
    return framelift.explain(fast)


def counts(e):
    return e.recorded, e.replayed, e.native, e.segments, len(e.breaks)


def test_tolist_of_an_argument_is_a_guard():
    def f(x, grid):
        rows = [h * w for _, h, w in grid.tolist()]
        return LIN(x) * sum(rows) + len(rows)

    x, grid, other = torch.randn(5, 4), torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    e = check(f, [(x, grid), (x, grid.clone()), (x, other), (x, grid), (x, other)])
    assert counts(e) == (2, 3, 0, 2, 0)


def test_item_of_an_argument_takes_effect_each_call():
    e = check(lambda x, n: LIN(x) * n.item(), [(torch.randn(5, 4), torch.tensor(k)) for k in (2.0, 2.0, 3.0)])
    assert e.native == 0 and e.replayed >= 1


def test_what_is_computed_from_a_guarded_argument_is_fixed():
    def f(x, lengths):
        ends = [0] + lengths.tolist()
        parts = torch.split(x, (lengths + 0).tolist())
        return torch.cat([p * len(ends) for p in parts]), torch.repeat_interleave(x, lengths * 2, 0, output_size=None)[
            :3
        ]

    x, lengths = torch.randn(2, 4), torch.tensor([1, 1])
    e = check(f, [(x, lengths)] * 3)
    assert counts(e) == (1, 2, 0, 1, 0)


def test_values_from_buffers_are_followed():
    kernel, stride = torch.tensor(3), torch.tensor(2)

    def f(x):
        frames = ((x.shape[0] - kernel) / stride + 1).ceil().int()
        return LIN(x) + (1 if frames.item() > 1 else 5)

    fast = framelift.compile(f)
    x = torch.randn(5, 4)
    with torch.no_grad():
        for change in (None, None, 9, None, 3, "refresh"):
            if change == "refresh":
                kernel.data.fill_(9)
                framelift.refresh(fast)
            elif change:
                kernel.fill_(change)
            torch.testing.assert_close(fast(x), f(x))
    e = framelift.explain(fast)
    assert e.native == 0 and e.replayed >= 2 and not e.breaks


def test_a_large_or_computed_tensor_still_ends_a_segment():
    e = check(lambda x: LIN(x) * x.sum().item(), [(torch.ones(5, 4),)] * 3)
    assert e.native == 0 and (e.breaks or e.segments == 2)


def test_an_argument_that_was_written_to_is_not_guarded():
    def f(x, n):
        n.add_(1)
        return LIN(x) * n.item()

    fast = framelift.compile(f)
    with torch.no_grad():
        for k in range(4):
            x, n = torch.randn(5, 4), torch.tensor(float(k))
            torch.testing.assert_close(fast(x, n.clone()), f(x, n))


def test_numbers_computed_from_few_integers_of_an_argument_are_fixed():
    """A grid, rows of it, products and differences: guards on its elements, no break."""

    def f(x, grid):
        rows = [row.tolist() for row in grid]
        areas = grid.prod(-1)
        ends = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
        parts = torch.split(x, (ends[1:] - ends[:-1]).tolist())
        heights = [int(h) for h, _ in grid]
        return torch.cat([LIN(p) * r[0] for p, r in zip(parts, rows, strict=True)]), sum(heights)

    x = torch.randn(10, 4)
    grids = [torch.tensor(g) for g in ([[2, 3], [1, 4]], [[2, 3], [1, 4]], [[1, 6], [2, 2]], [[2, 3], [1, 4]])]
    assert counts(check(f, [(x, g) for g in grids])) == (2, 2, 0, 2, 0)
    assert counts(check(f, [(x, g.int()) for g in grids])) == (2, 2, 0, 2, 0)


def test_a_mask_is_data():
    """How many of its elements are one is asked of each mask, not guarded by them."""

    def f(x, mask):
        return LIN(x) * int(mask.sum())

    masks = [torch.tensor(m) for m in ([1, 1, 0], [1, 0, 1], [0, 1, 1])]
    e = check(f, [(torch.randn(5, 4), m) for m in masks])
    assert e.recorded == 1 and e.replayed == 2 and e.native == 0


def test_a_mask_made_of_constants_gives_a_shape_that_is_known():
    def f(x):
        which = 1 * torch.ones(x.shape[0])
        out = torch.zeros_like(x)
        for k in range(3):
            mask = which == k
            out[mask] = LIN(x[mask]) + k
        return out * 2

    e = check(f, [(torch.randn(n, 4),) for n in (5, 5, 3, 5)])
    assert counts(e) == (2, 2, 0, 2, 0)


def test_operators_on_numbers_alone_give_constants():
    """As longformer computes the number of its chunks."""

    def function(x):
        half = torch.div(x.shape[0], 4, rounding_mode="trunc")
        return x.view(half, 4, -1) * torch.div(x.shape[1], 2, rounding_mode="floor"), torch.div(7, 2)

    fast = framelift.compile(function)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(8, 3)
            for got, want in zip(fast(x), function(x), strict=True):
                assert torch.equal(got, want) and got.dtype == want.dtype
    explanation = framelift.explain(fast)
    assert explanation.segments == 1 and not explanation.breaks and explanation.replayed == 2
